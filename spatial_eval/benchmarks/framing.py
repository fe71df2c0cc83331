"""Ask the same question in another form (`dataset.framing`): other options, order, instruction, scoring rule. Pure.

A question that is asked several times (yes_no, circular, flip) keeps the relation and the side of val and test
of its source, so that framings of a dataset can be compared question by question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from spatial_eval.benchmarks.mirror import MARK, draw_mirrored, mirror_pictures, mirror_sample
from spatial_eval.benchmarks.prompts import Rewritten, split_wrapper
from spatial_eval.benchmarks.rows import RowBenchmark
from spatial_eval.benchmarks.scoring import YES_NO
from spatial_eval.core.errors import ConfigError, DataError, describe_unknown
from spatial_eval.core.types import Benchmark, Places, Sample

LETTERS_NOTE = "Answer with the option's letter from the given choices directly."  # LLaVA's
# Pairs of opposites, which stay together where a framing leaves options out.
OPPOSITES = (
    *(("left", "right"), ("on", "under"), ("above", "below"), ("over", "under"), ("top", "bottom")),
    *(("front", "behind"), ("in front", "behind"), ("in front of", "behind"), ("near", "far")),
)
# A sentence that says how to answer, wherever it stands; what asks ends with a question mark.
_NOTE = re.compile(
    r"(?:^|(?<=[.?!:\n]))\s*(?:please\s+)?(?:answer|choose|select|reply|respond|pick)\b[^.:?!\n]*(?:[.:!]|$)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Framing:
    """Describe a form of a question.

    Attributes:
        shows: own (the benchmark's question), nothing, words (behind "Answer with"), letters (one line `A. text` per
            option, and LLaVA's instruction), or claims (yes or no: one question per right option and one about a
            wrong one).
        most: number of options that are kept: the right one, its opposite, then others; 0 = all.
        order: of the options: given, drawn (always the same for one question), or rotations (one question per order).
        mirrored: whether each question is asked a second time with its picture mirrored and its sides swapped.
    """

    shows: str
    most: int = 0
    order: str = "given"
    mirrored: bool = False

    @property
    def asks_once(self) -> bool:
        """Return whether a question of the source gives one question."""
        return self.shows != "claims" and self.order != "rotations" and not self.mirrored


FRAMINGS: Mapping[str, Framing] = {
    "open": Framing("nothing"),
    "listed": Framing("words"),
    "yes_no": Framing("claims"),
    "letters": Framing("letters"),
    "k2": Framing("words", most=2, order="drawn"),
    "k3": Framing("words", most=3, order="drawn"),
    "permuted": Framing("letters", order="drawn"),
    "circular": Framing("letters", order="rotations"),
    "flip": Framing("own", mirrored=True),
    "flip_letters": Framing("letters", mirrored=True),
    "flip_circular": Framing("letters", order="rotations", mirrored=True),
}


@dataclass(frozen=True, slots=True)
class Framed(Rewritten):
    """Read a benchmark with each question asked in a form of FRAMINGS.

    Its name is `<benchmark>@<framing>`, so that no published number of the benchmark stands beside it.
    """

    name: str
    benchmark: Benchmark
    framing: str = field()

    def describe(self) -> dict[str, Any]:
        return {**self.benchmark.describe(), "framing": self.framing}

    @property
    def questions(self) -> int:
        return self.benchmark.questions if FRAMINGS[self.framing].asks_once else 0

    def read(self, places: Places) -> list[Sample]:
        source = self.benchmark
        if isinstance(source, RowBenchmark) and FRAMINGS[self.framing].shows != "own":
            # without what it would put around the question
            source = replace(source, instruction="", preface="", options_style="none")
        samples = source.read(places)
        form = FRAMINGS[self.framing]
        recut = not form.asks_once and not any(sample.cut for sample in samples)
        framed: list[Sample] = []
        for sample in samples:
            try:
                asked = frame_sample(sample, self.framing)
            except ValueError as error:
                raise DataError(
                    f"{self.benchmark.name}, question {sample.id}: dataset.framing={self.framing}: {error}"
                ) from None
            for one in asked:
                # As many cuts as rows, in their order: the same questions are val as in the source.
                cut = f"{sample.row:08d}" if recut else one.cut
                framed.append(replace(one, row=len(framed), cut=cut, source=sample.id * (len(asked) > 1)))
        turned = [one for one in framed if form.mirrored and one.id.endswith(MARK)]
        for one in mirror_pictures(turned, self.orientation, places) if turned else ():
            framed[one.row] = one
        return framed

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        """Write the picture files of the source's questions, and the mirrored pictures that are needed."""
        wanted = {sample.image for sample in samples}
        source = self.benchmark.read(places)
        mirrored: list[Sample | None] = [None] * len(source)
        if FRAMINGS[self.framing].mirrored:
            mirrored = list(mirror_pictures(source, self.orientation, places))
        pairs = [(one, other.image if other else None) for one, other in zip(source, mirrored, strict=True)]
        shown = [(one, turned) for one, turned in pairs if wanted & {one.image, turned} - {None}]
        self.benchmark.ready([one for one, _ in shown], places)
        for image, turned in dict.fromkeys((one.image, turned) for one, turned in shown if turned in wanted):
            if image is not None and turned is not None:
                draw_mirrored(image, turned, self.orientation)


def apply_framing(benchmark: Benchmark, framing: str) -> Framed:
    """Return the benchmark with its questions asked in a form. Raises ConfigError where there is no such form."""
    if framing not in FRAMINGS:
        raise ConfigError(describe_unknown("dataset.framing", framing, FRAMINGS))
    return Framed(f"{benchmark.name}@{framing}", benchmark, framing)


def frame_sample(sample: Sample, framing: str) -> list[Sample]:
    """Return the question in a form; several questions where the form asks several times.

    Args:
        framing: key of FRAMINGS.

    Raises:
        ValueError: the question has no such form.
    """
    form = FRAMINGS[framing]
    asked = [sample] if form.shows == "own" else _ask_form(sample, framing)
    if not form.mirrored:
        return asked
    pairs = []
    for one in asked:
        others = [("flip", one.id), *([("flip_circular", sample.id)] if form.order == "rotations" else [])]
        for each, mark in ((one, ""), (mirror_sample(one), MARK)):  # rotations of a mirrored question are its own
            kept = [(kind, name + mark) for kind, name in one.groups if kind == "circular"]
            rest = [group for group in one.groups if group[0] not in ("circular", "flip", "flip_circular")]
            pairs.append(replace(each, pair=one.id, groups=(*rest, *kept, *others)))
    return pairs


def _ask_form(sample: Sample, framing: str) -> list[Sample]:
    form, texts, golds = FRAMINGS[framing], *_read_options(sample)
    head, bare, tail = split_wrapper(sample.question)
    stem = _strip_options(bare, texts)
    draw, yes_no = Random(f"{framing} {sample.id}"), {text.lower() for text in texts} == set(YES_NO)
    if form.most and form.most >= len(texts):
        raise ValueError(f"it has {len(texts)} options, and this form leaves {form.most} of more")
    kept = _keep(texts, golds, form.most, draw) if form.most else list(range(len(texts)))
    if form.order == "drawn":
        draw.shuffle(kept)

    def ask(shown: Sequence[int], behind: str) -> Sample:
        words, right = [texts[i] for i in shown], [shown.index(i) for i in golds if i in shown]
        if form.shows == "letters":
            options = tuple("abcdefghijklmnopqrstuvwxyz"[: len(words)])
            rule = "letter"
        else:
            options, rule = tuple(word.lower() for word in words), "yes_no" if yes_no else "words"
        return replace(
            sample,
            question=f"{head}{stem}{behind}{tail}",
            answers=tuple(options[i] for i in right),
            options=options,
            option_texts=tuple(words) if rule == "letter" else (),
            scoring=rule,
        )

    if form.shows == "nothing":
        return [ask(kept, "")]
    if form.shows == "words" or (form.shows == "claims" and yes_no):
        words = [texts[i] for i in kept]
        return [ask(kept, f" Answer with {', '.join(words[:-1])} or {words[-1]}.")]
    if form.shows == "claims":
        wrong = _keep(texts, golds[:1], 2, draw, avoid=golds)[1:]
        return [
            replace(
                ask(kept, f' Is the answer "{texts[i]}"? Answer with yes or no.'),
                id=f"{sample.id}@{texts[i]}",
                pair=sample.id,
                options=YES_NO,
                answers=("yes" if i in golds else "no",),
                scoring="yes_no",
            )
            for i in (golds[0], *wrong)
        ]
    turns = [kept] if form.order != "rotations" else [kept[i:] + kept[:i] for i in range(len(kept))]
    asked = []
    for turn, shown in enumerate(turns):
        lines = [f"\n{letter}. {texts[i]}" for letter, i in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", shown, strict=False)]
        one = ask(shown, f"{''.join(lines)}\n{LETTERS_NOTE}")
        if len(turns) > 1:
            groups = (*(group for group in sample.groups if group[0] != "circular"), ("circular", sample.id))
            one = replace(one, id=f"{sample.id}@{turn}", set=sample.id, groups=groups)
        asked.append(one)
    return asked


def _read_options(sample: Sample) -> tuple[tuple[str, ...], list[int]]:
    """Return the options' texts, and which of them are right. Raises ValueError where they are not known."""
    options = sample.options or (YES_NO if set(sample.answers) <= set(YES_NO) else ())
    texts = sample.option_texts or options
    golds = [i for i, option in enumerate(options) if option in sample.answers]
    if len(texts) < 2 or len(texts) > 26 or not golds or all(len(text) == 1 for text in texts):
        raise ValueError("the texts of its options are not known: name their column (dataset.columns.options)")
    return texts, golds


def _strip_options(bare: str, texts: Sequence[str]) -> str:
    """Return a question without its options and what it says of how to answer. Raises ValueError where they stay."""
    lines = "|".join(re.escape(text) for text in texts)
    listed = re.findall(rf"\n[ \t]*\(?[A-Za-z][).:][ \t]*(?:{lines})[ \t]*(?=\n|$)", bare)
    for line in listed if len(listed) >= len(texts) else ():
        bare = bare.replace(line, "", 1)
    stem = _NOTE.sub("", bare).strip()
    named = [re.search(rf"(?<!\w){re.escape(text)}(?!\w)", stem, re.IGNORECASE) for text in texts]
    if not stem or all(named):
        raise ValueError("it names its options in words that cannot be taken away")
    return stem


def _keep(texts: Sequence[str], golds: Sequence[int], most: int, draw: Random, avoid: Sequence[int] = ()) -> list[int]:
    """Return the right option, its opposite where there is one, and others at random: `most` in all."""
    gold = golds[0]
    others = [i for i in range(len(texts)) if i not in (*golds, *avoid)]
    draw.shuffle(others)
    opposites = {other for pair in OPPOSITES if texts[gold].lower() in pair for other in pair}
    others.sort(key=lambda i: texts[i].lower() not in opposites)  # stable: the others stay as drawn
    return [gold, *others[: most - 1]]
