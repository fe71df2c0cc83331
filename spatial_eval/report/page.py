"""Write report.html: one self-contained page about a sweep, from the sweep's own files.

sections.py computes what it shows, templates/ lays it out.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from spatial_eval.analysis.selection import Selected, picks, select_by_settings
from spatial_eval.analysis.sweep_data import SweepData, read_sweep_data
from spatial_eval.core.files import write_atomic
from spatial_eval.core.paths import SweepPaths
from spatial_eval.report.figures import grid_data, spell_gain, thumbnails
from spatial_eval.report.framings import write_framings
from spatial_eval.report.samples import write_samples
from spatial_eval.report.sections import SECTIONS, ReportContext
from spatial_eval.report.sheets import format_interval

UNNAMED = "recorded"  # default of model.name in conf/model/recorded.yaml


def write_report(folder: Path) -> Path:
    """Write report.html into a sweep's folder.

    Raises:
        DataError: the folder's files are incomplete.
    """
    files = read_sweep_data(folder)
    return _write_page(files, picks(files))


def try_write_report(folder: Path) -> tuple[str, SweepData | None, list[Selected]]:
    """Write report.html at the end of a run; an error in the page or in a choice must not lose the results.

    Returns:
        One line for the log, the sweep's data, and the best cells for the table on stdout.
    """
    files: SweepData | None = None
    shown: list[Selected] = []
    try:
        files = read_sweep_data(folder)
        chosen = picks(files)
        shown = select_by_settings(files, chosen)
        return f"report: {_write_page(files, chosen)}", files, shown
    except Exception as error:  # noqa: BLE001  whatever it is, the results stand
        return f"no report.html: {type(error).__name__}: {error}".splitlines()[0], files, shown


def _write_page(files: SweepData, chosen: Sequence[Selected]) -> Path:
    path = SweepPaths(files.folder).report
    write_samples(files, chosen)
    write_framings(files)
    write_atomic(path, render_page(files, chosen))
    return path


def render_page(files: SweepData, chosen: Sequence[Selected] | None = None) -> str:
    """Render the whole document. `chosen`: its best cells; None = choose them here."""
    chosen = picks(files) if chosen is None else chosen
    context = ReportContext(files, chosen, thumbnails(files.about))
    built = {name: build(context) for name, build in SECTIONS.items()}
    sections = {name: values for name, values in built.items() if values is not None}
    names = {f"{name}s": list(dict.fromkeys(files.cells[name])) for name in ("dataset", "method")}
    names["models"] = _label_models(files)
    title = str(files.about.get("name") or f"Sweep {files.folder.name}")
    written = datetime.fromtimestamp(SweepPaths(files.folder).results.stat().st_mtime, UTC)
    command = shlex.join(["python", *files.about.get("command", [])])
    head = {"name": title, "date": f"{written:%Y-%m-%d %H:%M} UTC", "command": command}
    page = templates().get_template("page.html.j2")
    return page.render(files=files, sections=sections, data=grid_data(files, chosen), **head, **names)


def _label_models(files: SweepData) -> list[str]:
    """Return the models' labels; those of recordings with what is known of the model that gave the answers."""
    models = {one["model"]["name"]: one["model"] for one in files.about["trunks"]}
    labels = []
    for name in dict.fromkeys(files.cells["model"]):
        recorded = models.get(name, {}).get("kind") == "Recorded"
        unnamed = ", of a model that is not named: model.name=NAME" if name == UNNAMED else ""
        labels.append(f"{name} (answers of another run{unnamed})" if recorded else name)
    return labels


@cache
def templates() -> Environment:
    """Build the templates' environment: every value is escaped, an undefined name is an error."""
    found = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    found.filters |= {"interval": format_interval, "gain": spell_gain}
    return found
