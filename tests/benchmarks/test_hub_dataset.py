"""People's own data in the hub's layout, and a benchmark of two objects that comes in it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import replicas
from conftest import write_lines
from hydra_front import COMPOSER, make_grid

from spatial_eval.benchmarks.hub_dataset import Hub, prepared_folder
from spatial_eval.cli import main
from spatial_eval.config import schema
from spatial_eval.core.errors import ConfigError, DataError
from spatial_eval.core.plan import split_indices
from spatial_eval.core.types import Experiment, Part, Places
from spatial_eval.models.registry import MODELS
from spatial_eval.prepare.recipes import DataFolder, fetch_hub_split
from spatial_eval.prepare.sources import FetchOptions
from spatial_eval.prepare.verify import Checksums, list_data_benchmarks
from spatial_eval.store import generations

ROWS = [
    {"key": "a", "ask": "Where is the cat?", "said": "Left", "seen": 1, "kind": "x", "may": ["Left", "Right"]},
    {"key": "b", "ask": "Where is the dog?", "said": "Right", "seen": 2, "kind": "y", "may": ["Left", "Right"]},
    {"key": "c", "ask": "Where is the cow?", "said": "Left", "seen": 1, "kind": "x", "may": ["Left", "Right"]},
]
COLUMNS = {"id": "key", "question": "ask", "answer": "said", "image": "seen", "options": "may", "relation": "kind"}


def build(folder: Path, rows: list[dict[str, Any]] = ROWS, *, many: bool = False) -> Path:
    """A data set of one split as its owner uploads it: parquet with images inside."""
    shown = [{**row, "seen": {"bytes": replicas.picture(row["seen"], "PNG"), "path": None}} for row in rows]
    if many:
        shown = [{**row, "seen": [row["seen"]]} for row in shown]
    kind = datasets.List(datasets.Image()) if many else datasets.Image()
    table = datasets.Dataset.from_list(shown).cast_column("seen", kind)
    (folder / "data").mkdir(parents=True)
    table.to_parquet(str(folder / "data" / "test-00000-of-00001.parquet"))
    return folder


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "data", tmp_path / "out")


def ready(dataset: Hub, places: Places) -> Hub:
    fetch_hub_split(dataset, DataFolder(places.data, Checksums(places.data)), FetchOptions())
    return dataset


def test_own_columns(places: Places, tmp_path: Path) -> None:
    mine = ready(Hub(str(build(tmp_path / "mine")), columns=COLUMNS), places)
    first, second, third = mine.read(places)
    assert mine.name == "mine"
    assert (first.id, first.question, first.answers, first.options) == (
        "a",
        ROWS[0]["ask"],
        ("left",),
        ("left", "right"),
    )
    assert (second.relation, second.scoring) == ("y", "words")
    assert first.image is not None
    assert first.image.read_bytes() == replicas.picture(1, "PNG")
    assert first.image == third.image != second.image  # one file for one content
    assert len(list(prepared_folder(mine, places.data).glob("images/*.png"))) == 2
    # Another reading of the same rows needs no preparation.
    other = replace(mine, columns={"question": "ask", "answer": "kind", "image": ""}, where=("kind=x",), rows=2)
    assert [(s.id, s.answers, s.image, s.options) for s in other.read(places)] == [
        ("0", ("x",), None, ()),
        ("1", ("x",), None, ()),
    ]


@pytest.mark.parametrize("form", ["list", "saved", "saved dict", "json"])
def test_whatever_datasets_reads(form: str, places: Places, tmp_path: Path) -> None:
    folder = build(tmp_path / "mine", many=form == "list")
    if form.startswith("saved"):
        table = datasets.load_dataset(str(folder), split="test", cache_dir=str(tmp_path / "scratch"))
        whole = datasets.DatasetDict({"test": table}) if form == "saved dict" else table
        whole.save_to_disk(str(tmp_path / "saved"))
        folder = tmp_path / "saved"
    if form == "json":
        shutil.rmtree(folder / "data")
        lines = [json.dumps({key: value for key, value in row.items() if key != "seen"}) for row in ROWS]
        (folder / "test.jsonl").write_text("\n".join(lines))
    samples = ready(Hub(str(folder), columns=COLUMNS), places).read(places)
    assert [sample.id for sample in samples] == ["a", "b", "c"]
    assert [sample.image is not None for sample in samples] == [form != "json"] * 3


def test_where_it_lies_is_no_part_of_what_it_is(places: Places, tmp_path: Path) -> None:
    tiny = schema.build_by_kind(MODELS, {"kind": "hf", "path": "package:tiny", "device": "cpu"}, "model")

    def identity(folder: Path, **changes: Any) -> tuple[str, dict[str, str]]:
        dataset = ready(Hub(str(folder), columns=COLUMNS, **changes), places)
        samples = dataset.read(places)
        prints = tiny.fingerprint(dataset, samples, places)
        return generations.experiment_key(Experiment(dataset, tiny), places).hash, generations.sample_digests(
            samples, prints
        )

    here = identity(build(tmp_path / "one" / "mine"))
    there = identity(Path(shutil.copytree(tmp_path / "one" / "mine", tmp_path / "two" / "mine")))
    assert here == there
    changed = [{**row, "seen": 9} if row["key"] == "b" else row for row in ROWS]
    edited = identity(build(tmp_path / "three" / "mine", changed))
    assert edited[0] == here[0]
    assert {key for key in "abc" if edited[1][key] != here[1][key]} == {"b"}
    assert identity(tmp_path / "one" / "mine", name="other")[0] != here[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"columns": {**COLUMNS, "answer": "gone"}},
            "no `gone` for answer; set dataset.columns.answer to one of key, ask, said",
        ),
        ({"columns": {**COLUMNS, "image": "ask"}}, "column 'ask' holds no image"),
        ({"columns": {**COLUMNS, "options": "my"}}, "no `my` for options; set dataset.columns.options to one"),
        ({"columns": {**COLUMNS, "set": "sets"}}, "no `sets` for set; set dataset.columns.set to one of key, "),
        ({"columns": {**COLUMNS, "options": "ask"}}, "row 0: `ask` must be a list of texts, a mapping"),
        ({"columns": {**COLUMNS, "id": "kind"}}, "ids in column 'kind' must differ"),
        (
            {"where": ("kind=z",)},
            "has 0 rows where kind=z; expected at least 1: set dataset.where",
        ),
        (
            {"where": ("ask=z", "knd=a")},
            "(test): unknown column in dataset.where 'knd'; did you mean kind? (valid: key, ask, said, ",
        ),
        ({"rows": 4}, "(test) has 3 rows; expected 4: set dataset.rows or dataset.where"),
        ({"scoring": "letter", "columns": {**COLUMNS, "answer": "kind"}}, "'x' is none of the options Left, Right"),
        ({"scoring": "letter", "columns": {**COLUMNS, "options": ""}}, "dataset.columns.options), or set dataset.scor"),
        ({"split": "train"}, "dataset mine is not prepared in data_dir="),
    ],
)
def test_wrong_columns_are_one_line(changes: dict[str, Any], message: str, places: Places, tmp_path: Path) -> None:
    mine = ready(Hub(str(build(tmp_path / "mine")), columns=COLUMNS), places)
    with pytest.raises(DataError) as error:
        replace(mine, **changes).read(places)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_keys_are_refused_before_anything_is_read() -> None:
    for values, message in (
        ({"columns": {"anser": "x"}}, "unknown key 'dataset.columns.anser'; did you mean dataset.columns.answer?"),
        ({"columns": {"answer": 3}}, "dataset.columns.answer=3 is not valid; expected a column's name"),
        ({"columns": {"answer": ["a"]}}, "dataset.columns.answer=['a'] is not valid; expected a column's name"),
        ({"columns": {"options": ["a", 3]}}, "expected a column's name or a list of them"),
        ({"scoring": "letters"}, "unknown dataset.scoring 'letters'; did you mean letter?"),
        ({"where": ("task",)}, "dataset.where=task is not valid; expected COLUMN=VALUE"),
    ):
        with pytest.raises(ConfigError, match=r"^[^\n]+$") as error:
            Hub("a/b", **values)
        assert message in str(error.value)


def test_an_unprepared_one_says_how(places: Places) -> None:
    mine = Hub("me/mine", config="hard", split="val", revision="v2")
    said = "dataset=hub dataset.repo=me/mine dataset.config=hard dataset.split=val"
    assert mine.fetched_by == f"{said} dataset.revision=v2"
    with pytest.raises(DataError, match=r"run `python -m spatial_eval prepare dataset=hub dataset.repo=me/mine "):
        mine.read(places)


def test_answers_are_texts_lists_or_the_index_of_an_option(places: Places, tmp_path: Path) -> None:
    rows = [{**ROWS[0], "said": 1}, {**ROWS[1], "said": 0}]
    mine = ready(Hub(str(build(tmp_path / "mine", rows)), columns=COLUMNS), places)
    words = replace(mine, scoring="words")
    assert [sample.answers for sample in words.read(places)] == [("right",), ("left",)]
    assert [sample.question for sample in words.read(places)] == [row["ask"] for row in rows]
    for letters in (mine, replace(mine, scoring="letter")):  # the questions do not show what the indices count
        assert [(s.answers, s.options, s.scoring) for s in letters.read(places)] == [
            (("b",), ("a", "b"), "letter"),
            (("a",), ("a", "b"), "letter"),
        ]
        assert letters.read(places)[0].question == "Where is the cat?\nA. Left\nB. Right"
    asked = [{**row, "ask": "Is it left or right?"} for row in rows]
    shown = ready(Hub(str(build(tmp_path / "shown", asked)), columns=COLUMNS), places)
    assert [(s.answers, s.scoring) for s in shown.read(places)] == [(("right",), "words"), (("left",), "words")]


def test_options_of_a_prepared_set(places: Places, tmp_path: Path) -> None:
    extra = [
        {"A": "Left", "B": "Right", "C": None, "D": "nan", "both": {"A": "Left", "B": "Right"}},
        {"A": "Left", "B": "Right", "C": "Above", "D": None, "both": {"A": "Left", "B": "Right"}},
    ]
    rows = [{**row, **more, "one": "(a) Left (b) Right", "said": "B"} for row, more in zip(ROWS, extra, strict=False)]
    mine = ready(Hub(str(build(tmp_path / "mine", rows)), columns=COLUMNS, instruction="The letter."), places)
    several = replace(mine, columns={**COLUMNS, "options": ["A", "B", "C", "D"]})
    first, second = several.read(places)
    assert (first.answers, first.options, first.option_texts) == (("b",), ("a", "b"), ("Left", "Right"))
    assert first.question == "Where is the cat?\nA. Left\nB. Right\nThe letter."
    assert second.question == "Where is the dog?\nA. Left\nB. Right\nC. Above\nThe letter."
    for column in ("both", "one"):
        (same, _) = replace(mine, columns={**COLUMNS, "options": column}).read(places)
        assert (same.answers, same.options, same.question) == (first.answers, first.options, first.question)
    with pytest.raises(
        DataError, match=r"mine \(test\), row 0: columns A, E: no column 'E'; set dataset.columns.options"
    ):
        replace(mine, columns={**COLUMNS, "options": ["A", "E"]}).read(places)


def test_cv_bench_keeps_relations_and_asks_for_a_letter(places: Places, tmp_path: Path) -> None:
    replicas._cv_bench(tmp_path)
    (name, dataset), *_ = list_data_benchmarks(COMPOSER, "cv_bench_relation", {"dataset.rows": 8})
    assert isinstance(dataset, Hub)
    assert list_data_benchmarks(COMPOSER, name, {})[0][1].rows == 650  # type: ignore[attr-defined]
    mine = ready(replace(dataset, repo=str(tmp_path / "hub" / "nyu-visionx" / "CV-Bench")), places)
    first, second, *_ = mine.read(places)
    assert first.question == (
        "Where is thing 0 located with respect to the table? Select from the following choices.\n(A) above\n(B) below\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (first.id, first.answers, first.options, first.relation) == ("0", ("a",), ("a", "b"), "above")
    assert (second.id, second.answers, second.relation) == ("1", ("b",), "right")


def test_options_in_several_columns_on_the_command_line() -> None:
    given = [
        "dataset=hub",
        "dataset.repo=a/b",
        "dataset.columns.options=[A,B,C,D]",
        "dataset.scoring=null,words,letter",
    ]
    found = [cell.experiment.dataset for cell in make_grid(["model=recorded", "model.path=x.jsonl", *given]).cells]
    assert [(list(one.columns["options"]), one.scoring) for one in found] == [  # type: ignore[attr-defined]
        (["A", "B", "C", "D"], rule) for rule in (None, "words", "letter")
    ]


def test_on_the_command_line(places: Places, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    columns = [f"dataset.columns.{key}={value}" for key, value in COLUMNS.items()]
    arguments = ["prepare", "dataset=hub", f"dataset.repo={build(tmp_path / 'mine')}", *columns]
    places.data.mkdir()
    assert main.main([*arguments, "--check", "--data-dir", str(places.data)]) == 3
    assert not list(places.data.iterdir())
    assert main.main([*arguments, "--data-dir", str(places.data)]) == 0
    assert capsys.readouterr().out.endswith("hub                   3 questions     3 images  ready\n")


@pytest.mark.parametrize(
    "more",
    ['dataset.where=["id=77"]', "dataset.rows=7", "dataset.columns.answer=nothing"],
)
def test_a_preparation_that_gives_no_question_is_an_error(
    more: str, places: Places, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It said `incomplete`, as if trying again could help."""
    columns = [f"dataset.columns.{key}={value}" for key, value in COLUMNS.items()]
    given = ["prepare", "dataset=hub", f"dataset.repo={build(tmp_path / 'mine')}", *columns, more]
    given += ["--data-dir", str(places.data)]
    assert main.main(given) == 1
    out, err = capsys.readouterr()
    assert out.startswith("hub                   0 questions")
    assert err.splitlines()[-1].startswith("error: nothing was prepared: dataset=hub ")
    assert main.main([*given, "--check"]) == 3


def prepared(name: str, rows: list[dict[str, Any]], places: Places, **keys: Any) -> Hub:
    """A shipped set with these rows in data_dir, as `prepare` writes them; images are only named."""
    values = {"rows": len(rows), "golds": []} | keys
    dataset = COMPOSER.read_benchmark(name, {f"dataset.{key}": value for key, value in values.items()})
    assert isinstance(dataset, Hub)
    folder = prepared_folder(dataset, places.data)
    write_lines(folder / "rows.jsonl", rows)
    (folder / "prepared.json").write_text("{}")
    return dataset


def image(i: int) -> dict[str, str]:
    return {"image": f"{i:064x}.jpg"}


def test_embspatial_shows_its_sentences_and_takes_an_index(places: Places) -> None:
    texts = ["The mug touches the box.", "The mug is left of the box.", "The mug is above the box.", "Neither."]
    row = {"question_id": "scannet_5", "question": "How are the mug and the box arranged?", "relation": "left"}
    rows = [row | {"answer": 1, "answer_options": texts, "data_source": "scannet", "image": image(0)}]
    (one,) = prepared("embspatial", rows, places).read(places)
    lines = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", texts, strict=True))
    instruction = "\nAnswer with the option's letter from the given choices directly."
    assert one.question == f"How are the mug and the box arranged?{lines}{instruction}"
    assert (one.id, one.answers, one.relation, one.scoring) == ("scannet_5", ("b",), "left", "l_lead")


def test_mmvp_comes_in_pairs_and_its_golds_may_be_the_original_ones(places: Places) -> None:
    golds = {99: "(b)", 100: "(a)", 279: "(b)", 280: "(a)"}
    rows = [
        {
            "Index": i,
            "Question": "Is the kite red or blue?",
            "Options": "(a) Red (b) Blue",
            "Correct Answer": golds.get(i, "(a)" if i % 2 else "(b)"),
            "image": image(i),
        }
        for i in range(1, 301)
    ]
    samples = prepared("mmvp", rows, places).read(places)
    assert [sample.pair for sample in samples[:4]] == ["0", "0", "1", "1"]
    assert (len({sample.pair for sample in samples}), samples[98].answers) == (150, ("b",))
    assert samples[0].question.startswith("Is the kite red or blue?\nA. Red\nB. Blue\nAnswer with")
    sides = [{samples[i].pair for i in split_indices(samples, Part(split))} for split in ("val", "test")]
    assert ([len(side) for side in sides], sides[0] & sides[1]) == ([30, 120], set())
    original = prepared("mmvp", rows, places, corrections="mmvp_original")
    assert original.name == replace(original).name == "mmvp~mmvp_original"
    other = [a.id for a, b in zip(samples, original.read(places), strict=True) if a.answers != b.answers]
    assert other == ["99", "100", "279", "280"]
    with pytest.raises(DataError, match=r"no row has the id 100, which dataset\.corrections corrects"):
        prepared("mmvp", rows[:8], places, corrections="mmvp_original").read(places)
    with pytest.raises(ConfigError, match=r"unknown dataset.corrections 'mine' \(valid: mmvp_original, "):
        prepared("mmvp", rows, places, corrections="mine")


@pytest.mark.parametrize(("name", "config"), [("blink_spatial", "Spatial_Relation"), ("blink_depth", "Relative_Depth")])
def test_blink_asks_what_its_column_says(name: str, config: str, places: Places) -> None:
    prompt = "Is the cup beside the tray?\nSelect from the following choices.\n(A) yes\n(B) no"
    row = {"idx": "val_9", "question": "?", "choices": ["yes", "no"], "answer": "(B)", "prompt": prompt}
    dataset = prepared(name, [row | {"image_1": image(1), "image_2": None}], places)
    (one,) = dataset.read(places)
    assert (dataset.config, one.question, one.answers, one.option_texts) == (config, prompt, ("b",), ("yes", "no"))
    assert one.image is not None
    assert one.scoring == "l_vk"


def test_cv_bench_has_all_tasks(places: Places) -> None:
    row = {"type": "3D", "source": "Omni3D", "image": image(1)}
    asked = "Which is nearer? Select from the following choices.\n(A) crate\n(B) lamp"
    more = {"question": "?", "prompt": asked, "choices": ["crate", "lamp"], "answer": "(B)"}
    rows = [row | more | {"idx": i, "task": task} for i, task in enumerate(("Count", "Depth"))]
    samples = prepared("cv_bench", rows, places).read(places)
    assert [(one.relation, one.answers) for one in samples] == [("Count", ("b",)), ("Depth", ("b",))]
    assert {one.cut for one in samples} == {samples[0].cut}  # one picture, one side


def test_real_world_qa_is_counted_by_the_form_of_its_gold(places: Places) -> None:
    letters = "Where is it?\n\nA. Left\nB. Right\nC. Ahead\nAnswer with the letter."
    rows = [
        {"question": question, "answer": gold, "image": image(i)}
        for i, (question, gold) in enumerate(
            [(letters, "B"), ("Is it red?", "Yes"), ("How many cars?", "2"), ("Which sign?", "Stop"), (letters, "C")]
        )
    ]
    samples = prepared("realworldqa", rows, places).read(places)
    assert [(one.scoring, one.answers) for one in samples] == [
        ("letter", ("b",)),
        ("yes_no", ("yes",)),
        ("words", ("2",)),
        ("words", ("stop",)),
        ("letter", ("c",)),
    ]
    assert samples[0].options == ("a", "b", "c")
    assert [one.question for one in samples] == [row["question"] for row in rows]


def test_a_question_about_two_pictures_names_both(places: Places) -> None:
    prompt = "Is the camera moving left or right?\nSelect from the following choices.\n(A) left\n(B) right"
    row = {"idx": "val_1", "choices": ["left", "right"], "answer": "(B)", "prompt": prompt}
    rows = [
        row | {"image_1": image(1), "image_2": image(2)},
        row | {"idx": "val_2", "image_1": image(2), "image_2": image(3)},
    ]
    first, second = prepared("blink_multiview", rows, places).read(places)
    assert [path.stem[-1] for path in first.images] == ["1", "2"]
    assert first.cut == second.cut  # they share a picture
