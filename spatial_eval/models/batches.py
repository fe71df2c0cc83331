"""Which questions share a forward pass, and how their tensors become one. B questions, L positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import pad

from spatial_eval.core.types import Arm, Sample

Work = tuple[Sample, tuple[Arm, ...]]
Inputs = dict[str, Tensor]

AUTO_ROWS = 32  # rows of a block under batch_size=auto; halved on out-of-memory
WASTE = 0.25  # most of a row that may be padding before a batch is split into buckets
SEQUENCES = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def block_rows(batch_size: int | str) -> int:
    """Rows of the dataset in one fixed block; shards should start at multiples of it."""
    return AUTO_ROWS if isinstance(batch_size, str) else batch_size


def cut_batches(work: Sequence[Work], rows: int) -> Iterator[list[Work]]:
    """Batches in row order, each inside one block of `rows` rows of the dataset and with the same arms.

    What shares a batch depends on the block alone, never on where a shard, a limit or a resumed run began.
    """
    ordered = sorted(work, key=lambda item: (item[0].row // rows, item[1], item[0].row))
    for _, group in groupby(ordered, key=lambda item: (item[0].row // rows, item[1])):
        yield list(group)


def bucket_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in groups of similar length: no row of a group is padded by more than WASTE of its width."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and lengths[index] >= (1 - WASTE) * lengths[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def collate(inputs: Sequence[Mapping[str, Tensor]], pad_id: int) -> Inputs:
    """One batch of processed questions: sequences (1, L_i) are left padded, images joined in row order.

    Images with several tiles (1, T_i, ...) get empty tiles, as the processors pad them.
    """
    merged: Inputs = {}
    for name in inputs[0]:
        parts = [one[name] for one in inputs]
        if name in SEQUENCES:
            length = max(part.shape[1] for part in parts)
            fill = pad_id if name == "input_ids" else 0
            parts = [pad_left(part, length, fill) for part in parts]
        elif any(part.shape[1:] != parts[0].shape[1:] for part in parts):
            shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
            parts = [_fill_up(part, shape) for part in parts]
        merged[name] = torch.cat(parts)
    return merged


def pad_prompt(inputs: Inputs, *, pad_to: int, image_token: int, pad_id: int) -> Inputs:
    """Left padded to `pad_to` tokens counted before the image expands (the reference pads there)."""
    image = int((inputs["input_ids"] == image_token).sum())
    length = max(pad_to - 1 + image, inputs["input_ids"].shape[1])
    padded = {
        name: pad_left(inputs[name], length, pad_id if name == "input_ids" else 0)
        for name in SEQUENCES
        if name in inputs
    }
    return {**inputs, **padded}


def pad_left(sequence: Tensor, length: int, fill: int) -> Tensor:
    """(1, L) -> (1, length), filled on the left."""
    return pad(sequence, (length - sequence.shape[1], 0), value=fill)


def _fill_up(part: Tensor, shape: Sequence[int]) -> Tensor:
    margins = [
        edge for size, want in zip(reversed(part.shape[1:]), reversed(shape), strict=True) for edge in (0, want - size)
    ]
    return pad(part, margins)
