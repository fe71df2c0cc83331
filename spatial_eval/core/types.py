"""Define the nouns of the project: immutable values and interfaces, no I/O.

experiment  dataset + model + decoding settings        all that a stored answer's identity depends on
arm         one way to decode a prompt                 a weight, a kind of scaling, some layers, a contrast
method      a pure rule                                which arms it looks at, whose answer it takes for a question
cell        experiment + method + part of the dataset  one point of the grid, one row of results.csv
pass        experiment + the arms that each part needs what one job computes on one device
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from spatial_eval.core.paths import OutputPaths

if TYPE_CHECKING:
    from numpy import bool_, float64, intp
    from numpy.typing import NDArray

# Kinds of scaling -> the weight that leaves the model untouched. z: the last prompt row's pre-softmax logits
# towards the image, in every selected layer and head, at prefill only.
SCALINGS = {
    # z' = w z: the paper (arXiv 2503.01773, section 4). Changes the shape and the mass of the image's attention.
    "multiply": 1.0,
    # The shape of multiply, with the mass that the image had: z' = w z + c, the sum of exp z kept.
    "temperature": 1.0,
    # The mass of multiply, with the shape that it had: z' = z + c, the sum of exp z' as under w z.
    "mass": 1.0,
    # z' = z + w |z| (PAI, arXiv 2407.21771), here on the row and the step that the paper scales.
    "pai": 0.0,
}
CONTRASTS = ("", "vcd", "dola")


@dataclass(frozen=True, slots=True, order=True)
class Arm:
    """One decoding of a prompt. Fields added later must have defaults, so that old stores stay valid.

    Attributes:
        weight: strength of the scaling, >= 0. scaling: its kind, in SCALINGS.
        layers: decoder layers, `0-15,20`; "" = all. What is scaled; for dola the early layers, also `low` or `high`.
        contrast: how logits become a token: "" greedy, vcd (against a noised image) or dola (against an early layer).
        alpha: vcd's strength, >= 0. cutoff: contrasts choose among tokens of at least this share of the largest
            probability, in [0, 1). noise: vcd's step of diffusion, 0 to 999.
    """

    weight: float = 1.0
    scaling: str = "multiply"
    layers: str = ""
    contrast: str = ""
    alpha: float = 0.0
    cutoff: float = 0.0
    noise: int = 0

    @property
    def plain(self) -> bool:
        """Whether a weight alone says what it is."""
        return self == Arm(self.weight)

    @property
    def untouched(self) -> bool:
        """Whether it decodes as BASE does, whatever its kind and layers."""
        return not self.contrast and self.weight == SCALINGS[self.scaling]

    @property
    def label(self) -> str:
        """Short text that names it: `0.5`, `0.5,scaling=mass,layers=0-15` or `dola,layers=high,cutoff=0.1`."""
        head = "weight" if not self.contrast else "contrast"
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        more = [f"{name}={_text(value)}" for name, value in values.items() if name != head]
        return ",".join([_text(getattr(self, head)), *more])


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


BASE = Arm()


def scaled_arm(weight: float, scaling: str = "multiply", layers: str = "") -> Arm:
    """The arm of a scaling; BASE where it leaves the model untouched."""
    arm = Arm(weight, scaling, layers)
    return BASE if arm.untouched else arm


# How much of the last prompt row's attention is kept beside an answer; each holds what the ones before it hold.
CAPTURES = ("none", "mass", "map", "heads")


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about one image.

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

    @property
    def gold_texts(self) -> tuple[str, ...]:
        """The gold answers as a file may give them, lower case: of letters also what they stand for."""
        meant = dict(zip(self.options, self.option_texts, strict=True)) if self.option_texts else {}
        return self.answers + tuple(meant[one].strip().lower() for one in self.answers if one in meant)


@dataclass(frozen=True, slots=True)
class Generation:
    """What the model said for one sample under one arm. Numbers are those of the arm's first new token.

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
    """A sample that could not be answered under one arm, and why (one line). Missing, never wrong."""

    sample_id: str
    arm: Arm
    error: str


Record = Generation | Failure


@dataclass(frozen=True, slots=True)
class Places:
    """Where things lie; never part of an experiment's identity.

    Attributes:
        data: benchmark files, read only. output: the store, sweeps and cache, as OutputPaths names them.
        remember: whether reading may leave notes in the cache; action=plan writes nothing.
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
    """What one arm's first token says about N questions, as columns (N,) of float64; nan = missing."""

    max_prob: NDArray[float64]
    entropy: NDArray[float64]
    margin: NDArray[float64]
    logit: NDArray[float64]
    answered: NDArray[bool_]


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
    """A rule that picks one arm's answer for each question. Pure: it never sees a model or a text."""

    @property
    def kind(self) -> str:
        """The name in METHODS and in the results' `method` column."""
        ...

    def branches(self) -> Mapping[str, Arm]:
        """The arms whose answers it may give, by branch name, in a fixed order."""
        ...

    def arms(self) -> frozenset[Arm]:
        """Every arm it looks at; a superset of the branches."""
        ...

    def route(self, signals: Mapping[Arm, Signals]) -> NDArray[intp]:
        """(N,) index into `branches()`, -1 where what it looks at is nan; `signals` covers `arms()`."""
        ...

    @property
    def routing(self) -> Routing | None:
        """The criterion by which it routes; None where it names none. A class of another package may lack it."""
        ...


class Benchmark(Protocol):
    """A dataset by description (a frozen dataclass). Equal descriptions read equal samples."""

    @property
    def name(self) -> str:
        """Label in tables and folder names."""
        ...

    def describe(self) -> dict[str, Any]:
        """What its questions' prompts depend on beyond each sample's own digest; JSON, no paths.

        `prompt` and `distort` are part of the identity in any case.
        """
        ...

    def read(self, places: Places) -> list[Sample]:
        """Every sample in row order. Opens no image. Raises DataError on a missing or malformed file."""
        ...

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        """After this call the image of each of `samples` is a file, if it can be (rendered into the cache, say)."""
        ...

    # Members with a default (benchmarks.base.BenchmarkDefaults); a class of another package may lack them.

    @property
    def upstream(self) -> str:
        """Name in the upstream files and in recordings; "" = `name`."""
        ...

    @property
    def prompt(self) -> str:
        """How a question becomes a prompt: auto (default), raw or chat."""
        ...

    @property
    def distort(self) -> bool:
        """Whether images are stretched to the size that the reference gives VSR's; default false."""
        ...

    @property
    def orientation(self) -> str:
        """upright (default) applies an image's EXIF orientation, stored does not."""
        ...

    @property
    def template(self) -> str:
        """Text into which each question was put; default ""."""
        ...

    @property
    def rows(self) -> int:
        """Number of questions where it is known without reading them; default 0 = not known."""
        ...


class Model(Protocol):
    """A model by description (a frozen dataclass). Loading is the only expensive thing in the package."""

    @property
    def name(self) -> str:
        """Label in tables and folder names."""
        ...

    @property
    def paper_model(self) -> str:
        """Its row in the paper's table, or ""."""
        ...

    def describe(self, places: Places) -> dict[str, Any]:
        """Its identity: everything that could change a generation, no paths. Raises ModelError."""
        ...

    def check(self, dataset: Benchmark, samples: Sequence[Sample], arms: Sequence[Arm], places: Places) -> None:
        """Raises a SpatialEvalError where a pass could not give these arms; called before anything runs."""
        ...

    def fingerprint(self, dataset: Benchmark, samples: Sequence[Sample], places: Places) -> list[str]:
        """Per sample, the identity of what it is answered from beside its question: its image, or its recording."""
        ...

    def signals(self) -> frozenset[str]:
        """Names of the Signals columns that its generations carry."""
        ...

    def load(self, dataset: Benchmark, max_new_tokens: int, places: Places) -> Vlm: ...


class Vlm(Protocol):
    """A loaded model: the only door to torch."""

    @property
    def device(self) -> str:
        """Where it computes, as its generations say too; "" where it computes nothing."""
        ...

    def answer(self, work: Sequence[tuple[Sample, tuple[Arm, ...]]]) -> Iterator[list[Record]]:
        """Batches of records as they are done; every (sample, arm) of `work` appears exactly once.

        Batches are cut from fixed blocks of `Sample.row`, so that shards, limits and resumes compose
        them alike. A question that fails becomes a Failure and costs only itself.
        """
        ...


@dataclass(frozen=True, slots=True)
class Experiment:
    """A dataset, a model and the decoding settings: what a stored answer's identity depends on."""

    dataset: Benchmark
    model: Model
    max_new_tokens: int = 100


@dataclass(frozen=True, slots=True)
class Part:
    """Which questions: a split (val, test, all) and at most the first `limit` of it."""

    split: str = "test"
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid, one row of results.csv."""

    experiment: Experiment
    method: Method
    part: Part = Part()


@dataclass(frozen=True, slots=True)
class Pass:
    """The arms that each part of an experiment's dataset needs; parts may overlap. `capture`: one of CAPTURES."""

    experiment: Experiment
    needs: tuple[tuple[Part, tuple[Arm, ...]], ...]
    capture: str = "none"

    @property
    def label(self) -> str:
        return f"{self.experiment.dataset.name} x {self.experiment.model.name}"

    @property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(sorted({arm for _, arms in self.needs for arm in arms}))
