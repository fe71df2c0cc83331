"""Store captured attention: append-only while a pass runs, and one file of arrays per pass in a sweep's folder.

Captures, as a pass appends them: one folder per experiment, one file per writer, no locks.

    <root>/<dataset>--<model>--<key>/<writer>.frames

A frame is one question: a JSON line (the header: id, digest, arms, shapes, and last the CRC of the header before it
and the arrays; of the arrays alone before 0.2), the arrays' bytes (float32, little endian) and a newline. A truncated
or damaged frame costs only itself: it is skipped and its question captured again.
A damaged header is found when frames are listed; damaged numbers, which are not read then, when a frame is read: its
offset is recorded in `<writer>.frames.damaged`, one line per frame. Nothing is rewritten.
A capture is no part of an answer's identity: the key is the generations' own.

Arrays, which a sweep collects from the captures: `<sweep>/attention/<dataset>--<model>--<max_new_tokens>.npz`, numpy,
not compressed, written atomically, read a question at a time.

    dataset, model, max_new_tokens, level      text, text, int, mass | map | heads
    ids, rows (N,), arms (W,)                  questions in row order; each arm as JSON
    mass (N, W, layers, heads)                 nan where an arm of a question is not captured
    tokens (N,), grids (N, 2), boxes (N, 4)    number of image tokens; View's grid (0: not known) and box
    map/<i>    (W, layers, tokens)             level map: question i's, averaged over heads
    heads/<i>  (W, layers, heads, tokens)      level heads
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, overload, runtime_checkable

import numpy as np
from numpy import float32
from numpy.typing import NDArray

from spatial_eval.core.arms import BASELINE, Arm, find_arm
from spatial_eval.core.errors import ConfigError, DataError, StoreError, describe_unknown
from spatial_eval.core.files import (
    list_files,
    open_atomic,
    pass_over_unreadable,
    read_regular_file,
    translate_os_errors,
)
from spatial_eval.core.terminal import warn_once
from spatial_eval.core.types import CAPTURES, Benchmark, Sample
from spatial_eval.store.generations import LONGEST, AppendOnlyFile, ExperimentKey, parse_arm

ITEM = 4  # bytes of a float32
FOLDER = "attention"  # of a sweep's folder
_CRC = b', "crc": '


# What numpy and zipfile raise for a file that is cut off, damaged, or another one.
UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ConfigError),
    *(EOFError, RuntimeError, MemoryError, ArithmeticError, SyntaxError, zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True, slots=True)
class View:
    """Place a question's image tokens on the picture.

    Attributes:
        grid: rows and columns of the tokens, which are in row order.
        box: left, top, right and bottom of the grid, as shares of the picture's width and height.
    """

    grid: tuple[int, int]
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Capture:
    """Hold the attention of the last prompt row of one question under W arms, with n image tokens.

    Attributes:
        mass: (W, layers, heads) sum over the image tokens, in [0, 1].
        map: (W, layers, n), the mean over heads, or (W, layers, heads, n); None where only the mass is kept.
        view: None where the geometry is not known.
    """

    sample_id: str
    arms: tuple[Arm, ...]
    mass: NDArray[float32]
    map: NDArray[float32] | None = None
    view: View | None = None


@dataclass(frozen=True, slots=True)
class Extent:
    """Hold the dimensions of a model's captures; `tokens`: number of image tokens of one typical question."""

    layers: int
    heads: int
    tokens: int

    def size(self, level: str, pairs: int) -> int:
        """Return the bytes of a number of (question, arm) pairs."""
        row = {"mass": 0, "map": self.tokens, "heads": self.heads * self.tokens}[level]
        return pairs * self.layers * (self.heads + row) * ITEM


@runtime_checkable
class CapturableModel(Protocol):
    """Define a model whose attention can be captured; recordings have none."""

    def extent(self, dataset: Benchmark, sample: Sample) -> Extent | None:
        """Return the dimensions of its captures; None where its files are not on this machine yet."""
        ...


@runtime_checkable
class CapturingVlm(Protocol):
    """Define a loaded model that captures its attention while it answers."""

    def watch(self, level: str, sink: Callable[[Capture], None]) -> None:
        """Pass every later question's capture to `sink`, before its records are yielded."""
        ...


# --- captures on disk


@dataclass(frozen=True, slots=True)
class Frame:
    """Locate a capture in a file; its arrays are read on demand.

    Attributes:
        offset: bytes to the arrays.
        head: the header (`_format_frame`). seal: CRC of its bytes before its own CRC.
    """

    path: Path
    offset: int
    head: Mapping[str, Any]
    arms: tuple[Arm, ...]
    seal: int = 0

    @property
    def level(self) -> str:
        shape = self.head["map"]
        return "mass" if shape is None else CAPTURES[len(shape) - 1]

    def read(self) -> Capture:
        """Read the capture.

        Raises:
            StoreError: the arrays fail their CRC; the frame is recorded as damaged and not listed again.
        """
        with translate_os_errors(self.path), self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.head["bytes"])
        if self.head["crc"] not in (zlib.crc32(data, self.seal), zlib.crc32(data)):
            raise self.reject()
        numbers, shape, view = np.frombuffer(data, "<f4"), self.head["map"], self.head["view"]
        mass, rest = np.split(numbers, [math.prod(self.head["mass"])])
        return Capture(
            self.head["id"],
            self.arms,
            mass.reshape(self.head["mass"]),
            None if shape is None else rest.reshape(shape),
            view and View(tuple(view["grid"]), tuple(view["box"])),
        )

    def reject(self) -> StoreError:
        """Record the frame as damaged, so that it is not listed again, and return the message."""
        _note_damage(self)
        return StoreError(
            f"{self.path}: the capture of question {self.head['id']} is damaged; the same command captures it again"
        )


@dataclass(frozen=True, slots=True)
class Captures:
    """Find and append captures under a root folder."""

    root: Path

    def find(
        self, key: ExperimentKey, digests: Mapping[str, str], level: str
    ) -> dict[tuple[str, Arm], tuple[Frame, int]]:
        """Return, by (sample id, arm), the first frame of the lowest level that holds `level`, and the arm's index.

        Frames of a question that changed since (`digests`) are skipped.
        """
        levels = CAPTURES[CAPTURES.index(level) :]
        found: dict[tuple[str, Arm], tuple[Frame, int]] = {}
        for frame in self._list_frames(key):
            sample_id = frame.head["id"]
            if digests.get(sample_id) != frame.head["digest"] or frame.level not in levels:
                continue
            for index, arm in enumerate(frame.arms):
                known = found.get((sample_id, arm))
                if known is None or levels.index(frame.level) < levels.index(known[0].level):
                    found[sample_id, arm] = (frame, index)
        return found

    def writer(self, key: ExperimentKey, digests: Mapping[str, str]) -> CaptureWriter:
        """Create a file of this process's own."""
        return CaptureWriter(self.root / f"{key.label}--{key.hash}", digests)

    def _list_frames(self, key: ExperimentKey) -> Iterator[Frame]:
        for path in list_files(self.root, f"*--{key.hash}/*.frames", required=False):
            with pass_over_unreadable(path), path.open("rb") as file:
                yield from _scan_frames(path, file)


class CaptureWriter(AppendOnlyFile):
    """Append captures to a file. Use as a context manager."""

    def __init__(self, folder: Path, digests: Mapping[str, str]) -> None:
        super().__init__(folder, ".frames")
        self._digests = digests

    def append(self, captures: Collection[Capture]) -> None:
        """Write the captures and flush them to disk; after a StoreError none of them is there."""
        self.write(part for c in captures for part in _format_frame(c, self._digests[c.sample_id]))


def _format_frame(capture: Capture, digest: str) -> Sequence[bytes]:
    arrays = [capture.mass] if capture.map is None else [capture.mass, capture.map]
    data = b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in arrays)
    head = {
        "id": capture.sample_id,
        "digest": digest,
        "arms": [arm.to_flat() for arm in capture.arms],
        "mass": capture.mass.shape,
        "map": None if capture.map is None else capture.map.shape,
        "view": capture.view and asdict(capture.view),
        "bytes": len(data),
    }
    text = json.dumps(head).encode()[:-1]
    return b"%s%s%d}\n" % (text, _CRC, zlib.crc32(data, zlib.crc32(text))), data, b"\n"


def _scan_frames(path: Path, file: BinaryIO) -> Iterator[Frame]:
    """Yield the complete frames of a file by their headers; after a damaged one, continue at the next header."""
    damaged, start = _read_damage(path), 0
    arms: dict[str, Arm] = {}
    while True:
        file.seek(start)
        line = file.readline(LONGEST)
        if not line:
            return
        parsed = _parse_header(line, arms)
        if parsed is not None:
            offset = start + len(line)
            end = offset + parsed[0]["bytes"]
            file.seek(end)
            if file.read(1) == b"\n":
                if offset not in damaged:
                    yield Frame(path, offset, *parsed, zlib.crc32(line.rpartition(_CRC)[0]))
                start = end + 1
                continue
        start = _find_header(file, start + 1)
        if not start:
            return


def _parse_header(line: bytes, known: dict[str, Arm]) -> tuple[dict[str, Any], tuple[Arm, ...]] | None:
    """Return the header and arms of a frame; None where a field is absent, or of a wrong type or size."""
    try:
        head = json.loads(line)
        arms = tuple(parse_arm(values, known) for values in head["arms"])
        mass, view = head["mass"], head["view"]
        shapes = [mass] if head["map"] is None else [mass, head["map"]]
        valid = (
            all(type(head[name]) is str for name in ("id", "digest"))
            and type(head["crc"]) is int
            and (len(mass), len(shapes[-1])) in ((3, 3), (3, 4))
            and all(type(n) is int and n >= 0 for shape in shapes for n in shape)
            and all(shape[:2] == [len(arms), mass[1]] for shape in shapes)
            and head["bytes"] == ITEM * sum(map(math.prod, shapes)) < 2**62
            and (view is None or _is_view(view["grid"], view["box"], shapes[1][-1] if shapes[1:] else 0))
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError, ConfigError):
        return None
    return (head, arms) if valid else None


def _is_view(grid: Any, box: Any, tokens: int) -> bool:
    """Return whether these are a View's; `tokens`: number of the question's image tokens, 0 where no map is kept."""
    if (len(grid), len(box)) != (2, 4) or not all(type(n) in (int, float) for n in box):
        return False
    left, top, right, bottom = box
    cells = all(type(n) is int and n > 0 for n in grid) and tokens in (0, math.prod(grid))
    return cells and 0 <= left < right <= 1 and 0 <= top < bottom <= 1


def _find_header(file: BinaryIO, start: int) -> int:
    """Return the offset, from `start`, of the next line that could be a header; 0 where there is none."""
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


def _read_damage(path: Path) -> set[int]:
    """Return the offsets of a file's frames that are noted as damaged."""
    notes = path.with_name(f"{path.name}.damaged")
    try:
        lines = read_regular_file(notes, LONGEST).split()
    except (OSError, ValueError):
        return set()
    return {int(line) for line in lines if line.isdigit() and len(line) < 20}


def _note_damage(frame: Frame) -> None:
    with translate_os_errors(frame.path), frame.path.with_name(f"{frame.path.name}.damaged").open("a") as file:
        file.write(f"{frame.offset}\n")
        file.flush()
        os.fsync(file.fileno())


# --- arrays of a pass

Found = Mapping[tuple[str, Arm], tuple[Frame, int]]  # as Captures.find returns it


@dataclass(frozen=True)
class Attention:
    """Hold the attention of the last prompt row in N questions under W arms: shares of 1, nan where not captured.

    Attributes:
        ids, rows: of the questions, in row order.
        mass: (N, W, layers, heads) the image's share of the row, in [0, 1].
        tokens: (N,) number of image tokens n of each question; 0 at level mass.
        map: per question (W, layers, n), the image's part of the row averaged over heads; empty at level mass.
        heads: per question (W, layers, heads, n); empty below level heads.
        views: per question, the tokens' place on the picture; None where it is not known.
    """

    dataset: str
    model: str
    max_new_tokens: int
    level: str
    ids: tuple[str, ...]
    rows: NDArray[np.int64]
    arms: tuple[Arm, ...]
    mass: NDArray[float32]
    tokens: NDArray[np.int64]
    map: Sequence[NDArray[float32]]
    heads: Sequence[NDArray[float32]]
    views: tuple[View | None, ...]

    def __repr__(self) -> str:
        questions, arms, layers, heads = self.mass.shape
        size = f"{questions:,} questions, {arms} arms, {layers} layers, {heads} heads"
        return f"Attention({self.dataset} x {self.model}, {self.level}: {size})"

    @property
    def grids(self) -> tuple[tuple[int, int] | None, ...]:
        """Return rows and columns of each question's image tokens; None where they are not known."""
        return tuple(None if view is None else view.grid for view in self.views)

    def padded(self) -> NDArray[float32]:
        """Return `map` as one array (N, W, layers, most tokens), nan beyond a question's own tokens."""
        shape = (*self.mass.shape[:3], int(self.tokens.max(initial=0)))
        out = np.full(shape, np.nan, dtype=float32)
        for i, array in enumerate(self.map):
            out[i, ..., : array.shape[-1]] = array
        return out

    def question(self, sample_id: str) -> int:
        """Return the index of a question by its id. Raises ConfigError where there is none."""
        if sample_id not in self.ids:
            raise ConfigError(describe_unknown("question", sample_id, self.ids[:20]))
        return self.ids.index(sample_id)

    def arm(self, label: str) -> int:
        """Return the index of an arm by its label (`0.5`). Raises ConfigError where there is none."""
        return self.arms.index(find_arm(label, self.arms))


class Members(Sequence[NDArray[float32]]):
    """Read the arrays of an .npz file on demand.

    Args:
        members: names and shapes. mean: whether to average over heads.
    """

    def __init__(self, path: Path, members: Sequence[tuple[str, tuple[int, ...]]] = (), *, mean: bool = False) -> None:
        self._path, self._members, self._mean = path, members, mean

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, index: int) -> NDArray[float32]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[NDArray[float32]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Members(self._path, self._members[index], mean=self._mean)
        name, shape = self._members[index]
        with _translate_errors(self._path):
            with zipfile.ZipFile(self._path) as archive, archive.open(f"{name}.npy") as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
            _check_array(name, array, shape)
        return array.mean(axis=2) if self._mean else array


@contextlib.contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Raise DataError, one line, for any error in reading a file of arrays."""
    try:
        yield
    except UNREADABLE as error:
        reason = "it is no archive of arrays" if "pickle" in str(error) else error  # numpy's text advises to load it
        raise DataError(f"{path} is no captured attention: {reason}; run its launch.py command again") from None


def _check_array(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype.kind not in "if":
        raise ValueError(f"{name} has shape {array.shape} of {array.dtype}, expected {shape} of numbers")


def write_attention(
    folder: Path, label: str, facts: Mapping[str, Any], samples: Sequence[Sample], found: Found
) -> Path:
    """Collect captures into a sweep's folder, and return the file's path.

    Args:
        facts: dataset, model, max_new_tokens, level.
        samples: the questions, in row order.

    Raises:
        StoreError: captures are damaged; the file with all others is written first.
    """
    path = folder / FOLDER / f"{label}--{facts['max_new_tokens']}.npz"
    chosen: list[Sample] = []
    masses, tokens, views = [], [], []
    damaged: list[StoreError] = []
    found = _reject_other_shapes(found, damaged)
    arms = sorted({arm for _, arm in found})
    with open_atomic(path) as file, zipfile.ZipFile(file, "w") as archive:
        for sample in samples:
            merged = _merge_arms([found.get((sample.id, arm)) for arm in arms], facts["level"], damaged)
            if merged is None:
                continue
            if merged.map is not None:
                _write_array(archive, f"{facts['level']}/{len(chosen):05d}", merged.map)
            masses.append(merged.mass)
            tokens.append(0 if merged.map is None else merged.map.shape[-1])
            views.append(merged.view or View((0, 0), (0.0, 0.0, 0.0, 0.0)))
            chosen.append(sample)
        columns = {
            "mass": np.stack(masses) if masses else np.zeros((0, len(arms), 0, 0), float32),
            "ids": np.array([sample.id for sample in chosen], dtype=str),
            "rows": np.array([sample.row for sample in chosen], dtype=np.int64),
            "arms": np.array([json.dumps(arm.values) for arm in arms], dtype=str),
            "tokens": np.array(tokens, dtype=np.int64),
            "grids": np.array([view.grid for view in views], dtype=np.int64).reshape(-1, 2),
            "boxes": np.array([view.box for view in views], dtype=np.float64).reshape(-1, 4),
        }
        for name, values in {**columns, **facts}.items():
            _write_array(archive, name, np.array(values))
    if damaged:
        raise StoreError(f"{path.name} lacks {len(damaged):,} captures; the first: {damaged[0]}")
    return path


def _reject_other_shapes(found: Found, damaged: list[StoreError]) -> Found:
    """Leave out captures whose number of layers and heads is not the most frequent one, or whose tokens differ in one
    question: no model makes them.
    """
    frames = {id(frame): frame for frame, _ in found.values()}
    depths = {key: tuple(frame.head["mass"][1:]) for key, frame in frames.items()}
    usual = Counter(depths.values()).most_common(1)
    tokens: dict[str, set[int]] = {}
    for frame in frames.values():
        tokens.setdefault(frame.head["id"], set()).add((frame.head["map"] or [0])[-1])
    wrong = {
        key for key, frame in frames.items() if depths[key] != usual[0][0] or len(tokens[frame.head["id"]] - {0}) > 1
    }
    damaged += [frames[key].reject() for key in wrong]
    return {where: place for where, place in found.items() if id(place[0]) not in wrong} if wrong else found


def _merge_arms(places: Sequence[tuple[Frame, int] | None], level: str, damaged: list[StoreError]) -> Capture | None:
    """Return one question's arms at a level, from the frames that hold them.

    Args:
        places: per arm its frame and its index there; None where it is not captured: nan in the arrays.
        damaged: gets the error of each frame that cannot be read.
    """
    captures: dict[int, Capture] = {}  # by identity: a frame is read once for all its arms
    for frame in {id(frame): frame for frame, _ in filter(None, places)}.values():
        try:
            captures[id(frame)] = frame.read()
        except StoreError as error:
            damaged.append(error)
    if not captures:
        return None
    rows = [(captures[id(place[0])], place[1]) if place and id(place[0]) in captures else None for place in places]
    mass = _stack([row and row[0].mass[row[1]] for row in rows])
    maps = None if level == "mass" else _stack([row and _select_map(*row, level) for row in rows])
    any_capture = next(iter(captures.values()))
    return Capture(any_capture.sample_id, (), mass, maps, any_capture.view)


def _stack(arrays: Sequence[NDArray[float32] | None]) -> NDArray[float32]:
    """Stack arrays of one shape, at least one of which is there; nan for the others."""
    absent = np.full_like(next(array for array in arrays if array is not None), np.nan)
    return np.stack([absent if array is None else array for array in arrays])


def _select_map(capture: Capture, arm: int, level: str) -> NDArray[float32]:
    """Return the map of an arm: (layers, n), or (layers, heads, n) at level heads."""
    assert capture.map is not None  # its frame holds the level
    array: NDArray[float32] = capture.map[arm]
    mean: NDArray[float32] = array.mean(axis=1) if level == "map" and array.ndim == 3 else array
    return mean


def _write_array(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    """Write an array without a date: equal numbers give equal bytes."""
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def read_attention(path: Path) -> Attention:
    """Read a file that `write_attention` wrote. Raises DataError where it is not one."""
    with _translate_errors(path):
        with np.load(path, allow_pickle=False) as file:
            plain = {name: file[name] for name in file.files if "/" not in name}
        level, n = str(plain["level"]), len(plain["ids"])
        arms = tuple(parse_arm(json.loads(str(text))) for text in plain["arms"])
        shape = (n, len(arms), *plain["mass"].shape[2:4])
        shapes = {"mass": shape, "rows": (n,), "tokens": (n,), "grids": (n, 2), "boxes": (n, 4)}
        for name, expected in shapes.items():
            _check_array(name, plain[name], expected)
        if level not in CAPTURES[1:] or len(shape) != 4:
            raise ValueError(f"its level is {level!r}")
        heads = shape[3:] if level == "heads" else ()
        members = [(f"{level}/{i:05d}", (*shape[1:3], *heads, int(count))) for i, count in enumerate(plain["tokens"])]
        for grid, box, count in zip(plain["grids"], plain["boxes"], plain["tokens"], strict=True):
            if grid.any() and not _is_view(grid.tolist(), box.tolist(), int(count)):
                raise ValueError(f"{grid.tolist()} and {box.tolist()} are no place on a picture")
        views = [
            View((int(grid[0]), int(grid[1])), tuple(map(float, box))) if grid.any() else None  # type: ignore[arg-type]
            for grid, box in zip(plain["grids"], plain["boxes"], strict=True)
        ]
        return Attention(
            *(str(plain["dataset"]), str(plain["model"]), int(plain["max_new_tokens"]), level),
            *(tuple(map(str, plain["ids"])), plain["rows"]),
            arms,
            *(plain["mass"], plain["tokens"]),
            map=Members(path, [] if level == "mass" else members, mean=level == "heads"),
            heads=Members(path, members if level == "heads" else []),
            views=tuple(views),
        )


def find_attention(folder: Path, dataset: str = "", model: str = "", max_new_tokens: int = 0) -> Attention:
    """Return the one file of a sweep's folder with these values; "" and 0 match any.

    Raises ConfigError where none or several match, DataError where every file is damaged.
    """
    every = list(each_capture(folder))
    if not every:
        for path in list_files(folder / FOLDER, "*.npz"):
            read_attention(path)  # raises
        raise ConfigError(
            f"sweep {folder.name} has no captured attention: run its command with capture=heads, map or mass"
        )
    chosen = [
        one
        for one in every
        if dataset in ("", one.dataset) and model in ("", one.model) and max_new_tokens in (0, one.max_new_tokens)
    ]
    if len(chosen) != 1:
        listed = "; ".join(f"{one.dataset} x {one.model}, {one.max_new_tokens} tokens" for one in every)
        raise ConfigError(
            f"{len(chosen)} captures of sweep {folder.name} are about these: name the dataset, the model or "
            f"max_new_tokens of one (it has: {listed})"
        )
    return chosen[0]


def each_capture(folder: Path) -> Iterator[Attention]:
    """Yield the captured attention of every pass in a sweep's folder; other files are passed over."""
    for path in list_files(folder / FOLDER, "*.npz"):
        try:
            yield read_attention(path)
        except DataError as error:
            warn_once(str(error))


def select_layer(maps: NDArray[float32], layers: slice) -> NDArray[float32]:
    """Average a map over some layers: (W, layers, n) -> (W, n)."""
    mean: NDArray[float32] = maps[:, layers].mean(axis=1)
    return mean


def image_paths(samples: Any, found: Attention) -> dict[str, str]:
    """Return the image of each sample id, from samples.parquet."""
    own = _select_rows(samples, found)
    return dict(zip(own["sample_id"], own["image"], strict=True))


def answered_right(samples: Any, found: Attention) -> NDArray[np.float64]:
    """Return (N, W) of samples.parquet: 1 where `correct` is true, 0 where it is not, nan where there is no answer."""
    own = _select_rows(samples, found)
    names = [name for name in BASELINE if name in own]
    flat = list(zip(*(own[name] for name in names), strict=True))
    arms = {values: Arm.from_flat(dict(zip(names, values, strict=True))) for values in set(flat)}
    columns = [own["sample_id"], own["correct"], flat]
    answers = {(sample_id, arms[values]): float(correct) for sample_id, correct, values in zip(*columns, strict=True)}
    rows = [[answers.get((one, arm), np.nan) for arm in found.arms] for one in found.ids]
    return np.array(rows, dtype=np.float64).reshape(len(found.ids), len(found.arms))


def in_split(samples: Any, found: Attention, split: str) -> NDArray[np.bool_]:
    """Return (N,) which questions are of a split, as samples.parquet has it."""
    own = _select_rows(samples, found)
    return np.isin(found.ids, own["sample_id"][own["split"] == split])


def _select_rows(samples: Any, found: Attention) -> Any:
    """Return the rows of samples.parquet that are of the same pass."""
    same = samples["dataset"] == found.dataset
    return samples[same & (samples["model"] == found.model) & (samples["max_new_tokens"] == found.max_new_tokens)]
