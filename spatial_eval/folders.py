"""Where finished sweeps lie."""

from __future__ import annotations

from pathlib import Path

from .errors import ConfigError, unknown


def find(output: Path, name: str | None, mark: str = "results.csv") -> Path:
    """The folder of a sweep that holds `mark`: by path, by the beginning of its id, else the latest.

    Raises ConfigError where there is none, or several begin so.
    """
    if name and (Path(name) / mark).is_file():
        return Path(name).absolute()
    made = sorted((output / "sweeps").glob(f"*/{mark}"), key=lambda path: path.stat().st_mtime_ns)
    folders = [output.absolute() / path.relative_to(output).parents[mark.count("/")] for path in made]
    if not folders:
        raise ConfigError(f"no sweep under {output}: run launch.py first, or name its output_dir with --output-dir")
    if not name:
        return folders[-1]
    found = [folder for folder in folders if folder.name.startswith(name)]
    if len(found) != 1:
        raise ConfigError(unknown("sweep", name, [folder.name for folder in folders]))
    return found[0]
