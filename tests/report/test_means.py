"""Tables and pictures beside a mean over seeds show that mean too, and name no seed: recomputed with pandas alone."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_lines
from PIL import Image

import spatial_eval
from spatial_eval.analysis import selection
from spatial_eval.analysis.framings import find_groups, framing_rows
from spatial_eval.analysis.metrics import spell_defaults
from spatial_eval.analysis.sweep_data import SweepData, match_methods
from spatial_eval.benchmarks.framing import apply_framing
from spatial_eval.benchmarks.readers import QuestionFile
from spatial_eval.config.tracking import Wandb
from spatial_eval.core.arms import BASE, Arm, Sampling
from spatial_eval.core.types import Experiment, Generation, Places
from spatial_eval.models.recorded import Imported
from spatial_eval.report import figures, framings, page, sections, tables
from spatial_eval.store.generations import Store, experiment_key, sample_digests
from spatial_eval.tracking import runs

OPTIONS = ("left", "right", "on", "under")
SEEDS = (3, 4, 5)  # the first is not the default
RIGHT = {None: 0.4, 3: 0.95, 4: 0.7, 5: 0.6}  # of each seed, None: of base
MEAN = "mean of 3 seeds"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> SweepData:
    """Questions in two forms on which sampling is better than base, the more so with the first seed."""
    folder: Path = tmp_path_factory.mktemp("drawn")
    chance, rows, answers = random.Random(3), [], []
    arms = {None: BASE} | {seed: Arm(contrast=Sampling(seed=seed)) for seed in SEEDS}
    for i in range(120):
        gold = OPTIONS[i % 4]
        Image.new("RGB", (4, 4), (i // 2, 0, 0)).save(folder / f"{i // 2}.png")
        row = {"id": f"q{i}", "question": "Where is it?", "answer": [gold], "options": list(OPTIONS), "relation": gold}
        rows.append(row | {"image_path": f"{i // 2}.png", "pair": f"p{i // 2}"})
        sure = chance.random()
        for seed, arm in arms.items():
            said = gold if chance.random() < RIGHT[seed] else chance.choice([*OPTIONS, "nowhere"])
            if chance.random() < 0.1:
                said += " or left"  # names two options
            answers.append(Generation(f"q{i}", arm, said, confidence=sure))
    write_lines(folder / "quiz.jsonl", rows)
    places, form = Places(folder, folder / "out"), QuestionFile(folder / "quiz.jsonl")
    for dataset in (form, apply_framing(form, "listed")):
        trunk = Experiment(dataset, Imported("mine"))
        samples, key = dataset.read(places), experiment_key(trunk, places)
        with Store(places.paths.generations).writer(key, sample_digests(samples, ["" for _ in samples]), {}) as writer:
            writer.append(answers, 0.0)
    given = ["dataset=file", f"dataset.path={folder / 'quiz.jsonl'}", "model=imported", "model.name=mine", "split=all"]
    given += [f"output_dir={folder / 'out'}", f"data_dir={folder}", "dataset.framing=null,listed"]
    return spatial_eval.run([*given, "method=base,sample", f"method.seed={','.join(map(str, SEEDS))}"]).files


@pytest.fixture(scope="module")
def frame(drawn: SweepData) -> pd.DataFrame:
    """The answers of all seeds to the benchmark's own form."""
    frame = pd.read_parquet(drawn.folder / "samples.parquet")
    return frame[(frame["dataset"] == "quiz") & (frame["contrast"] == "sample")]


@pytest.fixture(scope="module")
def chosen(drawn: SweepData) -> list[selection.Selected]:
    return selection.picks(drawn)


def cells_of_seeds(files: SweepData, dataset: str = "quiz") -> pd.DataFrame:
    cells = pd.read_csv(files.folder / "results.csv")
    return cells[(cells["dataset"] == dataset) & (cells["method"] == "sample")]


def test_tables_show_the_mean_of_every_figure(drawn: SweepData, chosen: list[selection.Selected]) -> None:
    cells = cells_of_seeds(drawn)
    (sheet,) = tables.paper_sheets(drawn, chosen)
    row = dict(zip(sheet.header, next(row for row in sheet.rows if row[0] == "sample"), strict=True))
    assert row["quiz all (n=120)"].startswith(f"{cells['accuracy'].mean():.2f} (")
    assert row["pair"] == f"{cells['pair_accuracy'].mean():.2f}"
    assert cells["pair_accuracy"].nunique() == len(SEEDS)
    best = [s for s in chosen if s.family]
    rows = drawn.cells.astype(object).to_dict("records") * 3  # too many to show them all
    shown = tables.results_table(rows, best, drawn).splitlines()
    _, line = (line for line in shown if re.match(r"quiz +mine", line))
    for name in ("accuracy", "accuracy_strict", "pair_accuracy"):
        assert f" {cells[name].mean():.2f} " in line
    assert f" {cells['unreadable'].mean():.1f} " in line
    assert MEAN in line


def test_each_form_names_the_seed_that_is_the_default(drawn: SweepData) -> None:
    rows = framing_rows(drawn, find_groups(drawn))
    plain = [{**row, "settings": None} if row["settings"] == "seed=3" else row for row in rows]
    assert match_methods(drawn.about, plain) is None  # no cell of this sweep has the default
    methods = match_methods(drawn.about, rows)
    assert methods is not None
    shown = framings.framing_sheet(spell_defaults(rows, methods))
    at = shown.header.index("setting")
    assert [row[at] for row in shown.rows if row[2] == "sample"] == [f"seed={seed}" for seed in SEEDS for _ in range(2)]


def test_relations_are_the_mean(drawn: SweepData, chosen: list[selection.Selected], frame: pd.DataFrame) -> None:
    shares = 100 * frame.groupby("relation")["correct"].mean()
    (sheet, _) = tables.relation_sheets(drawn, chosen)
    row = next(row for row in sheet.rows if row[0] == "sample")
    assert [float(text.split()[0]) for text in row[1:]] == pytest.approx(list(shares), abs=0.051)
    context = sections.ReportContext(drawn, chosen, figures.Thumbnails(()))
    part = sections.details(context)["parts"][0]
    found = {line[0]: float(line[-1].split()[0]) for line in part["relations"].rows}
    assert found == pytest.approx(dict(shares), abs=0.051)
    (line,) = [one for one in sections.answer(context)["lines"] if one["selected"].dataset == "quiz"]
    base = pd.read_parquet(drawn.folder / "samples.parquet").query("dataset == 'quiz' and contrast == ''")
    gains = shares - 100 * base.groupby("relation")["correct"].mean()
    top = gains.sort_values(ascending=False)[:2]
    assert line["gains"] == [f"“{name}” {gain:+.1f}" for name, gain in top.items()]


def test_answers_by_gold_are_the_mean(drawn: SweepData, chosen: list[selection.Selected], frame: pd.DataFrame) -> None:
    counts = frame.assign(prediction=frame["prediction"].replace("", "unread")).groupby(["gold", "prediction"]).size()
    context = sections.ReportContext(drawn, chosen, figures.Thumbnails(()))
    part = sections.details(context)["parts"][0]
    drawing = next(figure for figure in part["confusions"] if figure.title.startswith("sample"))
    assert drawing.title == f"sample, {MEAN}"
    assert "n = 120." in drawing.note
    tips = {mark.tip for mark in drawing.marks if mark.tip}
    for (gold, answer), count in counts.items():
        (tip,) = [tip for tip in tips if f"gold {gold}: answers {answer} {count:,} times in 3 seeds, " in tip]
        assert f", {100 * count / 90:.1f} % (95 %: " in tip
        assert tip.endswith("n = 30)")
    why = sections.answer(context)["why"]
    assert why["after"] == pytest.approx(100 * counts[why["gold"], why["gold"]] / 90)

    *_, run = runs.build_runs(runs.TrackedSweep(drawn), Wandb())
    table = pd.DataFrame(run.tables["confusion"].rows, columns=list(run.tables["confusion"].columns))
    shown = table[(table["dataset"] == "quiz") & (table["method"] == f"sample, {MEAN}")].set_index(["gold", "answer"])
    assert (shown["of"] == 90).all()
    for place, count in counts.items():
        assert shown["count"][place] == count


def test_risk_by_confidence_is_the_mean(
    drawn: SweepData, chosen: list[selection.Selected], frame: pd.DataFrame
) -> None:
    base = pd.read_parquet(drawn.folder / "samples.parquet").query("dataset == 'quiz' and contrast == ''")
    score = base.set_index("sample_id")["confidence"]
    wrong = 100 * (1 - frame.groupby("sample_id")["correct"].mean())
    mean = wrong[score.sort_values(ascending=False).index].expanding().mean()
    context = sections.ReportContext(drawn, chosen, figures.Thumbnails(()))
    (risk,) = [one for one in sections.details(context)["parts"][0]["confidence_figures"] if one.title[:4] == "Risk"]
    assert f"sample, {MEAN}" in risk.legend.values()
    (tip,) = [mark.tip for mark in risk.marks if mark.tip and mark.tip.startswith("sample")]
    assert tip.startswith(f"sample, {MEAN}, all questions: {mean.iloc[-1]:.1f} % (95 %: ")
    points = dict(sections.diagnostics.risk_coverage(drawn.parts[drawn.keys[0]], chosen[0].list_runs(drawn)))
    for coverage, e in points.items():
        at = round(coverage * len(mean) / 100)
        assert (e.n, e.value) == (at, pytest.approx(mean.iloc[at - 1]))


def test_forms_are_compared_by_the_mean(drawn: SweepData, chosen: list[selection.Selected]) -> None:
    content = sections.framings(sections.ReportContext(drawn, chosen, figures.Thumbnails(())))
    assert content is not None
    above, gains = content["groups"][0]["figures"]
    for form, dataset in (("own", "quiz"), ("listed", "quiz@listed")):
        cells = cells_of_seeds(drawn, dataset)
        for drawing, column in ((above, "accuracy_adjusted"), (gains, "vs_base")):
            (tip,) = [mark.tip for mark in drawing.marks if mark.tip and mark.tip.startswith(f"{form}, sample")]
            said = re.match(rf"{form}, sample, {MEAN}: ([-+.\d]+) ", tip)
            assert said
            assert float(said[1]) == pytest.approx(cells[column].mean(), abs=0.051)
    assert any("above chance of base runs from" in line for line in content["groups"][0]["lines"])
    (group,) = find_groups(drawn)
    forms = [
        replace(form, cells={method: cell for method, cell in form.cells.items() if method.kind == "sample"})
        for form in group.forms
    ]
    alone = framings._show_group(drawn, replace(group, forms=forms), [tuple(chosen[0].list_runs(drawn))])
    assert alone["sheets"] == []  # they are of one run
    assert alone["lines"][0] == framings.SEEDS


def test_no_seed_is_named_where_a_mean_stands(drawn: SweepData, chosen: list[selection.Selected]) -> None:
    """Each seed is named beside its own answers: in results.csv, the grid and the sample browser."""
    text = page.render_page(drawn)
    samples = re.search(r'id="samples-data">(.*?)</script>', text, flags=re.S)
    grid = re.search(r'id="data">(.*?)</script>', text, flags=re.S)
    assert samples
    assert grid
    assert '"seed"' in grid[1]
    assert "seed=3" in samples[1]
    for name in ("answer", "framings"):
        found = re.search(rf'<section id="{name}".*?</section>', text, flags=re.S)
        assert found
        assert "seed=" not in found[0]
        assert MEAN in found[0]
    for part in sections.details(sections.ReportContext(drawn, chosen, figures.Thumbnails(())))["parts"]:
        drawings = [*part["confusions"], *part["confidence_figures"], part["relation_figure"]]
        labels = [part["name"], *(label for drawing in drawings for label in (drawing.title, *drawing.legend.values()))]
        assert not [label for label in labels if re.search(r"seed=\d|one seed", label)]
        assert part["name"] == f"sample, {MEAN}"
    for s in chosen:
        assert "seed" not in tables.label_method(s.setting)
    sheets = [*tables.paper_sheets(drawn, chosen), *tables.relation_sheets(drawn, chosen)]
    sheets.append(tables.selection_sheet(drawn, [s for s in chosen if s.dataset == "quiz"]))
    for sheet in sheets:
        assert not re.search(r"seed=\d|one of its seeds", json.dumps([sheet.rows, sheet.notes]))
        assert MEAN in json.dumps([sheet.rows, sheet.notes])
    *_, run = runs.build_runs(runs.TrackedSweep(drawn), Wandb())
    for name in ("best", "forest", "confusion"):
        assert "seed=" not in json.dumps(run.tables[name].rows)
    assert not [
        name for chart, drawn in run.curves.items() if "forest" in chart for name in drawn.lines if "seed=" in name
    ]


def test_a_flipped_question_is_of_one_seed_and_not_listed(
    drawn: SweepData, chosen: list[selection.Selected], frame: pd.DataFrame
) -> None:
    base = pd.read_parquet(drawn.folder / "samples.parquet").query("dataset == 'quiz' and contrast == ''")
    before = frame["sample_id"].map(base.set_index("sample_id")["correct"]).to_numpy(bool)
    now = frame["correct"].to_numpy(bool)
    context = sections.ReportContext(drawn, chosen, figures.Thumbnails(()))
    flips = sections.details(context)["parts"][0]["flips"]
    assert flips == {"n": 120, "sizes": {"fixed": (now & ~before).sum(), "broken": (before & ~now).sum()}, "sheets": {}}
    assert "all seeds together; which ones, differs from seed to seed" in page.render_page(drawn)


def test_a_setting_has_the_row_of_its_seeds(drawn: SweepData, chosen: list[selection.Selected]) -> None:
    found, cells = selection.build_setting_row(drawn, chosen[0].seeds), cells_of_seeds(drawn)
    for name in ("accuracy", "accuracy_strict", "pair_accuracy", "pair_accuracy_complete", "unreadable", "chance"):
        assert found[name] == pytest.approx(cells[name].mean())
    assert (found["n"], found["missing"], found["method"], found["settings"]) == (120, 0, "sample", "")
    assert np.isnan(found["f1"])
    assert found["vs_base"] == pytest.approx(cells["vs_base"].mean())
    (one, *_) = chosen[0].seeds
    assert selection.build_setting_row(drawn, [one]) == pytest.approx(drawn.row(one), nan_ok=True)


@pytest.mark.parametrize(("answered", "left_out"), [(110, 0), (60, 1)])
def test_a_setting_keeps_all_of_its_seeds_or_none(drawn: SweepData, answered: int, left_out: int) -> None:
    """A seed without some answers was dropped, and the figure was the mean of the others, in silence."""
    cells = drawn.cells.copy()
    last = cells.index[(cells["method"] == "sample") & (cells["dataset"] == "quiz")][-1]
    cells.loc[last, "n"] = answered  # of 120
    found = {s.family: s for s in selection.picks(replace(drawn, cells=cells)) if s.dataset == "quiz"}
    assert (len(found["sample"].seeds), found["sample"].left_out, found["sample"].mark) == (3, 0, MEAN)
    assert found[""].left_out == left_out  # 350 of 360 are 97 %, 300 are 83 %
