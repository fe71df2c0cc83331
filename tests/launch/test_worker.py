"""What a job computes: a dataset in several templates side by side, and what fails costs only itself."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from questions import QUESTIONS, SIZES, saved

from spatial_eval.benchmarks.prompts import apply_template, without_template
from spatial_eval.benchmarks.question_files import QuestionFile
from spatial_eval.core.arms import Arm, Vcd
from spatial_eval.core.types import Benchmark, Experiment, Generation, Part, Pass, Places
from spatial_eval.engine.prefix import PrefixReader
from spatial_eval.launch import worker
from spatial_eval.launch.records import Attempt, Launch
from spatial_eval.models import vlm
from spatial_eval.models.hf import HF
from spatial_eval.passes.pass_state import PassState, inspect_pass

ARMS = (Arm(), Arm(0.5), Arm(contrast=Vcd(alpha=1.0, cutoff=0.1, noise=500)))
TEMPLATES = ("Look closely. {question}", "{question} Answer with one word.")


@pytest.fixture
def dataset(tmp_path: Path) -> QuestionFile:
    """Ten questions on four pictures."""
    from families import picture

    rows = []
    for row, index in enumerate([0, 3, 6, 0, 3, 3, 6, 0, 1, 6]):
        picture(index, SIZES[index]).save(tmp_path / f"{index}.png")
        rows.append({"id": row, "question": QUESTIONS[row % 8], "answer": "on", "image_path": f"{index}.png"})
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return QuestionFile(path)


@contextlib.contextmanager
def show(name: str, total: int, arms: int) -> Iterator[Any]:
    yield lambda questions: None


def run(datasets: Sequence[Benchmark], model: HF, places: Places) -> tuple[list[dict[Any, Generation]], Sequence[str]]:
    """One job over the whole datasets: what is stored of each, and the errors."""
    works = [Pass(Experiment(one, model, 3), ((Part("all"), ARMS),)) for one in datasets]
    attempt = compute(works, lambda work: inspect_pass(work, places), places)
    return [dict(inspect_pass(work, places).stored.generations) for work in works], attempt.errors


def compute(works: Sequence[Pass], find: Callable[[Pass], PassState], places: Places) -> Attempt:
    """Compute the whole of each pass as a shard of one job -> what the job says of itself."""
    shards = [
        SimpleNamespace(target=SimpleNamespace(work=work), label=work.experiment.dataset.name, questions=0)
        for work in works
    ]
    writer = worker.AttemptWriter(Launch(places.output), "t00000", 0, show_pass=show)
    job: Any = SimpleNamespace(shards=shards)
    worker.compute_shards(job, writer, lambda shard: find(shard.target.work), places)
    return writer.attempt


def test_templates_are_one_dataset(dataset: QuestionFile) -> None:
    assert without_template(apply_template(dataset, TEMPLATES[0])) == without_template(dataset) == dataset


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_templates_of_a_dataset_read_each_image_once(
    dtype: str, dataset: QuestionFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no bit of theirs depends on it: half precision is equal to each run by itself."""
    model = HF(saved("llava"), batch_size=5, dtype=dtype, selfcheck="never")
    asked = [dataset, *(apply_template(dataset, text) for text in TEMPLATES)]
    read: list[int] = []
    prefill = PrefixReader._read
    monkeypatch.setattr(PrefixReader, "_read", lambda *args, **kwargs: read.append(1) or prefill(*args, **kwargs))
    together, errors = run(asked, model, Places(tmp_path, tmp_path / "together"))
    assert errors == ()
    shared = len(read)
    read.clear()
    for one, stored in zip(asked, together, strict=True):
        vlm._memories.clear()
        (alone,), _ = run([one], model, Places(tmp_path, tmp_path / "alone"))
        assert stored == alone
        assert len(stored) == 10 * len(ARMS)
    assert shared * 3 == len(read)
    assert len({frozenset(one.items()) for one in map(dict, together)}) == 3, "templates change answers"


def test_one_that_fails_costs_only_itself(dataset: QuestionFile, tmp_path: Path) -> None:
    model = HF(saved("llava"), batch_size=5, selfcheck="never")
    asked = [dataset, *(apply_template(dataset, text) for text in TEMPLATES)]

    def broken(work: Pass) -> PassState:
        if work.experiment.dataset == asked[1]:
            raise RuntimeError("no such kernel")
        return inspect_pass(work, places)

    works = [Pass(Experiment(one, model, 3), ((Part("all"), ARMS[:1]),)) for one in asked]
    places = Places(tmp_path, tmp_path / "out")
    attempt = compute(works, broken, places)
    assert (attempt.state, attempt.again) == ("failed", True)
    assert attempt.errors == (f"{asked[1].name}: RuntimeError: no such kernel",)
    assert [len(inspect_pass(works[i], places).stored.generations) for i in (0, 2)] == [10, 10]
