"""The throw-away cluster of tests/slurm_up.sh, as tests use it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from trials.waiting import wait_for


class Cluster:
    """`folder` holds its configuration, state and pids."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def states(self) -> dict[str, str]:
        """State by id of the jobs that the controller shows."""
        lines = self.ask("squeue", "-a", "-r", "-h", "-o", "%i|%T").splitlines()
        return dict(line.strip().split("|") for line in lines)

    def state(self, job: str) -> str:
        return self.states().get(job, "")

    def node(self, job: str) -> str:
        return self.ask("squeue", "-h", "-j", job, "-o", "%N").strip()

    def slurmd(self, node: str) -> int:
        return int((self.folder / "pid" / f"slurmd.{node}.pid").read_text())

    def settle(self) -> None:
        """After this call no job is left and every node is idle, whatever a test did."""
        jobs = {job.partition("_")[0] for job in self.states()}
        if jobs:
            subprocess.run(["scancel", *jobs], capture_output=True, timeout=30, check=False)
        for node in ("node1", "node2", "node3"):
            pid = self.slurmd(node)
            if not Path(f"/proc/{pid}").exists():
                subprocess.run(["slurmd", "-N", node], check=True, timeout=30)
            state = self.ask("sinfo", "-h", "-N", "-n", node, "-o", "%T")
            if "down" in state or "drain" in state:
                # it may come back by itself between the two
                subprocess.run(
                    ["scontrol", "update", f"nodename={node}", "state=resume"],
                    capture_output=True,
                    timeout=30,
                    check=False,
                )
        wait_for(lambda: not self.states(), "the queue to be empty")
        wait_for(
            lambda: self.ask("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").count("node") == 3,
            "idle nodes",
        )
