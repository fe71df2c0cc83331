"""Count, verify and move aside the experiments of the store: store verify, size and rm.

Nothing stored is deleted: rm renames an experiment's folder into <output>/trash/, from where it can be moved back.
"""

from __future__ import annotations

import argparse
import sys
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spatial_eval.cli.arguments import OUTPUT_DIR, Commands
from spatial_eval.core.errors import COMPLETE, INCOMPLETE, ConfigError, StoreError, describe_unknown
from spatial_eval.core.files import find_entries, is_regular_file, list_files, read_json_object, translate_os_errors
from spatial_eval.core.paths import OutputPaths
from spatial_eval.core.terminal import print_output
from spatial_eval.core.types import Failure
from spatial_eval.launch import status
from spatial_eval.store.generations import Damaged, ExperimentKey, StoredRecord, read_lines


@dataclass(frozen=True, slots=True)
class ExperimentCount:
    """Hold the numbers of records in the folder of one experiment.

    Attributes:
        answers: number of distinct (question, arm) with an answer.
        repeats: number of further answers to one of them; the first counts.
        errors: number of recorded failures without an answer.
        problems: one text per line that cannot be read, and one for a manifest that is not the folder's.
    """

    name: str
    files: int
    size: int
    answers: int
    repeats: int
    errors: int
    problems: tuple[str, ...]

    @property
    def text(self) -> str:
        counts = {"file": self.files, "answer": self.answers, "repeat": self.repeats, "error": self.errors}
        shown = [_plural(number, noun) for noun, number in counts.items() if number or noun in ("file", "answer")]
        return f"{self.name}  {self.size / 2**20:.1f} MiB in {', '.join(shown)}"


def count_records(folder: Path) -> ExperimentCount:
    """Read and count every line of an experiment's folder; a damaged line is a problem, with file and line number."""
    problems = list(_check_manifest(folder))
    answers, failed = array("q"), array("q")  # hashes: of a million answers two are equal by chance once in 10 million
    files, size = list[Path](), 0
    try:
        files = list_files(folder, "*.jsonl")
        size = sum(path.stat().st_size for path in find_entries(folder, "*") if is_regular_file(path))
    except OSError as error:
        problems.append(f"{folder} cannot be read ({error.strerror}): make it readable")
    for path in files:
        for number, line in read_lines(path):
            if isinstance(line, Damaged):
                problems.append(f"{path}, line {number} is damaged: {line.reason}; its question is computed again")
            elif isinstance(line, StoredRecord):
                record = line.record
                kind = failed if isinstance(record, Failure) else answers
                kind.append(hash((record.sample_id, line.digest, record.arm)))
    distinct, errors = (np.unique(np.array(kind)) for kind in (answers, failed))
    lacking = int((~np.isin(errors, distinct)).sum())
    return ExperimentCount(
        folder.name, len(files), size, len(distinct), len(answers) - len(distinct), lacking, tuple(problems)
    )


def _check_manifest(folder: Path) -> Iterable[str]:
    path = folder / "trunk.json"
    try:
        described = read_json_object(path)
    except OSError as error:
        yield f"{path} cannot be read ({error.strerror}): the next run that uses the folder writes it"
    except ValueError:
        yield f"{path} is truncated: the next run that uses the folder writes it again"
    else:
        if ExperimentKey("", described).hash != folder.name.rpartition("--")[2]:
            yield f"{path} describes another experiment than the folder's name: move the folder away"


def list_experiments(root: Path, names: Iterable[str] = ()) -> list[Path]:
    """List the folders of the store, or those in `names` (names or paths). Raises ConfigError."""
    folders = {path.name: path for path in find_entries(root, "*--*") if path.is_dir()}
    chosen = [Path(name).name for name in names]
    for name in chosen:
        if name not in folders:
            hint = "" if folders else f"{root} holds none"
            raise ConfigError(describe_unknown("experiment", name, folders, hint=hint))
    return [folders[name] for name in dict.fromkeys(chosen)] if chosen else list(folders.values())


def move_to_trash(folders: Iterable[Path], output: Path) -> list[Path]:
    """Rename each folder into <output>/trash/<time>/ and return the new paths.

    Raises:
        StoreError: a running job writes into one of them; none is moved.
    """
    chosen = list(folders)
    running = status.find_running_jobs(output)
    sweeps = {shard.target.key.hash: launch.sweep for launch, state in running for shard in state.job.shards}
    for folder in chosen:
        sweep = sweeps.get(folder.name.rpartition("--")[2])
        if sweep is not None:
            raise StoreError(f"{folder.name} is being written by sweep {sweep}: wait, or cancel it first")
    trash = OutputPaths(output).trash / time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    moved = []
    for folder in chosen:
        with translate_os_errors(trash):
            trash.mkdir(parents=True, exist_ok=True)
            moved.append(folder.rename(trash / folder.name))
    return moved


def add_store(commands: Commands) -> None:
    """Add the command `store` to the command line's parser."""
    command = commands["store"](parents=[OUTPUT_DIR])
    command.add_argument(
        "way",
        choices=["verify", "size", "rm"],
        help="read every line | print sizes | move experiments into output_dir/trash",
    )
    command.add_argument("experiments", nargs="*", help="folders of the store (default for verify and size: all)")
    command.add_argument("--yes", action="store_true", help="rm without asking")
    command.set_defaults(run=run_store)


def run_store(parsed: argparse.Namespace) -> int:
    """Run `store`; return exit code 3 where verify finds a problem, or the user does not confirm rm."""
    root = OutputPaths(parsed.output_dir).generations
    if parsed.way == "rm" and not parsed.experiments:
        raise ConfigError("store rm needs the names of experiments: `store size` lists them")
    folders = list_experiments(root, parsed.experiments)
    counts = [count_records(folder) for folder in folders]
    for folder_count in counts:
        print_output(folder_count.text)
        for problem in folder_count.problems if parsed.way == "verify" else ():
            print_output(f"  {problem}")
    problems = sum(len(folder_count.problems) for folder_count in counts)
    if parsed.way != "rm":
        total = sum(folder_count.size for folder_count in counts) / 2**20
        verified = f", {_plural(problems, 'problem')}" if parsed.way == "verify" else ""
        print_output(f"{_plural(len(counts), 'experiment')}, {total:.1f} MiB{verified}")
        return INCOMPLETE if parsed.way == "verify" and problems else COMPLETE
    if not parsed.yes and not _ask_to_move(len(counts)):
        sys.stdout.write("nothing was moved; --yes moves without asking\n")
        return INCOMPLETE
    for folder in move_to_trash(folders, parsed.output_dir):
        sys.stdout.write(f"moved to {folder}: move it back to undo, delete it there to free the space\n")
    return COMPLETE


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _ask_to_move(number: int) -> bool:
    if not sys.stdin.isatty():
        return False
    sys.stdout.write(f"move {_plural(number, 'experiment')} into the trash? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
