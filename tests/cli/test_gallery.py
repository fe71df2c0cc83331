"""Maps on pictures: at the right place, at the right size, by the command and in the report."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import spatial_eval
from spatial_eval.analysis.sweep_data import read_sweep_data
from spatial_eval.cli import attention as cli_attention
from spatial_eval.cli import main
from spatial_eval.core.arms import Arm
from spatial_eval.core.errors import ConfigError, DataError
from spatial_eval.report import figures, panels, sections
from spatial_eval.store import attention
from spatial_eval.store.attention import View

CROP = View((4, 4), (0.25, 0.0, 0.75, 1.0))  # CLIP on a picture twice as wide as high


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    path = tmp_path / "wide.png"
    Image.new("RGB", (200, 100), (120, 120, 120)).save(path)
    return path


@pytest.mark.parametrize("token", [0, 3, 6, 12, 15])
def test_a_token_lights_its_own_place_and_no_other(token: int, wide: Path) -> None:
    values = np.zeros(16, dtype=np.float32)
    values[token] = 0.2
    drawn = np.asarray(figures.draw_attention(wide, values, CROP, top=0.2, size=400)).astype(int)  # 400 x 200
    assert drawn.shape == (200, 400, 3)
    bright = drawn.min(axis=2) > 120
    row, column = divmod(token, 4)
    want = np.zeros((200, 400), dtype=bool)
    want[50 * row : 50 * row + 50, 100 + 50 * column : 150 + 50 * column] = True
    np.testing.assert_array_equal(bright, want)
    assert drawn[:, :100].max() < 50  # the margins that the crop cuts are dark
    assert drawn[:, 300:].max() < 50


def test_brightness_is_of_the_common_scale(wide: Path) -> None:
    half = figures.draw_attention(wide, np.full(16, 0.1, np.float32), CROP, top=0.2)
    full = figures.draw_attention(wide, np.full(16, 0.1, np.float32), CROP, top=0.1)
    middle = (half.width // 2, half.height // 2)
    assert sum(half.getpixel(middle)) < sum(full.getpixel(middle))
    assert figures.draw_attention(wide, np.full(16, np.nan, np.float32), CROP, top=0.0).size == half.size


def test_an_unknown_place_is_a_strip_below(wide: Path) -> None:
    values = np.array([0, 0, 0, 1], dtype=np.float32)
    drawn = np.asarray(figures.draw_attention(wide, values, None, top=1.0, size=400))
    assert drawn.shape == (200 + figures.STRIP, 400, 3)
    assert (drawn[:200] == 120).all()
    assert drawn[200:, 300:].min() > 120
    assert drawn[200:, :300].max() < 10


def test_no_picture(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"torn\.png cannot be drawn on"):
        figures.draw_attention(tmp_path / "torn.png", np.zeros(16, np.float32), CROP, top=1.0)


def draw(folder: Path, out: Path, *arguments: str) -> int:
    return main.main(["attention", str(folder), *arguments, "--out", str(out)])


def test_the_command_writes_what_it_says(gazed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        draw(gazed, tmp_path, "--examples", "2", "--arm", "1", "--arm", "0.5", "--layer", "mean", "--layer", "2") == 0
    )
    said = capsys.readouterr()
    assert said.err == ""
    written = sorted(tmp_path.glob("*.png"))
    assert sorted(map(Path, said.out.splitlines())) == written
    assert len(written) == 2 * 2  # questions and layers: all arms stand in one picture
    first = spatial_eval.load(gazed).attention().ids[0]
    assert tmp_path / f"scenes_a--tiny--{first}--mean.png" in written


def test_a_panel_holds_each_arms_map_on_one_scale_and_its_own_answer(gazed: Path) -> None:
    files = read_sweep_data(gazed)
    found = spatial_eval.load(gazed).attention()
    source = panels.PanelSource(files, found, figures.thumbnails(files.about))
    i, layer = 5, slice(3, 4)
    image = source.find_images()[i]
    assert image is not None
    panel = source.build(i, image, [found.arm(label) for label in ("1", "0.5", "2")], layer)
    assert panel.top == max(float(one.values.max()) for one in panel.arms)
    right = spatial_eval.load(gazed).right(found)
    for one in panel.arms:
        w = found.arm(one.arm.label)
        np.testing.assert_array_equal(one.values, found.map[i][w, 3])
        assert one.share == pytest.approx(float(found.mass[i, w, 3].mean()))
        assert one.right == bool(right[i, w])
        text = files.samples.query("sample_id == @panel.id")
        assert one.answer in set(text["text"])
    assert [one.name for one in panel.arms] == ["base", "scaling_vis w=0.5", "scaling_vis w=2"]
    drawn = np.asarray(panels.draw_panel(panel, "3")).astype(int)
    asked = 1  # line of the question
    top = panels.GAP + panels.LINE * (asked + 1) + panels.GAP
    for number, one in enumerate(panel.arms, 1):  # the brightest place of each tile is the map's
        left = panels.GAP + number * (panels.TILE + panels.GAP)
        tile = drawn[top : top + panels.TILE, left : left + panels.TILE, :2].mean(axis=2)
        bright = tile.reshape(8, panels.TILE // 8, 8, panels.TILE // 8).mean(axis=(1, 3))
        assert np.unravel_index(bright.argmax(), (8, 8)) == divmod(int(one.values.argmax()), 8)


def test_an_arm_without_a_stored_answer_is_neither_right_nor_wrong(gazed: Path) -> None:
    files = read_sweep_data(gazed)
    found = spatial_eval.load(gazed).attention()
    panel = panels.PanelSource(files, found, figures.thumbnails(files.about))
    one = panel.build(0, Path("x.png"), [0]).arms[0]
    assert one.right is not None
    graded = files.experiments[found.dataset, found.model, found.max_new_tokens].arms[found.arms[0]]
    graded.signals.answered[0] = False
    unanswered = panel.build(0, Path("x.png"), [0]).arms[0]
    assert (unanswered.right, unanswered.answer, unanswered.share) == (None, "", one.share)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--question", "nobody"), "question nobody is not captured; those are "),
        (("--arm", "0.7"), "unknown arm '0.7'; did you mean 0.8? (valid: 0.5, 0.8, 1, 1.2, 1.5, 2)"),
        (("--layer", "4"), "--layer 4 is not valid; expected mean, or 0 to 3"),
        (("--layer", "last"), "--layer last is not valid; expected mean, or 0 to 3"),
        (("--examples", "0"), "--examples 0 is not valid; expected at least 1"),
        (("--dataset", "vsr"), "0 captures of sweep"),
    ],
)
def test_the_command_refuses(gazed: Path, tmp_path: Path, arguments: tuple[str, ...], message: str, capsys) -> None:
    assert draw(gazed, tmp_path / "none", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_pictures_that_are_gone_and_masses_that_are_no_maps(gazed: Path, tmp_path: Path, capsys) -> None:
    folder = Path(shutil.copytree(gazed, tmp_path / gazed.name))
    text = (folder / "sweep.json").read_text("utf8")
    (folder / "sweep.json").write_text(text.replace(str(gazed.parents[1]), str(tmp_path / "moved")), "utf8")
    assert draw(folder, tmp_path / "png") == 1
    assert "error: the picture of question" in capsys.readouterr().err
    path = next(folder.glob("attention/*.npz"))
    with np.load(path) as file:
        np.savez(path, **{name: file[name] for name in file.files if "/" not in name and name != "level"}, level="mass")
    assert draw(folder, tmp_path / "png") == 1
    assert "has no maps: run its command with capture=map, or heads" in capsys.readouterr().err


def test_spread_over_the_questions() -> None:
    ids = [str(i) for i in range(10)]
    assert cli_attention.select_questions(ids, None, 3) == [0, 3, 6]
    assert cli_attention.select_questions(ids, None, None) == [0, 2, 4, 6]
    assert cli_attention.select_questions(ids, None, 99) == list(range(10))
    assert cli_attention.select_questions(ids, ["7", "2"], None) == [7, 2]
    with pytest.raises(ConfigError, match=r"question x is not captured; those are 0, 1, 2, 3, 4, [.]+, 9"):
        cli_attention.select_questions(ids, ["x"], None)


# The report


def test_the_report_shows_it_and_stays_one_small_file(gazed: Path) -> None:
    page = (gazed / "report.html").read_text("utf8")
    section = page[page.index('<section id="attention"') :]
    section = section[: section.index("</section>")]
    assert '<a href="#attention">Attention</a>' in page
    assert "src=" not in page.replace('src="data:', "")
    assert len(section) < 60_000
    pictures = re.findall(r'src="data:image/webp;base64,([^"]+)" alt="attention of ([^"]+)"', section)
    names = {"1": "base"} | {weight: f"scaling_vis w={weight}" for weight in ("0.5", "1.2", "2")}
    assert [name for _, name in pictures] == [*names.values()] * 3
    for data, _ in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (150, 150)
    found = spatial_eval.load(gazed).attention()
    share = 100 * found.mass.mean(axis=(0, 3))
    for label, name in names.items():
        for layer in range(4):
            tip = f"{name}, layer {layer}: {share[found.arm(label), layer]:.1f} % on the image, n = 24"
            assert tip in section


def test_right_and_wrong_are_those_of_the_answers(gazed: Path) -> None:
    sweep = spatial_eval.load(gazed)
    found = sweep.attention()
    right = sweep.right(found)
    share = 100 * found.mass.mean(axis=(2, 3))
    base = found.arm("1")
    good, bad = (share[right[:, base] == value, base] for value in (1, 0))
    assert len(good) + len(bad) == 24
    assert len(good) == round(0.24 * sweep.cells["accuracy"][sweep.find(method="base")])
    text = re.sub(r"<[^>]+>", " ", (gazed / "report.html").read_text("utf8"))
    text = " ".join(text.split())
    parts = [f"{part.mean():.1f} n = {len(part)}" for part in (share[:, base], good, bad)]
    assert f" base {' '.join(parts)} " in text


def test_at_most_four_arms_and_the_baseline_first() -> None:
    class Found:
        arms = tuple(Arm(weight) for weight in (0.0, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0))

    assert [Found.arms[w].weight for w in sections.spread_arms(Found())] == [1.0, 0.0, 0.8, 2.0]  # type: ignore[arg-type]
    assert list(attention.select_layer(np.ones((2, 3, 4), np.float32), slice(1, 2)).shape) == [2, 4]
