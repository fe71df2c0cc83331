"""Random kills and requeues over many short sweeps, on Slurm, on the local pool and in one process: `make soak`, or

    python tests/soak.py --minutes 5 [--seed 1] [--on inline pool Slurm]

On Slurm and in a pool only a strike at a job that runs and has stored a part of its questions counts. One or two
drivers run one sweep, half of them with captured attention. Inline, some drivers have another host name (a UTS
namespace: root only) and are killed with SIGKILL at any moment; meanwhile files of the jobs' state are dated an hour
back or ahead, as a clock that jumps dates them. Whatever was struck, the sweep must end, by `retry` or the same command
if need be, with the undisturbed run's tables, captures and answers. The last line is the counts; exit code 1 where
something was lost or differs.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), *(str(HERE / name) for name in ("", "support", "trials"))]

from trials.cluster import Cluster  # noqa: E402
from trials.trial import TRIALS, Trial  # noqa: E402

from spatial_eval.cli.main import main as run_command  # noqa: E402
from spatial_eval.launch.records import Attempt  # noqa: E402
from spatial_eval.sweep import run as _  # noqa: E402, F401  before processes are forked

SLURM = (
    *("launcher=slurm", "launcher.gpus=1", "launcher.cpus=1", "launcher.poll=0.5", "launcher.lost=6"),
    "launcher.time=30",
)
RETRIES = 4


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def slurm(*command: str) -> Callable[[Attempt, int], None]:
    return lambda run, driver: (
        subprocess.run([*command, run.slurm], check=True, capture_output=True, timeout=30) and None
    )


POOL_STRIKES: dict[str, Callable[[Attempt, int], None]] = {
    "task killed": lambda run, driver: os.kill(run.pid, signal.SIGKILL),
    "driver killed": lambda run, driver: os.kill(driver, signal.SIGKILL),
    "driver interrupted": lambda run, driver: os.kill(driver, signal.SIGINT),
}
SLURM_STRIKES: dict[str, Callable[[Attempt, int], None]] = {
    **POOL_STRIKES,
    "job's parent killed": lambda run, driver: os.kill(parent(run.pid), signal.SIGKILL),
    "step killed": lambda run, driver: os.kill(parent(parent(run.pid)), signal.SIGKILL),
    "requeued": slurm("scontrol", "requeue"),
    "timed out": slurm("scancel", "--signal=USR2"),
    "scancelled": slurm("scancel"),
}


def sweep(folder: Path, chance: random.Random, cluster: Cluster | None) -> tuple[Counter[str], int, str]:
    """One sweep of one or two drivers, struck up to three times: (strikes, questions computed twice, what is wrong)."""
    shards, capture = f"launcher.shards={chance.randint(1, 4)}", chance.choice(["none", "map"])
    launcher = (*SLURM, shards) if cluster else ("launcher=local", "launcher.slots=4", shards)
    strikes = SLURM_STRIKES if cluster else POOL_STRIKES
    n, two = chance.choice([12, 18, 24]), chance.random() < 0.4
    trial = Trial(folder, *launcher, f"capture={capture}", n=n, seconds=chance.uniform(0.1, 0.5))
    calm = Trial(folder / "calm", "launcher=inline", f"capture={capture}", n=n, seconds=0)
    where = f"{', two drivers' * two}{f', capture={capture}' * (capture != 'none')}"
    counts: Counter[str] = Counter()
    if Driver(calm).wait() != 0:
        return counts, 0, f"the undisturbed run failed: {folder / 'calm' / 'log'}"
    try:
        drivers = [trial.start()]
        for _ in range(chance.randint(1, 3)):
            time.sleep(chance.uniform(0, 1))
            if two and len(drivers) < 2:
                drivers.append(trial.start())
            with contextlib.suppress(
                AssertionError, ProcessLookupError, FileNotFoundError, subprocess.CalledProcessError
            ):
                run = trial.struck(least=1, seconds=8)
                if cluster and cluster.state(run.slurm) != "RUNNING":
                    continue
                name, driver = chance.choice(list(strikes)), chance.choice(drivers)
                if name.startswith("driver") and driver.poll() is not None:
                    continue
                strikes[name](run, driver.pid)
                counts[f"{name}{where}"] += 1
                if name.startswith("driver") and not two:
                    break
        done = [trial.end(process) for process in drivers]
        while any(one.code for one in done) and done[-1].code and len(done) < len(drivers) + RETRIES:
            done.append(trial.cli("retry"))
        if done[-1].code:
            return counts, trial.twice(), f"not complete after {RETRIES} retries in {folder}: {done}"
        return counts, trial.twice(), compare_outcomes(calm, trial)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        return counts, trial.twice(), f"{type(error).__name__} in {folder}: {error}"
    finally:
        trial.close()


NEW_UTS = 0x04000000  # CLONE_NEWUTS of unshare(2)
KILLS = 4  # of one inline sweep
JUMPS_S = (-3600.0, -90.0, 3600.0)


class Driver:
    """The command of an inline trial in a forked process; `code`: its exit code, None while it runs, -9 if killed."""

    def __init__(self, trial: Trial, host: str = "") -> None:
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            with (trial.folder / "log").open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            if host and ctypes.CDLL(None).unshare(NEW_UTS) == 0:
                socket.sethostname(host)
            code = run_command(["run", "--config-dir", str(TRIALS / "conf"), *trial.command])
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def wait(self, seconds: float = 240) -> int:
        """Raises TimeoutError where it hangs, and kills it."""
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"a driver hangs: not done after {seconds:.0f} s")
            time.sleep(0.02)
        return code


def jump_clock(output: Path, chance: random.Random) -> bool:
    """Date a file of the jobs' state as a clock that jumped would; returns whether there was one."""
    files = [path for path in output.glob("sweeps/*/jobs/*/*.json") if path.name != "launch.json"]
    if files:
        moment = time.time() + chance.choice(JUMPS_S)
        with contextlib.suppress(FileNotFoundError):
            os.utime(chance.choice(files), (moment, moment))
    return bool(files)


def await_growth(trial: Trial, seconds: float = 8) -> None:
    """Wait until more is stored than now; not for ever: it may be complete."""
    before, end = sum(trial.questions_by_process().values()), time.monotonic() + seconds
    while sum(trial.questions_by_process().values()) <= before and time.monotonic() < end:
        time.sleep(0.02)


def read_outcome(trial: Trial) -> dict[str, object]:
    """Return what must not depend on kills: tables and arrays byte for byte, and each stored answer."""
    names = ("results.csv", "by_relation.csv", "failures.csv", "samples.parquet", "attention/*.npz")
    paths = [path for name in names for path in trial.output.glob(f"sweeps/*/{name}")]
    own = ("device", "crc")  # who wrote it
    answers = {
        (str(row["id"]), str(row["arm"])): {name: value for name, value in row.items() if name not in own}
        for row in trial.records()
    }
    return {"answers": answers, **{path.name: path.read_bytes() for path in paths}}


def compare_outcomes(calm: Trial, trial: Trial) -> str:
    """Return what differs from the undisturbed run; "" where nothing does."""
    expected, found = read_outcome(calm), read_outcome(trial)
    wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    return f"{', '.join(wrong)} differ in {trial.folder}" if wrong else ""


def soak_inline(folder: Path, chance: random.Random) -> tuple[Counter[str], int, str]:
    """One sweep of one or two drivers that are killed: as `sweep`."""
    two, n = chance.random() < 0.5, chance.choice([12, 18, 24])
    capture, host = chance.choice(["none", "map", "map"]), "elsewhere" * (chance.random() < 0.4)
    trial = Trial(folder, "launcher=inline", f"capture={capture}", n=n, seconds=chance.uniform(0.02, 0.1))
    calm = Trial(folder / "calm", "launcher=inline", f"capture={capture}", n=n, seconds=0)
    if Driver(calm).wait() != 0:
        return Counter(), 0, f"the undisturbed run failed: {folder / 'calm' / 'log'}"
    where = f"{'two drivers' if two else 'one driver'}{', two hosts' * bool(two and host)}, capture={capture}"
    counts, drivers = Counter[str](), [Driver(trial), *([Driver(trial, host)] if two else [])]
    try:
        for _ in range(chance.randint(1, KILLS)):
            if chance.random() < 0.7:  # while it computes
                await_growth(trial)
            time.sleep(chance.uniform(0, 0.6))
            if chance.random() < 0.3 and jump_clock(trial.output, chance):
                counts["clock jumped"] += 1
            i = chance.randrange(len(drivers))
            if drivers[i].poll() is None:
                drivers[i].kill()
                counts[f"killed inline ({where})"] += 1
            drivers[i] = Driver(trial, host * i)
        codes = [driver.wait() for driver in drivers]
        while any(codes) and codes[-1] and len(codes) < len(drivers) + RETRIES:
            codes.append(Driver(trial).wait())
        if codes[-1]:
            return counts, trial.twice(), f"not complete: exit codes {codes} in {folder}"
        return counts, trial.twice(), compare_outcomes(calm, trial)
    except TimeoutError as error:
        return counts, trial.twice(), f"{error} in {folder}"
    finally:
        for driver in drivers:
            if driver.poll() is None:
                driver.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description="Random kills over many short sweeps; the last line is the counts.")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--on", nargs="+", choices=["inline", "pool", "Slurm"], default=["inline", "pool", "Slurm"])
    parsed = parser.parse_args()
    if "Slurm" in parsed.on and "SLURM_TEST_DIR" not in os.environ:  # again, beside a cluster of its own
        os.execvp("bash", ["bash", str(HERE / "run_slurm.sh"), sys.executable, *sys.argv, "--seed", str(parsed.seed)])
    why = os.environ.get("SLURM_TEST_WHY")
    cluster = None if why or "Slurm" not in parsed.on else Cluster(Path(os.environ["SLURM_TEST_DIR"]))
    launchers = [name for name in parsed.on if name != "Slurm" or cluster]
    sys.stdout.write(f"seed {parsed.seed}{f', no Slurm: {why}' if why else ''}\n")
    chance = random.Random(parsed.seed)
    end = time.monotonic() + 60 * parsed.minutes
    strikes: Counter[str] = Counter()
    sweeps: Counter[str] = Counter()
    twice, wrong = 0, []
    while launchers and time.monotonic() < end:
        launcher = chance.choice(launchers)
        folder = Path(tempfile.mkdtemp(prefix="soak-"))
        if launcher == "inline":
            counts, again, error = soak_inline(folder, chance)
        else:
            if cluster and launcher == "Slurm":
                cluster.settle()
            counts, again, error = sweep(folder, chance, cluster if launcher == "Slurm" else None)
        strikes += counts
        twice += again
        sweeps[launcher] += 1
        sys.stdout.write(f"{launcher:6} {dict(counts)} {error or 'same results'}\n")
        sys.stdout.flush()
        if error:
            wrong.append(error)
        else:
            shutil.rmtree(folder)
    if cluster:
        cluster.settle()
    hits = ", ".join(f"{count} {name}" for name, count in sorted(strikes.items()))
    jumps = strikes["clock jumped"]
    sys.stdout.write(
        f"{sweeps.total()} sweeps ({', '.join(f'{count} {name}' for name, count in sweeps.items())}), "
        f"{strikes.total() - jumps} kills ({hits}), {twice} questions computed twice, "
        f"{len(wrong)} sweeps with lost or differing rows\n"
    )
    return 1 if wrong or not strikes else 0


if __name__ == "__main__":
    sys.exit(main())
