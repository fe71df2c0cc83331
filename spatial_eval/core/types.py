"""Define the nouns of the project: immutable values and interfaces, no I/O.

experiment  dataset + model + decoding settings        all that a stored answer's identity depends on
arm         one way to decode a prompt                 a scaling of attention, a contrast of logits (core.arms)
method      a pure rule                                which arms it looks at, whose answer it takes for a question
cell        experiment + method + part of the dataset  one point of the grid, one row of results.csv
pass        experiment + the arms that each part needs what one job computes on one device
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from spatial_eval.core.arms import BASE as BASE  # packages of others import these two from here
from spatial_eval.core.arms import Arm as Arm
from spatial_eval.core.paths import OutputPaths

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
        question: the text as the benchmark gives it; may hold an `<image>` placeholder.
        answers: the gold answers, one of which must be given; lower case, not empty.
        options: every option that the question offers, lower case; empty where unknown.
        image: the image file, opened only where it is encoded; None for recordings' text-only rows.
        image_digest: identity of the image where it is known without reading the file, else "".
        relation, pair, set: what metrics aggregate on; "" where the benchmark has none.
        scoring: the rule by which a text is graded, a key of scoring.RULES; answers and options are letters where the
            rule reads letters.
        option_texts: what the letters in `options` stand for, as the dataset writes it; () where it is not known, or
            where the options are texts themselves.
        cut: questions of one value fall on one side of val and test; "" = rows are cut singly, as the paper does.
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
    scoring: str = "words"
    option_texts: tuple[str, ...] = ()
    cut: str = ""

    @property
    def gold_texts(self) -> tuple[str, ...]:
        """Return the gold answers as a file may give them, lower case; of letters also the texts they stand for."""
        meant = dict(zip(self.options, self.option_texts, strict=True)) if self.option_texts else {}
        return self.answers + tuple(meant[one].strip().lower() for one in self.answers if one in meant)


Work = tuple[Sample, tuple[Arm, ...]]  # a question and the arms that it is asked under


@dataclass(frozen=True, slots=True)
class Generation:
    """Hold the answer to one sample under one arm. Numbers are those of the arm's first new token.

    Attributes:
        tokens: the generated ids, EOS included; None where only text was recorded.
        confidence: largest softmax probability over the whole vocabulary, in [0, 1], unrounded
            (rounding belongs to the method that needs it); None where not recorded.
        entropy: of that distribution, in nats. margin: largest minus second largest probability.
        logit: largest raw logit. option_probs: softmax over the options' first-token logits.
        prompt: the text really sent to the model, before the image expands; "" where unknown.
        batch: number of questions that shared the forward pass. device: where it ran.
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
    """Hold why (one line) a sample has no answer under one arm: it counts as missing, never as wrong."""

    sample_id: str
    arm: Arm
    error: str


Record = Generation | Failure


@dataclass(frozen=True, slots=True)
class Places:
    """Hold the folders of a run; never part of an experiment's identity.

    Attributes:
        data: benchmark files, read only. output: the store, sweeps and cache, as OutputPaths names them.
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
        return Signals(
            self.max_prob[mask], self.entropy[mask], self.margin[mask], self.logit[mask], self.answered[mask]
        )


@dataclass(frozen=True, slots=True)
class Routing:
    """Describe how a method chooses between two arms by a number of the baseline's first token.

    Attributes:
        criterion: key of methods.routing.CRITERIA.
        threshold: the low arm answers where the criterion is below it, the high arm elsewhere; None = another rule.
        low, high: the arms; None where the rule is another.
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
        ...

    def branches(self) -> Mapping[str, Arm]:
        """Return the arms whose answers it may give, by branch name, in a fixed order."""
        ...

    def arms(self) -> frozenset[Arm]:
        """Return every arm that it reads; a superset of the branches."""
        ...

    def route(self, signals: Mapping[Arm, Signals]) -> NDArray[intp]:
        """Return (N,) indices into `branches()`, -1 where what it reads is nan; `signals` covers `arms()`."""
        ...

    @property
    def routing(self) -> Routing | None:
        """Return how it routes; None where it names no criterion. A class of another package may lack it."""
        ...


class Benchmark(Protocol):
    """Describe a dataset (a frozen dataclass). Equal descriptions read equal samples."""

    @property
    def name(self) -> str:
        """Label in tables and folder names."""
        ...

    def describe(self) -> dict[str, Any]:
        """Describe what its prompts depend on beyond each sample's own digest; JSON, no paths.

        `prompt` and `distort` are part of the identity in any case.
        """
        ...

    def read(self, places: Places) -> list[Sample]:
        """Read every sample in row order. Opens no image. Raises DataError on a missing or malformed file."""
        ...

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        """Make the image of each of `samples` a file where possible (rendered into the cache, for example)."""
        ...

    # Members with a default (benchmarks.base.BenchmarkDefaults); a class of another package may lack them.

    @property
    def upstream(self) -> str:
        """Name in the upstream files and in recordings; "" = `name`."""
        ...

    @property
    def prompt(self) -> str:
        """Return how a question becomes a prompt: auto (default), raw or chat."""
        ...

    @property
    def distort(self) -> bool:
        """Whether images are stretched to the size that the reference gives VSR's; default false."""
        ...

    @property
    def orientation(self) -> str:
        """Return upright or stored: upright (default) applies an image's EXIF orientation, stored does not."""
        ...

    @property
    def template(self) -> str:
        """Return the text into which each question was put; default ""."""
        ...

    @property
    def framing(self) -> str:
        """Form in which each question is asked (benchmarks.framing); default "" = the benchmark's own."""
        ...

    @property
    def rows(self) -> int:
        """Return the number of questions if known without reading them; default 0 = not known."""
        ...

    @property
    def fetched_by(self) -> str:
        """Return what follows `python -m spatial_eval prepare` to fetch it; default "" = not fetched."""
        ...


@dataclass(frozen=True, slots=True)
class Batching:
    """Describe how a model's batches are cut from a dataset.

    Attributes:
        rows: most rows of a block, inside which batches are cut. by_image: rows about one picture stand in one block,
            so that they share its prefill.
    """

    rows: int
    by_image: bool = False


class Model(Protocol):
    """Describe a model (a frozen dataclass). Loading it is the only expensive step."""

    @property
    def name(self) -> str:
        """Label in tables and folder names."""
        ...

    @property
    def paper_model(self) -> str:
        """Return its row in the paper's table, or ""."""
        ...

    @property
    def batching(self) -> Batching:
        """Return how its batches are cut."""
        ...

    def describe(self, places: Places) -> dict[str, Any]:
        """Describe its identity: everything that could change a generation, no paths. Raises ModelError."""
        ...

    def check(self, dataset: Benchmark, samples: Sequence[Sample], arms: Sequence[Arm], places: Places) -> None:
        """Raise a SpatialEvalError where a pass could not compute these arms; called before anything runs."""
        ...

    def fingerprint(self, dataset: Benchmark, samples: Sequence[Sample], places: Places) -> list[str]:
        """Return per sample the identity of what it is answered from besides its question: its image or recording."""
        ...

    def signals(self) -> frozenset[str]:
        """Return the names of the Signals columns that its generations have."""
        ...

    def load(self, dataset: Benchmark, max_new_tokens: int, places: Places) -> Vlm: ...


class Vlm(Protocol):
    """Compute answers: a loaded model, and the only interface to torch."""

    @property
    def device(self) -> str:
        """Return the device, as in its generations; "" where it computes nothing."""
        ...

    def answer(self, blocks: Sequence[Sequence[Work]]) -> Iterator[list[Record]]:
        """Yield batches of records as they are done; every (sample, arm) of `blocks` appears exactly once.

        `blocks` holds what is left to do of the dataset's fixed blocks (`plan.cut_blocks`), so that shards, limits and
        resumes compose batches alike. A question that fails becomes a Failure and affects no other.
        """
        ...


@dataclass(frozen=True, slots=True)
class Experiment:
    """Hold dataset, model and decoding settings: what a stored answer's identity depends on."""

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
