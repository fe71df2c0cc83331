"""Methods and datasets of another installed package: used like our own; its mistakes are one line."""

from __future__ import annotations

import csv
import pickle
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
from spatial_eval import ledger, methods, plugins
from spatial_eval.errors import ConfigError, StoreError

OWN = ROOT / "examples" / "own_package"


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    for name in ("lab", "den", "own_package"):
        sys.modules.pop(name, None)


def install(folder: Path, name: str, code: str, **points: str) -> Path:
    """A package as pip leaves it in `folder`: `<name>.py` and its metadata; `points` are methods."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(code, "utf8")
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.1\n", "utf8")
    lines = [f"{entry} = {value}\n" for entry, value in points.items()]
    (info / "entry_points.txt").write_text("".join(["[spatial_eval.methods]\n", *lines]), "utf8")
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
    fresh = plugins.Table("spatial_eval.methods", methods.METHODS, plugins.METHODS.members)
    for module in ("tables", "selection", "layout"):
        monkeypatch.setattr(f"spatial_eval.{module}.METHODS", fresh)
    found = spatial_eval.load(output_dir=tmp_path / "out")
    cell = found.find(method="band", weight=0.5, low=0.4)
    assert (found.method(cell).low, found.method(cell).high) == (0.4, 0.5)
    assert found.files.about["plugins"] == {"own-package": "0.1"}
    assert found.files.about["command"][2:4] == ["--config-dir", str(OWN / "conf")]


def test_its_options_are_listed_and_named_in_errors(own, launch) -> None:
    flag = ["--config-dir", str(OWN / "conf")]
    shown = launch(*flag, "--help", env={"PYTHONPATH": str(own)}).stdout
    assert "method: adapt_vis, band, base" in shown
    done = launch(*flag, "method=bend")
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown method 'bend'; did you mean band? (valid: adapt_vis, band, base")
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
    assert "holds no YAML in any of its folders dataset, model, method" in says(str(tmp_path))
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "base.yaml").write_text("kind: base\n")
    assert "method base is one of spatial_eval's own: rename the file" in says(str(tmp_path))
    (tmp_path / "method" / "base.yaml").rename(tmp_path / "method" / "torn.yaml")
    (tmp_path / "method" / "torn.yaml").write_text("kind: [\n")
    done = launch(f"--config-dir={tmp_path}", "method=torn")
    assert done.stderr.startswith("error: cannot compose method=torn: while parsing a flow node")
    assert done.stderr.count("\n") == 1


GOOD = "from spatial_eval.methods import ScalingVis as Mine\n"


@pytest.mark.parametrize(
    ("code", "entry", "value", "says"),
    [
        (GOOD, "base", "lab:Mine", "entry point base = lab:Mine of spatial_eval.methods: base is spatial_eval's own"),
        (GOOD, "My Own", "lab:Mine", "a name is lower case letters, digits and _"),
        ("1 / 0", "mine", "lab:Mine", "cannot be imported (ZeroDivisionError: division by zero): mend it or uninstall"),
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
    found = plugins.Table("spatial_eval.methods", methods.METHODS, plugins.METHODS.members)
    with pytest.raises(ConfigError) as error:
        found[entry]
    assert str(error.value).startswith(f"lab 0.1: entry point {entry} = {value}")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_two_packages_with_one_name_are_refused(tmp_path, monkeypatch) -> None:
    for name in ("lab", "den"):
        monkeypatch.syspath_prepend(str(install(tmp_path / name, name, GOOD, mine=f"{name}:Mine")))
    found = plugins.Table("spatial_eval.methods", methods.METHODS, plugins.METHODS.members)
    with pytest.raises(ConfigError, match=r"lab 0.1: .*: den 0.1: .* has that name too: uninstall one of the two"):
        list(found)


def test_names_cost_no_import(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path, "lab", "raise SystemExit", mine="lab:Mine")))
    found = plugins.Table("spatial_eval.methods", methods.METHODS, plugins.METHODS.members)
    assert "mine" in found
    assert list(found) == [*methods.METHODS, "mine"]
    assert len(found) == len(methods.METHODS) + 1
    assert found["base"] is methods.Base
    assert "lab" not in sys.modules


def test_what_a_class_calls_itself_and_its_fields_must_fit_the_tables(launch, tmp_path) -> None:
    head = "from dataclasses import dataclass\nfrom spatial_eval.methods import Base\n@dataclass(frozen=True)\nclass"
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


def test_contributing_shows_the_package_as_it_is() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf8")
    shown = re.findall(r"^    # (examples/\S+)\n((?:    (?!# ex).*\n|\n(?=    (?!# ex)))+)", text, re.MULTILINE)
    assert len(shown) == 3
    for path, block in shown:
        assert textwrap.dedent(block) in (ROOT / path).read_text("utf8"), path


def test_a_job_without_the_package_says_what_to_install(tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(install(tmp_path, "lab", GOOD + "class Other: pass\n", mine="lab:Mine")))
        import lab  # type: ignore[import-not-found]

        (tmp_path / "tasks.pkl").write_bytes(pickle.dumps(lab.Other()))
    sys.modules.pop("lab")
    with pytest.raises(StoreError, match=r"\(ModuleNotFoundError: No module named 'lab'\): install lab for"):
        ledger.load(tmp_path / "tasks.pkl", ledger.Plan)
