"""Run commands in processes forked from one that has imported the package: its imports are paid for once.

So is what depends on no command: the page's templates, and conf/ composed for the options that tests choose most.

Each command still has a process of its own, which starts as a script does. Variables that are read as Python starts or
as a package is imported must be the parent's (see `fits`). What a command imports and how an interpreter ends are for
tests that start one.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = (
    *(
        "spatial_eval.cli.main",
        "spatial_eval.cli.import_answers",
        "spatial_eval.cli.export_answers",
        "spatial_eval.cli.jobs",
        "spatial_eval.cli.prepare",
    ),
    *("spatial_eval.cli.results", "spatial_eval.cli.store", "spatial_eval.sweep.run", "spatial_eval.models.vlm"),
    *("email.parser", "omegaconf._impl", "pyarrow.pandas_compat", "pyarrow.parquet", "PIL.PngImagePlugin"),
    *("spatial_eval.models.loading", "transformers.generation", "transformers.modeling_utils"),
    "transformers.models.auto",
)
COMPOSED = [  # what most tests choose, as a command line orders it
    *("", "dataset=jsonl model=recorded"),
    *(f"method={method} dataset=jsonl model=recorded" for method in ("base", "scaling_vis", "adapt_vis")),
    *(f"method={method}" for method in ("base", "scaling_vis", "adapt_vis")),
]
# Variables that Python and these packages read as they start; who moves the hub's cache names HF_HOME, not only HOME
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch is imported later; test processes share the cores
# (TORCHINDUCTOR_CACHE_DIR, which torch sets as it is imported, is none)
READ_EARLY = ("CUDA_", "HF_", "HUGGINGFACE_", "MKL_", "OMP_", "PYTHON", "TORCH_", "TRANSFORMERS_", "XDG_")


def read_early(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a process reads once, as it starts or imports."""
    return {name: value for name, value in environment.items() if name.startswith(READ_EARLY)}


class WarmProcess:
    """The process to fork from, started at the first command; it ends with this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._started = read_early(os.environ)  # before any test changes it

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Return whether a forked process would import what a new interpreter in this environment does."""
        return read_early(environment) == self._started

    def run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run `python ARGUMENTS` in the repository's root: a script's path or -m MODULE, and what follows."""
        if not self._process:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=environment,
            )
            atexit.register(self._end)
        with tempfile.TemporaryDirectory() as folder:
            texts = [Path(folder) / name for name in ("stdout", "stderr")]
            request = {"arguments": list(arguments), "environment": dict(environment), "texts": [*map(str, texts)]}
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            assert self._process.stdout is not None
            code = json.loads(self._process.stdout.readline())
            out, err = (path.read_text() for path in texts)
        return subprocess.CompletedProcess(list(arguments), code, out, err)

    def _end(self) -> None:
        assert self._process is not None
        with self._process:  # closes its stdin, at which it ends
            pass


WARM = WarmProcess()  # one per test process: conftest is imported more than once


def prepare() -> None:
    """Do what takes half of a small command's time and is the same for all: this is the parent of every one."""
    for name in PRELOADED:
        importlib.import_module(name)
    import hydra

    from spatial_eval.config.compose import Composer
    from spatial_eval.report import page

    for template in page.templates().list_templates(["j2"]):
        page.templates().get_template(template)
    compose, composed = hydra.compose, {}
    for choices in COMPOSED:
        choice = dict(word.split("=") for word in choices.split())
        composed["config", tuple(choices.split())] = Composer().compose(choice)

    def compose_known(name: str, overrides: list[str]) -> Any:
        known = composed.get((name, tuple(overrides)))
        return compose(name, overrides=overrides) if known is None else known

    hydra.compose = compose_known
    gc.freeze()  # what is never looked at again is never copied


def serve() -> None:
    """Fork a process per line of stdin and answer its exit code."""
    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        process = fork.Process(target=become, args=(json.loads(line),))
        process.start()
        process.join()
        sys.stdout.write(f"{process.exitcode}\n")
        sys.stdout.flush()


def become(request: dict[str, Any]) -> None:
    """Run a command as if this process had been started for it."""
    for descriptor, path in zip((0, 1, 2), (os.devnull, *request["texts"]), strict=True):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # TMPDIR may be another
    first, *rest = request["arguments"]
    if first == "-m":
        module, *rest = rest
        sys.argv, sys.path[0] = [module, *rest], str(ROOT)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *rest], str(ROOT / Path(first).parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    prepare()
    serve()
