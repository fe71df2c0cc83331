"""Define and check launcher settings, one class per launcher, before anything is submitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from spatial_eval.core.errors import ConfigError
from spatial_eval.core.validate import describe_invalid, field_values

# What spatial_eval sets itself on every Slurm job; elsewhere it would be lost or break resuming.
OURS = ("array", "chdir", "error", "export", "job-name", "output", "requeue", "no-requeue", "signal", "open-mode")

# A list with commas is one value of these: `launcher.partition=main,high`.
LISTED = ("launcher.partition", "launcher.constraint", "launcher.qos")


@dataclass(frozen=True, slots=True)
class Resources:
    """Hold the needs of a model's jobs; None = the launcher's value. Never part of a model's identity.

    Attributes:
        gpus: devices per job. memory: per node, as Slurm writes it (`16G`). time: minutes until a job is
            interrupted and queued again; it continues from the store.
    """

    gpus: int | None = None
    memory: str | None = None
    time: int | None = None

    def __post_init__(self) -> None:
        _check_counts(self, "model.resources", gpus=0, time=1)


@dataclass(frozen=True, slots=True)
class Inline:
    """Run all passes in this process, one after the other."""


@dataclass(frozen=True, slots=True)
class Local:
    """Run a pool of jobs on this machine, one per GPU or CPU slot.

    Attributes:
        gpus: number, or names (index, UUID, MIG); None = all that CUDA_VISIBLE_DEVICES or the driver shows.
        slots: CPU jobs at a time; None = by GPUs, or 1 where there is none.
        threads: CPU threads per job; None = OMP_NUM_THREADS where set, else an equal share of the cores.
        shards: jobs per model; auto = as many as keep every slot busy.
        retries: number of times that a job that died is started again.
    """

    gpus: int | str | tuple[int | str, ...] | None = None
    slots: int | None = None
    threads: int | None = None
    shards: int | str = "auto"
    retries: int = 1

    def __post_init__(self) -> None:
        if self.slots is not None and self.gpus is not None:
            raise ConfigError(
                "launcher.slots and launcher.gpus exclude each other: slots are CPU jobs, gpus are devices"
            )
        _check_counts(self, "launcher", gpus=1, slots=1, threads=1, retries=0)
        _check_shards(self.shards)


@dataclass(frozen=True, slots=True)
class Slurm:
    """Submit job arrays through sbatch; None = the site's default.

    Attributes:
        time: minutes. memory: as Slurm writes it. gpus, cpus: per job. array_parallelism: jobs that may run at once.
        max_array: number of jobs per array, at most; never more than the site's MaxArraySize.
        wait: False = submit and return. setup: shell lines before a job (module load ...); one that fails ends it.
        python: the jobs' Python, a shell command (a container's exec line too). environment: names of variables that
            jobs get beside code_snapshot.ENVIRONMENT. extra: sbatch parameters, verbatim.
        poll: seconds between calls of squeue. signal: seconds before the time limit at which a job is interrupted.
        lost: seconds until a job that no longer runs is given up or submitted again.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: int = 240
    memory: str | None = None
    gpus: int = 1
    cpus: int = 4
    array_parallelism: int = 64
    max_array: int = 1000
    shards: int | str = "auto"
    retries: int = 1
    wait: bool = True
    setup: tuple[str, ...] = ()
    python: str | None = None
    environment: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    poll: float = 10.0
    signal: int = 90
    lost: float = 30.0

    def __post_init__(self) -> None:
        _check_counts(self, "launcher", time=1, cpus=1, max_array=1, array_parallelism=1, gpus=0, retries=0, signal=0)
        for name, seconds in {"poll": self.poll, "lost": self.lost}.items():
            if not 0.1 <= seconds <= 3600:
                raise ConfigError(describe_invalid(f"launcher.{name}", f"{seconds:g}", "0.1 to 3600 seconds"))
        _check_shards(self.shards)
        _reject_control_characters(asdict(self), "launcher")
        for key in self.extra:
            if str(key).replace("_", "-") in OURS:
                raise ConfigError(f"launcher.extra.{key} cannot be set: jobs could not be found or resumed with it")


Launcher = Inline | Local | Slurm
LAUNCHERS: dict[str, type[Inline] | type[Local] | type[Slurm]] = {"inline": Inline, "local": Local, "slurm": Slurm}


def _check_shards(value: int | str) -> None:
    if value != "auto" and (isinstance(value, str) or value < 1):
        raise ConfigError(describe_invalid("launcher.shards", value, "a whole number >= 1 or auto"))


def _check_counts(settings: Resources | Local | Slurm, prefix: str, **least: int) -> None:
    """Raise ConfigError on a field that is a number below the least of its name."""
    values = field_values(settings)
    for name, limit in least.items():
        if isinstance(values[name], int) and values[name] < limit:
            raise ConfigError(describe_invalid(f"{prefix}.{name}", values[name], f"a whole number >= {limit}"))


def _reject_control_characters(value: Any, key: str) -> None:
    """Raise ConfigError where a text holds one: a line break would start a line of its own in the sbatch script."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _reject_control_characters(str(name), f"a name in {key}")
            _reject_control_characters(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _reject_control_characters(inner, f"{key}[{index}]")
    elif isinstance(value, str) and not value.isprintable():
        raise ConfigError(
            f"{key}={value!r} holds a line break or another character that cannot be printed; write one line per item"
        )
