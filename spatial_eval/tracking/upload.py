"""Upload written runs with `wandb sync`, and check on the server that every table arrived.

`wandb sync` prints "Finished" and exits 0 where a table's payload is absent or the server rejects it, and never ends
without a network. So payloads and server are checked first, the process has a time limit, and afterwards its log and
the server are checked for every table.
"""

from __future__ import annotations

import configparser
import contextlib
import netrc
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from spatial_eval.core.files import list_files, parse_json
from spatial_eval.tracking.publications import PublishLedger, Written

CLOUD = "https://api.wandb.ai"
PROBE_S = 2.0
STALL_S = 20.0  # without a run finished, before `wandb sync` is ended; and as long as the tables may take
BYTES_S = 500_000  # a slow line
AT_ONCE = 8  # runs
TRIES = 3  # a commit may take effect a little after its answer
# wandb retries for days by default; these end a run's upload within about 20 s.
PATIENCE = {
    "WANDB_X_GRAPHQL_RETRY_MAX": "3",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "3",
    "WANDB_X_GRAPHQL_TIMEOUT_SECONDS": "10",
    "WANDB_X_FILE_STREAM_RETRY_MAX": "3",
    "WANDB_X_FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "3",
    "WANDB_X_FILE_STREAM_TIMEOUT_SECONDS": "10",
    "WANDB_X_FILE_TRANSFER_RETRY_MAX": "3",
    "WANDB_X_FILE_TRANSFER_RETRY_WAIT_MAX_SECONDS": "3",
}
VAGUE_ERROR = "api: HTTP error"  # its cause follows in the log
FAILURE_WORDS = re.compile(r"fail|fatal|error uploading|HTTP error", re.IGNORECASE)


class Unreachable(Exception):
    """Raised where the server cannot be used now; the message is the reason. The caller turns it into a status."""


@dataclass(frozen=True, slots=True)
class UploadedRun:
    """Hold a run on the server: `lines` of its history, and names of the `tables` (artifacts) that it committed."""

    lines: int = 0
    tables: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Server:
    """Hold the server to upload to. `key` is "" where none is set; it is never shown."""

    url: str
    key: str = field(repr=False)


class ServerClient(Protocol):
    """Define the requests of an upload to a server."""

    def connect(self, server: Server, seconds: float) -> Any:
        """Check that the server accepts the key. Raises Unreachable, within about `seconds`."""
        ...

    def find_uploaded(self, server: Server, entries: Sequence[Written]) -> dict[str, UploadedRun]:
        """Return the lines and tables that the server has of each run, by id. Raises Unreachable."""
        ...


def find_server(environment: Mapping[str, str], home: Path) -> Server:
    """Find server and key as the user's own `wandb login` would: in the environment, then in files of `home`."""
    url = (environment.get("WANDB_BASE_URL") or _read_base_url(environment, home) or CLOUD).rstrip("/")
    return Server(url, environment.get("WANDB_API_KEY") or _read_key(environment, home, url))


def _read_base_url(environment: Mapping[str, str], home: Path) -> str:
    folder = Path(environment.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb")
    parser = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read(folder / "settings", "utf8")
        return parser.get("default", "base_url", fallback="")
    return ""


def _read_key(environment: Mapping[str, str], home: Path, url: str) -> str:
    names = [environment["NETRC"]] if environment.get("NETRC") else [home / ".netrc", home / "_netrc"]
    for name in names:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            login = netrc.netrc(os.fspath(name)).authenticators(urllib.parse.urlsplit(url).hostname or "")
            if login and login[2]:
                return login[2]
    return ""


def upload_runs(
    ledger: PublishLedger, entries: Sequence[Written], server: Server, client: ServerClient
) -> dict[str, str]:
    """Upload runs; return, by id, why a run is not wholly on the server; {} = every table is verified.

    Runs that the ledger lists as uploaded are passed over. Failures of server or network raise nothing.
    """
    synced = ledger.list_synced(server.url)
    todo = [entry for entry in entries if (entry.id, entry.digest) not in synced]
    waiting = {entry.id: damage for entry in todo if (damage := ledger.explain_damage(entry))}
    todo = [entry for entry in todo if entry.id not in waiting]
    if not todo:
        return waiting
    try:
        client.connect(server, PROBE_S)  # before a process is started that may never end
        failed = _run_sync(ledger, todo, server)
        uploaded = _find_uploaded(client, server, todo)
    except Unreachable as error:
        return waiting | {entry.id: str(error) for entry in todo}
    for entry in todo:
        reason = failed.get(entry.id) or _name_missing(entry, uploaded[entry.id])
        if reason:
            waiting[entry.id] = reason
            # so that a plain `wandb sync` takes it for unsynced too
            _synced_marker(ledger, entry).unlink(missing_ok=True)
        else:
            ledger.confirm_upload(entry, server.url)
    return waiting


def _find_uploaded(client: ServerClient, server: Server, entries: Sequence[Written]) -> dict[str, UploadedRun]:
    uploaded = client.find_uploaded(server, entries)
    for attempt in range(1, TRIES):
        incomplete = [entry for entry in entries if _name_missing(entry, uploaded[entry.id])]
        if not incomplete:
            break
        time.sleep(0.5 * attempt)
        uploaded |= client.find_uploaded(server, incomplete)
    return uploaded


def _name_missing(entry: Written, uploaded: UploadedRun) -> str:
    """Name the parts of a run that the server lacks, in one line; "" where it has all."""
    tables = [name for name in entry.artifacts if name not in uploaded.tables]
    if tables:
        return f"the server did not commit {', '.join(tables)}"
    return "" if uploaded.lines else "the server has no figures of it"


def _run_sync(ledger: PublishLedger, entries: Sequence[Written], server: Server) -> dict[str, str]:
    """Run `wandb sync` on the entries; returns why it failed, by id."""
    work = ledger.root / "syncing" / ledger.writer
    work.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        _synced_marker(ledger, entry).unlink(missing_ok=True)
    command = [sys.executable, "-m", "wandb", "sync", "-n", str(AT_ONCE), "--include-synced"]
    command += [str(ledger.root / entry.run) for entry in entries]
    stall = STALL_S + sum((ledger.root / name).stat().st_size for entry in entries for name in entry.staged) / BYTES_S
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # a client's own
    environment |= make_client_environment(ledger.root, work, work / "data")
    environment |= {"WANDB_API_KEY": server.key, "WANDB_BASE_URL": server.url}
    try:
        with (work / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            ended = _await_sync(process, ledger, entries, stall)
        reasons = _read_log(work, ledger, entries)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    missed = "wandb sync did not finish it" if ended else f"nothing was finished for {stall:g} s"
    return reasons | {e.id: reasons.get(e.id, missed) for e in entries if not _synced_marker(ledger, e).is_file()}


def _await_sync(
    process: subprocess.Popen[bytes], ledger: PublishLedger, entries: Sequence[Written], stall: float
) -> bool:
    """Wait until the process ends (True), or end it after `stall` seconds without progress (False)."""
    done, moved = 0, time.monotonic()
    try:
        while process.poll() is None:
            time.sleep(0.1)
            now = sum(_synced_marker(ledger, entry).is_file() for entry in entries)
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


def _read_log(work: Path, ledger: PublishLedger, entries: Sequence[Written]) -> dict[str, str]:
    """Read the errors of each run from the log of `wandb sync`: a lost table is reported only there."""
    runs = {str(_run_file(ledger, entry)): entry.id for entry in entries}
    errors: dict[str, str] = {}
    for path in list_files(work, "**/debug-sync*.log"):
        for line in path.read_text("utf8", errors="replace").splitlines():
            if '"level":"ERROR' in line and "featurechecker" not in line and FAILURE_WORDS.search(line):
                with contextlib.suppress(ValueError):
                    row = parse_json(line)
                    run = runs.get(str(row.get("sync_path")))
                    if run and errors.get(run, VAGUE_ERROR) == VAGUE_ERROR:
                        errors[run] = " ".join(f"{row.get('msg')} {row.get('error', '')}".split())[:300]
    return errors


def _run_file(ledger: PublishLedger, entry: Written) -> Path:
    return ledger.root / entry.run / f"run-{entry.id}.wandb"


def _synced_marker(ledger: PublishLedger, entry: Written) -> Path:
    """Return the file that `wandb sync` leaves beside a run that it takes for uploaded."""
    return _run_file(ledger, entry).with_name(f"run-{entry.id}.wandb.synced")


def make_client_environment(root: Path, folder: Path, data: Path) -> dict[str, str]:
    """Make `folder` and return the client's environment: no files outside the sweep, no usage statistics."""
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
        **PATIENCE,
    }
