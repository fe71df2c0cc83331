"""CPU seconds and peak memory of the commands on a large store.

    python benchmarks/scale.py [--records 2000000] [--questions 300000] [--cells 100000] [--only NAME ...] [--keep DIR]

Makes a store of answers to questions in JSON lines (20 arms each), a file of questions and a recording, then runs each
command in a process of its own. Exits 1 where one needs more than LIMITS allow, at full size. About ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

from spatial_eval.benchmarks.question_files import QuestionFile  # noqa: E402
from spatial_eval.core.arms import Arm  # noqa: E402
from spatial_eval.core.types import Experiment, Generation, Places, Record  # noqa: E402
from spatial_eval.models.recorded import Imported  # noqa: E402
from spatial_eval.store.generations import Store, experiment_key, sample_digests  # noqa: E402

WEIGHTS = tuple(round(0.1 * i, 1) for i in range(1, 21))  # 1.0 among them
BATCH = 16  # questions per append
MEGA = 2**20
OPTIONS = ("left", "right", "above", "below")
GRID = ("method=base,scaling_vis,adapt_vis", f"weight={','.join(map(str, WEIGHTS))}", "threshold=0.2,0.3,0.4,0.5,0.6")
# CPU seconds, peak MB; of the sizes that the options default to. A run is its tables and its report.
LIMITS: dict[str, tuple[float, float]] = {
    "run": (120, 1500),
    "report": (60, 1500),
    "verify": (60, 300),
    "results": (10, 1500),
    "plan": (60, 400),
    "cells": (120, 2000),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What one command took: CPU seconds, wall-clock seconds, peak resident memory in MB, exit code."""

    cpu: float
    wall: float
    peak: float
    code: int


def measure(name: str, command: Sequence[str], folder: Path) -> Measured:
    """Run a command to its end; its output goes to a file, and a line a minute says that it still runs."""
    start = time.monotonic()
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        over = threading.Event()
        threading.Thread(target=_report_progress, args=(name, start, over), daemon=True).start()
        _, status, used = os.wait4(process.pid, 0)
        over.set()
        process.returncode = os.waitstatus_to_exitcode(status)
    peak = used.ru_maxrss / 1024
    return Measured(used.ru_utime + used.ru_stime, time.monotonic() - start, peak, process.returncode)


def _report_progress(name: str, start: float, over: threading.Event) -> None:
    while not over.wait(60):
        print(f"  {name}: {time.monotonic() - start:.0f} s", flush=True)


def write_questions(path: Path, number: int, *, picture: str = "") -> None:
    """Write questions as a user would; `picture`: the image of all of them."""
    draw = random.Random(0)
    with path.open("w") as file:
        for i in range(number):
            row = {
                "id": f"q{i}",
                "question": f"Where is the mug in relation to object number {i}? Answer left, right, above or below.",
                "answer": draw.choice(OPTIONS),
                "options": list(OPTIONS),
                "relation": draw.choice(OPTIONS),
            }
            file.write(json.dumps(row | ({"image_path": picture} if picture else {})) + "\n")


def write_store(folder: Path, records: int) -> None:
    """Store answers to every question of store.jsonl under every weight, in four writers' files."""
    dataset, places = QuestionFile(path=folder / "store.jsonl", name="scale"), Places(folder, folder / "outputs")
    experiment = Experiment(dataset, Imported("scale"))
    samples = dataset.read(places)
    digests = sample_digests(samples, ["" for _ in samples])
    store, key = Store(places.paths.generations), experiment_key(experiment, places)
    quarter, start, written = BATCH * -(-len(samples) // (4 * BATCH)), time.monotonic(), 0

    def answers(first: int) -> Iterator[Record]:
        draw = random.Random(first)
        for sample in samples[first : first + BATCH]:
            for weight in WEIGHTS:
                text = f"The mug is {sample.answers[0] if draw.random() < 0.6 else draw.choice(OPTIONS)}."
                yield Generation(
                    *(sample.id, Arm(weight), text, (draw.randrange(32000), 29889, 2), draw.random(), draw.random()),
                    *(draw.random(), 20 * draw.random(), dict.fromkeys(OPTIONS, draw.random() / 4)),
                    *(f"USER: <image>\n{sample.question} ASSISTANT:", BATCH, "cuda:0 NVIDIA H200"),
                )

    for part in range(0, len(samples), quarter):
        versions = {"python": "3.11.2", "spatial_eval": "0.2", "device": "NVIDIA H200", "torch": "2.13.0"}
        with store.writer(key, digests, versions) as writer:
            for first in range(part, min(part + quarter, len(samples)), BATCH):
                batch = list(answers(first))
                writer.append(batch, 0.5)
                written += len(batch)
                if time.monotonic() - start > 60:
                    print(f"  store: {written:,} of {records:,} records", flush=True)
                    start = time.monotonic()


def write_recording(path: Path, questions: Path) -> None:
    """Record an answer to every question under every weight, as the reference code's outputs are recorded."""
    draw = random.Random(1)
    with path.open("w") as file:
        for row, line in enumerate(questions.open()):
            gold = json.loads(line)["answer"]
            texts = {str(w): gold if draw.random() < 0.6 else draw.choice(OPTIONS) for w in WEIGHTS}
            about = {"dataset": "cells", "row": row, "gold": gold, "generation": texts, "confidence": draw.random()}
            file.write(json.dumps(about) + "\n")


def list_commands(cells: int) -> dict[str, list[str]]:
    """Return what is measured, in order, by name."""
    launch, program = [str(ROOT / "launch.py"), "-m"], ["-m", "spatial_eval"]
    data = ["dataset=jsonl", "dataset.path=store.jsonl", "dataset.name=scale", "split=all"]
    own = ["dataset=jsonl", "dataset.path=cells.jsonl", "dataset.name=cells", "split=all", "output_dir=cells"]
    side = max(2, round((cells / 1000) ** 0.5))
    weights = ",".join(map(str, WEIGHTS[:side]))
    steps = ",".join(f"{i / (cells // side**2):.6f}" for i in range(cells // side**2))
    grid = ["method=adapt_vis", f"weight1={weights}", f"weight2={weights}", f"threshold={steps}"]
    return {
        "run": [*launch, *data, "model=imported", "model.name=scale", *GRID],
        "report": [*program, "report"],
        "results": [*program, "results"],
        "verify": [*program, "store", "verify"],
        "job": [str(Path(__file__)), "--job"],
        "plan": [*launch, "dataset=jsonl", "dataset.path=plan.jsonl", "split=all", "model=tiny", "action=plan"],
        "cells": [*launch, *own, "model=recorded", "model.path=recording.jsonl", *grid],
    }


def inspect_shard() -> None:
    """What a job of a pool of eight does before it loads its model."""
    from spatial_eval.core.types import Part, Pass
    from spatial_eval.passes.pass_state import inspect_pass

    places = Places(Path.cwd(), Path.cwd() / "outputs")
    experiment = Experiment(QuestionFile(path=Path("store.jsonl").absolute(), name="scale"), Imported("scale"))
    size = Path("store.jsonl").read_bytes().count(b"\n")
    work = Pass(experiment, ((Part("all"), tuple(map(Arm, WEIGHTS))),))
    state = inspect_pass(work, places, rows=range(size // 8))
    print(len(state.stored.generations), "answers,", len(state.todo), "questions to do")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=2_000_000, help="stored answers (default: 2,000,000)")
    parser.add_argument("--questions", type=int, default=300_000, help="of the planned JSON lines (default: 300,000)")
    parser.add_argument("--cells", type=int, default=100_000, help="from a recording (default: 100,000)")
    parser.add_argument("--only", nargs="+", choices=[*list_commands(100_000)], help="default: all")
    parser.add_argument("--keep", type=Path, help="a folder that is made once and used again")
    parser.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        inspect_shard()
        return 0
    full = all(getattr(given, name) >= parser.get_default(name) for name in ("records", "questions", "cells"))
    with tempfile.TemporaryDirectory() as made:
        folder = given.keep or Path(made)
        if not (folder / "cells.jsonl").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_questions(folder / "store.jsonl", given.records // len(WEIGHTS))
            write_store(folder, given.records)
            Image.new("RGB", (8, 8)).save(folder / "picture.png")
            write_questions(folder / "plan.jsonl", given.questions, picture="picture.png")
            write_questions(folder / "cells.jsonl", 400)
            write_recording(folder / "recording.jsonl", folder / "cells.jsonl")
        failed = False
        for name, command in list_commands(given.cells).items():
            if given.only and name not in given.only:
                continue
            found = measure(name, command, folder)
            cpu, peak = LIMITS.get(name, (0, 0))
            over = full and name in LIMITS and (found.cpu > cpu or found.peak > peak)
            failed |= over or found.code != 0
            note = f"   exit code {found.code}: {folder / name}.log" * bool(found.code) + "   over its limit" * over
            print(f"{name:8} {found.cpu:7.1f} s CPU {found.wall:7.1f} s {found.peak:7.0f} MB{note}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
