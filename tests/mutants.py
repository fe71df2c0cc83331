"""make mutants: what share of small faults, planted one at a time, do the fast tests catch?

Every test is run once under coverage to learn which lines it executes. Then a sample of mutants is drawn (a fixed
seed), each is written into a copy of the package, and the tests that execute its line run until one fails; with
--near, which needs no first run, the test files that import its module: of its own package, where there are any. A
mutant whose line no test executes in its own process survives, as does one that no test notices; survivors are listed
with their line, and again at the end. Mutants that compute the same (EQUIVALENT) are not drawn.

    python tests/mutants.py --count 200 --seed 0 [--packages core methods ...] [--tests tests/core ...]
    python tests/mutants.py --near --at core/plan.py:41 core/arms.py:7      every mutant of these lines
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "methods", "analysis", "engine", "store")
SLOW = "not slurm and not faults and not chromium and not notebooks and not long"
CPU_S, WALL_S = 300, 900.0  # a mutant that makes the tests run longer is caught: it hangs
HEAVY = ("numpy", "pandas", "scipy.stats", "torch", "transformers")
# The fork has plugins of pytest imported already (anyio, by transformers).
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-m", SLOW, "-W", "ignore::pytest.PytestAssertRewriteWarning")
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip

# Mutants that no test can notice: the module and the line as it reads with the fault -> why it computes the same.
EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "analysis/intervals.py",
        "CELLS = 2**(23)  # numbers of draws x clusters, or of draws x cells, in memory at a time",
    ): "memory, not results",
}
TABLES = {"methods/published.py"}  # the numbers of papers: a test could only repeat them


@dataclass(frozen=True, slots=True)
class Mutant:
    """`text` in place of the source of one expression (`start` to `end`, offsets in characters) of a module."""

    path: Path
    line: int
    start: int
    end: int
    before: str
    text: str

    @property
    def module(self) -> str:
        return self.path.relative_to(ROOT / "spatial_eval").as_posix()

    def apply(self) -> str:
        """Return the module's source with the fault."""
        source = self.path.read_text("utf8")
        return source[: self.start] + self.text + source[self.end :]

    @property
    def place(self) -> tuple[str, str]:
        """Return the module and the line as it reads with the fault."""
        return self.module, self.apply().splitlines()[self.line - 1].strip()

    @property
    def is_number_of_table(self) -> bool:
        return self.module in TABLES and re.fullmatch(r"[\d.]+", self.before) is not None

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.before} -> {self.text}"


def find_mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of a module: a comparison, operator, condition or constant that says something else."""
    source = path.read_text("utf8")
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    lines = source.splitlines()

    def offset(line: int, column: int) -> int:
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    tree = ast.parse(source)
    hints = {id(one) for node in ast.walk(tree) for one in annotations(node)}
    for node in ast.walk(tree):
        if id(node) in hints or not isinstance(node, ast.expr):
            continue
        for changed in changes(node):
            start = offset(node.lineno, node.col_offset)
            end = offset(node.end_lineno or node.lineno, node.end_col_offset or 0)
            yield Mutant(path, node.lineno, start, end, source[start:end], f"({ast.unparse(changed)})")


def annotations(node: ast.AST) -> Iterator[ast.AST]:
    """What no test can notice a change of: hints, decorators of dataclasses, and `strict` of zip, for equal lengths."""
    for field in ("annotation", "returns"):
        hint = getattr(node, field, None)
        if hint is not None:
            yield from ast.walk(hint)
    for decorator in getattr(node, "decorator_list", ()):
        yield from ast.walk(decorator)
    if isinstance(node, ast.keyword) and node.arg == "strict":
        yield node.value


def changes(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield ast.Compare(node.left, [SWAPS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        yield ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(SWAPS[type(node.op)](), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)


def covering_tests(folder: Path, paths: Sequence[str]) -> dict[tuple[str, int], list[str]]:
    """(module, line) -> the tests that execute it in their own process, the quickest first; of `paths`, or of all."""
    data, settings = folder / "coverage", folder / "coveragerc"
    settings.write_text("[run]\ndynamic_context = none\n")
    command = [sys.executable, "-m", "pytest", "-q", "-m", SLOW, "-p", "no:randomly", "--cov", "spatial_eval"]
    command += ["--cov-context=test", "--cov-report=", "--cov-config", str(settings), "--durations=0", "-vv", *paths]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "COVERAGE_FILE": str(data)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"error: the tests fail without any mutant\n{done.stdout[-2000:]}")
    seconds: dict[str, float] = {}
    for row in done.stdout.splitlines():
        words = row.split()
        if len(words) == 3 and words[1] in ("setup", "call", "teardown") and words[0].endswith("s"):
            seconds[words[2]] = seconds.get(words[2], 0.0) + float(words[0][:-1])
    found: dict[tuple[str, int], list[str]] = {}
    from coverage.numbits import numbits_to_nums

    with sqlite3.connect(data) as base:
        rows = base.execute(
            "select file.path, context.context, numbits from line_bits "
            "join file on file.id = file_id join context on context.id = context_id"
        )
        for path, context, bits in rows:
            test = context.partition("|")[0]
            for line in numbits_to_nums(bits) if test else ():
                found.setdefault((path, line), []).append(test)
    return {where: sorted(set(tests), key=lambda test: seconds.get(test, 0.0)) for where, tests in found.items()}


def importing_tests(mutant: Mutant) -> list[str]:
    """List the test files that import a mutant's module: those of its own package, else all."""
    package, _, module = mutant.module.removesuffix(".py").replace("/", ".").rpartition(".")
    imports = re.compile(
        rf"spatial_eval\.{package}\.{module}\b|from spatial_eval\.{package} import (\(\n)?[^()]*?\b{module}\b"
    )
    files = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").glob("*/test_*.py"))
    found = [str(path) for path in files if imports.search((ROOT / path).read_text("utf8"))]
    return [path for path in found if path.split("/")[1] == package] or found


def is_caught(mutant: Mutant, tests: Sequence[str], copy: Path) -> bool:
    """Return whether one of `tests` fails on a copy of the repository with the mutant."""
    path = copy / mutant.path.relative_to(ROOT)
    source = path.read_text("utf8")
    try:
        _write_module(path, mutant.apply())
        return not do_tests_pass(tests, copy)
    finally:
        _write_module(path, source)


@cache
def is_usable(file: str, copy: Path) -> bool:
    """Return whether a file of tests passes without any mutant; say so where it does not."""
    good = do_tests_pass([file], copy)
    if not good:
        sys.stderr.write(f"{file} is left out: without any mutant a test of it fails, or none is fast\n")
    return good


def do_tests_pass(tests: Sequence[str], copy: Path) -> bool:
    """Run tests in a fork of this process, which has the heavy libraries imported, until one fails or hangs."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
            os.chdir(copy)
            nothing = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(nothing, stream)
            code = pytest.main([*OPTIONS, f"--basetemp={copy}.tmp", *tests])
        finally:
            os._exit(code)
    deadline = time.monotonic() + WALL_S
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # with the processes that tests leave behind
    if not ended:
        os.waitpid(pid, 0)
    return bool(ended) and status == 0


def _write_module(path: Path, source: str) -> None:
    """Write a module, and remove its bytecode: that of another text of the same size and second would be taken."""
    path.write_text(source, "utf8")
    for old in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        old.unlink()


@contextlib.contextmanager
def make_folder() -> Iterator[Path]:
    """Make a folder for the block; TemporaryDirectory would remove it at the end of each fork too."""
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def draw_mutants(parsed: argparse.Namespace) -> list[Mutant]:
    """Draw the mutants that the command line asks for, those that compute the same left out."""
    package = ROOT / "spatial_eval"
    modules = sorted(path for name in parsed.packages for path in (package / name).rglob("*.py"))
    if parsed.at:
        lines = {(package / module, int(line)) for module, _, line in (at.partition(":") for at in parsed.at)}
        modules = sorted({path for path, _ in lines})
        return [one for path in modules for one in find_mutants(path) if (path, one.line) in lines]
    every = [one for path in modules for one in find_mutants(path) if not one.is_number_of_table]
    places = [one.place for one in every]
    gone = {place for place in EQUIVALENT.keys() - set(places) if place[0].split("/")[0] in parsed.packages}
    if gone:
        sys.exit(f"error: EQUIVALENT names lines that no mutant has now: {gone}")
    every = [one for one, place in zip(every, places, strict=True) if place not in EQUIVALENT]
    return random.Random(parsed.seed).sample(every, min(parsed.count, len(every)))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", nargs="*", default=PACKAGES)
    parser.add_argument("--at", nargs="*", metavar="MODULE:LINE", help="try every mutant of these lines")
    parser.add_argument("--tests", nargs="*", default=[], help="files or folders of tests (default: all)")
    parser.add_argument("--near", action="store_true", help="no survey: the test files that import the module")
    parser.add_argument("--most", type=int, default=40, help="tests per mutant, the quickest (default: 40)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many (default: no limit)")
    parsed = parser.parse_args(arguments)
    chosen = draw_mutants(parsed)
    tried, caught, survivors, start = 0, 0, list[str](), time.monotonic()
    with make_folder() as folder:
        copy = folder / "copy"
        hidden = shutil.ignore_patterns(".venv", ".git", "outputs", "__pycache__")
        shutil.copytree(ROOT, copy, ignore=hidden, symlinks=True)
        covering = {} if parsed.near else covering_tests(folder, parsed.tests)
        for library in HEAVY:
            importlib.import_module(library)
        for mutant in chosen:
            if time.monotonic() - start > 60 * parsed.minutes:
                break
            tried += 1
            tests = covering.get((str(mutant.path), mutant.line), [])[: parsed.most]
            if parsed.near:
                tests = [file for file in parsed.tests or importing_tests(mutant) if is_usable(file, copy)]
            if not tests or not is_caught(mutant, tests, copy):
                survivors.append(f"{mutant}{'' if tests else ' (no test executes it)'}")
                sys.stdout.write(f"survives: {survivors[-1]}\n")
                sys.stdout.flush()
            caught = tried - len(survivors)
            sys.stderr.write(f"{tried}/{len(chosen)}, {caught} caught, {time.monotonic() - start:.0f} s\n")
    sys.stdout.write("".join(f"  {line}\n" for line in ["survivors:", *sorted(survivors)]))
    sys.stdout.write(f"{caught} of {tried} mutants caught ({100 * caught / max(tried, 1):.1f} %)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
