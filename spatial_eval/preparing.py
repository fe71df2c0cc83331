"""A split of the hub into a folder that is read without network: its rows as JSON lines, its images by content."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from . import repositories
from .checksums import Checksums, sha256
from .errors import DataError
from .hub import Hub, prepared
from .store import refusals, replace

ENDINGS = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"RIFF": ".webp",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
}


def split(dataset: Hub, data: Path, checksums: Checksums) -> None:
    """After this call `hub.prepared(dataset, data)` is whole; the rest of a preparation that was cut off is replaced.

    Every column is kept, so that another choice of `columns` or `where` needs nothing new.

    Raises DataError, StoreError.
    """
    folder = prepared(dataset, data)
    if _whole(folder):
        return
    repository = repositories.look(dataset.repo, dataset.revision, data / "cache" / "downloads")
    with repositories.split(repository, dataset.config, dataset.split, checksums) as read:
        lines = [json.dumps({key: _plain(value, folder) for key, value in row.items()}) for row in read([])]
    if not lines:
        raise DataError(f"{dataset.repo} has no row in split {dataset.split}")
    text = "".join(f"{line}\n" for line in lines).encode()
    replace(folder / "rows.jsonl", text)
    origin = {
        "repo": dataset.repo,
        "config": dataset.config,
        "split": dataset.split,
        "revision": dataset.revision,
        "commit": repository.commit,
        "rows": len(lines),
        "sha256": hashlib.sha256(text).hexdigest(),
    }
    replace(folder / "prepared.json", json.dumps(origin, indent=2) + "\n")


def _whole(folder: Path) -> bool:
    """Whether it was prepared to the end and nothing in it was damaged since; removes a damaged one."""
    try:
        origin = json.loads((folder / "prepared.json").read_text("utf8"))
        good = sha256(folder / "rows.jsonl") == origin["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        good = False
    if good and all(path.stem == sha256(path) for path in (folder / "images").glob("*")):
        return _complete(folder)
    with refusals(folder):
        shutil.rmtree(folder, ignore_errors=True)
    return False


def _complete(folder: Path) -> bool:
    names: set[str] = set()

    def find(value: Any) -> None:
        if isinstance(value, dict) and isinstance(value.get("image"), str) and len(value) == 1:
            names.add(value["image"])
        elif isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                find(inner)

    for line in (folder / "rows.jsonl").read_text("utf8").splitlines():
        find(json.loads(line))
    return all((folder / "images" / name).is_file() for name in names)


def _plain(value: Any, folder: Path) -> Any:
    """A value as JSON; an image becomes a file, once for each content."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        content = value["bytes"] or Path(value["path"]).read_bytes()
        ending = next((ending for start, ending in ENDINGS.items() if content.startswith(start)), ".img")
        path = folder / "images" / f"{hashlib.sha256(content).hexdigest()}{ending}"
        if not path.is_file():
            replace(path, content)
        return {"image": path.name}
    if isinstance(value, dict):
        return {key: _plain(inner, folder) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, folder) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
