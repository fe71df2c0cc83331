"""Identity of files by content, remembered so that each is read once.

What a note is found by: path, size, modification time, inode and change time. A program may give a file any
modification time; the change time is the kernel's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from .types import Places


def combine(parts: Mapping[str, str]) -> str:
    """One digest of named digests, whatever their order."""
    text = json.dumps(sorted(parts.items()), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest_files(paths: Sequence[Path], places: Places) -> list[str]:
    """Per file 32 hex digits of its content; "missing" where it does not exist.

    What was read is noted in digests.jsonl of the cache, if `places` may remember and the output folder
    exists; a truncated line there, or one of an earlier version, is skipped and its file read again.
    """
    notes = places.cache / "digests.jsonl"
    known = _known(notes)
    digests: list[str] = []
    fresh: dict[str, str] = {}
    for path in paths:
        key = _key(path)
        if not key:
            digests.append("missing")
            continue
        if key not in known:
            known[key] = fresh[key] = _digest(path)
        digests.append(known[key])
    if fresh and places.remember and places.output.is_dir():
        _note(notes, fresh)
    return digests


def noted(arguments: Mapping[str, str], compute: Callable[[str], str], places: Places) -> dict[str, str]:
    """By key, what `compute` gives for its argument: 32 hex digits, remembered beside the digests of files."""
    notes = places.cache / "digests.jsonl"
    known = _known(notes)
    fresh = {key: compute(argument) for key, argument in arguments.items() if key not in known}
    if fresh and places.remember and places.output.is_dir():
        _note(notes, fresh)
    return {key: fresh[key] if key in fresh else known[key] for key in arguments}


def digest_folder(folder: Path, patterns: Iterable[str], places: Places) -> str:
    """One digest of the files whose names match; names within the folder count, the folder's place does not."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    names = [path.relative_to(folder).as_posix() for path in paths]
    return combine(dict(zip(names, digest_files(paths, places), strict=True)))


def _key(path: Path) -> str:
    """What changes with a file's content; "" where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return ""
    known = (facts.st_size, facts.st_mtime_ns, facts.st_ino, facts.st_ctime_ns)
    return "|".join([str(path.resolve()), *map(str, known)])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _known(notes: Path) -> dict[str, str]:
    known: dict[str, str] = {}
    try:
        lines = notes.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return known
    for line in lines:
        try:
            key, digest = json.loads(line)
        except (ValueError, TypeError):
            continue
        if isinstance(key, str) and isinstance(digest, str) and len(digest) == 32:
            known[key] = digest
    return known


def _note(notes: Path, fresh: Mapping[str, str]) -> None:
    notes.parent.mkdir(parents=True, exist_ok=True)
    # a leading newline ends a line that another writer may have left torn
    text = "\n" + "".join(json.dumps([key, digest]) + "\n" for key, digest in fresh.items())
    with notes.open("a", encoding="utf-8") as file:
        file.write(text)
