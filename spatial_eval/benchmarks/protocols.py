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
from spatial_eval.core.errors import ConfigError, describe_unknown
from spatial_eval.core.types import Benchmark, Places, Sample

Keys = Mapping[str, Any]  # of the dataset, and `model.image_mode`

NAMES = ("llava", "lmms", "vlmevalkit", "authors")
CHANGED = "-changed"  # behind a protocol's name: a key that the user set is another than its own
SHORT = "Answer the question using a single word or phrase."  # LLaVA's, for a word
LETTER = "Answer with the option's letter from the given choices directly."  # LLaVA's, for a letter
NOTE = "Note: You only need to respond with {letters} without providing any additional information."  # lmms-eval's
BELOW = "Please select the correct answer from the options above."  # both kits
YES_OR_NO, LETTER_OF = "Please answer Yes or No.", "Please output the letter corresponding to the correct option."

_LLAVA: Keys = {"system": "vicuna_v1", "model.image_mode": "pad"}
_STOCK: Keys = {"system": "none", "model.image_mode": "processor"}
# What a kit does for LLaVA-1.5, for which it calls LLaVA's code; other models have their processor and chat template.
# VLMEvalKit's blanks around `<image>` and behind ASSISTANT: are not imitated.
_OF_LLAVA15: Mapping[str, Keys] = {"lmms": _LLAVA, "vlmevalkit": {**_LLAVA, "system": "llava_v1"}}
_LLAVA15 = re.compile(r"llava[-_]?v?1\.?5", re.IGNORECASE)
# VLMEvalKit's wrappers of these word questions with a column per option themselves (_OF_WRAPPERS).
_WRAPPED = re.compile(r"llava[-_]?(?:v?1\.?[56]|next)|internvl", re.IGNORECASE)


def _wording(scoring: str, instruction: Any = "", preface: str = "", style: str | None = None, **keys: str) -> Keys:
    own = {f"columns.{column}": name for column, name in keys.items()}
    return {"scoring": scoring, "instruction": instruction, "preface": preface, "options_style": style, **own}


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
_LABEL = "Question: {question}"
_OPTIONS = _wording("l_vk", BELOW, _LABEL, "options")  # VLMEvalKit's, of sets with a column per option
_BLINK = {
    "lmms": _wording("l_lead", preface=NOTE),
    "vlmevalkit": _wording("l_vk", BELOW, _LABEL, "options", question="question"),
    "authors": _wording("l_vk"),
}
_THREEDSR = {"lmms": _wording("l_3dsr", BELOW, _LABEL, "options"), "vlmevalkit": _OPTIONS}
_REPLY = "Reply only to the corresponding option.\nAnswer:"


def _natural(blank: str) -> Keys:
    instruction = {"yes_no": f"{{question}}{blank}{YES_OR_NO}", "letters": f"{{question}}{blank}{LETTER_OF}"}
    return _wording("naturalbench", instruction, style="none")


# By benchmark and protocol; what is not here is not known well enough to be asked, or does not exist (_REASONS).
PROTOCOLS: Mapping[str, Mapping[str, Keys]] = {
    **dict.fromkeys(("pope_coco", "pope_aokvqa", "pope_gqa"), _POPE),
    **dict.fromkeys(("cv_bench", "cv_bench_relation"), _CV_BENCH),
    **dict.fromkeys(("blink_spatial", "blink_depth", "blink_multiview"), _BLINK),
    **dict.fromkeys(("threedsr", "threedsr_circular"), _THREEDSR),
    "embspatial": {
        "llava": _wording("l_lead", LETTER, style="lines"),
        "lmms": _wording("l_lead", preface=NOTE, style="half_brackets"),
        "vlmevalkit": _wording(
            "l_easi", "Give me the answer letter directly. The best answer is:", _LABEL, "options_colons"
        ),
    },
    "mmvp": {
        "llava": _wording("letter", LETTER, style="lines"),
        "lmms": _wording("l_mmvp", LETTER, style="lines"),
        "vlmevalkit": _OPTIONS,
    },
    "naturalbench": {"lmms": _natural(" "), "vlmevalkit": _natural(" "), "authors": _natural("")},
    "viewspatial": {
        "lmms": _wording("l_viewspatial", _REPLY, _LABEL, "choices"),
        "vlmevalkit": _wording("l_easi", _REPLY, _LABEL, "choices"),
        "authors": _wording("l_viewspatial", _REPLY, style="joined"),
    },
    "realworldqa": {"lmms": _wording("realworldqa")},
}
_LETTERED = _wording("l_vk", LETTER, style="lines")
_LETTERED_COLUMN = _wording("l_vk", LETTER, style="lines", question="question")  # whose YAML asks another column
_OF_WRAPPERS = {
    **dict.fromkeys(("mmvp", "threedsr", "threedsr_circular"), _LETTERED),
    **dict.fromkeys((name for name in PROTOCOLS if name.startswith(("cv_bench", "blink_"))), _LETTERED_COLUMN),
}
# Why a protocol is not known: by benchmark, else by protocol.
_ABSENT = {
    "llava": "LLaVA's evaluation code does not have this set",
    "lmms": "lmms-eval does not have this set",
    "vlmevalkit": "VLMEvalKit does not have this set",
    "authors": "no evaluation code of its authors is known here",
}
_TABLE = "VLMEvalKit asks it from a table of its own, whose wording its code does not show"
_REASONS: Mapping[tuple[str, str], str] = {
    **{
        (name, "authors"): "its authors published questions and a rule, and no wording"
        for name in ("pope_coco", "pope_aokvqa", "pope_gqa")
    },
    **{
        (name, "authors"): "its authors read answers with GPT-4, and no judge model is used here"
        for name in ("threedsr", "threedsr_circular")
    },
    ("mmvp", "authors"): "its authors draw answers and grade them with GPT-4, and no judge model is used here",
    ("embspatial", "authors"): "its authors released no wording, and compare the likelihoods of the options",
    ("vsr", "vlmevalkit"): _TABLE,
    ("vsr_random", "vlmevalkit"): "VLMEvalKit has the zero-shot split only",
    ("realworldqa", "vlmevalkit"): _TABLE,
    **{(name, "authors"): "its authors train classifiers of captions" for name in ("vsr", "vsr_random")},
}


def find_protocol(benchmark: str, protocol: str, model: str) -> Keys:
    """Return the keys that a protocol sets, `model.image_mode` among them where it pads pictures.

    Args:
        benchmark: key of PROTOCOLS. model: path and name, which identify LLaVA and InternVL.

    Raises:
        ConfigError: the protocol is not known for the benchmark; the message says why.
    """
    known = PROTOCOLS.get(benchmark, {})
    if protocol not in NAMES:
        raise ConfigError(describe_unknown("dataset.protocol", protocol, known or NAMES))
    if protocol not in known:
        has = ", ".join(known) or "none"
        raise ConfigError(
            f"dataset.protocol={protocol} is not known for {benchmark}: {explain_absence(benchmark, protocol)}; known "
            f"for it: {has}; set dataset.system, instruction, scoring and model.image_mode yourself"
        )
    if protocol == "authors":  # they leave system message and padding to each model
        return known[protocol]
    wording = known[protocol]
    if protocol == "vlmevalkit" and _WRAPPED.search(model):
        wording = _OF_WRAPPERS.get(benchmark, wording)
    shown = _LLAVA if protocol == "llava" else _OF_LLAVA15[protocol] if _LLAVA15.search(model) else _STOCK
    return {**wording, **shown}


def explain_absence(benchmark: str, protocol: str) -> str:
    """Return why a protocol is not known for a benchmark."""
    return _REASONS.get((benchmark, protocol), _ABSENT[protocol])


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
