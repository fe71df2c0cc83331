"""Write what a paper says about a sweep: a methods paragraph, and BibTeX of what it used.

Bibliographic data is what the repository knows for certain; of a model beyond that its hub id and revision are cited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spatial_eval.analysis.sweep_data import SweepFiles, parse_table_rows
from spatial_eval.core.columns import KNOBS, SEVERAL

Row = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Source:
    """A paper and its key in BibTeX."""

    key: str
    authors: str
    title: str
    year: int
    arxiv: str
    venue: str = ""

    def format_bibtex(self) -> str:
        fields = {
            "title": f"{{{self.title}}}",
            "author": self.authors,
            "year": str(self.year),
            **({"note": self.venue} if self.venue else {}),
            "eprint": self.arxiv,
            "archivePrefix": "arXiv",
            "url": f"https://arxiv.org/abs/{self.arxiv}",
        }
        return _format_entry(self.key, fields)


ADAPT_VIS = Source(
    "chen2025spatial",
    "Chen, Shiqi and others",
    "Why Is Spatial Reasoning Hard for VLMs? An Attention Mechanism Perspective on Focus Areas",
    2025,
    "2503.01773",
    "ICML 2025",
)
PAI = Source(
    "liu2024pai",
    "Liu, Shi and others",
    "Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination in LVLMs",
    2024,
    "2407.21771",
)
# By the column `method` of results.csv.
METHOD_SOURCES: Mapping[str, Source] = {
    "scaling_vis": ADAPT_VIS,
    "adapt_vis": ADAPT_VIS,
    "vcd": Source(
        "leng2023vcd",
        "Leng, Sicong and others",
        "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive Decoding",
        2023,
        "2311.16922",
    ),
    "text": PAI,
    "pai_full": PAI,
    "m3id": Source(
        "favero2024m3id",
        "Favero, Alessandro and others",
        "Multi-Modal Hallucination Control by Visual Information Grounding",
        2024,
        "2403.14003",
        "CVPR 2024",
    ),
    "sla": Source(
        "li2025vista",
        "Li, Zhuowei and others",
        "The Hidden Life of Tokens: Reducing Hallucination of Large Vision-Language Models via Visual Information "
        "Steering",
        2025,
        "2502.03628",
        "ICML 2025",
    ),
    "dola": Source(
        "chuang2023dola",
        "Chuang, Yung-Sung and others",
        "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models",
        2023,
        "2309.03883",
    ),
}
# By the kind of a dataset in sweep.json; of the hub by repository.
DATASET_SOURCES: Mapping[str, Source] = {
    "WhatsUp": Source(
        "kamath2023whatsup",
        "Kamath, Amita and Hessel, Jack and Chang, Kai-Wei",
        "What's ``up'' with vision-language models? Investigating their struggle with spatial reasoning",
        2023,
        "2310.19785",
        "EMNLP 2023",
    ),
    "Vsr": Source(
        "liu2023vsr",
        "Liu, Fangyu and Emerson, Guy and Collier, Nigel",
        "Visual Spatial Reasoning",
        2023,
        "2205.00363",
        "TACL 2023",
    ),
    "nyu-visionx/CV-Bench": Source(
        "tong2024cambrian",
        "Tong, Shengbang and others",
        "Cambrian-1: A Fully Open, Vision-Centric Exploration of Multimodal LLMs",
        2024,
        "2406.16860",
    ),
}
# By the beginning of a model's hub id.
MODEL_SOURCES: Mapping[str, Source] = {
    "llava-hf/llava-1.5-": Source(
        "liu2023improved",
        "Liu, Haotian and Li, Chunyuan and Li, Yuheng and Lee, Yong Jae",
        "Improved Baselines with Visual Instruction Tuning",
        2023,
        "2310.03744",
    ),
}
SPLITS = {"val": "val (a fixed random fifth)", "test": "test (all but a fixed random fifth)", "all": "all questions"}
STATISTICS = (
    "Accuracies are percentages of the answered questions with Wilson's 95 % intervals. Differences to base are "
    "paired, on the questions that both answered; their p is exact and two-sided (McNemar's test, or sign flips of "
    "clusters of questions that share an image, a pair or a set), adjusted by Holm's method for the cells looked at."
)
LICENCES = (
    "Licences: spatial-eval is Apache-2.0. Questions, gold answers and images belong to their benchmarks, and weights "
    "to their models: their own licences hold, and a model's may say what its outputs can be used for."
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
        _describe_effort(passes),
        LICENCES,
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


def gpu_hours(passes: Iterable[Row]) -> float:
    """Sum the hours that batches took on GPUs, over the stored answers of the passes; rows of passes.csv."""
    on_gpu = (row for row in passes if row["device"] not in ("", "cpu", "recorded", "imported"))
    return sum(float(row["seconds"] or 0) for row in on_gpu) / 3600


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
    pai = [PAI] if any("scaling=pai" in row.get("settings", "") for row in rows) else []
    cited = [*([found] if found else []), *pai]
    sources |= {source.key: source.format_bibtex() for source in cited}
    swept = {key: list(dict.fromkeys(row[key] for row in rows if row.get(key))) for key in (*KNOBS, "settings")}
    settings = "; ".join(f"{key} {_shorten(values)}" for key, values in swept.items() if values)
    return f"{name}{_cite(source.key for source in cited)}: {settings}."


def _describe_dataset(experiment: Mapping[str, Any], cells: Sequence[Row], sources: dict[str, str]) -> str:
    dataset = inner = experiment["dataset"]
    while "benchmark" in inner and isinstance(inner["benchmark"], Mapping):
        inner = inner["benchmark"]
    kind = _inner_kind(inner)
    found = DATASET_SOURCES.get(str(inner.get("repo", kind))) or DATASET_SOURCES.get(kind)
    sources |= {found.key: found.format_bibtex()} if found else {}
    rows = [row for row in cells if row["dataset"] == dataset["name"]]
    parts = dict.fromkeys((row["split"], row["limit"], _count(row)) for row in rows)
    said = "; ".join(
        f"{n} questions of {SPLITS[split]}{f', the first {limit}' if limit else ''}" for split, limit, n in parts
    )
    framing = dataset.get("framing") or dataset.get("benchmark", {}).get("framing") if inner is not dataset else ""
    template = f"; asked as {dataset['template']!r}" if dataset.get("template") else ""
    template += f"; in the framing {framing}" if framing else ""
    revision = f", revision {inner['revision']}" if inner.get("revision") else ""
    tokens = _join(rows, "max_new_tokens")
    scoring = _join(rows, "scoring")
    return (
        f"{dataset['name']}{_cite([found.key] if found else [])}{revision}: {said}; answers of up to {tokens} tokens, "
        f"scored by the rule {scoring or '(not recorded)'}{template}."
    )


def _inner_kind(inner: Mapping[str, Any]) -> str:
    """Return the kind of a dataset; a template's wrapper leaves it out, where the fields of VSR and What'sUp tell."""
    if "kind" in inner:
        return str(inner["kind"])
    return "Vsr" if "file" in inner else "WhatsUp" if "annotation" in inner else ""


def _describe_model(experiment: Mapping[str, Any], passes: Sequence[Row], sources: dict[str, str]) -> str:
    model = experiment["model"]
    rows = [row for row in passes if row["model"] == model["name"]]
    path = str(model.get("path", ""))
    if model["kind"] != "HF":
        return f"{model['name']}: answers that were computed elsewhere and recorded."
    cited = [source for begin, source in MODEL_SOURCES.items() if path.startswith(begin)]
    sources |= {source.key: source.format_bibtex() for source in cited}
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
    ]
    return f"{model['name']}{_cite(keys)}: {', '.join(how)}."


ASKED_LABELS = {"dtype": "", "batch_size": "batch ", "decoding": "decoding ", "preset": "preset "}


def _describe_effort(passes: Sequence[Row]) -> str:
    devices, hours = _join(passes, "device"), gpu_hours(passes)
    if not devices:
        return ""
    seconds = sum(float(row["seconds"] or 0) for row in passes)
    return f"Batches took {f'{hours:.3g} GPU hours' if hours else f'{seconds / 3600:.2g} hours'} ({devices})."


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
