"""Compare the shared prefix with the reference implementation at the start of a run, on a few questions.

Both are computed in float32 whatever the dtype of the weights: in bfloat16 rounding is as large as the effect of a
weight, and a wrong engine would pass. Runs of the engine (an image per question, left padded, one question alone, and
questions that share an image) are compared with one short plain generate per arm, which shares nothing: the scores of
the first tokens, the tokens, and where they end. B questions, W arms, V vocabulary.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spatial_eval.core.errors import ModelError
from spatial_eval.engine import decode, reference
from spatial_eval.engine.precision import in_float32, without_tf32
from spatial_eval.engine.request import SEQUENCES, Decoded, Intervention, Tokens
from spatial_eval.models.batches import Inputs, pad_left

log = logging.getLogger(__name__)

TOKENS = 4  # of an answer that are compared: the prefill's and three decode steps'
PADDING = 3  # positions added on the left, so that a padded batch is compared even where all prompts are as long
# Largest difference of scores in standard deviations of the first token's logits. In float32 rounding stays below 2e-5
# on every family of the tests; what a wrong weight, layer, key or position does starts at 1e-2.
LIMIT = 1e-3
# The same between the run's own dtype and float32: what rounding does to most models. A run beyond it is compared with
# what rounding does to plain generate itself (up to 0.60 in bfloat16, on the tests' Gemma 3), of which it may do twice.
ROUNDING = {"float32": LIMIT, "float16": 0.1, "bfloat16": 0.5}


@dataclass(frozen=True, slots=True)
class CheckedQuestions:
    """Hold a batch as the engine and the reference take it.

    Attributes:
        rows: their indices among the reference's questions. counts: number of pictures per image.
        image: index of each question's image, where some share one and `inputs` holds each once; the reference cannot
            take that. None = each has its own.
    """

    inputs: Inputs
    intervention: Intervention
    rows: tuple[int, ...]
    counts: tuple[int, ...]
    image: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ArmDifference:
    """Hold the difference of a run from the reference: `gap` in standard deviations, `place` in words."""

    gap: float
    place: str


class _Apart(Exception):
    """A run of the engine is another one than the reference's; `remedy`: the setting that does without it."""

    def __init__(self, said: str, remedy: str = "model.decoding=per_arm") -> None:
        super().__init__(said)
        self.remedy = remedy


def choose_questions(lengths: Sequence[int], image: Sequence[int]) -> tuple[list[int], tuple[int, ...] | None]:
    """Choose the longest and the shortest question of a batch, and where questions share an image two that do.

    Returns their indices, in order, and the image of each, counted from 0; None where no two of them share one. Beside
    questions on one image one on another image is chosen, where the batch has any: fewer prompts read it.
    """
    longest, shortest = lengths.index(max(lengths)), lengths.index(min(lengths))
    chosen = {longest, shortest}
    counts = Counter(image)
    sharing = [place for place in (longest, shortest, *range(len(image))) if counts[image[place]] > 1]
    if sharing:
        one = sharing[0]
        mates = [place for place in range(len(image)) if image[place] == image[one] and place != one]
        chosen |= {one, max(mates, key=lambda place: abs(lengths[place] - lengths[one]))}
        if len({image[place] for place in chosen}) == 1:
            chosen |= set([place for place in range(len(image)) if image[place] != image[one]][:1])
    places = sorted(chosen)
    names = list(dict.fromkeys(image[place] for place in places))
    return places, tuple(names.index(image[place]) for place in places) if sharing else None


def check_prefix(
    model: Any,
    asked: CheckedQuestions,
    others: Sequence[CheckedQuestions],
    decoded: Decoded,
    *,
    name: str,
    dtype: str,
    tf32: bool,
    max_new_tokens: int,
) -> float:
    """Return the largest difference of scores, in standard deviations. Raises ModelError beyond rounding.

    Args:
        asked: the few questions that the reference answers. others: some of them in other batches of the engine.
        decoded: answers of the run's own engine to `asked`, in `dtype` and with its own kernels.
        max_new_tokens: of the run; at most TOKENS are compared.
    """
    rounding = ROUNDING["float16" if tf32 and dtype == "float32" else dtype]  # TensorFloat32 rounds as float16 does
    steps = min(TOKENS, max_new_tokens)
    try:
        try:
            with without_tf32() if dtype == "float32" else in_float32():
                want, gap = _compare(model, asked, others, steps=steps, limit=LIMIT)
        except (RuntimeError, TypeError, MemoryError) as error:
            if dtype == "float32":
                raise
            line = (str(error).splitlines() or [""])[0]
            log.warning(
                "%s: cannot be computed in float32 (%s: %s): compared with plain generate in %s, where only gross "
                "faults show",
                name,
                type(error).__name__,
                line,
                dtype,
            )
            want, gap = _compare(model, asked, others, steps=steps, limit=rounding)
        if rounding > LIMIT and not _largest_gap(want, decoded) <= rounding:
            own = reference.decode_reference(model, asked.inputs, intervention=asked.intervention, max_new_tokens=1)
            rounding = max(rounding, 2 * _largest_gap(want, own))
        _compare_rounded(want, decoded, asked.intervention, steps=steps, limit=rounding)
    except _Apart as error:
        raise ModelError(f"{name}: the shared prefix is not exact on this model: {error}; use {error.remedy}") from None
    log.info("%s: %d tokens agree with plain generate (scores within %.1e standard deviations)", name, steps, gap)
    return gap


def _compare(
    model: Any, asked: CheckedQuestions, others: Sequence[CheckedQuestions], *, steps: int, limit: float
) -> tuple[Decoded, float]:
    """-> the reference's answers, and the largest difference of scores. Raises _Apart."""
    want = reference.decode_reference(
        model, asked.inputs, intervention=asked.intervention, max_new_tokens=steps, trace=True
    )
    want = replace(want, tokens=[[_cut(arm, _ends(model)) for arm in question] for question in want.tokens])
    ends = [*_ends(model), *_probe(want.tokens, _ends(model))]
    expected = replace(want, tokens=[[_cut(arm, ends) for arm in question] for question in want.tokens])
    gap = 0.0
    with _ending_at(model, ends):
        for batch in (asked, _padded(asked), *others):
            ours = decode.decode_arms(
                model,
                batch.inputs,
                intervention=batch.intervention,
                max_new_tokens=steps,
                image=batch.image,
                counts=batch.counts,
                trace=True,
            )
            found = _difference(_rows(expected, batch.rows), ours, batch.intervention)
            if not found.gap <= limit:  # nan too
                said = f"{found.place} (tolerance {limit:g})"
                if batch.image is None:
                    raise _Apart(said)
                raise _Apart(f"{said} where questions share an image", "model.share=question")
            gap = max(gap, found.gap)
    return want, gap


def _difference(want: Decoded, ours: Decoded, intervention: Intervention) -> ArmDifference:
    """Raises _Apart where tokens differ that no rounding can exchange, or an answer ends elsewhere."""
    unit = want.logits.std(dim=-1)  # (B, W)
    worst = ArmDifference(0.0, "")
    pairs = [(want.logits, ours.logits), (want.scores, ours.scores), *zip(want.later, ours.later, strict=False)]
    for number, (theirs, mine) in enumerate(pairs):
        step = max(0, number - 1)
        gaps = _gaps(theirs, mine) / unit  # (B, W)
        for (question, arm), gap in _each(gaps):
            if step and not _alike(want.tokens[question][arm], ours.tokens[question][arm], step):
                continue
            if not gap <= worst.gap:
                label = intervention.arms[arm].label
                said = f"scores of new token {step + 1} differ by {gap:.2g} standard deviations from plain generate"
                worst = ArmDifference(gap, f"{said} at arm {label}")
    for question, arms in enumerate(want.tokens):
        for arm, theirs_said in enumerate(arms):
            same = _common(theirs_said, ours.tokens[question][arm])
            lengths = len(theirs_said), len(ours.tokens[question][arm])
            if same == min(lengths) and lengths[0] != lengths[1]:
                label = intervention.arms[arm].label
                raise _Apart(
                    f"an answer has {lengths[1]} tokens where plain generate gives {lengths[0]}, at arm {label}"
                )
            if same < min(lengths):
                gap = _apart(want, ours, question, arm, same) / unit[question, arm].item()
                if not gap <= worst.gap:
                    label = intervention.arms[arm].label
                    worst = ArmDifference(gap, f"new token {same + 1} is another than plain generate's at arm {label}")
    return worst


def _compare_rounded(want: Decoded, decoded: Decoded, intervention: Intervention, *, steps: int, limit: float) -> None:
    """What the run itself gave, in its dtype: raises _Apart where it is further from float32 than rounding goes.

    Scores after a contrast are not compared: it multiplies rounding.
    """
    unit = want.logits.std(dim=-1)  # (B, W)
    for (question, arm), gap in _each(_gaps(want.logits, decoded.logits) / unit):
        chosen = intervention.arms[arm]
        if not gap <= limit:
            raise _Apart(
                f"first-token logits differ by {gap:.2g} standard deviations from plain generate in float32 at arm "
                f"{chosen.label} (tolerance {limit:g})"
            )
        said, ours = want.tokens[question][arm], decoded.tokens[question][arm][:steps]
        same = _common(said, ours)
        if chosen.contrast or same == len(said) == len(ours):
            continue
        scores = want.scores[question, arm] if same == 0 else want.later[same - 1][question, arm]
        if same < len(said) and said[same] != int(scores.argmax()):
            continue  # the checkpoint's logits processors chose: the scores do not tell how close it was
        apart = float("inf") if same == min(len(said), len(ours)) else _between(scores, said[same], ours[same])
        if not apart <= 2 * limit * unit[question, arm].item():
            raise _Apart(f"new token {same + 1} is another than plain generate's in float32 at arm {chosen.label}")


def _largest_gap(want: Decoded, decoded: Decoded) -> float:
    """The largest difference of first-token logits, in standard deviations."""
    return (_gaps(want.logits, decoded.logits) / want.logits.std(dim=-1)).max().item()


def _gaps(theirs: Tensor, mine: Tensor) -> Tensor:
    """(B, W) the largest difference over V; where one of them excludes a token, rounding decided at the edge."""
    both = ~(torch.isneginf(theirs) | torch.isneginf(mine))
    return (theirs - mine).abs().where(both, 0).amax(dim=-1)


def _each(gaps: Tensor) -> Iterator[tuple[tuple[int, int], float]]:
    for question, row in enumerate(gaps.tolist()):
        for arm, gap in enumerate(row):
            yield (question, arm), gap


def _alike(theirs: Tokens, mine: Tokens, step: int) -> bool:
    """Whether both chose a token in `step` (0 = the prefill's), after the same text."""
    return min(len(theirs), len(mine)) > step and theirs[:step] == mine[:step]


def _common(one: Tokens, other: Tokens) -> int:
    """Count the tokens with which both begin."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _apart(want: Decoded, ours: Decoded, question: int, arm: int, step: int) -> float:
    scores = want.scores if step == 0 else want.later[step - 1]
    return _between(scores[question, arm], want.tokens[question][arm][step], ours.tokens[question][arm][step])


def _between(scores: Tensor, one: int, other: int) -> float:
    return abs((scores[one] - scores[other]).item())


def _ends(model: Any) -> list[int]:
    """The checkpoint's end tokens, read again: what the engine makes of them is compared with this."""
    ids = model.generation_config.eos_token_id
    return list(ids) if isinstance(ids, (list, tuple)) else [ids] * (ids is not None)


def _probe(tokens: Sequence[Sequence[Tokens]], ends: Sequence[int]) -> list[int]:
    """A token that is said in the middle of an answer, to end there; none where an answer ends by itself."""
    said = [arm for question in tokens for arm in question]
    if any(arm[-1] in ends for arm in said):
        return []
    first = {arm[0] for arm in said}
    later = [token for arm in said for token in arm[1:-1]]
    return [next((token for token in later if token not in first), said[0][0])]


def _cut(tokens: Tokens, ends: Sequence[int]) -> Tokens:
    stop = next((i + 1 for i, one in enumerate(tokens) if one in ends), len(tokens))
    return tokens[:stop]


@contextmanager
def _ending_at(model: Any, ends: Sequence[int]) -> Iterator[None]:
    config = model.generation_config
    before = config.eos_token_id
    config.eos_token_id = list(ends)
    try:
        yield
    finally:
        config.eos_token_id = before


def _padded(asked: CheckedQuestions) -> CheckedQuestions:
    """The same questions with PADDING masked positions before them."""
    inputs = dict(asked.inputs)
    for name in SEQUENCES:
        if name in inputs:
            inputs[name] = pad_left(inputs[name], inputs[name].shape[1] + PADDING, 0)
    return replace(asked, inputs=inputs)


def _rows(decoded: Decoded, rows: Sequence[int]) -> Decoded:
    where = list(rows)
    later = tuple(scores[where] for scores in decoded.later)
    return Decoded([decoded.tokens[i] for i in where], decoded.logits[where], decoded.scores[where], None, later)
