"""passes.csv: how each model was run, what made its answers, and where they mix."""

from __future__ import annotations

import csv
import json
import logging
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ordered, run_cells
from doubles import Drill, Hashed

from spatial_eval.analysis import metrics, sweep_data
from spatial_eval.benchmarks.prompts import apply_template
from spatial_eval.benchmarks.readers import QuestionFile
from spatial_eval.benchmarks.scenes.rendered import Scenes
from spatial_eval.config.tracking import Wandb
from spatial_eval.core import columns as column_names
from spatial_eval.core.arms import BASE, Arm
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.types import Cell, Experiment, Part, Pass, Places
from spatial_eval.launch import dispatch
from spatial_eval.methods.routing import Base, ScalingVis
from spatial_eval.models.hf import HF
from spatial_eval.passes import tables as pass_tables
from spatial_eval.passes.pass_state import inspect_pass, read_runtime_versions, run_pass
from spatial_eval.report import page as report_page
from spatial_eval.store import generations
from spatial_eval.sweep import run
from spatial_eval.tracking import runs

TRUNK = Experiment(Drill(size=4), Hashed())
CELLS = [Cell(TRUNK, Base(), Part("all")), Cell(TRUNK, ScalingVis(0.5), Part("all"))]


def passes(folder: Path) -> list[dict[str, str]]:
    with (folder / "passes.csv").open(encoding="utf8", newline="") as file:
        return list(csv.DictReader(file))


def compute(out: Path, *arms: Arm, **versions: str) -> Path:
    """Stores the arms' answers as another installation would have; the file of records."""
    places = Places(out / "data", out)
    job = inspect_pass(Pass(TRUNK, ((Part("all"), arms),)), places)
    known = set(out.glob("generations/*/*.jsonl"))
    run_pass(job, places)
    (path,) = set(out.glob("generations/*/*.jsonl")) - known
    first, *rest = path.read_text("utf8").split("\n")
    said = {"environment": {**json.loads(first)["environment"], **versions}}
    path.write_text("\n".join([json.dumps(said), *rest]), "utf8")
    return path


def test_a_writer_notes_versions_and_device(tmp_path: Path) -> None:
    first = compute(tmp_path, BASE).read_text("utf8").partition("\n")[0]
    assert json.loads(first) == {"environment": read_runtime_versions("cpu")}
    assert set(read_runtime_versions("cpu")) == {"python", "spatial_eval", "torch", "transformers", "device"}
    assert all(read_runtime_versions("cpu").values())


def test_answers_of_several_versions_are_said_wherever_they_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    compute(tmp_path, BASE, torch="2.11.0", transformers="5.17")
    compute(tmp_path, Arm(0.5), torch="2.13.0", transformers="5.24", python="3.12.1")
    request, states = ordered(CELLS, tmp_path)
    assert run.run_request(request, states) == run.COMPLETE
    (row,) = passes(request.folder)
    assert (row["torch"], row["transformers"], row["device"]) == ("2.11.0; 2.13.0", "5.17; 5.24", "cpu")
    (line,) = [line for line in caplog.messages if "its answers were computed with" in line]
    assert line.startswith(
        "drill x hashed: its answers were computed with torch 2.11.0 and 2.13.0, transformers 5.17 and 5.24, and may"
    )
    assert f"`python -m spatial_eval store rm {row['generations']}`" in line
    assert (tmp_path / "generations" / row["generations"]).is_dir()
    page = report_page.render_page(sweep_data.read_sweep_data(request.folder))
    assert page.count("torch 2.11.0 and 2.13.0, transformers 5.17 and 5.24") == 2  # beside its figures; what ran
    caplog.clear()
    only, states_of_only = ordered(CELLS[:1], tmp_path)  # the other arm is no part of this sweep
    assert run.run_request(only, states_of_only) == run.COMPLETE
    assert passes(only.folder)[0]["torch"] == "2.11.0"
    assert not [line for line in caplog.messages if "its answers were computed with" in line]
    assert "its answers were computed with" not in report_page.render_page(sweep_data.read_sweep_data(only.folder))


def test_devices_mix_too_and_a_truncated_first_line_is_nobodys(tmp_path: Path) -> None:
    one, two = compute(tmp_path, BASE, torch="2.11.0"), compute(tmp_path, Arm(0.5), torch="2.13.0")
    rows = [json.loads(line) for line in two.read_text("utf8").splitlines()]
    for row in rows:
        row.pop("crc", None)  # it was that of the line as it stood
        row.get("environment", row).update({"device": "NVIDIA H100"} if "seconds" not in row else {})
    two.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    one.write_bytes(one.read_bytes()[5:])  # its answers stay, who made them is not known
    request, states = ordered(CELLS, tmp_path)
    run.run_request(request, states)
    (row,) = passes(request.folder)
    assert (row["torch"], row["device"], row["stored"]) == ("2.13.0", "NVIDIA H100; cpu", "8")
    (line,) = metrics.describe_mixtures([row]).values()
    assert "computed with device NVIDIA H100 and cpu, and may differ" in line


def test_rows_of_earlier_versions_mix_nothing() -> None:
    row = {"dataset": "a", "model": "m", "max_new_tokens": 100, "device": "NVIDIA H100 cpu", "torch": 2.11}
    assert metrics.describe_mixtures([row]) == {}
    assert (metrics.join_distinct([]), metrics.join_distinct(["b", "", "a", "b"])) == ("", "a; b")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of two models: one that is run, one that answers from a hash."""
    model = HF("package:tiny", name="tiny", batch_size=2, preset="mine", selfcheck="never", dtype="bfloat16")
    trunk = Experiment(Scenes("scenes_a", "scenes_a"), model, 20)
    cells = [Cell(trunk, Base(), Part("test", 2)), *CELLS]
    return run_cells(cells, tmp_path_factory.mktemp("tiny"))


def test_how_a_model_was_run_stands_in_passes_and_in_the_dashboard(tiny: Path) -> None:
    assert pass_tables.PASSES[-5:] == ("dtype", "batch_size", "preset", "decoding", "revision")
    drill, scenes = ({name: row[name] for name in column_names.ASKED} for row in passes(tiny))
    assert drill == dict.fromkeys(column_names.ASKED, "")
    assert scenes == {"dtype": "bfloat16", "batch_size": "2", "preset": "mine", "decoding": "shared", "revision": ""}
    found = runs.TrackedSweep(sweep_data.read_sweep_data(tiny))
    (cell,) = [cell for cell in found.cells if cell["model"] == "tiny"]
    config = runs.build_cell_run(found, cell, Wandb()).config
    asked = {"dtype": "bfloat16", "batch_size": 2, "preset": "mine", "decoding": "shared"}
    assert {name: config[name] for name in column_names.ASKED if name in config} == asked
    (other,) = [cell for cell in found.cells if cell["method"] == "scaling_vis"]
    assert not set(column_names.ASKED) & set(runs.build_cell_run(found, other, Wandb()).config)
    whole = runs.build_sweep_run(found, Wandb(), []).config
    assert {name: whole[name] for name in asked} == asked


def test_a_commit_that_looks_like_a_number_stays_text(tiny: Path) -> None:
    """The commit of a model of the hub, whatever branch was asked for."""
    model, commit = HF("org/tiny", revision="main"), "1234567890e" + "1" * 29
    assert pass_tables._describe_model(model, {"commit": commit})["revision"] == commit
    assert pass_tables._describe_model(HF("/folder"), {"files": "x"})["revision"] == ""
    for name, text in (("revision", commit), ("revision", "0" * 40), ("torch", "2.10"), ("transformers", "5.20")):
        assert sweep_data._parse_column(name, [text]).tolist() == [text]


def test_files_without_these_columns_are_read(tiny: Path, tmp_path: Path) -> None:
    kept = [name for name in pass_tables.PASSES if name not in column_names.ASKED]
    lines = [kept, *([row[name] for name in kept] for row in passes(tiny))]
    for path in tiny.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "passes.csv").write_text("".join(f"{','.join(line)}\n" for line in lines), "utf8")
    about = json.loads((tmp_path / "sweep.json").read_text("utf8"))
    del about["digests"]  # no more than the columns known to versions before 0.2
    (tmp_path / "sweep.json").write_text(json.dumps(about), "utf8")
    found = runs.TrackedSweep(sweep_data.read_sweep_data(tmp_path))
    assert not set(column_names.ASKED) & set(runs.build_sweep_run(found, Wandb(), []).config)
    assert "What ran" in report_page.render_page(sweep_data.read_sweep_data(tmp_path))


@dataclass(frozen=True, slots=True)
class Silent(Drill):
    """A benchmark of another package that does not describe how its questions are sent."""

    prompt: str = "auto"
    distort: bool = False


@dataclass(frozen=True, slots=True)
class Wordy(Silent):
    """One that means another thing by the word."""

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "prompt": "Answer in one word."}


@dataclass(frozen=True, slots=True)
class Stuck(Silent):
    """One that describes what it was first written for."""

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "prompt": "raw"}


def described(dataset: Any) -> dict[str, Any]:
    key = generations.experiment_key(Experiment(dataset, Hashed()), Places(Path("data"), Path("out")))
    return dict(key.description["dataset"])


def test_how_questions_are_sent_is_in_the_identity_whoever_wrote_the_class() -> None:
    assert described(Silent()) == Silent().describe() == {"name": "drill"}  # earlier answers keep their key
    assert described(Silent(prompt="raw")) == {"name": "drill", "prompt": "raw"}
    assert described(Silent(distort=True)) == {"name": "drill", "distort": True}
    asked = apply_template(Silent(prompt="chat"), "{question}", "plain")
    assert described(asked) == {"name": "drill", "template": "{question}", "prompt": "chat"}
    assert described(Wordy()) == Wordy().describe()
    assert described(Wordy(prompt="raw")) == {**Wordy().describe(), "prompt sent": "raw"}
    assert described(Stuck(prompt="raw")) == Stuck().describe()
    assert described(Stuck()) == {"name": "drill", "prompt": "raw", "prompt sent": "auto"}


def test_what_a_benchmark_describes_itself_is_left_as_it_is() -> None:
    for prompt in ("auto", "raw", "chat"):
        for dataset in (Scenes("scenes_a", "scenes_a", prompt=prompt), QuestionFile(Path("x.jsonl"), prompt=prompt)):
            assert described(dataset) == dataset.describe()
            assert dataset.describe()["prompt"] == prompt


def test_a_prompt_mode_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^drill: unknown dataset.prompt 'Raw'; did you mean raw\?"):
        described(replace(Silent(), prompt="Raw"))


def test_a_driver_that_was_slow_does_not_replace_the_tables_of_another(tmp_path, monkeypatch) -> None:
    """It found answers missing; while it built its tables, another run computed them and wrote its own."""
    build, dispatched = pass_tables.build_results, dispatch.dispatch_jobs
    request, states = ordered(CELLS, tmp_path)

    def be_slow(*given: Any) -> pass_tables.Results:
        results = build(*given)
        assert results.missing
        monkeypatch.setattr(pass_tables, "build_results", build)
        monkeypatch.setattr(dispatch, "dispatch_jobs", dispatched)
        run_cells(CELLS, tmp_path)
        return results

    monkeypatch.setattr(pass_tables, "build_results", be_slow)
    monkeypatch.setattr(dispatch, "dispatch_jobs", lambda *_: dispatch.DispatchOutcome([]))
    assert run.run_request(request, states) == run.COMPLETE
    table = csv.DictReader((request.folder / "results.csv").read_text("utf8").splitlines())
    assert [row["missing"] for row in table] == ["0", "0"]


def test_the_report_is_drawn_without_the_answers_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_cells(CELLS, tmp_path)
    request, states = ordered(CELLS, tmp_path)
    answers = weakref.ref(states[TRUNK].stored.generations)
    held: list[object] = []
    write = report_page.try_write_report
    monkeypatch.setattr(report_page, "try_write_report", lambda folder: held.append(answers()) or write(folder))
    assert run.run_request(request, states) == run.COMPLETE
    assert held == [None]
