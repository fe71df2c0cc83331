"""The local pool, with real processes; kills strike jobs that run."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PLANTED, files_with, questions, recordings, write_lines
from omegaconf import OmegaConf
from trials.trial import Trial
from trials.waiting import processes, wait_for

from spatial_eval.benchmarks.readers import QuestionFile
from spatial_eval.config import schema
from spatial_eval.config.grid import Grid
from spatial_eval.config.launchers import LAUNCHERS, Inline, Launcher, Local, Resources, Slurm
from spatial_eval.core.errors import ConfigError, ModelError
from spatial_eval.core.types import Cell, Experiment, Places
from spatial_eval.launch import local, worker
from spatial_eval.launch.records import KeyedPass, Shard
from spatial_eval.methods.routing import METHODS
from spatial_eval.models.hf import HF
from spatial_eval.store.generations import ExperimentKey
from spatial_eval.sweep import run as sweep_run

pytestmark = pytest.mark.long


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    """Four slots, four shards."""
    made = Trial(tmp_path, "launcher=local", "launcher.slots=4", "launcher.shards=4")
    yield made
    made.close()


def test_the_pool_gives_what_one_process_gives(launch, tmp_path) -> None:
    names = {}
    for name in ("quiz", "exam"):
        rows = questions(40)
        names[name] = write_lines(tmp_path / f"{name}.jsonl", rows)
        write_lines(tmp_path / "recorded" / f"{name}.jsonl", recordings(rows, name, seed=len(names)))
    grid = [
        *("-m", "dataset=jsonl", f"dataset.path={names['quiz']},{names['exam']}", "model=recorded"),
        *(f"model.path={tmp_path / 'recorded'}", "model.name=one,two", "model.paper_model=''"),
        *("method=base,scaling_vis,adapt_vis", "weight=0.5,0.8", "threshold=0.3,0.5", "weight2=1.5,2.0"),
    ]
    inline = launch(*grid, f"output_dir={tmp_path / 'inline'}")
    pooled = launch(*grid, "launcher=local", "launcher.slots=3", "launcher.shards=2", env=PLANTED)
    assert inline.returncode == pooled.returncode == 0, pooled.stderr
    paths = [Path(done.stdout.splitlines()[-1]) for done in (inline, pooled)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert "4 jobs" in pooled.stderr  # two models, two shards each; a shard holds both datasets
    assert files_with(tmp_path / "out") == [], "job state, logs, the code, the store, the report: no key"
    assert list(tmp_path.glob("out/sweeps/*/jobs/code-*"))
    again = launch(*grid, "launcher=local", "launcher.slots=1", "launcher.shards=5")
    assert "nothing to compute" in again.stderr


def test_jobs_are_pinned_before_torch_is_imported(trial) -> None:
    names = ["GPU-8932f937-d72c", "MIG-3eb87630-9aa0", "5", "7"]
    command = [item for item in trial.command if not item.startswith("launcher.slots")]
    trial.command = [*command, "launcher.shards=6"]
    done = trial.launch(env={"CUDA_VISIBLE_DEVICES": ",".join(names)})
    assert done.code == 0, done
    runs = trial.runs()
    assert Counter(run.devices for run in runs).keys() == set(names)
    assert len(runs) == 6
    for one in runs:
        for other in runs:
            apart = one.beat <= other.started + 0.2 or other.beat <= one.started + 0.2
            assert one is other or one.devices != other.devices or apart, "two jobs at once on one GPU"
    assert all(str(trial.output) in run.code for run in runs), "a job ran the code of the checkout, not its snapshot"


def test_a_job_gets_as_many_gpus_as_its_model_needs(trial) -> None:
    command = [item for item in trial.command if not item.startswith("launcher.slots")]
    trial.command = [*command, "launcher.shards=2", "model.resources.gpus=2"]
    done = trial.launch(env={"CUDA_VISIBLE_DEVICES": "3,5,7"})
    assert done.code == 0, done
    first, second = sorted(trial.runs(), key=lambda run: run.started)
    assert first.devices == "3,5"
    assert len(second.devices.split(",")) == 2
    assert first.beat <= second.started + 0.2, "two jobs at once on three GPUs, of which each needs two"


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("0,1", ["0", "1"]),
        ("3, 1", ["3", "1"]),
        ("", []),
        ("-1", []),
        ("2,-1,3", ["2"]),
        ("GPU-1f,MIG-GPU-8d/7/0", ["GPU-1f", "MIG-GPU-8d/7/0"]),
    ],
)
def test_visible_gpus_are_honoured(given, names) -> None:
    assert local.list_visible_gpus({"CUDA_VISIBLE_DEVICES": given}) == names


def test_launcher_gpus_are_among_the_visible() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "4,GPU-1f,6"}
    assert local.list_devices(Local(gpus=2), environ) == ["4", "GPU-1f"]
    assert local.list_devices(Local(gpus=(6, 4)), environ) == ["6", "4"]
    assert local.list_devices(Local(gpus="GPU-1f"), environ) == ["GPU-1f"]
    assert local.list_devices(Local(slots=2), environ) == ["", ""]
    assert local.list_devices(Local(), {"CUDA_VISIBLE_DEVICES": ""}) == [""]
    with pytest.raises(ConfigError, match=r"launcher\.gpus=4 but 3 GPUs are visible"):
        local.list_devices(Local(gpus=4), environ)
    with pytest.raises(ConfigError, match="5 is not among the visible GPUs"):
        local.list_devices(Local(gpus=(4, 5)), environ)
    with pytest.raises(ConfigError, match="a GPU is named twice"):
        local.list_devices(Local(gpus=(4, 4)), environ)


WRONG = [
    ({"slot": 4}, "unknown key 'launcher.slot'; did you mean launcher.slots?"),
    ({"slots": 0}, "launcher.slots=0 is not valid; expected a whole number >= 1"),
    ({"slots": "four"}, "launcher.slots=four is not valid; expected int"),
    ({"shards": "some"}, "launcher.shards=some is not valid; expected a whole number >= 1 or auto"),
    ({"gpus": 1, "slots": 1}, "launcher.slots and launcher.gpus exclude each other"),
    ({"retries": -1}, "launcher.retries=-1 is not valid; expected a whole number >= 0"),
    ({"gpus": 0}, "launcher.gpus=0 is not valid; expected a whole number >= 1"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=[message for _, message in WRONG])
def test_launcher_keys_are_checked(values, message) -> None:
    with pytest.raises(ConfigError) as caught:
        schema.build_by_kind(LAUNCHERS, {"kind": "local", **values}, "launcher")
    assert message in str(caught.value)


REFUSED = [
    (["launcher.slot=4"], "", "unknown key 'launcher.slot'; did you mean launcher.slots?"),
    (["launcher.slots=null", "launcher.gpus=64"], "", "launcher.gpus=64 but 0 GPUs are visible"),
    (["launcher.slots=null", "model.resources.gpus=3"], "0,1", "model slow needs 3 GPUs (model.resources.gpus)"),
    (["model.resources.gpus=-1"], "", "model.resources.gpus=-1 is not valid; expected a whole number >= 0"),
]


@pytest.mark.parametrize(("arguments", "visible", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_cannot_run_gets_one_line_and_writes_nothing(arguments, visible, message, trial) -> None:
    done = trial.launch(*arguments, env={"CUDA_VISIBLE_DEVICES": visible})
    assert done.code == 1, done
    assert [message in line for line in done.err.splitlines() if line.startswith("error: ")] == [True], done
    assert not trial.output.exists()


@pytest.mark.parametrize("device_map", [None, "auto"])
def test_auto_precision_follows_where_the_jobs_run(device_map, tmp_path) -> None:
    model = HF(path=str(tmp_path), device_map=device_map)
    cell = Cell(Experiment(QuestionFile(tmp_path / "quiz.jsonl"), model), METHODS["base"]())
    places = Places(tmp_path, tmp_path)

    def dtype(launcher: Launcher, need: Resources) -> str:
        settings = schema.Settings(places, "run", retry=False, capture="none", launcher=launcher, tracking={})
        (found,) = sweep_run.resolve_dtype(Grid((cell,), 1, (), settings, {model: need})).cells
        assert isinstance(found.experiment.model, HF)
        return found.experiment.model.dtype

    assert dtype(Slurm(gpus=1), Resources()) == "bfloat16"
    assert dtype(Slurm(gpus=1), Resources(gpus=0)) == "float32"
    assert dtype(Slurm(gpus=0), Resources(gpus=2)) == "bfloat16"
    assert dtype(Local(slots=2), Resources()) == "float32"
    assert dtype(Inline(), Resources()) == "auto"


def test_a_job_with_another_model_than_the_launch_refuses(tmp_path, monkeypatch) -> None:
    trunk = SimpleNamespace(model=SimpleNamespace(name="vlm"))
    work = SimpleNamespace(experiment=trunk)
    shard = Shard(KeyedPass(work, ExperimentKey("quiz--vlm", {"model": {}}), 8), range(8), 8)  # type: ignore[arg-type]
    other = SimpleNamespace(key=ExperimentKey("quiz--vlm", {"model": {"dtype": "float32"}}))
    monkeypatch.setattr(worker, "inspect_pass", lambda *args, **more: other)
    spec = SimpleNamespace(request=SimpleNamespace(places=Places(tmp_path, tmp_path), retry=False))
    with pytest.raises(ModelError, match="vlm is not the same model here as where the sweep was launched"):
        worker.find_pass(spec, shard)  # type: ignore[arg-type]


def test_resources_are_no_part_of_a_model() -> None:
    one = schema.read_model(OmegaConf.create({"kind": "recorded", "path": "x", "resources": {"gpus": 2}}))
    assert one == schema.read_model(OmegaConf.create({"kind": "recorded", "path": "x"}))
    node = OmegaConf.create({"kind": "recorded", "path": "x", "resources": {"gpus": 2, "memory": "16G", "time": 30}})
    assert schema.read_resources(node) == Resources(gpus=2, memory="16G", time=30)
    assert schema.read_resources(OmegaConf.create({"kind": "recorded"})) == Resources()
    with pytest.raises(ConfigError, match=r"unknown key 'model\.resources\.gpu'; did you mean model\.resources\.gpus"):
        schema.read_resources(OmegaConf.create({"resources": {"gpu": 1}}))


def test_a_killed_job_is_started_again(trial) -> None:
    process = trial.start()
    os.kill(trial.struck().pid, signal.SIGKILL)
    done = trial.end(process)
    assert done.code == 0, done
    assert "was killed by SIGKILL; starting it again" in done.err
    assert trial.results() == trial.expected()
    assert trial.twice() <= 1  # the one in flight


def test_a_job_that_keeps_dying_is_reported_and_retried_by_hand(trial) -> None:
    (trial.trouble / "die").write_text("9")
    done = trial.launch()
    assert done.code == 3, done
    assert "was killed by SIGKILL" in done.err
    (log,) = [word.strip("()") for word in done.err.split() if word.endswith(".log)")]
    assert Path(log).is_file()
    assert "incomplete: " in done.err
    assert trial.records(), "the other jobs went on"
    (trial.trouble / "die").unlink()
    again = trial.cli("retry")
    assert again.code == 0, again
    assert trial.results() == trial.expected()
    assert trial.twice() == 0


def test_a_job_that_raises_is_reported_with_its_cause(trial) -> None:
    (trial.trouble / "raise").write_text("")
    done = trial.launch("launcher.retries=0")
    assert done.code == 3, done
    assert "failed: quiz x slow: RuntimeError: no such kernel (" in done.err
    assert trial.cli("status").code == 3
    (trial.trouble / "raise").unlink()
    assert trial.launch().code == 0
    assert trial.results() == trial.expected()


def test_a_poisoned_question_costs_only_itself(trial) -> None:
    (trial.trouble / "poison").write_text("7")
    done = trial.launch()
    assert done.code == 3, done
    assert "failed: quiz x slow: poisoned (3 answers, first: question 7)" in done.err
    assert len({row["id"] for row in trial.records() if "error" not in row}) == trial.n - 1
    state = trial.cli("status")
    assert state.code == 3
    assert "quiz x slow: failed, 23/24 questions in 3 arms, 3 recorded errors" in state.out
    (trial.trouble / "poison").unlink()
    assert trial.cli("retry").code == 0
    assert trial.results() == trial.expected()
    assert trial.twice() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_driver_stops_its_jobs(number, trial) -> None:
    process = trial.start()
    trial.struck()
    os.kill(process.pid, number)
    done = trial.end(process, 10)
    assert done.code == 3
    assert "interrupted: what was computed is stored; the same command goes on from there" in done.err
    assert not list(processes(str(trial.output)))
    assert trial.launch().code == 0
    assert trial.results() == trial.expected()
    assert trial.twice() == 0


def test_a_killed_driver_leaves_no_orphan_and_another_shell_finishes(trial) -> None:
    process = trial.start()
    trial.struck()
    os.kill(process.pid, signal.SIGKILL)
    trial.end(process)
    wait_for(lambda: not list(processes(str(trial.output))), "the jobs to die with their driver", 5)
    state = trial.cli("status")
    assert state.code == 3
    assert "incomplete and nothing runs: python -m spatial_eval retry" in state.out
    assert trial.cli("retry").code == 0
    assert trial.results() == trial.expected()
    assert trial.twice() == 0


def test_the_same_command_again_starts_nothing_that_runs(trial) -> None:
    first = trial.start("model.seconds=0.8")
    wait_for(lambda: sum(run.alive for run in trial.runs()) == 4, "four jobs")
    held = trial.hold()
    assert "4 running" in trial.cli("status").out
    second = trial.start("model.seconds=0.8")
    assert any("are being computed by jobs that run already" in line for line in second.stderr)
    for pid in held:
        os.kill(pid, signal.SIGCONT)
    assert trial.end(second).code == 0
    assert trial.end(first).code == 0
    assert trial.twice() == 0
    assert trial.results() == trial.expected()


def test_operating_needs_no_torch(trial, tmp_path) -> None:
    for name in ("torch", "transformers", "datasets", "wandb"):
        (tmp_path / "blocked").mkdir(exist_ok=True)
        (tmp_path / "blocked" / f"{name}.py").write_text("raise ImportError('not here')")
    process = trial.start()
    trial.struck(least=1)
    search = f"{tmp_path / 'blocked'}{os.pathsep}{trial.environment()['PYTHONPATH']}"
    state = trial.cli("status", env={"PYTHONPATH": search})
    assert "(a driver waits for them)" in state.out, state
    watched = trial.cli("status", "--watch", env={"PYTHONPATH": search})
    assert "4 done" in watched.out
    assert trial.end(process).code == 0


def test_cancel_from_another_shell(trial) -> None:
    process = trial.start("model.seconds=1.0")
    trial.struck(least=1)
    stopped = trial.cli("cancel")
    assert stopped.code == 0, stopped
    assert "4 jobs of" in stopped.out
    done = trial.end(process, 10)
    assert done.code == 3, done
    assert "cancelled" in done.err
    assert not list(processes(str(trial.output)))
    assert "cancelled" in trial.cli("status").out


def test_a_full_disk_is_one_clear_line_and_loses_nothing(trial) -> None:
    process = trial.start()
    run = trial.struck()
    (path,) = trial.output.glob(f"generations/*/*-{run.pid}-*.jsonl")
    limit = path.stat().st_size + 10
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (limit, limit))  # the kernel refuses as it does on a full disk
    done = trial.end(process)
    assert done.code == 3, done
    assert f"failed: quiz x slow: {path}: File too large; what was stored before stays: fix it" in done.err
    assert trial.launch().code == 0
    assert trial.results() == trial.expected()
    assert trial.twice() == 0


def test_overhead_of_a_job(trial) -> None:
    command = [item for item in trial.command if not item.startswith(("model.seconds", "launcher.shards"))]
    trial.command = [*command, "model.name=" + ",".join(f"m{i}" for i in range(12)), "limit=1"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = trial.start()
    memory = []
    while process.poll() is None and len(memory) < 1000:
        if 0 < sum(run.state != "running" for run in trial.runs()) < 12:  # before the first, and after the last: tables
            (line,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text()) or ["0"]
            memory.append(int(line))
        time.sleep(0.1)
    done = trial.end(process)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.code == 0, done
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    subprocess.run([sys.executable, "-c", "import spatial_eval.launch.worker"], check=True, env=trial.environment())
    alone = resource.getrusage(resource.RUSAGE_CHILDREN)
    imports = alone.ru_utime + alone.ru_stime - after.ru_utime - after.ru_stime
    steady = [kilobytes for kilobytes in memory if kilobytes]
    assert max(steady) - steady[0] < 10_000, "the driver's memory grows with its jobs"
    assert cpu / 12 < 3 * imports, (
        f"{cpu:.1f} CPU s for 12 jobs and their driver, {imports:.1f} to import a job's modules"
    )
