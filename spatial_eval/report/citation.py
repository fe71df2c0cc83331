"""Write text for a paper about a sweep: a methods paragraph, and BibTeX of its methods, benchmarks and models.

Papers and licences come from report/sources.py; a model that is not there is cited by hub id and revision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from spatial_eval.analysis.sweep_data import SweepFiles, parse_table_rows
from spatial_eval.core.columns import HYPERPARAMETERS, SEVERAL
from spatial_eval.core.progress import format_duration
from spatial_eval.report.sources import (
    DATASET_LICENCES,
    DATASET_SOURCES,
    METHOD_SOURCES,
    MODEL_LICENCES,
    MODEL_SOURCES,
    SCALING_SOURCES,
    Licence,
    Source,
)

Row = Mapping[str, str]


SPLITS = {"val": "val (a fixed random fifth)", "test": "test (all but a fixed random fifth)", "all": "all questions"}
STATISTICS = (
    "Accuracies are percentages of the answered questions with Wilson's 95 % intervals. Differences to base are "
    "paired, on the questions that both answered; their p is exact and two-sided (McNemar's test, or sign flips of "
    "clusters of questions that share an image, a pair or a set), adjusted by Holm's method for the cells looked at."
)


def cite_sweep(files: SweepFiles) -> str:
    """Return the paragraph and the BibTeX entries of a sweep."""
    about = files.about
    asked = [cell.get("asked", True) for cell in about["cells"]]
    cells, passes = parse_table_rows(files.tables["results.csv"]), parse_table_rows(files.tables["passes.csv"])
    sources: dict[str, str] = {}
    lines = [
        _describe_program(about, passes, sum(asked)),
        *(_describe_method(name, rows, sources) for name, rows in _group(cells, "method").items()),
        *(_describe_dataset(experiment, cells, sources) for experiment in _distinct(about["trunks"], "dataset")),
        *(_describe_model(experiment, passes, sources) for experiment in _distinct(about["trunks"], "model")),
        STATISTICS,
        describe_effort(passes),
        _describe_licences(about["trunks"]),
    ]
    sources["spatial_eval"] = _format_entry(
        "spatial_eval",
        {
            "title": "{spatial-eval}: sweeps of training-free attention interventions on spatial benchmarks",
            "author": "{The spatial-eval authors}",
            "note": f"version {about['version']}",
        },
    )
    return "\n\n".join(["\n".join(filter(None, lines)), *sources.values()])


ELSEWHERE = ("recorded", "imported")  # devices of answers that were computed by others


def gpu_hours(passes: Iterable[Row]) -> float:
    """Sum the GPU hours of the batches behind the stored answers of passes, given as rows of passes.csv."""
    on_gpu = (row for row in passes if row.get("device", "") not in ("", "cpu", *ELSEWHERE))
    return sum(float(row.get("seconds") or 0) for row in on_gpu) / 3600


def _describe_program(about: Mapping[str, Any], passes: Sequence[Row], cells: int) -> str:
    git = about.get("git") or {}
    commit = f", commit {git['commit'][:12]}{' with changes' if git.get('dirty') else ''}" if git.get("commit") else ""
    stated = [f"{name} {found}" for name in ("torch", "transformers") if (found := _join(passes, name))]
    versions = f" on {' and '.join(stated)}" if stated else ""
    plugins = "".join(f"; {kind} of {package}" for kind, package in sorted(about.get("plugins", {}).items()))
    return (
        f"Cells: {cells:,}, computed with spatial-eval {about['version']}{commit} [spatial_eval]"
        f"{versions}{plugins}; sweep {about['id']}."
    )


def _describe_method(name: str, rows: Sequence[Row], sources: dict[str, str]) -> str:
    if name == "base":
        return "base is greedy decoding of the model as it is."
    found = METHOD_SOURCES.get(name)
    said = [row.get("settings", "") for row in rows]
    parts = [source for kind, source in METHOD_SOURCES.items() if any(f"={kind}," in text for text in said)]
    kinds = [source for kind, source in SCALING_SOURCES.items() if any(kind in text for text in said)]
    cited = list(dict.fromkeys([*([found] if found else []), *parts, *kinds]))
    sources |= {source.key: _format_source(source) for source in cited}
    swept = {key: list(dict.fromkeys(row[key] for row in rows if row.get(key))) for key in HYPERPARAMETERS}
    swept["settings"] = list(dict.fromkeys(text or "default" for text in said))
    if swept["settings"] == ["default"] and any(swept[key] for key in HYPERPARAMETERS):
        del swept["settings"]
    settings = "; ".join(f"{key} {_shorten(values)}" for key, values in swept.items() if values)
    return f"{name}{_cite(source.key for source in cited)}: {settings}."


# Wrappers of a dataset in sweep.json, by the key of each: what is said of it.
ASKED = {
    "protocol": "; by the protocol {}",
    "system": "; behind the system message {!r}",
    "template": "; asked as {!r}",
    "framing": "; in the framing {}",
}


def _describe_dataset(experiment: Mapping[str, Any], cells: Sequence[Row], sources: dict[str, str]) -> str:
    dataset = inner = experiment["dataset"]
    asked = ""
    while isinstance(inner.get("benchmark"), Mapping):
        asked += "".join(words.format(inner[key]) for key, words in ASKED.items() if inner.get(key))
        inner = inner["benchmark"]
    found = DATASET_SOURCES.get(_identify_dataset(inner))
    sources |= {found.key: _format_source(found)} if found else {}
    rows = [row for row in cells if row["dataset"] == dataset["name"]]
    parts = dict.fromkeys((row["split"], row["limit"], _count(row)) for row in rows)
    said = "; ".join(
        f"{n} questions of {SPLITS[split]}{f', the first {limit}' if limit else ''}" for split, limit, n in parts
    )
    revision = f", revision {inner['revision']}" if inner.get("revision") else ""
    tokens = _join(rows, "max_new_tokens")
    scoring = _join(rows, "scoring")
    return (
        f"{dataset['name']}{_cite([found.key] if found else [])}{revision}: {said}; answers of up to {tokens} tokens, "
        f"scored by the rule {scoring or '(not recorded)'}{asked}."
    )


def _inner_dataset(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a dataset without the wrappers that ask its questions in another form."""
    while isinstance(dataset.get("benchmark"), Mapping):
        dataset = dataset["benchmark"]
    return dataset


def _identify_dataset(inner: Mapping[str, Any]) -> str:
    """Return the key of a dataset in DATASET_SOURCES: its benchmark, its repository, or else its kind.

    A template's wrapper leaves the kind out, where the fields of VSR and What'sUp tell.
    """
    kind = "Vsr" if "file" in inner else "WhatsUp" if "annotation" in inner else "Scenes" if "form" in inner else ""
    return str(inner.get("benchmark") or inner.get("repo") or inner.get("kind", kind))


def _describe_licences(trunks: Sequence[Mapping[str, Any]]) -> str:
    """Say which licences are known, each with the page that states it, and of what none is."""
    datasets, models = ([one[kind] for one in _distinct(trunks, kind)] for kind in ("dataset", "model"))
    known = [(one["name"], DATASET_LICENCES.get(_identify_dataset(_inner_dataset(one)))) for one in datasets]
    known += [(one["name"], MODEL_LICENCES.get(str(one.get("path", "")))) for one in models]
    listed = [_spell_licence(name, licence) for name, licence in known]
    return (
        f"Licences: spatial-eval Apache-2.0; {'; '.join(listed)}. Pictures keep the licences of the collections that "
        "they are from, and a model's licence may say what its outputs can be used for."
    )


def _spell_licence(name: str, licence: Licence | None) -> str:
    return f"{name} not known here" if licence is None else f"{name} {licence.name} ({licence.source})"


def _format_source(source: Source) -> str:
    fields = {
        "title": f"{{{source.title}}}",
        "author": source.authors,
        "year": str(source.year),
        **({"note": source.venue} if source.venue else {}),
        "eprint": source.arxiv,
        "archivePrefix": "arXiv",
        "url": f"https://arxiv.org/abs/{source.arxiv}",
    }
    return _format_entry(source.key, fields)


def _describe_model(experiment: Mapping[str, Any], passes: Sequence[Row], sources: dict[str, str]) -> str:
    model = experiment["model"]
    rows = [row for row in passes if row["model"] == model["name"]]
    path = str(model.get("path", ""))
    if model["kind"] != "HF":
        return f"{model['name']}: answers that were computed elsewhere and recorded."
    cited = [source for begin, source in MODEL_SOURCES.items() if path.startswith(begin)]
    sources |= {source.key: _format_source(source) for source in cited}
    revision = _join(rows, "revision") or str(model.get("revision", ""))
    keys = [source.key for source in cited]
    is_hub = not path.startswith(("package:", "/", ".", "~")) and path.count("/") == 1
    if is_hub:
        key = path.replace("/", "_").replace(".", "_").replace("-", "_").lower()
        note = f"Hugging Face hub, revision {revision or 'main'}"
        entry = {"title": f"{{{path}}}", "howpublished": note, "url": f"https://huggingface.co/{path}"}
        sources[key] = _format_entry(key, entry)
        keys.append(key)
    how = [
        path if is_hub else path if path.startswith("package:") else "a folder",
        *([f"revision {revision}"] if revision else []),
        *(f"{label}{found}" for name, label in ASKED_LABELS.items() if (found := _join(rows, name))),
        *(f"{name}={model[name]}" for name in SHOWN if model.get(name)),
    ]
    return f"{model['name']}{_cite(keys)}: {', '.join(how)}."


SHOWN = ("image_mode", "min_pixels", "max_pixels", "max_tiles")  # in sweep.json where they are set
ASKED_LABELS = {"dtype": "", "batch_size": "batch ", "decoding": "decoding ", "preset": "preset "}


def describe_effort(passes: Sequence[Row]) -> str:
    """Describe device time and devices of passes, given as rows of passes.csv; "" where nothing was computed."""
    here = [row for row in passes if row.get("device", "") not in ("", *ELSEWHERE)]
    devices, hours = _join(here, "device"), gpu_hours(here)
    if not devices:
        return ""
    seconds = sum(float(row.get("seconds") or 0) for row in here)
    time = f"{hours:.3g} GPU hours" if hours else f"{seconds:.1f} s" if seconds < 10 else format_duration(seconds)
    return f"Batches took {time} ({devices})."


def _count(row: Row) -> str:
    missing = int(row["missing"] or 0)
    return f"{int(row['n']):,}" + (f" ({missing:,} more have no answer)" if missing else "")


def _join(rows: Iterable[Row], name: str) -> str:
    values = (value for row in rows for value in (row.get(name) or "").split(SEVERAL))
    return ", ".join(dict.fromkeys(filter(None, values)))


def _shorten(values: Sequence[str]) -> str:
    if len(values) <= 8:
        return ", ".join(values)
    return f"{', '.join(values[:3])}, ..., {values[-1]} ({len(values)} values)"


def _cite(keys: Iterable[str]) -> str:
    listed = ", ".join(keys)
    return f" [{listed}]" if listed else ""


def _group(rows: Iterable[Row], name: str) -> Mapping[str, Sequence[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found


def _distinct(experiments: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return list({experiment[name]["name"]: experiment for experiment in experiments}.values())


def _format_entry(key: str, fields: Mapping[str, str]) -> str:
    body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@misc{{{key},\n{body}\n}}"
