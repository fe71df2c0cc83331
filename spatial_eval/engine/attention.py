"""One attention function for transformers: stock SDPA for the prefix, exact scaled rows for the arms.

Registered with AttentionInterface AND AttentionMaskInterface under one name: without the second a
model gets no mask and ignores padding silently. B questions, H heads, W arms, K keys, D head size.

Kinds of scaling, on logits: what each does to an arm's row of a prefill. Add one: a formula, a line in FORMULAS
and in `arms.SCALINGS`, and its definition on probabilities in `oracle.py`.

A formula takes z (B, H, R, K) float32, the last prompt token's logits for R arms; weight (R, 1) >= 0; image
(B, 1, 1, K) bool, the keys that are scaled, at least one a question. It returns new logits (B, H, R, K); those
off the image stay as they are.

Takes what a prefill's last rows attend to on its way through the layers: no pass of its own.

B questions, H heads, P shared keys, W arms, n image tokens of a question.

The last W rows of a prefill, one an arm, and what is done to each in which layer.

B questions, H heads, P shared keys, R rows of one kind of scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from spatial_eval.core.errors import ModelError
from spatial_eval.core.types import Arm
from spatial_eval.engine.request import Attended, Intervention

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]


def multiply(z: Tensor, weight: Tensor, image: Tensor) -> Tensor:
    return torch.where(image, z * weight, z)


def temperature(z: Tensor, weight: Tensor, image: Tensor) -> Tensor:
    return torch.where(image, z * weight - _gain(z, weight, image), z)


def mass(z: Tensor, weight: Tensor, image: Tensor) -> Tensor:
    return torch.where(image, z + _gain(z, weight, image), z)


def pai(z: Tensor, weight: Tensor, image: Tensor) -> Tensor:
    return torch.where(image, z + weight * z.abs(), z)


FORMULAS: dict[str, Formula] = {"multiply": multiply, "temperature": temperature, "mass": mass, "pai": pai}


def _gain(z: Tensor, weight: Tensor, image: Tensor) -> Tensor:
    """(B, H, R, 1): by how much multiplying raises the log of the image's unnormalised mass."""
    return _mass(z * weight, image) - _mass(z, image)


def _mass(z: Tensor, image: Tensor) -> Tensor:
    return z.masked_fill(~image, float("-inf")).logsumexp(dim=-1, keepdim=True)


@dataclass(slots=True)
class AttentionCapture:
    """What was seen by layer, on the layer's device until the prefill is over: copying earlier would make it wait.

    Attributes:
        level: mass, map or heads. image: (B, P) bool, the image tokens.
        mass: (B, H, W). rows: (B, W, P) averaged over heads, or (B, W, H, P).
    """

    level: str
    image: Tensor
    mass: dict[int, Tensor] = field(default_factory=dict)
    rows: dict[int, Tensor] = field(default_factory=dict)

    def take(self, layer: int, probs: Tensor) -> None:
        """`probs` (B, H, W, P + W) float32, the attention of the last W rows."""
        image = self.image.to(probs.device)
        shared = probs[..., : image.shape[1]].masked_fill(~image[:, None, None], 0.0)  # (B, H, W, P)
        self.mass[layer] = shared.sum(dim=-1)
        if self.level == "map":
            self.rows[layer] = shared.mean(dim=1)
        elif self.level == "heads":
            self.rows[layer] = shared.transpose(1, 2)

    def attended(self, depth: int) -> Attended:
        """Raises ModelError unless each of `depth` layers was seen."""
        if sorted(self.mass) != list(range(depth)):
            raise ModelError(f"attention was captured in layers {sorted(self.mass)} of {depth}: set capture=none")
        mass = torch.stack([self.mass[layer].cpu() for layer in range(depth)])  # (layers, B, H, W)
        if not self.rows:
            return Attended(mass.permute(1, 3, 0, 2), None)
        rows = torch.stack([self.rows[layer].cpu() for layer in range(depth)], dim=2)  # (B, W, layers, [H,] P)
        maps = [row[..., image] for row, image in zip(rows, self.image.cpu(), strict=True)]
        return Attended(mass.permute(1, 3, 0, 2), maps)


PER_ARM = "; model.decoding=per_arm may still do"


@dataclass(frozen=True, slots=True)
class ScaledRows:
    """The arms of one kind of scaling in a layer: `index` (R,) among the W, None = all of them; `weight` (R, 1)."""

    formula: Formula
    index: Tensor | None
    weight: Tensor

    @classmethod
    def of(cls, arms: Sequence[Arm], active: Sequence[int], device: torch.device) -> tuple[ScaledRows, ...]:
        """`active`: positions of the arms that are scaled."""
        made = []
        for scaling in dict.fromkeys(arms[i].scaling for i in active):
            rows = [i for i in active if arms[i].scaling == scaling]
            weight = torch.tensor([[arms[i].weight] for i in rows], dtype=torch.float32, device=device)
            index = None if len(rows) == len(arms) else torch.tensor(rows, device=device)
            made.append(cls(FORMULAS[scaling], index, weight))
        return tuple(made)

    def apply(self, logits: Tensor, image: Tensor) -> Tensor:
        """(B, H, W, K), (B, 1, 1, K) -> (B, H, W, K); may write in place."""
        weight, image = self.weight.to(logits.device), image.to(logits.device)  # layers may lie on several devices
        if self.index is None:
            return self.formula(logits, weight, image)
        index = self.index.to(logits.device)
        logits[:, :, index] = self.formula(logits[:, :, index], weight, image)
        return logits


@dataclass(slots=True)
class ArmRows:
    """The last W rows of a prefill: the last prompt token once per arm, each blind to the others.

    Attributes:
        width: W. image: (B, 1, 1, P + W) bool, the keys that are scaled.
        scaled: per decoder layer, which rows are scaled and how. layers: those that must fire: where some arm
            says so, be it with a weight that leaves it untouched.
        padded: some question is left padded, so the model must hand over a mask.
        fired: layers of `layers` that were called, in order. masks: those that were checked.
        watch: keeps what the rows attend to.
    """

    width: int
    image: Tensor
    scaled: list[tuple[ScaledRows, ...]]
    layers: list[int]
    padded: bool
    fired: list[int] = field(default_factory=list)
    masks: list[ref[Tensor]] = field(default_factory=list)
    watch: AttentionCapture | None = None

    @classmethod
    def of(cls, intervention: Intervention, image: Tensor, *, padded: bool, depth: int) -> ArmRows:
        """`image` (B, P) bool, the keys to scale among the P shared positions. Raises ModelError on absent layers."""
        arms = intervention.arms
        touched = [set(intervention.scaled_layers(arm, depth)) for arm in arms]
        made: dict[tuple[int, ...], tuple[ScaledRows, ...]] = {}  # most layers scale the same rows
        scaled = []
        for layer in range(depth):
            here = (i for i in range(len(arms)) if layer in touched[i])
            active = tuple(i for i in here if not arms[i].contrast and not arms[i].untouched)
            if active not in made:
                made[active] = ScaledRows.of(arms, active, image.device)
            scaled.append(made[active])
        keys = pad(image, (0, len(arms)))[:, None, None, :]
        return cls(len(arms), keys, scaled, sorted(set().union(*touched)), padded)

    @property
    def keys(self) -> int:
        return self.image.shape[-1]

    def check_fired(self) -> None:
        """Raises ModelError unless every selected layer was scaled exactly once."""
        if sorted(self.fired) != self.layers:
            raise ModelError(
                f"the intervention fired in layers {sorted(self.fired)} instead of once in each of "
                f"{self.layers}: its attention bypasses transformers' interface{PER_ARM}"
            )


NAME = "spatial_eval_shared"


def shared_attention(
    module: nn.Module,
    query: Tensor,  # (B, H, Q, D)
    key: Tensor,  # (B, H_kv, K, D)
    value: Tensor,  # (B, H_kv, K, D)
    attention_mask: Tensor | None,  # (B, 1, Q, K) bool
    scaling: float | None = None,
    tail: ArmRows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """-> (B, Q, H, D). Without `tail` plain SDPA; with it, the last W rows are the arms of a prefill."""
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise ModelError(f"the shared prefix does not reproduce attention with {name}{PER_ARM}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if tail is None:
        return _branch_rows(query, key, value, attention_mask, scaling, module, kwargs), None
    prefix = tail.keys - tail.width
    _check_mask(module, query, key, attention_mask, tail)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if layer in tail.layers:
        tail.fired.append(layer)
    visible = None if attention_mask is None else attention_mask[:, :, prefix:, :prefix]  # (B, 1, W, P)
    arms = _tail_rows(query[:, :, prefix:], key, value, visible, scaling, tail, layer)  # (B, W, H, D)
    if layer == len(tail.scaled) - 1:  # what the last layer gives for the shared rows is read by nobody
        return pad(arms, (0, 0, 0, 0, prefix, 0)), None
    mask = None if attention_mask is None else attention_mask[:, :, :prefix, :prefix]  # (B, 1, P, P)
    shared, _ = sdpa_attention_forward(  # (B, P, H, D); no mask = the flash kernel with is_causal
        module, query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], mask, scaling=scaling, **kwargs
    )
    return torch.cat([shared, arms], dim=1), None


def _tail_rows(
    query: Tensor,  # (B, H, W, D)
    key: Tensor,  # (B, H_kv, P + W, D)
    value: Tensor,
    visible: Tensor | None,  # (B, 1, W, P) bool
    scaling: float,
    tail: ArmRows,
    layer: int,
) -> Tensor:
    """-> (B, W, H, D). Logits, scaling and softmax in float32 whatever the model's dtype."""
    width = query.shape[2]
    logits = _logits(query.float(), key.float()) * scaling  # (B, H, W, P + W)
    for rows in tail.scaled[layer]:
        logits = rows.apply(logits, tail.image)
    prefix = logits.shape[-1] - width
    if visible is not None:
        logits[..., :prefix].masked_fill_(~visible, float("-inf"))
    others = ~torch.eye(width, dtype=torch.bool, device=query.device)  # (W, W)
    logits[..., prefix:].masked_fill_(others, float("-inf"))
    probs = torch.softmax(logits, dim=-1)  # (B, H, W, P + W)
    if tail.watch is not None:
        tail.watch.take(layer, probs)
    return _mix(probs, value.float()).to(query.dtype).transpose(1, 2)


def _branch_rows(
    query: Tensor,  # (B, H, Q, D)
    key: Tensor,  # (B, H_kv, C, D)
    value: Tensor,
    mask: Tensor | None,  # (B, 1, Q, C) bool
    scaling: float,
    module: nn.Module,
    kwargs: dict[str, Any],
) -> Tensor:
    """-> (B, Q, H, D). The cache is not repeated for the query heads that share a key head."""
    batch, heads, width, size = query.shape
    groups = key.shape[1]
    if mask is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)[0]
    if query.device.type == "cpu" and query.dtype == torch.float32:  # half the time of SDPA's kernel for few rows
        logits = (_logits(query, key) * scaling).masked_fill_(~mask, float("-inf"))
        return _mix(torch.softmax(logits, dim=-1), value).transpose(1, 2)
    rows = query.reshape(batch, groups, -1, size)  # (B, H_kv, H/H_kv * Q, D)
    out = torch.nn.functional.scaled_dot_product_attention(
        rows, key, value, attn_mask=mask.repeat(1, 1, heads // groups, 1), scale=scaling
    )
    return out.view(batch, heads, width, size).transpose(1, 2)


def _logits(query: Tensor, key: Tensor) -> Tensor:
    """(B, H, n, D), (B, H_kv, K, D) -> (B, H, n, K). `flatten` is a view of the cache where `matmul` would copy it."""
    batch, heads, rows, size = query.shape
    flat = query.reshape(key.shape[0] * key.shape[1], -1, size)  # (B * H_kv, H/H_kv * n, D)
    return torch.bmm(flat, key.flatten(0, 1).transpose(1, 2)).view(batch, heads, rows, -1)


def _mix(probs: Tensor, value: Tensor) -> Tensor:
    """(B, H, n, K), (B, H_kv, K, D) -> (B, H, n, D)."""
    batch, heads, rows, keys = probs.shape
    flat = probs.reshape(value.shape[0] * value.shape[1], -1, keys)  # (B * H_kv, H/H_kv * n, K)
    return torch.bmm(flat, value.flatten(0, 1)).view(batch, heads, rows, -1)


def _check_mask(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, tail: ArmRows) -> None:
    width, keys = tail.width, tail.keys
    if query.shape[2] != keys or key.shape[2] != keys:
        raise ModelError(f"layer {module.layer_idx} keeps {key.shape[2]} of {keys} keys (a sliding window?){PER_ARM}")
    if mask is None:
        if tail.padded:
            raise ModelError("a padded batch came without an attention mask: no mask function is registered")
        if not getattr(module, "is_causal", True):
            raise ModelError(f"attention is not causal: the prompt sees its own end{PER_ARM}")
        return
    if mask.dtype != torch.bool or mask.shape[-2:] != (keys, keys):
        raise ModelError(f"expected a bool mask of {keys} x {keys}, got {mask.dtype} {tuple(mask.shape)}{PER_ARM}")
    if any(mask is one() for one in tail.masks):  # one a kind of layer, and a copy a layer on another device
        return
    tail.masks.append(ref(mask))
    prefix = keys - width
    if bool(mask[:, :, :prefix, prefix:].any()):
        raise ModelError(
            f"earlier positions see the last one (a prefix-LM mask), so they depend on the weight{PER_ARM}"
        )
    if bool((mask[:, :, prefix:, :prefix] != mask[:, :, prefix : prefix + 1, :prefix]).any()):
        raise ModelError(f"layer {module.layer_idx} shows its arms different parts of the prompt{PER_ARM}")


@contextmanager
def last_layer_trimmed(model: Any, width: int) -> Iterator[None]:
    """The last layer works on the last `width` rows only: of the others the cache needs keys and values alone.

    Saves four fifths of a layer in the prefill; modules of other names keep their own way.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    rows = 0

    def narrow(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        nonlocal rows
        rows = args[0].shape[1]
        return (args[0][:, -width:],)  # (B, W, features)

    def widen(_module: nn.Module, _args: tuple[Tensor], out: Tensor) -> Tensor:
        return pad(out, (0, 0, rows - width, 0))  # (B, P + W, features), zeros first

    handles = []
    for name, part in layers[-1].named_modules() if layers is not None else ():
        if name in ("self_attn.q_proj", "self_attn.o_proj", "mlp"):
            handles += [part.register_forward_pre_hook(narrow), part.register_forward_hook(widen)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def register() -> None:
    AttentionInterface.register(NAME, shared_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def switched(model: Any) -> Iterator[None]:
    """The language model alone runs on `shared_attention`; the vision tower keeps its own backend."""
    before = model.config.get_text_config()._attn_implementation
    if before != NAME:
        model.set_attn_implementation({"text_config": NAME})
    try:
        yield
    finally:
        if before != NAME:
            model.set_attn_implementation({"text_config": before})


register()
