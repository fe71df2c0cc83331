"""Two devices in name only: CPU tensors that say where they lie, and an error where an operation mixes them.

A machine with several GPUs is rare; what goes wrong on it is mostly a tensor made on the inputs' device that meets
a layer's on another. Everything is computed on the CPU, so the numbers are those of one device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FIRST, SECOND = torch.device("meta:0"), torch.device("meta:1")
CPU = torch.device("cpu")
MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Named(Tensor):
    """`held` lies on the CPU and says `device`."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor, device: torch.device) -> Named:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, real.shape, real.stride(), real.storage_offset(), dtype=real.dtype, device=device
        )

    def __init__(self, real: Tensor, device: torch.device) -> None:
        self.held = real

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Data(TorchFunctionMode):
    """To and from Python numbers, for which torch would ask the device itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.tolist and isinstance(args[0], Named):
            return args[0].held.tolist()
        if func not in (torch.tensor, torch.as_tensor) or kwargs.get("device") is None:
            return func(*args, **kwargs)
        return Named(func(*_bare(args), **{**kwargs, "device": CPU}), torch.device(kwargs["device"]))


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    places = {one.device for one in given if one.dim()}  # a number may come from anywhere
    if len(places) > 1 and func not in MOVES:
        raise RuntimeError(f"{func} met tensors on {', '.join(sorted(map(str, places)))}")
    asked = kwargs.get("device")
    home = torch.device(asked) if asked is not None else next(iter(places or {one.device for one in given}), CPU)
    if func in MOVES and asked is None:
        home = args[0].device
    real, more = _bare((args, kwargs))
    if asked is not None:
        more["device"] = CPU
    out = func(*real, **more)
    if func._schema.is_mutable:
        return args[0]
    return tree_map(lambda one: Named(one, home) if isinstance(one, Tensor) and home != CPU else one, out)


def _bare(value: Any) -> Any:
    return tree_map(lambda one: one.held if isinstance(one, Named) else one, value)


def to(value: Any, device: torch.device) -> Any:
    """Tensors in it on `device`."""
    return tree_map(lambda one: one.to(device) if isinstance(one, Tensor) and one.device != device else one, value)


@contextmanager
def spread(model: nn.Module, second: Sequence[nn.Module]) -> Iterator[None]:
    """`model` on FIRST but for `second`; what a module is given follows it, as accelerate's hooks do it."""
    away = {id(part) for top in second for part in top.modules()}
    kept: list[tuple[dict[str, Any], str, Tensor]] = []
    hooks = []
    with _Everywhere(), _Data(), torch.no_grad():
        for part in model.modules():
            home = SECOND if id(part) in away else FIRST
            own = [
                table for table in (part._parameters, part._buffers) if any(one is not None for one in table.values())
            ]
            for table in own:
                for name, tensor in [(name, one) for name, one in table.items() if one is not None]:
                    kept.append((table, name, tensor))
                    placed = Named(tensor.detach(), home)
                    table[name] = nn.Parameter(placed, requires_grad=False) if table is part._parameters else placed
            if own or part in second:
                hooks.append(part.register_forward_pre_hook(partial(_follow, home=home), with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for table, name, tensor in kept:
                table[name] = tensor


def _follow(part: nn.Module, args: Any, kwargs: Any, home: torch.device) -> Any:
    return to(args, home), to(kwargs, home)
