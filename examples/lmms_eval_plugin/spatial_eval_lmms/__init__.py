"""Register spatial-eval as a model of lmms-eval."""

from typing import Any


def manifest() -> Any:
    """Say where the model's class is (entry point `lmms_eval.models`)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("spatial_eval", simple_class_path="spatial_eval_lmms.models.spatial_eval.SpatialEval")
