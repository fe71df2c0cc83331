"""What is installed against pyproject.toml: older is an error, newer than tested is said."""

from __future__ import annotations

import logging
from importlib import metadata
from pathlib import Path

import pytest
import versions
from packaging.requirements import Requirement

from spatial_eval.cli import doctor
from spatial_eval.cli.doctor import FAILS, OK, UNKNOWN
from spatial_eval.core import requirements
from spatial_eval.sweep import run

[CAPPED] = [one for one in requirements.read_packages() if one.name == "transformers"]
[CAP] = [bound.version for bound in CAPPED.specifier if bound.operator == "<"]
[FLOOR] = [bound.version for bound in CAPPED.specifier if bound.operator == ">="]


def installed(monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda one: version if one == name else real(one))


def test_the_cap_is_a_minor() -> None:
    """The newest minor that was run; the pin lies within."""
    assert CAPPED.specifier.contains(metadata.version("transformers"), prereleases=True)
    assert CAP.count(".") == 1


@pytest.mark.parametrize(
    ("version", "state"),
    [
        (f"{FLOOR}.0", [OK]),
        (f"{CAP}.0", [OK, UNKNOWN]),
        (f"{CAP}.0.dev0", [OK, UNKNOWN]),
        ("6.0.0", [OK, UNKNOWN]),
        ("5.11.0", [FAILS]),
    ],
)
def test_doctor_says_it(version: str, state: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "transformers", version)
    lines = [line for line in doctor._check_versions() if line.thing == "packages"]
    assert [line.state for line in lines] == state
    if UNKNOWN in state:
        assert lines[1].message == (
            f"transformers {version} is newer than the newest tested one: pip install '{CAPPED}' if anything fails"
        )
        assert not lines[1].stops


def test_a_package_that_is_absent_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def absent(name: str) -> str:
        if name == "rich":
            raise metadata.PackageNotFoundError
        return real(name)

    monkeypatch.setattr(metadata, "version", absent)
    [line] = [line for line in doctor._check_versions() if line.thing == "packages"]
    assert (line.state, "rich is not installed" in line.message) == (FAILS, True)
    assert requirements.list_newer() == []


def test_newer_by_upper_bound_alone() -> None:
    one = Requirement("x>=1.2,!=1.3,<2")
    assert [version for version in ("1.1", "1.2", "1.3", "1.9", "2", "2.1") if requirements.is_newer(one, version)] == [
        "2",
        "2.1",
    ]
    assert not requirements.is_newer(Requirement("x>=1"), "9")
    assert not requirements.is_newer(Requirement("x==1.*"), "2")


def test_without_a_checkout_the_metadata_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {str(one) for one in requirements.read_packages()}
    python = str(requirements.read_python())
    monkeypatch.setattr(requirements, "_FILE", Path("/nowhere/pyproject.toml"))
    monkeypatch.setattr(metadata, "requires", lambda name: [*here, 'gdown>=5; extra == "drive"'])
    assert {str(one) for one in requirements.read_packages()} == here
    assert str(requirements.read_python()) == python


def test_a_run_says_it_at_its_start(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    installed(monkeypatch, "transformers", f"{CAP}.1")

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "resolve_dtype", stop)
    monkeypatch.setattr(run, "build_grid", lambda *args: type("Found", (), {"notes": ()})())
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        run.launch_sweep([], multirun=True)
    assert [one.getMessage().partition(":")[0] for one in caplog.records] == [
        f"transformers {CAP}.1 is newer than the newest tested one"
    ]


def test_versions_that_the_tests_are_run_with() -> None:
    """make test-newest and make test-versions read pyproject.toml: no second list of bounds."""
    assert versions.newest() == [str(CAPPED)]
    lowest = dict(one.split("==") for one in versions.lowest())
    assert lowest["transformers"] == FLOOR
    assert set(lowest) == {one.name for one in requirements.read_packages()} - versions.KEPT
    assert all((versions.ROOT / folder).is_dir() for folder in versions.ENGINE)


@pytest.mark.parametrize(
    ("version", "arguments"),
    [("1.3.2", {"version_base": "1.3"}), ("1.3.8", {"version_base": "1.3"}), ("1.4.0rc3", {}), ("1.4.1", {})],
)
def test_hydra_is_asked_for_its_behaviour_only_where_it_has_several(version, arguments, monkeypatch) -> None:
    """1.3 warns without the question, 1.4 with it."""
    installed(monkeypatch, "hydra-core", version)
    assert requirements.choose_hydra_base() == arguments
