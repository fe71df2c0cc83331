"""Evaluate attention-scaled vision-language models on spatial questions: one cell, or a grid with -m.

    python launch.py method=scaling_vis weight=0.5
    python launch.py -m method=adapt_vis weight1=0.5,0.8 threshold=0.5,0.7
    python launch.py sweep=NAME

`spatial-eval run` takes the same arguments, wherever the package is installed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from spatial_eval.cli.arguments import CONFIG_DIR, run_reporting
from spatial_eval.config.defaults import find_folder
from spatial_eval.core import terminal
from spatial_eval.core.errors import COMPLETE, USAGE, ConfigError
from spatial_eval.core.paths import conf_folder
from spatial_eval.core.version import VERSION


class RunParser(argparse.ArgumentParser):
    """Parse the arguments of a run; an error is one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def launch(arguments: Sequence[str]) -> int:
    """Run what a command line asks for; returns the exit code: 0 complete, 1 user error, 2 usage, 3 incomplete."""
    with terminal.guarded_streams(), terminal.interruptible():
        try:
            parsed = _parse(arguments)
        except ConfigError as error:
            terminal.write_error(f"error: {error}")
            return USAGE
        interrupted = "interrupted: what was computed is stored; the same command goes on from there"
        return run_reporting(lambda: _run(parsed), interrupted)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the arguments of a run. Raises ConfigError on wrong usage."""
    parser = RunParser("launch.py", add_help=False, allow_abbrev=False, parents=[CONFIG_DIR])
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-r", "--run", action="store_true")  # Hydra's word for what is done anyway
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    parser.add_argument("-p", "--package", default="")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("-sc", "--shell-completion", action="store_true")
    parser.add_argument("-cn", "-cp", "--config-name", "--config-path", dest="elsewhere")
    parser.add_argument("overrides", nargs="*", metavar="sweep=NAME | GROUP=OPTION | KEY=VALUE")
    parsed, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown or parsed.elsewhere is not None:
        from spatial_eval.config.habits import reject_options

        reject_options(unknown or ["--config-name"], parsed.overrides)
    if (parsed.package or parsed.resolve) and not parsed.cfg:
        raise ConfigError("--package and --resolve go with --cfg job")
    return parsed


def _run(parsed: argparse.Namespace) -> int:
    own = find_folder(parsed.config_dir)
    if parsed.version:
        sys.stdout.write(f"spatial-eval {VERSION}\n")
        return COMPLETE
    if parsed.help or parsed.shell_completion:
        return _ask_hydra(["--help"] if parsed.help else ["-sc", *parsed.overrides], own)
    if parsed.cfg:
        from spatial_eval.config.compose import Composer
        from spatial_eval.config.grid import format_config

        config = format_config(Composer(own), parsed.overrides, package=parsed.package, resolve=parsed.resolve)
        sys.stdout.write(config)
        return COMPLETE
    from spatial_eval.sweep import run as sweep_run

    terminal.start_logging()
    return sweep_run.launch_sweep(parsed.overrides, multirun=parsed.multirun, own=own)


def _ask_hydra(arguments: Sequence[str], own: Path | None) -> int:
    """Let Hydra answer --help and complete words; names of sweeps, which Hydra does not know, are completed here."""
    word = (os.environ.get("COMP_LINE", " ").split(" ") or [""])[-1]
    query = next((text.removeprefix("query=") for text in arguments if text.startswith("query=")), "")
    if query and len(word) > 1 and (word.startswith("sweep=") or "sweep=".startswith(word)):
        from spatial_eval.config.compose import Composer

        names = [f"sweep={name}" for name in sorted(Composer(own).sweep_files())]
        sys.stdout.write(
            ("\n" if query == "fish" else " ").join(name for name in names if name.startswith(word)) + "\n"
        )
        return COMPLETE
    import hydra  # 0.2 s, and nothing else here needs it

    from spatial_eval.core.requirements import choose_hydra_base

    sys.argv[1:] = [*arguments, *(["--config-dir", str(own)] if own else [])]
    main = hydra.main(**choose_hydra_base(), config_path=str(conf_folder()), config_name="config")
    main(lambda _: None)()
    return COMPLETE
