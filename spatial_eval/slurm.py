"""Jobs as Slurm arrays, submitted through submitit. Completion is judged by the jobs' own files."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import ledger, sbatch, squeue
from .element import Element
from .errors import ConfigError
from .launchers import Resources, Slurm
from .ledger import Fault, Launch, Run, Task, Watch
from .progress import Board, Line
from .squeue import Chunk

log = logging.getLogger(__name__)

TICK_S = 1.0


def ready() -> None:
    """Raises ConfigError where nothing can be submitted from this machine."""
    if not shutil.which("sbatch") or not shutil.which("srun"):
        raise ConfigError(
            "launcher=slurm but sbatch and srun are not on PATH: run this on a login node, or launcher=local"
        )


def run(launch: Launch, tasks: Sequence[Task], launcher: Slurm, code: Path) -> tuple[list[Fault], int]:
    """(what failed for good, jobs left to the queue). Raises ConfigError where the first array is refused."""
    queue = Queue(launch, launcher, code)
    try:
        queue.submit(tasks)
    except BaseException:
        squeue.cancel(launch)
        shutil.rmtree(launch.folder, ignore_errors=True)
        raise
    if not launcher.wait:
        return [], len(tasks)
    try:
        faults = queue.wait(tasks)
    except KeyboardInterrupt:
        log.warning("the jobs go on in Slurm's queue: `python -m spatial_eval status|cancel %s`", launch.sweep)
        raise
    launch.mark("closed")
    return faults, 0


@dataclass(slots=True)
class Queue:
    """The jobs of one launch in Slurm's queue."""

    launch: Launch
    launcher: Slurm
    code: Path
    faults: list[Fault] = field(default_factory=list)
    _waiting: list[list[Task]] = field(default_factory=list)  # arrays that the site has no room for yet
    _absent: dict[str, float] = field(default_factory=dict)  # task -> since when nobody runs it
    _deaths: dict[str, int] = field(default_factory=dict)
    _refused: str = ""

    def submit(self, tasks: Sequence[Task], *, first: bool = True) -> None:
        """As arrays of equal resources, none larger than the site takes; what is refused waits for room.

        Raises ConfigError where the `first` array is refused: something is wrong with it, not with the room.
        """
        groups: dict[Resources, list[Task]] = {}
        for task in tasks:
            groups.setdefault(task.resources, []).append(task)
        size = self.launcher.max_array
        arrays = [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]
        at_once = max(1, self.launcher.array_parallelism // len(arrays))
        started = time.perf_counter()
        for position, array in enumerate(arrays):
            try:
                self._sbatch(array, at_once)
            except ConfigError as error:
                if position == 0 and first:
                    raise
                self._waiting, self._refused = [*self._waiting, *arrays[position:]], str(error)
                log.warning("%s; %d arrays wait for room in the queue", error, len(self._waiting))
                break
        log.info("submitted %d jobs in %.1f s", len(tasks), time.perf_counter() - started)

    def _sbatch(self, array: Sequence[Task], at_once: int) -> None:
        import submitit

        number = len(squeue.chunks(self.launch))
        chunk = Chunk(f"spatial-eval-{self.launch.sweep}-{self.launch.name}-{number}", tuple(t.name for t in array))
        executor = submitit.SlurmExecutor(
            self.launch.folder / "slurm",
            max_num_timeout=10**6,  # Element.checkpoint ends what gets nowhere
            python=self.launcher.python,
        )
        executor.update_parameters(
            **sbatch.parameters(self.launcher, array[0].resources, chunk.name, self.code, at_once)
        )
        chunk.write(self.launch)
        with sbatch.outside():
            try:
                jobs = executor.map_array(Element(str(self.launch.folder)), chunk.tasks)
            except submitit.core.utils.FailedJobError as error:
                why = " ".join(str(error).split())
                Chunk(chunk.name, (), "refused").write(self.launch)
                raise ConfigError(f"sbatch refused the jobs: {why}") from None
        Chunk(chunk.name, chunk.tasks, jobs[0].job_id.partition("_")[0]).write(self.launch)

    def wait(self, tasks: Sequence[Task]) -> list[Fault]:
        """Until every task is done or given up. Notices what no longer runs within launcher.lost seconds."""
        watch = Watch(self.launch)
        still = {task.name: task for task in tasks}
        asked = -self.launcher.poll
        with Board(len(tasks)) as board:
            while still and not self.launch.is_cancelled:
                runs = watch.runs()
                ended = [name for name in still if ledger.state(runs.get(name, [])) == "done"]
                for name in ended:
                    del still[name]
                if time.monotonic() - asked >= self.launcher.poll:
                    asked = time.monotonic()
                    self._look(still, runs)
                board.show(_lines(still, runs), len(tasks) - len(still))
                self.launch.beat()
                if still:
                    time.sleep(min(TICK_S, self.launcher.poll))
        self.faults += [Fault(task.label, "cancelled", "") for task in still.values()]
        return self.faults

    def _look(self, still: dict[str, Task], runs: Mapping[str, Sequence[Run]]) -> None:
        """Give up, or submit again, what nobody runs any more; `still` loses what was given up."""
        found = squeue.elements(self.launch)
        if found is None:
            log.warning("squeue does not answer; waiting for what the jobs themselves say")
            return
        again = self._roomless()
        roomless = {task.name for task in again}
        for name, task in list(still.items()):
            own, element = runs.get(name, ()), found.get(name)
            if element and element.is_held:
                self._release(task, element, still)
                continue
            if name in roomless or (element and element.is_active) or any(run.alive for run in own):
                self._absent.pop(name, None)
                continue
            since = self._absent.setdefault(name, time.monotonic())
            spoke = bool(own) and own[-1].state == "failed"
            # Between a node's failure and the requeue a job looks ended for some seconds.
            if not spoke and time.monotonic() - since < self.launcher.lost:
                continue
            del self._absent[name]
            fault, more = verdict(self.launch, task, own, element)
            self._deaths[name] = self._deaths.get(name, 0) + 1
            if more and self._deaths[name] <= self.launcher.retries:
                log.warning("%s; submitting it again, from what is stored", fault.cause)
                again.append(task)
            else:
                self.faults.append(fault)
                del still[name]
        if again:
            self.submit(again, first=False)
        if sum(map(len, self._waiting)) == len(still):  # nothing of ours is queued and there is still no room
            for task in self._roomless():
                self.faults.append(Fault(task.label, f"{task.label}: {self._refused}", ""))
                del still[task.name]

    def _roomless(self) -> list[Task]:
        """Takes what waits for room in the queue."""
        tasks = [task for array in self._waiting for task in array]
        self._waiting.clear()
        return tasks

    def _release(self, task: Task, element: squeue.Element, still: dict[str, Task]) -> None:
        """A job that Slurm holds because a node failed to launch it would wait for ever."""
        self._deaths[task.name] = self._deaths.get(task.name, 0) + 1
        if self._deaths[task.name] <= self.launcher.retries + 1 and squeue.release(element.id):
            log.warning("%s: Slurm held job %s (%s); released it", task.label, element.id, element.reason)
            return
        squeue.end(element.id)
        cause = f"{task.label}: Slurm could not start job {element.id} ({element.reason})"
        self.faults.append(Fault(task.label, cause, str(squeue.log_path(self.launch, element.id))))
        del still[task.name]


def verdict(launch: Launch, task: Task, own: Sequence[Run], element: squeue.Element | None) -> tuple[Fault, bool]:
    """(why nobody runs a task, whether to submit it again)."""
    job = element.id if element else own[-1].slurm if own else ""
    path = str(squeue.log_path(launch, job)) if job else ""
    if own and own[-1].state == "failed":
        return Fault(task.label, "; ".join(own[-1].errors), path, own[-1].needs_fix), own[-1].again
    state = element.state if element else squeue.accounting(job) if job else ""
    if state == "CANCELLED":
        return Fault(task.label, f"{task.label}: job {job} was cancelled", path), False
    if state:
        return Fault(task.label, f"{task.label}: Slurm ended job {job} as {state}", path), True
    return Fault(task.label, f"{task.label}: Slurm does not know the job any more; cancelled or lost", path), False


def _lines(still: Mapping[str, Task], runs: Mapping[str, Sequence[Run]]) -> list[Line]:
    last = {name: found[-1] for name, found in runs.items() if name in still}
    return [Line(still[name].label, run.done, run.total) for name, run in last.items() if run.state == "running"]
