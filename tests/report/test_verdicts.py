"""Verdicts, the smallest difference beside them, controls, and the ranking of a sweep with many methods."""

from __future__ import annotations

import copy
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.stats
from conftest import write_lines
from PIL import Image

import spatial_eval
from spatial_eval.analysis import selection
from spatial_eval.analysis.intervals import Estimate, proportion
from spatial_eval.analysis.sweep_data import SweepData, read_sweep_data
from spatial_eval.methods.published import TABLE, published_gains
from spatial_eval.methods.routing import METHODS, PaiFull, ScalingVis
from spatial_eval.report import figures, page, sections, verdicts
from spatial_eval.report.tables import label_part, results_sheet


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> SweepData:
    """Yes/no questions on which one weight helps as much as a forced yes, and another hardly acts."""
    return judge(tmp_path_factory.mktemp("judged"))


@pytest.fixture(scope="module")
def parted(tmp_path_factory) -> SweepData:
    """The first 60 questions of them and all, in answers of two lengths."""
    return judge(tmp_path_factory.mktemp("parted"), "limit=60,null", "max_new_tokens=4,8")


def judge(folder: Path, *more: str) -> SweepData:
    chance = random.Random(0)
    rows, recorded = [], []
    for i in range(200):
        gold, wrong = ("yes", "no") if i % 2 else ("no", "yes")
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}.png")
        rows.append(
            {"id": f"q{i}", "question": "Is it?", "answer": [gold], "options": ["yes", "no"], "image_path": f"{i}.png"}
        )
        sure = min(0.95, max(0.05, (0.7 if gold == "yes" else 0.2) - 0.2 + chance.gauss(0, 0.2)))
        base = "yes" if sure > 0.5 else "no"
        said = {"1": base, "0.5": gold if chance.random() < 0.9 else wrong, "2": wrong if i % 40 == 0 else base}
        probs = {"1": {"yes": sure, "no": 1 - sure}}
        line = {"dataset": "quiz", "row": i, "gold": gold, "confidence": max(sure, 1 - sure)}
        recorded.append(line | {"generation": said, "option_probs": probs})
    write_lines(folder / "quiz.jsonl", rows)
    write_lines(folder / "recorded.jsonl", recorded)
    given = ["dataset=file", f"dataset.path={folder / 'quiz.jsonl'}", "model=recorded"]
    given += [f"model.path={folder / 'recorded.jsonl'}", f"output_dir={folder / 'out'}", "split=all"]
    methods = ["method=base,scaling_vis,adapt_vis,route,forced_yes", "weight=0.5,2", "weight1=0.5", "weight2=2"]
    methods += ["threshold=0.7", "method.low=0.5", "method.high=2"]
    return spatial_eval.run([*methods, *given, *more]).files


def test_each_line_says_what_the_best_control_gains_and_what_so_many_questions_show(judged: SweepData) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", page.render_page(judged)).split())
    chosen = {s.family: s for s in selection.picks(judged) if s.family}
    control = chosen["forced_yes"].test.gain
    assert control is not None
    assert f"The best control there, forced_yes, gains {control.value:+.1f}." in text
    assert text.count(f"The best control, forced_yes, gains {control.value:+.1f}.") == 3  # of each method but itself
    same = [s for s in chosen.values() if s.test.gain and verdicts.classify_gain(s) == "same"]
    assert same
    for s in same:
        assert f"{s.test.detectable:.1f} would show" in text


def test_the_ranking_holds_what_helps_and_greys_the_rest(judged: SweepData) -> None:
    (ranking,) = verdicts.rank_methods(judged, selection.picks(judged))
    rows = [dict(zip(ranking.sheet.header, row, strict=True)) for row in ranking.sheet.rows]
    assert [row["rank"] for row in rows][:1] == ["1"]
    assert rows[-1]["method"] == "forced_yes\ncontrol"
    for i, row in enumerate(rows):
        assert (i in ranking.sheet.pale) == (not row["rank"])
        assert bool(row["rank"]) == (row["verdict"].startswith("Helps\n") and "control" not in row["method"])
        assert row["yes %"]
    gains = [float(row["against base (95 %)"].split()[0]) for row in rows if row["rank"]]
    assert gains == sorted(gains, reverse=True)


def test_the_difference_from_the_control_is_paired(judged: SweepData) -> None:
    chosen = {s.family: s for s in selection.picks(judged) if s.family}
    new, control = (judged.outcome(chosen[name].cell) for name in ("scaling_vis", "forced_yes"))
    found = selection.compare_settings(judged, chosen["scaling_vis"].seeds, chosen["forced_yes"].seeds)
    assert found is not None
    assert found.gain.value == pytest.approx(100 * (new.right.mean() - control.right.mean()))
    parted = int((new.right != control.right).sum())
    assert found.p == pytest.approx(scipy.stats.binomtest(found.fixed, parted).pvalue)


def test_a_table_names_the_best_control_beside_each_method_alone(judged: SweepData) -> None:
    sheet = results_sheet(judged.cells.to_dict("records"))
    at = sheet.header.index("best control")
    named = {row[sheet.header.index("method")]: row[at] for row in sheet.rows}
    assert named["base"] == named["forced_yes"] == ""
    assert re.fullmatch(r"forced_yes [+-]\d+\.\d", named["scaling_vis"])


PLACES = [
    f"quiz{limit} max_new_tokens={tokens}" for tokens in (4, 8) for limit in (" limit=60", "")
]  # of the sweep with four parts


def test_a_control_is_that_of_the_same_limit_and_length(parted: SweepData) -> None:
    chosen = selection.picks(parted)
    controls = selection.best_controls(parted, chosen)
    assert controls.keys() == parted.parts.keys()
    assert all(parted.keys[s.cell] == key for key, s in controls.items())
    gains = {key: s.test.gain.value for key, s in controls.items() if s.test.gain}
    assert len(set(gains.values())) == 2  # by limit
    found = sections.answer(sections.ReportContext(parted, chosen, figures.Thumbnails(())))
    beside = [line for line in found["lines"] if line["control"]]
    assert len(beside) == 4 * 3
    for line in beside:
        assert line["control"].test.gain.value == gains[parted.keys[line["selected"].cell]]
    for ranking in verdicts.rank_methods(parted, chosen):
        (gain,) = {gains[key] for key in gains if f"n = {len(parted.parts[key].questions)}" in ranking.title}
        assert ranking.control.startswith(f"forced_yes, {gain:+.1f} (")
        assert any(row[ranking.sheet.header.index("against forced_yes (95 %)")] for row in ranking.sheet.rows)


def test_labels_say_what_parts_differ_in(parted: SweepData) -> None:
    chosen = selection.picks(parted)
    context = sections.ReportContext(parted, chosen, figures.Thumbnails(()))
    answer = sections.answer(context)
    assert sorted(set(answer["datasets"].values())) == sorted(PLACES)
    assert (len(answer["places"]), answer["noun"]) == (4, "parts")
    titles = [ranking.title for ranking in verdicts.rank_methods(parted, chosen)]
    assert sorted(titles) == sorted(
        f"{place}, all: recorded, n = {60 if 'limit' in place else 200}" for place in PLACES
    )
    links = sections.details(context)["links"].values()
    assert sorted(links) == sorted(PLACES)
    text = page.render_page(parted)
    for place in PLACES:
        assert text.count(f'<th scope="row" class="d">{place}</th>') == 4
        assert f"<h2>{place}, all <" in text
        assert f"<b>{place}</b>." in text
    assert '<th scope="row" class="d">quiz</th>' not in text


def test_one_limit_and_one_length_are_not_named(judged: SweepData) -> None:
    text = page.render_page(judged)
    assert text.count('<th scope="row" class="d">quiz</th>') == 4
    assert "<h2>quiz, all <" in text
    (ranking,) = verdicts.rank_methods(judged, selection.picks(judged))
    assert ranking.title == "quiz, all: recorded, n = 200"
    answer = sections.answer(sections.ReportContext(judged, selection.picks(judged), figures.Thumbnails(())))
    assert answer["noun"] == "datasets"


def test_a_part_is_named_by_what_sets_it_apart() -> None:
    short, long, other = (("quiz", "m", tokens, "test", limit) for tokens, limit in ((1, 40), (8, 40), (1, 16)))
    assert label_part(short, [short]) == "quiz"
    assert label_part(short, [short], split=True) == "quiz test limit=40"
    assert label_part(short, [short, long]) == "quiz max_new_tokens=1"
    assert label_part(short, [short, other]) == "quiz limit=40"
    assert label_part(other, [short, long, other], split=True) == "quiz test limit=16 max_new_tokens=1"
    assert label_part((*short[:4], 0), [short, (*short[:4], 0)]) == "quiz"


def test_two_kinds_of_method_are_not_ranked(swept) -> None:
    files = read_sweep_data(swept)
    assert verdicts.rank_methods(files, selection.picks(files)) == []


@pytest.mark.parametrize(
    ("method", "cost"),
    [
        (ScalingVis(0.5), "1 row"),
        (ScalingVis(0.5, scope="text"), "T rows"),
        (METHODS["vcd"](), "1 prefill"),
        (METHODS["text"](), "S + T rows"),
        (PaiFull(), "1 row and S + T rows"),
        (METHODS["sla"](), "early layers' output heads"),
        (METHODS["forced_yes"](), "none: from stored answers"),
        (METHODS["answer_yes"](), "T rows"),
        (METHODS["icd"](), "1 prefill"),
        (METHODS["icd"](place="text"), "T rows"),
        (ScalingVis(1.0), ""),
    ],
)
def test_cost_is_arithmetic(method, cost: str) -> None:
    assert verdicts.describe_cost(method) == cost


def test_published_gains_are_those_of_the_tables() -> None:
    (vcd,) = published_gains("llava15_7b", "controlled_a", "vcd")
    assert (vcd.base, vcd.value) == (TABLE["llava15_7b"]["base"][0], TABLE["llava15_7b"]["vcd"][0])
    assert [one.value for one in published_gains("llava15_7b", "pope_coco_popular", "vcd")] == [85.38, 86.2]
    assert published_gains("llava15_7b", "pope_coco_random", "sla") == []
    assert published_gains("", "controlled_a", "vcd") == published_gains("llava16_7b", "pope_coco_random", "vcd") == []


@pytest.mark.parametrize(("kind", "shown"), [("JsonLines", False), ("HubDataset", False), ("Vsr", True)])
def test_no_published_gain_stands_beside_a_file_of_ones_own(judged: SweepData, kind: str, shown: bool) -> None:
    """Which may have the benchmark's name."""
    (chosen,) = (s for s in selection.picks(judged) if s.family == "scaling_vis")
    about = copy.deepcopy(judged.about)
    about["trunks"][0]["dataset"] |= {"name": "vsr", "kind": kind}
    spelled = verdicts._spell_published(replace(judged, about=about), replace(chosen, dataset="vsr"))
    assert ("arXiv 2503.01773" in spelled) == shown


def test_what_so_few_sets_show_is_not_said(judged: SweepData) -> None:
    (s, *_) = [s for s in selection.picks(judged) if s.family == "scaling_vis"]
    assert not math.isnan(s.test.detectable)
    assert math.isnan(selection.Against(s.test.now).detectable)


def test_the_page_says_gpu_hours_and_nothing_of_answers_from_elsewhere(judged: SweepData) -> None:
    assert "Batches took" not in page.render_page(judged)
    ran = replace(judged, passes=judged.passes.assign(device="NVIDIA H100", seconds=5400.0))
    assert page.render_page(ran).count("Batches took 1.5 GPU hours (NVIDIA H100).") == 2  # on top, and to reproduce


def test_what_few_questions_say_is_pale_and_says_why() -> None:
    accuracies = {"left": {"base": proportion(1, 9)}, "on": {"base": proportion(8, 10)}}
    figure, sheet = figures.relation_figure(accuracies), sections._relation_sheet(accuracies)
    assert [mark.tip[:10] for mark in figure.marks if mark.attributes.get("class") == "pale"] == ["left, base"]
    assert figure.note == "Bars with 95 % intervals. Pale: fewer than 10 questions."
    assert [row[1] for row in sheet.rows] == ["9\nfew", "10"]
    assert sheet.pale == {0}


def test_the_line_of_weights_passes_through_base() -> None:
    answers = {0.5: proportion(10, 100), 1.0: proportion(40, 100), 2.0: proportion(50, 100)}
    gains = {0.5: Estimate(-30, -40, -20, 100), 2.0: Estimate(10, 5, 15, 100)}
    for figure in figures.weight_figures({"multiply": answers}, {"multiply": gains}):
        (line,) = [mark.attributes["d"] for mark in figure.marks if mark.attributes.get("class") == "thin k3"]
        marks = [*figure.marks, *(child for mark in figure.marks for child in mark.children)]
        (zero,) = [mark.attributes["d"] for mark in marks if mark.attributes.get("class") == "zero"]
        assert len(points := str(line).split("L")) == 3
        assert points[1].split()[1] == str(zero).split()[1].partition("H")[0]
