"""Methods and datasets of another installed package: used like our own; its mistakes are one line."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, questions, recordings, write_lines

import spatial_eval
from spatial_eval.cli.main import main
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.types import Routing
from spatial_eval.methods import registry, routing
from spatial_eval.methods.registry import BENCHMARKS, METHODS

OWN = ROOT / "examples" / "own_package"


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    for name in ("lab", "den", "own_package"):
        sys.modules.pop(name, None)


def install(folder: Path, name: str, code: str, group: str = "methods", **points: str) -> Path:
    """A package as pip leaves it in `folder`: `<name>.py` and its metadata; `points` are of `group`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(code, "utf8")
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.1\n", "utf8")
    lines = [f"{entry} = {value}\n" for entry, value in points.items()]
    (info / "entry_points.txt").write_text("".join([f"[spatial_eval.{group}]\n", *lines]), "utf8")
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with examples/own_package in it, installed."""
    project = tomllib.loads((OWN / "pyproject.toml").read_text("utf8"))["project"]
    folder = install(tmp_path / "site", "own_package", (OWN / "own_package.py").read_text("utf8"))
    (entry_points,) = folder.glob("*/entry_points.txt")
    sections = [
        [f"[{group}]", *(f"{n} = {v}" for n, v in found.items())] for group, found in project["entry-points"].items()
    ]
    entry_points.write_text("\n".join(line for section in sections for line in section), "utf8")
    return folder


@pytest.fixture
def sheet(tmp_path: Path) -> list[str]:
    """Overrides of a recorded experiment on 40 questions in a CSV file."""
    rows = questions(40)
    with (tmp_path / "sheet.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer", "options", "image"])
        writer.writerows([row["question"], row["answer"][0], "|".join(row["options"]), ""] for row in rows)
    recorded = write_lines(tmp_path / "recorded.jsonl", recordings(rows, "sheet"))
    return ["dataset=sheet", f"dataset.path={tmp_path / 'sheet.csv'}", "model=recorded", f"model.path={recorded}"]


def table(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    assert done.returncode == 0, done.stderr
    with Path(done.stdout.splitlines()[-1]).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("launcher", ["inline", "local"])
def test_a_package_brings_a_method_a_dataset_and_a_sweep(launcher, own, sheet, launch, tmp_path, monkeypatch) -> None:
    env = {"PYTHONPATH": str(own)}
    done = launch(
        *("--config-dir", str(OWN / "conf"), "sweep=bands", f"launcher={launcher}", *sheet),
        *(["launcher.slots=1"] * (launcher == "local")),
        env=env,
    )
    rows = table(done)
    assert [(row["method"], row["weight"], row["settings"]) for row in rows] == [
        ("base", "", ""),
        *(("band", weight, f"low={low}") for weight in ("0.5", "0.8") for low in ("0.2", "0.4")),
    ]
    assert {row["dataset"] for row in rows} == {"sheet"}
    assert "method base does not use method.low, weight" in done.stderr

    # The readers find the method by its name too: from Python, compare, select and the dashboard.
    monkeypatch.syspath_prepend(str(own))
    fresh = registry.PluginTable("spatial_eval.methods", routing.METHODS, registry.METHODS.members)
    for module in ("config.descriptions", "analysis.selection", "report.tables"):
        monkeypatch.setattr(f"spatial_eval.{module}.METHODS", fresh)
    found = spatial_eval.load(output_dir=tmp_path / "out")
    cell = found.find(method="band", weight=0.5, low=0.4)
    assert (found.method(cell).low, found.method(cell).high) == (0.4, 0.5)
    assert found.files.about["plugins"] == {"own-package": "0.1"}
    assert found.files.about["command"][2:4] == ["--config-dir", str(OWN / "conf")]


def test_its_options_are_listed_and_named_in_errors(own, launch) -> None:
    flag = ["--config-dir", str(OWN / "conf")]
    shown = launch(*flag, "--help", env={"PYTHONPATH": str(own)}).stdout
    assert "method: adapt_vis, answer_yes, band, base" in shown
    done = launch(*flag, "method=bend")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: unknown method 'bend'; did you mean band? (valid: adapt_vis, answer_yes, band, base"
    )
    assert "did you mean bands?" in launch(*flag, "sweep=band").stderr
    done = launch(*flag, "method=band")
    assert done.stderr.startswith("error: unknown method.kind 'band'"), "not installed, it is no method"
    assert done.stderr.count("\n") == 1


def test_a_folder_of_options_that_cannot_be_meant_is_refused(launch, tmp_path) -> None:
    def says(folder: str) -> str:
        done = launch("--config-dir", folder, "method=base", "action=plan")
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    assert says(str(tmp_path / "none")) == f"error: --config-dir {tmp_path / 'none'}: there is no such folder\n"
    assert "no YAML in any of its folders dataset, model, method" in says(str(tmp_path))
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "base.yaml").write_text("kind: base\n")
    assert "method base is one of spatial_eval's own: rename the file" in says(str(tmp_path))
    (tmp_path / "method" / "base.yaml").rename(tmp_path / "method" / "torn.yaml")
    (tmp_path / "method" / "torn.yaml").write_text("kind: [\n")
    done = launch(f"--config-dir={tmp_path}", "method=torn")
    assert "method/torn.yaml is not YAML: while parsing a flow node" in done.stderr
    assert done.stderr.count("\n") == 1


GOOD = "from spatial_eval.methods.routing import ScalingVis as Mine\n"


@pytest.mark.parametrize(
    ("code", "entry", "value", "says"),
    [
        (GOOD, "base", "lab:Mine", "entry point base = lab:Mine of spatial_eval.methods: base is spatial_eval's own"),
        (GOOD, "My Own", "lab:Mine", "a name is lower case letters, digits and _"),
        ("1 / 0", "mine", "lab:Mine", "cannot be imported (ZeroDivisionError: division by zero): fix it or uninstall"),
        (GOOD, "mine", "lab:Other", "cannot be imported (AttributeError: module 'lab' has no attribute 'Other')"),
        ("Mine = 3", "mine", "lab:Mine", "is not a frozen dataclass"),
        (
            "from dataclasses import dataclass\n@dataclass\nclass Mine:\n    weight: float\n",
            *("mine", "lab:Mine", "is not a frozen dataclass"),
        ),
        (
            "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    kind: str = 'mine'\n",
            *("mine", "lab:Mine", "has no branches, arms, route"),
        ),
    ],
)
def test_a_broken_package_is_one_line_that_names_it(code, entry, value, says, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path, "lab", code, **{entry: value})))
    found = registry.PluginTable("spatial_eval.methods", routing.METHODS, registry.METHODS.members)
    with pytest.raises(ConfigError) as error:
        found[entry]
    assert str(error.value).startswith(f"lab 0.1: entry point {entry} = {value}")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_two_packages_with_one_name_are_refused(tmp_path, monkeypatch) -> None:
    for name in ("lab", "den"):
        monkeypatch.syspath_prepend(str(install(tmp_path / name, name, GOOD, mine=f"{name}:Mine")))
    found = registry.PluginTable("spatial_eval.methods", routing.METHODS, registry.METHODS.members)
    with pytest.raises(ConfigError, match=r"lab 0.1: .*: den 0.1: .* has that name too: uninstall one of the two"):
        list(found)


def test_names_cost_no_import(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path, "lab", "raise SystemExit", mine="lab:Mine")))
    found = registry.PluginTable("spatial_eval.methods", routing.METHODS, registry.METHODS.members)
    assert "mine" in found
    assert list(found) == [*routing.METHODS, "mine"]
    assert len(found) == len(routing.METHODS) + 1
    assert found["base"] is routing.Base
    assert "lab" not in sys.modules


def test_what_a_class_calls_itself_and_its_fields_must_fit_the_tables(launch, tmp_path) -> None:
    head = "from dataclasses import dataclass\nfrom spatial_eval.methods.routing import Base\n"
    head += "@dataclass(frozen=True)\nclass"
    body = "    @property\n    def kind(self):\n        return 'mine'\n"
    body += "    branches, arms, route = Base.branches, Base.arms, Base.route\n"
    code = f"{head} Mine:\n    split: str = ''\n{body}{head} Other:\n    x: float = 0.0\n{body}"
    env = {"PYTHONPATH": str(install(tmp_path / "site", "lab", code, mine="lab:Mine", other="lab:Other"))}
    (tmp_path / "conf" / "method").mkdir(parents=True)
    for name in ("mine", "other"):
        (tmp_path / "conf" / "method" / f"{name}.yaml").write_text(
            f"# {name}\nkind: {name}\n{'x: 1.5' * (name > 'n')}\n"
        )

    def says(*given: str) -> str:
        done = launch("--config-dir", str(tmp_path / "conf"), *given, "action=plan", env=env)
        assert done.returncode == 1
        return done.stderr

    assert says("method=mine") == (
        "error: method=mine: its field split has the name of a column of the tables: rename it\n"
    )
    assert says("method=other") == "error: method=other: its class calls itself 'mine', not 'other'\n"
    assert "method.x=nan is not valid; expected a finite number" in says("method=other", "method.x=nan")


ROUTES = """
from dataclasses import dataclass
from spatial_eval.core.arms import BASE, Arm

@dataclass(frozen=True)
class Mine:
    weight: float

    @property
    def kind(self):
        return "mine"

    def branches(self):
        return {"low": Arm(self.weight), "base": BASE}

    def arms(self):
        return frozenset(self.branches().values())

    def route(self, signals):
        c = signals[BASE].max_prob
        return RULE
"""


@pytest.fixture
def routed(launch, cli, experiment, tmp_path):
    """`routed("c < 0.5")` runs base and a package's method with this rule; `routed.ask` a command on what it left."""
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text("# Mine.\nkind: mine\nweight: ${weight}\n")
    env = {"PYTHONPATH": str(install(tmp_path / "site", "lab", "", mine="lab:Mine"))}

    def run(rule: str, *given: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "site" / "lab.py").write_text(ROUTES.replace("RULE", rule), "utf8")
        options = ["--config-dir", str(tmp_path / "conf"), "-m", "method=base,mine", "weight=0.5", *experiment, *given]
        return launch(*options, env={**env, "PYTHONDONTWRITEBYTECODE": "1"})

    run.ask = lambda *words: cli(*words, env={**env, "PYTHONDONTWRITEBYTECODE": "1"})  # type: ignore[attr-defined]
    return run


def test_booleans_of_a_package_are_indices_in_every_table(routed) -> None:
    found = {}
    for rule in ("c < 0.5", "[int(value < 0.5) for value in c]"):
        done = routed(rule)
        found[rule] = [(row["method"], row["accuracy"], row["share_weight1"]) for row in table(done)]
        assert "report.html" in done.stderr
        assert "no report.html" not in done.stderr
        for words in (["report"], ["samples", "--cell", "1"]):
            asked = routed.ask(*words)
            assert (asked.returncode, asked.stderr) == (0, "")
    assert len({*map(tuple, found.values())}) == 1


@pytest.mark.parametrize("rule", ["c", "[0]", "c.mean()", "c * [1, 2]", "[7] * len(c)"])
def test_a_route_that_never_fits_is_one_line_before_anything_is_computed(rule, routed, tmp_path) -> None:
    for given in ([], ["action=plan"]):
        done = routed(rule, *given)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: method mine: route r")
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "out" / "generations").exists()


def test_a_route_that_fails_on_these_questions_is_one_line_in_place_of_the_tables(routed, tmp_path) -> None:
    done = routed("[0] * 8")  # as many as are tried
    assert (done.returncode, done.stdout) == (1, "")
    (said,) = [line for line in done.stderr.splitlines() if "route" in line]
    assert said.startswith(
        "error: method mine: route returned list of int64, shape (8,), which begins with 0; expected"
    )
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/sweeps/*/results.csv"))
    assert table(routed("c < 0.5")), "and what was computed is there for the mended one"


def test_what_a_class_may_lack_it_gets(own, tmp_path, monkeypatch) -> None:
    code = (OWN / "own_package.py").read_text("utf8") + GOOD + "from spatial_eval.methods.routing import AdaptVis\n"
    code += "@dataclass(frozen=True)\nclass Routed:\n    criterion: str = 'entropy'\n    kind = 'routed'\n"
    code += "    branches, arms, route = AdaptVis.branches, AdaptVis.arms, AdaptVis.route\n"
    (own / "own_package.py").write_text(code, "utf8")
    monkeypatch.syspath_prepend(str(own))
    import own_package  # type: ignore[import-not-found]

    BENCHMARKS.members.complete(own_package.Sheet)
    for cls in (own_package.Band, own_package.Routed, own_package.Mine):
        METHODS.members.complete(cls)
    sheet, band, routed, mine = (
        own_package.Sheet(tmp_path),
        own_package.Band(0.5),
        own_package.Routed(),
        own_package.Mine(0.5),
    )
    assert (sheet.prompt, sheet.distort, sheet.orientation) == ("auto", False, "upright")
    assert (sheet.upstream, sheet.rows, sheet.template) == ("", 0, "")
    assert (band.routing, routed.routing, mine.routing) == (None, Routing("entropy"), None)


def test_contributing_shows_the_package_as_it_is() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf8")
    shown = re.findall(r"^    # (examples/\S+)\n((?:    (?!# ex).*\n|\n(?=    (?!# ex)))+)", text, re.MULTILINE)
    assert len(shown) == 4
    for path, block in shown:
        assert textwrap.dedent(block) in (ROOT / path).read_text("utf8"), path


def test_a_job_without_the_package_says_what_to_install(own, sheet, launch, tmp_path, capsys) -> None:
    options = ["--config-dir", str(OWN / "conf"), "method=band", "method.low=0.2", "weight=0.5"]
    assert launch(*options, *sheet, env={"PYTHONPATH": str(own)}).returncode == 0
    (folder,) = tmp_path.glob("out/sweeps/*")
    assert main(["status", str(folder)]) == 1
    said = capsys.readouterr().err
    assert f"{folder}/jobs/request.json cannot be read (unknown dataset.kind 'sheet'" in said
    assert "; install the package that brings it): run the same command again" in said
    assert said.count("\n") == 1


@pytest.mark.long
def test_a_package_brings_a_tracker(own, experiment, launch, tmp_path) -> None:
    """JSON lines of the cells after every run, in place of W&B's runs."""
    given = ("--config-dir", str(OWN / "conf"), "tracking=lines", f"tracking.folder={tmp_path / 'lines'}", *experiment)
    done = launch(*given, env={"PYTHONPATH": str(own)})
    rows = table(done)
    folder = Path(done.stdout.splitlines()[-1]).parent
    (path,) = (tmp_path / "lines").iterdir()
    assert path.name == f"{folder.name}.jsonl"
    shown = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["method"], row["n"], row["accuracy"]) for row in shown] == [
        (row["method"], int(row["n"]), float(row["accuracy"])) for row in rows
    ]
    assert "tracking: lines: complete" in done.stderr
    assert json.loads((folder / "publish.json").read_text())["state"] == "complete"
    assert json.loads((folder / "sweep.json").read_text())["config"]["tracking"] == {
        "kind": "lines",
        "folder": str(tmp_path / "lines"),
    }
    before = path.read_bytes()
    assert launch(*given, env={"PYTHONPATH": str(own)}).returncode == 0
    assert list((tmp_path / "lines").iterdir()) == [path]
    assert path.read_bytes() == before
    done = launch(*given)
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown tracking.kind 'lines'")


RAISES = """
from dataclasses import dataclass
from pathlib import Path

@dataclass(frozen=True)
class Mine:
    word: str = "x"

    def publish(self, sweep: Path) -> None:
        print("noise on stdout")
        {body}
"""


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise RuntimeError('no network')", "the publisher ended with code 1: RuntimeError: no network; what it"),
        ("import os; os._exit(7)", "the publisher ended with code 7"),
        ("raise SystemExit('bye')", "the publisher ended with code 1: bye"),
        ("pass", "tracking: mine: complete"),
    ],
)
def test_a_tracker_that_talks_or_fails_changes_no_exit_code(body, says, experiment, launch, tmp_path) -> None:
    code = RAISES.replace("{body}", body)
    site = install(tmp_path / "site", "lab", code, group="trackers", mine="lab:Mine")
    (tmp_path / "conf" / "tracking").mkdir(parents=True)
    (tmp_path / "conf" / "tracking" / "mine.yaml").write_text("# Mine.\nkind: mine\nword: x\n")
    given = ("--config-dir", str(tmp_path / "conf"), "tracking=mine", *experiment)
    done = launch(*given, env={"PYTHONPATH": str(site)})
    assert table(done)
    assert "noise" not in done.stdout
    assert says in done.stderr
    folder = Path(done.stdout.splitlines()[-1]).parent
    assert json.loads((folder / "publish.json").read_text())["state"] == ("complete" if body == "pass" else "failed")
    done = launch(*given, "tracking.wrod=y", env={"PYTHONPATH": str(site)})
    assert done.stderr == "error: unknown key 'tracking.wrod'; did you mean tracking.word? (valid: tracking.word)\n"


def test_a_tracker_that_cannot_publish_is_refused_before_anything_runs(experiment, launch, tmp_path) -> None:
    code = "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    word: str = ''\n"
    site = install(tmp_path / "site", "lab", code, group="trackers", mine="lab:Mine")
    (tmp_path / "conf" / "tracking").mkdir(parents=True)
    (tmp_path / "conf" / "tracking" / "mine.yaml").write_text("# Mine.\nkind: mine\n")
    done = launch("--config-dir", str(tmp_path / "conf"), "tracking=mine", *experiment, env={"PYTHONPATH": str(site)})
    assert (done.returncode, done.stdout) == (1, "")
    assert "mine = lab:Mine of spatial_eval.trackers has no publish: see CONTRIBUTING" in done.stderr
    assert not (tmp_path / "out").exists()
