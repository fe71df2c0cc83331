"""Score attention heads of captured questions by what their attention to the image says about the answers. Pure.

N questions, L layers, H heads, n image tokens of a question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from spatial_eval.analysis.intervals import auroc
from spatial_eval.core.errors import ConfigError

if TYPE_CHECKING:
    from numpy import bool_, float64
    from numpy.typing import NDArray

    from spatial_eval.store.attention import Attention, View

Area = tuple[float, float, float, float]  # left, top, right and bottom, as shares of the picture's width and height
# What heads are ranked by -> whether a larger value comes first.
CRITERIA_OF_HEADS: Mapping[str, bool] = {"auroc": True, "share": True, "entropy": False, "overlap": True}


@dataclass(frozen=True, slots=True)
class HeadScore:
    """Hold what a head of the baseline's last prompt row does over the questions.

    Attributes:
        auroc: probability that its share on the image is larger where the answer is right than where it is wrong.
        share: its attention on the image, mean, in [0, 1].
        entropy: of its attention among image tokens, mean, in nats. overlap: the part of that attention inside the
            objects that the question names, mean, in [0, 1]; nan where no dataset says where they are.
    """

    layer: int
    head: int
    auroc: float
    share: float
    entropy: float
    overlap: float


def score_heads(
    capture: Attention, arm: int, right: NDArray[float64], asked: NDArray[bool_], objects: Mapping[str, Sequence[Area]]
) -> list[HeadScore]:
    """Score every head over the questions in `asked` (N,), of which the answer is right (1), wrong (0) or absent (nan).

    Nothing of other questions is looked at. `objects`: by question where the named objects are. Raises ConfigError
    where all answers are right or all wrong.
    """
    rows = np.flatnonzero(asked & ~np.isnan(right))
    correct = right[rows] == 1
    if not correct.any() or correct.all():
        raise ConfigError(
            f"all {len(rows)} captured answers of this split are {'right' if len(rows) else 'absent'}: "
            "heads cannot be ranked by what tells right from wrong"
        )
    shares = capture.mass[rows, arm].astype(np.float64)  # (N, L, H)
    entropy, overlap = np.zeros(shares.shape[1:]), np.zeros(shares.shape[1:])
    placed = 0
    for row in rows.tolist():
        parts = capture.heads[row][arm].astype(np.float64)  # (L, H, n)
        among = parts / np.maximum(parts.sum(axis=-1, keepdims=True), 1e-30)
        entropy -= np.where(among > 0, among * np.log(np.maximum(among, 1e-300)), 0).sum(axis=-1)
        inside = _tokens_inside(capture.views[row], objects.get(capture.ids[row], ()))
        if inside is not None:
            overlap += among[..., inside].sum(axis=-1)
            placed += 1
    mean_overlap = overlap / placed if placed else np.full_like(overlap, math.nan)
    return [
        HeadScore(
            *(layer, head, auroc(shares[:, layer, head], correct).value, float(shares[:, layer, head].mean())),
            *(float(entropy[layer, head] / len(rows)), float(mean_overlap[layer, head])),
        )
        for layer, head in np.ndindex(*shares.shape[1:])
    ]


def rank_heads(scores: Sequence[HeadScore], by: str) -> list[HeadScore]:
    """Sort heads, the best first; ties in the model's order. Raises ConfigError where `by` is not known of them."""
    values = {(score.layer, score.head): asdict(score)[by] for score in scores}
    if any(map(math.isnan, values.values())):
        raise ConfigError(f"--by {by}: this dataset does not say where objects are; scenes do")
    sign = -1 if CRITERIA_OF_HEADS[by] else 1
    return sorted(scores, key=lambda score: sign * values[score.layer, score.head])


def _tokens_inside(view: View | None, areas: Sequence[Area]) -> NDArray[bool_] | None:
    """Find (n,) the tokens whose centre lies in one of the areas; None where nothing is known of these or those."""
    if view is None or not areas:
        return None
    left, top, right, bottom = view.box
    across = left + (np.arange(view.grid[1]) + 0.5) / view.grid[1] * (right - left)
    down = top + (np.arange(view.grid[0]) + 0.5) / view.grid[0] * (bottom - top)
    inside = np.zeros(view.grid, dtype=bool)
    for x0, y0, x1, y1 in areas:
        inside |= np.outer((y0 <= down) & (down <= y1), (x0 <= across) & (across <= x1))
    return inside.ravel()
