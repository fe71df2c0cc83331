"""Run the command spatial-eval, or python -m spatial_eval: run a sweep, and read what it computed."""

from __future__ import annotations

import argparse
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NoReturn

from spatial_eval.cli.arguments import fill_defaults, run_reporting
from spatial_eval.cli.run import launch
from spatial_eval.core import terminal
from spatial_eval.core.errors import COMPLETE, USAGE, describe_unknown
from spatial_eval.core.version import VERSION

# The function that adds some commands -> their help texts. Its module is imported where one of them is used, so that
# --help and each command load no more than they need.
COMMANDS: Mapping[str, Mapping[str, str]] = {
    "spatial_eval.cli.sweeps:add_sweeps": {
        "list": "list the sweeps: names, ids, cells, GPU hours, largest difference to base",
        "cite": "write what to cite for a sweep: a methods paragraph and BibTeX",
    },
    "spatial_eval.cli.results:add_results": {
        "results": "print a sweep's tables",
        "compare": "compare two sweeps or two cells, question by question",
        "select": "choose cells on val and report them on test",
        "report": "write a sweep's report.html again",
        "publish": "show a sweep in Weights & Biases",
        "samples": "list samples with the answers of arms or of a cell",
    },
    "spatial_eval.cli.prepare:add_prepare": {
        "scenes": "write the rendered scenes as files",
        "prepare": "fetch data and models, adopt data you have, check it",
    },
    "spatial_eval.cli.answer:add_answer": {
        "answer": "answer another program's questions: JSON lines in and out",
    },
    "spatial_eval.cli.attention:add_attention": {
        "attention": "draw a sweep's captured attention (runs with capture=map or heads)",
        "heads": "rank attention heads on val and write the best as a set for method.heads (runs with capture=heads)",
    },
    "spatial_eval.cli.doctor:add_doctor": {
        "doctor": "check this installation for a model and a dataset, and print advice",
    },
    "spatial_eval.cli.store:add_store": {
        "store": "maintain stored generations: verify, size, rm",
    },
    "spatial_eval.cli.import_answers:add_import": {
        "import": "import answers into the store: recordings, exports, result files of the reference code, "
        "of LLaVA, lmms-eval, VLMEvalKit and Inspect",
    },
    "spatial_eval.cli.export_answers:add_export": {
        "export": "write a sweep's answers as one file with a data card, to be shared without weights",
    },
    "spatial_eval.cli.jobs:add_jobs": {
        "status": "show the progress of a sweep",
        "retry": "compute failed and missing answers, then write the tables",
        "cancel": "stop a sweep's jobs",
    },
}
# README.md holds the same five (tests/test_docs.py); all of them: docs/glossary.md.
GLOSSARY: Mapping[str, str] = {
    "base": "the unchanged model, the baseline of all methods",
    "arm": "one way to decode, with a weight on the attention to the image or a contrast",
    "method": "a rule that takes the answer of one arm, or of one of two arms by the confidence",
    "cell": "a method with its settings on a dataset and a model, one row of results.csv",
    "sweep": "all cells of one command; SWEEP is its name, the beginning of its id, or latest",
}


def run_command_line() -> None:
    """Run the command in sys.argv and exit."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code: 0 complete, 1 user error, 2 usage (argparse), 3 incomplete."""
    if arguments and arguments[0] == "run":  # its arguments are Hydra's, argparse would read -m as its own
        return launch(arguments[1:])
    with terminal.guarded_streams(), terminal.interruptible():
        if not arguments:
            build_parser().print_help(sys.stderr)
            return USAGE
        names = ["run", *(name for helps in COMMANDS.values() for name in helps)]
        if not arguments[0].startswith("-") and arguments[0] not in names:
            terminal.write_error(f"error: {describe_unknown('command', arguments[0], names)}")
            return USAGE
        parsed = build_parser(arguments[0]).parse_args(arguments)
        return run_reporting(lambda: _run_parsed(parsed), "interrupted")


def _run_parsed(parsed: argparse.Namespace) -> int:
    fill_defaults(parsed)
    return parsed.run(parsed) or COMPLETE


class Parser(argparse.ArgumentParser):
    """Parse arguments; error messages quote them without control characters."""

    def error(self, message: str) -> NoReturn:
        super().error(terminal.clean_text(message))


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Build the parser of the command line.

    Args:
        command: the command whose arguments are needed; of the others only the names are added. None = all.
    """
    top = Parser(
        prog="python -m spatial_eval",
        description="Run sweeps, and look at them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["five words:", *(f"  {word:<8} {meaning}" for word, meaning in GLOSSARY.items())]),
    )
    top.add_argument("--version", action="version", version=f"spatial-eval {VERSION}", help="print the version")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("run", add_help=False, help="run one cell, or a grid with -m: the arguments of launch.py")
    for target, helps in COMMANDS.items():
        if command is None or command in helps:
            about = {name: f"{text[0].upper()}{text[1:]}." for name, text in helps.items()}
            adders = {n: partial(commands.add_parser, n, help=helps[n], description=about[n]) for n in helps}
            pkgutil.resolve_name(target)(adders)
        else:
            for name, text in helps.items():
                commands.add_parser(name, help=text)
    return top
