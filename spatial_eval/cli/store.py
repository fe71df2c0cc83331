"""store verify, size and rm: what the store holds, whether every line of it can be read, and putting trunks aside.

Nothing stored is ever lost: rm renames a trunk's folder into <output>/trash/, from where it can be moved back; only a
person deletes there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatial_eval.cli.arguments import OUTPUT_DIR
from spatial_eval.core.errors import ConfigError, StoreError, describe_unknown
from spatial_eval.core.files import translate_os_errors
from spatial_eval.core.paths import OutputPaths
from spatial_eval.core.types import Arm, Failure
from spatial_eval.launch import status
from spatial_eval.store.generations import Damaged, ExperimentKey, StoredRecord, read_lines


@dataclass(frozen=True, slots=True)
class Count:
    """A trunk's folder. `problems` are lines that cannot be read and manifests that are not the folder's.

    Attributes:
        answers: question and arm, each once. repeats: further answers to one of them; the first counts.
        errors: recorded failures without an answer.
    """

    name: str
    files: int
    bytes: int
    answers: int
    repeats: int
    errors: int
    problems: tuple[str, ...]

    @property
    def text(self) -> str:
        more = [f"{self.repeats:,} repeats"] * bool(self.repeats) + [f"{self.errors:,} errors"] * bool(self.errors)
        said = ", ".join([f"{self.answers:,} answers", *more])
        return f"{self.name}  {self.bytes / 2**20:.1f} MiB in {self.files:,} files, {said}"


def count(folder: Path) -> Count:
    """Reads every line of a trunk's folder; a damaged one is a problem with its file and line. Writes nothing."""
    problems = list(_manifest(folder))
    answers: Counter[tuple[str, str, Arm]] = Counter()
    failed: set[tuple[str, str, Arm]] = set()
    files = sorted(folder.glob("*.jsonl"))
    for path in files:
        for number, line in read_lines(path):
            if isinstance(line, Damaged):
                problems.append(f"{path}, line {number} is damaged: {line.reason}; its question is computed again")
            elif isinstance(line, StoredRecord):
                about = (line.record.sample_id, line.digest, line.record.arm)
                if isinstance(line.record, Failure):
                    failed.add(about)
                else:
                    answers[about] += 1
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    repeats = answers.total() - len(answers)
    return Count(folder.name, len(files), size, len(answers), repeats, len(failed - answers.keys()), tuple(problems))


def _manifest(folder: Path) -> Iterable[str]:
    path = folder / "trunk.json"
    try:
        found = json.loads(path.read_text("utf8"))
    except FileNotFoundError:
        yield f"{path} is not there: the next run that uses the folder writes it"
        return
    except ValueError:
        yield f"{path} is truncated: the next run that uses the folder writes it again"
        return
    if ExperimentKey("", found).hash != folder.name.rpartition("--")[2]:
        yield f"{path} describes another experiment than the folder's name: move the folder away"


def trunks(root: Path, names: Iterable[str] = ()) -> list[Path]:
    """The folders of the store, or those named, by name or path. Raises ConfigError."""
    found = {path.name: path for path in sorted(root.glob("*--*")) if path.is_dir()}
    chosen = [Path(name).name for name in names]
    for name in chosen:
        if name not in found:
            raise ConfigError(describe_unknown("trunk", name, found, hint="" if found else f"{root} holds none"))
    return [found[name] for name in dict.fromkeys(chosen)] if chosen else list(found.values())


def put_aside(folders: Iterable[Path], output: Path) -> list[Path]:
    """Renames each folder into <output>/trash/<time>/; their new places. Raises StoreError where a job writes one."""
    chosen = list(folders)
    running = status.running_jobs(output)
    claimed = {shard.target.key.hash: launch for launch, found in running for shard in found.job.shards}
    for folder in chosen:
        launch = claimed.get(folder.name.rpartition("--")[2])
        if launch is not None:
            raise StoreError(f"{folder.name} is being written by sweep {launch.sweep}: wait, or cancel it first")
    trash = OutputPaths(output).trash / time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    moved = []
    for folder in chosen:
        with translate_os_errors(trash):
            trash.mkdir(parents=True, exist_ok=True)
            moved.append(folder.rename(trash / folder.name))
    return moved


def add_store(commands: Any) -> None:
    """The command and its three ways, for the command line's parser."""
    said = "look after stored generations: verify, size, rm"
    command = commands.add_parser("store", parents=[OUTPUT_DIR], help=said, description=f"{said.capitalize()}.")
    command.add_argument(
        "way",
        choices=["verify", "size", "rm"],
        help="read every line | sizes | put trunks into output_dir/trash",
    )
    command.add_argument("trunks", nargs="*", help="folders of the store (default for verify and size: all)")
    command.add_argument("--yes", action="store_true", help="rm without asking")
    command.set_defaults(run=run_store)


def run_store(parsed: argparse.Namespace) -> int:
    """Exit code 3 where verify finds a problem, or rm was answered no."""
    root = OutputPaths(parsed.output_dir).generations
    if parsed.way == "rm" and not parsed.trunks:
        raise ConfigError("store rm takes the names of trunks: `store size` lists them")
    folders = trunks(root, parsed.trunks)
    counts = [count(folder) for folder in folders]
    for one in counts:
        sys.stdout.write(f"{one.text}\n")
        if parsed.way == "verify":
            sys.stdout.write("".join(f"  {problem}\n" for problem in one.problems))
    total = sum(one.bytes for one in counts) / 2**20
    problems = sum(len(one.problems) for one in counts)
    if parsed.way != "rm":
        found = f", {problems:,} problems" if parsed.way == "verify" else ""
        sys.stdout.write(f"{len(counts):,} trunks, {total:.1f} MiB{found}\n")
        return 3 if parsed.way == "verify" and problems else 0
    if not parsed.yes and not _agreed(len(counts)):
        sys.stdout.write("nothing was moved; --yes moves without asking\n")
        return 3
    for folder in put_aside(folders, parsed.output_dir):
        sys.stdout.write(f"moved to {folder}: move it back to undo, delete it there to free the space\n")
    return 0


def _agreed(number: int) -> bool:
    if not sys.stdin.isatty():
        return False
    sys.stdout.write(f"put these {number} trunks into the trash? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
