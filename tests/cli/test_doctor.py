"""python -m spatial_eval doctor: true line by line, with fakes at the process boundary."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from conftest import command

from spatial_eval.cli import doctor
from spatial_eval.cli.doctor import FAILS, OK, UNKNOWN
from spatial_eval.models.hf import HF

doctoring = command("-m", "spatial_eval", "doctor")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PATH."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def program(path: Path, name: str, text: str) -> None:
    (path / name).write_text(f"#!/bin/sh\n{text}\n")
    (path / name).chmod(0o755)


def test_slurm_is_absent_dead_slow_or_answers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, message = doctor.check_slurm_controller()
    assert state == UNKNOWN
    assert "no sbatch or squeue on PATH" in message
    program(path, "sbatch", "exit 0")
    program(path, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    state, message = doctor.check_slurm_controller()
    assert state == FAILS
    assert "Unable to contact slurm controller" in message
    program(path, "squeue", "echo 17; echo 18")
    assert doctor.check_slurm_controller() == (OK, "the controller answers, 2 jobs in its queue")
    monkeypatch.setattr(doctor, "SLURM_S", 0.2)
    program(path, "squeue", "exec /bin/sleep 5")
    assert "no answer within 0.2 s" in doctor.check_slurm_controller()[1]


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        model = "/".join(self.path.split("/")[1:3])
        if model == "org/hangs":
            time.sleep(1)
        self.send_response({"org/there": 200, "org/gated": 401, "org/hangs": 200}.get(model, 404))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield url
    server.shutdown()
    server.server_close()


def test_the_hub_has_it_wants_a_login_lacks_it_hangs_or_is_not_to_be_asked(hub: str, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "HUB_S", 0.4)
    there, gated = doctor.check_hub(HF("org/there")), doctor.check_hub(HF("org/gated"))
    assert (there[0], f"{hub} has it" in there[1]) == (OK, True)
    assert (gated[0], "`hf auth login`" in gated[1]) == (FAILS, True)
    assert "answers with HTTP 404" in doctor.check_hub(HF("org/absent"))[1]
    assert re.search(r"did not answer within 0.4 s|timed out", doctor.check_hub(HF("org/hangs"))[1])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = doctor.check_hub(HF("org/there"))
    assert (offline[0], "HF_HUB_OFFLINE is set" in offline[1]) == (FAILS, True)
    assert doctor.check_hub(HF("package:tiny"))[0] == OK
    assert "neither a folder nor a hub id" in doctor.check_hub(HF("/nowhere"))[1]


def test_wandb_without_a_key_and_with_a_server_that_is_none(hub: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    assert "no API key" in doctor.check_wandb()[1]
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", hub)
    state, message = doctor.check_wandb()
    assert state == FAILS
    # 501: the client tries again until then, and says what came last, or that nothing came of it.
    assert re.search(rf"would fail: {hub} (did not answer within 2 s|answers with HTTP 501)$", message)


def test_memory_is_counted_from_the_files_and_guessed_from_a_name(monkeypatch) -> None:
    tiny = doctor.estimate_parameters(HF("package:tiny"))
    assert tiny is not None
    assert 1.1e6 < tiny < 1.3e6
    assert doctor.estimate_parameters(HF("llava-hf/llava-1.5-7b-hf")) == 7_000_000_000
    assert doctor.estimate_parameters(HF("org/some-model")) is None
    gpu = {"version": "2.11", "cuda": "12.8", "gpus": [["A100", 10 * 2**30, 40 * 2**30, True]]}
    big = HF("org/x-7b", dtype="bfloat16", device="cuda")
    monkeypatch.setattr(doctor, "free_memory", lambda: 20 * 2**30)
    assert [line.state for line in doctor._check_memory(big, gpu)] == [OK, FAILS]
    monkeypatch.setattr(doctor, "free_memory", lambda: 2 * 2**30)
    assert [line.state for line in doctor._check_memory(big, gpu)] == [FAILS, FAILS]


def test_a_gpu_that_torch_does_not_see(monkeypatch) -> None:
    blind = {"version": "2.11", "cuda": None, "gpus": []}
    assert "install torch for CUDA" in doctor._check_device(HF("package:tiny", device="cuda"), blind)[1]
    failed = doctor._check_device(HF("package:tiny", device="cuda"), {"error": "torch cannot be imported: no"})
    assert failed[0] == FAILS
    assert doctor._check_device(HF("package:tiny"), {"slow": "torch did not answer"})[0] == UNKNOWN


@pytest.mark.long
def test_the_whole_command_on_this_machine(tmp_path: Path) -> None:
    places = ("--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out"))
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = doctoring(*places, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "scenes_a x tiny could run here"
    assert re.search(r"^packages +ok .*torch \d", done.stdout, re.M)
    assert re.search(r"^weights +ok +1,219,392 parameters in the files of package:tiny, as its", done.stdout, re.M)
    done = doctoring("model=llava15_7b", "dataset=vsr", *places, env=env)
    assert done.returncode == 3
    lines = {line[:17].strip(): line[18:] for line in done.stdout.splitlines()[:-1]}
    assert lines["data vsr"].startswith("would fail  dataset vsr: no vsr/zeroshot_test.jsonl under data_dir=")
    assert "HF_HUB_OFFLINE is set" in lines["hub"]
    short = sum(lines[name].startswith("would fail") for name in ("memory", "disk"))  # of this machine
    assert done.stdout.splitlines()[-1] == f"vsr x llava15_7b cannot run here: {2 + short} of the lines above"
    assert list(tmp_path.iterdir()) == []


def test_wrong_use_is_one_line() -> None:
    done = doctoring("model=nope")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "unknown model 'nope'" in done.stderr
    assert "expected model=NAME" in doctoring("weight=3").stderr
