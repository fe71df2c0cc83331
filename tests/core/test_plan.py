"""Laws of fusing, resuming and extending."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from doubles import ANSWERED, Drill, Hashed
from hypothesis import given, settings
from hypothesis import strategies as st

from spatial_eval.benchmarks.readers import Vsr
from spatial_eval.core import plan
from spatial_eval.core.arms import Arm
from spatial_eval.core.types import Batching, Cell, Experiment, Part, Pass, Places, Sample
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


pictures = st.lists(st.integers(0, 8), min_size=1, max_size=60)


def asked(names: list[int]) -> list[Sample]:
    """Rows of a dataset, by the picture of each."""
    return [Sample(str(row), row, "?", ("on",), image=Path(f"{name}.png")) for row, name in enumerate(names)]


@given(pictures, st.integers(1, 9))
def test_blocks_hold_every_row_once_and_pictures_whole(names: list[int], size: int) -> None:
    blocks = plan.cut_blocks(asked(names), Batching(size, by_image=True))
    assert sorted(row for block in blocks for row in block) == list(range(len(names)))
    assert all(0 < len(block) <= size for block in blocks)
    for name in set(names):
        rows = [row for row, one in enumerate(names) if one == name]
        holding = [block for block in blocks if set(block) & set(rows)]
        assert len(holding) == -(-len(rows) // size), "in two blocks only where a picture is more than a block"
        assert [row for block in holding for row in block if row in rows] == rows
    first = [names.index(names[block[0]]) for block in blocks]
    assert first == sorted(first), "in the order in which pictures first appear"


@given(pictures, st.integers(1, 9))
def test_without_images_blocks_are_of_rows(names: list[int], size: int) -> None:
    blocks = plan.cut_blocks(asked(names), Batching(size))
    assert blocks == [list(range(len(names)))[start : start + size] for start in range(0, len(names), size)]


@given(pictures, st.integers(1, 9), st.sets(st.integers(0, 59)), st.sets(st.integers(0, 9)))
def test_what_is_left_of_a_run_is_cut_as_before(names: list[int], size: int, limited: set[int], done: set[int]) -> None:
    """A limit, a shard or a resume takes from each block what is left of it and never mixes blocks."""
    samples = asked(names)
    blocks = plan.cut_blocks(samples, Batching(size, by_image=True))
    gone = {row for number in done if number < len(blocks) for row in blocks[number]}
    todo = [(samples[row], (Arm(),)) for row in range(len(names)) if row not in gone and row not in limited]
    left = [[sample.row for sample, _ in block] for block in plan.remaining_blocks(blocks, todo)]
    kept = [[row for row in block if row not in gone and row not in limited] for block in blocks]
    assert left == [block for block in kept if block]


def test_pictures_are_known_by_content_where_it_is_known() -> None:
    one, again, other = (Sample(str(i), i, "?", ("on",), image_digest=name) for i, name in enumerate("aab"))
    assert plan.cut_blocks([one, other, again], Batching(2, by_image=True)) == [[0, 2], [1]]
    nowhere = [Sample(str(i), i, "?", ("on",)) for i in range(3)]  # recordings' rows: pictures of their own
    assert plan.cut_blocks(nowhere, Batching(2, by_image=True)) == [[0, 1], [2]]


@pytest.mark.parametrize("size", [8, 16, 32])
def test_vsr_shares_as_much_as_its_pictures_allow(size: int, data: Path) -> None:
    """Its file order has the questions on one picture apart: blocks of rows would share almost nothing."""
    samples = Vsr("vsr", "VSR", 1222, "zeroshot_test.jsonl", "train2017").read(Places(data, data))

    def shared(batching: Batching) -> float:
        blocks = plan.cut_blocks(samples, batching)
        return len(samples) / sum(len({samples[row].image for row in block}) for block in blocks)

    assert shared(Batching(size, by_image=True)) == pytest.approx(1.71, abs=0.005)
    assert shared(Batching(size)) < 1.03
