"""Files from HTTP servers: resumable, checked, by rename. Nothing but `prepare` ever asks for one."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

from .checksums import Checksums, git_blob, sha256
from .errors import DataError, StoreError
from .store import refusals
from .transfer import Remote, part_of, size_on_disk, tag_of, transfer

log = logging.getLogger(__name__)

WORKERS = 8  # files at a time
EVERY_S = 10.0  # between two lines of progress where there is no terminal
SPARE = 64 << 20  # bytes that stay free on the disk


def fetch(remotes: Sequence[Remote], checksums: Checksums, *, name: str, beside: int = 0) -> None:
    """After this call each file is there, and is what its publisher, or the first fetch, says.

    What is there and undamaged stays. A transfer that was cut off, at any moment, is continued. Tells the sizes
    before it starts; `beside`: bytes that must be free beside theirs, for what is unpacked of them.

    Raises DataError (a server refuses, a checksum differs), StoreError (the disk refuses).
    """
    missing = [remote for remote in {r.path: r for r in remotes}.values() if not checksums.has(remote.path)]
    if not missing:
        return
    need = sum(max(0, remote.size - size_on_disk(part_of(remote.path))) for remote in missing)
    what = f"{len(missing):,} {'file' if len(missing) == 1 else 'files'}"
    tell(checksums.folder, name, what, need, beside)
    stop = threading.Event()
    with _bar(name, need) as advance, ThreadPoolExecutor(WORKERS) as pool:

        def count(size: int) -> None:
            if stop.is_set():  # another file failed, or Ctrl-C: what arrived is kept and continued next time
                raise CancelledError
            advance(size)

        work = [pool.submit(_fetch, remote, checksums, count) for remote in missing]
        try:
            for one in work:
                one.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def tell(folder: Path, name: str, what: str, need: int, beside: int = 0) -> None:
    """Says what is about to be written to `folder`.

    Raises StoreError where the disk has no room for it, for `beside` bytes more, and for SPARE.
    """
    free = shutil.disk_usage(_standing(folder)).free
    log.info("%s: %s, %s; %s free", name, what, megabytes(need) if need else "size not known", megabytes(free))
    if need + beside + SPARE > free:
        raise StoreError(
            f"{name} needs {megabytes(need + beside)}, {folder} has {megabytes(free)} free: make room, "
            "or give --data-dir a folder on a larger disk"
        )


def megabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _fetch(remote: Remote, checksums: Checksums, advance: Callable[[int], None]) -> None:
    path, part = remote.path, part_of(remote.path)
    known = checksums.get(path)
    digest = remote.digest or (f"sha256:{known.sha256}" if known else "")
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(part):
        for fresh in (False, True):
            if fresh:
                part.unlink(missing_ok=True)
            resumed = size_on_disk(part) > 0
            transfer(remote, part, advance)
            problem = _mismatch(part, digest)
            if not problem:
                break
            part.unlink()
            tag_of(part).unlink(missing_ok=True)
            if not resumed:  # a file that was put together of two versions deserves a second chance, no other does
                raise DataError(
                    f"{remote.url} arrived with {problem}; nothing of it was kept: run the same command again, "
                    "and if it stays so, the file at its source was changed or the way there damages it"
                )
        with refusals(path):
            part.replace(path)
            checksums.note(path, remote.url)
        tag_of(part).unlink(missing_ok=True)


def _mismatch(part: Path, digest: str) -> str:
    kind, _, expected = digest.partition(":")
    found = {"sha256": sha256, "git": git_blob}[kind](part) if digest else expected
    return "" if found == expected else f"checksum {kind}:{found[:16]}..., expected {expected[:16]}..."


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """One process at a time writes a file. Raises StoreError."""
    lock = part.with_suffix(".lock")
    with refusals(lock), lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"another process is fetching {part.parent}/{part.name[1:-5]}: wait for it") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextlib.contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields `advance(bytes)`: a bar on a terminal, a line now and then elsewhere."""
    lock, start, said, done = threading.Lock(), time.perf_counter(), time.perf_counter(), 0
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task(name, total=total or None)
            yield lambda size: shown.advance(task, size)
            return

    def advance(size: int) -> None:
        nonlocal said, done
        with lock:
            done += size
            now = time.perf_counter()
            if now - said >= EVERY_S:
                said = now
                log.info("%s: %s of %s in %.0f s", name, megabytes(done), megabytes(total), now - start)

    yield advance


def _standing(folder: Path) -> Path:
    """The nearest folder that exists."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def forget(paths: Iterable[Path]) -> None:
    """Removes fetched files that were only a means."""
    for path in paths:
        path.unlink(missing_ok=True)
