"""Describe models from the Hugging Face hub or a folder: their weights, and the settings of a run."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatial_eval.benchmarks.image_files import digest_images
from spatial_eval.core.errors import ConfigError, MissingModel, ModelError, describe_unknown, first_line
from spatial_eval.core.hashing import digest_folder
from spatial_eval.core.types import Batching, Benchmark, Places, Sample
from spatial_eval.core.validate import changed_values, field_values
from spatial_eval.models import weights

log = logging.getLogger(__name__)

HUB_S = 3.0  # seconds that the hub may take to say which commit it has

CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "attn": ("sdpa", "flash", "efficient", "math"),
    "decoding": ("shared", "per_arm"),
    "share": ("image", "question"),
    "image_mode": ("processor", "pad"),
    "selfcheck": ("first", "never", "always"),
}
LIMITS = ("min_pixels", "max_pixels", "max_tiles")  # of a picture, None = as the processor does
AUTO_ROWS = 32  # rows of a block under batch_size=auto; batches grow beyond it by whole blocks
DEVICE_MAPS = ("auto", "balanced", "sequential")
CONTENT = ("*.safetensors", *weights.TEXTS)  # what a run may read of a model's folder
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class CheckpointSpec:
    """Describe a vision-language model in transformers' format; its family is read from config.json.

    Attributes:
        path: a folder with config.json and *.safetensors, a hub id `organisation/name`, or `package:NAME`,
            a folder inside this package.
        revision: branch, tag or commit on the hub; "" = main.
        dtype: auto = float32 on a CPU, bfloat16 elsewhere. device: auto, cpu, mps, cuda or cuda:N.
        device_map: how accelerate spreads the layers over the devices of this process; None = one device. No part
            of the identity (unverified: not run on a machine with several GPUs).
        batch_size: rows of the dataset per forward pass; "auto" = as many as fit.
        share: image = questions on one picture share its prefill, batches are cut by picture and vcd's noise is drawn
            per picture; question = each question has a prefill of its own, as in version 0.1. Of decoding=shared alone.
        attn: kernel of the shared prefix's attention; sdpa lets torch choose.
        decoding: shared = one prefill for all arms; per_arm = one plain generate each.
        selfcheck: when to compare tokens and scores with plain generates, in float32: first, never, always.
        preset: name of the preset of its other values, as a record. paper_model: its row in paper.csv.
        rms_norm_eps: replaces the checkpoint's value. pad_to: left padding in tokens before the image expands.
        image_mode: pad = pictures become squares in the processor's mean colour first, as in LLaVA's own code.
        min_pixels, max_pixels: limits on the size of a scaled picture, for processors that have them (Qwen-VL).
        max_tiles: number of tiles of a picture, at most, for processors that cut (models.loading.limit_tiles).
            Where one of these four is set, published numbers have another protocol: paper_model is "".
        layers: scale only layers of smaller index. span: scale all keys from first to last image token.
        tf32: allow TensorFloat32 in float32 products.
        graphs: decode in steps of one shape, on CUDA as a graph; auto = on CUDA, where it gives what eager steps give;
            with share=question auto is false.
        workers: threads that open and process pictures. prefetch: batches that are prepared while one is computed.
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
    graphs: bool | str = "auto"
    share: str = "image"
    workers: int = 2
    prefetch: int = 2
    image_mode: str = "processor"
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_tiles: int | None = None

    def __post_init__(self) -> None:
        values = field_values(self)
        for key, valid in CHOICES.items():
            if values[key] not in valid:
                raise ConfigError(describe_unknown(f"model.{key}", values[key], valid))
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ConfigError(describe_unknown("model.device", self.device, ("auto", "cuda", "cuda:N", "mps", "cpu")))
        if self.device_map is not None:
            self._check_device_map()
        size = self.batch_size
        if size != "auto" and (isinstance(size, (str, bool)) or size < 1):
            raise ConfigError(f"model.batch_size must be auto or an integer of at least 1, got {size!r}")
        if not isinstance(self.graphs, bool) and self.graphs != "auto":
            raise ConfigError(describe_unknown("model.graphs", self.graphs, ("auto", "true", "false")))
        self._check_numbers(values)
        if self.shows_otherwise:
            object.__setattr__(self, "paper_model", "")
        if not self.path:
            raise ConfigError("model.path is empty: give a folder or a hub id, model.path=llava-hf/llava-1.5-7b-hf say")
        if self.graphs == "auto" and not self.shares_images:  # as version 0.1
            object.__setattr__(self, "graphs", False)
        if not self.name:
            object.__setattr__(self, "name", Path(self.path).name.lower().replace(" ", "_"))

    def _check_numbers(self, values: Mapping[str, Any]) -> None:
        for key in ("pad_to", "layers", "workers", "prefetch", *LIMITS):
            if values[key] is not None and values[key] < 1:
                raise ConfigError(f"model.{key} must be at least 1, got {values[key]}")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ConfigError(f"model.min_pixels={self.min_pixels} is more than model.max_pixels={self.max_pixels}")

    def _check_device_map(self) -> None:
        if self.device_map not in DEVICE_MAPS:
            raise ConfigError(describe_unknown("model.device_map", self.device_map, ("null", *DEVICE_MAPS)))
        if self.device != "auto" or self.graphs is True:
            needed = "model.device=auto" if self.device != "auto" else "model.graphs=false"
            raise ConfigError(
                f"model.device_map={self.device_map} needs {needed}: it takes every device that the job sees "
                "(model.resources.gpus), and a graph has one"
            )

    @property
    def kind(self) -> str:
        return "hf"

    @property
    def shares_images(self) -> bool:
        """Return whether questions on one picture share its prefill."""
        return self.share == "image" and self.decoding == "shared"

    @property
    def shows_otherwise(self) -> bool:
        """Return whether a key changes how the processor prepares pictures."""
        return self.image_mode != "processor" or any((self.min_pixels, self.max_pixels, self.max_tiles))

    @property
    def batching(self) -> Batching:
        rows = AUTO_ROWS if isinstance(self.batch_size, str) else self.batch_size
        return Batching(rows, by_image=self.shares_images)

    def describe(self, places: Places) -> dict[str, Any]:
        """Describe its identity, without settings at their default: a new setting keeps old stores valid.

        share=question is left out too, because version 0.1, which had no such setting, ran so.
        """
        keys = ("batch_size", "attn", "decoding", "rms_norm_eps", "pad_to", "layers", "span", "tf32", "image_mode")
        changed = changed_values(self)
        settings = {key: changed[key] for key in (*keys, *LIMITS) if key in changed}
        if self.shares_images:
            settings["share"] = "image"
        if self.graphs is True or (self.graphs is False and self.shares_images):
            settings["graphs"] = self.graphs
        return {"kind": self.kind, **self.identity(places), "dtype": self.run_dtype(), **settings}

    def identity(self, places: Places) -> dict[str, str]:
        """Return hub id and resolved commit, or a digest of the files' content; never the path."""
        folder = self.local()
        if folder.is_dir():
            return {"files": digest_folder(folder, CONTENT, places)}
        return {"hub": self.path, "commit": self._commit()}

    def run_device(self) -> str:
        """Return `device`, with auto resolved without importing torch."""
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
        """Return the digests of each sample's images as the model gets them, unless the sample has a digest.

        The digest of an absent image is "missing".
        """
        paths = list(dict.fromkeys(path for sample in samples if not sample.image_digest for path in sample.images))
        digests = dict(zip(paths, digest_images(paths, dataset.orientation, places), strict=True))

        def join_digests(images: Sequence[Path]) -> str:
            each = [digests[path] for path in images]
            return "missing" if "missing" in each else "+".join(each) or "none"

        return [sample.image_digest or join_digests(sample.images) for sample in samples]

    def signals(self) -> frozenset[str]:
        return frozenset({"max_prob", "entropy", "margin", "logit"})

    def local(self) -> Path:
        """Return the folder that `path` names; for a hub id there is none of this name."""
        inside = self.path.removeprefix("package:")
        return Path(self.path).expanduser() if inside == self.path else Path(__file__).parents[1] / inside

    def folder(self) -> Path | None:
        """Return the folder of the files on this machine; None for a hub id that is not fetched yet."""
        folder = self.local()
        if folder.is_dir():
            return folder
        if not _HUB_ID.fullmatch(self.path):
            raise ModelError(f"model.path={self.path} is neither a folder nor a hub id (organisation/name)")
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(self.path, "config.json", revision=self.revision or None)
        cached = Path(config).parent if isinstance(config, str) else None
        return cached if cached and weights.is_complete(cached) else None  # else the other files are fetched

    def fetch(self) -> Path:
        """Download the files of a run into the hub cache, for compute nodes without network. Raises ModelError."""
        from huggingface_hub import snapshot_download

        if self.local().is_dir():
            return self.local()
        if self.folder() is None:
            self.ask_hub()  # at once: snapshot_download tries for a minute
        try:
            return Path(snapshot_download(self.path, revision=self.revision or None, allow_patterns=list(CONTENT)))
        except hub_errors() as error:
            raise ModelError(f"cannot fetch {self.path}: {first_line(error)}") from error

    def _commit(self) -> str:
        if re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return self.revision
        folder = self.folder()
        if folder is not None:
            return folder.name  # the hub cache keeps each commit in a folder of its name
        return self.ask_hub()

    def ask_hub(self) -> str:
        """Return the commit that the hub has under this name and revision.

        Raises:
            MissingModel: the hub has none, or does not answer within HUB_S seconds (resolving a host name can hang for
                longer than a socket's time-out).
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        answers: list[str | Exception] = []
        errors = hub_errors()

        def ask() -> None:
            try:
                info = HfApi().model_info(self.path, revision=self.revision or None, timeout=HUB_S)
                answers.append(str(info.sha))
            except errors as error:
                answers.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(HUB_S)
        answer = answers[0] if answers else TimeoutError()
        if isinstance(answer, str):
            return answer
        if isinstance(answer, RepositoryNotFoundError | RevisionNotFoundError):
            raise MissingModel(
                f"{self.path}{f' at {self.revision}' * bool(self.revision)} is not on the hub, or wants a login: look "
                "at its name and revision, or `hf auth login`"
            ) from answer
        raise MissingModel(
            f"{self.path} is not in the hub cache and the hub cannot be asked ({type(answer).__name__}): "
            "run `python -m spatial_eval prepare model=...` where there is network"
        ) from answer


def hub_errors() -> tuple[type[Exception], ...]:
    """List the exceptions of a request to the hub: its own, and those of its HTTP client (httpx, httpx2)."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    client = [base for base in HfHubHTTPError.__bases__ if base.__name__ == "HTTPError"]
    return (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, *client)
