"""make wheel: build the wheel, install it into an environment of its own, and use it from an empty folder.

The environment finds the dependencies in the one that runs this (torch would be another 200 MB); spatial_eval comes
from the wheel alone, which is checked. Prints one line per command and ends at the first that does not do as it should.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUIZ = ["dataset=scenes_a", "model=tiny", "limit=8"]
OWN = """\
# Two weights at once.
grids:
  - method: scaling_vis
    weight: [0.5, 1.5]
    limit: 8
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        wheel = build(folder)
        python = install(folder, wheel)
        home = folder / "empty"
        home.mkdir()
        (home / "own" / "sweeps").mkdir(parents=True)
        (home / "own" / "sweeps" / "two.yaml").write_text(OWN, "utf8")
        command = str(python.parent / "spatial-eval")
        run(home, [str(python), "-c", "import spatial_eval; print(spatial_eval.__file__)"], says=str(folder))
        grid = ["-m", "method=base,adapt_vis", "threshold=0.3,0.4"]
        run(home, [command, "run", *grid, *QUIZ], says="results.csv")
        run(home, [command, "results"], says="adapt_vis")
        run(home, [command, "report"], says="report.html")
        run(home, [command, "status"], says="scenes_a")
        run(home, [command, "run", *grid, *QUIZ, "launcher=local", "launcher.slots=1", "split=val"], says="results.csv")
        run(home, [command, "run", "--config-dir", "own", "sweep=two", *QUIZ[:2]], says="scaling_vis")
        run(home, [command, "prepare", "--check"], codes=(0, 1, 3))
        run(home, [command, "doctor", *QUIZ[:2]], says="weights")
        run(home, [command, "run", "--help"], says="method")
        python_api = (
            "import spatial_eval as s; found = s.run(['method=base,adapt_vis', 'threshold=0.3,0.4', 'limit=8', "
            "'model=tiny', 'dataset=scenes_a']); "
            "print(len(found.cells), found.id in s.sweeps(), s.load().id == found.id)"
        )
        run(home, [str(python), "-c", python_api], says="3 True True")
    return 0


def build(folder: Path) -> Path:
    """Return the wheel, built from a copy of the tracked files: building leaves folders behind."""
    source = folder / "source"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "-w", folder / "dist", source], check=True)
    [wheel] = (folder / "dist").glob("spatial_eval-*.whl")
    return wheel


def install(folder: Path, wheel: Path) -> Path:
    """Return the python of a new environment that holds the wheel and finds its dependencies here."""
    place = folder / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "--no-deps", wheel], check=True)
    [own] = place.glob("lib/python*/site-packages")
    (own / "base.pth").write_text(f"{sysconfig.get_path('purelib')}\n", "utf8")
    return python


def run(home: Path, command: list[str], *, says: str = "", codes: tuple[int, ...] = (0,)) -> None:
    """Run one command in `home`; exit where its code or its output is another."""
    hidden = ("PYTHONPATH", "SPATIAL_EVAL_DATA")
    environ = {name: value for name, value in os.environ.items() if name not in hidden} | {"OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    done = subprocess.run(command, cwd=home, env=environ, capture_output=True, text=True, check=False)
    shown = " ".join([Path(command[0]).name, *command[1:]])[:100]
    sys.stdout.write(f"{time.monotonic() - start:5.1f} s  {shown}\n")
    sys.stdout.flush()
    if done.returncode not in codes or says not in done.stdout + done.stderr or "Traceback" in done.stderr:
        sys.exit(f"{shown}: code {done.returncode}, wanted {codes} and {says!r}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
