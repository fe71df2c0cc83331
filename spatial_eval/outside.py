"""What lies outside this machine and may not answer: the hub, W&B, Slurm's controller. Each is given some seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from . import server
from .errors import SpatialEvalError
from .hf import HF
from .types import Model

OK, FAILS, UNKNOWN = "ok", "would fail", "not checked"
HUB_S, SLURM_S = 3.0, 5.0


@dataclass(frozen=True, slots=True)
class Line:
    """`needed`: whether the chosen model and dataset cannot run here without it."""

    thing: str
    state: str
    said: str
    needed: bool = True

    @property
    def stops(self) -> bool:
        return self.needed and self.state == FAILS

    def __str__(self) -> str:
        return f"{self.thing:<17} {self.state:<11} {self.said}"


def hub(model: Model) -> Line:
    if not isinstance(model, HF):
        return Line("hub", OK, f"model {model.name} needs none")
    try:
        folder = model.folder()
    except SpatialEvalError as error:
        return Line("hub", FAILS, str(error))
    if folder is not None:
        return Line("hub", OK, f"{model.path} is here already: {folder}")
    here = f"{model.path} is not in the hub cache"
    fetch = "run `python -m spatial_eval prepare model=...` where there is network"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Line("hub", FAILS, f"{here} and HF_HUB_OFFLINE is set: {fetch}, or unset it")
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answer = within(HUB_S, lambda: _status(f"{url}/{model.path}/resolve/{model.revision or 'main'}/config.json"))
    if isinstance(answer, int) and answer < 400:
        return Line("hub", OK, f"{here}, {url} has it: it is fetched at the first run")
    if answer in (401, 403):
        return Line("hub", FAILS, f"{here}, {url} wants a login for it: accept its terms there, then `hf auth login`")
    why = f"answers with HTTP {answer}" if isinstance(answer, int) else answer
    return Line("hub", FAILS, f"{here}, {url} {why}: {fetch}, or give model.path=FOLDER")


def _status(url: str) -> int | str:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (OSError, ValueError) as error:
        return f"is out of reach ({getattr(error, 'reason', error)})"


def within(seconds: float, ask: Callable[[], int | str]) -> int | str:
    """The answer, or that none came: resolving a name can hang for longer than any time-out of a socket."""
    found: list[int | str] = []
    thread = threading.Thread(target=lambda: found.append(ask()), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else f"did not answer within {seconds:g} s"


def wandb() -> Line:
    try:
        have = metadata.version("wandb")
    except metadata.PackageNotFoundError:
        return Line("wandb", FAILS, "is not installed: pip install wandb, for tracking=wandb", needed=False)
    found = server.find(os.environ, Path.home())
    try:
        return Line("wandb", OK, f"{have}, {found.url} knows the key of {found.probe()}", needed=False)
    except server.Unreachable as error:
        said = f"{have} writes offline; uploading (tracking.mode=online) would fail: {error}"
        return Line("wandb", FAILS, said, needed=False)


def slurm() -> Line:
    absent = [name for name in ("sbatch", "squeue") if shutil.which(name) is None]
    if absent:
        return Line("slurm", UNKNOWN, f"no {' or '.join(absent)} on PATH: launcher=slurm would fail here", needed=False)
    try:
        done = subprocess.run(
            ["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=False, timeout=SLURM_S
        )
        why = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
    except (OSError, subprocess.TimeoutExpired):
        why = f"no answer within {SLURM_S:g} s"
    if why:
        said = f"sbatch and squeue are there, the controller does not answer ({why}): launcher=slurm would fail"
        return Line("slurm", FAILS, said, needed=False)
    return Line("slurm", OK, f"the controller answers, {len(done.stdout.split()):,} jobs in its queue", needed=False)
