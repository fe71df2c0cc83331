# make demo: install and run the main job.  make test: install and test.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
# make demo TORCH_INDEX=ADDRESS: an index that has torch for this machine; PyTorch's install page names that of the CPU build
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: demo test wheel gpu test-newest test-versions test-long test-slurm test-faults test-browser fuzz soak mutants lint docs site notebooks screenshots format clean

demo: .venv/installed
	@$(BIN)/python launch.py sweep=demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) -m "not slurm and not faults and not chromium and not notebooks and not long"

# Engine, models and checkpoints on the newest transformers that pyproject.toml allows; at most 4 minutes
test-newest: .venv/installed-dev
	$(BIN)/python tests/versions.py newest

# Builds the wheel, installs it and uses it from an empty folder; at most 3 minutes
wheel: .venv/installed-dev
	$(BIN)/python tests/wheel.py

# By hand, with a CUDA machine's python (torch >= 2.11, transformers >= 5.17): exactness, speed, the whole program; 6 minutes
gpu:
	$(PYTHON) benchmarks/gpu_run.py

# By hand: all that `make test` runs with every dependency at its lower bound, then what test-newest runs
test-versions: .venv/installed-dev
	$(BIN)/python tests/versions.py lowest
	$(BIN)/python tests/versions.py newest

# By hand, an hour or two: the share of 200 planted faults that the fast tests catch
mutants: .venv/installed-dev
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt pytest-cov
	$(BIN)/python tests/mutants.py --count 200

# Pools of jobs that are killed, the paper's whole grid against plain generates; at most 6 minutes
test-long: .venv/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) -m long

# A real Slurm cluster of several nodes on this machine; at most 8 minutes
test-slurm: .venv/installed-dev
	@PYTHON=$(BIN)/python bash tests/run_slurm.sh

# W&B servers on 127.0.0.1 that reject, stall and crash; at most 8 minutes
test-faults: .venv/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) -m faults

# Random command lines, damaged files and rows against every command, the same ones each time: what a change is judged by
# must not depend on luck. By hand others, FUZZ="--tries 3000 --seed 7". Then a part of the table of odd files: all of it
# by hand, ODD="", a quarter of an hour
FUZZ ?= --seed 1
ODD ?= --every 16
fuzz: .venv/installed-dev
	$(BIN)/python tests/fuzz.py $(FUZZ)
	$(BIN)/python tests/odd_files.py $(ODD)

# By hand: random kills of inline, pooled and Slurm jobs, two drivers, two host names, clocks that jump; SOAK="--minutes 60"
soak: .venv/installed-dev
	$(BIN)/python tests/soak.py $(SOAK)

# Chromium and chromedriver (Debian: chromium, chromium-driver), and the notebooks
test-browser: .venv/installed-dev
	$(BIN)/python -m pytest -m "chromium or notebooks"

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# docs/reference.md from YAML comments, dataclasses and argparse
docs: .venv/installed
	PYTHONPATH=. $(BIN)/python docs/reference.py

# The documentation as pages: build/site/index.html
site: .venv/installed-dev
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt mkdocs-material "mkdocstrings[python]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Executes the notebooks on a fresh sweep and writes what they show into them
notebooks: .venv/installed
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e ".[notebooks]"
	$(BIN)/python docs/notebooks.py

# docs/report.png from the recorded answers under SPATIAL_EVAL_DATA; needs Chromium
screenshots: .venv/installed
	$(BIN)/python docs/screenshots.py

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv (torch and transformers: some minutes on a new machine)" >&2
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14) and "error: $(PYTHON) is %d.%d; Python 3.11 to 3.13 is needed: make PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -qq --disable-pip-version-check $(INDEX) -c constraints.txt -e . >&2
	@touch $@

.venv/installed-dev: .venv/installed
	@$(BIN)/pip install -qq --disable-pip-version-check $(INDEX) -c constraints.txt -e ".[dev]" >&2
	@touch $@
