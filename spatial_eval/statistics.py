"""Intervals and tests behind the tables. Pure; each with its source."""

from __future__ import annotations

import math


def wilson(right: int, n: int, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """Score interval of a proportion, in percent (Wilson, JASA 22 (1927) 209-212); z of 95 % by default.

    (nan, nan) for n = 0: nothing is known.
    """
    if n == 0:
        return math.nan, math.nan
    p, zz = right / n, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    low, high = 100 * (centre - half), 100 * (centre + half)
    return (low if right else 0.0), (high if right < n else 100.0)  # exact where rounding leaves 3e-16
