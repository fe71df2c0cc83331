"""One transfer over HTTP: continued where it was cut off, tried again where a server is busy."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import DataError
from .store import refusals

log = logging.getLogger(__name__)

ATTEMPTS = 5  # of a transfer that breaks off or meets a busy server
PAUSE_S = 1.0  # before the second attempt; doubled before each further one
TIMEOUT_S = 30.0
BUSY = (408, 425, 429, 500, 502, 503, 504)
# What the disk, not the network, refuses.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR)


@dataclass(frozen=True, slots=True)
class Remote:
    """A file to fetch.

    Attributes:
        size: in bytes; an estimate where the server must be asked, 0 where nothing is known.
        digest: what the publisher says of it: `sha256:HEX`, `git:HEX` (a blob's name) or "".
        secret: headers for this server only, never for the one it redirects to.
    """

    url: str
    path: Path
    size: int = 0
    digest: str = ""
    secret: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)


def transfer(remote: Remote, part: Path, advance: Callable[[int], None]) -> None:
    """After this call `part` holds the whole file. Raises DataError (the server), StoreError (the disk)."""
    patiently(lambda: _resume(remote, part, advance), remote.url)


def ask(url: str, *, secret: Mapping[str, str] | None = None) -> Any:
    """The JSON that a server answers. Raises DataError."""

    def once() -> Any:
        with _open(url, {}, secret or {}) as reply:
            return json.loads(reply.read())

    try:
        return patiently(once, url)
    except ValueError:
        raise DataError(f"{url} did not answer JSON; is it the right server?") from None


def size_of(url: str) -> int:
    """What the server says of a file's size, in bytes; 0 where it does not. Raises DataError."""

    def once() -> int:
        with _open(url, {}, {}, method="HEAD") as reply:
            return int(reply.headers.get("Content-Length") or 0)

    return int(patiently(once, url))


def _resume(remote: Remote, part: Path, advance: Callable[[int], None]) -> None:
    """One transfer; `part` grows by what arrives. Raises OSError where it breaks off, StoreError for the disk."""
    tag = tag_of(part)
    done = size_on_disk(part) if tag.is_file() else 0
    headers = {"Range": f"bytes={done}-", "If-Range": tag.read_text("utf-8")} if done else {}
    try:
        reply = _open(remote.url, headers, remote.secret)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        if error.headers.get("Content-Range", "").endswith(f"*/{done}"):
            return  # whole: the kill came between the last byte and the rename
        tag.unlink()
        raise OSError("the file at the source became shorter") from None
    with reply, refusals_of_disk(part), part.open("ab") as file:
        if reply.status != 206 or not reply.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            file.truncate(0)
            advance(-done)
            done = 0
        if done == 0:
            stated = [reply.headers.get(key, "W/") for key in ("ETag", "Last-Modified")]
            strong = [value for value in stated if not value.startswith("W/")]
            tag.unlink(missing_ok=True)
            if strong:  # else a part cannot be told from one of another version: it will start anew
                tag.write_text(strong[0], "utf-8")
        length = reply.headers.get("Content-Length")
        while block := reply.read1(1 << 18):
            file.write(block)
            file.flush()  # a kill loses nothing that arrived
            advance(len(block))
        os.fsync(file.fileno())
    if length is not None and size_on_disk(part) != done + int(length):
        raise OSError(f"it broke off after {size_on_disk(part):,} of {done + int(length):,} bytes")


def _open(url: str, headers: Mapping[str, str], secret: Mapping[str, str], method: str = "GET") -> Any:
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", **headers}, method=method)
    for key, value in secret.items():
        request.add_unredirected_header(key, value)
    return urllib.request.urlopen(request, timeout=TIMEOUT_S)


def patiently(once: Callable[[], Any], url: str) -> Any:
    """What `once` returns, tried again where the network or a busy server is to blame. Raises DataError."""
    for attempt in range(ATTEMPTS):
        pause = PAUSE_S * 2**attempt
        try:
            return once()
        except urllib.error.HTTPError as error:
            why = f"the server answers {error.code} {error.reason}"
            error.close()
            if error.code not in BUSY:
                raise DataError(f"{url}: {why}{_hint(error.code)}") from None
            with contextlib.suppress(ValueError):
                pause = min(60.0, float(error.headers.get("Retry-After") or pause))
        except (OSError, http.client.HTTPException) as error:
            why = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt + 1 < ATTEMPTS:
            log.info("%s: %s; again in %.0f s", url, why, pause)
            time.sleep(pause)
    raise DataError(
        f"{url}: {why}, {ATTEMPTS} times; check the network and run the same command again: it goes on from there"
    )


def _hint(code: int) -> str:
    if code in (401, 403):
        return "; where the repository asks for an agreement, give it on its page and set HF_TOKEN"
    return "; check the name and the revision" if code == 404 else ""


@contextlib.contextmanager
def refusals_of_disk(path: Path) -> Iterator[None]:
    """As `refusals`, for the disk's errors alone: those of the network pass."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK:
            with refusals(path):
                raise
        raise


def part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def tag_of(part: Path) -> Path:
    """Beside a part: which version of the file it is of (ETag or date), for If-Range."""
    return part.with_suffix(".tag")


def size_on_disk(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
