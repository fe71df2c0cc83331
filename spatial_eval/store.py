"""Generations on disk: append-only JSON lines, one folder per trunk, one file per writer, no locks.

    <root>/<dataset>--<model>--<key>/trunk.json       what the key stands for; checked on open
    <root>/<dataset>--<model>--<key>/<writer>.jsonl   one line a record; flushed and fsynced per batch

A line that is torn, wherever it stands, is skipped and its question computed again. Of several answers to
one question the first in file order counts; a success wins over any error. Nothing is ever rewritten.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .disk import refusals as refusals
from .disk import replace as replace
from .disk import writer_name
from .errors import StoreError
from .prompts import MODES, distorted, prompt_mode
from .types import BASE, Arm, Benchmark, Failure, Generation, Places, Record, Sample, Trunk

VERSION = 1  # bump when the meaning of a stored generation changes
_GENERATION = {f.name for f in fields(Generation)} - {"sample_id", "arm"}


@dataclass(frozen=True, slots=True)
class Key:
    """A trunk's identity: `description` is every fact that could change a generation, and nothing else."""

    label: str
    description: Mapping[str, Any]

    @property
    def hash(self) -> str:
        return _hash(self.description)


def key(trunk: Trunk, places: Places) -> Key:
    """The trunk's key. Where and how it runs, split and limit are not in it: a pilot is reused by the full run."""
    description = {
        "version": VERSION,
        "dataset": describe_dataset(trunk.dataset),
        "model": trunk.model.describe(places),
        "max_new_tokens": trunk.max_new_tokens,
    }
    return Key(f"{_slug(trunk.dataset.name)}--{_slug(trunk.model.name)}", description)


def describe_dataset(dataset: Benchmark) -> dict[str, Any]:
    """What a dataset says its prompts depend on, and how they are sent to the model, whether it says so or not.

    A prompt mode or a distortion that is the default and was not described is left out: earlier answers keep their key.
    """
    about = dict(dataset.describe())
    for name, sent, values in (("prompt", prompt_mode(dataset), MODES), ("distort", distorted(dataset), (False, True))):
        said = about.get(name, values[0])  # it may mean something else by the word
        if said != sent and (sent != values[0] or said in values):
            about[f"{name} sent" if name in about else name] = sent
    return about


def digests(samples: Sequence[Sample], fingerprints: Sequence[str]) -> dict[str, str]:
    """Per sample id, the identity of its question and of what answers it (its image, its recording)."""
    return {s.id: _hash([s.question, f]) for s, f in zip(samples, fingerprints, strict=True)}


@dataclass(frozen=True, slots=True)
class Stored:
    """What is stored of the questions asked for, by (sample id, arm).

    Attributes:
        failures: those without a success. environments: what each generation's writer said of versions and device.
    """

    generations: Mapping[tuple[str, Arm], Generation]
    failures: Mapping[tuple[str, Arm], Failure]
    environments: Mapping[tuple[str, Arm], Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Effort:
    """What computing cost, over every writer of a trunk."""

    seconds: float
    questions: int


@dataclass(frozen=True, slots=True)
class Store:
    root: Path

    def read(self, key: Key, digests: Mapping[str, str]) -> Stored:
        """Every record of the samples in `digests`; those of a changed question are passed over. Raises StoreError."""
        generations: dict[tuple[str, Arm], Generation] = {}
        failures: dict[tuple[str, Arm], Failure] = {}
        environments: dict[tuple[str, Arm], Mapping[str, Any]] = {}
        for environment, line in self._lines(key):
            record = _parse(line, digests)
            if isinstance(record, Generation):
                where = record.sample_id, record.arm
                if generations.setdefault(where, record) is record:
                    environments[where] = environment
            elif record is not None:
                failures.setdefault((record.sample_id, record.arm), record)
        missing = {where: f for where, f in failures.items() if where not in generations}
        return Stored(generations, missing, environments)

    def effort(self, key: Key) -> Effort:
        """Seconds and questions of all batches ever stored for the trunk."""
        seconds, questions = 0.0, 0
        for _, line in self._lines(key):
            if line.startswith(b'{"seconds"'):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    row = json.loads(line)
                    seconds, questions = seconds + float(row["seconds"]), questions + int(row["questions"])
        return Effort(seconds, questions)

    def writer(self, key: Key, digests: Mapping[str, str], environment: Mapping[str, Any]) -> Writer:
        """A file of this process's own in the trunk's folder. Raises StoreError."""
        self._check(key)
        folder = self.root / f"{key.label}--{key.hash}"
        with refusals(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not _manifest(folder / "trunk.json"):
                replace(folder / "trunk.json", json.dumps(key.description, indent=2, sort_keys=True) + "\n")
            path = folder / f"{writer_name()}.jsonl"
            return Writer(
                path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644), digests, environment
            )

    def _folders(self, key: Key) -> list[Path]:
        # Labels may change (a model renamed); the hash is what counts.
        return sorted(self.root.glob(f"*--{key.hash}"))

    def _check(self, key: Key) -> None:
        for folder in self._folders(key):
            found = _manifest(folder / "trunk.json")
            if found and found != json.loads(json.dumps(key.description)):
                raise StoreError(
                    f"{folder}/trunk.json describes another experiment than the folder's name; "
                    "move the folder away, nothing in it was touched"
                )

    def _lines(self, key: Key) -> Iterator[tuple[Mapping[str, Any], bytes]]:
        """Every line with its writer's environment: {} where the writer did not say, or its line is truncated."""
        self._check(key)
        for folder in self._folders(key):
            for path in sorted(folder.glob("*.jsonl")):
                with refusals(path):
                    lines = path.read_bytes().split(b"\n")
                environment = _environment(lines[0])
                yield from ((environment, line) for line in lines)


class Writer:
    """Appends records. Use as a context manager."""

    def __init__(self, path: Path, file: int, digests: Mapping[str, str], environment: Mapping[str, Any]) -> None:
        self.path, self._file, self._digests = path, file, digests
        self._end = 0
        self._write([json.dumps({"environment": dict(environment)})])

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def append(self, records: Collection[Record], seconds: float) -> None:
        """After this call the records, and what they cost, are on disk; after a StoreError none of them is."""
        lines = [_format(record, self._digests[record.sample_id]) for record in records]
        cost = {"seconds": seconds, "questions": len({record.sample_id for record in records})}
        self._write([*lines, json.dumps(cost)])

    def _write(self, lines: Iterable[str]) -> None:
        data = "".join(f"{line}\n" for line in lines).encode()
        with refusals(self.path):
            try:
                done = 0
                while done < len(data):
                    done += os.write(self._file, data[done:])
                os.fsync(self._file)
            except OSError:
                # A part of the batch may stand there: cut it off, so that the next append starts on a line of its own.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._end)
                raise
        self._end += len(data)


def _format(record: Record, digest: str) -> str:
    arm = {"weight": record.arm.weight} | {n: v for n, v in asdict(record.arm).items() if v != getattr(BASE, n)}
    values = {f.name: getattr(record, f.name) for f in fields(record) if getattr(record, f.name) != f.default}
    del values["sample_id"], values["arm"]
    head = {"id": record.sample_id, "digest": digest, "arm": arm}
    return json.dumps(head | values)


def _parse(line: bytes, digests: Mapping[str, str]) -> Record | None:
    """The record of a line; None where it is torn, no record, or of another question than the one asked for."""
    if not line.startswith(b'{"id"'):
        return None
    try:
        row = json.loads(line)
        sample_id = row.pop("id")
        if digests.get(sample_id) != row.pop("digest"):
            return None
        arm = Arm(**row.pop("arm"))
        if "error" in row:
            return Failure(sample_id, arm, str(row["error"]))
        tokens = row.pop("tokens", None)
        values = {name: value for name, value in row.items() if name in _GENERATION}
        return Generation(sample_id, arm, tokens=None if tokens is None else tuple(tokens), **values)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _environment(line: bytes) -> Mapping[str, Any]:
    """What a writer's first line says of versions and device."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        found = json.loads(line)["environment"]
        return found if isinstance(found, dict) else {}
    return {}


def _manifest(path: Path) -> Any:
    """The manifest, or None where it is absent or torn: the folder's name, a hash of it, stands in for it then."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads(path.read_text("utf8"))
    return None


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _slug(name: str) -> str:
    """A name that is safe in a path."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name)[:60] or "-"
