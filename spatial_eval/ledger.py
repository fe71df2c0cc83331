"""The files of a sweep's jobs: what was launched, and what each job says about itself. Nobody holds a lock.

<output>/sweeps/<id>/jobs/launch.pkl               the sweep as it was asked for last: what status and retry work on
<output>/sweeps/<id>/jobs/code-<digest>/           the code that the jobs run
<output>/sweeps/<id>/jobs/<launch>/tasks.pkl       what the jobs of one launch do
<output>/sweeps/<id>/jobs/<launch>/driver.json     the process that waits for them
<output>/sweeps/<id>/jobs/<launch>/<task>.<run>.json   written by the job at every start, by rename, every few seconds
<output>/sweeps/<id>/jobs/<launch>/<task>.log      what the job said (pool); slurm/ holds those of Slurm
<output>/sweeps/<id>/jobs/<launch>/cancelled       marker: its jobs stop themselves
<output>/sweeps/<id>/jobs/<launch>/closed          marker: none of its jobs runs or will run
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from . import living
from .errors import StoreError
from .launchers import Resources
from .store import replace
from .tracking import Publication
from .types import Pass, Places

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows of one pass that a job computes. `key` is the trunk's hash in the store."""

    label: str
    key: str
    work: Pass
    rows: range
    questions: int


@dataclass(frozen=True, slots=True)
class Task:
    """One job: slices of passes of one model, which it loads once. `name` is unique in its launch."""

    name: str
    slices: tuple[Slice, ...]
    resources: Resources
    cost: int

    @property
    def label(self) -> str:
        more = f" and {len(self.slices) - 1} more" if len(self.slices) > 1 else ""
        rows = self.slices[0].rows
        return f"{self.slices[0].label} [{rows.start}:{rows.stop}]{more}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a launch's jobs need to know. With `retry` recorded errors are computed again."""

    kind: str
    places: Places
    retry: bool
    tasks: tuple[Task, ...]
    publication: Publication

    def task(self, name: str) -> Task:
        return next(task for task in self.tasks if task.name == name)


@dataclass(frozen=True, slots=True)
class Run:
    """What one start of a job last said.

    Attributes:
        done, total: questions; what was stored before counts as done. computed: those that this start stored.
        errors: one line each. again: whether another start may help. needs_fix: whether a model is to blame, so that
            the same command would fail again. slurm: the job's id; restart: its requeues.
        started: seconds since the epoch, by the job's clock; beat: when this was written, by the file system's.
    """

    task: str
    state: str  # running | done | failed
    host: str
    pid: int
    born: str
    done: int = 0
    total: int = 0
    computed: int = 0
    errors: tuple[str, ...] = ()
    again: bool = False
    needs_fix: bool = False
    slurm: str = ""
    restart: int = 0
    devices: str = ""
    code: str = ""
    log: str = ""
    started: float = 0.0
    beat: float = 0.0

    @property
    def alive(self) -> bool:
        return self.state == "running" and living.lives(self.host, self.pid, self.born, self.beat)


@dataclass(frozen=True, slots=True)
class Fault:
    """A job that did not do all it should: whose, why in one line, and where more stands.

    `needs_fix`: a model is to blame (ModelError), so that the same command would fail again.
    """

    label: str
    cause: str
    log: str
    needs_fix: bool = False

    def __str__(self) -> str:
        return f"{self.cause} ({self.log})" if self.log else self.cause


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch's folder."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def sweep(self) -> str:
        return self.folder.parent.parent.name

    @property
    def is_closed(self) -> bool:
        return (self.folder / "closed").exists()

    @property
    def is_cancelled(self) -> bool:
        return (self.folder / "cancelled").exists()

    def plan(self) -> Plan:
        """Raises StoreError where the file is of another version of the code."""
        return load(self.folder / "tasks.pkl", Plan)

    def mark(self, name: str) -> None:
        with contextlib.suppress(OSError):  # a full disk must not hide the failure that filled it
            (self.folder / name).touch()

    def drive(self) -> None:
        """This process waits for the jobs from now on."""
        me = {"host": socket.gethostname(), "pid": os.getpid(), "born": living.born(os.getpid())}
        replace(self.folder / "driver.json", json.dumps(me) + "\n")

    def beat(self) -> None:
        with contextlib.suppress(OSError):
            os.utime(self.folder / "driver.json")

    @property
    def driver(self) -> Run | None:
        """The process that waits for the jobs, if it lives."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            path = self.folder / "driver.json"
            found = Run("", "running", beat=path.stat().st_mtime, **json.loads(path.read_text("utf8")))
            return found if found.alive else None
        return None


class Watch:
    """Reads what the jobs of a launch say; files that did not change are not read again."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._seen: dict[str, tuple[int, Run]] = {}

    def runs(self) -> dict[str, list[Run]]:
        """Runs by task, in the order in which they started."""
        found: dict[str, list[Run]] = {}
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.launch.folder):
                if entry.name.count(".") >= 2 and entry.name.endswith(".json") and entry.name[0] != ".":
                    run = self._read(entry)
                    if run is not None:
                        found.setdefault(run.task, []).append(run)
        return {task: sorted(runs, key=lambda run: (run.started, run.pid)) for task, runs in found.items()}

    def _read(self, entry: os.DirEntry[str]) -> Run | None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            status = entry.stat()
            known = self._seen.get(entry.name)
            if known is None or known[0] != status.st_mtime_ns:
                row = json.loads(Path(entry.path).read_text("utf8"))
                row["errors"] = tuple(row["errors"])
                known = (status.st_mtime_ns, Run(**{**row, "beat": status.st_mtime}))
                self._seen[entry.name] = known
            return known[1]
        return None


def create(sweep: Path, plan: Plan) -> Launch:
    """A new launch's folder, driven by this process. Raises StoreError."""
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    launch = Launch(sweep / "jobs" / name)
    replace(launch.folder / "tasks.pkl", pickle.dumps(plan))
    launch.drive()
    return launch


def launches(sweep: Path) -> list[Launch]:
    """Every launch of a sweep, the oldest first."""
    return [Launch(path.parent) for path in sorted(sweep.glob("jobs/*/tasks.pkl"))]


def write_run(folder: Path, name: str, run: Run) -> None:
    """By rename, without fsync: it is said again in seconds. Raises OSError."""
    part = folder / f".{name}.part"
    part.write_text(json.dumps({f: v for f, v in asdict(run).items() if f != "beat"}), "utf8")
    part.replace(folder / name)


def load(path: Path, kind: type[T]) -> T:
    """A pickle of this package. Raises StoreError where it is absent or was written by other code."""
    try:
        found = pickle.loads(path.read_bytes())
    except Exception as error:  # noqa: BLE001  unpickling raises whatever the other version's classes do
        absent = isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("spatial_eval")
        step = f"install {error.name} for {sys.executable}" if absent else "launch the same command again"  # type: ignore[attr-defined]
        raise StoreError(f"{path} cannot be read ({type(error).__name__}: {error}): {step}") from None
    if not isinstance(found, kind):
        raise StoreError(f"{path} holds no {kind.__name__}: launch the same command again")
    return found


def each(output: Path) -> Iterator[Launch]:
    """Every launch under an output folder that may still have jobs."""
    for path in sorted(output.glob("sweeps/*/jobs/*/tasks.pkl")):
        launch = Launch(path.parent)
        if not launch.is_closed:
            yield launch


def state(runs: Sequence[Run]) -> str:
    """What a task's runs amount to: done, running, failed, or pending where none says so."""
    if any(run.state == "done" for run in runs):
        return "done"
    if any(run.alive for run in runs):
        return "running"
    return "failed" if runs and runs[-1].state == "failed" else "pending"
