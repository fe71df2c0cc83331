"""Compute a model with half-precision weights in float32; the weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

HALF = (torch.bfloat16, torch.float16)
# What only reads a tensor's shape needs no copy of it in float32.
_READERS = {Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.is_floating_point}


class _Float32(TorchFunctionMode):
    """Pass every operation float32 in place of half precision, one operand at a time, and return float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if getattr(func, "__name__", "") == "__get__":  # an attribute: dtype, shape, ...; not all callables have a name
            value = func(*args, **given)
            return torch.float32 if value in HALF else value
        if func in _READERS:
            return func(*args, **given)
        if func is not torch.nn.functional.embedding:  # of a table only the rows that were looked up
            args = [_raise(one) for one in args]
            given = {name: _raise(one) for name, one in given.items()}
        return _raise(func(*args, **given))


def _raise(value: Any) -> Any:
    """Convert half-precision tensors to float32, also inside containers."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in HALF else value
    if type(value) in (list, tuple):
        return type(value)(map(_raise, value))
    return value


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute float32 products without TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def in_float32() -> Iterator[None]:
    """Compute models in full float32 for any dtype of their weights and inputs.

    A weight is converted where it is used, so that memory grows by the largest weight (the output embedding) and not
    by the model. How the weights themselves were rounded stays: it is the same for whoever computes with them.
    """
    with without_tf32(), _Float32():
        yield
