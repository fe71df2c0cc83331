"""Evaluate attention-scaled vision-language models on spatial questions: one cell, or a grid with -m.

python launch.py method=scaling_vis weight=0.5
python launch.py -m method=adapt_vis weight1=0.5,0.8 threshold=0.2,0.3
python launch.py sweep=NAME
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import hydra

HOME = Path(__file__).resolve().parent
# Hydra answers these itself; they need no grid.
QUESTIONS = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")
WITH_VALUE = ("-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir", "-p", "--package")


def main() -> None:
    """Read sys.argv, run, exit with sweep.COMPLETE, USER_ERROR, USAGE or INCOMPLETE."""
    given = sys.argv[1:]
    overrides: list[str] = []
    multirun = any(argument in ("-m", "--multirun") for argument in given)
    if not any(argument.split("=")[0] in QUESTIONS for argument in given):
        # One cell is a grid of one: everything goes through the sweeper. Hydra would compose the overrides
        # once more and refuse a wrong one in many lines, so it sees its own arguments only.
        flags, overrides = split(given)
        sys.argv[1:] = ["-m", *flags]
    own = config_dir(given)
    if own is not None and not own.is_dir():
        sys.exit(f"error: --config-dir {own}: there is no such folder")

    @hydra.main(version_base="1.3", config_path="conf", config_name="config")
    def run(front: Any) -> None:
        front.arguments = overrides
        sys.exit(_run(front, multirun=multirun, own=own))

    run()


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(what is Hydra's: flags with their values and hydra.*; what is ours: overrides)."""
    flags, overrides = [], []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before in WITH_VALUE or argument.startswith(("-", "hydra.", "hydra/", "+hydra.")):
            flags.append(argument)
        else:
            overrides.append(argument)
    return [flag for flag in flags if flag not in ("-m", "--multirun")], overrides


def config_dir(arguments: list[str]) -> Path | None:
    """The user's own folder of options, beside conf/."""
    for argument, after in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if flag in ("-cd", "--config-dir") and (equals or after):
            return Path(value if equals else after).expanduser().absolute()
    return None


def _run(front: Any, *, multirun: bool, own: Path | None) -> int:
    from spatial_eval import sweep
    from spatial_eval.errors import SpatialEvalError

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        return sweep.launch(front, home=HOME, multirun=multirun, own=own)
    except SpatialEvalError as error:
        sys.stderr.write(f"error: {error}\n")
        return sweep.USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: what was computed is stored; the same command goes on from there\n")
        return sweep.INCOMPLETE


if __name__ == "__main__":
    main()
