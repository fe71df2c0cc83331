"""Download files over HTTP: with retries, checked against the first download's checksums, put in place by rename.

Files of RESUME_BYTES and more resume where they stopped, also after kill -9; smaller ones start again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from spatial_eval.core.errors import DataError, StoreError
from spatial_eval.core.files import translate_os_errors
from spatial_eval.core.progress import format_bytes, show_bytes
from spatial_eval.prepare.verify import Checksums

log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 5  # of a request that breaks off or meets a busy server
PAUSE_S = 1.0  # before the second attempt; doubled before each further one
TIMEOUT_S = 30.0
BUSY = (408, 425, 429, 500, 502, 503, 504)
RESUME_BYTES = 100_000_000
WORKERS = 8  # files at a time
SPARE_BYTES = 64 << 20  # stay free on the disk


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """Describe a file to download.

    Attributes:
        size: in bytes; an estimate where only the server knows it, 0 where nothing is known.
    """

    url: str
    path: Path
    size: int = 0


def download_files(files: Sequence[RemoteFile], checksums: Checksums, *, name: str, beside: int = 0) -> None:
    """Download the files that are absent or damaged, WORKERS at a time, after printing their size.

    Every file is recorded in `checksums`; a file that was recorded before must have the same content again.

    Args:
        name: the files' name in messages. beside: further bytes that must be free, for unpacking them.

    Raises:
        DataError: a request fails, or a checksum differs. StoreError: a write fails.
    """
    missing = [file for file in {file.path: file for file in files}.values() if not checksums.has(file.path)]
    if not missing:
        return
    need = sum(max(0, file.size - _size_on_disk(partial_path(file.path))) for file in missing)
    what = f"{len(missing):,} {'file' if len(missing) == 1 else 'files'}"
    check_space(checksums.folder, name, what, need, beside=beside)
    stop = threading.Event()
    with show_bytes(name, need) as advance, _client() as client, ThreadPoolExecutor(WORKERS) as pool:

        def count(size: int) -> None:
            if stop.is_set():  # another file failed, or Ctrl-C
                raise CancelledError
            advance(size)

        work = [pool.submit(_download, client, file, checksums, count) for file in missing]
        try:
            for future in work:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def remote_size(url: str) -> int:
    """Return a file's size in bytes as its server states it; 0 where it states none. Raises DataError."""

    def ask() -> int:
        with _client() as client:
            reply = client.head(url)
        return int(reply.raise_for_status().headers.get("Content-Length", 0))

    return _retry(ask, url)


def check_space(folder: Path, name: str, what: str, need: int, *, beside: int = 0) -> None:
    """Print the size of what will be written below `folder`, and check that the disk has room for it.

    Args:
        need: in bytes, 0 = unknown. beside: further bytes that must be free.

    Raises:
        StoreError: the disk has no room for it, for `beside` bytes more, and for SPARE_BYTES.
    """
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free
    log.info("%s: %s, %s; %s free", name, what, format_bytes(need) if need else "size not known", format_bytes(free))
    if need + beside + SPARE_BYTES > free:
        raise StoreError(
            f"{name} needs {format_bytes(need + beside)}, {folder} has {format_bytes(free)} free: make room, "
            "or give --data-dir a folder on a larger disk"
        )


def partial_path(path: Path) -> Path:
    """Return the path of a file while it is downloaded."""
    return path.with_name(f".{path.name}.part")


def etag_path(partial: Path) -> Path:
    """Return the path of the file that holds a partial download's ETag, for If-Range."""
    return partial.with_suffix(".etag")


def _client() -> httpx.Client:
    return httpx.Client(timeout=TIMEOUT_S, follow_redirects=True, headers={"Accept-Encoding": "identity"})


def _download(client: httpx.Client, file: RemoteFile, checksums: Checksums, advance: Callable[[int], None]) -> None:
    """Download one file. A resumed download of another content than noted starts again once."""
    partial = partial_path(file.path)
    with translate_os_errors(file.path):
        file.path.parent.mkdir(parents=True, exist_ok=True)
    resumed = etag_path(partial).is_file()
    _retry(lambda: _receive(client, file.url, partial, advance), file.url)
    problem = checksums.mismatch(file.path, partial)
    if problem and resumed:
        _drop(partial)
        _retry(lambda: _receive(client, file.url, partial, advance), file.url)
        problem = checksums.mismatch(file.path, partial)
    if problem:
        _drop(partial)
        raise DataError(
            f"{file.url} arrived with {problem}; nothing of it was kept: run the same command again, "
            "and if it stays so, the file at its source was changed or the way there damages it"
        )
    with translate_os_errors(file.path):
        partial.replace(file.path)
        checksums.note(file.path, file.url)
    _drop(partial)


def _receive(client: httpx.Client, url: str, partial: Path, advance: Callable[[int], None]) -> None:
    """Make one request; after it `partial` holds the whole file. Raises httpx.HTTPError, StoreError."""
    etag = etag_path(partial)
    done = _size_on_disk(partial) if etag.is_file() else 0
    headers = {"Range": f"bytes={done}-", "If-Range": etag.read_text("utf8")} if done else {}
    with client.stream("GET", url, headers=headers) as reply:
        if reply.status_code == 416:
            if reply.headers.get("Content-Range", "").endswith(f"*/{done}"):
                return  # whole: the kill came between the last byte and the rename
            _drop(partial)
            raise httpx.RemoteProtocolError("the file at its source became shorter")
        reply.raise_for_status()
        with translate_os_errors(partial):  # httpx has errors of its own for the network
            if reply.status_code != 206:
                _drop(partial)
                advance(-done)
                version = reply.headers.get("ETag", "W/")
                if int(reply.headers.get("Content-Length", 0)) >= RESUME_BYTES and not version.startswith("W/"):
                    etag.write_text(version, "utf8")
            with partial.open("ab") as out:
                for block in reply.iter_raw():
                    out.write(block)
                    out.flush()  # a kill loses nothing that arrived
                    advance(len(block))
                os.fsync(out.fileno())


def _drop(partial: Path) -> None:
    for path in (partial, etag_path(partial)):
        path.unlink(missing_ok=True)


def _size_on_disk(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _retry(request: Callable[[], T], url: str) -> T:
    """Return what `request` returns, repeated where the network or a busy server is to blame. Raises DataError."""
    reason = ""
    for attempt in range(ATTEMPTS):
        pause = PAUSE_S * 2**attempt
        try:
            return request()
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            reason = f"the server answers {status} {error.response.reason_phrase}"
            if status not in BUSY:
                raise DataError(f"{url}: {reason}; check the address") from None
            with contextlib.suppress(ValueError):
                pause = min(60.0, float(error.response.headers.get("Retry-After") or pause))
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise DataError(f"{url} is no address of a file: {error}") from None
        except httpx.HTTPError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
        if attempt + 1 < ATTEMPTS:
            log.info("%s: %s; again in %.0f s", url, reason, pause)
            time.sleep(pause)
    raise DataError(f"{url}: {reason}, {ATTEMPTS} times; check the network and run the same command again")
