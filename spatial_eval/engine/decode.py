"""The shared prefix (`model.decoding=shared`): one prefill and one cache for every arm of a batch.

One forward of P + W rows, P = L - 1: the first P positions are the same for every arm, the last W rows are
the last prompt token once per arm. Then all branches decode together; a mask lets each see the prefix and
itself. `generate(custom_generate=...)` is the front door, so position ids, logits processors and the image,
encoded once, come from transformers. B questions, W arms, R rows still decoding, C cache columns.

Which rows of a batch still decode, and which cache columns each may see.

n questions that are not finished, R rows each, C cache columns, W arms.

A cache with the branches that decode over it: started by one prefill, advanced by a step at a time.

B questions, P = L - 1 shared positions, W arms, n questions of R rows still decoding, C cache columns, V
vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from spatial_eval.core.errors import ModelError
from spatial_eval.core.types import BASE, Arm
from spatial_eval.engine.attention import PER_ARM, ArmRows, AttentionCapture, last_layer_trimmed, switched
from spatial_eval.engine.contrastive import dola_scores, early_layers, vcd_scores
from spatial_eval.engine.kv_cache import Graphs, GrowingKVCache
from spatial_eval.engine.request import (
    LOOP,
    PREFIX_LM,
    Attended,
    Decoded,
    Intervention,
    cache_keyword,
    end_tokens,
    image_token_id,
)

SHARED, HIDDEN = -1, -2  # owners of cache columns that every branch, or none, may see


@dataclass(slots=True)
class BranchTable:
    """The rows still decoding: n questions, R rows each, fillers where a question has fewer.

    Attributes:
        question: (n,) index in the batch. branch: (n, R) index of the arm. alive: (n, R) bool, not a filler.
        owner: (n, C) for each cache column the arm that wrote it, or SHARED, or HIDDEN.
        position: (..., n, 1) position of the last prompt token; a leading axis where the model has one (M-RoPE).
        used: columns written so far; C of them unless room was reserved.
    """

    question: Tensor
    branch: Tensor
    alive: Tensor
    owner: Tensor
    position: Tensor
    used: int

    @classmethod
    def start(cls, valid: Tensor, position: Tensor, width: int) -> BranchTable:
        """All W arms of B questions after a prefill; `valid` (B, P) bool, the shared columns that are no padding."""
        batch = len(valid)
        question = torch.arange(batch, device=valid.device)
        branch = torch.arange(width, device=valid.device).expand(batch, width)
        owner = torch.full_like(valid, SHARED, dtype=torch.long).where(valid, HIDDEN)  # (B, P)
        alive = torch.ones_like(branch, dtype=torch.bool)
        return cls(question, branch, alive, torch.cat([owner, branch], dim=1), position, owner.shape[1] + width)

    def mask(self) -> Tensor:
        """(n, 1, R, C) bool: a row sees the shared prefix and its own branch."""
        own = self.owner[:, None, :] == self.branch[:, :, None]  # (n, R, C)
        return (own | (self.owner == SHARED)[:, None, :])[:, None]

    def reserve(self, columns: int) -> None:
        """Fixes C, so that masks keep their shape."""
        self.owner = pad(self.owner, (0, columns - self.used), value=HIDDEN)

    def append(self) -> None:
        """One column for each row, about to be written."""
        new = self.branch.where(self.alive, HIDDEN)  # (n, R)
        end = self.used + new.shape[1]
        if end <= self.owner.shape[1]:
            self.owner[:, self.used : end] = new
        else:
            self.owner = torch.cat([self.owner, new], dim=1)
        self.used = end

    def shrink(self, following: Tensor, cache: GrowingKVCache) -> Tensor:
        """Drops finished questions and finished rows; `following` (n, R) is cut alike and returned."""
        counts = self.alive.sum(dim=1).tolist()
        live = [slot for slot, count in enumerate(counts) if count]
        if len(live) < len(counts):
            movers = [slot for slot in live if slot >= len(live)]
            holes = [slot for slot in range(len(live)) if not counts[slot]]
            moves = list(zip(movers, holes, strict=True))  # few questions move, the cache is not copied
            order = list(range(len(live)))
            for source, target in moves:
                order[target] = source
            cache.keep(moves, len(live))
            index = torch.tensor(order, device=following.device)
            self.question, self.branch, self.alive = self.question[index], self.branch[index], self.alive[index]
            self.owner, self.position = self.owner[index], self.position[..., index, :]
            following = following[index]
        rows = max(counts)
        if rows < following.shape[1]:
            first = torch.sort(self.alive.int(), dim=1, descending=True, stable=True).indices[:, :rows]  # (n, rows)
            self.branch, self.alive = self.branch.gather(1, first), self.alive.gather(1, first)
            following = following.gather(1, first)
        return following


ROOM = 16  # decode steps that the cache has room for before it grows


@dataclass(slots=True)
class DecodeState:
    """What decodes together.

    Attributes:
        logits: (n, R, V) float32 raw logits of each row's next token.
        early: layer -> (n, R, D), what enters it; only the layers in `watched`.
        attended: of the prefill, if asked for.
    """

    model: Any
    cache: GrowingKVCache
    branches: BranchTable
    logits: Tensor
    early: dict[int, Tensor]
    watched: Sequence[int]
    graphs: Graphs | None
    attended: Attended | None = None

    def advance(self, following: Tensor, step: int) -> None:
        """One decode step after the tokens `following` (n, R), chosen in step `step` (0 = the prefill's).

        Rows that are not alive any more are dropped first, except where a graph fixes the shape.
        """
        branches = self.branches
        if self.graphs is None:
            following = branches.shrink(following, self.cache)
        branches.append()
        rows = following.shape[1]
        given: dict[str, Any] = {
            "input_ids": following,
            "attention_mask": branches.mask(),
            "position_ids": (branches.position + step + 1).expand(*branches.position.shape[:-1], rows),
        }
        if self.graphs is not None:
            self.logits = self.graphs.step(self.model, given, first_column=branches.used - rows).float()
            return
        with _watching(self.model, self.watched, rows) as self.early:
            given[cache_keyword(self.model)] = self.cache
            out = self.model(**given, use_cache=True, logits_to_keep=rows)
        self.logits = out.logits.float()


def start_decoding(
    model: Any,
    input_ids: Tensor,  # (B, L)
    generation_config: Any = None,
    *,
    intervention: Intervention,
    graphs: Graphs | None = None,
    **kwargs: Any,
) -> DecodeState:
    """The stream after its prefill. Called as `generate(custom_generate=...)`, which prepares `kwargs`.

    Raises ModelError where a guard fails, ValueError where this one batch cannot be answered.
    """
    length, width = input_ids.shape[1], len(intervention.arms)
    steps = generation_config.max_length - length
    _check_window(model.config.get_text_config(), length=length, steps=steps, width=width)
    if graphs is None:
        cache = GrowingKVCache(model.config.get_text_config().num_hidden_layers, width * min(steps, ROOM))
    else:
        columns = length - 1 + width * steps
        cache = graphs.open(model, batch=len(input_ids), width=width, columns=columns, prompt=length - 1 + width)
    dolas = [arm for arm in intervention.arms if arm.contrast == "dola"]
    watched = sorted({layer for arm in dolas for layer in dola_layers(model, arm)})
    with _watching(model, watched, width) as early:
        logits, branches, attended = _prefill(model, input_ids, intervention, cache, kwargs)
    if graphs is not None:
        branches.reserve(graphs.columns)
    return DecodeState(model, cache, branches, logits, early, watched, graphs, attended)


def dola_layers(model: Any, arm: Arm) -> list[int]:
    """The layers that a dola arm chooses among."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return early_layers(arm.layers, model.config.get_text_config().num_hidden_layers, tied=tied)


@dataclass(slots=True)
class FollowerState:
    """A stream that never chooses: it is fed the tokens of arms `where` of another stream and gives its own logits."""

    stream: DecodeState
    where: Sequence[int]

    def follow(self, leader: BranchTable, tokens: Tensor, step: int) -> None:
        """After the leader chose `tokens` (B, W) in `step`: read them where the leader goes on."""
        mine = self.stream.branches
        arms = torch.tensor(self.where, device=tokens.device)[mine.branch]  # (n, R)
        going = torch.zeros_like(tokens, dtype=torch.bool)  # (B, W)
        going[leader.question[:, None], leader.branch] = leader.alive
        mine.alive = mine.alive & going[mine.question[:, None], arms]
        if mine.alive.any():
            heard = tokens[mine.question[:, None], arms].clamp(min=0)  # -1 where a row ended before: a filler
            self.stream.advance(heard, step)

    def read(self, questions: Tensor, position: int) -> Tensor:
        """(m, V) float32: the logits for arm `position` of `questions` (m,), all of them still decoding."""
        mine, logits = self.stream.branches, self.stream.logits
        here = (mine.question == questions[:, None]).int().argmax(dim=1)  # (m,)
        row = (mine.branch[here] == self.where.index(position)).int().argmax(dim=1)
        return logits[here, row]


@contextmanager
def _watching(model: Any, layers: Sequence[int], rows: int) -> Iterator[dict[int, Tensor]]:
    """Fills the mapping with the last `rows` rows of what enters each of the decoder layers."""
    seen: dict[int, Tensor] = {}
    handles = []
    for index in layers:

        def look(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
            entering = args[0] if args else kwargs["hidden_states"]
            seen[index] = entering[:, -rows:]

        layer = model.get_decoder().layers[index]
        handles.append(layer.register_forward_pre_hook(look, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _prefill(
    model: Any, input_ids: Tensor, intervention: Intervention, cache: GrowingKVCache, kwargs: dict[str, Any]
) -> tuple[Tensor, BranchTable, Attended | None]:
    """-> raw logits (B, W, V) float32 of every arm's first token, the branches that start there, what was captured."""
    batch, length = input_ids.shape
    shared, width = length - 1, len(intervention.arms)
    attention_mask = kwargs.pop("attention_mask", None)  # (B, L)
    if attention_mask is not None and bool(attention_mask.all()):
        attention_mask = None  # as transformers >= 5.23 has it: without a mask the prefix takes the flash kernel
    valid = input_ids.new_ones(batch, length, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    token = image_token_id(model.config)
    image = _image_keys(input_ids, token, span=intervention.span)
    if bool(image[:, -1].any()) or not bool(valid[:, -1].all()):
        raise ModelError("the last prompt position must be text: pad on the left and let the prompt follow the image")
    if not bool(image.any(dim=1).all()):
        raise ValueError("the prompt holds no image token, so there is nothing to scale")
    position = kwargs.pop("position_ids", None)  # (..., B or 1, L)
    if position is None:
        position = (valid.long().cumsum(dim=-1) - 1).clamp(min=0)
    position = position.expand(*position.shape[:-2], batch, length)
    kwargs = {name: value for name, value in kwargs.items() if name not in LOOP}
    for name in ("token_type_ids", "mm_token_type_ids"):
        if kwargs.get(name) is not None:
            kwargs[name] = _fan(kwargs[name], width)
    depth, padded = model.config.get_text_config().num_hidden_layers, attention_mask is not None
    tail = ArmRows.of(intervention, image[:, :shared], padded=padded, depth=depth)
    if intervention.capture != "none":
        tail.watch = AttentionCapture(intervention.capture, input_ids[:, :shared] == token)
    with last_layer_trimmed(model, width):
        out = model(
            input_ids=_fan(input_ids, width),
            attention_mask=_fan(attention_mask, width) if padded else None,
            position_ids=_fan(position, width),
            use_cache=True,
            logits_to_keep=width,
            tail=tail,
            **{**kwargs, cache_keyword(model): cache},
        )
    tail.check_fired()
    if cache.get_seq_length() != shared + width:
        raise ModelError(
            f"the model wrote {cache.get_seq_length()} of {shared + width} positions into the KV cache that it was "
            f"given{PER_ARM}"
        )
    attended = None if tail.watch is None else tail.watch.attended(depth)
    return out.logits.float(), BranchTable.start(valid[:, :shared], position[..., -1:], width), attended


def _check_window(text: Any, *, length: int, steps: int, width: int) -> None:
    """Layers with a sliding window count cache columns, of which the arms have several a position.

    Where nothing is old enough to be cut they see what full attention sees; else no number is given.
    """
    sliding = "sliding_attention" in (getattr(text, "layer_types", None) or ("sliding_attention",))
    window = getattr(text, "sliding_window", None)
    if sliding and window is not None and max(length + steps, length - 1 + width) > window:
        asked = f"{length} prompt positions, {steps} new tokens and {width} arms"
        raise ValueError(f"{asked} exceed the sliding window of {window}{PER_ARM}")


def _fan(columns: Tensor, width: int) -> Tensor:
    """(..., L) -> (..., L - 1 + W): the last column once per arm."""
    return torch.cat([columns, columns[..., -1:].expand(*columns.shape[:-1], width - 1)], dim=-1)


def _image_keys(input_ids: Tensor, token: int, *, span: bool) -> Tensor:
    """(B, L) bool."""
    image = input_ids == token
    if not span:
        return image
    started = image.cumsum(dim=-1) > 0
    return started & (image.flip(-1).cumsum(dim=-1).flip(-1) > 0)


CACHES = (None, "dynamic", "hybrid")  # hybrid (Gemma 3's checkpoints): transformers takes a dynamic one


def reason_for_per_arm(model: Any) -> str:
    """Why this model must take the oracle's way; "" where the shared prefix is exact.

    Raises ModelError where no way is faithful (beam search).
    """
    config, text, generation = model.config, model.config.get_text_config(), model.generation_config
    if (generation.num_beams or 1) > 1:
        raise ModelError(
            f"generation_config.json asks for {generation.num_beams} beams: answers here are greedy; set 1"
        )
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    reasons = {
        f"model type {config.model_type} lets the prompt see its own end (prefix LM)": config.model_type in PREFIX_LM,
        "its attention logits are capped (softcap)": getattr(text, "attn_logit_softcapping", None) is not None,
        "its weights are quantised": getattr(config, "quantization_config", None) is not None,
        f"its cache is {generation.cache_implementation}": generation.cache_implementation not in CACHES,
        f"its layers mix kinds of attention ({', '.join(sorted(kinds))})": bool(kinds),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def decode_arms(
    model: Any,
    inputs: Mapping[str, Tensor],
    *,
    intervention: Intervention,
    max_new_tokens: int,
    graphs: Graphs | None = None,
    trace: bool = False,
) -> Decoded:
    """Greedy answers under every arm, exact up to rounding of a batched product.

    `inputs` is what the processor gives: left padded `input_ids` (B, L), `attention_mask` and the image's
    tensors. With `graphs` every decode step has one shape and is replayed. `trace` keeps the scores of every token.

    Raises ModelError where a guard fails, ValueError where this one batch cannot be answered.
    """

    arms = [BASE if arm.untouched else arm for arm in intervention.arms]
    distinct = list(dict.fromkeys(arms))
    if len(distinct) < len(arms):  # arms that leave the model untouched are one
        intervention = replace(intervention, arms=tuple(distinct))
        once = decode_arms(
            model, inputs, intervention=intervention, max_new_tokens=max_new_tokens, graphs=graphs, trace=trace
        )
        return once.spread([distinct.index(arm) for arm in arms])

    def generate(given: Mapping[str, Tensor], way: Any) -> Any:
        return model.generate(**given, custom_generate=way, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)

    with switched(model):
        ghosts = {}  # for vcd: the same prompt after a noised image, one more prefill for every alpha
        for noise, pixels in intervention.noised.items():
            where = [i for i, arm in enumerate(intervention.arms) if arm.contrast == "vcd" and arm.noise == noise]
            untouched = Intervention((BASE,) * len(where))
            stream = generate({**inputs, "pixel_values": pixels}, partial(start_decoding, intervention=untouched))
            ghosts[noise] = FollowerState(stream, where)
        way = partial(_generate, intervention=intervention, ghosts=ghosts, graphs=graphs, trace=trace)
        decoded: Decoded = generate(inputs, way)
    return decoded


def _generate(
    model: Any,
    input_ids: Tensor,  # (B, L)
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    *,
    intervention: Intervention,
    ghosts: Mapping[int, FollowerState],
    graphs: Graphs | None,
    trace: bool,
    **kwargs: Any,
) -> Decoded:
    _check_stopping(stopping_criteria)
    arms = intervention.arms
    steps = generation_config.max_length - input_ids.shape[1]
    contrasts = {i: arm for i, arm in enumerate(arms) if arm.contrast}
    main = start_decoding(
        model,
        input_ids,
        generation_config=generation_config,
        intervention=intervention,
        graphs=None if contrasts else graphs,  # a captured step hands out logits alone
        **kwargs,
    )
    ends = torch.tensor(end_tokens(generation_config), dtype=torch.long, device=input_ids.device)
    tokens = input_ids.new_full((len(input_ids), len(arms), steps), -1)  # (B, W, T); -1 = none
    first, scores = main.logits, _contrasted(main, ghosts, contrasts)
    chosen_by, later = scores, []
    for step in range(steps):
        branches = main.branches
        following = _choose(scores, logits_processor, input_ids, tokens[..., :step], branches)  # (n, R)
        rows = (branches.question[:, None], branches.branch, step)
        tokens[rows] = following.where(branches.alive, tokens[rows])
        branches.alive = branches.alive & ~torch.isin(following, ends)
        if step + 1 == steps or not branches.alive.any():
            break
        for ghost in ghosts.values():
            ghost.follow(branches, tokens[..., step], step)
        main.advance(following, step)
        scores = _contrasted(main, ghosts, contrasts)
        if trace:
            later.append(_at_their_places(scores, main.branches, first))
    answers = [[tuple(one for one in row if one >= 0) for row in question] for question in tokens.tolist()]
    return Decoded(answers, first, chosen_by, main.attended, tuple(later))


def _at_their_places(scores: Tensor, branches: BranchTable, like: Tensor) -> Tensor:
    """(n, R, V) of the rows that still decode -> (B, W, V) as `like`, nan where there is none."""
    question = branches.question[:, None].expand_as(branches.branch)[branches.alive]
    whole = torch.full_like(like, float("nan"))
    whole[question, branches.branch[branches.alive]] = scores[branches.alive]
    return whole


def _contrasted(main: DecodeState, ghosts: Mapping[int, FollowerState], contrasts: Mapping[int, Arm]) -> Tensor:
    """(n, R, V) what the next token of each row is chosen by: its logits, or what its contrast makes of them."""
    if not contrasts:
        return main.logits
    scores = main.logits.clone()
    for position, arm in contrasts.items():
        where = ((main.branches.branch == position) & main.branches.alive).nonzero(as_tuple=True)  # two of (m,)
        if not len(where[0]):
            continue
        logits = main.logits[where]  # (m, V)
        if arm.contrast == "vcd":
            noised = ghosts[arm.noise].read(main.branches.question[where[0]], position)
            scores[where] = vcd_scores(logits, noised, alpha=arm.alpha, cutoff=arm.cutoff)
        else:
            head = main.model.get_output_embeddings()
            device = logits.device  # layers and head may lie on others
            layers = dola_layers(main.model, arm)
            early = [head(main.early[layer].to(device)[where]).to(device).float() for layer in layers]
            scores[where] = dola_scores(logits, torch.stack(early), cutoff=arm.cutoff)
    return scores


def _choose(logits: Tensor, processors: Any, input_ids: Tensor, tokens: Tensor, branches: BranchTable) -> Tensor:
    """(n, R) the greedy token after the checkpoint's own logits processors, which see one branch at a time."""
    if not processors:
        return logits.argmax(dim=-1)
    chosen = []
    for row in range(logits.shape[1]):
        # Some processors hold a tensor a question: they get the whole batch, of which finished questions mean nothing.
        said, scores = tokens[:, 0].clone(), logits.new_zeros(len(input_ids), logits.shape[-1])
        said[branches.question] = tokens[branches.question, branches.branch[:, row]]  # (B, step)
        scores[branches.question] = logits[:, row]  # (B, V)
        processed = processors(torch.cat([input_ids, said.clamp(min=0)], dim=1), scores)
        chosen.append(processed[branches.question].argmax(dim=-1))
    return torch.stack(chosen, dim=1)


def _check_stopping(criteria: Any) -> None:
    other = [type(one).__name__ for one in criteria or () if not isinstance(one, (EosTokenCriteria, MaxLengthCriteria))]
    if other:
        raise ModelError(
            f"generation_config.json asks for {', '.join(other)}, which the shared prefix cannot honour{PER_ARM}"
        )
