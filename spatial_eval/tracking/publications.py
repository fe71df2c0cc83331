"""Note what of a sweep was published: append-only lines under <sweep>/wandb/ledger, one file per writer, no locks.

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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from spatial_eval.core.errors import ConfigError
from spatial_eval.core.files import list_files, pass_over_unreadable, read_json_object
from spatial_eval.core.jsonl import read_valid_lines
from spatial_eval.core.validate import build_dataclass

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
    """What to publish, and how.

    Attributes:
        folder: the sweep's; wandb/ in it holds all that is written. tracker: as `describe_tracking` says it.
        source: the folder of its tables. cells_only: complete cells of `source`, which may hold a part of the sweep's
            `cells` cells, and no run for the sweep. write: False = nothing new, upload what is written.
        upload: never | auto (if the server can be used) | always | probe (only ask the server).
    """

    folder: str
    tracker: Mapping[str, Any]
    source: str = ""
    cells_only: bool = False
    cells: int = 0
    write: bool = True
    upload: str = "never"


@dataclass
class PublishStatus:
    """What publish.json says.

    Attributes:
        state: offline (all is written under the sweep's folder) | complete (a server holds every table)
            | incomplete (see problems and waiting) | failed (the publisher died; set by its parent).
        runs: how many the sweep has. written: by this call. mended: of these, runs whose payloads were gone.
        waiting: runs that are not wholly on the server, and why.
        urls: pages of the project, the sweep's group and run, and a saved view (`view`), where it was uploaded.
    """

    state: str = OFFLINE
    runs: int = 0
    written: int = 0
    mended: int = 0
    uploaded: int = 0
    waiting: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    urls: dict[str, str] = field(default_factory=dict)


def read_urls(sweep: Path) -> dict[str, str]:
    """Return the addresses that the sweep's publish.json holds, {} where it holds none."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        urls = read_json_object(sweep / "publish.json").get("urls", {})
        return {str(name): str(url) for name, url in urls.items()}
    return {}


class PublishLedger:
    """The ledger of one sweep. Reading takes every writer's lines together; truncated ones are skipped."""

    def __init__(self, sweep: Path) -> None:
        self.root = sweep.absolute() / "wandb"
        self.writer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"

    @property
    def scratch(self) -> Path:
        """Return where this writer's runs are written before they take their place."""
        return self.root / "writing" / self.writer

    @property
    def data(self) -> Path:
        """Return this writer's WANDB_DATA_DIR: table payloads stay in it until they are uploaded."""
        return self.root / "data" / self.writer

    def written(self) -> dict[str, Written]:
        """Return the newest entry of every run id."""
        return {entry.id: entry for entry in self._read_entries()}

    def synced(self, server: str | None = None) -> set[tuple[str, str]]:
        """Return (id, digest) of what a server is known to hold; of any server without a name."""
        rows = (row for row in self._read_rows() if "synced" in row)
        return {(row["id"], row["digest"]) for row in rows if server in (None, row["synced"])}

    def broken(self, entry: Written) -> str:
        """Say why an entry cannot be uploaded from here, or ""."""
        if entry.root != str(self.root):
            return f"its tables were staged under {entry.root}"
        if not (self.root / entry.run / f"run-{entry.id}.wandb").is_file():
            return f"{entry.run} is gone"
        lost = [name for name in entry.staged if not (self.root / name).is_file()]
        return f"{len(lost)} staged table payloads are gone, {lost[0]} among them" if lost else ""

    def add(self, entry: Written, old: Written | None = None) -> None:
        """Note the entry, then put the run's folder from scratch in its place: a kill between leaves it broken.

        The files of `old`, the run's entry so far, are removed.
        """
        self._append(asdict(entry))
        with contextlib.suppress(OSError):  # there already: another writer was faster with the same content
            (self.scratch / "wandb" / entry.run).rename(self.root / entry.run)
        if old and old.digest == entry.digest and old.run != entry.run:
            # Where an upload began, the client noted the steps it gave: the same lines get the same steps again.
            name = f"run-{entry.id}.wandb.syncstate"
            with contextlib.suppress(OSError):
                shutil.copyfile(self.root / old.run / name, self.root / entry.run / name)
        if old:
            self._remove_replaced(old, entry)

    def confirm(self, entry: Written, server: str) -> None:
        """Note that a server holds the run with every table."""
        self._append({"id": entry.id, "digest": entry.digest, "synced": server, "time": time.time_ns()})

    def sweep_up(self) -> None:
        """Remove what dead writers of this machine left half written, and what two wrote at once."""
        newest = self.written()
        for entry in self._read_entries():
            self._remove_replaced(entry, newest[entry.id])
        kept = {name for entry in newest.values() for name in entry.staged}
        for folder in (self.root / "writing").glob("*-*-*"):
            host, pid, _ = folder.name.rsplit("-", 2)
            if host == socket.gethostname() and pid.isdigit() and not _is_alive(int(pid)):
                for path in (self.root / "data" / folder.name).rglob("tmp*"):
                    if path.is_file() and str(path.relative_to(self.root)) not in kept:
                        path.unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove the scratch folder."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _remove_replaced(self, old: Written, new: Written) -> None:
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

    def _read_entries(self) -> list[Written]:
        """Return every entry, by time."""
        found = []
        for row in self._read_rows():
            if "run" in row:
                with contextlib.suppress(ConfigError):  # of another version, or by another hand
                    entry = build_dataclass(Written, {"staged": (), "artifacts": (), **row}, "entry")
                    if all(map(_is_inside, [entry.run, f"run-{entry.id}", *entry.staged])):
                        found.append(entry)
        return sorted(found, key=lambda entry: entry.time)

    def _read_rows(self) -> Iterator[dict[str, Any]]:
        for path in list_files(self.root / "ledger", "*.jsonl"):
            with pass_over_unreadable(path):
                for row in read_valid_lines(path):
                    if isinstance(row, dict) and all(isinstance(row.get(name), str) for name in ("id", "digest")):
                        yield row


def _is_inside(name: str) -> bool:
    """Whether a name from a ledger stays in the wandb folder: files of it are removed, and ledgers are passed on."""
    path = PurePath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
