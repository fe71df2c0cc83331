"""Transfers that break, servers that lie, disks that are full: the right file in the end, or one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replicas import Server

from spatial_eval.core.errors import DataError, StoreError
from spatial_eval.prepare import http
from spatial_eval.prepare.http import RemoteFile, download_files, etag_path, partial_path, remote_size
from spatial_eval.prepare.verify import CHECKSUMS, Checksums, sha256

CONTENT = bytes(range(256)) * 400  # 100 KiB


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(http, "PAUSE_S", 0.0)
    monkeypatch.setattr(http, "RESUME_BYTES", len(CONTENT))
    (tmp_path / "public" / "coco").mkdir(parents=True)
    (tmp_path / "public" / "coco" / "file").write_bytes(CONTENT)
    with Server(tmp_path / "public") as running:
        yield running
        running.shutdown()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def get(server: Server, data: Path, size: int = len(CONTENT)) -> Path:
    path = data / "folder" / "file"
    download_files([RemoteFile(f"{server.url}/file", path, size)], Checksums(data), name="a file")
    return path


def size_on_disk(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def leftovers(data: Path) -> list[str]:
    return sorted(path.name for path in data.rglob("*") if path.is_file() and path.name not in ("file", CHECKSUMS))


def test_a_file_comes_once_and_is_noted(server: Server, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = get(server, data)
    assert path.read_bytes() == CONTENT
    assert caplog.messages[0].startswith("a file: 1 file, 0.1 MB; ")
    assert caplog.messages[0].endswith(" free")
    get(server, data)
    assert len(server.moods.asked) == 1
    noted = Checksums(data).get(path)
    assert noted is not None
    assert (noted.sha256, noted.size, noted.source) == (sha256(path), len(CONTENT), f"{server.url}/file")
    assert leftovers(data) == []


def test_a_small_file_starts_again_where_the_connection_broke(server: Server, data: Path, monkeypatch) -> None:
    monkeypatch.setattr(http, "RESUME_BYTES", len(CONTENT) + 1)
    server.moods.cut = {"/file": 50_000}
    assert get(server, data).read_bytes() == CONTENT
    assert [asked[1] for asked in server.moods.asked] == ["", ""]
    assert leftovers(data) == []


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(CONTENT)), min_size=1, max_size=3))
def test_a_connection_may_break_anywhere(server: Server, data: Path, cuts: list[int]) -> None:
    shutil.rmtree(data)
    data.mkdir()
    server.moods.asked.clear()
    for cut in cuts:
        server.moods.cut = {"/file": cut}
        assert get(server, data).read_bytes() == CONTENT
        (data / "folder" / "file").unlink()
    assert all(asked[1] for asked in server.moods.asked[1:2] if 0 < cuts[0] < len(CONTENT))  # went on, not again


def test_killed_at_any_moment_it_goes_on(server: Server, data: Path) -> None:
    code = (
        "from pathlib import Path; from spatial_eval.prepare import http, verify; http.RESUME_BYTES = 1; "
        f"file = http.RemoteFile('{server.url}/file', Path('{data}/folder/file'), {len(CONTENT)}); "
        f"http.download_files([file], verify.Checksums(Path('{data}')), name='x')"
    )
    server.moods.slow = 0.004
    part = partial_path(data / "folder" / "file")
    for _ in range(2):
        before = size_on_disk(part)
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        deadline = time.monotonic() + 20
        while size_on_disk(part) < before + 10_000 and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert before < size_on_disk(part) < len(CONTENT)
        assert not (data / "folder" / "file").exists()
    server.moods.slow = 0
    assert get(server, data).read_bytes() == CONTENT
    assert [asked[1] == "" for asked in server.moods.asked] == [True, False, False]
    assert leftovers(data) == []


def test_killed_between_the_last_byte_and_the_name(server: Server, data: Path) -> None:
    path = data / "folder" / "file"
    server.moods.cut = {"/file": 10}
    get(server, data)
    path.rename(partial_path(path))
    etag_path(partial_path(path)).write_text(_tag(server))
    assert get(server, data).read_bytes() == CONTENT


def _tag(server: Server) -> str:
    import urllib.request

    with urllib.request.urlopen(f"{server.url}/file") as reply:
        return str(reply.headers["ETag"])


def test_a_part_of_an_older_version_is_dropped(server: Server, data: Path) -> None:
    path = data / "folder" / "file"
    path.parent.mkdir()
    partial_path(path).write_bytes(b"an older version")
    etag_path(partial_path(path)).write_text('"older"')
    assert get(server, data).read_bytes() == CONTENT
    path.unlink()
    (data / CHECKSUMS).unlink()
    server.moods.plain = True  # a server without ranges: nothing to go on from
    partial_path(path).write_bytes(b"something")
    assert get(server, data).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server: Server, data: Path) -> None:
    server.moods.busy["/file"] = [503, 429, 500]
    assert get(server, data).read_bytes() == CONTENT
    server.moods.busy["/other"] = [503] * 5
    with pytest.raises(DataError, match=r"/other: the server answers 503 .*, 5 times; check the network and run"):
        remote_size(f"{server.url}/other")
    asked = len(server.moods.asked)
    with pytest.raises(DataError, match=r"the server answers 404 Not Found; check the address"):
        remote_size(f"{server.url}/nothing")
    assert len(server.moods.asked) == asked + 1
    assert remote_size(f"{server.url}/file") == len(CONTENT)


@pytest.mark.parametrize("url", ["nowhere/file", "ftp://127.0.0.1/file", "http://[::1/file"])
def test_what_is_no_address_is_one_line_at_once(url: str, data: Path) -> None:
    with pytest.raises(DataError, match="is no address of a file"):
        download_files([RemoteFile(url, data / "x")], Checksums(data), name="x")


def test_no_server_at_all_is_one_line(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSE_S", 0.0)
    with pytest.raises(DataError, match=r"^http://127.0.0.1:9/x: .*refused, 5 times; check the network") as error:
        download_files([RemoteFile("http://127.0.0.1:9/x", data / "x")], Checksums(data), name="x")
    assert "\n" not in str(error.value)


def test_what_came_first_must_come_again(server: Server, data: Path) -> None:
    path = get(server, data)
    path.write_bytes(CONTENT[:-1] + b"!")  # damaged on disk: fetched anew
    assert "SHA-256 differs" in Checksums(data).problem(path)
    assert get(server, data).read_bytes() == CONTENT
    path.unlink()
    server.moods.twist.add("/file")
    with pytest.raises(DataError, match=r"arrived with checksum sha256:.*nothing of it was kept: run the same command"):
        get(server, data)
    assert leftovers(data) == []
    assert not path.exists()


def test_a_part_that_was_put_together_of_two_versions_is_fetched_again(server: Server, data: Path) -> None:
    path = get(server, data)
    path.unlink()
    partial_path(path).write_bytes(b"of another version that the server gave the same ETag")
    etag_path(partial_path(path)).write_text(_tag(server))
    assert get(server, data).read_bytes() == CONTENT
    assert [bool(asked[1]) for asked in server.moods.asked] == [False, False, True, False]


def test_notes_survive_a_torn_line(server: Server, data: Path) -> None:
    path = get(server, data)
    with (data / CHECKSUMS).open("a") as file:
        file.write('{"path": "folder/fi')
    Checksums(data).note(path, "elsewhere")
    (data / "new").write_bytes(b"x")
    Checksums(data).note(data / "new", "here")
    assert Checksums(data).problem(path) == ""
    assert Checksums(data).get(data / "new") is not None


def test_a_full_disk_is_said_before(server: Server, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 10**8))
    with pytest.raises(
        StoreError, match=r"^a file needs 500\.0 MB, .* has 100\.0 MB free: make room, or give --data-dir"
    ):
        get(server, data, size=5 * 10**8)
    assert server.moods.asked == []


@pytest.mark.parametrize(("more", "fits"), [(-1, False), (0, True)])
@pytest.mark.parametrize("beside", [0, 3 * 10**8])
def test_room_is_kept_for_what_is_unpacked_and_some_to_spare(
    more: int, fits: bool, beside: int, server: Server, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = len(CONTENT) + beside
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, need + http.SPARE_BYTES + more))
    remote = RemoteFile(f"{server.url}/file", data / "folder" / "file", len(CONTENT))
    if fits:
        download_files([remote], Checksums(data), name="x", beside=beside)
        assert remote.path.read_bytes() == CONTENT
    else:
        with pytest.raises(StoreError, match=rf"^x needs {need / 1e6:.1f} MB, "):
            download_files([remote], Checksums(data), name="x", beside=beside)
        assert server.moods.asked == []
    assert http.SPARE_BYTES == 64 * 2**20


def test_a_disk_that_fills_up_is_one_line_and_what_came_stays(server: Server, data: Path) -> None:
    code = (
        "import resource; from pathlib import Path; from spatial_eval.prepare import http, verify; "
        "from spatial_eval.core.errors import StoreError; http.RESUME_BYTES = 1\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        f"file = http.RemoteFile('{server.url}/file', Path('{data}/folder/file'))\n"
        f"try: http.download_files([file], verify.Checksums(Path('{data}')), name='x')\n"
        "except StoreError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert "File too large; what was stored before stays: fix it and run the same command again" in done.stdout
    assert size_on_disk(partial_path(data / "folder" / "file")) == 50_000
    assert get(server, data).read_bytes() == CONTENT
    assert server.moods.asked[-1][1] == "bytes=50000-"


def test_many_files_come_side_by_side_and_one_error_ends_it(server: Server, data: Path) -> None:
    for i in range(30):
        (server.root / "coco" / f"{i}").write_bytes(b"%d" % i)
    remotes = [RemoteFile(f"{server.url}/{i}", data / f"{i}") for i in range(30)]
    download_files(remotes, Checksums(data), name="many")
    assert [(data / f"{i}").read_bytes() for i in range(30)] == [b"%d" % i for i in range(30)]
    assert all(Checksums(data).get(data / f"{i}") for i in range(30))
    with pytest.raises(DataError, match="404"):
        download_files([*remotes, RemoteFile(f"{server.url}/none", data / "none")], Checksums(data), name="many")
