"""Define the protocols of other projects (`dataset.protocol`): system message, wording, padding and rule together.

llava       LLaVA's own evaluation code (github.com/haotian-liu/LLaVA, docs/Evaluation.md)
lmms        lmms-eval, as of August 2026
vlmevalkit  VLMEvalKit, as of August 2026, without its judge model
authors     the benchmark's own code
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spatial_eval.benchmarks.prompts import Rewritten
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.types import Benchmark, Places, Sample

Keys = Mapping[str, Any]  # of the dataset, and `model.image_mode`

NAMES = ("llava", "lmms", "vlmevalkit", "authors")
CHANGED = "-changed"  # behind a protocol's name: a key that the user set is another than its own
SHORT = "Answer the question using a single word or phrase."  # LLaVA's, for a word
LETTER = "Answer with the option's letter from the given choices directly."  # LLaVA's, for a letter
NOTE = "Note: You only need to respond with {letters} without providing any additional information."  # lmms-eval's

_LLAVA: Keys = {"system": "vicuna_v1", "model.image_mode": "pad"}
_STOCK: Keys = {"system": "none", "model.image_mode": "processor"}
# What a kit does for LLaVA-1.5, for which it calls LLaVA's code; other models have their processor and chat template.
# VLMEvalKit's blanks around `<image>` and behind ASSISTANT: are not imitated.
_OF_LLAVA15: Mapping[str, Keys] = {"lmms": _LLAVA, "vlmevalkit": {**_LLAVA, "system": "llava_v1"}}
_LLAVA15 = re.compile(r"llava[-_]?v?1\.?5", re.IGNORECASE)


def _wording(scoring: str, instruction: str = "", preface: str = "", style: str | None = None) -> Keys:
    return {"scoring": scoring, "instruction": instruction, "preface": preface, "options_style": style}


_POPE = {
    "llava": _wording("yn_pope", SHORT),
    "lmms": _wording("yn_exact", SHORT),
    "vlmevalkit": _wording("yn_xor"),
}
_CV_BENCH = {
    "lmms": _wording("l_lead", preface=f"{NOTE}\n"),
    "vlmevalkit": _wording("l_vk"),
    "authors": _wording("l_cambrian", LETTER),
}
_BLINK = {"lmms": _wording("l_lead", preface=NOTE), "authors": _wording("l_vk")}
# By benchmark and protocol; what is not here is not known well enough to be asked.
PROTOCOLS: Mapping[str, Mapping[str, Keys]] = {
    **dict.fromkeys(("pope_coco", "pope_aokvqa", "pope_gqa"), _POPE),
    **dict.fromkeys(("cv_bench", "cv_bench_relation"), _CV_BENCH),
    **dict.fromkeys(("blink_spatial", "blink_depth", "blink_multiview"), _BLINK),
    "embspatial": {
        "llava": _wording("l_lead", LETTER, style="lines"),
        "lmms": _wording("l_lead", preface=NOTE, style="half_brackets"),
    },
    "mmvp": {
        "llava": _wording("letter", LETTER, style="lines"),
        "vlmevalkit": _wording("l_vk", LETTER, style="lines"),
    },
}


def find_protocol(benchmark: str, protocol: str, model: str) -> Keys:
    """Return the keys that a protocol sets, `model.image_mode` among them where it pads pictures.

    Args:
        benchmark: key of PROTOCOLS. model: path and name, which identify LLaVA-1.5.

    Raises:
        ConfigError: the protocol is not known for the benchmark.
    """
    known = PROTOCOLS.get(benchmark, {})
    if protocol not in known:
        has = ", ".join(known) or "none"
        raise ConfigError(
            f"dataset.protocol={protocol} is not known for {benchmark}; known for it: {has} "
            f"(protocols: {', '.join(NAMES)}); set dataset.system, instruction, scoring and model.image_mode yourself"
        )
    if protocol == "authors":  # they leave system message and padding to each model
        return known[protocol]
    shown = _LLAVA if protocol == "llava" else _OF_LLAVA15[protocol] if _LLAVA15.search(model) else _STOCK
    return {**known[protocol], **shown}


@dataclass(frozen=True, slots=True)
class Protocolled(Rewritten):
    """Read a benchmark under the label of a protocol.

    Its name is `<benchmark>:<protocol>`; a published number of another protocol never stands beside it. All keys of the
    protocol are set in the benchmark and the model already: its name changes no answer.
    """

    name: str
    benchmark: Benchmark
    protocol: str = field()

    def describe(self) -> dict[str, Any]:
        return self.benchmark.describe()

    def read(self, places: Places) -> list[Sample]:
        return self.benchmark.read(places)


def name_protocol(benchmark: Benchmark, protocol: str) -> Protocolled:
    """Return the benchmark under the label of a protocol, whose keys it has."""
    return Protocolled(f"{benchmark.name}:{protocol}", benchmark, protocol)
