"""Publish a sweep in a process of its own, `python -m spatial_eval.tracking.publisher`: the only client of wandb.

Every run is written offline first, also where it is uploaded at once: only offline logs can be sent again after a
server failure. process.py starts this process with a time limit.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from spatial_eval.analysis.sweep_data import read_sweep_data
from spatial_eval.config import schema
from spatial_eval.config.tracking import TRACKERS, TrackedFiles, Tracking, Wandb
from spatial_eval.core.columns import HYPERPARAMETERS
from spatial_eval.core.errors import SpatialEvalError
from spatial_eval.core.files import find_entries
from spatial_eval.core.sweep_names import label_sweep
from spatial_eval.report.charts import draw_heat_map
from spatial_eval.tracking import upload
from spatial_eval.tracking.publications import (
    COMPLETE,
    INCOMPLETE,
    PublishLedger,
    PublishStatus,
    Request,
    Written,
    read_urls,
)
from spatial_eval.tracking.runs import TABLE_ROWS, TrackedRun, TrackedSweep, TrackedTable, build_runs, make_sweep_run_id
from spatial_eval.tracking.upload import PROBE_S, Server, Unreachable, UploadedRun

GIVE_UP = 3  # runs that fail in a row
ANSWER_S = 10.0
AT_ONCE = 8  # questions to the server


def publish_runs(request: Request, settings: Wandb, server: Server) -> PublishStatus:
    """Bring the sweep's runs up to date; a repeat changes nothing. Raises SpatialEvalError on unreadable tables."""
    ledger, status = PublishLedger(Path(request.folder)), PublishStatus()
    ids = list(ledger.list_written())
    with WandbClient(ledger) as client:
        if request.write:
            ledger.remove_leftovers()
            ids = _write_runs(client, ledger, settings, request, status)
        status.runs = len(ids)
        entries = [entry for id, entry in ledger.list_written().items() if id in set(ids)]
        if request.upload != "never":
            before = len(ledger.list_synced(server.url))
            try:
                if request.upload == "auto":
                    client.connect(server, PROBE_S)
                status.waiting = upload.upload_runs(ledger, entries, server, client)
            except Unreachable as error:
                status.notes.append(f"stays offline: {error}")
            status.uploaded = len(ledger.list_synced(server.url)) - before
        synced = ledger.list_synced()
        if status.problems or status.waiting:
            status.state = INCOMPLETE
        elif entries and all((entry.id, entry.digest) in synced for entry in entries):
            status.state = COMPLETE
        status.urls = read_urls(Path(request.folder))
        if status.uploaded:
            _find_pages(client, server, request, settings, status)
    return status


def _find_pages(client: WandbClient, server: Server, request: Request, settings: Wandb, status: PublishStatus) -> None:
    """Add to a status the addresses of the project, the sweep's group and run, and a saved view of them."""
    folder = Path(request.folder)
    group = settings.group or label_sweep(folder)
    try:
        home = client.find_project(server, settings)
        status.urls |= {
            "project": home,
            "group": f"{home}/groups/{urllib.parse.quote(group, safe='')}",
        }
        if not request.cells_only:
            status.urls["sweep"] = f"{home}/runs/{make_sweep_run_id(folder.name)}"
            if status.state == COMPLETE and "view" not in status.urls and importlib.util.find_spec("wandb_workspaces"):
                status.urls["view"] = client.save_view(server, home, folder.name)
    except Unreachable as error:
        status.notes.append(f"the pages' addresses are not known: {error}")
    except Exception as error:  # noqa: BLE001  a package of its own, whose errors are of many kinds; all tables are there
        status.notes.append(f"no view was saved: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _write_runs(
    client: WandbClient, ledger: PublishLedger, settings: Wandb, request: Request, status: PublishStatus
) -> list[str]:
    """Write what the ledger does not hold; returns the ids of all runs that the sweep has."""
    written, synced, ids, failed = ledger.list_written(), ledger.list_synced(), [], 0
    for run in _list_runs(request, settings):
        digest, old = run.digest(settings), written.get(run.id)
        ids.append(run.id)
        same = old is not None and old.digest == digest
        if (run.id, digest) in synced or (old and same and not ledger.explain_damage(old)):
            continue
        try:
            ledger.add_entry(client.write(run, digest, settings), old)
        except Exception as error:  # noqa: BLE001  one run that the client cannot write must not cost the others
            status.problems.append(f"{run.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            failed += 1
            if failed == GIVE_UP:
                status.problems.append(f"gave up after {GIVE_UP} runs that could not be written")
                break
        else:
            status.written += 1
            status.mended += same
            failed = 0
    return ids


def _list_runs(request: Request, settings: Wandb) -> Iterator[TrackedRun]:
    sweep = TrackedSweep(read_sweep_data(Path(request.source)))
    cells = None
    if request.cells_only:
        # Which cells are best is known when all are done; base gets a run in any case.
        few = request.cells <= settings.max_cell_runs
        done = [cell for cell in sweep.cells if not cell["missing"] and (few or cell["method"] == "base")]
        cells = done[: settings.max_cell_runs]
    return build_runs(sweep, settings, cells)


class WandbClient:
    """Wrap the wandb client, loaded at first use. Use as a context manager; writes below the ledger's folder only."""

    def __init__(self, ledger: PublishLedger) -> None:
        self.ledger = ledger
        self._loaded: Any = None
        self._is_connected = False

    def __enter__(self) -> WandbClient:
        return self

    def __exit__(self, *_: object) -> None:
        # The client's service waits for requests that get no answer, for many minutes: it is left to end with us.
        if self._loaded is not None and not self._is_connected:
            self._loaded.teardown()
        self.ledger.close()

    @property
    def _wandb(self) -> Any:
        if self._loaded is None:
            os.environ |= upload.make_client_environment(self.ledger.root, self.ledger.scratch, self.ledger.data)
            import wandb

            # Of a table, the file in the run's folder is cut at 10,000 rows unless told otherwise.
            wandb.Table.MAX_ROWS = wandb.Table.MAX_ARTIFACT_ROWS = TABLE_ROWS
            self._loaded = wandb
        return self._loaded

    def write(self, run: TrackedRun, digest: str, settings: Wandb) -> Written:
        """Write a run offline into the ledger's scratch folder, its table payloads under the ledger's data."""
        before = self._list_staged()
        shown = self._wandb.init(
            id=run.id,
            name=run.name,
            project=settings.project,
            entity=settings.entity,
            group=run.group,
            job_type=run.job_type,
            tags=list(settings.tags),
            config={**run.config, **run.origin},
            resume="allow",  # published again, a run's new part joins the old one
            dir=str(self.ledger.scratch),
            settings=self._wandb.Settings(
                mode="offline",
                console="off",
                silent=True,
                save_code=False,
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                host="-",
                init_timeout=15,
                finish_timeout=60,
                reinit="create_new",
            ),
        )
        try:
            shown.log(self._build_values(run))  # once: a table logged twice is two tables
            folder = Path(shown.dir).parent
        except BaseException:
            shown.finish(exit_code=1)
            raise
        shown.finish()
        keys = [*run.tables, *(f"{key}_table" for key in run.curves)]
        return Written(
            id=run.id,
            digest=digest,
            root=str(self.ledger.root),
            run=folder.name,
            staged=tuple(sorted(self._list_staged() - before)),
            artifacts=tuple(f"run-{run.id}-{key}" for key in keys),
            project=settings.project,
            entity=settings.entity,
            time=time.time_ns(),
        )

    def _build_values(self, run: TrackedRun) -> dict[str, Any]:
        wandb = self._wandb
        values: dict[str, Any] = dict(run.figures)
        values |= {key: self._build_table(table) for key, table in run.tables.items()}
        for key, chart in run.curves.items():
            xs = [[x for x, _ in line] for line in chart.lines.values()]
            ys = [[y for _, y in line] for line in chart.lines.values()]
            values[key] = wandb.plot.line_series(xs, ys, list(chart.lines), chart.title, chart.x)
        for key, grids in run.grids.items():
            values[key] = [wandb.Image(draw_heat_map(grid), caption=grid.title) for grid in grids]
        return values

    def _build_table(self, table: TrackedTable) -> Any:
        types = list(table.columns.values())
        shown = self._wandb.Table(columns=list(table.columns), data=[], dtype=types, optional=True)
        # Types are declared and ours to keep: checking every row again takes the client longer than all the rest.
        shown.data.extend(list(row) for row in table.rows)
        return shown

    def _list_staged(self) -> set[str]:
        """List the payloads in the staging folder, relative to the ledger's root."""
        paths = find_entries(self.ledger.data / "artifacts" / "staging", "*")
        return {path.relative_to(self.ledger.root).as_posix() for path in paths}

    def connect(self, server: Server, seconds: float) -> Any:
        """Return a wandb.Api whose key the server accepted. Raises Unreachable, within about `seconds`."""
        if not server.key:
            raise Unreachable("no API key: set WANDB_API_KEY, or log in with `wandb login`")
        self._is_connected = True
        with _translate_api_errors(server, seconds):
            return self._wandb.Api(overrides={"base_url": server.url}, api_key=server.key, timeout=seconds)

    def find_project(self, server: Server, settings: Wandb) -> str:
        """Return the address of the project's page. Raises Unreachable."""
        entity = settings.entity or self.connect(server, ANSWER_S).default_entity
        return f"{self._wandb.util.app_url(server.url)}/{entity}/{settings.project}"

    def save_view(self, server: Server, home: str, sweep: str) -> str:
        """Save a view of the sweep's cells for the review in docs/wandb.md, and return its address.

        Needs the package wandb-workspaces, which reads server and key from the environment alone.
        """
        import wandb_workspaces.reports.v2 as panels
        from wandb_workspaces import expr, workspaces

        axes = [panels.ParallelCoordinatesPlotColumn(panels.Config(name)) for name in ("method", *HYPERPARAMETERS)]
        axes += [panels.ParallelCoordinatesPlotColumn(panels.SummaryMetric("vs_base"))]
        shown = [
            panels.ParallelCoordinatesPlot(columns=axes, title="what each key does to vs_base"),
            panels.ScatterPlot(
                title="routing", x=panels.SummaryMetric("share_weight1"), y=panels.SummaryMetric("vs_base")
            ),
            panels.BarPlot(title="vs_base", metrics=[panels.Metric("vs_base")], max_bars_to_show=20),
        ]
        *_, entity, project = home.split("/")
        view = workspaces.Workspace(
            entity=entity,
            project=project,
            name=f"sweep {sweep}",
            sections=[workspaces.Section(name="Against base", panels=shown, is_open=True)],
            runset_settings=workspaces.RunsetSettings(
                filters=[expr.Config("sweep") == sweep, expr.Metric("JobType") == "cell"],
                groupby=[expr.Config("method")],
                order=[expr.Ordering(expr.Summary("vs_base"), ascending=False)],
            ),
        )
        os.environ |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}
        try:
            return str(view.save().url)
        finally:
            del os.environ["WANDB_API_KEY"], os.environ["WANDB_BASE_URL"]

    def find_uploaded(self, server: Server, entries: Sequence[Written]) -> dict[str, UploadedRun]:
        """Return the lines and tables that the server has of each run, by id. Raises Unreachable."""
        api = self.connect(server, ANSWER_S)

        def ask(entry: Written) -> UploadedRun:
            try:
                run = api.run(f"{entry.entity or own}/{entry.project}/{entry.id}")
            except self._wandb.CommError as error:
                if isinstance(error.exc, ValueError):  # no such run
                    return UploadedRun()
                raise
            try:
                committed = [table for table in run.logged_artifacts() if table.state == "COMMITTED"]
            except AssertionError:  # the client cannot list an artifact that was begun and not committed
                committed = []
            tables = frozenset(table.source_name.partition(":")[0] for table in committed)
            return UploadedRun(run.history_line_count or 0, tables)

        with _translate_api_errors(server, ANSWER_S), ThreadPoolExecutor(AT_ONCE) as pool:
            own = api.default_entity
            return dict(zip((entry.id for entry in entries), pool.map(ask, entries), strict=True))


@contextmanager
def _translate_api_errors(server: Server, seconds: float) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001  the client raises its own errors and those of the parts it is made of
        cause = error.__cause__ or error
        if type(cause).__name__ != "WandbApiFailedError":  # of a module that is not public
            reason = f"cannot be asked: {' '.join(f'{type(cause).__name__} {cause}'.split())}"
        elif cause.response is None:  # type: ignore[attr-defined]
            reason = f"did not answer within {seconds:g} s"
        else:
            status = cause.response.http_status  # type: ignore[attr-defined]
            reason = "does not accept the API key" if status in (401, 403) else f"answers with HTTP {status}"
        raise Unreachable(f"{server.url} {reason}") from None


def serve_request() -> NoReturn:
    """Read a Request with the seconds it may take from stdin, write a PublishStatus to stdout, both as JSON."""
    given = json.loads(sys.stdin.read())
    signal.alarm(int(given.pop("seconds")) + 5)  # should the process that bounds this one be gone
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever a client prints is no answer
    try:
        request = Request(**given)
        status = _publish(request, schema.build_by_kind(TRACKERS, request.tracker, "tracking"))
    except (SpatialEvalError, OSError) as error:
        status = PublishStatus(INCOMPLETE, problems=[str(error)])
    with os.fdopen(answer, "w") as file:
        json.dump(asdict(status), file)
    os._exit(0)  # what the client registered for the end of the process waits for its service


def _publish(request: Request, tracking: Tracking) -> PublishStatus:
    if not isinstance(tracking, Wandb):
        if not isinstance(tracking, TrackedFiles):
            tracking.publish(Path(request.folder))
        return PublishStatus(COMPLETE)
    server = upload.find_server(os.environ, Path.home())
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        del os.environ[name]  # the key goes to the upload alone, and no setting of the user's shell bends a run
    if request.upload == "probe":
        return _probe(server)
    return publish_runs(request, tracking, server)


def _probe(server: Server) -> PublishStatus:
    """Ask the server whether it accepts the key; its answer is the status' only note, or its only problem."""
    with tempfile.TemporaryDirectory() as folder, WandbClient(PublishLedger(Path(folder))) as client:
        try:
            entity = client.connect(server, PROBE_S).default_entity
        except Unreachable as error:
            return PublishStatus(INCOMPLETE, problems=[str(error)])
    return PublishStatus(COMPLETE, notes=[f"{server.url} knows the key of {entity}"])


if __name__ == "__main__":
    serve_request()
