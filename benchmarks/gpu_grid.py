"""The whole grid on a CUDA machine: milliseconds a question, against the machine's own ceilings.

    python benchmarks/gpu_grid.py [--batch 1,2,4,8,16,32] [--questions 1] [--padded] [--json FILE] [--small]

LLaVA-1.5-7B geometry with random weights in bfloat16, about 620 prompt tokens, 7 weights, 8 new tokens. `--questions`
is the number of questions per image, `--batch` that of images per batch; `--padded` makes every second question
shorter. Imports torch, transformers and the engine's modules only, and needs no file. Columns, all per question:

    prefill    image, prompt and first token of all weights    decode   the other tokens of all weights
    all        both, eager decoding                            graphs   both, decode steps as a CUDA graph
    floor      the arithmetic and the memory traffic that the grid needs, at the ceilings measured in this run
    x floor    the faster of all and graphs, over floor        plain    one stock SDPA generate of one weight

and the reference's way, 126 eager generates at batch 1, extrapolated from a measured few; then every kernel of
log-sum-exp attention that gives the right numbers here, the preferred first, for prefixes of one length and padded
ones. `--small` is a toy on whatever device there is: it tries the program, its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from spatial_eval.core.arms import Arm
from spatial_eval.engine import decode, reference
from spatial_eval.engine.kernels import attend_plainly, iter_kernels
from spatial_eval.engine.kv_cache import GRAIN, Graphs
from spatial_eval.engine.request import Decoded, Intervention

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


WEIGHTS = (0.0, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0)
GRID = Intervention(tuple(Arm(weight) for weight in WEIGHTS))
REFERENCE = 126  # generates a question in the paper's code for the published grid
TOKENS = 8
BEFORE, AFTER = 5, 39  # prompt tokens around the image's
SHORTER = 8  # tokens that a short question has less
ROUNDS = 5
COLUMNS = ("prefill", "decode", "all", "graphs", "floor", "x floor", "plain")


def build(device: str, *, small: bool) -> Any:
    """LLaVA-1.5-7B: CLIP-L/14 at 336 pixels and a 32-layer Llama of width 4096; `small`: a toy of that shape."""
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    if small:
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
        text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=56 if small else 336, patch_size=14),
        text_config=transformers.LlamaConfig(
            **text,
            vocab_size=320 if small else 32064,
            max_position_embeddings=4096,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=None,
        ),
        image_token_id=4,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        with torch.device(device):
            model = transformers.LlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None  # every answer has TOKENS tokens
    return model


@dataclass(frozen=True, slots=True)
class Batch:
    """N prompts about I images: the tensors of the prompts, the images once each, and the image of each prompt."""

    text: dict[str, torch.Tensor]
    pixels: torch.Tensor
    image: list[int]

    @property
    def shared(self) -> dict[str, Any]:
        return {**self.text, "pixel_values": self.pixels}

    @property
    def repeated(self) -> dict[str, Any]:
        return {**self.text, "pixel_values": self.pixels[self.image]}


def make_batch(model: Any, prompts: int, *, questions: int = 1, padded: bool = False) -> Batch:
    """Prompts of one length, or left padded ones; `questions` of them on each image."""
    generator = torch.Generator().manual_seed(1)
    vision, vocabulary = model.config.vision_config, model.config.text_config.vocab_size
    image = [number // questions for number in range(prompts)]
    tokens = torch.full((prompts, (vision.image_size // vision.patch_size) ** 2), model.config.image_token_id)
    before = torch.randint(5, vocabulary, (1, BEFORE), generator=generator).expand(prompts, -1)
    after = torch.randint(5, vocabulary, (prompts, AFTER), generator=generator)
    ids = torch.cat([before, tokens, after], dim=1)  # (N, L)
    mask = torch.ones_like(ids)
    if padded:
        ids[1::2] = ids[1::2].roll(SHORTER, dims=1)
        mask[1::2, :SHORTER] = 0
    pixels = torch.randn(image[-1] + 1, 3, vision.image_size, vision.image_size, generator=generator)
    text = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    return Batch(text, pixels.to(model.device, model.dtype), image)


def seconds(run: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Median, after two runs to warm up."""
    taken = []
    for turn in range(rounds + 2):
        wait()
        start = time.perf_counter()
        run()
        wait()
        if turn >= 2:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ceilings(model: Any, *, small: bool) -> dict[str, float]:
    """What this machine reaches in this run: products in the model's dtype (FLOP/s) and copies (bytes/s)."""
    size, length = (256, 2**20) if small else (8192, 2**30)
    left, right = (torch.randn(size, size, device=model.device, dtype=model.dtype) for _ in range(2))
    flops = 2 * size**3 / seconds(lambda: left @ right)
    source = torch.empty(length, device=model.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return {"flops": flops, "bytes": 2 * length / seconds(lambda: target.copy_(source))}


def floor_seconds(model: Any, batch: Batch, ceiling: dict[str, float]) -> float:
    """Of a whole batch: multiply-adds of the prefill, then per step the larger of arithmetic and memory traffic."""
    prompts, length = batch.text["input_ids"].shape
    images, shared, own = len(batch.pixels), length - AFTER, AFTER - 1 + len(WEIGHTS)
    text, width, steps = model.config.text_config, len(WEIGHTS), TOKENS - 1
    language = sum(one.numel() for one in model.model.language_model.layers.parameters())
    head = model.lm_head.weight.numel()
    vision = sum(one.numel() for one in model.model.vision_tower.parameters())
    patches, deep = shared - BEFORE + 1, text.hidden_size * text.num_hidden_layers
    pairs = images * shared**2 // 2 + prompts * own * (shared + own // 2)  # of query and key
    products = language * (images * shared + prompts * own) + head * prompts * width + vision * images * patches
    prefill = (2 * products + 4 * pairs * deep) / ceiling["flops"]
    size = model.dtype.itemsize
    columns = images * shared + prompts * (own + width * TOKENS // 2)
    arithmetic = 2 * (language + head) * prompts * width / ceiling["flops"]
    traffic = ((language + head) * size + 2 * deep * columns * size) / ceiling["bytes"]
    return prefill + steps * max(arithmetic, traffic)


def decode_batch(model: Any, batch: Batch, tokens: int, graphs: Graphs | None = None) -> Decoded:
    return decode.decode_arms(
        *(model, batch.shared), intervention=GRID, max_new_tokens=tokens, image=batch.image, graphs=graphs
    )


def measure(model: Any, batch: Batch, ceiling: dict[str, float]) -> dict[str, float]:
    """Milliseconds a question; also the peak memory in GiB on a GPU."""
    graphs, prompts = Graphs(required=False), len(batch.image)

    def ours(tokens: int, steps: Graphs | None = None) -> Callable[[], Any]:
        return lambda: decode_batch(model, batch, tokens, steps)

    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first, whole, replayed = seconds(ours(1)), seconds(ours(TOKENS)), seconds(ours(TOKENS, graphs))
    plain = seconds(lambda: model.generate(**batch.repeated, max_new_tokens=TOKENS, do_sample=False))
    floor = floor_seconds(model, batch, ceiling)
    times = {
        "prefill": first,
        "decode": whole - first,
        "all": whole,
        "graphs": replayed,
        "floor": floor,
        "plain": plain,
    }
    found = {name: 1e3 * taken / prompts for name, taken in times.items()}
    found["x floor"] = min(whole, replayed) / floor
    found["GiB"] = torch.cuda.max_memory_allocated() / 2**30 if model.device.type == "cuda" else 0.0
    return found


def time_kernels(model: Any, batch: Batch) -> dict[str, float]:
    """Microseconds that a decode step's rows take to read the prefixes of one layer, by kernel; the preferred first."""
    text, images = model.config.text_config, len(batch.pixels)
    columns, rows = batch.text["input_ids"].shape[1] - AFTER, len(batch.image) // images * len(WEIGHTS)
    query, key, value = (
        torch.randn(images, text.num_attention_heads, length, text.head_dim, device=model.device, dtype=model.dtype)
        for length in (rows, columns, columns)
    )
    hidden = torch.arange(columns, device=model.device).expand(images, 1, 1, -1) >= columns - GRAIN // 2
    found = {}
    for masked in (False, True):
        for kernel in iter_kernels(model.device.type, model.dtype, text.head_dim, masked=masked):
            given = (query, key, value, text.head_dim**-0.5, hidden if masked else None)
            name = "plain" if kernel is attend_plainly else kernel.__name__.strip("_")
            found[name + ", padded" * masked] = 1e6 * seconds(partial(kernel, *given))
    return found


def check(model: Any) -> float:
    """Largest difference of first logits between engine and reference, in standard deviations of the logits."""
    batch = make_batch(model, 2, questions=2, padded=True)
    ours, eager = decode_batch(model, batch, TOKENS, Graphs(required=False)), decode_batch(model, batch, TOKENS)
    judge = reference.decode_reference(model, batch.repeated, intervention=GRID, max_new_tokens=1)
    same = sum(a == b for x, y in zip(ours.tokens, eager.tokens, strict=True) for a, b in zip(x, y, strict=True))
    print(f"graphs and eager decoding agree on {same} of {2 * len(WEIGHTS)} answers")
    return float((ours.logits - judge.logits).abs().max() / judge.logits.std())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", default="1,2,4,8,16,32", help="images per batch, comma separated")
    parser.add_argument("--questions", type=int, default=1, help="questions per image")
    parser.add_argument("--padded", action="store_true", help="questions of two lengths")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--small", action="store_true", help="a toy model on any device: tries the program")
    args = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.small:
        print("this benchmark needs a CUDA machine; --small tries it on a CPU", file=sys.stderr)
        return 2
    model = build(device, small=args.small)
    ceiling = ceilings(model, small=args.small)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, {model.dtype}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"ceilings: {ceiling['flops'] / 1e12:.3g} TFLOP/s, {ceiling['bytes'] / 1e12:.3g} TB/s")
    print(f"first logits, engine against plain generate: {check(model):.2g} standard deviations")
    one, weight = make_batch(model, 1).shared, Intervention((Arm(0.5),))
    slow = seconds(lambda: reference.decode_reference(model, one, intervention=weight, max_new_tokens=TOKENS), 2)
    print(f"{args.questions} questions per image")
    print(f"{'ms a question':>14}" + "".join(f"{column:>9}" for column in COLUMNS) + f"{'GiB':>7}")
    results: dict[int, dict[str, float]] = {}
    for size in (int(size) for size in args.batch.split(",")):
        batch = make_batch(model, size * args.questions, questions=args.questions, padded=args.padded)
        results[size * args.questions] = found = measure(model, batch, ceiling)
        print(
            f"{f'batch {size * args.questions}':>14}"
            + "".join(f"{found[c]:9.2f}" for c in COLUMNS)
            + f"{found['GiB']:7.1f}"
        )
    grid_way = 1e3 * REFERENCE * slow
    best = min(min(found["all"], found["graphs"]) for found in results.values())
    print(f"the reference's way (extrapolated from 2 measured generates): {grid_way:.0f} ms a question")
    print(f"questions/s: ours {1e3 / best:.2f}, the reference's way {1e3 / grid_way:.3f}, ratio {grid_way / best:.0f}")
    kernels = time_kernels(model, batch)
    named = "  ".join(f"{name} {taken:.0f}" for name, taken in kernels.items())
    print(f"log-sum-exp attention, microseconds per layer and step of the last batch: {named}")
    if args.json:
        figures = {"ceilings": ceiling, "reference_ms": grid_way, "batches": results, "kernels_us": kernels}
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
