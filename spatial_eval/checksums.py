"""Size and SHA-256 of every file that was fetched into a data_dir, so that later damage is seen."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from .store import refusals

FILE = "checksums.jsonl"  # one line a file; the last one counts, a torn one is passed over


@dataclass(frozen=True, slots=True)
class Checksum:
    """`source` is where the file came from."""

    sha256: str
    size: int
    source: str


class Checksums:
    """The notes of one data_dir; several threads may note."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known = _read(folder / FILE)
        self._lock = threading.Lock()

    def get(self, path: Path) -> Checksum | None:
        return self._known.get(self._key(path))

    def note(self, path: Path, source: str) -> None:
        """After this call what `path` holds now is what it must hold. Raises StoreError."""
        found = Checksum(sha256(path), path.stat().st_size, source)
        if self.get(path) == found:
            return
        # a leading newline ends a line that a kill may have left torn
        line = "\n" + json.dumps({"path": self._key(path)} | asdict(found)) + "\n"
        with self._lock, refusals(self.folder / FILE), (self.folder / FILE).open("a", encoding="utf-8") as file:
            file.write(line)
            self._known[self._key(path)] = found

    def problem(self, path: Path) -> str:
        """Why `path` is not what was fetched; "" where it is, or was never noted. Reads the file."""
        known = self.get(path)
        if known is None:
            return ""
        try:
            size = path.stat().st_size
            if size != known.size:
                return f"{path} has {size} bytes, {known.size} were fetched from {known.source}"
            same = sha256(path) == known.sha256
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
        return "" if same else f"{path} is not what was fetched from {known.source}: its SHA-256 differs"

    def has(self, path: Path) -> bool:
        """Whether `path` is there and not known to be damaged."""
        return path.is_file() and not self.problem(path)

    def _key(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob(path: Path) -> str:
    """What git, and the hub for files outside LFS, calls this content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Checksum]:
    known: dict[str, Checksum] = {}
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return known
    for line in lines:
        try:
            row = json.loads(line)
            name = str(row.pop("path"))
            known[name] = Checksum(**row)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return known
