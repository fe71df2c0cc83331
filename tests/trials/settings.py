"""How the trials of Slurm jobs run: one GPU, short polls."""

from __future__ import annotations

QUICK = (
    *("launcher=slurm", "launcher.gpus=1", "launcher.cpus=1", "launcher.poll=0.5", "launcher.lost=6"),
    *("launcher.time=30", "launcher.shards=3"),
)
