"""Pictures as people see them: upright, scaled to 8 bits, the same in the model, the overlays and the thumbnails."""

from __future__ import annotations

import base64
import io
import logging
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_lines
from PIL import Image, ImageOps

from spatial_eval.benchmarks import image_files
from spatial_eval.benchmarks.hub_dataset import Hub
from spatial_eval.benchmarks.image_files import digest_images, open_rgb, shown_size
from spatial_eval.benchmarks.prompts import apply_template
from spatial_eval.benchmarks.readers import QuestionFile, Vsr, WhatsUp
from spatial_eval.config import schema
from spatial_eval.core import hashing
from spatial_eval.core.arms import BASE
from spatial_eval.core.errors import ConfigError, DataError
from spatial_eval.core.hashing import digest_files
from spatial_eval.core.types import Experiment, Places
from spatial_eval.models.registry import MODELS
from spatial_eval.report import figures
from spatial_eval.report.figures import thumbnails
from spatial_eval.store import generations

WIDE = (40, 24)


def noise(mode: str = "RGB", size: tuple[int, int] = WIDE) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(0).randbytes(size[0] * size[1] * 3)).convert(mode)


def turned(tag: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = tag
    return exif


def pixels(picture: Image.Image) -> Any:
    return np.asarray(picture)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_the_exif_note_is_applied(tag: int, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"one.{ending}"
    noise().save(path, exif=turned(tag))
    with Image.open(path) as file:
        stored, upright = file.convert("RGB"), ImageOps.exif_transpose(file).convert("RGB")
    same = pixels(stored).tolist() == pixels(upright).tolist()
    assert same == (tag == 1 or ending == "tif")  # PIL turns a TIFF by itself; of others this must show something
    changed = digest_images([path], "upright", Places(tmp_path, tmp_path)) != digest_files(
        [path], Places(tmp_path, tmp_path)
    )
    assert changed != same
    assert pixels(open_rgb(path, "stored")).tolist() == pixels(stored).tolist()
    assert pixels(open_rgb(path, "upright")).tolist() == pixels(upright).tolist()
    for orientation in image_files.ORIENTATIONS:
        assert shown_size(path, orientation) == open_rgb(path, orientation).size
    assert open_rgb(path, "upright").size == (WIDE if tag < 5 else WIDE[::-1])


@pytest.mark.parametrize("orientation", image_files.ORIENTATIONS)
def test_deep_pictures_are_scaled(orientation: str, tmp_path: Path) -> None:
    steps = np.linspace(0, 65535, 24 * 40).reshape(24, 40).round()
    eight = np.rint(steps / 257).astype(np.uint8)
    kinds = {
        "i16.png": Image.fromarray(steps.astype(np.uint16)),
        "i16.tif": Image.fromarray(steps.astype(np.uint16)),
        "i32.tif": Image.fromarray(steps.astype(np.int32)),
        "unit.tif": Image.fromarray((steps / 65535).astype(np.float32)),
        "bytes.tif": Image.fromarray(eight.astype(np.float32)),
    }
    for name, picture in kinds.items():
        picture.save(tmp_path / name)
        shown = open_rgb(tmp_path / name, orientation)
        assert shown.mode == "RGB"
        assert (pixels(shown) == eight[..., None]).all(), name
        with Image.open(tmp_path / name) as file:
            assert name == "bytes.tif" or not (pixels(file.convert("RGB")) == eight[..., None]).all()
    Image.fromarray(steps.astype(np.uint16)).save(tmp_path / "both.png", exif=turned(6))
    expected = eight if orientation == "stored" else np.rot90(eight, -1)
    assert (pixels(open_rgb(tmp_path / "both.png", orientation)) == expected[..., None]).all()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.array([[0, 70_000]], np.int32), r"holds integers from 0 to 70000, beyond 65535: save it with 8 or 16 bits"),
        (np.array([[-1, 5]], np.int32), r"holds integers from -1 to 5"),
        (np.array([[0.0, 300.0]], np.float32), r"holds floats from 0 to 300, beyond 255"),
        (np.array([[0.0, np.nan]], np.float32), r"holds floats from nan to nan"),
    ],
)
def test_values_without_a_scale_are_an_error(values: Any, says: str, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "odd.tif")
    with pytest.raises(ValueError, match=f"^odd.tif {says}"):
        open_rgb(tmp_path / "odd.tif", "upright")


def test_a_damaged_header_is_no_error_of_our_own(tmp_path: Path) -> None:
    """A TIFF whose place of the pixels is of the type of fractions: PIL raises a TypeError."""
    path = tmp_path / "a.tif"
    Image.new("RGB", (9, 9)).save(path)
    content = path.read_bytes()
    at = content.index(struct.pack("<HHI", 273, 4, 1))
    path.write_bytes(content[:at] + struct.pack("<HHI", 273, 11, 1) + content[at + 8 :])
    with pytest.raises(ValueError, match=r"a\.tif cannot be decoded \(TypeError: "):
        open_rgb(path, "upright")
    assert len(digest_images([path], "upright", Places(tmp_path, tmp_path / "outputs"))) == 1
    with pytest.raises(DataError, match=r"a\.tif"):
        figures.fit_picture(path, orientation="upright")


def test_transparent_and_animated_pictures_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image_files._WARNED.clear()
    plain = noise()
    first, second = noise("P"), ImageOps.mirror(noise("P"))
    first.save(tmp_path / "moving.gif", save_all=True, append_images=[second])
    plain.convert("RGBA").save(tmp_path / "alpha.png")
    clear = noise("P")
    clear.save(tmp_path / "index.png", transparency=bytes(range(256)))
    noise("LA").save(tmp_path / "grey.png")
    Image.fromarray(np.full((2, 3), 200, np.uint16)).save(tmp_path / "dark.png")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert pixels(open_rgb(tmp_path / "alpha.png", "upright")).tolist() == pixels(plain).tolist()
            assert pixels(open_rgb(tmp_path / "index.png", "upright")).tolist() == pixels(clear.convert("RGB")).tolist()
            assert (
                pixels(open_rgb(tmp_path / "moving.gif", "upright")).tolist() == pixels(first.convert("RGB")).tolist()
            )
            open_rgb(tmp_path / "grey.png", "upright")
            open_rgb(tmp_path / "dark.png", "upright")
    assert [line.partition(str(tmp_path))[2] for line in caplog.messages] == [
        "/alpha.png is transparent: the colours of transparent pictures are shown without a background",
        "/moving.gif is animated: the first frame of animated pictures is shown",
        "/dark.png has no value above 200 of 65535: pictures of so few 16-bit values are nearly black; save 8-bit "
        "values with 8 bits per channel",
    ]


def test_only_pictures_whose_pixels_change_have_another_digest(tmp_path: Path, monkeypatch: Any) -> None:
    places = Places(tmp_path, tmp_path / "out")
    places.output.mkdir()
    noise().save(tmp_path / "plain.png")
    noise().save(tmp_path / "one.png", exif=turned(1))
    noise().save(tmp_path / "six.png", exif=turned(6))
    noise().save(tmp_path / "three.jpg", exif=turned(3))
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(tmp_path / "deep.png")
    noise("RGBA").save(tmp_path / "alpha.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    names = ["plain.png", "one.png", "six.png", "three.jpg", "deep.png", "alpha.png", "broken.png", "absent.png"]
    paths = [tmp_path / name for name in names]
    content = digest_files(paths, places)
    upright, stored = (digest_images(paths, orientation, places) for orientation in image_files.ORIENTATIONS)
    assert [a != b for a, b in zip(upright, content, strict=True)] == [name[:2] in ("si", "th", "de") for name in names]
    assert [a != b for a, b in zip(stored, content, strict=True)] == [name[:2] == "de" for name in names]
    assert {len(digest) for digest in upright[:-1]} == {32}
    assert upright[-1] == "missing"
    # Each picture is opened once: what it shows is remembered by content, wherever it lies.
    opened: list[Path] = []
    monkeypatch.setattr(image_files, "_changes", lambda path, orientation: opened.append(path) or "")
    (tmp_path / "six.png").rename(tmp_path / "moved.png")
    assert digest_images([tmp_path / "moved.png", paths[0]], "upright", places) == [upright[2], content[0]]
    assert opened == []
    (places.cache / "digests.jsonl").unlink()
    digest_images([tmp_path / "moved.png", tmp_path / "moved.png"], "upright", replace(places, remember=False))
    assert len(opened) == 1
    assert not (places.cache / "digests.jsonl").exists()


def test_a_torn_note_is_looked_up_again(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path)
    noise().save(tmp_path / "six.png", exif=turned(6))
    want = digest_images([tmp_path / "six.png"], "upright", places)
    notes = places.cache / "digests.jsonl"
    text = notes.read_text()
    for end in range(0, len(text), 7):
        notes.write_text(text[:end])
        assert digest_images([tmp_path / "six.png"], "upright", places) == want
    assert hashing.compute_cached({}, str, places) == {}


# --- through datasets and models


def answered_from(tmp_path: Path, **keys: Any) -> tuple[str, list[str], dict[str, str]]:
    """Key of the trunk, fingerprints and record digests of two questions, the second about a turned picture."""
    noise().save(tmp_path / "plain.png")
    noise().save(tmp_path / "six.jpg", exif=turned(6))
    rows = [
        {"id": name, "question": "Where?", "answer": "left", "image_path": name} for name in ("plain.png", "six.jpg")
    ]
    dataset = QuestionFile(write_lines(tmp_path / "quiz.jsonl", rows), **keys)
    places = Places(tmp_path, tmp_path)
    tiny = schema.build_by_kind(MODELS, {"kind": "hf", "path": "package:tiny", "device": "cpu"}, "model")
    samples = dataset.read(places)
    prints = tiny.fingerprint(dataset, samples, places)
    return (
        generations.experiment_key(Experiment(dataset, tiny), places).hash,
        prints,
        generations.sample_digests(samples, prints),
    )


def test_answers_of_an_older_store_stay_where_the_pixels_stay(tmp_path: Path) -> None:
    key, prints, _ = answered_from(tmp_path)
    content = digest_files([tmp_path / "plain.png", tmp_path / "six.jpg"], Places(tmp_path, tmp_path))
    assert prints[0] == content[0]
    assert prints[1] != content[1]
    other, stored, _ = answered_from(tmp_path, orientation="stored")
    assert stored == content
    assert other != key


def test_the_model_sees_the_picture_upright(tmp_path: Path) -> None:
    half = Image.new("RGB", (96, 96), "white")
    half.paste((255, 0, 0), (0, 0, 96, 40))
    half.save(tmp_path / "six.png", exif=turned(6))
    ImageOps.exif_transpose(Image.open(tmp_path / "six.png")).save(tmp_path / "upright.png")
    half.save(tmp_path / "plain.png")
    tiny = schema.build_by_kind(
        MODELS, {"kind": "hf", "path": "package:tiny", "device": "cpu", "selfcheck": "never"}, "model"
    )

    def confidence(name: str, orientation: str) -> Any:
        row = {"id": 0, "question": "<image>\nUSER: Where is it?\nASSISTANT:", "answer": "left", "image_path": name}
        dataset = QuestionFile(write_lines(tmp_path / "quiz.jsonl", [row]), orientation=orientation)
        places = Places(tmp_path, tmp_path)
        (batch,) = tiny.load(dataset, 2, places).answer([[(dataset.read(places)[0], (BASE,))]])
        return batch[0].confidence  # type: ignore[union-attr]

    assert confidence("six.png", "upright") == confidence("upright.png", "stored")
    assert confidence("six.png", "stored") == confidence("plain.png", "upright") != confidence("six.png", "upright")


@pytest.mark.parametrize(
    "dataset",
    [
        QuestionFile(Path("quiz.jsonl")),
        Hub("a/b"),
        Vsr("vsr", "VSR", 1, "f", "images"),
        WhatsUp("c", "C", 1, (), "p", "a", "images"),
    ],
)
def test_the_key_says_stored_only(dataset: Any) -> None:
    assert "orientation" not in dataset.describe()
    stored = replace(dataset, orientation="stored")
    assert stored.describe() == {**dataset.describe(), "orientation": "stored"}
    assert (apply_template(stored, "{question}").orientation, apply_template(dataset, "{question}").orientation) == (
        *("stored", "upright"),
    )
    with pytest.raises(ConfigError, match=r"unknown dataset.orientation 'uprigth'; did you mean upright"):
        replace(dataset, orientation="uprigth")


def corner(picture: Image.Image) -> str:
    """Where the red patch lies."""
    red = np.argwhere(pixels(picture.convert("RGB")).astype(int)[..., 0] - pixels(picture.convert("RGB"))[..., 2] > 100)
    row, column = red.mean(axis=0) / pixels(picture).shape[:2]
    return f"{'top' if row < 0.5 else 'bottom'} {'left' if column < 0.5 else 'right'}"


def test_overlays_and_thumbnails_show_what_the_model_saw(tmp_path: Path) -> None:
    picture = Image.new("RGB", (96, 48), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 24, 24))  # stored top left; a quarter turn to the right puts it top right
    picture.save(tmp_path / "six.png", exif=turned(6))
    about = {
        "config": {"data_dir": str(tmp_path)},
        "trunks": [
            {"dataset": {"name": "new", "orientation": "upright"}},
            {"dataset": {"name": "paper", "orientation": "stored"}},
            {"dataset": {"name": "old"}},
        ],
    }
    small = thumbnails(about)
    for name, where in (("new", "top right"), ("paper", "top left"), ("old", "top left")):
        data = small.uri("six.png", name).partition("base64,")[2]
        assert corner(Image.open(io.BytesIO(base64.b64decode(data)))) == where
        drawn = figures.draw_attention(
            tmp_path / "six.png", np.zeros(4, np.float32), None, top=1.0, orientation=small.orientation(name)
        )
        assert corner(drawn) == where
