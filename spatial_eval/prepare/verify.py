"""Check the content of a data_dir: files against the checksums of their download, rows, and images."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatial_eval.benchmarks.hub_dataset import Hub, prepared_folder
from spatial_eval.benchmarks.question_files import PublicFile
from spatial_eval.benchmarks.readers import UPSTREAM, Vsr, WhatsUp, first_existing
from spatial_eval.core.errors import ConfigError, DataError, describe_unknown
from spatial_eval.core.files import find_entries, is_regular_file, pass_over_unreadable, read_json, translate_os_errors
from spatial_eval.core.jsonl import read_valid_lines
from spatial_eval.core.paths import conf_folder
from spatial_eval.core.types import Benchmark, Places
from spatial_eval.methods.published import DATASETS
from spatial_eval.prepare.sources import DATA_KINDS

if TYPE_CHECKING:
    from spatial_eval.config.compose import Composer

CHECKSUMS = "checksums.jsonl"  # in data_dir, one line per file; the last one counts, a truncated one is skipped
WORKERS = 8


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, as 64 hex digits. Raises OSError: absent, unreadable, or no regular file."""
    if not is_regular_file(path):
        raise FileNotFoundError(2, "not a regular file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Checksum:
    """Hold a file's size and digest at its download; `source`: where it came from."""

    sha256: str
    size: int
    source: str


class Checksums:
    """Read and record the checksums of one data_dir; several threads may record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known = _read_checksums(folder / CHECKSUMS)
        self._lock = threading.Lock()

    def get(self, path: Path) -> Checksum | None:
        return self._known.get(self._key(path))

    def note(self, path: Path, source: str) -> None:
        """Record the present content of `path`, which later checks require. Raises StoreError."""
        noted = Checksum(sha256(path), path.stat().st_size, source)
        if self.get(path) == noted:
            return
        # a leading newline ends a line that a kill may have truncated
        line = "\n" + json.dumps({"path": self._key(path)} | asdict(noted)) + "\n"
        file = self.folder / CHECKSUMS
        with self._lock, translate_os_errors(file), file.open("a", encoding="utf8") as out:
            out.write(line)
            self._known[self._key(path)] = noted

    def problem(self, path: Path) -> str:
        """Read `path` and return how it differs from its recorded content; "" if it does not, or none is recorded."""
        known = self.get(path)
        if known is None:
            return ""
        try:
            size = path.stat().st_size
            if size != known.size:
                return f"{path} has {size} bytes, {known.size} were fetched from {known.source}"
            same = sha256(path) == known.sha256
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
        return "" if same else f"{path} is not what was fetched from {known.source}: its SHA-256 differs"

    def mismatch(self, path: Path, downloaded: Path) -> str:
        """Return how a download differs from the recorded content of `path`; "" where it does not."""
        known = self.get(path)
        digest = sha256(downloaded) if known else ""
        if known is None or digest == known.sha256:
            return ""
        return f"checksum sha256:{digest[:16]}..., expected {known.sha256[:16]}..."

    def has(self, path: Path) -> bool:
        """Return whether `path` exists and is not known to be damaged."""
        return path.is_file() and not self.problem(path)

    def _key(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()


def _read_checksums(path: Path) -> dict[str, Checksum]:
    known: dict[str, Checksum] = {}
    with pass_over_unreadable(path):
        for row in read_valid_lines(path) if os.path.lexists(path) else ():
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                name = str(row.pop("path"))
                known[name] = Checksum(**row)
    return known


def list_data_benchmarks(composer: Composer, name: str, values: Mapping[str, Any]) -> list[tuple[str, Benchmark]]:
    """Build the benchmarks whose files are in a data_dir, each with its name in conf/dataset.

    Args:
        name: one benchmark, or `all`: the paper's seven, and the user's own that need no further key.
        values: values of `dataset.KEY`.

    Raises:
        ConfigError: there is no such benchmark, or its files do not lie in a data_dir.
    """
    options = composer.get_group_options("dataset")

    def lies_in_data_dir(option: str) -> bool:
        return composer.compose({"dataset": option}).dataset.get("kind") in DATA_KINDS

    if name == "all":
        ours = {path.stem for path in find_entries(conf_folder() / "dataset", "*.yaml")} - set(DATASETS)
        candidates = [option for option in options if option not in ours and lies_in_data_dir(option)]
        names = [option for option in candidates if not composer.missing_keys("dataset", option)]
        if not names:
            raise ConfigError("nothing to prepare: no option of conf/dataset lies in a data_dir")
    elif name in options and lies_in_data_dir(name):
        names = [name]
    else:
        known = ["all", *filter(lies_in_data_dir, options)]
        raise ConfigError(describe_unknown("dataset to prepare", name, known, aliases=UPSTREAM))
    return [(option, composer.read_benchmark(option, values)) for option in names]


@dataclass(frozen=True, slots=True)
class BenchmarkState:
    """Hold which files of one benchmark are present.

    Attributes:
        name: its option of conf/dataset. questions, images: numbers of those present.
        problem: why it cannot run, or "".
    """

    name: str
    questions: int
    images: int
    problem: str


def glance_benchmark(name: str, dataset: Benchmark, data: Path) -> BenchmarkState:
    """Count questions and images and compare the rows; open no image."""
    return _read_state(name, dataset, data, check=False)


def check_benchmark(name: str, dataset: Benchmark, data: Path) -> BenchmarkState:
    """Check a benchmark as `glance_benchmark` does; also compare every checksum and open every image."""
    return _read_state(name, dataset, data, check=True)


def _read_state(name: str, dataset: Benchmark, data: Path, *, check: bool) -> BenchmarkState:
    try:
        samples = dataset.read(Places(data, data, remember=False))
    except DataError as error:
        return BenchmarkState(name, 0, 0, str(error))
    images = [image for sample in samples for image in sample.images if image.is_file()]
    problems = _find_damages(dataset, data, list(dict.fromkeys(images))) if check else []
    missing = sum(max(1, len(sample.images)) for sample in samples) - len(images)
    if isinstance(dataset, WhatsUp) and all(sample.image is None for sample in samples):
        problems.append(f"no {dataset.annotation}: the images' names are not known")
    elif missing:
        problems.append(f"{_count_images(missing)} missing")
    return BenchmarkState(name, len(samples), len(images), "; ".join(problems))


def _count_images(count: int) -> str:
    return "1 image is" if count == 1 else f"{count} images are"


def _find_damages(dataset: Benchmark, data: Path, images: Sequence[Path]) -> list[str]:
    checksums = Checksums(data)
    problems = list(filter(None, map(checksums.problem, _list_text_files(dataset, data))))
    if isinstance(dataset, Hub):
        problems += split_damages(prepared_folder(dataset, data))
    with ThreadPoolExecutor(WORKERS) as pool:
        damaged = list(filter(None, pool.map(lambda path: _find_image_damage(path, dataset, checksums), images)))
    if damaged:
        problems.append(f"{_count_images(len(damaged))} damaged: {damaged[0]}")
    return problems


def _list_text_files(dataset: Benchmark, data: Path) -> list[Path]:
    """List the files of questions and captions that are there."""
    names: list[tuple[str, ...]] = []
    if isinstance(dataset, WhatsUp):
        names.append((f"prompts/{dataset.prompts}", dataset.prompts))
        names.append((dataset.annotation, f"annotations/{dataset.annotation}"))
    if isinstance(dataset, PublicFile):
        names += [(file.format(split_name=split),) for file in dataset.files for split in dataset.parts]
    if isinstance(dataset, Vsr):
        names.append((f"vsr/{dataset.file}", dataset.file))
    return [path for alternatives in names if (path := first_existing(data, *alternatives))]


def split_damages(folder: Path) -> list[str]:
    """Return what is wrong with the rows of a split that was prepared into `folder`."""
    try:
        expected = read_json(folder / "prepared.json")["sha256"]
        same = sha256(folder / "rows.jsonl") == expected
    except (ValueError, KeyError, OSError, TypeError):
        return [f"{folder}/prepared.json is damaged"]
    return [] if same else [f"{folder}/rows.jsonl is not what was prepared"]


def _find_image_damage(path: Path, dataset: Benchmark, checksums: Checksums) -> str:
    from PIL import Image

    problem = checksums.problem(path)
    if not problem and isinstance(dataset, Hub) and path.stem != sha256(path):
        problem = f"{path} is not what was prepared"
    if problem:
        return problem
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"{path} does not open: {error}"
    return ""
