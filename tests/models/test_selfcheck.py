"""The comparison with the reference at the start of a run: the right engine passes, planted faults stop the run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, SUPPORTED, build
from questions import ask, eight, encode, load, saved

from spatial_eval.core.errors import ModelError
from spatial_eval.core.types import Arm, Failure, Generation
from spatial_eval.engine import attention, reference, request
from spatial_eval.engine import decode as engine
from spatial_eval.engine.precision import in_float32
from spatial_eval.engine.request import Intervention
from spatial_eval.models import selfcheck, vlm
from spatial_eval.models.batches import collate
from spatial_eval.models.hf import HF

DTYPES = ("float32", "bfloat16", "float16")
ARMS = (Arm(0.5), Arm(), Arm(2.0))
Fault = Callable[[pytest.MonkeyPatch], None]


def weight_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.ScaledRows, "apply", lambda self, logits, image: logits)


def weight_squared(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = attention.ScaledRows.apply
    monkeypatch.setattr(
        attention.ScaledRows,
        "apply",
        lambda self, logits, image: apply(replace(self, weight=self.weight**2), logits, image),
    )


def _other_keys(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    keys = engine._image_keys
    monkeypatch.setattr(engine, "_image_keys", lambda *args, **kwargs: change(keys(*args, **kwargs)))


def half_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    _other_keys(monkeypatch, lambda image: image & (image.cumsum(-1) <= image.sum(-1, keepdim=True) // 2))


def text_too(monkeypatch: pytest.MonkeyPatch) -> None:
    _other_keys(monkeypatch, lambda image: torch.arange(image.shape[1]).expand_as(image) < image.shape[1] - 1)


def shifted_span(monkeypatch: pytest.MonkeyPatch) -> None:
    _other_keys(monkeypatch, lambda image: image.roll(1, dims=-1))


def _other_layers(monkeypatch: pytest.MonkeyPatch, kept: Callable[[int, int], bool]) -> None:
    of = attention.ArmRows.of

    def fewer(*args: Any, **kwargs: Any) -> attention.ArmRows:
        made = of(*args, **kwargs)
        made.scaled = [rows if kept(layer, len(made.scaled)) else () for layer, rows in enumerate(made.scaled)]
        return made

    monkeypatch.setattr(attention.ArmRows, "of", fewer)


def first_layer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    _other_layers(monkeypatch, lambda layer, depth: layer == 0)


def a_layer_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    _other_layers(monkeypatch, lambda layer, depth: layer < depth - 1)


def decode_position(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = engine.DecodeState.advance
    monkeypatch.setattr(engine.DecodeState, "advance", lambda self, following, step: advance(self, following, step + 1))


def prompt_position(monkeypatch: pytest.MonkeyPatch) -> None:
    fan = engine._fan

    def moved(columns: torch.Tensor, width: int) -> torch.Tensor:
        wide = fan(columns, width)
        is_position = columns.shape[:-1] == (1,) and bool((columns[..., 3:].diff() == 1).all())
        return wide + (torch.arange(wide.shape[-1]) >= columns.shape[-1]) if is_position else wide

    monkeypatch.setattr(engine, "_fan", moved)


def end_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "end_tokens", lambda config: [one + 1 for one in request.end_tokens(config)])


def scaled_rows_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.torch, "eye", lambda size, **kwargs: torch.ones(size, size, **kwargs))


def branches_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = engine.BranchTable.mask
    monkeypatch.setattr(engine.BranchTable, "mask", lambda self: mask(self) | (self.owner >= 0)[:, None, None])


def padding_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    start = engine.BranchTable.start
    monkeypatch.setattr(
        engine.BranchTable, "start", lambda valid, position, width: start(torch.ones_like(valid), position, width)
    )


FAULTS = (
    weight_ignored,
    weight_squared,
    half_of_the_image,
    text_too,
    first_layer_only,
    decode_position,
    end_token,
    a_layer_too_few,
    shifted_span,
    prompt_position,
    scaled_rows_see_each_other,
    branches_see_each_other,
    padding_is_seen,  # one question alone: only the comparison of a padded batch can show it
)


def first(name: str, dtype: str, folder: Path, *, arms: tuple[Arm, ...] = ARMS, count: int = 1, **more: Any) -> Any:
    model = HF(saved(name), name=name, dtype=dtype, device="cpu", batch_size=count, **more)
    return ask(load(model, folder, tokens=4), eight()[:count], arms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_right_engine_passes(name: str, dtype: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if name == "gemma3_cut":  # its window is shorter than its prompts
        with pytest.raises(ModelError, match=r"exceed the sliding window of 32; model.decoding=per_arm may still do"):
            first(name, dtype, tmp_path, count=2)
        return
    with caplog.at_level(logging.INFO, logger="spatial_eval"):
        found = first(name, dtype, tmp_path, count=2)
    assert all(isinstance(one, Generation) for one in found.values())
    agreed = f"{name}: 4 tokens agree with plain generate (scores within "
    assert (agreed in caplog.text) == (name in SUPPORTED)  # the others are answered by the reference itself


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_stops_the_run(fault: Fault, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    with pytest.raises(
        ModelError, match=r"^llava: the shared prefix is not exact on this model: .*; use model.decoding"
    ):
        first("llava", dtype, tmp_path)
    if dtype == "float32":
        assert len(first("llava", dtype, tmp_path, selfcheck="never")) == len(ARMS)


# Where positions are not 0, 1, 2, ... prompt_position plants nothing.
PLANTED = [
    (fault, name)
    for fault in FAULTS
    for name in SUPPORTED
    if name != "llava" and (fault is not prompt_position or name not in ("qwen2_vl", "qwen25_vl", "qwen3_vl", "gemma3"))
]


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("fault", "name"), PLANTED)
def test_a_fault_stops_the_run_on_every_family(
    fault: Fault, name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    with pytest.raises(ModelError, match="the shared prefix is not exact on this model"):
        first(name, dtype, tmp_path)


@pytest.mark.parametrize("fault", [weight_ignored, weight_squared, half_of_the_image, first_layer_only])
def test_a_fault_of_a_weight_near_one(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose effect is far smaller than what bfloat16 rounds."""
    first("llava", "bfloat16", tmp_path, arms=(Arm(0.97), Arm()))
    fault(monkeypatch)
    with pytest.raises(ModelError, match=r"scores of new token \d differ by .* at arm 0.97 \(tolerance 0.001\)"):
        first("llava", "bfloat16", tmp_path, arms=(Arm(0.97), Arm()))


@pytest.mark.parametrize("arm", [Arm(2.0, "mass", "1-2"), Arm(0.5, "temperature"), Arm(0.5, "pai", "0")])
def test_a_fault_in_another_kind_of_scaling(arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first("llava", "bfloat16", tmp_path, arms=(Arm(), arm))
    _other_keys(monkeypatch, lambda image: image & (image.cumsum(-1) < image.sum(-1, keepdim=True)))  # one key too few
    with pytest.raises(ModelError, match="the shared prefix is not exact on this model"):
        first("llava", "bfloat16", tmp_path, arms=(Arm(), arm))


def test_a_fault_in_a_contrast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava").model
    monkeypatch.setattr(model.generation_config, "suppress_tokens", [model.config.image_token_id])
    arms = (Arm(contrast="vcd", alpha=1.0, cutoff=0.1, noise=500), Arm(contrast="dola", layers="low", cutoff=0.1))
    one = load(HF(saved("llava"), name="llava", dtype="bfloat16", device="cpu"), tmp_path, tokens=4)
    one._vlm.generation_config.suppress_tokens = [model.config.image_token_id]  # type: ignore[attr-defined]
    work = [(eight()[0], arms)]
    assert len([record for batch in one.answer(work) for record in batch]) == 2
    ghost = engine.FollowerState.follow
    monkeypatch.setattr(
        engine.FollowerState, "follow", lambda self, leader, chosen, step: ghost(self, leader, chosen, step + 1)
    )
    one._unchecked = True  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"scores of new token [23] differ by .* at arm vcd"):
        list(one.answer(work))
    one._vlm.generation_config.suppress_tokens = None  # type: ignore[attr-defined]


def test_faults_that_half_precision_alone_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the run's own kernels: float32 cannot show them, the comparison with the run's own answers does."""
    for part, said in (
        ("_tail_rows", "first-token logits differ by"),
        ("_branch_rows", r"new token \d is another than"),
    ):
        rows = getattr(attention, part)

        def wrong(query: torch.Tensor, *args: Any, rows: Any = rows) -> torch.Tensor:
            out = rows(query, *args)
            return out.flip(-1) if query.dtype == torch.bfloat16 else out

        with monkeypatch.context() as patch:
            patch.setattr(attention, part, wrong)
            first("llava", "float32", tmp_path)
            with pytest.raises(
                ModelError, match=f"not exact on this model: {said}.* plain generate.* in float32 at arm"
            ):
                first("llava", "bfloat16", tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("no kernel\nof it"), torch.OutOfMemoryError("CUDA out of memory")])
def test_what_cannot_be_computed_in_float32_is_said(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @contextmanager
    def unable() -> Iterator[None]:
        raise error
        yield

    monkeypatch.setattr(selfcheck, "in_float32", unable)
    with caplog.at_level(logging.WARNING, logger="spatial_eval"):
        assert len(first("llava", "bfloat16", tmp_path)) == len(ARMS)
    [said] = [one.getMessage() for one in caplog.records if one.name == "spatial_eval.models.selfcheck"]
    line = str(error).splitlines()[0]
    assert said == (
        f"llava: cannot be computed in float32 ({type(error).__name__}: {line}): compared with plain generate in "
        "bfloat16, where only gross faults show"
    )
    weight_ignored(monkeypatch)
    with pytest.raises(ModelError, match=r"scores of new token 1 differ .* \(tolerance 0.5\)"):
        first("llava", "bfloat16", tmp_path)


def test_a_window_that_padding_does_not_fit_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = load(HF(saved("gemma3"), name="gemma3", device="cpu"), tmp_path, tokens=4)
    length = one._encoder.encode(eight()[0])[1]["input_ids"].shape[1]  # type: ignore[attr-defined]
    monkeypatch.setattr(one._vlm.config.text_config, "sliding_window", length + 4)  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, logger="spatial_eval"):
        assert len(ask(one, eight()[:1], ARMS)) == len(ARMS)
    assert "not compared with plain generate in another batch: " in caplog.text
    assert f"exceed the sliding window of {length + 4}" in caplog.text


def test_selfcheck_first_and_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    decode = reference.decode_reference

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append("oracle")
        return decode(*args, **kwargs)

    monkeypatch.setattr(reference, "decode_reference", counted)
    for selfcheck_, expected in (("never", 0), ("first", 1), ("always", 3)):
        calls.clear()
        ask(load(HF(saved("llava"), selfcheck=selfcheck_), tmp_path, tokens=2), eight()[:3], ARMS[:2])
        assert len(calls) == expected


def test_it_costs_a_short_generate_per_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of at most two questions of the batch, however many there are, and three runs of the engine."""
    one = load(HF(saved("llava"), batch_size=8), tmp_path, tokens=50)
    generates: list[tuple[str, int, int]] = []
    generate = one._vlm.generate  # type: ignore[attr-defined]

    def counted(**kwargs: Any) -> Any:
        way = "engine" if "custom_generate" in kwargs else "plain"
        generates.append((way, len(kwargs["input_ids"]), kwargs["max_new_tokens"]))
        return generate(**kwargs)

    monkeypatch.setattr(one._vlm, "generate", counted)  # type: ignore[attr-defined]
    monkeypatch.setattr(vlm, "bucket_by_length", lambda lengths: [list(range(len(lengths)))])
    ask(one, eight(), ARMS)
    assert generates[0] == ("engine", 8, 50)
    assert sorted(generates[1:]) == sorted([*[("plain", 2, 4)] * len(ARMS), *[("engine", 2, 4)] * 2, ("engine", 1, 4)])


def test_the_model_is_as_it_was(tmp_path: Path) -> None:
    one = load(HF(saved("llava"), dtype="bfloat16", device="cpu"), tmp_path, tokens=4)
    inner: Any = one._vlm  # type: ignore[attr-defined]
    before = {name: (one.dtype, one.data_ptr()) for name, one in inner.state_dict().items()}
    ends, tf32 = inner.generation_config.eos_token_id, torch.backends.cudnn.allow_tf32
    assert all(isinstance(record, Generation) for record in ask(one, eight()[:1], ARMS).values())
    assert {name: (one.dtype, one.data_ptr()) for name, one in inner.state_dict().items()} == before
    assert (inner.generation_config.eos_token_id, torch.backends.cudnn.allow_tf32) == (ends, tf32)


def test_one_question_is_compared_as_it_is_and_padded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[tuple[int, ...]] = []
    decode = engine.decode_arms

    def noted(model: Any, inputs: Any, **more: Any) -> Any:
        widths.append(tuple(inputs["input_ids"].shape))
        return decode(model, inputs, **more)

    monkeypatch.setattr(engine, "decode_arms", noted)
    first("llava", "float32", tmp_path)
    length = widths[0][1]
    assert widths == [(1, length), (1, length), (1, length + selfcheck.PADDING)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llava", "qwen25_vl", "gemma3"])
def test_half_precision_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    """Equal to a copy of the model in float32, and unlike what the model gives by itself."""
    half = copy.deepcopy(build(name).model).to(dtype)
    inputs = collate(encode(name, slice(2)), build(name).processor.tokenizer.pad_token_id)
    low = {key: part.to(dtype) if part.is_floating_point() else part for key, part in inputs.items()}
    asked = {"intervention": Intervention(ARMS), "max_new_tokens": 2}
    with in_float32():
        assert half.dtype == torch.float32  # what modules ask before they convert their inputs
        ours = reference.decode_reference(half, low, **asked)
    whole = {key: part.float() if part.is_floating_point() else part for key, part in low.items()}
    want = reference.decode_reference(copy.deepcopy(half).float(), whole, **asked)
    assert ours.tokens == want.tokens
    torch.testing.assert_close(ours.logits, want.logits, atol=1e-4, rtol=0)
    assert (reference.decode_reference(half, low, **asked).logits - want.logits).abs().max() > 1e-3
    assert half.dtype == dtype


def test_an_answer_that_ends_by_itself_needs_no_token_to_end_at() -> None:
    assert selfcheck._probe([[(5, 6, 7, 8)]], [2]) == [6]
    assert selfcheck._probe([[(5, 6, 2)]], [2]) == []
    assert selfcheck._probe([[(5, 5, 6, 7), (6, 5, 9, 7)]], [2]) == [9]  # not what some arm says first
    assert selfcheck._probe([[(5,)]], [2]) == [5]


def test_failures_of_the_whole_run_are_none_of_the_check(tmp_path: Path) -> None:
    found = ask(load(HF(saved("llava")), tmp_path), [replace(eight()[0], image=None)], ARMS)
    assert all(isinstance(one, Failure) for one in found.values())
