"""Every number of the report's ranking, computed again from results.csv and samples.parquet with numpy and scipy alone.

Nothing of spatial_eval.analysis is called: what a question, a set of seeds, a test and a correction mean is written out
here a second time.
"""

from __future__ import annotations

import random
import re
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import write_lines
from PIL import Image
from scipy.optimize import brentq
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import norm

import spatial_eval
from spatial_eval.analysis import selection
from spatial_eval.analysis.sweep_data import SweepData
from spatial_eval.benchmarks.readers import QuestionFile
from spatial_eval.core.arms import BASE, CONTRASTS, Arm, Sampling
from spatial_eval.core.types import Experiment, Generation, Places
from spatial_eval.models.recorded import Imported
from spatial_eval.report import figures, page, sections, tables
from spatial_eval.store.generations import Store, experiment_key, sample_digests

SEEDS, TEMPERATURES, IMAGES = 4, (1.0, 0.5), 48  # two questions about each image
# How often an arm fixes a wrong answer and breaks a right one.
METHODS = {
    "vcd": (0.75, 0.02),
    "sla": (0.1, 0.06),
    "dola": (0.0, 0.4),
    "text": (0.15, 0.15),
    "answer_yes": (0.35, 0.1),
    "m3id": (0.0, 0.0),
    "deco": (0.5, 0.02),
}
LUCKY = (0.95, 0.0)  # the first seed at temperature 1
UNLUCKY = (0.1, 0.4)


def flip(text: str) -> str:
    return "no" if text == "yes" else "yes"


@pytest.fixture(scope="module")
def ranked(tmp_path_factory) -> SweepData:
    folder: Path = tmp_path_factory.mktemp("ranked")
    chance = random.Random(6)
    arms = {Arm(contrast=CONTRASTS[kind]()): rates for kind, rates in METHODS.items()}
    for temperature in TEMPERATURES:
        for seed in range(SEEDS):
            lucky = seed == 0 and temperature == 1
            arms[Arm(contrast=Sampling(0.0, temperature, seed))] = LUCKY if lucky else UNLUCKY
    rows, said = [], []
    for i in range(2 * IMAGES):
        gold = chance.choice(("yes", "no"))
        Image.new("RGB", (4, 4), (i // 2, 0, 0)).save(folder / f"{i // 2}.png")
        row = {"id": f"q{i}", "question": f"Is it {i}?", "answer": [gold], "options": ["yes", "no"]}
        rows.append(row | {"image_path": f"{i // 2}.png"})
        right = chance.random() < 0.6
        said.append(Generation(f"q{i}", BASE, gold if right else flip(gold)))
        for arm, (fixes, breaks) in arms.items():
            now = chance.random() >= breaks if right else chance.random() < fixes
            said.append(Generation(f"q{i}", arm, gold if now else flip(gold)))
    write_lines(folder / "quiz.jsonl", rows)
    trunk, places = Experiment(QuestionFile(folder / "quiz.jsonl"), Imported("mine")), Places(folder, folder / "out")
    samples, key = trunk.dataset.read(places), experiment_key(trunk, places)
    with Store(places.paths.generations).writer(key, sample_digests(samples, ["" for _ in samples]), {}) as writer:
        writer.append(said, 0.0)
    given = ["dataset=file", f"dataset.path={folder / 'quiz.jsonl'}", "model=imported", "model.name=mine", "split=all"]
    given += [f"output_dir={folder / 'out'}", f"data_dir={folder}"]
    given += [f"method=base,sample,{','.join(METHODS)}", f"method.seeds={SEEDS}"]
    return spatial_eval.run([*given, f"method.sampling_temperature={','.join(map(str, TEMPERATURES))}"]).files


class Rows(HTMLParser):
    """The cells of the page's ranking, as lines of text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.inside = "ranking" in (dict(attrs).get("class") or "")
        if self.inside and tag == "tr":
            self.rows.append([])
        if self.inside and tag in ("td", "th"):
            self.rows[-1].append("")
        if self.inside and tag == "br":
            self.rows[-1][-1] += "\n"

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "table"

    def handle_data(self, data: str) -> None:
        if self.inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


@pytest.fixture(scope="module")
def shown(ranked: SweepData) -> list[dict[str, str]]:
    header, *rows = Rows(page.render_page(ranked)).rows
    return [dict(zip(header, row, strict=True)) for row in rows]


class Answers:
    """The answers of one row of the ranking: right and yes, (seeds, questions), and the questions' images."""

    def __init__(self, samples: pd.DataFrame, contrast: str, temperature: float = 0.0) -> None:
        own = samples[samples["contrast"] == contrast]
        own = own[own["sampling_temperature"] == temperature] if temperature else own
        runs = [one.sort_values("row") for _, one in own.groupby("seed")]
        self.right = np.stack([one["correct"].astype(bool).to_numpy() for one in runs]).astype(int)
        self.yes = np.stack([(one["text"] == "yes").to_numpy() for one in runs])
        self.image = pd.factorize(runs[0]["image"])[0]


def draw_mean(change: np.ndarray, image: np.ndarray, chance: np.random.Generator, draws: int = 3000) -> np.ndarray:
    """Percentiles of the mean of (seeds, questions) over draws of seeds and of images."""
    means = []
    members = [np.flatnonzero(image == one) for one in range(image.max() + 1)]
    for _ in range(draws):
        rows = np.concatenate([members[one] for one in chance.integers(len(members), size=len(members))])
        means.append(100 * change[chance.integers(len(change), size=len(change))][:, rows].mean())
    return np.percentile(means, [2.5, 97.5])


def turn_signs(gains: np.ndarray) -> float:
    """The share of all ways to turn the signs of whole numbers whose sum is as far from 0."""
    ways = {0: Fraction(1)}
    for gain in map(int, gains):
        turned: dict[int, Fraction] = {}
        for total, share in ways.items():
            for sign in (-1, 1):
                turned[total + sign * gain] = turned.get(total + sign * gain, Fraction(0)) + share / 2
        ways = turned
    return float(sum(share for total, share in ways.items() if abs(total) >= abs(int(gains.sum()))))


def least_shown(change: np.ndarray, image: np.ndarray) -> float:
    """Connor's power at .8, solved for the difference, with the questions' number divided by Kish's design effect."""
    whole, size = np.bincount(image, change.sum(axis=0)), len(change) * np.bincount(image)
    mean, parted = change.mean(), np.abs(change).mean()
    apart = np.abs(change).sum() - change.size * mean**2
    n = change.size / max(1.0, ((whole - mean * size) ** 2).sum() / apart)

    def power(d: float) -> float:
        q = max(parted, d)  # no fewer can part than make the difference
        return float(norm.cdf((d * n**0.5 - norm.ppf(0.975) * q**0.5) / (q - d**2) ** 0.5))

    return float(100 * brentq(lambda d: power(d) - 0.8, 1e-6, 1 - 1e-6))


def adjust(values: list[float]) -> list[float]:
    """Holm: the k-th smallest of m times m - k + 1, and never below a smaller one's."""
    order = np.argsort(values, kind="stable")
    steps = np.minimum(1, np.array(values)[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty(len(values))
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted.tolist()


def check_gain(text: str, change: np.ndarray, image: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Check a printed mean with its interval, and return the interval as it is drawn here."""
    value, interval = text.split("\n")
    ends = draw_mean(change, image, chance)
    assert float(value) == pytest.approx(100 * change.mean(), abs=0.051)
    assert [float(end) for end in interval.split(" to ")] == pytest.approx(ends, abs=1.3)
    return ends


def read_p(text: str) -> tuple[float, float]:
    """The numbers that a printed p may stand for."""
    return (0.0, 0.001) if text == "<.001" else (float(text) - 0.0005, float(text) + 0.0005)


def test_every_number_of_the_ranking(ranked: SweepData, shown: list[dict[str, str]]) -> None:
    samples = pd.read_parquet(ranked.folder / "samples.parquet")
    cells = pd.read_csv(ranked.folder / "results.csv")
    base, chance = Answers(samples, ""), np.random.default_rng(7)
    found: list[tuple[dict[str, str], Answers]] = []
    for row in shown:
        kind, *small = row["method"].split("\n")
        said = re.search(r"sampling_temperature=(\S+)", row["method"])
        temperature = float(said[1]) if said else 0.0
        assert bool(said) == (kind == "sample")
        assert small[:1] == {"sample": [f"control, mean of {SEEDS} seeds"], "answer_yes": ["control"]}.get(kind, [])
        found.append((row, Answers(samples, kind, temperature)))
        listed = cells[
            (cells["method"] == kind) & (cells["settings"].fillna("").str.contains("0.5") == (temperature == 0.5))
        ]
        assert listed["yes_rate"].mean() == pytest.approx(100 * found[-1][1].yes.mean())
    assert len(found) == len(METHODS) + len(TEMPERATURES)

    changes = [answers.right - base.right for _, answers in found]
    tested = [turn_signs(np.bincount(base.image, change.sum(axis=0))) for change in changes]
    gains = [100 * change.mean() for change in changes]
    controls = [i for i, (row, _) in enumerate(found) if "control" in row["method"]]
    best = max(controls, key=lambda i: gains[i])
    name = found[best][0]["method"].split("\n")[0]
    assert name == "answer_yes"  # a seed of sample gained more, their mean did not

    apart = {i: answers.right - found[best][1].right for i, (_, answers) in enumerate(found) if i not in controls}
    beside = adjust([turn_signs(np.bincount(base.image, change.sum(axis=0))) for change in apart.values()])
    beyond = dict(zip(apart, beside, strict=True))
    words = []
    for i, ((row, answers), change, p) in enumerate(zip(found, changes, adjust(tested), strict=True)):
        ends = check_gain(row["against base (95 %)"], change, base.image, chance)
        assert read_p(row["p (Holm)"])[0] <= p <= read_p(row["p (Holm)"])[1]
        helps, hurts = (p < 0.05 and bool((sign * ends > 0).all()) for sign in (1, -1))
        word, *more = row["verdict"].split("\n")
        same = "No clear difference" if change.any() else "Same as base"
        assert word == ("Helps" if helps else "Hurts" if hurts else same)
        if word == "No clear difference":
            assert float(more[0].removesuffix(" would show")) == pytest.approx(
                least_shown(change, base.image), abs=0.051
            )
        assert float(row["yes %"]) == pytest.approx(100 * answers.yes.mean(), abs=0.051)
        if i in controls:
            assert row[f"against {name} (95 %)"] == row["rank"] == ""
        else:
            low = check_gain(row[f"against {name} (95 %)"], apart[i], base.image, chance)[0]
            proven = low > 0 and beyond[i] < 0.05
            assert not helps or more == [f"{'more than' if proven else 'not shown beyond'} {name}"]
            assert row["rank"] == (str(i + 1) if helps else "")
        words.append((i in controls, ["Helps", same, "Hurts"].index(word), -gains[i]))
    assert words == sorted(words)
    assert {place for _, place, _ in words} == {0, 1, 2}  # each verdict is there
    assert any(
        "not shown beyond" in row["verdict"] and beyond[i] > 0.05 > beyond[i] / len(beyond)
        for i, row in enumerate(shown)
        if i in beyond
    )


def test_one_sentence_per_method(ranked: SweepData) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", page.render_page(ranked)).split())
    for said in (
        "Helps, and more than the best control, answer_yes : vcd.",
        "Helps, but is not shown to do more than the best control : deco.",
        "Not told apart from base : text, sla.",
        "No effect: right and wrong on the same questions as base : m3id.",
        "Worse than base : dola.",
    ):
        assert said in text
    assert text.count("Same as base") == 3  # row and sentence of the first table, row of the ranking
    assert re.search(r"Best control : answer_yes, \+[0-9.]+ \(", text)
    assert "counts by the mean of its seeds, never by the best of them" in text


def test_no_seed_is_chosen(ranked: SweepData) -> None:
    """Neither in the choices nor in any table of them; each seed stays a cell."""
    chosen = selection.picks(ranked)
    (sample,) = [s for s in chosen if s.family == "sample"]
    cells = ranked.cells[ranked.cells["method"] == "sample"]
    means = cells["accuracy"].groupby(cells["settings"].str.contains("temperature")).mean()
    assert (len(cells), sample.candidates) == (SEEDS * len(TEMPERATURES), 2)
    assert sample.test.now.value == pytest.approx(means.max())
    assert sample.mark == f"mean of {SEEDS} seeds, best of 2 on these questions"
    assert chosen[0].candidates == 1 + len(METHODS) + len(TEMPERATURES)
    assert cells["accuracy"].max() > chosen[0].test.now.value  # of one seed
    assert (chosen[0].family, chosen[0].method.kind) == ("", "vcd")
    sheet = tables.results_sheet(ranked.cells.to_dict("records"))
    named = {row[sheet.header.index("best control")] for row in sheet.rows} - {""}
    (control,) = [s for s in chosen if s.family == "answer_yes"]
    assert control.test.gain is not None
    assert named == {f"answer_yes {control.test.gain.value:+.1f}"}
    (paper,) = tables.paper_sheets(ranked, chosen)
    row: Any = next(row for row in paper.rows if row[0] == "sample")
    assert row[1].startswith(f"{sample.test.now.value:.2f} (")


def test_seeds_have_their_mean_below_the_table(ranked: SweepData) -> None:
    """Of each temperature; and in a long table in place of a seed's own figures."""
    rows, chosen = ranked.cells.to_dict("records"), selection.picks(ranked)
    (sample,) = [s for s in chosen if s.family == "sample"]
    value, low, high = (f"{end:.2f}" for end in (sample.test.now.value, sample.test.now.low, sample.test.now.high))
    mean = (
        f"quiz, mine, all: sample at its defaults, mean of {SEEDS} seeds {value} ({low}-{high}) (95 %, seeds and sets"
    )
    assert mean in tables.results_table(rows, chosen, ranked)
    assert f"sample sampling_temperature=0.5, mean of {SEEDS} seeds" in tables.results_table(rows, chosen, ranked)
    shown = tables.results_table(rows * 2, [s for s in chosen if s.family], ranked)  # of so many the best of each
    (line,) = [line for line in shown.splitlines() if " sample " in line and "quiz, " not in line]
    assert f" {value} " in line
    assert f"mean of {SEEDS} seeds, best of 2" in line
    texts = pd.read_csv(ranked.folder / "results.csv", dtype=str, keep_default_na=False).to_dict("records")
    others = [s for s in chosen if s.family and s.family != "answer_yes"]
    shown = tables.results_table(texts * 2, others, ranked)
    assert sample.test.gain is not None
    assert (
        shown.count(f"  sample {sample.test.gain.value:+.1f}") == len(METHODS) - 1
    )  # beside all but controls and base


def test_the_best_method_is_shown_and_named_in_full(ranked: SweepData, monkeypatch) -> None:
    """Its answers, however many methods come before it; a setting at its default where its cells differ in it."""
    monkeypatch.setattr(sections, "MAX_CONFUSIONS", 2)
    context = sections.ReportContext(ranked, selection.picks(ranked), figures.Thumbnails(()))
    (part,) = sections.details(context)["parts"]
    assert part["name"] == "vcd"
    assert [figure.title for figure in part["confusions"]] == ["base", tables.label_method(part["selected"].method)]
    assert part["flips"]["sheets"]["fixed"].header[-1] == "confidence"  # adapt_vis alone takes one of two weights
    lines = {line["selected"].family: line["setting"] for line in sections.answer(context)["lines"]}
    assert lines["sample"] == "sampling_temperature=1.0"


# The embedded model on two data sets: intervals by the same draws, settings that are chosen, costs.

DRAWN, TURNED = 2000, 1000  # times that the bootstrap draws, and that the test of a choice turns signs
COSTS = {
    "scaling_vis": "1 row",
    "adapt_vis": "1 row",
    "text": "S + T rows",
    "sla": "early layers' output heads",
    "deco": "early layers' output heads",
    "sample": "none: drawn from the same logits",
    "answer_yes": "T rows",
}
SETS = ("scenes_a", "scenes_two_obj")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> SweepData:
    folder = tmp_path_factory.mktemp("embedded")
    given = [
        f"method={','.join(('base', *COSTS))}",
        "weight=0.5,1.5",
        "weight1=0.5",
        "weight2=1.5",
        "threshold=0.4,0.6",
    ]
    given += [
        "method.seeds=3",
        "method.sampling_temperature=1,0.5",
        f"dataset={','.join(SETS)}",
        "limit=40",
        "split=test",
    ]
    return spatial_eval.run([*given, "model=tiny", f"output_dir={folder / 'out'}", f"data_dir={folder}"]).files


def link(questions: pd.DataFrame) -> np.ndarray:
    """The number of each question's cluster, by first appearance: what shares a set, a pair or an image."""
    pairs = []
    for name in ("set", "pair", "image"):
        groups = questions[name].replace("", np.nan).reset_index(drop=True).groupby(questions[name].to_numpy()).groups
        pairs += [(rows[0], row) for label, rows in groups.items() if label for row in rows]
    first, second = np.array(pairs).T
    graph = coo_matrix((np.ones(len(pairs)), (first, second)), shape=(len(questions),) * 2)
    return pd.factorize(connected_components(graph, directed=False)[1])[0]


def draw_again(change: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """The program's own percentile interval of the mean of (seeds, questions), from the numbers that it draws."""
    clusters = cluster.max() + 1
    picked = np.random.default_rng(0).integers(clusters, size=(DRAWN, clusters))
    counts = np.stack([np.bincount(row, minlength=clusters) for row in picked])
    sums = np.stack([np.bincount(cluster, row, clusters) for row in change])  # (seeds, clusters)
    seeds = np.full((DRAWN, len(change)), 1)
    if len(change) > 1:
        seeds = np.random.default_rng([0, 1]).multinomial(len(change), [1 / len(change)] * len(change), size=DRAWN)
    whole = counts @ np.bincount(cluster)
    gained = (counts @ sums.T * seeds).sum(axis=1) / (whole * seeds.sum(axis=1))
    return np.percentile(100 * gained, [2.5, 97.5])


def check_exactly(text: str, change: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Check a printed mean with its interval to the last digit, and return the interval."""
    value, interval = text.split("\n")
    ends = draw_again(change, cluster)
    assert float(value) == pytest.approx(100 * change.mean(), abs=0.0501)
    assert [float(end) for end in interval.split(" to ")] == pytest.approx(ends, abs=0.0501)
    return ends


def adjust_choice(gains: np.ndarray, chosen: int) -> float:
    """Westfall and Young's single-step maxT by turned signs; Bonferroni where no turn comes as far as the choice."""
    different = np.unique(gains, axis=0)
    own = turn_signs(gains[chosen])
    different = different[np.abs(different).any(axis=1)]
    if len(different) < 2:
        return own
    turned = np.random.default_rng(0).integers(2, size=(TURNED, gains.shape[1])) * 2 - 1
    most = np.abs(turned @ different.T / np.sqrt((different**2).sum(axis=1))).max(axis=1)
    far = abs(gains[chosen].sum()) / max(1, np.sqrt((gains[chosen] ** 2).sum()))
    p = (1 + (most >= far - 1e-9).sum()) / (1 + TURNED)
    return max(own, p if p > 1 / (1 + TURNED) else min(p, len(different) * own))


class Embedded:
    """One data set's answers by method and setting, from samples.parquet: right, (seeds, questions)."""

    def __init__(self, samples: pd.DataFrame) -> None:
        columns = ["contrast", "weight", "sampling_temperature", "seed"]
        frames = {key: one.sort_values("row") for key, one in samples.groupby(columns, dropna=False)}
        right = {key: one["correct"].to_numpy(bool).astype(int) for key, one in frames.items()}
        by_kind = {kind: [value for key, value in right.items() if key[0] == kind] for kind in COSTS}
        (at,) = [key for key in frames if key[0] == "" and key[1] == 1]
        self.base, self.cluster = right[at][None], link(frames[at])
        sure = frames[at]["confidence"].round(2).to_numpy()
        weight = {key[1]: value for key, value in right.items() if key[0] == ""}
        self.found: dict[tuple[str, str], np.ndarray] = {
            **{("scaling_vis", f"w={w:g}"): weight[w][None] for w in (0.5, 1.5)},
            **{
                ("adapt_vis", f"w1=0.5 w2=1.5 t={t:g}"): np.where(sure < t, weight[0.5], weight[1.5])[None]
                for t in (0.4, 0.6)
            },
            **{(kind, ""): by_kind[kind][0][None] for kind in ("text", "sla", "deco", "answer_yes")},
            **{
                ("sample", f"sampling_temperature={heat}"): np.stack(
                    [value for key, value in right.items() if key[0] == "sample" and key[2] == heat]
                )
                for heat in (1.0, 0.5)
            },
        }

    def sum_gains(self, right: np.ndarray) -> np.ndarray:
        return np.bincount(self.cluster, (right - self.base).sum(axis=0)).astype(int)


@pytest.mark.long
def test_the_ranking_of_the_embedded_model_on_two_sets(embedded: SweepData) -> None:
    samples = pd.read_parquet(embedded.folder / "samples.parquet")
    lines = Rows(page.render_page(embedded)).rows
    starts = [i for i, line in enumerate(lines) if line[0] == "method"]
    best = spatial_eval.load(embedded.folder).best().set_index(["dataset", "family"])
    found = []  # (data set, row as shown, answers of its setting, p of its choice)
    for name, start, end in zip(SETS, starts, [*starts[1:], len(lines)], strict=True):
        ours = Embedded(samples[samples["dataset"] == name])
        for line in lines[start + 1 : end]:
            row = dict(zip(lines[start], line, strict=True))
            kind, *small = row["method"].split("\n")
            setting = next((text for text in small if "=" in text), "")
            # Two temperatures of sample are two rows; of any other method the best on these questions is shown.
            others = [key for key in ours.found if key[0] == kind and (kind != "sample" or key[1] == setting)]
            at, right = others.index((kind, setting)), [ours.found[key] for key in others]
            assert right[at].mean() == max(one.mean() for one in right)
            p = adjust_choice(np.stack([ours.sum_gains(one) for one in right]), at)
            found.append((name, row, right[at], p, ours))
            if kind != "sample":
                stated = best.loc[name, kind]
                assert (stated["n"], stated["seeds"], stated["candidates"]) == (40, 1, len(others))
                assert stated["accuracy"] == pytest.approx(100 * right[at].mean())
                assert stated["base"] == pytest.approx(100 * ours.base.mean())
                assert stated["p"] == pytest.approx(turn_signs(ours.sum_gains(right[at])))
                assert [stated["difference_low"], stated["difference_high"]] == pytest.approx(
                    draw_again(right[at] - ours.base, ours.cluster)
                )
    assert [name for name, *_ in found] == [name for name in SETS for _ in range(len(COSTS) + 1)]

    # The best control, of seeds their mean, and the difference from it.
    controls: dict[str, tuple[float, str, np.ndarray]] = {}
    for name, row, right, *_ in found:
        if "control" in row["method"] and right.mean() > controls.get(name, (-1.0,))[0]:
            controls[name] = (right.mean(), row["method"].split("\n")[0], right)
    apart = {i: one[2] - controls[one[0]][2] for i, one in enumerate(found) if "control" not in one[1]["method"]}
    sums = [np.bincount(found[i][4].cluster, change.sum(axis=0)).astype(int) for i, change in apart.items()]
    beyond = dict(zip(apart, adjust(list(map(turn_signs, sums))), strict=True))
    for i, ((name, row, right, _, ours), p) in enumerate(zip(found, adjust([one[3] for one in found]), strict=True)):
        change = right - ours.base
        ends = check_exactly(row["against base (95 %)"], change, ours.cluster)
        low, high = read_p(row["p (Holm)"])
        assert low <= p <= high
        word = row["verdict"].split("\n")[0]
        helps, hurts = (p < 0.05 and bool((sign * ends > 0).all()) for sign in (1, -1))
        same = "No clear difference" if change.any() else "Same as base"
        assert word == ("Helps" if helps else "Hurts" if hurts else same)
        if word == "No clear difference":
            least = least_shown(change, ours.cluster)
            assert row["verdict"].split("\n")[1] == f"{least:.1f} would show"
        assert row["cost beside base"] == COSTS[row["method"].split("\n")[0]]
        text = row[f"against {controls[name][1]} (95 %)"]
        if i in apart:
            lower = check_exactly(text, apart[i], ours.cluster)[0]
            assert ("more than" in row["verdict"]) == (helps and lower > 0 and beyond[i] < 0.05)
        else:
            assert text == ""
        assert "rank" not in row or bool(row["rank"]) == (helps and i in apart)
