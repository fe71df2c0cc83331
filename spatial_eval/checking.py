"""What a data_dir holds of each benchmark, and whether it is whole. Writes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .benchmarks import Vsr, WhatsUp, first
from .checksums import Checksums, sha256
from .errors import DataError
from .hub import Hub, prepared
from .types import Benchmark, Places, Sample

WORKERS = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """What is at hand of one benchmark: `images` of `questions` exist; `problem` says why it cannot run, or ""."""

    name: str
    questions: int
    images: int
    problem: str


def glance(name: str, dataset: Benchmark, data: Path) -> Finding:
    """Counts, row alignment, which images exist; opens no image."""
    try:
        samples = dataset.read(Places(data, data, remember=False))
    except DataError as error:
        return Finding(name, 0, 0, str(error))
    return _finding(name, dataset, samples)


def check(name: str, dataset: Benchmark, data: Path) -> Finding:
    """As `glance`, and opens every image and compares every checksum."""
    found = glance(name, dataset, data)
    if not found.questions:
        return found
    samples = dataset.read(Places(data, data, remember=False))
    checksums = Checksums(data)
    problems = [problem for path in _texts(dataset, data) if (problem := checksums.problem(path))]
    problems += _rows(dataset, data)
    paths = list(
        dict.fromkeys(sample.image for sample in samples if sample.image is not None and sample.image.is_file())
    )
    with ThreadPoolExecutor(WORKERS) as pool:
        bad = [why for why in pool.map(lambda path: _picture(path, dataset, checksums), paths) if why]
    if bad:
        problems.append(f"{len(bad)} {'image is' if len(bad) == 1 else 'images are'} damaged: {bad[0]}")
    problems += [found.problem] if found.problem else []
    return Finding(name, found.questions, found.images, "; ".join(problems))


def _finding(name: str, dataset: Benchmark, samples: Sequence[Sample]) -> Finding:
    images = sum(sample.image is not None and sample.image.is_file() for sample in samples)
    missing = len(samples) - images
    problem = "" if not missing else f"{missing} {'image is' if missing == 1 else 'images are'} missing"
    if isinstance(dataset, WhatsUp) and all(sample.image is None for sample in samples):
        problem = f"no {dataset.annotation}: the images' names are not known"
    return Finding(name, len(samples), images, problem)


def _texts(dataset: Benchmark, data: Path) -> Iterable[Path]:
    names: list[tuple[str, ...]] = []
    if isinstance(dataset, WhatsUp):
        names.append((f"prompts/{dataset.prompts}", dataset.prompts))
        names.append((dataset.annotation, f"annotations/{dataset.annotation}"))
    if isinstance(dataset, Vsr):
        names.append((f"vsr/{dataset.file}", dataset.file))
    return [path for one in names if (path := first(data, *one))]


def _rows(dataset: Benchmark, data: Path) -> list[str]:
    """What is wrong with the rows of a prepared split."""
    if not isinstance(dataset, Hub):
        return []
    folder = prepared(dataset, data)
    try:
        expected = json.loads((folder / "prepared.json").read_text("utf8"))["sha256"]
    except (ValueError, KeyError, OSError, TypeError):
        return [f"{folder}/prepared.json is damaged"]
    return [] if sha256(folder / "rows.jsonl") == expected else [f"{folder}/rows.jsonl is not what was prepared"]


def _picture(path: Path, dataset: Benchmark, checksums: Checksums) -> str:
    """Why an image is not what it should be, or ""."""
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
