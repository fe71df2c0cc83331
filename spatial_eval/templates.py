"""A benchmark whose questions are asked in other words: the one place that every reader passes through."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import prompts
from .errors import ConfigError, DataError
from .types import Benchmark, Places, Sample


@dataclass(frozen=True, slots=True)
class Templated:
    """`benchmark` with its questions put through `template` (prompts.fill); labelled `<benchmark>+<template's name>`.

    No published number stands beside it: its name is no longer that of the published benchmark.
    """

    name: str
    benchmark: Benchmark
    template: str

    def describe(self) -> dict[str, Any]:
        return {**self.benchmark.describe(), "template": self.template}

    def read(self, places: Places) -> list[Sample]:
        return [self._filled(sample) for sample in self.benchmark.read(places)]

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        self.benchmark.ready(samples, places)

    @property
    def upstream(self) -> str:
        return str(getattr(self.benchmark, "upstream", self.benchmark.name))

    @property
    def prompt(self) -> str:
        return str(getattr(self.benchmark, "prompt", "auto"))

    @property
    def distort(self) -> bool:
        return bool(getattr(self.benchmark, "distort", False))

    @property
    def orientation(self) -> str:
        return prompts.orientation_of(self.benchmark)

    def _filled(self, sample: Sample) -> Sample:
        try:
            question = prompts.fill(self.template, sample.question, sample.options, sample.option_texts)
            return replace(sample, question=question)
        except ValueError as error:
            raise DataError(
                f"{self.benchmark.name}, question {sample.id}: dataset.template cannot be filled: {error}"
            ) from None


def templated(benchmark: Benchmark, text: str, name: str = "") -> Templated:
    """`name`: the template's own; one that has none is called by a digest of its text. Raises ConfigError."""
    try:
        prompts.check_template(text)
    except ValueError as error:
        raise ConfigError(f"dataset.template={name or text} is not valid: {error}") from None
    label = name or hashlib.blake2b(text.encode(), digest_size=3).hexdigest()
    return Templated(f"{benchmark.name}+{label}", benchmark, text)
