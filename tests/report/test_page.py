"""report.html as a file: its content and size, without references to other files."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from conftest import command, questions, recordings, reseal, write_lines
from jinja2 import UndefinedError
from PIL import Image
from published_statistics import proportion_confint

from spatial_eval.analysis import diagnostics, intervals, selection, sweep_data
from spatial_eval.core.arms import BASE
from spatial_eval.core.columns import AGAINST
from spatial_eval.methods.routing import AdaptVis, Base, ScalingVis
from spatial_eval.report import figures as report_figures
from spatial_eval.report import page as report_page
from spatial_eval.report import sections, tables, verdicts


def text_of(page: str) -> str:
    """Return what a reader sees without a script: no tags, spaces folded."""
    body = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", "", body.replace("<td>", " ").replace("<br>", " ")).split())


@pytest.fixture
def page(swept) -> str:
    return (swept / "report.html").read_text("utf8")


def test_a_run_leaves_a_report_that_the_command_rebuilds(swept, tmp_path, cli) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / "out" / "sweeps" / swept.name))
    (folder / "report.html").unlink()
    done = cli("report", swept.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").read_text("utf8") == (swept / "report.html").read_text("utf8")


def test_it_is_one_file_without_addresses(page) -> None:
    assert "http://" not in page
    assert "https://" not in page
    assert "src=" not in page.replace('src="data:', "")
    assert not re.search(r"<link(?! rel=\"icon\" href=\"data:,\")", page)


def test_it_has_every_section(page) -> None:
    headings = re.findall(r"<h[23]>(.*?)<", page)
    first, told = "What helped, where, by how much, how sure", "What each arm says against what is right"
    for name in (first, told, "Hyperparameters", "Relations", "Confidence", "Fixed and broken questions", "Every cell"):
        assert name in headings
    assert {"Failures", "Reproduce"} <= set(headings)
    assert "<pre>python launch.py -m " in page
    assert "split=val,test" in page
    assert "The paper" not in headings  # none of its settings ran


def test_every_figure_has_its_caption_and_every_table_its_header(page) -> None:
    assert page.count("<figure>") == page.count("<figcaption>") == page.count('role="group" aria-label=') >= 5
    for table in re.findall(r"<table(?! id=\"grid\").*?</table>", page, flags=re.S):
        assert 'scope="col"' in table
    tips = re.findall(r'role="img" data-tip aria-label="([^"]*)"', page)
    assert all("n = " in tip for tip in tips)


def test_the_text_of_others_is_escaped(tmp_path) -> None:
    rows = [row | {"relation": "<script>alert(1)</script>", "question": "a </script><b>"} for row in questions(40)]
    quiz, recorded = tmp_path / "quiz.jsonl", tmp_path / "recorded.jsonl"
    write_lines(quiz, rows)
    write_lines(recorded, [r | {"confidence": 0.1} for r in recordings(rows, "quiz")])
    run = command("launch.py", f"output_dir={tmp_path / 'out'}")
    given = [
        "dataset=jsonl",
        f"dataset.path={quiz}",
        "model=recorded",
        f"model.path={recorded}",
        "model.name='</script>'",
    ]
    done = run("-m", "method=base,scaling_vis", *given)
    assert done.returncode == 0, done.stderr
    page = (Path(done.stdout.splitlines()[-1]).parent / "report.html").read_text("utf8")
    assert "<script>alert" not in page
    assert page.count("</script>") == 4  # two of data, two of code


NASTY = "<i>&\"'"
ESCAPED = "&lt;i&gt;&amp;&#34;&#39;"


@pytest.mark.parametrize(
    ("macro", "value"),
    [
        ("table", tables.Sheet(NASTY, ["a"], [["1"]])),
        ("table", tables.Sheet("", [NASTY, "b"], [["1", "2"]])),
        ("table", tables.Sheet("", ["a", "b"], [["1", f"2\n{NASTY}\nn = 3"]])),
        ("table", tables.Sheet("", ["a", "b"], [[NASTY, "1"]], long=("a",))),
        ("table", tables.Sheet("", ["a"], [[report_figures.EmbeddedImage("data:,", NASTY)]])),
        ("figure", report_figures.Figure(NASTY, "", [])),
        ("figure", report_figures.Figure("", NASTY, [], {"c0": NASTY})),
        ("figure", report_figures.Figure("", "", [report_figures.Mark("g", {}, NASTY, NASTY)])),
        ("figure", report_figures.Figure("", "", [report_figures.Mark("path", {"d": NASTY})])),
    ],
)
def test_macros_escape_every_text(macro: str, value: object) -> None:
    template = report_page.templates().from_string(f"{{% from 'macros.html.j2' import {macro} %}}{{{{ {macro}(x) }}}}")
    text = template.render(x=value)
    assert ESCAPED in text
    assert "<i>" not in text.replace('<i class="c0"></i>', "")


def test_an_undefined_name_in_a_template_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'lable' is undefined"):
        report_page.templates().from_string("{{ lable }}").render(label=1)


def test_a_section_is_a_function_and_its_template(swept, monkeypatch) -> None:
    names = {name.removesuffix(".html.j2") for name in report_page.templates().list_templates(["j2"])}
    assert names == {*sections.SECTIONS, "macros", "page"}
    files = sweep_data.read_sweep_data(swept)
    monkeypatch.setitem(
        sections.SECTIONS, "attention", lambda _: {"links": {"new": "Added"}, "captures": [], "total": 0}
    )
    page = report_page.render_page(files)
    assert '<a href="#new">Added</a>' in page
    assert "Attention to the image" in page
    monkeypatch.setitem(sections.SECTIONS, "paper", lambda _: None)
    assert "The paper" not in report_page.render_page(files)


def test_questions_are_wrapped_and_other_first_cells_are_row_headers(page) -> None:
    (flips,) = re.findall(r"<caption>Questions fixed</caption>.*?</table>", page, flags=re.S)
    assert '<td class="wrap">Where is the object' in flips
    assert '<th scope="row"' not in flips
    (relations,) = re.findall(r'<table class="data relations">.*?</table>', page, flags=re.S)
    assert '<th scope="row">left</th><td>5<br>' in relations.replace("\n", "")


@pytest.mark.parametrize("limit", [8, 36, 40])
def test_few_sets_have_no_interval_and_the_page_says_why(launch, experiment, limit: int) -> None:
    done = launch("-m", "method=base,scaling_vis", "weight=0.5,0.8", "split=all", f"limit={limit}", *experiment)
    page = text_of((Path(done.stdout.splitlines()[-1]).parent / "report.html").read_text("utf8"))
    assert "nan" not in page
    few = limit < 40  # sets of four
    assert ("no interval: fewer than 10 sets or images, too few to draw again" in page) == few
    assert bool(re.search(r"The difference from base is [+-]\d+\.\d points \([+-]\d+\.\d to [+-]", page)) == (not few)


def test_images_at_hand_are_shown_small(tmp_path) -> None:
    rows = questions(40)
    for i, row in enumerate(rows):
        image = tmp_path / f"{i}.png"
        Image.new("RGB", (640, 480), (i * 6, 90, 120)).save(image)
        row["image_path"] = image.name
    quiz, recorded = write_lines(tmp_path / "quiz.jsonl", rows), tmp_path / "recorded.jsonl"
    write_lines(recorded, recordings(rows, "quiz"))
    run = command("launch.py", f"output_dir={tmp_path / 'out'}")
    done = run(
        "-m",
        "method=base,scaling_vis",
        "dataset=jsonl",
        f"dataset.path={quiz}",
        "model=recorded",
        f"model.path={recorded}",
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1]).parent
    pictures = re.findall(
        r'<img src="data:image/webp;base64,[^"]+" alt="([^"]+)">',
        report_page.render_page(sweep_data.read_sweep_data(folder)),
    )
    assert 0 < len(pictures) <= report_figures.MAX_THUMBNAILS
    assert all("Where is the object" in alt for alt in pictures)


def test_no_more_pictures_than_promised(tmp_path) -> None:
    for i in range(30):
        Image.new("RGB", (200, 100)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    small = report_figures.Thumbnails((tmp_path,))
    assert small.uri("broken.png") == small.uri("absent.png") == small.uri("") == ""
    assert sum(bool(small.uri(f"{i}.png")) for i in range(30)) == report_figures.MAX_THUMBNAILS - 1


def test_a_report_that_fails_is_one_line_and_costs_nothing(tmp_path) -> None:
    said, files, chosen = report_page.try_write_report(tmp_path)
    assert said.startswith("no report.html: DataError: ")
    assert "\n" not in said
    assert (files, chosen) == (None, [])


def test_a_page_that_fails_leaves_the_best_cells_to_stdout(swept, tmp_path, monkeypatch) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / swept.name))
    monkeypatch.setattr(report_page, "render_page", lambda *_: 1 / 0)
    said, _, chosen = report_page.try_write_report(folder)
    assert said == "no report.html: ZeroDivisionError: division by zero"
    assert [s.family for s in chosen] == ["base", "scaling_vis", "adapt_vis"]


def test_a_sweep_without_base_or_confidence_or_answers_has_a_report(launch, experiment, tmp_path) -> None:
    done = launch("method=scaling_vis", "weight=0.5", *experiment)
    folder = Path(done.stdout.splitlines()[-1]).parent
    page = text_of((folder / "report.html").read_text("utf8"))
    assert "The baseline's confidence is not stored." in page
    assert "scaling_vis answers" in page
    assert "No clear difference" not in page  # there is no base to differ from


def test_missing_answers_are_reported(tmp_path) -> None:
    rows = questions(40)
    quiz, recorded = write_lines(tmp_path / "quiz.jsonl", rows), tmp_path / "recorded.jsonl"
    write_lines(recorded, recordings(rows, "quiz")[:-2])
    run = command("launch.py", f"output_dir={tmp_path / 'out'}")
    given = ["dataset=jsonl", f"dataset.path={quiz}", "model=recorded", f"model.path={recorded}"]
    done = run("-m", "split=all", "method=base,adapt_vis", *given)
    assert done.returncode == 3
    page = text_of((Path(done.stdout.splitlines()[-1]).parent / "report.html").read_text("utf8"))
    assert "2 of 2 cells lack answers, to at most 2 questions each." in page
    assert "Recorded errors by cause" in page


@pytest.mark.parametrize("right", [True, False])
def test_where_all_answers_are_alike_no_auroc_is_said_and_no_nan(launch, tmp_path, right: bool) -> None:
    rows = questions(12)
    records = recordings(rows, "quiz")
    for row, record in zip(rows, records, strict=True):
        record["generation"] = {"1.0": row["answer"][0] if right else "nowhere"}
    given = [f"dataset.path={write_lines(tmp_path / 'quiz.jsonl', rows)}", "dataset=jsonl", "model=recorded"]
    done = launch(*given, f"model.path={write_lines(tmp_path / 'made.jsonl', records)}", "split=all")
    text = text_of((Path(done.stdout.splitlines()[-1]).parent / "report.html").read_text("utf8"))
    assert "predicts right answers: no AUROC, as the 12 answers are all right or all wrong; calibration error" in text
    assert " nan" not in text


def test_the_recorded_model_reproduces_known_numbers(recorded_sweep) -> None:
    page = (recorded_sweep / "report.html").read_text("utf8")
    tips = re.findall(r'data-tip aria-label="([^"]*)"', page)
    for relation, value in (("left", "98.8"), ("right", "97.7"), ("on", "0.0"), ("under", "43.8")):
        assert any(tip.startswith(f"{relation}, base: {value} % (95 %: ") for tip in tips)
    text = text_of(page)
    assert "AUROC 0.891 (0.856 to 0.926, n = 330" in text
    assert "AUROC 0.546" in text
    assert "accuracy would be 94.8 % (91.9 to 96.8, n = 330)" in text
    assert "accuracy would be 50.0 % (46.8 to 53.2, n = 928)" in text
    assert "It was chosen on val from 306 cells" in text
    assert "It is the best of 5 on these questions (" in text
    assert "By the exact test by sign flips of whole sets or images, adjusted as above, p &lt; .001." in text
    assert "exact McNemar test" in text
    assert re.search(
        r"vg_one_obj test, recorded: the threshold never fires up to 0\.\d+: \d+ of 306 cells are scaling_vis at", text
    )
    files = sweep_data.read_sweep_data(recorded_sweep)
    cells = files.cells
    vg = cells[(cells["dataset"] == "vg_one_obj") & (cells["paper"].notna()) & (cells["method"] == "adapt_vis")]
    assert vg["share_weight1"].item() < 1
    assert f"{vg['share_weight1'].item():.1f} %" in text


def test_it_is_small(recorded_sweep) -> None:
    files = sweep_data.read_sweep_data(recorded_sweep)
    assert len(files.cells) == 3 * (1 + 5 + 6 * 51)
    page = (recorded_sweep / "report.html").read_text("utf8")
    samples = re.search(r'id="samples-data">(.*?)</script>', page, flags=re.S)
    assert samples
    assert len(samples[1]) < 1_500_000
    assert len(page) - len(samples[1]) < 300_000


def test_the_data_of_the_grid_are_the_cells(swept) -> None:
    files = sweep_data.read_sweep_data(swept)
    page = report_page.render_page(files)
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.S)
    assert found
    data = json.loads(found[1])
    assert data["cells"]["accuracy"] == [round(v, 5) for v in files.cells["accuracy"]]
    dims = {dim["name"]: dim for dim in data["dims"]}
    thresholds = [None if code < 0 else float(dims["threshold"]["values"][code]) for code in dims["threshold"]["codes"]]
    assert thresholds == [None if pd.isna(v) else v for v in files.cells["threshold"]]
    base = {
        key[3]: a
        for key, a, m in zip(files.keys, files.cells["accuracy"], files.methods, strict=True)
        if m.kind == "base"
    }
    difference = [a - base[key[3]] for key, a in zip(files.keys, files.cells["accuracy"], strict=True)]
    assert data["cells"]["difference"] == pytest.approx(difference, abs=1e-5)


def test_a_sweep_in_which_everything_failed_can_still_be_looked_at(swept, tmp_path, cli) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / "out" / "sweeps" / swept.name))
    pd.read_parquet(folder / "samples.parquet")[:0].to_parquet(folder / "samples.parquet", index=False)
    cells = pd.read_csv(folder / "results.csv", dtype=str, keep_default_na=False)
    cells["missing"], cells["n"] = cells["n"], "0"
    figures = [name for name in cells if name.startswith(("accuracy", "pair", "set_", "share"))]
    cells[figures] = ""
    cells.to_csv(folder / "results.csv", index=False)
    reseal(folder)
    assert "No answers are stored." in text_of(report_page.render_page(sweep_data.read_sweep_data(folder)))
    assert [cli(*command).returncode for command in (["report"], ["results"], ["results", "--by", "relation"])] == [
        0,
        3,
        3,
    ]
    done = cli("select")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_where_base_is_best_the_page_says_so(launch, tmp_path) -> None:
    rows = questions(80)
    given = recordings(rows, "quiz")
    for record, row in zip(given, rows, strict=True):
        record["generation"] |= {"1.0": row["answer"][0], "0.5": "nothing", "0.8": "nothing"}  # type: ignore[operator]
    quiz, recorded = tmp_path / "quiz.jsonl", tmp_path / "recorded.jsonl"
    write_lines(quiz, rows)
    write_lines(recorded, given)
    model = ["dataset=jsonl", f"dataset.path={quiz}", "model=recorded", f"model.path={recorded}"]
    done = launch("-m", "method=base,scaling_vis", "weight=0.5,0.8", "split=all", *model)
    text = text_of((Path(done.stdout.splitlines()[-1]).parent / "report.html").read_text("utf8"))
    assert "The baseline answers 100.0 % (95.4 to 100.0) of all 80 questions right." in text
    assert "Nothing clearly helps on quiz" in text
    assert "scaling_vis on quiz: worse than base." in text


def test_the_forest_is_results_csv_and_its_p_and_verdicts_are_recomputed(recorded_sweep, swept) -> None:
    for folder in (recorded_sweep, swept):
        files = sweep_data.read_sweep_data(folder)
        chosen = selection.picks(files)
        context = sections.ReportContext(files, chosen, report_figures.Thumbnails(()))
        built = sections.answer(context)
        lines = built["lines"]
        assert [line["selected"] for line in lines] == [s for s in chosen if s.family and s.method.kind != "base"]
        for line in lines:
            s, e = line["selected"], line["estimate"]
            row = files.row(s.cell)
            assert (e.value, e.low, e.high) == (row["vs_base"], row["vs_base_low"], row["vs_base_high"])
            assert (s.test.fixed, s.test.broken) == (row["fixed"], row["broken"])
            part = files.parts[files.keys[s.cell]]
            if part.clusters == len(part.questions):  # scipy's exact test of the discordant pairs
                exact = scipy.stats.binomtest(int(row["fixed"]), int(row["fixed"] + row["broken"])).pvalue
                assert s.test.p == pytest.approx(exact)
                assert s.test.test == intervals.MCNEMAR
            clear = s.p_holm < 0.05 and not e.low <= 0 <= e.high
            assert line["verdict"] == (("helps" if e.value > 0 else "hurts") if clear else "same")
        places = [(at, e) for line in lines for bar in line["bars"] for at, e in zip(bar, (0, 1, 2), strict=True)]
        assert all(3 <= at <= 97 for at, _ in places)


def test_strict_stands_beside_the_headline_where_they_part(recorded_sweep) -> None:
    files = sweep_data.read_sweep_data(recorded_sweep)
    context = sections.ReportContext(files, selection.picks(files), report_figures.Thumbnails(()))
    lines = {(s.dataset, s.method.kind): line for line in sections.answer(context)["lines"] if (s := line["selected"])}
    line = lines["controlled_a", "adapt_vis"]
    row = files.row(line["selected"].cell)
    base = next(files.row(i) for i, m in enumerate(files.methods) if m.kind == "base" and files.keys[i][3] == "test")
    assert line["strict"].value == pytest.approx(row["accuracy_strict"] - base["accuracy_strict"])
    assert lines["vg_one_obj", "scaling_vis"]["strict"] is None


def test_what_each_arm_says_is_the_cross_table_of_samples(recorded_sweep) -> None:
    files = sweep_data.read_sweep_data(recorded_sweep)
    key = next(key for key in files.keys if key[0] == "controlled_a" and key[3] == "test")
    methods = {"base": Base(), "0.5": ScalingVis(0.5)}
    tables = diagnostics.confusions(files.parts[key], methods)
    rows = files.samples[(files.samples["dataset"] == "controlled_a") & (files.samples["split"] == "test")]
    for name, method in methods.items():
        (arm,) = method.arms()
        own = rows[rows["weight"] == arm.weight]
        said = own["prediction"].where(own["prediction"] != "", "unread")
        table = pd.crosstab(own["gold"], said).reindex(columns=tables[name].answers, fill_value=0)
        assert list(table.index) == tables[name].golds
        assert (tables[name].counts == table.to_numpy()).all()
    assert tables["base"].never == ["on"]
    assert tables["0.5"].never == ["right"]
    page = (recorded_sweep / "report.html").read_text("utf8")
    n, share = tables["base"].counts[1].sum(), tables["base"].counts[1, 0]
    low, high = (100 * end for end in proportion_confint(share, n, method="wilson"))
    assert f"base, gold on: answers left {share} times, {100 * share / n:.1f} % (95 %: {low:.1f} to {high:.1f}" in page


def test_adapt_vis_says_what_the_arm_of_each_question_says(swept) -> None:
    files = sweep_data.read_sweep_data(swept)
    key = files.keys[0]
    part, method = files.parts[key], AdaptVis(0.5, 1.5, 0.4)
    low = part.arms[BASE].signals.max_prob.round(2) < 0.4
    arms = list(method.branches().values())
    given = np.where(low, part.predictions[arms[0]], part.predictions[arms[1]])
    (table,) = diagnostics.confusions(part, {"adapt": method}).values()
    golds = part.questions["gold"].to_numpy()
    for i, gold in enumerate(table.golds):
        assert [int(((golds == gold) & (given == a)).sum()) for a in table.answers] == table.counts[i].tolist()


def test_weights_and_thresholds_gain_what_their_cells_gain(swept) -> None:
    files = sweep_data.read_sweep_data(swept)
    curves = {}
    for i, method in enumerate(files.methods):
        part, row = files.parts[files.keys[i]], files.row(i)
        if isinstance(method, ScalingVis):
            e = diagnostics.weight_gains(part)["multiply"][method.weight]
        elif isinstance(method, AdaptVis):
            pair = (files.keys[i], method.weight1, method.weight2)
            if pair not in curves:
                curve = diagnostics.threshold_curve(part, method)
                assert curve is not None
                curves[pair] = curve, diagnostics.threshold_gains(part, curve)
            curve, gains = curves[pair]
            step = int(np.searchsorted(curve.edges, method.threshold, side="left"))
            e = gains[step]
            assert e.value == pytest.approx(100 * (curve.right[step] - curve.base[step]) / curve.n[step])
        else:
            continue
        gain = [row[name] for name in AGAINST[:3]]
        assert [e.value, e.low, e.high] == pytest.approx(gain, abs=0, nan_ok=True)


def test_risk_is_that_of_the_most_confident_questions(swept) -> None:
    files = sweep_data.read_sweep_data(swept)
    part = files.parts[files.keys[0]]
    score, right = part.arms[BASE].signals.max_prob, part.arms[BASE].right
    points = diagnostics.risk_coverage(part, Base())
    assert points[-1][0] == 100
    for coverage, e in points:
        worst = np.sort(score)[::-1][e.n - 1]
        kept = score >= worst
        assert (kept.sum(), 100 * kept.mean()) == (e.n, coverage)
        assert e.value == pytest.approx(100 * (~right[kept]).mean())
        assert (e.low / 100, e.high / 100) == pytest.approx(
            proportion_confint((~right[kept]).sum(), e.n, method="wilson")
        )


@pytest.mark.parametrize("p_holm", [0.01, 0.2])
def test_a_verdict_needs_the_interval_and_the_p_that_stands_beside_it(swept, p_holm: float) -> None:
    files = sweep_data.read_sweep_data(swept)
    (s, *_) = [s for s in selection.picks(files) if s.family == "scaling_vis"]
    for ends, verdict in (((1, 3), "helps"), ((-1, 3), "same"), ((-3, -1), "hurts"), ((math.nan, math.nan), "helps")):
        value = 1.0 if math.isnan(ends[0]) else sum(ends) / 2
        given = replace(s, p_holm=p_holm, test=replace(s.test, gain=intervals.Estimate(value, *ends, 40)))
        assert verdicts.classify_gain(given) == (verdict if p_holm < 0.05 else "same")


def test_a_panel_of_attention_names_question_gold_and_each_arms_answer(gazed) -> None:
    page = report_page.render_page(sweep_data.read_sweep_data(gazed))
    panels = re.findall(r'<div class="panel">.*?</div></div>|<div class="panel">.*?</p></div>', page, flags=re.S)
    assert len(panels) == sections.MAX_MAPS
    files = sweep_data.read_sweep_data(gazed)
    for panel in panels:
        text = text_of(panel)
        sample_id = re.findall(r"Picture of question (\S+)", text)[0]
        own = files.samples[files.samples["sample_id"] == sample_id]
        assert f"Gold: {own['gold'].iloc[0]}" in text
        arms = re.findall(r"(?:scaling_vis w=(\S+)|base): ([✓✗]) (\w+)", text)
        assert len(arms) == sections.MAX_ARMS
        for label, mark, said in arms:
            row = own[own["weight"] == float(label or 1)].iloc[0]
            assert (row["text"].split()[0].rstrip("."), row["correct"]) == (said, mark == "✓")
        (top,) = re.findall(r"([\d.]+) % of the attention per image token", text)
        assert float(top) == max(map(float, re.findall(r"brightest token ([\d.]+) %", text)))


def test_an_absent_answer_is_in_no_confusion(swept) -> None:
    part = next(iter(sweep_data.read_sweep_data(swept).parts.values()))
    base, here = part.arms[BASE], np.arange(len(part.questions)) > 0
    absent = replace(base, signals=replace(base.signals, answered=here))
    (table,) = diagnostics.confusions(replace(part, arms={**part.arms, BASE: absent}), {"base": Base()}).values()
    assert table.counts.sum() == len(here) - 1


def test_several_pictures_stand_side_by_side(tmp_path: Path) -> None:
    for name, colour, size in (("a.png", "red", (60, 30)), ("b.png", "blue", (40, 60))):
        Image.new("RGB", size, colour).save(tmp_path / name)
    small = report_figures.Thumbnails((tmp_path,))
    both = small.find_all("a.png\nb.png")
    assert both == (tmp_path / "a.png", tmp_path / "b.png")
    drawn = report_figures.fit_picture(both, size=80)
    assert drawn.size == (80, 30)  # the second, scaled to the height of the first, is 20 wide
    assert [drawn.getpixel((x, 15)) for x in (5, 75)] == [(255, 0, 0), (0, 0, 255)]
    assert small.uri("a.png\nb.png").startswith("data:image/webp")
    assert small.uri("a.png\nabsent.png") == ""


def test_the_first_screen_says_what_is_unread_and_what_is_missing(swept) -> None:
    files = sweep_data.read_sweep_data(swept)
    chosen = selection.picks(files)
    head = report_page.render_page(files, chosen).split("<table")[0]
    assert "are unread" not in head
    assert "are missing" not in head
    bad = replace(files, cells=files.cells.assign(unreadable=60.0, missing=3))
    text = " ".join(re.sub("<[^>]+>", "", report_page.render_page(bad, chosen).split("<table")[0]).split())
    assert "Most answers are unread (they name no option, or several): base on quiz, scaling_vis on quiz" in text
    assert "Answers are missing, to up to 3 questions of a cell: see failures." in text


def test_names_that_are_cut_say_so() -> None:
    accuracies = {name: {"base": intervals.proportion(5, 20)} for name in ("left of", "a rather long relation")}
    texts = [mark.text for mark in report_figures.relation_figure(accuracies).marks]
    assert {"left of", "a rather long…"} <= set(texts)
