"""Models from the Hugging Face hub or a folder, by description: which weights, and how they are run."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from spatial_eval.benchmarks.image_files import digest_images
from spatial_eval.core.errors import ConfigError, MissingModel, ModelError, describe_unknown
from spatial_eval.core.hashing import digest_folder
from spatial_eval.core.types import Benchmark, Places, Sample
from spatial_eval.models import weights

log = logging.getLogger(__name__)

CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "attn": ("sdpa", "flash", "efficient", "math"),
    "decoding": ("shared", "per_arm"),
    "selfcheck": ("first", "never", "always"),
}
DEVICE_MAPS = ("auto", "balanced", "sequential")
CONTENT = ("*.safetensors", *weights.TEXTS)  # what a run may read of a model's folder
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class CheckpointSpec:
    """A vision-language model in transformers' format; its family is read from config.json.

    Attributes:
        path: a folder with config.json and *.safetensors, a hub id `organisation/name`, or `package:NAME`,
            a folder inside this package.
        revision: branch, tag or commit on the hub; "" = main.
        dtype: auto = float32 on a CPU, bfloat16 elsewhere. device: auto, cpu, mps, cuda or cuda:N.
        device_map: how accelerate spreads the layers over the devices of this process; None = one device. No part
            of the identity (unverified: not run on a machine with several GPUs).
        batch_size: rows of the dataset a forward pass may serve, or "auto": as many as fit.
        attn: kernel of the shared prefix's attention; sdpa lets torch choose.
        decoding: shared = one prefill for all arms; per_arm = one plain generate each.
        selfcheck: when to compare tokens and scores with plain generates, in float32: first, never, always.
        preset: the preset its other values came from, for the record. paper_model: its row in paper.csv.
        rms_norm_eps: replaces the checkpoint's value. pad_to: left padding in tokens before the image expands.
        layers: scale only layers of smaller index. span: scale all keys from first to last image token.
        tf32: allow TensorFloat32 in float32 products. graphs: decode in steps of one shape, on CUDA as a graph.
    """

    path: str
    name: str = ""
    revision: str = ""
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    batch_size: int | str = 1
    attn: str = "sdpa"
    decoding: str = "shared"
    selfcheck: str = "first"
    preset: str | None = None
    paper_model: str = ""
    rms_norm_eps: float | None = None
    pad_to: int | None = None
    layers: int | None = None
    span: bool = False
    tf32: bool = False
    graphs: bool = False

    def __post_init__(self) -> None:
        for key, valid in CHOICES.items():
            if getattr(self, key) not in valid:
                raise ConfigError(describe_unknown(f"model.{key}", getattr(self, key), valid))
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ConfigError(describe_unknown("model.device", self.device, ("auto", "cuda", "cuda:N", "mps", "cpu")))
        if self.device_map is not None:
            self._check_device_map()
        size = self.batch_size
        if size != "auto" and (isinstance(size, (str, bool)) or size < 1):
            raise ConfigError(f"model.batch_size must be auto or an integer of at least 1, got {size!r}")
        for key in ("pad_to", "layers"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"model.{key} must be at least 1, got {value}")
        if not self.path:
            raise ConfigError("model.path is empty: give a folder or a hub id, model.path=llava-hf/llava-1.5-7b-hf say")
        if not self.name:
            object.__setattr__(self, "name", Path(self.path).name.lower().replace(" ", "_"))

    def _check_device_map(self) -> None:
        if self.device_map not in DEVICE_MAPS:
            raise ConfigError(describe_unknown("model.device_map", self.device_map, ("null", *DEVICE_MAPS)))
        for key, value in (("device", "auto"), ("graphs", False)):
            if getattr(self, key) != value:
                raise ConfigError(
                    f"model.device_map={self.device_map} needs model.{key}={str(value).lower()}: it takes every device "
                    "that the job sees (model.resources.gpus), and a graph has one"
                )

    @property
    def kind(self) -> str:
        return "hf"

    def describe(self, places: Places) -> dict[str, Any]:
        """Settings at their default are left out, so that a setting added later keeps old stores valid."""
        keys = ("batch_size", "attn", "decoding", "rms_norm_eps", "pad_to", "layers", "span", "tf32", "graphs")
        defaults = {field.name: field.default for field in fields(self)}
        settings = {key: getattr(self, key) for key in keys if getattr(self, key) != defaults[key]}
        return {"kind": self.kind, **self.identity(places), "dtype": self.run_dtype(), **settings}

    def identity(self, places: Places) -> dict[str, str]:
        """Hub id and resolved commit, or a digest of the files' content; never the path."""
        folder = self.local()
        if folder.is_dir():
            return {"files": digest_folder(folder, CONTENT, places)}
        return {"hub": self.path, "commit": self._commit()}

    def run_device(self) -> str:
        """`device`, with auto resolved without importing torch."""
        if self.device != "auto":
            return self.device
        if Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1"):
            return "cuda"
        return "mps" if sys.platform == "darwin" and os.uname().machine == "arm64" else "cpu"

    def run_dtype(self) -> str:
        if self.dtype != "auto":
            return self.dtype
        return "float32" if self.run_device() == "cpu" else "bfloat16"

    def fingerprint(self, dataset: Benchmark, samples: Sequence[Sample], places: Places) -> list[str]:
        """The digest of each image as it is shown, unless the sample brings it."""
        paths = {one.image: "" for one in samples if one.image is not None and not one.image_digest}
        digests = dict(zip(paths, digest_images(list(paths), dataset.orientation, places), strict=True))
        return [one.image_digest or (digests[one.image] if one.image is not None else "none") for one in samples]

    def signals(self) -> frozenset[str]:
        return frozenset({"max_prob", "entropy", "margin", "logit"})

    def local(self) -> Path:
        """The folder that `path` means if it means one."""
        inside = self.path.removeprefix("package:")
        return Path(self.path).expanduser() if inside == self.path else Path(__file__).parents[1] / inside

    def folder(self) -> Path | None:
        """Where the files lie on this machine, None for a hub id that was not fetched yet."""
        folder = self.local()
        if folder.is_dir():
            return folder
        if not _HUB_ID.fullmatch(self.path):
            raise ModelError(f"model.path={self.path} is neither a folder nor a hub id (organisation/name)")
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.path, "config.json", revision=self.revision or None)
        complete = isinstance(found, str) and weights.is_complete(Path(found).parent)  # else the rest is fetched
        return Path(str(found)).parent if complete else None

    def fetch(self) -> Path:
        """Downloads what a run needs into the hub cache, for compute nodes without network. Raises ModelError."""
        from huggingface_hub import snapshot_download

        if self.local().is_dir():
            return self.local()
        try:
            return Path(snapshot_download(self.path, revision=self.revision or None, allow_patterns=list(CONTENT)))
        except hub_errors() as error:
            raise ModelError(f"cannot fetch {self.path}: {str(error).splitlines()[0]}") from error

    def _commit(self) -> str:
        if re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return self.revision
        folder = self.folder()
        if folder is not None:
            return folder.name  # the hub cache keeps each commit in a folder of its name
        from huggingface_hub import HfApi

        try:
            return str(HfApi().model_info(self.path, revision=self.revision or None, timeout=10).sha)
        except hub_errors() as error:
            raise MissingModel(
                f"{self.path} is not in the hub cache and the hub cannot be asked ({type(error).__name__}): "
                "run `python -m spatial_eval prepare model=...` where there is network"
            ) from error


def hub_errors() -> tuple[type[Exception], ...]:
    """What asking the hub may raise: its own errors, and those of the HTTP client that it stands on (httpx, httpx2)."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    client = [base for base in HfHubHTTPError.__bases__ if base.__name__ == "HTTPError"]
    return (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, *client)
