"""Define arguments that several commands share, one parent parser per argument (`parents=`), and their defaults."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spatial_eval.config.defaults import default_folder, find_folder


def read_folder(text: str) -> Path:
    """Read an argument as an absolute path."""
    return Path(text).expanduser().absolute()


def _make_parent(*names: str, **options: Any) -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(*names, **options)
    return parent


OUTPUT_DIR = _make_parent("--output-dir", type=Path, help="as launch.py's output_dir (default: outputs)")
DATA_DIR = _make_parent(
    "--data-dir", type=read_folder, help="as launch.py's data_dir (default: $SPATIAL_EVAL_DATA, else data)"
)
SWEEP = _make_parent(
    "sweep", nargs="?", help="name, beginning of an id, or folder of a sweep, or latest (default: latest)"
)
CONFIG_DIR = _make_parent(
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


class Commands:
    """Add commands to the command line's parser, each with its help text.

    Args:
        subparsers: of argparse. helps: help text by command.
    """

    def __init__(self, subparsers: Any, helps: Mapping[str, str]) -> None:
        self._subparsers, self._helps = subparsers, helps

    def add_parser(
        self, name: str, *, parents: Sequence[argparse.ArgumentParser] = (), description: str = ""
    ) -> argparse.ArgumentParser:
        """Add a command; `description` replaces the help text at the top of its own help."""
        text = self._helps[name]
        about = description or f"{text[0].upper()}{text[1:]}."
        added: argparse.ArgumentParser = self._subparsers.add_parser(
            name, parents=list(parents), help=text, description=about
        )
        return added
