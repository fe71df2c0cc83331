"""Read what stands behind the images, over their prefixes, once for all arms.

Prompts are read once for all arms that change their last row alone (scope `last`), which stands there once per change.
They are read once more per change of all their rows (scope `text`), as a copy. Both are columns of one KV cache row per
prompt, in which labels say who attends to what (`BranchTable`).

N prompts of S rows behind the image, A arms, P prefix columns, V vocabulary, H heads, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from spatial_eval.core.arms import Arm
from spatial_eval.engine.attention import (
    AttentionCapture,
    ImagePrefix,
    OwnRows,
    Packing,
    Weighted,
    last_layer_trimmed,
    layer_scalings,
    watch_layers,
)
from spatial_eval.engine.kv_cache import GrowingKVCache
from spatial_eval.engine.prefix import take
from spatial_eval.engine.prompts import Prompts, fan_out
from spatial_eval.engine.request import Attended, Intervention, cache_keyword, decoder_shape
from spatial_eval.engine.reweighting import (
    Dimensions,
    GainMemory,
    Memory,
    SinkMemory,
    open_gains,
    open_sinks,
    sink_strengths,
)


@dataclass(frozen=True, slots=True)
class PromptReading:
    """Hold what the last rows of prompts give: R rows each, then one per arm.

    Attributes:
        logits: (N, R, V). early: layer -> (N, R, D), what enters it. attended: if asked for.
    """

    logits: Tensor
    early: Mapping[int, Tensor]
    attended: Attended | None

    @classmethod
    def join(cls, parts: Sequence[PromptReading], rows: Sequence[int]) -> PromptReading:
        """Put rows of the same prompts side by side, and of them those of `rows`, one per arm."""
        attended = [part.attended for part in parts if part.attended is not None]
        return cls(
            take(torch.cat([part.logits for part in parts], dim=1), rows, dim=1).float(),
            {
                layer: take(torch.cat([part.early[layer] for part in parts], dim=1), rows, dim=1)
                for layer in parts[0].early
            },
            Attended.join(attended, arms=True).spread(rows) if attended else None,
        )

    def by_prompt(self, copies: int) -> PromptReading:
        """Put copies of a prompt side by side as its rows: (copies * N, 1, ...) to (N, copies, ...)."""

        def turn(part: Tensor) -> Tensor:
            return part.reshape(copies, -1, part.shape[-1]).transpose(0, 1)

        early = {layer: turn(entering) for layer, entering in self.early.items()}
        return PromptReading(turn(self.logits), early, self.attended and self.attended.split(copies))


@dataclass(frozen=True, slots=True)
class PromptReader:
    """Read prompts of one batch over their prefixes into one cache.

    Attributes:
        watched: the early layers whose input is kept.
    """

    model: Any
    prefix: ImagePrefix
    prompts: Prompts
    asked: Intervention
    cache: GrowingKVCache
    watched: Sequence[int]

    def read(
        self, last: Sequence[Arm], whole: Sequence[Arm], rows: Sequence[int], dimensions: Mapping[Arm, Dimensions]
    ) -> tuple[PromptReading, list[Memory]]:
        """Read the prompts once for `last`, and a copy of them for each of `whole`.

        Args:
            last, whole: what is done to attention in the last row, and in all rows.
            rows: by arm, which of both it continues. dimensions: of VAR's arms, in which sinks are large.

        Returns:
            A row per arm, and the memories of kinds of attention that have one.

        Raises ModelError where a scaling does not reach every layer.
        """
        shape, device, count = decoder_shape(self.model), self.prompts.ids.device, len(self.prompts.ids)
        image = take(self.prefix.scaled[""], self.prompts.image)
        gains, sinks = open_gains(self.asked, image, shape, rows), None
        parts = []
        if last:
            parts.append(self._read(self.prompts, last, torch.arange(len(last), device=device)[None], gains))
        if whole:
            number = torch.arange(len(whole), device=device).repeat_interleave(count)[:, None]  # (copies * N, 1)
            arm = torch.tensor([rows.index(row) for row in range(len(last), len(last) + len(whole))], device=device)
            strengths = {layer: take(part, self.prompts.image, 1) for layer, part in self.prefix.strengths.items()}
            sinks = open_sinks(self.asked, image, shape, dimensions, strengths, arm[number])
            columns = self.cache.get_seq_length()
            with self.cache.taking_copies(len(whole)):
                reading = self._read(self.prompts.repeat(len(whole)), whole, number, sinks)
            parts.append(reading.by_prompt(len(whole)))
            if sinks is not None:
                sinks.lay_out(len(whole), columns)
        return PromptReading.join(parts, rows), [memory for memory in (gains, sinks) if memory is not None]

    def _read(
        self, prompts: Prompts, arms: Sequence[Arm], number: Tensor, memory: GainMemory | SinkMemory | None
    ) -> PromptReading:
        """Read prompts in one pass; `number` (1 or N, R) says which of `arms` their last R rows are of."""
        shape, width, asked = decoder_shape(self.model), number.shape[1], replace(self.asked, arms=tuple(arms))
        known = memory.known if isinstance(memory, SinkMemory) else []
        own = OwnRows(
            self.prefix,
            Packing.arrange(prompts.image, len(self.prefix.image), number.device),
            place_weights(layer_scalings(asked, shape, number.device), number),
            width if arms[0].attention.scope == "last" else prompts.ids.shape[1],
            width,
            layers=sorted(set(chain.from_iterable(asked.scaled_heads(arm, *shape) for arm in arms))),
            memories=() if memory is None else (memory,),
        )
        if asked.capture != "none":
            own.capture = AttentionCapture(asked.capture, take(self.prefix.image, prompts.image))
        with (
            watch_layers(self.model, self.watched, lambda entering: entering[:, -width:]) as early,
            watch_layers(
                self.model, range(shape[0] if known else 0), partial(sink_strengths, known=known)
            ) as strengths,
            last_layer_trimmed(self.model, width),
        ):
            if isinstance(memory, SinkMemory):
                memory.own = strengths
            out = self.model(
                input_ids=fan_out(prompts.ids, width),
                attention_mask=prompts.mask(width),
                position_ids=fan_out(prompts.position, width),
                use_cache=True,
                logits_to_keep=width,
                rows=own,
                **{cache_keyword(self.model): self.cache},
            )
        own.check_fired()
        return PromptReading(out.logits, early, None if own.capture is None else own.capture.attended(shape[0]))


def place_weights(scalings: Sequence[Sequence[Weighted]], arm: Tensor) -> list[list[Weighted]]:
    """Lay weights (A, H or 1) out for rows of the arms `arm` (1 or n, R): (1 or n, H or 1, R, 1)."""
    placed: dict[int, Tensor] = {}
    for weight in (weight for layer in scalings for _, weight, _ in layer):
        if id(weight) not in placed:  # most layers scale the same
            placed[id(weight)] = weight[arm].transpose(1, 2)[..., None]
    return [[(formula, placed[id(weight)], index) for formula, weight, index in layer] for layer in scalings]
