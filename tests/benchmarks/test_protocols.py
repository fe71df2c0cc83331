"""Protocols: what a word sets, beside what the user sets, and what its label says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import write_lines
from hydra_front import COMPOSER

from spatial_eval.benchmarks import protocols
from spatial_eval.benchmarks.prompts import SYSTEMS, apply_system
from spatial_eval.benchmarks.protocols import NAMES, PROTOCOLS, Protocolled, find_protocol
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
    with pytest.raises(
        ConfigError, match=r"protocol=llava and dataset.framing=open both set wording and rule: take one"
    ):
        experiments("dataset=pope_coco", "dataset.protocol=llava", "dataset.framing=open")
    (part,) = experiments(
        "dataset=naturalbench", "dataset.protocol=lmms", "dataset.instruction.yes_no='{question} Yes or no?'"
    )
    wording = {"yes_no": "{question} Yes or no?", "letters": f"{{question}} {protocols.LETTER_OF}"}
    assert (part.dataset.name, rows(part.dataset).instruction) == ("naturalbench:lmms-changed", wording)
    (whole,) = experiments("dataset=blink_depth", "dataset.protocol=vlmevalkit", "dataset.columns={question: prompt}")
    assert (whole.dataset.name, rows(whole.dataset).columns["question"]) == ("blink_depth:vlmevalkit-changed", "prompt")


@pytest.mark.parametrize(
    ("benchmark", "protocol", "said"),
    [
        ("pope_coco", "authors", "its authors published questions and a rule, and no wording; known for it: llava, lm"),
        ("vsr", "lmms", "is not known for vsr: lmms-eval does not have this set; known for it: none; set dataset.sys"),
        ("vsr", "vlmevalkit", "VLMEvalKit asks it from a table of its own, whose wording its code does not show"),
        ("threedsr", "authors", "its authors read answers with GPT-4, and no judge model is used here"),
        ("mmvp", "llava-changed", "unknown dataset.protocol 'llava-changed' (valid: llava, lmms, vlmevalkit)"),
        ("scenes_a", "lmsm", "unknown dataset.protocol 'lmsm'; did you mean lmms? (valid: llava, lmms, vlmevalkit, au"),
    ],
)
def test_what_is_not_known_is_refused_with_its_reason(benchmark: str, protocol: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        experiments(f"dataset={benchmark}", f"dataset.protocol={protocol}")
    assert said in str(caught.value)


BELOW = "Please select the correct answer from the options above."
LABELLED = f"Question: Which is near?\nOptions:\nA. cup\nB. dog\n{BELOW}"
LETTERED = f"Which is near?\nA. cup\nB. dog\n{protocols.LETTER}"
REPLY = "Reply only to the corresponding option.\nAnswer:"


@pytest.mark.parametrize(
    ("benchmark", "protocol", "model", "text", "rule"),
    [
        ("mmvp", "lmms", "org/other", LETTERED, "l_mmvp"),
        ("mmvp", "vlmevalkit", "org/other", LABELLED, "l_vk"),
        ("mmvp", "vlmevalkit", "OpenGVLab/InternVL3-8B-hf", LETTERED, "l_vk"),
        ("blink_depth", "vlmevalkit", "org/other", LABELLED, "l_vk"),
        ("blink_depth", "vlmevalkit", "llava-hf/llava-1.5-7b-hf", LETTERED, "l_vk"),
        ("cv_bench", "vlmevalkit", "org/other", "Which is near?\nA. cup\nB. dog", "l_vk"),
        ("cv_bench", "vlmevalkit", "llava-hf/llava-v1.6-vicuna-7b-hf", LETTERED, "l_vk"),
        ("threedsr_circular", "lmms", "org/other", LABELLED, "l_3dsr"),
        ("threedsr", "vlmevalkit", "org/other", LABELLED, "l_vk"),
        (
            *("embspatial", "vlmevalkit", "llava-hf/llava-1.5-7b-hf"),
            "Question: Which is near?\nOptions:\nA: cup\nB: dog\n"
            "Give me the answer letter directly. The best answer is:",
            "l_easi",
        ),
        *(
            ("viewspatial", kit, "org/other", f"Question: Which is near?\nChoices: A. cup\nB. dog\n{REPLY}", rule)
            for kit, rule in (("lmms", "l_viewspatial"), ("vlmevalkit", "l_easi"))
        ),
        ("viewspatial", "authors", "org/other", f"Which is near?A. cup\nB. dog\n{REPLY}", "l_viewspatial"),
        ("naturalbench", "lmms", "org/other", f"Which is near? {protocols.LETTER_OF}", "l_first"),
        ("naturalbench", "authors", "org/other", f"Which is near?{protocols.LETTER_OF}", "l_first"),
        ("realworldqa", "lmms", "org/other", "Which is near?\nA. cup\nB. dog", "l_cascade"),
    ],
)
def test_what_a_protocol_asks(benchmark: str, protocol: str, model: str, text: str, rule: str, tmp_path: Path) -> None:
    row = {"question": "<image>\nUSER: Which is near?\nASSISTANT:", "answer": "A", "options": ["cup", "dog"]}
    keys = find_protocol(benchmark, protocol, model)
    own = {key: value for key, value in keys.items() if key not in ("system", "model.image_mode", "columns.question")}
    (sample,) = QuestionFile(write_lines(tmp_path / "own.jsonl", [row]), **own).read(Places(tmp_path, tmp_path))
    assert (sample.question, sample.scoring) == (f"<image>\nUSER: {text}\nASSISTANT:", rule)


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
