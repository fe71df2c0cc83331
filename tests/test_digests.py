"""A file's identity is its content, read once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spatial_eval import digests
from spatial_eval.digests import digest_files, digest_folder
from spatial_eval.types import Places


def test_content_not_place(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("same")
    (tmp_path / "b").write_text("same")
    (tmp_path / "c").write_text("other")
    a, b, c, d = digest_files([tmp_path / name for name in "abcd"], Places(tmp_path, tmp_path))
    assert a == b != c
    assert len(a) == 32
    assert d == "missing"


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, places = tmp_path / "a", Places(tmp_path, tmp_path / "out")
    file.write_text("one")
    before = digest_files([file], places)
    assert not places.output.exists()  # planning writes nothing before the first run
    places.output.mkdir()
    digest_files([file], places)
    read: list[Path] = []
    digest = digests._digest
    monkeypatch.setattr(digests, "_digest", lambda path: read.append(path) or digest(path))
    assert digest_files([file], places) == before
    assert read == []
    file.write_text("two")
    os.utime(file, (1, 1))
    assert digest_files([file], places) != before
    assert read == [file]


def test_torn_and_foreign_lines_are_skipped(tmp_path: Path) -> None:
    file, places = tmp_path / "a", Places(tmp_path, tmp_path)
    file.write_text("one")
    want = digest_files([file], places)
    notes = places.cache / "digests.jsonl"
    text = notes.read_text()
    for end in range(len(text)):
        notes.write_text('[1]\n{"x": 2}\n["k", 3]\n' + text[:end])
        assert digest_files([file], places) == want


def test_folder_counts_names_and_ignores_the_rest(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "README.md").write_text(name)
    one, two = (digest_folder(tmp_path / name, ["*.json"], Places(tmp_path, tmp_path)) for name in ("one", "two"))
    assert one == two
    (tmp_path / "two" / "config.json").rename(tmp_path / "two" / "other.json")
    assert digest_folder(tmp_path / "two", ["*.json"], Places(tmp_path, tmp_path)) != one
