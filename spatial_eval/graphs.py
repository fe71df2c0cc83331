"""Decode steps of one shape, captured once as a CUDA graph and replayed: no launch of some thousand kernels a step.

Eager decoding of a 7B model is bound by launches (20 to 30 ms a step); a replayed step by memory. On a CPU the
same fixed-shape step runs without a graph. B questions, W arms, C cache columns, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .cache import RoomyCache
from .decoding import cache_keyword

GRAIN = 64  # C is rounded up to a multiple of it, so that prompts of similar length share a graph
WARM_UP = 2  # runs before the capture, for lazily created handles and workspaces


class Graphs:
    """One captured step at a time, with the cache whose addresses it holds. Finished rows are computed too."""

    def __init__(self) -> None:
        self.columns = 0
        self._key: tuple[int, int, int, int] | None = None
        self._cache: RoomyCache | None = None
        self._given: dict[str, Tensor] = {}
        self._columns = torch.empty(0)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)

    def open(self, model: Any, *, batch: int, width: int, columns: int, prompt: int) -> RoomyCache:
        """An empty cache of at least `columns` columns, `prompt` of them for the prefill."""
        self.columns = -(-columns // GRAIN) * GRAIN
        key = (id(model), batch, width, self.columns)
        if key != self._key or self._cache is None:
            self._graph, self._cache = None, None  # frees the old cache before the new one is allocated
            depth = model.config.get_text_config().num_hidden_layers
            self._cache, self._given, self._key = RoomyCache(depth, self.columns - prompt), {}, key
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
