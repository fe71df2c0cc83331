"""Look up models by kind.

Add one with standard attention: a YAML in conf/model. A new kind: a class and a line in MODELS.
"""

from __future__ import annotations

from spatial_eval.core.types import Model
from spatial_eval.methods.registry import Interface, PluginTable
from spatial_eval.models.hf import HF
from spatial_eval.models.recorded import Imported, Recorded

# Names in papers and upstream code -> ours, for "did you mean".
UPSTREAM = {
    "llava1.5": "llava15_7b",
    "llava-1.5": "llava15_7b",
    "llava15": "llava15_7b",
    "llava-hf/llava-1.5-7b-hf": "llava15_7b",
    "llava1.6": "llava16_7b_vicuna",
    "llava-1.6": "llava16_7b_vicuna",
    "llava16": "llava16_7b_vicuna",
    "qwen2.5-vl": "qwen25_vl_7b",
    "qwen25vl": "qwen25_vl_7b",
    "qwen2-vl": "qwen2_vl_7b",
    "qwen3-vl": "qwen3_vl_8b",
    "llava-onevision": "llava_onevision_7b",
    "internvl3": "internvl3_8b",
    "smolvlm": "smolvlm2",
    "gemma3": "gemma3_4b",
    "paligemma": "paligemma_3b",
}

MODELS: PluginTable[Model] = PluginTable(
    "spatial_eval.models",
    {"hf": HF, "recorded": Recorded, "imported": Imported},
    Interface(("name", "paper_model", "describe", "check", "fingerprint", "signals", "load"), lambda _: {}),
)
