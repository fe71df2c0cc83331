"""Import answers of other programs into the store, under a model name that the user gives."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from spatial_eval.benchmarks.prompts import reworded_by
from spatial_eval.cli.answer_forms import GENERATION_FIELDS, METHODS, Answer, Block, Hints, read_answers
from spatial_eval.cli.arguments import CONFIG_DIR, DATA_DIR, OUTPUT_DIR, Commands
from spatial_eval.config.compose import Composer
from spatial_eval.core.arms import BASE, SCALINGS, Arm
from spatial_eval.core.errors import ConfigError, DataError
from spatial_eval.core.plan import SPLITS, split_indices
from spatial_eval.core.types import Benchmark, Experiment, Generation, Part, Places, Sample
from spatial_eval.models.recorded import Imported
from spatial_eval.store.generations import ExperimentKey, Store, describe_dataset, experiment_key, sample_digests

NAME = re.compile(r"[\w.+-]+")
COMPARED = GENERATION_FIELDS.keys() - {"prompt", "batch", "device"}  # fields that two answers must share to be one


@dataclass
class Incoming:
    """Hold the answers to import into one experiment, by (sample id, arm). `known`: number already stored."""

    experiment: Experiment
    option: str
    key: ExperimentKey
    samples: Sequence[Sample]
    digests: dict[str, str]
    stored: Mapping[tuple[str, Arm], Generation]
    new: dict[tuple[str, Arm], Generation] = field(default_factory=dict)
    known: set[tuple[str, Arm]] = field(default_factory=set)


def gather_answers(
    blocks: Iterable[tuple[Block, Benchmark, str, str]], places: Places, max_new_tokens: int | None
) -> list[Incoming]:
    """Compare each block's answers with its benchmark's rows and the store. Writes nothing.

    Args:
        blocks: each with the benchmark of its questions, the benchmark's name in conf/dataset, and the model's name.

    Raises:
        DataError: a row is another question, or another answer to it is stored; the message names file and line.
    """
    gathered: dict[Experiment, Incoming] = {}
    for block, benchmark, option, name in blocks:
        stated = block.max_new_tokens
        if max_new_tokens is not None and stated not in (None, max_new_tokens):
            raise ConfigError(f"--max-new-tokens {max_new_tokens} contradicts the export, which says {stated}")
        experiment = Experiment(benchmark, Imported(name), stated or max_new_tokens or 100)
        if experiment not in gathered:
            samples, key = benchmark.read(places), experiment_key(experiment, places)
            digests = sample_digests(samples, ["" for _ in samples])
            stored = Store(places.paths.generations).read(key, digests).generations
            gathered[experiment] = Incoming(experiment, option, key, samples, digests, stored)
        incoming = gathered[experiment]
        rows = split_indices(incoming.samples, Part(block.split or "all"))
        by_id = {sample.id: sample for sample in incoming.samples}
        for answer in block.answers:
            if isinstance(answer.row, str):
                sample = by_id.get(answer.row)
                if sample is None:
                    raise DataError(
                        f"{answer.where}: {benchmark.name} has no question with the id {answer.row!r} (it has "
                        f"{', '.join(list(by_id)[:3])}, ...): not its answers, or its ids are in another column"
                    )
            elif answer.row < len(rows):
                sample = incoming.samples[rows[answer.row]]
            else:
                split = f"{block.split} split of " if block.split else ""
                raise DataError(
                    f"{answer.where}: the {split}{benchmark.name} has {len(rows)} rows only: not its answers"
                )
            _take_answer(incoming, answer, sample)
    return list(gathered.values())


def _take_answer(incoming: Incoming, answer: Answer, sample: Sample) -> None:
    dataset, model = incoming.experiment.dataset.name, incoming.experiment.model.name
    for what, given, true in list_differences(answer, sample):
        raise DataError(
            f"{answer.where}: its {what} is {given!r}, row {sample.row} of {dataset} has {true!r}: "
            "not the same questions"
        )
    generation = replace(answer.generation, sample_id=sample.id)
    key = sample.id, generation.arm
    before = incoming.stored.get(key) or incoming.new.get(key)
    if before is None:
        incoming.new[key] = generation
        return
    if key in incoming.stored:
        incoming.known.add(key)
    stored = asdict(before)
    for name, value in asdict(generation).items():
        if name in COMPARED and value is not None and value != stored[name]:
            raise DataError(
                f"{answer.where}: question {sample.id} of {dataset} under {generation.arm.label} has {name} {value!r}, "
                f"stored as {model!r} is {stored[name]!r}: nothing was written; import it under another --name"
            )


def list_differences(answer: Answer, sample: Sample) -> Iterator[tuple[str, str, str]]:
    """Yield (`gold` or `question`, the source's value, the benchmark's value) where an answer differs from its row."""
    gold, question = answer.gold, answer.question
    if answer.exact:
        gold = gold and gold.strip().lower()
        same_question = question in (None, sample.question, _cut_caption(sample.question))
        same_gold = gold is None or gold in sample.gold_texts
    else:
        # Another program's words: `(A)` for a, a line of instructions before or behind the question.
        options = (*sample.options, *sample.option_texts, *sample.answers, *(() if sample.options else ("yes", "no")))
        bare = None if gold is None else _strip_marks(gold)
        known = bare in [_strip_marks(option) for option in options]
        same_question = question is None or _ask_the_same(question, sample.question)
        # What is none of the options may be the index of one: the question decides.
        same_gold = bare is None or (
            bare in [_strip_marks(text) for text in sample.gold_texts] if known else question is not None
        )
    if not same_gold:
        yield "gold", str(gold), sample.answers[0]
    if not same_question:
        yield "question", str(question), sample.question


def _strip_marks(gold: str) -> str:
    return gold.strip().lower().strip("()[]'\". ")


def _ask_the_same(prompt: str, question: str) -> bool:
    """Return whether one text holds the other, or they begin with the same line; images and white space are ignored."""
    texts = [re.sub(r"<image>|<\|image_pad\|>", " ", text) for text in (prompt, question)]
    flat = [" ".join(text.split()).lower() for text in texts]
    lines = [" ".join(text.strip().split("\n")[0].split()).lower() for text in texts]
    return flat[0] in flat[1] or flat[1] in flat[0] or lines[0] == lines[1]


def _cut_caption(question: str) -> str:
    """Return a question of VSR as the reference's files quote it."""
    head, instruction, _ = question.partition("Answer with yes or no: ")
    return head + instruction


def write_import(gathered: Iterable[Incoming], places: Places) -> None:
    """Append new answers to the store. Raises StoreError."""
    for incoming in gathered:
        if incoming.new:
            with Store(places.paths.generations).writer(incoming.key, incoming.digests, {}) as writer:
                writer.append(list(incoming.new.values()), 0.0)


def list_commands(incoming: Incoming, overrides: Sequence[str], places: Places) -> list[str]:
    """List the launch.py commands that make tables of an experiment, one per kind of arm."""
    rows = {sample.id: sample.row for sample in incoming.samples}
    held = {*incoming.new, *incoming.stored}
    arms = sorted({arm for _, arm in held})
    answered = {rows[sample_id] for sample_id, _ in held}
    splits = [name for name in ("val", "test") if answered & set(split_indices(incoming.samples, Part(name)))]
    model, length = incoming.experiment.model.name, incoming.experiment.max_new_tokens
    shared = [f"dataset={incoming.option}", *overrides, "model=imported", f"model.name={model}"]
    shared += [f"split={','.join(splits)}", *([] if length == 100 else [f"max_new_tokens={length}"])]
    shared += [f"data_dir={places.data}", f"output_dir={places.output}"]
    weights = [f"{arm.weight!r}" for arm in arms if arm.plain and arm != BASE]
    plain = ["base"] * (BASE in arms) + ["scaling_vis"] * bool(weights)
    methods = [[f"method={','.join(plain)}", *([f"weight={','.join(weights)}"] if weights else [])]] if plain else []
    methods += [_list_overrides(arm) for arm in arms if not arm.plain]
    return [shlex.join(["python", "launch.py", "-m", *shared, *method]) for method in methods]


def _list_overrides(arm: Arm) -> list[str]:
    """List the overrides that mean an arm which is more than a weight; a contrast is called as its method."""
    if arm.contrast and arm.without_contrast != BASE:  # the whole of PAI, or one like it
        return ["method=route", f"method.low='{arm.label}'", f"method.high='{arm.label}'", "threshold=0"]
    if arm.contrast or arm.attention.scaling not in SCALINGS:
        kind, named = arm.contrast.kind if arm.contrast else arm.attention.scaling, (arm.contrast or arm.attention).told
        overrides = [f"method={kind}"]
    else:
        overrides, named = ["method=scaling_vis", f"weight={arm.weight!r}"], {"scaling": "multiply", **arm.to_flat()}
        named = {"image" if name == "image_index" else name: value for name, value in named.items() if name != "weight"}
    given = {name: value for name, value in named.items() if name != "contrast" and value != ""}
    return overrides + [
        f"method.{name}=[{value}]"
        if name in ("layers", "heads", "sinks") and str(value)[0].isdigit()
        else f"method.{name}={value}"
        for name, value in given.items()
    ]


def add_import(commands: Commands) -> None:
    """Add `import` to the subparsers of the command line."""
    parser = commands["import"](
        parents=[DATA_DIR, OUTPUT_DIR, CONFIG_DIR],
        description="Import answers into the store: recordings, exports, result files of the reference code, of LLaVA, "
        "lmms-eval, VLMEvalKit and Inspect. Stored answers never change.",
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a JSON lines file or folder, or a result file")
    parser.add_argument("--name", default="", help="name of the model (default for an export: its name there)")
    parser.add_argument(
        "--dataset",
        nargs="+",
        default=[""],
        metavar=("NAME", "dataset.KEY=VALUE"),
        help="which benchmark, with keys as launch.py takes them (default: that of SOURCE)",
    )
    parser.add_argument("--max-new-tokens", type=int, help="tokens per answer, at most (default: 100, or an export's)")
    parser.add_argument("--weight", type=float, help="weight of the answers, where a result file's name lacks it")
    parser.add_argument("--split", choices=SPLITS, default="", help="split of the answers; VSR's result files lack it")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="",
        help="method of a result file's answers, where its name or keys lack it: base (weight 1) or scaling_vis; "
        "adapt_vis mixes two weights and is rejected",
    )
    parser.set_defaults(run=run_import)


def run_import(parsed: argparse.Namespace) -> None:
    """Print the numbers of new and known answers by dataset and arm, and the commands that make tables of them."""
    places = Places(parsed.data_dir, parsed.output_dir.expanduser().absolute())
    if parsed.max_new_tokens is not None and parsed.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens {parsed.max_new_tokens} is not valid; expected a whole number >= 1")
    dataset, *overrides = parsed.dataset
    odd = [item for item in overrides if not re.match(r"dataset(\.\w+)+=", item)]
    if odd:
        raise ConfigError(f"--dataset {dataset} {odd[0]} is not valid; expected a NAME and any dataset.KEY=VALUE")
    composer = Composer(parsed.config_dir)
    values = composer.parse_values(overrides)
    blocks = read_answers(parsed.source, Hints(dataset, parsed.weight, parsed.split, parsed.method))
    matched = [
        (block, *benchmark, _choose_name(block, blocks, parsed.name))
        for block in blocks
        if (benchmark := _find_benchmark(block, dataset, values, composer))
    ]
    if not matched:
        held = ", ".join(sorted({block.dataset for block in blocks})) or "nothing"
        raise DataError(f"{parsed.source} holds no answers to --dataset {dataset}; it holds {held}")
    gathered = gather_answers(matched, places, parsed.max_new_tokens)
    write_import(gathered, places)
    lines = [line for incoming in gathered for line in _describe_counts(incoming)]
    lines += filter(None, dict.fromkeys(block.note for block, *_ in matched))
    taken = {id(block) for block, *_ in matched}
    others = sorted({block.dataset for block in blocks if id(block) not in taken})
    lines += [f"left out: answers to {', '.join(others)}, which are other questions"] if others else []
    new, known = sum(len(incoming.new) for incoming in gathered), sum(len(incoming.known) for incoming in gathered)
    lines.append(f"{new:,} new, {known:,} known; tables of it:")
    lines += [f"  {line}" for incoming in gathered for line in list_commands(incoming, overrides, places)]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _describe_counts(incoming: Incoming) -> list[str]:
    label = f"{incoming.experiment.dataset.name} x {incoming.experiment.model.name}"
    new, known = (Counter(arm for _, arm in keys) for keys in (incoming.new, incoming.known))
    return [f"{label}, {arm.label}: {new[arm]:,} new, {known[arm]:,} known" for arm in sorted(new | known)]


def _choose_name(block: Block, blocks: Sequence[Block], given: str) -> str:
    """Return what the block's model is to be called. Raises ConfigError."""
    models = sorted({other.model for other in blocks})
    if given and len(models) > 1:
        raise ConfigError(f"the source holds the models {', '.join(models)}: leave --name away, each keeps its own")
    name = given or block.model
    if not name:
        raise ConfigError("the answers need a name: add --name NAME, the model's label in tables")
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name {name} is not valid; expected letters, digits and any of . _ + -")
    return name


def _find_benchmark(
    block: Block, given: str, values: Mapping[str, Any], composer: Composer
) -> tuple[Benchmark, str] | None:
    """Return the benchmark that a block answers and its name in conf/dataset; None where --dataset is another."""
    wanted = given or re.split("[@+:]", block.dataset)[0]
    benchmark, option = composer.read_benchmark(wanted, values), composer.find_dataset(wanted)
    if block.described is None:
        if asked := reworded_by(benchmark):
            raise ConfigError(f"{benchmark.name}: these answer the benchmark's own question: take {asked} away")
        names = {benchmark.name, benchmark.upstream or benchmark.name, option}
        return (benchmark, option) if {block.dataset, composer.find_dataset(block.dataset)} & names else None
    here = describe_dataset(benchmark)
    if given and block.described.get("name") != here["name"]:
        return None
    for key in sorted({*here, *block.described}):
        then, now = block.described.get(key), here.get(key)  # None = at its default
        if then == now:
            continue
        stated = f"without dataset.{key}" if then is None else f"with dataset.{key}={then}"
        current = "" if now is None else f", here it is {now}"
        advice = "add it to" if now is None else "take it away from" if then is None else "say it in"
        raise ConfigError(f"{block.dataset} was exported {stated}{current}: {advice} --dataset")
    return benchmark, option
