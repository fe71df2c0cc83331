"""python -m spatial_eval results."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from collections.abc import Iterator

import pytest

from spatial_eval.cli import run, sweeps
from spatial_eval.cli.main import main


@pytest.fixture
def swept(launch, experiment) -> list[str]:
    """Paths of two sweeps' results, the later one last."""
    runs = [launch("-m", "method=base,scaling_vis", "weight=0.5", *experiment), launch("method=adapt_vis", *experiment)]
    return [done.stdout.splitlines()[-1] for done in runs]


def test_results_prints_the_latest_or_the_named_sweep(swept, cli) -> None:
    first, last = (path.split("/")[-2] for path in swept)
    assert "adapt_vis" in cli("results").stdout
    assert "scaling_vis" in cli("results", first).stdout
    assert cli("results", first[:6]).stdout == cli("results", first).stdout
    assert cli("results", swept[1].removesuffix("/results.csv")).stdout == cli("results", last).stdout


def test_formats(swept, cli) -> None:
    first = swept[0].split("/")[-2]
    rows = list(csv.DictReader(io.StringIO(cli("results", first, "--format", "csv").stdout)))
    as_json = json.loads(cli("results", first, "--format", "json").stdout)
    assert [row["accuracy"] for row in as_json] == [float(row["accuracy"]) for row in rows]
    assert as_json[0]["weight"] is None
    markdown = cli("results", first, "--cells", "--format", "md").stdout.splitlines()
    assert markdown[0].startswith("| dataset | model | method |")
    assert sum(line.startswith("| ") for line in markdown) == 2 + len(rows)
    latex = cli("results", first, "--cells", "--format", "tex").stdout
    assert r"scaling\_vis" in latex
    assert latex.startswith(r"\begin{tabular}")


def test_hydras_full_error_prints_the_traceback_before_the_line(cli, tmp_path) -> None:
    arguments = ("results", "--output-dir", str(tmp_path))
    short, whole = cli(*arguments), cli(*arguments, env={"HYDRA_FULL_ERROR": "1"})
    assert (short.returncode, short.stderr.count("\n"), whole.returncode) == (1, 1, 1)
    assert whole.stderr.startswith("Traceback (most recent call last):\n")
    assert whole.stderr.endswith(f"\n{short.stderr}")


def test_wrong_use(swept, cli, tmp_path) -> None:
    done = cli("results", "zzz")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "unknown sweep 'zzz'" in done.stderr
    assert cli("results", "--format", "xml").returncode == 2
    assert cli().returncode == 2


ENDING = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}


@pytest.fixture
def heeded_signals() -> Iterator[None]:
    """A shell starts jobs in the background with Ctrl-C ignored, nohup with SIGHUP, and their children inherit that."""
    before = {number: signal.signal(number, handler) for number, handler in ENDING.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.usefixtures("heeded_signals")
def test_a_signal_before_anything_is_computed_is_one_line(number, monkeypatch, capsys) -> None:
    before = signal.getsignal(number)
    monkeypatch.setattr(run, "_run", lambda parsed: os.kill(os.getpid(), number))
    assert main(["run", "method=base"]) == 3
    assert capsys.readouterr().err == (
        "interrupted: what was computed is stored; the same command goes on from there\n"
    )
    monkeypatch.setattr(sweeps, "list_folders", lambda output: os.kill(os.getpid(), number))
    assert main(["list"]) == 3
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(number) == before
