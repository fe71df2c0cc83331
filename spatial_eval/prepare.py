"""Getting data and models ready before a run; the only code that ever writes into data_dir."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config
from .errors import ConfigError, DataError, ModelError, StoreError, unknown
from .hf import HF
from .store import refusals
from .types import Places

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONF = Path(__file__).resolve().parents[1] / "conf"
# What a checkout of the upstream code has under data/, and its prompts/ beside data/ (SCIENCE.md section 3).
FILES = (
    *("controlled_images_dataset.json", "controlled_clevr_dataset.json"),
    *("coco_qa_one_obj.json", "coco_qa_two_obj.json", "vg_qa_one_obj.json", "vg_qa_two_obj.json"),
)
FOLDERS = (
    "controlled_images",
    "controlled_clevr",
    "val2017",
    "train2017",
    "vg_images",
    "prompts",
    "vsr",
    "images",
    "annotations",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is at hand of one benchmark: `images` of `questions` exist; `problem` says why it cannot run, or ""."""

    name: str
    questions: int
    images: int
    problem: str


def adopt(source: Path, data: Path) -> list[Path]:
    """Links an existing checkout (or its data/ folder) into `data` without copying; returns the new links.

    What is there already stays as it is. Raises DataError where `source` has nothing known, StoreError where
    `data` cannot be written.
    """
    places = [place for place in (source, source / "data", source.parent) if place.is_dir()]
    known = {name: place / name for place in reversed(places) for name in (*FILES, *FOLDERS) if (place / name).exists()}
    # The parent is asked only for the prompts, which stand beside data/.
    known = {name: path for name, path in known.items() if path.parent != source.parent or name == "prompts"}
    if not known:
        raise DataError(
            f"{source} has none of the upstream files ({FILES[0]}, ...): name a checkout or its data/ folder"
        )
    made = []
    for name, path in sorted(known.items()):
        link = data / name
        if link.exists() or link.is_symlink():
            if link.resolve() != path.resolve():
                raise StoreError(f"{link} is there already and is not {path}; move it away first")
            continue
        with refusals(link):
            data.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        made.append(link)
    return made


def findings(data: Path) -> Iterator[Finding]:
    """Per benchmark of conf/dataset that reads from data_dir: counts, row alignment, images; opens no image."""
    for name in _options("dataset"):
        node = compose({"dataset": name}).dataset
        if node.kind in ("whatsup", "vsr"):
            yield _finding(name, node, Places(data, data))


def fetch_model(name: str, values: Mapping[str, Any]) -> Path:
    """The folder that `model=name` will run from, fetched into the hub cache if need be. Raises ModelError."""
    if name not in _options("model"):
        raise ConfigError(unknown("model", name, _options("model")))
    node = compose({"model": name}).model
    for key, value in values.items():
        node[key] = value
    model = config.model(node)
    if not isinstance(model, HF):
        raise ModelError(f"model={name} has nothing to fetch")
    return model.fetch()


def compose(choices: Mapping[str, str]) -> DictConfig:
    """conf/ with these options."""
    import hydra

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", overrides=[f"{group}={option}" for group, option in choices.items()])


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _finding(name: str, node: DictConfig, places: Places) -> Finding:
    try:
        samples = config.dataset(node).read(places)
    except DataError as error:
        return Finding(name, 0, 0, str(error))
    images = sum(sample.image is not None and sample.image.is_file() for sample in samples)
    problem = "" if images == len(samples) else f"{len(samples) - images} images are missing"
    if all(sample.image is None for sample in samples):
        problem = f"no {node.get('annotation')}: the images' names are not known"
    return Finding(name, len(samples), images, problem)
