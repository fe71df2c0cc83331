"""Compute the language model's attention: image prefixes by the stock kernel, prompts' own rows that read them.

A row behind the image attends to two places: the prefix of its image, whose keys are stored once per image, and the
own rows of its prompt. Each part is a softmax of its own; their log-sum-exp merges the two exactly. Arms change logits
towards image keys, which all lie in the prefix, so a scaling touches one part only.

Registered with AttentionInterface AND AttentionMaskInterface under one name: without the second a model gets no mask.

I images, P prefix columns, N prompts (n of the busiest image), R rows per prompt, C own columns, A arms, H query heads,
G key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from spatial_eval.core.arms import SCALINGS, Arm, AttentionChange, Vaf
from spatial_eval.core.errors import ModelError
from spatial_eval.engine.request import Attended, Intervention
from spatial_eval.engine.reweighting import Memory

PER_ARM = "; model.decoding=per_arm may still do"

# Kinds of scaling, on logits. Add one: a formula, a line in FORMULAS and in `arms.SCALINGS`, and its definition on
# probabilities in reference.py.

# Logits (I, H, n, R, P) float32, -inf where there is no key; weights; image keys, bool; the log of the row's
# unnormalised mass on its own columns (..., 1). All broadcast.
Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def multiply(z: Tensor, weight: Tensor, image: Tensor, _own: Tensor) -> Tensor:
    return torch.where(image, z * weight, z)


def temperature(z: Tensor, weight: Tensor, image: Tensor, _own: Tensor) -> Tensor:
    return torch.where(image, z * weight - _gain(z, weight, image), z)


def mass(z: Tensor, weight: Tensor, image: Tensor, _own: Tensor) -> Tensor:
    return torch.where(image, z + _gain(z, weight, image), z)


def pai(z: Tensor, weight: Tensor, image: Tensor, _own: Tensor) -> Tensor:
    return torch.where(image, z + weight * z.abs(), z)


def share(z: Tensor, weight: Tensor, image: Tensor, own: Tensor) -> Tensor:
    odds = _log_mass(z, image) - torch.logaddexp(_log_mass(z, ~image), own)  # their log
    return torch.where(image & ~weight.isnan(), z + torch.logit(weight) - odds, z)


def head_guided(z: Tensor, weight: Tensor, image: Tensor, _own: Tensor) -> Tensor:
    return torch.where(image, z + weight * z.abs().mean(dim=1, keepdim=True), z)


def before(z: Tensor, weight: Tensor, image: Tensor, _own: Tensor) -> Tensor:
    return torch.where(image.cumsum(dim=-1) == 0, z * weight, z)


FORMULAS: dict[str, Formula] = {
    "multiply": multiply,
    "temperature": temperature,
    "mass": mass,
    "pai": pai,
    "share": share,
    "head_guided": head_guided,
}
NEUTRAL = {"before": 1.0, **SCALINGS}


def list_formulas(attention: AttentionChange) -> dict[str, float]:
    """List the formulas that a change of attention is made of, `before` or of FORMULAS, with their weights."""
    if isinstance(attention, Vaf):
        return {"multiply": attention.enh, "before": attention.sup}
    return {attention.scaling: attention.weight}


def _gain(z: Tensor, weight: Tensor, image: Tensor) -> Tensor:
    """Compute by how much multiplying raises the log of the image's unnormalised mass, (..., 1)."""
    return _log_mass(z * weight, image) - _log_mass(z, image)


def _log_mass(z: Tensor, image: Tensor) -> Tensor:
    return z.masked_fill(~image, float("-inf")).logsumexp(dim=-1, keepdim=True)


# A formula, (A, H or 1) its weight per arm and head, neutral where nothing is scaled, and which of several images.
Weighted = tuple[Formula, Tensor, str]


def layer_scalings(intervention: Intervention, *, depth: int, heads: int, device: torch.device) -> list[list[Weighted]]:
    """List what is scaled in each of `depth` layers of `heads` heads. Raises ModelError on absent layers or heads."""
    arms = intervention.arms
    plain = (arm.untouched or arm.attention.remembers for arm in arms)
    chosen = [
        {} if left else intervention.scaled_heads(arm, depth, heads) for arm, left in zip(arms, plain, strict=True)
    ]
    made: dict[tuple[tuple[int, ...] | None, ...], list[Weighted]] = {}  # most layers scale the same
    found = []
    for layer in range(depth):
        key = tuple(where.get(layer) for where in chosen)
        if key not in made:
            made[key] = _scalings(arms, key, heads, device)
        found.append(made[key])
    return found


def _scalings(
    arms: Sequence[Arm], chosen: Sequence[tuple[int, ...] | None], heads: int, device: torch.device
) -> list[Weighted]:
    """Collect the scalings of one layer; `chosen` holds each arm's heads, None where it scales nothing there."""
    made = []
    used = [
        {}
        if where is None
        else {(kind, arm.attention.image_index): w for kind, w in list_formulas(arm.attention).items()}
        for arm, where in zip(arms, chosen, strict=True)
    ]
    for kind, index in dict.fromkeys(way for own in used for way in own):
        weight = torch.full((len(arms), heads), NEUTRAL[kind])
        for row, own, where in zip(weight, used, chosen, strict=True):
            if where is not None and (kind, index) in own:
                row[list(where)] = own[kind, index]
        alike = bool((weight == weight[:, :1]).all())
        made.append((FORMULAS.get(kind, before), (weight[:, :1] if alike else weight).to(device), index))
    return made


@dataclass(slots=True)
class AttentionCapture:
    """Hold what arm rows attend to, per layer, on the layer's device until the prefill ends: a copy would block it.

    Attributes:
        level: mass, map or heads. image: (N, P) bool, each prompt's image tokens.
        mass: (N, H, R). rows: (N, R, P) averaged over heads, or (N, R, H, P).
    """

    level: str
    image: Tensor
    mass: dict[int, Tensor] = field(default_factory=dict)
    rows: dict[int, Tensor] = field(default_factory=dict)

    def take(self, layer: int, probs: Tensor) -> None:
        """Keep `probs` (N, H, R, P) float32, the attention of the arm rows on the prefix."""
        shared = probs.masked_fill(~self.image.to(probs.device)[:, None, None], 0.0)
        self.mass[layer] = shared.sum(dim=-1)
        if self.level == "map":
            self.rows[layer] = shared.mean(dim=1)
        elif self.level == "heads":
            self.rows[layer] = shared.transpose(1, 2)

    def attended(self, depth: int) -> Attended:
        """Collect all layers on the CPU. Raises ModelError unless each of `depth` layers was seen."""
        if sorted(self.mass) != list(range(depth)):
            raise ModelError(f"attention was captured in layers {sorted(self.mass)} of {depth}: set capture=none")
        mass = torch.stack([self.mass[layer].cpu() for layer in range(depth)])  # (layers, N, H, R)
        if not self.rows:
            return Attended(mass.permute(1, 3, 0, 2), None)
        rows = torch.stack([self.rows[layer].cpu() for layer in range(depth)], dim=2)  # (N, R, layers, [H,] P)
        maps = [row[..., image] for row, image in zip(rows, self.image.cpu(), strict=True)]
        return Attended(mass.permute(1, 3, 0, 2), maps)


@dataclass(frozen=True, slots=True)
class ImagePrefix:
    """Hold keys and values of each image and the text before it, computed once for all prompts about it.

    Attributes:
        layers: per decoder layer keys and values (I, G, P, D), on the layer's device.
        scaled: (I, P) bool, the keys that arms scale, of all images ("") and of single ones, by AttentionChange's
            image_index. image: (I, P) bool, the image tokens.
        hidden: (I, P) bool, columns beyond an image's own length; None where there are none.
        strengths: by layer (dimensions, I, P), how strong a sink each column is, where an arm asks.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    scaled: Mapping[str, Tensor]
    image: Tensor
    hidden: Tensor | None
    strengths: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Packing:
    """Lay prompts side by side per image, so that one product reads each image's keys once.

    Attributes:
        images: I. most: n, places per image.
        slot: (N,) a prompt's place among the I * n; None where that is its number.
    """

    images: int
    most: int
    slot: Tensor | None

    @classmethod
    def arrange(cls, image: Sequence[int], images: int, device: torch.device) -> Packing:
        """Lay out prompts by the image that each reads, an index below `images`."""
        counts, ranks = [0] * images, []
        for one in image:
            ranks.append(counts[one])
            counts[one] += 1
        most = max(counts)
        slots = [one * most + rank for one, rank in zip(image, ranks, strict=True)]
        in_order = slots == list(range(images * most))
        return cls(images, most, None if in_order else torch.tensor(slots, device=device))

    def spread(self, rows: Tensor) -> Tensor:
        """Rearrange (N, ...) to (I, n, ...), zeros where an image has fewer prompts."""
        if self.slot is not None:
            places = torch.zeros(self.images * self.most, *rows.shape[1:], dtype=rows.dtype, device=rows.device)
            places[self.slot.to(rows.device)] = rows
            rows = places
        return rows.reshape(self.images, self.most, *rows.shape[1:])

    def gather(self, places: Tensor) -> Tensor:
        """Rearrange (I, n, ...) to (N, ...)."""
        rows = places.flatten(0, 1)
        return rows if self.slot is None else rows[self.slot.to(rows.device)]


@dataclass(slots=True)
class PrefixRows:
    """Run attention in the forward pass over images and the text before them.

    Attributes:
        text: (I, P) bool, columns that are no image token. depth: decoder layers.
        checked: masks that were checked, one per kind of layer and a copy per device.
    """

    text: Tensor
    depth: int
    checked: list[ref[Tensor]] = field(default_factory=list)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> Tensor:
        """Run stock attention to (I, P, H, D) after checking the mask; the last layer's output is not used."""
        self._check(module, key, mask)
        if _layer(module) == self.depth - 1:
            return torch.zeros_like(query).transpose(1, 2)
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]

    def _check(self, module: nn.Module, key: Tensor, mask: Tensor | None) -> None:
        """Check the mask. Raises ModelError where own rows would attend to other columns than in one pass."""
        columns = self.text.shape[1]
        if key.shape[2] != columns:
            raise ModelError(
                f"layer {_layer(module)} keeps {key.shape[2]} of {columns} keys (a sliding window?){PER_ARM}"
            )
        if mask is None:
            if not getattr(module, "is_causal", True):  # modules of some families do not say it
                raise ModelError(f"attention is not causal: the prompt sees its own end{PER_ARM}")
            return
        if any(mask is one() for one in self.checked):
            return
        if mask.dtype != torch.bool or mask.shape[-2:] != (columns, columns):
            shape = tuple(mask.shape)
            raise ModelError(f"expected a bool mask of {columns} x {columns}, got {mask.dtype} {shape}{PER_ARM}")
        self.checked.append(ref(mask))
        later = torch.ones(columns, columns, dtype=torch.bool, device=mask.device).triu(1)
        if bool((mask & later & self.text.to(mask.device)[:, None, None, :]).any()):
            raise ModelError(f"positions see text behind them (a prefix-LM mask), so they depend on it{PER_ARM}")
        if not bool((mask | later).all()):
            raise ModelError(f"layer {_layer(module)} hides part of the prompt (a sliding window?){PER_ARM}")


PRUNED_FROM = 2  # the first layer that sees few image keys; those are chosen by the attention in the layer before it


@dataclass(slots=True)
class Pruning:
    """Hide all but the `rank` least attended image keys from a layer on (SID, arXiv 2408.02032), chosen per row.

    Attributes:
        image: (I, P) bool. seen: (I, n, R, P) bool, the keys that are not hidden.
    """

    rank: int
    image: Tensor
    seen: Tensor | None = None

    def apply(self, layer: int, logits: Tensor, own_mass: Tensor) -> Tensor:
        """Return logits (I, H, n, R, P), -inf where a key is hidden; `own_mass` as in Formula."""
        if layer == PRUNED_FROM - 1:
            total = torch.logaddexp(logits.logsumexp(dim=-1, keepdim=True), own_mass)
            probs, image = (logits - total).exp().mean(dim=1), self.image.to(logits.device)[:, None, None]
            least = probs.where(image, float("inf")).topk(min(self.rank, image.shape[-1]), largest=False).indices
            self.seen = torch.zeros_like(probs, dtype=torch.bool).scatter(-1, least, value=True) | ~image
        if layer < PRUNED_FROM or self.seen is None:
            return logits
        return logits.masked_fill(~self.seen.to(logits.device)[:, None], float("-inf"))


@dataclass(slots=True)
class PrunedRows:
    """Run attention in the forward pass over whole prompts, whose last row chooses the keys for all (no padding)."""

    pruning: Pruning

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float
    ) -> Tensor:
        """Attend, (1, L, H, D). Raises ModelError where the model keeps part of the keys alone."""
        layer, length = _layer(module), key.shape[2]
        if length != self.pruning.image.shape[-1]:
            raise ModelError(f"layer {layer} keeps {length} keys of a whole prompt (a sliding window?){PER_ARM}")
        if layer == PRUNED_FROM - 1:
            logits = _logits(query[:, :, -1:].float(), key.float()) * scaling  # (1, H, 1, L)
            if mask is not None:
                logits = logits.masked_fill(~mask[:, :, -1:], float("-inf"))
            self.pruning.apply(layer, logits[:, :, None], torch.full_like(logits[:, :, None, :, :1], float("-inf")))
        if layer >= PRUNED_FROM and self.pruning.seen is not None:
            causal = torch.ones(length, length, dtype=torch.bool, device=key.device).tril() if mask is None else mask
            mask = causal & self.pruning.seen.to(key.device)[:, 0]
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)[0]


@dataclass(slots=True)
class OwnRows:
    """Run attention in one forward pass over the prompts' own rows: what follows the image, or a decode step.

    Attributes:
        prefix, packing: what the rows read beside their own columns, and how they are laid out for it.
        scalings: per layer what is scaled, its weights laid out as (1 or I, H or 1, 1 or n, 1 or R', 1) for the last
            `arms` rows of each prompt.
        arms: R', how many of the last rows are scaled or captured. kept: how many are read in the last layer.
        layers: those that must scale, be it with a neutral weight. fired: those that did, in order.
        capture: keeps what the last `kept` rows attend to.
        memory: changes probabilities instead of logits. pruning: of image keys for the last `arms` rows.
    """

    prefix: ImagePrefix
    packing: Packing
    scalings: Sequence[Sequence[Weighted]]
    arms: int
    kept: int
    layers: Sequence[int] = ()
    fired: list[int] = field(default_factory=list)
    capture: AttentionCapture | None = None
    memory: Memory | None = None
    pruning: Pruning | None = None

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float
    ) -> Tensor:
        """Attend to prefix and own columns, (N, R, H, D); `mask` (N, 1, R, C) bool of the own columns."""
        layer, rows = _layer(module), query.shape[2]
        if mask is None or mask.dtype != torch.bool or mask.shape[-2:] != (rows, key.shape[2]):
            raise ModelError(f"layer {layer} does not use the mask that it was given{PER_ARM}")
        if layer in self.layers:
            self.fired.append(layer)
        read = self.kept if layer == len(self.scalings) - 1 else rows
        query, mask, arms = query[:, :, rows - read :], mask[..., rows - read :, :], min(self.arms, read)
        if self.memory is not None:
            out = self._reweighted(self.memory, layer, query, (key, value), ~mask, scaling=scaling)
            return pad(out, (0, 0, 0, 0, rows - read, 0)) if read < rows else out
        own, own_lse = _plain(query, key, value, scaling, ~mask)  # every row sees a column
        own_lse = own_lse[..., None]
        parts = []
        if read > arms:
            parts.append(self._prefix_part(layer, query[:, :, : read - arms], scaling))
        if arms:
            parts.append(self._arm_part(layer, query[:, :, read - arms :], own_lse[:, :, read - arms :], scaling))
        shared, shared_lse = (
            torch.cat(part, dim=2) if len(parts) > 1 else part[0] for part in zip(*parts, strict=True)
        )
        out = torch.lerp(own, shared, torch.sigmoid(shared_lse - own_lse)).to(query.dtype).transpose(1, 2)
        return pad(out, (0, 0, 0, 0, rows - read, 0)) if read < rows else out

    def _reweighted(
        self, memory: Memory, layer: int, query: Tensor, own: tuple[Tensor, Tensor], unseen: Tensor, *, scaling: float
    ) -> Tensor:
        """Attend to prefix and own columns in one softmax, whose probabilities the memory changes: (N, R, H, D)."""
        key, value = self.prefix.layers[layer]
        rows, columns, groups = query.shape[2], key.shape[2], key.shape[1]
        logits = _logits(self._pack(query, groups).float(), key.float())
        hidden = memory.hidden.to(key.device)[memory.prompt.to(key.device)][:, None, None]
        shared = self._unpack(logits, rows).masked_fill(hidden, float("-inf"))
        mine = _logits(query.float(), own[0].float()).masked_fill(unseen, float("-inf"))
        probs = memory.weigh(layer, torch.softmax(torch.cat([shared, mine], dim=-1) * scaling, dim=-1))
        if self.capture is not None:
            self.capture.take(layer, probs[:, :, -self.kept :, :columns])
        seen = self._unpack(_mix(self._pack(probs[..., :columns], groups), value.float()), rows)
        return (seen + _mix(probs[..., columns:], own[1].float())).to(query.dtype).transpose(1, 2)

    def check_fired(self) -> None:
        """Check the count. Raises ModelError unless every selected layer was scaled exactly once."""
        if sorted(self.fired) != list(self.layers):
            raise ModelError(
                f"the intervention fired in layers {sorted(self.fired)} instead of once in each of "
                f"{list(self.layers)}: its attention bypasses transformers' interface{PER_ARM}"
            )

    def _pack(self, query: Tensor, groups: int) -> Tensor:
        """Rearrange (N, H, R, D) to (I, G, H/G * n * R, D)."""
        rows, size = query.shape[2:]
        placed = self.packing.spread(query).reshape(-1, self.packing.most, groups, query.shape[1] // groups, rows, size)
        return placed.permute(0, 2, 3, 1, 4, 5).flatten(2, 4)

    def _unpack(self, packed: Tensor, rows: int) -> Tensor:
        """Rearrange (I, G, H/G * n * R, D) to (N, H, R, D)."""
        placed = packed.reshape(
            *packed.shape[:2], -1, self.packing.most, rows, packed.shape[-1]
        )  # (I, G, H/G, n, R, D)
        return self.packing.gather(placed.permute(0, 3, 1, 2, 4, 5).flatten(2, 3))

    def _prefix_part(self, layer: int, query: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """Attend to the prefix, untouched: (N, H, R, D) and (N, H, R, 1), both float32."""
        key, value = self.prefix.layers[layer]
        hidden = None if self.prefix.hidden is None else self.prefix.hidden.to(key.device)[:, None, None]
        kernel = find_kernel(key.device.type, key.dtype, key.shape[-1], masked=hidden is not None)
        out, lse = kernel(self._pack(query, key.shape[1]), key, value, scaling, hidden)
        return self._unpack(out, query.shape[2]).float(), self._unpack(lse[..., None], query.shape[2]).float()

    def _arm_part(self, layer: int, query: Tensor, own_lse: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """Attend to the prefix as the arms change it, in float32 whatever the model's dtype."""
        key, value = self.prefix.layers[layer]
        rows, device = query.shape[2], key.device
        logits = _logits(self._pack(query, key.shape[1]).float(), key.float()) * scaling  # (I, G, H/G * n * R, P)
        by_row = logits.view(logits.shape[0], -1, self.packing.most, rows, logits.shape[-1])  # (I, H, n, R, P)
        if self.prefix.hidden is not None:
            by_row = by_row.masked_fill(self.prefix.hidden.to(device)[:, None, None, None], float("-inf"))
        if self.scalings[layer] or self.pruning:
            own_mass = self.packing.spread(own_lse).transpose(1, 2)  # (I, H, n, R, 1)
        if self.pruning is not None:
            by_row = self.pruning.apply(layer, by_row, own_mass)
        for formula, weight, index in self.scalings[layer]:
            scaled = self.prefix.scaled[index].to(device)[:, None, None, None]
            by_row = formula(by_row, weight.to(device), scaled, own_mass)
        logits = by_row.reshape(logits.shape)
        out, lse = (self._unpack(part, rows) for part in _softmax_part(logits, value.float()))
        if self.capture is not None:
            total = torch.logaddexp(lse, own_lse)
            self.capture.take(layer, (self._unpack(logits, rows) - total).exp()[:, :, -self.kept :])
        return out, lse


NAME = "spatial_eval_shared"


def shared_attention(
    module: nn.Module,
    query: Tensor,  # (B, H, Q, D)
    key: Tensor,  # (B, G, K, D)
    value: Tensor,  # (B, G, K, D)
    attention_mask: Tensor | None,  # (B, 1, Q, K) bool
    scaling: float | None = None,
    rows: PrefixRows | OwnRows | PrunedRows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as `rows` says -> (B, Q, H, D); without it stock SDPA."""
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise ModelError(f"the shared prefix does not reproduce attention with {name}{PER_ARM}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(rows, OwnRows | PrunedRows):
        return rows.attend(module, query, key, value, attention_mask, scaling=scaling), None
    if rows is not None:
        return rows.attend(module, query, key, value, attention_mask, scaling=scaling, **kwargs), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)[0], None


def _layer(module: nn.Module) -> int:
    return int(module.layer_idx)  # type: ignore[arg-type]


def _softmax_part(logits: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Compute a softmax over some of a row's columns: the mean of values, and the log-sum-exp to merge it by."""
    peak = logits.amax(dim=-1, keepdim=True)
    raised = (logits - peak).exp_()
    total = raised.sum(dim=-1, keepdim=True)
    return _mix(raised, value).div_(total), total.log_().add_(peak)


def _logits(query: Tensor, key: Tensor) -> Tensor:
    """Multiply (B, H, n, D), (B, G, K, D) to (B, H, n, K). `flatten`: a view of the cache, where `matmul` copies."""
    flat = query.reshape(key.shape[0] * key.shape[1], -1, query.shape[-1])  # (B * G, H/G * n, D)
    return torch.bmm(flat, key.flatten(0, 1).transpose(1, 2)).view(*query.shape[:3], -1)


def _mix(probs: Tensor, value: Tensor) -> Tensor:
    """Multiply (B, H, n, K) and (B, G, K, D) to (B, H, n, D)."""
    flat = probs.reshape(value.shape[0] * value.shape[1], -1, probs.shape[-1])  # (B * G, H/G * n, K)
    return torch.bmm(flat, value.flatten(0, 1)).view(*probs.shape[:3], -1)


# Kernels that give the log-sum-exp beside the output. All but one of the operators are private to torch: each is tried
# first, and where one is absent or wrong the next or the plain way stands in.

Part = tuple[Tensor, Tensor]  # means of values over some of a row's columns, and the log-sum-exp to merge them by
Kernel = Callable[[Tensor, Tensor, Tensor, float, "Tensor | None"], Part]


def _plain(query: Tensor, key: Tensor, value: Tensor, scaling: float, hidden: Tensor | None) -> Part:
    """Attend in float32: (B, H, Q, D), (B, G, K, D), hidden (B, 1, 1 or Q, K) bool -> (B, H, Q, D) and (B, H, Q)."""
    logits = _logits(query.float(), key.float()) * scaling
    if hidden is not None:
        logits.masked_fill_(hidden, float("-inf"))
    out, lse = _softmax_part(logits, value.float())
    return out, lse[..., 0]


def _bias(query: Tensor, hidden: Tensor | None) -> Tensor | None:
    return None if hidden is None else query.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))


def _flash_cpu(query: Tensor, key: Tensor, value: Tensor, scaling: float, hidden: Tensor | None) -> Part:
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = operator(query, key, value, attn_mask=_bias(query, hidden), scale=scaling)
    return out, lse


def _flash_cuda(query: Tensor, key: Tensor, value: Tensor, scaling: float, hidden: Tensor | None) -> Part:
    if hidden is not None:
        raise NotImplementedError
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scaling)[:2]
    return out, lse


def _varlen_cuda(query: Tensor, key: Tensor, value: Tensor, scaling: float, hidden: Tensor | None) -> Part:
    """Read prefixes of their own lengths: every head of an image is a sequence of one head, so nothing is copied."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn  # since torch 2.10

    (rows, columns), sequences = (query.shape[2], key.shape[2]), query.shape[0] * query.shape[1]
    number = torch.arange(sequences + 1, dtype=torch.int32, device=query.device)
    used: dict[str, Any] = {}
    if hidden is not None:  # since torch 2.12
        lengths = (~hidden).flatten(1).sum(dim=-1, dtype=torch.int32)
        used["seqused_k"] = lengths.repeat_interleave(query.shape[1])
    flat = [one.flatten(0, 2)[:, None] for one in (query, key, value)]  # (B * G * columns, 1, D)
    given: tuple[Any, ...] = (*flat, number * rows, number * columns, rows, columns)
    out, lse = varlen_attn(*given, return_aux=AuxRequest(lse=True), scale=scaling, **used)
    return out.view(query.shape), lse.view(query.shape[:3])


def _efficient_cuda(query: Tensor, key: Tensor, value: Tensor, scaling: float, hidden: Tensor | None) -> Part:
    bias = _bias(query, hidden)
    if bias is not None:  # the kernel wants rows of it that start at multiples of 16 bytes
        bias = pad(bias, (0, -bias.shape[-1] % 8))[..., : bias.shape[-1]].expand(-1, query.shape[1], query.shape[2], -1)
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, scale=scaling)[:2]
    return out, lse[..., : query.shape[2]]


KERNELS: dict[str, tuple[Kernel, ...]] = {"cpu": (_flash_cpu,), "cuda": (_flash_cuda, _varlen_cuda, _efficient_cuda)}
TRIED = ((5, 19), (130, 701))  # rows and columns: few and many of both


@cache
def find_kernel(device: str, dtype: torch.dtype, size: int, *, masked: bool) -> Kernel:
    """Choose the first kernel of a kind of device that gives the plain way's numbers for heads of `size`."""
    return next(iter_kernels(device, dtype, size, masked=masked))


def iter_kernels(device: str, dtype: torch.dtype, size: int, *, masked: bool) -> Iterator[Kernel]:
    """Yield the kernels of a kind of device that give the plain way's numbers, the preferred first; then that way."""
    for kernel in KERNELS.get(device, ()):
        try:
            right = all(_is_right(kernel, device, dtype, size, *lengths, masked=masked) for lengths in TRIED)
        except (AttributeError, ImportError, RuntimeError, TypeError):
            continue
        if right:
            yield kernel
    yield _plain


def _is_right(
    kernel: Kernel, device: str, dtype: torch.dtype, size: int, rows: int, columns: int, *, masked: bool
) -> bool:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, 3, length, size, generator=generator).to(device, dtype) for length in (rows, columns, columns)
    )
    lengths = torch.tensor([[columns], [columns * 3 // 5]], device=device)
    hidden = (torch.arange(columns, device=device) >= lengths)[:, None, None] if masked else None
    given, limit = (query, key, value, size**-0.5, hidden), 1e-3 if dtype == torch.float32 else 3e-2
    pairs = zip(kernel(*given), _plain(*given), strict=True)
    return all(torch.allclose(ours.float(), plain, atol=limit, rtol=limit) for ours, plain in pairs)


@contextmanager
def last_layer_trimmed(model: Any, width: int) -> Iterator[None]:
    """Restrict the last layer to the last `width` rows; of the others the cache needs only keys and values.

    Saves four fifths of a layer in a prefill; modules of other names keep their own way. With `width` 0 logits are
    left out too.
    """
    layers = getattr(model.get_decoder(), "layers", None)  # decoders may name them otherwise
    rows = 0

    def narrow(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        nonlocal rows
        rows = args[0].shape[1]
        return (args[0][:, rows - width :],)  # (B, W, features)

    def widen(_module: nn.Module, _args: tuple[Tensor], out: Tensor) -> Tensor:
        return pad(out, (0, 0, rows - width, 0))  # (B, R, features), zeros first

    handles = [] if width else [model.get_output_embeddings().register_forward_pre_hook(narrow)]
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
    """Run the language model alone on `shared_attention`; the vision tower keeps its own backend."""
    if NAME not in ALL_MASK_ATTENTION_FUNCTIONS:
        raise ModelError("no mask function is registered: models would see no mask")
    before = model.config.get_text_config()._attn_implementation
    if before != NAME:
        model.set_attn_implementation({"text_config": NAME})
    try:
        yield
    finally:
        if before != NAME:
            model.set_attn_implementation({"text_config": before})


register()
