"""Decode every arm of a batch of prompts over one prefill per image (`model.decoding=shared`).

    image prefix (I, P)  ->  prompt (N, S own rows)  ->  arm (A, one row each)  ->  token

1. The text up to the last image token is read once per image: its keys and values are an `ImagePrefix`.
2. The rows behind the image are read once per prompt over the prefix; the last prompt token once per arm.
3. All arms of all prompts decode together, each row over the prefix of its image, its prompt's rows and its own.

An arm of scope `text` changes every row behind the image, so it has prompt rows of its own over the same prefix.
`generate(custom_generate=...)` is the front door, so position ids, logits processors and encoded images come from
transformers. A picture stands in ARCHITECTURE.md.

An image may be several pictures: it then begins with the first of them and ends with the last.

I images, P prefix columns, N prompts of L tokens, S rows behind the image, A arms, n prompts (per arm of scope `text`)
that still decode with R rows each, C own columns, T new tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from spatial_eval.core.arms import BASE, Arm, Contrast, Sampling, SecondPrompt, Sid, Var, Vcd
from spatial_eval.core.errors import ModelError
from spatial_eval.engine.attention import (
    PER_ARM,
    AttentionCapture,
    ImagePrefix,
    OwnRows,
    Packing,
    PrefixRows,
    PrunedRows,
    Pruning,
    Weighted,
    last_layer_trimmed,
    layer_scalings,
    switched,
)
from spatial_eval.engine.contrastive import SCORES, Reading, draw_tokens, early_layers
from spatial_eval.engine.kv_cache import Graphs, GrowingKVCache
from spatial_eval.engine.request import (
    LOOP,
    PREFIX_LM,
    SEQUENCES,
    Attended,
    ConfigFields,
    Decoded,
    Intervention,
    cache_keyword,
    check_text_before,
    draw_number,
    end_tokens,
    image_token_id,
    select_image,
    sink_dimensions,
)
from spatial_eval.engine.reweighting import (
    Dimensions,
    Memory,
    SinkMemory,
    layer_heads,
    open_memory,
    sink_strengths,
)

SHARED, HIDDEN = -1, -2  # owners of own columns that every row of a prompt, or none, may see
TEXT = "text"
# Which prefix: None = the image, a number = with noise, a second prompt = with its text before, TEXT = that alone,
# `rank N` = with pruned keys, per prompt.
Place = int | str | SecondPrompt | None
ROOM = 16  # decode steps that a cache has room for before it grows
CACHES = (None, "dynamic", "hybrid")  # hybrid (Gemma 3's checkpoints): transformers takes a dynamic one


def decode_arms(
    model: Any,
    inputs: Mapping[str, Tensor],
    *,
    intervention: Intervention,
    max_new_tokens: int,
    image: Sequence[int] | None = None,
    counts: Sequence[int] = (),
    chunks: Sequence[int] = (),
    graphs: Graphs | None = None,
    memory: PrefixMemory | None = None,
    names: Hashable = None,
    trace: bool = False,
) -> Decoded:
    """Answer N prompts greedily under every arm, exact up to the rounding of batched products.

    Args:
        inputs: what the processor gives: left padded `input_ids` (N, L), `attention_mask`, ... and the tensors of I
            images. Prompts of one image have the same tokens up to its end.
        image: each prompt's image, an index below I; None = one image per prompt, in order.
        counts: how many pictures each of the I images is, with text between them or not; () = one.
        chunks: how many of the prompts decode together at a time, in order, over prefixes that are read once; () = all.
        graphs: with it decode steps have one shape and are replayed.
        memory: with it prefixes are read again where those read last were of the same `names`, which must tell
            images, and the text before them, from all others.
        trace: keep the scores of every token.

    Raises ModelError where a guard fails, ValueError where this batch cannot be answered.
    """
    arms = [BASE if arm.untouched else arm for arm in intervention.arms]
    distinct = tuple(dict.fromkeys(arms))
    asked = replace(intervention, arms=distinct)  # arms that leave the model untouched are one
    ids = inputs["input_ids"]
    numbers = list(range(len(ids)) if image is None else image)
    token, text_config = image_token_id(model.config), model.config.get_text_config()
    spans = _find_spans(inputs, token)
    second_spans = {prompt: _find_spans(given, token) for prompt, given in intervention.seconds.items()}
    for given, found in ((inputs, spans), *((intervention.seconds[one], second_spans[one]) for one in second_spans)):
        _check_window(text_config, max(given["input_ids"].shape[1] - start for start, _ in found) + max_new_tokens)

    def generate(given: Mapping[str, Tensor], decoding: Any) -> Any:
        return model.generate(
            **given, custom_generate=decoding, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
        )

    def read(
        given: Mapping[str, Tensor],
        columns: Sequence[Sequence[int]],
        graphs: Graphs | None,
        about: Intervention = asked,
    ) -> ImagePrefix:
        cut, lengths = _prefix_inputs(given, numbers, columns)
        prefix: ImagePrefix = generate(
            cut, partial(_read_images, asked=about, parts=owned, lengths=lengths, graphs=graphs, known=known)
        )
        return prefix

    owned = [asked.parts[numbers.index(one)] for one in range(max(numbers) + 1)] if asked.parts else []
    moved = {arm: arm.attention for arm in distinct if isinstance(arm.attention, Var)}
    first = [int(row[start]) for row, (start, _) in zip(ids, spans, strict=True)] if moved else []
    dimensions = {arm: sink_dimensions(model, change, first) for arm, change in moved.items()}
    known = tuple(sorted(set(dimensions.values())))
    kept = (memory or PrefixMemory()).recall((names, intervention.span, graphs is None, asked.image_indices, known))
    with switched(model):
        whole = [range(start, end + 1) for start, end in spans]
        if None not in kept:
            kept[None] = read(inputs, whole, graphs)
        for step in intervention.noised.keys() - kept.keys():
            kept[step] = read({**inputs, "pixel_values": intervention.noised[step]}, whole, None)
        for prompt, given in intervention.seconds.items():
            if prompt in kept:
                continue
            same = _prefix_ids(given, second_spans[prompt]) == _prefix_ids(inputs, spans)
            columns = [range(start, end + 1) for start, end in second_spans[prompt]]
            kept[prompt] = kept[None] if same else read(given, columns, None)
        before: list[int] = []
        if any(arm.against == "text" for arm in distinct):
            texts = _columns_without_image(ids == token, spans)
            before = [len(columns) - 1 for columns in texts]
            if TEXT not in kept:
                named = {name: inputs[name] for name in SEQUENCES if name in inputs}
                kept[TEXT] = read(named, texts, None, Intervention(()))
        parts, start = [], 0
        for count in chunks or [len(ids)]:
            some = slice(start, start + count)
            ends = [end for _, end in spans[some]]
            seconds: dict[Place, Prompts] = {
                prompt: generate(
                    _text_inputs(given, some, numbers[some], counts),
                    partial(_cut_prompts, image=numbers[some], ends=[end for _, end in second_spans[prompt][some]]),
                )
                for prompt, given in intervention.seconds.items()
            }
            pruned: dict[Place, list[PrunedReading]] = {
                f"rank {rank}": [generate(one, partial(_read_pruned, rank=rank)) for one in intervention.whole[some]]
                for rank in {arm.contrast.rank for arm in distinct if isinstance(arm.contrast, Sid)}
            }
            way = partial(
                _answer,
                asked=replace(asked, names=asked.names[some]),
                prefixes=kept,
                image=numbers[some],
                ends=ends,
                before=before[some],
                dimensions=dimensions,
                seconds=seconds,
                pruned=pruned,
                graphs=graphs,
                trace=trace,
            )
            parts.append(generate(_text_inputs(inputs, some, numbers[some], counts), way))
            start += count
    return Decoded.join(parts).spread([distinct.index(arm) for arm in arms])


@dataclass(slots=True)
class PrefixMemory:
    """Hold the prefixes that were read last."""

    names: Hashable = None
    prefixes: dict[Place, ImagePrefix] = field(default_factory=dict)

    def recall(self, names: Hashable) -> dict[Place, ImagePrefix]:
        """Return those of `names`; others are dropped before new ones take memory."""
        if names != self.names:
            self.names, self.prefixes = names, {}
        return self.prefixes

    def clear(self) -> None:
        self.recall(None)


def _find_spans(inputs: Mapping[str, Tensor], token: int) -> list[tuple[int, int]]:
    """Find each prompt's first column and the one behind its last image token. Raises where a prompt cannot be cut."""
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    valid = torch.ones_like(ids) if mask is None else mask
    image = (ids == token).int()
    ends = ids.shape[1] - image.flip(-1).argmax(dim=-1)
    facts = torch.stack([valid.argmax(dim=-1), ends, image.any(dim=-1), valid[:, -1].bool()], dim=1).tolist()
    if not all(has_image for _, _, has_image, _ in facts):
        raise ValueError("the prompt holds no image token, so there is nothing to scale")
    if any(end == ids.shape[1] or not last for _, end, _, last in facts):
        raise ModelError("the last prompt position must be text: pad on the left and let the prompt follow the image")
    return [(start, end) for start, end, _, _ in facts]


def _check_window(text: Any, positions: int) -> None:
    """Raise ValueError where prompt and answer exceed a sliding window: own rows attend to their whole prompt."""
    found = ConfigFields.read(text)
    window = found.sliding_window if "sliding_attention" in (found.layer_types or ("sliding_attention",)) else None
    if window is not None and positions > window:
        raise ValueError(f"{positions} positions of prompt and answer exceed the sliding window of {window}{PER_ARM}")


def _prefix_ids(inputs: Mapping[str, Tensor], spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """List each prompt's tokens up to its last image token."""
    rows = zip(inputs["input_ids"].tolist(), spans, strict=True)
    return [row[start:end] for row, (start, end) in rows]


def _prefix_inputs(
    inputs: Mapping[str, Tensor], image: Sequence[int], columns: Sequence[Sequence[int]]
) -> tuple[dict[str, Tensor], list[int]]:
    """Cut columns of the first prompt of each image, right padded -> inputs, and lengths (I,) without the last column.

    Rows never look to the right, so no mask is needed. That last column shows whether the model keeps to it.
    """
    first = [image.index(one) for one in range(max(image) + 1)]
    given = dict(inputs)
    for name in SEQUENCES:
        if name in inputs:
            chosen = [torch.tensor([*columns[row]], device=inputs[name].device) for row in first]
            cut = [inputs[name][row, some] for row, some in zip(first, chosen, strict=True)]
            given[name] = pad_sequence(cut, batch_first=True)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    return given, [len(columns[row]) - 1 for row in first]


def _columns_without_image(image: Tensor, spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """List each prompt's columns before its image and the first one behind; `image` (N, L) bool.

    All from the first to the last image token is left out. Raises ModelError where no text stands before an image.
    """
    firsts = image.int().argmax(dim=-1).tolist()
    columns = [[*range(start, first), end] for first, (start, end) in zip(firsts, spans, strict=True)]
    if min(map(len, columns)) == 1:
        raise ModelError(f"no token stands before the image, so no prompt can be read without it{PER_ARM}")
    return columns


def _take(tensor: Tensor, index: Sequence[int], dim: int = 0) -> Tensor:
    return tensor.index_select(dim, torch.tensor(index, device=tensor.device))


def _text_inputs(
    inputs: Mapping[str, Tensor], rows: slice, image: Sequence[int], counts: Sequence[int]
) -> dict[str, Tensor]:
    """Select whole prompts without pixels: what positions and logits processors depend on."""
    ends = list(accumulate(counts))
    pictures = [place for one in image for place in range(ends[one] - counts[one], ends[one])] if counts else image
    given = {}
    for name, tensor in inputs.items():
        if name in SEQUENCES:
            given[name] = tensor[rows]
        elif not tensor.is_floating_point():  # a row per picture, or of some families one per image
            given[name] = _take(tensor, pictures if ends and len(tensor) == ends[-1] else image)
    return given


def _read_images(
    model: Any,
    input_ids: Tensor,  # (I, P + 1)
    *,
    asked: Intervention,
    parts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    graphs: Graphs | None,
    known: Sequence[Dimensions] = (),
    **kwargs: Any,
) -> ImagePrefix:
    """Prefill the images and the text before them. Raises ModelError where the model is not causal there."""
    text, token, most = model.config.get_text_config(), image_token_id(model.config), max(lengths)
    rows = PrefixRows(input_ids != token, text.num_hidden_layers)
    cache, columns = GrowingKVCache(text.num_hidden_layers, 0), most
    if graphs is not None:
        cache, columns = graphs.open_prefix(model, *input_ids.shape)
    given = {name: value for name, value in kwargs.items() if name not in LOOP}
    given |= {"attention_mask": None, "position_ids": _positions(input_ids, kwargs)}
    watched = range(text.num_hidden_layers) if known else ()
    with last_layer_trimmed(model, 0), _watching(model, watched, partial(sink_strengths, known=known)) as strengths:
        given[cache_keyword(model)] = cache
        model(input_ids=input_ids, use_cache=True, logits_to_keep=1, rows=rows, **given)
    _check_written(cache, input_ids.shape[1])
    image = pad(input_ids[:, :most] == token, (0, columns - most))
    hidden = torch.arange(columns, device=input_ids.device) >= torch.tensor(lengths, device=input_ids.device)[:, None]
    own = image & ~hidden
    scaled = {"": image}
    if asked.span:  # separators between tiles are text inside the image's span
        scaled[""] = (image.cumsum(dim=-1) > 0) & ~hidden
    scaled |= {index: select_image(own, parts, index, span=asked.span) for index in asked.image_indices}
    ragged = graphs is not None or min(lengths) < most
    strengths = {layer: pad(found[..., :most], (0, columns - most)) for layer, found in strengths.items()}
    return ImagePrefix(cache.show(columns), scaled, own, hidden if ragged else None, strengths)


@dataclass(frozen=True, slots=True)
class PrunedReading:
    """Hold a whole prompt that was read with pruned image keys.

    Attributes:
        layers: per decoder layer keys and values (1, G, L, D). image: (L,) bool. logits: (V,). rank: of the image keys.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    image: Tensor
    logits: Tensor
    rank: int


def _read_pruned(model: Any, input_ids: Tensor, *, rank: int, **kwargs: Any) -> PrunedReading:
    """Prefill one whole prompt without padding. Raises ModelError where a pruned row would see no key at all."""
    image, depth = input_ids == image_token_id(model.config), model.config.get_text_config().num_hidden_layers
    check_text_before(image)
    cache, rows = GrowingKVCache(depth, 0), PrunedRows(Pruning(rank, image))
    given = {name: value for name, value in kwargs.items() if name not in LOOP}
    given |= {"attention_mask": None, "position_ids": _positions(input_ids, kwargs), cache_keyword(model): cache}
    with last_layer_trimmed(model, 1):
        out = model(input_ids=input_ids, use_cache=True, logits_to_keep=1, rows=rows, **given)
    _check_written(cache, input_ids.shape[1])
    return PrunedReading(cache.show(input_ids.shape[1]), image[0], out.logits[0, -1].float(), rank)


def _start_pruned(
    model: Any, prompts: Prompts, readings: Sequence[PrunedReading], ends: Sequence[int], *, arms: int
) -> DecodeState:
    """Lay whole prompts out as a prefix for each prompt and what stands behind its image."""
    own = [prompts.whole.shape[1] - end for end in ends]  # columns behind the image
    before = [len(one.image) - count for one, count in zip(readings, own, strict=True)]
    size, most, device = prompts.ids.shape[1], max(before), prompts.ids.device
    depth = model.config.get_text_config().num_hidden_layers
    cache, prefix = GrowingKVCache(depth, arms * min(prompts.steps, ROOM)), []
    for layer in range(depth):
        parts = [one.layers[layer] for one in readings]
        heads = [
            torch.cat(
                [pad(part[i][:, :, :end], (0, 0, 0, most - end)) for part, end in zip(parts, before, strict=True)]
            )
            for i in (0, 1)
        ]
        tails = [
            torch.cat(
                [
                    pad(part[i][:, :, end:], (0, 0, size - count, 0))
                    for part, end, count in zip(parts, before, own, strict=True)
                ]
            )
            for i in (0, 1)
        ]
        prefix.append((heads[0], heads[1]))
        cache.update(tails[0], tails[1], layer)
    image = torch.stack([pad(one.image[:end], (0, most - end)) for one, end in zip(readings, before, strict=True)])
    hidden = torch.arange(most, device=device) >= torch.tensor(before, device=device)[:, None]
    prompts = replace(prompts, image=list(range(len(readings))))
    return DecodeState(
        model,
        ImagePrefix(prefix, {"": image}, image, hidden if min(before) < most else None),
        prompts,
        (BASE,) * arms,
        cache,
        BranchTable.start(prompts, arms, [0] * arms, by_prompt=False),
        torch.stack([one.logits for one in readings])[:, None].expand(-1, arms, -1),
        early={},
        watched=(),
        scalings=[[] for _ in range(depth)],
        graphs=None,
        attended=None,
        rank=readings[0].rank,
    )


def _check_written(cache: GrowingKVCache, columns: int) -> None:
    """Raise ModelError where the model wrote elsewhere, for example into its own cache."""
    if cache.get_seq_length() != columns:
        raise ModelError(
            f"the model wrote {cache.get_seq_length()} of {columns} positions into the KV cache that it was "
            f"given{PER_ARM}"
        )


def _positions(input_ids: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """Compute position ids (..., B, L); a leading axis where the model has one (M-RoPE)."""
    position, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
    if position is None:
        valid = torch.ones_like(input_ids) if mask is None else mask
        position = (valid.long().cumsum(dim=-1) - 1).clamp(min=0)
    return position.expand(*position.shape[:-2], *input_ids.shape)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Hold the part of N prompts behind the image, left padded.

    Attributes:
        whole: (N, L) the prompts' ids, for logits processors. ids: (N, S). position: (..., N, S).
        valid: (N, S) bool. image: index of each prompt's prefix. steps: T.
    """

    whole: Tensor
    ids: Tensor
    position: Tensor
    valid: Tensor
    image: Sequence[int]
    steps: int

    def repeat(self, times: int) -> Prompts:
        """Repeat the prompts `times` times, one whole set after the other."""
        ids, valid = self.ids.repeat(times, 1), self.valid.repeat(times, 1)
        position = self.position.repeat(*[1] * (self.position.dim() - 2), times, 1)
        return replace(self, ids=ids, position=position, valid=valid, image=[*self.image] * times)


def _answer(
    model: Any,
    input_ids: Tensor,  # (N, L)
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    *,
    asked: Intervention,
    prefixes: Mapping[Place, ImagePrefix],
    image: Sequence[int],
    ends: Sequence[int],
    before: Sequence[int],
    dimensions: Mapping[Arm, Dimensions],
    seconds: Mapping[Place, Prompts],
    pruned: Mapping[Place, Sequence[PrunedReading]],
    graphs: Graphs | None,
    trace: bool,
    **kwargs: Any,
) -> Decoded:
    """Decode prompts over prefixes: all arms that scale the same rows of the same steps together.

    `before`: by prompt the length of the text before its image, where an arm is read without image.
    """
    _check_stopping(stopping_criteria)
    prompts = _cut_prompts(model, input_ids, generation_config, image=image, ends=ends, **kwargs)
    device = input_ids.device
    stop = torch.tensor(end_tokens(generation_config), dtype=torch.long, device=device)
    read_by: dict[Place, Prompts] = {None: prompts, **dict.fromkeys(asked.noised, prompts), **seconds}
    if before:
        places = torch.tensor(before, device=device)[:, None] + prompts.valid.cumsum(dim=-1) - 1
        read_by[TEXT] = replace(prompts, position=places.clamp(min=0).expand_as(prompts.position))
    groups: dict[tuple[str, str, str], list[Arm]] = {}
    for arm in asked.arms:
        change = arm.attention.effective
        groups.setdefault((change.scope, change.steps, change.scaling if change.remembers else ""), []).append(arm)
    parts = []
    for way, arms in groups.items():
        contrasts = {i: arm.contrast for i, arm in enumerate(arms) if arm.contrast}
        # A captured step hands out logits alone, and reads prefixes of one shape alone.
        fixed = None if contrasts or way != (BASE.attention.scope, BASE.attention.steps, "") else graphs
        own = replace(asked, arms=tuple(arms))
        main = DecodeState.start(model, prefixes[None], prompts, own, graphs=fixed, dimensions=dimensions)
        followers = {}
        for place in set(map(_other_prefix, contrasts.values())) - {None}:
            arm_numbers = [i for i, contrast in contrasts.items() if _other_prefix(contrast) == place]
            if place in pruned:
                state = _start_pruned(model, prompts, pruned[place], ends, arms=len(arm_numbers))
            else:
                untouched = Intervention((BASE,) * len(arm_numbers))
                state = DecodeState.start(model, prefixes[place], read_by[place], untouched, graphs=None)
            followers[place] = FollowerState(state, arm_numbers)
        parts.append(_decode(main, followers, contrasts, logits_processor, stop, names=asked.names, trace=trace))
    order = [arm for arms in groups.values() for arm in arms]
    return Decoded.join(parts, arms=True).spread([order.index(arm) for arm in asked.arms])


def _cut_prompts(
    _model: Any,
    input_ids: Tensor,  # (N, L)
    generation_config: Any = None,
    *,
    image: Sequence[int],
    ends: Sequence[int],
    **kwargs: Any,
) -> Prompts:
    """Cut off what stands behind the image."""
    length, device = input_ids.shape[1], input_ids.device
    size = length - min(ends)
    valid = torch.arange(length - size, length, device=device) >= torch.tensor(ends, device=device)[:, None]
    position = _positions(input_ids, kwargs)[..., -size:]
    steps = generation_config.max_length - length
    return Prompts(input_ids, input_ids[:, -size:], position, valid, image, steps)


def _other_prefix(contrast: Contrast) -> Place:
    """Which prefix a contrast reads beside the image's; None = none."""
    if isinstance(contrast, Vcd):
        return contrast.noise
    if isinstance(contrast, Sid):
        return f"rank {contrast.rank}"
    return TEXT if contrast.against == "text" else contrast.second


def _decode(
    main: DecodeState,
    followers: Mapping[Place, FollowerState],
    contrasts: Mapping[int, Contrast],
    processors: Any,
    stop: Tensor,
    *,
    names: Sequence[str],
    trace: bool,
) -> Decoded:
    """Choose tokens, greedily unless an arm draws them, until every answer has ended or has T tokens."""
    prompts, arms = main.prompts, len(main.arms)
    batch = len(prompts.whole)
    tokens = prompts.whole.new_full((batch, arms, prompts.steps), -1)  # -1 = none
    first, scores = main.logits, _contrast(main, followers, contrasts, step=0)
    chosen_by, later = scores, []
    wholes = [prompts.whole] * arms
    for place in [i for i, contrast in contrasts.items() if contrast.instead]:
        wholes[place] = followers[contrasts[place].second].state.prompts.whole
        first = first.where((main.branches.branch != place)[..., None], scores)
    for step in range(prompts.steps):
        branches = main.branches
        numbers = {
            arm: torch.tensor([draw_number(name, own.seed, step) for name in names], dtype=torch.float64)
            for arm, own in contrasts.items()
            if isinstance(own, Sampling)
        }
        following = _choose(scores, processors, wholes, tokens[..., :step], branches, numbers)  # (n, R)
        rows = (branches.question[:, None], branches.branch, step)
        tokens[rows] = following.where(branches.alive, tokens[rows])
        branches.alive = branches.alive & ~torch.isin(following, stop)
        if step + 1 == prompts.steps or not branches.alive.any():
            break
        for follower in followers.values():
            follower.follow(branches, tokens[..., step], step)
        main.advance(following, step)
        scores = _contrast(main, followers, contrasts, step=step + 1)
        if trace:
            later.append(_at_their_places(scores, main.branches, (batch, arms)))
    answers = [[tuple(one for one in row if one >= 0) for row in prompt] for prompt in tokens.tolist()]
    if first.shape[0] > batch:  # arms of scope `text`, one whole set of prompts after the other
        first, chosen_by = (part.view(arms, batch, -1).transpose(0, 1) for part in (first, chosen_by))
    return Decoded(answers, first, chosen_by, main.attended, tuple(later))


def _at_their_places(scores: Tensor, branches: BranchTable, shape: tuple[int, int]) -> Tensor:
    """Place (n, R, V) of the rows that still decode into (N, A, V), nan elsewhere. `shape`: (N, A)."""
    prompt = branches.question[:, None].expand_as(branches.branch)[branches.alive]
    whole = scores.new_full((*shape, scores.shape[-1]), float("nan"))
    whole[prompt, branches.branch[branches.alive]] = scores[branches.alive]
    return whole


def _contrast(
    main: DecodeState,
    followers: Mapping[Place, FollowerState],
    contrasts: Mapping[int, Contrast],
    *,
    step: int,
) -> Tensor:
    """Compute (n, R, V), what each row's next token is chosen by: its logits, or the scores of its contrast."""
    if not contrasts:
        return main.logits
    scores = main.logits.clone()
    for position, contrast in contrasts.items():
        where = ((main.branches.branch == position) & main.branches.alive).nonzero(as_tuple=True)  # two of (m,)
        if not len(where[0]):
            continue
        logits = main.logits[where]  # (m, V)
        other = early = logits[:0]
        if (place := _other_prefix(contrast)) is not None:
            other = followers[place].read(main.branches.question[where[0]], position)
        if contrast.against == "layers":
            head, device = main.model.get_output_embeddings(), logits.device  # layers and head may lie on others
            norm = find_last_norm(main.model) if contrast.normed else torch.nn.Identity()
            layers = contrast_layers(main.model, contrast)
            early = torch.stack([head(norm(main.early[one].to(device)[where])).to(device).float() for one in layers])
        scores[where] = SCORES[contrast.kind](contrast, Reading(logits, other, early, step))
    return scores


def _choose(
    logits: Tensor,
    processors: Any,
    wholes: Sequence[Tensor],
    tokens: Tensor,
    branches: BranchTable,
    numbers: Mapping[int, Tensor],
) -> Tensor:
    """Choose (n, R) tokens after the checkpoint's own logits processors, which get one arm at a time.

    Args:
        wholes: each arm's prompts. numbers: of arms that draw, (N,) each prompt's; the others take the largest.
    """
    chosen = logits.argmax(dim=-1)
    for arm, whole in enumerate(wholes):
        if not processors and arm not in numbers:
            continue
        # Some processors hold a tensor per prompt: they get the whole batch, of which finished prompts mean nothing.
        where = (branches.branch == arm).nonzero(as_tuple=True)
        prompt = branches.question[where[0]]
        scores = logits.new_zeros(len(whole), logits.shape[-1])
        scores[prompt] = logits[where]
        if processors:
            scores = processors(torch.cat([whole, tokens[:, arm].clamp(min=0)], dim=1), scores)
        mine = scores[prompt]
        chosen[where] = draw_tokens(mine, numbers[arm][prompt.cpu()]) if arm in numbers else mine.argmax(dim=-1)
    return chosen


def _check_stopping(criteria: Any) -> None:
    other = [type(one).__name__ for one in criteria or () if not isinstance(one, (EosTokenCriteria, MaxLengthCriteria))]
    if other:
        raise ModelError(
            f"generation_config.json asks for {', '.join(other)}, which the shared prefix cannot honour{PER_ARM}"
        )


@dataclass(slots=True)
class BranchTable:
    """Track decoding rows: n prompts (per arm of scope `text`), R rows each, fillers where there are fewer.

    Attributes:
        question: (n,) the prompt's index in the batch. places: the same as read from the host, of its own rows.
        branch: (n, R) index of the arm. last: (n, R) owner of the last prompt token's column that the row continues.
        alive: (n, R) bool, not a filler.
        owner: (n, C) for each own column the arm that wrote it, A + row of the prefill, or SHARED, or HIDDEN.
        position: (..., n, 1) position of the last prompt token. used: columns written so far.
    """

    question: Tensor
    places: list[int]
    branch: Tensor
    last: Tensor
    alive: Tensor
    owner: Tensor
    position: Tensor
    used: int

    @classmethod
    def start(cls, prompts: Prompts, arms: int, rows: Sequence[int], *, by_prompt: bool) -> BranchTable:
        """Build the table of all arms after a prefill; `rows`: which of its last rows each arm continues.

        With `by_prompt` each prompt stands there once per arm, one whole set after the other, and has one row.
        """
        count, device = len(prompts.ids), prompts.ids.device
        question = torch.arange(count, device=device)
        branch = torch.arange(arms, device=device).expand(count, arms)
        if by_prompt:
            question, branch = question % (count // arms), (question // (count // arms))[:, None]
        last = arms + torch.tensor(rows, device=device)[branch]
        valid = prompts.valid[:, :-1]
        owner = torch.full_like(valid, SHARED, dtype=torch.long).where(valid, HIDDEN)  # (n, S - 1)
        own = arms + torch.arange(max(rows) + 1, device=device).expand(count, -1)
        owner = torch.cat([owner, own], dim=1)
        alive = torch.ones_like(branch, dtype=torch.bool)
        places = list(range(count))
        return cls(question, places, branch, last, alive, owner, prompts.position[..., -1:], owner.shape[1])

    def prefill_mask(self, rows: int) -> Tensor:
        """Build (n, 1, S - 1 + rows, S - 1 + rows) bool: causal; the last `rows` rows do not attend to each other."""
        columns = self.owner.shape[1]
        mask = torch.ones(columns, columns, dtype=torch.bool, device=self.owner.device).tril()
        mask[-rows:, -rows:] = torch.eye(rows, dtype=torch.bool, device=mask.device)
        itself = torch.eye(columns, dtype=torch.bool, device=mask.device)  # a padded row must see something
        return ((mask & (self.owner != HIDDEN)[:, None]) | itself)[:, None]

    def mask(self) -> Tensor:
        """Build (n, 1, R, C) bool: its prompt's rows, the last prompt row it continues, its arm's."""
        owner = self.owner[:, None, :]
        seen = (owner == self.branch[:, :, None]) | (owner == self.last[:, :, None]) | (owner == SHARED)
        return seen[:, None]

    def reserve(self, columns: int) -> None:
        """Set C, so that masks keep their shape."""
        self.owner = pad(self.owner, (0, columns - self.used), value=HIDDEN)

    def append(self) -> None:
        """Add one column for each row, about to be written."""
        new = self.branch.where(self.alive, HIDDEN)  # (n, R)
        end = self.used + new.shape[1]
        if end <= self.owner.shape[1]:
            self.owner[:, self.used : end] = new
        else:
            self.owner = torch.cat([self.owner, new], dim=1)
        self.used = end

    def shrink(self, following: Tensor, cache: GrowingKVCache) -> Tensor:
        """Drop finished prompts and finished rows; `following` (n, R) is cut alike and returned."""
        counts = self.alive.sum(dim=1).tolist()
        live = [slot for slot, count in enumerate(counts) if count]
        if len(live) < len(counts):
            movers = [slot for slot in live if slot >= len(live)]
            holes = [slot for slot in range(len(live)) if not counts[slot]]
            moves = list(zip(movers, holes, strict=True))  # few prompts move, the cache is not copied
            order = list(range(len(live)))
            for source, target in moves:
                order[target] = source
            cache.keep(moves, len(live))
            index = torch.tensor(order, device=following.device)
            self.places = [self.places[slot] for slot in order]
            self.question, self.branch, self.last = self.question[index], self.branch[index], self.last[index]
            self.alive, self.owner = self.alive[index], self.owner[index]
            self.position = self.position[..., index, :]
            following = following[index]
        rows = max(counts)
        if rows < following.shape[1]:
            first = torch.sort(self.alive.int(), dim=1, descending=True, stable=True).indices[:, :rows]  # (n, rows)
            self.branch, self.last = self.branch.gather(1, first), self.last.gather(1, first)
            self.alive, following = self.alive.gather(1, first), following.gather(1, first)
        return following


@dataclass(slots=True)
class DecodeState:
    """Decode prompts together over prefixes, with all of their arms.

    Attributes:
        logits: (n, R, V) float32 raw logits of each row's next token.
        early: layer -> (n, R, D), what enters it; only the layers in `watched`.
        scalings: per layer, what is done to the rows of generated tokens; empty lists for steps `prefill`.
        attended: of the prefill, if asked for. rank: how many image keys generated tokens see; None = all.
        memory: of arms of a kind that has one.
    """

    model: Any
    prefix: ImagePrefix
    prompts: Prompts
    arms: Sequence[Arm]
    cache: GrowingKVCache
    branches: BranchTable
    logits: Tensor
    early: dict[int, Tensor]
    watched: Sequence[int]
    scalings: Sequence[Sequence[Weighted]]
    graphs: Graphs | None
    attended: Attended | None
    memory: Memory | None = None
    rank: int | None = None

    @classmethod
    def start(
        cls,
        model: Any,
        prefix: ImagePrefix,
        prompts: Prompts,
        asked: Intervention,
        *,
        graphs: Graphs | None,
        dimensions: Mapping[Arm, Dimensions] = MappingProxyType({}),
    ) -> DecodeState:
        """Prefill what stands behind the image, the last token once per arm that changes attention otherwise.

        All arms are of one scope and of the same steps, and with a memory of one kind. Raises ModelError where the
        scaling does not reach every layer.
        """
        text, arms, images = model.config.get_text_config(), asked.arms, len(prefix.image)
        # Arms that change logits alone share the untouched row.
        rows = [arm.without_contrast for arm in arms]
        steps, device = rows[0].attention.steps, prompts.ids.device
        depth, whole_rows = text.num_hidden_layers, rows[0].attention.scope == "text"
        made = partial(layer_scalings, depth=depth, heads=text.num_attention_heads, device=device)
        nothing: list[list[Weighted]] = [[] for _ in range(depth)]
        later = nothing if steps == "prefill" else made(replace(asked, arms=tuple(rows)))
        layers = {one for arm in rows for one in asked.scaled_heads(arm, depth, text.num_attention_heads)}
        if steps == "generated":
            rows = [BASE] * len(arms)
        distinct = list(dict.fromkeys(rows))
        width = 1 if whole_rows else len(distinct)
        if whole_rows:
            prompts = prompts.repeat(len(arms))
        places = [0] * len(arms) if whole_rows else [distinct.index(arm) for arm in rows]
        branches = BranchTable.start(prompts, len(arms), places, by_prompt=whole_rows)
        packing = Packing.arrange(prompts.image, images, device)
        size = prompts.ids.shape[1]
        now = made(replace(asked, arms=tuple(rows if whole_rows else distinct)))
        scalings = _per_prompt(now, packing, branches) if whole_rows else _per_row(now)
        memory = _open_memory(asked, prefix, prompts, branches, dimensions, text)
        known = memory.known if isinstance(memory, SinkMemory) else ()
        own = OwnRows(prefix, packing, scalings, size if whole_rows else width, width, sorted(layers), memory=memory)
        if asked.capture != "none":
            own.capture = AttentionCapture(asked.capture, _take(prefix.image, prompts.image))
        room = (1 if whole_rows else len(arms)) * min(prompts.steps, ROOM)
        if graphs is None:
            cache = GrowingKVCache(depth, room)
        else:
            written = size - 1 + width
            columns = written + len(arms) * prompts.steps
            cache = graphs.open(model, prompts=len(prompts.ids), columns=columns, written=written)
        early_read = [arm.contrast for arm in arms if arm.contrast and arm.contrast.against == "layers"]
        watched = sorted({one for contrast in early_read for one in contrast_layers(model, contrast)})
        with (
            _watching(model, watched, lambda entering: entering[:, -width:]) as early,
            _watching(model, range(depth if known else 0), partial(sink_strengths, known=known)) as strengths,
            last_layer_trimmed(model, width),
        ):
            if isinstance(memory, SinkMemory):
                memory.own = strengths
            out = model(
                input_ids=_fan(prompts.ids, width),
                attention_mask=branches.prefill_mask(width),
                position_ids=_fan(prompts.position, width),
                use_cache=True,
                logits_to_keep=width,
                rows=own,
                **{cache_keyword(model): cache},
            )
        own.check_fired()
        _check_written(cache, size - 1 + width)
        attended = None if own.capture is None else own.capture.attended(depth)
        fan = [0] if whole_rows else places
        if attended is not None:
            attended = attended.split(len(arms)) if whole_rows else attended.spread(places)
        if graphs is not None:
            branches.reserve(graphs.columns)
        logits = _take(out.logits, fan, dim=1).float()
        early = {layer: _take(entering, fan, dim=1) for layer, entering in early.items()}
        return cls(
            model, prefix, prompts, arms, cache, branches, logits, early, watched, later, graphs, attended, memory
        )

    def advance(self, following: Tensor, step: int) -> None:
        """Decode one step after the tokens `following` (n, R), chosen in step `step` (0 = the prefill's).

        Rows that are not alive any more are dropped first, except where a graph fixes the shape.
        """
        branches = self.branches
        if self.graphs is None:
            following = branches.shrink(following, self.cache)
        branches.append()
        rows = following.shape[1]
        image = [self.prompts.image[place] for place in branches.places]
        packing = Packing.arrange(image, len(self.prefix.image), following.device)
        scalings = _per_prompt(self.scalings, packing, branches)
        own = OwnRows(self.prefix, packing, scalings, rows if any(self.scalings) or self.rank else 0, rows)
        own.pruning = None if self.rank is None else Pruning(self.rank, self.prefix.image)
        own.memory = self.memory
        if self.memory is not None:
            self.memory.turn(torch.tensor(branches.places, device=following.device), branches.branch)
        given: dict[str, Any] = {
            "input_ids": following,
            "attention_mask": branches.mask(),
            "position_ids": (branches.position + step + 1).expand(*branches.position.shape[:-1], rows),
        }
        if self.graphs is not None:
            self.logits = self.graphs.step(self.model, given, own, first_column=branches.used - rows).float()
            return
        with _watching(self.model, self.watched, lambda entering: entering[:, -rows:]) as self.early:
            given[cache_keyword(self.model)] = self.cache
            out = self.model(**given, use_cache=True, logits_to_keep=rows, rows=own)
        self.logits = out.logits.float()


def _open_memory(
    asked: Intervention,
    prefix: ImagePrefix,
    prompts: Prompts,
    branches: BranchTable,
    dimensions: Mapping[Arm, Dimensions],
    text: Any,
) -> Memory | None:
    """Open the memory of arms of one kind, of the prompts as they stand in the prefill; None where it has none."""
    if not asked.arms[0].attention.effective.remembers:
        return None
    depth, heads = text.num_hidden_layers, text.num_attention_heads
    chosen = [asked.scaled_heads(arm, depth, heads) for arm in asked.arms]
    image = _take(prefix.scaled[""], prompts.image)
    return open_memory(
        {arm: dimensions.get(arm, ()) for arm in asked.arms},
        heads=layer_heads(chosen, heads, image.device),
        image=image,
        hidden=image & False if prefix.hidden is None else _take(prefix.hidden, prompts.image),
        arm=branches.branch,
        depth=depth,
        prefix={layer: _take(found, prompts.image, 1) for layer, found in prefix.strengths.items()},
    )


def _per_row(made: Sequence[Sequence[Weighted]]) -> list[list[Weighted]]:
    """Reshape weights (A, H or 1) of the last A rows of every prompt to (1, H or 1, 1, A, 1)."""
    return [
        [(formula, weight.t()[None, :, None, :, None], index) for formula, weight, index in layer] for layer in made
    ]


def _per_prompt(made: Sequence[Sequence[Weighted]], packing: Packing, branches: BranchTable) -> list[list[Weighted]]:
    """Reshape weights (A, H or 1) of every prompt's R rows to (I, H or 1, n, R, 1); one row per arm stands for all."""
    placed: dict[int, Tensor] = {}
    for weight in (weight for layer in made for _, weight, _ in layer):
        if id(weight) not in placed:  # most layers scale the same
            placed[id(weight)] = packing.spread(weight[branches.branch]).permute(0, 3, 1, 2)[..., None]
    return [[(formula, placed[id(weight)], index) for formula, weight, index in layer] for layer in made]


def _fan(columns: Tensor, width: int) -> Tensor:
    """Repeat the last column `width` times: (..., S) -> (..., S - 1 + width)."""
    return torch.cat([columns, columns[..., -1:].expand(*columns.shape[:-1], width - 1)], dim=-1)


@dataclass(slots=True)
class FollowerState:
    """Follow another state without choosing tokens: read the tokens of some of its arms and compute own logits."""

    state: DecodeState
    arm_numbers: Sequence[int]

    def follow(self, leader: BranchTable, tokens: Tensor, step: int) -> None:
        """Read what the leader chose in `step`, `tokens` (N, A), where it goes on."""
        mine = self.state.branches
        arms = torch.tensor(self.arm_numbers, device=tokens.device)[mine.branch]  # (n, R)
        going = torch.zeros_like(tokens, dtype=torch.bool)  # (N, A)
        going[leader.question[:, None], leader.branch] = leader.alive
        mine.alive = mine.alive & going[mine.question[:, None], arms]
        if mine.alive.any():
            chosen = tokens[mine.question[:, None], arms].clamp(min=0)  # -1 where a row ended before: a filler
            self.state.advance(chosen, step)

    def read(self, questions: Tensor, arm: int) -> Tensor:
        """Return (m, V) float32: the logits for an arm of `questions` (m,), all of them still decoding."""
        mine, logits = self.state.branches, self.state.logits
        here = (mine.question == questions[:, None]).int().argmax(dim=1)  # (m,)
        row = (mine.branch[here] == self.arm_numbers.index(arm)).int().argmax(dim=1)
        return logits[here, row]


def contrast_layers(model: Any, contrast: Contrast) -> list[int]:
    """List the early layers that a contrast is against."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return early_layers(contrast.values["layers"], model.config.get_text_config().num_hidden_layers, tied=tied)


def find_last_norm(model: Any) -> Any:
    """Return the norm before the output head. Raises ModelError where it has another name than in known families."""
    parts = dict(model.get_decoder().named_children())
    if "norm" not in parts:
        raise ModelError(
            f"the language model of {model.config.model_type} names no norm: deco cannot read early layers"
        )
    return parts["norm"]


@contextmanager
def _watching(model: Any, layers: Sequence[int], keep: Callable[[Tensor], Tensor]) -> Iterator[dict[int, Tensor]]:
    """Fill the mapping with what `keep` makes of the input (..., rows, D) of each of the decoder layers."""
    seen: dict[int, Tensor] = {}
    handles = []
    for index in layers:

        def look(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
            entering = args[0] if args else kwargs["hidden_states"]
            seen[index] = keep(entering)

        layer = model.get_decoder().layers[index]
        handles.append(layer.register_forward_pre_hook(look, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def reason_for_per_arm(model: Any) -> str:
    """Return why this model needs one plain generate per arm; "" where the shared prefix is exact.

    Raises ModelError where no way is faithful (beam search).
    """
    config, generation = model.config, model.generation_config
    if (generation.num_beams or 1) > 1:
        raise ModelError(
            f"generation_config.json asks for {generation.num_beams} beams: answers here are greedy; set 1"
        )
    text = ConfigFields.read(config.get_text_config())
    kinds = set(text.layer_types or ()) - {"full_attention", "sliding_attention"}
    reasons = {
        f"model type {config.model_type} lets the prompt see its own end (prefix LM)": config.model_type in PREFIX_LM,
        "its attention logits are capped (softcap)": text.attn_logit_softcapping is not None,
        "its weights are quantised": ConfigFields.read(config).quantization_config is not None,
        f"its cache is {generation.cache_implementation}": generation.cache_implementation not in CACHES,
        f"its layers mix kinds of attention ({', '.join(sorted(kinds))})": bool(kinds),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
