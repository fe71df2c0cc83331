"""Write files atomically, read JSON within limits, and report errors of the file system in one line.

Guarantee: a reader sees the old file or the new one. Steps: write beside it, fsync, rename. Trade-off: two renames of
one path at once leave one of the two files; no lock is held. Scope: local disks and NFS, where a rename is atomic.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from spatial_eval.core.errors import StoreError
from spatial_eval.core.terminal import warn_once

LARGEST_JSON = 2**28  # bytes; sweep.json of 100,000 cells has a tenth of it
ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}  # errors that say "not there"
TRIES = 3  # of reading a file that another machine replaces meanwhile: NFS then reports a stale handle


def make_writer_name() -> str:
    """Return a name that no other writer has, on any host."""
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return f"{moment}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def write_atomic(path: Path, text: str | bytes, *, sync: bool = True) -> None:
    """Write a whole file by rename.

    Args:
        sync: False = without fsync, for files that are written again within seconds.

    Raises:
        StoreError: the file system rejects it; the old file stays.
    """
    with open_atomic(path, sync=sync) as file:
        file.write(text.encode() if isinstance(text, str) else text)


@contextlib.contextmanager
def open_atomic(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a file that takes its place when the block ends; where the block fails the old file stays."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}")
    with translate_os_errors(path):
        try:
            _make_folder(path.parent)
            with part.open("wb") as file:
                yield file
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Make a folder. Raises OSError; of a link to nowhere, as of a disk that is not mounted, it names the link."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        link = next((path for path in (folder, *folder.parents) if path.is_symlink() and not path.exists()), None)
        if link is None:
            raise
        raise OSError(errno.ENOENT, f"{link} is a link to {link.readlink()}, which is not there") from None


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Write a value as one line of JSON, by rename. Raises StoreError."""
    write_atomic(path, json.dumps(value) + "\n", sync=sync)


def is_regular_file(path: Path) -> bool:
    """Return whether a path is a regular file: no folder, FIFO or device, no name that is too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def find_entries(folder: Path, pattern: str, *, required: bool = True) -> list[Path]:
    """Return the paths below a folder that match a pattern, in order; an absent folder holds none.

    Path.glob takes a folder that cannot be listed for an empty one: from Python 3.12 on also one with a stale handle.

    Args:
        pattern: as Path.glob's; folders below `**` that are links are not entered.
        required: False = pass over a folder below `folder` that is private, such as another user's, with a warning.

    Raises:
        OSError: a folder cannot be listed.
    """

    def match(path: Path, part: str) -> list[Path]:
        try:
            return _match_part(path, part)
        except PermissionError as error:
            if required or path == folder:
                raise
            _warn_unreadable(path, error)
            return []

    paths = [folder]
    for part in pattern.split("/"):
        if part == "**":
            for path in paths:  # which grows meanwhile, until no folder has another one in it
                paths += match(path, part)
        else:
            paths = [entry for path in paths for entry in match(path, part)]
    return sorted(paths)


def _match_part(folder: Path, part: str) -> list[Path]:
    """Return the paths in a folder that a part of a pattern means, `**` its folders; none where it is absent."""
    try:
        if part == "**":
            with os.scandir(folder) as entries:
                return [folder / entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        if any(sign in part for sign in "*?["):
            with os.scandir(folder) as entries:
                return [folder / entry.name for entry in entries if fnmatchcase(entry.name, part)]
        (folder / part).stat()
        return [folder / part]
    except OSError as error:
        if error.errno in ABSENT:
            return []
        raise
    except ValueError as error:  # a NUL: no path has one
        raise OSError(errno.EINVAL, str(error), str(folder)) from error


def list_files(folder: Path, pattern: str, *, required: bool = True) -> list[Path]:
    """Return the regular files that find_entries finds; warn once about each other match. Raises as find_entries."""
    files = []
    for path in find_entries(folder, pattern, required=required):
        with pass_over_unreadable(path):
            if path.is_file():
                files.append(path)
            else:
                warn_once(f"{path} is passed over: it is no regular file; move it away")
    return files


@contextlib.contextmanager
def pass_over_unreadable(path: Path) -> Iterator[None]:
    """Leave the block where a file cannot be read, and warn once."""
    try:
        yield
    except OSError as error:
        _warn_unreadable(path, error)


def _warn_unreadable(path: Path, error: OSError) -> None:
    warn_once(f"{path} is passed over: it cannot be read ({error.strerror or error}); make it readable")


def read_regular_file(path: Path, most: int | None = None) -> bytes:
    """Read a file whole.

    Args:
        most: bytes it may have; None = any number.

    Raises:
        OSError: it is absent, unreadable, or no regular file (a FIFO would wait for ever).
        ValueError: it is too large.
    """
    for _ in range(TRIES - 1):
        try:
            return _read_once(path, most)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return _read_once(path, most)


def _read_once(path: Path, most: int | None) -> bytes:
    try:
        status = path.stat()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        status = path.lstat()  # a link, which is no regular file
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
    if most is not None and status.st_size > most:
        raise ValueError(f"{status.st_size:,} bytes; at most {most:,} are read")
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        OSError: as read_regular_file does.
        ValueError: it is not JSON, nested too deeply, or larger than LARGEST_JSON.
    """
    return parse_json(read_regular_file(path, LARGEST_JSON))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of another hand. Raises ValueError: it is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that holds an object; raises as read_json does."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


@contextlib.contextmanager
def translate_os_errors(path: Path | None = None) -> Iterator[None]:
    """Raise StoreError, one line, for an error of the file system (disk full, no permission).

    Args:
        path: what the block is about; None = the path that the error names.
    """
    try:
        yield
    except OSError as error:
        where = f"{path or error.filename}: " if path or error.filename else ""
        raise StoreError(
            f"{where}{error.strerror or error}; what was stored before stays: fix it and run the same command again"
        ) from error
