"""All that is to be seen on a CUDA machine, in one command: `make gpu`, at most six minutes.

    python benchmarks/gpu_run.py [--only families,grid,program] [--folder FOLDER] [--small]

families   the tiny model of each family: float32 token-exact with the reference implementation, bfloat16 within the
           self-check's rounding, and decode steps replayed as a CUDA graph against eager ones
grid       gpu_grid.py at one question per image, padded, and six questions per image; plain generate stands beside it
program    launch.py on a random LLaVA-1.5-7B that is written to disk once, on POPE's shape (500 images, 5,127
           questions, seven arms): seconds, questions per second, share of time that the GPU is busy, peak memory

Packages that are missing are listed first, and the parts that do without them run. FOLDER gets gpu_run.json and
gpu_run.md, a table for RESULTS.md. On an H100 or H200 it exits 1 where a figure misses its bar. `--small` tries the
program on any device, its figures mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "support")]

NEEDS = {
    "families": ("torch", "transformers", "tokenizers", "PIL"),
    "grid": ("torch", "transformers"),
    "program": ("torch", "transformers", "tokenizers", "PIL", "hydra", "pandas", "pyarrow", "rich"),
}
SHAPE = {False: (500, 5127), True: (3, 10)}  # POPE's images and questions, by `small`
PROMPTS = 3  # of a tiny model's batch, on two images
POLL_S = 0.2
# Figure -> (at least, at most), for one H100 SXM or H200; README of the parts above
BARS: Mapping[str, tuple[float, float]] = {
    "grid 6 questions per image: one-token questions/s": (250.0, float("inf")),
    "grid 1 question per image: x floor": (0.0, 1.3),
    "program: of the engine's questions/s": (0.8, float("inf")),
    "program: seconds on POPE's shape": (0.0, 30.0),
}

Figures = dict[str, float | str]


def check_families(device: str, *, small: bool) -> Figures:
    """Compare each family's tiny model on `device` with the reference implementation."""
    import torch
    from families import SUPPORTED, build
    from questions import ARMS, share

    from spatial_eval.engine.decode import decode_arms
    from spatial_eval.engine.kv_cache import Graphs
    from spatial_eval.engine.reference import decode_reference
    from spatial_eval.engine.request import Decoded, Intervention
    from spatial_eval.models.selfcheck import ROUNDING

    asked, found = Intervention(ARMS), Figures()
    for name in ("llava", "qwen25_vl") if small else SUPPORTED:
        batch = share(name, {0: 1, 3: PROMPTS - 1})

        def decode(
            way: Callable[..., Decoded],
            dtype: torch.dtype,
            *,
            shared: bool,
            name: str = name,
            batch: Any = batch,
            **more: Any,
        ) -> Decoded:
            model = copy.deepcopy(build(name).model).to(device, dtype)

            def place(prompts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
                return {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in prompts.items()}

            if shared:
                return way(model, place(batch.inputs), intervention=asked, max_new_tokens=6, image=batch.image, **more)
            return Decoded.join([way(model, place(one), intervention=asked, max_new_tokens=6) for one in batch.prompts])

        expected = decode(decode_reference, torch.float32, shared=False)
        exact = decode(decode_arms, torch.float32, shared=True)
        replayed = decode(decode_arms, torch.float32, shared=True, graphs=Graphs(required=False))
        rounded = decode(decode_arms, torch.bfloat16, shared=True)
        gap = float((rounded.logits - expected.logits).abs().max() / expected.logits.std())
        faults = ["float32"] * (exact.tokens != expected.tokens) + ["graphs"] * (replayed.tokens != exact.tokens)
        faults += ["bfloat16"] * (gap > 2 * ROUNDING["bfloat16"])
        found[f"{name}: bfloat16 gap in standard deviations"] = gap
        found[f"{name}: exact"] = "no: " + ", ".join(faults) if faults else "yes"
    return found


def time_grid(folder: Path, *, small: bool) -> Figures:
    """Run gpu_grid.py three ways -> its best figures, of questions on one image and plain generates beside it."""
    import gpu_grid

    found = Figures()
    for label, options, sizes in (
        ("1 question per image", [], "1,2" if small else "8,16"),
        ("1 question per image, padded", ["--padded"], "2" if small else "16"),
        ("6 questions per image", ["--questions", "6"], "1" if small else "2,4,8"),
    ):
        path = folder / "grid.json"
        gpu_grid.main(["--batch", sizes, *options, "--json", str(path), *["--small"] * small])
        batches = json.loads(path.read_text())["batches"].values()
        found[f"grid {label}: one-token questions/s"] = 1e3 / min(one["prefill"] for one in batches)
        best = min(batches, key=lambda one: min(one["all"], one["graphs"]))
        found[f"grid {label}: questions/s"] = 1e3 / min(best["all"], best["graphs"])
        found[f"grid {label}: x floor"] = min(one["x floor"] for one in batches)
        found[f"grid {label}: plain generates/s"] = 1e3 / min(one["plain"] for one in batches)
    return found


def write_model(folder: Path, *, small: bool) -> Path:
    """Write the random LLaVA-1.5-7B and a processor of a few words, unless they are there."""
    path = folder / ("llava-small" if small else "llava-7b")
    if not (path / "complete").exists():
        import gpu_grid
        import torch
        from families import build

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, processor = gpu_grid.build(device, small=small), copy.deepcopy(build("llava").processor)
        size = model.config.vision_config.image_size
        model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
        processor.image_processor.size = {"shortest_edge": size}
        processor.image_processor.crop_size = {"height": size, "width": size}
        model.save_pretrained(path)
        processor.save_pretrained(path)
        (path / "complete").touch()
    return path


def write_questions(folder: Path, *, small: bool) -> Path:
    """Write POPE's shape: pictures of noise, and about ten questions on each."""
    from families import picture
    from questions import QUESTIONS

    images, questions = SHAPE[small]
    rows = []
    for number in range(images):
        picture(number, (640, 480)).save(folder / f"{number}.png")
    for number in range(questions):
        asked = QUESTIONS[number % len(QUESTIONS)]
        rows.append({"id": number, "question": asked, "answer": "yes", "image_path": f"{number % images}.png"})
    path = folder / "pope.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass(slots=True)
class Usage:
    """What nvidia-smi says while something runs: share of time that the GPU is busy, and peak memory in MiB."""

    busy: float = 0.0
    mib: float = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        samples: list[tuple[float, float]] = []
        over = threading.Event()

        def look() -> None:
            command = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
            while not over.wait(POLL_S):
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                busy, mib = next(csv.reader(out.splitlines()))
                samples.append((float(busy) / 100, float(mib)))

        thread = threading.Thread(target=look, daemon=True) if Path("/dev/nvidiactl").exists() else None
        if thread is not None:
            thread.start()
        try:
            yield
        finally:
            over.set()
            if thread is not None:
                thread.join()
        running = [busy for busy, mib in samples if mib > 1000]
        self.busy = sum(running) / max(1, len(running))
        self.mib = max((mib for _, mib in samples), default=0.0)


def run_program(folder: Path, engine: float, *, small: bool) -> Figures:
    """Run launch.py once as users do. `engine`: questions/s of the engine alone, 0 where they were not measured."""
    from spatial_eval.store.generations import Store

    model, usage = write_model(folder, small=small), Usage()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        questions = write_questions(Path(place), small=small)
        command = [
            *(sys.executable, str(ROOT / "launch.py"), "-m", "dataset=jsonl", f"dataset.path={questions}", "model=hf"),
            *(f"model.path={model}", f"model.batch_size={4 if small else 64}", "method=scaling_vis", "split=all"),
            *("weight=0.0,0.5,0.8,1.0,1.2,1.5,2.0", "max_new_tokens=1", f"output_dir={place}/out"),
        ]
        used, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        with usage.watched():
            done = subprocess.run(command, capture_output=True, text=True, cwd=place, check=False)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"launch.py failed: {done.stderr[-2000:]}")
        store = Store(Path(place) / "out" / "generations")
        efforts = [effort for _, key in store.list_experiments() for effort in store.list_efforts(key)]
    count, computed = SHAPE[small][1], sum(one.seconds for one in efforts)
    host = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    found: Figures = {
        "program: seconds on POPE's shape": computed,
        "program: seconds beside, to load and to write tables": seconds - computed,
        "program: questions/s": count / computed,
        "program: host CPU ms per question": 1e3 * host / count,
        "program: GPU busy, share of the whole run": usage.busy,
        "program: peak memory, MiB": usage.mib,
    }
    if engine:
        found["program: of the engine's questions/s"] = count / computed / engine
    return found


def missed_bars(figures: Mapping[str, float | str]) -> list[str]:
    found = [f"{name}: {value}" for name, value in figures.items() if str(value).startswith("no: ")]
    for name, (least, most) in BARS.items():
        value = figures.get(name)
        if isinstance(value, float) and not least <= value <= most:
            found.append(f"{name}: {value:.3g}, wanted {f'at least {least}' if least else f'at most {most}'}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(NEEDS), help="parts, comma separated")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "gpu", help="of the model and the results")
    parser.add_argument("--small", action="store_true", help="toy models on any device: tries the program")
    args = parser.parse_args(arguments)
    parts = args.only.split(",")
    if set(parts) - NEEDS.keys():
        parser.error(f"unknown part in --only={args.only} (valid: {', '.join(NEEDS)})")
    missing = {part: [name for name in NEEDS[part] if find_spec(name) is None] for part in parts}
    for part, names in missing.items():
        if names:
            print(f"{part} is left out: not installed: {', '.join(names)}")
    parts = [part for part in parts if not missing[part]]
    if not parts:
        return 2
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.small:
        print("this needs a CUDA machine; --small tries it on a CPU", file=sys.stderr)
        return 2
    os.environ["PYTHONPATH"] = str(ROOT)
    args.folder.mkdir(parents=True, exist_ok=True)
    figures: Figures = {}
    runs = {
        "families": partial(check_families, device, small=args.small),
        "grid": partial(time_grid, args.folder, small=args.small),
        "program": lambda: run_program(
            *(args.folder, float(figures.get("grid 6 questions per image: one-token questions/s", 0))), small=args.small
        ),
    }
    for part in parts:
        start = time.perf_counter()
        figures |= runs[part]()
        print(f"{part}: {time.perf_counter() - start:.0f} s", flush=True)
        if device == "cuda":
            torch.cuda.empty_cache()
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    shown = [f"| {key} | {value if isinstance(value, str) else f'{value:.3g}'} |" for key, value in figures.items()]
    table = "\n".join([f"| {name}, torch {torch.__version__} | |", "|---|---|", *shown])
    (args.folder / "gpu_run.md").write_text(table + "\n")
    (args.folder / "gpu_run.json").write_text(json.dumps({"device": name, **figures}, indent=1) + "\n")
    print(table)
    missed = missed_bars(figures) if any(card in name for card in ("H100", "H200")) or args.small else []
    for line in missed:
        print(f"misses its bar: {line}")
    return 1 if missed and not args.small else 0


if __name__ == "__main__":
    sys.exit(main())
