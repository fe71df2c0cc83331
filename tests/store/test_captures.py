"""Captures on disk and in a sweep: killed anywhere nothing torn is read, nothing is stored twice, files are arrays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_cells
from doubles import ANSWERED, Drill, Gazing, Hashed, gaze
from hypothesis import given
from hypothesis import strategies as st

from spatial_eval.analysis.api import load
from spatial_eval.analysis.sweep_data import read_sweep_data
from spatial_eval.benchmarks.scenes.rendered import Scenes
from spatial_eval.config import schema
from spatial_eval.config.launchers import Local
from spatial_eval.core.arms import Arm
from spatial_eval.core.errors import ConfigError, DataError, StoreError
from spatial_eval.core.plan import fuse_cells
from spatial_eval.core.types import CAPTURES, Cell, Experiment, Part, Pass, Places
from spatial_eval.launch import status
from spatial_eval.launch.records import read_request
from spatial_eval.methods.routing import Base, ScalingVis
from spatial_eval.models.hf import HF
from spatial_eval.passes import estimate
from spatial_eval.passes import tables as pass_tables
from spatial_eval.passes.pass_state import PassState, inspect_pass, run_pass
from spatial_eval.report import page
from spatial_eval.store import attention
from spatial_eval.store.attention import Capture, Captures, Extent
from spatial_eval.store.generations import ExperimentKey, Store

ARMS = (Arm(0.5), Arm(1.0))
KEY = ExperimentKey("drill--gazing", {"version": 1})
SAMPLES = Drill().read(Places(Path(), Path()))
DIGESTS = {sample.id: f"digest {sample.id}" for sample in SAMPLES}
TRUNK = Experiment(Drill(), Gazing())
CELLS = [Cell(TRUNK, method, Part("all")) for method in (Base(), ScalingVis(0.5))]


def same(one: Capture, other: Capture) -> None:
    assert (one.sample_id, one.arms, one.view) == (other.sample_id, other.arms, other.view)
    np.testing.assert_array_equal(one.mass, other.mass)
    assert (one.map is None) == (other.map is None)
    np.testing.assert_array_equal(np.asarray(one.map), np.asarray(other.map))


def written(folder: Path, level: str, arms: tuple[Arm, ...] = ARMS, n: int = 3) -> Path:
    with Captures(folder).writer(KEY, DIGESTS) as writer:
        writer.append([gaze(sample, arms, level) for sample in SAMPLES[:n]])
    return writer.path


@pytest.mark.parametrize("level", CAPTURES[1:])
def test_what_is_read_is_what_was_written(level: str, tmp_path: Path) -> None:
    written(tmp_path, level)
    found = Captures(tmp_path).find(KEY, DIGESTS, level)
    assert set(found) == {(sample.id, arm) for sample in SAMPLES[:3] for arm in ARMS}
    for sample in SAMPLES[:3]:
        frame, place = found[sample.id, ARMS[1]]
        assert (frame.level, place) == (level, 1)
        same(frame.read(), gaze(sample, ARMS, level))


def test_a_higher_level_holds_the_lower_and_the_least_that_does_is_read(tmp_path: Path) -> None:
    written(tmp_path, "heads", ARMS[:1])
    store = Captures(tmp_path)
    assert {frame.level for frame, _ in store.find(KEY, DIGESTS, "mass").values()} == {"heads"}
    written(tmp_path, "map")
    assert {frame.level for frame, _ in store.find(KEY, DIGESTS, "mass").values()} == {"map"}
    assert set(store.find(KEY, DIGESTS, "heads")) == {(sample.id, ARMS[0]) for sample in SAMPLES[:3]}
    assert not store.find(KEY, dict.fromkeys(DIGESTS, "changed"), "mass")


@given(st.data())
def test_cut_anywhere_whole_questions_stay(data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), "map")
        whole = path.read_bytes()
        ends = [place + 1 for place in range(len(whole)) if whole[: place + 1].endswith(b"\n")]
        end = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:end])
        found = Captures(Path(folder)).find(KEY, DIGESTS, "map")
        kept = {name for name, _ in found}
        assert kept == {sample.id for sample in SAMPLES[: len(kept)]}
        assert set(found) == {(name, arm) for name in kept for arm in ARMS}
        assert len(kept) == 3 or end < ends[-1]
        for (name, _), (frame, _) in found.items():
            same(frame.read(), gaze(SAMPLES[int(name)], ARMS, "map"))


def held(folder: Path, level: str = "mass") -> set[str]:
    return {name for name, _ in Captures(folder).find(KEY, DIGESTS, level)}


def frames(path: Path) -> list[int]:
    """Where each frame of a file begins."""
    found = Captures(path.parents[1]).find(KEY, DIGESTS, "mass").values()
    starts = sorted({frame.offset for frame, _ in found})
    whole = path.read_bytes()
    return [whole.rindex(b'{"id": ', 0, offset) for offset in starts]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"bytes": ', b'"bytes":x'),  # no JSON
        (b'"arms": [{', b'"arms": [{"no": 1, '),  # an unknown field
        (b'"mass": [2,', b'"mass": [3,'),  # more arms than are named
        (b'"mass": [2,', b'"mass": [-2,'),
        (b'"map": null', b'"map": [2]'),
        (b'"crc": ', b'"crc": 0.'),
        (b'"id": "1"', b'"id": 1'),
        (b'"bytes": 48', b'"bytes": 52'),
        (b'"grid": [2', b'"grid": [0'),
        (b'"view": ', b'"view": 7, "was": '),
    ],
)
def test_a_damaged_header_costs_only_its_own_frame(before: bytes, after: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, "mass")
    whole, (first, second, third) = path.read_bytes(), frames(path)
    for start, end in ((first, second), (second, third), (third, len(whole))):
        name = json.loads(whole[start:].split(b"\n")[0])["id"]
        part = whole[start:end]
        changed = part.replace(before.replace(b'"1"', f'"{name}"'.encode()), after)
        if changed == part:  # sample 1 has no view
            continue
        path.write_bytes(whole[:start] + changed + whole[end:])
        assert held(tmp_path) == {"0", "1", "2"} - {name}


def test_a_header_that_claims_the_next_frame_too_costs_only_its_own(tmp_path: Path) -> None:
    path = written(tmp_path, "mass")
    whole, (_, second, third) = path.read_bytes(), frames(path)
    longer = 48 + third - second
    changed = whole.replace(b'"bytes": 48', f'"bytes": {longer}'.encode(), 1)
    assert changed != whole
    path.write_bytes(changed)
    assert held(tmp_path) == {"1", "2"}


def test_frames_after_a_damaged_header_are_found_however_far_they_are(tmp_path: Path) -> None:
    path = written(tmp_path, "mass")
    whole, (_, second, _) = path.read_bytes(), frames(path)
    for size in (1, 2**20 - 9, 2**20 - 8, 2**20 - 7, 2**20 - 1, 2**20, 3 * 2**20):
        path.write_bytes(b"x" * size + b"\n" + whole[second:])
        assert held(tmp_path) == {"1", "2"}


def test_damaged_numbers_are_not_read_and_not_listed_again(tmp_path: Path) -> None:
    path = written(tmp_path, "mass")
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    frame, _ = Captures(tmp_path).find(KEY, DIGESTS, "mass")["2", ARMS[0]]
    assert held(tmp_path) == {"0", "1", "2"}
    with pytest.raises(StoreError, match="the capture of question 2 is damaged; the same command captures it again"):
        frame.read()
    assert held(tmp_path) == {"0", "1"}
    assert path.read_bytes() == data


def test_a_flipped_bit_of_an_arm_is_damage(tmp_path: Path) -> None:
    path = written(tmp_path, "mass", ARMS, 1)
    whole = path.read_bytes()
    changed = whole.replace(b'"weight": 0.5', b'"weight": 1.5', 1)
    assert changed != whole
    path.write_bytes(changed)
    frame, _ = Captures(tmp_path).find(KEY, DIGESTS, "mass")["0", Arm(1.5)]
    with pytest.raises(StoreError, match="question 0 is damaged"):
        frame.read()


def test_captures_whose_crc_is_of_the_numbers_alone_are_read(tmp_path: Path) -> None:
    """As versions before 0.2 wrote them."""
    path = written(tmp_path, "map", ARMS, 1)
    head, data = path.read_bytes().split(b"\n", 1)
    start = head.rpartition(b', "crc": ')[0]
    path.write_bytes(start + b', "crc": %d}\n' % zlib.crc32(data[:-1]) + data)
    frame, _ = Captures(tmp_path).find(KEY, DIGESTS, "map")["0", ARMS[0]]
    same(frame.read(), gaze(SAMPLES[0], ARMS, "map"))


def test_shapes_beyond_any_file_are_no_header(tmp_path: Path) -> None:
    path = written(tmp_path, "mass", ARMS, 2)
    head = json.loads(path.read_bytes().split(b"\n")[0])
    head |= {"mass": [len(ARMS), 10**20, 10**20], "bytes": 4 * len(ARMS) * 10**40}
    path.with_name("foreign.frames").write_bytes(json.dumps(head).encode() + b"\n" + b"\0" * 99)
    assert held(tmp_path) == {"0", "1"}


def test_a_capture_of_other_layers_or_tokens_is_left_out_and_captured_again(tmp_path: Path) -> None:
    """Another hand's, with a right CRC: arrays of several shapes cannot be stacked."""
    state = job(tmp_path, "map")
    run_pass(state, Places(tmp_path, tmp_path))
    whole = pass_tables.gather_captures(tmp_path, state, Places(tmp_path, tmp_path)).read_bytes()
    (path,) = tmp_path.glob("captures/*/*.frames")
    for mass, seen in (((1, 9, 3), (1, 9, 4)), ((1, 2, 3), (1, 2, 6))):
        other = Capture("0", ARMS[:1], np.zeros(mass, np.float32), np.zeros(seen, np.float32))
        first = path.with_name("0.frames")
        first.write_bytes(b"".join(attention._format_frame(other, state.digests["0"])))
        with pytest.raises(StoreError, match=r"lacks \d captures; .*question 0 is damaged"):
            pass_tables.gather_captures(tmp_path, state, Places(tmp_path, tmp_path))
        run_pass(job(tmp_path, "map"), Places(tmp_path, tmp_path))
        again = pass_tables.gather_captures(tmp_path, state, Places(tmp_path, tmp_path))
        assert again.read_bytes() == whole
        first.unlink()
        first.with_name("0.frames.damaged").unlink()


def test_captures_that_can_no_longer_be_read_are_not_left_out_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file server refused one listing: the sweep's file had fewer arrays, and the command ended with 0."""
    run_pass(job(tmp_path, "map"), Places(tmp_path, tmp_path))
    done = job(tmp_path, "map")
    whole = pass_tables.gather_captures(tmp_path, done, Places(tmp_path, tmp_path)).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Captures, "_list_frames", lambda self, key: iter(()))
        with pytest.raises(StoreError, match=r"^24 captures of drill x gazing were read before and cannot be read now"):
            pass_tables.gather_captures(tmp_path, done, Places(tmp_path, tmp_path))
    assert pass_tables.gather_captures(tmp_path, done, Places(tmp_path, tmp_path)).read_bytes() == whole


# A pass


def job(out: Path, capture: str, model: Hashed | None = None, **more: bool) -> PassState:
    work = Pass(Experiment(Drill(), model or Gazing()), ((Part("all"), ARMS),), capture)
    return inspect_pass(work, Places(out, out), **more)


def lines(out: Path) -> list[bytes]:
    return sorted(
        line for path in out.glob("generations/*/*.jsonl") for line in path.read_bytes().split(b"\n") if b'"id"' in line
    )


def test_stored_answers_are_computed_again_and_not_stored_again(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path)
    run_pass(job(tmp_path, "none"), places)
    before = lines(tmp_path)
    again = job(tmp_path, "mass")
    assert (len(again.todo), again.uncaptured) == (12, 24)
    run_pass(again, places)
    assert lines(tmp_path) == before
    assert len(before) == 24
    (effort,) = Store(tmp_path / "generations").list_efforts(again.key)
    assert (effort.questions, len(effort.arms)) == (12, 2)
    for capture in ("mass", "none"):
        done = job(tmp_path, capture)
        assert (done.todo, done.uncaptured) == ([], 0)
    ANSWERED.clear()
    run_pass(job(tmp_path, "mass"), places)
    assert ANSWERED == []
    assert len(job(tmp_path, "map").todo) == 12  # a mass is no map


def test_a_new_arm_is_captured_alone(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path)
    run_pass(job(tmp_path, "map"), places)
    more = inspect_pass(Pass(TRUNK, ((Part("all"), (*ARMS, Arm(2.0))),), "map"), places)
    assert {arms for _, arms in more.todo} == {(Arm(2.0),)}


def test_recorded_errors_are_left_alone_until_retry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    places = Places(tmp_path, tmp_path)
    run_pass(job(tmp_path, "mass", Gazing(broken=("3",))), places)
    left = job(tmp_path, "mass")
    assert (left.todo, left.uncaptured, left.skipped) == ([], 0, 2)
    assert [sample.id for sample, _ in job(tmp_path, "mass", retry=True).todo] == ["3"]
    run_pass(job(tmp_path, "mass", retry=True), places)
    assert job(tmp_path, "mass").skipped == 0
    run_pass(job(tmp_path, "map", Gazing(broken=("5",))), places)  # answered before: its error is no answer
    assert job(tmp_path, "map").uncaptured == 2
    assert "question 5, arm 0.5: not captured: cannot open its image" in caplog.text
    assert len(job(tmp_path, "none").stored.generations) == 24


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from doubles import Drill, Gazing
from spatial_eval.passes.pass_state import run_pass, inspect_pass
from spatial_eval.core.arms import Arm
from spatial_eval.core.types import Experiment, Part, Pass, Places
out = Path({out!r})
work = Pass(Experiment(Drill(), Gazing(pause_s=0.2)), ((Part("all"), (Arm(0.5), Arm(1.0))),), "heads")
run_pass(inspect_pass(work, Places(out, out)), Places(out, out))
"""


def test_killed_while_it_captures_it_goes_on(tmp_path: Path) -> None:
    code = KILLED.format(paths=[str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")], out=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 60
    while len(held := Captures(tmp_path / "captures").find(*facts(tmp_path), "heads")) < 6:
        assert time.monotonic() < end, held
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (path,) = tmp_path.glob("captures/*/*.frames")
    path.write_bytes(path.read_bytes()[:-7])  # as if it had struck in the middle of a write
    left = job(tmp_path, "heads")
    assert 2 <= len(left.todo) < 12
    run_pass(left, Places(tmp_path, tmp_path))
    done = job(tmp_path, "heads")
    assert (done.todo, done.uncaptured) == ([], 0)
    assert len(lines(tmp_path)) == 24
    for sample in SAMPLES:
        frame, place = Captures(tmp_path / "captures").find(done.key, done.digests, "heads")[sample.id, ARMS[1]]
        capture, want = frame.read(), gaze(sample, ARMS, "heads")
        np.testing.assert_array_equal(capture.mass[place], want.mass[1])


def facts(out: Path) -> tuple[ExperimentKey, dict[str, str]]:
    found = job(out, "none")
    return found.key, dict(found.digests)


# A sweep


def test_the_same_tables_and_arrays_beside_them(tmp_path: Path) -> None:
    folder = run_cells(CELLS, tmp_path)
    before = (folder / "results.csv").read_bytes()
    assert run_cells(CELLS, tmp_path, "map") == folder
    assert (folder / "results.csv").read_bytes() == before
    found = load(folder).attention()
    assert (found.dataset, found.model, found.level) == ("drill", "gazing", "map")
    assert found.ids == tuple(sample.id for sample in SAMPLES)
    assert found.arms == ARMS
    assert found.mass.shape == (12, 2, 2, 3)
    assert found.mass.dtype == np.float32
    assert found.tokens.tolist() == [4, 5] * 6
    assert found.grids == ((2, 2), None) * 6
    assert found.padded().shape == (12, 2, 2, 5)
    assert len(found.heads) == 0
    for i, sample in enumerate(SAMPLES):
        want = gaze(sample, ARMS, "map")
        np.testing.assert_array_equal(found.mass[i], want.mass)
        np.testing.assert_array_equal(found.map[i], np.asarray(want.map))
        np.testing.assert_array_equal(found.padded()[i, ..., : found.tokens[i]], np.asarray(want.map))
    assert np.isnan(found.padded()[0, ..., 4]).all()
    right = load(folder).right(found)
    answers = load(folder).answers(0)
    assert right[:, 1].tolist() == answers["correct"].astype(float).tolist()
    assert found.question("7") == 7
    assert found.arm("0.5") == 0
    with pytest.raises(ConfigError, match=r"unknown arm '0.6'; did you mean 0.5\? \(valid: 0.5, 1\)"):
        found.arm("0.6")


def test_jobs_of_a_pool_capture_and_resume_as_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")])
    )  # where the jobs find Gazing
    here = run_cells(CELLS, tmp_path / "here", "map")
    run_cells(CELLS, tmp_path / "there")  # answers are stored: the jobs only capture
    pool = Local(slots=1, shards=2)
    there = run_cells(CELLS, tmp_path / "there", "map", pool)
    assert len(list(tmp_path.glob("there/captures/*/*.frames"))) == 2
    (one,), (other,) = (list(folder.glob("attention/*.npz")) for folder in (here, there))
    assert one.read_bytes() == other.read_bytes()
    assert len(lines(tmp_path / "there")) == 24


def test_heads_and_what_an_earlier_run_kept(tmp_path: Path) -> None:
    folder = run_cells(CELLS, tmp_path, "heads")
    first = next(folder.glob("attention/*.npz")).read_bytes()
    found = load(folder).attention()
    want = [gaze(sample, ARMS, "heads").map for sample in SAMPLES]
    for i, heads in enumerate(want):
        np.testing.assert_array_equal(found.heads[i], np.asarray(heads))
        np.testing.assert_allclose(found.map[i], np.asarray(heads).mean(axis=2))
    assert [one.shape for one in found.map[:2]] == [(2, 2, 4), (2, 2, 5)]
    ANSWERED.clear()
    run_cells(CELLS, tmp_path, "mass")
    assert ANSWERED == []
    assert next(folder.glob("attention/*.npz")).read_bytes() == first  # a later, lesser wish loses nothing


def test_what_failed_has_no_row_and_what_is_missing_is_nan(tmp_path: Path) -> None:
    out = Places(tmp_path, tmp_path)
    run_pass(inspect_pass(Pass(TRUNK, ((Part("all"), ARMS[:1]),), "map"), out), out)
    partly = inspect_pass(Pass(TRUNK, ((Part("all"), ARMS),), "map"), out)
    run_pass(inspect_pass(Pass(TRUNK, ((Part("all", 2), ARMS),), "map"), out), out)
    found = attention.read_attention(pass_tables.gather_captures(tmp_path, partly, out))
    assert not np.isnan(found.mass[:, 0]).any()
    assert np.isnan(found.mass[:, 1]).all(axis=(1, 2)).tolist() == [False, False] + [True] * 10
    assert np.isnan(found.map[5][1]).all()
    assert not np.isnan(found.map[5][0]).any()


def test_a_sweep_whose_attention_is_missing_is_incomplete(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run_cells(CELLS, tmp_path)
    cells = [Cell(Experiment(Drill(), Gazing(broken=("5",))), cell.method, cell.part) for cell in CELLS]
    with pytest.raises(AssertionError):
        run_cells(cells, tmp_path, "mass")
    assert "incomplete: 2 answers lack their attention; the same command tries again" in caplog.text
    (other,) = (path for path in folder.parent.iterdir() if path != folder)  # another description, the same answers
    now = status.StatusReader(read_request(other)).read()
    assert not now.is_complete
    assert (now.passes[0].questions, now.passes[0].total) == (11, 12)


def test_a_damaged_capture_costs_no_table_and_is_captured_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_cells(CELLS, tmp_path, "map")
    (path,) = tmp_path.glob("captures/*/*.frames")
    data = bytearray(path.read_bytes())
    data[-9] ^= 1  # of the last question
    path.write_bytes(data)
    (folder / "results.csv").unlink()
    with pytest.raises(AssertionError):  # incomplete, exit code 3
        run_cells(CELLS, tmp_path, "map")
    assert (folder / "results.csv").is_file()
    said = f"lacks 1 captures; the first: {path}: the capture of question 11 is damaged; the same command captures it"
    assert said in caplog.text
    assert load(folder).attention().ids == tuple(sample.id for sample in SAMPLES[:-1])
    ANSWERED.clear()
    run_cells(CELLS, tmp_path, "map")
    assert {name for name, _ in ANSWERED} == {"11"}
    assert load(folder).attention().ids == tuple(sample.id for sample in SAMPLES)
    assert len(lines(tmp_path)) == 24


def test_no_capture_is_said_so(tmp_path: Path) -> None:
    folder = run_cells(CELLS, tmp_path)
    with pytest.raises(ConfigError, match=f"sweep {folder.name} has no captured attention: run its command with"):
        load(folder).attention()
    assert "Attention to the image" not in page.render_page(read_sweep_data(folder))
    (folder / "attention").mkdir()
    (folder / "attention" / "x.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"x\.npz is no captured attention"):
        load(folder).attention()


@pytest.mark.parametrize(
    "change",
    [
        {"mass": np.zeros((2, 2), np.float32)},
        {"mass": np.array([["x"]])},
        {"tokens": np.array([1])},
        {"level": np.array("other")},
        {"boxes": np.full((12, 4), np.inf)},
        {"grids": np.full((12, 2), 3)},
        {"arms": np.array(["[", "7"])},
        {"arms": np.array(['{"weight": "x"}'] * 2)},
        {"ids": np.array(7)},
        {"max_new_tokens": np.array("x")},
    ],
)
def test_arrays_of_another_hand_are_passed_over_in_one_line(
    change: dict[str, np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = job(tmp_path, "map")
    run_pass(state, Places(tmp_path, tmp_path))
    path = pass_tables.gather_captures(tmp_path, state, Places(tmp_path, tmp_path))
    with np.load(path) as file:
        content = dict(file)
    np.savez(path, **content | change)
    assert list(attention.each_capture(tmp_path)) == []
    assert [line.partition(": ")[0] for line in caplog.messages] == [f"{path} is no captured attention"]
    with pytest.raises(DataError, match="is no captured attention"):
        attention.find_attention(tmp_path)


def test_two_passes_want_a_name(tmp_path: Path) -> None:
    other = [Cell(Experiment(Drill("other"), Gazing()), cell.method, cell.part) for cell in CELLS]
    folder = run_cells([*CELLS, *other], tmp_path, "mass")
    assert load(folder).attention(dataset="other").dataset == "other"
    with pytest.raises(ConfigError, match=r"2 captures of sweep .* of one .*drill x gazing, 100 tokens; other x"):
        load(folder).attention()


# Before it runs


def test_models_without_attention_are_refused(launch, experiment: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"capture=map: model hashed has no attention to capture.*capture=none"):
        inspect_pass(Pass(Experiment(Drill(), Hashed()), ((Part(), ARMS),), "map"), Places(tmp_path, tmp_path))
    done = launch(*experiment, "capture=mass")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: capture=mass: model recorded has no attention to capture, only a model that is really run has; "
        "leave it at capture=none"
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["off", "all", None, True])
def test_other_levels_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"unknown capture .*\(valid: none, mass, map, heads\)"):
        schema.check_root_value("capture", value)


def test_sizes_are_said_before() -> None:
    """Of LLaVA-1.5-7B, in float32: 4 kB and 74 kB + 4 kB a question and arm."""
    large = Extent(32, 32, 576)
    assert [large.size(level, 1) for level in CAPTURES[1:]] == [4096, 4096 + 73728, 4096 + 32 * 73728]


@pytest.mark.parametrize("level", CAPTURES[1:])
def test_the_size_is_what_is_written(level: str, tmp_path: Path) -> None:
    trunk = Experiment(Scenes("scenes_a", "scenes_a"), HF("package:tiny", name="tiny"))
    (work,) = fuse_cells([Cell(trunk, Base(), Part("test", 7))], level)
    (line,) = estimate.capture_sizes([(work, 7)], Places(tmp_path, tmp_path))
    each = {"mass": "4 heads", "map": "about 64 image tokens", "heads": "4 heads x about 64 image tokens"}[level]
    size = 7 * 4 * 4 * {"mass": 4, "map": 68, "heads": 260}[level]
    said = {"mass": "448 bytes", "map": "7.62 kB", "heads": "29.1 kB"}[level]
    assert size == Extent(4, 4, 64).size(level, 7)
    assert line == (
        f"capture={level} of scenes_a x tiny: 7 answers (a question under an arm) x 4 layers x {each}, float32: "
        f"{said}, and as much in the sweep's folder"
    )


def test_the_size_of_a_model_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gazing, "extent", lambda *_: None)
    works, places = [job(tmp_path, level).work for level in ("map", "none", "heads")], Places(tmp_path, tmp_path)
    (line,) = estimate.capture_sizes([(works[0], 24), (works[1], 24), (works[2], 0)], places)
    assert line.startswith("capture=map of drill x gazing: 24 answers")
    assert line.endswith("of a size that is not known before the model is fetched")
