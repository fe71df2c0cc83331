"""Tiny random vision-language models of each family, with their real processors, built offline in 0.1 s.

A default initialisation (std 0.02) makes attention flat, so that no weight changes anything and every error
hides: here matrices have std 1.6 / sqrt(fan_in) and embeddings std 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import builders
import torch
from PIL import Image


@dataclass(frozen=True, slots=True)
class Family:
    model: Any
    processor: Any

    def save(self, folder: Path) -> Path:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        return folder


@cache
def build(name: str) -> Family:
    """The family of this name in FAMILIES; the same object every time, in eval mode and float32."""
    torch.manual_seed(0)
    model, processor = FAMILIES[name]()
    _scale_up(model, seed=SEEDS.get(name, 0))
    return Family(model.eval(), processor)


def picture(index: int, size: tuple[int, int]) -> Image.Image:
    """A picture of `size` (width, height) in noisy colours, another for each index."""
    generator = torch.Generator().manual_seed(index)
    pixels = torch.randint(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize(size)


def _scale_up(model: Any, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    embed = 1 / float(getattr(model.get_input_embeddings(), "embed_scale", 1.0))  # Gemma 3 multiplies them up again
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim >= 2:
                fan_in = tensor[0].numel()
                tensor.copy_(noise * (embed if "embed_tokens" in name else 1.6 / fan_in**0.5))
            elif "norm" in name and name.endswith("weight"):
                tensor.copy_(1 + 0.1 * noise)
            elif "class_embedding" in name:
                tensor.copy_(noise)
            elif name.endswith("bias"):
                tensor.copy_(0.1 * noise)


# what the engine must decode as its oracle does; then what it must leave to the oracle
SUPPORTED: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": builders.llava,
    "llava_next": builders.llava_next,
    "llava_onevision": builders.llava_onevision,
    "qwen2_vl": builders.qwen2_vl,
    "qwen25_vl": builders.qwen25_vl,
    "qwen3_vl": builders.qwen3_vl,
    "internvl": builders.internvl,
    "idefics3": builders.idefics3,
    "smolvlm2": builders.smolvlm2,
    "gemma3": builders.gemma3,
}
FAMILIES = {
    **SUPPORTED,
    "gemma3_cut": partial(builders.gemma3, window=32),
    "paligemma": builders.paligemma,
    "softcap": builders.softcap,
}
SEEDS = {"qwen2_vl": 1}  # where with seed 0 a weight changes too few answers for errors to show
