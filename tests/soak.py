"""Random kills and requeues over many short sweeps, on Slurm and on the local pool. Not a part of `make test`.

python tests/soak.py --minutes 5 [--seed 1]

Only a strike at a job that runs and has stored a part of its questions counts. Whatever was struck, the sweep must
end, by `retry` if need be, with the undisturbed run's results.csv. The last line is the counts; exit code 1 where
a row was lost or differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from trials.cluster import Cluster
from trials.trial import Trial

from spatial_eval.launch.records import Attempt

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]


SLURM = (
    *("launcher=slurm", "launcher.gpus=1", "launcher.cpus=1", "launcher.poll=0.5", "launcher.lost=6"),
    "launcher.time=30",
)
RETRIES = 4


def parent(run: Attempt) -> int:
    return int(Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()[1])


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
    "job's parent killed": lambda run, driver: os.kill(parent(run), signal.SIGKILL),
    "requeued": slurm("scontrol", "requeue"),
    "timed out": slurm("scancel", "--signal=USR2"),
    "scancelled": slurm("scancel"),
}


def sweep(folder: Path, chance: random.Random, cluster: Cluster | None) -> tuple[Counter[str], int, str]:
    """One sweep, struck up to three times: (strikes, questions computed twice, what is wrong or "")."""
    shards = f"launcher.shards={chance.randint(1, 4)}"
    launcher = (*SLURM, shards) if cluster else ("launcher=local", "launcher.slots=4", shards)
    strikes = SLURM_STRIKES if cluster else POOL_STRIKES
    trial = Trial(folder, *launcher, n=chance.choice([12, 18, 24]), seconds=chance.uniform(0.1, 0.5))
    counts: Counter[str] = Counter()
    try:
        process = trial.start()
        for _ in range(chance.randint(1, 3)):
            time.sleep(chance.uniform(0, 1))
            with contextlib.suppress(
                AssertionError, ProcessLookupError, FileNotFoundError, subprocess.CalledProcessError
            ):
                run = trial.struck(least=1, seconds=8)
                if cluster and cluster.state(run.slurm) != "RUNNING":
                    continue
                name = chance.choice(list(strikes))
                if name.startswith("driver") and process.poll() is not None:
                    continue
                strikes[name](run, process.pid)
                counts[name] += 1
                if name.startswith("driver"):
                    break
        done = trial.end(process)
        for _ in range(RETRIES):
            if done.code == 0:
                break
            done = trial.cli("retry")
        if done.code:
            return counts, trial.twice(), f"not complete after {RETRIES} retries: {done}"
        return counts, trial.twice(), "" if trial.results() == trial.expected() else f"results differ in {folder}"
    except (AssertionError, subprocess.TimeoutExpired) as error:
        return counts, trial.twice(), f"{type(error).__name__}: {error}"
    finally:
        trial.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Random kills over many short sweeps; the last line is the counts.")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parsed = parser.parse_args()
    if "SLURM_TEST_DIR" not in os.environ:  # again, beside a cluster of its own
        os.execvp("bash", ["bash", str(HERE / "run_slurm.sh"), sys.executable, *sys.argv, "--seed", str(parsed.seed)])
    why = os.environ.get("SLURM_TEST_WHY")
    cluster = None if why else Cluster(Path(os.environ["SLURM_TEST_DIR"]))
    sys.stdout.write(f"seed {parsed.seed}{f', pool only: {why}' if why else ''}\n")
    chance = random.Random(parsed.seed)
    end = time.monotonic() + 60 * parsed.minutes
    strikes: Counter[str] = Counter()
    sweeps: Counter[str] = Counter()
    twice, wrong = 0, []
    while time.monotonic() < end:
        on = cluster if chance.random() < 0.6 else None
        if on:
            on.settle()
        folder = Path(tempfile.mkdtemp(prefix="soak-"))
        counts, again, error = sweep(folder, chance, on)
        strikes += counts
        twice += again
        sweeps["Slurm" if on else "pool"] += 1
        sys.stdout.write(f"{'Slurm' if on else 'pool '} {dict(counts)} {error or 'same results'}\n")
        sys.stdout.flush()
        if error:
            wrong.append(error)
        else:
            shutil.rmtree(folder)
    if cluster:
        cluster.settle()
    hits = ", ".join(f"{count} {name}" for name, count in sorted(strikes.items()))
    sys.stdout.write(
        f"{sweeps.total()} sweeps ({sweeps['Slurm']} Slurm, {sweeps['pool']} pool), {strikes.total()} strikes at "
        f"running jobs ({hits}), {twice} questions computed twice, {len(wrong)} sweeps with lost or differing rows\n"
    )
    return 1 if wrong or not strikes else 0


if __name__ == "__main__":
    sys.exit(main())
