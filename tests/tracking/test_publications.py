"""What a ledger of another hand may do: nothing outside the sweep's wandb folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from spatial_eval.tracking.publications import PublishLedger, Written, read_urls


def entry(root: Path, **changes: Any) -> dict[str, Any]:
    return asdict(Written("r", "d", str(root), "offline-1", ("a.json",), ("cells",), "p", None, 1)) | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "../../other"},
        {"run": ""},
        {"run": "."},
        {"run": "/{folder}/other"},
        {"staged": ["../../other/file"]},
        {"id": "../../../other"},
        {"run": 7},
        {"staged": 7},
        {"time": "late"},
        {"id": ["r"]},
        {"digest": None},
        {"later": 1},
        {"run": "x" * 300},
        {"run": "\ud800"},
        {"id": "x" * 300},
        {"staged": ["x" * 12_000]},
        {"staged": ["a/" * 5_000]},
        {"staged": ["\udfff.json"]},
        {"staged": ["a\0b"]},
    ],
)
def test_a_line_of_another_hand_removes_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "sweeps" / "s" / "wandb"
    (root / "ledger").mkdir(parents=True)
    (root / "offline-1").mkdir()
    (root / "a.json").touch()
    (tmp_path / "sweeps" / "other").mkdir()
    (tmp_path / "sweeps" / "other" / "file").touch()
    row = entry(root, **changes)
    row["run"] = str(row["run"]).format(folder=tmp_path / "sweeps") if isinstance(row["run"], str) else row["run"]
    lines = [row, {"id": [], "digest": {}, "synced": []}, entry(root, time=2)]
    (root / "ledger" / "h-1-a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ledger = PublishLedger(root.parent)
    assert [(one.run, one.time) for one in ledger.list_written().values()] == [("offline-1", 2)]
    assert ledger.list_synced() == set()
    ledger.remove_leftovers()
    assert (tmp_path / "sweeps" / "other" / "file").exists()
    assert (root / "offline-1").is_dir()
    assert (root / "ledger").is_dir()


def test_what_cannot_be_removed_stays(tmp_path: Path) -> None:
    root = tmp_path / "wandb"
    (root / "ledger").mkdir(parents=True)
    (root / "folder").mkdir()
    lines = [entry(root, staged=["folder", "a.json/b"]), entry(root, time=2)]
    (root / "ledger" / "h-1-a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "a.json").touch()
    ledger = PublishLedger(tmp_path)
    ledger.remove_leftovers()
    assert (root / "folder").is_dir()
    assert (root / "a.json").is_file()
    assert ledger.list_written()["r"].time == 2


@pytest.mark.parametrize("content", ["[]", "{", '{"urls": 7}', "[" * 100_000, "7"])
def test_a_publish_json_of_another_hand_has_no_addresses(content: str, tmp_path: Path) -> None:
    (tmp_path / "publish.json").write_text(content)
    assert read_urls(tmp_path) == {}
