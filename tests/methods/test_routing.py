"""What the methods ask for, and what they refuse. How AdaptVis routes is in test_plan.py and test_published.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from spatial_eval.core.arms import (
    ATTENTIONS,
    BASE,
    CONTRASTS,
    PLACES,
    SCALINGS,
    SCOPES,
    STEPS,
    Arm,
    Dola,
    Icd,
    Sampling,
    Scaling,
    Sid,
    Sparc,
    TextGuidance,
    Vaf,
    Var,
    Vcd,
    parse_arm_label,
)
from spatial_eval.core.columns import HYPERPARAMETERS
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.types import Part, Signals
from spatial_eval.methods.published import published_accuracy
from spatial_eval.methods.routing import METHODS, AdaptVis, PaiFull, Route, ScalingVis, check_routing, choose_branches


def test_arms() -> None:
    assert ScalingVis(0.5).arms() == {Arm(0.5)}
    assert ScalingVis(0.5, scaling="mass", layers="3").arms() == {Arm(Scaling(0.5, "mass", layers="3"))}
    assert ScalingVis(0.5, layers=(7, "0-3", 4)).arms() == {Arm(Scaling(0.5, layers="0-4,7"))}
    assert ScalingVis(0.5, layers="0, 1,2") == ScalingVis(0.5, layers="0-2")
    assert AdaptVis(0.5, 1.0, 0.4, scaling="temperature").arms() == {Arm(Scaling(0.5, "temperature")), BASE}
    assert METHODS["vcd"](alpha=2).arms() == {Arm(contrast=Vcd(alpha=2, cutoff=0.1, noise=500))}
    assert METHODS["dola"]().arms() == {Arm(contrast=Dola(layers="high", cutoff=0.1))}
    assert METHODS["dola"]((0, 1)).arms() == {Arm(contrast=Dola(layers="0-1", cutoff=0.1))}


@pytest.mark.parametrize("scaling", [kind for kind in SCALINGS if kind != "share"])  # no share is every model's own
def test_an_untouched_model_is_base(scaling: str) -> None:
    assert ScalingVis(SCALINGS[scaling], scaling=scaling, layers="0-3").arms() == {BASE}


@pytest.mark.parametrize("kind", METHODS)
def test_every_branch_is_an_arm_that_is_looked_at(kind: str) -> None:
    values: dict[str, Any] = {**dict.fromkeys(HYPERPARAMETERS, 0.5), "weight2": 2.0}
    values |= {"low": "weight=0.5", "high": "contrast=vcd,alpha=1"}
    method = METHODS[kind](**{k: v for k, v in values.items() if k in METHODS[kind].__dataclass_fields__})  # type: ignore[attr-defined]
    assert set(method.branches().values()) <= method.arms()
    columns = [np.linspace(0, 1, 5)] * 4
    signals = {arm: Signals(*columns, np.ones(5, dtype=bool)) for arm in method.arms()}
    route = method.route(signals)
    assert route.shape == (5,)
    assert set(route.tolist()) == set(range(len(method.branches())))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScalingVis(1, scaling="multply"), "unknown method.scaling 'multply'; did you mean multiply?"),
        (lambda: AdaptVis(1, 2, 0.5, scaling="x"), "unknown method.scaling 'x'"),
        (lambda: ScalingVis(1, layers="9-3"), "method.layers=9-3 is not valid; expected one of: all"),
        (lambda: ScalingVis(1, layers="high"), "method.layers=high is not valid; expected one of: all"),
        (
            lambda: METHODS["dola"]("all of them"),
            "method.layers=allofthem is not valid; expected one of: all, low, high",
        ),
        (lambda: METHODS["dola"](cutoff=1.0), r"method.cutoff=1.0 is not valid; expected a number in \[0, 1\)"),
        (lambda: METHODS["vcd"](alpha=-1.0), "method.alpha=-1.0 is not valid; expected a finite number >= 0"),
        (lambda: METHODS["vcd"](alpha=float("inf")), "method.alpha=inf is not valid"),
        (
            lambda: ScalingVis(1.0, scaling="share"),
            r"weight=1 is not valid; expected with method.scaling=share a number in \(0, 1\)",
        ),
        (lambda: AdaptVis(0.5, 2.0, 0.5, scaling="share"), "weight2=2 is not valid"),
        (lambda: ScalingVis(1, scope="lst"), "unknown method.scope 'lst'; did you mean last?"),
        (lambda: ScalingVis(1, steps="none"), "unknown method.steps 'none'"),
        (lambda: METHODS["sla"](gamma=1.5), r"method.gamma=1.5 is not valid; expected a number in \[0, 1\]"),
        (lambda: METHODS["var"](moved=1.0), r"method.moved=1.0 is not valid; expected a number in \[0, 1\)"),
        (lambda: METHODS["var"](scope="last"), "unknown method.scope 'last'"),
        (lambda: METHODS["var"](sinks="1,x"), "method.sinks=1,x is not valid; expected dimensions"),
        (lambda: METHODS["sparc"](steps="all"), "unknown method.steps 'all'"),
        (lambda: Route("vcd,scaling=var", "1", 0.5), "method.low.scaling=var has no contrast beside it"),
        (
            lambda: Route("answer_yes,weight=0.5", "1", 0.5),
            "method.low.weight=0.5: answer_yes is a control of the unchanged model, leave it out",
        ),
        (lambda: Route("1", "forced_yes,weight=0.5", 0.5), "method.high.weight=0.5: forced_yes is a control"),
        (lambda: Route("1", "answer_yes,scaling=vaf", 0.5), "method.high.scaling=vaf: answer_yes is a control"),
        (lambda: METHODS["deco"](top_k=0), "method.top_k=0 is not valid; expected a whole number >= 1"),
        (lambda: METHODS["icd"](place="end"), "unknown method.place 'end'"),
        (lambda: METHODS["icd"](disturbance="d6"), "unknown method.disturbance 'd6'"),
        (
            lambda: METHODS["sample"](sampling_temperature=0.0),
            "sampling_temperature=0.0 is not valid; expected a finite",
        ),
        (lambda: METHODS["sid"](rank=0), "method.rank=0 is not valid; expected a whole number >= 1"),
        (lambda: METHODS["sid"](variant="x"), "unknown method.variant 'x'"),
        (lambda: METHODS["vaf"](variant="x"), "unknown method.variant 'x'"),
        (
            lambda: METHODS["vaf"](variant="paper"),
            "method.variant=paper: VAF's paper changes visual perception heads alone",
        ),
        (
            lambda: METHODS["var"](variant="released"),
            "method.variant=released: VAR's code keeps the sinks of the first",
        ),
        (lambda: METHODS["m3id"](decay=-1.0), "method.decay=-1.0 is not valid"),
        (lambda: PaiFull(gamma=0.5), "method.gamma=0.5 is not valid; expected a finite number >= 1"),
        (lambda: PaiFull(variant="x"), "unknown method.variant 'x'"),
        (lambda: Route("contrast=opera", "1", 0.5), "unknown contrast of method.low 'opera'"),
        (lambda: Route("0.5", "vcd,alpha=x", 0.5), "method.high: alpha=x is not valid; expected a number"),
        (lambda: Route("0.5,beta=1", "1", 0.5), "unknown key 'method.low.beta'"),
        (lambda: METHODS["vcd"](noise=1000), "method.noise=1000 is not valid; expected a step of diffusion, 0 to 999"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_where_and_when_an_arm_scales() -> None:
    given = ScalingVis(0.5, layers=(3, 4), scope="text", heads="3.0,4.1-2", steps="all")
    assert given.arms() == {Arm(Scaling(0.5, layers="3-4", scope="text", heads="3:0,4:1-2", steps="all"))}
    assert AdaptVis(1.0, 2.0, 0.5, scope="text").arms() == {BASE, Arm(Scaling(2.0, scope="text"))}
    assert given == ScalingVis(0.5, layers="3-4", scope="text", heads=("4:2", "4:1", "3:0"), steps="all")


def test_the_whole_of_pai_in_both_variants() -> None:
    arm = Arm(Scaling(0.2, "pai", layers="2-", steps="all"), TextGuidance(alpha=0.1, cutoff=0.1))
    (paper,) = PaiFull().arms()
    assert paper == arm
    assert {one.attention.steps for one in PaiFull(variant="released").arms()} == {"generated"}
    assert PaiFull(0.2, 1.0).arms() == {Arm(Scaling(0.2, "pai", layers="2-", steps="all"))}
    assert PaiFull(0.0, 1.0).arms() == {BASE}  # neither boost nor guidance


def test_sid_in_both_variants() -> None:
    sid = METHODS["sid"]
    assert sid().arms() == {Arm(contrast=Sid(1.0, 0.1, 100))}
    assert sid(variant="released").arms() == {Arm(contrast=Sid(0.5, 0.0, 100))}
    assert sid(variant="released", alpha=1.0) == sid(1.0, 0.0, variant="released")


def test_a_variant_of_vaf_and_var_is_no_other_arm() -> None:
    """So stored answers keep their keys."""
    vaf, var = METHODS["vaf"], METHODS["var"]
    assert vaf() == vaf(variant="released")
    assert vaf().arms() == {Arm(Vaf())}
    assert vaf(variant="paper", heads="9.3,12.0-1").arms() == {Arm(Vaf(heads="9:3,12:0-1"))}
    assert var() == var(variant="paper")
    assert var(sinks=(1415, 2533)) == var(sinks="1415,2533")
    assert METHODS["sparc"](read_layer=20) == METHODS["sparc"](read_layer="20")
    assert var().arms() == {Arm(Var())}


ARMS = (
    BASE,
    Arm(Scaling(0.5, "mass", layers="0-3,20", scope="text", heads="0-1,14:3", steps="all")),
    *(
        arm
        for kind in (
            *("vcd", "dola", "m3id", "sla", "deco", "icd", "sid", "sample", "answer_yes"),
            *("pai_full", "vaf", "var", "sparc"),
        )
        for arm in METHODS[kind]().arms()
    ),
    Arm(Vaf(layers="", scope="last", heads="0:1", enh=0.0), Vcd()),
    Arm(contrast=Vcd(0.0, 0.0, 0)),
    Arm(contrast=Icd(place="text", disturbance="100 % sure,  weight=2 = 'no'?")),
    Arm(contrast=Dola("0-3,5")),
)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.label)
def test_an_arm_is_read_from_its_label(arm: Arm) -> None:
    assert parse_arm_label(arm.label, "method.low") == arm


SELECTIONS = ("", "3", "0-3,20", "2-", "9-14/32")
VALUES: dict[Any, st.SearchStrategy[Any]] = {  # of fields by name, of others by type
    "scaling": st.sampled_from(list(SCALINGS)),
    **dict.fromkeys(("layers", "read_layer"), st.sampled_from((*SELECTIONS, "low", "high"))),
    "heads": st.sampled_from(("", "0-1,14:3")),
    "image_index": st.sampled_from(("", "2")),
    "sinks": st.sampled_from(("", "1415,2533")),
    "scope": st.sampled_from(SCOPES),
    "steps": st.sampled_from(STEPS),
    "place": st.sampled_from(PLACES),
    "disturbance": st.text(min_size=1),
    float: st.floats(0.001, 0.999) | st.sampled_from((0.0, 1.0)),
    int: st.integers(0, 10**9),
}


@st.composite
def arms(draw: st.DrawFn) -> Arm:
    """Any arm: a kind of attention, a contrast or both, each of its fields at a value that it takes."""
    parts = []
    for kind in (
        st.sampled_from(sorted({*ATTENTIONS.values()}, key=str)),
        st.sampled_from([None, *CONTRASTS.values()]),
    ):
        if (part := draw(kind)) is not None:
            named = {name: name if name in VALUES else type(value) for name, value in asdict(part()).items()}
            chosen = draw(st.fixed_dictionaries({}, optional={name: VALUES[key] for name, key in named.items()}))
            try:
                parts.append(part(**chosen))
            except ConfigError:
                reject()
    try:
        arm = Arm(*parts)
    except ConfigError:
        reject()
    return Arm(arm.attention.effective, arm.contrast)


@settings(max_examples=60)
@given(arms())
@example(Arm(contrast=Dola("")))
@example(Arm(Sparc(read_layer="")))
@example(Arm(0.1234567))
@example(Arm(contrast=Sampling(seed=1234567)))
def test_every_arm_is_read_from_its_label(arm: Arm) -> None:
    assert parse_arm_label(arm.label, "method.low") == arm


def test_arms_by_the_names_of_their_fields() -> None:
    assert parse_arm_label("vaf", "x") == parse_arm_label("scaling=vaf,enh=1.15", "x") == Arm(Vaf())
    assert parse_arm_label("vaf,enh=1,sup=1", "x") == BASE
    assert parse_arm_label("weight=0.5", "x") == parse_arm_label("0.5", "x") == Arm(0.5)
    assert parse_arm_label("contrast=vcd,alpha=2", "x") == Arm(contrast=Vcd(alpha=2.0, cutoff=0.1, noise=500))
    method = Route("weight=0.50", "contrast=vcd", 0.4)
    assert (method.low, method.high) == ("0.5", "vcd,alpha=1,cutoff=0.1,noise=500")
    assert method == Route(0.5, "vcd", 0.4)
    assert method.arms() == {BASE, *method.branches().values()}


@pytest.mark.parametrize("threshold", [0.0, 0.35, 0.5, 1.0])
def test_adapt_vis_is_a_route_of_two_weights(threshold: float) -> None:
    confidence = np.array([0.1, 0.349, 0.351, 0.5, 0.99, np.nan])
    signals = dict.fromkeys((BASE, Arm(0.5), Arm(2.0)), Signals(*[confidence] * 4, np.ones(6, dtype=bool)))
    adapt, route = AdaptVis(0.5, 2.0, threshold), Route("0.5", "2", threshold)
    assert list(adapt.branches().values()) == list(route.branches().values())
    assert adapt.route(signals).tolist() == route.route(signals).tolist()


def test_published_numbers_stand_beside_the_papers_own_settings_only() -> None:
    def paper(method: Any) -> float | None:
        return published_accuracy("llava15_7b", "controlled_a", method, Part())

    assert paper(ScalingVis(0.8)) == 64.5
    assert paper(ScalingVis(0.8, scaling="mass")) is None
    assert paper(ScalingVis(0.8, layers="0-15")) is None
    assert paper(AdaptVis(0.5, 1.5, 0.4)) == 84.9
    assert paper(AdaptVis(0.5, 1.5, 0.4, scaling="temperature")) is None
    assert (paper(METHODS["vcd"]()), paper(METHODS["vcd"](alpha=0.5))) == (61.5, None)
    assert (paper(METHODS["dola"]()), paper(METHODS["dola"]("low"))) == (61.2, None)


@dataclass(frozen=True)
class Foreign:
    """A method of another package, over the baseline's confidence."""

    rule: Callable[[Any], Any]
    read: frozenset[Arm] = frozenset({BASE, Arm(0.5)})
    kind = "foreign"
    routing = None

    def branches(self) -> dict[str, Arm]:
        return {"base": BASE, "low": Arm(0.5)}

    def arms(self) -> frozenset[Arm]:
        return self.read

    def route(self, signals: Any) -> Any:
        return self.rule(signals[BASE].max_prob)


def choose(rule: Callable[[Any], Any], confidence: tuple[float, ...] = (0.2, 0.6, 0.9)) -> Any:
    column = np.array(confidence)
    signals = Signals(column, column, column, column, np.ones(len(column), dtype=bool))
    return choose_branches(Foreign(rule), dict.fromkeys((BASE, Arm(0.5)), signals))


@pytest.mark.parametrize(
    ("rule", "branch"),
    [
        (lambda c: np.where(c < 0.5, 1, 0), [1, 0, 0]),
        (lambda c: c < 0.5, [1, 0, 0]),
        (lambda c: [bool(value < 0.5) for value in c], [1, 0, 0]),
        (lambda c: [1, -1, 0], [1, -1, 0]),
        (lambda c: (c < 0.5).astype(np.uint8), [1, 0, 0]),
    ],
)
def test_indices_and_booleans_choose_branches(rule: Any, branch: list[int]) -> None:
    chosen = choose(rule)
    assert (chosen.dtype, chosen.tolist()) == (np.intp, branch)
    check_routing(Foreign(lambda c: c < 0.5))


def test_no_question_has_no_branch() -> None:
    assert choose(list, ()).tolist() == []


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (lambda c: c, "returned ndarray of float64, shape (3,), which begins with 0.2; expected"),
        (lambda c: [0.0, 1.0, 1.0], "returned list of float64, shape (3,), which begins with 0.0; expected"),
        (lambda c: np.zeros(2, dtype=int), "returned ndarray of int64, shape (2,), which begins with 0; expected"),
        (lambda c: c[:, None] < 0.5, "returned ndarray of bool, shape (3, 1), which begins with True; expected"),
        (lambda c: [[0], [0, 1], [1]], "returned list [[0], [0, 1], [1]]; expected"),
        (lambda c: ["low"] * 3, "returned list of <U3, shape (3,), which begins with 'low'; expected"),
        (lambda c: [], "returned list of float64, shape (0,); expected"),
        (lambda c: 1, "returned int 1; expected"),
        (lambda c: None, "returned NoneType None; expected"),
        (lambda c: np.where(c < 0.5, 0, 7), "returned 7 for question 1 of 3; expected"),
        (lambda c: [0, 0, -2], "returned -2 for question 2 of 3; expected"),
        (lambda c: [1 / 0 for _ in c], "raised ZeroDivisionError: division by zero ("),
        (
            lambda c: c.no_such_column,
            "raised AttributeError: 'numpy.ndarray' object has no attribute 'no_such_column' (",
        ),
    ],
)
def test_anything_else_that_route_gives_is_one_line(rule: Any, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        choose(rule)
    assert str(error.value).startswith(f"method foreign: route {says}")
    assert "\n" not in str(error.value)
    if "returned" in says:
        assert str(error.value).endswith(
            "expected an array of shape (3,), one whole number per question: 0 = base, 1 = low, -1 = no answer; or "
            "booleans, False = 0 and True = 1"
        )
    else:
        assert "test_routing.py, line " in str(error.value)


@pytest.mark.parametrize("read", [frozenset({BASE}), frozenset()])
def test_a_method_reads_the_arms_that_it_takes(read: frozenset[Arm]) -> None:
    with pytest.raises(ConfigError, match=r"method foreign: arms\(\) must hold every arm of branches\(\)"):
        check_routing(Foreign(lambda c: c < 0.5, read))
