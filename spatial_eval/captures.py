"""Captured attention on disk: append-only frames, one folder per trunk, one file per writer, no locks.

    <root>/<dataset>--<model>--<key>/<writer>.frames

A frame is one question: a JSON line that says what it is, the arrays' bytes (float32, little endian) and a newline.
One that is truncated or damaged costs only itself: it is passed over and its question captured again. A damaged
header shows when frames are listed; damaged numbers, which are not read then, when a frame is read: it is noted in
`<writer>.frames.damaged`, a line per frame. Nothing is ever rewritten.
Capturing is no part of an answer's identity: the key is the generations' own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, runtime_checkable

from .disk import refusals, writer_name
from .errors import ConfigError, StoreError
from .store import Key, parse_arm
from .types import BASE, CAPTURES, Arm, Benchmark, Sample

if TYPE_CHECKING:  # numpy costs start-up time that --help should not pay
    from numpy import float32
    from numpy.typing import NDArray

ITEM = 4  # bytes of a number


@dataclass(frozen=True, slots=True)
class View:
    """Where a question's image tokens lie: `grid` (rows, columns), row by row, over `box` of the picture.

    `box`: left, top, right, bottom as shares of the picture's width and height.
    """

    grid: tuple[int, int]
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Capture:
    """What the last prompt row of one question attends to, under W arms; n image tokens.

    Attributes:
        mass: (W, layers, heads) the image's share. map: (W, layers, n), the mean over heads, or
            (W, layers, heads, n); None where only the mass is kept. view: None where the geometry is not known.
    """

    sample_id: str
    arms: tuple[Arm, ...]
    mass: NDArray[float32]
    map: NDArray[float32] | None = None
    view: View | None = None


@dataclass(frozen=True, slots=True)
class Extent:
    """What a model's capture is made of; `tokens`: image tokens of a question, of one that stands for all."""

    layers: int
    heads: int
    tokens: int

    def size(self, level: str, pairs: int) -> int:
        """Bytes of `pairs` questions and arms."""
        row = {"mass": 0, "map": self.tokens, "heads": self.heads * self.tokens}[level]
        return pairs * self.layers * (self.heads + row) * ITEM


@runtime_checkable
class Attentive(Protocol):
    """A model whose attention can be captured; recordings have none."""

    def extent(self, dataset: Benchmark, sample: Sample) -> Extent | None:
        """None where the model's files are not at hand yet."""
        ...


@runtime_checkable
class Watched(Protocol):
    """A loaded model that hands out what it attends to while it answers."""

    def watch(self, level: str, sink: Callable[[Capture], None]) -> None:
        """From now on `sink` gets every question's capture before its records are yielded."""
        ...


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a capture lies in a file, and what its header says; its arrays are read when they are asked for."""

    path: Path
    offset: int
    head: Mapping[str, Any]
    arms: tuple[Arm, ...]

    @property
    def level(self) -> str:
        shape = self.head["map"]
        return "mass" if shape is None else CAPTURES[len(shape) - 1]

    def read(self) -> Capture:
        """Raises StoreError where the bytes are not those that were written; they are not listed again."""
        import numpy as np

        with refusals(self.path), self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.head["bytes"])
        if zlib.crc32(data) != self.head["crc"]:
            _note(self)
            raise StoreError(
                f"{self.path}: the capture of question {self.head['id']} is damaged; the same command captures it again"
            )
        numbers = np.frombuffer(data, "<f4")
        first = math.prod(self.head["mass"])
        shape = self.head["map"]
        seen = None if shape is None else numbers[first:].reshape(shape)
        view = self.head["view"] and View(tuple(self.head["view"]["grid"]), tuple(self.head["view"]["box"]))
        return Capture(self.head["id"], self.arms, numbers[:first].reshape(self.head["mass"]), seen, view)


@dataclass(frozen=True, slots=True)
class Captures:
    root: Path

    def find(self, key: Key, digests: Mapping[str, str], level: str) -> dict[tuple[str, Arm], tuple[Frame, int]]:
        """By (sample id, arm) the first frame of the lowest level that holds `level`, and the arm's place in it.

        Frames of a changed question are passed over. Raises StoreError.
        """
        wanted = CAPTURES[CAPTURES.index(level) :]
        found: dict[tuple[str, Arm], tuple[Frame, int]] = {}
        for frame in self._frames(key):
            sample_id = frame.head["id"]
            if digests.get(sample_id) != frame.head["digest"] or frame.level not in wanted:
                continue
            for place, arm in enumerate(frame.arms):
                known = found.get((sample_id, arm))
                if known is None or wanted.index(frame.level) < wanted.index(known[0].level):
                    found[sample_id, arm] = (frame, place)
        return found

    def writer(self, key: Key, digests: Mapping[str, str]) -> Writer:
        """A file of this process's own. Raises StoreError."""
        folder = self.root / f"{key.label}--{key.hash}"
        path = folder / f"{writer_name()}.frames"
        with refusals(folder):
            folder.mkdir(parents=True, exist_ok=True)
            return Writer(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644), digests)

    def _frames(self, key: Key) -> Iterator[Frame]:
        for folder in sorted(self.root.glob(f"*--{key.hash}")):
            for path in sorted(folder.glob("*.frames")):
                with refusals(path), path.open("rb") as file:
                    yield from _scan(path, file)


class Writer:
    """Appends captures. Use as a context manager."""

    def __init__(self, path: Path, file: int, digests: Mapping[str, str]) -> None:
        self.path, self._file, self._digests, self._end = path, file, digests, 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def append(self, captures: Collection[Capture]) -> None:
        """After this call the captures are on disk; after a StoreError none of them is."""
        with refusals(self.path):
            try:
                for part in (part for one in captures for part in _format(one, self._digests[one.sample_id])):
                    done = 0
                    while done < len(part):
                        done += os.write(self._file, part[done:])
                os.fsync(self._file)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._end)
                raise
        self._end = os.fstat(self._file).st_size


def _format(capture: Capture, digest: str) -> Sequence[bytes]:
    import numpy as np

    arrays = [capture.mass] if capture.map is None else [capture.mass, capture.map]
    data = b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in arrays)
    head = {
        "id": capture.sample_id,
        "digest": digest,
        "arms": [{n: v for n, v in asdict(arm).items() if v != getattr(BASE, n)} for arm in capture.arms],
        "mass": capture.mass.shape,
        "map": None if capture.map is None else capture.map.shape,
        "view": capture.view and asdict(capture.view),
        "bytes": len(data),
        "crc": zlib.crc32(data),
    }
    return f"{json.dumps(head)}\n".encode(), data, b"\n"


def _scan(path: Path, file: BinaryIO) -> Iterator[Frame]:
    """The whole frames of a file, by their headers alone; after a damaged one the next header is looked for."""
    damaged, start = _noted(path), 0
    arms_before: dict[str, Arm] = {}
    while True:
        file.seek(start)
        line = file.readline()
        if not line:
            return
        found = _header(line, arms_before)
        if found is not None:
            head, arms = found
            offset = start + len(line)
            file.seek(offset + head["bytes"])
            if file.read(1) == b"\n":
                if offset not in damaged:
                    yield Frame(path, offset, head, arms)
                start = offset + head["bytes"] + 1
                continue
        start = _next_header(file, start + 1)
        if not start:
            return


def _header(line: bytes, known: dict[str, Arm]) -> tuple[dict[str, Any], tuple[Arm, ...]] | None:
    """A frame's header and arms; None where the line is none: a field is absent, or of a wrong type or size."""
    try:
        head = json.loads(line)
        arms = tuple(parse_arm(values, known) for values in head["arms"])
        mass, seen, view = head["mass"], head["map"], head["view"]
        sizes = [mass, *([] if seen is None else [seen])]
        good = all(type(head[name]) is str for name in ("id", "digest")) and type(head["crc"]) is int
        good = good and len(mass) == 3 and (seen is None or len(seen) in (3, 4))
        good = good and all(type(n) is int and n >= 0 for size in sizes for n in size)
        good = good and all(size[:2] == [len(arms), mass[1]] for size in sizes)
        good = good and head["bytes"] == ITEM * sum(map(math.prod, sizes))
        if view is not None:
            grid, box = view["grid"], view["box"]
            good = good and len(grid) == 2 and all(type(n) is int and n > 0 for n in grid)
            good = good and len(box) == 4 and all(type(n) in (int, float) and math.isfinite(n) for n in box)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError, ConfigError):
        return None
    return (head, arms) if good else None


def _next_header(file: BinaryIO, start: int) -> int:
    """Where the next line begins that could be a header; 0 where there is none."""
    mark, block = b'\n{"id": ', 1 << 20
    while True:
        file.seek(start - 1)
        data = file.read(block)
        place = data.find(mark)
        if place >= 0:
            return start + place
        if len(data) < block:
            return 0
        start += block - len(mark)


def _noted(path: Path) -> set[int]:
    """Offsets of a file's damaged frames."""
    notes = path.with_name(f"{path.name}.damaged")
    with refusals(notes):
        lines = notes.read_bytes().split() if notes.exists() else []
    return {int(line) for line in lines if line.isdigit()}


def _note(frame: Frame) -> None:
    with refusals(frame.path), frame.path.with_name(f"{frame.path.name}.damaged").open("a") as file:
        file.write(f"{frame.offset}\n")
        file.flush()
        os.fsync(file.fileno())
