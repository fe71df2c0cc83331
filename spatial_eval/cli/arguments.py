"""Arguments that several commands share, a parent parser each (argparse's `parents=`)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def read_folder(text: str) -> Path:
    """Read an argument as an absolute path."""
    return Path(text).expanduser().absolute()


def _make_parent(*names: str, **options: Any) -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(*names, **options)
    return parent


OUTPUT_DIR = _make_parent(
    "--output-dir", type=Path, default=Path("outputs"), help="as launch.py's output_dir (default: outputs)"
)
DATA_DIR = _make_parent(
    "--data-dir",
    type=read_folder,
    default=os.environ.get("SPATIAL_EVAL_DATA") or "data",
    help="as launch.py's data_dir (default: $SPATIAL_EVAL_DATA, else data)",
)
SWEEP = _make_parent("sweep", nargs="?", help="id, the beginning of one, or folder of a sweep (default: the latest)")
CONFIG_DIR = _make_parent(
    "-cd", "--config-dir", type=read_folder, metavar="DIR", help="your own options beside ours, as for launch.py"
)
