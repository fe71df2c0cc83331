"""import: others' answers into the store, as those of a model that is called what the user says."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import origins
from .errors import ConfigError, DataError
from .imported import Imported
from .origins import SAID, Answer, Block, Hints
from .plan import SPLITS, indices
from .store import Key, Store, describe_dataset, digests, key
from .types import BASE, Arm, Benchmark, Generation, Part, Places, Sample, Trunk

NAME = re.compile(r"[\w.+-]+")
COMPARED = tuple(name for name in SAID if name not in ("prompt", "batch", "device"))  # what an answer says


@dataclass
class Incoming:
    """A trunk's answers on their way in, by (sample id, arm). `known`: what is stored and has come again."""

    trunk: Trunk
    key: Key
    samples: Sequence[Sample]
    digests: dict[str, str]
    stored: Mapping[tuple[str, Arm], Generation]
    new: dict[tuple[str, Arm], Generation] = field(default_factory=dict)
    known: set[tuple[str, Arm]] = field(default_factory=set)


def gather(blocks: Iterable[tuple[Block, Benchmark, str]], places: Places, length: int | None) -> list[Incoming]:
    """What to write: each block's answers, with the benchmark that they answer and the model's name.

    Each is held against the benchmark's row and the store; writes nothing. Raises DataError with file and line where
    a row is another question, or is answered otherwise already.
    """
    found: dict[Trunk, Incoming] = {}
    for block, benchmark, name in blocks:
        if length is not None and block.max_new_tokens not in (None, length):
            raise ConfigError(f"--max-new-tokens {length} contradicts the export, which says {block.max_new_tokens}")
        trunk = Trunk(benchmark, Imported(name), block.max_new_tokens or length or 100)
        if trunk not in found:
            samples, where = benchmark.read(places), key(trunk, places)
            known = digests(samples, ["" for _ in samples])
            stored = Store(places.output / "generations").read(where, known)
            found[trunk] = Incoming(trunk, where, samples, known, stored.generations)
        one = found[trunk]
        rows = indices(len(one.samples), Part(block.split or "all"))
        by_id = {sample.id: sample for sample in one.samples}
        for answer in block.answers:
            if isinstance(answer.row, str):
                if answer.row not in by_id:
                    first = ", ".join(list(by_id)[:3])
                    raise DataError(
                        f"{answer.where}: {benchmark.name} has no question with the id {answer.row!r} (it has {first}, "
                        "...): not its answers, or its ids are in another column"
                    )
                _take(one, answer, by_id[answer.row])
                continue
            if answer.row >= len(rows):
                split = f"{block.split} split of " if block.split else ""
                raise DataError(
                    f"{answer.where}: the {split}{benchmark.name} has {len(rows)} rows only: not its answers"
                )
            _take(one, answer, one.samples[rows[answer.row]])
    return list(found.values())


def _told_apart(what: str, was: Any, now: Any) -> str:
    """How a key of a dataset's identity differs, None where it is at its default, and what to do about it."""
    if now is None:
        return f"with dataset.{what}={was}: add it to --dataset"
    if was is None:
        return f"without dataset.{what}, here it is {now}: take it away from --dataset"
    return f"with dataset.{what}={was}, here it is {now}: say it in --dataset"


def _take(one: Incoming, answer: Answer, sample: Sample) -> None:
    dataset = one.trunk.dataset.name
    for what, said, true in _differences(answer, sample):
        raise DataError(
            f"{answer.where}: its {what} is {said!r}, row {sample.row} of {dataset} has {true!r}: "
            "not the same questions"
        )
    generation = replace(answer.said, sample_id=sample.id)
    where = sample.id, generation.arm
    before = one.stored.get(where) or one.new.get(where)
    if before is None:
        one.new[where] = generation
        return
    if where in one.stored:
        one.known.add(where)
    for name in COMPARED:
        said, stored = getattr(generation, name), getattr(before, name)
        if said is not None and said != stored:
            raise DataError(
                f"{answer.where}: question {sample.id} of {dataset} under {generation.arm.label} has {name} {said!r}, "
                f"stored as {one.trunk.model.name!r} is {stored!r}: nothing was written; import it under another --name"
            )


def _differences(answer: Answer, sample: Sample) -> Iterator[tuple[str, str, str]]:
    """What of an answer is not its row's: gold or question, as the source says it and as the benchmark does."""
    if answer.exact:
        gold = None if answer.gold is None else answer.gold.strip().lower()
        if gold is not None and gold not in sample.gold_texts:
            yield "gold", gold, sample.answers[0]
        if answer.question is not None and answer.question not in _questions(sample):
            yield "question", answer.question, sample.question
        return
    # Another program's words: `(A)` for a, a line of instructions before or behind the question.
    known = [_bare(option) for option in (*sample.options, *sample.option_texts, *sample.answers)]
    known += ["yes", "no"] * (not sample.options)
    if answer.gold is not None:
        gold = _bare(answer.gold)
        if gold in known and gold not in map(_bare, sample.gold_texts):
            yield "gold", answer.gold, sample.answers[0]
        if gold not in known and answer.question is None:  # the index of an option, say
            yield "gold", answer.gold, sample.answers[0]
    if answer.question is not None and not _asks(answer.question, sample.question):
        yield "question", answer.question, sample.question


def _bare(gold: str) -> str:
    return gold.strip().lower().strip("()[]'\". ")


def _asks(prompt: str, question: str) -> bool:
    """Whether one of two texts holds the other, or they begin with the same line, images and white space aside."""
    texts = [re.sub(r"<image>|<\|image_pad\|>", " ", text) for text in (prompt, question)]
    flat = [" ".join(text.split()).lower() for text in texts]
    lines = [" ".join(text.strip().split("\n")[0].split()).lower() for text in texts]
    return flat[0] in flat[1] or flat[1] in flat[0] or lines[0] == lines[1]


def _questions(sample: Sample) -> tuple[str, ...]:
    """The question, and how the reference's VSR files quote it: without the caption."""
    head, found, _ = sample.question.partition("Answer with yes or no: ")
    return (sample.question, head + found) if found else (sample.question,)


def write(incoming: Iterable[Incoming], places: Places) -> None:
    """After this call what is new is in the store, beside what was there. Raises StoreError."""
    for one in incoming:
        if one.new:
            with Store(places.output / "generations").writer(one.key, one.digests, {}) as writer:
                writer.append(list(one.new.values()), 0.0)


def command(one: Incoming, overrides: Sequence[str], option: str, places: Places) -> list[str]:
    """launch.py's command lines that make tables of a trunk: one a kind of arm."""
    rows = {sample.id: sample.row for sample in one.samples}
    arms = sorted({arm for _, arm in (*one.new, *one.stored)})
    have = {rows[sample_id] for sample_id, _ in (*one.new, *one.stored)}
    splits = [name for name in ("val", "test") if have & set(indices(len(rows), Part(name)))]
    model = [f"model={Imported.__name__.lower()}", f"model.name={one.trunk.model.name}"]
    shared = [f"dataset={option}", *overrides, *model, f"split={','.join(splits)}"]
    if one.trunk.max_new_tokens != 100:
        shared.append(f"max_new_tokens={one.trunk.max_new_tokens}")
    shared += [f"data_dir={places.data}", f"output_dir={places.output}"]
    plain = [arm for arm in arms if arm.plain and arm != BASE]
    methods = [
        ["method=base,scaling_vis" if plain and BASE in arms else "method=scaling_vis" if plain else "method=base"]
    ]
    methods[0] += ["weight=" + ",".join(f"{arm.weight!r}" for arm in plain)] if plain else []
    methods = (methods if plain or BASE in arms else []) + [_method(arm) for arm in arms if not arm.plain]
    return [shlex.join(["python", "launch.py", "-m", *shared, *method]) for method in methods]


def _method(arm: Arm) -> list[str]:
    """The overrides that mean an arm which is more than a weight."""
    layers = [f"method.layers=[{arm.layers}]" if arm.layers[:1].isdigit() else f"method.layers={arm.layers}"]
    names = {"vcd": ("alpha", "cutoff", "noise"), "dola": ("cutoff",)}.get(arm.contrast, ("scaling",))
    given = [f"method.{name}={getattr(arm, name)}" for name in names] + (layers if arm.layers else [])
    return [f"method={arm.contrast or 'scaling_vis'}", *([] if arm.contrast else [f"weight={arm.weight!r}"]), *given]


def add(commands: Any) -> None:
    """The command, for the command line's parser."""
    said = (
        "others' answers into the store: recordings, what export wrote, result files of the reference code, of LLaVA "
        "and of lmms-eval"
    )
    parser = commands.add_parser("import", help=said, description=f"Put {said}. Nothing stored is ever changed.")
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a JSON lines file or folder, or a result file")
    parser.add_argument("--name", default="", help="what the model is called (default for an export: as it was)")
    parser.add_argument(
        "--dataset",
        nargs="+",
        default=[""],
        metavar=("NAME", "dataset.KEY=VALUE"),
        help="which benchmark, with keys as launch.py takes them (default: what SOURCE says of each answer)",
    )
    parser.add_argument("--max-new-tokens", type=int, help="longest answer (default: 100, or what an export says)")
    parser.add_argument("--weight", type=float, help="of a result file's answers, where its name does not say it")
    parser.add_argument("--split", choices=SPLITS, default="", help="likewise; VSR's result files never say it")
    parser.add_argument(
        "--method",
        choices=origins.METHODS,
        default="",
        help="what gave a result file's answers, where its name or keys leave it open: base (weight 1) or scaling_vis; "
        "adapt_vis mixes two weights and is refused",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("SPATIAL_EVAL_DATA") or "data"),
        help="as launch.py's data_dir (default: $SPATIAL_EVAL_DATA, else data)",
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="as launch.py's (default: outputs)")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Prints what was new and known by dataset and arm, and the commands that make tables of it."""
    places = Places(parsed.data_dir.expanduser().absolute(), parsed.output_dir.expanduser().absolute())
    if parsed.max_new_tokens is not None and parsed.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens {parsed.max_new_tokens} is not valid; expected a whole number >= 1")
    dataset, *overrides = parsed.dataset
    odd = [item for item in overrides if not re.match(r"dataset\.\w+=", item)]
    if odd:
        raise ConfigError(f"--dataset {dataset} {odd[0]} is not valid; expected a NAME and any dataset.KEY=VALUE")
    blocks = origins.read(parsed.source, Hints(dataset, parsed.weight, parsed.split, parsed.method))
    placed = [(block, *_benchmark(block, dataset, overrides), _name(block, blocks, parsed.name)) for block in blocks]
    placed = [one for one in placed if one[1] is not None]
    if not placed:
        held = ", ".join(sorted({block.dataset for block in blocks})) or "nothing"
        raise DataError(f"{parsed.source} holds no answers to --dataset {dataset}; it holds {held}")
    wanted = [(block, benchmark, name) for block, benchmark, _, name in placed]
    options = {benchmark: option for _, benchmark, option, _ in placed}
    incoming = gather(wanted, places, parsed.max_new_tokens)
    counts = [_counts(one) for one in incoming]
    write(incoming, places)
    sys.stdout.write("".join(f"{line}\n" for lines in counts for line in lines))
    sys.stdout.write("".join(f"{note}\n" for note in dict.fromkeys(one[0].note for one in placed) if note))
    new, known = sum(len(one.new) for one in incoming), sum(len(one.known) for one in incoming)
    sys.stdout.write(f"{new:,} new, {known:,} known; tables of it:\n")
    for one in incoming:
        lines = command(one, overrides, options[one.trunk.dataset], places)
        sys.stdout.write("".join(f"  {line}\n" for line in lines))
    return 0


def _counts(one: Incoming) -> list[str]:
    arms = sorted({arm for _, arm in (*one.new, *one.known)})
    return [
        f"{one.trunk.dataset.name} x {one.trunk.model.name}, {arm.label}: "
        f"{sum(a == arm for _, a in one.new):,} new, {sum(a == arm for _, a in one.known):,} known"
        for arm in arms
    ]


def _name(block: Block, blocks: Sequence[Block], given: str) -> str:
    """What the block's model is to be called. Raises ConfigError."""
    models = sorted({one.model for one in blocks})
    if given and len(models) > 1:
        raise ConfigError(f"the source holds the models {', '.join(models)}: leave --name away, each keeps its own")
    name = given or block.model
    if not name:
        raise ConfigError("the answers need a name: add --name NAME, the model's label in tables")
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name {name} is not valid; expected letters, digits and any of . _ + -")
    return name


def _benchmark(block: Block, given: str, overrides: Sequence[str]) -> tuple[Any, str]:
    """(the benchmark that the block answers, its name in conf/dataset); (None, "") where --dataset asks for another."""
    from . import prepare  # Hydra costs start-up time

    wanted = given or block.dataset.partition("+")[0]
    benchmark = prepare.benchmark(wanted, overrides)
    option = prepare.called(wanted)
    names = {benchmark.name, getattr(benchmark, "upstream", ""), option}
    if block.described is None:
        if getattr(benchmark, "template", None):
            raise ConfigError(
                f"{benchmark.name}: these answer the benchmark's own question: take dataset.template away"
            )
        known = prepare.called(block.dataset)
        return (benchmark, option) if {block.dataset, known} & names else (None, "")
    here = describe_dataset(benchmark)
    if given and block.described.get("name") != here["name"]:
        return None, ""
    for what in sorted({*here, *block.described}):
        was, now = block.described.get(what), here.get(what)
        if was != now:
            raise ConfigError(f"{block.dataset} was exported {_told_apart(what, was, now)}")
    return benchmark, option
