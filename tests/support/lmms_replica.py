"""Stand in for what a model of lmms-eval touches: its base class, its requests and its two registries."""

from __future__ import annotations

import abc
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

REGISTERED: dict[str, type] = {}


class CacheHook:
    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        pass


class Lmms(abc.ABC):
    """As lmms_eval.api.model.lmms: three abstract methods, documents by task and split."""

    is_simple = True

    def __init__(self) -> None:
        # As there: answers are cached by what the model is called when this runs.
        self.cached_as = getattr(self, "model_name", type(self).__name__)
        self.task_dict: dict[str, Any] = {}
        self.cache_hook = CacheHook()

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...

    @classmethod
    def create_from_arg_string(cls, text: str, additional_config: Mapping[str, Any] | None = None) -> Any:
        """Split at commas and make numbers and booleans of texts, as lmms-eval does with --model_args."""
        given = dict(item.split("=", 1) for item in text.split(",") if item)
        words: dict[str, Any] = {"true": True, "false": False}
        for key, value in given.items():
            try:
                given[key] = words.get(value.lower(), int(value) if value.isdigit() else float(value))
            except ValueError:
                given[key] = words.get(value.lower(), value)
        return cls(**given, **{key: value for key, value in (additional_config or {}).items() if value is not None})

    def clean(self) -> None:
        self.task_dict.clear()


@dataclass
class Instance:
    """As lmms_eval.api.instance.Instance: `args` holds context, gen_kwargs, doc_to_visual, doc_id, task, split."""

    request_type: str
    arguments: tuple[Any, ...]
    idx: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


def register_model(*names: str) -> Callable[[type], type]:
    def register(cls: type) -> type:
        assert issubclass(cls, Lmms)
        REGISTERED.update(dict.fromkeys(names, cls))
        return cls

    return register


def install_lmms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the modules importable that a model of lmms-eval imports."""
    members = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.api.instance": {"Instance": Instance},
        "lmms_eval.api.registry": {"register_model": register_model},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, values in members.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
