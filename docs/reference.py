"""Write docs/reference.md from the code: YAML comments, dataclasses, argparse, tables' columns.

`make docs` writes it; tests/test_docs.py fails where it is not current or where something has no explanation.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from spatial_eval.analysis import selection
from spatial_eval.analysis.compare import FIELDS as COMPARED
from spatial_eval.benchmarks.readers import BENCHMARKS
from spatial_eval.cli.main import build_parser
from spatial_eval.config import schema
from spatial_eval.config.launchers import LAUNCHERS
from spatial_eval.config.tracking import TRACKERS
from spatial_eval.core import columns as column_names
from spatial_eval.core.arms import ATTENTIONS, CONTRASTS, Arm, AttentionChange
from spatial_eval.methods import published
from spatial_eval.methods.routing import METHODS
from spatial_eval.models import registry
from spatial_eval.passes import tables as pass_tables

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "docs" / "reference.md"

CLASSES: Mapping[str, Mapping[str, type]] = {
    "dataset": BENCHMARKS,
    "model": registry.MODELS,
    "method": METHODS,
    "launcher": LAUNCHERS,
    "tracking": TRACKERS,
}
WHAT = {
    "dataset": "Which questions. `dataset=NAME`, keys as `dataset.KEY=VALUE`.",
    "model": "Which model answers them. `model=NAME`, keys as `model.KEY=VALUE`.",
    "method": "The decoding rule. `method=NAME`; its fields are swept as `method.KEY=V1,V2` or by a root key.",
    "launcher": "Where a sweep runs. One value in a sweep; it changes no result.",
    "tracking": "Where else results are shown (docs/wandb.md). One value in a sweep; it changes no result.",
    "template": "Text around a question: `dataset.template=NAME` (or a text with `{question}` and `{options}`).",
    "preset": "Many keys at once: `model.preset=NAME`. Keys that you set yourself override them.",
}
FLAGS = {
    "-m, --multirun": "run a grid: every combination of the values given as lists",
    "-cd DIR, --config-dir DIR": "your own options and sweeps beside ours: DIR/dataset, method, model, launcher, "
    "tracking, preset, template and sweeps, one YAML per option; built-in names are taken. Its config.yaml sets "
    "defaults (docs/hydra.md). Default: $SPATIAL_EVAL_CONFIG_DIR",
    "--cfg job": "what the command composes, as YAML; --package KEY for a part of it, --resolve "
    "with values in place of ${...}",
    "-h, --help": "every key and option, those of `--config-dir` too",
}
SWEEPS = (
    "`sweep=NAME`: a file of sweeps/, of `--config-dir`, or a path that ends in .yaml: keys with values or lists of "
    "values, and optionally `grids:`, a list of such. What the command line says replaces an axis.\n\n"
    "A text is read as on the command line: `weight: 0.5,0.8` and `threshold: range(0, 1, 0.1)` are axes. Under a key "
    "whose value may be any text (`dataset.system`, `dataset.path`, `method.heads`, `method.low`, ...) it is one value "
    "as it stands, with its commas, unless all of it is a sweep function, `range(...)`, `choice(...)` or `glob(...)`, "
    'or stands in second quotes; a list is the axis: `dataset.template: [brief, "Look closely. {question}"]`. Words '
    'with commas and nothing else, `0:3,1:2`, are refused there: `method.heads: ["0:3,1:2"]` is one value. A list '
    "within a list is one value, of a key that takes a list: `method.layers: [[0-3, 20], all]`, "
    '`dataset.where: [["task=Relation"]]`.'
)
FILES = {
    "name.txt": "name of the sweep, one line of text; part of no id",
    "results.csv": "one row per cell",
    "by_relation.csv": "one row per cell and relation",
    "framings.csv": "where a data set is asked in several forms (`dataset.framing`): one row per form and cell",
    "samples.parquet": "one row per question and arm",
    "passes.csv": "one row per pass: its cost, device and versions",
    "failures.csv": "one row per question and arm that could not be answered",
    "attention/": "of `capture=mass`, `map` or `heads`: arrays, one .npz per pass (docs/attention.md)",
    "sweep.json": "the cells, the command, the configuration, the commit, versions, digests of the tables",
    "report.html": "all results as one page, without a server",
    "report_samples.js": "of more than 20,000 answers (or 6 MB): all of them; report.html loads it when asked",
    "wandb/": "the runs of `tracking=wandb`, before and after they are uploaded",
    "jobs/": "of `launcher=local` and `slurm`: the launches, the code, one log per job",
}
CODES = {
    0: "complete",
    1: "wrong input (nothing was run), or a model that cannot be used: the same command would fail again",
    2: "wrong usage",
    3: "answers are missing; the same command tries again what is not stored",
}
VARIABLES = {
    "SPATIAL_EVAL_DATA": "the default of `data_dir` and of `prepare --data-dir`",
    "CUDA_VISIBLE_DEVICES": "the GPUs that `launcher=local` uses",
    "HF_HOME, HF_HUB_OFFLINE": "the hub's cache, and whether the network is used (variables of huggingface_hub)",
    "WANDB_API_KEY, WANDB_BASE_URL": "read by `publish --sync` and by `tracking.mode=auto` and `online`",
    "OMP_NUM_THREADS": "CPU threads of a job, unless `launcher.threads` is set",
}
COLUMNS = {
    "dataset": "label of the benchmark; `NAME:PROTOCOL`, `NAME@FRAMING`, `NAME+TEMPLATE` and `NAME+SYSTEM` "
    "where these are set",
    "model": "label of the model",
    "method": "kind of the method",
    "criterion": "signal that is compared with the threshold",
    "settings": "the method's other fields that are not at their default, as `name=value name=value`",
    "split": "val, test or all; of a question: val or test",
    "limit": "number of the benchmark's questions, the first of the split; empty = all",
    "max_new_tokens": "tokens per answer, at most",
    "n": "number of answered questions",
    "missing": "number of questions without an answer; they never count as wrong",
    "accuracy": "percent right by the rule in `scoring`",
    "accuracy_low": "lower end of its 95 % Wilson interval",
    "accuracy_high": "upper end of its 95 % Wilson interval",
    "accuracy_strict": "percent right by that rule's strict form (docs/results.md)",
    "pair_accuracy": "as `pair_accuracy_complete`; of Controlled A and B right pairs divided by n/2, as the paper does",
    "set_accuracy": "as `set_accuracy_complete`; of Controlled A and B right sets divided by n/4, as the paper does",
    "pair_accuracy_complete": "percent of the pairs answered whole that have every member right, whatever their size",
    "set_accuracy_complete": "percent of the sets answered whole that have every member right, whatever their size",
    "macro_accuracy": "mean of the accuracies of parts that count alike: docs/benchmarks.md says of which; else empty",
    "circular_accuracy": "percent of the questions right in every order of their options; a mirrored one is its own",
    "flip_accuracy": "percent right both as they are and mirrored, rotations counted by themselves",
    "flip_circular_accuracy": "percent right under every rotation, as they are and mirrored",
    "q_accuracy": "percent of the questions right on both of their pictures (NaturalBench)",
    "i_accuracy": "percent of the pictures with both questions right (NaturalBench)",
    "g_accuracy": "percent of the groups of two questions and two pictures with all four right (NaturalBench)",
    "position_bias": "standard deviation of the accuracies by the gold answer's letter, in points; 0 = none",
    "precision": "precision of yes in percent (yes/no questions)",
    "recall": "recall of yes in percent",
    "f1": "F1 of yes in percent: harmonic mean of precision and recall",
    "f1_paper": "the paper's F1: harmonic mean of the accuracies on yes and on no",
    "yes_rate": "percent of the answered questions that the model answers with yes; unreadable answers are not yes",
    "chance": "percent that guessing among each question's options gives; empty where options are not known",
    "accuracy_adjusted": "percent of the way from chance to all right: (accuracy - chance) / (100 - chance)",
    "framing": "form in which the questions were asked (`dataset.framing`); the benchmark's own: empty, in "
    "framings.csv `own`",
    "accuracy_adjusted_low": "lower end of its 95 % interval: Wilson's, in which a question that is asked several "
    "times counts once",
    "accuracy_adjusted_high": "upper end of that interval",
    "constant_accuracy": "percent right of the best answer that is the same for all questions",
    "agreement": "percent of the questions whose answers in this form and in another mean the same option, the mean "
    "over the other forms",
    "fragile": "of the questions that are right with two options (`k2`), the percentage that this form, with more, has "
    "wrong; of k3, listed and own",
    "image_share": "the image's share of the last prompt token's attention, percent, mean over layers and heads; with "
    "`capture=`, of methods of one arm",
    "scoring": "the rule by which answers count (docs/results.md, docs/benchmarks.md)",
    "unreadable": "percent of the answered questions from whose text the rule reads no option",
    "share_weight1": "percent of the questions routed to weight1",
    "paper": "published accuracy, where the cell has exactly the published setting",
    "difference": "accuracy minus the published one; in a comparison b minus a; in a choice against base; in points",
    "relation": "the question's relation",
    "sample_id": "the question's own id",
    "text": "the answer",
    "tokens": "its token ids, EOS included",
    "n_tokens": "number of these tokens",
    "confidence": "largest probability of the arm's first token, in [0, 1], unrounded",
    "correct": "whether the answer is right by the rule in `scoring`",
    "correct_strict": "whether it is right by the rule's strict form",
    "gold": "the right answer, lower case",
    "golds": "all right answers as JSON, where there are several",
    "options": "the options as JSON: a list, or a mapping of letters to texts; empty where none are known",
    "prediction": "the option that the rule reads from the answer; empty where it reads none or several",
    "row": "index in the whole dataset",
    "pair": "the pair that the question belongs to",
    "set": "the set that the question belongs to",
    "question": "text of the question, framing and template included",
    "image": "path relative to data_dir or output_dir; one line per image of a question about several",
    "entropy": "entropy of the first token's distribution, in nats",
    "margin": "largest minus second largest probability of the first token",
    "logit": "largest raw logit of the first token",
    "arms": "the arms that the pass needs",
    "questions": "number of questions that the pass needs",
    "stored": "number of stored answers",
    "seconds": "device time over all runs, in seconds",
    "questions_per_second": "questions per second of that time",
    "device": "device that computed the answers; several are joined by `; `",
    "python": "version, or several",
    "spatial_eval": "version, or several",
    "torch": "version, or several",
    "transformers": "version, or several",
    "generations": "folder of the answers under output_dir/generations",
    "dtype": "dtype of the weights, `auto` resolved; this and the next four are empty for recorded models",
    "batch_size": "rows per forward pass, or auto",
    "preset": "preset of the model's settings",
    "decoding": "shared or per_arm, as requested",
    "revision": "commit of a model of the hub",
    "error": "cause of the failure, in one line",
    "arm": "the arm, as `0.5` or `0.5,scaling=mass`",
    "family": "method whose cells were candidates; all = every method",
    "chosen_on": "split of the choice",
    "candidates": "number of cells that it was chosen from",
    "tied": "number of cells with the same accuracy",
    "chosen_again": "percent of other draws of the questions that choose this cell",
    "chosen_n": "number of questions answered on the split of the choice",
    "chosen_accuracy": "accuracy on the split of the choice, in percent",
    "chosen_low": "lower end of its 95 % interval",
    "chosen_high": "upper end of its 95 % interval",
    "base": "the baseline's accuracy on the reported split, over the questions that both answered",
    "difference_low": "lower end of its 95 % bootstrap interval over sets or images; empty below 10 of them",
    "difference_high": "upper end of its 95 % bootstrap interval over sets or images; empty below 10 of them",
    "vs_base": "points more than base on the questions that both answered; empty for base and where it is not stored",
    "vs_base_low": "lower end of its 95 % bootstrap interval over sets or images; empty below 10 of them",
    "vs_base_high": "upper end of its 95 % bootstrap interval over sets or images; empty below 10 of them",
    "fixed": "number of questions that base (or a) has wrong and the cell (or b) right",
    "broken": "number of questions that base (or a) has right and the cell (or b) wrong",
    "p": "p-value, exact, two-sided: McNemar's test; sign flips of sets and images where questions share them",
    "p_holm": "p adjusted (Holm) for the distinct cells of the part; of a comparison, for its rows; of a choice, for "
    "the choices beside it, and for its candidates where it was made on the reported questions",
    "test": "test that p comes from",
    "detectable": "the smallest difference from base, in points, that so many questions show in 80 % of samples at the "
    "95 % level, given how often the two part; empty below 10 sets or images",
    "mark": "how the cell was chosen, and over how many seeds its figures are means; empty where it is the only one",
    "seeds": "number of cells that differ in their seed alone, whose mean the figures are; `fixed` and `broken` count "
    "in all of them together",
    "metric": "what was chosen by, and what the row's accuracies are: accuracy or accuracy_strict (then no paper)",
    "corrected": "accuracy corrected for being the best of many on the same questions; empty where it was chosen "
    "elsewhere or all are equal",
    "corrected_low": "lower end of its 95 % interval; empty below 10 sets or images",
    "corrected_high": "upper end of its 95 % interval; empty below 10 sets or images",
    "a": "the first side's cell",
    "b": "the second side's cell",
    "unmatched": "number of answers without an answer to the same question on the other side",
    "accuracy_a": "accuracy of a in percent, over the questions that both answered",
    "accuracy_b": "accuracy of b in percent, over the questions that both answered",
}
TABLES = {
    "results.csv": column_names.ROW,
    "by_relation.csv": column_names.BY_RELATION,
    "framings.csv": column_names.FRAMED,
    "samples.parquet": pass_tables.SAMPLES,
    "passes.csv": pass_tables.PASSES,
    "failures.csv": pass_tables.FAILURES,
    "python -m spatial_eval select --format csv": selection.FIELDS,
    "python -m spatial_eval compare --format csv": COMPARED,
}


class Unexplained(Exception):
    """Something that a user can set or read has no explanation; says where to write it."""


@dataclass(frozen=True)
class Option:
    """A YAML of a group: what its first comment says, its own keys and those of the option it builds on."""

    name: str
    about: str
    values: Mapping[str, Any]
    notes: Mapping[str, str]  # key -> comment on its line


def options(group: str) -> list[Option]:
    return [read(path) for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]


def read(path: Path) -> Option:
    """Raises Unexplained where the file does not say in its first lines what it is."""
    lines, head = path.read_text("utf8").splitlines(), _head(path)
    tree = yaml.safe_load("\n".join(lines)) or {}
    values, notes = dict(_flat({k: v for k, v in tree.items() if k != "defaults"})), dict(_notes(lines))
    for below in tree.get("defaults", []):
        if isinstance(below, str) and below != "_self_":
            base = read(path.with_name(f"{below}.yaml"))
            values, notes = {**base.values, **values}, {**base.notes, **notes}
    return Option(path.stem, " ".join(head), values, notes)


def _head(path: Path) -> list[str]:
    lines = path.read_text("utf8").splitlines()
    head = [line.removeprefix("#").strip() for line in itertools.takewhile(lambda line: line[:1] == "#", lines)]
    if not head:
        raise Unexplained(f"{path.relative_to(ROOT)}: say in its first line what it is")
    return head


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value and not above:  # deeper ones are written in braces, as one value
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _notes(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    above: list[str] = []
    for line in lines:
        found = re.fullmatch(r"( *)([\w.]+):(?: .*?)?(?:\s+#\s+(.*))?", line)
        if found:
            above = [*above[: len(found[1]) // 2], found[2]]
            if found[3]:
                yield ".".join(above), found[3]


def attributes(cls: type) -> dict[str, str]:
    """What a docstring says of fields: `name: what it is. other: what that is.` after `Attributes:`."""
    text = " ".join((cls.__doc__ or "").partition("Attributes:")[2].split())
    parts = re.split(r"(?:^|(?<=[.;])) ?(\w+(?:, \w+)*): ", text)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return {name: what.strip().rstrip(".") for names, what in pairs for name in names.split(", ")}


def arm_columns() -> dict[str, str]:
    parts = (Arm, AttentionChange, *ATTENTIONS.values(), *CONTRASTS.values())
    return {name: what for part in parts for name, what in attributes(part).items()}


def text() -> str:
    """The whole page. Raises Unexplained."""
    return "\n\n".join([HEAD, *root(), *groups(), *commands(), *files(), *ends()]) + "\n"


HEAD = """# Reference

Made by `make docs` from the code itself; do not edit it. How to use it all: [README](../README.md).

    python launch.py [-m] [--config-dir DIR] [sweep=NAME] [GROUP=OPTION ...] [KEY=VALUE ...]
    python -m spatial_eval COMMAND ..."""


def root() -> list[str]:
    tree = read(ROOT / "conf" / "config.yaml")
    keys = (*column_names.HYPERPARAMETERS, *schema.PARTS, *schema.ONCE)
    rows = [[f"`{key}`", _value(tree.values[key]), _note(tree.notes, key, "conf/config.yaml")] for key in keys]
    rows.append(["`sweep`", "", "a grid by name"])
    sweeps = sorted((ROOT / "sweeps").glob("*.yaml"))
    return [
        "## launch.py",
        _table(["flag", "what"], [[f"`{flag}`", what] for flag, what in FLAGS.items()]),
        "### Root keys",
        "`KEY=V1,V2` (with -m) makes an axis of the grid, `KEY=range(0,1,0.1)` too. What a method does not use is "
        "ignored, and said.",
        _table(["key", "default", "what"], rows),
        "### sweep",
        SWEEPS,
        _table(["sweep", "what"], [[f"`{path.stem}`", " ".join(_head(path))] for path in sweeps]),
    ]


def groups() -> Iterator[str]:
    for group in (*schema.GROUPS, "template", "preset"):
        found = options(group)
        yield f"### {group}"
        yield WHAT[group]
        yield _table(["option", "what"], [[f"`{one.name}`", one.about] for one in found])
        if group in CLASSES:
            for kind in dict.fromkeys(str(one.values["kind"]) for one in found):
                yield from _kind(group, kind, [one for one in found if one.values["kind"] == kind])


def _kind(group: str, kind: str, found: list[Option]) -> Iterator[str]:
    """The keys of the options of one kind; a default where all agree."""
    found = sorted(found, key=lambda one: one.name != kind)  # the generic option explains best
    said = attributes(CLASSES[group][kind])
    rows = []
    for key in dict.fromkeys(key for one in found for key in one.values if key != "kind"):
        values = {_value(one.values[key]) for one in found if key in one.values}
        what = next((one.notes[key] for one in found if key in one.notes), None)
        what = what or said.get(key) or next((one.notes[key] for one in options(group) if key in one.notes), None)
        what = what or read(ROOT / "conf" / "config.yaml").notes.get(re.sub(r"\W", "", str(found[0].values[key])))
        if not what:
            raise Unexplained(f"{group}.{key}: comment on it in conf/{group}/{found[0].name}.yaml")
        rows.append([f"`{group}.{key}`", values.pop() if len(values) == 1 else "by option", what])
    names = ", ".join(f"`{one.name}`" for one in found)
    if rows:
        yield f"Keys of {names}:" if len(found) < 8 else f"Keys of kind `{kind}`:"
        yield _table(["key", "default", "what"], rows)


def commands() -> Iterator[str]:
    yield "## python -m spatial_eval"
    top = build_parser()
    (each,) = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    said = {choice.dest: choice.help for choice in each._choices_actions}
    for name, command in each.choices.items():
        if name not in said:
            raise Unexplained(f"command {name}: give it a help text")
        yield f"### {name}"
        yield str(command.description or said[name])
        yield _table(["argument", "what"], [row for action in command._actions for row in _argument(name, action)])


def _argument(command: str, action: argparse.Action) -> Iterator[list[str]]:
    if isinstance(action, argparse._HelpAction):
        return
    if not action.help:
        raise Unexplained(f"{command} {action.option_strings or action.dest}: give it a help text")
    name = ", ".join(action.option_strings)
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    takes = "" if action.nargs == 0 else "{" + ",".join(map(str, action.choices)) + "}" if action.choices else metavar
    yield [f"`{f'{name} {takes}'.strip()}`", action.help.replace("%%", "%")]


def files() -> Iterator[str]:
    yield "## Files"
    yield "A sweep's, in `<output_dir>/sweeps/<id>/`; stored answers lie in `generations/` beside it."
    yield _table(["file", "what"], [[f"`{name}`", what] for name, what in FILES.items()])
    said = arm_columns() | COLUMNS
    for name, columns in TABLES.items():
        lacking = [column for column in columns if column not in said]
        if lacking:
            raise Unexplained(f"{name}, column {lacking[0]}: explain it in COLUMNS of docs/reference.py")
        yield f"### {name}"
        yield _table(["column", "what"], [[f"`{column}`", said[column]] for column in columns])


def ends() -> Iterator[str]:
    yield "## Exit codes"
    yield _table(["code", "what"], [[str(code), what] for code, what in CODES.items()])
    yield "## Environment"
    yield _table(["variable", "what"], [[f"`{name}`", what] for name, what in VARIABLES.items()])
    yield "## Published numbers"
    listed = ", ".join(f"`{name}`" for name in published.DATASETS)
    yield f"arXiv 2503.01773 for {', '.join(f'`{name}`' for name in published.TABLE)} on the test split of {listed}."


def _note(notes: Mapping[str, str], key: str, where: str) -> str:
    if key not in notes:
        raise Unexplained(f"{key}: comment on it in {where}")
    return notes[key]


def _value(value: Any) -> str:
    if value == "???":
        return "must be given"
    if isinstance(value, str) and (found := re.fullmatch(r"\$\{(\w+)\}", value)):
        return f"the root key `{found[1]}`"
    if isinstance(value, str) and (found := re.fullmatch(r"\$\{oc\.env:(\w+),(\w+)\}", value)):
        return f"`${found[1]}`, else `{found[2]}`"
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix('...' + chr(10)).strip()}`"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_root = read(ROOT / "conf" / "config.yaml").notes
COLUMNS |= {key: _note(_root, key, "conf/config.yaml") for key in column_names.HYPERPARAMETERS}

if __name__ == "__main__":
    PATH.write_text(text(), "utf8")
