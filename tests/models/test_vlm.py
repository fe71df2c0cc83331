"""A loaded model: what fails costs only itself, what cannot be trusted stops the run."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import SUPPORTED
from PIL import Image
from questions import ARMS, Questions, ask, eight, load, saved

from spatial_eval.benchmarks.scenes.rendered import Scenes
from spatial_eval.core.errors import ModelError
from spatial_eval.core.types import Arm, Experiment, Failure, Generation, Part, Pass, Places, Sample
from spatial_eval.engine import decode as engine
from spatial_eval.models import batches as models_batches
from spatial_eval.models.hf import HF
from spatial_eval.passes.pass_state import inspect_pass, run_pass

STARTS = {
    "llava": "<image>\nUSER: ",
    "llava_next": "USER: ",
    "gemma3": "<bos><start_of_turn>user\n<start_of_image>",
}


def tokens(records: dict[tuple[str, float], Any]) -> dict[tuple[str, float], tuple[int, ...]]:
    return {key: record.tokens for key, record in records.items()}


@pytest.mark.parametrize("name", SUPPORTED)
def test_from_folder_to_records(name: str, tmp_path: Path) -> None:
    path = saved(name)
    judge = ask(load(HF(path, decoding="per_arm"), tmp_path), eight())
    assert all(isinstance(record, Generation) for record in judge.values())
    for size in (1, 4):
        ours = ask(load(HF(path, batch_size=size), tmp_path), eight())
        assert tokens(ours) == tokens(judge)
        for key, record in ours.items():
            assert record.confidence == pytest.approx(judge[key].confidence, abs=1e-5)
            assert 0 <= record.margin <= record.confidence <= 1
            assert 0 < record.entropy < 8
            assert set(record.option_probs) == {"on", "under"}
            assert sum(record.option_probs.values()) == pytest.approx(1, abs=1e-5)
            assert record.device == "cpu"
            assert record.batch <= size
    question = ours["q2", 1.0].prompt
    assert "Where?" in question
    assert question.startswith(STARTS.get(name, "<|im_start|>"))


def test_prompt_mode_and_distortion(tmp_path: Path) -> None:
    model = HF(saved("llava"))
    auto = ask(load(model, tmp_path), eight()[:2], ARMS[:1])
    chat = ask(load(model, tmp_path, dataset=Questions("chat")), eight()[:2], ARMS[:1])
    assert chat["q0", 0.0].prompt == "USER: <image>\nWhere is the cup? ASSISTANT:"
    assert auto["q0", 0.0].prompt == eight()[0].question
    stretched = ask(load(model, tmp_path, dataset=Questions(distort=True)), eight()[6:7], (Arm(),))
    assert stretched["q6", 1.0].logit != ask(load(model, tmp_path), eight()[6:7], (Arm(),))["q6", 1.0].logit


def test_padding_changes_rounding_only(tmp_path: Path) -> None:
    path = saved("llava")
    plain = ask(load(HF(path), tmp_path), eight()[:3])
    padded = ask(load(HF(path, pad_to=200), tmp_path), eight()[:3])
    assert tokens(padded) == tokens(plain)


def test_bad_questions_cost_only_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved("llava")
    torn = tmp_path / "torn.png"
    torn.write_bytes((eight()[3].image or Path()).read_bytes()[:900])
    huge = tmp_path / "huge.png"
    Image.new("1", (20000, 10000)).save(huge)
    bad = [
        *eight()[:1],
        replace(eight()[1], image=torn),
        replace(eight()[2], image=huge),
        replace(eight()[3], question="<image>\nUSER: \nASSISTANT:"),
        *eight()[4:5],
        replace(eight()[5], image=tmp_path / "absent.png"),
        replace(eight()[6], image=None),
        *eight()[7:],
    ]
    found = ask(load(HF(path, batch_size=4), tmp_path), bad, ARMS[:2])
    good = ask(load(HF(path, batch_size=4), tmp_path), eight(), ARMS[:2])
    errors = {key[0]: record.error for key, record in found.items() if isinstance(record, Failure)}
    assert set(errors) == {"q1", "q2", "q3", "q5", "q6"}
    assert "truncated" in errors["q1"]
    assert "200000000 pixels" in errors["q2"]
    assert errors["q3"] == "ValueError: the question is empty"
    assert "No such file" in errors["q5"]
    assert errors["q6"] == "ValueError: the question has no image"
    for key in found:
        if key[0] not in errors:
            assert found[key].tokens == good[key].tokens


def test_out_of_memory_halves_the_batch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = saved("llava")
    good = ask(load(HF(path), tmp_path), eight(), ARMS[:2])
    sizes: list[int] = []
    decode = engine.decode_arms

    def small(model: Any, inputs: Any, **kwargs: Any) -> Any:
        ids = inputs["input_ids"]
        sizes.append(len(ids))
        if len(ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return decode(model, inputs, **kwargs)

    monkeypatch.setattr(engine, "decode_arms", small)
    monkeypatch.setattr(models_batches, "WASTE", 1.0)  # one bucket
    with caplog.at_level(logging.WARNING):
        found = ask(load(HF(path, batch_size="auto", selfcheck="never"), tmp_path), eight(), ARMS[:2])
    assert tokens(found) == tokens(good)
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert {record.batch for record in found.values()} == {2}
    assert "out of memory with 8 questions in a batch; going on with 4" in caplog.text
    assert "out of memory with 4 questions in a batch; going on with 2" in caplog.text


def test_a_question_that_fails_alone_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = engine.decode_arms

    def picky(model: Any, inputs: Any, **kwargs: Any) -> Any:
        if longest in inputs["attention_mask"].sum(dim=1):
            raise RuntimeError("no such kernel\nlong explanation")
        return decode(model, inputs, **kwargs)

    one = load(HF(saved("llava"), batch_size=4), tmp_path)
    longest = max(one._encoder.encode(sample)[1]["input_ids"].shape[1] for sample in eight()[4:])  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "decode_arms", picky)
    found = ask(one, eight(), ARMS[:2])
    errors = {key[0]: record.error for key, record in found.items() if isinstance(record, Failure)}
    assert errors == {"q5": "RuntimeError: no such kernel"}


@pytest.mark.parametrize("error", [ModelError("a guard"), RuntimeError("CUDA error: device-side assert triggered")])
def test_what_is_no_questions_fault_stops_the_run(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    one = load(HF(saved("llava")), tmp_path)
    monkeypatch.setattr(engine, "decode_arms", fail)
    with pytest.raises(type(error), match=str(error)):
        ask(one, eight()[:1])


def always(error: Callable[[int], Exception], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every decoding of one question alone fails, of several too; -> the sizes that were tried."""
    sizes: list[int] = []

    def fail(model: Any, inputs: Any, **kwargs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        raise error(len(sizes))

    monkeypatch.setattr(engine, "decode_arms", fail)
    return sizes


def many(count: int) -> list[Sample]:
    """As the eight samples over and over."""
    return [replace(eight()[i % 8], id=f"q{i}", row=i) for i in range(count)]


@pytest.mark.parametrize(("size", "count"), [(1, 20), (3, 20), (32, 20), (1, 2), (4, 3), ("auto", 8)])
def test_one_error_in_all_questions_stops_the_run(
    size: int | str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers in its text may differ: lengths, shapes, addresses."""
    one = load(HF(saved("llava"), name="llava", batch_size=size), tmp_path)
    always(lambda number: TypeError(f"forward() got an unexpected argument at 0x{number}\nmore"), monkeypatch)
    records = one.answer([(sample, ARMS[:2]) for sample in many(count)])
    with pytest.raises(ModelError) as caught:
        next(records)  # nothing was yielded, so nothing is stored
    failed = r"llava: all of the first (\d+) questions failed with one error, so it is no question's fault: "
    match = re.match(failed + r"TypeError: forward\(\) got an unexpected argument at 0x\d+; ", str(caught.value))
    assert match is not None
    assert "model.decoding=per_arm may still do" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert min(count, 8) <= int(match[1]) <= count
    assert size != 1 or int(match[1]) == min(count, 8)


def test_one_question_is_no_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always(lambda number: RuntimeError("no such kernel"), monkeypatch)
    found = ask(load(HF(saved("llava")), tmp_path), eight()[:1], ARMS[:2])
    assert [one.error for one in found.values() if isinstance(one, Failure)] == ["RuntimeError: no such kernel"] * 2


def test_several_errors_are_the_questions_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = (RuntimeError("no such kernel"), ValueError("no such kernel"))
    always(lambda number: kinds[number > 5], monkeypatch)
    found = ask(load(HF(saved("llava")), tmp_path), many(12), ARMS[:2])
    assert len(found) == 24
    assert all(isinstance(one, Failure) for one in found.values())


@pytest.mark.parametrize("good", [3, 7])
def test_failures_before_the_first_answer_are_kept(good: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, calls = engine.decode_arms, [0]

    def late(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] <= good or calls[0] > good + 1:
            raise RuntimeError("no such kernel")
        return decode(*args, **kwargs)

    one = load(HF(saved("llava"), selfcheck="never"), tmp_path)
    monkeypatch.setattr(engine, "decode_arms", late)
    batches = list(one.answer([(sample, ARMS[:1]) for sample in many(20)]))
    assert all(batches)
    records = [record for batch in batches for record in batch]
    assert sorted(record.sample_id for record in records) == sorted(sample.id for sample in many(20))
    assert [record.sample_id for record in records if isinstance(record, Generation)] == [f"q{good}"]
    assert len(batches[0]) == good + 1


def test_bad_pictures_never_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many and however alike: absent, torn, none, or a question without words."""
    torn = tmp_path / "torn.png"
    torn.write_bytes((eight()[3].image or Path()).read_bytes()[:900])
    for change in (
        {"image": tmp_path / "absent.png"},
        {"image": torn},
        {"image": None},
        {"question": "<image>\nUSER: \nASSISTANT:"},
    ):
        found = ask(load(HF(saved("llava")), tmp_path), [replace(one, **change) for one in many(12)], ARMS[:1])
        assert len(found) == 12
        assert all(isinstance(one, Failure) for one in found.values())


def test_bad_pictures_do_not_hide_a_broken_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = [replace(one, image=None) if one.row % 2 else one for one in many(20)]
    one = load(HF(saved("llava")), tmp_path)
    always(lambda number: RuntimeError("no such kernel"), monkeypatch)
    got: list[Any] = []

    def go_on() -> None:
        for records in one.answer([(sample, ARMS[:1]) for sample in work]):
            got.extend(records)

    with pytest.raises(ModelError, match="all of the first 8 questions failed with one error"):
        go_on()
    assert {record.error for record in got if isinstance(record, Failure)} == {"ValueError: the question has no image"}


def test_out_of_memory_everywhere_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always(lambda number: torch.OutOfMemoryError("CUDA out of memory"), monkeypatch)
    found = ask(load(HF(saved("llava")), tmp_path), many(12), ARMS[:1])
    assert {one.error for one in found.values() if isinstance(one, Failure)} == {"out of memory"}
    assert len(found) == 12


def test_a_processor_that_fails_on_all_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one: Any = load(HF(saved("llava"), name="llava"), tmp_path)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise TypeError("unexpected keyword 'text'")

    monkeypatch.setattr(one._encoder, "_processor", fail, raising=False)
    fail.chat_template = None  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="all of the first 8 questions failed with one error, so it is no question's"):
        ask(one, many(12), ARMS[:1])


def test_nothing_of_a_broken_model_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = Experiment(Scenes("scenes_a", "scenes_a"), HF("package:tiny", name="tiny", batch_size=4), 4)
    work = Pass(trunk, ((Part("test", 12), (Arm(),)),))
    places = Places(tmp_path, tmp_path)
    with monkeypatch.context() as patch:
        always(lambda number: TypeError("no past_key_values"), patch)
        with pytest.raises(ModelError, match=r"tiny: all of the first \d+ questions failed with one error"):
            run_pass(inspect_pass(work, places), places)
    again = inspect_pass(work, places)
    assert (len(again.stored.failures), len(again.todo)) == (0, 12)
    run_pass(again, places)
    assert len(inspect_pass(work, places).stored.generations) == 12


def test_arms_may_differ_between_questions(tmp_path: Path) -> None:
    one = load(HF(saved("llava"), batch_size=4), tmp_path)
    mixed = [(sample, ARMS[: 2 + sample.row % 2]) for sample in eight()]
    found = {(r.sample_id, r.arm.weight): r for batch in one.answer(mixed) for r in batch}
    assert len(found) == sum(len(arms) for _, arms in mixed)
    whole = ask(one, eight())
    assert all(record.tokens == whole[key].tokens for key, record in found.items())


@pytest.mark.parametrize(("name", "reason"), [("paligemma", "prefix LM"), ("softcap", "softcap")])
def test_refused_models_take_the_slow_way_with_one_warning(
    name: str,
    reason: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = saved(name)
    with caplog.at_level(logging.WARNING, logger="spatial_eval"):
        ours = ask(load(HF(path), tmp_path, tokens=3), eight()[:2])
    warnings = [record for record in caplog.records if record.name.startswith("spatial_eval")]
    assert len(warnings) == 1
    assert reason in warnings[0].getMessage()
    assert tokens(ours) == tokens(ask(load(HF(path, decoding="per_arm"), tmp_path, tokens=3), eight()[:2]))


def test_steps_of_one_shape(tmp_path: Path) -> None:
    path = saved("llava")
    plain, fixed = (ask(load(HF(path, batch_size=4, graphs=graphs), tmp_path), eight()) for graphs in (False, True))
    assert tokens(plain) == tokens(fixed)


def test_kernel_of_the_prefix(tmp_path: Path) -> None:
    path = saved("llava")
    plain, other = (ask(load(HF(path, attn=attn), tmp_path), eight()[:2]) for attn in ("sdpa", "math"))
    assert tokens(plain) == tokens(other)
