"""Share between commands: arguments, one parent parser each (`parents=`), their defaults, and how an error ends."""

from __future__ import annotations

import argparse
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spatial_eval.config.defaults import default_folder, find_folder
from spatial_eval.core import terminal
from spatial_eval.core.errors import INCOMPLETE, USER_ERROR, SpatialEvalError
from spatial_eval.core.files import translate_os_errors

# Adds a command to the command line, by its name; its keywords are those of argparse's add_parser.
Commands = Mapping[str, Callable[..., argparse.ArgumentParser]]


def read_folder(text: str) -> Path:
    """Read an argument as an absolute path."""
    return Path(text).expanduser().absolute()


def make_parent(*names: str, **options: Any) -> argparse.ArgumentParser:
    """Return a parser with one argument, for `parents=`."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(*names, **options)
    return parent


OUTPUT_DIR = make_parent("--output-dir", type=Path, help="as launch.py's output_dir (default: outputs)")
DATA_DIR = make_parent(
    "--data-dir", type=read_folder, help="as launch.py's data_dir (default: $SPATIAL_EVAL_DATA, else data)"
)
SWEEP = make_parent(
    "sweep", nargs="?", help="name, beginning of an id, or folder of a sweep, or latest (default: latest)"
)
CONFIG_DIR = make_parent(
    "-cd",
    "--config-dir",
    type=read_folder,
    metavar="DIR",
    help="your own options beside ours, as for launch.py (default: $SPATIAL_EVAL_CONFIG_DIR)",
)


def fill_defaults(parsed: argparse.Namespace) -> None:
    """Fill in the folders that the command line omits: from config.yaml of --config-dir, else launch.py's defaults.

    Raises:
        ConfigError: config.yaml is wrong.
    """
    given = vars(parsed)
    own = find_folder(given.get("config_dir"))
    if "config_dir" in given:
        parsed.config_dir = own
    if "output_dir" in given and parsed.output_dir is None:
        parsed.output_dir = Path(default_folder("output_dir", own) or "outputs").expanduser()
    if "data_dir" in given and parsed.data_dir is None:
        named = os.environ.get("SPATIAL_EVAL_DATA") or default_folder("data_dir", own) or "data"
        parsed.data_dir = read_folder(named)


def run_reporting(command: Callable[[], int], interrupted: str) -> int:
    """Run a command and return its exit code; what the user must fix, or an interruption, is one line on stderr.

    With Hydra's HYDRA_FULL_ERROR=1 the traceback stands before that line.
    """
    try:
        with translate_os_errors():
            return command()
    except SpatialEvalError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            for line in traceback.format_exc().splitlines():
                terminal.write_error(line)
        terminal.write_error(f"error: {error}")
        return USER_ERROR
    except KeyboardInterrupt:
        terminal.write_error(interrupted)
        return INCOMPLETE
