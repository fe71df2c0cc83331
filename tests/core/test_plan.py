"""Laws of fusing, resuming and extending."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from doubles import ANSWERED, Drill, Hashed
from hypothesis import given, settings
from hypothesis import strategies as st

from spatial_eval.core import plan
from spatial_eval.core.types import Arm, Cell, Experiment, Part, Pass, Places
from spatial_eval.methods.routing import CRITERIA, AdaptVis, Base, ScalingVis
from spatial_eval.passes import tables
from spatial_eval.passes.pass_state import inspect_pass, run_pass

weights = st.sampled_from([0.0, 0.5, 0.8, 1.0, 1.2, 2.0])
methods = st.one_of(
    st.just(Base()),
    st.builds(ScalingVis, weights),
    st.builds(AdaptVis, weights, weights, st.floats(0, 1), st.sampled_from(sorted(CRITERIA))),
)
trunks = st.builds(Experiment, st.builds(Drill), st.builds(Hashed, st.sampled_from(["a", "b"])))
parts = st.builds(Part, st.sampled_from(plan.SPLITS), st.sampled_from([None, 1, 3]))
grids = st.lists(st.builds(Cell, trunks, methods, parts), min_size=1, max_size=6, unique=True)


def places(root: str) -> Places:
    return Places(Path(root), Path(root))


def run(passes: list[Pass], where: Places) -> int:
    """Number of generations that were computed."""
    ANSWERED.clear()
    for work in passes:
        run_pass(inspect_pass(work, where), where)
    return len(ANSWERED)


def rows(cells: list[Cell], where: Places) -> list[dict]:
    jobs = {work.experiment: inspect_pass(work, where) for work in plan.fuse_cells(cells)}
    return [dict(row) for row in tables.build_results(cells, jobs, where).cells]


@settings(deadline=None, max_examples=40)
@given(grids)
def test_fused_rows_equal_unfused_rows(cells: list[Cell]) -> None:
    with TemporaryDirectory() as a, TemporaryDirectory() as b:
        run(plan.fuse_cells(cells), places(a))
        run([work for cell in cells for work in plan.fuse_cells([cell])], places(b))
        assert rows(cells, places(a)) == rows(cells, places(b))


@settings(deadline=None, max_examples=25)
@given(grids)
def test_repeating_computes_nothing(cells: list[Cell]) -> None:
    with TemporaryDirectory() as root:
        passes = plan.fuse_cells(cells)
        needed = sum(
            len(arms)
            for work in passes
            for arms in plan.needed_arms(work, work.experiment.dataset.read(places(root))).values()
        )
        assert run(passes, places(root)) == needed
        assert run(passes, places(root)) == 0


@settings(deadline=None, max_examples=25)
@given(grids, methods)
def test_extending_computes_only_what_is_new(cells: list[Cell], method) -> None:
    more = [*cells, Cell(cells[0].experiment, method, cells[0].part)]
    with TemporaryDirectory() as a, TemporaryDirectory() as b:
        first = run(plan.fuse_cells(cells), places(a))
        assert first + run(plan.fuse_cells(more), places(a)) == run(plan.fuse_cells(more), places(b))


def test_a_pilot_is_reused_by_the_full_run(tmp_path: Path) -> None:
    trunk, where = Experiment(Drill(size=40), Hashed()), Places(tmp_path, tmp_path)
    assert run(plan.fuse_cells([Cell(trunk, Base(), Part("test", 10))]), where) == 10
    assert run(plan.fuse_cells([Cell(trunk, Base(), Part("test"))]), where) == 22
    assert run(plan.fuse_cells([Cell(trunk, Base(), Part("all"))]), where) == 8


def test_cells_of_one_trunk_fuse_into_one_pass() -> None:
    trunk = Experiment(Drill(), Hashed())
    cells = [Cell(trunk, ScalingVis(0.5)), Cell(trunk, AdaptVis(0.5, 1.5, 0.3)), Cell(trunk, AdaptVis(0.5, 1.5, 0.4))]
    assert plan.fuse_cells(cells) == [Pass(trunk, ((Part("test"), (Arm(0.5), Arm(1.0), Arm(1.5))),))]


@pytest.mark.parametrize(
    ("n", "val"), [(412, 82), (408, 81), (2247, 449), (440, 88), (1160, 232), (291, 58), (1222, 244)]
)
def test_split_sizes_are_the_published_ones(n: int, val: int) -> None:
    one, rest = plan.split_indices(n, Part("val")), plan.split_indices(n, Part("test"))
    assert (len(one), len(rest)) == (val, n - val)
    assert sorted([*one, *rest]) == list(plan.split_indices(n, Part("all")))
    assert list(one) == sorted(one)


def test_the_split_is_the_reference_draw() -> None:
    assert list(plan.split_indices(412, Part("val", 5))) == [
        1,
        4,
        11,
        13,
        14,
    ]  # as in saved index files of the reference
