"""The tests on other versions than constraints.txt pins, each set in a virtual environment of its own.

    python tests/versions.py newest                 transformers at its newest release that pyproject.toml allows
    python tests/versions.py lowest                 every dependency at its lower bound, all at once
    python tests/versions.py 'transformers==5.20.*' any requirements

The environments lie in .venv/versions above .venv: they hold what differs and find the rest, torch above all, there.
What follows `--` goes to pytest; without it ENGINE is run, for `lowest` all that `make test` runs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ["tests/engine", "tests/models"]
QUICK = "not slurm and not faults and not chromium and not notebooks and not long"
KEPT = {"torch"}  # hundreds of megabytes, and other releases bring CUDA: always the pinned one


def dependencies() -> list[Requirement]:
    """What pyproject.toml requires, but for KEPT."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
    return [one for one in map(Requirement, about["dependencies"]) if one.name not in KEPT]


def newest() -> list[str]:
    return [str(one) for one in dependencies() if one.name == "transformers"]


def lowest() -> list[str]:
    """Each dependency pinned to the version that its lower bound names."""
    bounds = ((one.name, bound.version) for one in dependencies() for bound in one.specifier if bound.operator == ">=")
    return [f"{name}=={bound}" for name, bound in bounds]


def environment(name: str, wanted: Sequence[str]) -> Path:
    """The python of a new environment that holds `wanted` and finds everything else in the one that runs this."""
    folder = ROOT / ".venv" / "versions" / name
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    base = sysconfig.get_path("purelib")
    [own] = folder.glob("lib/python*/site-packages")
    (own / "base.pth").write_text(f"import site; site.addsitedir({base!r})\n", "utf8")
    pins = folder / "constraints.txt"
    pins.write_text("".join(f"{name}=={version(name)}\n" for name in sorted(KEPT)), "utf8")
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-qq", "--upgrade", "--no-warn-conflicts", "-c", pins]
    subprocess.run([*pip, *wanted], check=True)
    return python


def main(arguments: Sequence[str]) -> int:
    named, given = list(arguments), []
    if "--" in named:
        at = named.index("--")
        named, given = named[:at], named[at + 1 :]
    if not named:
        sys.stderr.write(__doc__ or "")
        return 2
    known = {"newest": newest, "lowest": lowest}
    label = "-".join(named).replace("==", "-").replace(".*", "")
    wanted = known[named[0]]() if named[0] in known else named
    python = environment(label, wanted)
    sys.stdout.write(f"{label}: {', '.join(_installed(python, wanted))}\n")
    sys.stdout.flush()
    tests = ["-m", QUICK, *([] if label == "lowest" else ENGINE)]
    command = [python, "-m", "pytest", "-q", *(given or [*tests, "-n", "2"])]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def _installed(python: Path, wanted: Sequence[str]) -> Iterator[str]:
    names = [Requirement(one).name for one in wanted]
    code = "import sys; from importlib.metadata import version as v; print(*map(v, sys.argv[1:]))"
    found = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True).stdout.split()
    return (f"{name} {one}" for name, one in zip(names, found, strict=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
