"""Answer questions that another program writes on stdin, one JSON line each, with a model that is loaded once."""

from __future__ import annotations

import argparse
import base64
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from spatial_eval.cli.arguments import CONFIG_DIR, Commands
from spatial_eval.core.columns import HYPERPARAMETERS
from spatial_eval.core.errors import COMPLETE, INCOMPLETE, ConfigError, DataError
from spatial_eval.core.jsonl import LONGEST
from spatial_eval.core.terminal import GuardedStream, print_output, start_logging
from spatial_eval.core.types import BASE, Arm, Experiment, Failure, Generation, Method, Places, Sample, Vlm
from spatial_eval.core.validate import field_values, show_value

NUMBERS = ("confidence", "entropy", "margin", "logit")  # of the arm's first token
ABOUT = """Answer questions that another program asks: a JSON line each on stdin, a JSON line each on stdout, in order
and at once. A line holds question, and image_path or image_base64; optional are id (given back; else the line's
number), options (as in files of questions; they give option_probs) and max_new_tokens. An answer holds id, arm, text,
confidence, entropy, margin, logit and option_probs. A line that cannot be answered gives id and error, and the next one
is read; the exit code is 3 then. The question is asked as dataset= asks its own: prompt mode, orientation."""


def add_answer(commands: Commands) -> None:
    """Add the command to the command line's parser."""
    parser = commands["answer"](parents=[CONFIG_DIR], description=" ".join(ABOUT.split()))
    parser.add_argument(
        "what",
        nargs="*",
        metavar="KEY=VALUE",
        help="model=NAME, method=NAME, other keys as for launch.py, one value each (default: model=tiny method=base)",
    )
    parser.add_argument(
        "--arm", metavar="LABEL", help="in place of a method: base, 0.5, '0.5,scaling=mass', 'vcd,alpha=1'"
    )
    parser.set_defaults(run=run_answer)


def run_answer(parsed: argparse.Namespace) -> int:
    """Answer the lines of stdin on stdout until one ends. Raises SpatialEvalError where no question can be answered."""
    if sys.stdin is None:
        raise ConfigError("stdin is closed: answer reads questions from it")
    session = open_session(parsed.what, parsed.arm, parsed.config_dir)
    out, failed = sys.stdout, 0
    start_logging()
    with redirect_stdout(sys.stderr):  # whatever a library prints would stand between two answers
        for answer in session.answer_lines(read_bounded_lines(sys.stdin.buffer)):
            print_output(json.dumps(answer), out)
            failed += "error" in answer
            if isinstance(out, GuardedStream) and out.error is not None:  # the reader closed it
                break
    return INCOMPLETE if failed else COMPLETE


@dataclass(frozen=True, slots=True)
class Session:
    """Hold a model with the arms and the method by which it answers.

    Attributes:
        experiment: its dataset states how questions are asked; no question of it is read.
        method: None where `arms` holds one arm, which answers alone.
    """

    experiment: Experiment
    arms: tuple[Arm, ...]
    method: Method | None
    places: Places
    loaded: dict[int, Vlm] = field(default_factory=dict)  # by max_new_tokens; they share the weights

    def answer_lines(self, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
        """Yield one answer per line. Raises ModelError where the model cannot be used."""
        self._load(self.experiment.max_new_tokens)
        with tempfile.TemporaryDirectory() as folder:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                asked: Mapping[str, Any] = {}
                try:
                    asked = _read_line(line)
                    answer = self._answer(asked, number, Path(folder))
                except DataError as error:
                    answer = {"error": str(error)}
                yield {"id": asked.get("id", number), **answer}

    def _load(self, max_new_tokens: int) -> Vlm:
        if max_new_tokens not in self.loaded:
            experiment = self.experiment
            self.loaded[max_new_tokens] = experiment.model.load(experiment.dataset, max_new_tokens, self.places)
        return self.loaded[max_new_tokens]

    def _answer(self, asked: Mapping[str, Any], number: int, folder: Path) -> dict[str, Any]:
        """Answer one line. Raises DataError where it is no question."""
        from spatial_eval.methods.routing import choose_branches
        from spatial_eval.store.answers import Answers

        tokens = asked.get("max_new_tokens", self.experiment.max_new_tokens)
        if type(tokens) is not int or tokens < 1:
            raise DataError(f"max_new_tokens is {show_value(tokens)}; expected a whole number >= 1")
        sample = self._build_sample(asked, number, folder)
        records = [record for batch in self._load(tokens).answer([[(sample, self.arms)]]) for record in batch]
        failures = [record for record in records if isinstance(record, Failure)]
        if failures:
            return {"error": failures[0].error}
        answers = Answers((), (record for record in records if isinstance(record, Generation)))
        arm = self.arms[0]
        if self.method is not None:
            places = answers.find_places([sample.id])
            signals = {arm: answers.signals(answers.records(arm, places)) for arm in self.arms}
            try:
                branch = int(choose_branches(self.method, signals)[0])
            except ConfigError as error:  # its package fails on this question, and may not on the next one
                return {"error": str(error)}
            if branch < 0:
                return {"error": f"{self.method.kind} cannot choose an arm: what it looks at is not a number"}
            arm = list(self.method.branches().values())[branch]
        values = field_values(answers[sample.id, arm])
        return {"arm": arm.label} | {name: values[name] for name in ("text", *NUMBERS, "option_probs")}

    def _build_sample(self, asked: Mapping[str, Any], number: int, folder: Path) -> Sample:
        from spatial_eval.benchmarks.choices import read_choices
        from spatial_eval.benchmarks.image_files import digest_images

        question = asked.get("question")
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"question is {show_value(question)}; expected a text")
        path = _find_picture(asked, folder)
        # A picture is what its file holds now: a program may write each into one file.
        (digest,) = digest_images([path], self.experiment.dataset.orientation, self.places)
        if digest == "missing":
            raise DataError(f"there is no file {path}")
        choices = read_choices(asked.get("options"), "options")
        options = choices.letters or choices.words()
        return Sample(str(number), number, question, (), options, path, image_digest=digest)


def open_session(what: Iterable[str], label: str | None, own: Path | None = None) -> Session:
    """Build a session from overrides in Hydra's grammar; the arm of a label replaces their method.

    Raises:
        ConfigError: they give several cells, a model that computes nothing, or a form of question that takes
            several questions at a time.
    """
    from spatial_eval.config.compose import Composer
    from spatial_eval.config.grid import build_grid
    from spatial_eval.core.arms import parse_arm_label
    from spatial_eval.models.recorded import Imported, Recorded

    composer, given = Composer(own), list(what)
    chosen = [item for item in given if item.partition("=")[0].split(".")[0] in ("method", *HYPERPARAMETERS)]
    if label is not None and chosen:
        raise ConfigError(f"--arm {label} stands in place of a method: take {' '.join(chosen)} away")
    grid = build_grid(composer, given, composer.sweep_files())
    if len(grid.cells) != 1:
        raise ConfigError(f"{' '.join(given)} gives {len(grid.cells)} cells; answer takes one value per key")
    (cell,) = grid.cells
    dataset, model = cell.experiment.dataset, cell.experiment.model
    if isinstance(model, Recorded | Imported):
        raise ConfigError(f"model={model.name} plays stored answers; answer needs a model that is run")
    reworded = "framing" if dataset.framing else "template" if dataset.template else ""
    if reworded:
        raise ConfigError(f"dataset.{reworded} does not change what another program asks: take it away")
    if label is not None:
        arms: tuple[Arm, ...] = (BASE if label == "base" else parse_arm_label(label, "--arm"),)
    else:
        arms = tuple(sorted(cell.method.arms()))
    if any(arm.against == "stored" for arm in arms):
        raise ConfigError("method=forced_yes is computed from stored answers: choose another")
    places = Places(grid.settings.places.data, grid.settings.places.output, remember=False)
    model.check(dataset, [], arms, places)
    return Session(cell.experiment, arms, None if label is not None else cell.method, places)


def read_bounded_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield each line of a stream as soon as it is complete; a line longer than LONGEST is cut there."""
    while line := stream.readline(LONGEST):
        yield line
        while len(line) == LONGEST and not line.endswith(b"\n"):
            line = stream.readline(LONGEST)


def _read_line(line: bytes) -> Mapping[str, Any]:
    """Read a line as a JSON object. Raises DataError."""
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError) as error:
        long = f"is longer than {LONGEST >> 20} MiB" if len(line) == LONGEST else f"is not JSON ({error})"
        raise DataError(f"the line {long}; expected an object with question and image_path or image_base64") from None
    if not isinstance(asked, dict):
        raise DataError(f"the line is {show_value(asked)}; expected an object")
    return asked


def _find_picture(asked: Mapping[str, Any], folder: Path) -> Path:
    """Return the picture's file; one that is in the line is written into `folder`, over the one before it."""
    # whatever else is called image... too: one picture of several would be another question
    given = {key: value for key, value in asked.items() if key.startswith("image") and value is not None}
    if (
        len(given) != 1
        or not given.keys() <= {"image_path", "image_base64"}
        or not all(isinstance(value, str) and value for value in given.values())
    ):
        held = ", ".join(f"{key} {show_value(value)}" for key, value in given.items()) or "no picture"
        raise DataError(f"the line holds {held}; expected one picture: image_path or image_base64, a text")
    ((key, value),) = given.items()
    if key == "image_path":
        if "\0" in value:
            raise DataError(f"image_path is {show_value(value)}, no path")
        return Path(value)
    try:
        content = base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
    except ValueError as error:  # binascii.Error, or a text that is not ASCII
        raise DataError(f"image_base64 is not base64: {error}") from None
    path = folder / "picture"
    path.write_bytes(content)
    return path
