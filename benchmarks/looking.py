"""CPU seconds of looking at a finished sweep: results, report.html and the pandas API.

python benchmarks/looking.py outputs/sweeps/ID
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import spatial_eval
from spatial_eval.analysis import selection
from spatial_eval.report import page, tables


def main(folder: Path) -> None:
    """Prints one line a part, and the sum."""
    total = 0.0
    for name, part in PARTS.items():
        start = time.process_time()
        part(folder)
        spent = time.process_time() - start
        total += spent
        print(f"{name:<8} {spent:6.2f} s CPU")
    cells = len(spatial_eval.load(folder).cells)
    size = (folder / "report.html").stat().st_size
    print(f"{'sum':<8} {total:6.2f} s CPU, {cells:,} cells, report.html {size / 1000:.0f} kB")


def _results(folder: Path) -> None:
    files = spatial_eval.load(folder).files
    tables.paper_sheets(files, selection.picks(files))


def _api(folder: Path) -> None:
    sweep = spatial_eval.load(folder)
    sweep.confidence(), sweep.oracle(), sweep.best()
    for cell in range(len(sweep.cells)):
        sweep.files.outcome(cell)


PARTS = {"results": _results, "report": page.write_report, "api": _api}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
