"""One model on two devices: inputs, arms, masks and cache meet each layer where it lies.

The devices are two in name only (named_devices.py); no machine with several GPUs was at hand.
"""

from __future__ import annotations

import pytest
import torch
from families import build, picture
from named_devices import FIRST, SECOND, Named, spread, to

from spatial_eval.core.types import Arm
from spatial_eval.engine import decode, reference
from spatial_eval.engine.request import Intervention
from spatial_eval.models.batches import collate

ARMS = Intervention((Arm(0.5), Arm(2.0), Arm(0.5, scaling="mass"), Arm(contrast="dola")))


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_layers_on_two_devices(name: str) -> None:
    family = build(name)
    encoded = []
    for index, question in enumerate(("Where is the cup?", "Where?")):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = family.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        encoded.append(dict(family.processor(images=[picture(index, (64, 64))], text=[text], return_tensors="pt")))
    inputs = collate(encoded, family.processor.tokenizer.pad_token_id)
    judge = reference.decode_reference(family.model, inputs, intervention=ARMS, max_new_tokens=3)
    with spread(family.model, family.model.get_decoder().layers[2:]):
        placed = to(inputs, FIRST)
        for way in (decode.decode_arms, reference.decode_reference):
            ours = way(family.model, placed, intervention=ARMS, max_new_tokens=3)
            assert ours.tokens == judge.tokens
            assert ours.logits.device == FIRST
    assert family.model.device.type == "cpu"


def test_devices_in_name_only_do_not_mix() -> None:
    with spread(torch.nn.Linear(2, 2), []):
        here, there = Named(torch.ones(2), FIRST), Named(torch.ones(2), SECOND)
        assert (here + there.to(FIRST)).device == FIRST
        with pytest.raises(RuntimeError, match=r"aten.add.Tensor met tensors on meta:0, meta:1"):
            here + there
