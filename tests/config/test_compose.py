"""The one composer: our options and a user's own, one grammar for every command."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from hydra_front import COMPOSER

from spatial_eval.benchmarks.readers import QuestionFile, Vsr
from spatial_eval.config.compose import Composer, set_values
from spatial_eval.config.grid import build_grid
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.paths import conf_folder, sweeps_folder
from spatial_eval.models.hf import HF


def make_own(folder: Path, **files: str) -> Path:
    """A folder of options; `dataset__mine="text"` is dataset/mine.yaml."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_our_options_lie_where_they_are_said_to_lie() -> None:
    assert (conf_folder(), sweeps_folder()) == (ROOT / "conf", ROOT / "sweeps")
    assert COMPOSER.get_group_options("launcher") == ["inline", "local", "slurm"]
    assert COMPOSER.sweep_files()["demo"] == ROOT / "sweeps" / "demo.yaml"


@pytest.mark.parametrize(
    "name", ["own", "my own", "a,b", "it's", "x=1", "[a]", "{b}", "ü", "back\\slash", "end\\", "$home"]
)
def test_a_folder_of_ones_own_may_be_called_anything(name: str, tmp_path: Path) -> None:
    own = make_own(tmp_path / name, model__mine="defaults: [hf, _self_]\npath: a/b\n", sweeps__grid="weight: 0.5\n")
    composer = Composer(own)
    assert composer.read_model("mine", {}) == HF("a/b")
    assert "mine" in composer.get_group_options("model")
    assert composer.sweep_files()["grid"] == own / "sweeps" / "grid.yaml"
    assert "demo" in composer.sweep_files()
    assert "mine" not in COMPOSER.get_group_options("model")


@pytest.mark.parametrize(
    ("override", "key", "values"),
    [
        ("weight=0.5,0.8", "weight", [0.5, 0.8]),
        ("dataset.rows=8", "dataset.rows", [8]),
        ("dataset.repo=org/name", "dataset.repo", ["org/name"]),
        ("dataset.where=[task=Relation]", None, []),
        ("dataset.template='Look. {question}'", "dataset.template", ["Look. {question}"]),
        ("threshold=range(0,0.3,0.1)", "threshold", [0.0, 0.1, 0.2]),
        ("launcher=glob(*)", "launcher", ["inline", "local", "slurm"]),
        ("dataset.rows=", "dataset.rows", [""]),
        ("+weight=1", None, []),
        ("~weight", None, []),
        ("weight", None, []),
    ],
)
def test_overrides_are_read_in_one_grammar(override: str, key: str | None, values: list[object]) -> None:
    if key is None:
        with pytest.raises(ConfigError, match=r"cannot (read|use) ") as error:
            COMPOSER.parse(override)
        assert "\n" not in str(error.value)
    else:
        found, given = COMPOSER.parse(override)
        assert (found, [round(v, 9) if isinstance(v, float) else v for v in given]) == (key, values)


@pytest.mark.parametrize(
    ("override", "typed", "values"),
    [
        ("dataset.path=~/x.jsonl", """'dataset.path="~/x.jsonl"'""", ["~/x.jsonl"]),
        ("dataset.path=/my data (v1)/q, 1.jsonl", """'dataset.path="/my data (v1)/q, 1.jsonl"'""", None),
        ("dataset.system=You & I", """'dataset.system="You & I"'""", ["You & I"]),
        ("dataset.system=it's me", "dataset.system=", ["it's me"]),
        ('dataset.system=a "b" \\', "dataset.system=", ['a "b" \\']),
        ("method.low=weight=0.5", """'method.low="weight=0.5"'""", ["weight=0.5"]),
        ("dataset.columns.answer=the answer (short)", """'dataset.columns.answer="the answer (short)"'""", None),
        ("dataset.where=[a=1, b=2]", """'dataset.where=["a=1","b=2"]'""", [["a=1", "b=2"]]),
        ("data_dir=~/data", """'data_dir="~/data"'""", ["~/data"]),
    ],
)
def test_a_text_that_the_grammar_cannot_read_is_shown_as_it_is_typed(
    override: str, typed: str, values: list[object] | None
) -> None:
    with pytest.raises(ConfigError) as error:
        COMPOSER.parse(override)
    says, _, advised = str(error.value).rpartition(": ")
    assert says.startswith(f"cannot read {override!r}: a text with such signs stands in quotes inside the shell's")
    assert typed in advised
    (word,) = shlex.split(advised)  # as bash reads it
    key, _, value = override.partition("=")
    assert COMPOSER.parse(word) == (key, [value] if values is None else values)


def test_what_is_no_text_keeps_the_message_of_the_grammar() -> None:
    with pytest.raises(ConfigError, match=r"cannot read 'weight=\[0': no viable alternative .*; expected key=value"):
        COMPOSER.parse("weight=[0")


def test_a_command_takes_one_value_per_key() -> None:
    assert COMPOSER.parse_values(["dataset=vsr", "dataset.rows=8"]) == {"dataset": "vsr", "dataset.rows": 8}
    with pytest.raises(ConfigError, match=r"dataset=vsr,hub is a list of values; expected one value"):
        COMPOSER.parse_values(["dataset=vsr,hub"])


@pytest.mark.parametrize("name", ["vsr", "VSR", "visual_spatial_reasoning"])
def test_a_dataset_is_found_by_upstreams_names(name: str) -> None:
    assert COMPOSER.find_dataset(name) == "vsr"
    made = COMPOSER.read_benchmark(name, {"dataset.rows": 8, "dataset.distort": True})
    assert isinstance(made, Vsr)
    assert (made.rows, made.distort) == (8, True)


def test_a_name_or_key_that_is_none_gets_one_line() -> None:
    for wrong, says in [
        (lambda: COMPOSER.read_benchmark("vrs", {}), r"unknown dataset 'vrs'; did you mean vsr\? .*--dataset file "),
        (lambda: COMPOSER.check_option("dataset", "json"), r"unknown dataset 'json'; did you mean file\?"),
        (lambda: COMPOSER.read_benchmark("vsr", {"dataset.row": 8}), "unknown key 'dataset.row'; did you mean dataset"),
        (lambda: COMPOSER.read_model("tinny", {}), r"unknown model 'tinny'; did you mean tiny\?"),
        (
            lambda: COMPOSER.read_model("tiny", {"model.batch_size": "four"}),
            "model.batch_size must be auto or an integer",
        ),
        (lambda: COMPOSER.read_benchmark("jsonl", {}), "dataset.path must be given"),
        (lambda: COMPOSER.compose({"dataset": "nope"}), "cannot compose dataset=nope"),
        (lambda: COMPOSER.read_benchmark("controlled_a", {"dataset.options.x": 1}), "dataset.options.x=1: "),
    ]:
        with pytest.raises(ConfigError, match=says) as error:
            wrong()
        assert "\n" not in str(error.value)


def test_a_template_is_applied_wherever_a_benchmark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    values = {"dataset.path": str(path)}
    assert COMPOSER.read_benchmark("jsonl", values) == QuestionFile(path)
    named = COMPOSER.read_benchmark("jsonl", {**values, "dataset.template": "brief"})
    assert named.name == "quiz+brief"
    own = Composer(make_own(tmp_path / "own", template__mine="# Mine.\ntext: 'Hm. {question}'\n"))
    assert own.read_benchmark("jsonl", {**values, "dataset.template": "mine"}).name == "quiz+mine"
    with pytest.raises(ConfigError, match=r"unknown dataset.template 'mine'"):
        COMPOSER.read_benchmark("jsonl", {**values, "dataset.template": "mine"})


def test_values_are_set_on_a_copy() -> None:
    tree = COMPOSER.compose({"dataset": "vsr"})
    before = tree.dataset.rows
    assert set_values(tree, {"dataset.rows": 3}).dataset.rows == 3
    assert tree.dataset.rows == before
    assert set_values(tree, {}) is tree


def test_options_that_are_no_yaml_get_one_line(tmp_path: Path) -> None:
    own = make_own(tmp_path, method__torn="kind: [\n", method__lost="defaults: [nowhere]\n")
    for name, says in (("torn", "torn.yaml is not YAML: "), ("lost", "cannot compose method=lost: ")):
        with pytest.raises(ConfigError, match=says) as error:
            Composer(own).compose({"method": name})
        assert "\n" not in str(error.value)


def test_without_our_own_options_nothing_is_composed_in_silence(tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(conf_folder(), tmp_path / "conf", ignore=shutil.ignore_patterns("*.yaml"))
    monkeypatch.setattr("spatial_eval.config.compose.conf_folder", lambda: tmp_path / "conf")
    with pytest.raises(ConfigError, match=r"unknown dataset 'vsr'|cannot compose"):
        Composer().read_benchmark("vsr", {})
    with pytest.raises(ConfigError, match="cannot compose"):
        Composer().compose({})


@pytest.mark.parametrize(
    ("file", "text", "arguments", "message"),
    [
        ("method/mine", "kind: [base]", ["method=mine"], r"unknown method.kind"),
        ("dataset/mine", "kind: {a: 1}", ["dataset=mine"], r"unknown dataset.kind"),
        ("launcher/mine", "kind: [inline]", ["launcher=mine"], r"unknown launcher.kind"),
        ("method/mine", "kind: ${nothing}", ["method=mine"], r"Interpolation key 'nothing' not found"),
        ("method/mine", "kind: ${method.kind}", ["method=mine"], r"Recursive interpolation"),
        ("model/mine", "# @package _global_\nkind: hf", ["model=mine"], r"mine.yaml: `# @package` puts its keys"),
        ("preset/mine", "kind: 7", ["model=tiny", "model.preset=mine"], r"preset mine: kind is not valid; expected"),
        ("preset/mine", "model: 7", ["model=tiny", "model.preset=mine"], r"preset mine: model is not valid; expected"),
        ("preset/mine", "model: ???", ["model=tiny", "model.preset=mine"], r"model must be given"),
        ("preset/mine", "model: ${nothing}", ["model=tiny", "model.preset=mine"], r"preset mine: Interpolation key"),
        ("method/mine", f"kind: {'x' * 9999}", ["method=mine"], r"x{500}\.\.\. \(9,999 characters\)"),
        ("method/mine", "kind: base\na: &a [*a]", ["method=mine"], r"cannot compose .{,600}characters\)"),
    ],
)
def test_a_wrong_option_of_the_users_is_one_short_line(file, text, arguments, message, tmp_path) -> None:
    path = tmp_path / f"{file}.yaml"
    path.parent.mkdir()
    path.write_text(text)
    rest = [] if path.parent.name == "dataset" else ["dataset=controlled_a"]
    with pytest.raises(ConfigError, match=message) as caught:
        build_grid(Composer(tmp_path), [*arguments, *rest], {})
    assert len(str(caught.value)) < 1200
    assert "\n" not in str(caught.value)
