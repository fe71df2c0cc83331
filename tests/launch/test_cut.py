"""From passes to jobs: every question exactly once, whatever is asked."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from spatial_eval.config.launchers import Resources
from spatial_eval.core import plan
from spatial_eval.core.arms import Arm
from spatial_eval.core.types import Batching, Sample
from spatial_eval.launch import dispatch
from spatial_eval.passes.pass_state import PassState


def state(model: Any, rows: list[int], total: int, arms: int = 2) -> Any:
    todo = [(Sample(str(row), row, "", ("left",)), tuple(Arm(float(w)) for w in range(arms))) for row in rows]
    work = SimpleNamespace(experiment=SimpleNamespace(model=model), arms=todo[0][1] if todo else ())
    key = SimpleNamespace(hash="key")
    blocks = [list(range(start, min(start + model.rows, total))) for start in range(0, total, model.rows)]
    places = {row: row for row in range(total)}
    return SimpleNamespace(
        work=work, todo=todo, samples=[None] * total, blocks=blocks, positions=places, name="data x model", key=key
    )


class Model:
    def __init__(self, name: str = "model", rows: int = 1) -> None:
        self.name, self.rows = name, rows


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_shards_hold_every_question_once(data) -> None:
    total = data.draw(st.integers(1, 300))
    rows = sorted(data.draw(st.sets(st.integers(0, total - 1), min_size=1)))
    number = data.draw(st.integers(1, 40))
    block = data.draw(st.sampled_from([1, 4, 32]))
    shards = dispatch.cut_pass(state(Model(rows=block), rows, total), number)
    assert len(shards) == number
    assert [row for shard in shards for row in rows if row in shard.rows] == rows
    assert sum(shard.questions for shard in shards) == len(rows)
    starts = [shard.rows.start for shard in shards]
    assert all(start % block == 0 or start == total for start in starts), "a shard starts where a batch does"


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


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=60), st.integers(1, 7), st.integers(1, 9))
def test_shards_are_whole_blocks(names: list[int], size: int, number: int) -> None:
    """And every shard finds its rows again, whatever the order of the blocks."""
    samples = [Sample(str(row), row, "?", ("on",), image=Path(f"{name}.png")) for row, name in enumerate(names)]
    blocks = plan.cut_blocks(samples, Batching(size, by_image=True))
    experiment = SimpleNamespace(model=Model(), dataset=Model("data"))
    work, key = SimpleNamespace(experiment=experiment, arms=(Arm(),)), SimpleNamespace(hash="key")
    todo = [(sample, (Arm(),)) for sample in samples]
    pass_state = PassState(work, samples, blocks, {}, key, {}, todo=todo)  # type: ignore[arg-type]
    shards = dispatch.cut_pass(pass_state, number)
    order = [row for block in blocks for row in block]
    assert [row for shard in shards for row in order[shard.rows.start : shard.rows.stop]] == order
    assert [shard.questions for shard in shards] == [len(shard.rows) for shard in shards]
    starts = {0, *accumulate(map(len, blocks))}
    assert {shard.rows.start for shard in shards} <= starts
