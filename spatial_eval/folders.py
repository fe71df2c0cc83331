"""Where finished sweeps lie, and their tables as one run wrote them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, DataError, unknown

if TYPE_CHECKING:  # pyarrow costs start-up time
    import pyarrow as pa

TABLES = ("by_relation.csv", "passes.csv", "failures.csv", "samples.parquet", "results.csv")


@dataclass(frozen=True, slots=True)
class SweepFiles:
    """sweep.json, and the bytes of TABLES by name."""

    about: Mapping[str, Any]
    tables: Mapping[str, bytes]


def digest(content: bytes) -> str:
    """Return what sweep.json holds of a table: 32 hex digits of BLAKE2b."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_files(folder: Path) -> SweepFiles:
    """Read a sweep's folder whole, so that no two of its files are of different runs.

    Files of versions before 0.2, whose sweep.json has no digests, are read as they are.

    Raises DataError naming the file that is absent, or is not the one that sweep.json describes.
    """
    way_out = "run its launch.py command again"
    try:
        about = json.loads((folder / "sweep.json").read_text("utf8"))
        tables = {name: (folder / name).read_bytes() for name in TABLES}
        digests = about.get("digests")
        wrong = [] if digests is None else [name for name in TABLES if digests[name] != digest(tables[name])]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{folder} is not a whole sweep ({error}): {way_out}") from None
    if wrong:
        raise DataError(
            f"{folder / wrong[0]} is not the file that sweep.json describes: it was changed, or a run was cut off "
            f"while it wrote the folder, or is writing it now; {way_out}"
        )
    return SweepFiles(about, tables)


def read_parquet(content: bytes) -> pa.Table:
    """Read a parquet file on this thread alone.

    pyarrow's own threads abort a process that ends soon after they were started (exit code 134 instead of 1).
    Raises OSError or ValueError.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with parquet.ParquetFile(pa.BufferReader(content)) as file:
        return file.read(use_threads=False)


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
