"""What questions that share an image cost, in units of one plain greedy generate per question.

    python benchmarks/image_cost.py [--only 1,6] [--rounds 3] [--json FILE]

The model of grid_cost.py; 1, 1.7 (VSR's mixture), 6 and 18 questions per image, 1, 7 and 21 arms, answers of 2 and 8
tokens. Every time is a median over interleaved rounds, in CPU seconds of one thread, divided by a stock SDPA `generate`
of one weight of the same questions in one batch, as in grid_cost.py. Beside it stands the count of rows of the
language model. Exits 1 where a figure is over its bar. The last line is `1.7: X  6: Y  18: Z` (7 arms, 2 tokens).
About twenty minutes; `--only` measures some numbers of questions per image, without memory.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grid_cost
import torch
import transformers

from spatial_eval.core.arms import Arm, Scaling
from spatial_eval.engine import decode
from spatial_eval.engine.request import Intervention

ARMS = {1: grid_cost.ARMS[1:2], 7: grid_cost.ARMS, 21: grid_cost.KINDS}
WITH_TEXT = (*grid_cost.ARMS, Arm(Scaling(0.5, scope="text")))
BEFORE, AFTER = 5, 40  # prompt tokens around the image's
MEMORY_BAR = 0.5  # peak at six questions, ours / plain
TEXT_BAR = 0.08  # an arm of all text rows at six questions, two tokens
# Of 0.1's figures at one question per image, 0.99 and 1.13, three per cent more.
BARS = {
    ("1", 2): 1.02,
    ("1", 8): 1.16,
    ("1.7", 2): 0.66,
    ("1.7", 8): 0.74,
    ("4", 2): 0.34,
    ("6", 2): 0.25,
    ("6", 8): 0.34,
    ("18", 2): 0.13,
}


@dataclass(frozen=True, slots=True)
class Case:
    """Questions by image. The four of one image stand for four templates of one question."""

    counts: Sequence[int]

    @property
    def questions(self) -> int:
        return sum(self.counts)


CASES = {
    "1": Case((1,)),
    "1.7": Case((3, 1, 2, 1, 1, 3, 1)),
    "4": Case((4,)),
    "6": Case((6,)),
    "18": Case((18,)),
}


def make_inputs(model: Any, counts: Sequence[int], *, shared: bool) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Prompts with their images once each (`shared`) or once per question, and each prompt's image."""
    generator = torch.Generator().manual_seed(1)
    vision, vocabulary = model.config.vision_config, model.config.text_config.vocab_size
    image = [number for number, count in enumerate(counts) for _ in range(count)]
    tokens = torch.full((len(image), (vision.image_size // vision.patch_size) ** 2), model.config.image_token_id)
    before = torch.randint(5, vocabulary, (1, BEFORE), generator=generator).expand(len(image), -1)
    after = torch.randint(5, vocabulary, (len(image), AFTER), generator=generator)
    ids = torch.cat([before, tokens, after], dim=1)  # (N, L)
    pixels = torch.randn(len(counts), 3, vision.image_size, vision.image_size, generator=generator)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**given, "pixel_values": pixels if shared else pixels[image]}, image


def plain_run(model: Any, questions: int, tokens: int) -> Callable[[], Any]:
    given, _ = make_inputs(model, (1,) * questions, shared=False)
    return lambda: model.generate(**given, max_new_tokens=tokens, do_sample=False)


def engine_run(model: Any, case: Case, arms: Sequence[Arm], tokens: int) -> Callable[[], Any]:
    given, image = make_inputs(model, case.counts, shared=True)
    asked = Intervention(tuple(arms))
    return lambda: decode.decode_arms(model, given, intervention=asked, max_new_tokens=tokens, image=image)


def rows(case: Case, arms: Sequence[Arm], tokens: int, length: int) -> float:
    """The rows that the language model computes, in units of those of a plain generate of one weight per question."""
    wide = len({Arm() if arm.untouched else arm for arm in arms})
    own = AFTER - 1 + wide * tokens  # the first token needs no row of its own
    return (len(case.counts) * (length - AFTER) + case.questions * own) / (case.questions * (length + tokens - 1))


def measure(model: Any, cases: Sequence[str], tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """By case: cost of 1, 7 and 21 arms and, at six questions, of seven and one of all text rows."""
    plain = {CASES[name].questions: plain_run(model, CASES[name].questions, tokens) for name in cases}
    ways = {
        (name, str(number)): engine_run(model, CASES[name], arms, tokens)
        for name in cases
        for number, arms in ARMS.items()
    }
    if "6" in cases:
        ways["6", "text"] = engine_run(model, CASES["6"], WITH_TEXT, tokens)
    runs: dict[Any, Callable[[], Any]] = {**plain, **ways}
    taken: dict[Any, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name in sorted(runs, key=str, reverse=bool(turn % 2)):
            barred = not isinstance(name, tuple) or name[1] in ("7", "text")
            if turn > 1 and not barred:  # no bar depends on them
                continue
            start = time.process_time()
            runs[name]()
            if turn:  # the first round warms up
                taken[name].append(time.process_time() - start)
    found: dict[str, dict[str, float]] = {name: {} for name in cases}
    for name, number in ways:
        plain_seconds = statistics.median(taken[CASES[name].questions])
        found[name][number] = statistics.median(taken[name, number]) / plain_seconds
    return found


def peak_mib(way: str, *, small: bool) -> float:
    """What six questions of eight tokens take beside model and inputs, in a process of its own."""
    command = [sys.executable, __file__, "--peak", way, *["--small"] * small]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(way: str, *, small: bool) -> None:
    model = grid_cost.build(small=small)
    run = plain_run(model, 6, 8) if way == "plain" else engine_run(model, CASES["6"], grid_cost.ARMS, 8)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize() / 2**10
    run()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)


def table(results: dict[int, dict[str, dict[str, float]]], length: int) -> str:
    lines = [
        f"{'questions per image':>20}"
        + "".join(f"{number} arms, T={tokens} (rows)".rjust(22) for tokens in results for number in ARMS)
    ]
    for name in next(iter(results.values())):
        cells = [
            f"{found[name][str(number)]:.3f} ({rows(CASES[name], arms, tokens, length):.3f})".rjust(22)
            for tokens, found in results.items()
            for number, arms in ARMS.items()
        ]
        lines.append(f"{name:>20}" + "".join(cells))
    return "\n".join(lines)


def over_bars(results: dict[int, dict[str, dict[str, float]]], text: float | None, memory: float | None) -> list[str]:
    found = [
        f"{name} questions per image, {tokens} tokens: {results[tokens][name]['7']:.3f} > {bar}"
        for (name, tokens), bar in BARS.items()
        if name in results[tokens] and results[tokens][name]["7"] > bar
    ]
    if text is not None and text > TEXT_BAR:
        found.append(f"an arm of all text rows: {text:.3f} > {TEXT_BAR}")
    if memory is not None and memory > MEMORY_BAR:
        found.append(f"memory at 6 questions: {memory:.3f} > {MEMORY_BAR}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--only", help=f"of {','.join(CASES)} questions per image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a toy model: tries the program, its figures mean nothing")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.peak:
        print_peak(args.peak, small=args.small)
        return 0
    cases = args.only.split(",") if args.only else list(CASES)
    if unknown := set(cases) - CASES.keys():
        parser.error(f"--only={','.join(unknown)}: choose of {','.join(CASES)}")
    memory = {} if args.only else {way: peak_mib(way, small=args.small) for way in ("plain", "ours")}
    model = grid_cost.build(small=args.small)
    length = make_inputs(model, (1,), shared=True)[0]["input_ids"].shape[1]
    results = {tokens: measure(model, cases, tokens, args.rounds) for tokens in (2, 8)}
    text = results[2]["6"]["text"] - results[2]["6"]["7"] if "6" in cases else None
    print(
        f"LLaVA-1.5-shaped, {sum(one.numel() for one in model.parameters()) / 1e6:.0f}M random parameters, float32, "
        f"{length} prompt tokens; torch {torch.__version__}, transformers {transformers.__version__}, one thread"
    )
    print(table(results, length))
    if text is not None:
        print(f"an arm of all text rows, 6 questions, 2 tokens: + {text:.3f}")
    if memory:
        print(f"peak memory, 6 questions, 8 tokens: {memory['ours']:.0f} MiB, plain generate {memory['plain']:.0f} MiB")
    if args.json:
        args.json.write_text(json.dumps({"cost": results, "text": text, "memory_mib": memory}, indent=1) + "\n")
    over = over_bars(results, text, memory["ours"] / memory["plain"] if memory else None)
    for line in over:
        print(f"over the limit: {line}")
    print(
        "  ".join(f"{name}: {results[2][name]['7']:.3f}" for name in cases if name in ("1.7", "6", "18") or args.only)
    )
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
