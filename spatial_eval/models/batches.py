"""Group prompts into forward passes and join their tensors. L positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from spatial_eval.core.arms import Arm
from spatial_eval.core.types import Work
from spatial_eval.engine.request import SEQUENCES

Inputs = dict[str, Tensor]

WASTE = 0.25  # most of a row that may be padding before a batch is split into buckets


def cut_batches(block: Sequence[Work]) -> list[list[Work]]:
    """Cut what is to do of a block into batches of the same arms, in the order of the block."""
    batches: dict[tuple[Arm, ...], list[Work]] = {}
    for item in block:
        batches.setdefault(item[1], []).append(item)
    return [batches[arms] for arms in sorted(batches)]


def prefix_tokens(inputs: Mapping[str, Tensor], image_token: int) -> tuple[int, ...]:
    """Return a prompt's tokens up to its last image token, without padding: equal for prompts that share an image."""
    ids, mask = inputs["input_ids"][0], inputs.get("attention_mask")
    image = (ids == image_token).nonzero()
    first = 0 if mask is None else int(mask[0].argmax())
    return tuple(ids[first : int(image[-1]) + 1 if len(image) else None].tolist())


def bucket_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Group indices by similar length: no row of a group is padded by more than WASTE of its width."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and lengths[index] >= (1 - WASTE) * lengths[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def collate(inputs: Sequence[Mapping[str, Tensor]], pad_id: int, *, pictured: Sequence[int] | None = None) -> Inputs:
    """Join processed prompts into one batch: sequences (1, L_i) are left padded, images joined in order.

    Images with several tiles (1, T_i, ...) get empty tiles, as the processors pad them. `pictured`: the prompts whose
    images are taken, one per image; None = all.
    """
    merged: Inputs = {}
    for name in inputs[0]:
        if name in SEQUENCES:
            length = max(one[name].shape[1] for one in inputs)
            fill = pad_id if name == "input_ids" else 0
            parts = [pad_left(one[name], length, fill) for one in inputs]
        else:
            parts = [inputs[i][name] for i in (range(len(inputs)) if pictured is None else pictured)]
            if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
                shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
                parts = [_fill_up(part, shape) for part in parts]
        merged[name] = torch.cat(parts)
    return merged


def pad_prompt(inputs: Inputs, *, pad_to: int, image_token: int, pad_id: int) -> Inputs:
    """Left pad to `pad_to` tokens counted before the image expands (the paper's code pads there)."""
    image = int((inputs["input_ids"] == image_token).sum())
    length = max(pad_to - 1 + image, inputs["input_ids"].shape[1])
    padded = {
        name: pad_left(inputs[name], length, pad_id if name == "input_ids" else 0)
        for name in SEQUENCES
        if name in inputs
    }
    return {**inputs, **padded}


def drop_padding(inputs: Inputs) -> Inputs:
    """Cut off what is padded on the left of one prompt."""
    mask = inputs.get("attention_mask")
    first = 0 if mask is None else int(mask[0].argmax())
    return {name: part[:, first:] if name in SEQUENCES else part for name, part in inputs.items()}


def pad_left(sequence: Tensor, length: int, fill: int) -> Tensor:
    """Fill a sequence on the left: (1, L) -> (1, length)."""
    return pad(sequence, (length - sequence.shape[1], 0), value=fill)


def _fill_up(part: Tensor, shape: Sequence[int]) -> Tensor:
    margins = [
        edge for size, want in zip(reversed(part.shape[1:]), reversed(shape), strict=True) for edge in (0, want - size)
    ]
    return pad(part, margins)
