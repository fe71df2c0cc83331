"""Record which runs of a sweep were published: append-only lines under <sweep>/wandb/ledger, one file per writer.

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
from spatial_eval.core.files import find_entries, list_files, pass_over_unreadable, read_json_object
from spatial_eval.core.jsonl import read_valid_lines
from spatial_eval.core.paths import SweepPaths
from spatial_eval.core.validate import build_dataclass

OFFLINE, COMPLETE, INCOMPLETE = "offline", "complete", "incomplete"
LONGEST_NAME, LONGEST_PATH = 255, 3_000  # bytes: a file system's own, and a path's below the wandb folder


@dataclass(frozen=True, slots=True)
class Written:
    """Describe a run that was written to files.

    Attributes:
        root: the sweep's wandb folder when it was written; staged payloads have absolute paths below it.
        run: name of the run's folder in it. staged: payloads, relative to it. artifacts: the tables' names.
        project, entity: those it is published under; entity None = the default of the API key.
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
    """Hold a request to publish.

    Attributes:
        folder: the sweep's; all files are written into its wandb/. tracker: in the form of `describe_tracking`.
        source: the folder of its tables. cells_only: whether to publish complete cells alone, without the sweep's own
            run; `source` may then hold a part of the `cells` cells. write: False = upload written runs, write none.
        upload: never | auto (where the server can be used) | always | probe (connect to the server, upload nothing).
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
    """Hold the content of publish.json.

    Attributes:
        state: offline (all runs are written under the sweep's folder) | complete (a server holds every table)
            | incomplete (see problems and waiting) | failed (the publisher crashed; set by its parent).
        runs: number of the sweep's runs. written: number that this call wrote. mended: of these, runs whose payloads
            were absent.
        waiting: runs that are not wholly on the server, with the reasons.
        urls: addresses of the project, the sweep's group, its run and a saved view (`view`), after an upload.
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
    """Return the addresses in the sweep's publish.json; {} where it holds none."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        urls = read_json_object(SweepPaths(sweep).publication).get("urls", {})
        return {str(name): str(url) for name, url in urls.items()}
    return {}


class PublishLedger:
    """Read and append the ledger of one sweep: the lines of every writer together, without truncated ones."""

    def __init__(self, sweep: Path) -> None:
        self.root = SweepPaths(sweep).wandb.absolute()
        self.writer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"

    @property
    def scratch(self) -> Path:
        """Return the folder into which this writer writes runs before they are moved to their place."""
        return self.root / "writing" / self.writer

    @property
    def data(self) -> Path:
        """Return this writer's WANDB_DATA_DIR: table payloads stay in it until they are uploaded."""
        return self.root / "data" / self.writer

    def list_written(self) -> dict[str, Written]:
        """Return the newest entry of every run id."""
        return {entry.id: entry for entry in self._read_entries()}

    def list_synced(self, server: str | None = None) -> set[tuple[str, str]]:
        """Return (id, digest) of the runs that a server is known to hold; without a name, that any server holds."""
        rows = (row for row in self._read_rows() if "synced" in row)
        return {(row["id"], row["digest"]) for row in rows if server in (None, row["synced"])}

    def explain_damage(self, entry: Written) -> str:
        """Return the reason why an entry cannot be uploaded from here, or ""."""
        if entry.root != str(self.root):
            return f"its tables were staged under {entry.root}"
        if not (self.root / entry.run / f"run-{entry.id}.wandb").is_file():
            return f"{entry.run} is gone"
        lost = [name for name in entry.staged if not (self.root / name).is_file()]
        return f"{len(lost)} staged table payloads are gone, {lost[0]} among them" if lost else ""

    def add_entry(self, entry: Written, old: Written | None = None) -> None:
        """Record the entry, then move the run's folder from scratch to its place; a kill between leaves a broken entry.

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

    def confirm_upload(self, entry: Written, server: str) -> None:
        """Record that a server holds the run with every table."""
        self._append({"id": entry.id, "digest": entry.digest, "synced": server, "time": time.time_ns()})

    def remove_leftovers(self) -> None:
        """Remove unfinished files of writers of this machine that ended, and folders that two writers wrote at once."""
        newest = self.list_written()
        for entry in self._read_entries():
            self._remove_replaced(entry, newest[entry.id])
        kept = {name for entry in newest.values() for name in entry.staged}
        for folder in find_entries(self.root / "writing", "*-*-*"):
            host, pid, _ = folder.name.rsplit("-", 2)
            if host == socket.gethostname() and pid.isdigit() and not _is_alive(int(pid)):
                for path in find_entries(self.root / "data" / folder.name, "**/tmp*"):
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
            with contextlib.suppress(OSError):  # what cannot be removed stays, as a run's folder does
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
        entries = []
        for row in self._read_rows():
            if "run" in row:
                with contextlib.suppress(ConfigError):  # of another version, or by another hand
                    entry = build_dataclass(Written, {"staged": (), "artifacts": (), **row}, "entry")
                    if all(map(_is_inside, [entry.run, f"run-{entry.id}", *entry.staged])):
                        entries.append(entry)
        return sorted(entries, key=lambda entry: entry.time)

    def _read_rows(self) -> Iterator[dict[str, Any]]:
        for path in list_files(self.root / "ledger", "*.jsonl"):
            with pass_over_unreadable(path):
                for row in read_valid_lines(path):
                    if isinstance(row, dict) and all(isinstance(row.get(name), str) for name in ("id", "digest")):
                        yield row


def _is_inside(name: str) -> bool:
    """Whether a name from a ledger is a file's in the wandb folder: they are removed, and ledgers are passed on."""
    path = PurePath(name)
    try:
        sizes = [len(os.fsencode(part)) for part in path.parts]
    except UnicodeEncodeError:  # half a character
        return False
    short = bool(sizes) and max(sizes) <= LONGEST_NAME and sum(sizes) + len(sizes) <= LONGEST_PATH
    return short and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
