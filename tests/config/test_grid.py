"""The whole-grid front: lists, unions, overrides, duplicates, and what is said about them."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
from conftest import ROOT
from hydra_front import COMPOSER, NEED, default_arguments, make_grid

from spatial_eval.config import schema
from spatial_eval.config.compose import Composer
from spatial_eval.config.grid import Grid, read_sweep_file
from spatial_eval.core.arms import CONTRASTS
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.types import Method, Part
from spatial_eval.methods.published import ADAPT, DATASETS, WEIGHT, published_accuracy
from spatial_eval.methods.registry import METHODS, Interface, PluginTable
from spatial_eval.methods.routing import AdaptVis, Base, ScalingVis


def made(tmp_path: Path, *arguments: str) -> Grid:
    return make_grid(default_arguments(*arguments), tmp_path)


def methods(found: Grid) -> list:
    return [cell.method for cell in found.cells]


def test_defaults_are_the_published_ones(tmp_path: Path) -> None:
    found = made(tmp_path, "method=base,scaling_vis,adapt_vis")
    assert methods(found) == [Base(), ScalingVis(0.8), AdaptVis(0.5, 1.5, 0.4)]
    assert {(cell.part, cell.experiment.max_new_tokens) for cell in found.cells} == {(Part("test"), 100)}


def test_floats_are_canonical_and_equal_cells_collapse(tmp_path: Path) -> None:
    found = made(tmp_path, "method=scaling_vis", "weight=0.5,.5,5e-1,0.50")
    assert methods(found) == [ScalingVis(0.5)]
    assert found.notes == ("4 cells, 1 distinct: equal cells were given more than once",)
    found = made(tmp_path, "method=scaling_vis", "weight=range(0,1,0.2)")
    assert [method.weight for method in methods(found)] == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_what_a_method_ignores_is_said(tmp_path: Path) -> None:
    found = made(tmp_path, "method=scaling_vis", "weight=0.5,0.8", "threshold=0.1,0.2,0.3,0.4,0.5,0.6")
    assert found.notes == ("12 cells, 2 distinct: method scaling_vis does not use threshold",)
    assert made(tmp_path, "method=base", "weight=0.5").notes == ("method base does not use weight",)
    assert made(tmp_path, "method=base,scaling_vis", "weight=0.5").notes == ()


def test_a_key_that_only_some_choices_have_is_said_and_one_that_none_has_is_refused(tmp_path: Path) -> None:
    found = made(tmp_path, "method=base,adapt_vis", "method.criterion=max_prob,margin")
    assert methods(found) == [Base(), AdaptVis(0.5, 1.5, 0.4), AdaptVis(0.5, 1.5, 0.4, "margin")]
    assert found.notes == ()
    found = made(tmp_path, "method=base,adapt_vis", "dataset=controlled_a,vsr", "dataset.distort=true")
    assert {(cell.experiment.dataset.name, cell.experiment.dataset.distort) for cell in found.cells} == {
        ("controlled_a", False),
        ("vsr", True),
    }
    with pytest.raises(ConfigError, match=r"unknown key 'method.citerion' \(valid: .*|the chosen method has no keys"):
        made(tmp_path, "method=base,scaling_vis", "method.citerion=margin")
    (tmp_path / "two.yaml").write_text("grids:\n  - {method: base}\n  - {method: adapt_vis}\n")
    assert methods(made(tmp_path, "sweep=two", "method.criterion=margin"))[1].criterion == "margin"
    with pytest.raises(ConfigError, match=r"unknown key 'method.citerion'"):
        made(tmp_path, "sweep=two", "method.citerion=margin")


def test_a_method_that_is_swept_by_its_own_fields_is_canonical(tmp_path: Path) -> None:
    found = made(tmp_path, "method=vcd", "method.alpha=range(0,1,0.2)")
    assert [method.alpha for method in methods(found)] == [0.0, 0.2, 0.4, 0.6, 0.8]
    with pytest.raises(ConfigError, match=r"method.alpha=nan is not valid; expected a finite number"):
        made(tmp_path, "method=vcd", "method.alpha=nan")


def test_a_group_choice_is_composed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    composed = []
    real = hydra.compose
    monkeypatch.setattr(hydra, "compose", lambda name, overrides: composed.append(overrides) or real(name, overrides))
    arguments = default_arguments("method=base,adapt_vis", "threshold=range(0,1,0.01)", "split=val,test")
    composer = Composer()
    found = make_grid(arguments, tmp_path, composer)
    assert len(found.cells) == 202
    assert len(composed) == 2  # the methods; the settings are read from the first
    assert make_grid(arguments, tmp_path, composer).cells == found.cells
    assert len(composed) == 2


def test_a_checked_value_is_refused_even_where_it_is_ignored(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"threshold=1.5 is not valid"):
        made(tmp_path, "method=base", "threshold=1.5")


SWEEP = """
dataset: [controlled_a, controlled_b]
split: test
grids:
  - {method: base}
  - {method: scaling_vis, weight: [0.5, 0.8]}
  - {method: adapt_vis, weight1: 0.5, threshold: "range(0.2,0.41,0.1)"}
"""


def test_a_sweep_file_is_a_union_and_the_command_line_overrides_its_axes(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text(SWEEP)
    found = make_grid(["model=recorded", "model.path=x.jsonl", "sweep=demo"], tmp_path)
    assert len(found.cells) == 2 * (1 + 2 + 3)
    assert {cell.experiment.dataset.name for cell in found.cells} == {"controlled_a", "controlled_b"}
    found = made(tmp_path, "sweep=demo", "threshold=0.9", "split=val")
    assert methods(found) == [Base(), ScalingVis(0.5), ScalingVis(0.8), AdaptVis(0.5, 1.5, 0.9)]
    assert {cell.part.split for cell in found.cells} == {"val"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected keys with values"),
        ("weight: []", "weight: an empty list gives no value; leave the key away, or give a value"),
        ("weight: {a: 1}", "weight: expected a value or a list"),
        ("grids: 3", "expected keys with values"),
        ("wieght: 0.5", "unknown key 'wieght'; did you mean weight?"),
        ("weight: [0.5, heavy]", "weight=heavy is not valid"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_wrong_sweep_file_gets_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        made(tmp_path, "sweep=wrong")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


EMPTY = ["weight: range(2, 1, 0.5)", "weight: [0.5, 'range(2, 1)', 'heavy']", "weight: sort(range(1, 1))", "{}", ""]
EMPTY += ["grids: [{weight: 'range(1, 1)'}, {weight: 0.5}]", "grids: []", "grids: [{}]", "grids: [{limit: []}]"]


@pytest.mark.parametrize("text", EMPTY)
def test_an_axis_of_a_sweep_file_without_values_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"empty.yaml.* gives no value"):
        made(tmp_path, "sweep=empty")


@pytest.mark.parametrize("argument", ["weight=range(2,1,0.5)", "threshold=shuffle(range(1,1))", "limit=range(3,3)"])
def test_an_axis_of_the_command_line_without_values_is_an_error(argument: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(argument)} gives no value; look at its range or pattern$"):
        made(tmp_path, "method=scaling_vis", argument)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ('[1e-1, "0.5", .5]', [0.1, 0.5]),
        ("1e-1", [0.1]),
        ("[1E-1, 5e-1, 1.5e0, 2.e0, +1e+0]", [0.1, 0.5, 1.5, 2.0, 1.0]),
        ("['0.5,0.8', 1.2]", [0.5, 0.8, 1.2]),
        ("[.5e1, 0]", [5.0, 0.0]),
    ],
)
def test_numbers_of_a_sweep_file_are_those_of_the_command_line(text: str, weights: list[float], tmp_path: Path) -> None:
    (tmp_path / "sci.yaml").write_text(f"method: scaling_vis\nweight: {text}\n")
    cells = made(tmp_path, "sweep=sci").cells
    assert [cell.method.weight for cell in cells] == weights  # type: ignore[attr-defined]


def test_texts_of_a_sweep_file_stay_texts(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("dataset.name: ['1e1', '0.5', 1e1x, e1]\nmethod.alpha: [1e-1, 2.5E0, 1]\n")
    found = read_sweep_file({"a": tmp_path / "a.yaml"}, "a", COMPOSER.parse)
    assert found == [{"dataset.name": ["1e1", "0.5", "1e1x", "e1"], "method.alpha": [0.1, 2.5, 1]}]


AS_IT_STANDS = [
    ("dataset.system", "You are a helpful, kind assistant. Answer well."),
    ("dataset.template", "Look closely. {question}"),
    ("dataset.template", "{question} (Answer: left, right)"),
    ("dataset.path", "~/my data (v1)/a & b | c, d.jsonl"),
    ("dataset.name", "a & b"),
    ("dataset.name", "1e1"),
    ("dataset.columns.answer", "the answer, short"),
    ("method.disturbance", "I am confused, very."),
    ("method.heads", "0.30"),
    ("method.low", "weight=0.5"),
    ("method.high", "0.5,scaling=mass"),
    ("dataset.system", "[INST] be brief, please [/INST]"),
    ("dataset.system", "range(0, 3) of 'it' and 'me'"),
    ("output_dir", "~/out, new"),
]


@pytest.mark.parametrize(("key", "text"), AS_IT_STANDS)
def test_a_text_is_one_value_where_the_key_takes_any(key: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{key}: {json.dumps(text)}\n")
    assert read_sweep_file({"a": tmp_path / "a.yaml"}, "a", COMPOSER.parse) == [{key: [text]}]


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("weight: 0.5,0.8", [0.5, 0.8]),
        ('weight: "0.5,0.8"', [0.5, 0.8]),
        ("dataset: scenes_a,scenes_b", ["scenes_a", "scenes_b"]),
        ("split: val,test", ["val", "test"]),
        ("method.alpha: 0.5,1", [0.5, 1]),
        ("model.batch_size: auto,8", ["auto", 8]),  # a number or a word, no text
        ("method.image: all,0", ["all", 0]),
        ("launcher: glob(*)", ["inline", "local", "slurm"]),
        ("method.layers: choice(low, high)", ["low", "high"]),
        ("dataset.name: \"'a, b'\"", ["a, b"]),  # in second quotes, which the command line needs
        ('method.layers: "[0-3, 20]"', [["0-3", 20]]),
        ('dataset.columns.options: "[A, B]"', [["A", "B"]]),
        ("method.layers: [[0-1, 3]]", [["0-1", 3]]),
        ("method.layers: [[0-1, 3], all]", [["0-1", 3], "all"]),
        ("method.heads: [[14:3, 17:21]]", [["14:3", "17:21"]]),
        ('dataset.where: [["a=1", "b=2"]]', [["a=1", "b=2"]]),
        ("dataset.columns.options: [[A, B]]", [["A", "B"]]),
        ("dataset.template: [brief, 'Look, {question}', null]", ["brief", "Look, {question}", None]),
        ("method.heads: 14:30", ["14:30"]),
        ("method.heads: [1:3, 14:30]", ["1:3", "14:30"]),
    ],
)
def test_what_is_an_axis_of_a_sweep_file(line: str, values: list[object], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(line)
    assert read_sweep_file({"a": tmp_path / "a.yaml"}, "a", COMPOSER.parse) == [{line.partition(":")[0]: values}]


@pytest.mark.parametrize(
    "line", ["weight: [[0.5, 0.8]]", "dataset: [[vsr]]", "dataset.system: [[a]]", "method.layers: [{a: 1}]"]
)
def test_a_list_within_a_list_needs_a_key_that_takes_one(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(line)
    with pytest.raises(ConfigError, match="expected a value or a list of values"):
        read_sweep_file({"a": tmp_path / "a.yaml"}, "a", COMPOSER.parse)


def test_lists_and_texts_of_a_sweep_file_make_one_set_of_layers_and_heads(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        'method: scaling_vis\nmethod.layers: [[0-1, 3], "0-1,3"]\nmethod.heads: ["1:3,0:2"]\n'
    )
    found = made(tmp_path, "sweep=a")
    assert methods(found) == [ScalingVis(0.8, layers="0-1,3", heads="0:2,1:3")]


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("dataset.framing: open, listed", '["open, listed"] or ["open", "listed"]'),
        ("dataset.system: none, vicuna_v1", '["none, vicuna_v1"] or ["none", "vicuna_v1"]'),
        ("method.disturbance: d1,d2", '["d1,d2"] or ["d1", "d2"]'),
        ("method.heads: 0:3,1:2", '["0:3,1:2"] or ["0:3", "1:2"]'),
        ("method.layers: 0-1,2", '["0-1,2"] or ["0-1", "2"]'),
    ],
)
def test_words_with_commas_are_no_guess(line: str, advice: str, tmp_path: Path) -> None:
    """They were an axis, and a set of heads or a text reads like one value."""
    (tmp_path / "a.yaml").write_text(f"{line}\n")
    with pytest.raises(ConfigError) as error:
        read_sweep_file({"a": tmp_path / "a.yaml"}, "a", COMPOSER.parse)
    assert str(error.value).endswith(f"{line} may be one value or several: write {advice}")


def test_quoted_texts_of_a_sweep_file_are_an_axis(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("dataset.template: \"'Look. {question}', 'See, {question}'\"\n")
    found = read_sweep_file({"a": tmp_path / "a.yaml"}, "a", COMPOSER.parse)
    assert found == [{"dataset.template": ["Look. {question}", "See, {question}"]}]


def test_every_key_of_a_plug_in_has_its_own_type(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Band:
        note: str = ""
        low: float = 0.0  # a text of `route`, whose type counts

    def broken() -> None:
        raise ImportError

    entries = {"band": SimpleNamespace(load=lambda: Band, dist=None, value="band:Band", name="band", group="methods")}
    entries["lost"] = SimpleNamespace(load=broken, dist=None, value="lost:Lost", name="lost", group="methods")
    table = PluginTable("methods", METHODS.own, Interface((), lambda _: {}))
    monkeypatch.setattr(PluginTable, "_entries", entries)
    monkeypatch.setitem(schema.TABLES, "method", table)
    assert schema.takes_text("method.heads")
    assert not table._classes  # nothing was imported
    assert schema.takes_text("method.note")
    assert not schema.takes_text("method.nothing")


def test_a_misspelt_sweep_names_the_others(tmp_path: Path) -> None:
    (tmp_path / "smoke.yaml").write_text("weight: 0.5")
    with pytest.raises(ConfigError, match=r"unknown sweep 'smok'; did you mean smoke\?"):
        made(tmp_path, "sweep=smok")


FIXED = """
grids:
  - {method: base, dataset: [controlled_a, controlled_b]}
  - {method: scaling_vis, dataset: controlled_a, weight: 0.8}
  - {method: scaling_vis, dataset: controlled_b, weight: [0.50, 1.2]}
"""


def chosen(tmp_path: Path, *arguments: str) -> list[tuple[str, float | None]]:
    (tmp_path / "fixed.yaml").write_text(FIXED)
    cells = make_grid(["model=recorded", "model.path=x.jsonl", "sweep=fixed", *arguments], tmp_path).cells
    return [(cell.experiment.dataset.name, getattr(cell.method, "weight", None)) for cell in cells]


def test_a_key_that_the_grids_set_differently_selects_among_them(tmp_path: Path) -> None:
    both = [("controlled_a", None), ("controlled_b", None), ("controlled_a", 0.8)]
    assert chosen(tmp_path) == [*both, ("controlled_b", 0.5), ("controlled_b", 1.2)]
    assert chosen(tmp_path, "dataset=controlled_a") == [("controlled_a", None), ("controlled_a", 0.8)]
    assert chosen(tmp_path, "dataset=controlled_b", "weight=.5") == [("controlled_b", None), ("controlled_b", 0.5)]
    assert chosen(tmp_path, "method=base", "split=val") == both[:2]
    assert chosen(tmp_path, "method=scaling_vis", "weight=0.8,1.2") == [("controlled_a", 0.8), ("controlled_b", 1.2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["weight=0.7"], "weight=0.7 is in no grid of sweep fixed: its grids set weight each, to 0.8, 0.5, 1.2;"),
        (["dataset=controlled_a,vsr"], "dataset=vsr is in no grid of sweep fixed: its grids set dataset each, to con"),
        (["dataset=controlled_a", "weight=1.2"], "weight=1.2 is in no grid of sweep fixed with dataset=controlled_a:"),
        (["dataset=controlled"], "unknown dataset 'controlled'; did you mean controlled_"),
    ],
)
def test_a_value_that_no_grid_has_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        chosen(tmp_path, *arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["paper_table", "paper_scaling_vis", "paper_adapt_vis"])
def test_the_papers_sweeps_are_the_published_settings_and_no_other(name: str, tmp_path: Path) -> None:
    cells = make_grid([f"sweep={name}"]).cells
    found = {(cell.experiment.dataset.name, cell.method) for cell in cells}
    scaling = {(name, ScalingVis(weight)) for name, weight in zip(DATASETS, WEIGHT["llava15_7b"], strict=True)}
    adapt = {(name, AdaptVis(*knobs)) for name, knobs in zip(DATASETS, ADAPT["llava15_7b"], strict=True)}
    expected = {"paper_table": scaling | adapt, "paper_scaling_vis": scaling, "paper_adapt_vis": adapt}[name]
    assert found == {(name, Base()) for name in DATASETS} | expected
    assert all(published_accuracy("llava15_7b", d, m, Part("test")) is not None for d, m in found)


def test_every_sweep_says_what_it_costs_and_reproduces() -> None:
    for path in sorted((ROOT / "sweeps").glob("*.yaml")):
        comment = "".join(line for line in path.read_text("utf8").splitlines(keepends=True) if line.startswith("#"))
        assert path.read_text("utf8").startswith("#")
        assert "Cost:" in comment, path.name


CONTROLS = {"base": 1, "forced_yes": 1, "answer_yes": 1, "sample": 10}


ATTENDING = ("head_guided", "vaf", "var", "sparc")


def name_method(method: Method) -> str:
    """Name a method as a choice of conf/method."""
    return "head_guided" if asdict(method).get("scaling") == "head_guided" else method.kind  # type: ignore[call-overload]


def test_the_referee_holds_every_contrast_at_its_published_settings() -> None:
    methods = {name_method(cell.method): cell.method for cell in make_grid(["sweep=referee,forced_yes"]).cells}
    assert {*CONTRASTS, *CONTROLS, *ATTENDING, "pai_full"} == methods.keys()
    guided = methods.pop("head_guided")
    assert guided == ScalingVis(0.5, scaling="head_guided", layers="5-18/32", steps="all")
    assert methods.pop("sample").seed == 4
    assert methods.pop("vcd") in {METHODS["vcd"](noise=noise) for noise in (500, 999)}
    published = {kind: METHODS[kind]() for kind in methods}
    changed = {
        kind: {f.name for f in fields(own) if getattr(own, f.name) != getattr(published[kind], f.name)}
        for kind, own in methods.items()
    }
    assert {kind: names for kind, names in changed.items() if names} == {
        "icd": {"place"},
        "pai_full": {"variant"},
        "sid": {"variant", "alpha", "cutoff"},
    }


def test_seeds_are_cells_of_their_own(tmp_path: Path) -> None:
    found = make_grid(default_arguments("method=sample", "method.seeds=3"), tmp_path)
    assert methods(found) == [METHODS["sample"](seed=seed) for seed in range(3)]
    for wrong in (["method.seeds=0"], ["method.seeds=2,3"], ["method.seeds=2", "method.seed=1"]):
        with pytest.raises(ConfigError, match=r"method.seeds=.* is not valid; expected one whole number, 1 to 100"):
            make_grid(default_arguments("method=sample", *wrong), tmp_path)


def test_the_referee_tunes_with_equal_budgets() -> None:
    """As many settings for each method, the published ones among them."""
    cells = make_grid(["sweep=referee_tuned,forced_yes", "split=val"]).cells
    counts = Counter(name_method(cell.method) for cell in cells)
    assert {kind: count for kind, count in counts.items() if count != 6} == CONTROLS
    tuned = set(counts) - set(CONTROLS)
    assert tuned == {"scaling_vis", "adapt_vis", "pai_full", *ATTENDING, *CONTRASTS} - set(CONTROLS)
    methods = {cell.method for cell in cells}
    assert all(METHODS[kind]() in methods for kind in tuned - {"scaling_vis", "adapt_vis", "head_guided"})
    assert ScalingVis(0.5, scaling="head_guided", layers="5-18/32", steps="all") in methods


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_composes(path: Path) -> None:
    assert make_grid([f"sweep={path.stem}", "model=recorded", "model.path=x.jsonl"]).cells
    assert read_sweep_file({path.stem: path}, path.stem, COMPOSER.parse)


CHOICES = [
    (path.parent.name, path.stem)
    for path in sorted((ROOT / "conf").glob("*/*.yaml"))
    if path.parent.name in schema.GROUPS
]


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_every_option_composes(group: str, option: str, tmp_path: Path) -> None:
    arguments = default_arguments(f"{group}={option}", *NEED.get(option, []))
    if group == "model" and option != "recorded":
        arguments.remove("model.path=x.jsonl")
    assert len(make_grid(arguments, tmp_path).cells) == 1


def test_every_key_has_a_comment() -> None:
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        assert path.read_text("utf8").startswith("#"), f"{path.name}: say in the first line what it is"


def test_a_preset_sits_below_what_the_user_sets(tmp_path: Path) -> None:
    arguments = ["model=hf", "model.path=x.jsonl", "dataset=vsr", "model.preset=paper", "model.pad_to=90"]
    found = make_grid(arguments, tmp_path)
    model, dataset = found.cells[0].experiment.model, found.cells[0].experiment.dataset
    assert (model.dtype, model.pad_to, model.layers, model.span, model.rms_norm_eps) == ("float32", 90, 32, True, 1e-6)
    assert dataset.distort
    (note,) = found.notes
    assert note.startswith("model.preset=paper sets model.dtype=float32, ")
    assert "pad_to" not in note
    arguments[-2] = "model.preset=papr"
    with pytest.raises(ConfigError, match=r"unknown model.preset 'papr'; did you mean paper\?"):
        make_grid(arguments, tmp_path)
