"""Kinds of scaling, on logits: what each does to an arm's row of a prefill. Add one: a formula, a line in FORMULAS
and in `arms.SCALINGS`, and its definition on probabilities in `oracle.py`.

A formula takes z (B, H, R, K) float32, the last prompt token's logits for R arms; weight (R, 1) >= 0; image
(B, 1, 1, K) bool, the keys that are scaled, at least one a question. It returns new logits (B, H, R, K); those
off the image stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]


def multiply(z: Tensor, weight: Tensor, image: Tensor) -> Tensor:
    return torch.where(image, z * weight, z)


def temperature(z: Tensor, weight: Tensor, image: Tensor) -> Tensor:
    return torch.where(image, z * weight - _gain(z, weight, image), z)


def mass(z: Tensor, weight: Tensor, image: Tensor) -> Tensor:
    return torch.where(image, z + _gain(z, weight, image), z)


def pai(z: Tensor, weight: Tensor, image: Tensor) -> Tensor:
    return torch.where(image, z + weight * z.abs(), z)


FORMULAS: dict[str, Formula] = {"multiply": multiply, "temperature": temperature, "mass": mass, "pai": pai}


def _gain(z: Tensor, weight: Tensor, image: Tensor) -> Tensor:
    """(B, H, R, 1): by how much multiplying raises the log of the image's unnormalised mass."""
    return _mass(z * weight, image) - _mass(z, image)


def _mass(z: Tensor, image: Tensor) -> Tensor:
    return z.masked_fill(~image, float("-inf")).logsumexp(dim=-1, keepdim=True)
