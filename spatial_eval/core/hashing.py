"""Hash texts and files with BLAKE2b, for all identities in files and folders.

A file's digest is remembered by path, size, modification time, inode and change time, so that each file is read once. A
program may give a file any modification time; the change time is the kernel's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

from spatial_eval.core.files import find_entries
from spatial_eval.core.jsonl import read_valid_lines
from spatial_eval.core.types import Places

T = TypeVar("T")


def hash_text(text: str | bytes, size: int = 16) -> str:
    """Return the BLAKE2b digest of a text (UTF-8) or of bytes, `size` bytes long, as 2 * `size` hex digits."""
    return hashlib.blake2b(text.encode() if isinstance(text, str) else text, digest_size=size).hexdigest()


def combine_digests(parts: Mapping[str, str]) -> str:
    """Combine named digests into one that does not depend on their order."""
    return hash_text(json.dumps(sorted(parts.items()), ensure_ascii=True))


def digest_files(paths: Sequence[Path], places: Places) -> list[str]:
    """Digest the content of files.

    Digests are recorded in digests.jsonl of the cache, if `places` allows it, the output folder exists and the file
    can be written; a truncated line there, or one of an earlier version, is skipped and its file read again.

    Returns:
        32 hex digits per file; "missing" where it does not exist.
    """
    keys = [_identify_content(path) for path in paths]
    present = {key: path for key, path in zip(keys, paths, strict=True) if key}
    digests = compute_cached(present, digest_file, places)
    return [digests.get(key, "missing") for key in keys]


def compute_cached(arguments: Mapping[str, T], compute: Callable[[T], str], places: Places) -> dict[str, str]:
    """Compute 32 hex digits by `compute` and its argument, or read them from the cache of digests, by key."""
    notes = places.cache / "digests.jsonl"
    known = _read_notes(notes)
    fresh = {key: compute(argument) for key, argument in arguments.items() if key not in known}
    if fresh and places.remember and places.output.is_dir():
        _append_notes(notes, fresh)
    return {key: fresh[key] if key in fresh else known[key] for key in arguments}


def digest_folder(folder: Path, patterns: Iterable[str], places: Places) -> str:
    """Digest the files of a folder whose names match; names count, the folder's own path does not."""
    paths = sorted({path for pattern in patterns for path in find_entries(folder, pattern) if path.is_file()})
    names = [path.relative_to(folder).as_posix() for path in paths]
    return combine_digests(dict(zip(names, digest_files(paths, places), strict=True)))


def _identify_content(path: Path) -> str:
    """Return a text that changes with a file's content; "" where there is no file, a pipe and a device included."""
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return ""
    if not S_ISREG(facts.st_mode):
        return ""
    return f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}|{facts.st_ino}|{facts.st_ctime_ns}"


def digest_file(path: Path) -> str:
    """Digest a file's content, as 32 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _read_notes(notes: Path) -> dict[str, str]:
    try:
        lines = list(read_valid_lines(notes))
    except OSError:
        return {}
    pairs = [line for line in lines if isinstance(line, list) and [*map(type, line)] == [str, str]]
    return {key: digest for key, digest in pairs if len(digest) == 32}


def _append_notes(notes: Path, fresh: Mapping[str, str]) -> None:
    # The leading newline ends a line that another writer may have left truncated.
    text = "\n" + "".join(json.dumps([key, digest]) + "\n" for key, digest in fresh.items())
    try:
        notes.parent.mkdir(parents=True, exist_ok=True)
        with notes.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return  # a cache: where nothing can be written the files are read again
