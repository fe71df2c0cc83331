"""launch.py with the options of one more model, `slow`; its class is found by an entry point on PYTHONPATH."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.argv[1:1] = ["--config-dir", str(Path(__file__).parent / "conf")]
runpy.run_path(str(Path(__file__).parents[2] / "launch.py"), run_name="__main__")
