"""Folders that cannot be read, also for root, whom no mode keeps out."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def make_unreadable(folder: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let listing a folder, and whatever looks at the files below it, fail with an error of the file system.

    Args:
        code: such as errno.EACCES, for a folder of mode 000, whose own status can still be read.
    """

    def guard(call: Callable[..., Any], *, own: bool) -> Callable[..., Any]:
        def fail(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
            inside = not isinstance(path, int) and Path(os.fsdecode(path)).is_relative_to(folder)
            if inside and (own or Path(os.fsdecode(path)) != folder):
                raise OSError(code, os.strerror(code), os.fsdecode(path))
            return call(path, *args, **kwargs)

        return fail

    is_private = code == errno.EACCES and folder.is_dir()
    monkeypatch.setattr(os, "scandir", guard(os.scandir, own=True))
    monkeypatch.setattr(os, "stat", guard(os.stat, own=not is_private))
