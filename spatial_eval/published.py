"""What of a sweep was published: append-only lines under <sweep>/wandb/ledger, one file a writer, no locks.

written   a run's folder and the table payloads that the wandb client staged outside it, by absolute path
synced    the server holds the run, and committed every one of its tables
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OFFLINE, COMPLETE, INCOMPLETE = "offline", "complete", "incomplete"


@dataclass(frozen=True, slots=True)
class Written:
    """A run in files.

    Attributes:
        root: the sweep's wandb folder at that time; staged payloads are named by absolute path below it.
        run: name of the run's folder in it. staged: payloads, relative to it. artifacts: the tables' names.
        project, entity: where it belongs; entity None = the key's own.
    """

    id: str
    digest: str
    root: str
    run: str
    staged: tuple[str, ...]
    artifacts: tuple[str, ...]
    project: str
    entity: str | None
    time: int  # ns since the epoch: the newest line of an id counts


@dataclass(frozen=True, slots=True)
class Request:
    """What to publish.

    Attributes:
        folder: the sweep's; wandb/ in it holds all that is written. source: the folder of its tables.
        settings: a Wandb by value. cells_only: complete cells of `source`, which may hold a part of the sweep's
            `cells` cells, and no run for the sweep. write: False = nothing new, upload what is written.
        upload: never | auto (if the server can be used) | always.
    """

    folder: str
    source: str
    settings: Mapping[str, Any]
    cells_only: bool = False
    cells: int = 0
    write: bool = True
    upload: str = "never"


@dataclass
class Status:
    """What publish.json says.

    Attributes:
        state: offline (all is written under the sweep's folder) | complete (a server holds every table)
            | incomplete (see problems and waiting) | failed (the publisher died; set by tracker).
        runs: how many the sweep has. written: by this call. mended: of these, runs whose payloads were gone.
        waiting: runs that are not wholly on the server, and why.
    """

    state: str = OFFLINE
    runs: int = 0
    written: int = 0
    mended: int = 0
    uploaded: int = 0
    waiting: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Ledger:
    """Of one sweep. Reading takes every writer's lines together; torn ones are skipped."""

    def __init__(self, sweep: Path) -> None:
        self.root = sweep.absolute() / "wandb"
        self.writer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"

    @property
    def scratch(self) -> Path:
        """Where this writer's runs are written before they take their place."""
        return self.root / "writing" / self.writer

    @property
    def data(self) -> Path:
        """This writer's WANDB_DATA_DIR: table payloads are staged in it and stay there until they are uploaded."""
        return self.root / "data" / self.writer

    def written(self) -> dict[str, Written]:
        """The newest entry of every run id."""
        return {entry.id: entry for entry in self._entries()}

    def synced(self, server: str | None = None) -> set[tuple[str, str]]:
        """(id, digest) of what a server is known to hold; of any server without a name."""
        rows = (row for row in self._rows() if "synced" in row)
        return {(row["id"], row["digest"]) for row in rows if server in (None, row["synced"])}

    def broken(self, entry: Written) -> str:
        """Why an entry cannot be uploaded from here, or ""."""
        if entry.root != str(self.root):
            return f"its tables were staged under {entry.root}"
        if not (self.root / entry.run / f"run-{entry.id}.wandb").is_file():
            return f"{entry.run} is gone"
        lost = [name for name in entry.staged if not (self.root / name).is_file()]
        return f"{len(lost)} staged table payloads are gone, {lost[0]} among them" if lost else ""

    def add(self, entry: Written, old: Written | None = None) -> None:
        """Notes the entry, then puts the run's folder from scratch in its place: a kill between leaves it broken.

        The files of `old`, the run's entry so far, are removed.
        """
        self._append({name: getattr(entry, name) for name in Written.__slots__})
        with contextlib.suppress(OSError):  # there already: another writer was faster with the same content
            (self.scratch / "wandb" / entry.run).rename(self.root / entry.run)
        if old and old.digest == entry.digest and old.run != entry.run:
            # Where an upload began, the client noted the steps it gave: the same lines get the same steps again.
            name = f"run-{entry.id}.wandb.syncstate"
            with contextlib.suppress(OSError):
                shutil.copyfile(self.root / old.run / name, self.root / entry.run / name)
        if old:
            self._replaced(old, entry)

    def confirm(self, entry: Written, server: str) -> None:
        self._append({"id": entry.id, "digest": entry.digest, "synced": server, "time": time.time_ns()})

    def sweep_up(self) -> None:
        """Removes what writers of this machine that died left half written, and what two wrote at once."""
        newest = self.written()
        for entry in self._entries():
            self._replaced(entry, newest[entry.id])
        kept = {name for entry in newest.values() for name in entry.staged}
        for folder in (self.root / "writing").glob("*-*-*"):
            host, pid, _ = folder.name.rsplit("-", 2)
            if host == socket.gethostname() and pid.isdigit() and not _alive(int(pid)):
                for path in (self.root / "data" / folder.name).rglob("tmp*"):
                    if path.is_file() and str(path.relative_to(self.root)) not in kept:
                        path.unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Removes the scratch folder."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _replaced(self, old: Written, new: Written) -> None:
        if old.run != new.run:
            shutil.rmtree(self.root / old.run, ignore_errors=True)
        for name in set(old.staged) - set(new.staged):
            (self.root / name).unlink(missing_ok=True)

    def _append(self, row: Mapping[str, Any]) -> None:
        path = self.root / "ledger" / f"{self.writer}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _entries(self) -> list[Written]:
        """Every entry, by time."""
        found = []
        for row in self._rows():
            if "run" in row:
                staged, artifacts = tuple(row.pop("staged", ())), tuple(row.pop("artifacts", ()))
                with contextlib.suppress(TypeError):  # of another version
                    found.append(Written(staged=staged, artifacts=artifacts, **row))
        return sorted(found, key=lambda entry: entry.time)

    def _rows(self) -> Iterator[dict[str, Any]]:
        paths: Iterable[Path] = sorted((self.root / "ledger").glob("*.jsonl"))
        for path in paths:
            for line in path.read_bytes().split(b"\n"):
                with contextlib.suppress(ValueError):
                    row = json.loads(line)
                    if isinstance(row, dict) and {"id", "digest"} <= set(row):
                        yield row


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
