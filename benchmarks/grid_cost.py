"""What a grid of seven weights costs, in units of one plain greedy generate.

    python benchmarks/grid_cost.py [--json FILE]

A random LLaVA-1.5-shaped model of about 150M parameters, 576 image tokens, answers of 8 tokens. Every time is
a median over interleaved runs, divided by stock SDPA `generate` with KV cache at the SAME batch size, in CPU
seconds of one thread: the same as wall time on an idle machine, and on a shared one what repeats. Peak memory
is that of a process of its own. Exits 1 where ours costs more than LIMITS or MEMORY_LIMIT allow. The last line
is `batch 1: X  batch 4: Y`. About four minutes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from spatial_eval.core.arms import Arm, Scaling
from spatial_eval.engine import decode, reference
from spatial_eval.engine.request import Intervention

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


WEIGHTS = (0.0, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0)
ARMS = tuple(Arm(weight) for weight in WEIGHTS)
REFERENCE = 126  # generates a question: 6 weights, and 2 for each of 2 x 3 x 10 AdaptVis cells
KINDS = tuple(Arm(Scaling(weight, kind)) for kind in ("multiply", "temperature", "mass") for weight in WEIGHTS)
LIMITS = {"ours": {1: 1.18, 4: 1.05}, "kinds": {4: 1.3}}  # time, by batch size
MEMORY_LIMIT = 1.2
TOKENS = 8
TEXT = 45  # prompt tokens beside the image's
ROUNDS = {1: 15, 4: 5}

Run = Callable[[], Any]


def build(*, small: bool = False) -> Any:
    """About 150M parameters (`small`: a few thousand, to try the program)."""
    torch.manual_seed(0)
    wide, depth, image = (64, 2, 56) if small else (768, 12, 336)
    vision = transformers.CLIPVisionConfig(
        hidden_size=wide // 2,
        intermediate_size=wide,
        num_hidden_layers=max(2, depth // 3),
        num_attention_heads=4,
        image_size=image,
        patch_size=14,
    )
    text = transformers.LlamaConfig(
        hidden_size=wide,
        intermediate_size=wide * 8 // 3,
        num_hidden_layers=depth,
        num_attention_heads=wide // 64 if not small else 4,
        vocab_size=320 if small else 32064,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=4)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None  # every answer has TOKENS tokens
    return model


def inputs(model: Any, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    vision = model.config.vision_config
    image = torch.full((batch, (vision.image_size // vision.patch_size) ** 2), model.config.image_token_id)
    before, after = (
        torch.randint(5, model.config.text_config.vocab_size, (batch, n), generator=generator) for n in (5, TEXT - 5)
    )
    pixels = torch.randn(batch, 3, vision.image_size, vision.image_size, generator=generator)
    ids = torch.cat([before, image, after], dim=1)  # (B, L)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def ways(model: Any, batch: int) -> dict[str, Run]:
    given = inputs(model, batch)
    grid, kinds, one = Intervention(ARMS), Intervention(KINDS), Intervention(ARMS[1:2])

    def shared(intervention: Intervention) -> Run:
        return lambda: decode.decode_arms(model, given, intervention=intervention, max_new_tokens=TOKENS)

    return {
        "plain": lambda: model.generate(**given, max_new_tokens=TOKENS, do_sample=False),
        "ours": shared(grid),
        "kinds": shared(kinds),
        "one weight": shared(one),
        "reference": lambda: reference.decode_reference(model, given, intervention=one, max_new_tokens=TOKENS),
    }


def seconds(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """CPU seconds, interleaved, each round in another order, after one run of each to warm up."""
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in sorted(runs, reverse=bool(turn % 2)):
            start = time.process_time()
            runs[name]()
            taken[name].append(time.process_time() - start)
    return taken


def peak_mib(way: str, batch: int, *, small: bool) -> float:
    """Of a fresh process that builds the model and runs one way."""
    command = [sys.executable, __file__, "--peak", way, "--batch", str(batch), *["--small"] * small]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(way: str, batch: int, *, small: bool) -> None:
    ways(build(small=small), batch)[way]()
    unit = 2**20 if sys.platform == "darwin" else 2**10
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def measure(batch: int, *, small: bool) -> dict[str, float]:
    runs = ways(build(small=small), batch)
    taken = seconds({name: runs[name] for name in ("plain", "ours", "kinds")}, ROUNDS[batch])
    plain, ours, kinds = (statistics.median(taken[name]) for name in ("plain", "ours", "kinds"))
    few = {name: seconds({name: runs[name]}, 1)[name][0] for name in ("one weight", "reference")}
    memory = {way: peak_mib(way, batch, small=small) for way in ("plain", "ours")}
    return {
        "plain_seconds": plain,
        "ours": ours / plain,
        "kinds": kinds / plain,
        "one_generate_per_weight": len(WEIGHTS) * few["one weight"] / plain,
        "reference": REFERENCE * few["reference"] / plain,
        "plain_mib": memory["plain"],
        "memory": memory["ours"] / memory["plain"],
    }


def table(results: dict[int, dict[str, float]], parameters: int, length: int) -> str:
    rows = [
        ("plain generate, SDPA, one weight", "plain"),
        (f"all {len(WEIGHTS)} weights, shared prefix (ours)", "ours"),
        (f"{len(KINDS)} arms: the weights x three kinds of scaling", "kinds"),
        (f"one generate per weight, {len(WEIGHTS)} weights *", "one_generate_per_weight"),
        (f"the reference's way, {REFERENCE} eager generates *", "reference"),
        ("peak memory, ours / plain", "memory"),
    ]
    lines = [
        f"LLaVA-1.5-shaped, {parameters / 1e6:.0f}M random parameters, float32, {length} prompt tokens, {TOKENS} new; "
        f"torch {torch.__version__}, transformers {transformers.__version__}, one thread",
        f"{'in units of plain generate':48}" + "".join(f"batch {batch:<8}" for batch in results),
    ]
    for label, key in rows:
        lines.append(f"{label:48}" + "".join(f"{one.get(key, 1.0):<14.2f}" for one in results.values()))
    lines.append(
        f"{'plain generate, CPU seconds':48}" + "".join(f"{r['plain_seconds']:<14.2f}" for r in results.values())
    )
    lines.append("* extrapolated from one measured generate of one weight")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--small", action="store_true", help="a toy model: tries the program, its figures mean nothing")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.peak:
        print_peak(args.peak, args.batch, small=args.small)
        return 0
    model = build(small=args.small)
    parameters, length = sum(one.numel() for one in model.parameters()), inputs(model, 1)["input_ids"].shape[1]
    del model
    results = {batch: measure(batch, small=args.small) for batch in ROUNDS}
    print(table(results, parameters, length))
    if args.json:
        args.json.write_text(json.dumps({f"batch_{batch}": one for batch, one in results.items()}, indent=1) + "\n")
    over = [
        f"time of {name} at batch {b}: {results[b][name]:.3f} > {limit}"
        for name, limits in LIMITS.items()
        for b, limit in limits.items()
        if results[b][name] > limit
    ]
    over += [
        f"memory at batch {b}: {r['memory']:.3f} > {MEMORY_LIMIT}"
        for b, r in results.items()
        if r["memory"] > MEMORY_LIMIT
    ]
    for line in over:
        print(f"over the limit: {line}")
    print("  ".join(f"batch {batch}: {one['ours']:.3f}" for batch, one in results.items()))
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
