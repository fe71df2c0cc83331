"""export: a sweep's answers as one file with a data card, to be shared without weights, images or paths."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from . import folders
from .card import LABELS, QUESTION, READERS, card
from .errors import ConfigError, DataError, StoreError
from .folders import SweepFiles, read_files
from .origins import ARM, SAID
from .store import StoredRecord, read_lines, replace
from .types import Arm, Generation

DEFAULTS = {f.name: f.default for f in fields(Generation) if f.name in SAID}
COLUMNS = (*LABELS, *QUESTION, *ARM, *SAID)


@dataclass(frozen=True, slots=True)
class Export:
    """What goes out. `trunks`: by the name of its folder in the store, labels, counts and identity."""

    rows: Sequence[Mapping[str, Any]]
    trunks: Mapping[str, Mapping[str, Any]]
    versions: Sequence[Mapping[str, str]]
    cells: Sequence[Mapping[str, str]]


def gather(output: Path, name: str | None) -> Export:
    """A sweep's answers, or a trunk's in all the sweeps that used it; default: the latest sweep. Raises ConfigError."""
    root = output / "generations"
    trunk = Path(name).name if name and (root / Path(name).name / "trunk.json").is_file() else None
    if trunk is None:
        sweeps, names = [read_files(folders.find(output, name))], None
    else:
        sweeps, names = _users(output, trunk)
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    trunks: dict[str, dict[str, Any]] = {}
    versions: list[dict[str, str]] = []
    cells: list[dict[str, str]] = []
    errors: set[tuple[str, str, str, str]] = set()
    for sweep in sweeps:
        passes = [row for row in _rows(sweep.tables["passes.csv"]) if names is None or row["generations"] in names]
        labels = {_labels(row): row["generations"] for row in passes}
        for row in passes:
            about = trunks.setdefault(row["generations"], dict(zip(LABELS, _labels(row), strict=True)))
            about.setdefault("identity", _identity(_folders(root, row["generations"])))
            kept = {n: row[n] for n in ("dataset", "model", "spatial_eval", "torch", "transformers", "device")}
            versions += [kept] if kept not in versions else []
        errors |= {(r["dataset"], r["model"], r["sample_id"], r["arm"]) for r in _rows(sweep.tables["failures.csv"])}
        cells += [] if trunk else _rows(sweep.tables["results.csv"])
        stored = {name: _stored(_folders(root, name)) for name in labels.values()}
        for row in _samples(sweep):
            place = labels.get(_labels(row))
            if place is not None:
                values: dict[str, Any] = {name: row[name] for name in ARM if name in row}
                arm = Arm(**values)
                said = _same(stored[place].get((row["sample_id"], arm), []), row, place)
                head = {name: row[name] for name in (*LABELS, *QUESTION)}
                rows.setdefault((place, row["row"], arm), {**head, **asdict(arm), **said})
    ordered = [rows[where] for where in sorted(rows)]
    for place, about in trunks.items():
        mine = [(row["sample_id"], where[2]) for where, row in rows.items() if where[0] == place]
        about["questions"], about["answers"] = len({sample_id for sample_id, _ in mine}), len(mine)
        about["arms"] = [arm.label for arm in sorted({arm for _, arm in mine})]
        answered = {(sample_id, arm.label) for sample_id, arm in mine}
        failed = {where[2:] for where in errors if where[:2] == (about["dataset"], about["model"])}
        about["failed"] = len(failed - answered)
    return Export(ordered, trunks, versions, cells)


def _labels(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["dataset"], row["model"], int(row["max_new_tokens"])


def _users(output: Path, trunk: str) -> tuple[list[SweepFiles], set[str]]:
    """The sweeps that used a trunk's folder, the latest first, and what their passes.csv calls it.

    That is its own name; else those that another model.name of the same weights gave it, under the same key.
    """
    used: dict[Path, set[str]] = {}
    for path in sorted((output / "sweeps").glob("*/results.csv"), key=lambda path: -path.stat().st_mtime_ns):
        with contextlib.suppress(OSError, ValueError, KeyError):
            used[path.parent] = {row["generations"] for row in _rows((path.parent / "passes.csv").read_bytes())}
    names = {name for found in used.values() for name in found if _key(name) == _key(trunk)}
    names = names & {trunk} or names
    if not names:
        raise ConfigError(f"no sweep under {output} used {trunk}: run launch.py over it first")
    return [read_files(folder) for folder, found in used.items() if found & names], names


def _rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def _samples(sweep: SweepFiles) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = folders.read_parquet(sweep.tables["samples.parquet"]).to_pylist()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"samples.parquet cannot be read: {reason}; run the sweep's command again") from None
    return rows


def _key(place: str) -> str:
    """The key in the name of a trunk's folder."""
    return place.rpartition("--")[2]


def _folders(root: Path, place: str) -> list[Path]:
    """Where the answers of a trunk lie: under the name of passes.csv, and what else the same weights were called."""
    return sorted(root.glob(f"*--{_key(place)}"))


def _identity(places: Sequence[Path]) -> Any:
    for folder in places:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((folder / "trunk.json").read_text("utf8"))
    raise StoreError("no trunk.json of its answers can be read: run the sweep's command again, it writes it")


def _stored(folders: Sequence[Path]) -> dict[tuple[str, Arm], list[Generation]]:
    """Every answer of a trunk's folders, those to earlier versions of a question too."""
    found: dict[tuple[str, Arm], list[Generation]] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("*.jsonl"))):
        for _, line in read_lines(path):
            if isinstance(line, StoredRecord) and isinstance(line.record, Generation):
                found.setdefault((line.record.sample_id, line.record.arm), []).append(line.record)
    return found


def _same(stored: Sequence[Generation], row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The stored answer that the sweep's table shows, without what is at its default. Raises StoreError."""
    for one in stored:
        if one.text == row["text"] and one.confidence == row["confidence"]:
            return {name: getattr(one, name) for name in SAID if getattr(one, name) != DEFAULTS[name]}
    raise StoreError(
        f"generations/{place} no longer holds the sweep's answer to question {row['sample_id']}: "
        "run the sweep's command again, then export"
    )


def write(folder: Path, found: Export, form: str) -> Path:
    """After this call the folder holds answers, trunks.json and card. Raises ConfigError where it is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not empty: nothing was written; name another --out")
    path = folder / f"generations.{form}"
    if form == "jsonl":
        replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows))
    else:
        replace(path, _parquet(found.rows))
    replace(folder / "trunks.json", json.dumps(found.trunks, indent=1, sort_keys=True) + "\n")
    replace(folder / "README.md", card(path.name, len(found.rows), found.trunks, found.versions, found.cells))
    return path


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"tokens": pa.list_(pa.int64())}
    types |= dict.fromkeys(("weight", "alpha", "cutoff", "confidence", "entropy", "margin", "logit"), pa.float64())
    types |= dict.fromkeys(("row", "max_new_tokens", "noise", "batch"), pa.int64())
    plain = [{**row, "option_probs": json.dumps(row["option_probs"])} if "option_probs" in row else row for row in rows]
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(plain), schema=schema), out)
    return bytes(out.getvalue())


def add(commands: Any) -> None:
    """The command, for the command line's parser."""
    said = "a sweep's answers as one file with a data card, to be shared without weights"
    parser = commands.add_parser("export", help=said, description=f"Write {said}.")
    parser.add_argument(
        "what", nargs="?", metavar="SWEEP|TRUNK", help="a sweep, or a folder of the store (default: the latest sweep)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to; must be empty or absent")
    parser.add_argument("--format", choices=list(READERS), default="jsonl", help="default: jsonl")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="as launch.py's (default: outputs)")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Prints where the answers are."""
    found = gather(parsed.output_dir, parsed.what)
    path = write(parsed.out, found, parsed.format)
    failed = sum(one["failed"] for one in found.trunks.values())
    sys.stdout.write(f"{len(found.rows):,} answers of {len(found.trunks)} trunks, {failed:,} failed\n{path}\n")
    return 0
