"""Decode every arm of a batch of prompts over one prefill per image (`model.decoding=shared`).

    image prefix (I, P)  ->  prompt (N, S own rows)  ->  arm (A, one row each)  ->  token

1. The text up to the last image token is read once per image: its keys and values are an `ImagePrefix` (prefix.py).
2. The rows behind the image are read once per prompt over the prefix, the last prompt token once per arm (state.py).
3. All arms of all prompts decode together, each row over the prefix of its image, its prompt's rows and its own.

`generate(custom_generate=...)` is the front door, so position ids, logits processors and encoded images come from
transformers. A picture stands in ARCHITECTURE.md.

I images, N prompts of L tokens, A arms, n prompts that still decode with R rows each, T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from spatial_eval.core.arms import BASE, Arm, Contrast, Sampling, SecondPrompt, Sid, Var
from spatial_eval.core.errors import ModelError
from spatial_eval.engine.attention import PER_ARM, ImagePrefix, switched
from spatial_eval.engine.contrastive import SCORES, Reading, contrast_layers, draw_tokens, find_last_norm
from spatial_eval.engine.kv_cache import Graphs
from spatial_eval.engine.prefix import (
    TEXT,
    Place,
    PrefixMemory,
    PrefixReader,
    PromptBatch,
    PrunedReading,
    compared_prefix,
)
from spatial_eval.engine.prompts import BranchTable, Prompts
from spatial_eval.engine.request import (
    PREFIX_LM,
    ConfigFields,
    Decoded,
    Intervention,
    Prepared,
    draw_number,
    fill_padding,
    image_token_id,
    prepare_inputs,
    sink_dimensions,
)
from spatial_eval.engine.reweighting import Dimensions
from spatial_eval.engine.state import DecodeState, FollowerState

CACHES = (None, "dynamic", "hybrid")  # hybrid (Gemma 3's checkpoints): transformers takes a dynamic one


@torch.no_grad()
def decode_arms(
    model: Any,
    inputs: Mapping[str, Tensor],
    *,
    intervention: Intervention,
    max_new_tokens: int,
    image: Sequence[int] | None = None,
    counts: Sequence[int] = (),
    chunks: Sequence[int] = (),
    graphs: Graphs | None = None,
    memory: PrefixMemory | None = None,
    names: Hashable = None,
    trace: bool = False,
) -> Decoded:
    """Answer N prompts greedily under every arm, exact up to the rounding of batched products.

    Args:
        inputs: what the processor gives: left padded `input_ids` (N, L), `attention_mask`, ... and the tensors of I
            images. Prompts of one image have the same tokens up to its end.
        image: each prompt's image, an index below I; None = one image per prompt, in order.
        counts: how many pictures each of the I images is (one prefix for all); () = one.
        chunks: how many of the prompts decode together at a time, in order, over prefixes that are read once; () = all.
        graphs: with it decode steps have one shape and are replayed.
        memory: with it prefixes are read again where those read last were of the same `names`, which must tell
            images, and the text before them, from all others.
        trace: keep the scores of every token.

    Raises ModelError where a guard fails, ValueError where this batch cannot be answered.
    """
    arms = [BASE if arm.untouched else arm for arm in intervention.arms]
    distinct = tuple(dict.fromkeys(arms))  # arms that leave the model untouched are one
    asked, token = replace(intervention, arms=distinct), image_token_id(model.config)
    numbers = list(range(len(inputs["input_ids"])) if image is None else image)
    prompts, *others = (
        PromptBatch.locate(fill_padding(own, token), numbers, token) for own in (inputs, *asked.seconds.values())
    )
    seconds = dict(zip(asked.seconds, others, strict=True))
    for batch in (prompts, *seconds.values()):
        batch.check_window(model.config.get_text_config(), max_new_tokens)
    dimensions = _find_sinks(model, asked, prompts)
    known = tuple(sorted(set(dimensions.values())))
    prefixes = (memory or PrefixMemory()).recall(
        (names, asked.span, graphs is None, asked.image_indices, known),
        {second: batch.prefix_ids for second, batch in seconds.items()},
    )
    job = _Job(model, asked, prompts, seconds, prefixes, dimensions, counts, max_new_tokens, graphs)
    with switched(model):
        PrefixReader(model, prompts, asked, known, graphs).complete(prefixes, seconds)
        parts, start = [], 0
        for count in chunks or [len(numbers)]:
            parts.append(job.answer(slice(start, start + count), trace=trace))
            start += count
    return Decoded.join(parts).spread([distinct.index(arm) for arm in arms])


def _find_sinks(model: Any, asked: Intervention, prompts: PromptBatch) -> dict[Arm, Dimensions]:
    """Find by arm of VAR the dimensions in which sinks are large."""
    changes = {arm: arm.attention.effective for arm in asked.arms}
    moved = {arm: change for arm, change in changes.items() if isinstance(change, Var)}
    rows = zip(prompts.inputs["input_ids"], prompts.starts, strict=True)
    first = [int(row[start]) for row, start in rows] if moved else []
    return {arm: sink_dimensions(model, change, first) for arm, change in moved.items()}


@dataclass(frozen=True, slots=True)
class _Job:
    """Hold what was read of a batch; some of its prompts decode together at a time. Fields as in `decode_arms`."""

    model: Any
    asked: Intervention
    prompts: PromptBatch
    seconds: Mapping[SecondPrompt, PromptBatch]
    prefixes: Mapping[Place, ImagePrefix]
    dimensions: Mapping[Arm, Dimensions]
    counts: Sequence[int]
    max_new_tokens: int
    graphs: Graphs | None

    def answer(self, rows: slice, *, trace: bool) -> Decoded:
        """Decode all arms of some of the prompts together; what answers a second prompt alone, over that one."""
        arms = self.asked.arms
        instead = {number: arm.contrast for number, arm in enumerate(arms) if arm.contrast and arm.contrast.instead}
        own = [number for number in range(len(arms)) if number not in instead]
        parts = []
        if own:
            parts.append(self._answer(rows, replace(self.asked, arms=tuple(arms[number] for number in own)), trace))
        parts += [self._answer_second(rows, contrast.second, trace) for contrast in instead.values() if contrast.second]
        order = [*own, *instead]
        return Decoded.join(parts, arms=True).spread([order.index(number) for number in range(len(arms))])

    def _answer_second(self, rows: slice, second: SecondPrompt, trace: bool) -> Decoded:
        """Decode the baseline of the second prompts."""
        job = replace(self, prompts=self.seconds[second], prefixes={None: self.prefixes[second]}, graphs=None)
        return job._answer(rows, replace(self.asked, arms=(BASE,)), trace)

    def _answer(self, rows: slice, asked: Intervention, trace: bool) -> Decoded:
        """Decode the arms of `asked` together."""
        contrasts = {number: arm.contrast for number, arm in enumerate(asked.arms) if arm.contrast}
        prepared = self._prepare(self.prompts, rows)
        _check_stopping(prepared.stopping)
        prompts = Prompts.cut(prepared, self.prompts.image[rows], self.prompts.ends[rows])
        main = DecodeState.start(
            self.model, self.prefixes[None], prompts, asked, graphs=self.graphs, dimensions=self.dimensions
        )
        compared: dict[Place, list[int]] = {}
        for number, contrast in contrasts.items():
            if (place := compared_prefix(contrast)) is not None:
                compared.setdefault(place, []).append(number)
        followers = {
            place: FollowerState(
                self._start_compared(place, contrasts[numbers[0]], prompts, rows, len(numbers)), numbers
            )
            for place, numbers in compared.items()
        }
        return _decode(main, followers, contrasts, prepared, names=asked.names[rows], trace=trace)

    def _prepare(self, batch: PromptBatch, rows: slice) -> Prepared:
        return prepare_inputs(self.model, batch.select_texts(rows, self.counts), self.max_new_tokens)

    def _start_compared(
        self, place: Place, contrast: Contrast, prompts: Prompts, rows: slice, arms: int
    ) -> DecodeState:
        """Read what a contrast compares the prompts with, for `arms` arms that do."""
        if isinstance(contrast, Sid):
            readings = [PrunedReading.read(self.model, whole, contrast.rank) for whole in self.asked.whole[rows]]
            return DecodeState.resume_pruned(self.model, prompts, readings, self.prompts.ends[rows], arms=arms)
        if place == TEXT:
            columns = self.prompts.columns_without_image(image_token_id(self.model.config))
            prompts = prompts.move([len(one) - 1 for one in columns[rows]])
        elif contrast.second is not None:
            own = self.seconds[contrast.second]
            prompts = Prompts.cut(self._prepare(own, rows), own.image[rows], own.ends[rows])
        return DecodeState.start(self.model, self.prefixes[place], prompts, Intervention((BASE,) * arms))


def _decode(
    main: DecodeState,
    followers: Mapping[Place, FollowerState],
    contrasts: Mapping[int, Contrast],
    prepared: Prepared,
    *,
    names: Sequence[str],
    trace: bool,
) -> Decoded:
    """Choose tokens, greedily unless an arm draws them, until every answer has ended or has T tokens."""
    prompts, (batch, arms) = main.prompts, main.branches.branch.shape
    stop = torch.tensor(prepared.ends, dtype=torch.long, device=prompts.ids.device)
    tokens = prompts.whole.new_full((batch, arms, prompts.steps), -1)  # -1 = none
    first, scores = main.logits, _contrast(main, followers, contrasts, step=0)
    chosen_by, later = scores, []
    for step in range(prompts.steps):
        branches = main.branches
        numbers = {
            arm: torch.tensor([draw_number(name, own.seed, step) for name in names], dtype=torch.float64)
            for arm, own in contrasts.items()
            if isinstance(own, Sampling)
        }
        following = _choose(scores, prepared.processors, prompts.whole, tokens[..., :step], branches, numbers)  # (n, R)
        rows = (branches.question[:, None], branches.branch, step)
        tokens[rows] = following.where(branches.alive, tokens[rows])
        branches.alive = branches.alive & ~torch.isin(following, stop)
        if step + 1 == prompts.steps or not branches.alive.any():
            break
        for follower in followers.values():
            follower.follow(branches, tokens[..., step], step)
        main.advance(following, step)
        scores = _contrast(main, followers, contrasts, step=step + 1)
        if trace:
            later.append(_at_their_places(scores, main.branches, (batch, arms)))
    answers = [[tuple(one for one in row if one >= 0) for row in prompt] for prompt in tokens.tolist()]
    return Decoded(answers, first, chosen_by, main.attended, tuple(later))


def _at_their_places(scores: Tensor, branches: BranchTable, shape: tuple[int, int]) -> Tensor:
    """Place (n, R, V) of the rows that still decode into (N, A, V), nan elsewhere. `shape`: (N, A)."""
    prompt = branches.question[:, None].expand_as(branches.branch)[branches.alive]
    whole = scores.new_full((*shape, scores.shape[-1]), float("nan"))
    whole[prompt, branches.branch[branches.alive]] = scores[branches.alive]
    return whole


def _contrast(
    main: DecodeState,
    followers: Mapping[Place, FollowerState],
    contrasts: Mapping[int, Contrast],
    *,
    step: int,
) -> Tensor:
    """Compute (n, R, V), what each row's next token is chosen by: its logits, or the scores of its contrast."""
    if not contrasts:
        return main.logits
    scores = main.logits.clone()
    for arm, contrast in contrasts.items():
        rows = ((main.branches.branch == arm) & main.branches.alive).nonzero(as_tuple=True)  # two of (m,)
        if not len(rows[0]):
            continue
        logits = main.logits[rows]  # (m, V)
        other = early = logits[:0]
        if (place := compared_prefix(contrast)) is not None:
            other = followers[place].read(main.branches.question[rows[0]], arm)
        if contrast.against == "layers":
            head, device = main.model.get_output_embeddings(), logits.device  # layers and head may lie on others
            norm = find_last_norm(main.model) if contrast.normed else torch.nn.Identity()
            layers = contrast_layers(main.model, contrast)
            early = torch.stack([head(norm(main.early[one].to(device)[rows])).to(device).float() for one in layers])
        scores[rows] = SCORES[contrast.kind](contrast, Reading(logits, other, early, step))
    return scores


def _choose(
    logits: Tensor,
    processors: Any,
    whole: Tensor,
    tokens: Tensor,
    branches: BranchTable,
    numbers: Mapping[int, Tensor],
) -> Tensor:
    """Choose (n, R) tokens after the checkpoint's own logits processors, which get one arm at a time.

    Args:
        whole: (N, L). numbers: of arms that draw, (N,) each prompt's; the others take the largest.
    """
    chosen = logits.argmax(dim=-1)
    for arm in range(tokens.shape[1]):
        if not processors and arm not in numbers:
            continue
        # Some processors hold a tensor per prompt: they get the whole batch, of which finished prompts mean nothing.
        rows = (branches.branch == arm).nonzero(as_tuple=True)
        prompt = branches.question[rows[0]]
        scores = logits.new_zeros(len(whole), logits.shape[-1])
        scores[prompt] = logits[rows]
        if processors:
            scores = processors(torch.cat([whole, tokens[:, arm].clamp(min=0)], dim=1), scores)
        mine = scores[prompt]
        chosen[rows] = draw_tokens(mine, numbers[arm][prompt.cpu()]) if arm in numbers else mine.argmax(dim=-1)
    return chosen


def _check_stopping(criteria: Any) -> None:
    other = [type(one).__name__ for one in criteria or () if not isinstance(one, (EosTokenCriteria, MaxLengthCriteria))]
    if other:
        raise ModelError(
            f"generation_config.json asks for {', '.join(other)}, which the shared prefix cannot honour{PER_ARM}"
        )


def reason_for_per_arm(model: Any) -> str:
    """Return why this model needs one plain generate per arm; "" where the shared prefix is exact.

    Raises ModelError where neither answers as the checkpoint does (beam search).
    """
    config, generation = model.config, model.generation_config
    if (generation.num_beams or 1) > 1:
        raise ModelError(
            f"generation_config.json asks for {generation.num_beams} beams: answers here are greedy; set 1"
        )
    text = ConfigFields.read(config.get_text_config())
    kinds = set(text.layer_types or ()) - {"full_attention", "sliding_attention"}
    reasons = {
        f"model type {config.model_type} lets the prompt see its own end (prefix LM)": config.model_type in PREFIX_LM,
        "its attention logits are capped (softcap)": text.attn_logit_softcapping is not None,
        "its weights are quantised": ConfigFields.read(config).quantization_config is not None,
        f"its cache is {generation.cache_implementation}": generation.cache_implementation not in CACHES,
        f"its layers mix kinds of attention ({', '.join(sorted(kinds))})": bool(kinds),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
