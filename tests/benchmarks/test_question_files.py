"""People's files of questions, judged before anything is computed: each fault one line, with the way out."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import subprocess
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import questions, write_lines
from hydra_front import COMPOSER
from hypothesis import given
from hypothesis import strategies as st

import spatial_eval
from spatial_eval.benchmarks.question_files import PublicFile, QuestionFile
from spatial_eval.benchmarks.rows import group_rows
from spatial_eval.benchmarks.scoring import grade_answer
from spatial_eval.core.columns import KINDS, VERSIONS
from spatial_eval.core.errors import ConfigError, DataError, MissingData
from spatial_eval.core.jsonl import read_json_lines
from spatial_eval.core.plan import split_indices
from spatial_eval.core.types import Part, Places, Sample

ROW = {"id": 0, "question": "Where is it?", "answer": "left", "options": ["left", "right"]}


def read(path: Path, **keys: Any) -> list[Sample]:
    return QuestionFile(path, **keys).read(Places(path.parent, path.parent))


def complaint(path: Path, **keys: Any) -> str:
    """The one line that a file is refused with; it names the file."""
    with pytest.raises(DataError) as error:
        read(path, **keys)
    said = str(error.value)
    assert "\n" not in said
    assert str(path) in said
    return said.removeprefix(str(path))


HALF = "holds half a character (the lone surrogate \\ud83d); expected whole characters"
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"id": "\ud83d"}, f", row 1: `id` {HALF}"),
    ({"question": "Where \ud83d?"}, f", row 1: `question` {HALF}"),
    ({"options": ["left", "\ud83d"]}, f", row 1: `options` {HALF}"),
    ({"relation": "r" * 10_001}, ", row 1: `relation` has 10,001 characters; expected at most 10,000"),
    ({"id": "i" * 10_001}, ", row 1: `id` has 10,001 characters; expected at most 10,000"),
    ({"pair": "a\0"}, ", row 1: `pair` holds a NUL at character 1; expected text"),
    ({"image_path": ""}, ', row 1: `image_path` is ""; expected the path of a picture, as a text'),
    ({"image_path": 3}, ", row 1: `image_path` is 3; expected the path of a picture, as a text"),
    ({"image_path": "a\0b"}, ", row 1: `image_path` holds a NUL"),
    ({"image_path": "."}, ', row 1: `image_path` is ".", a folder; expected a picture\'s file'),
    ({"image_path": "pipe"}, ', row 1: `image_path` is "pipe", a pipe or a device; expected a picture\'s file'),
    ({"image_path": "/dev/zero"}, ', row 1: `image_path` is "/dev/zero", a pipe or a device'),
    ({"image_path": "n" * 300}, ', row 1: `image_path` is "nnn'),
    ({"options": 5}, ", row 1: `options` must be a list of texts, a mapping as"),
    ({"options": "left"}, ", row 1: `options` must be a list of texts, a mapping as"),
    ({"answer": 10**399}, ", row 1: `answer` is a number of 400 digits; expected one below 2^63, or a text"),
    ({"id": -(10**399)}, ", row 1: `id` is a number of 400 digits; expected one below 2^63, or a text"),
    ({"set": float("inf")}, ", row 1: `set` is inf; expected a finite number, or a text"),
    (
        {"id": 0},
        ", row 1: id \"0\" stands in rows 0 and 1; ids in column 'id' must differ; dataset.columns.id='' numbers",
    ),
    ({"id": "0"}, ', row 1: id "0" stands in rows 0 and 1'),
    ({"question": None}, ", row 1: `question` is absent; a row needs a text `question` and an `answer`"),
    ({"question": " "}, ', row 1: `question` is " "; a row needs a text'),
    ({"answer": None}, ", row 1: `answer` is absent; a row needs"),
    ({"answer": []}, ", row 1: needs a text `question` and an `answer`"),
]


@pytest.mark.parametrize(("change", "said"), FAULTS, ids=[f"{next(iter(c))}-{i}" for i, (c, _) in enumerate(FAULTS)])
def test_a_fault_is_one_line_with_row_and_key(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = write_lines(tmp_path / "quiz.jsonl", [ROW, ROW | {"id": 1} | change])
    assert complaint(path).startswith(said)


def test_a_number_beyond_what_python_reads_is_named(tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    path.write_text(json.dumps(ROW) + '\n{"id": ' + "9" * 5000 + "}\n")
    assert complaint(path).startswith(", line 2 holds a number of thousands of digits; expected numbers below 2^63")


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "quiz.jsonl")  # opening it would wait for ever
    assert complaint(tmp_path / "quiz.jsonl") == " is a pipe or a device; expected a file"
    assert complaint(Path("/dev/zero")) == " is a pipe or a device; expected a file"
    assert complaint(tmp_path) == " is a folder; expected a file"
    assert complaint(tmp_path / "absent.jsonl") == " cannot be read: No such file or directory; check the path"


def in_forms(folder: Path) -> dict[str, tuple[Path, bytes, str]]:
    """Another form of two rows: file, content, what it is named."""
    rows = [ROW, ROW | {"id": 1, "answer": "right"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    pretty = "".join(json.dumps(row, indent=2) + "\n" for row in rows)
    return {
        "array": (folder / "my array.json", json.dumps(rows).encode(), "is a JSON array, not JSON lines"),
        "indented": (folder / "a.json", json.dumps(rows, indent=1).encode(), "is a JSON array, not JSON lines"),
        "pretty": (folder / "a.jsonl", pretty.encode(), "is JSON over several lines (pretty-printed)"),
        "gzip": (folder / "a.jsonl.gz", gzip.compress(lines.encode()), "is compressed (gzip)"),
        "UTF-16": (folder / "a.jsonl", lines.encode("utf-16"), "is UTF-16 text"),
        "Latin-1": (folder / "a.jsonl", lines.replace("it?", "l\xe0?").encode("latin1"), "is not UTF-8 (byte 0xe0)"),
    }


@pytest.mark.parametrize("form", ["array", "indented", "pretty", "gzip", "UTF-16", "Latin-1"])
def test_another_form_is_named_with_a_command_that_works(form: str, tmp_path: Path) -> None:
    path, content, what = in_forms(tmp_path)[form]
    path.write_bytes(content)
    said = complaint(path)
    assert what in said
    command = said.split("`")[1]
    wanted = {"python": "python3", "gunzip": "gunzip", "iconv": "iconv"}[command.split()[0]]
    assert shutil.which(wanted), wanted
    before = set(tmp_path.iterdir())
    subprocess.run(command.replace("python -c", "python3 -c", 1), shell=True, check=True)
    (made,) = set(tmp_path.iterdir()) - before
    assert [(s.id, s.answers) for s in read(made)] == [("0", ("left",)), ("1", ("right",))]


def test_a_spreadsheet_is_named(tmp_path: Path) -> None:
    (tmp_path / "quiz.xlsx").write_bytes(b"PK\x03\x04rest")
    assert complaint(tmp_path / "quiz.xlsx").startswith(" is a spreadsheet (xlsx) or a zip archive: `libreoffice ")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"question": "?", "answer": "x", "image": "a.jpg"},
            "`image_path`; the file has `image`: dataset.columns.image",
        ),
        (
            {"question": "?", "answer": "x", "images": ["a"]},
            "`image_path`; the file has `images`: dataset.columns.image",
        ),
        ({"text": "?", "answer": "x"}, "`question`; the file has `text`: dataset.columns.question=text"),
        ({"Question": "?", "Answer": "x"}, "`question`; the file has `Question`: dataset.columns.question=Question"),
        ({"question": "?", "label": "x"}, "`answer`; the file has `label`: dataset.columns.answer=label"),
        ({"question": "?", "Correct Answer": "x"}, "the file has `Correct Answer`: dataset.columns.answer='\"Correct"),
        ({"ask": "?", "answer": "x"}, "`question` for question; set dataset.columns.question to one of ask, answer"),
    ],
)
def test_the_keys_that_a_file_has_are_offered(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "quiz.jsonl", [row])
    found = complaint(path)
    assert f": no {said}" in found or said in found
    if "to one of" not in found:  # what is offered works
        key, _, column = found.rpartition("dataset.columns.")[2].partition("=")
        with contextlib.suppress(DataError):
            read(path, columns={key: column.strip("'\"")})
            return
        assert said not in complaint(path, columns={key: column.strip("'\"")})


def test_options_under_another_name_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(write_lines(tmp_path / "quiz.jsonl", [{"question": "?", "answer": "x", "choices": ["x", "y"]}]))
    assert "no `options`; the file has `choices`: dataset.columns.options=choices" in caplog.text


def test_own_columns_and_conditions(tmp_path: Path) -> None:
    rows = [
        {"key": i, "ask": "Where?", "gold": "B", "A": "left", "B": "right", "C": None, "img": f"{i}.png", "task": task}
        for i, task in enumerate(("x", "y", "z"))
    ]
    columns = {"id": "key", "question": "ask", "answer": "gold", "image": "img", "options": ["A", "B", "C"]}
    path = write_lines(tmp_path / "quiz.jsonl", rows)
    one, two = read(path, columns=columns | {"relation": "task"}, where=("task=x|z",), instruction="The letter.")
    assert (one.id, two.id, two.relation, two.image) == ("0", "2", "z", tmp_path / "2.png")
    assert (one.answers, one.options, one.option_texts) == (("b",), ("a", "b"), ("left", "right"))
    assert one.question == "Where?\nA. left\nB. right\nThe letter."


@pytest.mark.parametrize(
    ("style", "shown"),
    [
        (None, "\nA. left\nB. {right}"),
        ("brackets", "\n(A) left\n(B) {right}"),
        ("half_brackets", "\nA) left\nB) {right}"),
        ("colons", "\nA: left\nB: {right}"),
        ("inline", "\nA. left B. {right}"),
        ("none", ""),
    ],
)
def test_options_in_every_style(style: str | None, shown: str, tmp_path: Path) -> None:
    row = {"question": "<image>\nUSER: Where?\nASSISTANT:", "answer": 1, "options": ["left", "{right}"]}
    (sample,) = read(write_lines(tmp_path / "quiz.jsonl", [row]), options_style=style)
    assert sample.question == f"<image>\nUSER: Where?{shown}\nASSISTANT:"
    assert (sample.answers, sample.option_texts) == (("b",), ("left", "{right}"))
    for key, value in (("options_style", "dots"), ("cut", "images")):
        with pytest.raises(ConfigError, match=rf"unknown dataset\.{key} '{value}'"):
            QuestionFile(tmp_path / "quiz.jsonl", **{key: value})


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t"), ("CSV", ",")])
def test_a_table_reads_as_lines_do(suffix: str, mark: str, tmp_path: Path) -> None:
    cells = [
        ["question", "answer", "options", "image_path", "relation", "id"],
        ['"Where, ""there""?"', "left", '"[""left"", ""right""]"', "a.jpg", "", "x"],
        ["Which?", "1", "(a) left (b) right", "", "r", "007"],
    ]
    path = tmp_path / f"quiz.{suffix}"
    path.write_text("\ufeff" + "\r\n".join(mark.join(row) for row in cells) + "\r\n", "utf8")
    one, two = read(path, scoring="words")
    assert (one.question, one.answers, one.options) == ('Where, "there"?', ("left",), ("left", "right"))
    assert (one.image, one.relation, one.id) == (tmp_path / "a.jpg", "left", "x")
    assert (two.id, two.answers, two.image, two.relation) == ("007", ("right",), None, "r")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": the header is ''; expected different names of columns between commas"),
        ("question\nWhere?\n", ": the header is 'question'; expected different names"),
        ("a,a\n1,2\n", ": the header is 'a,a'; expected different names"),
        ("question,answer\nWhere?,left,right\n", ", row 0: has 3 cells; expected 2, as the header"),
        ("question,answer\n", " is empty: it has no row; expected one per question"),
        ('question,answer\n"Where?,left\n', ", line 2: unexpected end of data; expected a table of cells"),
        ("question,answer\nWh\xe0?,left\n", " is not UTF-8 (byte 0xe0): save it as UTF-8"),
    ],
)
def test_a_table_that_is_none_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "quiz.csv").write_bytes(text.encode("latin1"))
    assert complaint(tmp_path / "quiz.csv").startswith(said)


def test_jsonl_is_the_earlier_name_of_file(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "quiz.jsonl", questions(4))
    read_by = [COMPOSER.read_benchmark(name, {"dataset.path": str(path)}) for name in ("jsonl", "file")]
    assert read_by[0] == read_by[1] == QuestionFile(path)


def test_val_and_test_share_no_image_pair_or_set(tmp_path: Path) -> None:
    rows = [
        {"id": i, "question": "?", "answer": "x", "image_path": f"{i // 3}.jpg", "pair": f"p{i // 6}" if i < 60 else ""}
        for i in range(120)
    ]
    path = write_lines(tmp_path / "quiz.jsonl", rows)
    samples = read(path, cut="groups")
    sides = [set(split_indices(samples, Part(split))) for split in ("val", "test")]
    assert (len(sides[0] | sides[1]), sides[0] & sides[1]) == (120, set())
    for key in ("image", "pair"):
        seen = [{getattr(samples[i], key) for i in side} - {""} for side in sides]
        assert not seen[0] & seen[1]
    assert len({samples[i].cut for i in sides[0]}) == 6  # of 10 pairs and 20 images of their own
    alone = [row | {"image_path": f"{row['id']}.jpg", "pair": ""} for row in rows]
    for name, some, cut in (("own.jsonl", alone, "groups"), ("quiz.jsonl", rows, "rows")):
        single = read(write_lines(tmp_path / name, some), cut=cut)
        assert list(split_indices(single, Part("val"))) == list(split_indices(120, Part("val")))


NAMES = st.sampled_from(("", "0", "1", "2", "3"))
GROUPED = st.builds(
    dict, image=NAMES, pair=NAMES, set=NAMES, groups=st.lists(st.tuples(st.sampled_from(KINDS), NAMES), max_size=2)
)


@given(st.lists(GROUPED, min_size=1, max_size=12))
def test_no_picture_and_no_group_of_own_files_stands_on_both_sides(rows: list[dict[str, Any]]) -> None:
    samples = [
        Sample(
            *(str(i), i, "?", ("x",)),
            image=Path(row["image"]) if row["image"] else None,
            groups=tuple((kind, name) for kind, name in row["groups"] if name),
            **{key: row[key] for key in ("pair", "set")},
        )
        for i, row in enumerate(rows)
    ]
    grouped = group_rows(samples)
    held: dict[tuple[str, str], set[str]] = {}
    for one in grouped:
        labels = [("image", str(one.image or "")), ("pair", one.pair), ("set", one.set), *one.groups]
        for kind, name in labels:
            if name and kind != "macro":
                held.setdefault((kind, name), set()).add(one.cut or one.id)
    assert [label for label, cuts in held.items() if len(cuts) > 1] == []
    before = group_rows([replace(one, groups=()) for one in samples])
    named = {(a.cut or a.id, b.cut or b.id) for a, b in zip(before, grouped, strict=True)}
    if len(named) == len({b for _, b in named}):  # nothing was joined: the same names, so the same part of each
        assert [one.cut for one in grouped] == [one.cut for one in before]


def test_what_is_asked_is_known_without_files() -> None:
    for keys, asked in (
        ({"split_name": "all"}, 5127),
        ({}, 3000),
        ({"split_name": "popular", "corrections": "repope"}, 2727),
        ({"split_name": "all", "corrections": "repope"}, 4779),
        ({"split_name": "all", "where": ["label=yes"]}, 0),
        ({"split_name": "all", "framing": "letters"}, 5127),
        ({"split_name": "all", "framing": "circular"}, 0),
    ):
        found = COMPOSER.read_benchmark("pope_coco", {f"dataset.{key}": value for key, value in keys.items()})
        assert found.questions == asked, keys
    naturalbench = COMPOSER.read_benchmark("naturalbench", {})
    assert naturalbench.questions == 7600
    with pytest.raises(MissingData, match="dataset naturalbench is not prepared"):  # so that a plan counts without it
        naturalbench.read(Places(Path("/nowhere"), Path("/nowhere")))


def pope(folder: Path, split: str = "random", rows: int = 24, **keys: Any) -> PublicFile:
    """A replica of POPE: four pictures, six questions each; yes and no alternate."""
    for name in ("random", "popular"):
        lines = [
            {
                "question_id": i + 1,
                "image": f"COCO_val2014_{i // 6:012d}.jpg",
                "text": f"Is there a {name if i % 2 else 'thing'} {i} in the image?",
                "label": "no" if i % 2 else "yes",
            }
            for i in range(rows)
        ]
        write_lines(folder / "pope" / f"coco_pope_{name}.json", lines)
    values = {
        "dataset.split_name": split,
        "dataset.rows": rows,
        "dataset.golds": [f"yes={rows // 2}", f"no={rows // 2}"],
    }
    values |= {f"dataset.{key}": value for key, value in keys.items()}
    dataset = COMPOSER.read_benchmark("pope_coco", values)
    assert isinstance(dataset, PublicFile)
    return dataset


def test_pope_asks_as_llava_does(tmp_path: Path) -> None:
    dataset = pope(tmp_path)
    first, second, *_ = dataset.read(Places(tmp_path, tmp_path))
    assert dataset.name == "pope_coco_random"
    assert first.question == "Is there a thing 0 in the image?\nAnswer the question using a single word or phrase."
    assert (first.id, first.answers, second.answers, first.scoring) == ("1", ("yes",), ("no",), "yn_pope")
    assert first.image == tmp_path / "val2014" / "COCO_val2014_000000000000.jpg"


def test_pope_is_cut_by_its_pictures_alike_in_every_split(tmp_path: Path) -> None:
    val = []
    for split in ("random", "popular"):
        samples = pope(tmp_path, split, rows=120).read(Places(tmp_path, tmp_path))
        val.append({samples[i].image for i in split_indices(samples, Part("val"))})
        assert not val[-1] & {samples[i].image for i in split_indices(samples, Part("test"))}
    assert val[0] == val[1]
    assert len(val[0]) == 4  # a fifth of 20


TWO = ("random", "popular")


def test_a_question_of_several_splits_is_asked_once(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path)
    dataset = pope(tmp_path, "all", splits=list(TWO))
    samples = dataset.read(places)
    assert (dataset.name, len(samples)) == ("pope_coco_all", 36)  # the splits share the half whose answer is yes
    assert [sample.row for sample in samples] == list(range(36))
    assert Counter(sample.groups for sample in samples) == {
        (("macro", "random"), ("macro", "popular")): 12,
        (("macro", "random"),): 12,
        (("macro", "popular"),): 12,
    }
    assert {samples[1].id, samples[-1].id} == {"random/2", "popular/24"}
    val = {samples[i].image for i in split_indices(samples, Part("val"))}
    alone = pope(tmp_path).read(places)
    assert val == {alone[i].image for i in split_indices(alone, Part("val"))}
    with pytest.raises(
        DataError, match=r"coco_pope_\{random,popular\}.json has 48 rows; expected 46: set dataset.rows"
    ):
        replace(dataset, rows=23).read(places)
    path = tmp_path / "pope" / "coco_pope_popular.json"
    rows = [{**row, "label": "no"} if row["question_id"] == 3 else row for row in read_json_lines(path)]
    write_lines(path, rows)
    with pytest.raises(DataError, match="questions random/3 and popular/3 are one, and their gold answers differ"):
        replace(dataset, golds=()).read(places)


def test_repope_changes_answers_and_leaves_questions_out(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path)
    rows = list(read_json_lines(pope(tmp_path).image_folder(tmp_path).parent / "pope" / "coco_pope_random.json"))
    table = write_lines(tmp_path / "pope" / "coco_repope_random.json", [{**rows[0], "label": "no"}, *rows[2:]])
    dataset = pope(tmp_path, corrections="repope")
    samples = dataset.read(places)
    assert dataset.name == "pope_coco_random~repope"
    corrected = replace(dataset, where=("label=no",), rows=0, golds=()).read(Places(tmp_path, tmp_path))
    assert {sample.answers for sample in corrected} == {("no",)}
    assert corrected[0].id == "1"  # yes in the source
    assert [(sample.id, sample.answers) for sample in samples[:2]] == [("1", ("no",)), ("3", ("yes",))]
    assert len(samples) == 23
    for changed, message in (
        ([{**rows[0], "text": "?"}], r"row 0: `text` is not that of the row with this id in .*coco_repope_random.json"),
        (
            [{**rows[0], "question_id": 99}],
            r"no row has the id 99 of .*repope_random.json, which dataset.corrections co",
        ),
    ):
        write_lines(table, changed)
        with pytest.raises(DataError, match=message):
            dataset.read(places)
    table.unlink()
    with pytest.raises(
        DataError, match=r"no pope/coco_repope_random.json under data_dir=.* dataset.corrections=repope`"
    ):
        dataset.read(places)
    with pytest.raises(ConfigError, match=r"unknown dataset\.corrections 'repope'"):
        COMPOSER.read_benchmark("pope_gqa", {"dataset.corrections": "repope"})


def test_a_number_is_a_gold_answer(tmp_path: Path) -> None:
    asked = [{"question": "How far?", "answer": 2.5}, {"question": "How many?", "answer": 3}]
    samples = read(write_lines(tmp_path / "quiz.jsonl", asked))
    assert [(sample.answers, sample.scoring) for sample in samples] == [(("2.5",), "number"), (("3",), "number")]
    graded = [grade_answer(samples[1], text)[:2] for text in ("3.", "It is 3.0 m", "3 or 4", "three", "1,003")]
    assert graded == [("3", True), ("3", True), ("", False), ("", False), ("1003", False)]
    with pytest.raises(DataError, match=r"is an index, and no options are known.* dataset.scoring=number where it is"):
        read(write_lines(tmp_path / "quiz.jsonl", asked[1:]))
    (third,) = read(tmp_path / "quiz.jsonl", scoring="number")
    assert third.answers == ("3",)
    with pytest.raises(DataError, match=r"the gold answer is 'left', and dataset.scoring=number reads numbers"):
        read(write_lines(tmp_path / "quiz.jsonl", [{"question": "?", "answer": "left"}]), scoring="number")


def test_what_pope_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown dataset.split_name 'adversary'; did you mean adversarial\?"):
        pope(tmp_path, "adversary")
    places = Places(tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"coco_pope_random.json has 24 rows; expected 23"):
        COMPOSER.read_benchmark("pope_coco", {"dataset.rows": 23}).read(places)
    with pytest.raises(DataError, match=r"prepare dataset=pope_coco dataset.split_name=adversarial`"):
        COMPOSER.read_benchmark("pope_coco", {"dataset.split_name": "adversarial"}).read(places)
    write_lines(
        tmp_path / "pope" / "coco_pope_random.json", [{"question_id": 1, "image": "../a", "text": "?", "label": "yes"}]
    )
    with pytest.raises(DataError, match=r"row 0: `image` is '../a'; expected a picture's file name"):
        COMPOSER.read_benchmark("pope_coco", {"dataset.rows": 1, "dataset.golds": []}).read(places)


def test_reading_holds_no_row_as_its_file_gives_it(tmp_path: Path) -> None:
    row = {"answer": "left", "options": ["left", "right", "above", "below"], "note": "unread " * 100}
    path = write_lines(tmp_path / "large.jsonl", [{**row, "question": f"Where is cup {i}?"} for i in range(1000)])
    tracemalloc.start()
    try:
        samples = read(path)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len({id(sample.options) for sample in samples}) == len({id(sample.answers) for sample in samples}) == 1
    assert held < 600 * len(samples)
    assert peak < 1200 * len(samples)


def test_several_images_per_question(tmp_path: Path) -> None:
    """In a list, or in a column each; they keep their places, and share a side of val and test with whoever has one."""
    rows = [
        {"question": "In <image> and in <image>, where?", "answer": "left", "image_path": ["a.png", "b.png"]},
        {"question": "Where?", "answer": "left", "image_path": ["b.png"]},
        {"question": "Where?", "answer": "left", "image_path": "c.png"},
        {"question": "Where?", "answer": "left"},
    ]
    path = write_lines(tmp_path / "own.jsonl", rows)
    samples = read(path, cut="groups", options_style="none")
    assert [[image.name for image in one.images] for one in samples] == [["a.png", "b.png"], ["b.png"], ["c.png"], []]
    assert samples[0].question == rows[0]["question"]
    assert samples[0].cut == samples[1].cut != samples[2].cut
    columns = write_lines(
        tmp_path / "columns.jsonl",
        [{"question": "Where?", "answer": "left", "one": "a.png", "two": "b.png", "three": None}],
    )
    (sample,) = read(columns, columns={"image": ["one", "two", "three"]})
    assert [image.name for image in sample.images] == ["a.png", "b.png"]
    assert complaint(columns, columns={"image": ["one", "four"]}).startswith(
        ": no `four`; set dataset.columns.image to"
    )
    for images in (["a.png"], ["a.png", "b.png", "c.png"]):
        wrong = write_lines(tmp_path / "wrong.jsonl", [{**rows[0], "image_path": images}])
        expected = f", row 0: the question holds 2 <image> for {len(images)} images; expected {len(images)}, or none"
        assert complaint(wrong) == expected


def test_options_go_behind_a_question_with_places_for_images(tmp_path: Path) -> None:
    row = {**ROW, "question": "<image> or <image>: left?", "answer": "A", "image_path": ["a.png", "b.png"]}
    (sample,) = read(write_lines(tmp_path / "own.jsonl", [row]), scoring="letter")
    assert sample.question == "<image> or <image>: left?\nA. left\nB. right"


# --- samples of lmms-eval


def lmms_sample(number: int, **change: Any) -> dict[str, Any]:
    """As older versions wrote it: with the document but for its pictures, and all arguments."""
    asked = f"Is there a kite {number}?\nAnswer the question using a single word or phrase."
    return {
        "doc_id": number,
        "doc": {"question": f"Is there a kite {number}?", "category": "random"},
        "target": "Yes" if number % 2 else "no",
        "arguments": [asked, {"max_new_tokens": 16}, number, "pope", "test"],
        "resps": [["yes"]],
        "filtered_resps": ["yes"],
        **change,
    }


def test_samples_of_lmms_eval_are_asked_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in (0, 1, 2):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"")
    older = [lmms_sample(number) for number in (2, 0)]
    newest = lmms_sample(1, input="Is there a kite 1?\nAnswer the question using a single word or phrase.")
    newest = {key: value for key, value in newest.items() if key not in ("doc", "arguments", "resps")}
    path = write_lines(tmp_path / "samples_pope.jsonl", [*older, newest])
    found = QuestionFile(path, form="lmms", columns={"relation": "category"}).read(Places(tmp_path, tmp_path))
    assert [(one.id, one.answers, one.scoring, one.relation) for one in found] == [
        ("2", ("no",), "yes_no", "random"),
        ("0", ("no",), "yes_no", "random"),
        ("1", ("yes",), "yes_no", ""),
    ]
    assert found[0].question == "Is there a kite 2?\nAnswer the question using a single word or phrase."
    assert [one.image for one in found] == [tmp_path / "images" / f"{number}.png" for number in (2, 0, 1)]
    named = lmms_sample(1, doc={"picture_file": "far/away.png"})
    path = write_lines(tmp_path / "named.jsonl", [named])
    (one,) = QuestionFile(path, form="lmms", columns={"image": "picture_file"}).read(Places(tmp_path, tmp_path))
    assert one.image == tmp_path / "far" / "away.png"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"doc_id": "2"},
            "row 0: needs doc_id, a whole number, and input or arguments: it is no sample of lmms-eval's",
        ),
        ({"arguments": []}, "row 0: needs doc_id, a whole number, and input or arguments"),
        ({"target": None}, "row 0: `answer` is absent"),
        ({"doc_id": 7}, r"row 0: lmms-eval writes no picture, and there is no .*images/7\.\*: put them there, or name"),
    ],
)
def test_a_sample_that_cannot_be_asked_is_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"")
    path = write_lines(tmp_path / "samples.jsonl", [lmms_sample(1, **change)])
    with pytest.raises(DataError, match=says):
        QuestionFile(path, form="lmms").read(Places(tmp_path, tmp_path))


def test_there_is_no_other_form_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown dataset\.form 'lmm'; did you mean lmms"):
        QuestionFile(tmp_path / "a.jsonl", form="lmm")


def test_pictures_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    rows = [ROW | {"id": i, "image_path": [f"scene_{i}/view_{k}.png" for k in (0, 1)]} for i in range(5)]
    rows.append(ROW | {"id": 5, "image_path": "./scene_0/../scene_1/view_0.png"})
    cuts = [sample.cut for sample in read(write_lines(tmp_path / "quiz.jsonl", rows), cut="groups")]
    assert cuts == [f"scene_{i}/view_0.png" for i in (0, 1, 2, 3, 4, 1)]


def test_an_instruction_stands_before_the_wrapper_ends(tmp_path: Path) -> None:
    wrapped = ROW | {"question": "<image>\nUSER: Where is it?\nASSISTANT:"}
    path = write_lines(tmp_path / "quiz.jsonl", [wrapped, ROW | {"id": 1}])
    first, second = read(path, instruction="Be brief.", preface="Look.")
    assert first.question == "<image>\nUSER: Look.\nWhere is it?\nBe brief.\nASSISTANT:"
    assert second.question == "Look.\nWhere is it?\nBe brief."
    inside = write_lines(tmp_path / "quiz.jsonl", [ROW, ROW | {"id": 1, "question": "Where in <image> is it?"}])
    assert complaint(inside, preface="Look.") == (
        ", row 1: dataset.preface cannot be put before the question: <image> stands in the midst of the question"
    )


@pytest.mark.parametrize(
    "spelled", ["img/3.png", "./img/3.png", "img/../img/3.png", "img//3.png", "../HERE/img/3.png", "/"]
)
def test_one_picture_has_one_path_however_it_is_spelled(spelled: str, tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "3.png").touch()
    value = str(tmp_path / "img" / "3.png") if spelled == "/" else spelled.replace("HERE", tmp_path.name)
    path = write_lines(tmp_path / "mine.jsonl", [ROW | {"image_path": value}])
    for file in (path, tmp_path / "img" / ".." / "mine.jsonl"):
        (sample,) = read(file)
        assert str(sample.image) == str(tmp_path / "img" / "3.png")


def test_a_path_through_a_symlink_names_the_file_that_the_system_opens(tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
    for folder in (tmp_path, tmp_path / "far"):
        (folder / "3.png").write_text(folder.name)
    rows = [ROW | {"id": i, "image_path": value} for i, value in enumerate(["link/../3.png", "3.png", "none/../3.png"])]
    through, plain, absent = (sample.image for sample in read(write_lines(tmp_path / "mine.jsonl", rows)))
    assert (through.read_text(), plain.read_text()) == ("far", tmp_path.name)
    assert str(absent) == str(plain)


def test_two_spellings_of_a_picture_are_one_cluster(tmp_path: Path, launch: Any) -> None:
    texts = [{"0.5": "left", "1.0": ["left", "right"][i // 2 % 2]} for i in range(40)]
    recorded = [{"dataset": "d", "row": i, "generation": text, "confidence": 0.5} for i, text in enumerate(texts)]
    model = write_lines(tmp_path / "recorded.jsonl", recorded)
    found = []
    for spelled in ("img/", "img/../img/"):
        rows = [ROW | {"id": i, "image_path": f"{'img/' if i % 2 else spelled}{i // 2}.png"} for i in range(40)]
        given = [f"dataset.path={write_lines(tmp_path / 'd.jsonl', rows)}", f"model.path={model}", "split=all"]
        done = launch("-m", "dataset=file", *given, "model=recorded", "method=base,scaling_vis", "weight=0.5")
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.splitlines()[-1]).parent
        loaded = spatial_eval.load(folder)
        assert loaded.part(0).clusters == 20
        found.append(loaded.cells.drop(columns=[*VERSIONS], errors="ignore").to_csv())
    assert found[0] == found[1]
