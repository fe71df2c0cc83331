"""Unpack zip and tar archives that are not trusted: only plain files are written, and only into the folder."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from spatial_eval.core.errors import DataError, first_line
from spatial_eval.core.files import find_entries, translate_os_errors
from spatial_eval.prepare.http import check_space

DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError, RuntimeError),
)
MEMBERS = 1_000_000  # more are rejected
RATIO = 50  # unpacked to packed size; pictures hardly shrink, a bomb grows a thousandfold
SMALL = 64 << 20  # bytes that are no bomb whatever their ratio

Archive = zipfile.ZipFile | tarfile.TarFile


def extract_files(archive: Path, folder: Path, *, keep: Callable[[str], bool]) -> list[Path]:
    """Write the files whose base name `keep` wants into `folder`, without the archive's own folders.

    Every member is checked before the first is written: a link or a device, a name that is absolute or holds `..`,
    two wanted files of one base name, and a bomb reject the whole archive. Files are put in place by rename; an
    existing file of the right size stays.

    Raises:
        DataError: the archive is absent, damaged or rejected. StoreError: a write fails.
    """
    with _open_archive(archive) as opened:
        wanted: dict[str, tuple[str, int]] = {}  # base name -> name in the archive, size in bytes
        total = 0
        for count, (path, size) in enumerate(_list_files(opened, archive), 1):
            total += size
            if count > MEMBERS or total > max(SMALL, RATIO * archive.stat().st_size):
                raise DataError(f"{archive} unpacks to more than {total:,} bytes: rejected as a bomb")
            name = PurePosixPath(path).name
            if name.startswith("._") or not keep(name):  # macOS puts ._x beside x
                continue
            if name in wanted:
                raise DataError(f"{archive} holds {name} twice: which one is meant?")
            wanted[name] = path, size
        missing = {name: member for name, member in wanted.items() if not _is_whole(folder / name, member[1])}
        if missing:
            size = sum(size for _, size in missing.values())
            check_space(folder, f"unpacking {archive.name}", f"{len(missing):,} files", size)
            _extract(opened, {name: path for name, (path, _) in missing.items()}, folder)
    return [folder / name for name in wanted]


def _extract(opened: Archive, paths: Mapping[str, str], folder: Path) -> None:
    """Put each path of the archive into `folder`, under its new name."""
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left in find_entries(folder, ".unpacking-*"):  # of a killed process
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as scratch:
            for name, path in paths.items():
                opened.extract(path, scratch)
                (Path(scratch) / path).replace(folder / name)


@contextmanager
def _open_archive(archive: Path) -> Iterator[Archive]:
    """Open an archive. Raises DataError where it is none, or turns out to be damaged while it is read."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                yield packed
        else:
            with tarfile.open(archive) as rolled:
                rolled.extraction_filter = tarfile.data_filter
                yield rolled
    except DAMAGE as error:
        why = first_line(error).rstrip(":")
        raise DataError(
            f"{archive} is damaged or no zip or tar archive ({why}): remove it and run the same command again"
        ) from None
    except FileNotFoundError:
        raise DataError(f"{archive} does not exist") from None


def _list_files(opened: Archive, archive: Path) -> Iterator[tuple[str, int]]:
    """Yield name and size of each file. Raises DataError on a name that leads out, a link or a device."""
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was made elsewhere than on Unix
            _check_member(info.filename, archive, is_plain=info.is_dir() or kind in (0, stat.S_IFREG, stat.S_IFDIR))
            if not info.is_dir():
                yield info.filename, info.file_size
        return
    for entry in opened:
        _check_member(entry.name, archive, is_plain=entry.isfile() or entry.isdir())
        if entry.isfile():
            yield entry.name, entry.size
    # tarfile takes a damaged block for the end: only the checksum behind the last byte tells.
    while opened.fileobj is not None and opened.fileobj.read(1 << 20):
        pass


def _check_member(name: str, archive: Path, *, is_plain: bool) -> None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or (parts and ":" in parts[0]) or "\0" in name:
        raise DataError(f"{archive}: {name!r} would leave the folder: rejected, nothing was unpacked")
    if not is_plain:
        raise DataError(f"{archive}: {name!r} is a link or a device, not a file: rejected, nothing was unpacked")


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
