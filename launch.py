"""Run one cell, or a grid with -m: see spatial_eval/cli/run.py and README.md."""

import sys

from spatial_eval.cli.run import launch

if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
