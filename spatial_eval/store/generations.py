"""Store generations on disk: append-only JSON lines, one folder per experiment, one file per writer, no locks.

    <root>/<dataset>--<model>--<key>/trunk.json       what the key stands for; checked on open
    <root>/<dataset>--<model>--<key>/<writer>.jsonl   one line per record; flushed and fsynced per batch

A line is a JSON object of one of three kinds, told apart by its keys:

    {"id": ..., "digest": ..., "arm": {...}, "text": ..., ...}   a record: an answer, or `error` in place of `text`
    {"seconds": ..., "questions": ...}                           cost of the records above it
    {"environment": {...}}                                       versions of the writer of the lines below it

The last key of a line is `crc`: zlib.crc32 of the line's bytes without `, "crc": <number>`. Lines of versions before
0.2 have none and stay valid. `read_lines` is the only parser: a line that is cut off, fails its checksum, or holds a
value of a wrong type or range is Damaged, wherever it stands: it is skipped and its question computed again. Of
several answers to one question the first in file order counts; a success wins over any error. Nothing is rewritten.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Self

from spatial_eval.benchmarks.prompts import MODES, prompt_mode
from spatial_eval.core.arms import Arm
from spatial_eval.core.errors import ConfigError, StoreError
from spatial_eval.core.files import (
    find_entries,
    list_files,
    make_writer_name,
    pass_over_unreadable,
    read_json_object,
    translate_os_errors,
    write_atomic,
)
from spatial_eval.core.hashing import hash_text
from spatial_eval.core.types import Benchmark, Experiment, Failure, Generation, Places, Record, Sample
from spatial_eval.core.validate import changed_values
from spatial_eval.store.answers import Answers

LONGEST = 2**26  # bytes of a line; what is longer, a file of zeros say, is read in pieces that are damaged each
VERSION = 1  # bump when the meaning of a stored generation changes
_CRC = b', "crc": '
_decode = json.JSONDecoder().raw_decode  # a third faster than json.loads; the caller looks at what is left


@dataclass(frozen=True, slots=True)
class ExperimentKey:
    """Hold an experiment's identity: `description` holds every fact that could change a generation, and no other."""

    label: str
    description: Mapping[str, Any]

    @property
    def hash(self) -> str:
        return _hash(self.description)


def experiment_key(experiment: Experiment, places: Places) -> ExperimentKey:
    """Return the experiment's key. It holds no split, limit or launcher, so the full run reuses a pilot's answers."""
    description = {
        "version": VERSION,
        "dataset": describe_dataset(experiment.dataset),
        "model": experiment.model.describe(places),
        "max_new_tokens": experiment.max_new_tokens,
    }
    return ExperimentKey(f"{_clean_name(experiment.dataset.name)}--{_clean_name(experiment.model.name)}", description)


def describe_dataset(dataset: Benchmark) -> dict[str, Any]:
    """Describe what a dataset's prompts depend on, with the prompt mode and the distortion of its images.

    A prompt mode or distortion at its default that the dataset does not describe is left out: stored answers keep
    their key.
    """
    about = dict(dataset.describe())
    for name, sent, values in (
        ("prompt", prompt_mode(dataset), MODES),
        ("distort", dataset.distort, (False, True)),
    ):
        said = about.get(name, values[0])  # it may mean something else by the word
        if said != sent and (sent != values[0] or said in values):
            about[f"{name} sent" if name in about else name] = sent
    return about


def sample_digests(samples: Sequence[Sample], fingerprints: Sequence[str]) -> dict[str, str]:
    """Return, by sample id, the digest of its question and of its image or recording."""
    return {s.id: _hash([s.question, f]) for s, f in zip(samples, fingerprints, strict=True)}


_LARGEST = 1.7976931348623157e308  # of a float; a larger whole number in JSON overflows where it is used
_SHARE, _AMOUNT, _NUMBER = (0.0, 1.0), (0.0, _LARGEST), (-_LARGEST, _LARGEST)
_TEXTS = ("text", "prompt", "device")
_RANGES = {"confidence": _SHARE, "margin": _SHARE, "entropy": _AMOUNT, "logit": _NUMBER}
# What each field of an answer may be; one whose default is None may be None too.
EXPECTED = {
    **dict.fromkeys(_TEXTS, "text"),
    "confidence": "a number in [0, 1]",
    "margin": "a number in [0, 1]",
    "entropy": "a finite number >= 0",
    "logit": "a finite number",
    "tokens": "a list of whole numbers >= 0",
    "option_probs": "numbers in [0, 1] by option",
    "batch": "a whole number >= 1",
}
_OPTIONAL = {f.name for f in fields(Generation) if f.default is None}
_KEYS = {"id", "digest", "arm", "error", *EXPECTED, "seconds", "questions", "environment"}


def check_answer(values: Mapping[str, Any]) -> str:
    """Return what is wrong with the fields of an answer, in one line; "" where nothing is.

    Args:
        values: fields of Generation by name, without sample_id and arm; others are passed over.
    """
    if "text" not in values:
        return "text is not there"
    for name, value in values.items():
        kind = type(value)  # not isinstance: a bool is no number
        if name in _TEXTS:
            good = kind is str
        elif name in _RANGES:
            low, high = _RANGES[name]
            good = (kind is float or kind is int) and low <= value <= high  # nan lies in no range
        elif name == "tokens":
            good = kind in (list, tuple) and (not value or (set(map(type, value)) == {int} and _are_whole(value, 0)))
        elif name == "option_probs":
            good = kind is dict and all(type(option) is str and _is_within(p, _SHARE) for option, p in value.items())
        else:
            good = name not in EXPECTED or (kind is int and _are_whole([value], 1))
        if not good and not (value is None and name in _OPTIONAL):
            return f"{name}={_shorten(value)} is not valid; expected {EXPECTED[name]}"
    return ""


def _are_whole(values: Sequence[int], least: int) -> bool:
    return min(values) >= least and max(values) < 2**63


def _is_within(value: Any, limits: tuple[float, float]) -> bool:
    return type(value) in (float, int) and limits[0] <= value <= limits[1]


def parse_arm(values: Any, known: dict[str, Arm] | None = None) -> Arm:
    """Return the arm that JSON values describe.

    Args:
        known: arms parsed before, by the text of their values; this one is added.

    Raises ConfigError on an unknown field, a wrong type or a wrong range.
    """
    text = repr(values)
    arm = None if known is None else known.get(text)
    if arm is None:
        arm = _check_arm(values)
        if known is not None:
            known[text] = arm
    return arm


def _check_arm(values: Any) -> Arm:
    if not isinstance(values, dict):
        raise ConfigError(f"arm={_shorten(values)} is not valid; expected its fields")
    return Arm.from_flat(values)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """Hold a line with an answer or an error. `digest`: that of the question and the image."""

    digest: str
    record: Record


@dataclass(frozen=True, slots=True)
class Cost:
    """Hold the cost of a batch: wall-clock seconds, number of distinct questions."""

    seconds: float
    questions: int


@dataclass(frozen=True, slots=True)
class Environment:
    """Hold the versions of the writer of the lines that follow in the file."""

    versions: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Damaged:
    """Hold the reason why a line is invalid."""

    reason: str


Line = StoredRecord | Cost | Environment | Damaged


def read_lines(
    path: Path, wanted: Mapping[str, str] | None = None, *, passed: Collection[bytes] = (), required: bool = True
) -> Iterator[tuple[int, Line]]:
    """Yield every line of a writer's file with its number from 1, typed and checked; one line is in memory at a time.

    Args:
        wanted: digests by sample id; records of other questions are passed over. None = every question's.
        passed: JSON of arms whose records are passed over.
        required: False = pass over a file that cannot be read, with a warning: its answers are computed again.

    Raises StoreError where a required file cannot be read; never for the content of a line.
    """
    digests = None if wanted is None else {digest.encode() for digest in wanted.values()}
    arms: dict[str, Arm] = {}
    with (translate_os_errors if required else pass_over_unreadable)(path), path.open("rb") as file:
        for number, text in enumerate(iter(partial(file.readline, LONGEST), b""), 1):
            if _is_other(text, digests, passed):
                continue
            try:
                line = _parse(text, wanted, arms)
            except ConfigError as error:
                line = Damaged(str(error))
            except (ValueError, RecursionError):
                line = Damaged("it is cut off or overwritten")
            if line is not None:
                yield number, line


def _read_first_answers(path: Path, wanted: Mapping[str, str] | None = None) -> Iterator[Generation | Cost]:
    """Yield the first answer under each arm in a writer's file, and every cost: no other answer is parsed."""
    seen: set[bytes] = set()  # JSON of their arms
    for _, line in read_lines(path, wanted, passed=seen, required=False):
        if isinstance(line, StoredRecord) and isinstance(line.record, Generation):
            seen.add(json.dumps(_describe_arm(line.record.arm)).encode())
            yield line.record
        elif isinstance(line, Cost):
            yield line


def _is_other(text: bytes, digests: Collection[bytes] | None, passed: Collection[bytes]) -> bool:
    """Whether a line can be passed over unparsed: a record of a question that is not wanted, or of an arm in `passed`.

    Within the JSON of an id a quotation mark stands behind a backslash, so what is found is the record's own key.
    """
    if (digests is None and not passed) or not text.startswith(b'{"id": "'):
        return False
    _, _, rest = text.partition(b'", "digest": "')
    digest, _, rest = rest.partition(b'", "arm": ')
    if not rest:
        return False
    unwanted = digests is not None and digest not in digests
    return unwanted or (bool(passed) and rest[: rest.find(b"}") + 1] in passed)


def _parse(text: bytes, wanted: Mapping[str, str] | None, arms: dict[str, Arm]) -> Line | None:
    """One line; None for a record that is not wanted. `arms`: those of the lines before, by their JSON."""
    text = text.rstrip(b"\n")
    row, end = _decode(text.decode())
    if type(row) is not dict or text[end:].strip():
        return Damaged("it is no JSON object")
    sealed = "crc" in row
    if sealed and not _matches_crc(text, row.pop("crc")):
        return Damaged("its checksum does not match")
    if not sealed and not row.keys() <= _KEYS:  # with a checksum it is a later version's field
        return Damaged(f"it has the unknown field {_shorten(min(row.keys() - _KEYS))}")
    if "id" in row:
        return _parse_record(row, wanted, arms)
    if "seconds" in row:
        seconds, questions = row["seconds"], row.get("questions")
        if _is_within(seconds, _AMOUNT) and isinstance(questions, int) and questions >= 0:
            return Cost(float(seconds), questions)
        return Damaged("its seconds or questions are no amount")
    versions = row.get("environment")
    if isinstance(versions, dict) and not any(isinstance(value, dict | list) for value in versions.values()):
        return Environment(versions)
    return Damaged("it is neither a record, nor a cost, nor an environment")


def _parse_record(row: dict[str, Any], wanted: Mapping[str, str] | None, arms: dict[str, Arm]) -> Line | None:
    sample_id, digest, values = row.pop("id"), row.pop("digest", None), row.pop("arm", None)
    if type(sample_id) is not str or type(digest) is not str:
        return Damaged("its id or digest is no text")
    if wanted is not None and wanted.get(sample_id) != digest:
        return None
    arm = parse_arm(values, arms)
    if "error" in row:
        good = type(row["error"]) is str and "text" not in row
        return StoredRecord(digest, Failure(sample_id, arm, row["error"])) if good else Damaged("error is no text")
    problem = check_answer(row)
    if problem:
        return Damaged(problem)
    known = {name: value for name, value in row.items() if name in EXPECTED}
    if known.get("tokens") is not None:
        known["tokens"] = tuple(known["tokens"])
    return StoredRecord(digest, Generation(sample_id, arm, **known))


def _matches_crc(line: bytes, crc: Any) -> bool:
    head, mark, tail = line.rpartition(_CRC)
    return type(crc) is int and bool(mark) and tail == b"%d}" % crc and zlib.crc32(b"}", zlib.crc32(head)) == crc


def _seal_line(values: Mapping[str, Any]) -> str:
    """A line with its checksum, without a line break."""
    text = json.dumps(values)
    return f"{text[:-1]}{_CRC.decode()}{zlib.crc32(text.encode())}}}"


@dataclass(frozen=True, slots=True)
class Effort:
    """Hold the cost of batches: wall-clock seconds, number of questions.

    Attributes:
        arms: those of a writer's answers. device: where its first answer was computed, "" = not recorded.
    """

    seconds: float = 0.0
    questions: int = 0
    arms: frozenset[Arm] = frozenset()
    device: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """Hold the stored answers to some questions, by (sample id, arm), and the cost of the whole experiment.

    Attributes:
        failures: recorded errors of questions without an answer. effort: over all writers, without arms and device.
    """

    generations: Answers
    failures: Mapping[tuple[str, Arm], Failure]
    effort: Effort = Effort()


@dataclass(frozen=True, slots=True)
class Store:
    root: Path

    def read(self, key: ExperimentKey, digests: Mapping[str, str]) -> Stored:
        """Read every record of the samples in `digests`; pass over those of a changed question. Raises StoreError."""
        answers = Answers(digests)
        failures: dict[tuple[str, Arm], Failure] = {}
        seconds, questions = 0.0, 0
        for path in self.list_writers(key):
            environment: Mapping[str, Any] = {}
            for _, line in read_lines(path, digests, required=False):
                if isinstance(line, StoredRecord):
                    record = line.record
                    if isinstance(record, Failure):
                        failures.setdefault((record.sample_id, record.arm), record)
                    else:
                        answers.add(record, environment)
                elif isinstance(line, Cost):
                    seconds, questions = seconds + line.seconds, questions + line.questions
                elif isinstance(line, Environment):
                    environment = line.versions
        failures = {where: failure for where, failure in failures.items() if where not in answers}
        return Stored(answers, failures, Effort(seconds, questions))

    def find_answered_arms(self, key: ExperimentKey, digests: Mapping[str, str]) -> set[Arm]:
        """Return the arms with an answer to any of the samples in `digests`. Raises StoreError."""
        lines = (line for path in self.list_writers(key) for line in _read_first_answers(path, digests))
        return {line.arm for line in lines if isinstance(line, Generation)}

    def list_efforts(self, key: ExperimentKey) -> Iterator[Effort]:
        """Yield the cost of each writer of the experiment that recorded one. Raises StoreError."""
        for path in self.list_writers(key):
            lines = list(_read_first_answers(path))
            answers = [line for line in lines if isinstance(line, Generation)]
            costs = [line for line in lines if isinstance(line, Cost)]
            seconds, questions = sum(cost.seconds for cost in costs), sum(cost.questions for cost in costs)
            device = next((answer.device for answer in answers if answer.device), "")
            if seconds and questions:
                yield Effort(seconds, questions, frozenset(answer.arm for answer in answers), device)

    def list_experiments(self) -> Iterator[tuple[Path, ExperimentKey]]:
        """Yield every experiment's folder and key (label empty); folders without their own manifest are skipped."""
        for folder in find_entries(self.root, "*--*"):
            found = ExperimentKey("", read_manifest(folder) or {})
            if found.hash == folder.name.rpartition("--")[2]:
                yield folder, found

    def list_writers(self, key: ExperimentKey) -> list[Path]:
        """List the files of the experiment's writers, in the order in which they are read. Raises StoreError.

        Their folders have the experiment's hash under any label: a model may be renamed.
        """
        self._check(key)
        with translate_os_errors(self.root):
            return list_files(self.root, f"*--{key.hash}/*.jsonl", required=False)

    def writer(
        self, key: ExperimentKey, digests: Mapping[str, str], environment: Mapping[str, Any]
    ) -> GenerationWriter:
        """Open a new file for this process in the experiment's folder. Raises StoreError."""
        self._check(key)
        folder = self.root / f"{key.label}--{key.hash}"
        with translate_os_errors(folder):
            if not read_manifest(folder):
                write_atomic(folder / "trunk.json", json.dumps(key.description, indent=2, sort_keys=True) + "\n")
        return GenerationWriter(folder, digests, environment)

    def _check(self, key: ExperimentKey) -> None:
        with translate_os_errors(self.root):
            folders = find_entries(self.root, f"*--{key.hash}")
        for folder in folders:
            found = read_manifest(folder)
            if found and found != json.loads(json.dumps(key.description)):
                raise StoreError(
                    f"{folder}/trunk.json describes another experiment than the folder's name; "
                    "move the folder away, nothing in it was touched"
                )


class AppendOnlyFile:
    """Append to this process's own file, all parts or none. Use as a context manager."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.path, self._end = folder / f"{make_writer_name()}{suffix}", 0
        with translate_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with translate_os_errors(self.path):
            os.close(self._file)

    def write(self, parts: Iterable[bytes]) -> None:
        """Write the parts and flush them to disk; after a StoreError none of them is there."""
        end = self._end
        with translate_os_errors(self.path):
            try:
                for part in parts:
                    done = 0
                    while done < len(part):
                        done += os.write(self._file, part[done:])
                    end += done
                os.fsync(self._file)
            except BaseException:
                # Cut off what was written, so that the next append starts at a boundary.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._end)
                raise
        self._end = end


class GenerationWriter(AppendOnlyFile):
    """Append records. Use as a context manager."""

    def __init__(self, folder: Path, digests: Mapping[str, str], environment: Mapping[str, Any]) -> None:
        super().__init__(folder, ".jsonl")
        self._digests = digests
        self._write([{"environment": dict(environment)}])

    def append(self, records: Collection[Record], seconds: float) -> None:
        """Write the records and their cost to disk; after a StoreError none of them is there.

        An answer with a number that no reader accepts (nan, for example) is stored as an error: missing, never wrong.
        """
        lines = [_format(record, self._digests[record.sample_id]) for record in records]
        cost = {"seconds": seconds, "questions": len({record.sample_id for record in records})}
        self._write([*lines, cost])

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self.write(["".join(f"{_seal_line(line)}\n" for line in lines).encode()])


def _describe_arm(arm: Arm) -> dict[str, Any]:
    """An arm as a record gives it: the weight in any case."""
    return {"weight": arm.values["weight"]} | arm.to_flat()


def _format(record: Record, digest: str) -> dict[str, Any]:
    arm = _describe_arm(record.arm)
    values = changed_values(record)
    del values["sample_id"], values["arm"]
    problem = "" if isinstance(record, Failure) else check_answer(values)
    if problem:
        values = {"error": f"the answer cannot be stored: {problem}"}
    return {"id": record.sample_id, "digest": digest, "arm": arm} | values


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest; None where it is absent, truncated or unreadable: the folder's name, a hash of it, then
    replaces it."""
    with contextlib.suppress(OSError, ValueError):
        return read_json_object(folder / "trunk.json")
    return None


def _hash(value: Any) -> str:
    return hash_text(json.dumps(value, sort_keys=True, separators=(",", ":")), 8)


def _clean_name(name: str) -> str:
    """A name that is safe in a path."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name)[:60] or "-"
