"""Define what the engine and the reference implementation both take and return; neither imports the other.

N prompts, A arms, L prompt positions, H heads, V vocabulary.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from spatial_eval.core.arms import Arm, SecondPrompt, Var
from spatial_eval.core.errors import ModelError
from spatial_eval.core.layers import head_indices, layer_indices

Tokens = tuple[int, ...]
PREFIX_LM = frozenset({"paligemma", "colpali"})  # model types whose prompt attends in both directions
SEQUENCES = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")  # inputs with a column per token
CACHE_NAMES = ("cache", "past_key_values")  # of a model's KV cache: since transformers 5.24, and before
# What `generate` hands to a decoding loop of our own beside the model's inputs; the loop decides these itself.
LOOP = frozenset(
    {
        *CACHE_NAMES,
        "cache_position",
        "generation_config",
        "logits_processor",
        "logits_to_keep",
        "stopping_criteria",
        "synced_gpus",
        "use_cache",
    }
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Hold what `generate` makes of a processor's output before it decodes.

    Attributes:
        ids: (B, L). given: what the model is called with beside them.
        processors, stopping: the checkpoint's logits processors and stopping criteria.
        steps: T, tokens to decode at most. ends: ids that end an answer.
    """

    ids: Tensor
    given: dict[str, Any]
    processors: Any
    stopping: Any
    steps: int
    ends: list[int]

    @property
    def positions(self) -> Tensor:
        """Compute position ids (..., B, L); a leading axis where the model has one (M-RoPE)."""
        position, mask = self.given.get("position_ids"), self.given.get("attention_mask")
        if position is None:
            valid = torch.ones_like(self.ids) if mask is None else mask
            position = (valid.long().cumsum(dim=-1) - 1).clamp(min=0)
        expanded: Tensor = position.expand(*position.shape[:-2], *self.ids.shape)
        return expanded


def prepare_inputs(model: Any, inputs: Mapping[str, Tensor], max_new_tokens: int = 1) -> Prepared:
    """Prepare a processor's output as greedy `generate` does: positions, logits processors, the encoded image."""

    def hand_over(
        _model: Any,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        **kwargs: Any,
    ) -> Prepared:
        given = {name: value for name, value in kwargs.items() if name not in LOOP}
        steps = generation_config.max_length - input_ids.shape[1]
        return Prepared(input_ids, given, logits_processor, stopping_criteria, steps, end_tokens(generation_config))

    prepared: Prepared = model.generate(
        **inputs, custom_generate=hand_over, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
    )
    return prepared


def fill_padding(inputs: Mapping[str, Tensor], image_token: int) -> dict[str, Tensor]:
    """Return prompts whose padding holds their own first token of text, where logits processors look for tokens.

    no_repeat_ngram_size and others would take the pad token, which is an end token of some checkpoints, for one of the
    prompt: an answer would depend on the prompts beside it. repetition_penalty leaves padding out by itself.
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if mask is None:
        return dict(inputs)
    text = mask.bool() & (ids != image_token)
    first = ids.gather(1, text.int().argmax(dim=-1, keepdim=True))
    return {**inputs, "input_ids": ids.where(mask.bool(), first)}


@dataclass(frozen=True, slots=True)
class Intervention:
    """Describe how attention logits towards the image are changed (arXiv 2503.01773), per arm.

    Attributes:
        arms: (A,). layers: only decoder layers with a smaller index are scaled, whatever the arm says.
        span: scale every key from the first to the last image token (the paper's code) instead of the
            image tokens alone; they differ where separators stand between tiles.
        noised: for arms with contrast vcd, the batch's image tensor with noise, by noise step.
        seconds: for arms against a second prompt, the batch in it: sequences, and the images as they are shown.
        whole: for arms against pruned image keys, each prompt by itself with its image, as `generate` takes it.
        names: for arms that draw tokens, what each prompt's draws are seeded by.
        parts: per prompt how many image tokens each of its images has; asked for where an arm is about one image.
        capture: how much of the attention is kept, one of `types.CAPTURES`; it changes nothing.
    """

    arms: tuple[Arm, ...]
    layers: int | None = None
    span: bool = False
    noised: Mapping[int, Tensor] = field(default_factory=dict)
    seconds: Mapping[SecondPrompt, Mapping[str, Tensor]] = field(default_factory=dict)
    whole: Sequence[Mapping[str, Tensor]] = ()
    names: Sequence[str] = ()
    capture: str = "none"
    parts: tuple[tuple[int, ...], ...] = ()

    @property
    def image_indices(self) -> frozenset[str]:
        """Return which single images its arms are about; without "", which is all."""
        return frozenset(arm.attention.image_index for arm in self.arms) - {""}

    def scaled_layers(self, arm: Arm, depth: int) -> list[int]:
        """List the decoder layers that the arm scales in a model of `depth`. Raises ModelError where it has fewer."""
        chosen = layer_indices(arm.attention.layers, depth)
        left = [layer for layer in chosen if self.layers is None or layer < self.layers]
        if not left:
            raise ModelError(f"layers={arm.attention.layers} leaves no layer to scale below model.layers={self.layers}")
        if arm.attention.layers and left != chosen:  # what was asked for by name is not cut in silence
            raise ModelError(
                f"layers={arm.attention.layers} goes beyond model.layers={self.layers}, below which layers are scaled"
            )
        return left

    def scaled_heads(self, arm: Arm, depth: int, heads: int) -> dict[int, tuple[int, ...]]:
        """Map each layer that the arm scales to the heads that it scales there. Raises ModelError on absent ones."""
        return head_indices(arm.attention.heads, self.scaled_layers(arm, depth), heads)


@dataclass(frozen=True, slots=True)
class Attended:
    """Hold what each arm's last prompt row attends to at prefill; probabilities in float32 on the CPU.

    The image means its own tokens, whatever `Intervention.span` scales. An arm with a contrast has the row that
    reads the real image.

    Attributes:
        mass: (N, A, layers, H) the image's share of the row.
        maps: per prompt its part on that prompt's n image tokens, (A, layers, n) averaged over heads, or
            (A, layers, H, n); None where only the mass was asked for.
    """

    mass: Tensor
    maps: list[Tensor] | None

    def spread(self, index: Sequence[int]) -> Attended:
        """Repeat or reorder arms: arm i of the new ones is arm index[i] of these."""
        order = list(index)
        return Attended(self.mass[:, order], self.maps and [one[order] for one in self.maps])

    def split(self, arms: int) -> Attended:
        """Put side by side the arms of prompts that stand there once per arm, one whole set after the other."""
        count = len(self.mass) // arms
        maps = self.maps and [torch.cat(self.maps[prompt::count]) for prompt in range(count)]
        return Attended(torch.cat(self.mass.chunk(arms), dim=1), maps)

    @classmethod
    def join(cls, parts: Sequence[Attended], *, arms: bool = False) -> Attended:
        """Put together what other prompts attend to, or with `arms` the same prompts under other arms."""
        maps = [part.maps for part in parts if part.maps is not None]
        joined = [torch.cat(one) for one in zip(*maps, strict=True)] if arms else [one for part in maps for one in part]
        return cls(torch.cat([part.mass for part in parts], int(arms)), joined or None)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Hold the greedy answers of a batch.

    Attributes:
        tokens: [prompt][arm] generated ids, EOS included.
        logits: (N, A, V) float32 raw logits of each arm's first new token.
        scores: (N, A, V) what that token was chosen by: the same, or after a contrast, -inf where not plausible.
        attended: None unless it was asked for.
        later: scores of tokens 2, 3, ..., nan where an answer had ended; empty unless they were asked for.
    """

    tokens: list[list[Tokens]]
    logits: Tensor
    scores: Tensor
    attended: Attended | None = None
    later: tuple[Tensor, ...] = ()

    def spread(self, index: Sequence[int]) -> Decoded:
        """Repeat or reorder arms: arm i of the new ones is arm index[i] of these."""
        order = list(index)
        if order == list(range(self.logits.shape[1])):
            return self
        tokens = [[prompt[i] for i in order] for prompt in self.tokens]
        attended = self.attended and self.attended.spread(order)
        later = tuple(scores[:, order] for scores in self.later)
        return Decoded(tokens, self.logits[:, order], self.scores[:, order], attended, later)

    @classmethod
    def join(cls, parts: Sequence[Decoded], *, arms: bool = False) -> Decoded:
        """Put together the answers to other prompts, or with `arms` those of the same prompts under other arms."""
        if len(parts) == 1:
            return parts[0]
        prompts = zip(*(part.tokens for part in parts), strict=True) if arms else [[p] for q in parts for p in q.tokens]
        tokens = [[arm for part in prompt for arm in part] for prompt in prompts]
        logits, scores = (
            torch.cat(each, dim=int(arms)) for each in zip(*((p.logits, p.scores) for p in parts), strict=True)
        )
        later = _join_later(parts, dim=int(arms))
        seen = [part.attended for part in parts if part.attended is not None]
        return cls(tokens, logits, scores, Attended.join(seen, arms=arms) if seen else None, later)


def _join_later(parts: Sequence[Decoded], *, dim: int) -> tuple[Tensor, ...]:
    """Join the scores of tokens 2, 3, ...; nan where the answers of a part had all ended."""
    steps = max((len(part.later) for part in parts), default=0)
    ended = [torch.full_like(part.scores, float("nan")) for part in parts]
    return tuple(
        torch.cat([p.later[step] if step < len(p.later) else none for p, none in zip(parts, ended, strict=True)], dim)
        for step in range(steps)
    )


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Hold the numbers of one arm's first token; fields as in `types.Generation`."""

    confidence: float
    entropy: float
    margin: float
    logit: float
    option_probs: dict[str, float] | None


def read_first_tokens(decoded: Decoded, options: Sequence[Mapping[str, Sequence[int]]]) -> list[list[FirstToken]]:
    """Read each arm's first token in numbers, [prompt][arm]; they are computed on the device and moved at once.

    `options` maps each option of a prompt to the ids with which it may begin, whose probabilities add up; None where a
    contrast's cutoff leaves none of them. Raises ValueError on logits that are not finite.
    """
    scores = decoded.scores
    listed = [[token for tokens in named.values() for token in tokens] for named in options]
    most = max(map(len, listed))
    ids = [[*own, *[-1] * (most - len(own))] for own in listed]
    tokens = torch.tensor(ids, dtype=torch.long).to(scores.device)  # (N, O)
    parts = []
    for one, logits, named in zip(scores, decoded.logits, tokens, strict=True):  # (A, V): its probabilities fit
        probs = torch.softmax(one, dim=-1)
        chosen = one[:, named.clamp(min=0)].masked_fill(named < 0, float("-inf"))
        facts = [probs.topk(2).values, torch.special.entr(probs).sum(-1, keepdim=True), one.amax(-1, keepdim=True)]
        finite = torch.isfinite(logits).all(dim=-1, keepdim=True)
        parts.append(torch.cat([*facts, finite.float(), torch.softmax(chosen, dim=-1).nan_to_num(0)], dim=-1))
    numbers = torch.stack(parts).tolist()
    if not all(arm[4] for prompt in numbers for arm in prompt):
        raise ValueError("the model gave logits that are not finite")
    return [
        [
            FirstToken(top, entropy, top - second, logit, _sum_by_option(named, chosen) if any(chosen) else None)
            for top, second, entropy, logit, _, *chosen in prompt
        ]
        for prompt, named in zip(numbers, options, strict=True)
    ]


def _sum_by_option(named: Mapping[str, Sequence[int]], shares: Sequence[float]) -> dict[str, float]:
    """Sum the shares of each option's tokens, which stand one option after the other, as parts of their own sum.

    In float32 all together are 1 up to rounding: an option that has all of it would have more than 1.
    """
    each = iter(shares)
    sums = {option: sum(islice(each, len(tokens))) for option, tokens in named.items()}
    whole = sum(sums.values())
    return {option: own / whole for option, own in sums.items()}


def select_image(image: Tensor, parts: Sequence[Sequence[int]], index: str, *, span: bool) -> Tensor:
    """Select the tokens of one of each row's images, (N, L); with `span` all from its first to its last.

    Args:
        image: (N, L) bool, the tokens of all images. parts: as `Intervention.parts`, of these rows.

    Raises:
        ModelError: a row has no such image, or `parts` are not its own.
    """
    if len(parts) != len(image) or [sum(part) for part in parts] != image.sum(dim=-1).tolist():
        raise ModelError(f"image_index={index}: where one image ends and the next begins is not known")
    short = min(map(len, parts))
    if short <= int(index):
        raise ModelError(f"image_index={index}: a question has {short} images, numbered from 0")
    order = image.cumsum(dim=-1)
    ends = torch.tensor(
        [[sum(part[: int(index) + 1]) - part[int(index)], sum(part[: int(index) + 1])] for part in parts]
    )
    ends = ends.to(image.device)
    own = image & (order > ends[:, :1]) & (order <= ends[:, 1:])
    return (own.cumsum(dim=-1) > 0) & (own.flip(-1).cumsum(dim=-1).flip(-1) > 0) if span else own


@dataclass(frozen=True, slots=True)
class ConfigFields:
    """Hold the fields that not every config of transformers has; None where this one lacks it."""

    image_token_id: int | None
    image_token_index: int | None
    layer_types: Sequence[str] | None
    sliding_window: int | None
    attn_logit_softcapping: float | None
    num_key_value_heads: int | None
    rms_norm_eps: float | None
    quantization_config: Any
    is_encoder_decoder: bool | None
    cross_attention_layers: Sequence[int] | None
    cross_layer_interval: int | None
    add_cross_attention: bool | None

    @classmethod
    def read(cls, config: Any) -> ConfigFields:
        """Read a model's config, or its text model's."""
        # to_dict() lacks names that a family computes, or maps to names of its own (attribute_map).
        return cls(**{f.name: getattr(config, f.name, None) for f in fields(cls)})


def decoder_shape(model: Any) -> tuple[int, int]:
    """Return the numbers of decoder layers and of attention heads."""
    text = model.config.get_text_config()
    return text.num_hidden_layers, text.num_attention_heads


def image_token_id(config: Any) -> int:
    """Find the id that every image position carries in `input_ids` after the processor expanded it."""
    named = ConfigFields.read(config)
    for value in (named.image_token_id, named.image_token_index):
        if value is not None:
            return int(value)
    raise ModelError(f"config.json of model type {config.model_type!r} names no image token: it is not a supported VLM")


# Of language models by type, width and width of their MLP: the dimensions in which VAR's authors find sinks.
SINKS = {("llama", 4096, 11008): (1415, 2533), ("llama", 5120, 13824): (2100, 4743)}


def sink_dimensions(model: Any, change: Var, first: Collection[int]) -> tuple[int, ...]:
    """Return the dimensions of the hidden state in which sinks are large: given, known, or found by their rule.

    Sinks are known by the same few dimensions as the first token, the strongest of them (arXiv 2402.17762). So of other
    models these are the two in which the first token is largest halfway through the layers; it sees itself alone, so
    they are the same in every prompt that begins with it. `first`: the prompts' first tokens. Raises ModelError.
    """
    text = model.config.get_text_config()
    if change.sinks:
        given = tuple(map(int, change.sinks.split(",")))
        if max(given) >= text.hidden_size:
            raise ModelError(f"method.sinks={change.sinks}: the model's hidden state has {text.hidden_size} dimensions")
        return given
    if (known := SINKS.get((text.model_type, text.hidden_size, text.intermediate_size))) is not None:
        return known
    if model.config.model_type in PREFIX_LM:
        raise ModelError(
            "sinks are not known where the first token sees the whole prompt: give method.sinks=[1415,2533]"
        )
    if len(set(first)) > 1:
        raise ModelError("prompts begin with different tokens, by which sinks are known: give method.sinks=[1415,2533]")
    ids = torch.tensor([[*set(first)]], device=model.get_input_embeddings().weight.device)
    with torch.no_grad():
        states = model.get_decoder()(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    return tuple(sorted(states[text.num_hidden_layers // 2][0, 0].float().abs().topk(2).indices.tolist()))


def draw_number(name: str, seed: int, step: int) -> float:
    """Draw a number in (0, 1) for a question's token: the same in every batch, run and machine."""
    digest = hashlib.blake2b(f"{seed} {step} {name}".encode(), digest_size=6).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**48


def check_text_before(image: Tensor) -> None:
    """Raise ModelError where a prompt begins with its image, (B, L) bool: its rows would see no key once pruned."""
    if image[:, 0].any():
        raise ModelError("sid: no token stands before the image, so its pruned rows would see nothing: leave sid out")


def cache_keyword(model: Any) -> str:
    """Return the parameter name of the KV cache in the model's forward. Raises ModelError where it has none.

    Under another name the cache is ignored with a warning at best, and the model writes into one of its own.
    """
    return _cache_keyword(type(model))  # type: ignore[arg-type]


@cache
def _cache_keyword(kind: type) -> str:
    parameters = inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]
    known = next((name for name in CACHE_NAMES if name in parameters), None)
    if known is None:
        raise ModelError(f"{kind.__name__} takes no KV cache called {' or '.join(CACHE_NAMES)}: model.decoding=per_arm")
    return known


def end_tokens(generation_config: Any) -> list[int]:
    """List the ids that end an answer."""
    ids = generation_config.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
