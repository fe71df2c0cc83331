"""Compute the figures of a tiny model's card; the tests recompute them with it."""

from __future__ import annotations

import io
import itertools
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AttentionInterface, AutoModelForImageTextToText, AutoProcessor, DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from spatial_eval.benchmarks.scenes.generator import FORMS, Scene, generate_scenes
from spatial_eval.benchmarks.scenes.pictures import draw_picture
from spatial_eval.engine.request import cache_keyword

WEIGHTS = (0.0, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BATCH = 64


@dataclass(slots=True)
class Scaling:
    """What the attention function multiplies the logits of the last row's image columns with."""

    weight: float = 1.0
    image: slice | None = None


SCALING = Scaling()


def _attend(_module, query, key, value, attention_mask, scaling, **_):
    """Eager attention, (B, H, Q, D); rows of length 1 only are the last prompt token's."""
    logits = query @ key.transpose(2, 3) * scaling
    if query.shape[2] == 1:
        logits[..., SCALING.image] *= SCALING.weight
    if attention_mask is not None:
        logits = logits + attention_mask
    return (logits.softmax(-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("tiny_scaled", _attend)
AttentionMaskInterface.register("tiny_scaled", ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def load(folder: Path):
    """(model, processor) in float32, through the calls that load any model of the hub."""
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation={"text_config": "tiny_scaled", "vision_config": "sdpa"}
    )
    return model.eval(), AutoProcessor.from_pretrained(folder, backend="pil")


def photo(scene: Scene) -> Image.Image:
    return Image.open(io.BytesIO(draw_picture(scene))).convert("RGB")


@torch.inference_mode()
def first_words(
    model, processor, images, questions, weights=WEIGHTS
) -> dict[float, tuple[list[str], NDArray[np.float32]]]:
    """By weight: the first generated token of every question as text, and its probability (N,).

    One prefill of all but the last prompt token serves every weight; the last token is then run once a weight.
    """
    ids = [processor.tokenizer(text).input_ids for text in questions]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    words = {weight: [""] * len(ids) for weight in weights}
    sure = {weight: np.zeros(len(ids), np.float32) for weight in weights}
    while order:
        length = len(ids[order[0]])
        rows = [i for i in order[:BATCH] if len(ids[i]) == length]  # equal lengths need no padding
        order = order[len(rows) :]
        batch = processor(images=[images[i] for i in rows], text=[questions[i] for i in rows], return_tensors="pt")
        tokens = batch["input_ids"]
        places = (tokens[0] == model.config.image_token_id).nonzero().flatten()
        SCALING.image = slice(int(places[0]), int(places[-1]) + 1)
        cache = DynamicCache()
        cached = {cache_keyword(model): cache, "use_cache": True}
        model(input_ids=tokens[:, :-1], pixel_values=batch["pixel_values"], **cached)
        for weight in weights:
            SCALING.weight = weight
            logits = model(input_ids=tokens[:, -1:], **cached).logits[:, -1]
            cache.crop(-1)  # the last token again for the next weight
            best = logits.float().softmax(-1).max(-1)
            sure[weight][rows] = best.values.numpy()
            for row, token in zip(rows, best.indices.tolist(), strict=True):
                words[weight][row] = processor.tokenizer.decode([token]).strip()
        SCALING.weight = 1.0
    return {weight: (words[weight], sure[weight]) for weight in weights}


def figures(model, processor, form: str, difficulty: str, seed: int = 0) -> dict[str, dict[str, float]]:
    """What the card says about one form at one difficulty: percentages with two decimals.

    accuracy by weight; changed: answers that differ from weight 1's; routed: questions whose rounded confidence is
    below a threshold; relations: accuracy at weight 1; adapt: AdaptVis with its setting picked on the validation
    split, against weight 1 on the test split (arXiv 2503.01773), with a 95 % interval of the paired difference.
    """
    rows = generate_scenes(form, difficulty, seed)
    said = first_words(model, processor, [photo(scene) for scene in rows], [scene.question for scene in rows])
    right = {w: np.array([word == scene.answer for word, scene in zip(said[w][0], rows, strict=True)]) for w in WEIGHTS}
    sure = np.round(said[1.0][1].astype(float), 2)
    return {
        "accuracy": {f"{w:g}": _percent(right[w]) for w in WEIGHTS},
        "changed": {f"{w:g}": _percent(np.array(said[w][0]) != np.array(said[1.0][0])) for w in WEIGHTS if w != 1.0},
        "routed": {f"{t:g}": _percent(sure < t) for t in THRESHOLDS},
        "relations": {r: _percent(right[1.0][turn::4]) for turn, r in enumerate(FORMS[form].relations)},
        "adapt": _adapt(right, sure),
    }


def _percent(share: NDArray[np.bool_]) -> float:
    return round(100 * float(share.mean()), 2)


def _adapt(right: dict[float, NDArray[np.bool_]], sure: NDArray[np.float64]) -> dict[str, float]:
    count = len(sure)
    test = np.ones(count, bool)
    test[random.Random(1).sample(range(count), int(0.2 * count))] = False
    grid = list(itertools.product((0.5, 0.8), (1.2, 1.5, 2.0), THRESHOLDS))
    routed = {cell: np.where(sure < cell[2], right[cell[0]], right[cell[1]]) for cell in grid}
    best = max(grid, key=lambda cell: routed[cell][~test].mean())
    gain = routed[best][test].astype(float) - right[1.0][test]
    half = 196 * gain.std() / np.sqrt(len(gain))
    names = ("weight1", "weight2", "threshold")
    figure = {"base": _percent(right[1.0][test]), "adapt_vis": _percent(routed[best][test])}
    return dict(zip(names, best, strict=True)) | figure | {"gain": round(100 * gain.mean(), 2), "half": round(half, 2)}


def written(folder: Path) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """The card's machine-readable figures: difficulty, form, then as `figures` gives them."""
    found = re.search(r"```json\n(.*?)\n```", (folder / "README.md").read_text("utf8"), re.DOTALL)
    if found is None:
        raise SystemExit(f"{folder / 'README.md'} holds no block of figures")
    return json.loads(found[1])
