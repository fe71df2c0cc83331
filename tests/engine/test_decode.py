"""The engine against the reference implementation on every family, and each guard against the fault it is there for."""

from __future__ import annotations

import copy
import textwrap
from functools import wraps
from pathlib import Path
from typing import Any

import builders
import families
import pytest
import torch
from families import SUPPORTED, build, picture
from questions import ARMS, WEIGHTS, encode, encode_one, share
from transformers import GenerationConfig

from spatial_eval.core.arms import Arm, Scaling
from spatial_eval.core.errors import ModelError
from spatial_eval.engine import attention, decode, kv_cache, request, state
from spatial_eval.engine.decode import decode_arms
from spatial_eval.engine.kv_cache import Graphs
from spatial_eval.engine.prefix import PromptBatch
from spatial_eval.engine.reference import decode_reference
from spatial_eval.engine.request import Decoded, Intervention, cache_keyword
from spatial_eval.models.batches import collate, pad_prompt

ALL = Intervention(ARMS)


def run(way: Any, name: str, batch: int, *, tokens: int = 6, intervention: Intervention = ALL) -> Decoded:
    family, inputs = build(name), encode(name)
    answers, parts = [], []
    for start in range(0, len(inputs), batch):
        merged = collate(inputs[start : start + batch], family.processor.tokenizer.pad_token_id)
        part = way(family.model, merged, intervention=intervention, max_new_tokens=tokens)
        answers += part.tokens
        parts.append(part)
    return Decoded(answers, *(torch.cat([getattr(one, name) for one in parts]) for name in ("logits", "scores")))


@pytest.mark.parametrize("name", SUPPORTED)
def test_exact_on_every_family(name: str) -> None:
    expected = run(decode_reference, name, 4)
    plain = WEIGHTS.index(1.0)
    for weight in (0.5, 2.0):
        arm = WEIGHTS.index(weight)
        changed = sum(question[arm] != question[plain] for question in expected.tokens)
        assert 2 * changed >= len(expected.tokens), f"weight {weight} changes too little for errors to show"
    for batch in (1, 4):
        ours = run(decode_arms, name, batch)
        assert ours.tokens == expected.tokens
        torch.testing.assert_close(ours.logits, expected.logits, atol=1e-4, rtol=0)


def test_the_recipe_for_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf8")
    code = text[text.index("    def aya_vision()") : text.index("    # tests/support/families.py")]
    made = dict(vars(builders))
    exec(textwrap.dedent(code), made)
    monkeypatch.setitem(families.FAMILIES, "aya_vision", made["aya_vision"])
    expected, ours = run(decode_reference, "aya_vision", 4, tokens=3), run(decode_arms, "aya_vision", 4, tokens=3)
    assert ours.tokens == expected.tokens
    assert len({tuple(question) for question in zip(*ours.tokens, strict=True)}) > 3, "weights change nothing"


def test_weight_one_is_the_untouched_model() -> None:
    family, inputs = build("llava"), encode("llava", slice(2))
    ours = decode_arms(family.model, inputs[1], intervention=Intervention((Arm(1.0),)), max_new_tokens=6)
    stock = family.model.generate(**inputs[1], max_new_tokens=6, do_sample=False)
    assert list(ours.tokens[0][0]) == stock[0, inputs[1]["input_ids"].shape[1] :].tolist()


COUNTS = {0: 1, 3: 2, 6: 6}  # pictures of different sizes: the prefixes of models with tiles differ in length


def run_shared(
    way: Any,
    name: str,
    counts: dict[int, int] = COUNTS,
    *,
    tokens: int = 8,
    intervention: Intervention = ALL,
    **more: Any,
) -> Decoded:
    """Prompts of which several are about one picture: the engine's batch, or the reference one prompt at a time."""
    model, asked = build(name).model, share(name, counts)
    if way is decode_arms:
        return decode_arms(
            model, asked.inputs, intervention=intervention, max_new_tokens=tokens, image=asked.image, **more
        )
    return Decoded.join([way(model, one, intervention=intervention, max_new_tokens=tokens) for one in asked.prompts])


@pytest.mark.parametrize("name", SUPPORTED)
def test_questions_on_one_image_share_it(name: str) -> None:
    """Exact, whether they decode together or some at a time; and the vision tower sees each picture once."""
    expected = run_shared(decode_reference, name)
    plain = WEIGHTS.index(1.0)
    moved = sum(arm != prompt[plain] for prompt in expected.tokens for arm in prompt)
    assert moved > 9 * 7 / 5, "weights change too little for errors to show"
    for chunks in ((), (4, 5), (1,) * 9):
        ours = run_shared(decode_arms, name, chunks=chunks)
        assert ours.tokens == expected.tokens
        torch.testing.assert_close(ours.logits, expected.logits, atol=2e-4, rtol=0)


STRONG = (
    *(Arm(weight) for weight in (0.0, 0.5, 1.0, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)),
    *(Arm(Scaling(weight, "mass")) for weight in (0.1, 3.0, 6.0)),
    Arm(Scaling(2.0, "pai")),
    Arm(Scaling(0.5, scope="text")),
    Arm(Scaling(3.0, scope="text")),
)


@pytest.mark.long
@pytest.mark.parametrize("name", SUPPORTED)
def test_exact_however_the_work_is_cut(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """135 answers that end at different steps, in whole batches and parts, with all arms and fewer at a time."""
    model, asked = build(name).model, share(name, COUNTS)
    ends = [id for id in range(model.config.get_text_config().vocab_size) if id % 11 == 3]
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    every = Intervention(STRONG)
    expected = decode_reference(model, collate(asked.prompts, asked.pad_id), intervention=every, max_new_tokens=12)
    answers = [arm for prompt in expected.tokens for arm in prompt]
    plain = STRONG.index(Arm(1.0))
    moved = sum(arm != prompt[plain] for prompt in expected.tokens for arm in prompt)
    assert len(answers) >= 126
    assert 2 * moved >= len(answers), "weights change too little for errors to show"
    assert len({len(answer) for answer in answers}) > 4

    def answer(prompts: slice, arms: tuple[Arm, ...] = STRONG, **more: Any) -> Decoded:
        part = asked.select(prompts)
        intervention = Intervention(arms)
        return decode_arms(model, part.inputs, intervention=intervention, max_new_tokens=12, image=part.image, **more)

    whole = slice(0, 9)
    by_arms = [answer(whole, STRONG[:4]), answer(whole, STRONG[4:])]
    ways = {
        **{f"chunks {chunks}": answer(whole, chunks=chunks) for chunks in ((), (2, 3, 4), (1,) * 9)},
        "two batches": Decoded.join([answer(slice(0, 5)), answer(slice(5, 9))]),
        "one prompt per batch": Decoded.join([answer(slice(i, i + 1)) for i in range(9)]),
        "arms in two parts": Decoded.join(by_arms, arms=True),
        "steps of one shape": answer(whole, graphs=Graphs()),
    }
    for way, ours in ways.items():
        assert ours.tokens == expected.tokens, way
        # Of 12 steps in float32; which of its kernels a CPU takes decides the rest: 2.003e-4 is the most seen.
        torch.testing.assert_close(ours.logits, expected.logits, atol=4e-4, rtol=0)


@pytest.mark.parametrize("name", ["llava", "qwen25_vl"])
def test_sharing_rounds_no_more_than_batching(name: str) -> None:
    """In bfloat16 it moves answers, confidences and logits by as much as other batches and plain generates do."""
    exact, asked = run_shared(decode_arms, name), share(name, COUNTS)
    model = copy.deepcopy(build(name).model).to(torch.bfloat16)

    def rounded(way: Any, prompts: dict[str, torch.Tensor], **more: Any) -> Decoded:
        given = {
            key: value.to(torch.bfloat16) if value.is_floating_point() else value for key, value in prompts.items()
        }
        decoded: Decoded = way(model, given, intervention=ALL, max_new_tokens=8, **more)
        return decoded

    def moved(one: Decoded, other: Decoded) -> tuple[float, float, float]:
        """Median gap of first logits in standard deviations and of confidences, and the share of other answers."""
        gap = (one.logits - other.logits).abs().amax(dim=-1) / other.logits.std()
        first, second = (decoded.logits.softmax(dim=-1).amax(dim=-1) for decoded in (one, other))
        answers = [(a, b) for x, y in zip(one.tokens, other.tokens, strict=True) for a, b in zip(x, y, strict=True)]
        apart = sum(a != b for a, b in answers) / len(answers)
        return gap.median().item(), (first - second).abs().median().item(), apart

    alone = Decoded.join([rounded(decode_arms, prompt) for prompt in asked.prompts])
    plain = Decoded.join([rounded(decode_reference, prompt) for prompt in asked.prompts])
    whole = rounded(decode_arms, collate(asked.prompts, asked.pad_id))
    shared = rounded(decode_arms, asked.inputs, image=asked.image)
    for judge, others in ((exact, (alone, plain, whole)), (alone, (plain, whole))):
        limits = [max(each) for each in zip(*(moved(other, judge) for other in others), strict=True)]
        assert min(limits) > 0, "bfloat16 rounds nothing here"
        assert all(found <= 1.2 * limit for found, limit in zip(moved(shared, judge), limits, strict=True))


@pytest.mark.parametrize("counts", [{3: 1}, {3: 2}, {3: 6}], ids=str)
@pytest.mark.parametrize("name", ["llava", "qwen25_vl"])
def test_one_image(name: str, counts: dict[int, int]) -> None:
    expected, ours = (run_shared(way, name, counts) for way in (decode_reference, decode_arms))
    assert ours.tokens == expected.tokens


@pytest.mark.parametrize("name", ["llava", "qwen25_vl", "idefics3"])
def test_each_picture_is_seen_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = build(name).model, []
    tower = next(m for n, m in model.named_modules() if n.endswith(("vision_tower", "vision_model", ".visual")))
    forward = tower.forward

    @wraps(forward)
    def counted(*args: Any, **kwargs: Any) -> Any:
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
        seen.append(given[0].shape[0])
        return forward(*args, **kwargs)

    monkeypatch.setattr(tower, "forward", counted)
    run_shared(decode_arms, name, {0: 1, 3: 1, 6: 1}, tokens=1)
    alone = sum(seen)
    seen.clear()
    run_shared(decode_arms, name, tokens=1)
    assert sum(seen) == alone


def test_the_image_is_read_once_and_each_prompt_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = build("llava").model, []
    forward = model.forward

    @wraps(forward)
    def counted(*args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    asked = share("llava", {3: 6})
    decode_arms(model, asked.inputs, intervention=ALL, max_new_tokens=1, image=asked.image)
    token = model.config.image_token_id
    ends = [len(one["input_ids"][0]) - one["input_ids"][0].flip(0).tolist().index(token) for one in asked.prompts]
    longest = max(len(one["input_ids"][0]) - end for one, end in zip(asked.prompts, ends, strict=True))
    assert shapes == [(1, ends[0] + 1), (6, longest - 1 + len(ARMS))]


@pytest.mark.parametrize("text", ["USER: {} <image> A:", "{}\n<image>."], ids=["before", "one token behind"])
def test_a_question_before_its_image_shares_nothing(text: str) -> None:
    family = build("llava")
    made = [
        dict(family.processor(images=[picture(3, (64, 64))], text=[text.format(question)], return_tensors="pt"))
        for question in ("Where is the cup?", "Left or right?", "Up?")
    ]
    merged = collate(made, 2)
    expected, ours = (
        way(family.model, merged, intervention=ALL, max_new_tokens=6) for way in (decode_reference, decode_arms)
    )
    assert ours.tokens == expected.tokens


def test_left_padding_inside_the_prompt_changes_nothing() -> None:
    """What `model.pad_to` adds: masked positions that no row sees."""
    family, inputs = build("llava"), encode_one("llava", "Where is the cup?", 3)
    padded = pad_prompt(inputs, pad_to=200, image_token=family.model.config.image_token_id, pad_id=2)
    assert padded["input_ids"].shape[1] > inputs["input_ids"].shape[1]
    plain, ours = (decode_arms(family.model, one, intervention=ALL, max_new_tokens=6) for one in (inputs, padded))
    assert ours.tokens == plain.tokens
    torch.testing.assert_close(ours.logits, plain.logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["llava", "qwen25_vl", "internvl", "gemma3"])
def test_branches_that_end_at_different_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name).model
    ends = [id for id in range(model.config.get_text_config().vocab_size) if id % 7 == 3]
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    rows: list[tuple[int, int]] = []
    forward = model.forward

    @wraps(forward)
    def counted(*args: Any, **kwargs: Any) -> Any:
        rows.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    expected = run_shared(decode_reference, name, tokens=20)
    monkeypatch.setattr(model, "forward", counted)
    ours = run_shared(decode_arms, name, tokens=20)
    assert ours.tokens == expected.tokens
    lengths = {len(arm) for question in ours.tokens for arm in question}
    assert len(lengths) > 4
    steps = rows[2:]  # what is finished stops costing: the rows of a step only ever shrink
    assert steps == sorted(steps, reverse=True)
    assert steps[0][1] == 7
    assert steps[-1][0] < 9
    assert steps[-1][1] < 7


def test_cache_grows_beyond_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(decode_arms, "llava", 4, tokens=12)
    monkeypatch.setattr(state, "ROOM", 2)
    assert run(decode_arms, "llava", 4, tokens=12).tokens == expected.tokens


@pytest.mark.parametrize("name", ["llava", "qwen25_vl"])
def test_steps_of_one_shape(name: str) -> None:
    """What a CUDA graph replays, run without one: the caches and their addresses survive from batch to batch."""
    graphs, family, inputs = Graphs(), build(name), encode(name)
    expected = run(decode_arms, name, 4, tokens=9)
    stores = set()
    for start in (0, 0, 4, 4):
        merged = collate(inputs[start : start + 4], family.processor.tokenizer.pad_token_id)
        ours = decode_arms(family.model, merged, intervention=ALL, max_new_tokens=9, graphs=graphs)
        assert ours.tokens == expected.tokens[start : start + 4]
        stores.add((start, *(cache.show(1)[0][0].data_ptr() for _, cache in graphs._caches.values())))
    assert len(stores) == 2


@pytest.mark.parametrize("chunks", [(), (4, 5)], ids=str)
def test_steps_of_one_shape_over_shared_images(chunks: tuple[int, ...]) -> None:
    expected, graphs = run_shared(decode_reference, "llava"), Graphs()
    for _ in range(2):
        assert run_shared(decode_arms, "llava", graphs=graphs, chunks=chunks).tokens == expected.tokens
    other = run_shared(decode_arms, "llava", {3: 6, 6: 3}, graphs=graphs)
    assert other.tokens == run_shared(decode_reference, "llava", {3: 6, 6: 3}).tokens


class Replayed:
    """Stands for a CUDA graph: replaying gives `shift` more than the step that was captured."""

    shift = 0.0

    def __init__(self, graphs: Graphs, model: Any) -> None:
        self.graphs, self.model = graphs, model

    def replay(self) -> None:
        self.graphs._logits = self.graphs._forward(self.model) + self.shift


@pytest.fixture
def replaying(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that says it captures graphs."""

    def capture(self: Graphs, model: Any) -> None:
        self._graph = Replayed(self, model)  # type: ignore[assignment]

    monkeypatch.setattr(Graphs, "_capture", capture)
    monkeypatch.setattr(kv_cache, "_replays", lambda device: True)


@pytest.mark.usefixtures("replaying")
def test_replayed_steps_are_compared_with_eager_ones(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(decode_arms, "llava", 4).tokens[:4]
    merged = collate(encode("llava", slice(4)), 2)
    graphs = Graphs(required=False)
    with caplog.at_level("INFO"):
        ours = decode_arms(build("llava").model, merged, intervention=ALL, max_new_tokens=6, graphs=graphs)
    assert (ours.tokens, graphs.fault) == (expected, "")
    assert "decode steps are replayed as a CUDA graph: 2 of them gave the eager steps' logits" in caplog.text
    monkeypatch.setattr(Replayed, "shift", 1.0)
    graphs = Graphs(required=False)
    ours = decode_arms(build("llava").model, merged, intervention=ALL, max_new_tokens=6, graphs=graphs)
    assert (ours.tokens, graphs.fault) == (expected, "a replayed step gave other logits than the same step run eagerly")
    with pytest.raises(
        ModelError, match=r"cannot be replayed as a CUDA graph: a replayed step .*; set model.graphs=fa"
    ):
        decode_arms(build("llava").model, merged, intervention=ALL, max_new_tokens=6, graphs=Graphs())


def fail(*args: Any) -> None:
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.mark.usefixtures("replaying")
def test_a_step_that_cannot_be_captured_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Graphs, "_capture", fail)
    merged, graphs = collate(encode("llava", slice(4)), 2), Graphs(required=False)
    ours = decode_arms(build("llava").model, merged, intervention=ALL, max_new_tokens=6, graphs=graphs)
    assert ours.tokens == run(decode_arms, "llava", 4).tokens[:4]
    assert graphs.fault == "operation not permitted when stream is capturing"


def test_layers() -> None:
    intervention = Intervention((Arm(0.5), Arm(2.0)), layers=2)
    expected, ours = (run(way, "idefics3", 4, intervention=intervention) for way in (decode_reference, decode_arms))
    assert ours.tokens == expected.tokens
    whole = run(decode_arms, "idefics3", 4, intervention=Intervention((Arm(0.5), Arm(2.0))))
    assert not torch.allclose(ours.logits, whole.logits, atol=1e-3)


@pytest.mark.parametrize("name", ["idefics3", "smolvlm2", "internvl", "llava_onevision", "qwen3_vl", "gemma3"])
def test_span(name: str) -> None:
    """From the first to the last image token lies text only where it stands between tiles."""
    arms = (Arm(0.5), Arm(2.0))
    expected, ours = (
        run(way, name, 4, tokens=3, intervention=Intervention(arms, span=True))
        for way in (decode_reference, decode_arms)
    )
    assert ours.tokens == expected.tokens
    by_id = run(decode_arms, name, 4, tokens=3, intervention=Intervention(arms))
    assert torch.allclose(ours.logits, by_id.logits, atol=1e-3) == (name not in ("idefics3", "smolvlm2"))


def test_logits_processors_of_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava").model
    without = run(decode_arms, "llava", 4)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 3.0)
    expected = run(decode_reference, "llava", 4)
    assert expected.tokens != without.tokens
    assert run(decode_arms, "llava", 4).tokens == expected.tokens


def test_why_not() -> None:
    assert [decode.reason_for_per_arm(build(name).model) for name in SUPPORTED] == [""] * len(SUPPORTED)
    assert "prefix LM" in decode.reason_for_per_arm(build("paligemma").model)
    assert "softcap" in decode.reason_for_per_arm(build("softcap").model)


def test_why_not_by_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava").model
    monkeypatch.setattr(model.config, "quantization_config", {"bits": 4}, raising=False)
    assert "quantised" in decode.reason_for_per_arm(model)
    monkeypatch.undo()
    monkeypatch.setattr(model, "generation_config", GenerationConfig(cache_implementation="quantized"))
    assert "quantized" in decode.reason_for_per_arm(model)
    monkeypatch.setattr(model, "generation_config", GenerationConfig(num_beams=4))
    with pytest.raises(ModelError, match="asks for 4 beams: answers here are greedy"):
        decode.reason_for_per_arm(model)


@pytest.mark.parametrize("name", ["paligemma", "softcap", "gemma3_cut"])
def test_what_the_engine_rejects_the_reference_answers(name: str) -> None:
    model, inputs = build(name).model, encode(name, slice(1))[0]
    with pytest.raises((ModelError, ValueError), match=r"model.decoding=per_arm may still do"):
        decode_arms(model, inputs, intervention=ALL, max_new_tokens=3)
    expected = decode_reference(model, inputs, intervention=ALL, max_new_tokens=3)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")  # transformers 5.17's SDPA, its default, leaves a softcap out in silence
    stock = eager.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert list(expected.tokens[0][WEIGHTS.index(1.0)]) == stock[0, inputs["input_ids"].shape[1] :].tolist()


def test_stop_strings_are_refused() -> None:
    class Other:
        pass

    with pytest.raises(ModelError, match="asks for Other"):
        decode._check_stopping([Other()])


def test_prompt_must_end_in_text_and_hold_an_image() -> None:
    model, inputs = build("llava").model, encode("llava", slice(1))[0]
    image = {**inputs, "input_ids": torch.full_like(inputs["input_ids"], model.config.image_token_id)}
    with pytest.raises(ValueError, match=r"the prompt ends with its image.*model.decoding=per_arm may still do"):
        decode_arms(model, image, intervention=ALL, max_new_tokens=1)
    padded = {**inputs, "attention_mask": inputs["attention_mask"].flip(-1).cumsum(dim=-1).flip(-1).gt(1).long()}
    with pytest.raises(ModelError, match="pad on the left"):
        decode_arms(model, padded, intervention=ALL, max_new_tokens=1)
    words = {**inputs, "input_ids": torch.full_like(inputs["input_ids"], 9)}
    with pytest.raises(ValueError, match="no image token"):
        decode_arms(model, words, intervention=ALL, max_new_tokens=1)


@pytest.mark.parametrize("name", ["llava_next", "gemma3"])
def test_sliding_window_that_would_cut_the_prompt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = build(name).model, encode(name, slice(1))[0]
    length = inputs["input_ids"].shape[1]
    expected = decode_reference(model, inputs, intervention=ALL, max_new_tokens=3)
    monkeypatch.setattr(model.config.text_config, "sliding_window", length + 2)
    with pytest.raises(
        ValueError,
        match=f"{length + 3} positions of prompt and answer exceed the sliding window of {length + 2}; model",
    ):
        decode_arms(model, inputs, intervention=ALL, max_new_tokens=3)
    monkeypatch.setattr(model.config.text_config, "sliding_window", length + 3)
    ours = decode_arms(model, inputs, intervention=ALL, max_new_tokens=3)
    assert ours.tokens == expected.tokens
    torch.testing.assert_close(ours.logits, expected.logits, atol=1e-4, rtol=0)


def test_guard_a_window_that_cuts_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the config does not tell of in the usual place."""
    model, inputs = build("gemma3").model, encode("gemma3", slice(1))[0]
    monkeypatch.setattr(model.config.text_config, "sliding_window", 10)
    monkeypatch.setattr(PromptBatch, "check_window", lambda *args: None)
    with pytest.raises(
        ModelError, match=r"layer 0 hides part of the prompt \(a sliding window\?\); model.decoding=per"
    ):
        decode_arms(model, inputs, intervention=ALL, max_new_tokens=3)


def test_the_cache_goes_by_the_name_that_the_model_gives_it() -> None:
    class Now:
        def forward(self, input_ids: Any = None, cache: Any = None, **kwargs: Any) -> None: ...

    class Before:
        def forward(self, input_ids: Any = None, past_key_values: Any = None, **kwargs: Any) -> None: ...

    class Between(Before):
        def forward(self, input_ids: Any = None, past_key_values: Any = None, cache: Any = None) -> None: ...

    class Wrapped(Now):
        @wraps(Now.forward)
        def forward(self, *args: Any, **kwargs: Any) -> None: ...

    class Neither:
        def forward(self, input_ids: Any = None, **kwargs: Any) -> None: ...

    assert [cache_keyword(kind()) for kind in (Now, Before, Between, Wrapped)] == [
        "cache",
        "past_key_values",
        "cache",
        "cache",
    ]
    with pytest.raises(ModelError, match=r"^Neither takes no KV cache called cache or past_key_values: model.decoding"):
        cache_keyword(Neither())


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_family_takes_a_cache(name: str) -> None:
    """The name is the one that transformers' own decoding uses, so that nothing else arrives under the other one."""
    model, seen = build(name).model, set()

    def look(model: Any, input_ids: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return input_ids

    model.generate(**encode(name, slice(1))[0], custom_generate=look, max_new_tokens=1, do_sample=False)
    assert seen & set(request.CACHE_NAMES) == {cache_keyword(model)}


@pytest.mark.parametrize("ignored", [0, 1])
def test_guard_a_model_that_ignores_the_cache_it_is_given(ignored: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers 5.24 did with a cache under its former name: a warning, and the keys went elsewhere.

    Either that of the images or that of what stands behind them.
    """
    model = build("llava").model
    forward, caches = model.forward, []

    @wraps(forward)
    def deaf(*args: Any, **kwargs: Any) -> Any:
        caches.append(kwargs.pop(cache_keyword(model)))
        if len(caches) - 1 != ignored:
            kwargs[cache_keyword(model)] = caches[-1]
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", deaf)
    inputs = encode("llava", slice(1))[0]
    end = inputs["input_ids"].shape[1] - int(
        inputs["input_ids"][0].flip(0).eq(model.config.image_token_id).int().argmax()
    )
    wide = (end + 1, inputs["input_ids"].shape[1] - end - 1 + len(ARMS))[ignored]
    with pytest.raises(ModelError, match=rf"^the model wrote 0 of {wide} positions into the KV cache that it was "):
        decode_arms(model, inputs, intervention=ALL, max_new_tokens=2)
    assert len(caches) == ignored + 1


# Planted faults that are caught inside a prefill; others by the comparison with the reference (test_selfcheck.py).


def test_guard_a_layer_that_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava").model
    skipped = model.model.language_model.layers[2].self_attn
    monkeypatch.setattr(skipped.config, "_attn_implementation_internal", "sdpa")
    monkeypatch.setattr(skipped, "config", type(skipped.config)(**skipped.config.to_dict()))
    skipped.config._attn_implementation_internal = "sdpa"
    with pytest.raises(ModelError, match=r"fired in layers \[0, 1, 3\] instead of once in each of \[0, 1, 2, 3\]"):
        decode_arms(model, encode("llava", slice(1))[0], intervention=ALL, max_new_tokens=2)


def test_guard_the_mask_function_is_unregistered() -> None:
    merged = collate(encode("llava", slice(4)), 2)
    masks = attention.AttentionMaskInterface._global_mapping
    kept = masks.pop(attention.NAME)
    try:
        with pytest.raises(ModelError, match="no mask function is registered"):
            decode_arms(build("llava").model, merged, intervention=ALL, max_new_tokens=2)
    finally:
        masks[attention.NAME] = kept
