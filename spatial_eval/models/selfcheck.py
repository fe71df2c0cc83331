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


class _DifferentRun(Exception):
    """Raised where a run of the engine differs from the reference's; `remedy`: the setting that does without it."""

    def __init__(self, difference: str, remedy: str = "model.decoding=per_arm") -> None:
        super().__init__(difference)
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
        first = sharing[0]
        mates = [place for place in range(len(image)) if image[place] == image[first] and place != first]
        chosen |= {first, max(mates, key=lambda place: abs(lengths[place] - lengths[first]))}
        if len({image[place] for place in chosen}) == 1:
            chosen |= set([place for place in range(len(image)) if image[place] != image[first]][:1])
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
                want, gap, steps = _compare(model, asked, others, steps=steps, limit=LIMIT)
        except (RuntimeError, TypeError, MemoryError) as error:
            if dtype == "float32":
                raise
            line = (str(error).splitlines() or [""])[0]
            reason = f"cannot be computed in float32 ({type(error).__name__}: {line})"
            log.warning("%s: %s: compared with plain generate in %s, where only gross faults show", name, reason, dtype)
            want, gap, steps = _compare(model, asked, others, steps=steps, limit=rounding)
        if rounding > LIMIT and not _largest_gap(want, decoded) <= rounding:
            own = reference.decode_reference(model, asked.inputs, intervention=asked.intervention, max_new_tokens=1)
            rounding = max(rounding, 2 * _largest_gap(want, own))
        _compare_rounded(want, decoded, asked.intervention, steps=steps, limit=rounding)
    except _DifferentRun as error:
        raise ModelError(f"{name}: the shared prefix is not exact on this model: {error}; use {error.remedy}") from None
    log.info("%s: %d tokens agree with plain generate (scores within %.1e standard deviations)", name, steps, gap)
    return gap


def _compare(
    model: Any, asked: CheckedQuestions, others: Sequence[CheckedQuestions], *, steps: int, limit: float
) -> tuple[Decoded, float, int]:
    """Return the reference's answers, the largest difference of scores, and the number of tokens that were compared.

    Raises _DifferentRun.
    """
    arms: dict[str, Any] = {"intervention": asked.intervention, "trace": True}
    try:
        want = reference.decode_reference(model, asked.inputs, max_new_tokens=steps, **arms)
    except reference.ImageTokenWrittenError as error:
        steps = error.steps
        want = reference.decode_reference(model, asked.inputs, max_new_tokens=steps, **arms)
    want = replace(
        want, tokens=[[_cut_at_end(arm, _end_tokens(model)) for arm in question] for question in want.tokens]
    )
    ends = [*_end_tokens(model), *_choose_probe(want.tokens, _end_tokens(model))]
    expected = replace(want, tokens=[[_cut_at_end(arm, ends) for arm in question] for question in want.tokens])
    gap = 0.0
    with _ending_at(model, ends):
        for batch in (asked, _pad(asked), *others):
            ours = decode.decode_arms(
                model,
                batch.inputs,
                intervention=batch.intervention,
                max_new_tokens=steps,
                image=batch.image,
                counts=batch.counts,
                trace=True,
            )
            worst = _find_difference(_select_rows(expected, batch.rows), ours, batch.intervention)
            if not worst.gap <= limit:  # nan too
                difference = f"{worst.place} (tolerance {limit:g})"
                if batch.image is None:
                    raise _DifferentRun(difference)
                raise _DifferentRun(f"{difference} where questions share an image", "model.share=question")
            gap = max(gap, worst.gap)
    return want, gap, steps


def _find_difference(want: Decoded, ours: Decoded, intervention: Intervention) -> ArmDifference:
    """Find the largest difference. Raises _DifferentRun where an answer ends elsewhere."""
    unit = want.logits.std(dim=-1)  # (B, W)
    worst = ArmDifference(0.0, "")
    pairs = [(want.logits, ours.logits), (want.scores, ours.scores), *zip(want.later, ours.later, strict=False)]
    for number, (theirs, mine) in enumerate(pairs):
        step = max(0, number - 1)
        for question, arm, gap in _list_gaps(theirs, mine, unit):
            # Scores of later steps are comparable where both chose a token in the step, after the same text.
            both = want.tokens[question][arm], ours.tokens[question][arm]
            if step and (min(map(len, both)) <= step or both[0][:step] != both[1][:step]):
                continue
            if not gap <= worst.gap:
                measured = f"differ by {gap:.2g} standard deviations from plain generate"
                place = f"scores of new token {step + 1} {measured} at arm {intervention.arms[arm].label}"
                worst = ArmDifference(gap, place)
    for question, arms in enumerate(want.tokens):
        for arm, expected in enumerate(arms):
            given, label = ours.tokens[question][arm], intervention.arms[arm].label
            same = _count_common(expected, given)
            if same < min(len(expected), len(given)):
                scores = _step_scores(want, same)[question, arm]
                gap = _score_distance(scores, expected[same], given[same]) / unit[question, arm].item()
                if not gap <= worst.gap:
                    worst = ArmDifference(gap, f"new token {same + 1} is another than plain generate's at arm {label}")
            elif len(expected) != len(given):
                lengths = f"{len(given)} tokens where plain generate gives {len(expected)}"
                raise _DifferentRun(f"an answer has {lengths}, at arm {label}")
    return worst


def _compare_rounded(want: Decoded, decoded: Decoded, intervention: Intervention, *, steps: int, limit: float) -> None:
    """Raise _DifferentRun where the run's own answers, in its dtype, are further from float32 than rounding goes.

    Scores after a contrast are not compared: it multiplies rounding.
    """
    unit = want.logits.std(dim=-1)  # (B, W)
    for question, arm, gap in _list_gaps(want.logits, decoded.logits, unit):
        chosen = intervention.arms[arm]
        if not gap <= limit:
            raise _DifferentRun(
                f"first-token logits differ by {gap:.2g} standard deviations from plain generate in float32 at arm "
                f"{chosen.label} (tolerance {limit:g})"
            )
        expected, given = want.tokens[question][arm], decoded.tokens[question][arm][:steps]
        same = _count_common(expected, given)
        if chosen.contrast or same == len(expected) == len(given):
            continue
        distance = float("inf")  # where one of them had ended
        if same < min(len(expected), len(given)):
            scores = _step_scores(want, same)[question, arm]
            if expected[same] != int(scores.argmax()):
                continue  # the checkpoint's logits processors chose: the scores do not tell how close it was
            distance = _score_distance(scores, expected[same], given[same])
        if not distance <= 2 * limit * unit[question, arm].item():
            raise _DifferentRun(
                f"new token {same + 1} is another than plain generate's in float32 at arm {chosen.label}"
            )


def _largest_gap(want: Decoded, decoded: Decoded) -> float:
    """Return the largest difference of first-token logits, in standard deviations; nan where one is."""
    return _measure_gaps(want.logits, decoded.logits, want.logits.std(dim=-1)).max().item()


def _measure_gaps(theirs: Tensor, mine: Tensor, unit: Tensor) -> Tensor:
    """Return (B, W) the largest difference over V, in `unit`; tokens that either excludes are left out."""
    both = ~(torch.isneginf(theirs) | torch.isneginf(mine))  # rounding decided at the edge of what is excluded
    return (theirs - mine).abs().where(both, 0).amax(dim=-1) / unit


def _list_gaps(theirs: Tensor, mine: Tensor, unit: Tensor) -> Iterator[tuple[int, int, float]]:
    """Yield question, arm and gap."""
    for question, row in enumerate(_measure_gaps(theirs, mine, unit).tolist()):
        for arm, gap in enumerate(row):
            yield question, arm, gap


def _count_common(a: Tokens, b: Tokens) -> int:
    """Count the tokens with which both begin."""
    differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differing, min(len(a), len(b)))


def _step_scores(decoded: Decoded, step: int) -> Tensor:
    """Return (B, W, V) the scores of a step, 0 = the prefill's."""
    return decoded.scores if step == 0 else decoded.later[step - 1]


def _score_distance(scores: Tensor, a: int, b: int) -> float:
    return abs((scores[a] - scores[b]).item())


def _end_tokens(model: Any) -> list[int]:
    """Read the checkpoint's end tokens again: what the engine makes of them is compared with this."""
    ids = model.generation_config.eos_token_id
    return list(ids) if isinstance(ids, (list, tuple)) else [ids] * (ids is not None)


def _choose_probe(tokens: Sequence[Sequence[Tokens]], ends: Sequence[int]) -> list[int]:
    """Return a token from the middle of an answer, to end there; none where an answer ends by itself."""
    answers = [answer for question in tokens for answer in question]
    if any(answer[-1] in ends for answer in answers):
        return []
    first = {answer[0] for answer in answers}
    later = [token for answer in answers for token in answer[1:-1]]
    return [next((token for token in later if token not in first), answers[0][0])]


def _cut_at_end(tokens: Tokens, ends: Sequence[int]) -> Tokens:
    stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
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


def _pad(asked: CheckedQuestions) -> CheckedQuestions:
    """Return the same questions with PADDING masked positions before them."""
    padded = {
        name: pad_left(part, part.shape[1] + PADDING, 0) if name in SEQUENCES else part
        for name, part in asked.inputs.items()
    }
    return replace(asked, inputs=padded)


def _select_rows(decoded: Decoded, rows: Sequence[int]) -> Decoded:
    chosen = list(rows)
    later = tuple(scores[chosen] for scores in decoded.later)
    return Decoded([decoded.tokens[i] for i in rows], decoded.logits[chosen], decoded.scores[chosen], None, later)
