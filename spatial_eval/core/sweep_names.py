"""Name sweeps: a name is one line of text in the sweep's folder, part of no key and no id.

Of several sweeps with one name, the name means the last one run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from spatial_eval.core.errors import ConfigError, describe_unknown
from spatial_eval.core.files import find_entries, read_regular_file, write_atomic
from spatial_eval.core.paths import SweepPaths

LATEST = "latest"
EXPECTED = "1 to 40 of a-z, 0-9, _ and -, not `latest`, and not 6 or more hexadecimal digits alone"
NEWEST = 5  # sweeps that an error lists


def is_name(text: str) -> bool:
    """Return whether a text can name a sweep: the beginning of an id cannot."""
    return bool(re.fullmatch(r"[a-z0-9_-]{1,40}", text)) and text != LATEST and not re.fullmatch(r"[0-9a-f]{6,}", text)


def derive_name(stem: str) -> str | None:
    """Return the name that a sweep file's stem gives; None where it gives none."""
    name = re.sub(r"[^a-z0-9_-]+", "-", stem.lower())[:40]
    return name if is_name(name) else None


def read_name(folder: Path) -> str:
    """Return the name in a sweep's folder; "" where there is none."""
    try:
        name = read_regular_file(SweepPaths(folder).name, most=100).decode("utf8", "replace").strip()
    except (OSError, ValueError):
        return ""
    return name if is_name(name) else ""


def write_name(folder: Path, name: str) -> Sequence[str]:
    """Name a sweep; return the ids of the other sweeps beside it that had the name. Raises StoreError."""
    write_atomic(SweepPaths(folder).name, f"{name}\n")
    others = (path.parent for path in find_entries(folder.parent, "*/name.txt", required=False))
    return [other.name for other in others if other.name != folder.name and read_name(other) == name]


def label_sweep(folder: Path) -> str:
    """Return a sweep's label: `demo (0a1b2c3d4e5f)`, or its id alone."""
    name = read_name(folder)
    return f"{name} ({folder.name})" if name else folder.name


def match_sweep(folders: Sequence[Path], text: str) -> list[Path]:
    """Return the folders that a name or the beginning of an id means, the newest last.

    Args:
        folders: the sweeps of an output folder, the oldest first.

    Raises:
        ConfigError: no sweep matches, or several ids begin so.
    """
    named = [folder for folder in folders if read_name(folder) == text]
    if named:
        return sorted(named, key=lambda folder: SweepPaths(folder).name.stat().st_mtime_ns)
    begun = [folder for folder in folders if folder.name.startswith(text)]
    if len(begun) == 1:
        return begun
    if begun:
        raise ConfigError(f"sweep {text!r} is the beginning of several ids: {_list_newest(begun)}")
    names = [*dict.fromkeys(filter(None, map(read_name, folders))), *(folder.name for folder in folders)]
    guess = describe_unknown("sweep", text, names).partition(" (valid")[0]
    raise ConfigError(f"{guess} (newest: {_list_newest(folders)}); all: python -m spatial_eval list")


def _list_newest(folders: Sequence[Path]) -> str:
    return ", ".join(map(label_sweep, reversed(folders[-NEWEST:])))
