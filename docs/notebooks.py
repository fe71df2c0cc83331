"""Execute the notebooks on a fresh sweep of the embedded model and write them back with what they show.

    make notebooks      in the demo's environment, which an extra extends by what notebooks need

The sweep lies in a temporary folder that holds `outputs/`, as a user's does; no output names that folder. The notebook
that reads recorded answers keeps what it shows where SPATIAL_EVAL_DATA has none.
"""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
READS_DATA = "where_sampling_explains_the_gain"  # in place of the sweep it reads RECORDED below SPATIAL_EVAL_DATA
RECORDED = "pope/llava-7b-coco-*.jsonl"
GRID = ["dataset=scenes_a", "split=val,test", "method=base,scaling_vis,adapt_vis", "weight=0.5,0.8,1.2,1.5,2.0"]
GRID += ["weight1=0.5,0.8", "weight2=1.2,1.5,2.0", "threshold=range(0.2,1.01,0.1)", "capture=map"]
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def run_sweep(folder: Path) -> None:
    """Compute the sweep that the notebooks read, in `folder`/outputs."""
    command = [sys.executable, str(ROOT / "launch.py"), "-m", *GRID, f"output_dir={folder / 'outputs'}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)


def execute_notebook(path: Path, folder: Path) -> None:
    """Replace a notebook's outputs by those of a run in `folder`; nothing that changes from run to run is kept."""
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    book.metadata = nbformat.from_dict(METADATA)
    for cell in book.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = shrink_png(output.data["image/png"])
    nbformat.write(book, path)


def shrink_png(encoded: str) -> str:
    """Return a base64 PNG of the same picture in 128 colours: a third of the size, and no difference to the eye."""
    shrunk = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB").quantize(128).save(shrunk, "PNG", optimize=True)
    return base64.b64encode(shrunk.getvalue()).decode()


def main() -> None:
    """Run the sweep once and every notebook on it."""
    data = Path(os.environ.get("SPATIAL_EVAL_DATA", "data")).resolve()
    os.environ |= {
        "SPATIAL_EVAL_DATA": str(data),
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_sweep(folder)
        for path in NOTEBOOKS:
            if path.stem == READS_DATA and not any(data.glob(RECORDED)):
                sys.stderr.write(f"{path.relative_to(ROOT)}: not executed, SPATIAL_EVAL_DATA has no {RECORDED}\n")
                continue
            execute_notebook(path, folder)
            sys.stderr.write(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
