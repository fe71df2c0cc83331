"""Lay out what stands behind the images: rows of the prompts, and the rows of arms that decode after them.

N prompts of L tokens, S rows behind the image, A arms, n prompts that still decode with R rows each, C own columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from spatial_eval.engine.kv_cache import GrowingKVCache
from spatial_eval.engine.request import Prepared

SHARED, HIDDEN = -1, -2  # labels of own columns: every row of arms of scope `last`, or none, may attend to them


@dataclass(frozen=True, slots=True)
class Prompts:
    """Hold the part of N prompts behind the image, left padded.

    Attributes:
        whole: (N, L) the prompts' ids, for logits processors. ids: (N, S). position: (..., N, S).
        valid: (N, S) bool. image: index of each prompt's prefix. steps: T, tokens to decode at most.
    """

    whole: Tensor
    ids: Tensor
    position: Tensor
    valid: Tensor
    image: Sequence[int]
    steps: int

    @classmethod
    def cut(cls, prepared: Prepared, image: Sequence[int], ends: Sequence[int]) -> Prompts:
        """Cut off what stands behind the image; `ends`: each prompt's first column there."""
        ids, device = prepared.ids, prepared.ids.device
        size = ids.shape[1] - min(ends)
        columns = torch.arange(ids.shape[1] - size, ids.shape[1], device=device)
        valid = columns >= torch.tensor(ends, device=device)[:, None]
        return cls(ids, ids[:, -size:], prepared.positions[..., -size:], valid, image, prepared.steps)

    def move(self, before: Sequence[int]) -> Prompts:
        """Count positions as if each prompt had `before` tokens before these rows."""
        starts = torch.tensor(before, device=self.valid.device)[:, None]
        position = (starts + self.valid.cumsum(dim=-1) - 1).clamp(min=0)
        return replace(self, position=position.expand_as(self.position))

    def repeat(self, times: int) -> Prompts:
        """Repeat the prompts `times` times, one whole set after the other."""
        ids, valid = self.ids.repeat(times, 1), self.valid.repeat(times, 1)
        position = self.position.repeat(*[1] * (self.position.dim() - 2), times, 1)
        return replace(self, ids=ids, position=position, valid=valid, image=[*self.image] * times)

    def mask(self, width: int) -> Tensor:
        """Build (N, 1, S - 1 + width, S - 1 + width) bool: causal; the last `width` rows do not attend to each other.

        The last row stands there `width` times.
        """
        valid = fan_out(self.valid, width)
        columns = valid.shape[1]
        mask = torch.ones(columns, columns, dtype=torch.bool, device=valid.device).tril()
        mask[-width:, -width:] = torch.eye(width, dtype=torch.bool, device=mask.device)
        itself = torch.eye(columns, dtype=torch.bool, device=mask.device)  # a padded row must attend to something
        return ((mask & valid[:, None]) | itself)[:, None]


def fan_out(columns: Tensor, width: int) -> Tensor:
    """Repeat the last column `width` times: (..., S) -> (..., S - 1 + width)."""
    return torch.cat([columns, columns[..., -1:].expand(*columns.shape[:-1], width - 1)], dim=-1)


@dataclass(slots=True)
class BranchTable:
    """Track decoding rows: n prompts, R rows each, fillers where there are fewer.

    Attributes:
        question: (n,) the prompt's index in the batch. places: the same as read from the host.
        branch: (n, R) index of the arm. alive: (n, R) bool, not a filler.
        labels: (n, R, 3) of the own columns that a row attends to: its arm's, the last prompt row's that it continues,
            and those of the rows before that one.
        owner: (n, C) the label of each own column: an arm, A + row of the prefill, SHARED or HIDDEN.
        position: (..., n, 1) position of the last prompt token. used: columns written so far.
    """

    question: Tensor
    places: list[int]
    branch: Tensor
    alive: Tensor
    labels: Tensor
    owner: Tensor
    position: Tensor
    used: int

    @classmethod
    def start(cls, prompts: Prompts, rows: Sequence[int], *, width: int, copies: int) -> BranchTable:
        """Build the table after a prefill.

        Args:
            rows: which row of the prefill each arm continues: below `width` one of the repeated last rows, from there
                on the last one of a copy of the whole prompt.
        """
        (count, size), arms, device = prompts.ids.shape, len(rows), prompts.ids.device
        own = torch.arange(arms, arms + width + copies, device=device)
        parts = []
        if width:
            shared = torch.full((count, size - 1), SHARED, device=device).where(prompts.valid[:, :-1], HIDDEN)
            parts += [shared, own[:width].expand(count, -1)]
        parts += [own[row].where(prompts.valid, HIDDEN) for row in range(width, width + copies)]
        owner = torch.cat(parts, dim=1)
        branch = torch.arange(arms, device=device)
        last = own[torch.tensor(rows, device=device)]
        labels = torch.stack([branch, last, last.where(last >= arms + width, SHARED)], dim=-1)
        alive = torch.ones(count, arms, dtype=torch.bool, device=device)
        return cls(
            question=torch.arange(count, device=device),
            places=list(range(count)),
            branch=branch.expand(count, -1),
            alive=alive,
            labels=labels.expand(count, -1, -1),
            owner=owner,
            position=prompts.position[..., -1:],
            used=owner.shape[1],
        )

    def mask(self) -> Tensor:
        """Build (n, 1, R, C) bool: which own columns each row attends to."""
        return (self.owner[:, None, :, None] == self.labels[:, :, None]).any(dim=-1)[:, None]

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
            self.question, self.branch, self.labels = self.question[index], self.branch[index], self.labels[index]
            self.alive, self.owner = self.alive[index], self.owner[index]
            self.position = self.position[..., index, :]
            following = following[index]
        rows = max(counts)
        if rows < following.shape[1]:
            first = torch.sort(self.alive.int(), dim=1, descending=True, stable=True).indices[:, :rows]  # (n, rows)
            self.branch, self.alive = self.branch.gather(1, first), self.alive.gather(1, first)
            self.labels = self.labels.gather(1, first[..., None].expand(-1, -1, 3))
            following = following.gather(1, first)
        return following
