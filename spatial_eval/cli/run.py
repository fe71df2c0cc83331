"""Evaluate attention-scaled vision-language models on spatial questions: one cell, or a grid with -m.

    python launch.py method=scaling_vis weight=0.5
    python launch.py -m method=adapt_vis weight1=0.5,0.8 threshold=0.2,0.3
    python launch.py sweep=NAME

`spatial-eval run` takes the same arguments, wherever the package is installed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from spatial_eval.core.errors import SpatialEvalError
from spatial_eval.core.paths import conf_folder

# Hydra answers these itself, in its own way; they run nothing.
QUESTIONS = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")


def launch(arguments: Sequence[str]) -> int:
    """Run what a command line asks for; returns the exit code: 0 complete, 1 user error, 2 usage, 3 incomplete."""
    if any(argument.split("=")[0] in QUESTIONS for argument in arguments):
        import hydra  # 0.2 s, and nothing else here needs it

        sys.argv[1:] = arguments
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(lambda _: None)()
        return 0
    parser = argparse.ArgumentParser("launch.py", add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir", type=lambda text: Path(text).expanduser().absolute())
    parser.add_argument("overrides", nargs="*", metavar="sweep=NAME | GROUP=OPTION | KEY=VALUE")
    parsed = parser.parse_intermixed_args(arguments)

    from spatial_eval.sweep import run as sweep_run

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        return sweep_run.launch_sweep(parsed.overrides, multirun=parsed.multirun, own=parsed.config_dir)
    except SpatialEvalError as error:
        sys.stderr.write(f"error: {error}\n")
        return sweep_run.USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: what was computed is stored; the same command goes on from there\n")
        return sweep_run.INCOMPLETE
