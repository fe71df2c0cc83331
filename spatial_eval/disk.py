"""Files that no reader sees half written, and what the file system refuses, in one line."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import StoreError


def writer_name() -> str:
    """No other writer's, on any host."""
    return (
        f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    )


def replace(path: Path, text: str | bytes) -> None:
    """Write a whole file by rename: readers see the old one or the new one, never a part."""
    with replacing(path) as file:
        file.write(text.encode() if isinstance(text, str) else text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """As `replace`, written piece by piece; where writing fails the old file stays."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}")
    with refusals(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turns what the file system refuses (disk full, no permission) into one line."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror or error}; what was stored before stays: mend it and run the same command again"
        ) from error
