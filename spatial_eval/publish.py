"""Writes a sweep's runs with the wandb client, in a process of its own: `python -m spatial_eval.publish`.

The only module that imports wandb. Everything is written offline first, also where it is uploaded at once: only
offline logs can be sent again after a server died. tracker starts this process and bounds its time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import dashboard, plots, readback, server, sync
from .errors import SpatialEvalError
from .published import COMPLETE, INCOMPLETE, Ledger, Request, Status, Written
from .server import Server, Unreachable
from .tracking import TABLE_ROWS, Run, Table, Wandb
from .typed import build

_GIVE_UP = 3  # runs that fail in a row


def publish(request: Request, where: Server) -> Status:
    """Brings the sweep's runs up to date; a repeat changes nothing. Raises SpatialEvalError on unreadable tables."""
    settings = build(Wandb, request.settings, "tracking")
    ledger, status = Ledger(Path(request.folder)), Status()
    wanted = list(ledger.written())
    if request.write:
        ledger.sweep_up()
        with Writer(ledger, settings) as writer:
            wanted = _write(writer, ledger, settings, request, status)
    status.runs = len(wanted)
    entries = [entry for id, entry in ledger.written().items() if id in set(wanted)]
    if request.upload != "never":
        before = len(ledger.synced(where.url))
        try:
            if request.upload == "auto":
                where.probe()
            status.waiting = sync.upload(ledger, entries, where)
        except Unreachable as error:
            status.notes.append(f"stays offline: {error}")
        status.uploaded = len(ledger.synced(where.url)) - before
    held = ledger.synced()
    if status.problems or status.waiting:
        status.state = INCOMPLETE
    elif entries and all((entry.id, entry.digest) in held for entry in entries):
        status.state = COMPLETE
    return status


def _write(writer: Writer, ledger: Ledger, settings: Wandb, request: Request, status: Status) -> list[str]:
    """Writes what the ledger does not hold; returns the ids of all runs that the sweep has."""
    written, synced, wanted, failed = ledger.written(), ledger.synced(), [], 0
    for run in _runs(request, settings):
        digest, old = run.digest(settings), written.get(run.id)
        wanted.append(run.id)
        same = old is not None and old.digest == digest
        if (run.id, digest) in synced or (old and same and not ledger.broken(old)):
            continue
        try:
            ledger.add(writer.write(run, digest), old)
        except Exception as error:  # noqa: BLE001  one run that the client cannot write must not cost the others
            status.problems.append(f"{run.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            failed += 1
            if failed == _GIVE_UP:
                status.problems.append(f"gave up after {_GIVE_UP} runs that could not be written")
                break
        else:
            status.written += 1
            status.mended += same
            failed = 0
    return wanted


def _runs(request: Request, settings: Wandb) -> Iterator[Run]:
    sweep = readback.read(Path(request.source))
    cells = None
    if request.cells_only:
        # Which cells are best is known when all are done; base gets a run in any case.
        few = request.cells <= settings.max_cell_runs
        done = [cell for cell in sweep.cells if not cell["missing"] and (few or cell["method"] == "base")]
        cells = done[: settings.max_cell_runs]
    return dashboard.runs(sweep, settings, cells)


class Writer:
    """Writes runs offline. The client is loaded with the first one."""

    def __init__(self, ledger: Ledger, settings: Wandb) -> None:
        self.ledger, self.settings = ledger, settings
        self._wandb: Any = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._wandb is not None:
            self._wandb.teardown()
        self.ledger.close()

    def write(self, run: Run, digest: str) -> Written:
        """After this call the run lies whole in the ledger's scratch folder, its table payloads under its data."""
        wandb = self._client()
        before = self._staged()
        settings = wandb.Settings(
            mode="offline",
            console="off",
            silent=True,
            save_code=False,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            host="-",
            init_timeout=15,
            finish_timeout=60,
            reinit="create_new",
        )
        shown = wandb.init(
            id=run.id,
            name=run.name,
            project=self.settings.project,
            entity=self.settings.entity,
            group=run.group,
            job_type=run.job_type,
            tags=list(self.settings.tags),
            config={**run.config, **run.origin},
            resume="allow",  # published again, a run's new part joins the old one
            dir=str(self.ledger.scratch),
            settings=settings,
        )
        try:
            shown.log(self._logged(run))  # once: a table logged twice is two tables
            folder = Path(shown.dir).parent
        except BaseException:
            shown.finish(exit_code=1)
            raise
        shown.finish()
        keys = [*run.tables, *(f"{key}_table" for key in run.curves)]
        return Written(
            id=run.id,
            digest=digest,
            root=str(self.ledger.root),
            run=folder.name,
            staged=tuple(sorted(self._staged() - before)),
            artifacts=tuple(f"run-{run.id}-{key}" for key in keys),
            project=self.settings.project,
            entity=self.settings.entity,
            time=time.time_ns(),
        )

    def _logged(self, run: Run) -> dict[str, Any]:
        wandb = self._client()
        shown: dict[str, Any] = dict(run.figures)
        shown |= {key: self._table(found.cut()) for key, found in run.tables.items()}
        for key, found in run.curves.items():
            xs = [[x for x, _ in line] for line in found.lines.values()]
            ys = [[y for _, y in line] for line in found.lines.values()]
            shown[key] = wandb.plot.line_series(xs, ys, list(found.lines), found.title, found.x)
        shown |= {
            f"{key}_picture": wandb.Image(plots.curves(found), caption=found.title) for key, found in run.curves.items()
        }
        for key, grids in run.grids.items():
            shown[key] = [wandb.Image(plots.grid(grid), caption=grid.title) for grid in grids]
        return shown

    def _table(self, found: Table) -> Any:
        types = list(found.columns.values())
        table = self._client().Table(columns=list(found.columns), data=[], dtype=types, optional=True)
        # Types are declared and ours to keep: checking every row again takes the client longer than all the rest.
        table.data.extend(list(row) for row in found.rows)
        return table

    def _staged(self) -> set[str]:
        """Payloads in the staging folder, relative to the ledger's root."""
        folder = self.ledger.data / "artifacts" / "staging"
        where = folder.relative_to(self.ledger.root).as_posix()
        return {f"{where}/{path.name}" for path in folder.iterdir()} if folder.is_dir() else set()

    def _client(self) -> Any:
        if self._wandb is None:
            os.environ |= sync.variables(self.ledger.root, self.ledger.scratch, self.ledger.data)
            import wandb

            # Of a table, the file in the run's folder is cut at 10,000 rows unless told otherwise.
            wandb.Table.MAX_ROWS = wandb.Table.MAX_ARTIFACT_ROWS = TABLE_ROWS
            self._wandb = wandb
        return self._wandb


def main() -> int:
    """Reads a Request with the seconds it may take from stdin, writes a Status to stdout, both as JSON."""
    given = json.loads(sys.stdin.read())
    signal.alarm(int(given.pop("seconds")) + 5)  # should the process that bounds this one be gone
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever the client prints is no answer
    where = server.find(os.environ, Path.home())
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        del os.environ[name]  # the key goes to `wandb sync` alone, and no setting of the user's shell bends a run
    try:
        status = publish(Request(**given), where)
    except (SpatialEvalError, OSError) as error:
        status = Status(INCOMPLETE, problems=[str(error)])
    with os.fdopen(answer, "w") as file:
        json.dump(asdict(status), file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
