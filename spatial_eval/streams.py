"""A cache with the branches that decode over it: started by one prefill, advanced by a step at a time.

B questions, P = L - 1 shared positions, W arms, n questions of R rows still decoding, C cache columns, V
vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .arms import Arm
from .attention import last_layer_trimmed
from .branches import Branches
from .cache import RoomyCache
from .contrast import early_layers
from .decoding import LOOP, Attended, Intervention, cache_keyword, image_token_id
from .errors import ModelError
from .graphs import Graphs
from .tail import PER_ARM, Tail
from .watch import Watch

ROOM = 16  # decode steps that the cache has room for before it grows


@dataclass(slots=True)
class Stream:
    """What decodes together.

    Attributes:
        logits: (n, R, V) float32 raw logits of each row's next token.
        early: layer -> (n, R, D), what enters it; only the layers in `watched`.
        attended: of the prefill, if asked for.
    """

    model: Any
    cache: RoomyCache
    branches: Branches
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


def start(
    model: Any,
    input_ids: Tensor,  # (B, L)
    generation_config: Any = None,
    *,
    intervention: Intervention,
    graphs: Graphs | None = None,
    **kwargs: Any,
) -> Stream:
    """The stream after its prefill. Called as `generate(custom_generate=...)`, which prepares `kwargs`.

    Raises ModelError where a guard fails, ValueError where this one batch cannot be answered.
    """
    length, width = input_ids.shape[1], len(intervention.arms)
    steps = generation_config.max_length - length
    _check_window(model.config.get_text_config(), length=length, steps=steps, width=width)
    if graphs is None:
        cache = RoomyCache(model.config.get_text_config().num_hidden_layers, width * min(steps, ROOM))
    else:
        columns = length - 1 + width * steps
        cache = graphs.open(model, batch=len(input_ids), width=width, columns=columns, prompt=length - 1 + width)
    dolas = [arm for arm in intervention.arms if arm.contrast == "dola"]
    watched = sorted({layer for arm in dolas for layer in early_of(model, arm)})
    with _watching(model, watched, width) as early:
        logits, branches, attended = _prefill(model, input_ids, intervention, cache, kwargs)
    if graphs is not None:
        branches.reserve(graphs.columns)
    return Stream(model, cache, branches, logits, early, watched, graphs, attended)


def early_of(model: Any, arm: Arm) -> list[int]:
    """The layers that a dola arm chooses among."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return early_layers(arm.layers, model.config.get_text_config().num_hidden_layers, tied=tied)


@dataclass(slots=True)
class Ghost:
    """A stream that never chooses: it hears the tokens of arms `where` of another stream and gives its own logits."""

    stream: Stream
    where: Sequence[int]

    def follow(self, leader: Branches, tokens: Tensor, step: int) -> None:
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
    model: Any, input_ids: Tensor, intervention: Intervention, cache: RoomyCache, kwargs: dict[str, Any]
) -> tuple[Tensor, Branches, Attended | None]:
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
    tail = Tail.of(intervention, image[:, :shared], padded=padded, depth=depth)
    if intervention.capture != "none":
        tail.watch = Watch(intervention.capture, input_ids[:, :shared] == token)
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
    return out.logits.float(), Branches.start(valid[:, :shared], position[..., -1:], width), attended


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
