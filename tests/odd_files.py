"""Every kind of file under outputs/ replaced by what it should not be, against every command: a part of `make fuzz`, or

    python tests/odd_files.py [--every 1] [--file sweep.json ...] [--oddity FIFO ...] [--command status ...]

A command ends with exit code 0 to 3, without a traceback and within LIMIT_S, says nothing twice, and leaves the other
sweep of the folder as it was: its files and its tables. Exits 1 with a line per failure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import fuzz

LIMIT_S = 20
NOBODY = 65534
ROOM = 6 * 2**30  # bytes of address space: reading a sparse file whole is a failure, not the machine's end
LARGER, LARGEST = 2**28 + 1, 2**32 + 1  # bytes, of which none is on the disk: of JSON, of a table
# Where both sweeps have it, the one of the recording: its answers cost nothing to compute again.
FILES: Mapping[str, str] = {
    "answers": "generations/*recorded*/*.jsonl",
    "trunk.json": "generations/*recorded*/trunk.json",
    "captures": "captures/*/*.frames",
    "attention": "sweeps/{looking}/attention/*.npz",
    **{name: f"sweeps/{{recorded}}/{name}" for name in ("results.csv", "by_relation.csv", "passes.csv")},
    **{name: f"sweeps/{{recorded}}/{name}" for name in ("failures.csv", "samples.parquet", "sweep.json")},
    **{name: f"sweeps/{{recorded}}/{name}" for name in ("report.html", "report_samples.js", "name.txt")},
    **{name: f"sweeps/{{recorded}}/{name}" for name in ("publish.json", "wandb/ledger/host-1-abc.jsonl")},
    "request.json": "sweeps/{recorded}/jobs/request.json",
    **{name: f"sweeps/{{recorded}}/jobs/*/{name}" for name in ("launch.json", "driver.json", "closed")},
    "job record": "sweeps/{recorded}/jobs/*/t*.*.json",
    "launch.json of Slurm": "sweeps/{looking}/jobs/*/launch.json",
    "driver.json of Slurm": "sweeps/{looking}/jobs/*/driver.json",
    "array-0.json": "sweeps/{looking}/jobs/*/array-0.json",
    "checksums.jsonl": "../data/checksums.jsonl",
    # folders: a file stands in their place
    **{name: f"sweeps/{{recorded}}/{name}".rstrip(".") for name in (".", "jobs", "wandb")},
    "launch": "sweeps/{recorded}/jobs/*T*",
    "attention/": "sweeps/*/attention",
    "experiment": "generations/*recorded*",
    "captured": "captures/*",
    "generations": "generations",
}


def make_larger(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(LARGEST if path.suffix in (".csv", ".parquet") else LARGER)


def make_folder(path: Path) -> None:
    fuzz.remove(path)
    (path / "inner").mkdir(parents=True)


def make_link(path: Path, target: str) -> None:
    fuzz.remove(path)
    path.symlink_to(target)


def make_pipe(path: Path) -> None:
    fuzz.remove(path)
    os.mkfifo(path)


def put_beside(path: Path) -> None:
    shutil.copyfile(path, path.with_name("x" * (255 - len(path.suffix)) + path.suffix))


ODDITIES: Mapping[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "list": lambda path: path.write_bytes(b'[1, "x"]\n'),
    "number": lambda path: path.write_bytes(b"7\n"),
    "object": lambda path: path.write_bytes(b'{"schema": 1}\n'),
    "oversized": make_larger,
    "folder": make_folder,
    "FIFO": make_pipe,
    "mode 000": lambda path: path.chmod(0),
    "loop": lambda path: make_link(path, path.name),
    "device": lambda path: make_link(path, "/dev/zero"),
    "long name": put_beside,
    "UTF-16": lambda path: path.write_text(path.read_bytes().decode("latin1"), "utf-16"),
    "NUL": lambda path: path.write_bytes(b"\0" * 4096),
    "deep": lambda path: path.write_bytes(fuzz.DEEP + b"\n"),
}
COMMANDS: Mapping[str, Sequence[str]] = {
    "status": ["status", "{sweep}"],
    "list": ["list"],
    "results": ["results", "{sweep}"],
    "cells": ["results", "{sweep}", "--format", "json"],
    "rule": ["results", "{sweep}", "--rule", "words"],
    "samples": ["samples", "{sweep}"],
    "cite": ["cite", "{sweep}"],
    "report": ["report", "{sweep}"],
    "attention": ["attention", "{sweep}", "--examples", "1", "--out", "pictures"],
    "verify": ["store", "verify"],
    "export": ["export", "{sweep}", "--out", "shared"],
    "cancel": ["cancel", "{sweep}"],
    "retry": ["retry", "{sweep}"],
    "plan": ["run", "action=plan"],
    "run": ["run"],
    "check": ["prepare", "controlled_a", "--check"],
}


class Table:
    """Two finished sweeps, `recorded` (here) and `looking` (through Slurm); runs commands while a file is odd."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)  # for `unprivileged`
        self.trial = fuzz.Trial(folder)
        outputs = self.trial.clean / "outputs"
        self.sweeps = {
            "looking" if (path / "attention").is_dir() else "recorded": path.name for path in outputs.glob("sweeps/*")
        }
        for name, sweep in self.sweeps.items():
            (outputs / "sweeps" / sweep / "report_samples.js").write_text("[]\n")
            (outputs / "sweeps" / sweep / "name.txt").write_text(f"{name}\n")
        (launch,) = outputs.glob(f"sweeps/{self.sweeps['recorded']}/jobs/*/launch.json")
        tree = json.loads(launch.read_text())
        tree["request"]["launcher"] = {"kind": "inline"}
        launch.write_text(json.dumps(tree))
        launch.with_name("array-0.json").unlink()
        launch.with_name("closed").touch()
        (self.trial.clean / "data").mkdir()
        row = {"path": "a.json", "sha256": "0" * 64, "size": 1, "source": "http://server"}
        fuzz.write_rows(self.trial.clean / "data" / "checksums.jsonl", [row])
        self.trial.reset()
        for command in COMMANDS:  # imports what nobody may not read
            self._run(command, "recorded")
        self.trial.reset()
        self.told = {name: self._read(name) for name in self.sweeps}

    def _read(self, name: str) -> tuple[int, str]:
        return self.trial.run(["results", self.sweeps[name]])

    def check(self, file: str, oddity: str, commands: Sequence[str] = tuple(COMMANDS)) -> Iterator[str]:
        """Yield what is wrong with each command while a file is odd."""
        for command in commands:
            self.trial.reset()
            (path,) = Path("outputs").glob(FILES[file].format(**self.sweeps))
            mine = "looking" if FILES[file].startswith(("captures", "sweeps/{looking}", "sweeps/*")) else "recorded"
            (other,) = self.sweeps.keys() - {mine}
            if os.geteuid() == 0 and oddity == "mode 000":
                for here in (Path(), *Path().rglob("*")):
                    os.chown(here, NOBODY, NOBODY, follow_symlinks=False)
            if path.is_dir() and oddity not in ("folder", "mode 000"):
                fuzz.remove(path)
                path.write_bytes(b'{"schema": 1}\n')
            ODDITIES[oddity](path)
            before = self._files_of(other)
            start = time.process_time()
            with unprivileged() if oddity == "mode 000" else contextlib.nullcontext():
                code, said = self._run(command, mine)
            what = f"{oddity} {file}: {command}"
            if code not in range(4) or "Traceback" in said:
                yield f"{what}: exit code {code}\n{said[-1800:]}"
            if time.process_time() - start > LIMIT_S:
                yield f"{what}: {time.process_time() - start:.0f} s of CPU"
            lines = Counter(line for line in said.splitlines() if str(path) in line or "error: " in line)
            if any(count > 1 for count in lines.values()) or any(len(line) > 1500 for line in lines):
                yield f"{what}: said twice, or at length:\n{said[-1800:]}"
            if fuzz.CONTROL.search(said):
                yield f"{what}: a control character reaches the terminal: {said[-500:]!r}"
            if code == 0 and command == "run" and self._read(mine) != self.told[mine]:
                yield f"{what}: exit code 0, and another table"
            if self._files_of(other) != before or (command == "list" and self._read(other) != self.told[other]):
                yield f"{what}: the other sweep is not what it was"

    def _run(self, command: str, sweep: str) -> tuple[int, str]:
        words = [word.format(sweep=self.sweeps[sweep]) for word in COMMANDS[command]]
        if command in ("run", "plan"):
            words = (self.trial.launch if sweep == "recorded" else self.trial.capture)(*words[1:])
        return self.trial.run(words)

    def _files_of(self, sweep: str) -> Mapping[Path, bytes]:
        paths = Path("outputs/sweeps", self.sweeps[sweep]).rglob("*")
        return {path: path.read_bytes() for path in paths if path.is_file()}


class unprivileged:
    """Be nobody within the block, where this process is root: mode 000 keeps root out of nothing."""

    def __enter__(self) -> None:
        self._is_root = os.geteuid() == 0
        if self._is_root:
            os.seteuid(NOBODY)

    def __exit__(self, *_: object) -> None:
        if self._is_root:
            os.seteuid(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="one of so many combinations of file and oddity")
    parser.add_argument("--file", nargs="+", choices=[*FILES], default=[*FILES], help="default: all")
    parser.add_argument("--oddity", nargs="+", choices=[*ODDITIES], default=[*ODDITIES], help="default: all")
    parser.add_argument("--command", nargs="+", choices=[*COMMANDS], default=[*COMMANDS], help="default: all")
    given = parser.parse_args()
    os.environ.pop("SPATIAL_EVAL_DATA", None)
    os.environ["PATH"] = "/nowhere"  # no Slurm
    fuzz.make_tries_cheap()
    failures, pairs = 0, list(product(given.file, given.oddity))[:: given.every]
    resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
    with tempfile.TemporaryDirectory() as made:
        table = Table(Path(made))
        start = time.monotonic()
        for number, (file, oddity) in enumerate(pairs, 1):
            for problem in table.check(file, oddity, given.command):
                failures += 1
                print(problem, flush=True)
            if time.monotonic() - start > 60:
                print(f"  {number} of {len(pairs)} files", flush=True)
                start = time.monotonic()
        os.chdir("/")
    print(f"{len(pairs) * len(given.command)} combinations, {failures} failures", flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
