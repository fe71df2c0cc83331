"""The shared prefix (`model.decoding=shared`): one prefill and one cache for every arm of a batch.

One forward of P + W rows, P = L - 1: the first P positions are the same for every arm, the last W rows are
the last prompt token once per arm. Then all branches decode together; a mask lets each see the prefix and
itself. `generate(custom_generate=...)` is the front door, so position ids, logits processors and the image,
encoded once, come from transformers. B questions, W arms, R rows still decoding, C cache columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from .arms import BASE, Arm
from .attention import switched
from .branches import Branches
from .contrast import dola, vcd
from .decoding import PREFIX_LM, Decoded, Intervention, end_tokens
from .errors import ModelError
from .graphs import Graphs
from .streams import Ghost, Stream, early_of, start
from .tail import PER_ARM

CACHES = (None, "dynamic", "hybrid")  # hybrid (Gemma 3's checkpoints): transformers takes a dynamic one


def why_not(model: Any) -> str:
    """Why this model must take the oracle's way; "" where the shared prefix is exact.

    Raises ModelError where no way is faithful (beam search).
    """
    config, text, generation = model.config, model.config.get_text_config(), model.generation_config
    if (generation.num_beams or 1) > 1:
        raise ModelError(
            f"generation_config.json asks for {generation.num_beams} beams: answers here are greedy; set 1"
        )
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    reasons = {
        f"model type {config.model_type} lets the prompt see its own end (prefix LM)": config.model_type in PREFIX_LM,
        "its attention logits are capped (softcap)": getattr(text, "attn_logit_softcapping", None) is not None,
        "its weights are quantised": getattr(config, "quantization_config", None) is not None,
        f"its cache is {generation.cache_implementation}": generation.cache_implementation not in CACHES,
        f"its layers mix kinds of attention ({', '.join(sorted(kinds))})": bool(kinds),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def decode(
    model: Any,
    inputs: Mapping[str, Tensor],
    *,
    intervention: Intervention,
    max_new_tokens: int,
    graphs: Graphs | None = None,
    trace: bool = False,
) -> Decoded:
    """Greedy answers under every arm, exact up to rounding of a batched product.

    `inputs` is what the processor gives: left padded `input_ids` (B, L), `attention_mask` and the image's
    tensors. With `graphs` every decode step has one shape and is replayed. `trace` keeps the scores of every token.

    Raises ModelError where a guard fails, ValueError where this one batch cannot be answered.
    """

    arms = [BASE if arm.untouched else arm for arm in intervention.arms]
    distinct = list(dict.fromkeys(arms))
    if len(distinct) < len(arms):  # arms that leave the model untouched are one
        intervention = replace(intervention, arms=tuple(distinct))
        once = decode(
            model, inputs, intervention=intervention, max_new_tokens=max_new_tokens, graphs=graphs, trace=trace
        )
        return once.spread([distinct.index(arm) for arm in arms])

    def generate(given: Mapping[str, Tensor], way: Any) -> Any:
        return model.generate(**given, custom_generate=way, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)

    with switched(model):
        ghosts = {}  # for vcd: the same prompt after a noised image, one more prefill for every alpha
        for noise, pixels in intervention.noised.items():
            where = [i for i, arm in enumerate(intervention.arms) if arm.contrast == "vcd" and arm.noise == noise]
            untouched = Intervention((BASE,) * len(where))
            stream = generate({**inputs, "pixel_values": pixels}, partial(start, intervention=untouched))
            ghosts[noise] = Ghost(stream, where)
        way = partial(_generate, intervention=intervention, ghosts=ghosts, graphs=graphs, trace=trace)
        decoded: Decoded = generate(inputs, way)
    return decoded


def _generate(
    model: Any,
    input_ids: Tensor,  # (B, L)
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    *,
    intervention: Intervention,
    ghosts: Mapping[int, Ghost],
    graphs: Graphs | None,
    trace: bool,
    **kwargs: Any,
) -> Decoded:
    _check_stopping(stopping_criteria)
    arms = intervention.arms
    steps = generation_config.max_length - input_ids.shape[1]
    contrasts = {i: arm for i, arm in enumerate(arms) if arm.contrast}
    main = start(
        model,
        input_ids,
        generation_config=generation_config,
        intervention=intervention,
        graphs=None if contrasts else graphs,  # a captured step hands out logits alone
        **kwargs,
    )
    ends = torch.tensor(end_tokens(generation_config), dtype=torch.long, device=input_ids.device)
    tokens = input_ids.new_full((len(input_ids), len(arms), steps), -1)  # (B, W, T); -1 = none
    first, scores = main.logits, _contrasted(main, ghosts, contrasts)
    chosen_by, later = scores, []
    for step in range(steps):
        branches = main.branches
        following = _choose(scores, logits_processor, input_ids, tokens[..., :step], branches)  # (n, R)
        rows = (branches.question[:, None], branches.branch, step)
        tokens[rows] = following.where(branches.alive, tokens[rows])
        branches.alive = branches.alive & ~torch.isin(following, ends)
        if step + 1 == steps or not branches.alive.any():
            break
        for ghost in ghosts.values():
            ghost.follow(branches, tokens[..., step], step)
        main.advance(following, step)
        scores = _contrasted(main, ghosts, contrasts)
        if trace:
            later.append(_at_their_places(scores, main.branches, first))
    answers = [[tuple(one for one in row if one >= 0) for row in question] for question in tokens.tolist()]
    return Decoded(answers, first, chosen_by, main.attended, tuple(later))


def _at_their_places(scores: Tensor, branches: Branches, like: Tensor) -> Tensor:
    """(n, R, V) of the rows that still decode -> (B, W, V) as `like`, nan where there is none."""
    question = branches.question[:, None].expand_as(branches.branch)[branches.alive]
    whole = torch.full_like(like, float("nan"))
    whole[question, branches.branch[branches.alive]] = scores[branches.alive]
    return whole


def _contrasted(main: Stream, ghosts: Mapping[int, Ghost], contrasts: Mapping[int, Arm]) -> Tensor:
    """(n, R, V) what the next token of each row is chosen by: its logits, or what its contrast makes of them."""
    if not contrasts:
        return main.logits
    scores = main.logits.clone()
    for position, arm in contrasts.items():
        where = ((main.branches.branch == position) & main.branches.alive).nonzero(as_tuple=True)  # two of (m,)
        if not len(where[0]):
            continue
        logits = main.logits[where]  # (m, V)
        if arm.contrast == "vcd":
            noised = ghosts[arm.noise].read(main.branches.question[where[0]], position)
            scores[where] = vcd(logits, noised, alpha=arm.alpha, cutoff=arm.cutoff)
        else:
            head = main.model.get_output_embeddings()
            device = logits.device  # layers and head may lie on others
            layers = early_of(main.model, arm)
            early = [head(main.early[layer].to(device)[where]).to(device).float() for layer in layers]
            scores[where] = dola(logits, torch.stack(early), cutoff=arm.cutoff)
    return scores


def _choose(logits: Tensor, processors: Any, input_ids: Tensor, tokens: Tensor, branches: Branches) -> Tensor:
    """(n, R) the greedy token after the checkpoint's own logits processors, which see one branch at a time."""
    if not processors:
        return logits.argmax(dim=-1)
    chosen = []
    for row in range(logits.shape[1]):
        # Some processors hold a tensor a question: they get the whole batch, of which finished questions mean nothing.
        said, scores = tokens[:, 0].clone(), logits.new_zeros(len(input_ids), logits.shape[-1])
        said[branches.question] = tokens[branches.question, branches.branch[:, row]]  # (B, step)
        scores[branches.question] = logits[:, row]  # (B, V)
        processed = processors(torch.cat([input_ids, said.clamp(min=0)], dim=1), scores)
        chosen.append(processed[branches.question].argmax(dim=-1))
    return torch.stack(chosen, dim=1)


def _check_stopping(criteria: Any) -> None:
    other = [type(one).__name__ for one in criteria or () if not isinstance(one, (EosTokenCriteria, MaxLengthCriteria))]
    if other:
        raise ModelError(
            f"generation_config.json asks for {', '.join(other)}, which the shared prefix cannot honour{PER_ARM}"
        )
