"""Job state: JSON that outlives classes and packages, refuses what it does not know, and runs nobody's code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, ordered, run_cells
from doubles import Drill, Hashed
from every_kind import CELLS, MODELS

from spatial_eval.analysis.sweep_data import find_sweep
from spatial_eval.benchmarks.scenes.rendered import Scenes
from spatial_eval.cli.main import main
from spatial_eval.config.launchers import Inline, Resources, Slurm
from spatial_eval.config.tracking import Publication, TrackedFiles, Wandb
from spatial_eval.core.errors import ConfigError, StoreError
from spatial_eval.core.plan import fuse_cells
from spatial_eval.core.types import Cell, Experiment, Part, Places
from spatial_eval.launch import dispatch, records, slurm, status
from spatial_eval.launch.code_snapshot import snapshot_code
from spatial_eval.launch.records import Attempt, AttemptReader, Job, KeyedPass, Launch, Shard, SweepRequest
from spatial_eval.launch.status import JobState
from spatial_eval.methods import routing
from spatial_eval.methods.routing import Base, ScalingVis
from spatial_eval.store.generations import ExperimentKey
from spatial_eval.sweep import run as sweep_run

# The fixture holds the methods that were there when it was written.
WRITTEN = tuple(one for one in CELLS if one.method.kind in ("base", "scaling_vis", "adapt_vis", "vcd", "dola"))
FIXTURE = ROOT / "tests" / "fixtures" / "job_state_1"
OLD_FORMS = (  # what 0.1 left in a sweep's folder, submitit's files included
    *("jobs/launch.pkl", "jobs/20250101T000000-aaaaaa/tasks.pkl"),
    *(f"jobs/20250101T000000-aaaaaa/slurm/{name}.pkl" for name in ("1_submitted", "1_0_result", "abc")),
)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A sweep's folder with job state of schema 1, as it was written when that schema was new."""
    shutil.copytree(FIXTURE, tmp_path / "out")
    for path in tmp_path.rglob("*.json"):
        os.utime(path, (1e9, 1e9))  # a checkout makes files anew: a driver of just now
    return find_sweep(tmp_path / "out", None, "jobs")


@pytest.fixture
def swept_drill(tmp_path: Path) -> Path:
    """The folder of a finished sweep of made-up answers."""
    return run_cells([Cell(Experiment(Drill(), Hashed()), Base(), Part("all"))], tmp_path / "out")


def test_a_request_of_schema_1_is_read(state: Path) -> None:
    request = records.read_request(state)
    assert request.cells == WRITTEN
    assert request.folder == state
    assert (request.places.data, request.places.output) == (Path("/data"), state.parents[1])
    assert (request.retry, request.capture) == (True, "none")
    assert request.launcher == Slurm(
        partition="long", setup=("module load cuda",), extra={"nice": 5}, environment=("MY_VAR",), poll=0.5
    )
    assert request.publication.settings == Wandb(mode="auto", tags=("a", "b"))
    assert request.publication.about["command"] == ["launch.py", "-m", "sweep=every_kind"]
    assert request.publication.about["cells"][0] == {
        "trunk": 0,
        "method": {"kind": "Base"},
        "part": {"kind": "Part", "split": "test", "limit": None},
    }
    assert request.resources[MODELS["hf"]] == Resources(gpus=2, memory="16G", time=30)
    assert [target.rows for target in request.passes.values()] == list(range(100, 109))
    assert next(iter(request.passes.values())).key.hash == "a3fe071c301bf30c"


def test_a_launch_of_schema_1_is_read(state: Path) -> None:
    (launch,) = records.list_launches(state)
    spec = launch.read()
    assert [(job.name, job.label, job.questions) for job in spec.jobs] == [
        ("t00000", "scenes_a x mine [0:40] and 1 more", 80),
        ("t00001", "scenes_a x vlm [0:5]", 5),
    ]
    assert spec.jobs[1].resources == Resources(gpus=2, memory="16G", time=30)
    assert spec.request.cells == WRITTEN
    done, failed = (attempts[0] for _, attempts in sorted(AttemptReader(launch).read_attempts().items()))
    assert (done.state, done.total, done.slurm, done.restart) == ("done", 80, "77_0", 0)
    assert (failed.errors, failed.again) == (("scenes_a x vlm: RuntimeError: no such kernel",), True)
    assert [(array.jobs, array.id) for array in slurm.list_arrays(launch)] == [(("t00000",), "77"), (("t00001",), "78")]
    assert not launch.is_driven


def test_status_without_the_data_tells_of_the_jobs_and_says_so(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(state)]) == 3
    said = capsys.readouterr().out
    assert "quiz x mine: unknown, 82 questions in 1 arms, not counted: /data/quiz.jsonl cannot be read: No such" in said
    assert "whatsup x mine: unknown, 80 questions in 1 arms, not counted: dataset whatsup: no prompts/p.jsonl" in said
    assert "scenes_a x mine: missing, 0/" in said, "scenes are drawn, so their questions are known anywhere"
    assert "jobs 1 done, 1 failed" in said
    assert "failed: scenes_a x vlm: RuntimeError: no such kernel" in said
    assert f"incomplete and nothing runs: python -m spatial_eval retry {state.name}" in said
    assert main(["retry", str(state)]) == 1
    assert capsys.readouterr().err.startswith("error: dataset whatsup: no prompts/p.jsonl under data_dir=/data; run")


def test_what_is_stored_of_readable_questions_counts_though_others_are_not(tmp_path: Path) -> None:
    cells = [Cell(Experiment(dataset, Hashed()), Base(), Part("all")) for dataset in (Drill("gone"), Drill("here"))]
    folder = run_cells(cells, tmp_path)
    request = records.read_request(folder)
    now = status.StatusReader(request).read()
    assert now.is_complete
    (folder / "results.csv").unlink()  # as where its driver is killed before it writes them
    said = f"no tables yet; where its command has ended: python -m spatial_eval retry {folder.name}\n"
    assert status.format_status(status.StatusReader(request).read()) == status.format_status(now) + said
    lost = {experiment: experiment.dataset.name for experiment in request.experiments}

    class Reader(status.StatusReader):
        def _read_pass(self, experiment: Experiment) -> object:
            return "its disk is not mounted" if lost[experiment] == "gone" else super()._read_pass(experiment)

    now = Reader(request).read()
    assert dict(now.cells) == {"unknown": 1, "done": 1}
    assert [(one.state, one.questions, one.total) for one in now.passes] == [("unknown", 0, 12), ("done", 12, 12)]
    assert now.left is None
    assert "gone x hashed: unknown, 12 questions in 1 arms, not counted: its disk is not mounted" in (
        status.format_status(now)
    )


def test_a_renamed_class_reads_old_state(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, slots=True)
    class Renamed(ScalingVis):
        pass

    monkeypatch.setitem(routing.METHODS, "scaling_vis", Renamed)
    found = [cell.method for cell in records.read_request(state).cells]
    assert Renamed(0.5, scaling="mass", layers="0-3,5") in found


def test_state_is_small_whatever_the_number_of_questions(tmp_path: Path) -> None:
    sizes = []
    for size in (10, 4000):
        cells = [Cell(Experiment(Drill(size=size), Hashed()), Base())]
        folder = run_cells(cells, tmp_path / str(size))
        sizes.append(sum(path.stat().st_size for path in folder.glob("jobs/**/*.json")))
    assert abs(sizes[1] - sizes[0]) < 100


@pytest.mark.parametrize("mask", [0o002, 0o027])
def test_files_are_created_with_the_users_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        folder = run_cells([Cell(Experiment(Drill(), Hashed()), Base(), Part("all"))], tmp_path / "out")
        snapshot_code(folder / "jobs")
    finally:
        os.umask(before)
    made = list((tmp_path / "out").rglob("*"))
    assert len(made) > 100
    assert [p for p in made if p.stat().st_mode & 0o777 != (0o777 if p.is_dir() else 0o666) & ~mask] == []


def test_a_moved_folder_finds_its_store(swept_drill: Path, tmp_path: Path) -> None:
    moved = swept_drill.parents[1].rename(tmp_path / "elsewhere") / "sweeps" / swept_drill.name
    request = records.read_request(moved)
    assert request.places.output == tmp_path / "elsewhere"
    assert status.StatusReader(request).read().is_complete
    (tmp_path / "link").symlink_to(moved)
    assert records.read_request(tmp_path / "link").places.output == tmp_path / "elsewhere"


def damage(path: Path, **values: object) -> None:
    """Change keys of a request, or of the one in a launch."""
    tree = json.loads(path.read_text())
    tree.get("request", tree).update(values)
    path.write_text(json.dumps(tree))


DAMAGES = [
    (lambda path: damage(path, schema=2), "(its schema is 2, this version of spatial_eval reads 1)"),
    (lambda path: damage(path, methods=[{"kind": "band"}]), "(unknown method.kind 'band'"),
    (lambda path: damage(path, launcher={"kind": ["inline"]}), "(TypeError"),
    (lambda path: damage(path, launcher={"kind": "inline", "slots": 2}), "(unknown key 'launcher.slots'"),
    (lambda path: damage(path, cells=[[7, 0, "all", None]]), "(IndexError"),
    (lambda path: damage(path, cells=[[0, 0, 3, None]]), "(unknown split '3'"),
    (lambda path: damage(path, cells=[[0, 0, "all", 0]]), "(limit=0 is not valid"),
    (lambda path: damage(path, capture="maps"), "(unknown capture 'maps'"),
    (lambda path: damage(path, capture=["map"]), "(unknown capture "),
    (lambda path: damage(path, retry="no"), "(retry=no is not valid; expected true or false)"),
    (lambda path: damage(path, experiments=5), "(TypeError"),
    (lambda path: path.write_text("{"), "(JSONDecodeError"),
    (lambda path: path.write_text("[" * 100_000), "(nested too deeply)"),
    (lambda path: path.write_text(json.dumps({"schema": 1}), "utf-16"), "cannot be read ("),
    (lambda path: path.write_bytes(b"\0" * 100), "cannot be read ("),
    (lambda path: path.write_text("[1]"), "(its schema is None"),
    (lambda path: (path.unlink(), path.mkdir()), "(not a regular file)"),
    (lambda path: (path.unlink(), os.mkfifo(path)), "(not a regular file)"),
    (lambda path: (path.unlink(), path.symlink_to(path)), "was never launched"),
]


@pytest.mark.parametrize(("strike", "says"), DAMAGES, ids=[says for _, says in DAMAGES])
def test_a_request_that_cannot_be_read_is_one_line(strike, says, swept_drill, capsys) -> None:
    strike(swept_drill / "jobs" / "request.json")
    for command in ("status", "retry"):
        assert main([command, str(swept_drill)]) == 1
        said = capsys.readouterr().err
        assert (says in said, said.count("\n")) == (True, 1), said
        assert said.endswith(": run the same command again\n")


@pytest.mark.parametrize(("strike", "says"), DAMAGES[:-1], ids=[says for _, says in DAMAGES[:-1]])
def test_a_launch_that_cannot_be_read_is_one_line_and_stops_nobody_else(strike, says, state, caplog, capsys) -> None:
    (launch,) = records.list_launches(state)
    for path in (launch.folder / "closed", *launch.folder.glob("array-*")):
        path.unlink()
    strike(launch.record)
    cells = [Cell(Experiment(Drill(), Hashed()), Base(), Part("all"))]
    folder = run_cells(cells, state.parents[1])
    assert (folder / "results.csv").is_file()
    lines = [line for line in caplog.messages if "are passed over" in line]
    assert len(lines) == 1
    assert str(launch.folder) in lines[0]
    assert main(["status", str(state)]) == 3
    said = capsys.readouterr().out
    assert f"{launch.record} cannot be read (" in said
    assert main(["cancel", str(state)]) == 3
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert f"error: {launch.record} cannot be read (" in said.err
    assert (launch.folder / "cancelled").exists(), "its jobs stop all the same"


@pytest.mark.parametrize("text", ["{", "[1]", '{"name": "x"}', "\0"])
def test_a_job_array_that_cannot_be_read_is_one_line(text, state, capsys) -> None:
    (launch,) = records.list_launches(state)
    (launch.folder / "closed").unlink()
    (launch.folder / "array-notes.json").write_text("{")  # is none of ours
    (launch.folder / "array-0.json").write_text(text)
    assert main(["status", str(state)]) == 3
    said = capsys.readouterr()
    assert (said.err, f"{launch.folder / 'array-0.json'} cannot be read (" in said.out) == ("", True)
    assert main(["cancel", str(state)]) == 3
    said = capsys.readouterr()
    assert (said.err.count("\n"), said.err.startswith("error: ")) == (1, True)
    assert (launch.folder / "cancelled").exists()


def test_foreign_files_in_a_launch_are_passed_over(state: Path) -> None:
    (launch,) = records.list_launches(state)
    before = AttemptReader(launch).read_attempts()
    path = launch.folder / "t00000.node1-42-1767268800000.json"
    later = launch.folder / "t00000.node9-1-1767268900000.json"
    damage_free = json.loads(path.read_text())
    later.write_text(json.dumps({**damage_free, "pid": 1, "a_key_of_a_later_version": 1, "schema": 2}))
    for name, content in (
        ("b", "{"),
        ("c", "[1]"),
        ("h", "5"),
        ("d", '{"job": 1}'),
        ("e", json.dumps({**damage_free, "pid": "x"})),
    ):
        (launch.folder / f"t00000.{name}-1-1.json").write_text(content)
    (launch.folder / "t00000.f-1-1.json").mkdir()
    os.mkfifo(launch.folder / "t00000.g-1-1.json")
    after = AttemptReader(launch).read_attempts()
    assert [attempt.pid for attempt in after["t00000"]] == [1, 42]  # a later version's attempt still counts
    assert after["t00001"] == before["t00001"]
    (launch.folder / "driver.json").write_text('{"host": 1}')
    assert not launch.is_driven


CLOCKS = [  # a file server's clock against this machine's, the file's age by the server's clock, and what follows
    (0.0, 5.0, True),
    (3600.0, 5.0, True),
    (3600.0, 61.0, False),
    (-3600.0, 5.0, True),
    (-3600.0, 61.0, False),
    (0.0, -600.0, False),  # the clock was set back: what lives says so again in seconds
]


@pytest.mark.parametrize(("ahead", "age", "lives"), CLOCKS)
def test_a_file_servers_clock_ends_no_job_and_keeps_none(ahead, age, lives, tmp_path, monkeypatch) -> None:
    launch = Launch(tmp_path)
    records.write_attempt(launch, "t00000.far-1-1.json", Attempt("t00000", "running", "far", 1, "5"))
    records.write_json(tmp_path / "driver.json", {"host": "far", "pid": 1, "born": "5"})
    now = time.time() + ahead
    for path in tmp_path.iterdir():
        os.utime(path, (now - age, now - age))
    monkeypatch.setattr(records, "read_clock", lambda folder: now)
    (attempt,) = AttemptReader(launch).read_attempts()["t00000"]
    assert (attempt.alive, launch.is_driven) == (lives, lives)


def test_the_clock_is_that_of_the_folders_files(tmp_path) -> None:
    path = tmp_path / "now"
    path.touch()
    assert 0 <= records.read_clock(tmp_path) - path.stat().st_mtime < 30
    assert list(tmp_path.iterdir()) == [path]
    assert abs(records.read_clock(tmp_path / "nowhere") - time.time()) < 30


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 100_000, "it waits for ever"


def test_who_waits_for_anothers_job_says_for_which_and_not_for_ever(tmp_path, monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    clock, launch = Clock(), Launch(tmp_path)
    work = SimpleNamespace(label="quiz x slow")
    shard = Shard(KeyedPass(work, None, 8), range(8), 8)
    queued, runs = (JobState(Job(name, (shard,), Resources()), "pending", None, "7_1") for name in ("t00001", "t00000"))
    runs = replace(runs, state="running", attempt=Attempt("t00000", "running", "node1", 1, ""), slurm="7_0")

    def running(output: Path, own: object) -> object:
        stored = min(int(clock.now // 600), 3)  # something every ten minutes, then nothing
        yield launch, replace(runs, attempt=replace(runs.attempt, done=stored))
        if clock.now < 20_000:
            yield launch, queued

    monkeypatch.setattr(dispatch, "find_running_jobs", running)
    monkeypatch.setattr(dispatch, "time", clock)
    monkeypatch.setattr(records, "time", clock)
    (fault,) = dispatch.await_jobs(tmp_path, {(launch.name, name) for name in ("t00000", "t00001")}, ())
    place = f"quiz x slow [0:8] on node1 (7_0), {tmp_path}/t00000.*"
    assert fault.cause == f"{place}: it stored nothing for 60 minutes; cancel it"
    queue = f"quiz x slow [0:8], not running yet (Slurm job 7_1), {tmp_path}/t00001.*"
    assert caplog.messages[0] == f"waiting for {place}; {queue}"
    assert caplog.messages[-1] == f"waiting for {queue}", "a queue takes the time that it takes"
    assert len(caplog.messages) == 20_000 // 60


def test_who_waits_for_a_pool_that_was_stopped_gives_up(tmp_path, monkeypatch) -> None:
    """Ctrl-Z stops the driver and not its jobs: those that run end, and those that wait never start."""
    clock, launch = Clock(), Launch(tmp_path)
    shard = Shard(KeyedPass(SimpleNamespace(label="quiz x slow"), None, 8), range(8), 8)
    first, second = (JobState(Job(name, (shard,), Resources()), "pending", None) for name in ("t00000", "t00001"))
    runs = replace(first, state="running", attempt=Attempt("t00000", "running", "here", 1, ""))

    def running(output: Path, own: object) -> object:
        if clock.now < 9000:
            yield launch, replace(runs, attempt=replace(runs.attempt, done=int(clock.now // 600)))
        yield launch, second

    monkeypatch.setattr(Launch, "read", lambda _: SimpleNamespace(request=SimpleNamespace(launcher=Inline())))
    monkeypatch.setattr(dispatch, "find_running_jobs", running)
    monkeypatch.setattr(dispatch, "time", clock)
    monkeypatch.setattr(records, "time", clock)
    (fault,) = dispatch.await_jobs(tmp_path, {(launch.name, "t00001")}, ())
    assert "not running yet" in fault.cause
    assert 9000 + dispatch.PATIENCE_S <= clock.now < 9010 + dispatch.PATIENCE_S, "counted from the pool's last answer"


def test_an_earlier_run_of_this_process_is_not_waited_for(tmp_path, monkeypatch) -> None:
    """A notebook whose run could not note its end, say on a full disk, lives on."""
    cells = [Cell(Experiment(Drill(), Hashed()), Base(), Part("all"))]
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "compute_shards", lambda *_: None)
        patch.setattr(Launch, "mark", lambda *_: None)
        assert sweep_run.run_request(*ordered(cells, tmp_path)) == sweep_run.INCOMPLETE
    assert [entry.state for _, entry in status.find_running_jobs(tmp_path)] == ["running"]
    monkeypatch.delattr(dispatch, "await_jobs")
    run_cells(cells, tmp_path)


def test_an_attempt_that_cannot_be_read_for_a_moment_still_runs(tmp_path, monkeypatch) -> None:
    launch = Launch(tmp_path)
    records.write_attempt(launch, "t00000.a-1-1.json", Attempt("t00000", "running", "far", 1, "5"))
    reader = AttemptReader(launch)
    before = reader.read_attempts()
    os.utime(tmp_path / "t00000.a-1-1.json", (time.time() - 1, time.time() - 1))
    with monkeypatch.context() as patch:
        patch.setattr(records, "read_json", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        assert list(reader.read_attempts()) == ["t00000"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda _: (_ for _ in ()).throw(OSError(116, "Stale file handle")))
        assert list(reader.read_attempts()) == list(before) == ["t00000"]


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return (os.mkdir, (str(self.mark),))


def plant(sweep: Path, mark: Path) -> None:
    """Every older form of job state, each of which would run code."""
    for name in OLD_FORMS:
        (sweep / name).parent.mkdir(parents=True, exist_ok=True)
        (sweep / name).write_bytes(pickle.dumps(Bomb(mark)))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What a planted pickle makes."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "works")))
    assert (tmp_path / "works").is_dir(), "the bomb works"
    return tmp_path / "mark"


@pytest.mark.parametrize("command", ["status", "retry", "cancel"])
@pytest.mark.parametrize("kept", [OLD_FORMS, OLD_FORMS[1:2]], ids=["all", "only the jobs"])
def test_a_sweep_of_0_1_is_not_opened(kept, command, tmp_path, mark, capsys) -> None:
    folder = tmp_path / "out" / "sweeps" / "0123456789ab"
    plant(folder, mark)
    for name in set(OLD_FORMS) - set(kept):
        (folder / name).unlink()
    for name in (
        [str(folder)],
        ["0123", "--output-dir", str(tmp_path / "out")],
        ["--output-dir", str(tmp_path / "out")],
    ):
        assert main([command, *name]) == 1
        assert capsys.readouterr().err == "error: sweep 0123456789ab: launched by 0.1: run the same command again\n"
    assert not mark.exists()


def test_no_command_opens_a_planted_pickle(swept_drill, tmp_path, mark, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = swept_drill.parents[1]
    plant(output / "sweeps" / "0123456789ab", mark)
    plant(swept_drill, mark)  # beside state that is read
    (trunk,) = (output / "generations").iterdir()
    for command in (
        *(["status"], ["retry"], ["cancel"], ["show"], ["report"], ["select"], ["publish"], ["attention"]),
        *(["compare", "method=base", "method=base"], ["export", "--out", "exported"], ["status", swept_drill.name]),
        *(["store", "verify"], ["store", "size"], ["store", "rm", trunk.name, "--yes"], ["doctor", "--help"]),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pickle, "loads", None)
            patch.setattr(pickle, "load", None)
            try:
                code = main([*command, "--output-dir", str(output)])
            except SystemExit as end:
                code = int(end.code or 0)
        assert code in (0, 1, 2, 3), command
        assert not mark.exists(), command
    capsys.readouterr()


def test_a_new_launch_beside_planted_pickles_opens_none(tmp_path, mark, launch, experiment) -> None:
    plant(tmp_path / "out" / "sweeps" / "0123456789ab", mark)
    done = launch(*experiment)
    assert done.returncode == 0, done.stderr
    plant(Path(done.stdout.splitlines()[-1]).parent, mark)
    for more in (["method=scaling_vis", "weight=0.5"], ["launcher=local", "launcher.slots=1", "method=dola"]):
        assert launch(*experiment, *more).returncode in (0, 1)
    assert launch(*experiment).returncode == 0
    assert not mark.exists()


def test_a_class_without_a_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    @dataclass(frozen=True, slots=True)
    class Nameless(Drill):
        pass

    with pytest.raises(ConfigError, match=r"Nameless has no name in spatial_eval.benchmarks, by which jobs find it"):
        run_cells([Cell(Experiment(Nameless(), Hashed()), Base())], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_description_that_no_job_could_build_is_refused(tmp_path: Path) -> None:
    """A field that the class turned into what its own annotation does not allow."""
    odd = Scenes("scenes_a", "scenes_a", seed=1.5)  # type: ignore[arg-type]
    cell = Cell(Experiment(odd, MODELS["imported"]), Base())
    (work,) = fuse_cells([cell])
    target = KeyedPass(work, ExperimentKey("a--b", {}), 1)
    folder, places = tmp_path / "sweeps" / "0123456789ab", Places(tmp_path, tmp_path)
    publication = Publication((cell,), {}, TrackedFiles())
    request = SweepRequest(folder, places, Inline(), {}, False, "none", publication, {work.experiment: target})
    with pytest.raises(ConfigError, match=r"dataset\.seed=1\.5 is not valid; expected int"):
        request.save()
    assert not folder.exists()


def test_a_launch_whose_file_vanished_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"launch\.json cannot be read \(No such file or directory\): run the same"):
        Launch(tmp_path).read()
