"""Look up published numbers: accuracy in percent.

TABLE is the main table of arXiv 2503.01773 (ICML 2025), on the test split; POPE holds other papers' numbers on POPE.
"""

from __future__ import annotations

from dataclasses import dataclass

from spatial_eval.core.types import Method, Part
from spatial_eval.methods.routing import METHODS, AdaptVis, Base, ScalingVis

DATASETS = ("controlled_a", "controlled_b", "coco_one_obj", "coco_two_obj", "vg_one_obj", "vg_two_obj", "vsr")

# model -> row of the table -> accuracies in the order of DATASETS, then the F1 that the paper gives for VSR
TABLE: dict[str, dict[str, tuple[float, ...]]] = {
    "llava15_7b": {
        "base": (60.3, 73.1, 53.0, 58.2, 35.9, 40.8, 62.4, 51.3),
        "vcd": (61.5, 73.4, 53.3, 58.2, 35.8, 42.5, 62.4, 50.6),
        "dola": (61.2, 73.4, 53.7, 57.5, 36.2, 42.1, 62.8, 53.2),
        "scaling_vis": (64.5, 75.2, 53.6, 59.4, 42.7, 48.1, 64.9, 62.5),
        "adapt_vis": (84.9, 83.8, 53.6, 59.9, 42.7, 48.1, 65.0, 62.5),
    },
    "llava16_7b": {
        "base": (48.2, 63.0, 59.7, 41.8, 31.6, 7.3, 58.8, 29.4),
        "vcd": (61.8, 65.4, 60.6, 44.9, 33.8, 11.6, 58.8, 29.4),
        "dola": (48.2, 62.7, 59.7, 41.5, 31.5, 7.3, 59.3, 31.2),
        "scaling_vis": (97.0, 73.4, 63.1, 47.7, 38.2, 14.6, 59.1, 30.6),
        "adapt_vis": (98.2, 73.4, 63.1, 47.7, 35.2, 17.2, 62.7, 39.3),
    },
}

# The settings behind two rows, in the order of DATASETS. Those of LLaVA-1.6 were never published.
WEIGHT = {"llava15_7b": (0.8, 0.8, 1.2, 1.2, 2.0, 2.0, 0.5)}
ADAPT = {
    "llava15_7b": (
        (0.5, 1.5, 0.40),
        (0.5, 1.5, 0.35),
        (0.5, 1.2, 0.30),
        (0.5, 1.2, 0.30),
        (0.5, 2.0, 0.20),
        (0.5, 2.0, 0.20),
        (0.5, 1.2, 0.64),
    )
}


@dataclass(frozen=True, slots=True)
class PublishedGain:
    """Hold two accuracies in percent that a paper compares, and how its answers were generated."""

    base: float
    value: float
    protocol: str


# POPE on COCO, LLaVA-1.5-7B: (kind of method, protocol) -> (base, value) for the splits in POPE_SPLITS.
POPE_SPLITS = ("random", "popular", "adversarial")
POPE_MODEL = "llava15_7b"
POPE: dict[tuple[str, str], tuple[tuple[float, float], ...]] = {
    ("vcd", "sampled, mean of 5 seeds; arXiv 2311.16922"): ((83.29, 87.73), (81.88, 85.38), (78.96, 80.88)),
    ("vcd", "greedy, noise 900; arXiv 2504.10020"): ((87.1, 88.6), (85.8, 86.2), (83.6, 81.9)),
    ("m3id", "sampled; github.com/sangminwoo/AvisC"): ((84.47, 86.00), (82.23, 82.83), (77.10, 77.70)),
    ("forced_yes", "greedy; arXiv 2504.10020"): ((87.1, 89.6), (85.8, 87.3), (83.6, 83.6)),
}


def published_gains(model: str, dataset: str, kind: str) -> list[PublishedGain]:
    """List what papers report of a kind of method on a dataset (its label), in any setting."""
    gains = []
    if kind in TABLE.get(model, {}) and kind != "base" and dataset in DATASETS:
        column = DATASETS.index(dataset)
        base, value = (TABLE[model][row][column] for row in ("base", kind))
        gains.append(PublishedGain(base, value, "greedy, test split; arXiv 2503.01773"))
    split = dataset.removeprefix("pope_coco_")
    if model == POPE_MODEL and split in POPE_SPLITS:
        column = POPE_SPLITS.index(split)
        gains += [PublishedGain(*rows[column], protocol) for (name, protocol), rows in POPE.items() if name == kind]
    return gains


def published_accuracy(model: str, dataset: str, method: Method, part: Part) -> float | None:
    """Return the paper's accuracy in percent for this very setting on the whole test split; None where it has none."""
    if model not in TABLE or dataset not in DATASETS or part != Part("test"):
        return None
    column = DATASETS.index(dataset)
    match method:
        case Base():
            known = True
        case ScalingVis():
            known = model in WEIGHT and method == ScalingVis(WEIGHT[model][column])
        case AdaptVis():
            known = model in ADAPT and method == AdaptVis(*ADAPT[model][column])
        case _:
            # the values of their authors: the paper states none
            known = method.kind in ("vcd", "dola") and method == METHODS[method.kind]()
    return TABLE[model][method.kind][column] if known else None
