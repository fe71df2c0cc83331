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

    A word counts by its first letter: `above` is A, `A bus is left` is A; of `answer is: B` the colon is the first
    character. Source: github.com/cambrian-mllm/cambrian, eval/eval/coco/coco_test.py, extract_mcq_answer.
    """
    last = re.split(r"answer is|answer:", text.lower())[-1].strip().rstrip(".").lstrip("(").rstrip(")")
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


_MMVP = (
    r"^\(?([AB])\)?\.?$",
    r"^\(?([AB])\)?[.\s]",
    r"answer\s+is\s+\(?([AB])",
    r"option\s+\(?([AB])",
    r"([AB])\)?(?:\s|$)",
    r"^([AB])",
)


def read_mmvp(sample: Sample, text: str) -> str:
    """Read as lmms-eval on MMVP: the first of six patterns that occurs, A and B in any case.

    A word counts by its letter: `answer is above` is A, and so is every word that ends in a. Source:
    lmms_eval/tasks/mmvp/utils.py.
    """
    found = (re.search(pattern, text.strip(), re.IGNORECASE) for pattern in _MMVP)
    return _known(sample, next((match[1] for match in found if match), None))


_TAGGED = re.compile(r"<\s*answer\b[^>]*>\s*([A-J]).*?<\s*/\s*answer\s*>", re.IGNORECASE | re.DOTALL)
_CLOSED = re.compile(r"(?<![A-Z])[(\[{]?\s*([A-F])\s*[)\]}]?\s*</\s*answer\s*>", re.IGNORECASE)
_OPTION_LINE = re.compile(r"[*_>\-\s]*option\s+[A-J]\s*:", re.IGNORECASE)
# Of a line, in this order: a letter alone, in any case; one that begins it; the only capital that ends there.
_LINE_ALONE = re.compile(r"[*_`>()\[\]]*\s*([A-F])\s*[*_`()\[\]]*", re.IGNORECASE)
_LINE_BEGUN = re.compile(r"([A-F])\s*[.:)\]-]\s+", re.IGNORECASE)
_LINE_WITHIN = re.compile(r"(?<![A-Za-z])[*_`\[{(]*\s*([A-F])\s*[*_`\]})]*(?=$|[\s.,:;!?)\]])")
_PHRASED = re.compile(r"answer(?:\s*is)?\s*[:>=]?\s*[(\[{]?\s*([A-F])\s*[)\]}]?(?:\b|[.)])", re.IGNORECASE)
_CAPITAL = re.compile(r"(?<![A-Za-z])([A-F])(?![A-Za-z])")
_TAIL = 800  # characters


def read_easi(sample: Sample, text: str) -> str:
    """Read as VLMEvalKit on the sets of EASI's leaderboard: the last line that gives a letter A to F.

    Source: vlmeval/dataset/utils/spatial_bench/matching_func.py, can_match_option, without its Chinese words and marks.
    Before the lines: the letter that begins an `<answer>`, or stands before `</answer>`. Of the last six lines, from
    the last upwards, those that begin `option A:` are passed over. Else the letter behind the first `answer`, in any
    case, else the only capital of the text. The article `A` is A.
    """
    text = text.strip()
    tagged = _TAGGED.search(text) or _CLOSED.search(text[-_TAIL:])
    if tagged:
        return _known(sample, tagged[1])
    for part in (text, text[-_TAIL:]):
        for line in map(str.strip, reversed(part.splitlines()[-6:])):
            if _OPTION_LINE.match(line):
                continue
            found = _LINE_ALONE.fullmatch(line) or _LINE_BEGUN.match(line)
            within = set(_LINE_WITHIN.findall(line))
            if found or len(within) == 1:
                return _known(sample, found[1] if found else within.pop())
    if phrased := _PHRASED.search(text):
        return _known(sample, phrased[1])
    rest = "\n".join(line for line in text.splitlines() if not _OPTION_LINE.match(line))
    capitals = set(_CAPITAL.findall(rest))
    return _known(sample, capitals.pop()) if len(capitals) == 1 else ""


# In English; the letter behind one may stand anywhere after it.
_PHRASES = (
    *(f"{the}{kind}answer is" for the in ("", "the ") for kind in ("", "correct ", "best ")),
    *(f"{the}{kind} option is" for the in ("", "the ") for kind in ("correct", "best")),
    *(f"{the}{kind}choice is" for the in ("", "the ") for kind in ("", "correct ")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
)


def read_cascade(sample: Sample, text: str) -> str:
    """Read as lmms-eval on RealWorldQA: of the capitals A to D the one in the surest form, of its places the last.

    Forms in this order: it begins the text, it ends it, behind a phrase as `answer is`, (A), A. A: A) and A with a
    blank, anywhere. A phrase is followed anywhere: `The answer is B, not A` is A. Source:
    lmms_eval/tasks/_task_utils/mcq_extract.py, without its phrases in other languages.
    """
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    text, letters = f" {text} ", "ABCD"
    bare, low = text.strip(), text.lower()
    if bare[:1] in tuple(letters) and not bare[1:2].isalpha():
        return _known(sample, bare[0])
    if bare[-1:] in tuple(letters) and not bare[-2:-1].isalpha():
        return _known(sample, bare[-1])
    begun = [low.find(phrase) + len(phrase) for phrase in _PHRASES if phrase in low]
    places = [(text.find(letter, start), letter) for start in begun for letter in letters]
    for form in ("({})", "{}.", "{}:", "{})", "{} ", "{}"):
        if max(places, default=(-1, ""))[0] >= 0:
            break
        places = [(text.rfind(form.format(letter)), letter) for letter in letters]
    place, letter = max(places)
    return _known(sample, letter) if place >= 0 else ""


# --- words


def read_whole(sample: Sample, text: str) -> str:
    """Read as lmms-eval on RealWorldQA's words and numbers: the whole text, blanks, case and last full stops aside.

    "two" is not 2. Source: lmms_eval/tasks/realworldqa/utils.py.
    """
    said = text.lower().strip().rstrip(".")
    return said if said in (*sample.options, *sample.answers) else ""
