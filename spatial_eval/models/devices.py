"""Estimate device time by arithmetic, before any measurement, from data on devices and the shapes of models.

Peaks are published dense ones, of the SXM form where there are several. Those in bfloat16 and the memory of B200, H200,
H100, A100 and L40S were looked up; the others, and all in float32, are (unverified). No run was timed for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Device:
    """Hold a device's peak in TFLOP/s, in bfloat16 (float16 where it has none) and float32, and its TB/s of memory."""

    half: float
    single: float
    memory: float

    def peak(self, dtype: str) -> float:
        return self.single if dtype == "float32" else self.half


# By the part of the name that torch gives a device, in lower case; `cpu` is one of 8 to 64 cores.
DEVICES: Mapping[str, Device] = {
    "b200": Device(2250, 75, 8.0),
    "h200": Device(989, 67, 4.8),
    "h100": Device(989, 67, 3.35),
    "a100": Device(312, 19.5, 2.0),
    "l40s": Device(362, 91.6, 0.864),
    "a6000": Device(155, 38.7, 0.768),
    "l4": Device(121, 30.3, 0.3),
    "v100": Device(125, 15.7, 0.9),
    "t4": Device(65, 8.1, 0.32),
    "cpu": Device(2, 2, 0.1),
}
STAND_IN = "h200"  # where no GPU is seen and none is named
UTILISATION = (0.6, 0.15)  # shares of a peak that prefills reach: at best, at worst
STEPS = (2, 10)  # tokens of a batch's longest answer: a word and its end; a sentence
LAUNCH_S = (0.004, 0.03)  # of a decode step of kernels on a GPU: as a graph; one by one


@dataclass(frozen=True, slots=True)
class Shape:
    """Hold a model's size: parameters in units of 1e9, and the least and most image tokens of a picture."""

    billions: float
    tokens: tuple[int, int]


# By the beginning of a hub id, before its files are here. Tokens: as the processors of transformers count them for
# pictures of 640 x 480 to 1280 x 960 (tests/passes/test_estimate.py). Parameters are those of the models' cards,
# (unverified) but for LLaVA-1.5, Gemma 3 and PaliGemma.
SHAPES: Mapping[str, Shape] = {
    "llava-hf/llava-1.5-7b": Shape(7.1, (576, 576)),
    "llava-hf/llava-1.5-13b": Shape(13.4, (576, 576)),
    "llava-hf/llava-v1.6-vicuna-13b": Shape(13.4, (1948, 2928)),
    "llava-hf/llava-v1.6": Shape(7.6, (1948, 2928)),
    "llava-hf/llava-onevision-qwen2-7b": Shape(8.0, (2929, 7309)),
    "Qwen/Qwen2-VL-7B": Shape(8.3, (391, 1564)),
    "Qwen/Qwen2.5-VL-7B": Shape(8.3, (391, 1564)),
    "Qwen/Qwen3-VL-8B": Shape(8.8, (300, 1200)),
    "OpenGVLab/InternVL3-8B": Shape(7.9, (1280, 3328)),
    "google/gemma-3-4b": Shape(4.3, (256, 256)),
    "google/paligemma-3b-mix-224": Shape(2.9, (256, 256)),
    "HuggingFaceTB/SmolVLM2-2.2B": Shape(2.2, (1053, 1377)),
}


def find_shape(path: str) -> Shape | None:
    """Return the shape of a model of the hub; None where it is not listed."""
    return next((shape for begin, shape in SHAPES.items() if path.startswith(begin)), None)


def measure_shape(config: Any, tokens: int) -> Shape:
    """Compute a shape from a config.json: projections of attention and MLP, embeddings; vision for a tenth more."""
    from spatial_eval.engine.request import ConfigFields

    text = config.get_text_config()
    size, heads = text.hidden_size, text.num_attention_heads
    kept = ConfigFields.read(text).num_key_value_heads or heads
    layer = 2 * size * size * (1 + kept / heads) + 3 * size * text.intermediate_size
    return Shape(1.1 * (layer * text.num_hidden_layers + 2 * text.vocab_size * size) / 1e9, (tokens, tokens))


def find_device() -> tuple[str, str]:
    """Return the key in DEVICES of torch's GPU, or of STAND_IN, and the reason in words."""
    import torch

    if not torch.cuda.is_available():
        return STAND_IN, "no GPU is seen here"
    name = str(torch.cuda.get_device_name(0))
    key = match_device(name)
    return (key, f"{name}, seen here") if key else (STAND_IN, f"{name}, seen here, is not in the table")


def match_device(name: str) -> str | None:
    """Return the key in DEVICES of a device by its name in torch; None where it is not listed."""
    words = name.lower().replace("-", " ").split()
    return next((key for key in DEVICES if key in words), None)


def time_question(
    shape: Shape, device: str, dtype: str, *, text: float, images: float, readings: int, arms: int, batch: int
) -> tuple[float, float]:
    """Compute seconds per question with all its arms, at best and at worst.

    Args:
        text: number of prompt tokens outside the image. images: image prefills per question. readings: prefills of the
            question, one per noised image beside its own. arms: number decoded together. batch: questions per decode
            step.
    """
    card, weights = DEVICES[device], shape.billions * 1e9
    seconds = []
    for tokens, share, steps, launch in zip(shape.tokens, UTILISATION, STEPS, LAUNCH_S, strict=True):
        rows = readings * (tokens * images + text) + arms
        read = weights * (4 if dtype == "float32" else 2) / (card.memory * 1e12)
        step = read if device == "cpu" else max(read, launch)
        seconds.append(2 * weights * rows / (card.peak(dtype) * 1e12 * share) + steps * step / batch)
    best, worst = seconds
    return best, worst
