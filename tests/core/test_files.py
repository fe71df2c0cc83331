"""Files of ours: written whole or not at all, read without surprises."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spatial_eval.cli.main import main
from spatial_eval.core.errors import StoreError
from spatial_eval.core.files import (
    LARGEST_JSON,
    is_regular_file,
    list_files,
    open_atomic,
    read_json,
    read_json_object,
    read_regular_file,
    write_json,
)


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


def test_what_is_no_regular_file_is_passed_over_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").mkdir()
    os.mkfifo(tmp_path / "c.json")
    (tmp_path / "d.json").symlink_to("d.json")
    (tmp_path / "e.json").symlink_to("/dev/zero")
    for _ in range(2):
        assert [path.name for path in list_files(tmp_path, "*.json")] == ["a.json"]
    assert sorted(line.partition(" is passed over")[0][-6:] for line in caplog.messages) == [
        f"{name}.json" for name in "bcde"
    ]
    assert not is_regular_file(tmp_path / ("x" * 300))
    for name in "bcde":
        with pytest.raises(FileNotFoundError, match="not a regular file"):
            read_regular_file(tmp_path / f"{name}.json")


@pytest.mark.parametrize("content", [b"[]", b"[" * 100_000, b"\xff\xfe{\0", b"\0" * 40, b"", b"7"])
def test_json_that_is_no_object_is_a_value_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011  of several kinds
        read_json_object(tmp_path / "a.json")


def test_json_of_any_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(LARGEST_JSON + 1)  # sparse: it takes no room
    with pytest.raises(ValueError, match="268,435,457 bytes; at most 268,435,456 are read"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(("stale", "error"), [(2, None), (3, errno.ESTALE)])
def test_a_file_that_is_replaced_meanwhile_is_read_again(stale, error, tmp_path, monkeypatch) -> None:
    path, tries = tmp_path / "a.json", []
    write_json(path, [1])

    def read(path: Path) -> bytes:
        tries.append(path)
        if len(tries) <= stale:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return b"[1]"

    monkeypatch.setattr(Path, "read_bytes", read)
    if error is None:
        assert read_json(path) == [1]
    else:
        with pytest.raises(OSError, match="Stale file handle"):
            read_json(path)
    assert len(tries) == 3


def test_a_folder_that_cannot_be_listed_is_one_line_of_any_command(tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "generations" / "a--b--c"
    folder.mkdir(parents=True)
    listed = os.scandir

    def fail(path: str | Path = ".") -> object:
        if Path(path).is_relative_to(tmp_path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", fail)
    assert main(["store", "verify", "--output-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}")
    assert "Input/output error; what was stored before stays" in said
    assert said.count("\n") == 1
