"""Files of ours: written whole or not at all, read without surprises."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unreadable import make_unreadable

from spatial_eval.cli.main import main
from spatial_eval.core.errors import StoreError
from spatial_eval.core.files import (
    LARGEST_JSON,
    find_entries,
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


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    """An output folder on a disk that is not mounted."""
    (tmp_path / "outputs").symlink_to("/nowhere/scratch")
    with pytest.raises(StoreError, match=r"outputs is a link to /nowhere/scratch, which is not there; what was stored"):
        write_json(tmp_path / "outputs" / "sweeps" / "a.json", 1)


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


NAMES = st.sampled_from(["a", "b.json", ".c.json", "a--1"])


@given(
    files=st.sets(st.lists(NAMES, min_size=1, max_size=4).map("/".join)),
    pattern=st.lists(st.sampled_from(["*", "*.json", "a*", "*--[0-9]", "a", "b.json", "**"]), min_size=1, max_size=4),
)
def test_entries_are_found_as_pathlib_finds_them(files: set[str], pattern: list[str], tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("tree")
    for name in files:
        with contextlib.suppress(OSError):  # a file stands where another one's folder would
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("")
    (folder / "b.json").exists() or (folder / "b.json").symlink_to(folder, target_is_directory=True)
    (folder / "a").exists() or (folder / "a").symlink_to(__file__)
    if pattern[-1] == "**":
        pattern = [*pattern, "*"]
    found = find_entries(folder, "/".join(pattern))
    assert sorted(set(found)) == sorted(set(folder.glob("/".join(pattern))))
    if pattern.count("**") < 2:
        assert found == sorted(set(found))


def test_a_link_to_nothing_is_found_by_its_folder_only(tmp_path: Path) -> None:
    """As before Python 3.12; what reads files then says that it is none."""
    (tmp_path / "a.json").symlink_to("absent")
    assert find_entries(tmp_path, "*.json") == [tmp_path / "a.json"]
    assert find_entries(tmp_path, "a.json") == []
    assert find_entries(tmp_path / "absent", "*") == find_entries(tmp_path / "a.json", "*") == []


@pytest.mark.parametrize("where", ["", "inner", "inner/a"])
@pytest.mark.parametrize("pattern", ["*/*/x.json", "**/x.json", "*/a/*.json"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_folder_that_cannot_be_listed_is_not_empty(where, pattern, code, tmp_path, monkeypatch) -> None:
    """From Python 3.12 on Path.glob finds nothing there."""
    (tmp_path / "inner" / "a").mkdir(parents=True)
    (tmp_path / "inner" / "a" / "x.json").write_text("")
    make_unreadable(tmp_path / where, code, monkeypatch)
    for search in (find_entries, list_files):
        with pytest.raises(OSError, match=os.strerror(code)):
            search(tmp_path, pattern)


@pytest.mark.parametrize("pattern", ["*/*/x.json", "**/x.json", "*/a/x.json"])
def test_a_private_folder_beside_ours_is_passed_over_with_one_line(pattern, tmp_path, monkeypatch, caplog) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name / "a").mkdir(parents=True)
        (tmp_path / name / "a" / "x.json").write_text("")
    make_unreadable(tmp_path / "theirs", errno.EACCES, monkeypatch)
    for _ in range(2):
        assert find_entries(tmp_path, pattern, required=False) == [tmp_path / "mine" / "a" / "x.json"]
    assert caplog.messages == [
        f"{tmp_path}/theirs is passed over: it cannot be read (Permission denied); make it readable"
    ]
    make_unreadable(tmp_path, errno.EACCES, monkeypatch)
    with pytest.raises(PermissionError):
        find_entries(tmp_path, pattern, required=False)


def test_a_file_whose_folder_may_not_be_entered_is_passed_over_by_its_reason(tmp_path, monkeypatch, caplog) -> None:
    (tmp_path / "a.json").write_text("{}")
    make_unreadable(tmp_path / "a.json", errno.EACCES, monkeypatch)
    assert list_files(tmp_path, "*.json") == []
    assert caplog.messages == [
        f"{tmp_path}/a.json is passed over: it cannot be read (Permission denied); make it readable"
    ]


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


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("command", [["store", "verify"], ["store", "size"], ["list"], ["results"], ["cancel"]])
def test_a_folder_that_cannot_be_listed_is_one_line_of_a_command(command, error, tmp_path, monkeypatch, capsys) -> None:
    """It is not taken for an empty one, whose answers would be computed again."""
    for name in ("generations/a--b--c", "sweeps/0a1b2c3d4e5f/jobs"):
        (tmp_path / name).mkdir(parents=True)
    make_unreadable(tmp_path, error, monkeypatch)
    assert main([*command, "--output-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}")
    assert f"{os.strerror(error)}; what was stored before stays" in said
    assert said.count("\n") == 1
