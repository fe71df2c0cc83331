"""Where finished sweeps lie."""

from __future__ import annotations

from pathlib import Path

from .errors import ConfigError, unknown


def find(output: Path, name: str | None) -> Path:
    """The folder of a sweep: by id, by the beginning of one, by path; the latest without a name. Raises ConfigError."""
    if name and (Path(name) / "results.csv").is_file():
        return Path(name)
    made = sorted((output / "sweeps").glob("*/results.csv"), key=lambda path: path.stat().st_mtime_ns)
    folders = [path.parent for path in made]
    if not folders:
        raise ConfigError(f"no sweep under {output}: run launch.py first, or name its output_dir with --output-dir")
    if not name:
        return folders[-1]
    found = [folder for folder in folders if folder.name.startswith(name)]
    if len(found) != 1:
        raise ConfigError(unknown("sweep", name, [folder.name for folder in folders]))
    return found[0]
