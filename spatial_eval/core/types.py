"""Define the nouns of the project: immutable values and interfaces, no I/O.

experiment  dataset + model + decoding settings        what identifies a stored answer, with its arm
arm         one way to decode a prompt                 a scaling of attention, a contrast of logits (core.arms)
method      a pure rule                                reads some arms, takes the answer of one per question
cell        experiment + method + part of the dataset  one point of the grid, one row of results.csv
pass        experiment + the arms that each part needs computed together on one device
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from spatial_eval.core.arms import BASE as BASE  # packages of others import these two from here
from spatial_eval.core.arms import Arm as Arm
from spatial_eval.core.paths import OutputPaths
from spatial_eval.core.validate import field_values

if TYPE_CHECKING:
    from numpy import bool_, float64, intp
    from numpy.typing import NDArray

# How much of the last prompt row's attention is kept beside an answer; each holds what the ones before it hold.
CAPTURES = ("none", "mass", "map", "heads")


@dataclass(frozen=True, slots=True)
class Sample:
    """Hold one question about one image.

    Attributes:
        id: the row's own id as text; unique in its dataset.
        row: index in the whole dataset, before any split.
        question: the benchmark's text; may hold an `<image>` placeholder.
        answers: the gold answers, any of which is right; lower case, not empty.
        options: every option that the question offers, lower case; empty where unknown.
        image: the image file, opened only where it is encoded; None for recordings' text-only rows.
        further_images: further images of the question, in order.
        image_digest: identity of the image where it is known without reading the file, else "".
        relation, pair, set: names of the groups of metrics; "" where the benchmark has none.
        groups: further groups, each a kind of columns.KINDS and a name; several of one kind where it counts in several.
        scoring: the rule by which a text is graded, a key of scoring.RULES; answers and options are letters where the
            rule reads letters.
        option_texts: the texts of the letters in `options`, as in the dataset; () where they are not known, or where
            the options are texts themselves.
        cut: questions with the same value are in the same part, val or test; "" = rows are divided singly, as in the
            paper.
        source: id of the benchmark's question that a framing asks several times, and a limit counts once; else "".
    """

    id: str
    row: int
    question: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    image: Path | None = None
    image_digest: str = ""
    relation: str = ""
    pair: str = ""
    set: str = ""
    groups: tuple[tuple[str, str], ...] = ()
    scoring: str = "words"
    option_texts: tuple[str, ...] = ()
    cut: str = ""
    further_images: tuple[Path, ...] = ()
    source: str = ""

    @property
    def images(self) -> tuple[Path, ...]:
        """Return every image, in the order of the question's places for them."""
        return () if self.image is None else (self.image, *self.further_images)

    @property
    def gold_texts(self) -> tuple[str, ...]:
        """Return the gold answers in all forms that a file may have, lower case; for letters also their texts."""
        meant = dict(zip(self.options, self.option_texts, strict=True)) if self.option_texts else {}
        return self.answers + tuple(meant[answer].strip().lower() for answer in self.answers if answer in meant)


Work = tuple[Sample, tuple[Arm, ...]]  # a question and the arms that it is asked under


@dataclass(frozen=True, slots=True)
class Generation:
    """Hold the answer to one sample under one arm. Numbers are those of the arm's first new token.

    Attributes:
        tokens: the generated ids, EOS included; None where only text was recorded.
        confidence: largest softmax probability over the whole vocabulary, in [0, 1], unrounded
            (rounding belongs to the method that needs it); None where not recorded.
        entropy: of that distribution, in nats. margin: largest minus second largest probability.
        logit: largest raw logit. option_probs: softmax over the options' first tokens, each with and
            without a blank before it; the two add up. None where a contrast's cutoff leaves no option a probability.
        prompt: the model's prompt, before the image expands; "" where unknown.
        batch: number of questions in the forward pass. device: the device that computed it.
    """

    sample_id: str
    arm: Arm
    text: str
    tokens: tuple[int, ...] | None = None
    confidence: float | None = None
    entropy: float | None = None
    margin: float | None = None
    logit: float | None = None
    option_probs: Mapping[str, float] | None = field(default=None, hash=False)
    prompt: str = ""
    batch: int = 1
    device: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Hold the reason (one line) why a sample has no answer under one arm: it counts as missing, never as wrong."""

    sample_id: str
    arm: Arm
    error: str


Record = Generation | Failure


@dataclass(frozen=True, slots=True)
class Places:
    """Hold the folders of a run; never part of an experiment's identity.

    Attributes:
        data: folder of benchmark files, read only. output: folder of the store, sweeps and cache (OutputPaths).
        remember: whether reading may write into the cache; action=plan writes nothing.
    """

    data: Path
    output: Path
    remember: bool = True

    @property
    def paths(self) -> OutputPaths:
        return OutputPaths(self.output)

    @property
    def cache(self) -> Path:
        return self.paths.cache


@dataclass(frozen=True, slots=True)
class Signals:
    """Hold the numbers of one arm's first token on N questions, as columns (N,) of float64; nan = missing."""

    max_prob: NDArray[float64]
    entropy: NDArray[float64]
    margin: NDArray[float64]
    logit: NDArray[float64]
    answered: NDArray[bool_]

    def within(self, mask: NDArray[bool_]) -> Signals:
        """Select the questions where `mask` (N,) is True."""
        return Signals(*(column[mask] for column in field_values(self).values()))


@dataclass(frozen=True, slots=True)
class Routing:
    """Describe how a method chooses between two arms by a number of the baseline's first token.

    Attributes:
        criterion: key of methods.routing.CRITERIA.
        threshold: the low arm answers where the criterion is below it, the high arm elsewhere; None = another rule.
        low, high: the arms; None for another rule.
    """

    criterion: str
    threshold: float | None = None
    low: Arm | None = None
    high: Arm | None = None


class Method(Protocol):
    """Pick one arm's answer for each question. Pure: it gets neither a model nor a text."""

    @property
    def kind(self) -> str:
        """Return its name in METHODS and in the results' `method` column."""

    def branches(self) -> Mapping[str, Arm]:
        """Return the arms whose answers it may give, by branch name, in a fixed order."""

    def arms(self) -> frozenset[Arm]:
        """Return every arm that it reads; a superset of the branches."""

    def route(self, signals: Mapping[Arm, Signals]) -> NDArray[intp]:
        """Return (N,) indices into `branches()`, -1 where what it reads is nan; `signals` covers `arms()`.

        Of two branches booleans do too, False = 0. Call it by methods.routing.choose_branches, which checks them.
        """

    @property
    def routing(self) -> Routing | None:
        """Return its routing; None where it has no criterion. A class of another package may lack this member."""


class Benchmark(Protocol):
    """Describe a dataset (a frozen dataclass). Equal descriptions read equal samples."""

    @property
    def name(self) -> str:
        """Return its label in tables and folder names."""

    def describe(self) -> dict[str, Any]:
        """Describe what its prompts depend on beyond each sample's own digest; JSON, no paths.

        `prompt` and `distort` are part of the identity in any case.
        """

    def read(self, places: Places) -> list[Sample]:
        """Read every sample in row order. Opens no image. Raises DataError on a missing or malformed file."""

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        """Write the image file of each of `samples` where possible (render it into the cache, for example)."""

    # Members with a default (benchmarks.base.BenchmarkDefaults); a class of another package may lack them.

    @property
    def upstream(self) -> str:
        """Return its name in the upstream files and in recordings; "" = `name`."""

    @property
    def prompt(self) -> str:
        """Return how a question becomes a prompt: auto (default), raw or chat."""

    @property
    def distort(self) -> bool:
        """Return whether images are stretched to the reference's size for VSR; default false."""

    @property
    def orientation(self) -> str:
        """Return upright or stored: upright (default) applies an image's EXIF orientation, stored does not."""

    @property
    def template(self) -> str:
        """Return the template of its questions; default ""."""

    @property
    def framing(self) -> str:
        """Return the form of its questions (benchmarks.framing); default "" = the benchmark's own."""

    @property
    def system(self) -> str:
        """Return the system message put before each prompt; default "" = none."""

    @property
    def rows(self) -> int:
        """Return the number of rows that its file has, or of one of its files; default 0 = not known."""

    @property
    def questions(self) -> int:
        """Return the number of questions if known without reading them, 0 = not known; default `rows`."""

    @property
    def fetched_by(self) -> str:
        """Return the arguments of `python -m spatial_eval prepare` that fetch it; default "" = it is not fetched."""


@dataclass(frozen=True, slots=True)
class Batching:
    """Describe how a dataset is divided into a model's batches.

    Attributes:
        rows: number of rows of a block, at most; batches are parts of a block. by_image: whether rows about one picture
            are in one block, so that they share its prefill.
    """

    rows: int
    by_image: bool = False


class Model(Protocol):
    """Describe a model (a frozen dataclass). Loading it is the only expensive step."""

    @property
    def name(self) -> str:
        """Return its label in tables and folder names."""

    @property
    def paper_model(self) -> str:
        """Return its row in the paper's table, or ""."""

    @property
    def batching(self) -> Batching:
        """Return the division of a dataset into its batches."""

    def describe(self, places: Places) -> dict[str, Any]:
        """Describe its identity: everything that could change a generation, no paths. Raises ModelError."""

    def check(self, dataset: Benchmark, samples: Sequence[Sample], arms: Sequence[Arm], places: Places) -> None:
        """Raise a SpatialEvalError where a pass could not compute these arms; called before anything runs."""

    def fingerprint(self, dataset: Benchmark, samples: Sequence[Sample], places: Places) -> list[str]:
        """Return the digest of each sample's image or recording."""

    def signals(self) -> frozenset[str]:
        """Return the names of the Signals columns that its generations have."""

    def load(self, dataset: Benchmark, max_new_tokens: int, places: Places) -> Vlm: ...


class Vlm(Protocol):
    """Compute answers: a loaded model, and the only interface to torch."""

    @property
    def device(self) -> str:
        """Return the device, as in its generations; "" where it computes nothing."""

    def answer(self, blocks: Sequence[Sequence[Work]]) -> Iterator[list[Record]]:
        """Yield batches of records as they are done; every (sample, arm) of `blocks` appears exactly once.

        `blocks` holds the missing parts of the dataset's fixed blocks (`plan.cut_blocks`), so that shards, limits and
        resumed runs have equal batches. A question that fails becomes a Failure and affects no other.
        """


@dataclass(frozen=True, slots=True)
class Experiment:
    """Hold dataset, model and decoding settings, which identify a stored answer together with its arm."""

    dataset: Benchmark
    model: Model
    max_new_tokens: int = 100


@dataclass(frozen=True, slots=True)
class Part:
    """Describe which questions: a split (val, test, all) and at most the first `limit` of it."""

    split: str = "test"
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """Hold one point of the grid, one row of results.csv."""

    experiment: Experiment
    method: Method
    part: Part = Part()


@dataclass(frozen=True, slots=True)
class Pass:
    """Hold the arms that each part of a dataset needs; parts may overlap. `capture`: one of CAPTURES."""

    experiment: Experiment
    needs: tuple[tuple[Part, tuple[Arm, ...]], ...]
    capture: str = "none"

    @property
    def label(self) -> str:
        return f"{self.experiment.dataset.name} x {self.experiment.model.name}"

    @property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(sorted({arm for _, arms in self.needs for arm in arms}))
