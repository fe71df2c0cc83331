"""Files of ours: written whole or not at all, read without surprises."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spatial_eval.core.errors import StoreError
from spatial_eval.core.files import open_atomic, read_json, write_json


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.json"
    write_json(path, [1])
    with contextlib.suppress(ZeroDivisionError), open_atomic(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert read_json(path) == [1]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("sync", [True, False])
def test_what_the_disk_rejects_is_one_line(sync: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"Not a directory; what was stored before stays: fix it and run the same"):
        write_json(tmp_path / "file" / "a.json", 1, sync=sync)
    with pytest.raises(StoreError, match="File name too long"):
        write_json(tmp_path / ("a" * 300), 1, sync=sync)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: None, OSError),
        (Path.mkdir, OSError),
        (os.mkfifo, OSError),
        (lambda path: path.symlink_to(path), OSError),
        (lambda path: path.symlink_to("/dev/zero"), OSError),
        (lambda path: path.write_bytes(b""), ValueError),
        (lambda path: path.write_bytes(b"\xff\xff{"), ValueError),
        (lambda path: path.write_text("[" * 100_000), ValueError),
        (lambda path: path.write_text("1" * 5000), ValueError),
    ],
)
def test_what_is_no_json_is_an_error_and_no_wait(
    make: Callable[[Path], object], error: type[Exception], tmp_path: Path
) -> None:
    make(tmp_path / "a.json")
    with pytest.raises(error):
        read_json(tmp_path / "a.json")
