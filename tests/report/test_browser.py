"""report.html in headless Chromium: no errors, selectors and keys work, 10,000 cells stay quick."""

from __future__ import annotations

import csv
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import command, parquet_bytes, questions, recordings, write_lines
from PIL import Image

from spatial_eval.analysis import diagnostics, sweep_data
from spatial_eval.analysis.intervals import wilson
from spatial_eval.report import page as report_page
from spatial_eval.report import samples as report_samples

pytestmark = pytest.mark.chromium
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,900"),
]
Open = Callable[[Path], Any]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A selenium driver of a browser with an empty profile."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        message = "needs chromium and chromedriver (Debian: chromium, chromium-driver)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def opened(chromium: Any) -> Iterator[Open]:
    """Opens the report of a sweep's folder; at the end the console must be empty."""

    def show(folder: Path) -> Any:
        chromium.get((folder / "report.html").as_uri())
        return chromium

    yield show
    assert chromium.get_log("browser") == []


def choose(browser: Any, name: str, text: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", name)).select_by_visible_text(text)


def grid(browser: Any) -> dict[str, Any]:
    """Return the grid's caption, headings and every cell's text and index."""
    script = """
    const g = document.getElementById("grid"), text = e => e.textContent;
    return {caption: text(g.caption), rows: [...g.tBodies[0].rows].map(r => text(r.cells[0])),
      columns: [...g.tHead.rows[1].cells].map(c => c.getAttribute("aria-label") ?? text(c)),
      cells: [...g.querySelectorAll("td[data-i]")].map(c => [Number(c.dataset.i), text(c)]),
      marks: [...g.querySelectorAll("td.chosen")].map(c => Number(c.dataset.i))}"""
    return dict(browser.execute_script(script))


def test_the_grid_shows_the_cells_and_follows_its_selectors(opened: Open, swept: Path) -> None:
    browser, files = opened(swept), sweep_data.read_sweep_data(swept)
    first = grid(browser)
    assert first["caption"] == "points against base: quiz, recorded, test; n = 32"
    choose(browser, "figure", "accuracy, %")
    first = grid(browser)
    assert first["rows"] == ["0.5, 1.2", "0.5, 1.5", "0.5, 2", "0.8, 1.2", "0.8, 1.5", "0.8, 2"]
    assert len(first["columns"]) == 11
    assert len(first["cells"]) == 66
    for i, text in first["cells"]:
        assert files.cells["split"][i] == "test"
        assert text == f"{files.cells['accuracy'][i]:.1f}"
    assert len(first["marks"]) == 1

    choose(browser, "only-split", "val")
    assert {files.cells["split"][i] for i, _ in grid(browser)["cells"]} == {"val"}
    choose(browser, "figure", "to weight1, %")
    for i, text in grid(browser)["cells"]:
        assert text == f"{files.cells['share_weight1'][i]:.1f}"
    choose(browser, "figure", "accuracy, %")
    choose(browser, "rows", "method")
    choose(browser, "columns", "split")
    best = files.cells.groupby(["method", "split"])["accuracy"].max()
    shown = {(files.cells["method"][i], files.cells["split"][i]): text for i, text in grid(browser)["cells"]}
    assert shown == {key: f"{value:.1f}" for key, value in best.items()}
    assert "each the best over" in grid(browser)["caption"]


def test_keys_move_in_the_grid_and_show_the_cell(opened: Open, swept: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser, files = opened(swept), sweep_data.read_sweep_data(swept)
    cell = browser.find_element("css selector", "#grid td[tabindex='0']")
    browser.execute_script("arguments[0].focus()", cell)
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    here = browser.switch_to.active_element
    row = files.cells.iloc[int(here.get_attribute("data-i"))]
    assert (row["weight1"], row["weight2"], row["threshold"]) == (0.5, 1.5, 0.1)
    tip = browser.find_element("id", "tip")
    assert tip.is_displayed()
    assert here.get_attribute("aria-describedby") == "tip"
    assert "weight1 0.5, weight2 1.5, threshold 0.1" in tip.text
    interval = f"95 %: {row['accuracy_low']:.1f} to {row['accuracy_high']:.1f}, n = {row['n']}"
    assert f"{row['accuracy']:.1f} % right ({interval})" in tip.text
    here.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()


def test_the_slider_reads_the_exact_curve(opened: Open, swept: Path) -> None:
    browser, cells = opened(swept), sweep_data.read_sweep_data(swept).cells
    there = cells[(cells["weight1"] == 0.5) & (cells["weight2"] == 2) & (cells["split"] == "test")]
    choose(browser, "curve0-w", "0.5, 2")
    for _, row in there.iterrows():
        script = (
            "const s = document.getElementById('curve0-t'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
        )
        browser.execute_script(script, row["threshold"])
        low, high = wilson(round(row["accuracy"] * row["n"] / 100), row["n"])
        said = browser.find_element("css selector", "form[data-curve] output").text
        assert said == (
            f"threshold {row['threshold']:.2f}: {row['accuracy']:.1f} % "
            f"(95 %: {low:.1f} to {high:.1f}, n = {row['n']}), {row['share_weight1']:.1f} % to weight1"
        )


def test_marks_can_be_reached_and_everything_has_a_name(opened: Open, swept: Path) -> None:
    browser = opened(swept)
    mark = browser.find_element("css selector", "svg [data-tip]")
    browser.execute_script("arguments[0].focus()", mark)
    assert browser.find_element("id", "tip").text == mark.get_attribute("aria-label")
    unnamed = """
    return [...document.querySelectorAll("select,input")].filter(e => !e.labels?.length && !e.ariaLabel).length
      + [...document.querySelectorAll("table")].filter(t => !t.querySelector("th[scope]")).length
      + [...document.querySelectorAll("img:not([alt])")].length"""
    assert browser.execute_script(unnamed) == 0
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


@pytest.mark.parametrize("width", [700, 1400])
def test_the_answer_stands_in_the_first_screen(opened: Open, swept: Path, width: int) -> None:
    browser = opened(swept)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        boxes = browser.execute_script(
            "return [...document.querySelectorAll('.forest tbody .point')].map(p => p.getBoundingClientRect().toJSON())"
        )
        assert len(boxes) == 2  # scaling_vis and adapt_vis
        assert all(box["left"] > 0 and box["right"] < width and box["top"] > 0 and box["bottom"] < 900 for box in boxes)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def column(browser: Any, name: str, place: int) -> list[str]:
    """Return the texts of a column in the rows that are shown."""
    script = """
    return [...document.querySelector(arguments[0]).tBodies[0].rows].filter(r => !r.hidden)
      .map(r => r.cells[arguments[1]].innerText.split("\\n")[0])"""
    return list(browser.execute_script(script, name, place))


def test_tables_are_sorted_filtered_and_saved(opened: Open, swept: Path) -> None:
    browser, files = opened(swept), sweep_data.read_sweep_data(swept)
    name = "table.relations"
    assert column(browser, name, 0) == ["left", "on", "right", "under"]
    headings = browser.find_elements("css selector", f"{name} thead button")
    browser.execute_script("arguments[0].click()", headings[2])
    values = [float(text) for text in column(browser, name, 2)]
    assert values == sorted(values)
    browser.execute_script("arguments[0].click()", headings[2])
    assert [float(text) for text in column(browser, name, 2)] == sorted(values, reverse=True)
    heading = browser.find_element("css selector", f"{name} thead th:nth-child(3)")
    assert heading.get_attribute("aria-sort") == "descending"
    forest = "table.forest"
    browser.execute_script("arguments[0].click()", browser.find_elements("css selector", f"{forest} thead button")[1])
    assert column(browser, forest, 1) == ["adapt_vis", "scaling_vis"]

    table = "#reproduce table"
    every = column(browser, table, 0)
    box = browser.find_element("css selector", "#reproduce input[type=search]")
    browser.execute_script("arguments[0].scrollIntoView()", box)
    box.send_keys("torch")
    assert column(browser, table, 0) == [text for text in every if "torch" in text] != []
    saved = """
    let saved = null;
    URL.createObjectURL = blob => { saved = blob; return "data:,"; };
    HTMLAnchorElement.prototype.click = () => {};
    document.querySelector(arguments[0]).closest(".scroll").querySelector(".tools button").click();
    saved.text().then(arguments[1]);"""
    text = browser.execute_async_script(saved, table)
    assert [row[0] for row in csv.reader(io.StringIO(text))][1:] == column(browser, table, 0)
    rows = list(csv.DictReader(io.StringIO(browser.execute_async_script(saved, forest))))
    best = files.cells[(files.cells["split"] == "test") & (files.cells["method"] != "base")]
    for row in rows:
        cells = best[best["method"] == row["method"]]
        assert float(row["difference (95 %)"].split()[0]) in cells["vs_base"].round(1).to_list()


def test_the_switch_changes_light_and_dark_and_views_change_the_figure(opened: Open, swept: Path) -> None:
    browser = opened(swept)
    ground = "return getComputedStyle(document.body).backgroundColor"
    switch, light = browser.find_element("id", "scheme"), browser.execute_script(ground)
    assert switch.text == "Dark"
    switch.click()
    assert (switch.text, light) == ("Light", "rgb(255, 255, 255)")
    assert browser.execute_script(ground) == "rgb(20, 23, 27)"
    switch.click()
    assert browser.execute_script(ground) == light
    titles = """return [...document.querySelectorAll('.views h4')].filter(h => h.offsetHeight).map(h => h.innerText)"""
    assert browser.execute_script(titles) == ["Points against base, by weight"]
    browser.execute_script("document.getElementById('weights0-1').click()")
    assert browser.execute_script(titles) == ["Accuracy against weight"]


def test_cells_that_are_not_told_apart_from_base_are_grey(opened: Open, swept: Path) -> None:
    browser, cells = opened(swept), sweep_data.read_sweep_data(swept).cells
    same = browser.execute_script(
        "return [...document.querySelectorAll('#grid td.same')].map(c => Number(c.dataset.i))"
    )
    drawn = [i for i, _ in grid(browser)["cells"]]
    assert set(same) == {i for i in drawn if cells["vs_base_low"][i] <= 0 <= cells["vs_base_high"][i]}
    choose(browser, "figure", "accuracy, %")
    assert not browser.find_elements("css selector", "#grid td.same")


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_its_window_and_text_is_legible(
    opened: Open, swept: Path, width: int, scheme: str
) -> None:
    browser = opened(swept)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        contrast = browser.execute_script(CONTRAST)
        assert min(contrast.values()) >= 4.5, contrast
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


# WCAG 2 contrast of each kind of text with what lies behind it.
CONTRAST = """
const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1})
  .getContext("2d", {willReadFrequently: true});
const rgb = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data]; };
const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = c => { const [r, g, b] = c.map(v => linear(v / 255));
  return .2126 * r + .7152 * g + .0722 * b; };
const behind = e => {
  for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3]) return c; }
  return [255, 255, 255, 255]; };
const kinds = "p|.i|.soft|.lead b|button|figcaption|a|th|label|summary|.verdict|output|#grid td:not(.none)";
const found = {};
for (const name of kinds.split("|")) {
  for (const e of document.querySelectorAll(name)) {
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    found[name] = Math.min(found[name] ?? 99, (a + .05) / (b + .05));
  }
}
return found;"""


def test_a_page_of_ten_thousand_cells_answers_its_selectors(opened: Open, tmp_path: Path) -> None:
    rows = questions(40)
    quiz = write_lines(tmp_path / "quiz.jsonl", rows)
    recorded = write_lines(tmp_path / "recorded.jsonl", recordings(rows, "quiz"))
    grids = ["method=base,adapt_vis", "weight1=0.5,0.8", "weight2=1.2,1.5,2.0", "threshold=range(0,1,0.0006)"]
    given = ["dataset=jsonl", f"dataset.path={quiz}", "model=recorded", f"model.path={recorded}"]
    done = command("launch.py", f"output_dir={tmp_path / 'out'}")("-m", *grids, *given)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1]).parent
    assert len(pd.read_csv(folder / "results.csv")) == 1 + 6 * 1667
    browser = opened(folder)
    timed = """
    const select = document.getElementById(arguments[0]), start = performance.now();
    select.value = arguments[1];
    select.dispatchEvent(new Event("change"));
    document.getElementById("grid").getBoundingClientRect();
    return performance.now() - start"""
    for name, value in (("figure", "difference"), ("rows", "weight1"), ("columns", "weight2"), ("rows", "threshold")):
        assert browser.execute_script(timed, name, value) < 20_000, "the page hangs"
    assert len(grid(browser)["rows"]) == 1667
    assert (folder / "report.html").stat().st_size < 2_000_000


def pick(browser: Any, name: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", f"samples-{name}")).select_by_value(value)


def sample(browser: Any) -> dict[str, Any]:
    """Return what the browser of samples shows."""
    script = """
    const text = q => document.querySelector(`#samples ${q}`).textContent;
    const image = document.querySelector("#samples img");
    return {place: text("output"), question: text(".question"), gold: text(".gold"), about: text(".sample .i"),
      image: image.hidden ? 0 : image.naturalWidth,
      none: document.querySelector("#samples .none").hidden ? "" : text(".none"),
      rows: [...document.querySelectorAll("#samples tbody tr")].map(r => [...r.cells].map(c => c.textContent))}"""
    return dict(browser.execute_script(script))


def test_samples_are_filtered_and_paged(opened: Open, swept: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser, files = opened(swept), sweep_data.read_sweep_data(swept)
    (part,) = files.experiments.values()
    cell = next(
        i for i, m in enumerate(files.methods) if m.kind == "scaling_vis" and m.arms() == {sorted(part.arms)[0]}
    )
    pick(browser, "view", "1")
    row = files.cells[(files.cells["method"] == "scaling_vis") & (files.cells["weight"] == 0.5)]
    row = row[row["split"] == "test"].iloc[0]  # the split of the best cell is chosen at first
    texts = browser.execute_script("return [...document.querySelectorAll('#samples-outcome option')].map(o => o.text)")
    assert texts[0] == f"all ({row['n']})"
    assert texts[-2:] == [f"fixed ({row['fixed']:g})", f"broken ({row['broken']:g})"]
    pick(browser, "split", "")
    flips = diagnostics.count_flips(part, files.methods[cell])
    for name, turned, base in (("fixed", flips.fixed, "✗ wrong"), ("broken", flips.broken, "✓ right")):
        pick(browser, "outcome", name)
        for k, (_, row) in enumerate(turned.iterrows()):
            shown = sample(browser)
            assert shown["place"] == f"{k + 1} of {len(turned)} (of 40 questions)"
            assert shown["about"].endswith(f"sample {row['sample_id']}")
            assert (shown["gold"], shown["none"]) == (row["gold"], "This sample has no picture.")
            assert [line[0] for line in shown["rows"]][:2] == ["base", "scaling_vis w=0.5"]
            assert shown["rows"][0][1:3] == [base, row["before"]]
            assert shown["rows"][1][1].endswith(f", {name}")
            assert shown["rows"][1][2] == row["after"]
            browser.find_element("id", "samples-next").click() if k + 1 < len(turned) else None
    pick(browser, "outcome", "all")
    pick(browser, "relation", "=left")
    assert sample(browser)["place"] == "1 of 10 (of 40 questions)"
    browser.execute_script("document.activeElement.blur()")
    browser.find_element("tag name", "body").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert sample(browser)["place"].startswith("2 of 10")
    browser.find_element("tag name", "body").send_keys("/")
    browser.switch_to.active_element.send_keys("object 3")
    assert sample(browser)["place"] == "1 of 1 (of 40 questions)"
    assert browser.switch_to.active_element.get_attribute("value") == "object 3"
    browser.switch_to.active_element.send_keys("99")
    assert sample(browser)["place"] == "none of 40 questions"
    assert not browser.find_element("id", "samples-card").is_displayed()


def test_a_link_leads_below_the_navigation_however_narrow_the_page(opened: Open, recorded_sweep: Path) -> None:
    browser = opened(recorded_sweep)
    browser.set_window_size(500, 900)
    try:
        assert browser.execute_script("return document.querySelector('nav').offsetHeight") > 70  # several lines
        for link in browser.find_elements("css selector", "nav a")[1:-1]:  # the last sections end at the page's end
            browser.execute_script("arguments[0].click()", link)
            title = browser.find_element("css selector", f"#{link.get_attribute('href').partition('#')[2]} h2")
            nav = browser.find_element("tag name", "nav")
            below = "return arguments[0].getBoundingClientRect().top >= arguments[1].getBoundingClientRect().bottom"
            assert browser.execute_script(below, title, nav)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 500
    finally:
        browser.set_window_size(1200, 900)


def test_paper_has_what_is_open_and_no_controls(opened: Open, swept: Path) -> None:
    browser = opened(swept)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        shown = "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).length"
        assert browser.execute_script(shown, "nav,form,button:not(th *),input,select,.hint,details[open]>summary") == 0
        assert browser.execute_script(shown, "details:not([open])>summary") > 0
        assert browser.execute_script(shown, "#answer .findings") == 0  # folded
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_cell_shows_which_arm_answered(opened: Open, swept: Path) -> None:
    browser, files = opened(swept), sweep_data.read_sweep_data(swept)
    labels = browser.execute_script("return [...document.querySelectorAll('#samples-view option')].map(o => o.text)")
    assert len(labels) == 6 + 66
    cell = next(i for i, m in enumerate(files.methods) if report_samples.label_method(m) == labels[40])
    (part,) = files.experiments.values()
    table = diagnostics.table_of(part, files.methods[cell])
    pick(browser, "view", "40")
    pick(browser, "split", "")
    for _, row in table.iloc[:6].iterrows():
        (line,) = [line for line in sample(browser)["rows"] if line[0].startswith("adapt_vis")]
        assert line[0] == f"{labels[40]} → scaling_vis w={row['weight']:g}"
        assert line[2] == row["text"]
        browser.find_element("id", "samples-next").click()
    browser.find_element("css selector", "#samples-shown summary").click()
    browser.find_elements("css selector", "#samples-shown input")[2].click()
    assert "scaling_vis w=0.8" not in [line[0] for line in sample(browser)["rows"]]


def test_nasty_texts_pictures_and_a_file_beside_the_page(
    opened: Open, swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, nasty = sweep_data.read_sweep_data(swept), "</script><img src=x onerror=alert(1)>\x1b[31m red"
    Image.new("RGB", (30, 20)).save(tmp_path / "a b#.png")
    samples = files.samples.assign(question=nasty, image="a b#.png")
    samples.loc[samples["row"] == 1, "image"] = "gone.png"
    about = {**files.about, "config": {"data_dir": str(tmp_path)}}
    sweep = replace(
        files, content=parquet_bytes(samples[samples["weight"] == 0.5]), folder=tmp_path / "sweep", about=about
    )
    monkeypatch.setattr(report_samples, "MAX_ROWS", 20)
    report_samples.write_samples(sweep, [])
    (sweep.folder / "results.csv").touch()  # the page says when it was written
    (sweep.folder / "report.html").write_text(report_page.render_page(sweep, []), "utf8")
    browser = opened(sweep.folder)
    shown = sample(browser)
    assert (shown["place"], shown["question"], shown["image"]) == ("1 of 20 questions", nasty, 30)
    assert [line[0] for line in shown["rows"]] == ["scaling_vis w=0.5"]
    options = browser.execute_script(
        "return [...document.querySelectorAll('#samples-outcome option')].map(o => o.value)"
    )
    assert options == ["all", "right", "wrong"]
    (tmp_path / "a b#.png").unlink()  # as for a page that was mailed alone
    browser.refresh()
    for _ in range(50):
        if "small copy" in sample(browser)["none"]:
            break
        time.sleep(0.1)
    assert sample(browser)["none"].startswith("A small copy")
    assert sample(browser)["image"] == 30
    assert all("ERR_FILE_NOT_FOUND" in entry["message"] for entry in browser.get_log("browser"))
    browser.find_element("id", "samples-next").click()
    assert sample(browser)["none"] == "No picture: gone.png was not there when this page was written."
    assert "the first 20 of 40 questions" in browser.find_element("id", "samples-part").text
    browser.find_element("css selector", "#samples-part button").click()
    for _ in range(50):
        if sample(browser)["place"].endswith("of 40 questions"):
            break
        time.sleep(0.1)
    assert not browser.find_element("id", "samples-part").is_displayed()
    assert browser.execute_script("return document.querySelectorAll('#samples .question *').length") == 0
