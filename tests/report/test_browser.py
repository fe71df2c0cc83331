"""report.html in headless Chromium: no errors, selectors and keys work, 10,000 cells stay quick."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import command, questions, recordings, write_lines

from spatial_eval.analysis import sweep_data
from spatial_eval.analysis.intervals import wilson

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
    assert first["caption"] == "accuracy, %: quiz, recorded, test; n = 32"
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
    assert f"{row['accuracy']:.2f} % right ({interval})" in tip.text
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
            f"threshold {row['threshold']:.2f}: {row['accuracy']:.2f} % "
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
const kinds = "p|.i|.soft|figcaption|a|th|label|summary|.verdict|output|#grid td:not(.none)";
const found = {};
for (const name of kinds.split("|")) {
  for (const e of document.querySelectorAll(name)) {
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    found[name] = Math.min(found[name] ?? 99, (a + .05) / (b + .05));
  }
}
return found;"""


def test_ten_thousand_cells_answer_a_selector_within_a_second(opened: Open, tmp_path: Path) -> None:
    rows = questions(40)
    quiz = write_lines(tmp_path / "quiz.jsonl", rows)
    recorded = write_lines(tmp_path / "recorded.jsonl", recordings(rows, "quiz"))
    grids = ["method=base,adapt_vis", "weight1=0.5,0.8", "weight2=1.2,1.5,2.0", "threshold=range(0,1,0.0006)"]
    given = ["dataset=jsonl", f"dataset.path={quiz}", "model=recorded", f"model.path={recorded}"]
    done = command("launch.py", f"output_dir={tmp_path / 'out'}")("-m", *grids, *given)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1]).parent
    assert len(pd.read_csv(folder / "results.csv")) == 1 + 6 * 1667
    start = time.perf_counter()
    browser = opened(folder)
    assert time.perf_counter() - start < 5
    timed = """
    const select = document.getElementById(arguments[0]), start = performance.now();
    select.value = arguments[1];
    select.dispatchEvent(new Event("change"));
    document.getElementById("grid").getBoundingClientRect();
    return performance.now() - start"""
    for name, value in (("figure", "difference"), ("rows", "weight1"), ("columns", "weight2"), ("rows", "threshold")):
        assert browser.execute_script(timed, name, value) < 1000
    assert len(grid(browser)["rows"]) == 1667
