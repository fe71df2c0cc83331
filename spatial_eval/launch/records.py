"""Read and write the state of a sweep's jobs: JSON files, each written whole by one process, without locks.

<output>/sweeps/<id>/jobs/request.json              the request of the last launch, which status and retry use
<output>/sweeps/<id>/jobs/code-<digest>/            the code that the jobs run
<output>/sweeps/<id>/jobs/<launch>/launch.json      one launch: its request and its jobs; never changed
<output>/sweeps/<id>/jobs/<launch>/driver.json      the process that waits for the jobs
<output>/sweeps/<id>/jobs/<launch>/array-<n>.json   one Slurm job array
<output>/sweeps/<id>/jobs/<launch>/<job>.<attempt>.json   one start of a job: its progress, every few seconds
<output>/sweeps/<id>/jobs/<launch>/<job>.log        the job's log (pool); slurm/ holds those of Slurm
<output>/sweeps/<id>/jobs/<launch>/cancelled        marker: its jobs stop themselves
<output>/sweeps/<id>/jobs/<launch>/closed           marker: none of its jobs runs or will run

Format and reasons: docs/design/job_state.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from spatial_eval.config import descriptions
from spatial_eval.config.launchers import LAUNCHERS, Launcher, Resources
from spatial_eval.config.schema import check_root_value
from spatial_eval.config.tracking import TRACKERS, Publication
from spatial_eval.core import plan
from spatial_eval.core.errors import ConfigError, StoreError
from spatial_eval.core.files import find_entries, read_json, write_json
from spatial_eval.core.paths import OutputPaths, SweepPaths
from spatial_eval.core.sweep_names import write_name
from spatial_eval.core.types import Cell, Experiment, Method, Model, Part, Pass, Places
from spatial_eval.core.validate import build_dataclass
from spatial_eval.core.version import VERSION
from spatial_eval.methods.registry import METHODS
from spatial_eval.models.registry import MODELS
from spatial_eval.passes import tables
from spatial_eval.passes.pass_state import PassState
from spatial_eval.store.generations import ExperimentKey

log = logging.getLogger(__name__)

SCHEMA = 1  # of request.json and launch.json; a file of another one is not read
STALE_S = 60.0  # a process of another machine that gave no sign of life for so long is taken for dead
REMIND_S = 60.0


@dataclass(frozen=True, slots=True)
class KeyedPass:
    """Hold a pass, the key of its answers in the store, and the number of rows of its dataset at the launch."""

    work: Pass
    key: ExperimentKey
    rows: int

    @classmethod
    def of(cls, state: PassState) -> KeyedPass:
        return cls(state.work, state.key, len(state.samples))


@dataclass(frozen=True, slots=True)
class Shard:
    """Hold a job's part of one pass: `rows`, a range in the order of its blocks; `questions`: number at launch."""

    target: KeyedPass
    rows: range
    questions: int

    @property
    def label(self) -> str:
        return self.target.work.label


@dataclass(frozen=True, slots=True)
class Job:
    """Hold shards of passes of one model, which the job loads once. `name` is unique in its launch."""

    name: str
    shards: tuple[Shard, ...]
    resources: Resources

    @property
    def questions(self) -> int:
        return sum(shard.questions for shard in self.shards)

    @property
    def label(self) -> str:
        more = f" and {len(self.shards) - 1} more" if len(self.shards) > 1 else ""
        rows = self.shards[0].rows
        return f"{self.shards[0].label} [{rows.start}:{rows.stop}]{more}"


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """Hold the part of a command that dispatch, status and retry need.

    Attributes:
        resources: needs of a model's jobs. passes: one per experiment of the cells.
        retry: whether recorded errors are computed again. publication: what jobs publish.
    """

    folder: Path
    places: Places
    launcher: Launcher
    resources: Mapping[Model, Resources]
    retry: bool
    capture: str
    publication: Publication
    passes: Mapping[Experiment, KeyedPass]

    @property
    def cells(self) -> tuple[Cell, ...]:
        return self.publication.cells

    @property
    def experiments(self) -> Sequence[Experiment]:
        """Return the experiments of the cells, in their order."""
        return list(dict.fromkeys(cell.experiment for cell in self.cells))

    def save(self) -> None:
        """Write request.json and the sweep's name.

        Raises:
            ConfigError: JSON cannot hold it. StoreError: the disk rejects it.
        """
        tree = _describe_request(self)
        # A job must not be the first to find that a description cannot be built again: one method per kind will do.
        methods = {row["kind"]: row for row in tree["methods"]}
        cells = [(index, 0, "all", None) for index in range(len(self.experiments))]
        _build_request({**tree, "methods": [*methods.values()], "cells": cells}, self.folder)
        write_json(SweepPaths(self.folder).request, tree)
        name = self.publication.about.get("name")
        earlier = write_name(self.folder, name) if name else []
        if earlier:
            log.info("%s now means sweep %s; before, %s had that name", name, self.folder.name, ", ".join(earlier))


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Hold one launch: its request, and the jobs that it started."""

    request: SweepRequest
    jobs: tuple[Job, ...]

    def find_job(self, name: str) -> Job:
        return next(job for job in self.jobs if job.name == name)


@dataclass(frozen=True, slots=True)
class Attempt:
    """Hold the last record of one start of a job.

    Attributes:
        job: its name. state: running, done or failed.
        born: start time of the process, as read_process_start returns it.
        done, total: numbers of questions; those stored before count as done. computed: number that this start stored.
        errors: one line each. again: whether another start may help. needs_fix: whether a model
            is to blame, so that the same command would fail again.
        slurm: the job's id. restart: number of times that Slurm requeued it.
        started: seconds since the epoch, by the job's clock; beat: when the file was written, by the file system's.
        silent: seconds since then, by the file system's clock.
    """

    job: str
    state: str
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
    silent: float = 0.0

    @property
    def alive(self) -> bool:
        return self.state == "running" and is_alive(self.host, self.pid, self.born, self.silent)


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Describe a job that did not complete: its label, the cause in one line, and the path of its log.

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
    """Read and write one launch's folder."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def sweep(self) -> str:
        return self.folder.parent.parent.name

    @property
    def record(self) -> Path:
        return self.folder / "launch.json"

    @property
    def is_closed(self) -> bool:
        return self._is_marked("closed")

    @property
    def is_cancelled(self) -> bool:
        return self._is_marked("cancelled")

    def _is_marked(self, name: str) -> bool:
        with contextlib.suppress(OSError):  # a heartbeat must not end because a file server does not answer
            return (self.folder / name).exists()
        return False

    def read(self) -> LaunchSpec:
        """Read launch.json. Raises StoreError: it cannot be read, has another schema or an unknown kind."""
        with translate_errors(self.record):
            return _read_launch(self.record, self.record.stat().st_mtime_ns)

    def mark(self, name: str) -> None:
        """Create a marker file. A full disk is passed over, so that the original failure is reported."""
        with contextlib.suppress(OSError):
            (self.folder / name).touch()

    def take_over(self) -> None:
        """Record that this process waits for the jobs from now on."""
        write_json(self.folder / "driver.json", _describe_process())

    def beat(self) -> None:
        """Update the heartbeat of the process that waits for the jobs."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / "driver.json")

    @property
    def is_driven(self) -> bool:
        """Return whether a running process waits for the jobs."""
        path = self.folder / "driver.json"
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
            driver = read_json(path)
            is_here = driver["host"] == socket.gethostname()
            silent = 0.0 if is_here else read_clock(self.folder) - path.stat().st_mtime
            return is_alive(driver["host"], driver["pid"], driver["born"], silent)
        return False

    @property
    def is_own(self) -> bool:
        """Return whether the process that waits for the jobs, or did, is this one."""
        with contextlib.suppress(OSError, ValueError):
            return bool(read_json(self.folder / "driver.json") == _describe_process())
        return False


def _describe_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": read_process_start(os.getpid())}


class AttemptReader:
    """Read the attempts of a launch; files that did not change are not read again."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._read: dict[str, tuple[int, Attempt]] = {}

    def read_attempts(self) -> dict[str, list[Attempt]]:
        """Return the attempts by job, in the order in which they started."""
        found: dict[str, list[Attempt]] = {}
        for attempt in self._read_files():
            found.setdefault(attempt.job, []).append(attempt)
        here = socket.gethostname()
        if any(a.state == "running" and a.host != here for attempts in found.values() for a in attempts):
            now = read_clock(self.launch.folder)
            found = {job: [replace(a, silent=now - a.beat) for a in attempts] for job, attempts in found.items()}
        return {job: sorted(attempts, key=lambda one: (one.started, one.pid)) for job, attempts in found.items()}

    def _read_files(self) -> Iterator[Attempt]:
        """Yield every attempt; as last read where the file or the folder cannot be read now: no running job is lost."""
        try:
            entries = list(os.scandir(self.launch.folder))
        except OSError:
            yield from (attempt for _, attempt in self._read.values())
            return
        for entry in entries:
            if entry.name.count(".") >= 2 and entry.name.endswith(".json") and entry.name[0] != ".":
                known = self._read.get(entry.name)
                with contextlib.suppress(OSError, ValueError, TypeError, ConfigError):
                    status = entry.stat()
                    if known is None or known[0] != status.st_mtime_ns:
                        row = read_json(Path(entry.path))
                        # Keys of another version are passed over: no reader may take a running job for none.
                        values = {f.name: row[f.name] for f in fields(Attempt) if f.name in row}
                        attempt = build_dataclass(Attempt, {**values, "beat": status.st_mtime}, entry.name)
                        known = self._read[entry.name] = (status.st_mtime_ns, attempt)
                if known is not None:
                    yield known[1]


def write_attempt(launch: Launch, name: str, attempt: Attempt) -> None:
    """Write an attempt's file, without fsync: it is written again in seconds. Raises StoreError."""
    values = {name: value for name, value in asdict(attempt).items() if name not in ("beat", "silent")}
    write_json(launch.folder / name, {"schema": SCHEMA, **values}, sync=False)


def derive_state(attempts: Sequence[Attempt]) -> str:
    """Return the state that follows from a job's attempts: done, running, failed, or else pending."""
    if any(attempt.state == "done" for attempt in attempts):
        return "done"
    if any(attempt.alive for attempt in attempts):
        return "running"
    return "failed" if attempts and attempts[-1].state == "failed" else "pending"


def create_launch(spec: LaunchSpec) -> Launch:
    """Create the folder of a new launch that this process waits for. Raises StoreError."""
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    launch = Launch(SweepPaths(spec.request.folder).jobs / name)
    write_json(launch.record, _describe_launch(spec))
    launch.take_over()
    return launch


def list_launches(sweep: Path) -> list[Launch]:
    """List every launch of a sweep, the oldest first, those of 0.1 excluded."""
    return [Launch(folder) for folder in SweepPaths(sweep).launches]


def list_open_launches(output: Path) -> Iterator[Launch]:
    """Yield every launch under an output folder that may still have jobs; private sweeps are passed over."""
    for path in find_entries(OutputPaths(output).sweeps, "*/jobs/*/launch.json", required=False):
        launch = Launch(path.parent)
        if not launch.is_closed:
            yield launch


def read_request(sweep: Path) -> SweepRequest:
    """Read request.json of a sweep's folder. Raises StoreError: unreadable, another schema, or an unknown kind."""
    path = SweepPaths(sweep).request
    with translate_errors(path):
        return _build_request(_check_schema(read_json(path)), sweep)


def is_alive(host: str, pid: int, started: str, silent: float) -> bool:
    """Return whether a process runs: exactly on this machine, by its last heartbeat on another.

    A pid alone is not enough, because pids are used again. A heartbeat from the future does not count: the clock was
    set back.

    Args:
        silent: seconds since the last heartbeat, by the clock of the file system.
    """
    if host == socket.gethostname():
        return started != "" and read_process_start(pid) == started
    return abs(silent) < STALE_S


class Reminder:
    """Decide once per minute whether to print which jobs are waited for."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def is_due(self) -> bool:
        due = time.monotonic() - self._since >= REMIND_S
        if due:
            self._since = time.monotonic()
        return due


def shorten_list(texts: Sequence[str], most: int) -> list[str]:
    """Return the first texts, and one text with the number of the others."""
    return [*texts[:most], *([f"and {len(texts) - most} more"] if len(texts) > most else [])]


def read_clock(folder: Path) -> float:
    """Return the time of the clock that dates the files of a folder; a file server's may be ahead of this machine's."""
    path = folder / f".clock-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        path.touch()
        return path.stat().st_mtime
    except OSError:  # a folder that may only be read
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def read_process_start(pid: int) -> str:
    """Return the start time of a process of this machine as the kernel writes it; "" where it does not run."""
    try:
        values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
        try:  # no /proc here: a pid is all there is
            os.kill(pid, 0)
        except OSError:
            return ""
        return "?"
    return "" if values[0] in "ZX" else values[19]


def _describe_request(request: SweepRequest) -> dict[str, Any]:
    """Describe a request; an experiment or method that many cells share is written once, and cells name it by index."""
    indices = {experiment: index for index, experiment in enumerate(request.experiments)}
    methods: dict[Method, int] = {}
    cells = [
        (
            indices[cell.experiment],
            methods.setdefault(cell.method, len(methods)),
            cell.part.split,
            cell.part.limit,
        )
        for cell in request.cells
    ]
    about = request.publication.about
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "data_dir": str(request.places.data.absolute()),
        "launcher": descriptions.describe_value(LAUNCHERS, request.launcher),
        "tracking": descriptions.describe_value(TRACKERS, request.publication.settings),
        "retry": request.retry,
        "capture": request.capture,
        "about": {key: value for key, value in about.items() if key not in ("trunks", "cells")},  # they are below
        "experiments": [_describe_experiment(request, experiment) for experiment in indices],
        "methods": [descriptions.describe_value(METHODS, method) for method in methods],
        "cells": cells,
    }


def _describe_experiment(request: SweepRequest, experiment: Experiment) -> dict[str, Any]:
    target = request.passes[experiment]
    return {
        "dataset": descriptions.describe_benchmark(experiment.dataset),
        "model": descriptions.describe_value(MODELS, experiment.model),
        "max_new_tokens": experiment.max_new_tokens,
        "resources": asdict(request.resources.get(experiment.model, Resources())),
        "label": target.key.label,
        "key": target.key.description,
        "rows": target.rows,
    }


def _build_request(tree: Mapping[str, Any], folder: Path) -> SweepRequest:
    """Build what _describe_request described; the output folder follows from `folder`, which may have been moved."""
    experiments = [
        Experiment(
            descriptions.build_benchmark(row["dataset"], "dataset"),
            descriptions.build_value(MODELS, row["model"], "model"),
            check_root_value("max_new_tokens", row["max_new_tokens"]),
        )
        for row in tree["experiments"]
    ]
    methods = [descriptions.build_value(METHODS, row, "method") for row in tree["methods"]]
    cells = tuple(
        Cell(
            experiments[experiment],
            methods[method],
            Part(check_root_value("split", split), check_root_value("limit", limit)),
        )
        for experiment, method, split, limit in tree["cells"]
    )
    capture = check_root_value("capture", tree["capture"])
    passes = {work.experiment: work for work in plan.fuse_cells(cells, capture)}
    keys = [ExperimentKey(str(row["label"]), dict(row["key"])) for row in tree["experiments"]]
    tracking = descriptions.build_value(TRACKERS, tree["tracking"], "tracking")
    return SweepRequest(
        folder=folder,
        places=Places(Path(tree["data_dir"]), SweepPaths(folder).output.root),
        launcher=descriptions.build_value(LAUNCHERS, tree["launcher"], "launcher"),
        resources={
            experiment.model: build_dataclass(Resources, row["resources"], "model.resources")
            for experiment, row in zip(experiments, tree["experiments"], strict=True)
        },
        retry=check_root_value("retry", tree["retry"]),
        capture=capture,
        publication=Publication(cells, {**tree["about"], **tables.describe_cells(cells)}, tracking),
        passes={
            experiment: KeyedPass(passes[experiment], key, int(row["rows"]))
            for experiment, key, row in zip(experiments, keys, tree["experiments"], strict=True)
        },
    )


def _describe_launch(spec: LaunchSpec) -> dict[str, Any]:
    indices = {experiment: index for index, experiment in enumerate(spec.request.experiments)}
    jobs = {
        job.name: [
            (indices[shard.target.work.experiment], shard.rows.start, shard.rows.stop, shard.questions)
            for shard in job.shards
        ]
        for job in spec.jobs
    }
    return {"schema": SCHEMA, "request": _describe_request(spec.request), "jobs": jobs}


@lru_cache(maxsize=16)
def _read_launch(path: Path, _changed: int) -> LaunchSpec:
    with translate_errors(path):
        tree = _check_schema(read_json(path))
        request = _build_request(_check_schema(tree["request"]), path.parents[2])
        targets = [request.passes[experiment] for experiment in request.experiments]
        shards = {
            name: tuple(Shard(targets[index], range(start, stop), int(todo)) for index, start, stop, todo in rows)
            for name, rows in tree["jobs"].items()
        }
        resources = {name: request.resources[found[0].target.work.experiment.model] for name, found in shards.items()}
        return LaunchSpec(request, tuple(Job(name, found, resources[name]) for name, found in shards.items()))


def _check_schema(tree: Any) -> Mapping[str, Any]:
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        schema = tree.get("schema") if isinstance(tree, dict) else None
        raise ValueError(f"its schema is {schema!r}, this version of spatial_eval reads {SCHEMA}")
    return tree


@contextlib.contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Raise StoreError, one line, for any error in reading a file of job state."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ConfigError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        if isinstance(error, ConfigError) or (type(error) is ValueError):
            why = str(error)
        raise StoreError(f"{path} cannot be read ({why}): run the same command again") from None
