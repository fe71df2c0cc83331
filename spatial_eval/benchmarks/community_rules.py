"""Read answers by the rules of other projects' evaluation code, named as in docs/benchmarks.md. Pure.

A function takes a sample and a text and returns the option that the other code reads from it, lower case; "" where it
reads none. Known weaknesses are kept, because published numbers were computed with them. No rule uses a judge model or
a random guess.
"""

from __future__ import annotations

import re

from spatial_eval.core.types import Sample

# --- yes and no


def read_pope(_sample: Sample, text: str) -> str:
    """Read as POPE and LLaVA: no where the first sentence holds No, not or no between blanks, else yes.

    Source: github.com/RUCAIBox/POPE, evaluate.py; github.com/haotian-liu/LLaVA, llava/eval/eval_pope.py.
    """
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def read_pai(_sample: Sample, text: str) -> str:
    """Read as PAI, SID, OPERA: no where the text, without stops and commas, holds No, not, no, NO or n't; else yes.

    Source: github.com/LALBJ/PAI, pope_eval.py.
    """
    words = text.replace(".", "").replace(",", "").split(" ")
    return "no" if {"No", "not", "no", "NO"} & set(words) or any(word.endswith("n't") for word in words) else "yes"


def read_exact(_sample: Sample, text: str) -> str:
    """Read as lmms-eval on POPE: the whole text, blanks and case aside. Source: lmms_eval/tasks/pope/utils.py."""
    said = text.strip().lower()
    return said if said in ("yes", "no") else ""


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def read_xor(_sample: Sample, text: str) -> str:
    """Read as VLMEvalKit without its judge model: the only one of the words yes and no, after removal of punctuation.

    A mark goes where a blank stands beside it anywhere in the text, and becomes a blank elsewhere; so does every mark
    where a comma stands between digits. Source: vlmeval/dataset/utils/yorn.py, YOrN_Extraction.
    """
    low = text.lower()
    numbers = re.search(r"\d,\d", low) is not None
    said = low
    for mark in _PUNCTUATION:
        said = said.replace(mark, "" if numbers or f"{mark} " in low or f" {mark}" in low else " ")
    words = set(re.sub(r"\.(?!\d)", "", said).split())
    return {(True, False): "yes", (False, True): "no"}.get(("yes" in words, "no" in words), "")


def read_first(_sample: Sample, text: str) -> str:
    """Read as NaturalBench: the earlier of the whole words yes and no, in any case.

    Source: github.com/Baiqi-Li/NaturalBench, extract_answer.
    """
    found = re.search(r"\b(yes|no)\b", text, re.IGNORECASE)
    return found[1].lower() if found else ""


def read_substring(sample: Sample, text: str) -> str:
    """Read as VCD and cd_rethink: the gold answer where its word occurs anywhere in the text, else the other one.

    Source: github.com/DAMO-NLP-SG/VCD, experiments/eval/eval_pope.py.
    """
    gold = sample.answers[0]
    return gold if gold in text.lower() else "no" if gold == "yes" else "yes"


def read_deco(_sample: Sample, text: str) -> str:
    """Read as DeCo: yes where it is a word of the text, else no. Source: github.com/zjunlp/Deco, pope_eval.py."""
    return "yes" if "yes" in re.findall(r"\w+", text.lower()) else "no"


# --- letters of options


def _known(sample: Sample, letter: str | None) -> str:
    """Return a letter in lower case where the question has it as an option."""
    return letter.lower() if letter and letter.lower() in sample.options else ""


def read_leading_letter(sample: Sample, text: str) -> str:
    """Read as lmms-eval on CV-Bench, BLINK, EmbSpatial: the letter that begins the text behind brackets and blanks.

    A word counts by its first letter: `above` is A. Source: lmms_eval/tasks/cv_bench/utils.py.
    """
    found = re.match(r"[(\s]*([A-Za-z])", text)
    return _known(sample, found and found[1])


def read_cambrian(sample: Sample, text: str) -> str:
    """Read as CV-Bench's authors: the first character behind the last "answer is" or "answer:", brackets aside.

    A word counts by its first letter: `above` is A, `A bus is left` is A. Source: github.com/cambrian-mllm/cambrian,
    eval/eval/coco/coco_test.py, extract_mcq_answer.
    """
    last = re.split(r"answer is:?|answer:", text.lower())[-1].strip().rstrip(".").lstrip("(").rstrip(")")
    return _known(sample, last[:1])


_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def read_vlmevalkit(sample: Sample, text: str) -> str:
    """Read as VLMEvalKit without judge model and random option: one capital letter near the end, else an option.

    Source: vlmeval/utils/matching_util.py, can_infer: the only option's letter among the words, where at most three
    words follow its first place; else "answer is X", where `above` gives A; else, in a text at most twice as
    long as the options together, the only option that occurs in it. A lone word Z ends it.
    """
    if any(phrase in text for phrase in _REFUSALS):
        return ""
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    letters = [letter for letter in sample.options if letter.upper() in words]
    if len(letters) == 1 and words.index(letters[0].upper()) > len(words) - 5:
        return letters[0]
    if not letters and words.count("Z"):
        return ""
    stated = re.search(r"answer\s+is\s+\**([a-d])", text, re.IGNORECASE)
    if letter := _known(sample, stated and stated[1]):
        return letter
    low, texts = text.lower(), [option.lower() for option in sample.option_texts]
    if len(low) > 2 * sum(map(len, texts)):
        return ""
    named = [letter for letter, option in zip(sample.options, texts, strict=False) if option in low]
    return named[0] if len(named) == 1 else ""


_3DSR = (
    r"^([A-D])[.\s)]",
    r"^([A-D])$",
    r"[Aa]nswer[:\s]+([A-D])",
    r"[Tt]he answer is[:\s]+([A-D])",
    r"[Mm]y answer is[:\s]+([A-D])",
    r"\(([A-D])\)",
    r"([A-D])\.",
    r"\b([A-D])\b",
)


def read_3dsrbench(sample: Sample, text: str) -> str:
    """Read as lmms-eval on 3DSRBench: the first of eight patterns that occurs, capitals only.

    An article that begins the text is A. Source: lmms_eval/tasks/3dsrbench/utils.py, extract_answer.
    """
    found = (re.search(pattern, text.strip()) for pattern in _3DSR)
    return _known(sample, next((match[1] for match in found if match), None))


def read_first_letter(sample: Sample, text: str) -> str:
    """Read as NaturalBench: the earlier of the whole words A and B, in any case; the article `a` is A.

    Source: github.com/Baiqi-Li/NaturalBench, extract_answer.
    """
    found = re.search(r"\b(a|b)\b", text, re.IGNORECASE)
    return _known(sample, found and found[1])


def read_viewspatial(sample: Sample, text: str) -> str:
    """Read as ViewSpatial: the first letter A to D alone in the last line, in any case; the article `a` is A.

    Source: lmms_eval/tasks/viewspatial/utils.py.
    """
    found = re.search(r"\b([A-D])\b", text.rpartition("\n")[2], re.IGNORECASE)
    return _known(sample, found and found[1])
