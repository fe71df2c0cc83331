"""Which server and which key: those of the user's own `wandb login`."""

from __future__ import annotations

from pathlib import Path

import pytest

from spatial_eval.tracking.publications import PublishLedger
from spatial_eval.tracking.publisher import WandbClient
from spatial_eval.tracking.upload import PATIENCE, PROBE_S, Server, Unreachable, find_server, make_client_environment

KEY = "k" * 40


def test_the_environment_comes_first(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    found = find_server({"WANDB_API_KEY": "other", "WANDB_BASE_URL": "https://own.example/"}, tmp_path)
    assert (found.url, found.key) == ("https://own.example", "other")


def test_a_login_is_found_in_its_files(tmp_path: Path) -> None:
    (tmp_path / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / ".config" / "wandb" / "settings").write_text("[default]\nbase_url = https://own.example\n")
    (tmp_path / ".netrc").write_text(f"machine own.example login user password {KEY}\n")
    assert find_server({}, tmp_path) == Server("https://own.example", KEY)


def test_without_files_it_is_the_public_server_and_no_key(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine broken")
    found = find_server({}, tmp_path)
    assert found == Server("https://api.wandb.ai", "")
    with pytest.raises(Unreachable, match="no API key: set WANDB_API_KEY"):
        WandbClient(PublishLedger(tmp_path)).connect(found, PROBE_S)


def test_a_server_never_shows_its_key() -> None:
    assert KEY not in repr(Server("https://own.example", KEY))


def test_the_client_reports_nothing_and_writes_under_the_sweep(tmp_path: Path) -> None:
    found = make_client_environment(tmp_path / "wandb", tmp_path / "wandb" / "writing", tmp_path / "wandb" / "data")
    assert {key: found.pop(key) for key in PATIENCE} == PATIENCE
    assert found.pop("WANDB_ERROR_REPORTING") == "false"
    assert found.pop("WANDB_SILENT") == "true"
    assert all(Path(value).is_relative_to(tmp_path / "wandb") for value in found.values())
    assert {f"WANDB_{name}_DIR" for name in ("DATA", "CACHE", "CONFIG", "ARTIFACT")} <= set(found)
