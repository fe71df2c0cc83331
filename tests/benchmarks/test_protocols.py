"""Protocols: what a word sets, beside what the user sets, and what its label says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import write_lines
from hydra_front import COMPOSER

from spatial_eval.benchmarks import protocols
from spatial_eval.benchmarks.prompts import SYSTEMS, apply_system
from spatial_eval.benchmarks.protocols import NAMES, PROTOCOLS, Protocolled
from spatial_eval.benchmarks.question_files import QuestionFile
from spatial_eval.benchmarks.rows import RowBenchmark
from spatial_eval.config.descriptions import build_benchmark, describe_benchmark
from spatial_eval.config.grid import build_grid
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.types import Benchmark, Experiment, Places
from spatial_eval.methods.published import published_accuracy
from spatial_eval.methods.routing import Base
from spatial_eval.store.generations import experiment_key


def experiments(*arguments: str) -> list[Experiment]:
    grid = build_grid(COMPOSER, ["method=base", *arguments], {})
    return list(dict.fromkeys(cell.experiment for cell in grid.cells))


def rows(dataset: Any) -> RowBenchmark:
    while not isinstance(dataset, RowBenchmark):
        dataset = dataset.benchmark
    return dataset


def test_a_protocol_sets_message_wording_padding_and_rule() -> None:
    llava, lmms, kit = experiments("dataset=pope_coco", "model=llava15_7b", "dataset.protocol=llava,lmms,vlmevalkit")
    assert [one.dataset.name for one in (llava, lmms, kit)] == [
        f"pope_coco_random:{name}" for name in ("llava", "lmms", "vlmevalkit")
    ]
    assert [one.dataset.system for one in (llava, lmms, kit)] == [
        SYSTEMS[n] for n in ("vicuna_v1", "vicuna_v1", "llava_v1")
    ]
    assert [one.model.image_mode for one in (llava, lmms, kit)] == ["pad"] * 3  # type: ignore[attr-defined]
    assert [rows(one.dataset).scoring for one in (llava, lmms, kit)] == ["yn_pope", "yn_exact", "yn_xor"]
    assert [rows(one.dataset).instruction for one in (llava, lmms, kit)] == [protocols.SHORT] * 2 + [""]
    (other,) = experiments("dataset=pope_coco", "model=qwen2_vl_7b", "dataset.protocol=lmms")
    assert (other.dataset.system, other.model.image_mode) == ("", "processor")  # type: ignore[attr-defined]


def test_what_the_user_sets_wins_and_the_label_says_so() -> None:
    (same,) = experiments("dataset=pope_coco", "dataset.protocol=llava", "dataset.system=vicuna_v1")
    assert same.dataset.name == "pope_coco_random:llava"
    for key, name in (
        ("dataset.system=none", "system"),
        ("model.image_mode=processor", "image_mode"),
        ("dataset.scoring=yes_no", "scoring"),
    ):
        (changed,) = experiments("dataset=pope_coco", "model=llava15_7b", "dataset.protocol=llava", key)
        assert changed.dataset.name == "pope_coco_random:llava-changed", name
    assert (rows(changed.dataset).scoring, changed.dataset.system) == ("yes_no", SYSTEMS["vicuna_v1"])
    with pytest.raises(ConfigError, match=r"dataset.protocol and dataset.framing both say how to ask"):
        experiments("dataset=pope_coco", "dataset.protocol=llava", "dataset.framing=open")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("dataset=pope_coco", "dataset.protocol=authors"),
            "=authors is not known for pope_coco; known for it: llava, lm",
        ),
        (("dataset=vsr", "dataset.protocol=lmms"), "=lmms is not known for vsr; known for it: none"),
        (("dataset=mmvp", "dataset.protocol=llava-changed"), "is not known for mmvp; known for it: llava, vlmevalkit"),
    ],
)
def test_what_is_not_known_is_refused(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        experiments(*arguments)
    assert said in str(caught.value)


def test_every_protocol_builds(tmp_path: Path) -> None:
    for benchmark, known in PROTOCOLS.items():
        assert set(known) <= set(NAMES)
        made = experiments(f"dataset={benchmark}", "model=tiny", f"dataset.protocol={','.join(known)}")
        assert [one.dataset.name.partition(":")[2] for one in made] == list(known)
        for one in made:
            assert build_benchmark(describe_benchmark(one.dataset), "dataset") == one.dataset
            assert published_accuracy("llava15_7b", one.dataset.name, Base(), one_part()) is None


def one_part() -> Any:
    from spatial_eval.core.types import Part

    return Part()


def test_a_label_changes_no_key(tmp_path: Path) -> None:
    """What is sent decides: a protocol's own name is no part of a stored answer's identity."""
    places = Places(tmp_path, tmp_path)
    (plain,) = experiments("dataset=pope_coco", "model=tiny", "dataset.system=vicuna_v1", "model.image_mode=pad")
    (named,) = experiments("dataset=pope_coco", "model=tiny", "dataset.protocol=llava")
    assert experiment_key(named, places).hash == experiment_key(plain, places).hash
    (default,) = experiments("dataset=pope_coco", "model=tiny")
    assert experiment_key(named, places).hash != experiment_key(default, places).hash


def test_a_preface_names_the_letters_of_its_row(tmp_path: Path) -> None:
    row = {"question": "<image>\nUSER: Which is near?\nASSISTANT:", "answer": "A", "options": ["cup", "dog", "box"]}
    path = write_lines(tmp_path / "own.jsonl", [row])
    keys = dict(PROTOCOLS["embspatial"]["lmms"])
    asked: Benchmark = QuestionFile(path, **keys)
    (sample,) = asked.read(Places(tmp_path, tmp_path))
    note = "Note: You only need to respond with A, B, C without providing any additional information."
    assert sample.question == f"<image>\nUSER: {note}\nWhich is near?\nA) cup\nB) dog\nC) box\nASSISTANT:"
    assert apply_system(Protocolled("own:lmms", asked, "lmms"), "vicuna_v1", named=False).name == "own:lmms"
