"""Whether a process lives. A pid alone does not say: pids are used again."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

STALE_S = 60.0  # a process of another machine that gave no sign of life for so long is taken for dead


def lives(host: str, pid: int, started: str, beat: float) -> bool:
    """Whether a process runs: exactly on this machine, by its last sign of life on another."""
    if host == socket.gethostname():
        return started != "" and born(pid) == started
    return time.time() - beat < STALE_S


def born(pid: int) -> str:
    """When a process of this machine started, in its kernel's own words; "" where it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
        try:  # no /proc here: a pid is all there is
            os.kill(pid, 0)
        except OSError:
            return ""
        return "?"
    return "" if fields[0] in "ZX" else fields[19]
