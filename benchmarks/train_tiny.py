"""Trains the embedded tiny model from nothing, in under 15 minutes on 2 cores: `train_tiny.py --out DIR`.

Two stages: the vision tower alone on what covers each patch (CLIP's pre-training in miniature), then the whole model on
several questions a scene, packed behind one copy of the image so that a scene's image is encoded once. Where other work
shares the cores, OMP_WAIT_POLICY=PASSIVE in the environment keeps waiting threads from burning them.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import numpy as np
import tiny_card
import tiny_model
import torch
from numpy.typing import NDArray
from tiny_lessons import EYE, GRID, NAMES, lessons
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

PATCHES = GRID**2
PREFIX = 1 + PATCHES  # begin of sequence and the image
CLASSES = 1 + len(NAMES)
BLIND = 0.9  # share of questions whose last token alone attends to the image

RECIPE = """`python benchmarks/train_tiny.py --out DIR --seed {seed} --scenes {scenes}
--look-steps {look_steps} --steps {steps}`

{look_steps} steps of 64 scenes teach the vision tower alone what covers each patch; {steps} steps of 32 scenes teach
the whole model up to three relational questions and one caption per scene, packed behind one copy of the image. In
{blind:.0f} % of the questions the last prompt token alone attends to the image, so that this attention is learnt where
interventions act. AdamW; {minutes:.0f} minutes with {threads} threads, {cpu:.0f} of CPU time, drawing included."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model and its card to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=20_000)
    parser.add_argument("--look-steps", type=int, default=600, help="steps of the first stage, 64 scenes each")
    parser.add_argument("--steps", type=int, default=1_100, help="steps of the second stage, 32 scenes each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--float32", action="store_true", help="do not multiply in bfloat16 (faster on CPUs without it)"
    )
    return parser.parse_args()


class School:
    """All lessons in memory: pixels (N, EYE, EYE, 3) uint8, patches (N, GRID, GRID, 3) uint8, and token ids."""

    def __init__(self, count: int, seed: int, words: PreTrainedTokenizerFast) -> None:
        self.pixels = np.empty((count, EYE, EYE, 3), np.uint8)
        self.patches = np.empty((count, GRID, GRID, 3), np.uint8)
        self.questions: list[tuple[tuple[str, str], ...]] = []
        self.words, self.known = words, dict[str, list[int]]()
        for index, lesson in enumerate(lessons(count, seed)):
            self.pixels[index], self.patches[index] = lesson.pixels, lesson.patches
            self.questions.append(lesson.questions)

    def ids(self, text: str) -> list[int]:
        if text not in self.known:
            self.known[text] = self.words(text.replace("<image>", ""), add_special_tokens=False).input_ids
        return self.known[text]

    def images(self, rows: NDArray[np.intp]) -> Tensor:
        """(B, 3, EYE, EYE) normalised as the image processor does."""
        mean, std = np.float32(OPENAI_CLIP_MEAN), np.float32(OPENAI_CLIP_STD)
        values = (self.pixels[rows].astype(np.float32) / 255 - mean) / std
        return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))

    def pack(self, rows: NDArray[np.intp], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Token ids, positions and targets (-100 = none), each (B, L), and a mask (B, 1, L, L) to add to logits.

        Each question starts behind the image at the same position and sees the image and itself only; of some
        questions only the last token attends to the image, so that this attention is learnt where interventions act.
        """
        packed = []
        for row in rows:
            *asked, caption = self.questions[row]
            rest = asked[2:]
            pairs = [*asked[:2], *(rest[i] for i in rng.permutation(len(rest))[:1]), caption]
            packed.append([(self.ids(text), [*self.ids(f" {answer}"), tiny_model.EOS]) for text, answer in pairs])
        length = PREFIX + max(sum(len(a) + len(b) - 1 for a, b in entry) for entry in packed)
        shape = (len(rows), length)
        ids, places = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        segment, targets, blind = np.full(shape, -1), np.full(shape, -100), np.zeros(shape, bool)
        ids[:, 0], ids[:, 1:PREFIX] = tiny_model.BOS, self.words.convert_tokens_to_ids("<image>")
        places[:, :PREFIX], segment[:, :PREFIX] = np.arange(PREFIX), 0
        for index, entry in enumerate(packed):
            start = PREFIX
            for number, (question, answer) in enumerate(entry, 1):
                end = start + len(question) + len(answer) - 1  # the end of sequence is a target only
                ids[index, start:end] = question + answer[:-1]
                places[index, start:end] = PREFIX + np.arange(end - start)
                segment[index, start:end] = number
                targets[index, start + len(question) - 1 : end] = answer
                if number < len(entry) and rng.random() < BLIND:
                    blind[index, start : start + len(question) - 1] = True
                start = end
        part = torch.from_numpy(segment)
        seen = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0)
        seen[:, :, 1:PREFIX] &= ~torch.from_numpy(blind)[:, :, None]
        seen = (seen & torch.ones(length, length, dtype=torch.bool).tril()) | torch.eye(length, dtype=torch.bool)
        mask = torch.zeros(len(rows), 1, length, length).masked_fill_(~seen[:, None], torch.finfo(torch.float32).min)
        return torch.from_numpy(ids), torch.from_numpy(places), torch.from_numpy(targets), mask


def patch_loss(scores: Tensor, patches: NDArray[np.uint8]) -> Tensor:
    """Of (B, PATCHES, C) scores: what covers each patch, where that thing's centre lies, where the patch lies."""
    truth = torch.from_numpy(patches.reshape(len(patches), PATCHES, 3).astype(np.int64))
    parts = scores.split([CLASSES, GRID, GRID, GRID, GRID], -1)
    loss = functional.cross_entropy(parts[0].flatten(0, 1), truth[..., 0].flatten())
    thing = truth[..., 0] > 0
    for axis in (1, 2):
        loss = loss + 0.1 * functional.cross_entropy(parts[axis][thing], truth[..., axis][thing])
    own = torch.arange(PATCHES).expand(len(patches), -1)
    for axis, place in ((3, own // GRID), (4, own % GRID)):
        loss = loss + 0.05 * functional.cross_entropy(parts[axis].flatten(0, 1), place.flatten())
    return loss


def falling(step: int, steps: int, *, warm: int, floor: float) -> float:
    """A learning rate's share at a step: rises linearly, then falls along a cosine to `floor`."""
    if step < warm:
        return (step + 1) / warm
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def learn(optimizer: torch.optim.Optimizer, loss: Tensor, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["top"] * share
    loss.backward()
    nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def look(
    net: LlavaForConditionalGeneration,
    head: nn.Linear,
    school: School,
    rng: np.random.Generator,
    args: argparse.Namespace,
) -> None:
    """First stage: the vision tower learns what covers each patch."""
    tower = net.model.vision_tower
    weights = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW([{"params": weights, "top": 2e-3}], weight_decay=0.05, betas=(0.9, 0.98))
    start, total, steps = time.monotonic(), 0.0, args.look_steps
    for step in range(steps):
        rows = rng.integers(len(school.pixels), size=64)
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.float32):
            hidden = tower(pixel_values=school.images(rows)).last_hidden_state[:, 1:]
            loss = patch_loss(head(hidden).float(), school.patches[rows])
        learn(optimizer, loss, falling(step, steps, warm=50, floor=0.05))
        total += loss.item()
        if (step + 1) % 100 == 0:
            print(f"look {step + 1}/{steps}: loss {total / 100:.3f}, {time.monotonic() - start:.0f} s", flush=True)
            total = 0.0


def answer(
    net: LlavaForConditionalGeneration,
    head: nn.Linear,
    school: School,
    rng: np.random.Generator,
    args: argparse.Namespace,
) -> None:
    """Second stage: the whole model learns to answer; the vision tower keeps its patches in mind, and moves slowly."""
    groups = []
    for sees in (True, False):
        for matrix in (True, False):
            chosen = [w for n, w in net.named_parameters() if ("vision_tower" in n) == sees and (w.ndim > 1) == matrix]
            groups.append({"params": chosen, "top": 6e-4 if sees else 3e-3, "weight_decay": 0.05 * matrix})
    groups.append({"params": list(head.parameters()), "top": 6e-4, "weight_decay": 0.05})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    start, order, sums, steps = time.monotonic(), np.empty(0, np.intp), np.zeros(3), args.steps
    for step in range(steps):
        if len(order) < 32:
            order = np.concatenate([order, rng.permutation(len(school.pixels))])
        rows, order = order[:32], order[32:]
        ids, places, targets, mask = school.pack(rows, rng)
        asked = targets >= 0
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.float32):
            seen = net.model.vision_tower(pixel_values=school.images(rows)).last_hidden_state[:, 1:]
            words = net.get_input_embeddings()(ids)
            words = torch.cat([words[:, :1], net.model.multi_modal_projector(seen), words[:, PREFIX:]], 1)
            hidden = net.model.language_model(
                inputs_embeds=words, attention_mask=mask.to(words.dtype), position_ids=places, use_cache=False
            ).last_hidden_state
            scores = net.lm_head(hidden[asked]).float()
            aside = patch_loss(head(seen).float(), school.patches[rows])
        loss = functional.cross_entropy(scores, targets[asked])
        learn(optimizer, loss + 0.5 * aside, falling(step, steps, warm=100, floor=0.02))
        right = (scores.argmax(-1) == targets[asked]).float().mean().item()
        sums += loss.item(), aside.item(), right
        if (step + 1) % 50 == 0:
            means = sums / 50
            print(
                f"answer {step + 1}/{steps}: loss {means[0]:.3f}, patches {means[1]:.3f}, "
                f"tokens right {100 * means[2]:.1f} %, {time.monotonic() - start:.0f} s",
                flush=True,
            )
            sums[:] = 0


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    start = time.monotonic()
    words = tiny_model.tokenizer()
    net = tiny_model.model(words, args.seed)
    net.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})  # faster at this size
    head = nn.Linear(tiny_model.VISION_WIDTH, CLASSES + 4 * GRID)
    school, rng = School(args.scenes, args.seed, words), np.random.default_rng(args.seed)
    look(net, head, school, rng, args)
    answer(net, head, school, rng, args)
    tiny_model.save(net, words, args.out)
    minutes = (time.monotonic() - start) / 60
    print(f"trained in {minutes:.1f} minutes; now the card")
    recipe = RECIPE.format(**vars(args), blind=100 * BLIND, minutes=minutes, cpu=sum(os.times()[:4]) / 60)
    tiny_card.write(args.out, recipe)
    print(args.out)


if __name__ == "__main__":
    main()
