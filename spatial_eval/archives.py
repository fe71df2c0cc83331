"""Unpacking archives that strangers made: nothing leaves the folder, nothing but plain files is written."""

from __future__ import annotations

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from .errors import DataError
from .fetching import tell
from .store import refusals

DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError, RuntimeError),
)
MEMBERS = 1_000_000  # more are refused
RATIO = 50  # unpacked to packed size; pictures hardly shrink, a bomb grows a thousandfold
SMALL = 64 << 20  # bytes that are no bomb whatever their ratio


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def extract(archive: Path, folder: Path, *, keep: Callable[[str], bool]) -> list[Path]:
    """Writes the files of a zip or tar archive whose base name `keep` wants into `folder`, without their folders.

    All members are looked at before the first is written: a member that is a link or a device, or whose name is
    absolute or holds `..`, two of one base name, and a bomb refuse the whole archive. Files are written by rename; one
    of the right size that is there is left alone. Raises DataError, StoreError.
    """
    with _members(archive) as members:
        wanted: dict[str, Member] = {}
        total = count = 0
        for member in members():
            count, total = count + 1, total + member.size
            if count > MEMBERS or total > max(SMALL, RATIO * archive.stat().st_size):
                raise DataError(f"{archive} unpacks to more than {total:,} bytes: refused as a bomb")
            name = PurePosixPath(member.name).name
            if name.startswith("._") or not keep(name):  # macOS puts ._x beside x
                continue
            if name in wanted:
                raise DataError(f"{archive} holds {name} twice: which one is meant?")
            wanted[name] = member
        missing = [m for name, m in wanted.items() if not _whole(folder / name, m.size)]
        if missing:
            tell(folder, f"unpacking {archive.name}", f"{len(missing):,} files", sum(m.size for m in missing))
        for member in missing:
            _write(member, folder / PurePosixPath(member.name).name, archive)
    return [folder / name for name in wanted]


def _write(member: Member, path: Path, archive: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    source = member.open()
    if source is None:
        raise DataError(f"{archive}: {member.name} cannot be read")
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("wb")
    with source, file:
        while block := source.read(1 << 20):
            with refusals(path):
                file.write(block)
    with refusals(path):
        part.replace(path)


@contextmanager
def _members(archive: Path) -> Iterator[Callable[[], Iterator[Member]]]:
    """Yields a function that lists the regular files. Raises DataError on what is no sound, harmless archive."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                yield lambda: _zipped(packed, archive)
        else:
            with tarfile.open(archive, "r:*") as rolled:
                yield lambda: _rolled(rolled, archive)
    except DAMAGE as error:
        why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
        raise DataError(
            f"{archive} is damaged or no zip or tar archive ({why}): remove it and run the same command again"
        ) from None
    except FileNotFoundError:
        raise DataError(f"{archive} does not exist") from None


def _zipped(packed: zipfile.ZipFile, archive: Path) -> Iterator[Member]:
    for info in packed.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was made elsewhere than on Unix
        _plain(info.filename, archive, info.is_dir() or kind in (0, stat.S_IFREG, stat.S_IFDIR))
        if not info.is_dir():
            yield Member(info.filename, info.file_size, lambda info=info: packed.open(info))  # type: ignore[misc]


def _rolled(rolled: tarfile.TarFile, archive: Path) -> Iterator[Member]:
    def opener(info: tarfile.TarInfo) -> Any:
        return lambda: rolled.extractfile(info)

    for info in rolled:
        _plain(info.name, archive, info.isfile() or info.isdir())
        if info.isfile():
            yield Member(info.name, info.size, opener(info))
    # tarfile takes a damaged block for the end: only the checksum behind the last byte tells.
    while rolled.fileobj is not None and rolled.fileobj.read(1 << 20):
        pass


def _plain(name: str, archive: Path, plain: bool) -> None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or (parts and ":" in parts[0]) or "\0" in name:
        raise DataError(f"{archive}: {name!r} would leave the folder: refused, nothing was unpacked")
    if not plain:
        raise DataError(f"{archive}: {name!r} is a link or a device, not a file: refused, nothing was unpacked")


def _whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
