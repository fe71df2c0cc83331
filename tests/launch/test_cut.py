"""From passes to jobs: every question exactly once, whatever is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from spatial_eval.config.launchers import Resources
from spatial_eval.core.types import Arm, Sample
from spatial_eval.launch import dispatch


def state(model: Any, rows: list[int], total: int, arms: int = 2) -> Any:
    todo = [(Sample(str(row), row, "", ("left",)), tuple(Arm(float(w)) for w in range(arms))) for row in rows]
    work = SimpleNamespace(experiment=SimpleNamespace(model=model), arms=todo[0][1] if todo else ())
    key = SimpleNamespace(hash="key")
    return SimpleNamespace(work=work, todo=todo, samples=[None] * total, name="data x model", key=key)


class Model:
    def __init__(self, name: str = "model", batch_size: int | str = 1) -> None:
        self.name, self.batch_size = name, batch_size


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_shards_hold_every_question_once(data) -> None:
    total = data.draw(st.integers(1, 300))
    rows = sorted(data.draw(st.sets(st.integers(0, total - 1), min_size=1)))
    number = data.draw(st.integers(1, 40))
    block = data.draw(st.sampled_from([1, 4, 32, "auto"]))
    shards = dispatch.cut_pass(state(Model(batch_size=block), rows, total), number)
    assert len(shards) == number
    assert [row for shard in shards for row in rows if row in shard.rows] == rows
    assert sum(shard.questions for shard in shards) == len(rows)
    size = 32 if block == "auto" else block
    assert all(shard.rows.start % size == 0 for shard in shards), "a shard starts where a batch does"


def test_equal_questions_are_cut_evenly() -> None:
    shards = dispatch.cut_pass(state(Model(), list(range(1000)), 1000), 1000)
    assert [shard.questions for shard in shards] == [1] * 1000


def test_a_model_is_loaded_once_for_its_datasets_and_the_longest_goes_first() -> None:
    one, two = Model("one"), Model("two")
    states = [state(one, list(range(10)), 10), state(two, list(range(500)), 500), state(one, list(range(20)), 20)]
    made = dispatch.make_jobs(states, {two: Resources(gpus=2)}, shards=1, parallel=8)
    assert [(len(job.shards), job.resources.gpus) for job in made] == [(1, 2), (2, None)]
    assert [job.name for job in made] == ["t00000", "t00001"]


def test_auto_keeps_everyone_busy_but_cuts_nothing_small() -> None:
    big, small = state(Model("big"), list(range(4000)), 4000), state(Model("small"), list(range(50)), 50)
    made = dispatch.make_jobs([big, small], {}, shards="auto", parallel=4)
    assert len(made) == 5
    assert max(sum(shard.questions for shard in job.shards) for job in made) <= 1100
    assert len(dispatch.make_jobs([small], {}, shards="auto", parallel=64)) == 1
    assert dispatch.make_jobs([state(Model(), [], 5)], {}, shards="auto", parallel=4) == ()
