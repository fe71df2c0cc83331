"""Decode all arms of prompts over prefixes together, one step at a time.

N prompts, n of them that still decode with R rows each, A arms, V vocabulary, H heads, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from spatial_eval.core.arms import BASE, Arm
from spatial_eval.engine.attention import ImagePrefix, OwnRows, Packing, Pruning, Weighted, layer_scalings, watch_layers
from spatial_eval.engine.contrastive import contrast_layers
from spatial_eval.engine.kv_cache import Graphs, GrowingKVCache
from spatial_eval.engine.prefill import PromptReader, place_weights
from spatial_eval.engine.prefix import PrunedReading, check_written, take
from spatial_eval.engine.prompts import BranchTable, Prompts
from spatial_eval.engine.request import Attended, Intervention, cache_keyword, decoder_shape
from spatial_eval.engine.reweighting import Dimensions, Memory

ROOM = 16  # decode steps that a cache has room for before it grows


@dataclass(slots=True)
class DecodeState:
    """Decode prompts together over prefixes, with all of their arms.

    Attributes:
        logits: (n, R, V) float32 raw logits of each row's next token.
        early: layer -> (n, R, D), what enters it; only the layers in `watched`.
        scalings: per layer, what is done to the rows of generated tokens, weights (A, H or 1).
        memories: of kinds of attention that have one. rank: how many image keys generated tokens see; None = all.
        attended: of the prefill, if asked for.
    """

    model: Any
    prefix: ImagePrefix
    prompts: Prompts
    cache: GrowingKVCache
    branches: BranchTable
    logits: Tensor
    scalings: Sequence[Sequence[Weighted]]
    early: Mapping[int, Tensor] = field(default_factory=dict)
    watched: Sequence[int] = ()
    memories: Sequence[Memory] = ()
    rank: int | None = None
    graphs: Graphs | None = None
    attended: Attended | None = None

    @classmethod
    def start(
        cls,
        model: Any,
        prefix: ImagePrefix,
        prompts: Prompts,
        asked: Intervention,
        *,
        graphs: Graphs | None = None,
        dimensions: Mapping[Arm, Dimensions] = MappingProxyType({}),
    ) -> DecodeState:
        """Read the prompts for all arms.

        Args:
            graphs: with it steps have one shape and are replayed, where arms change the last row of prompts alone.
            dimensions: of VAR's arms, in which sinks are large.

        Raises ModelError where the scaling does not reach every layer.
        """
        shape, arms = decoder_shape(model), asked.arms
        changes = [arm.attention.effective for arm in arms]
        now = [BASE if change.steps == "generated" else Arm(change) for change in changes]  # while the prompt is read
        later = tuple(BASE if change.steps == "prefill" else Arm(change) for change in changes)
        last, whole = (
            list(dict.fromkeys(arm for arm in now if arm.attention.scope == scope)) for scope in ("last", "text")
        )
        rows = [[*last, *whole].index(arm) for arm in now]
        branches = BranchTable.start(prompts, rows, width=len(last), copies=len(whole))
        contrasts = [arm.contrast for arm in arms if arm.contrast]
        if whole or contrasts or set(later) != {BASE}:
            graphs = None  # a captured step hands out logits alone, and changes nothing
        if graphs is None:
            cache = GrowingKVCache(shape[0], len(arms) * min(prompts.steps, ROOM))
        else:
            columns = branches.used + len(arms) * prompts.steps
            cache = graphs.open(model, prompts=len(prompts.ids), columns=columns, written=branches.used)
        early = (contrast_layers(model, contrast) for contrast in contrasts if contrast.against == "layers")
        watched = sorted(set(chain.from_iterable(early)))
        reading, memories = PromptReader(model, prefix, prompts, asked, cache, watched).read(
            last, whole, rows, dimensions
        )
        check_written(cache, branches.used)
        if graphs is not None:
            branches.reserve(graphs.columns)
        return cls(
            model=model,
            prefix=prefix,
            prompts=prompts,
            cache=cache,
            branches=branches,
            logits=reading.logits,
            scalings=layer_scalings(replace(asked, arms=later), shape, prompts.ids.device),
            early=reading.early,
            watched=watched,
            memories=memories,
            graphs=graphs,
            attended=reading.attended,
        )

    @classmethod
    def resume_pruned(
        cls, model: Any, prompts: Prompts, readings: Sequence[PrunedReading], ends: Sequence[int], *, arms: int
    ) -> DecodeState:
        """Lay whole prompts out as a prefix for each prompt and what stands behind its image."""
        own = [prompts.whole.shape[1] - end for end in ends]  # columns behind the image
        before = [len(one.image) - count for one, count in zip(readings, own, strict=True)]
        size, most, device = prompts.ids.shape[1], max(before), prompts.ids.device
        depth = decoder_shape(model)[0]
        cache, layers = GrowingKVCache(depth, arms * min(prompts.steps, ROOM)), []
        for layer in range(depth):
            pairs, tails = [], []
            for part in zip(*(one.layers[layer] for one in readings), strict=True):  # keys, then values
                cut = list(zip(part, before, strict=True))
                pairs.append(torch.cat([pad(whole[:, :, :end], (0, 0, 0, most - end)) for whole, end in cut]))
                rows = [whole[:, :, end:] for whole, end in cut]
                tails.append(torch.cat([pad(row, (0, 0, size - row.shape[2], 0)) for row in rows]))
            layers.append((pairs[0], pairs[1]))
            cache.update(tails[0], tails[1], layer)
        image = torch.stack([pad(one.image[:end], (0, most - end)) for one, end in zip(readings, before, strict=True)])
        hidden = torch.arange(most, device=device) >= torch.tensor(before, device=device)[:, None]
        return cls(
            model=model,
            prefix=ImagePrefix(layers, {"": image}, image, hidden if min(before) < most else None),
            prompts=replace(prompts, image=list(range(len(readings)))),
            cache=cache,
            branches=BranchTable.start(prompts, [0] * arms, width=1, copies=0),
            logits=torch.stack([one.logits for one in readings])[:, None].expand(-1, arms, -1),
            scalings=[[] for _ in range(depth)],
            rank=readings[0].rank,
        )

    def advance(self, following: Tensor, step: int) -> None:
        """Decode one step after the tokens `following` (n, R), chosen in step `step` (0 = the prefill's).

        Rows that are not alive any more are dropped first, except where a graph fixes the shape.
        """
        branches = self.branches
        if self.graphs is None:
            following = branches.shrink(following, self.cache)
        branches.append()
        rows, device = following.shape[1], following.device
        image = [self.prompts.image[place] for place in branches.places]
        for memory in self.memories:
            memory.turn(torch.tensor(branches.places, device=device), branches.branch)
        own = OwnRows(
            self.prefix,
            Packing.arrange(image, len(self.prefix.image), device),
            place_weights(self.scalings, branches.branch),
            rows if any(self.scalings) or self.memories or self.rank else 0,
            rows,
            memories=self.memories,
            pruning=None if self.rank is None else Pruning(self.rank, take(self.prefix.image, image)),
        )
        given: dict[str, Any] = {
            "input_ids": following,
            "attention_mask": branches.mask(),
            "position_ids": (branches.position + step + 1).expand(*branches.position.shape[:-1], rows),
        }
        if self.graphs is not None:
            self.logits = self.graphs.step(self.model, given, own, first_column=branches.used - rows).float()
            return
        given[cache_keyword(self.model)] = self.cache
        with watch_layers(self.model, self.watched, lambda entering: entering) as self.early:
            out = self.model(**given, use_cache=True, logits_to_keep=rows, rows=own)
        self.logits = out.logits.float()


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
