"""Getting data and models ready before a run; the only code that ever writes into data_dir."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from . import config, gathering, preparing
from .benchmarks import UPSTREAM, Vsr, WhatsUp
from .checking import Finding, check, glance
from .checksums import Checksums
from .errors import ConfigError, DataError, ModelError, StoreError, unknown
from .hf import HF
from .hub import Hub
from .sources import Way
from .store import refusals
from .templates import templated
from .types import Benchmark

if TYPE_CHECKING:
    from omegaconf import DictConfig

KINDS = ("whatsup", "vsr", "hub")  # datasets that lie in a data_dir
CONF = Path(__file__).resolve().parents[1] / "conf"
# What a checkout of the upstream code has under data/, and its prompts/ beside data/.
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
    for name, dataset in benchmarks("all", ()):
        yield glance(name, dataset, data)


def verify(name: str, overrides: Sequence[str], data: Path) -> Iterator[Finding]:
    """As `findings`, of one benchmark or `all`, and opens every image and compares every checksum; writes nothing."""
    for option, dataset in benchmarks(name, overrides):
        yield check(option, dataset, data)


def fetch_data(name: str, overrides: Sequence[str], data: Path, way: Way) -> Iterator[Finding]:
    """Fetches what one benchmark, or each of `all`, lacks; then as `verify`. Raises a SpatialEvalError."""
    chosen = benchmarks(name, overrides)
    with refusals(data):
        data.mkdir(parents=True, exist_ok=True)
    checksums = Checksums(data)
    for option, dataset in chosen:
        if isinstance(dataset, WhatsUp):
            gathering.whatsup(dataset, data, way, checksums)
        elif isinstance(dataset, Vsr):
            gathering.vsr(dataset, data, way, checksums)
        elif isinstance(dataset, Hub):
            preparing.split(dataset, data, checksums)
        yield check(option, dataset, data)
    downloads = data / "cache" / "downloads"
    if not any(downloads.rglob("*.lock")):  # those of another process stay
        shutil.rmtree(downloads, ignore_errors=True)


def benchmarks(name: str, overrides: Sequence[str]) -> list[tuple[str, Benchmark]]:
    """What a name of conf/dataset, or `all`, means, by name, with `dataset.KEY=VALUE`s. Raises ConfigError."""
    known = [option for option in _options("dataset") if _kind(option) in KINDS]
    if name != "all" and name not in known:
        raise ConfigError(unknown("dataset to prepare", name, ["all", *known], aliases=UPSTREAM))
    names = [option for option in known if option != "hub"] if name == "all" else [name]  # hub is whatever repo= says
    return [(option, config.dataset(compose({"dataset": option}, overrides).dataset)) for option in names]


def called(name: str) -> str:
    """A dataset's name in conf/dataset, where it is upstream's or differs in case; else as it is."""
    low = name.lower()
    return UPSTREAM.get(low, low if low in _options("dataset") else name)


def benchmark(name: str, overrides: Sequence[str] = ()) -> Benchmark:
    """Any name of conf/dataset, or upstream's, with `dataset.KEY=VALUE`s, template among them. Raises ConfigError."""
    options = _options("dataset")
    option = called(name)
    if option not in options:
        hint = "your own questions: --dataset jsonl dataset.path=FILE"
        raise ConfigError(unknown("dataset", name, options, aliases=UPSTREAM, hint=hint))
    tree = compose({"dataset": option}, overrides)
    made, template = config.dataset(tree.dataset), tree.dataset.get("template")
    if template is None:
        return made
    if template not in _options("template"):
        return templated(made, str(template))
    return templated(made, yaml.safe_load((CONF / "template" / f"{template}.yaml").read_text("utf8"))["text"], template)


def fetch_model(name: str, values: Mapping[str, Any]) -> Path:
    """The folder that `model=name` will run from, fetched into the hub cache if need be, and whole.

    Raises ModelError, also where its files do not hold what its config.json wants.
    """
    if name not in _options("model"):
        raise ConfigError(unknown("model", name, _options("model")))
    node = compose({"model": name}).model
    for key, value in values.items():
        node[key] = value
    model = config.model(node)
    if not isinstance(model, HF):
        raise ModelError(f"model={name} has nothing to fetch")
    folder = model.fetch()
    model.verify()
    return folder


def compose(choices: Mapping[str, str], overrides: Sequence[str] = ()) -> DictConfig:
    """conf/ with these options and `group.key=value`s; which keys exist is checked where they are read."""
    import hydra
    from hydra.errors import HydraException

    given = [f"{group}={option}" for group, option in choices.items()] + [f"++{override}" for override in overrides]
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose("config", overrides=given)
    except HydraException as error:
        raise ConfigError(f"cannot read {' '.join(overrides)}: {str(error).splitlines()[0]}") from None


def _kind(option: str) -> Any:
    return yaml.safe_load((CONF / "dataset" / f"{option}.yaml").read_text("utf8"))["kind"]


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))
