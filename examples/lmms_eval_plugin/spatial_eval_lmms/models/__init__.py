"""List the models of this package for LMMS_EVAL_PLUGINS: the module's name and its class."""

AVAILABLE_MODELS = {"spatial_eval": "SpatialEval"}
