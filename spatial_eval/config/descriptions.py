"""Write descriptions (datasets, models, methods, launchers, trackers) as JSON, a kind and fields, and read them back.

A kind is the name in the table of its protocol (METHODS, MODELS, ...), never a class name: files from before the
renaming of a class are still read, and a plug-in package's class is found by its entry point in any process.

sweep.json is older. Sweep ids hash its descriptions, so SWEEP_FORMS keeps those of 0.1: the former name of each class,
and its fields, which are always written. A later field or kind is written where it is not at its default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from spatial_eval.benchmarks.framing import Framed
from spatial_eval.benchmarks.prompts import Rewritten, SystemPrompted, Templated
from spatial_eval.benchmarks.protocols import Protocolled
from spatial_eval.config.schema import build_by_kind
from spatial_eval.core.errors import ConfigError, describe_unknown
from spatial_eval.core.types import Benchmark, Method, Part
from spatial_eval.core.validate import build_dataclass, field_values
from spatial_eval.methods.registry import BENCHMARKS, METHODS, PluginTable
from spatial_eval.models.registry import MODELS

T = TypeVar("T")

# Kinds of a benchmark that another one is wrapped in, and what that says beside its name.
WRAPPERS: Mapping[str, tuple[type[Templated] | type[Framed] | type[SystemPrompted] | type[Protocolled], str]] = {
    "templated": (Templated, "template"),
    "framed": (Framed, "framing"),
    "system_prompted": (SystemPrompted, "system"),
    "protocolled": (Protocolled, "protocol"),
}
SWEEP_FORMS: Mapping[str, tuple[str, str]] = {
    "base": ("Base", ""),
    "scaling_vis": ("ScalingVis", "weight scaling layers"),
    "adapt_vis": ("AdaptVis", "weight1 weight2 threshold criterion scaling layers"),
    "vcd": ("Vcd", "alpha cutoff noise"),
    "dola": ("Dola", "layers cutoff"),
    "whatsup": ("WhatsUp", "name upstream rows options prompts annotation images image_file sets prompt"),
    "vsr": ("Vsr", "name upstream rows file images prompt distort"),
    "jsonl": ("JsonLines", "path name prompt"),
    "hub": ("Hub", "repo name config split revision columns where rows instruction prompt"),
    "scenes": ("Scenes", "name form difficulty seed prompt"),
    "hf": (
        "HF",
        "path name revision dtype device device_map batch_size attn decoding selfcheck preset paper_model rms_norm_eps "
        "pad_to layers span tf32 graphs",
    ),
    "recorded": ("Recorded", "path name paper_model"),
    "imported": ("Imported", "name paper_model"),
}


# What earlier versions did where a field's default is another now: not written in sweep.json and in the column
# `settings`, and so read where it is absent.
IMPLIED: Mapping[tuple[str, str], Any] = {
    ("whatsup", "scoring"): "paper",
    ("vsr", "scoring"): "paper",
    ("jsonl", "columns"): {},
    ("hf", "share"): "question",
    ("sparc", "pace"): 0.1,  # until 0.5
}


def describe_value(table: Mapping[str, type[T]], value: T) -> dict[str, Any]:
    """Describe a value of one of the table's classes as JSON values, paths absolute.

    Raises:
        ConfigError: its class is in no table, or a field holds what JSON does not.
    """
    kind = _kind_of(table, value)
    given = {f.name for f in fields(value) if f.init}  # type: ignore[arg-type]
    values = {name: v for name, v in field_values(value).items() if name in given}
    return {"kind": kind, **{name: _to_plain(v, f"{kind}.{name}") for name, v in values.items()}}


def describe_benchmark(benchmark: Benchmark) -> dict[str, Any]:
    """Describe a benchmark, also one in the wrapper of a template or framing. Raises ConfigError."""
    for kind, (cls, key) in WRAPPERS.items():
        if isinstance(benchmark, cls):
            inner = describe_benchmark(benchmark.benchmark)
            return {"kind": kind, "name": benchmark.name, key: asdict(benchmark)[key], "benchmark": inner}
    return describe_value(BENCHMARKS, benchmark)


def build_value(table: Mapping[str, type[T]], tree: Any, where: str) -> T:
    """Build the value of a description; a field that did not exist when it was written has the value in IMPLIED.

    Raises:
        ConfigError: the description is no mapping, or has an unknown kind or key, or a wrong type.
    """
    if not isinstance(tree, dict) or "kind" not in tree:
        raise ConfigError(f"{where} is not a mapping with a kind")
    if tree["kind"] not in table:
        hint = "install the package that brings it"
        raise ConfigError(describe_unknown(f"{where}.kind", tree["kind"], table, hint=hint))
    return build_by_kind(table, _implied(tree["kind"]) | tree, where)


def build_benchmark(tree: Any, where: str) -> Benchmark:
    """Build the benchmark of a description. Raises ConfigError."""
    if isinstance(tree, dict) and tree.get("kind") in WRAPPERS:
        inner = build_benchmark(tree.get("benchmark"), f"{where}.benchmark")
        cls, key = WRAPPERS[tree["kind"]]
        return cls(str(tree.get("name")), inner, str(tree.get(key)))
    return build_value(BENCHMARKS, tree, where)


def describe_for_sweep(value: Any) -> dict[str, Any]:
    """Describe a method, dataset, model or part in the form of sweep.json, which the sweep's id hashes."""
    if isinstance(value, Templated | Framed | SystemPrompted | Protocolled):
        inner = describe_for_sweep(value.benchmark)
        if isinstance(value, Templated) and not isinstance(value.benchmark, Rewritten):  # as 0.1 wrote it
            del inner["kind"]
        return dict(sorted({"kind": type(value).__name__, **asdict(value), "benchmark": inner}.items()))
    cls, tree = type(value), asdict(value)
    tables = (METHODS.own, BENCHMARKS.own, MODELS.own)
    kind = next((kind for table in tables for kind, own in table.items() if own is cls), None)
    if kind is not None:
        name, always = SWEEP_FORMS.get(kind, (kind, "name"))  # tables need the name, its default too
        tree = {
            f.name: tree[f.name]
            for f in fields(value)
            if f.name in always.split() or tree[f.name] != IMPLIED.get((kind, f.name), f.default)
        }
    elif cls is Part:
        name = "Part"
    else:  # of a plug-in package, as 0.1 wrote it
        # Its class need not have a kind.
        name = getattr(value, "kind", f"{cls.__module__}:{cls.__qualname__}")
    return json.loads(json.dumps({"kind": name, **tree}, default=str, sort_keys=True))  # type: ignore[no-any-return]


def build_sweep_method(tree: Mapping[str, Any]) -> Method:
    """Build a method of sweep.json. Raises ConfigError where its kind is unknown or has other fields."""
    values = dict(tree)
    name = str(values.pop("kind"))
    kind = next((kind for kind, (old, _) in SWEEP_FORMS.items() if old == name), name)
    if kind not in METHODS:
        raise ConfigError(describe_unknown("method", kind, METHODS, hint="install the package that brings it"))
    return build_dataclass(METHODS[kind], _implied(kind) | values, "method")


def written_fields(method: Method) -> dict[str, Any]:
    """Return a method's fields that are not what a file implies where they are absent."""
    defaults, values = _list_implied_defaults(type(method), method.kind), field_values(method)
    return {name: value for name, default in defaults if (value := values[name]) != default}


@cache
def _list_implied_defaults(cls: type[Method], kind: str) -> Sequence[tuple[str, Any]]:
    return [(f.name, IMPLIED.get((kind, f.name), f.default)) for f in fields(cls)]  # type: ignore[arg-type]


def _implied(kind: str) -> dict[str, Any]:
    return {name: value for (own, name), value in IMPLIED.items() if own == kind}


def _kind_of(table: Mapping[str, type[T]], value: T) -> str:
    if isinstance(table, PluginTable):
        return table.kind_of(value)
    return next(kind for kind, cls in table.items() if type(value) is cls)


def _to_plain(value: Any, where: str) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _to_plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item, where) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return _to_plain(asdict(value), where)
    raise ConfigError(f"{where} holds a {type(value).__name__}, which no file of job state can hold: make it a text")
