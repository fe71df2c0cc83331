"""What the paper's reference code gave on a tiny model: the same tokens, confidences and first logits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from questions import ARMS, WEIGHTS, Questions, ask, load
from safetensors.torch import load_file

from spatial_eval.core.types import Generation, Sample
from spatial_eval.engine import decode
from spatial_eval.engine.reference import decode_reference
from spatial_eval.engine.request import Intervention
from spatial_eval.models import loading
from spatial_eval.models.batches import collate
from spatial_eval.models.encoder import Encoder
from spatial_eval.models.hf import HF


@pytest.fixture(scope="module")
def reference() -> Path:
    folder = Path(os.environ.get("SPATIAL_EVAL_DATA", "")) / "reference_tiny"
    if not os.environ.get("SPATIAL_EVAL_DATA") or not folder.is_dir():
        pytest.skip("SPATIAL_EVAL_DATA names no folder with reference_tiny/")
    return folder


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def questions(reference: Path) -> list[Sample]:
    return [
        Sample(str(one["id"]), row, one["question"], ("on",), (), reference / one["image_path"])
        for row, one in enumerate(lines(reference / "questions.jsonl"))
    ]


@pytest.mark.parametrize(
    "settings",
    [{}, {"batch_size": 4}, {"pad_to": 200}, {"pad_to": 200, "batch_size": "auto"}, {"span": True, "layers": 32}],
    ids=str,
)
def test_answers_and_confidences(settings: dict[str, Any], reference: Path, tmp_path: Path) -> None:
    model = HF(str(reference / "model"), selfcheck="never", **settings)
    found = ask(load(model, tmp_path, tokens=24), questions(reference), ARMS)
    assert len(found) == 56
    for want in lines(reference / "expected.jsonl"):
        for weight in WEIGHTS:
            record = found[str(want["id"]), weight]
            assert isinstance(record, Generation)
            assert list(record.tokens or ()) == want["tokens"][str(weight)]
            assert record.text == want["text"][str(weight)].strip()
            assert record.confidence == pytest.approx(want["confidence"][str(weight)], abs=5e-5)


@pytest.mark.parametrize("batch", [1, 8])
def test_first_logits(batch: int, reference: Path) -> None:
    """Within 5e-5 of the recorded logits, or, where rounding in the recording itself is larger than that (seen
    once in 56: exact arithmetic differs from it by 9e-5), of the same model evaluated in float64."""
    model = HF(str(reference / "model"))
    vlm = loading.load_model(model)
    encoder = Encoder(model, Questions())  # type: ignore[arg-type]
    work = questions(reference)
    inputs = [encoder.encode(sample)[1] for sample in work]
    parts = [collate(inputs[start : start + batch], encoder.pad_id) for start in range(0, len(inputs), batch)]
    intervention = Intervention(ARMS)
    ours = torch.cat(
        [decode.decode_arms(vlm, part, intervention=intervention, max_new_tokens=1).logits for part in parts]
    )
    whole = collate(inputs, encoder.pad_id)
    whole["pixel_values"] = whole["pixel_values"].double()
    exact = decode_reference(vlm.double(), whole, intervention=intervention, max_new_tokens=1).logits
    recorded = load_file(reference / "expected_first_logits.safetensors")
    off = []
    for index, sample in enumerate(work):
        for arm, weight in enumerate(WEIGHTS):
            gap = (ours[index, arm] - recorded[f"{sample.id}/{weight}"]).abs().max().item()
            off.append(gap)
            assert gap <= 5e-5 or (ours[index, arm] - exact[index, arm]).abs().max().item() <= 5e-5
    assert max(off) <= 1.5e-4
    assert sum(gap > 5e-5 for gap in off) <= 5
