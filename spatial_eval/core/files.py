"""Write files that no reader sees half written; read JSON without surprises; say what a file system rejects in a line.

Guarantee: a reader sees the old file or the new one. Steps: write beside it, fsync, rename. Trade-off: two renames of
one path at once leave one of the two files; no lock is held. Scope: local disks and NFS, where a rename is atomic.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from spatial_eval.core.errors import StoreError


def make_writer_name() -> str:
    """Return a name that no other writer has, on any host."""
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return f"{moment}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def write_atomic(path: Path, text: str | bytes, *, sync: bool = True) -> None:
    """Write a whole file by rename.

    Args:
        sync: False = without fsync, for what is written again in seconds.

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
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                yield file
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Write a value as one line of JSON, by rename. Raises StoreError."""
    write_atomic(path, json.dumps(value) + "\n", sync=sync)


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        OSError: it is absent, unreadable or no regular file (opening a FIFO would wait for ever).
        ValueError: it is not JSON, or nested too deeply.
    """
    if not path.is_file():
        raise FileNotFoundError(2, "no such file" if not path.exists() else "not a regular file", str(path))
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn what the file system rejects (disk full, no permission) into one line. Raises StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror or error}; what was stored before stays: fix it and run the same command again"
        ) from error
