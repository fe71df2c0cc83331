"""Use a checkpoint as a model of a sweep: check it before a run, and load it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from spatial_eval.benchmarks.prompts import IMAGE
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
    """Run a model in transformers' format, from the Hugging Face hub or a folder; its fields are CheckpointSpec's."""

    def check(self, dataset: Benchmark, samples: Sequence[Sample], arms: Sequence[Arm], places: Places) -> None:  # noqa: ARG002  the protocol's signature
        """Check the model for a dataset; read the headers of weight files alone, and open no image.

        Raises ModelError on an absent or damaged file or an absent layer, DataError on absent images.
        """
        _check_images(dataset, [sample for sample in samples if not sample.image_digest])
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
        last = max((int(arm.attention.image_index) for arm in arms if arm.attention.image_index), default=-1)
        short = next((sample for sample in samples if len(sample.images) <= last), None)
        if short is not None and last >= 0:
            raise ModelError(
                f"method.image={last}: question {short.id} of {dataset.name} has {len(short.images)} images, numbered "
                "from 0: take a smaller number, or all"
            )
        self.check_prompts(dataset, samples, arms)

    def check_prompts(self, dataset: Benchmark, samples: Sequence[Sample], arms: Sequence[Arm] = ()) -> None:
        """Raise SpatialEvalError where the model cannot take what a dataset and its own keys put into the prompt.

        A model that is not fetched yet passes; where these keys are at their defaults, nothing is read.
        """
        if not samples:
            return
        several = any(sample.further_images for sample in samples)
        seconds = [arm.contrast.second for arm in arms if arm.contrast and arm.contrast.second]
        chosen = dataset.prompt == "chat" or (dataset.prompt == "raw" and any(IMAGE not in s.question for s in samples))
        asked = several or chosen or self.shows_otherwise or dataset.system or seconds
        if asked and self.folder() is not None:
            from spatial_eval.models import encoder  # transformers: only where there is something to check

            encoder.check_prompts(self, dataset, samples, seconds)

    def verify(self) -> None:
        """Raise ModelError where its files do not match config.json; takes no memory for weights.

        A model of the hub that is not fetched yet passes.
        """
        if self.folder() is not None:
            from spatial_eval.models.loading import verify_weights  # torch and transformers

            verify_weights(self)

    def load(self, dataset: Benchmark, max_new_tokens: int, places: Places) -> Vlm:  # noqa: ARG002  the protocol's signature
        from spatial_eval.models.vlm import LoadedModel  # torch and transformers: only where a model really runs

        return LoadedModel(self, dataset, max_new_tokens)

    def extent(self, dataset: Benchmark, sample: Sample) -> Extent | None:
        """Return the dimensions of its attention; None where its files are not fetched yet."""
        from spatial_eval.models.encoder import measure_extent  # transformers: only where a capture was asked for

        return measure_extent(self, sample, dataset)


def _check_images(dataset: Benchmark, samples: Sequence[Sample]) -> None:
    """Raise DataError where all images are absent; warn where some are."""
    absent = [sample for sample in samples if not (sample.images and all(path.is_file() for path in sample.images))]
    if not absent:
        return
    command = dataset.fetched_by
    prepare = f"run `python -m spatial_eval prepare {command}`" if command else "check the paths in its file"
    if len(absent) == len(samples):
        first = next((path for path in absent[0].images if not path.is_file()), None)
        unnamed = "there is no annotation, which names the images" if command else "its questions name none"
        raise MissingData(f"{dataset.name} has no image: {f'there is no {first}' if first else unnamed}; {prepare}")
    lacking = f"{len(absent)} of {len(samples)} images are missing, and so will be the answers"
    warn_once(f"{dataset.name}: {lacking}; {prepare}")
