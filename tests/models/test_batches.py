"""Which prompts share a batch and a prefix; joined tensors are those of the processor's own batch."""

from __future__ import annotations

import pytest
import torch
from families import SUPPORTED, build, picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spatial_eval.core.arms import Arm
from spatial_eval.core.types import Sample
from spatial_eval.models.batches import WASTE, bucket_by_length, collate, cut_batches, pad_prompt, prefix_tokens

ARMS = (Arm(), Arm(2.0))
law = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are shared


def sample(row: int) -> Sample:
    return Sample(str(row), row, "?", ("on",))


def test_one_set_of_arms_per_batch() -> None:
    block = [(sample(row), ARMS[: 1 + row % 2]) for row in (4, 1, 2, 3)]
    assert [[one.row for one, _ in batch] for batch in cut_batches(block)] == [[4, 2], [1, 3]]


def test_prompts_that_share_a_prefix() -> None:
    def tokens(*ids: int, padding: int = 0) -> tuple[int, ...]:
        mask = [0] * padding + [1] * (len(ids) - padding)
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.tensor([mask])}
        return prefix_tokens(inputs, 7)

    assert tokens(1, 7, 7, 5, 6) == tokens(1, 7, 7, 8) == tokens(0, 0, 1, 7, 7, 8, padding=2) == (1, 7, 7)
    assert tokens(1, 7, 2, 7, 5) == (1, 7, 2, 7)
    assert tokens(1, 2, 7, 5) != tokens(1, 3, 7, 5)
    assert tokens(1, 2) == (1, 2)  # no image: nobody else's
    assert prefix_tokens({"input_ids": torch.tensor([[7, 5]])}, 7) == (7,)


@law
@given(st.lists(st.integers(1, 3000), max_size=20))
def test_buckets_waste_little(lengths: list[int]) -> None:
    groups = bucket_by_length(lengths)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert min(lengths[i] for i in group) >= (1 - WASTE) * max(lengths[i] for i in group)


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([100, 75], [[0, 1]]),  # a quarter may be padding
        ([100, 74], [[0], [1]]),
        ([1000, 750, 749], [[0, 1], [2]]),
        ([749, 1000, 750], [[1, 2], [0]]),
        ([4, 3, 2], [[0, 1], [2]]),
        ([7], [[0]]),
        ([], []),
    ],
)
def test_a_quarter_of_a_row_may_be_padding(lengths: list[int], groups: list[list[int]]) -> None:
    assert bucket_by_length(lengths) == groups


@pytest.mark.parametrize("name", SUPPORTED)
def test_collate_gives_the_processors_batch(name: str) -> None:
    processor = build(name).processor
    content = [{"type": "image"}, {"type": "text", "text": "Where?"}]
    short = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    texts = [short, short.replace("Where?", "Where is the cup?")]
    images = [[picture(1, (120, 60))], [picture(2, (200, 200))]]
    both = processor(images=images, text=texts, return_tensors="pt", padding=True)
    each = [processor(images=[i], text=[t], return_tensors="pt") for i, t in zip(images, texts, strict=True)]
    tensors = [{key: value for key, value in one.items() if isinstance(value, torch.Tensor)} for one in each]
    ours = collate(tensors, processor.tokenizer.pad_token_id)
    for key, value in ours.items():
        torch.testing.assert_close(value, both[key], check_dtype=False)


def test_images_are_taken_once() -> None:
    one = {"input_ids": torch.ones(1, 3, dtype=torch.long), "pixel_values": torch.zeros(1, 2)}
    other = {"input_ids": torch.ones(1, 2, dtype=torch.long), "pixel_values": torch.ones(1, 2)}
    merged = collate([one, other, one], 0, pictured=[0, 1])
    assert merged["input_ids"].tolist() == [[1, 1, 1], [0, 1, 1], [1, 1, 1]]
    assert merged["pixel_values"].tolist() == [[0, 0], [1, 1]]


def test_padding_counts_tokens_before_the_image_expands() -> None:
    inputs = {"input_ids": torch.tensor([[1, 7, 7, 7, 5]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    padded = pad_prompt(inputs, pad_to=6, image_token=7, pad_id=0)
    assert padded["input_ids"].tolist() == [[0, 0, 0, 1, 7, 7, 7, 5]]
    assert padded["attention_mask"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]
    assert pad_prompt(inputs, pad_to=2, image_token=7, pad_id=0)["input_ids"].tolist() == inputs["input_ids"].tolist()
