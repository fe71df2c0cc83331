"""From a benchmark's question to the text a model is sent. Pure.

The benchmarks' questions carry LLaVA-1.5's wrapper, `<image>\\nUSER: ... ASSISTANT:`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from string import Formatter

from .errors import ConfigError, unknown
from .types import Benchmark

IMAGE = "<image>"
MODES = ("auto", "raw", "chat")
_USER = re.compile(r"^\s*user:\s*", re.IGNORECASE)
_ASSISTANT = re.compile(r"\s*assistant:\s*$", re.IGNORECASE)
FIELDS = ("question", "options")  # of a template
_OPTIONS_LINE = re.compile(r"^[ \t]*\{options\}", re.MULTILINE)
_FRAME = re.compile(
    r"(?P<head>\s*(?:<image>)?\s*(?:user:)?\s*(?:<image>)?\s*)(?P<bare>.*?)(?P<tail>\s*(?:assistant:)?\s*)",
    re.IGNORECASE | re.DOTALL,
)


def unwrap(question: str) -> str:
    """The bare question, without `<image>`, `USER:` and `ASSISTANT:`."""
    return _ASSISTANT.sub("", _USER.sub("", question.replace(IMAGE, "", 1))).strip()


def write_prompt(
    question: str, *, mode: str, llava15: bool, image_token: str, chat: Callable[[str], str] | None
) -> str:
    """The prompt text, before the processor expands the image placeholder.

    `raw` sends the question as it stands; `chat` sends its bare text through `chat`, the processor's chat
    template (None where it has none); `auto` is raw where a LLaVA-1.5 model gets a question with
    `<image>`, else chat, else the bare text behind the image. Raises ValueError where the
    question is empty or no such prompt exists.
    """
    bare = unwrap(question)
    if not bare:
        raise ValueError("the question is empty")
    if mode == "raw" or (mode == "auto" and llava15 and IMAGE in question):
        prompt = question if image_token in question else question.replace(IMAGE, image_token)
        if image_token not in prompt:
            raise ValueError(f"dataset.prompt=raw needs {IMAGE} in the question")
        return prompt
    if chat is not None:
        return chat(bare)
    if mode == "chat":
        raise ValueError("the processor has no chat template: use dataset.prompt=raw")
    return f"{image_token}\nUSER: {bare}\nASSISTANT:" if llava15 else f"{image_token}{bare}"


def check_template(text: str) -> None:
    """Raises ValueError where a template could not be filled, or would break the frame around the question."""
    try:
        fields = [(name, spec or kind) for _, name, spec, kind in Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ValueError(f"{error}; a brace that is text is written twice") from None
    odd = [name for name, more in fields if name not in FIELDS or more]
    if odd:
        raise ValueError(f"it has {{{odd[0]}}}; only {{question}} and {{options}} are filled in")
    if "question" not in dict(fields):
        raise ValueError("it lacks {question}, where the benchmark's own goes")
    if IMAGE in text or _USER.match(text) or _ASSISTANT.search(text):
        raise ValueError(f"{IMAGE}, USER: and ASSISTANT: stay around it as the benchmark has them: leave them out")


def fill(template: str, question: str, options: Sequence[str], texts: Sequence[str] = ()) -> str:
    """The question with its bare text put through a checked template; what frames it stays to the letter.

    `{options}` is `left, right, on or under`; of letters that stand for `texts` it is `A. left, B. right`, or a line
    each where `{options}` begins a line. Such lines that the question holds already are not repeated, and at its end
    stay behind what the template adds. Raises ValueError where there is nothing to put there.
    """
    found = _FRAME.fullmatch(question)
    if found is None or IMAGE in found["bare"] or not found["bare"]:
        raise ValueError(f"{IMAGE} stands in the midst of the question" if found and found["bare"] else "it is empty")
    bare, wanted = found["bare"], any(name == "options" for _, name, _, _ in Formatter().parse(template))
    if wanted and not options:
        raise ValueError("no options are known, and the template has {options}")
    lines = [f"{letter.upper()}. {text}" for letter, text in zip(options, texts, strict=False)]
    block, behind = "".join(f"\n{line}" for line in lines), ""
    if wanted and lines:
        bare = bare.replace(block, "", 1)
        listed = ("\n" if _OPTIONS_LINE.search(template) else ", ").join(lines)
    else:
        if block and bare.endswith(block):
            bare, behind = bare.removesuffix(block), block
        shown = [one.upper() if len(one) == 1 else one for one in options]
        listed = " or ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))
    return found["head"] + template.format(question=bare, options=listed) + behind + found["tail"]


def prompt_mode(dataset: Benchmark) -> str:
    """`dataset.prompt`: auto (default), raw or chat. Part of the identity (store.describe_dataset).

    Raises ConfigError where it is none of them.
    """
    mode = getattr(dataset, "prompt", "auto")
    if mode not in MODES:
        raise ConfigError(f"{dataset.name}: {unknown('dataset.prompt', mode, MODES)}")
    return str(mode)


def distorted(dataset: Benchmark) -> bool:
    """`dataset.distort`: stretch images to the size the reference gives VSR's. Part of the identity too."""
    return bool(getattr(dataset, "distort", False))


def orientation_of(dataset: Benchmark) -> str:
    """`dataset.orientation`: upright (default) or stored, as image_files.open_rgb takes it."""
    return str(getattr(dataset, "orientation", "upright"))
