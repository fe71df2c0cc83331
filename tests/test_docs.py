"""The reference is what the code says now, nothing a user can set is unexplained, and every command shown is true."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
from types import ModuleType

import pytest
from conftest import ROOT
from hydra_front import COMPOSER, make_grid

from spatial_eval.cli.main import build_parser
from spatial_eval.core.errors import ConfigError

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOON: tuple[str, ...] = ()  # shown already, not there yet


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "reference", module)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current(reference) -> None:
    assert reference.PATH.read_text("utf8") == reference.text(), "run `make docs`"


def test_every_explained_column_is_one(reference) -> None:
    assert set(reference.COLUMNS) == {name for names in reference.TABLES.values() for name in names} - (
        set(reference.arm_columns()) - set(reference.COLUMNS)
    )


@pytest.mark.parametrize(
    ("path", "old", "new", "says"),
    [
        (
            "conf/launcher/slurm.yaml",
            "partition: null          # queue",
            "partition: null",
            "launcher.partition: comment",
        ),
        (
            "conf/config.yaml",
            "retry: false          # true: compute recorded errors again",
            "retry: false",
            "retry: comm",
        ),
        (
            "conf/method/base.yaml",
            "# Greedy decoding of the unchanged model: the baseline.\n",
            "",
            "conf/method/base.yaml: say in",
        ),
        ("conf/dataset/vsr.yaml", "prompt: auto", "colour: red\nprompt: auto", "dataset.colour: comment on it"),
    ],
)
def test_an_option_without_an_explanation_fails(reference, tmp_path, monkeypatch, path, old, new, says) -> None:
    for folder in ("conf", "sweeps"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    text = (tmp_path / path).read_text("utf8")
    assert old in text
    (tmp_path / path).write_text(text.replace(old, new), "utf8")
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    with pytest.raises(reference.Unexplained, match=re.escape(says)):
        reference.text()


def test_a_column_or_an_argument_without_an_explanation_fails(reference, monkeypatch) -> None:
    monkeypatch.delitem(reference.COLUMNS, "share_weight1")
    with pytest.raises(reference.Unexplained, match=r"results.csv, column share_weight1: explain it in COLUMNS"):
        list(reference.files())

    def bare():
        top = build_parser()
        top._subparsers._group_actions[0].choices["report"].add_argument("--colour")
        return top

    monkeypatch.setattr(reference, "build_parser", bare)
    with pytest.raises(reference.Unexplained, match=r"report \['--colour'\]: give it a help text"):
        list(reference.commands())


def shown() -> list[str]:
    """Every command line in the README and docs/, once."""
    lines = [line for page in PAGES if page.name != "reference.md" for line in page.read_text("utf8").splitlines()]
    found = [line.strip() for line in lines if re.match(r"    (python |make )\S", line)]
    return list(dict.fromkeys(re.sub(r"\s+# .*", "", line) for line in found))


@pytest.mark.parametrize("command", shown())
def test_every_command_shown_is_true(command: str) -> None:
    soon = [word for word in SOON if word in command]
    try:
        check(shlex.split(command))
    except (ConfigError, SystemExit):
        assert soon
    else:
        assert not soon, "it is there now: take it out of SOON"


def inline() -> list[str]:
    """Every `KEY=VALUE ...` within a line of the README and docs/, once."""
    pages = [page.read_text("utf8") for page in PAGES if page.name != "reference.md"]
    found = [code for page in pages for code in re.findall(r"`([^`\n]+)`", page)]
    return [code for code in dict.fromkeys(found) if re.fullmatch(r"""(-m )?['"]?[a-z_]\w*(\.\w+)*=[^|]*""", code)]


def test_every_argument_shown_can_be_typed() -> None:
    assert len(inline()) > 50
    for code in inline():
        for word in shlex.split(code):  # as bash reads it
            if "=" in word:
                COMPOSER.parse(word)


def check(words: list[str]) -> None:
    """Raises SystemExit or ConfigError where a word means nothing."""
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text("utf8")
    elif words[:3] == ["python", "-m", "spatial_eval"]:
        if words[3:] != ["--help"]:
            build_parser().parse_args(words[3:])
    else:
        assert words[:2] == ["python", "launch.py"]
        assert make_grid([word for word in words[2:] if not word.startswith("-") and word != "..."]).cells


def test_the_readme_is_one_page() -> None:
    assert len(PAGES[0].read_text("utf8").splitlines()) <= 150
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_glossary_names_every_column_and_no_other(reference) -> None:
    rows = [line.split("|") for line in (ROOT / "docs" / "glossary.md").read_text("utf8").splitlines() if "|" in line]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[3])}
    assert named == {name for columns in reference.TABLES.values() for name in columns}


def test_the_site_lists_every_page_once() -> None:
    """mkdocs leaves a page out of the navigation in silence."""
    listed = re.findall(r"^ +- (?:\w+: )?([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf8"), re.M)
    own = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    outside = re.findall(r'^    "[\w/]+\.md": "(\w+\.md)",$', (ROOT / "docs/site_pages.py").read_text("utf8"), re.M)
    assert len(outside) == 5
    assert sorted(listed) == sorted({*own, *outside})
