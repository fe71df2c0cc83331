"""The engine against its oracle, on every family, and each guard against the fault it is there for."""

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
from families import SUPPORTED, build
from questions import ARMS, WEIGHTS, encode
from transformers import GenerationConfig

from spatial_eval.core.errors import ModelError
from spatial_eval.core.types import Arm
from spatial_eval.engine import attention, decode, reference, request
from spatial_eval.engine.kv_cache import Graphs, GrowingKVCache
from spatial_eval.engine.request import Decoded, Intervention, cache_keyword
from spatial_eval.models.batches import collate

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
    judge = run(reference.decode_reference, name, 4)
    plain = WEIGHTS.index(1.0)
    for weight in (0.5, 2.0):
        arm = WEIGHTS.index(weight)
        changed = sum(question[arm] != question[plain] for question in judge.tokens)
        assert 2 * changed >= len(judge.tokens), f"weight {weight} changes too little for errors to show"
    for batch in (1, 4):
        ours = run(decode.decode_arms, name, batch)
        assert ours.tokens == judge.tokens
        torch.testing.assert_close(ours.logits, judge.logits, atol=1e-4, rtol=0)


def test_the_recipe_for_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf8")
    code = text[text.index("    def aya_vision()") : text.index("    # tests/support/families.py")]
    made = dict(vars(builders))
    exec(textwrap.dedent(code), made)
    monkeypatch.setitem(families.FAMILIES, "aya_vision", made["aya_vision"])
    judge, ours = (
        run(reference.decode_reference, "aya_vision", 4, tokens=3),
        run(decode.decode_arms, "aya_vision", 4, tokens=3),
    )
    assert ours.tokens == judge.tokens
    assert len({tuple(question) for question in zip(*ours.tokens, strict=True)}) > 3, "weights change nothing"


def test_weight_one_is_the_untouched_model() -> None:
    family, inputs = build("llava"), encode("llava", slice(2))
    ours = decode.decode_arms(family.model, inputs[1], intervention=Intervention((Arm(1.0),)), max_new_tokens=6)
    stock = family.model.generate(**inputs[1], max_new_tokens=6, do_sample=False)
    assert list(ours.tokens[0][0]) == stock[0, inputs[1]["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("name", ["llava", "qwen25_vl"])
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

    judge = run(reference.decode_reference, name, 4, tokens=20)
    monkeypatch.setattr(model, "forward", counted)
    ours = run(decode.decode_arms, name, 8, tokens=20)
    assert ours.tokens == judge.tokens
    lengths = {len(arm) for question in ours.tokens for arm in question}
    assert len(lengths) > 4
    steps = rows[1:]  # what is finished stops costing: the rows of a step only ever shrink
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == (8, 7)
    assert steps[-1][0] < 8
    assert steps[-1][1] < 7


def test_cache_grows_beyond_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = run(decode.decode_arms, "llava", 4, tokens=12)
    monkeypatch.setattr(decode, "ROOM", 2)
    assert run(decode.decode_arms, "llava", 4, tokens=12).tokens == judge.tokens


@pytest.mark.parametrize("name", ["llava", "qwen25_vl"])
def test_steps_of_one_shape(name: str) -> None:
    """What a CUDA graph replays, run without one: the cache and its addresses survive from batch to batch."""
    graphs, family, inputs = Graphs(), build(name), encode(name)
    judge = run(decode.decode_arms, name, 4, tokens=9)
    stores = []
    for start in (0, 4, 0):
        merged = collate(inputs[start : start + 4], family.processor.tokenizer.pad_token_id)
        ours = decode.decode_arms(family.model, merged, intervention=ALL, max_new_tokens=9, graphs=graphs)
        assert ours.tokens == judge.tokens[start : start + 4]
        assert graphs._cache is not None
        assert graphs._cache.roomy[0].store is not None
        stores.append((graphs.columns, graphs._cache.roomy[0].store[0].data_ptr()))
    assert len({columns for columns, _ in stores}) == len(set(stores))


def test_layers() -> None:
    intervention = Intervention((Arm(0.5), Arm(2.0)), layers=2)
    judge, ours = (
        run(way, "idefics3", 4, intervention=intervention) for way in (reference.decode_reference, decode.decode_arms)
    )
    assert ours.tokens == judge.tokens
    whole = run(decode.decode_arms, "idefics3", 4, intervention=Intervention((Arm(0.5), Arm(2.0))))
    assert not torch.allclose(ours.logits, whole.logits, atol=1e-3)


@pytest.mark.parametrize("name", ["idefics3", "smolvlm2", "internvl", "llava_onevision", "qwen3_vl", "gemma3"])
def test_span(name: str) -> None:
    """From the first to the last image token lies text only where it stands between tiles."""
    arms = (Arm(0.5), Arm(2.0))
    judge, ours = (
        run(way, name, 4, tokens=3, intervention=Intervention(arms, span=True))
        for way in (reference.decode_reference, decode.decode_arms)
    )
    assert ours.tokens == judge.tokens
    by_id = run(decode.decode_arms, name, 4, tokens=3, intervention=Intervention(arms))
    assert torch.allclose(ours.logits, by_id.logits, atol=1e-3) == (name not in ("idefics3", "smolvlm2"))


def test_logits_processors_of_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava").model
    without = run(decode.decode_arms, "llava", 4)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 3.0)
    judge = run(reference.decode_reference, "llava", 4)
    assert judge.tokens != without.tokens
    assert run(decode.decode_arms, "llava", 4).tokens == judge.tokens


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
def test_what_the_engine_refuses_the_oracle_answers(name: str) -> None:
    model, inputs = build(name).model, encode(name, slice(1))[0]
    with pytest.raises((ModelError, ValueError), match=r"model.decoding=per_arm may still do"):
        decode.decode_arms(model, inputs, intervention=ALL, max_new_tokens=3)
    judge = reference.decode_reference(model, inputs, intervention=ALL, max_new_tokens=3)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")  # transformers 5.17's SDPA, its default, leaves a softcap out in silence
    stock = eager.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert list(judge.tokens[0][WEIGHTS.index(1.0)]) == stock[0, inputs["input_ids"].shape[1] :].tolist()


def test_stop_strings_are_refused() -> None:
    class Other:
        pass

    with pytest.raises(ModelError, match="asks for Other"):
        decode._check_stopping([Other()])


def test_prompt_must_end_in_text_and_hold_an_image() -> None:
    model, inputs = build("llava").model, encode("llava", slice(1))[0]
    image = {**inputs, "input_ids": torch.full_like(inputs["input_ids"], model.config.image_token_id)}
    with pytest.raises(ModelError, match="last prompt position must be text"):
        decode._prefill(model, image["input_ids"], ALL, GrowingKVCache(4, 8), {})
    words = torch.full_like(inputs["input_ids"], 9)
    with pytest.raises(ValueError, match="no image token"):
        decode._prefill(model, words, ALL, GrowingKVCache(4, 8), {})


@pytest.mark.parametrize("name", ["llava_next", "gemma3"])
def test_sliding_window_that_would_cut_the_prompt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = build(name).model, encode(name, slice(1))[0]
    length = inputs["input_ids"].shape[1]
    judge = reference.decode_reference(model, inputs, intervention=ALL, max_new_tokens=3)
    for window in (length + 2, length + 5):  # what is generated would be cut, then the last arms' view of the prompt
        monkeypatch.setattr(model.config.text_config, "sliding_window", window)
        with pytest.raises(
            ValueError, match=f"3 new tokens and 7 arms exceed the sliding window of {window}; model.dec"
        ):
            decode.decode_arms(model, inputs, intervention=ALL, max_new_tokens=3)
    monkeypatch.setattr(model.config.text_config, "sliding_window", length + 6)
    ours = decode.decode_arms(model, inputs, intervention=ALL, max_new_tokens=3)
    assert ours.tokens == judge.tokens
    torch.testing.assert_close(ours.logits, judge.logits, atol=1e-4, rtol=0)


def test_guard_a_window_that_cuts_some_arms_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = build("gemma3").model, encode("gemma3", slice(1))[0]
    monkeypatch.setattr(model.config.text_config, "sliding_window", inputs["input_ids"].shape[1] + 2)
    monkeypatch.setattr(decode, "_check_window", lambda *args, **kwargs: None)
    with pytest.raises(ModelError, match=r"layer 0 shows its arms different parts of the prompt; model.decoding=per"):
        decode.decode_arms(model, inputs, intervention=ALL, max_new_tokens=3)


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


def test_guard_a_model_that_ignores_the_cache_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers 5.24 did with a cache under its former name: a warning, and the keys went elsewhere."""
    model = build("llava").model
    forward = model.forward

    @wraps(forward)
    def deaf(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop(cache_keyword(model))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", deaf)
    inputs = encode("llava", slice(1))[0]
    wide = inputs["input_ids"].shape[1] - 1 + len(ARMS)
    with pytest.raises(ModelError, match=rf"^the model wrote 0 of {wide} positions into the KV cache that it was "):
        decode.decode_arms(model, inputs, intervention=ALL, max_new_tokens=2)


# Planted faults. The first two are caught inside the prefill, the others by comparing with the oracle
# (test_vlm.py runs the same comparison through a loaded model).


def test_guard_a_layer_that_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava").model
    skipped = model.model.language_model.layers[2].self_attn
    monkeypatch.setattr(skipped.config, "_attn_implementation_internal", "sdpa")
    monkeypatch.setattr(skipped, "config", type(skipped.config)(**skipped.config.to_dict()))
    skipped.config._attn_implementation_internal = "sdpa"
    with pytest.raises(ModelError, match=r"fired in layers \[0, 1, 3\] instead of once in each of \[0, 1, 2, 3\]"):
        decode.decode_arms(model, encode("llava", slice(1))[0], intervention=ALL, max_new_tokens=2)


def test_guard_the_mask_function_is_unregistered() -> None:
    merged = collate(encode("llava", slice(4)), 2)
    masks = attention.AttentionMaskInterface._global_mapping
    kept = masks.pop(attention.NAME)
    try:
        with pytest.raises(ModelError, match="no mask function is registered"):
            decode.decode_arms(build("llava").model, merged, intervention=ALL, max_new_tokens=2)
    finally:
        masks[attention.NAME] = kept
