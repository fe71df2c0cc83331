"""Readers against small replicas of the real files (schemas: arXiv 2310.19785 and 2503.01773, hub card of VSR)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import write_lines

from spatial_eval.analysis import metrics
from spatial_eval.benchmarks.readers import QuestionFile, Vsr, WhatsUp
from spatial_eval.core.errors import DataError
from spatial_eval.core.jsonl import read_json_lines
from spatial_eval.core.types import Places
from spatial_eval.store.answers import Answers

RELATIONS = ("left_of", "right_of", "on", "under")
WORDS = ("Left", "Right", "On", "Under")
CAPTIONS = ("to the left of", "to the right of", "on", "under")


def whatsup(**changes) -> WhatsUp:
    values = {
        "name": "controlled_a",
        "upstream": "Controlled_Images_A",
        "rows": 8,
        "options": ("left", "right", "on", "under"),
        "prompts": "A.jsonl",
        "annotation": "controlled_images_dataset.json",
        "images": "controlled_images",
        "sets": True,
    }
    return WhatsUp(**values | changes)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Two sets of four questions in the layout of the sub-folders."""
    rows, notes = [], []
    for i in range(8):
        thing, word, caption = ("mug", "cat")[i // 4], WORDS[i % 4], CAPTIONS[i % 4]
        asked = f"Where is the {thing} in relation to the table? Answer with left, right, on or under."
        question = f"<image>\nUSER: {asked}\nASSISTANT:"
        rows.append({"id": i, "question": question, "answer": [word]})
        path = f"data/controlled_images/{thing}_{RELATIONS[i % 4]}_table.jpeg"
        notes.append({"image_path": path, "caption_options": [f"A {thing} {caption} a table", "something else"]})
    write_lines(tmp_path / "prompts" / "A.jsonl", rows)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "controlled_images_dataset.json").write_text(json.dumps(notes))
    return Places(tmp_path, tmp_path / "out")


def test_whatsup_reads_questions_images_sets_and_pairs(places: Places) -> None:
    samples = whatsup().read(places)
    assert samples[5].id == "5"
    assert samples[5].answers == ("right",)
    assert samples[5].image == places.data / "controlled_images" / "cat_right_of_table.jpeg"
    assert len({s.set for s in samples}) == 2
    assert [s.pair for s in samples[:4]] == ["mug / table / h"] * 2 + ["mug / table / v"] * 2


def test_the_flat_upstream_layout_reads_the_same(places: Places) -> None:
    nested = whatsup().read(places)
    (places.data / "prompts" / "A.jsonl").rename(places.data / "A.jsonl")
    (places.data / "annotations" / "controlled_images_dataset.json").rename(
        places.data / "controlled_images_dataset.json"
    )
    assert whatsup().read(places) == nested
    (places.data / "images" / "controlled_a").mkdir(parents=True)
    assert whatsup().read(places)[0].image == places.data / "images" / "controlled_a" / "mug_left_of_table.jpeg"


def test_text_alone_is_enough_to_read(places: Places) -> None:
    (places.data / "annotations" / "controlled_images_dataset.json").unlink()
    samples = whatsup().read(places)
    assert {s.image for s in samples} == {None}
    assert len({s.set for s in samples}) == 2


def test_image_ids_become_file_names(places: Places) -> None:
    notes = [[9 + i, f"a thing {CAPTIONS[i % 4]} it", "a wrong caption"] for i in range(8)]
    (places.data / "coco.json").write_text(json.dumps(notes))
    coco = whatsup(annotation="coco.json", images="val2017", image_file="{:012d}.jpg", sets=False)
    assert coco.read(places)[0].image == places.data / "val2017" / "000000000009.jpg"
    assert {s.set for s in coco.read(places)} == {""}
    named = whatsup(annotation="coco.json", images="vg_images", image_file="{}.jpg", sets=False)
    assert named.read(places)[1].image == places.data / "vg_images" / "10.jpg"


FORMS = [
    ({"images": "val2017", "image_file": "{:012d}.jpg"}, "image_id", [7, 7, "8", 8], ["000000000007", "000000000008"]),
    ({"images": "vg_images", "image_file": "{}.jpg"}, "image_id", ["10", "10", 11, "11"], ["10", "11"]),
    ({}, "image_path", ["data/x/a.jpg", "data/x/a.jpg", "b.jpg", "b.jpg"], ["a", "b"]),
]


@pytest.mark.parametrize(("changes", "key", "given", "names"), FORMS)
def test_without_an_annotation_a_prompt_may_name_its_image(places: Places, changes, key, given, names) -> None:
    rows = [{"id": i, "question": "Where is it?", "answer": ["On"], key: name} for i, name in enumerate(given)]
    write_lines(places.data / "prompts" / "A.jsonl", rows)
    dataset = whatsup(annotation="absent.json", sets=False, rows=4, **changes)
    samples = dataset.read(places)
    folder = places.data / dataset.images
    assert [s.image for s in samples] == [folder / f"{name}.jpg" for name in names for _ in range(2)]
    assert list(metrics.grade_columns(samples, Answers(), []).cluster) == [0, 0, 1, 1]


def test_a_prompt_that_names_no_image_is_refused_in_one_line(places: Places) -> None:
    rows = [{"id": 0, "question": "Where is it?", "answer": ["On"], "image_id": "cat"}]
    write_lines(places.data / "prompts" / "A.jsonl", rows)
    dataset = whatsup(annotation="absent.json", rows=1, image_file="{:012d}.jpg")
    with pytest.raises(DataError, match=r"A\.jsonl, row 0: 'cat' names no image of controlled_a$"):
        dataset.read(places)


def test_the_papers_prompt_files_name_no_image(data: Path) -> None:
    for path in (data / "prompts").glob("*_with_answer_*_options.jsonl"):
        assert {key for row in read_json_lines(path) for key in row} == {"id", "question", "answer"}, path


def test_a_row_too_few_is_refused(places: Places) -> None:
    path = places.data / "prompts" / "A.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="has 7 rows, controlled_a has 8"):
        whatsup().read(places)


def test_swapped_rows_are_refused(places: Places) -> None:
    path = places.data / "annotations" / "controlled_images_dataset.json"
    notes = json.loads(path.read_text())
    path.write_text(json.dumps([notes[1], notes[0], *notes[2:]]))
    with pytest.raises(DataError, match=r"row 0: .* says 'left', .* says 'A mug to the right of a table'"):
        whatsup().read(places)
    path.write_text(json.dumps(notes[:-1]))
    with pytest.raises(DataError, match="has 7 rows"):
        whatsup().read(places)
    path.write_text(json.dumps(notes)[:-20])
    with pytest.raises(DataError, match="is not an annotation of controlled_a"):
        whatsup().read(places)


def test_a_line_that_was_cut_off_is_named(places: Places) -> None:
    path = places.data / "prompts" / "A.jsonl"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(DataError, match=r"A.jsonl, line 8 is not JSON"):
        whatsup().read(places)


def test_vsr_builds_its_prompt(tmp_path: Path) -> None:
    # Schema: hub data set cambridgeltl/vsr_zeroshot.
    row = {"image": "000000372029.jpg", "caption": "The dog is on the surfboard.", "label": 1, "relation": "on"}
    write_lines(tmp_path / "vsr" / "zeroshot_test.jsonl", [row, row | {"label": 0}])
    vsr = Vsr("vsr", "VSR", 2, "zeroshot_test.jsonl", "train2017")
    yes, no = vsr.read(Places(tmp_path, tmp_path))
    assert yes.question == (
        "User: <image>\n Determine whether the description about the spatial relationship is correct or not. "
        "Answer with yes or no: The dog is on the surfboard. Assistant:"
    )
    assert (yes.answers, no.answers, yes.relation) == (("yes",), ("no",), "on")
    assert yes.image == tmp_path / "train2017" / "000000372029.jpg"


def test_own_questions(tmp_path: Path) -> None:
    rows = [
        {"id": "a-1", "question": "Where?", "answer": "Left", "image_path": "img/1.png", "options": ["Left", "Right"]},
        {"id": 7, "question": "Where?", "answer": ["On", "On top"], "relation": "support", "pair": "p", "set": 3},
        {"id": True, "question": "Where?", "answer": "x"},
    ]
    path = write_lines(tmp_path / "quiz.jsonl", rows)
    first, second, third = QuestionFile(path).read(Places(tmp_path, tmp_path))
    assert (first.id, second.id, third.id) == ("a-1", "7", "true")
    assert first.image == tmp_path / "img/1.png"
    assert (first.options, first.relation) == (("left", "right"), "left")
    assert (second.answers, second.relation, second.pair, second.set) == (("on", "on top"), "support", "p", "3")
    assert QuestionFile(path).name == "quiz"
    assert QuestionFile(path, "mine").name == "mine"
