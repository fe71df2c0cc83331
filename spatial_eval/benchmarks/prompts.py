"""Build the prompt of a question from the benchmark's text, a user's template and the model's chat format. Pure.

The questions of the paper's benchmarks carry LLaVA-1.5's wrapper, `<image>\\nUSER: ... ASSISTANT:`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from string import Formatter
from typing import Any

from spatial_eval.core.arms import SecondPrompt
from spatial_eval.core.errors import ConfigError, DataError, describe_unknown
from spatial_eval.core.hashing import hash_text
from spatial_eval.core.types import Benchmark, Places, Sample

IMAGE = "<image>"
MODES = ("auto", "raw", "chat")
FIELDS = ("question", "options")  # of a template
# dataset.system by name: the messages of LLaVA's conversation modes (github.com/haotian-liu/LLaVA, conversation.py).
_LLAVA = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
)
SYSTEMS = {"none": "", "vicuna_v1": _LLAVA.format("user"), "llava_v1": _LLAVA.format("human")}
_USER = re.compile(r"^\s*user:\s*", re.IGNORECASE)
_USER_BEHIND = re.compile(rf"^((?:\s*{IMAGE})*)\s*user:\s*", re.IGNORECASE)
_ASSISTANT = re.compile(r"\s*assistant:\s*$", re.IGNORECASE)
_OPTIONS_LINE = re.compile(r"^[ \t]*\{options\}", re.MULTILINE)
_WRAPPED = re.compile(
    r"(?P<head>\s*(?:<image>\s*)*(?:user:)?\s*(?:<image>\s*)*)(?P<bare>.*?)(?P<tail>\s*(?:assistant:)?\s*)",
    re.IGNORECASE | re.DOTALL,
)


class WrongMode(ValueError):
    """Raised where `dataset.prompt` suits no question of a kind: a run is refused before it begins."""


def strip_wrapper(question: str) -> str:
    """Return the question without `<image>`, `USER:` and `ASSISTANT:`."""
    return _ASSISTANT.sub("", _USER.sub("", question.replace(IMAGE, "", 1))).strip()


def split_wrapper(question: str) -> tuple[str, str, str]:
    """Return the text before the bare question, the bare question, and the text behind it.

    Raises:
        ValueError: the question is empty or has `<image>` within it.
    """
    wrapped = _WRAPPED.fullmatch(question)
    if wrapped is None or not wrapped["bare"]:
        raise ValueError("it is empty")
    if IMAGE in wrapped["bare"] and question.count(IMAGE) == 1:  # several have their places
        raise ValueError(f"{IMAGE} stands in the midst of the question")
    return wrapped["head"], wrapped["bare"], wrapped["tail"]


def prompt_mode(dataset: Benchmark) -> str:
    """Return `dataset.prompt`, one of MODES; it is part of the identity (store.generations.describe_dataset).

    Raises:
        ConfigError: the benchmark has another value.
    """
    if dataset.prompt not in MODES:
        raise ConfigError(f"{dataset.name}: {describe_unknown('dataset.prompt', dataset.prompt, MODES)}")
    return dataset.prompt


def add_text(question: str, second: SecondPrompt) -> str:
    """Return the question with the text of a second prompt before or behind its bare text, its wrapper unchanged.

    Raises:
        ValueError: the question is empty or has `<image>` within it.
    """
    if second.place == "system":
        return question
    head, bare, tail = split_wrapper(question)
    return head + (f"{bare} {second.text}" if second.place == "end" else f"{second.text} {bare}") + tail


def split_assistant(question: str) -> tuple[str, str]:
    """Return the question up to `ASSISTANT:` at its end, and the rest; a question without it is whole."""
    found = _ASSISTANT.search(question)
    end = found.start() if found else len(question)
    return question[:end], question[end:]


def write_prompt(
    question: str,
    *,
    mode: str,
    llava15: bool,
    image_token: str,
    chat: Callable[[str], str] | None,
    system: str = "",
    images: int = 1,
) -> str:
    """Return the prompt text, before the processor expands the image placeholder.

    Args:
        mode: raw sends the question unchanged; chat sends its bare text through `chat`; auto is raw where a
            LLaVA-1.5 model gets a question with `<image>`, else chat, else the bare text behind the image.
        chat: the processor's chat template, which puts the system message in its place and the images where `<image>`
            stands, one before the text; None where there is none.
        system: the system message; before a raw prompt it stands as in LLaVA's conversation, with a blank behind it.
        images: number of the question's images; several stand at their `<image>`, or all before the text.

    Raises:
        ValueError: the question is empty, or its `<image>` are not as many as its images.
        WrongMode: the mode can be applied to no question of its kind.
    """
    raw = mode == "raw" or (mode == "auto" and llava15 and IMAGE in question)
    if images > 1 and not raw and IMAGE not in question:
        question = IMAGE * images + question
    bare = strip_wrapper(question) if images == 1 else _ASSISTANT.sub("", _USER_BEHIND.sub(r"\1", question)).strip()
    if not bare.replace(IMAGE, "").strip():
        raise ValueError("the question is empty")
    if raw:
        prompt = question if image_token in question else question.replace(IMAGE, image_token)
        if image_token not in prompt:
            raise WrongMode(f"dataset.prompt=raw needs {IMAGE} in the question, where each of its images stands")
        if images > 1 and prompt.count(image_token) != images:
            raise ValueError(f"the question holds {prompt.count(image_token)} {IMAGE} for {images} images")
    elif chat is not None:
        return chat(bare)
    elif mode == "chat":
        raise WrongMode("the processor has no chat template: use dataset.prompt=raw")
    elif images > 1:
        bare = bare.replace(IMAGE, image_token)
        prompt = f"USER: {bare}\nASSISTANT:" if llava15 else bare
    else:
        prompt = f"{image_token}\nUSER: {bare}\nASSISTANT:" if llava15 else f"{image_token}{bare}"
    return f"{system} {prompt}" if system else prompt


def check_template(text: str) -> None:
    """Check that a template can be filled in and keeps the wrapper around the question.

    Raises:
        ValueError: it cannot be filled in, or it repeats the wrapper.
    """
    try:
        fields = [
            (name, spec or conversion) for _, name, spec, conversion in Formatter().parse(text) if name is not None
        ]
    except ValueError as error:
        raise ValueError(f"{error}; a brace that is text is written twice") from None
    unknown = [name for name, formatting in fields if name not in FIELDS or formatting]
    if unknown:
        raise ValueError(f"it has {{{unknown[0]}}}; only {{question}} and {{options}} are filled in")
    if "question" not in dict(fields):
        raise ValueError("it lacks {question}, where the benchmark's own goes")
    if IMAGE in text or _USER.match(text) or _ASSISTANT.search(text):
        raise ValueError(f"{IMAGE}, USER: and ASSISTANT: stay around it as the benchmark has them: leave them out")


def fill_template(template: str, question: str, options: Sequence[str], texts: Sequence[str] = ()) -> str:
    """Return the question with its bare text put through a checked template, and its wrapper unchanged.

    `{options}` becomes `left, right, on or under`; of letters that stand for `texts` it becomes `A. left, B. right`,
    or a line per option where `{options}` begins a line. Such lines that the question holds already are not repeated;
    those at its end stay behind what the template adds.

    Raises:
        ValueError: the question is empty or has `<image>` within it, or the template needs options and none are known.
    """
    head, bare, tail = split_wrapper(question)
    lists_options = any(name == "options" for _, name, _, _ in Formatter().parse(template))
    if lists_options and not options:
        raise ValueError("no options are known, and the template has {options}")
    lines = [f"{letter.upper()}. {text}" for letter, text in zip(options, texts, strict=False)]
    block, behind = "".join(f"\n{line}" for line in lines), ""
    if lists_options and lines:
        bare = bare.replace(block, "", 1)
        listed = ("\n" if _OPTIONS_LINE.search(template) else ", ").join(lines)
    else:
        if block and bare.endswith(block):
            bare, behind = bare.removesuffix(block), block
        words = [option.upper() if len(option) == 1 else option for option in options]
        listed = " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
    return head + template.format(question=bare, options=listed) + behind + tail


def append_options(question: str, letters: Sequence[str], texts: Sequence[str], style: tuple[str, str, str]) -> str:
    """Return the question with its lettered options behind its bare text, its wrapper unchanged.

    Args:
        style: text before the first option, form of an option, with {letter} and {text}, and text between two options.

    Raises:
        ValueError: the question is empty or has `<image>` within it.
    """
    before, form, between = style
    listed = between.join(form.format(letter=a.upper(), text=text) for a, text in zip(letters, texts, strict=True))
    return fill_template("{question}" + (before + listed).replace("{", "{{").replace("}", "}}"), question, ())


class Rewritten:
    """Provide the members of a benchmark that asks another benchmark's questions in another form."""

    __slots__ = ()
    benchmark: Benchmark

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        self.benchmark.ready(samples, places)

    @property
    def upstream(self) -> str:
        return self.benchmark.upstream or self.benchmark.name

    @property
    def prompt(self) -> str:
        return self.benchmark.prompt

    @property
    def distort(self) -> bool:
        return self.benchmark.distort

    @property
    def orientation(self) -> str:
        return self.benchmark.orientation

    @property
    def template(self) -> str:
        return self.benchmark.template

    @property
    def framing(self) -> str:
        return self.benchmark.framing

    @property
    def system(self) -> str:
        return self.benchmark.system

    @property
    def rows(self) -> int:
        return self.benchmark.rows

    @property
    def questions(self) -> int:
        return self.benchmark.questions

    @property
    def fetched_by(self) -> str:
        return self.benchmark.fetched_by


@dataclass(frozen=True, slots=True)
class Templated(Rewritten):
    """Read a benchmark with its questions put through `template` (`fill_template`).

    Its name is `<benchmark>+<name of the template>`, so that no published number of the benchmark stands beside it.
    """

    name: str
    benchmark: Benchmark
    template: str = field()  # without it, the property of Rewritten would be its default

    def describe(self) -> dict[str, Any]:
        return {**self.benchmark.describe(), "template": self.template}

    def read(self, places: Places) -> list[Sample]:
        return [self._fill(sample) for sample in self.benchmark.read(places)]

    def _fill(self, sample: Sample) -> Sample:
        try:
            question = fill_template(self.template, sample.question, sample.options, sample.option_texts)
            return replace(sample, question=question)
        except ValueError as error:
            raise DataError(
                f"{self.benchmark.name}, question {sample.id}: dataset.template cannot be filled: {error}"
            ) from None


@dataclass(frozen=True, slots=True)
class SystemPrompted(Rewritten):
    """Read a benchmark whose prompts begin with a system message (`write_prompt`).

    Its name is `<benchmark>+<name of the message>`, so that no published number of the benchmark stands beside it.
    """

    name: str
    benchmark: Benchmark
    system: str = field()  # without it, the property of Rewritten would be its default

    def describe(self) -> dict[str, Any]:
        return {**self.benchmark.describe(), "system": self.system}

    def read(self, places: Places) -> list[Sample]:
        return self.benchmark.read(places)


def reworded_by(dataset: Benchmark) -> str:
    """Return the key that changes a dataset's own questions; "" where none does."""
    keys = {"framing": dataset.framing, "template": dataset.template, "system": dataset.system}
    return next((f"dataset.{key}" for key, value in keys.items() if value), "")


def without_template(dataset: Benchmark) -> Benchmark:
    """Return the source of a dataset with a template or a framing; the dataset itself where it has neither."""
    while isinstance(dataset, Rewritten):
        dataset = dataset.benchmark
    return dataset


def apply_template(benchmark: Benchmark, text: str, name: str = "") -> Templated:
    """Return the benchmark with its questions put through the template `text`.

    Args:
        name: the template's own; "" names it by a digest of its text.

    Raises:
        ConfigError: the template cannot be filled in (`check_template`).
    """
    try:
        check_template(text)
    except ValueError as error:
        raise ConfigError(f"dataset.template={name or text} is not valid: {error}") from None
    label = name or hash_text(text, 3)
    return Templated(f"{benchmark.name}+{label}", benchmark, text)


def apply_system(benchmark: Benchmark, system: str, *, named: bool = True) -> Benchmark:
    """Return the benchmark with a system message before its prompts.

    Args:
        system: a name of SYSTEMS, or the message itself: a text of several words.
        named: whether the label shows it; a protocol's name shows it already.

    Raises:
        ConfigError: it is neither.
    """
    text = SYSTEMS.get(system, system)
    if text == system and len(text.split()) < 2:
        hint = "or give the message, a text of several words"
        raise ConfigError(describe_unknown("dataset.system", system, SYSTEMS, hint=hint))
    name = system if system in SYSTEMS else f"system-{hash_text(text, 3)}"
    label = f"{benchmark.name}+{name}" if named else benchmark.name
    return SystemPrompted(label, benchmark, text) if text else benchmark
