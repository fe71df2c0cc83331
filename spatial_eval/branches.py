"""Which rows of a batch still decode, and which cache columns each may see.

n questions that are not finished, R rows each, C cache columns, W arms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .cache import RoomyCache

SHARED, HIDDEN = -1, -2  # owners of cache columns that every branch, or none, may see


@dataclass(slots=True)
class Branches:
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
    def start(cls, valid: Tensor, position: Tensor, width: int) -> Branches:
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

    def shrink(self, following: Tensor, cache: RoomyCache) -> Tensor:
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
