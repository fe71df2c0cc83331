"""List the sweeps of an output folder, and write what a paper can say about one: the commands list and cite."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spatial_eval.cli.arguments import OUTPUT_DIR, SWEEP, Commands
from spatial_eval.core.errors import DataError
from spatial_eval.core.files import is_regular_file
from spatial_eval.core.paths import OutputPaths, SweepPaths
from spatial_eval.core.sweep_names import read_name
from spatial_eval.core.terminal import print_output

LISTED_COLUMNS = (
    *("name", "id", "when", "cells", "complete", "gpu_hours"),
    *("vs_base", "vs_base_low", "vs_base_high", "dataset", "model", "method", "settings"),
)
NOTE = "largest vs base: of all cells, on the very questions it is the largest on; `results SWEEP` names the best cell"


def add_sweeps(commands: Commands) -> None:
    """Add this module's commands to the command line's parser."""
    listed = commands.add_parser("list", parents=[OUTPUT_DIR])
    listed.add_argument(
        "--format", choices=["table", "md", "tex", "csv", "json"], default="table", help="default: table"
    )
    listed.set_defaults(run=print_sweeps)
    cite = commands.add_parser("cite", parents=[SWEEP, OUTPUT_DIR])
    cite.set_defaults(run=print_citation)


def print_sweeps(parsed: argparse.Namespace) -> int:
    """Print one line per sweep, the newest first."""
    from spatial_eval.report import tables as report_tables

    rows = [describe_listed(folder) for folder in list_folders(parsed.output_dir)]
    if not rows and parsed.format == "table":
        text = f"no sweep under {parsed.output_dir}: run one, or give --output-dir"
    elif parsed.format in report_tables.SHEET_FORMATS:
        header = ("name", "id", "when", "cells", "complete", "GPU h", "largest vs base")
        lines = [_list_cells(row) for row in rows]
        notes = [NOTE] if rows else []
        text = report_tables.SHEET_FORMATS[parsed.format](report_tables.Sheet("", header, lines, left=3, notes=notes))
    else:
        text = report_tables.ROW_FORMATS[parsed.format](rows)
    print_output(text)
    return 0


def print_citation(parsed: argparse.Namespace) -> int:
    """Print a methods paragraph and BibTeX."""
    from spatial_eval.analysis.sweep_data import find_sweep, read_files, translate_damage
    from spatial_eval.report.citation import cite_sweep

    folder = find_sweep(parsed.output_dir, parsed.sweep)
    files = read_files(folder)
    with translate_damage(folder):
        text = cite_sweep(files)
    print_output(text)
    return 0


def list_folders(output: Path) -> list[Path]:
    """List the folders of sweeps under an output folder that were run or launched, the newest first."""
    moments: dict[Path, float] = {}
    for folder in OutputPaths(output).sweeps.glob("*/"):
        paths = SweepPaths(folder)
        written = [path.stat().st_mtime for path in (paths.results, paths.request) if is_regular_file(path)]
        moments |= {folder: max(written)} if written else {}
    return sorted(moments, key=lambda folder: -moments[folder])


def describe_listed(folder: Path) -> dict[str, Any]:
    """Return a sweep's line by LISTED_COLUMNS; a value that its files do not hold is None."""
    from spatial_eval.analysis.sweep_data import parse_table_rows, read_files, translate_damage
    from spatial_eval.report.citation import gpu_hours

    paths = SweepPaths(folder)
    row: dict[str, Any] = dict.fromkeys(LISTED_COLUMNS) | {
        "name": read_name(folder),
        "id": folder.name,
        "complete": "no",
    }
    written = paths.results if is_regular_file(paths.results) else paths.request
    row["when"] = time.strftime("%Y-%m-%d %H:%M", time.localtime(written.stat().st_mtime))
    try:
        files = read_files(folder, ("passes.csv", "results.csv"))
        with translate_damage(folder):
            cells, hours = (
                parse_table_rows(files.tables["results.csv"]),
                gpu_hours(parse_table_rows(files.tables["passes.csv"])),
            )
            found = {"cells": len(cells), "complete": "yes" if files.about.get("complete") else "no"}
            return row | found | {"gpu_hours": hours} | _describe_best(cells)
    except DataError:
        return row | {"complete": "not written"}


def _describe_best(cells: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return what the cell with the largest gain on base says of itself; nothing where no cell has one."""
    gained = [cell for cell in cells if cell.get("vs_base")]
    if not gained:
        return {}
    best = max(gained, key=lambda cell: float(cell["vs_base"]))
    bounds = {name: float(best[name]) for name in ("vs_base", "vs_base_low", "vs_base_high") if best.get(name)}
    return bounds | {name: best[name] for name in ("dataset", "model", "method")} | {"settings": _spell_settings(best)}


def _list_cells(row: Mapping[str, Any]) -> list[str]:
    gain = ""
    if row["vs_base"] is not None:
        where = f"{row['method']} {row['settings']}".strip()
        bounds = "" if row["vs_base_low"] is None else f" ({row['vs_base_low']:+.1f} to {row['vs_base_high']:+.1f})"
        gain = f"{row['vs_base']:+.1f}{bounds} {where}, {row['dataset']}"
    hours = "" if not row["gpu_hours"] else f"{row['gpu_hours']:.2g}"
    return [row["name"], row["id"], row["when"], f"{row['cells'] or 0:,}", row["complete"], hours, gain]


def _spell_settings(cell: Mapping[str, str]) -> str:
    from spatial_eval.core.columns import SHORT_NAMES

    settings = [f"{short}={float(cell[name]):g}" for name, short in SHORT_NAMES.items() if cell.get(name)]
    return " ".join([*settings, *filter(None, [cell.get("settings")])])
