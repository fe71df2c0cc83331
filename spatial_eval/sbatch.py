"""What an sbatch script says, and the environment it is submitted from."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import snapshot
from .launchers import Resources, Slurm

# sbatch prefers these to the script's own lines: they would undo what jobs are found and resumed by.
OVERRIDES = (
    "ARRAY_INX",
    "CHDIR",
    "ERROR",
    "EXPORT",
    "JOB_NAME",
    "NO_REQUEUE",
    "OPEN_MODE",
    "OUTPUT",
    "REQUEUE",
    "SIGNAL",
)


def parameters(launcher: Slurm, need: Resources, name: str, code: Path, at_once: int) -> dict[str, Any]:
    """What submitit writes into the sbatch script. Pure but for the environment's names and PYTHONPATH."""
    minutes = need.time or launcher.time
    memory = need.memory or launcher.memory
    gpus = launcher.gpus if need.gpus is None else need.gpus
    search = shlex.quote(snapshot.search_path(code, os.environ))
    more = {
        "chdir": str(code),  # python -m looks there first: a job must not run the code where it was submitted
        "export": ",".join(snapshot.allowed(os.environ, launcher.environment)),
        "requeue": True,
        **({"mem": memory} if memory else {}),
        **launcher.extra,
    }
    wanted = {
        "job_name": name,
        "time": minutes,
        "signal_delay_s": min(launcher.signal, minutes * 20),
        "cpus_per_task": launcher.cpus,
        "gpus_per_node": gpus or None,
        "partition": launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": launcher.constraint,
        "array_parallelism": at_once,
        "setup": [*launcher.setup, f'export PYTHONPATH={search}"${{PYTHONPATH:+:$PYTHONPATH}}"'],
        # srun inherits neither the whitelist's values nor, from 22.05 on, the number of CPUs
        "srun_args": ["--export=ALL", f"--cpus-per-task={launcher.cpus}"],
        "additional_parameters": more,
    }
    return {key: value for key, value in wanted.items() if value is not None}


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Submit as from a login node, inside a Slurm job too, and with nothing that overrides the script."""
    inside = "SLURM_JOB_ID" in os.environ
    hidden = {
        name: value
        for name, value in os.environ.items()
        if (inside and name.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")) and name != "SLURM_CONF")
        or name.removeprefix("SBATCH_") in OVERRIDES
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
