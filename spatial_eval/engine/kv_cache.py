"""Decode steps of one shape, captured once as a CUDA graph and replayed: no launch of some thousand kernels a step.

Eager decoding of a 7B model is bound by launches (20 to 30 ms a step); a replayed step by memory. On a CPU the
same fixed-shape step runs without a graph. B questions, W arms, C cache columns, V vocabulary.

Keys and values with room to grow: appends are written in place, no copy of the prefix a step.

B questions, H_kv key heads, C columns, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from spatial_eval.engine.request import cache_keyword


class GrowingKVLayer(DynamicLayer):  # type: ignore[no-untyped-call]
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


class GrowingKVCache(Cache):
    """One RoomyLayer a decoder layer."""

    def __init__(self, depth: int, room: int) -> None:
        self.roomy = [GrowingKVLayer(room) for _ in range(depth)]
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


GRAIN = 64  # C is rounded up to a multiple of it, so that prompts of similar length share a graph
WARM_UP = 2  # runs before the capture, for lazily created handles and workspaces


class Graphs:
    """One captured step at a time, with the cache whose addresses it holds. Finished rows are computed too."""

    def __init__(self) -> None:
        self.columns = 0
        self._key: tuple[int, int, int, int] | None = None
        self._cache: GrowingKVCache | None = None
        self._given: dict[str, Tensor] = {}
        self._columns = torch.empty(0)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)

    def open(self, model: Any, *, batch: int, width: int, columns: int, prompt: int) -> GrowingKVCache:
        """An empty cache of at least `columns` columns, `prompt` of them for the prefill."""
        self.columns = -(-columns // GRAIN) * GRAIN
        key = (id(model), batch, width, self.columns)
        if key != self._key or self._cache is None:
            self._graph, self._cache = None, None  # frees the old cache before the new one is allocated
            depth = model.config.get_text_config().num_hidden_layers
            self._cache, self._given, self._key = GrowingKVCache(depth, self.columns - prompt), {}, key
        self._cache.restart()
        return self._cache

    def step(self, model: Any, given: dict[str, Tensor], *, first_column: int) -> Tensor:
        """Logits (B, W, V) of one step; overwritten by the next. `given` are the model's tensors of that step."""
        width = given["input_ids"].shape[1]
        if not self._given:
            self._given = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in given.items()}
            self._columns = torch.arange(width, device=given["input_ids"].device)
        for name, tensor in given.items():
            self._given[name].copy_(tensor)
        torch.arange(first_column, first_column + width, out=self._columns)
        assert self._cache is not None
        self._cache.write_at(self._columns)
        if not self._columns.is_cuda:
            return self._forward(model)
        if self._graph is None:
            self._capture(model)
        assert self._graph is not None
        self._graph.replay()
        return self._logits

    def _capture(self, model: Any) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):  # repeats write the same values to the same columns
                self._forward(model)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._logits = self._forward(model)

    def _forward(self, model: Any) -> Tensor:
        width = self._given["input_ids"].shape[1]
        given: dict[str, Any] = {**self._given, cache_keyword(model): self._cache}
        out = model(**given, use_cache=True, logits_to_keep=width)
        logits: Tensor = out.logits
        return logits
