"""A sweep of the slow model whose jobs are struck while they run, and what must be true afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT, questions, write_lines
from trials.waiting import wait_for

from spatial_eval.launch import records
from spatial_eval.launch.records import Attempt, AttemptReader, Launch

TRIALS = Path(__file__).parent
EXPECTED: dict[int, bytes] = {}  # by number of questions; the slow model's answers depend on nothing else
HANG_S = 240.0  # nothing may take longer, on a crowded machine either


class Trial:
    """`n` questions in 3 arms on the slow model; its output, trouble and expected results under `folder`.

    With `pause`, each process waits after so many questions until the test ends a command (`go_on`): what a test does
    to a job that runs needs no luck with the clock.
    """

    def __init__(
        self, folder: Path, *launcher: str, n: int = 24, seconds: float = 0.15, pause: int | None = None
    ) -> None:
        self.folder, self.n = folder, n
        self.output = folder / "out"
        self.trouble = folder / "trouble"
        self.trouble.mkdir(parents=True, exist_ok=True)
        if pause is not None:
            (self.trouble / "pause").write_text(str(pause))
        self.quiz = write_lines(folder / "quiz.jsonl", questions(n))
        self.grid = [
            *("-m", "dataset=jsonl", f"dataset.path={self.quiz}", "split=all", "model=slow"),
            *("method=base,scaling_vis", "weight=0.5,1.5", f"model.trouble={self.trouble}"),
        ]
        self.command = [*self.grid, f"model.seconds={seconds}", *launcher, f"output_dir={self.output}"]
        self.processes: list[subprocess.Popen[str]] = []

    def environment(self) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if key not in ("SPATIAL_EVAL_DATA", "PYTHONPATH")}
        return clean | {"PYTHONPATH": f"{ROOT}{os.pathsep}{TRIALS}", "OMP_NUM_THREADS": "1"}

    def start(self, *more: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """launch.py in the background, in a session of its own (as in a terminal, for Ctrl-C)."""
        return self._spawn([str(TRIALS / "slow_launch.py"), *self.command, *more], env)

    def launch(self, *more: str, env: dict[str, str] | None = None) -> Done:
        return self.end(self.start(*more, env=env))

    def cli(self, *arguments: str, env: dict[str, str] | None = None) -> Done:
        return self.end(self.start_cli(*arguments, env=env))

    def start_cli(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """A command of `python -m spatial_eval` in the background."""
        return self._spawn(["-m", "spatial_eval", *arguments, "--output-dir", str(self.output)], env)

    def hold(self) -> list[int]:
        """Stops every job that runs, so that commands may take their time; their pids, to be continued."""
        pids = [run.pid for run in self.runs() if run.alive]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        return pids

    def end(self, process: subprocess.Popen[str], seconds: float = HANG_S) -> Done:
        """Raises where it hangs."""
        self.go_on()
        out, err = process.communicate(timeout=seconds)
        return Done(process.returncode, out, err)

    def go_on(self) -> None:
        (self.trouble / "pause").unlink(missing_ok=True)

    def heard(self, process: subprocess.Popen[str], words: str) -> bool:
        """Whether the process says so on stderr, up to which it is read; one that hangs is killed."""
        assert process.stderr
        timer = threading.Timer(HANG_S, process.kill)
        timer.start()
        try:
            return any(words in line for line in process.stderr)
        finally:
            timer.cancel()

    def _spawn(self, arguments: list[str], env: dict[str, str] | None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=self.environment() | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # a shell's background jobs ignore Ctrl-C, and so would all that they start
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,  # noqa: PLW1509  it does nothing else
        )
        self.processes.append(process)
        return process

    def close(self) -> None:
        """Ends what a failed test left."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            if process.stdout and not process.stdout.closed:
                process.communicate()

    def launches(self) -> list[Launch]:
        return [launch for sweep in self.output.glob("sweeps/*") for launch in records.list_launches(sweep)]

    def runs(self) -> list[Attempt]:
        return [
            run for launch in self.launches() for runs in AttemptReader(launch).read_attempts().values() for run in runs
        ]

    def struck(
        self, least: int = 2, seconds: float = 120.0, where: Callable[[Attempt], bool] = lambda run: True
    ) -> Attempt:
        """A job that RUNS and has stored a part of its questions: to be struck now."""
        found: list[Attempt] = []

        def part_way() -> bool:
            stored = self.questions_by_process()
            found[:] = [
                run
                for run in self.runs()
                if run.alive and where(run) and least <= stored.get(run.pid, 0) < run.total - 1
            ]
            return bool(found)

        wait_for(part_way, "a job that runs and has stored a part", seconds)
        return found[0]

    def records(self) -> list[dict[str, object]]:
        lines = [line for path in self.output.glob("generations/*/*.jsonl") for line in path.read_bytes().split(b"\n")]
        return [json.loads(line) for line in lines if line.startswith(b'{"id"') and line.endswith(b"}")]

    def questions_by_process(self) -> Counter[int]:
        """Questions stored by each process that still writes, or wrote."""
        found: Counter[int] = Counter()
        for path in self.output.glob("generations/*/*.jsonl"):
            found[int(path.stem.split("-")[-2])] += path.read_bytes().count(b'{"seconds"')
        return found

    def twice(self) -> int:
        """Questions with an answer that was computed more than once."""
        good = Counter((row["id"], str(row["arm"])) for row in self.records() if "error" not in row)
        return len({name for (name, _), count in good.items() if count > 1})

    def results(self) -> bytes:
        (path,) = self.output.glob("sweeps/*/results.csv")
        return path.read_bytes()

    def expected(self) -> bytes:
        """results.csv of the undisturbed run, in this process's own folder."""
        if self.n in EXPECTED:
            return EXPECTED[self.n]
        output = self.folder / "expected"
        command = [str(TRIALS / "slow_launch.py"), *self.grid, f"output_dir={output}", "model.trouble=null"]
        done = self.end(self._spawn(command, None))
        assert done.code == 0, done.err
        (path,) = output.glob("sweeps/*/results.csv")
        EXPECTED[self.n] = path.read_bytes()
        return EXPECTED[self.n]


class Done:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"
