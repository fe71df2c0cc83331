"""A checkpoint as a model of the sweep: what is checked before a run, and the way to its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from spatial_eval.benchmarks.prompts import prompt_mode
from spatial_eval.core.arms import Arm
from spatial_eval.core.errors import MissingData, ModelError
from spatial_eval.core.layers import BUCKETS, layer_indices
from spatial_eval.core.terminal import warn_once
from spatial_eval.core.types import Benchmark, Places, Sample, Vlm
from spatial_eval.models import weights
from spatial_eval.models.spec import CheckpointSpec
from spatial_eval.store.attention import Extent


@dataclass(frozen=True, slots=True)
class HF(CheckpointSpec):
    """A model in transformers' format, from the Hugging Face hub or a folder. Its fields are CheckpointSpec's."""

    def check(self, dataset: Benchmark, samples: Sequence[Sample], arms: Sequence[Arm], places: Places) -> None:  # noqa: ARG002  the protocol's signature
        """Opens no image and reads no weights, only their files' headers.

        Raises ModelError on an absent or damaged file or an absent layer, DataError on absent images.
        """
        _check_images(dataset, [one for one in samples if not one.image_digest])
        if self.device_map is not None and find_spec("accelerate") is None:
            raise ModelError(
                f"model.device_map={self.device_map} needs accelerate: pip install 'spatial-eval[multi-gpu]'"
            )
        folder = self.folder()
        if folder is None:
            return
        weights.check_files(folder, self.path)
        named = {arm.values["layers"] for arm in arms} - {"", *BUCKETS}
        if named:
            from spatial_eval.models.loading import count_layers

            depth = count_layers(self)
            for text in sorted(named):
                layer_indices(text, depth)

    def verify(self) -> None:
        """Raises ModelError where its files do not hold what config.json wants; takes no memory for weights.

        Says nothing of a model of the hub that was not fetched yet.
        """
        if self.folder() is not None:
            from spatial_eval.models.loading import verify_weights  # torch and transformers

            verify_weights(self)

    def load(self, dataset: Benchmark, max_new_tokens: int, places: Places) -> Vlm:  # noqa: ARG002  the protocol's signature
        from spatial_eval.models.vlm import LoadedModel  # torch and transformers: only where a model really runs

        return LoadedModel(self, prompt_mode(dataset), dataset.distort, max_new_tokens, orientation=dataset.orientation)

    def extent(self, dataset: Benchmark, sample: Sample) -> Extent | None:
        """How large its attention is; None where its files were not fetched yet."""
        from spatial_eval.models.encoder import measure_extent  # transformers: only where a capture was asked for

        return measure_extent(
            self, sample, prompt=prompt_mode(dataset), distort=dataset.distort, orientation=dataset.orientation
        )


def _check_images(dataset: Benchmark, samples: Sequence[Sample]) -> None:
    """Raises DataError where all images are absent; says how many are where some are."""
    absent = [one for one in samples if one.image is None or not one.image.is_file()]
    if not absent:
        return
    command = dataset.fetched_by
    prepare = f"run `python -m spatial_eval prepare {command}`" if command else "check the paths in its file"
    if len(absent) == len(samples):
        first = absent[0].image or "annotation, which names the images"
        raise MissingData(f"{dataset.name} has no image: there is no {first}; {prepare}")
    lacking = f"{len(absent)} of {len(samples)} images are missing, and so will be the answers"
    warn_once(f"{dataset.name}: {lacking}; {prepare}")
