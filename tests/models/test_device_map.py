"""One model on two devices: inputs, arms, masks and cache meet each layer where it lies.

The devices are two in name only (named_devices.py); not run on a machine with several GPUs.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from families import build
from named_devices import FIRST, SECOND, Named, spread, to
from questions import share

from spatial_eval.core.arms import Arm, Dola, Scaling
from spatial_eval.engine.decode import decode_arms
from spatial_eval.engine.reference import decode_reference
from spatial_eval.engine.request import Intervention
from spatial_eval.models.batches import collate

ARMS = Intervention(
    (
        Arm(0.5),
        Arm(2.0),
        Arm(Scaling(0.5, "mass")),
        Arm(contrast=Dola(layers="", cutoff=0.0)),
        Arm(Scaling(0.5, scope="text", heads="0,2:1")),
    )
)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_layers_on_two_devices(name: str) -> None:
    family = build(name)
    asked = share(name, {0: 1, 3: 2})
    whole = collate(asked.prompts, asked.pad_id)
    expected = decode_reference(family.model, whole, intervention=ARMS, max_new_tokens=3)
    capturing = replace(ARMS, capture="map")
    with spread(family.model, family.model.get_decoder().layers[2:]):
        placed = to(whole, FIRST)
        alone = decode_reference(family.model, placed, intervention=ARMS, max_new_tokens=3)
        once = to(asked.inputs, FIRST)
        shared = decode_arms(family.model, once, intervention=capturing, max_new_tokens=3, image=asked.image)
        for ours in (alone, shared):
            assert ours.tokens == expected.tokens
            assert ours.logits.device == FIRST
    assert family.model.device.type == "cpu"


def test_devices_in_name_only_do_not_mix() -> None:
    with spread(torch.nn.Linear(2, 2), []):
        here, there = Named(torch.ones(2), FIRST), Named(torch.ones(2), SECOND)
        assert (here + there.to(FIRST)).device == FIRST
        with pytest.raises(RuntimeError, match=r"aten.add.Tensor met tensors on meta:0, meta:1"):
            here + there
