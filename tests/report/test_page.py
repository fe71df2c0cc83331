"""report.html as a file: its content and size, without references to other files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import command, questions, recordings, reseal, write_lines
from jinja2 import UndefinedError
from PIL import Image

from spatial_eval.analysis import sweep_data
from spatial_eval.report import figures as report_figures
from spatial_eval.report import page as report_page
from spatial_eval.report import sections, tables


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
    for name in ("What helped where", "Best cells", "Every cell", "Relations", "Confidence", "Flips", "The paper"):
        assert name in headings
    assert {"Failures", "Reproduce"} <= set(headings)
    assert "<pre>python launch.py -m " in page
    assert "split=val,test" in page


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
    assert page.count("</script>") == 2


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
    (relations,) = re.findall(r'<table class="relations">.*?</table>', page, flags=re.S)
    assert '<th scope="row">left</th><td>5</td>' in relations.replace("\n", "")


@pytest.mark.parametrize("limit", [8, 36, 40])
def test_few_sets_have_no_interval_and_the_page_says_why(launch, experiment, limit: int) -> None:
    done = launch("-m", "method=base,scaling_vis", "weight=0.5,0.8", "split=all", f"limit={limit}", *experiment)
    page = text_of((Path(done.stdout.splitlines()[-1]).parent / "report.html").read_text("utf8"))
    assert "nan" not in page
    few = limit < 40  # sets of four
    assert ("no interval: fewer than 10 sets or images, too few to draw again" in page) == few
    assert bool(re.search(r"difference [+-]\d+\.\d to [+-]", page)) == (not few)


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
    said, chosen = report_page.try_write_report(tmp_path)
    assert said.startswith("no report.html: DataError: ")
    assert "\n" not in said
    assert chosen == []


def test_a_page_that_fails_leaves_the_best_cells_to_stdout(swept, tmp_path, monkeypatch) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / swept.name))
    monkeypatch.setattr(report_page, "render_page", lambda *_: 1 / 0)
    said, chosen = report_page.try_write_report(folder)
    assert said == "no report.html: ZeroDivisionError: division by zero"
    assert [s.family for s in chosen] == ["base", "scaling_vis", "adapt_vis"]


def test_a_sweep_without_base_or_confidence_or_answers_has_a_report(launch, experiment, tmp_path) -> None:
    done = launch("method=scaling_vis", "weight=0.5", *experiment)
    folder = Path(done.stdout.splitlines()[-1]).parent
    page = text_of((folder / "report.html").read_text("utf8"))
    assert "The baseline's confidence is not stored." in page
    assert "scaling_vis (weight 0.5) answers" in page
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
    assert "2 of 2 cells lack answers, up to 2 questions each." in page
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
    assert "would reach 94.85 % (91.9 to 96.8, n = 330)" in text
    assert "would reach 50.00 % (46.8 to 53.2, n = 928)" in text
    assert "It was chosen on val from 312 cells" in text
    assert "It is the best of 312 on these questions (" in text
    assert "p &lt; .001, exact test by sign flips of whole sets or images" in text
    assert "exact McNemar test" in text
    assert re.search(
        r"vg_one_obj test, recorded: \d+ cells are equal to their weight2 alone: the threshold never", text
    )
    files = sweep_data.read_sweep_data(recorded_sweep)
    cells = files.cells
    vg = cells[(cells["dataset"] == "vg_one_obj") & (cells["paper"].notna()) & (cells["method"] == "adapt_vis")]
    assert vg["share_weight1"].item() < 1
    assert f"{vg['share_weight1'].item():.1f} %" in text


def test_it_is_small(recorded_sweep) -> None:
    files = sweep_data.read_sweep_data(recorded_sweep)
    assert len(files.cells) == 3 * (1 + 5 + 6 * 51)
    assert (recorded_sweep / "report.html").stat().st_size < 300_000


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


def test_base_as_the_best_of_many_is_marked_too(launch, tmp_path) -> None:
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
    assert (
        "2 other cells do no better on all. It is the best of 3 on these questions (2 of them differ): corrected"
        in text
    )
