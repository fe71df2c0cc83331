"""A real Slurm cluster: submission, environment, snapshot, arrays, coming back later."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, questions, recordings, write_lines
from questions import saved
from trials.cluster import Cluster
from trials.settings import QUICK
from trials.trial import Trial
from trials.waiting import wait_for

from spatial_eval.config import schema
from spatial_eval.config.launchers import LAUNCHERS, Resources, Slurm
from spatial_eval.core.errors import ConfigError
from spatial_eval.launch import code_snapshot, slurm
from spatial_eval.launch.array_task import IDLE, ArrayTask
from spatial_eval.launch.records import Attempt, Job, KeyedPass, Launch, Shard


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    made = Trial(tmp_path, *QUICK, seconds=0.1)
    yield made
    made.close()


WRONG = [
    ({"partitoin": "x"}, "unknown key 'launcher.partitoin'; did you mean launcher.partition?"),
    ({"time": 0}, "launcher.time=0 is not valid; expected a whole number >= 1"),
    ({"time": "1:00"}, "launcher.time=1:00 is not valid; expected int"),
    ({"memory": 16}, "launcher.memory=16 is not valid; expected text"),
    ({"max_array": 0}, "launcher.max_array=0 is not valid"),
    ({"poll": 0.0}, "launcher.poll=0 is not valid; expected 0.1 to 3600 seconds"),
    ({"extra": {"array": "1-3"}}, "launcher.extra.array cannot be set"),
    ({"extra": {"job_name": "x"}}, "launcher.extra.job_name cannot be set"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=[message for _, message in WRONG])
def test_launcher_keys_are_checked(values, message) -> None:
    with pytest.raises(ConfigError) as caught:
        schema.build_by_kind(LAUNCHERS, {"kind": "slurm", **values}, "launcher")
    assert message in str(caught.value)


def test_what_a_job_asks_for() -> None:
    launcher = Slurm(partition="long", account="me", setup=("module load cuda",), extra={"nice": 5}, memory="8G")
    made = slurm.sbatch_parameters(launcher, Resources(gpus=2, time=30), "name", Path("/code"), at_once=7)
    assert (made["partition"], made["account"], made["gpus_per_node"], made["time"]) == ("long", "me", 2, 30)
    assert (made["array_parallelism"], made["cpus_per_task"]) == (7, 4)
    assert made["additional_parameters"]["nice"] == 5
    assert made["additional_parameters"]["mem"] == "8G"
    assert made["additional_parameters"]["chdir"] == "/code"
    assert made["setup"][0] == "module load cuda"
    assert made["additional_parameters"]["requeue"] is True  # else a preempted job is gone, whatever the site says
    assert "--cpus-per-task=4" in made["srun_args"]  # srun forgets it from Slurm 22.05 on
    assert "qos" not in made


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
    assert fault.cause == f"quiz x slow [0:8]: Slurm ended job 7_0 as {state}"
    assert fault.log == str(tmp_path / "slurm" / "7_0_0_log.err")
    assert again


def test_a_cancelled_or_vanished_job_is_not_tried_again(tmp_path, monkeypatch) -> None:
    launch = Launch(tmp_path)
    fault, again = slurm.explain_end(launch, task(), [], slurm.ArrayElement("7_0", "CANCELLED", ""))
    assert (fault.cause, again) == ("quiz x slow [0:8]: job 7_0 was cancelled", False)
    monkeypatch.setattr(slurm, "accounting_state", lambda job: "")
    fault, again = slurm.explain_end(launch, task(), [run("running")], None)
    assert (fault.cause, again) == ("quiz x slow [0:8]: Slurm does not know the job any more; cancelled or lost", False)
    monkeypatch.setattr(slurm, "accounting_state", lambda job: "OUT_OF_MEMORY")
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

    def release_job(self, job: str) -> bool:
        self.released.append(job)
        return True

    def cancel_job(self, job: str) -> bool:
        self.ended.append(job)
        return True


def test_a_job_that_slurm_holds_is_released_and_then_given_up(tmp_path, monkeypatch) -> None:
    fake = Controller()
    for name in ("list_elements", "release_job", "cancel_job"):
        monkeypatch.setattr(slurm, name, getattr(fake, name))
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


def test_a_job_that_never_gets_anywhere_is_not_queued_for_ever(tmp_path) -> None:
    element = ArrayTask(str(tmp_path))
    idle = 0
    for _ in range(IDLE - 1):
        idle = element.checkpoint("t00000", idle).kwargs["idle"]
    assert element.checkpoint("t00000", idle) is None

    class Child:
        pid = 42

    element._child = Child()  # type: ignore[assignment]
    (tmp_path / "t00000.host-42-1.json").write_text('{"computed": 3}')
    assert element.checkpoint("t00000", idle).kwargs["idle"] == 0


def test_what_submitit_pickles_is_light() -> None:
    code = (
        "import spatial_eval.launch.array_task, sys; "
        "print(*sorted(m for m in sys.modules if m.startswith('spatial_eval')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    light = {"spatial_eval", "spatial_eval.core", "spatial_eval.core.version"}
    assert set(done.stdout.split()) == light | {"spatial_eval.launch", "spatial_eval.launch.array_task"}


def test_no_key_is_ever_passed_on() -> None:
    environ = {"PATH": "x", "HOME": "y", "LC_ALL": "C", "WANDB_API_KEY": "1", "HF_TOKEN": "2", "MY_VAR": "3", "DB": "4"}
    assert code_snapshot.allowed_variables(environ) == ["HOME", "LC_ALL", "PATH"]
    assert code_snapshot.allowed_variables(environ, ["MY_VAR", "HF_TOKEN"]) == ["HOME", "LC_ALL", "MY_VAR", "PATH"]


def test_without_slurm_one_line_says_so(trial) -> None:
    done = trial.launch(env={"PATH": "/nowhere"})
    assert done.code == 1
    assert "error: launcher=slurm but sbatch and srun are not on PATH" in done.err
    assert not trial.output.exists()


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
    done = trial.launch(*command, env={"WANDB_API_KEY": "sesame-one", "HF_TOKEN": "sesame-two", "SBATCH_EXPORT": "ALL"})
    assert done.code == 0, done
    (sweep,) = trial.output.glob("sweeps/*")
    assert done.out.splitlines()[-1] == sweep.name
    assert set(cluster.states().values()) == {"PENDING"}
    kept = [path for path in cluster.folder.glob("state/**/*") if path.is_file()]
    assert any("environment" in path.name for path in kept)
    assert not [path for path in kept if b"sesame" in path.read_bytes()]
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
def test_the_same_command_again_submits_nothing_that_runs(cluster, trial) -> None:
    first = trial.start("model.seconds=0.8")
    trial.struck(least=1)
    second = trial.launch("model.seconds=0.8")
    assert second.code == 0, second
    assert "are being computed by jobs that run already" in second.err
    assert trial.end(first).code == 0
    assert trial.twice() == 0
    assert trial.results() == trial.expected()


@pytest.mark.slurm
def test_a_thousand_elements_are_submitted_in_ten_seconds(cluster: Cluster, tmp_path) -> None:
    trial = Trial(
        tmp_path, *QUICK, "launcher.shards=1000", "launcher.extra={hold: true}", "launcher.wait=false", n=1000
    )
    done = trial.launch()
    assert done.code == 0, done
    (seconds,) = re.findall(r"submitted 1000 jobs in ([\d.]+) s", done.err)
    assert float(seconds) < 10
    assert len(cluster.states()) == 1000
    stopped = trial.cli("cancel")
    assert stopped.code == 0, stopped
    assert not cluster.states()
    assert "1000 cancelled" in trial.cli("status").out


@pytest.mark.slurm
def test_ctrl_c_leaves_the_jobs_to_the_queue(cluster, trial) -> None:
    process = trial.start("model.seconds=0.6")
    trial.struck(least=1)
    os.kill(process.pid, signal.SIGINT)
    done = trial.end(process, 10)
    assert done.code == 3, done
    assert "the jobs go on in Slurm's queue" in done.err
    assert "RUNNING" in cluster.states().values()
    again = trial.cli("retry")
    assert "are being computed by jobs that run already" in again.err
    assert again.code == 0, again
    assert trial.results() == trial.expected()
    assert trial.twice() == 0


@pytest.mark.slurm
def test_cancel_ends_running_jobs(cluster, trial) -> None:
    process = trial.start("model.seconds=1.5")
    run = trial.struck(least=1)
    assert cluster.state(run.slurm) == "RUNNING"
    stopped = trial.cli("cancel")
    assert stopped.code == 0, stopped
    assert trial.end(process).code == 3
    wait_for(lambda: not cluster.states(), "the queue to be empty", 20)


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
