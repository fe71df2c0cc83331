"""List the sweeps of an output folder, and write what a paper can say about one: the commands list and cite."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spatial_eval.analysis.sweep_data import find_sweep, list_sweeps, parse_table_rows, read_files, translate_damage
from spatial_eval.cli.arguments import OUTPUT_DIR, SWEEP, Commands
from spatial_eval.core.columns import SHORT_NAMES
from spatial_eval.core.errors import DataError
from spatial_eval.core.files import is_regular_file
from spatial_eval.core.paths import SweepPaths
from spatial_eval.core.sweep_names import read_name
from spatial_eval.core.terminal import print_output, terminal_width
from spatial_eval.report import sheets
from spatial_eval.report import tables as report_tables
from spatial_eval.report.citation import cite_sweep, gpu_hours

LISTED_COLUMNS = (
    *("name", "id", "when", "cells", "complete", "gpu_hours"),
    *("vs_base", "vs_base_low", "vs_base_high", "dataset", "model", "method", "settings"),
)
NOTE = "largest vs base: of all cells, on the very questions it is the largest on; `results SWEEP` names the best cell"


def add_sweeps(commands: Commands) -> None:
    """Add this module's commands to the command line's parser."""
    listed = commands["list"](parents=[OUTPUT_DIR])
    listed.add_argument(
        "--format", choices=["table", "md", "tex", "csv", "json"], default="table", help="default: table"
    )
    listed.set_defaults(run=print_sweeps)
    cite = commands["cite"](parents=[SWEEP, OUTPUT_DIR])
    cite.set_defaults(run=print_citation)


def print_sweeps(parsed: argparse.Namespace) -> None:
    """Print one line per sweep, the newest first."""
    rows = [describe_listed(folder) for folder in list_folders(parsed.output_dir)]
    if not rows and parsed.format == "table":
        text = f"no sweep under {parsed.output_dir}: run one, or give --output-dir"
    elif parsed.format in sheets.SHEET_FORMATS:
        header = ["name", "id", "when", "cells", "complete", "GPU h", "largest vs base"]
        lines = [_list_cells(row) for row in rows]
        if not any(row["gpu_hours"] for row in rows):
            header, lines = header[:-2] + header[-1:], [line[:-2] + line[-1:] for line in lines]
        notes = [NOTE] if rows else []
        sheet = sheets.Sheet("", header, lines, left=3, notes=notes)
        text = sheets.format_sheet(sheet, parsed.format, terminal_width())
    else:
        text = report_tables.ROW_FORMATS[parsed.format](rows)
    print_output(text)


def print_citation(parsed: argparse.Namespace) -> None:
    """Print a methods paragraph and BibTeX."""
    folder = find_sweep(parsed.output_dir, parsed.sweep)
    files = read_files(folder)
    with translate_damage(folder):
        text = cite_sweep(files)
    print_output(text)


def list_folders(output: Path) -> list[Path]:
    """List the folders of sweeps under an output folder that were run or launched, the newest first."""
    moments: dict[Path, float] = {}
    for mark in ("results.csv", "jobs/request.json"):
        for folder in list_sweeps(output, mark):
            moments[folder] = max(moments.get(folder, 0.0), (folder / mark).stat().st_mtime)
    return sorted(moments, key=lambda folder: -moments[folder])


def describe_listed(folder: Path) -> dict[str, Any]:
    """Return a sweep's line by LISTED_COLUMNS; a value that its files do not hold is None."""
    paths = SweepPaths(folder)
    written = paths.results if is_regular_file(paths.results) else paths.request
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(written.stat().st_mtime))
    row: dict[str, Any] = dict.fromkeys(LISTED_COLUMNS)
    row |= {"name": read_name(folder), "id": folder.name, "when": when}
    try:
        files = read_files(folder, ("passes.csv", "results.csv"))
        with translate_damage(folder):
            cells = parse_table_rows(files.tables["results.csv"])
            hours = gpu_hours(parse_table_rows(files.tables["passes.csv"]))
            complete = "yes" if files.about.get("complete") else "no"
            return row | {"cells": len(cells), "complete": complete, "gpu_hours": hours} | _describe_best(cells)
    except DataError:
        return row | {"complete": "not written"}


def _describe_best(cells: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return the gain and the settings of the cell with the largest gain on base; nothing where no cell has one."""
    gained = [cell for cell in cells if cell.get("vs_base")]
    if not gained:
        return {}
    best = max(gained, key=lambda cell: float(cell["vs_base"]))
    bounds = {name: float(best[name]) for name in ("vs_base", "vs_base_low", "vs_base_high") if best.get(name)}
    return bounds | {name: best[name] for name in ("dataset", "model", "method")} | {"settings": _format_settings(best)}


def _list_cells(row: Mapping[str, Any]) -> list[str]:
    gain = ""
    if row["vs_base"] is not None:
        cell = f"{row['method']} {row['settings']}".strip()
        bounds = "" if row["vs_base_low"] is None else f" ({row['vs_base_low']:+.1f} to {row['vs_base_high']:+.1f})"
        gain = f"{row['vs_base']:+.1f}{bounds} {cell}, {row['dataset']}"
    hours = "" if not row["gpu_hours"] else f"{row['gpu_hours']:.2g}"
    return [row["name"], row["id"], row["when"], f"{row['cells'] or 0:,}", row["complete"], hours, gain]


def _format_settings(cell: Mapping[str, str]) -> str:
    settings = [f"{short}={float(cell[name]):g}" for name, short in SHORT_NAMES.items() if cell.get(name)]
    return " ".join([*settings, cell.get("settings", "")]).rstrip()
