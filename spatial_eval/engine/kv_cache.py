"""Cache keys and values with room to grow, and replay decode steps of one shape as a CUDA graph.

Eager decoding of a 7B model is bound by launches (20 to 30 ms per step); a replayed step by memory. On a CPU the
same step of one shape runs without a graph. B rows of the cache, G key heads, C columns, D head size, N prompts,
A arms, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from spatial_eval.core.errors import ModelError, first_line
from spatial_eval.engine.attention import OwnRows, Packing
from spatial_eval.engine.request import cache_keyword

log = logging.getLogger(__name__)


class GrowingKVLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Allocate `room` columns beyond the given ones in a cache layer, and again when they are used up.

    Appending writes in place, so no step copies the prompt. With `columns` set (a (R,) tensor of indices) it writes
    there and hands out every allocated column, so that shapes stay fixed and a CUDA graph can replay the step; the mask
    must hide what is not written.

    With `copies` set the given keys (copies * B, G, C, D) are of B prompts, one whole set after the other: it appends
    all copies of a prompt to its row, and hands out what it was given.
    """

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self.columns: Tensor | None = None
        self.copies = 0
        self.length = 0
        self.store: tuple[Tensor, Tensor] | None = None  # two of (B, G, C, D)

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        new = (key_states, value_states)
        if self.store is not None and self.columns is not None:
            for whole, part in zip(self.store, new, strict=True):
                whole.index_copy_(2, self.columns, part)
            return self.store
        if self.copies:
            new = (_by_prompt(key_states, self.copies), _by_prompt(value_states, self.copies))
        end = self.length + new[0].shape[2]
        self._reserve(new, end)
        for whole, part in zip(self.store or (), new, strict=True):
            whole[:, :, self.length : end] = part
        self.length = end
        shown = self._show()
        return (key_states, value_states) if self.copies else shown

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
        """Move row `source` to the place of `target` for each move; then keep the first `count` rows."""
        if self.store is None:
            return
        for whole in self.store:
            for source, target in moves:
                whole[target].copy_(whole[source])
        self.store = (self.store[0][:count], self.store[1][:count])
        self._show()

    def get_seq_length(self) -> int:
        return self.length


def _by_prompt(states: Tensor, copies: int) -> Tensor:
    """Rearrange (copies * B, G, C, D) to (B, G, copies * C, D)."""
    return states.reshape(copies, -1, *states.shape[1:]).permute(1, 2, 0, 3, 4).flatten(2, 3)


class GrowingKVCache(Cache):
    """Hold one GrowingKVLayer per decoder layer."""

    def __init__(self, depth: int, room: int) -> None:
        self.growing = [GrowingKVLayer(room) for _ in range(depth)]
        super().__init__(layers=list(self.growing))

    def keep(self, moves: list[tuple[int, int]], count: int) -> None:
        for layer in self.growing:
            layer.keep(moves, count)

    def restart(self) -> None:
        """Empty the cache and keep its allocated columns."""
        for layer in self.growing:
            layer.length, layer.columns = 0, None

    @contextmanager
    def taking_copies(self, copies: int) -> Iterator[None]:
        """Append what comes as `copies` of each prompt, 0 = as it is."""
        for layer in self.growing:
            layer.copies = copies
        yield
        for layer in self.growing:
            layer.copies = 0

    def write_at(self, columns: Tensor) -> None:
        """Write new keys to `columns` (R,) from now on, whose content may change between calls."""
        for layer in self.growing:
            layer.columns = columns

    def show(self, columns: int) -> list[tuple[Tensor, Tensor]]:
        """Return per layer the first `columns` columns of keys and values, written or not."""
        stores = [layer.store for layer in self.growing if layer.store is not None]
        return [(keys[:, :, :columns], values[:, :, :columns]) for keys, values in stores]


GRAIN = 64  # columns are rounded up to a multiple of it, so that prompts of similar length share a graph
WARM_UP = 2  # runs before the capture, for lazily created handles and workspaces
COMPARED = 2  # replayed steps that are compared with the same step run eagerly


class Graphs:
    """Hold one captured step at a time, with the caches whose addresses it uses. Finished rows are computed too.

    After a step was replayed wrongly, or could not be captured, `fault` says so and steps run eagerly; with `required`
    that raises ModelError.
    """

    def __init__(self, *, required: bool = True) -> None:
        self.columns = 0
        self.fault = ""
        self._required = required
        self._caches: dict[str, tuple[tuple[int, ...], GrowingKVCache]] = {}
        self._shape: tuple[int, ...] = ()
        self._given: dict[str, Tensor] = {}
        self._rows: OwnRows | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)
        self._compared = 0

    def open_prefix(self, model: Any, images: int, length: int) -> tuple[GrowingKVCache, int]:
        """Open an empty cache for prefixes of `length` columns; return it and how many columns are read."""
        columns = -(-length // GRAIN) * GRAIN
        return self._open("prefix", model, (images, columns), columns - length), columns

    def open(self, model: Any, *, prompts: int, columns: int, written: int) -> GrowingKVCache:
        """Open an empty cache of at least `columns` own columns, `written` of them by the prefill."""
        self.columns = -(-columns // GRAIN) * GRAIN
        return self._open("own", model, (prompts, self.columns), self.columns - written)

    def _open(self, name: str, model: Any, shape: tuple[int, ...], room: int) -> GrowingKVCache:
        key = (id(model), *shape)
        if name not in self._caches or self._caches[name][0] != key:
            self._graph, self._shape = None, ()
            self._caches.pop(name, None)  # freed before the new one is allocated
            self._caches[name] = key, GrowingKVCache(model.config.get_text_config().num_hidden_layers, room)
        cache = self._caches[name][1]
        cache.restart()
        return cache

    def step(self, model: Any, given: dict[str, Tensor], rows: OwnRows, *, first_column: int) -> Tensor:
        """Run one step: logits (N, A, V), overwritten by the next. `given`: the model's tensors of that step."""
        width, packing, hidden = given["input_ids"].shape[1], rows.packing, rows.prefix.hidden
        device = given["input_ids"].device
        slot = torch.arange(len(given["input_ids"]), device=device) if packing.slot is None else packing.slot
        columns = torch.arange(first_column, first_column + width, device=device)
        assert hidden is not None  # prefixes have one number of columns, so that some are beyond their length
        given = {**given, "slot": slot, "hidden": hidden, "columns": columns}
        keys = rows.prefix.layers[0][0]
        shape = (packing.images, packing.most, width, *keys.shape, keys.data_ptr())
        if shape != self._shape:
            self._graph, self._shape, self._compared = None, shape, 0
            self._given = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in given.items()}
            self._rows = replace(
                rows,
                prefix=replace(rows.prefix, hidden=self._given["hidden"]),
                packing=Packing(packing.images, packing.most, self._given["slot"]),
            )
        for name, tensor in given.items():
            self._given[name].copy_(tensor)
        self._caches["own"][1].write_at(self._given["columns"])
        if self.fault or not _replays(columns.device):
            return self._forward(model)
        if self._compared >= COMPARED and self._graph is not None:
            self._graph.replay()
            return self._logits
        return self._compare(model)

    def _compare(self, model: Any) -> Tensor:
        """Run the step eagerly and as a graph, which is captured where there is none."""
        eager = self._forward(model).clone()
        try:
            if self._graph is None:
                self._capture(model)
            assert self._graph is not None
            self._graph.replay()
            same = torch.allclose(self._logits, eager, atol=1e-2, rtol=1e-2)
            fault = "" if same else "a replayed step gave other logits than the same step run eagerly"
        except RuntimeError as error:
            fault = first_line(error)
        if fault and self._required:
            raise ModelError(f"decode steps cannot be replayed as a CUDA graph: {fault}; set model.graphs=false")
        self.fault, self._compared = fault, self._compared + 1
        if fault:
            log.warning("decode steps run eagerly: %s", fault)
        elif self._compared == COMPARED:
            log.info("decode steps are replayed as a CUDA graph: %d of them gave the eager steps' logits", COMPARED)
        return eager

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
        names = ("input_ids", "attention_mask", "position_ids")
        given: dict[str, Any] = {name: self._given[name] for name in names}
        width = given["input_ids"].shape[1]
        given[cache_keyword(model)] = self._caches["own"][1]
        out = model(**given, use_cache=True, logits_to_keep=width, rows=self._rows)
        logits: Tensor = out.logits
        return logits


def _replays(device: torch.device) -> bool:
    return device.type == "cuda"
