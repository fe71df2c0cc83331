"""Unpacking: what is wanted comes out, and nothing gets out."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest
from replicas import pack

from spatial_eval.core.errors import DataError
from spatial_eval.prepare.archives import extract_files

CONTENT = {"pictures/a.jpg": b"first", "pictures/b.jpg": b"second", "pictures/._a.jpg": b"macOS"}
KINDS = ["x.zip", "x.tar.gz"]


@pytest.mark.parametrize("name", KINDS)
def test_wanted_files_come_out_without_their_folder(name: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / name, CONTENT)
    out = tmp_path / "out"
    assert extract_files(archive, out, keep=lambda file: file != "b.jpg") == [out / "a.jpg"]
    (out / "a.jpg").write_bytes(b"FIRST")  # of the right size: came by rename, is left alone
    assert sorted(extract_files(archive, out, keep=lambda file: True)) == [out / "a.jpg", out / "b.jpg"]
    assert [path.read_bytes() for path in sorted(out.iterdir())] == [b"FIRST", b"second"]
    (out / ".unpacking-killed").mkdir()
    (out / "b.jpg").unlink()
    assert extract_files(archive, out, keep=lambda file: file == "b.jpg") == [out / "b.jpg"]
    assert sorted(path.name for path in out.iterdir()) == ["a.jpg", "b.jpg"]  # what a killed process left is gone


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("wrong", ["../evil.jpg", "/etc/evil.jpg", "a/../../evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"])
def test_a_name_that_leads_out_refuses_the_whole_archive(name: str, wrong: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / name, {**CONTENT, wrong: b"evil"})
    with pytest.raises(DataError, match="would leave the folder: rejected, nothing was unpacked") as error:
        extract_files(archive, tmp_path / "in" / "out", keep=lambda file: True)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo("pictures")
    info.type, info.linkname = kind, str(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    archive = pack(tmp_path / "x.tar.gz", CONTENT, [info])  # then pictures/a.jpg would land elsewhere
    with pytest.raises(DataError, match="'pictures' is a link or a device, not a file: rejected"):
        extract_files(archive, tmp_path / "out", keep=lambda file: True)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not (tmp_path / "out").exists()


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        info = zipfile.ZipInfo("a.jpg")
        info.external_attr = 0o120777 << 16
        packed.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="is a link or a device"):
        extract_files(tmp_path / "x.zip", tmp_path / "out", keep=lambda file: True)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("damage", ["cut", "flip", "text"])
def test_a_damaged_archive_is_one_line(name: str, damage: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / name, {f"p/{i}.jpg": bytes([i]) * 3000 + f"{i}".encode() for i in range(9)})
    data = archive.read_bytes()
    middle = len(data) // 2
    archive.write_bytes(
        {
            "cut": data[:middle],
            "flip": data[:middle] + bytes(b ^ 255 for b in data[middle : middle + 40]) + data[middle + 40 :],
            "text": b"<html>quota exceeded</html>",
        }[damage]
    )
    with pytest.raises(DataError, match=r"is damaged or no zip or tar archive \(.*\): remove it and run") as error:
        extract_files(archive, tmp_path / "out", keep=lambda file: True)
    assert "\n" not in str(error.value)


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.jpg", bytes(80 << 20))
    with pytest.raises(DataError, match="rejected as a bomb"):
        extract_files(tmp_path / "x.zip", tmp_path / "out", keep=lambda file: True)
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.zip", {"one/a.jpg": b"1", "two/a.jpg": b"2"})
    with pytest.raises(DataError, match=r"holds a\.jpg twice"):
        extract_files(archive, tmp_path / "out", keep=lambda file: True)
    with pytest.raises(DataError, match="does not exist"):
        extract_files(tmp_path / "y.zip", tmp_path / "out", keep=lambda file: True)
