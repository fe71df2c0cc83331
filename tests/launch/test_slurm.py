"""A real Slurm cluster: submission, environment, snapshot, arrays, coming back later."""

from __future__ import annotations

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit
from conftest import PLANTED, ROOT, SECRET, files_with, questions, recordings, write_lines
from questions import saved
from trials.cluster import Cluster
from trials.settings import QUICK
from trials.trial import Trial
from trials.waiting import wait_for

from spatial_eval.config import schema
from spatial_eval.config.launchers import LAUNCHERS, Resources, Slurm
from spatial_eval.core.errors import ConfigError, StoreError
from spatial_eval.launch import array_task, code_snapshot, slurm
from spatial_eval.launch.array_task import ArrayTask
from spatial_eval.launch.records import Attempt, AttemptReader, Job, KeyedPass, Launch, Shard


@pytest.fixture
def trials(tmp_path: Path) -> Iterator[Callable[..., Trial]]:
    """`trials(pause=2)`: ended before the cluster is tidied up."""
    made: list[Trial] = []

    def make(*launcher: str, **options: int) -> Trial:
        made.append(Trial(tmp_path, *QUICK, *launcher, seconds=0.1, **options))
        return made[-1]

    yield make
    for trial in made:
        trial.close()


@pytest.fixture
def trial(trials: Callable[..., Trial]) -> Trial:
    return trials()


WRONG = [
    ({"partitoin": "x"}, "unknown key 'launcher.partitoin'; did you mean launcher.partition?"),
    ({"time": 0}, "launcher.time=0 is not valid; expected a whole number >= 1"),
    ({"time": "1:00"}, "launcher.time=1:00 is not valid; expected int"),
    ({"memory": 16}, "launcher.memory=16 is not valid; expected text"),
    ({"max_array": 0}, "launcher.max_array=0 is not valid"),
    ({"poll": 0.0}, "launcher.poll=0 is not valid; expected 0.1 to 3600 seconds"),
    ({"extra": {"array": "1-3"}}, "launcher.extra.array cannot be set"),
    ({"partition": "gpu\n#SBATCH --uid=0"}, "launcher.partition='gpu\\n#SBATCH --uid=0' holds a line break"),
    ({"setup": ["module load cuda", "a\x1bb"]}, "launcher.setup[1]='a\\x1bb' holds a line break or another"),
    ({"python": "python3\r"}, "launcher.python='python3\\r' holds a line break"),
    ({"environment": ["A\0"]}, "launcher.environment[0]='A\\x00' holds a line break"),
    ({"extra": {"nice": ["1\n2"]}}, "launcher.extra.nice[0]='1\\n2' holds a line break"),
    ({"extra": {"nice\n": 1}}, "a name in launcher.extra='nice\\n' holds a line break"),
    ({"extra": {"job_name": "x"}}, "launcher.extra.job_name cannot be set"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=[message for _, message in WRONG])
def test_launcher_keys_are_checked(values, message) -> None:
    with pytest.raises(ConfigError) as caught:
        schema.build_by_kind(LAUNCHERS, {"kind": "slurm", **values}, "launcher")
    assert message in str(caught.value)


def test_what_a_job_asks_for(monkeypatch) -> None:
    for name in PLANTED:
        monkeypatch.setenv(name, SECRET)
    named = tuple(PLANTED)
    launcher = Slurm(partition="long", account="me", setup=("module load cuda",), extra={"nice": 5}, environment=named)
    launcher = replace(launcher, memory="8G")
    made = slurm.make_sbatch_parameters(launcher, Resources(gpus=2, time=30), "name", Path("/code"), at_once=7)
    assert (made["partition"], made["account"], made["gpus_per_node"], made["time"]) == ("long", "me", 2, 30)
    assert (made["array_parallelism"], made["cpus_per_task"]) == (7, 4)
    assert made["additional_parameters"]["nice"] == 5
    assert made["additional_parameters"]["mem"] == "8G"
    assert made["additional_parameters"]["chdir"] == "/code"
    assert made["setup"][1:3] == ["set -e", "module load cuda"], "a line that fails ends the job"
    assert made["additional_parameters"]["requeue"] is True  # else a preempted job is gone, whatever the site says
    assert "--cpus-per-task=4" in made["srun_args"]  # srun forgets it from Slurm 22.05 on
    assert "qos" not in made
    assert "MY_VAR" in made["additional_parameters"]["export"].split(",")
    assert SECRET not in str(made)
    assert "TOKEN" not in made["additional_parameters"]["export"]


def task(name: str = "t00000") -> Job:
    work = SimpleNamespace(label="quiz x slow")
    return Job(name, (Shard(KeyedPass(work, None, 8), range(8), 8),), Resources())  # type: ignore[arg-type]


def run(state: str, *errors: str, **flags: bool) -> Attempt:
    return Attempt("t00000", state, "elsewhere", 1, "", errors=errors, slurm="7_0", **flags)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "PREEMPTED", "BOOT_FAIL"])
def test_a_job_that_slurm_ended_may_be_tried_again(state, tmp_path) -> None:
    fault, again = slurm.explain_end(
        Launch(tmp_path), task(), [run("running")], slurm.ArrayElement("7_0", state, "node1")
    )
    more = " before the first answer: raise launcher.time (or model.resources.time)" if state == "TIMEOUT" else ""
    assert fault.cause == f"quiz x slow [0:8]: Slurm ended job 7_0 as {state}{more}"
    assert fault.log == str(tmp_path / "slurm" / "7_0_0_log.err")
    assert again


def test_a_cancelled_or_vanished_job_is_not_tried_again(tmp_path, monkeypatch) -> None:
    launch = Launch(tmp_path)
    fault, again = slurm.explain_end(launch, task(), [], slurm.ArrayElement("7_0", "CANCELLED", ""))
    assert (fault.cause, again) == ("quiz x slow [0:8]: job 7_0 was cancelled", False)
    monkeypatch.setattr(slurm, "read_accounting_state", lambda job: "")
    fault, again = slurm.explain_end(launch, task(), [run("running")], None)
    assert (fault.cause, again) == ("quiz x slow [0:8]: Slurm does not know the job any more; cancelled or lost", False)
    monkeypatch.setattr(slurm, "read_accounting_state", lambda job: "OUT_OF_MEMORY")
    fault, again = slurm.explain_end(launch, task(), [run("running")], None)
    assert (fault.cause, again) == ("quiz x slow [0:8]: Slurm ended job 7_0 as OUT_OF_MEMORY", True)


def test_a_job_that_cannot_load_its_model_is_not_tried_again(tmp_path) -> None:
    said = run("failed", "quiz x slow: cannot load x", needs_fix=True)
    fault, again = slurm.explain_end(Launch(tmp_path), task(), [said], None)
    assert (fault.cause, fault.needs_fix, again) == ("quiz x slow: cannot load x", True, False)
    fault, again = slurm.explain_end(Launch(tmp_path), task(), [run("failed", "no such kernel", again=True)], None)
    assert (fault.needs_fix, again) == (False, True)


class Controller:
    """A controller that holds a job whenever it is looked at."""

    def __init__(self) -> None:
        self.released: list[str] = []
        self.ended: list[str] = []

    def list_elements(self, launch: Launch) -> dict[str, slurm.ArrayElement]:
        held = slurm.ArrayElement("7_0", "PENDING", "", "launch failed requeued held")
        return {} if self.ended else {"t00000": held}

    def run_command(self, *command: str) -> list[str]:
        *words, job = command
        {"scontrol release": self.released, "scancel": self.ended}[" ".join(words)].append(job)
        return []


def test_a_job_that_slurm_holds_is_released_and_then_given_up(tmp_path, monkeypatch) -> None:
    fake = Controller()
    monkeypatch.setattr(slurm, "list_elements", fake.list_elements)
    monkeypatch.setattr(slurm, "_run_command", fake.run_command)
    queue = slurm.SlurmQueue(Launch(tmp_path), Slurm(retries=1, poll=0.1), tmp_path)
    (fault,) = queue.wait([task()])
    assert fake.released == ["7_0", "7_0"]
    assert fake.ended == ["7_0"]
    assert fault.cause == "quiz x slow [0:8]: Slurm could not start job 7_0 (launch failed requeued held)"


def test_a_job_that_said_why_it_failed_is_believed(tmp_path) -> None:
    ended = slurm.ArrayElement("7_0", "FAILED", "node1")
    words = [run("failed", "quiz x slow: no weights", again=False)]
    fault, again = slurm.explain_end(Launch(tmp_path), task(), words, ended)
    assert (fault.cause, again) == ("quiz x slow: no weights", False)


class Starts:
    """Starts of an array task in a row, each interrupted after a time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.clock = folder, 0.0
        monkeypatch.setattr(array_task, "time", SimpleNamespace(monotonic=lambda: self.clock, time=lambda: self.clock))
        environment = SimpleNamespace(job_id="7_0", paths=SimpleNamespace(stderr=folder / "7_0_0_log.err"))
        monkeypatch.setattr(submitit, "JobEnvironment", lambda: environment)
        self.words: tuple[object, ...] = ("t00000", "quiz x slow [0:8]")

    def interrupt(self, seconds: float, computed: int = 0) -> bool:
        """Whether the job is queued again."""
        task = pickle.loads(pickle.dumps(ArrayTask(str(self.folder), usable=1000.0)))
        task._child = SimpleNamespace(pid=42)
        (self.folder / "t00000.host-42-1.json").write_text(json.dumps({"computed": computed}))
        self.clock += seconds
        queued = task.checkpoint(*self.words)
        self.words = queued.args if queued else ()
        return queued is not None


def test_an_array_whose_name_no_command_can_take_is_a_line(tmp_path) -> None:
    (tmp_path / "array-0.json").write_text(json.dumps({"name": "n-\0", "jobs": ["t00000"], "id": "17"}))
    with pytest.raises(StoreError, match=r"array-0\.json cannot be read .its name or id holds a control character"):
        slurm.list_arrays(Launch(tmp_path))


def test_arrays_that_cannot_be_listed_are_an_error_and_no_job_is_lost(tmp_path, monkeypatch) -> None:
    """No array would mean that no job was submitted; a task that cannot look at its folder is queued again."""
    starts = Starts(tmp_path, monkeypatch)
    (tmp_path / "array-0.json").write_text(json.dumps({"name": "n", "jobs": ["t00000"], "id": "17"}))
    launch = Launch(tmp_path)
    assert [array.id for array in slurm.list_arrays(launch)] == ["17"]
    monkeypatch.setattr(os, "scandir", lambda _: (_ for _ in ()).throw(OSError(116, "Stale file handle")))
    with pytest.raises(StoreError, match="Stale file handle"):
        slurm.list_arrays(launch)
    assert starts.interrupt(60)


def test_two_time_limits_without_an_answer_are_enough(tmp_path, monkeypatch) -> None:
    starts = Starts(tmp_path, monkeypatch)
    assert starts.interrupt(1000)
    assert not starts.interrupt(1000)
    (said,) = AttemptReader(Launch(tmp_path)).read_attempts()["t00000"]
    fault, again = slurm.explain_end(Launch(tmp_path), task(), [said], None)
    assert fault.cause == (
        "quiz x slow [0:8]: interrupted 2 times before the first answer: raise launcher.time (or model.resources.time)"
    )
    assert not again


def test_quick_preemptions_while_a_model_loads_are_no_failure(tmp_path, monkeypatch) -> None:
    starts = Starts(tmp_path, monkeypatch)
    os.mkfifo(tmp_path / "t00000.host-42-0.json")  # is not opened
    assert all(starts.interrupt(60) for _ in range(5))
    assert starts.interrupt(1000), "one time limit"
    assert starts.interrupt(1000, computed=1), "it got somewhere"
    assert starts.interrupt(1900)
    assert not starts.interrupt(100)


def test_what_submitit_pickles_is_light() -> None:
    code = (
        "import spatial_eval.launch.array_task, sys; "
        "print(*sorted(m for m in sys.modules if m.startswith('spatial_eval')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    light = {f"spatial_eval.core.{name}" for name in ("errors", "files", "terminal", "version")}
    light |= {"spatial_eval", "spatial_eval.core"}
    assert set(done.stdout.split()) == light | {"spatial_eval.launch", "spatial_eval.launch.array_task"}


def test_no_key_is_ever_passed_on() -> None:
    environ = {"PATH": "x", "HOME": "y", "LC_ALL": "C", "WANDB_API_KEY": "1", "HF_TOKEN": "2", "MY_VAR": "3", "DB": "4"}
    assert code_snapshot.allowed_variables(environ) == ["HOME", "LC_ALL", "PATH"]
    assert code_snapshot.allowed_variables(environ, ["MY_VAR", "HF_TOKEN"]) == ["HOME", "LC_ALL", "MY_VAR", "PATH"]
    token, absent = code_snapshot.explain_dropped(environ, ["MY_VAR", "HF_TOKEN", "LC_*", "GONE"])
    assert token.startswith("launcher.environment: HF_TOKEN is not passed on: it is called as a secret is")
    assert absent == "launcher.environment: GONE is not set here: jobs do not get it"


def test_without_slurm_one_line_says_so(trial) -> None:
    done = trial.launch(env={"PATH": "/nowhere"})
    assert done.code == 1
    assert "error: launcher=slurm but sbatch and srun are not on PATH" in done.err
    assert not trial.output.exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a%b", "holds % or"),
        ("a\\b", "holds % or"),
        ("a\nb", "holds a line break"),
        ("a\x1b[2Jb", "holds a line break"),
    ],
)
def test_a_folder_that_slurm_would_change_is_refused(name, says, monkeypatch) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda command: command)
    slurm.check_slurm(Path("/out/sweeps/0123"))
    with pytest.raises(ConfigError, match=says):
        slurm.check_slurm(Path("/") / name / "sweeps" / "0123")


LOGS = [
    ("bash: line 1: /no/python: No such file\nslurmstepd: error\n", "bash: line 1: /no/python: No such file"),
    ("\n\x1b[31mred\x07\n", "[31mred"),
    (f"Lmod warns\n{slurm.SETUP_FAILED}: module load x\n", f"{slurm.SETUP_FAILED}: module load x"),
    ("Traceback (most recent call last):\n  x\nImportError: no torch\n", "ImportError: no torch"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "line"), LOGS, ids=[line for _, line in LOGS])
def test_the_log_says_why_a_job_never_started(text, line, tmp_path) -> None:
    path = slurm.log_path(Launch(tmp_path), "7_0")
    path.parent.mkdir()
    path.write_text(text)
    fault, _ = slurm.explain_end(Launch(tmp_path), task(), [], slurm.ArrayElement("7_0", "FAILED", "node1"))
    assert fault.cause == "quiz x slow [0:8]: Slurm ended job 7_0 as FAILED before it started" + (
        f": {line}" if line else ", and its log is empty"
    )


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir], ids="pzd")
def test_a_log_that_is_no_file_is_not_opened(make, tmp_path) -> None:
    make(tmp_path / "log")
    assert slurm.read_log_cause(tmp_path / "log") == ""


class Site:
    """A site that takes `room` jobs at once, in arrays of at most 5; `own`: jobs that the user has there."""

    def __init__(self, room: int, own: int = 0) -> None:
        self.room, self.own = room, own
        self.arrays: list[int] = []
        self.tries = 0

    def submit(self, jobs: Sequence[Job], at_once: int) -> None:
        self.tries += 1
        if self.own + len(jobs) > self.room:
            raise slurm.NoRoom("sbatch refused the jobs: sbatch: error: AssocMaxSubmitJobLimit")
        self.own += len(jobs)
        self.arrays.append(len(jobs))


@pytest.fixture
def site(monkeypatch) -> Site:
    made = Site(room=6)
    monkeypatch.setattr(slurm.SlurmQueue, "_submit_array", made.submit)
    monkeypatch.setattr(slurm, "count_own_jobs", lambda: made.own)
    monkeypatch.setattr(slurm, "read_array_limit", lambda: 5)
    return made


def test_what_the_site_has_no_room_for_waits_and_is_submitted_as_room_comes(site, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    jobs = [task(f"t{index:05d}") for index in range(12)]
    queue = slurm.SlurmQueue(Launch(tmp_path), Slurm(), tmp_path)
    queue.submit(jobs)
    assert site.arrays == [5, 1]
    assert "arrays of at most 5 jobs: the site's MaxArraySize" in caplog.messages
    open_jobs = {job.name: job for job in jobs}
    tries = site.tries
    queue._fill_queue([], open_jobs)
    assert site.tries == tries, "nothing ended: sbatch is not asked"
    site.own -= 2
    queue._fill_queue([], open_jobs)
    assert site.arrays[2:] == [2]
    site.own = 0
    queue._fill_queue([], open_jobs)
    assert (sum(site.arrays), queue.waiting, queue.failures) == (12, [], [])


@pytest.mark.parametrize("wait", [True, False])
def test_the_first_array_waits_where_own_jobs_fill_the_queue_and_is_refused_where_none_do(
    wait, site, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(slurm.SlurmQueue, "wait", lambda self, jobs: list(self.waiting))
    jobs, launcher = [task()], Slurm(wait=wait)
    site.room = site.own = 6
    done = slurm.run_on_slurm(Launch(tmp_path / "launch"), jobs, launcher, tmp_path)
    assert done == ((jobs, 0, 0) if wait else ([], 0, 1))
    site.room = site.own = 0
    with pytest.raises(ConfigError, match="sbatch refused the jobs: sbatch: error: AssocMaxSubmitJobLimit"):
        slurm.run_on_slurm(Launch(tmp_path / "launch"), jobs, launcher, tmp_path)


@pytest.mark.slurm
def test_a_limit_on_submitted_jobs_is_kept(cluster: Cluster, trials) -> None:
    """Six of eight jobs at once: 2 are counted, and wait for room where the command waits."""
    trial = trials("launcher.account=crowded", "launcher.shards=8")
    assert slurm.read_array_limit() == 1001
    done = trial.launch("launcher.wait=false", "launcher.extra={hold: true}")
    assert done.code == 3, done
    assert "2 not submitted: run the same command when there is room" in done.err
    assert "sbatch: error" not in [line[:13] for line in done.err.splitlines()]
    assert len(cluster.states()) == 6
    assert "6 pending, 2 not submitted (no driver)" in trial.cli("status").out
    rest = trial.start()
    assert trial.heard(rest, "jobs wait to be submitted: sbatch refused the jobs: sbatch: error: AssocMaxSubmit")
    for array in {job.partition("_")[0] for job in cluster.states()}:
        cluster.ask("scontrol", "release", array)
    done = trial.end(rest)
    assert done.code == 0, done
    assert trial.results() == trial.expected()
    assert trial.twice() == 0


@pytest.mark.slurm
def test_one_command_ends_complete_under_a_limit_on_submitted_jobs(cluster, trials) -> None:
    trial = trials("launcher.account=crowded", "launcher.shards=8")
    done = trial.launch()
    assert done.code == 0, done
    assert "2 jobs wait to be submitted" in done.err
    assert trial.results() == trial.expected()
    assert trial.twice() == 0


@pytest.mark.slurm
def test_a_time_limit_that_is_too_short_is_named(cluster, trials) -> None:
    trial = trials("launcher.shards=1", "launcher.time=1", "launcher.retries=0", "model.load_seconds=600")
    done = trial.launch()
    assert done.code == 3, done
    assert "interrupted 2 times before the first answer: raise launcher.time" in done.err
    assert len(trial.runs()) == 3, "two starts, and what is said of them"


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("launcher.python=/no/such/python", "/no/such/python: No such file or directory"),
        ("launcher.setup=['true','ls /no/such/module']", f"{slurm.SETUP_FAILED}: ls /no/such/module"),
    ],
    ids=["python", "setup"],
)
def test_a_job_that_cannot_start_says_why(setting, says, cluster, trials) -> None:
    done = trials("launcher.shards=1", "launcher.retries=0", setting).launch()
    assert done.code == 3, done
    (line,) = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert "as FAILED before it started: " in line
    assert says in line


@pytest.mark.slurm
def test_slurm_gives_what_one_process_gives(cluster, launch, tmp_path) -> None:
    names = []
    for name in ("quiz", "exam"):
        rows = questions(40)
        names.append(write_lines(tmp_path / f"{name}.jsonl", rows))
        write_lines(tmp_path / "recorded" / f"{name}.jsonl", recordings(rows, name, seed=len(names)))
    grid = [
        *("-m", "dataset=jsonl", f"dataset.path={names[0]},{names[1]}", "model=recorded"),
        *(f"model.path={tmp_path / 'recorded'}", "model.name=one,two", "model.paper_model=''"),
        *("method=base,scaling_vis,adapt_vis", "weight=0.5,0.8", "threshold=0.3,0.5", "weight2=1.5,2.0"),
    ]
    inline = launch(*grid, f"output_dir={tmp_path / 'inline'}")
    queued = launch(*grid, *QUICK, "launcher.max_array=4")
    assert inline.returncode == queued.returncode == 0, queued.stderr
    first, second = (Path(done.stdout.splitlines()[-1]) for done in (inline, queued))
    assert first.read_bytes() == second.read_bytes()
    with first.open() as file:
        assert len(list(csv.DictReader(file))) == 4 * (1 + 2 + 4)
    arrays = sorted(tmp_path.glob("out/sweeps/*/jobs/2*/array-*.json"))
    assert len(arrays) == 2, "6 jobs in arrays of at most 4"


@pytest.mark.slurm
def test_a_real_model_gives_the_same_bytes_everywhere(cluster, launch, tmp_path) -> None:
    grid = [
        *("-m", "dataset=scenes_a,scenes_b", "model=hf", f"model.path={saved('llava')}", "model.name=one,two"),
        *("model.dtype=float32", "model.batch_size=2", "limit=4", "max_new_tokens=4"),
        *("method=base,scaling_vis,adapt_vis", "weight=0.5,1.5", "threshold=0.1,0.6"),
    ]
    fixed = {"OMP_NUM_THREADS": "1"}
    found = []
    for launcher in (
        ["launcher=inline"],
        ["launcher=local", "launcher.slots=2", "launcher.shards=1"],
        [*QUICK, "launcher.shards=2"],
    ):
        done = launch(*grid, *launcher, f"output_dir={tmp_path / launcher[0].partition('=')[2]}", env=fixed)
        assert done.returncode == 0, done.stderr
        found.append(Path(done.stdout.splitlines()[-1]).read_bytes())
    assert found[0] == found[1] == found[2]
    assert len(found[0].splitlines()) == 1 + 4 * (1 + 2 + 2)


@pytest.mark.slurm
def test_queued_jobs_hold_no_secret_and_run_the_code_they_were_submitted_with(cluster: Cluster, trial) -> None:
    command = ["launcher.wait=false", "launcher.extra={hold: true}", "launcher.setup=['export MARK=set']"]
    done = trial.launch(*command, env={**PLANTED, "SBATCH_EXPORT": "ALL"})
    assert done.code == 0, done
    (sweep,) = trial.output.glob("sweeps/*")
    assert done.out.splitlines()[-1] == sweep.name
    assert set(cluster.states().values()) == {"PENDING"}
    kept = [path for path in cluster.folder.glob("state/**/*") if path.is_file()]
    assert any("environment" in path.name for path in kept)
    assert files_with(cluster.folder / "state") == files_with(trial.output) == []
    scripts = [path.read_text() for path in sweep.glob("jobs/*/slurm/*.sh")]
    assert scripts
    assert all("module" not in text and "export MARK=set" in text for text in scripts)
    state = trial.cli("status", sweep.name[:6])
    assert state.code == 3
    assert "jobs 3 pending (no driver)" in state.out

    again = trial.launch("launcher.wait=false")
    assert again.code == 0
    assert len(cluster.states()) == 3, "what is queued was submitted again"

    (array,) = {job.partition("_")[0] for job in cluster.states()}
    cluster.ask("scontrol", "release", array)
    collected = trial.launch("launcher.wait=true")
    assert collected.code == 0, collected
    assert trial.results() == trial.expected()
    assert trial.twice() == 0
    runs = trial.runs()
    assert len(runs) == 3
    assert all(run.code.startswith(str(sweep)) for run in runs)
    assert all(run.devices in {"0", "1", "2", "3"} for run in runs)


@pytest.mark.slurm
def test_a_refused_submission_is_one_line(cluster, trial) -> None:
    done = trial.launch("launcher.partition=nope")
    assert done.code == 1, done
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "sbatch refused the jobs" in line
    assert "invalid partition" in line.lower()
    assert not cluster.states()
    assert trial.launch().code == 0
    assert trial.results() == trial.expected()


@pytest.mark.slurm
def test_the_same_command_again_submits_nothing_that_runs(cluster, trials) -> None:
    trial = trials(pause=2)
    first = trial.start()
    trial.struck(least=1)
    second = trial.start()
    assert trial.heard(second, "are being computed by jobs that run already")
    assert trial.end(second).code == 0
    assert trial.end(first).code == 0
    assert trial.twice() == 0
    assert trial.results() == trial.expected()


@pytest.mark.slurm
def test_a_thousand_elements_are_one_submission(cluster: Cluster, trials) -> None:
    trial = trials("launcher.shards=1000", "launcher.extra={hold: true}", "launcher.wait=false", n=1000)
    done = trial.launch()
    assert done.code == 0, done
    (launch,) = trial.launches()
    assert [len(array.jobs) for array in slurm.list_arrays(launch)] == [1000]
    assert len(cluster.states()) == 1000
    stopped = trial.cli("cancel")
    assert stopped.code == 0, stopped
    assert not cluster.states()
    assert "1,000 cancelled" in trial.cli("status").out


@pytest.mark.slurm
def test_ctrl_c_leaves_the_jobs_to_the_queue(cluster, trials) -> None:
    trial = trials(pause=2)
    process = trial.start()
    trial.struck(least=1)
    os.kill(process.pid, signal.SIGINT)
    assert trial.heard(process, "the jobs go on in Slurm's queue")
    assert process.wait(60) == 3
    assert "RUNNING" in cluster.states().values()
    again = trial.start_cli("retry")
    assert trial.heard(again, "are being computed by jobs that run already")
    assert trial.end(again).code == 0
    assert trial.results() == trial.expected()
    assert trial.twice() == 0


@pytest.mark.slurm
def test_cancel_ends_running_jobs(cluster, trials) -> None:
    trial = trials(pause=2)
    process = trial.start()
    run = trial.struck(least=1)
    assert cluster.state(run.slurm) == "RUNNING"
    assert trial.start_cli("cancel").wait(60) == 0
    assert trial.end(process).code == 3
    wait_for(lambda: not cluster.states(), "the queue to be empty")


@pytest.mark.slurm
def test_squeue_without_an_answer_is_no_verdict(cluster, trial, monkeypatch) -> None:
    def refuse(*command: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("squeue", 1)

    done = trial.launch("launcher.wait=false", "launcher.extra={hold: true}")
    assert done.code == 0
    (launch,) = trial.launches()
    assert len(slurm.list_elements(launch) or {}) == 3
    monkeypatch.setattr(subprocess, "run", refuse)
    assert slurm.list_elements(launch) is None
