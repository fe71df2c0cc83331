"""Adopting a checkout without copying, and saying what is missing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import ROOT, command, write_lines
from hydra_front import COMPOSER

from spatial_eval.benchmarks.readers import BENCHMARKS
from spatial_eval.core.errors import ConfigError, DataError, StoreError
from spatial_eval.prepare import verify
from spatial_eval.prepare.recipes import RECIPES, link_checkout
from spatial_eval.prepare.sources import DATA_KINDS

WORDS = ("Left", "Right", "On", "Under")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a checkout of the upstream code has: data/ with annotation and images, prompts/ beside it."""
    root = tmp_path / "AdaptVis"
    rows = [
        {"id": i, "question": f"Where is the {i // 4} in relation to the table?", "answer": [WORDS[i % 4]]}
        for i in range(412)
    ]
    write_lines(root / "prompts" / "Controlled_Images_A_with_answer_four_options.jsonl", rows)
    notes = [{"image_path": f"data/controlled_images/{i}.jpeg", "caption_options": [WORDS[i % 4]]} for i in range(412)]
    (root / "data" / "controlled_images").mkdir(parents=True)
    (root / "data" / "controlled_images_dataset.json").write_text(json.dumps(notes))
    for i in range(410):
        (root / "data" / "controlled_images" / f"{i}.jpeg").touch()
    return root


@pytest.mark.parametrize("part", [".", "data"])
def test_a_checkout_or_its_data_folder_is_linked(checkout: Path, part: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    made = link_checkout(checkout / part, data)
    assert {link.name for link in made} == {"controlled_images", "controlled_images_dataset.json", "prompts"}
    assert all(link.is_symlink() for link in made)
    assert link_checkout(checkout / part, data) == []
    known = verify.list_data_benchmarks(COMPOSER, "all", {})
    found = {name: verify.glance_benchmark(name, dataset, data) for name, dataset in known}
    assert len(found) == 7
    assert (found["controlled_a"].questions, found["controlled_a"].problem) == (412, "2 images are missing")
    assert "no vsr/zeroshot_test.jsonl under data_dir" in found["vsr"].problem


def test_what_is_there_is_never_replaced(checkout: Path, tmp_path: Path) -> None:
    own = tmp_path / "data" / "prompts"
    own.mkdir(parents=True)
    with pytest.raises(StoreError, match="is there already"):
        link_checkout(checkout, tmp_path / "data")
    with pytest.raises(DataError, match="has none of the upstream files"):
        link_checkout(tmp_path / "nowhere", tmp_path / "data")


def test_a_checkout_without_questions_prepares_nothing(checkout: Path, tmp_path: Path) -> None:
    (checkout / "prompts").rename(tmp_path / "elsewhere")
    done = command("-m", "spatial_eval", "prepare", "--data-dir", str(tmp_path / "data"))("--from", str(checkout))
    assert done.returncode == 1
    said = f"error: nothing was prepared: --from {checkout} gives no question; the lines above say why\n"
    assert done.stderr.endswith(said)


def test_on_the_command_line(checkout: Path, tmp_path: Path) -> None:
    run = command("-m", "spatial_eval", "prepare", "--data-dir", str(tmp_path / "data"))
    done = run("--from", str(checkout))
    assert done.returncode == 3  # not everything is there, and it says what
    assert "controlled_a        412 questions   410 images  2 images are missing" in done.stdout
    checked = run("--check")
    assert checked.returncode == 3
    assert "410 images are damaged: " in checked.stdout  # the replica's are empty files
    for wrong in (["model"], ["dataset"], ["dataset=vsr", "model=tiny"], ["--from", "x", "dataset=vsr"], []):
        done = run(*wrong)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "unknown model 'llava15_7c'; did you mean llava15_7b?" in run("model=llava15_7c").stderr


@pytest.mark.long
def test_a_model_is_fetched_from_a_folder_or_refused_without_network(tmp_path: Path) -> None:
    run = command("-m", "spatial_eval", "prepare")
    assert run("model=tiny").stdout.strip() == str(ROOT / "spatial_eval" / "tiny")
    done = run("model=llava15_7b", env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr.startswith("error: llava-hf/llava-1.5-7b-hf is not in the hub cache and the hub cannot be asked")
    assert done.stderr.count("\n") == 1


def test_each_dataset_that_lies_in_a_data_dir_has_a_recipe() -> None:
    assert {BENCHMARKS[kind] for kind in DATA_KINDS} == set(RECIPES)


OWN = """# The first rows of vsr.
defaults:
  - vsr
  - _self_

name: own_vsr
rows: 2
file: own.jsonl
"""


@pytest.mark.long
def test_options_of_ones_own_are_prepared_examined_and_imported(tmp_path: Path) -> None:
    """--config-dir means the same to prepare, doctor and import as to launch.py."""
    own = tmp_path / "own" / "dataset" / "own_vsr.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(OWN)
    rows = [{"image": f"{i}.jpg", "caption": f"{i} is on it.", "label": i % 2, "relation": "on"} for i in range(2)]
    write_lines(tmp_path / "data" / "vsr" / "own.jsonl", rows)
    places = ("--data-dir", str(tmp_path / "data"), "--config-dir", str(tmp_path / "own"))
    run = command("-m", "spatial_eval")
    done = run("prepare", "dataset=own_vsr", "--check", *places)
    assert done.stdout == "own_vsr               2 questions     0 images  2 images are missing\n"
    assert "own_vsr " in run("prepare", "dataset=all", "--check", *places).stdout
    assert "unknown dataset to prepare 'own_vsr'" in run("prepare", "dataset=own_vsr", "--check", *places[:2]).stderr

    out = ("--output-dir", str(tmp_path / "out"))
    answers = ("model=imported", "model.name=theirs")  # a model asks torch, which takes seconds
    done = run("doctor", "dataset=own_vsr", *answers, *places, *out)
    assert "data own_vsr      ok          2 questions, 0 images (theirs looks at none)" in done.stdout

    recorded = [{"dataset": "own_vsr", "row": i, "confidence": 0.9, "generation": {"1.0": "Yes"}} for i in range(2)]
    source = str(write_lines(tmp_path / "recorded.jsonl", recorded))
    done = run("import", source, "--name", "theirs", *places, *out)
    assert done.returncode == 0, done.stderr
    assert "own_vsr x theirs, 1: 2 new, 0 known" in done.stdout
    done = command("launch.py")(
        *("--config-dir", str(tmp_path / "own"), "dataset=own_vsr", "model=imported", "model.name=theirs", "split=all"),
        *(f"data_dir={tmp_path / 'data'}", f"output_dir={tmp_path / 'out'}"),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["prepare", "dataset=all"], ["doctor"], ["import", "x.jsonl"]])
def test_a_wrong_folder_of_options_is_one_line(words: list[str], tmp_path: Path) -> None:
    done = command("-m", "spatial_eval")(*words, "--config-dir", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stderr) == (1, f"error: --config-dir {tmp_path}/nowhere: there is no such folder\n")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "vsr.yaml").write_text("kind: vsr\n")
    done = command("-m", "spatial_eval")(*words, "--config-dir", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "dataset vsr is one of spatial_eval's own: rename the file" in done.stderr


def test_nothing_to_prepare_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(COMPOSER, "get_group_options", lambda group: [])
    with pytest.raises(ConfigError, match="nothing to prepare: no option of conf/dataset lies in a data_dir"):
        verify.list_data_benchmarks(COMPOSER, "all", {})


@pytest.mark.parametrize("content", [b"[" * 100_000 + b"\n", b'[1]\n7\n{"path": "a"}\n', b"\xff\0\n", None])
def test_checksums_of_another_hand_are_passed_over(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / verify.CHECKSUMS
    os.mkfifo(path) if content is None else path.write_bytes(content)
    assert verify.Checksums(tmp_path).problem(tmp_path / "a") == ""
