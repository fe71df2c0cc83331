"""From a benchmark's question to the text a model is sent. Pure.

The benchmarks' questions carry LLaVA-1.5's wrapper, `<image>\\nUSER: ... ASSISTANT:` (SCIENCE.md section 2).
"""

from __future__ import annotations

import re
from collections.abc import Callable

IMAGE = "<image>"
MODES = ("auto", "raw", "chat")
_USER = re.compile(r"^\s*user:\s*", re.IGNORECASE)
_ASSISTANT = re.compile(r"\s*assistant:\s*$", re.IGNORECASE)


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
