"""One pass's captured attention as a file: `<sweep>/attention/<dataset>--<model>--<max_new_tokens>.npz`.

Plain numpy, float32, not compressed; read a question at a time. Built from the captures, written by rename.

    dataset, model, max_new_tokens, level      text, text, int, mass | map | heads
    ids, rows (N,), arms (W,)                  questions in row order; each arm as JSON
    mass (N, W, layers, heads)                 nan where an arm of a question is not captured
    tokens (N,), grids (N, 2), boxes (N, 4)    of the image: how many, rows and columns (0: not known), captures.View
    map/<i>    (W, layers, tokens)             level map: question i's, averaged over heads
    heads/<i>  (W, layers, heads, tokens)      level heads
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from .captures import Capture, Frame, View
from .disk import replacing
from .errors import ConfigError, DataError, StoreError, unknown
from .types import Arm, Sample

FOLDER = "attention"
Found = Mapping[tuple[str, Arm], tuple[Frame, int]]


@dataclass(frozen=True)
class Attention:
    """What the last prompt row attends to, in N questions under W arms. Shares of 1; nan where nothing is captured.

    Attributes:
        ids, rows: of the questions, in row order. mass: (N, W, layers, heads) the image's share of the row.
        tokens: (N,) image tokens n of each question; 0 at level mass.
        map: per question (W, layers, n), the image's part of the row averaged over heads; empty at level mass.
        heads: per question (W, layers, heads, n); empty below level heads.
        views: per question where its tokens lie on the picture; None where that is not known.
    """

    dataset: str
    model: str
    max_new_tokens: int
    level: str
    ids: tuple[str, ...]
    rows: NDArray[np.int64]
    arms: tuple[Arm, ...]
    mass: NDArray[np.float32]
    tokens: NDArray[np.int64]
    map: Sequence[NDArray[np.float32]]
    heads: Sequence[NDArray[np.float32]]
    views: tuple[View | None, ...]

    @property
    def grids(self) -> tuple[tuple[int, int] | None, ...]:
        """Rows and columns of each question's image tokens, where they are known."""
        return tuple(None if view is None else view.grid for view in self.views)

    def padded(self) -> NDArray[np.float32]:
        """(N, W, layers, most tokens): `map` in one array, nan beyond a question's own tokens."""
        shape = (*self.mass.shape[:3], int(self.tokens.max(initial=0)))
        out = np.full(shape, np.nan, dtype=np.float32)
        for i, one in enumerate(self.map):
            out[i, ..., : one.shape[-1]] = one
        return out

    def question(self, sample_id: str) -> int:
        """The index of a question by its id. Raises ConfigError."""
        if sample_id not in self.ids:
            raise ConfigError(unknown("question", sample_id, self.ids[:20]))
        return self.ids.index(sample_id)

    def arm(self, label: str) -> int:
        """The index of an arm by its label (`0.5`). Raises ConfigError."""
        labels = [arm.label for arm in self.arms]
        if label not in labels:
            raise ConfigError(unknown("arm", label, labels))
        return labels.index(label)


class Members(Sequence[NDArray[np.float32]]):
    """Arrays of an .npz file, each read when it is asked for. `mean`: over heads."""

    def __init__(self, path: Path, names: Sequence[str], *, mean: bool = False) -> None:
        self._path, self._names, self._mean = path, names, mean

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[NDArray[np.float32]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Members(self._path, self._names[index], mean=self._mean)
        with zipfile.ZipFile(self._path) as archive, archive.open(f"{self._names[index]}.npy") as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
        return array.mean(axis=2) if self._mean else array


def write(folder: Path, label: str, facts: Mapping[str, Any], samples: Sequence[Sample], found: Found) -> Path:
    """Gathers captures into a sweep's folder and returns the file's path.

    Raises StoreError; where captures are damaged, after the file with all others is there.

    `facts`: dataset, model, max_new_tokens, level. `samples`: the questions, in row order.
    """
    arms = sorted({arm for _, arm in found})
    path = folder / FOLDER / f"{label}--{facts['max_new_tokens']}.npz"
    chosen: list[Sample] = []
    masses, tokens, grids, boxes = [], [], [], []
    damaged: list[StoreError] = []
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for sample in samples:
            one = _merge([found.get((sample.id, arm)) for arm in arms], facts["level"], damaged)
            if one is None:
                continue
            masses.append(one.mass)
            tokens.append(0 if one.map is None else one.map.shape[-1])
            grids.append((0, 0) if one.view is None else one.view.grid)
            boxes.append((0.0,) * 4 if one.view is None else one.view.box)
            if one.map is not None:
                _put(archive, f"{facts['level']}/{len(chosen):05d}", one.map)
            chosen.append(sample)
        _put(archive, "mass", np.stack(masses) if masses else np.zeros((0, len(arms), 0, 0), np.float32))
        _put(archive, "ids", np.array([sample.id for sample in chosen], dtype=str))
        _put(archive, "rows", np.array([sample.row for sample in chosen], dtype=np.int64))
        _put(archive, "arms", np.array([json.dumps(asdict(arm)) for arm in arms], dtype=str))
        _put(archive, "tokens", np.array(tokens, dtype=np.int64))
        _put(archive, "grids", np.array(grids, dtype=np.int64).reshape(-1, 2))
        _put(archive, "boxes", np.array(boxes, dtype=np.float64).reshape(-1, 4))
        for name, value in facts.items():
            _put(archive, name, np.array(value))
    if damaged:
        raise StoreError(f"{path.name} lacks {len(damaged):,} captures; the first: {damaged[0]}")
    return path


def read(path: Path) -> Attention:
    """Raises DataError where the file is not one of ours."""
    try:
        with np.load(path, allow_pickle=False) as file:
            plain = {name: file[name] for name in file.files if "/" not in name}
        level, count = str(plain["level"]), len(plain["ids"])
        maps, heads = ([f"{name}/{i:05d}" for i in range(count)] for name in ("map", "heads"))
        views = [
            View((int(grid[0]), int(grid[1])), tuple(map(float, box))) if grid.any() else None  # type: ignore[arg-type]
            for grid, box in zip(plain["grids"], plain["boxes"], strict=True)
        ]
        return Attention(
            str(plain["dataset"]),
            str(plain["model"]),
            int(plain["max_new_tokens"]),
            level,
            tuple(map(str, plain["ids"])),
            plain["rows"],
            tuple(Arm(**json.loads(str(text))) for text in plain["arms"]),
            plain["mass"],
            plain["tokens"],
            Members(path, heads, mean=True) if level == "heads" else Members(path, maps if level == "map" else []),
            Members(path, heads if level == "heads" else []),
            tuple(views),
        )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no captured attention: {error}; run its launch.py command again") from None


def find(folder: Path, dataset: str = "", model: str = "", max_new_tokens: int = 0) -> Attention:
    """The one file of a sweep's folder that is about these. Raises ConfigError."""
    every = list(each(folder))
    if not every:
        raise ConfigError(f"sweep {folder.name} has no captured attention: run its command with capture=mass, or map")
    wanted = {"dataset": dataset, "model": model, "max_new_tokens": max_new_tokens}
    chosen = [one for one in every if all(not v or getattr(one, n) == v for n, v in wanted.items())]
    if len(chosen) != 1:
        listed = "; ".join(f"{one.dataset} x {one.model}, {one.max_new_tokens} tokens" for one in every)
        raise ConfigError(f"{len(chosen)} captures of sweep {folder.name} are about these, name one (it has: {listed})")
    return chosen[0]


def each(folder: Path) -> Iterator[Attention]:
    """Every capture in a sweep's folder."""
    for path in sorted((folder / FOLDER).glob("*.npz")):
        yield read(path)


def layer(maps: NDArray[np.float32], layers: slice) -> NDArray[np.float32]:
    """(W, layers, n) -> (W, n), the mean of some layers."""
    mean: NDArray[np.float32] = maps[:, layers].mean(axis=1)
    return mean


def images(samples: Any, found: Attention) -> dict[str, str]:
    """Sample id -> its picture as samples.parquet has it."""
    mine = samples[_about(samples, found)]
    return dict(zip(mine["sample_id"], mine["image"], strict=True))


def right(samples: Any, found: Attention) -> NDArray[np.float64]:
    """(N, W) of samples.parquet: 1 where the answer was right (the reference's rule), 0 wrong, nan not answered."""
    mine = samples[_about(samples, found)]
    names = [field.name for field in fields(Arm) if field.name in mine]
    columns = [mine["sample_id"], mine["correct"], *(mine[name] for name in names)]
    answers = {
        (sample_id, Arm(**dict(zip(names, values, strict=True)))): float(correct)
        for sample_id, correct, *values in zip(*columns, strict=True)
    }
    rows = [[answers.get((one, arm), np.nan) for arm in found.arms] for one in found.ids]
    return np.array(rows, dtype=np.float64).reshape(len(found.ids), len(found.arms))


def _about(samples: Any, found: Attention) -> Any:
    same = samples["dataset"] == found.dataset
    return same & (samples["model"] == found.model) & (samples["max_new_tokens"] == found.max_new_tokens)


def _merge(places: Sequence[tuple[Frame, int] | None], level: str, damaged: list[StoreError]) -> Capture | None:
    """One question's arms at a level, from the frames that hold them; nan where there is none, None without any."""
    captures: dict[tuple[Path, int], Capture] = {}
    for where, frame in {(frame.path, frame.offset): frame for frame, _ in filter(None, places)}.items():
        try:
            captures[where] = frame.read()
        except StoreError as error:
            damaged.append(error)
    places = [place if place and (place[0].path, place[0].offset) in captures else None for place in places]
    if not captures:
        return None
    rows = [place and (captures[place[0].path, place[0].offset], place[1]) for place in places]
    some = next(iter(captures.values()))
    mass = np.stack([_nan(some.mass[0]) if row is None else row[0].mass[row[1]] for row in rows])
    if level == "mass":
        return Capture(some.sample_id, (), mass, None, some.view)
    maps = [None if row is None else _at(row[0], row[1], level) for row in rows]
    empty = _nan(next(one for one in maps if one is not None))
    return Capture(some.sample_id, (), mass, np.stack([empty if one is None else one for one in maps]), some.view)


def _at(capture: Capture, arm: int, level: str) -> NDArray[np.float32]:
    """(layers, n), or (layers, heads, n) at level heads."""
    assert capture.map is not None  # its frame holds the level
    one: NDArray[np.float32] = capture.map[arm]
    mean: NDArray[np.float32] = one.mean(axis=1) if level == "map" and one.ndim == 3 else one
    return mean


def _nan(like: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.full(like.shape, np.nan, dtype=np.float32)


def _put(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    """Bytes that depend on the numbers alone: without a date."""
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)
