"""A forked command gives what one with an interpreter of its own gives."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from warm_process import WARM, WarmProcess


@pytest.mark.parametrize("words", [["launch.py", "-m", "method=bend"], ["-m", "spatial_eval", "list", "--bend"]])
def test_a_forked_command_says_and_returns_the_same(words: list[str]) -> None:
    fresh = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, check=False)
    forked = WARM.run(words, os.environ)
    assert (forked.returncode, forked.stdout, forked.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)
    assert forked.returncode in (1, 2)


def test_what_is_read_early_wants_an_interpreter_of_its_own() -> None:
    own = WarmProcess()
    assert own.fits({**os.environ, "WANDB_MODE": "offline"})
    assert own.fits({**os.environ, "TORCHINDUCTOR_CACHE_DIR": "elsewhere"})
    assert not own.fits({**os.environ, "PYTHONPATH": "elsewhere"})
    assert not own.fits({**os.environ, "HF_HOME": "elsewhere"})


def test_what_tests_import_costs_no_command_its_parent() -> None:
    """A library that sets such a variable as it is imported made every later command start an interpreter, unseen."""
    importlib.import_module("families")
    importlib.import_module("torch._inductor.runtime.cache_dir_utils").cache_dir()
    assert WARM.fits(os.environ)
