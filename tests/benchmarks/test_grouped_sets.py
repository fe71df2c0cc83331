"""Benchmarks whose questions stand in several groups, or several to a row, from replicas of their files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import replicas
from doubles import Hashed
from hydra_front import COMPOSER

from spatial_eval.analysis import metrics
from spatial_eval.benchmarks.hub_dataset import Hub
from spatial_eval.config import descriptions
from spatial_eval.core.errors import ConfigError, DataError
from spatial_eval.core.plan import split_indices
from spatial_eval.core.types import BASE, Cell, Experiment, Generation, Part, Places, Sample
from spatial_eval.methods.routing import Base
from spatial_eval.prepare.recipes import DataFolder, fetch_hub_split
from spatial_eval.prepare.sources import FetchOptions
from spatial_eval.prepare.verify import Checksums
from spatial_eval.store.answers import Answers

Read = Callable[..., tuple[Hub, list[Sample]]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    replicas.build_grouped(root)
    replicas._cv_bench(root)
    return root


@pytest.fixture
def read(root: Path) -> Read:
    """`read("naturalbench", rows=8)`: the benchmark with these keys, prepared once, and its questions."""

    def run(name: str, **keys: Any) -> tuple[Hub, list[Sample]]:
        dataset = COMPOSER.read_benchmark(name, {f"dataset.{key}": value for key, value in keys.items()})
        assert isinstance(dataset, Hub)
        dataset = replace(dataset, repo=str(root / "hub" / dataset.repo))
        data = root / "data"
        data.mkdir(exist_ok=True)
        fetch_hub_split(dataset, DataFolder(data, Checksums(data)), FetchOptions())
        return dataset, dataset.read(Places(data, data))

    return run


def figures(dataset: Hub, samples: list[Sample], right: Callable[[Sample], bool]) -> dict[str, Any]:
    """The row of results.csv where the questions that `right` says are answered rightly, the others with a stop."""
    said = [Generation(s.id, BASE, s.answers[0].upper() if right(s) else ".") for s in samples]
    data = metrics.grade_columns(samples, Answers(answers=said), [BASE])
    return metrics.result_row(Cell(Experiment(dataset, Hashed()), Base(), Part("all")), data)


def test_a_row_of_naturalbench_asks_four_questions(read: Read) -> None:
    dataset, samples = read("naturalbench", rows=8, golds=["Yes=2", "No=2", "A=2", "B=2"])
    assert [(s.id, s.answers, s.scoring) for s in samples[:4]] == [
        ("0/Image_0_Question_0", ("yes",), "yn_first"),
        ("0/Image_1_Question_0", ("no",), "yn_first"),
        ("0/Image_0_Question_1", ("no",), "yn_first"),
        ("0/Image_1_Question_1", ("yes",), "yn_first"),
    ]
    assert samples[0].question == "What of thing 0 0?\nPlease answer Yes or No."
    assert samples[5].question == (
        "What of thing 1 0?\nOption: A:hat; B:helmet;\nPlease output the letter corresponding to the correct option."
    )
    assert (samples[5].answers, samples[5].options, samples[5].scoring) == (("b",), ("a", "b"), "l_first")
    assert samples[0].image == samples[2].image != samples[1].image == samples[3].image
    assert samples[1].groups == (("q", "0/Question_0"), ("i", "0/Image_1"), ("g", "0"))
    assert {sample.cut for sample in samples[:4]}.isdisjoint({sample.cut for sample in samples[4:]})
    wrong = ("0/Image_0_Question_0", "1/Image_0_Question_0", "1/Image_1_Question_0")
    found = figures(dataset, samples, lambda sample: sample.id not in wrong)
    names = ("accuracy", "q_accuracy", "i_accuracy", "g_accuracy", "chance")
    assert [found[name] for name in names] == [62.5, 50.0, 25.0, 0.0, 50.0]
    assert found["circular_accuracy"] is found["macro_accuracy"] is found["position_bias"] is None
    # the same, from its description in a job's files
    again = descriptions.build_benchmark(descriptions.describe_benchmark(dataset), "dataset")
    assert again == dataset
    assert descriptions.describe_for_sweep(dataset)["asks"][0]["Image"] == "Image_0"


def test_3dsrbench_counts_rotations_and_mirrored_pictures(read: Read) -> None:
    dataset, samples = read("threedsr_circular")
    assert [sample.option_texts for sample in samples[:3]] == [
        ("in front", "behind"),
        ("behind", "in front"),
        ("in front", "behind"),
    ]
    assert samples[0].question == (
        "Where is thing 0?\nA. in front\nB. behind\nPlease select the correct answer from the options above."
    )
    assert [dict(sample.groups) for sample in (samples[1], samples[3])] == [
        {"circular": "VIEW0000", "flip": "VIEW0000-1", "flip_circular": "VIEW0000"},
        {"circular": "VIEW0000-flip", "flip": "VIEW0000-1", "flip_circular": "VIEW0000"},
    ]
    assert Counter(sample.relation for sample in samples) == {"location_above": 8, "orientation_viewpoint": 8}
    # one rotation of a two-option question is wrong, and of the four-option one those where A is right
    qids = [row["qid"] for row in replicas.views()]
    wrong = {samples[i].id for i, qid in enumerate(qids) if qid == "VIEW0000" or (qid[7] == "2" and qid[-1] in "2p")}
    found = figures(dataset, samples, lambda sample: sample.id not in wrong)
    assert found["circular_accuracy"] == 50.0  # three of the six: with and without -flip
    assert found["flip_accuracy"] == pytest.approx(100 * 5 / 8)
    assert found["flip_circular_accuracy"] == found["set_accuracy"] == pytest.approx(100 / 3)
    assert found["position_bias"] > 0
    _, plain = read("threedsr", rows=8)
    assert {sample.groups for sample in plain} == {()}


def test_what_is_no_rotation_is_refused(read: Read, root: Path) -> None:
    with pytest.raises(
        DataError, match=r"the rotations of question VIEW0000-flip have the gold answers a; expected ea"
    ):
        read("threedsr_circular", where=["qid=VIEW0000|VIEW0000-1|VIEW0000-flip"])
    _, samples = read("threedsr_circular", where=["qid=VIEW0000-flip"], **{"columns.circular": ""})
    assert [dict(sample.groups).get("circular") for sample in samples] == [None]


def test_viewspatial_reads_the_types_with_one_picture(read: Read) -> None:
    _, samples = read("viewspatial", rows=8, golds=["A.=4", "C.=4"])
    assert samples[0].question == (
        "Where is thing 0?\nA. right\nB. front-up\nC. back\nD. front\nReply only to the corresponding option.\nAnswer:"
    )
    assert [sample.answers for sample in samples[:2]] == [("a",), ("c",)]
    assert {sample.relation for sample in samples} == {"Camera perspective - Relative Direction"}


def test_cv_bench_averages_its_sources(read: Read) -> None:
    dataset, samples = read("cv_bench", rows=24)
    assert Counter(name for sample in samples for _, name in sample.groups) == {
        "2D/COCO": 6,
        "2D/ADE20K": 6,
        "3D/Omni3D": 12,
    }
    found = figures(dataset, samples, lambda sample: ("macro", "2D/COCO") in sample.groups)
    assert (found["accuracy"], found["macro_accuracy"]) == (25.0, 25.0)
    found = figures(dataset, samples, lambda sample: ("macro", "3D/Omni3D") not in sample.groups)
    assert (found["accuracy"], found["macro_accuracy"]) == (50.0, 50.0)
    found = figures(dataset, samples[:18], lambda sample: ("macro", "3D/Omni3D") in sample.groups)
    assert (found["accuracy"], found["macro_accuracy"]) == (pytest.approx(100 / 3), 50.0)


@pytest.mark.parametrize("name", ["naturalbench", "threedsr_circular", "viewspatial"])
def test_no_picture_and_no_group_stands_on_both_sides(name: str, read: Read) -> None:
    _, samples = read(name, rows=0, golds=[])
    some = [replace(s, cut=f"{s.cut}{k}") for k in range(4) for s in samples]  # four copies with pictures of their own
    sides = [{some[i].cut for i in split_indices(some, Part(split))} for split in ("val", "test")]
    assert not sides[0] & sides[1]
    assert all(sides)
    for key in ("image", "set"):
        of: dict[str, set[str]] = {}
        for sample in samples:
            of.setdefault(str(getattr(sample, key)), set()).add(sample.cut)
        assert key == "set" or max(map(len, of.values())) == 1
        assert [name for name, cuts in of.items() if name and len(cuts) > 1] == []


def test_counts_say_what_was_found(read: Read) -> None:
    with pytest.raises(
        DataError, match=r"NaturalBench \(train\): the gold answers are A=2, B=2, No=2, Yes=2; expected A="
    ):
        read("naturalbench", rows=8)
    with pytest.raises(DataError, match=r"has 8 rows; expected 7600: set dataset.rows or"):
        read("naturalbench")
    with pytest.raises(
        DataError, match=r"the gold answers are A.=4, C. back=4; expected A.=4: it is another version; data"
    ):
        read("viewspatial", rows=8, golds=["A.=4"])
    with pytest.raises(DataError, match=r"row 0: no `Image_7`, which dataset.asks names; it has Index, Question_Type"):
        read("naturalbench", asks=[{"Image": "Image_7"}])
    with pytest.raises(ConfigError, match=r"dataset.golds=A is not valid; expected BEGINNING=NUMBER"):
        read("naturalbench", golds=["A"])
    with pytest.raises(ConfigError, match=r"unknown dataset.instruction key 'letter'; did you mean letters"):
        read("naturalbench", **{"instruction.letter": "x"})
    with pytest.raises(DataError, match=r"no `Group`; set dataset.columns.q to some of Index, "):
        read("naturalbench", rows=0, golds=[], **{"columns.q": ["Index", "Group"]})
