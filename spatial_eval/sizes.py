"""How large a model is, and how much memory is free here. Loads nothing."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from . import weights
from .errors import ModelError
from .hf import HF


def parameters(model: HF) -> int | None:
    """Counted from the headers of the files that a run loads, guessed from `7b` in its name where they are not here.

    None where neither tells.
    """
    folder = model.folder()
    if folder is None:
        found = re.search(r"(\d+(?:\.\d+)?)b\b", model.path.lower())
        return int(float(found[1]) * 1e9) if found else None
    try:
        return weights.count_parameters(weights.read_headers(folder, model.path)) or None
    except ModelError:  # said where weights are looked at
        return None


def available() -> int:
    """Bytes of RAM that a new process could take: what is free, and what its control group leaves."""
    facts = (
        dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M))
        if sys.platform == "linux"
        else {}
    )
    found = int(facts.get("MemAvailable", 0)) * 1024 or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        found = min(found, int(limit.read_text()) - int(used.read_text()))
    return found
