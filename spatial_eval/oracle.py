"""The slow, plain way (`model.decoding=per_arm`): one greedy `generate` per arm, textbook attention.

It judges the engine in the tests and at the start of every run, and serves the models that the engine
must refuse. It shares no code with the engine. B questions, H heads, Q rows, K keys, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from .decoding import Decoded, Intervention, Tokens, end_tokens, image_token_id
from .errors import ModelError

NAME = "spatial_eval_oracle"


@dataclass(slots=True)
class _Scaled:
    weight: float
    image: Tensor  # (B, L) bool
    layers: range
    fired: list[int] = field(default_factory=list)


# `generate` rejects keyword arguments it does not know, so the weight reaches the layers from around it
_scaled: ContextVar[_Scaled | None] = ContextVar("spatial_eval_oracle", default=None)


def plain_attention(
    module: nn.Module,
    query: Tensor,  # (B, H, Q, D)
    key: Tensor,  # (B, H_kv, K, D)
    value: Tensor,
    attention_mask: Tensor | None,  # (B, 1, Q, K) additive
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """-> (B, Q, H, D) and the probabilities (B, H, Q, K). Softmax in float32 or better."""
    if kwargs.get("s_aux") is not None:
        raise ModelError("attention sinks are not supported: they change what a weight on the image's logits means")
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)  # (B, H, K, D)
    logits = torch.matmul(query, key.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    job = _scaled.get()
    if job is not None and query.shape[2] == job.image.shape[1] and int(module.layer_idx) in job.layers:  # type: ignore[arg-type]
        image = job.image[:, None, -key.shape[2] :].to(key.device)  # (B, 1, K): sliding layers keep the last K keys
        logits[:, :, -1] = torch.where(image, logits[:, :, -1] * job.weight, logits[:, :, -1])
        job.fired.append(int(module.layer_idx))  # type: ignore[arg-type]
    if attention_mask is not None:
        logits = logits + attention_mask[..., : key.shape[2]]
    precise = torch.promote_types(query.dtype, torch.float32)
    probs = torch.softmax(logits, dim=-1, dtype=precise).to(query.dtype)
    return torch.matmul(probs, value).transpose(1, 2).contiguous(), probs


AttentionInterface.register(NAME, plain_attention)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def _language_model_on_oracle(model: Any) -> Iterator[None]:
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation({"text_config": NAME})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": before})


def _image_positions(input_ids: Tensor, token: int, *, span: bool) -> Tensor:
    image = input_ids == token  # (B, L)
    if not span:
        return image
    for row in image:
        where = row.nonzero()
        if len(where):
            row[int(where[0]) : int(where[-1]) + 1] = True
    return image


def decode(model: Any, inputs: Mapping[str, Tensor], *, intervention: Intervention, max_new_tokens: int) -> Decoded:
    """Greedy answers under every arm, one `generate` each.

    `inputs` is what the processor gives: left padded `input_ids` (B, L) and the rest. Raises ModelError
    where the scaling did not fire once in every selected layer.
    """
    ids = inputs["input_ids"]
    image = _image_positions(ids, image_token_id(model.config), span=intervention.span)
    layers = intervention.scaled_layers(model.config.get_text_config().num_hidden_layers)
    ends = end_tokens(model.generation_config)
    tokens: list[list[Tokens]] = [[] for _ in range(len(ids))]
    first: list[Tensor] = []
    with _language_model_on_oracle(model), torch.no_grad():
        for weight in intervention.weights:
            job = _Scaled(weight, image, layers)
            token = _scaled.set(job)
            try:
                out = model.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
            finally:
                _scaled.reset(token)
            if job.fired != list(layers):
                raise ModelError(f"the intervention fired in layers {job.fired} instead of 0..{len(layers) - 1}")
            first.append(out.logits[0].float())  # (B, V)
            for question, row in zip(tokens, out.sequences[:, ids.shape[1] :].tolist(), strict=True):
                stop = next((i + 1 for i, one in enumerate(row) if one in ends), len(row))
                question.append(tuple(row[:stop]))
    return Decoded(tokens, torch.stack(first, dim=1))
