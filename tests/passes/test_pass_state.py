"""A pass against data and store, under a key that is known: what `status` reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import questions, write_lines
from doubles import Drill, Hashed

from spatial_eval.benchmarks.readers import QuestionFile
from spatial_eval.core.arms import BASE, Arm
from spatial_eval.core.errors import MissingData
from spatial_eval.core.types import Experiment, Model, Part, Pass, Places
from spatial_eval.models.hf import HF
from spatial_eval.models.recorded import Imported
from spatial_eval.passes.pass_state import inspect_pass, read_pass, reread_store, run_pass
from spatial_eval.store.generations import ExperimentKey

KEY = ExperimentKey("quiz--vlm", {"model": "any"})


def quiz(folder: Path, model: Model, images: int) -> Pass:
    """Four questions, of which `images` have their image."""
    rows = [{**row, "image_path": f"{row['id']}.png"} for row in questions(4)]
    for row in rows[:images]:
        (folder / str(row["image_path"])).write_bytes(b"png")
    return Pass(Experiment(QuestionFile(write_lines(folder / "quiz.jsonl", rows)), model), ((Part("all"), (BASE,)),))


def test_without_any_image_nothing_is_called_missing(tmp_path: Path) -> None:
    work = quiz(tmp_path, HF("package:tiny", name="tiny"), images=0)
    with pytest.raises(MissingData, match=f"quiz has no image here: there is no {tmp_path / '0.png'}"):
        read_pass(work, KEY, Places(tmp_path, tmp_path))


@pytest.mark.parametrize(
    ("model", "images"),
    [(HF("package:tiny", name="tiny"), 1), (HF("package:tiny", name="tiny"), 4), (Imported("m"), 0)],
)
def test_a_model_that_sees_some_or_looks_at_none_is_read(model: Model, images: int, tmp_path: Path) -> None:
    state = read_pass(quiz(tmp_path, model, images), KEY, Places(tmp_path, tmp_path))
    assert (state.key, len(state.need), len(state.todo)) == (KEY, 4, 4)


def test_a_state_is_brought_up_to_date_without_the_data(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path)
    work = Pass(Experiment(Drill(size=6), Hashed(broken=("1",))), ((Part("all"), (BASE, Arm(0.5))),))
    before = inspect_pass(work, places)
    assert read_pass(work, before.key, places) == before
    run_pass(before, places)
    after = reread_store(before, places)
    assert (len(before.done), len(after.done), len(after.stored.failures)) == (0, 10, 2)
    assert (after.todo, after.skipped) == ([], 2)
    assert [sample.id for sample, _ in reread_store(before, places, retry=True).todo] == ["1"]
    assert after == inspect_pass(work, places)
