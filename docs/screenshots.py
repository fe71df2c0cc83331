"""Draw docs/report.png: the first screen of the report on the recorded paper table, in headless Chromium.

    SPATIAL_EVAL_DATA=FOLDER make screenshots

FOLDER holds `prompts/` and `recorded/` as the tests use them. The first screen shows figures only, no question and no
answer of the benchmarks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SIZE = (1400, 1000)  # pixels of the screen
GRID = ["sweep=paper_table", "model=recorded", "model.name=LLaVA-1.5-7B", "dataset=controlled_a,vg_one_obj"]


def find_chromium() -> str:
    """Return the browser's path. Raises SystemExit where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        sys.exit(f"error: none of {', '.join(names)} is installed (Debian: apt install chromium)")
    return found


def run_sweep(data: Path, folder: Path) -> Path:
    """Run the recorded paper table in `folder`, by paths relative to it, and return its report."""
    (folder / "data").symlink_to(data)
    command = [sys.executable, str(ROOT / "launch.py"), *GRID, "model.path=data/recorded"]
    environment = {name: value for name, value in os.environ.items() if name != "SPATIAL_EVAL_DATA"}
    done = subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return folder / Path(done.stdout.splitlines()[-1]).with_name("report.html")


def draw_page(page: Path, picture: Path) -> None:
    """Write a page's first screen as a PNG of 256 colours."""
    shot = picture.with_suffix(".full.png")
    command = [find_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    Image.open(shot).convert("RGB").quantize(256).save(picture, optimize=True)
    shot.unlink()


def main() -> None:
    """Draw the picture that README shows."""
    if "SPATIAL_EVAL_DATA" not in os.environ:
        sys.exit("error: SPATIAL_EVAL_DATA names no folder: the picture needs the recorded answers of LLaVA-1.5-7B")
    with tempfile.TemporaryDirectory() as name:
        page = run_sweep(Path(os.environ["SPATIAL_EVAL_DATA"]).resolve(), Path(name))
        draw_page(page, ROOT / "docs" / "report.png")


if __name__ == "__main__":
    main()
