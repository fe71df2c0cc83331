"""Adopting a checkout without copying, and saying what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import command, write_lines

from spatial_eval import prepare
from spatial_eval.errors import DataError, StoreError

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
    made = prepare.adopt(checkout / part, data)
    assert {link.name for link in made} == {"controlled_images", "controlled_images_dataset.json", "prompts"}
    assert all(link.is_symlink() for link in made)
    assert prepare.adopt(checkout / part, data) == []
    found = {one.name: one for one in prepare.findings(data)}
    assert len(found) == 8
    assert (found["controlled_a"].questions, found["controlled_a"].problem) == (412, "2 images are missing")
    assert "no vsr/zeroshot_test.jsonl under data_dir" in found["vsr"].problem


def test_what_is_there_is_never_replaced(checkout: Path, tmp_path: Path) -> None:
    own = tmp_path / "data" / "prompts"
    own.mkdir(parents=True)
    with pytest.raises(StoreError, match="is there already"):
        prepare.adopt(checkout, tmp_path / "data")
    with pytest.raises(DataError, match="has none of the upstream files"):
        prepare.adopt(tmp_path / "nowhere", tmp_path / "data")


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


def test_a_model_is_fetched_from_a_folder_or_refused_without_network(tmp_path: Path) -> None:
    run = command("-m", "spatial_eval", "prepare")
    assert run("model=tiny").stdout.strip() == str(Path(prepare.__file__).parent / "tiny")
    done = run("model=llava15_7b", env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot fetch llava-hf/llava-1.5-7b-hf: ")
    assert done.stderr.count("\n") == 1
