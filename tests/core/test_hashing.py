"""A file's identity is its content, read once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spatial_eval.core import hashing
from spatial_eval.core.hashing import combine_digests, digest_files, digest_folder
from spatial_eval.core.types import Places


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
    digest = hashing.digest_file
    monkeypatch.setattr(hashing, "digest_file", lambda path: read.append(path) or digest(path))
    assert digest_files([file], places) == before
    assert read == []
    file.write_text("two")
    os.utime(file, (1, 1))
    assert digest_files([file], places) != before
    assert read == [file]


def swap(file: Path, text: str) -> None:
    """Another content of the same length, with the size and the modification time of the one before."""
    before = file.stat()
    file.write_text(text)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def rename(file: Path, text: str) -> None:
    other = file.with_name("other")
    other.write_text(text)
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)


def link(file: Path, text: str) -> None:
    other = file.with_name("other")
    other.write_text(text)
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    file.unlink()
    file.symlink_to(other)


@pytest.mark.parametrize("change", [swap, rename, link])
def test_other_content_of_equal_size_and_time_has_another_digest(
    change: Callable[[Path, str], None], tmp_path: Path
) -> None:
    file, places = tmp_path / "a", Places(tmp_path, tmp_path)
    file.write_text("one")
    before, facts = digest_files([file], places), file.stat()
    change(file, "two")
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    assert digest_files([file], places) != before
    assert digest_files([file], places) == [hashing.digest_file(file)]


def test_notes_of_earlier_versions_are_passed_over(tmp_path: Path) -> None:
    file, places = tmp_path / "a", Places(tmp_path, tmp_path)
    file.write_text("one")
    facts = file.stat()
    notes = places.cache / "digests.jsonl"
    notes.parent.mkdir()
    old = json.dumps([f"{file}|{facts.st_size}|{facts.st_mtime_ns}", "0" * 32]) + "\n"
    notes.write_text(old)
    assert digest_files([file], places) == [hashing.digest_file(file)]
    assert notes.read_text().startswith(old)  # what another version may still read stays


def test_torn_and_foreign_lines_are_skipped(tmp_path: Path) -> None:
    file, places = tmp_path / "a", Places(tmp_path, tmp_path)
    file.write_text("one")
    want = digest_files([file], places)
    notes = places.cache / "digests.jsonl"
    text = notes.read_text()
    for end in range(len(text)):
        notes.write_text('[1]\n{"x": 2}\n["k", 3]\n' + text[:end])
        assert digest_files([file], places) == want


def test_where_nothing_can_be_noted_files_are_read_again(tmp_path: Path) -> None:
    file, places = tmp_path / "a", Places(tmp_path, tmp_path)
    file.write_text("one")
    places.cache.write_text("a file where the folder should be")
    assert digest_files([file], places) == digest_files([file], places) == [hashing.digest_file(file)]


def test_foreign_notes_are_no_digests(tmp_path: Path) -> None:
    file, places = tmp_path / "a", Places(tmp_path, tmp_path)
    file.write_text("one")
    want = digest_files([file], places)
    notes = places.cache / "digests.jsonl"
    (key, _) = json.loads(notes.read_text())
    for note in ([key, 5], [key], {key: "x"}, [[key], want[0]], [key, "short"], [key, want[0], 1]):
        notes.write_text(f"{json.dumps(note)}\n{'[' * 100_000}\n\xff\n", "latin-1")
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


def test_sub_folders_count_by_their_names_and_a_flat_folder_keeps_its_digest(tmp_path: Path) -> None:
    patterns, places = ["*.json", "more/*.jinja"], Places(tmp_path, tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    flat = digest_folder(folder, patterns, places)
    assert flat == combine_digests({"config.json": digest_files([folder / "config.json"], places)[0]})
    (folder / "more").mkdir()
    (folder / "more" / "a.jinja").write_text("{{ x }}")
    first = digest_folder(folder, patterns, places)
    (folder / "more" / "a.jinja").write_text("{{ y }}")
    second = digest_folder(folder, patterns, places)
    (folder / "more" / "a.jinja").rename(folder / "more" / "config.json")
    third = digest_folder(folder, ["*.json", "more/*.json"], places)
    (folder / "config.json").write_text("{ }")  # of two files of one name each counts
    assert len({flat, first, second, third, digest_folder(folder, ["*.json", "more/*.json"], places)}) == 5
