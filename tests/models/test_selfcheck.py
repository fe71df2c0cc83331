"""The comparison with the reference at the start of a run: the right engine passes, planted faults stop the run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, SUPPORTED, build
from questions import ask, eight, encode, load, saved

from spatial_eval.core.arms import Arm, Dola, Sampling, Scaling, Vcd
from spatial_eval.core.errors import ModelError
from spatial_eval.core.types import Failure, Generation
from spatial_eval.engine import attention, prefill, prefix, reference, request, state
from spatial_eval.engine import decode as engine
from spatial_eval.engine.precision import in_float32
from spatial_eval.engine.request import Intervention
from spatial_eval.models import selfcheck, vlm
from spatial_eval.models.batches import collate
from spatial_eval.models.hf import HF

DTYPES = ("float32", "bfloat16", "float16")
FEW = ("float32", "bfloat16")  # of every family: float16 goes llava's way through the same code
ARMS = (Arm(0.5), Arm(), Arm(2.0))
Fault = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def no_prefix_is_remembered() -> Iterator[None]:
    """What a planted fault left in memory would be another test's prefix: they load one model."""
    vlm._memories.clear()
    yield
    vlm._memories.clear()


def _other_formulas(monkeypatch: pytest.MonkeyPatch, change: Callable[[attention.Formula], attention.Formula]) -> None:
    for kind, formula in list(attention.FORMULAS.items()):
        monkeypatch.setitem(attention.FORMULAS, kind, change(formula))


def weight_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    _other_formulas(monkeypatch, lambda formula: lambda z, weight, image, own: z)


def weight_squared(monkeypatch: pytest.MonkeyPatch) -> None:
    _other_formulas(monkeypatch, lambda formula: lambda z, weight, image, own: formula(z, weight**2, image, own))


def next_arms_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    place = prefill.place_weights

    def rolled(scalings: Any, arm: torch.Tensor) -> Any:
        return place(scalings, arm.roll(1, dims=1))

    monkeypatch.setattr(prefill, "place_weights", rolled)


def _other_keys(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    made = prefix.ImagePrefix

    def changed(layers: Any, scaled: dict[str, torch.Tensor], *more: Any) -> Any:
        return made(layers, {key: change(keys) for key, keys in scaled.items()}, *more)

    monkeypatch.setattr(prefix, "ImagePrefix", changed)


def half_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    _other_keys(monkeypatch, lambda image: image & (image.cumsum(-1) <= image.sum(-1, keepdim=True) // 2))


def text_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of the text behind the image are scaled as those of the image are."""
    attend, multiply = attention.OwnRows._attend_arms, attention.multiply_keys

    def both(self: Any, layer: int, query: torch.Tensor, own: torch.Tensor, *args: Any) -> torch.Tensor:
        def scaled(rows: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            logits = multiply(rows, key)
            for _, weight, _ in self.scalings[layer] if key.shape == own.shape else ():
                logits = logits * weight
            return logits

        with monkeypatch.context() as patch:
            patch.setattr(attention, "multiply_keys", scaled)
            return attend(self, layer, query, own, *args)

    monkeypatch.setattr(attention.OwnRows, "_attend_arms", both)


def shifted_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one position: the token behind the image is no key of the prefix, so one key is missing."""
    _other_keys(monkeypatch, lambda image: image & (image.cumsum(-1) > 1))


def _other_layers(monkeypatch: pytest.MonkeyPatch, kept: Callable[[int, int], bool]) -> None:
    scalings = prefill.layer_scalings

    def fewer(*args: Any, **kwargs: Any) -> Any:
        made = scalings(*args, **kwargs)
        return [some if kept(layer, len(made)) else [] for layer, some in enumerate(made)]

    monkeypatch.setattr(prefill, "layer_scalings", fewer)


def first_layer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    _other_layers(monkeypatch, lambda layer, depth: layer == 0)


def a_layer_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    _other_layers(monkeypatch, lambda layer, depth: layer < depth - 1)


def decode_position(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = state.DecodeState.advance
    monkeypatch.setattr(state.DecodeState, "advance", lambda self, following, step: advance(self, following, step + 1))


def _other_prompts(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    cut = engine.Prompts.cut
    monkeypatch.setattr(engine.Prompts, "cut", lambda *args: change(cut(*args)))


def prompt_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what stands behind the image."""
    _other_prompts(monkeypatch, lambda prompts: replace(prompts, position=prompts.position + 1))


def end_token(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = request.end_tokens
    monkeypatch.setattr(request, "end_tokens", lambda config: [one + 1 for one in ends(config)])


def arms_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = engine.Prompts.mask

    def opened(self: Any, width: int) -> torch.Tensor:
        made = mask(self, width)
        made[..., -width:, -width:] = True
        return made

    monkeypatch.setattr(engine.Prompts, "mask", opened)


def branches_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = engine.BranchTable.mask
    monkeypatch.setattr(engine.BranchTable, "mask", lambda self: mask(self) | (self.owner >= 0)[:, None, None])


def padding_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    locate = engine.PromptBatch.locate

    def from_the_first_column(*args: Any) -> Any:
        batch = locate(*args)
        return replace(batch, starts=[0] * len(batch.starts))

    monkeypatch.setattr(engine.PromptBatch, "locate", from_the_first_column)


def shorter_prompt_is_padded_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    _other_prompts(monkeypatch, lambda prompts: replace(prompts, valid=torch.ones_like(prompts.valid)))


def another_pictures_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    arrange = attention.Packing.arrange

    def swapped(image: Any, images: int, device: Any) -> Any:
        return arrange([(one + 1) % images for one in image], images, device)

    monkeypatch.setattr(attention.Packing, "arrange", swapped)


def another_prompts_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several prompts read one image."""
    gather = attention.Packing.gather

    def turned(self: Any, places: torch.Tensor) -> torch.Tensor:
        return gather(self, places.roll(1, dims=1) if self.most > 1 else places)

    monkeypatch.setattr(attention.Packing, "gather", turned)


def only_the_first_prompt_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads it; the others see their own rows alone."""
    spread = attention.Packing.spread

    def emptied(self: Any, rows: torch.Tensor) -> torch.Tensor:
        placed = spread(self, rows)
        return placed if self.most == 1 else torch.cat([placed[:, :1], torch.zeros_like(placed[:, 1:])], dim=1)

    monkeypatch.setattr(attention.Packing, "spread", emptied)


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
    next_arms_weight,
    arms_see_each_other,
    branches_see_each_other,
    padding_is_seen,  # one question alone: only the comparison of a padded batch can show it
)


# Of two questions on two pictures, and of two on one picture beside a third.
FAULTS_OF_TWO = (shorter_prompt_is_padded_in_sight, another_pictures_prefix)
FAULTS_OF_SHARING = (another_prompts_place, only_the_first_prompt_of_an_image)


def first(name: str, dtype: str, folder: Path, *, arms: tuple[Arm, ...] = ARMS, count: int = 1, **more: Any) -> Any:
    model = HF(saved(name), name=name, dtype=dtype, device="cpu", batch_size=count, **more)
    return ask(load(model, folder, tokens=4), eight()[:count], arms)


def first_sharing(name: str, dtype: str, folder: Path, *, arms: tuple[Arm, ...] = ARMS, **more: Any) -> Any:
    """Of three questions the first two are about one picture."""
    model = HF(saved(name), name=name, dtype=dtype, device="cpu", batch_size=3, **more)
    cup, dog, other = eight()[:3]
    return ask(load(model, folder, tokens=4), (cup, replace(dog, image=cup.image), other), arms)


@pytest.mark.parametrize(("name", "dtype"), [("llava", "float16"), *product(FAMILIES, FEW)])
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


@pytest.mark.parametrize(("name", "dtype"), [("llava", "float16"), *product(SUPPORTED, FEW)])
def test_the_right_engine_passes_over_a_shared_image(
    name: str, dtype: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="spatial_eval"):
        found = first_sharing(name, dtype, tmp_path)
    assert all(isinstance(one, Generation) for one in found.values())
    assert f"{name}: 4 tokens agree with plain generate (scores within " in caplog.text
    if dtype == "float32":
        apart = first_sharing(name, dtype, tmp_path, share="question")
        assert {key: one.tokens for key, one in found.items()} == {key: one.tokens for key, one in apart.items()}
        for key, one in found.items():
            assert one.confidence == pytest.approx(apart[key].confidence, abs=1e-5)
            assert one.logit == pytest.approx(apart[key].logit, abs=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", FAULTS_OF_TWO)
def test_a_fault_of_two_questions(fault: Fault, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    with pytest.raises(ModelError, match=r"^llava: the shared prefix is not exact on this model: .*=per_arm$"):
        first("llava", dtype, tmp_path, count=2)


@pytest.mark.parametrize(("name", "dtype"), [("llava", "float16"), *product(("llava", "qwen25_vl", "gemma3"), FEW)])
@pytest.mark.parametrize("fault", FAULTS_OF_SHARING)
def test_a_fault_of_a_shared_image(
    fault: Fault, name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only questions that share an image show it: a first batch without any passes, and the first with some stops."""
    fault(monkeypatch)
    assert len(first(name, dtype, tmp_path, count=2)) == 2 * len(ARMS)
    said = r"new token 1 (differ by|is another than) .* where questions share an image; use model.share=question$"
    with pytest.raises(ModelError, match=said):
        first_sharing(name, dtype, tmp_path)
    assert len(first_sharing(name, dtype, tmp_path, selfcheck="never")) == 3 * len(ARMS)
    assert len(first_sharing(name, dtype, tmp_path, share="question")) == 3 * len(ARMS)


def test_an_answer_of_the_run_beyond_its_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all of the reference's answers end at the first token, so that it has no scores of later ones."""
    model, inputs = build("llava").model, encode("llava", slice(1))[0]
    asked = selfcheck.CheckedQuestions(inputs, Intervention((Arm(),)), rows=(0,), counts=(1,))
    first = engine.decode_arms(model, inputs, intervention=asked.intervention, max_new_tokens=1).tokens[0][0]
    monkeypatch.setattr(model.generation_config, "eos_token_id", first[0])
    decoded = engine.decode_arms(model, inputs, intervention=asked.intervention, max_new_tokens=4)
    assert decoded.tokens == [[first]]
    given: dict[str, Any] = {"name": "llava", "dtype": "float32", "tf32": False, "max_new_tokens": 4}
    selfcheck.check_prefix(model, asked, [], decoded, **given)
    longer = replace(decoded, tokens=[[(*first, 7)]])
    with pytest.raises(ModelError, match=r"new token 2 is another than plain generate's in float32 at arm 1"):
        selfcheck.check_prefix(model, asked, [], longer, **given)


def test_a_shared_image_is_compared_when_the_first_one_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, however many come: batches of one question, of two on one picture, and of two more."""
    compared: list[tuple[int, ...] | None] = []
    check = selfcheck.check_prefix

    def noted(model: Any, asked: Any, others: Any, *args: Any, **kwargs: Any) -> float:
        compared.append(next((one.image for one in others if one.image is not None), None))
        return check(model, asked, others, *args, **kwargs)

    monkeypatch.setattr(selfcheck, "check_prefix", noted)
    samples = [replace(eight()[row], image=eight()[picture].image) for row, picture in enumerate((0, 1, 1, 2, 2))]
    ask(load(HF(saved("llava"), batch_size=2), tmp_path, tokens=2), samples, ARMS)
    assert compared == [None, (0, 0)]


@pytest.mark.parametrize(
    ("lengths", "image", "places", "shared"),
    [
        ([7], [0], [0], None),
        ([7, 9], [0, 1], [0, 1], None),
        ([7, 7, 7], [0, 1, 2], [0], None),
        ([7, 9, 8], [0, 1, 2], [0, 1], None),
        ([7, 9], [0, 0], [0, 1], (0, 0)),
        ([7, 7], [0, 0], [0, 1], (0, 0)),
        ([7, 9, 8], [0, 0, 1], [0, 1, 2], (0, 0, 1)),  # with a picture that fewer questions are about
        ([9, 8, 7, 6], [0, 0, 0, 1], [0, 2, 3], (0, 0, 1)),
        ([9, 6, 8, 7], [0, 1, 2, 2], [0, 1, 2, 3], (0, 1, 2, 2)),
        ([8, 9, 6, 7], [3, 1, 3, 0], [0, 1, 2], (0, 1, 0)),
    ],
)
def test_questions_that_are_compared(
    lengths: list[int], image: list[int], places: list[int], shared: tuple[int, ...] | None
) -> None:
    assert selfcheck.choose_questions(lengths, image) == (places, shared)


PLANTED = [(fault, name) for fault in FAULTS for name in SUPPORTED if name != "llava"]


@pytest.mark.long
@pytest.mark.parametrize("dtype", FEW)
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


@pytest.mark.parametrize(
    "arm",
    [Arm(Scaling(2.0, "mass", layers="1-2")), Arm(Scaling(0.5, "temperature")), Arm(Scaling(0.5, "pai", layers="0"))],
)
def test_a_fault_in_another_kind_of_scaling(arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first("llava", "bfloat16", tmp_path, arms=(Arm(), arm))
    _other_keys(monkeypatch, lambda image: image & (image.cumsum(-1) < image.sum(-1, keepdim=True)))  # one key too few
    with pytest.raises(ModelError, match="the shared prefix is not exact on this model"):
        first("llava", "bfloat16", tmp_path, arms=(Arm(), arm))


TEXT = (Arm(), Arm(Scaling(0.5, scope="text")), Arm(Scaling(0.5, heads="0-1")), Arm(2.0))


@pytest.mark.parametrize("fault", [weight_ignored, weight_squared, shifted_span, a_layer_too_few, decode_position])
def test_a_fault_where_every_row_of_the_text_is_scaled(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="spatial_eval"):
        first_sharing("llava", "bfloat16", tmp_path, arms=TEXT[:2])
        run = load(HF(saved("llava"), dtype="bfloat16", device="cpu"), tmp_path, tokens=4)
        list(run.answer([[(eight()[0], TEXT)]]))
    assert caplog.text.count("4 tokens agree with plain generate") == 2
    fault(monkeypatch)
    with pytest.raises(ModelError, match="the shared prefix is not exact on this model"):
        first_sharing("llava", "bfloat16", tmp_path, arms=(Arm(), Arm(Scaling(0.5, scope="text"))))


def test_a_fault_in_a_contrast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava").model
    monkeypatch.setattr(model.generation_config, "suppress_tokens", [model.config.image_token_id])
    arms = (Arm(contrast=Vcd(alpha=1.0, cutoff=0.1, noise=500)), Arm(contrast=Dola(layers="low", cutoff=0.1)))
    one = load(HF(saved("llava"), name="llava", dtype="bfloat16", device="cpu"), tmp_path, tokens=4)
    one._vlm.generation_config.suppress_tokens = [model.config.image_token_id]  # type: ignore[attr-defined]
    work = [[(eight()[0], arms)]]
    assert len([record for batch in one.answer(work) for record in batch]) == 2
    ghost = engine.FollowerState.follow
    monkeypatch.setattr(
        engine.FollowerState, "follow", lambda self, leader, chosen, step: ghost(self, leader, chosen, step + 1)
    )
    one._unchecked = {"first batch"}  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"scores of new token [23] differ by .* at arm vcd"):
        list(one.answer(work))
    one._vlm.generation_config.suppress_tokens = None  # type: ignore[attr-defined]


def test_faults_that_half_precision_alone_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the run's own kernels: float32 cannot show them, the comparison with the run's own answers does."""
    attend_arms, attend_plain = attention.OwnRows._attend_arms, attention.OwnRows._attend_plain

    def in_prefill(self: Any, layer: int, query: torch.Tensor, *args: Any) -> torch.Tensor:
        out = attend_arms(self, layer, query, *args)
        return out.flip(-1) if query.dtype == torch.bfloat16 else out

    def in_steps(self: Any, layer: int, query: torch.Tensor, *args: Any) -> torch.Tensor:
        out = attend_plain(self, layer, query, *args)
        return out.flip(-1) if query.dtype == torch.bfloat16 and not self.arms else out

    for part, wrong, said in (
        ("_attend_arms", in_prefill, "first-token logits differ by"),
        ("_attend_plain", in_steps, r"new token \d is another than"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(attention.OwnRows, part, wrong)
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


def test_a_window_into_which_only_the_question_fits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Padding is no part of what a window must hold, so the padded batch is compared too."""
    one: Any = load(HF(saved("gemma3"), name="gemma3", device="cpu"), tmp_path, tokens=4)
    length = one._encoder.encode(eight()[0])[1]["input_ids"].shape[1]
    config, before = one._vlm.config.text_config, one._vlm.config.text_config.sliding_window
    try:
        config.sliding_window = length + 4
        with caplog.at_level(logging.INFO, logger="spatial_eval"):
            assert len(ask(one, eight()[:1], ARMS)) == len(ARMS)
        assert "gemma3: 4 tokens agree with plain generate" in caplog.text
        config.sliding_window = length + 3
        for failed in ask(one, eight()[:1], ARMS).values():
            assert f"exceed the sliding window of {length + 3}" in failed.error
    finally:
        config.sliding_window = before


def test_rounding_of_the_model_itself_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However strict the limit: plain generate in the same dtype says what rounding does to this model."""
    monkeypatch.setitem(selfcheck.ROUNDING, "bfloat16", 2e-3)
    assert len(first("llava", "bfloat16", tmp_path)) == len(ARMS)
    attend = attention.OwnRows._attend_arms

    def coarse(self: Any, layer: int, query: torch.Tensor, *args: Any) -> torch.Tensor:
        return attend(self, layer, query, *args) * (3 if query.dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(attention.OwnRows, "_attend_arms", coarse)
    with pytest.raises(ModelError, match=r"first-token logits differ by .* in float32"):
        first("llava", "bfloat16", tmp_path)


def test_selfcheck_first_and_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    decode = reference.decode_reference

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append("reference")
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
    list(one.answer([[(sample, ARMS) for sample in eight()]]))
    assert generates[:2] == [("engine", 8, 1), ("engine", 8, 50)]  # images, and what stands behind them
    runs = [("engine", 2, 1), ("engine", 2, 4)] * 2 + [("engine", 1, 1), ("engine", 1, 4)]
    assert sorted(generates[2:]) == sorted([*[("plain", 2, 4)] * len(ARMS), *runs])


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
    assert selfcheck._choose_probe([[(5, 6, 7, 8)]], [2]) == [6]
    assert selfcheck._choose_probe([[(5, 6, 2)]], [2]) == []
    assert selfcheck._choose_probe([[(5, 5, 6, 7), (6, 5, 9, 7)]], [2]) == [9]  # not what some arm says first
    assert selfcheck._choose_probe([[(5,)]], [2]) == [5]


def test_failures_of_the_whole_run_are_none_of_the_check(tmp_path: Path) -> None:
    found = ask(load(HF(saved("llava")), tmp_path), [replace(eight()[0], image=None)], ARMS)
    assert all(isinstance(one, Failure) for one in found.values())


def test_an_answer_that_holds_the_images_token_is_compared_up_to_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hot = Sampling(sampling_temperature=1000.0, seed=1631)  # its second token on the first question is the image's
    with caplog.at_level(logging.INFO, logger="spatial_eval"):
        found = first("llava", "float32", tmp_path, arms=(Arm(0.5), Arm(contrast=hot)))
    assert [answer.tokens[1] for answer in found.values() if answer.arm.contrast] == [4]
    assert "llava: 2 tokens agree with plain generate (scores within " in caplog.text
    failed = first("llava", "float32", tmp_path / "alone", arms=(Arm(contrast=hot),), decoding="per_arm")
    assert "new token 2 of an answer is the image's own" in next(iter(failed.values())).error
