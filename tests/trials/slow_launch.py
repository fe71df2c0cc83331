"""launch.py with one more model, `slow`; its jobs find the class on PYTHONPATH."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import slow_model

from spatial_eval.models import MODELS

MODELS["slow"] = slow_model.Slow
sys.argv[1:1] = ["--config-dir", str(Path(__file__).parent / "conf")]
runpy.run_path(str(Path(__file__).parents[2] / "launch.py"), run_name="__main__")
