"""The whole grid on a CUDA machine: milliseconds a question, against the machine's own ceilings.

    python benchmarks/gpu_grid.py [--batch 1,2,4,8,16,32] [--json FILE] [--small]

LLaVA-1.5-7B geometry with random weights in bfloat16, about 620 prompt tokens, 7 weights, 8 new tokens. Imports
torch, transformers and the engine's modules only, and needs no file. Columns, all per question:

    prefill    image, prompt and first token of all weights    decode   the other tokens of all weights
    all        both, eager decoding                            graphs   both, decode steps as a CUDA graph
    floor      the arithmetic and the memory traffic that the grid needs, at the ceilings measured in this run
    x floor    the faster of all and graphs, over floor        plain    one stock SDPA generate of one weight

and the reference's way, 126 eager generates at batch 1, extrapolated from a measured few. `--small` is a toy on
whatever device there is: it tries the program, its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from spatial_eval.core.types import Arm
from spatial_eval.engine import decode, reference
from spatial_eval.engine.kv_cache import Graphs
from spatial_eval.engine.request import Intervention

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


WEIGHTS = (0.0, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0)
ARMS = tuple(Arm(weight) for weight in WEIGHTS)
REFERENCE = 126  # generates a question in the paper's code for the published grid
TOKENS = 8
TEXT = 44  # prompt tokens beside the image's
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


def inputs(model: Any, batch: int) -> dict[str, torch.Tensor]:
    """Prompts of one length: no padding, so the prefix needs no mask and SDPA takes its flash kernel."""
    generator = torch.Generator().manual_seed(1)
    vision = model.config.vision_config
    image = torch.full((batch, (vision.image_size // vision.patch_size) ** 2), model.config.image_token_id)
    words = torch.randint(5, model.config.text_config.vocab_size, (batch, TEXT), generator=generator)
    ids = torch.cat([words[:, :5], image, words[:, 5:]], dim=1).to(model.device)  # (B, L)
    pixels = torch.randn(batch, 3, vision.image_size, vision.image_size, generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(model.device, model.dtype),
    }


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


def floor_seconds(model: Any, batch: int, length: int, ceiling: dict[str, float]) -> float:
    """Of a whole batch: multiply-adds of the prefill, then per step the larger of arithmetic and memory traffic."""
    text, width, steps = model.config.text_config, len(WEIGHTS), TOKENS - 1
    language = sum(one.numel() for one in model.model.language_model.layers.parameters())
    head = model.lm_head.weight.numel()
    vision = sum(one.numel() for one in model.model.vision_tower.parameters())
    rows, patches = length - 1 + width, length - TEXT + 1
    attention = 2 * rows * rows * text.hidden_size * text.num_hidden_layers  # causal: half of 4 n^2 d
    prefill = batch * (2 * (language * rows + head * width + vision * patches) + attention) / ceiling["flops"]
    size = model.dtype.itemsize
    cached = 2 * text.num_hidden_layers * text.hidden_size * (length + width * TOKENS // 2) * size
    arithmetic = 2 * (language + head) * batch * width / ceiling["flops"]
    traffic = ((language + head) * size + batch * cached) / ceiling["bytes"]
    return prefill + steps * max(arithmetic, traffic)


def measure(model: Any, batch: int, ceiling: dict[str, float]) -> dict[str, float]:
    """Milliseconds a question; also the peak memory in GiB on a GPU."""
    given, grid = inputs(model, batch), Intervention(ARMS)
    graphs = Graphs()

    def ours(tokens: int, steps: Graphs | None = None) -> Callable[[], Any]:
        return lambda: decode.decode_arms(model, given, intervention=grid, max_new_tokens=tokens, graphs=steps)

    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first, whole, replayed = seconds(ours(1)), seconds(ours(TOKENS)), seconds(ours(TOKENS, graphs))
    plain = seconds(lambda: model.generate(**given, max_new_tokens=TOKENS, do_sample=False))
    floor = floor_seconds(model, batch, given["input_ids"].shape[1], ceiling)
    times = {
        "prefill": first,
        "decode": whole - first,
        "all": whole,
        "graphs": replayed,
        "floor": floor,
        "plain": plain,
    }
    found = {name: 1e3 * taken / batch for name, taken in times.items()}
    found["x floor"] = min(whole, replayed) / floor
    found["GiB"] = torch.cuda.max_memory_allocated() / 2**30 if model.device.type == "cuda" else 0.0
    return found


def check(model: Any) -> float:
    """Largest difference of first logits between engine and oracle, in standard deviations of the logits."""
    given, grid = inputs(model, 2), Intervention(ARMS)
    ours = decode.decode_arms(model, given, intervention=grid, max_new_tokens=TOKENS, graphs=Graphs())
    eager = decode.decode_arms(model, given, intervention=grid, max_new_tokens=TOKENS)
    judge = reference.decode_reference(model, given, intervention=grid, max_new_tokens=1)
    same = sum(a == b for x, y in zip(ours.tokens, eager.tokens, strict=True) for a, b in zip(x, y, strict=True))
    print(f"graphs and eager decoding agree on {same} of {2 * len(WEIGHTS)} answers")
    return float((ours.logits - judge.logits).abs().max() / judge.logits.std())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", default="1,2,4,8,16,32", help="batch sizes, comma separated")
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
    one = {**inputs(model, 1)}
    slow = seconds(
        lambda: reference.decode_reference(model, one, intervention=Intervention((Arm(0.5),)), max_new_tokens=TOKENS), 2
    )
    print(f"{'ms a question':>14}" + "".join(f"{column:>9}" for column in COLUMNS) + f"{'GiB':>7}")
    results: dict[int, dict[str, float]] = {}
    for batch in (int(size) for size in args.batch.split(",")):
        results[batch] = found = measure(model, batch, ceiling)
        print(f"{f'batch {batch}':>14}" + "".join(f"{found[c]:9.2f}" for c in COLUMNS) + f"{found['GiB']:7.1f}")
    grid_way = 1e3 * REFERENCE * slow
    best = min(min(found["all"], found["graphs"]) for found in results.values())
    print(f"the reference's way (extrapolated from 2 measured generates): {grid_way:.0f} ms a question")
    print(f"questions/s: ours {1e3 / best:.2f}, the reference's way {1e3 / grid_way:.3f}, ratio {grid_way / best:.0f}")
    if args.json:
        figures = {"ceilings": ceiling, "reference_ms": grid_way, "batches": results}
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
