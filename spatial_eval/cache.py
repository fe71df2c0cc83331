"""Keys and values with room to grow: appends are written in place, no copy of the prefix a step.

B questions, H_kv key heads, C columns, D head size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer that allocates `room` columns beyond what it is given, again when they are used up.

    With `columns` set (a (Q,) tensor of indices) it writes there and hands out every allocated column, so
    that shapes stay fixed and a CUDA graph can replay the step; the mask must hide what is not written.
    """

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self.columns: Tensor | None = None
        self.length = 0
        self.store: tuple[Tensor, Tensor] | None = None  # two of (B, H_kv, C, D)

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        new = (key_states, value_states)
        if self.store is not None and self.columns is not None:
            for whole, part in zip(self.store, new, strict=True):
                whole.index_copy_(2, self.columns, part)
            return self.store
        end = self.length + key_states.shape[2]
        self._reserve(new, end)
        for whole, part in zip(self.store or (), new, strict=True):
            whole[:, :, self.length : end] = part
        self.length = end
        return self._show()

    def _reserve(self, new: tuple[Tensor, Tensor], end: int) -> None:
        if self.store is not None and self.store[0].shape[2] >= end:
            return
        old = self.store
        self.dtype, self.device, self.is_initialized = new[0].dtype, new[0].device, True
        batch, heads, _, size = new[0].shape
        grown = []
        for index, part in enumerate(new):
            whole = part.new_empty(batch, heads, end + self.room, size)
            whole[:, :, end:] = 0  # a masked column still enters as 0 * value, and stale memory may hold nan
            if old is not None:
                whole[:, :, : self.length] = old[index][:, :, : self.length]
            grown.append(whole)
        self.store = (grown[0], grown[1])

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = self.store or (None, None)
        self.keys, self.values = keys[:, :, : self.length], values[:, :, : self.length]  # type: ignore[index]
        return self.keys, self.values

    def keep(self, moves: list[tuple[int, int]], count: int) -> None:
        """Question `source` takes the place of `target` for each move; then only the first `count` stay."""
        if self.store is None:
            return
        for whole in self.store:
            for source, target in moves:
                whole[target].copy_(whole[source])
        self.store = (self.store[0][:count], self.store[1][:count])
        self._show()

    def get_seq_length(self) -> int:
        return self.length


class RoomyCache(Cache):
    """One RoomyLayer a decoder layer."""

    def __init__(self, depth: int, room: int) -> None:
        self.roomy = [RoomyLayer(room) for _ in range(depth)]
        super().__init__(layers=list(self.roomy))

    def keep(self, moves: list[tuple[int, int]], count: int) -> None:
        for layer in self.roomy:
            layer.keep(moves, count)

    def restart(self) -> None:
        """Empty again, the allocated columns kept."""
        for layer in self.roomy:
            layer.length, layer.columns = 0, None

    def write_at(self, columns: Tensor) -> None:
        """From now on new keys go to `columns` (R,), whose content may change between calls."""
        for layer in self.roomy:
            layer.columns = columns
