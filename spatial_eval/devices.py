"""What the jobs of this machine are pinned to. Asked without torch: a job pins itself before it imports that."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

from .errors import ConfigError
from .launchers import Inline, Launcher, Local, Resources, Slurm

NONE = ""  # CUDA_VISIBLE_DEVICES of a CPU job


def pinned(launcher: Local, environ: Mapping[str, str]) -> list[str]:
    """What jobs are pinned to. Raises ConfigError where GPUs are named that are not there."""
    if launcher.slots is not None:
        return [NONE] * launcher.slots
    visible = visible_gpus(environ)
    if launcher.gpus is None:
        return visible or [NONE]
    if isinstance(launcher.gpus, int):
        if launcher.gpus > len(visible):
            raise ConfigError(
                f"launcher.gpus={launcher.gpus} but {len(visible)} GPUs are visible ({','.join(visible) or 'none'}); "
                "use fewer, or launcher.slots for CPU jobs"
            )
        return visible[: launcher.gpus]
    named = launcher.gpus.split(",") if isinstance(launcher.gpus, str) else launcher.gpus
    names = [str(name).strip() for name in named]
    absent = [name for name in names if visible and name not in visible]
    if absent or len(set(names)) < len(names):
        why = f"{', '.join(absent)} is not among the visible GPUs" if absent else "a GPU is named twice"
        raise ConfigError(f"launcher.gpus={','.join(names)}: {why} ({','.join(visible)})")
    return names


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """Names of this process's GPUs: CUDA_VISIBLE_DEVICES (indices, UUIDs, MIG names) where set, else all."""
    given = environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        end = next((i for i, name in enumerate(names) if name in ("", "-1", "NoDevFiles")), len(names))
        return names[:end]  # CUDA itself stops at the first name that is none
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    count = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
    return [str(index) for index in range(count)]


def have_gpus(launcher: Launcher, need: Resources, environ: Mapping[str, str]) -> bool | None:
    """Whether a launcher's jobs run on GPUs, wherever they are submitted; None = as this process does."""
    if isinstance(launcher, Inline):
        return None
    if isinstance(launcher, Slurm):
        return bool(launcher.gpus if need.gpus is None else need.gpus)
    return need.gpus != 0 and pinned(launcher, environ)[0] != NONE


def threads(launcher: Local, slots: int, environ: Mapping[str, str]) -> int | None:
    """OMP_NUM_THREADS of a job; None = as the environment has it."""
    if launcher.threads is not None or "OMP_NUM_THREADS" in environ:
        return launcher.threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // slots)
