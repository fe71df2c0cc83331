"""What a grid of seven weights costs, in units of one plain greedy generate.

    python benchmarks/grid_cost.py [--json FILE]
    python benchmarks/grid_cost.py --methods [--batch 4] [--rounds 5] [--json FILE]

A random LLaVA-1.5-shaped model of about 150M parameters, 576 image tokens, answers of 8 tokens. Every time is
a median over interleaved runs, divided by stock SDPA `generate` with KV cache at the SAME batch size, in CPU
seconds of one thread: the same as wall time on an idle machine, and on a shared one what repeats. Peak memory
is that of a process of its own. Exits 1 where ours costs more than LIMITS or MEMORY_LIMIT allow. The last line
is `batch 1: X  batch 4: Y`. About four minutes.

`--methods` measures each method with the baseline beside it instead, and beside that the arithmetic of docs/methods.md:
tokens through all layers, and output heads as their part of one. Exits 1 where a method is over METHOD_LIMIT times it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from spatial_eval.core.arms import (
    BASE,
    AnswerYes,
    Arm,
    Deco,
    Dola,
    Icd,
    M3id,
    Sampling,
    Scaling,
    Sid,
    Sla,
    Sparc,
    TextGuidance,
    Vaf,
    Var,
    Vcd,
)
from spatial_eval.core.layers import layer_indices
from spatial_eval.engine import decode, reference
from spatial_eval.engine.contrastive import add_noise, contrast_layers
from spatial_eval.engine.request import Intervention

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


WEIGHTS = (0.0, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0)
ARMS = tuple(Arm(weight) for weight in WEIGHTS)
REFERENCE = 126  # generates a question: 6 weights, and 2 for each of 2 x 3 x 10 AdaptVis cells
KINDS = tuple(Arm(Scaling(weight, kind)) for kind in ("multiply", "temperature", "mass") for weight in WEIGHTS)
LIMITS = {"ours": {1: 1.18, 4: 1.05}, "kinds": {4: 1.3}}  # time, by batch size
MEMORY_LIMIT = 1.2
TOKENS = 8
BEFORE, TEXT = 5, 45  # prompt tokens before the image, and all beside it
ROUNDS = {1: 15, 4: 5}

# By class. Thresholds of var and sparc are such that a random model's sinks and rises are found.
METHODS = {
    "head_guided": ("A", Arm(Scaling(0.5, "head_guided", layers="5-18/32", steps="all"))),
    "sparc": ("A", Arm(Sparc(rise_min=0.0))),
    "vaf": ("C", Arm(Vaf())),
    "var": ("C", Arm(Var(sink_min=2.0, image_min=0.0))),
    "deco": ("O", Arm(contrast=Deco())),
    "sla": ("O", Arm(contrast=Sla())),
    "dola": ("O", Arm(contrast=Dola())),
    "sample": ("O", Arm(contrast=Sampling())),
    "text": ("D-text", Arm(contrast=TextGuidance())),
    "m3id": ("D-text", Arm(contrast=M3id())),
    "answer_yes": ("D-text", Arm(contrast=AnswerYes())),
    "icd, text": ("D-text", Arm(contrast=Icd(place="text"))),
    "icd, system": ("D-img", Arm(contrast=Icd())),
    "vcd": ("D-img", Arm(contrast=Vcd())),
    "sid": ("D-img", Arm(contrast=Sid())),
}
METHOD_LIMIT = 1.3  # measured by arithmetic
ADDED = 12  # tokens of a second prompt's text

Run = Callable[[], Any]


def build(*, small: bool = False) -> Any:
    """About 150M parameters (`small`: a few thousand, to try the program)."""
    torch.manual_seed(0)
    wide, depth, image = (64, 3, 56) if small else (768, 12, 336)
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
        torch.randint(5, model.config.text_config.vocab_size, (batch, n), generator=generator)
        for n in (BEFORE, TEXT - BEFORE)
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


def method_run(model: Any, batch: int, arm: Arm) -> Run:
    """The baseline and an arm, with what the arm reads beside the questions."""
    given = inputs(model, batch)
    ids, pixels, image = given["input_ids"], given["pixel_values"], given["input_ids"].shape[1] - TEXT
    ids[:, 0] = 1  # sinks are known by the first token
    others = {}
    if arm.contrast and (second := arm.contrast.second):
        text = torch.randint(5, model.config.text_config.vocab_size, (1, ADDED)).expand(batch, -1)
        place = {"system": BEFORE, "text": BEFORE + image, "end": image + TEXT}[second.place]
        longer = torch.cat([ids[:, :place], text, ids[:, place:]], dim=1)
        others = {second: {**given, "input_ids": longer, "attention_mask": torch.ones_like(longer)}}
    asked = Intervention(
        tuple(dict.fromkeys((BASE, arm))),
        noised={} if arm.noise is None else {arm.noise: add_noise(pixels, arm.noise, "question")},
        seconds=others,
        whole=[{name: tensor[i : i + 1] for name, tensor in given.items()} for i in range(batch)],
        names=[f"question {i}" for i in range(batch)],
    )
    return lambda: decode.decode_arms(model, given, intervention=asked, max_new_tokens=TOKENS)


def head_share(model: Any) -> float:
    """The output head as a part of all layers."""
    head, layers = model.get_output_embeddings(), model.get_decoder().layers
    return sum(one.numel() for one in head.parameters()) / sum(one.numel() for one in layers.parameters())


def method_rows(model: Any, arm: Arm) -> float:
    """What a method adds to a plain generate by arithmetic, in units of that generate: tokens through all layers."""
    depth, head = model.config.text_config.num_hidden_layers, head_share(model)
    length, after = inputs(model, 1)["input_ids"].shape[1], TEXT - BEFORE
    change, contrast = arm.attention, arm.contrast
    decoding = (TOKENS - 1) * (1 + head)  # of one answer's generated tokens
    added = decoding
    if contrast is None:
        first = layer_indices(change.layers, depth)[0]
        read = after * (1 - first / depth) if change.scope == "text" else float(change.steps != "generated")
        added += read + head * (read > 0)
    elif contrast.against == "layers":
        added += TOKENS * head * len(contrast_layers(model, contrast))
    elif contrast.against != "draw":
        read = {"text": TEXT, "prompt": after + ADDED}.get(contrast.against, length)
        if contrast.second and contrast.second.place == "system":
            read = length + ADDED
        added += read + head + (0 if contrast.instead else decoding)
    return added / (length + head + decoding)


def measure_methods(batch: int, rounds: int, *, small: bool) -> dict[str, dict[str, float]]:
    """By method: its time with the baseline beside it, in plain generates, and that by arithmetic."""
    model = build(small=small)
    arms = {"base": BASE} | {name: arm for name, (_, arm) in METHODS.items()}
    runs = {"plain": ways(model, batch)["plain"]} | {name: method_run(model, batch, arm) for name, arm in arms.items()}
    found = {name: statistics.median(taken) for name, taken in seconds(runs, rounds).items()}
    added = {"base": 0.0} | {name: method_rows(model, arm) for name, (_, arm) in METHODS.items()}
    return {name: {"measured": found[name] / found["plain"], "arithmetic": 1 + added[name]} for name in arms}


def report_methods(found: Mapping[str, Mapping[str, float]], batch: int) -> int:
    """Print a row per method. Returns 1 where one is over its limit."""
    print(
        f"| with the baseline beside it, batch {batch} | class | measured | arithmetic | ratio |\n|---|---|---|---|---|"
    )
    ratios = {name: one["measured"] / one["arithmetic"] for name, one in found.items()}
    for name, one in found.items():
        kind = METHODS[name][0] if name in METHODS else ""
        print(f"| {name} | {kind} | {one['measured']:.2f} | {one['arithmetic']:.2f} | {ratios[name]:.2f} |")
    over = {name: ratio for name, ratio in ratios.items() if ratio > METHOD_LIMIT}
    for name, ratio in over.items():
        print(f"over the limit: {name} at batch {batch}: {ratio:.3f} times the arithmetic > {METHOD_LIMIT}")
    return 1 if over else 0


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
    parser.add_argument("--methods", action="store_true", help="each method with the baseline beside it, instead")
    parser.add_argument("--batch", type=int, default=1, help="questions at a time, of --methods (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="of --methods (default: 5)")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.peak:
        print_peak(args.peak, args.batch, small=args.small)
        return 0
    if args.methods:
        found = measure_methods(args.batch, args.rounds, small=args.small)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
        return report_methods(found, args.batch)
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
