"""Uploads written runs with `wandb sync`, and believes none of it before it is checked.

`wandb sync` says "Finished" and exits 0 when a table's payload is gone, when the server refuses it, and never ends
without a network: so payloads are looked for first, the server is probed, the process is watched, and afterwards
its own log and the server are asked about every table.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .published import Ledger, Written
from .server import Held, Server, Unreachable

STALL_S = 20.0  # without a run finished, before `wandb sync` is ended; and as long as the tables may take
BYTES_S = 500_000  # a slow line
AT_ONCE = 8  # runs
# wandb retries for days by default; these end a run's upload within about 20 s.
_PATIENCE = {
    "WANDB_X_GRAPHQL_RETRY_MAX": "3",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "3",
    "WANDB_X_GRAPHQL_TIMEOUT_SECONDS": "10",
    "WANDB_X_FILE_STREAM_RETRY_MAX": "3",
    "WANDB_X_FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "3",
    "WANDB_X_FILE_STREAM_TIMEOUT_SECONDS": "10",
    "WANDB_X_FILE_TRANSFER_RETRY_MAX": "3",
    "WANDB_X_FILE_TRANSFER_RETRY_WAIT_MAX_SECONDS": "3",
}
_VAGUE = "api: HTTP error"  # its cause follows in the log
_FAILED = re.compile(r"fail|fatal|error uploading|HTTP error", re.IGNORECASE)


def upload(ledger: Ledger, entries: Sequence[Written], server: Server, *, stall: float = STALL_S) -> dict[str, str]:
    """Why each run that is not wholly on the server is not, by id; {} = all there, each table verified.

    Runs that the ledger knows to be there are passed over. Raises nothing for what a server or network does.
    """
    held = ledger.synced(server.url)
    todo = [entry for entry in entries if (entry.id, entry.digest) not in held]
    waiting = {entry.id: why for entry in todo if (why := ledger.broken(entry))}
    todo = [entry for entry in todo if entry.id not in waiting]
    if not todo:
        return waiting
    try:
        own = server.probe()
        failed = _sync(ledger, todo, server, stall)
        there = _held(todo, server, own)
    except Unreachable as error:
        return waiting | {entry.id: str(error) for entry in todo}
    for entry in todo:
        why = failed.get(entry.id) or _lacking(entry, there.get(entry.id, Held()))
        if why:
            waiting[entry.id] = why
            _marker(ledger, entry).unlink(missing_ok=True)  # so that a plain `wandb sync` takes it for unsynced too
        else:
            ledger.confirm(entry, server.url)
    return waiting


def _lacking(entry: Written, held: Held) -> str:
    tables = [name for name in entry.artifacts if name not in held.tables]
    if tables:
        return f"the server did not commit {', '.join(tables)}"
    return "" if held.lines else "the server has no figures of it"


def _held(entries: Sequence[Written], server: Server, own: str) -> dict[str, Held]:
    places: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        places.setdefault((entry.entity or own, entry.project), []).append(entry.id)
    found: dict[str, Held] = {}
    for (entity, project), ids in places.items():
        found |= server.held(entity, project, ids)
    return found


def _sync(ledger: Ledger, entries: Sequence[Written], server: Server, stall: float) -> dict[str, str]:
    """Runs `wandb sync` on the entries; why it failed, by id."""
    work = ledger.root / "syncing" / ledger.writer
    work.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        _marker(ledger, entry).unlink(missing_ok=True)
    command = [sys.executable, "-m", "wandb", "sync", "-n", str(AT_ONCE), "--include-synced"]
    command += [str(ledger.root / entry.run) for entry in entries]
    stall += sum((ledger.root / name).stat().st_size for entry in entries for name in entry.staged) / BYTES_S
    environment = variables(ledger.root, work, work / "data")
    environment |= {"WANDB_API_KEY": server.key, "WANDB_BASE_URL": server.url, **_PATIENCE}
    try:
        with (work / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                command, cwd=work, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            ended = _watch(process, ledger, entries, stall)
        said = _complaints(work, ledger, entries)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    missed = "wandb sync did not finish it" if ended else f"nothing was finished for {stall:g} s"
    return said | {e.id: said.get(e.id, missed) for e in entries if not _marker(ledger, e).is_file()}


def _watch(process: subprocess.Popen[bytes], ledger: Ledger, entries: Sequence[Written], stall: float) -> bool:
    """Waits until the process ends (True), or ends it after `stall` seconds without progress (False)."""
    done, moved = 0, time.monotonic()
    try:
        while process.poll() is None:
            time.sleep(0.1)
            now = sum(_marker(ledger, entry).is_file() for entry in entries)
            if now > done:
                done, moved = now, time.monotonic()
            if time.monotonic() - moved > stall:
                return False
        return True
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _complaints(work: Path, ledger: Ledger, entries: Sequence[Written]) -> dict[str, str]:
    """What the sync's own log holds against a run: the only place where it says that a table was lost."""
    runs = {str(_file(ledger, entry)): entry.id for entry in entries}
    found: dict[str, str] = {}
    for path in work.rglob("debug-sync*.log"):
        for line in path.read_text("utf8", errors="replace").splitlines():
            if '"level":"ERROR' in line and "featurechecker" not in line and _FAILED.search(line):
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                where = runs.get(str(row.get("sync_path")))
                if where and found.get(where, _VAGUE) == _VAGUE:
                    found[where] = " ".join(f"{row.get('msg')} {row.get('error', '')}".split())[:300]
    return found


def _file(ledger: Ledger, entry: Written) -> Path:
    return ledger.root / entry.run / f"run-{entry.id}.wandb"


def _marker(ledger: Ledger, entry: Written) -> Path:
    """What `wandb sync` leaves beside a run that it takes for uploaded."""
    return _file(ledger, entry).with_name(f"run-{entry.id}.wandb.synced")


def variables(root: Path, folder: Path, data: Path) -> dict[str, str]:
    """The client's environment: all that it writes stays under the sweep, nothing is reported to its makers.

    After this call `folder` exists.
    """
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    return {
        "TMPDIR": str(folder / "tmp"),
        "WANDB_DIR": str(folder),
        "WANDB_DATA_DIR": str(data),
        "WANDB_ARTIFACT_DIR": str(root / "artifacts"),
        "WANDB_CACHE_DIR": str(root / "cache"),
        "WANDB_CONFIG_DIR": str(root / "config"),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
    }
