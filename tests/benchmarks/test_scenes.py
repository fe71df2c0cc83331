"""Scenes: the descriptions, the pictures, the benchmark in the cache, and the files in the upstream layout."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from spatial_eval.benchmarks.scenes import pictures, rendered
from spatial_eval.benchmarks.scenes.canvas import SIDE
from spatial_eval.benchmarks.scenes.generator import DIFFICULTIES, FORMS, SEATS, TABLEWARE, THINGS, generate_scenes
from spatial_eval.benchmarks.scenes.pictures import describe_picture, draw_picture
from spatial_eval.benchmarks.scenes.rendered import Scenes, write_scene_files
from spatial_eval.benchmarks.scenes.shapes import FURNITURE, SKETCHES
from spatial_eval.core.errors import ConfigError, StoreError
from spatial_eval.core.types import Places

COUNTS = {"scenes_a": 412, "scenes_b": 408, "scenes_one_obj": 440, "scenes_two_obj": 440}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight rows a form, so that drawing them all takes a moment."""
    monkeypatch.setattr(rendered, "generate_scenes", lambda *args: generate_scenes(*args)[:8])


def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "data", tmp_path / "output")


def test_every_name_can_be_drawn() -> None:
    assert set(SKETCHES) == set(THINGS)
    assert set(FURNITURE) == set(SEATS)
    assert set(TABLEWARE) < set(THINGS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [0, 1, 77])
def test_sets_are_the_same_two_things_in_all_four_relations(form: str, seed: int) -> None:
    rows = generate_scenes(form, "medium", seed)
    assert [scene.row for scene in rows] == list(range(COUNTS[form]))
    assert len({scene.file for scene in rows}) == len(rows)
    for start in range(0, len(rows), 4):
        four = rows[start : start + 4]
        assert [scene.relation for scene in four] == list(FORMS[form].relations)
        assert len({(scene.first, scene.second, scene.question, scene.stream) for scene in four}) == 1
    if form != "scenes_one_obj":
        met = Counter(frozenset((scene.first, scene.second)) for scene in rows)
        assert set(met.values()) == {4}


@pytest.mark.parametrize(
    ("form", "question", "file"),
    [
        ("scenes_a", "Where is the X in relation to the Y? Answer with left, right, on or under.", "X_left_of_Y.jpeg"),
        (
            "scenes_b",
            "Where is the X in relation to the Y? Answer with left, right, front or behind.",
            "X_left_of_Y.jpeg",
        ),
        ("scenes_one_obj", "Where is the X in the photo? Answer with left, right, top or bottom.", "000000300000.jpg"),
        (
            "scenes_two_obj",
            "Where is the X in relation to the Y? Answer with left, right, above, or below.",
            "000000400000.jpg",
        ),
    ],
)
def test_texts_and_names_have_the_real_form(form: str, question: str, file: str) -> None:
    scene = generate_scenes(form)[0]
    for stand_in, name in (("X", scene.first), ("Y", scene.second)):
        question, file = question.replace(stand_in, name), file.replace(stand_in, name)
    assert scene.question == f"<image>\nUSER: {question}\nASSISTANT:"
    assert scene.file == file
    assert scene.answer == "Left"


def test_file_names_spell_relations_as_upstream_does() -> None:
    def words(form: str) -> list[str]:
        return [
            scene.file.removeprefix(f"{scene.first}_").split(f"_{scene.second}")[0]
            for scene in generate_scenes(form)[:4]
        ]

    assert words("scenes_a") == ["left_of", "right_of", "on", "under"]
    assert words("scenes_b") == ["left_of", "right_of", "in-front_of", "behind"]


def test_image_numbers_are_unique_over_both_coco_forms() -> None:
    numbers = [scene.image_id for form in ("scenes_one_obj", "scenes_two_obj") for scene in generate_scenes(form)]
    assert len(set(numbers)) == len(numbers)


def test_difficulty_changes_obstacles_only() -> None:
    easy, hard = generate_scenes("scenes_b", "easy"), generate_scenes("scenes_b", "hard")
    assert [replace(scene, difficulty=DIFFICULTIES["hard"]) for scene in easy] == hard
    assert easy[0].digest() != hard[0].digest()


def test_unknown_choices_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"unknown form of scenes 'scene_a'; did you mean scenes_a\?"):
        generate_scenes("scene_a")
    with pytest.raises(
        ConfigError, match=r"unknown difficulty 'esy'; did you mean easy\? \(valid: easy, medium, hard\)"
    ):
        Scenes("x", "scenes_a", difficulty="esy")
    with pytest.raises(ConfigError, match="unknown form of scenes"):
        Scenes("x", "vsr")


@given(st.sampled_from(list(FORMS)), st.sampled_from(list(DIFFICULTIES)), st.integers(0, 10**6), st.integers(0, 399))
@example("scenes_a", "hard", 2, 2)  # a spoon on an armchair: its middle is below that of the armchair
def test_any_scene_can_be_drawn(form: str, difficulty: str, seed: int, row: int) -> None:
    scene = generate_scenes(form, difficulty, seed)[row]
    drawn = describe_picture(scene)
    assert drawn.image.size == (SIDE, SIDE)
    boxes = {box.name: box for box in drawn.boxes}
    first = boxes[scene.first]
    x, y = (first.left + first.right) / 2, (first.top + first.bottom) / 2
    second = boxes.get(scene.second)
    sx, sy = ((second.left + second.right) / 2, (second.top + second.bottom) / 2) if second else (0.5, 0.5)
    match scene.relation:
        case "left":
            assert x < sx
        case "right":
            assert x > sx
        case "on" if second:  # feet are compared: the seat of an armchair lies below the middle of its box
            assert second.bottom - first.bottom > 0.4 * (second.bottom - second.top)
        case "under" if second:
            assert second.bottom - first.bottom < 0.1 * (second.bottom - second.top)
        case "top" | "above":
            assert y < sy
        case "bottom" | "below":
            assert y > sy
        case "front" | "behind" if second:  # the nearer foot is lower
            assert (first.bottom > second.bottom) == (scene.relation == "front")


def test_the_same_scene_is_the_same_bytes_in_another_process() -> None:
    chosen = [generate_scenes(form, level, 5)[9] for form in FORMS for level in DIFFICULTIES]
    code = (
        "import hashlib; from spatial_eval.benchmarks.scenes.pictures import draw_picture as draw\n"
        "from spatial_eval.benchmarks.scenes.generator import *\n"
        "for form in FORMS:\n"
        "    for level in DIFFICULTIES: print(hashlib.sha256(draw(generate_scenes(form, level, 5)[9])).hexdigest())"
    )
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert fresh == [hashlib.sha256(draw_picture(scene)).hexdigest() for scene in chosen]


def test_pictures_are_jpegs_and_differ_between_relations() -> None:
    four = [draw_picture(scene) for scene in generate_scenes("scenes_a")[:4]]
    assert len(set(four)) == 4
    assert Image.open(io.BytesIO(four[0])).format == "JPEG"


def test_reading_draws_nothing_and_needs_no_numpy(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from spatial_eval.benchmarks.scenes.rendered import Scenes; from spatial_eval.core.types import Places\n"
        f"places = Places(Path('d'), Path({str(tmp_path)!r}))\n"
        "print(len(Scenes('scenes_a', 'scenes_a').read(places)), 'numpy' in sys.modules, 'PIL' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["412", "False", "False"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMS)
def test_samples_carry_gold_options_and_groups(form: str, tmp_path: Path) -> None:
    benchmark = Scenes(form, form)
    samples = benchmark.read(places(tmp_path))
    assert len(samples) == COUNTS[form]
    assert len({sample.image_digest for sample in samples}) == len(samples)
    assert len({sample.image for sample in samples}) == len(samples)
    for sample in samples:
        assert sample.options == FORMS[form].relations
        assert sample.answers == (sample.relation,)
        assert sample.image is not None
        assert sample.image.is_relative_to(places(tmp_path).cache)
    if form in ("scenes_a", "scenes_b"):
        assert set(Counter(sample.set for sample in samples).values()) == {4}
        assert set(Counter(sample.pair for sample in samples).values()) == {2}
        assert {sample.relation for sample in samples if sample.pair.endswith("/h")} == {"left", "right"}
    else:
        assert {(sample.set, sample.pair) for sample in samples} == {("", "")}


def test_digests_follow_renderer_difficulty_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(**changes: object) -> str:
        return Scenes("a", "scenes_a", **changes).read(places(tmp_path))[0].image_digest  # type: ignore[arg-type]

    before = digest()
    assert len({before, digest(difficulty="easy"), digest(seed=1)}) == 3
    monkeypatch.setattr("spatial_eval.benchmarks.scenes.generator.VERSION", 99)
    assert digest() != before


@pytest.mark.usefixtures("few")
def test_ready_draws_what_is_missing_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = Scenes("scenes_b", "scenes_b")
    benchmark.ready(benchmark.read(places(tmp_path)), places(tmp_path))
    files = [sample.image for sample in benchmark.read(places(tmp_path)) if sample.image]
    content = [file.read_bytes() for file in files]
    assert sorted(files) == sorted(files[0].parent.iterdir())  # no leftovers of a rename
    files[3].unlink()
    drawn: list[str] = []

    def watched(scene: object) -> bytes:
        drawn.append(str(scene))
        return draw_picture(scene)  # type: ignore[arg-type]

    monkeypatch.setattr(pictures, "draw_picture", watched)
    benchmark.ready(benchmark.read(places(tmp_path)), places(tmp_path))
    assert len(drawn) == 1
    assert [file.read_bytes() for file in files] == content
    benchmark.ready(benchmark.read(places(tmp_path)), places(tmp_path))
    assert len(drawn) == 1


def resaved(content: bytes, other: bytes) -> bytes:
    """The same picture without its comment, as a viewer might write it."""
    out = io.BytesIO()
    Image.open(io.BytesIO(content)).save(out, "JPEG", quality=90, comment=b"")
    return out.getvalue()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "damage",
    [
        lambda content, other: content[:400] + bytes([content[400] ^ 1]) + content[401:],
        lambda content, other: content[:-1],
        lambda content, other: content[:700],
        lambda content, other: b"",
        lambda content, other: bytes(len(content)),  # a file that power failure left as zeros
        lambda content, other: other,  # whole, of another scene
        lambda content, other: content[: rendered.HEAD] + other[rendered.HEAD :],
        resaved,
    ],
    ids=["bit", "byte", "cut", "empty", "zeros", "other", "mixed", "resaved"],
)
def test_a_picture_that_is_not_the_one_drawn_is_drawn_again(
    damage: Callable[[bytes, bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = Scenes("scenes_a", "scenes_a")
    samples = benchmark.read(places(tmp_path))
    benchmark.ready(samples, places(tmp_path))
    files = [sample.image for sample in samples if sample.image]
    content = [file.read_bytes() for file in files]
    with Image.open(files[2]) as image:
        assert image.info["comment"].startswith(f"scene {samples[2].image_digest} ".encode())
        np.testing.assert_array_equal(image, Image.open(io.BytesIO(draw_picture(benchmark._scenes()[2]))))
    files[2].write_bytes(damage(content[2], content[3]))
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    benchmark.ready(samples[3:], places(tmp_path))
    assert synced == []  # only what is asked for
    benchmark.ready(samples, places(tmp_path))
    assert len(synced) == 1  # the one file, on disk before it has its name
    assert [file.read_bytes() for file in files] == content


def test_processes_may_draw_at_once(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from spatial_eval.benchmarks.scenes import rendered\n"
        "from spatial_eval.core.types import Places\n"
        f"bench, where = rendered.Scenes('scenes_a', 'scenes_a'), Places(Path('d'), Path({str(tmp_path)!r}))\n"
        "bench.ready(bench.read(where)[:24], where)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    files = list(tmp_path.rglob("*.*"))
    assert len(files) == 24
    for file in files:
        Image.open(file).load()


@pytest.mark.usefixtures("few")
def test_write_gives_the_upstream_layout(tmp_path: Path) -> None:
    prompts = write_scene_files(tmp_path)
    assert [path.name for path in prompts] == [
        "Controlled_Images_A_with_answer_four_options.jsonl",
        "Controlled_Images_B_with_answer_four_options.jsonl",
        "COCO_QA_one_obj_with_answer_four_options.jsonl",
        "COCO_QA_two_obj_with_answer_four_options.jsonl",
    ]
    for path, form in zip(prompts, FORMS.values(), strict=True):
        rows = [json.loads(line) for line in path.read_text("utf8").splitlines()]
        notes = json.loads((tmp_path / form.annotation).read_text("utf8"))
        assert len(rows) == len(notes) == 8
        for row, note in zip(rows, notes, strict=True):
            assert set(row) == {"id", "question", "answer"}
            if form.words:
                assert set(note) == {"image_path", "caption_options"}
                image, captions = tmp_path / form.folder / Path(note["image_path"]).name, note["caption_options"]
                assert len(set(captions)) == 4
            else:
                image, captions = tmp_path / "val2017" / f"{note[0]:012d}.jpg", note[1:]
                assert len(set(captions)) == 2
            assert row["answer"][0].lower() in captions[0]
            assert image.is_file()
    note = json.loads((tmp_path / "controlled_clevr_dataset.json").read_text("utf8"))[2]
    first, second = Path(note["image_path"]).stem.split("_in-front_of_")
    assert note["caption_options"][0] == f"A {first} in front of a {second}"


def test_a_folder_that_takes_nothing_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file where a folder should be")
    benchmark = Scenes("scenes_a", "scenes_a")
    with pytest.raises(StoreError, match=r"output.*; what was stored before stays: fix it and run the same command"):
        benchmark.ready(benchmark.read(places(tmp_path)), places(tmp_path))
