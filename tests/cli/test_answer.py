"""python -m spatial_eval answer, and the model of lmms-eval that asks through it."""

from __future__ import annotations

import base64
import io
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmms_replica
import pytest
from conftest import ROOT
from doubles import Drill, Hashed
from lmms_replica import Instance
from PIL import Image

from spatial_eval.cli import answer, main
from spatial_eval.cli.answer import Session, open_session, read_bounded_lines
from spatial_eval.core.arms import BASE, Arm, Scaling
from spatial_eval.core.errors import ConfigError, ModelError
from spatial_eval.core.types import Experiment, Places
from spatial_eval.core.validate import show_value
from spatial_eval.methods.routing import AdaptVis

QUESTION = "Where is the mug? Answer with left, right, on or under."


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (32, 32), "red").save(path)
    return path


def make_session(folder: Path, **settings: Any) -> Session:
    experiment = Experiment(Drill(), Hashed(broken=settings.pop("broken", ())), 10)
    places = Places(folder, folder, remember=False)
    return Session(experiment, **{"arms": (BASE,), "method": None, "places": places, **settings})


def ask(session: Session, *lines: Any) -> list[dict[str, Any]]:
    return list(session.answer_lines(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))


def test_each_line_is_answered_at_once_and_a_bad_one_stops_nothing(tmp_path: Path, picture: Path) -> None:
    good = {"question": QUESTION, "image_path": str(picture)}
    session = make_session(tmp_path, broken=("9",))
    lines = [
        {**good, "id": "a"},
        b"{",
        [1],
        {**good, "id": 3, "question": " "},
        {**good, "image_path": "none.png"},
        {**good, "image_base64": "!"},
        {**good, "images": ["more.png"]},
        {"question": QUESTION, "image_base64": "\u00e9"},
        {"question": QUESTION, "image_base64": "!"},
        {**good, "max_new_tokens": 0},
        {**good, "options": [1]},
        {**good, "image_path": "a\0"},
        {**good, "id": None},
    ]
    given = iter([json.dumps(line).encode() if not isinstance(line, bytes) else line for line in lines])
    answers = session.answer_lines(given)
    first = next(answers)
    assert len(list(given)) == len(lines) - 1  # the rest was not read before the first answer
    assert first["id"] == "a"
    assert first["arm"] == "1"
    assert {"text", "confidence", "entropy", "margin", "logit", "option_probs"} < set(first)
    said = ask(session, *lines)
    assert [one["id"] for one in said] == ["a", 2, 3, 3, 5, 6, 7, 8, 9, 10, 11, 12, None]
    assert [one.get("error", "").split(";")[0].split(" (")[0] for one in said] == [
        "",
        "the line is not JSON",
        "the line is [1]",
        'question is " "',
        "there is no file none.png",
        f'the line holds image_path {show_value(str(picture))}, image_base64 "!"'.split(" (")[0],
        f'the line holds image_path {show_value(str(picture))}, images ["more.png"]'.split(" (")[0],
        "image_base64 is not base64: string argument should contain only ASCII characters",
        "image_base64 is not base64: Only base64 data is allowed",
        "max_new_tokens is 0",
        said[10]["error"].split(";")[0].split(" (")[0],
        r'image_path is "a\u0000", no path',
        "",
    ]
    assert said[10]["error"].startswith("options must be a list of texts")
    (broken,) = ask(make_session(tmp_path, broken=("1",)), good)
    assert broken == {"id": 1, "error": "cannot open its image"}


def test_a_method_answers_with_the_arm_it_chooses(tmp_path: Path, picture: Path) -> None:
    good = {"question": QUESTION, "image_path": str(picture)}
    sure = ask(make_session(tmp_path), *[good] * 12)
    method = AdaptVis(0.5, 2.0, 0.5)
    session = make_session(tmp_path, arms=tuple(sorted(method.arms())), method=method)
    chosen = [one["arm"] for one in ask(session, *[good] * 12)]
    assert chosen == ["0.5" if round(one["confidence"], 2) < 0.5 else "2" for one in sure]
    assert set(chosen) == {"0.5", "2"}


def test_a_picture_that_is_written_over_is_another_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watch(samples: Any, folder: Path) -> Any:
        sample = build(samples, len(seen), folder)
        seen.append((sample.image_digest, sample.image.read_bytes()))
        return sample

    session = make_session(tmp_path)
    build = lambda asked, number, folder: Session._build_sample(session, asked, number, folder)  # noqa: E731
    for color in ("red", "blue", "red"):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), color).save(file, "PNG")
        line = {
            "question": QUESTION,
            "image_base64": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(),
        }
        watch(line, tmp_path)
    (red, _), (blue, _), (again, _) = seen
    assert red == again != blue
    assert len({content for _, content in seen}) == 2


def test_stdout_holds_answers_alone(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session, real = make_session(tmp_path), Session._answer

    def answer_noisily(self: Session, *arguments: Any) -> dict[str, Any]:
        sys.stdout.write("a library's own words\n")
        return real(self, *arguments)

    lines = json.dumps({"question": QUESTION, "image_path": str(picture)}) + "\n\nnothing\n"
    monkeypatch.setattr(answer, "open_session", lambda *_: session)
    monkeypatch.setattr(Session, "_answer", answer_noisily)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert main.main(["answer"]) == 3
    out, err = capsys.readouterr()
    assert [json.loads(line)["id"] for line in out.splitlines()] == [1, 3]
    assert "a library's own words" in err


def test_a_method_of_another_package_that_fails_on_a_question_stops_nothing(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = AdaptVis(0.5, 2.0, 0.5)
    session = make_session(tmp_path, arms=tuple(sorted(method.arms())), method=method)
    line = {"question": QUESTION, "image_path": str(picture)}
    for given, says in ((1.0, "route returned float 1.0"), ([True], "")):
        monkeypatch.setattr(AdaptVis, "route", lambda *_, given=given: given)
        (said,) = ask(session, line)
        assert said.get("error", "").startswith(f"method adapt_vis: {says}" if says else "")
        assert ("arm" in said) is not bool(says)


def test_streams_that_are_closed_or_full(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    session = make_session(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)
    assert main.main(["answer"]) == 1
    assert capsys.readouterr().err == "error: stdin is closed: answer reads questions from it\n"
    lines = json.dumps({"question": QUESTION, "image_path": str(picture)}) + "\n"
    monkeypatch.setattr(answer, "open_session", lambda *_: session)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert main.main(["answer"]) == 1
    assert "error: the output is not whole" in capsys.readouterr().err
    monkeypatch.setattr(answer, "open_session", interrupt)
    assert main.main(["answer"]) == 3
    assert capsys.readouterr().err == "interrupted\n"


def test_long_lines_are_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(answer, "LONGEST", 8)
    assert list(read_bounded_lines(io.BytesIO(b"{}\n" + b"x" * 20 + b"\n{}\n12345678\n"))) == [
        b"{}\n",
        b"x" * 8,
        b"{}\n",
        b"12345678",
    ]
    (said,) = ask(make_session(tmp_path), b"x" * 8)
    assert said["error"].startswith("the line is longer than")


@pytest.mark.parametrize(
    ("what", "label", "says"),
    [
        (["weight=1"], "0.5", "--arm 0.5 stands in place of a method: take weight=1 away"),
        (["method=scaling_vis", "weight=1,2"], None, "gives 2 cells; answer takes one value per key"),
        (["method=forced_yes"], None, "computed from stored answers"),
        (["model=recorded", "model.path=x"], None, "model=recorded plays stored answers"),
        (["dataset.framing=open"], None, "dataset.framing does not change what another program asks"),
        (["dataset.template=brief"], None, "dataset.template does not change what another program asks"),
        ([], "0.5,scalin=mass", "scalin"),
        (["model=hf", "model.path=nowhere"], None, "neither a folder nor a hub id"),
    ],
)
def test_what_cannot_be_asked(what: list[str], label: str | None, says: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=says.replace("(", r"\(")):
        open_session(what, label)


def test_arms_by_label_and_by_method() -> None:
    assert open_session([], None).arms == (BASE,)
    assert open_session([], "base").arms == (BASE,)
    assert open_session([], "0.5,scaling=mass").arms == (Arm(Scaling(0.5, "mass")),)
    assert open_session(["method=scaling_vis", "weight=0.5"], None).arms == (Arm(0.5),)


# --- the model of lmms-eval


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    lmms_replica.install_lmms(monkeypatch)
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "lmms_eval_plugin"))
    import spatial_eval_lmms  # type: ignore[import-not-found]
    from spatial_eval_lmms.models import AVAILABLE_MODELS  # type: ignore[import-not-found]

    manifest = spatial_eval_lmms.manifest()
    path = manifest.simple_class_path
    cls = pkgutil.resolve_name(":".join(path.rsplit(".", 1)))
    assert cls is lmms_replica.REGISTERED[manifest.model_id]
    assert path == f"spatial_eval_lmms.models.{manifest.model_id}.{AVAILABLE_MODELS[manifest.model_id]}"
    yield cls
    for name in [name for name in sys.modules if name.startswith("spatial_eval_lmms")]:
        del sys.modules[name]


def request(doc: int, **gen_kwargs: Any) -> Instance:
    def show(doc: dict[str, Any]) -> Any:
        return doc["images"]

    return Instance("generate_until", (f"<image>\n{QUESTION}", gen_kwargs, show, doc, "spatial", "test"), doc)


ECHO = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    text = " ".join(sys.argv[1:]) + f" | {asked['question']} | {asked.get('max_new_tokens')}"
    said = {"error": "no"} if asked.get("max_new_tokens") == 7 else {"text": text}
    print(json.dumps({"id": asked["id"], **said}), flush=True)
"""


@pytest.fixture
def echo(plugin: Any, tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "echo.py").write_text(ECHO, "utf8")
    red = Image.new("RGB", (8, 8), "red")

    def make(arguments: str = "", *images: Any) -> Any:
        command = f"{sys.executable} {tmp_path / 'echo.py'}"
        made = plugin.create_from_arg_string(f"command={command},{arguments}", {"batch_size": 1, "device": None})
        made.task_dict = {"spatial": {"test": [{"images": list(images) or [red]}] * 3}}
        return made

    return make


def test_the_plugin_hands_keys_and_limits_over(echo: Callable[..., Any]) -> None:
    model = echo("model=tiny,method=scaling_vis,weight=0.5,method.scaling=mass,model.tf32=true")
    texts = model.generate_until([request(0, max_new_tokens=16, until=["\n\n"]), request(1, until="mug")])
    overrides = "answer model=tiny method=scaling_vis weight=0.5 method.scaling=mass model.tf32=true"
    assert texts == [f"{overrides} | {QUESTION} | 16", f"{overrides} | Where is the "]
    assert model.cached_as == overrides.replace(
        "answer", "spatial_eval"
    )  # another arm has answers of its own in lmms-eval's cache
    model.clean()


@pytest.mark.parametrize(
    ("images", "gen_kwargs", "says"),
    [
        ([Image.new("L", (4, 4))] * 2, {}, "question 2 shows Image, Image; spatial_eval answers questions about one"),
        (["film.mp4"], {}, "shows str"),
        ([], {"do_sample": True}, "wants sampling or beams"),
        ([], {"temperature": 0.2}, "wants sampling or beams"),
        ([], {"num_beams": 3}, "wants sampling or beams"),
        ([], {"max_new_tokens": 7}, "spatial, question 2: spatial-eval says no"),
    ],
)
def test_the_plugin_rejects_what_it_cannot_ask(
    echo: Callable[..., Any], images: list[Any], gen_kwargs: dict[str, Any], says: str
) -> None:
    model = echo("", *images)
    with pytest.raises((ValueError, RuntimeError), match=says):
        model.generate_until([request(2, **gen_kwargs)])
    model.clean()


def test_the_plugin_says_where_its_process_ended(plugin: Any) -> None:
    model = plugin.create_from_arg_string(f"command={sys.executable} -c 0")
    model.task_dict = {"spatial": {"test": [{"images": [Image.new("RGB", (4, 4))]}]}}
    with pytest.raises(RuntimeError, match="ended with exit code 0; its stderr says why"):
        model.generate_until([request(0)])
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])


@pytest.mark.long
def test_lmms_eval_gets_the_answers_of_the_model(plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real process: it answers each line before it reads the next, or this would wait for ever."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    picture = next((ROOT / "tests" / "fixtures").rglob("*.png"), None)
    image = Image.open(picture) if picture else Image.radial_gradient("L").convert("RGB")
    model = plugin.create_from_arg_string(
        f"command={sys.executable} -m spatial_eval,model=tiny,method=scaling_vis,weight=0.5,model.selfcheck=never"
    )
    model.task_dict = {"spatial": {"test": [{"images": [image]}] * 2}}
    texts = model.generate_until([request(0), request(1, max_new_tokens=1)])
    model.clean()
    lines, path = [], tmp_path / "picture.png"
    image.convert("RGB").save(path)
    lines = [{"question": QUESTION, "image_path": str(path), "max_new_tokens": n} for n in (100, 1)]
    session = open_session(["model=tiny", "model.selfcheck=never"], "0.5")
    assert texts == [one["text"] for one in ask(session, *lines)]
    assert main.main(["answer", "weight=1,2", "method=scaling_vis"]) == 1
