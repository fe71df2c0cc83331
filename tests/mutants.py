"""make mutants: what share of small faults, planted one at a time, do the fast tests catch?

Every test is run once under coverage to learn which lines it executes. Then a sample of mutants is drawn (a fixed
seed), each is written into a copy of the package, and the tests that execute its line run until one fails. A mutant
whose line no test executes in its own process survives, as does one that no test notices; survivors are listed with
their line.

    python tests/mutants.py --count 200 --seed 0 [--packages core methods ...] [--at core/plan.py:41]
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "methods", "analysis", "engine", "store")
SLOW = "not slurm and not faults and not chromium and not notebooks and not long"
SECONDS = 120.0  # a mutant that makes the tests run longer is caught: it hangs
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant:
    """`text` in place of the source of one expression (`start` to `end`, offsets in characters) of a module."""

    path: Path
    line: int
    start: int
    end: int
    before: str
    text: str


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
    """What is written for type checkers and for the decorators of dataclasses: no test can notice a change there."""
    for field in ("annotation", "returns"):
        hint = getattr(node, field, None)
        if hint is not None:
            yield from ast.walk(hint)
    for decorator in getattr(node, "decorator_list", ()):
        yield from ast.walk(decorator)


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


def covering_tests(folder: Path) -> dict[tuple[str, int], list[str]]:
    """(module, line) -> the tests that execute it in their own process, the quickest first."""
    data, settings = folder / "coverage", folder / "coveragerc"
    settings.write_text("[run]\ndynamic_context = none\n")
    command = [sys.executable, "-m", "pytest", "-q", "-m", SLOW, "-p", "no:randomly", "--cov", "spatial_eval"]
    command += ["--cov-context=test", "--cov-report=", "--cov-config", str(settings), "--durations=0", "-vv"]
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


def is_caught(mutant: Mutant, tests: list[str], folder: Path) -> bool:
    """Whether one of `tests` fails on a copy of the package with the mutant."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "outputs", "__pycache__"), symlinks=True)
    target = copy / mutant.path.relative_to(ROOT)
    source = target.read_text("utf8")
    target.write_text(source[: mutant.start] + mutant.text + source[mutant.end :], "utf8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", nargs="*", default=PACKAGES)
    parser.add_argument("--most", type=int, default=40, help="tests per mutant, the quickest (default: 40)")
    parsed = parser.parse_args(arguments)
    package = ROOT / "spatial_eval"
    modules = sorted(path for name in parsed.packages for path in (package / name).rglob("*.py"))
    every = [mutant for path in modules for mutant in find_mutants(path)]
    chosen = random.Random(parsed.seed).sample(every, min(parsed.count, len(every)))
    caught, start = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        covering = covering_tests(folder)
        for number, mutant in enumerate(chosen, 1):
            tests = covering.get((str(mutant.path), mutant.line), [])[: parsed.most]
            good = bool(tests) and is_caught(mutant, tests, folder)
            caught += good
            if not good:
                where = f"{mutant.path.relative_to(ROOT)}:{mutant.line}"
                why = "" if tests else " (no test executes it)"
                sys.stdout.write(f"survives{why}: {where}: {mutant.before} -> {mutant.text}\n")
            sys.stderr.write(f"{number}/{len(chosen)}, {caught} caught, {time.monotonic() - start:.0f} s\n")
    sys.stdout.write(f"{caught} of {len(chosen)} mutants caught ({100 * caught / len(chosen):.1f} %)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
