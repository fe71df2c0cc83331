"""What a cluster does to jobs. Every test strikes a job that RUNS and has stored a part of its questions."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trials.cluster import Cluster
from trials.settings import QUICK
from trials.trial import Done, Trial
from trials.waiting import wait_for

from spatial_eval.launch import records

pytestmark = pytest.mark.slurm


@pytest.fixture
def trials(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Trial]]:
    """`trials("launcher.shards=1", n=16)`: ended before the cluster is tidied up."""
    made: list[Trial] = []

    def make(*launcher: str, n: int = 24, seconds: float = 0.1) -> Trial:
        made.append(Trial(tmp_path, *QUICK, *launcher, n=n, seconds=seconds, pause=4))
        return made[-1]

    yield make
    for trial in made:
        trial.close()


@pytest.fixture
def trial(trials: Callable[..., Trial]) -> Trial:
    """Three jobs of eight questions, each of which waits after four."""
    return trials()


def strike(cluster: Cluster, trial: Trial, least: int = 2) -> tuple[str, int]:
    """(Slurm id, pid) of a job that the controller too calls running."""
    run = trial.struck(least)
    assert cluster.state(run.slurm) == "RUNNING"
    return run.slurm, run.pid


def await_death(pid: int) -> None:
    """What the test did to a job has happened: only then may the others, and its next start, go on."""
    wait_for(lambda: not records.read_process_start(pid), "the job to die")


def same(trial: Trial, done: Done, in_flight: int = 1) -> None:
    """The undisturbed results, and nothing computed twice but what was in flight."""
    assert done.code == 0, done
    assert trial.results() == trial.expected()
    assert trial.twice() <= in_flight


def fill(path: Path) -> None:
    """Until the disk is full."""
    try:
        with path.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
    except OSError:
        return


def test_a_killed_task_is_submitted_again(cluster, trial) -> None:
    process = trial.start()
    _, pid = strike(cluster, trial)
    os.kill(pid, signal.SIGKILL)
    done = trial.end(process)
    assert "submitting it again" in done.err
    same(trial, done)


def test_a_killed_parent_takes_its_task_with_it(cluster, trial) -> None:
    process = trial.start()
    _, pid = strike(cluster, trial)
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGKILL)
    await_death(pid)
    same(trial, trial.end(process))


def test_scancel_of_a_running_job_is_reported_and_not_undone(cluster, trial) -> None:
    process = trial.start()
    job, pid = strike(cluster, trial)
    cluster.ask("scancel", job)
    await_death(pid)
    done = trial.end(process)
    assert done.code == 3, done
    assert f"job {job} was cancelled" in done.err
    assert "incomplete: " in done.err
    same(trial, trial.cli("retry"))


@pytest.mark.parametrize("accounting", [True, False], ids=["accounting", "no accounting"])
def test_a_vanished_element_is_noticed(accounting, cluster, trial, tmp_path) -> None:
    hidden = tmp_path / "bin" / "sacct"
    hidden.parent.mkdir()
    hidden.write_text("#!/bin/sh\nexit 1\n")
    hidden.chmod(0o755)
    path = os.environ["PATH"] if accounting else f"{hidden.parent}{os.pathsep}{os.environ['PATH']}"
    process = trial.start("launcher.array_parallelism=1", env={"PATH": path})
    job, _ = strike(cluster, trial)
    element = f"{job.partition('_')[0]}_2"
    assert cluster.state(element) == "PENDING"
    cluster.ask("scancel", element)
    done = trial.end(process)
    assert done.code == 3, done
    assert "Slurm does not know the job any more" in done.err or f"job {element} was cancelled" in done.err
    same(trial, trial.cli("retry"), in_flight=0)


def test_scontrol_requeue(cluster, trial) -> None:
    process = trial.start()
    job, pid = strike(cluster, trial)
    cluster.ask("scontrol", "requeue", job)
    await_death(pid)
    same(trial, trial.end(process))
    assert max(run.restart for run in trial.runs()) == 1


def test_two_time_outs(cluster, trials) -> None:
    trial = trials("launcher.shards=1", n=16)
    process = trial.start()
    for count in range(2):
        run = trial.struck(least=2, where=lambda run, count=count: run.restart == count)
        assert cluster.state(run.slurm) == "RUNNING"
        cluster.ask("scancel", "--signal=USR2", run.slurm)
        await_death(run.pid)
    same(trial, trial.end(process), in_flight=2)
    assert max(run.restart for run in trial.runs()) == 2


def test_preemption_by_a_higher_partition(cluster, trial) -> None:
    process = trial.start()
    job, pid = strike(cluster, trial)
    node = cluster.node(job)
    script = ["sbatch", "-p", "high", "-w", node, "--exclusive", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 1"]
    cluster.ask(*script)
    await_death(pid)
    same(trial, trial.end(process), in_flight=3)
    assert max(run.restart for run in trial.runs()) >= 1


def test_a_node_set_down(cluster, trial) -> None:
    process = trial.start()
    job, pid = strike(cluster, trial)
    node = cluster.node(job)
    cluster.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    await_death(pid)
    same(trial, trial.end(process), in_flight=3)


def test_slurmd_killed_and_the_job_lives_on(cluster, trials) -> None:
    trial = trials("launcher.shards=1")
    process = trial.start()
    job, pid = strike(cluster, trial)
    node = cluster.node(job)
    os.kill(cluster.slurmd(node), signal.SIGKILL)
    cluster.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=dead")  # or wait for SlurmdTimeout
    wait_for(lambda: len([run for run in trial.runs() if run.alive]) == 2, "two writers at once")
    assert pid in [run.pid for run in trial.runs() if run.alive]
    done = trial.end(process)
    assert done.code == 0, done
    assert trial.results() == trial.expected()


def test_a_killed_driver_and_another_shell(cluster, trial) -> None:
    process = trial.start()
    strike(cluster, trial)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    state, _ = trial.start_cli("status").communicate()
    assert "no driver" in state
    retry = trial.start_cli("retry")
    assert trial.heard(retry, "are being computed by jobs that run already")
    same(trial, trial.end(retry), in_flight=0)


def test_a_full_disk(cluster, trial) -> None:
    trial.output.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(trial.output)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("cannot mount a small disk: needs root")
    try:
        process = trial.start("launcher.retries=0")
        strike(cluster, trial)
        filler = trial.output / "filler"
        fill(filler)
        done = trial.end(process)
        assert done.code != 0, done
        assert "No space left on device; what was stored before stays" in done.err
        filler.unlink()
        same(trial, trial.cli("retry"), in_flight=3)
        assert trial.results() == trial.expected()
    finally:
        shutil.copytree(trial.output, trial.folder / "kept", dirs_exist_ok=True)
        trial.close()
        cluster.settle()
        subprocess.run(["umount", "-l", str(trial.output)], check=True)


def test_a_job_that_raises(cluster, trial) -> None:
    (trial.trouble / "raise").write_text("")
    done = trial.launch("launcher.retries=0")
    assert done.code == 3, done
    assert "failed: quiz x slow: RuntimeError: no such kernel (" in done.err
    (trial.trouble / "raise").unlink()
    same(trial, trial.cli("retry"), in_flight=0)


def test_a_poisoned_question(cluster, trial) -> None:
    (trial.trouble / "poison").write_text("5")
    done = trial.launch()
    assert done.code == 3, done
    assert "failed: quiz x slow: poisoned (3 answers, first: question 5)" in done.err
    (trial.trouble / "poison").unlink()
    same(trial, trial.cli("retry"), in_flight=0)
