"""Compute the language model's attention: image prefixes by the stock kernel, prompts' own rows that read them.

A row behind the image attends to the prefix of its image, whose keys are stored once per image, and to own columns of
its prompt. For rows that no arm changes, each part is a softmax of its own, and their log-sum-exp merges the two
exactly. Arm rows take one softmax over both, with logits towards image keys scaled before it (all of them lie in the
prefix), and probabilities changed after it by what earlier tokens did (reweighting.py).

Registered with AttentionInterface AND AttentionMaskInterface under one name: without the second a model gets no mask.

I images, P prefix columns, N prompts (n of the image with most), R rows per prompt, C own columns, A arms, H query
heads, G key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from spatial_eval.engine.kernels import attend_plainly, find_kernel, mix_values, multiply_keys
from spatial_eval.engine.request import Attended, Intervention
from spatial_eval.engine.reweighting import Memory

PER_ARM = "; model.decoding=per_arm may still do"

# Kinds of scaling, on logits. Add one: a formula, a line in FORMULAS and in `arms.SCALINGS`, and its definition on
# probabilities in reference.py.

# Logits (N, H, R, P) float32, -inf where there is no key; weights; image keys, bool; the log of the row's unnormalised
# mass on its own columns (..., 1). All broadcast.
Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def multiply(z: Tensor, weight: Tensor, image: Tensor, _own: Tensor) -> Tensor:
    """Multiply logits towards the image: w z (arXiv 2503.01773, section 4)."""
    return torch.where(image, z * weight, z)


def temperature(z: Tensor, weight: Tensor, image: Tensor, _own: Tensor) -> Tensor:
    """Multiply logits towards the image, and shift them so that its mass stays: w z - c."""
    return torch.where(image, z * weight - _gain(z, weight, image), z)


def mass(z: Tensor, weight: Tensor, image: Tensor, _own: Tensor) -> Tensor:
    """Shift logits towards the image to the mass that multiplying gives it: z + c."""
    return torch.where(image, z + _gain(z, weight, image), z)


def pai(z: Tensor, weight: Tensor, image: Tensor, _own: Tensor) -> Tensor:
    """Raise logits towards the image by a part of their size: z + w |z| (arXiv 2407.21771)."""
    return torch.where(image, z + weight * z.abs(), z)


def share(z: Tensor, weight: Tensor, image: Tensor, own: Tensor) -> Tensor:
    """Shift logits towards the image so that it has the share w of the row's attention."""
    log_odds = _log_mass(z, image) - torch.logaddexp(_log_mass(z, ~image), own)
    return torch.where(image & ~weight.isnan(), z + torch.logit(weight) - log_odds, z)


def head_guided(z: Tensor, weight: Tensor, image: Tensor, _own: Tensor) -> Tensor:
    """Raise logits towards the image by a part of their mean size over all heads (arXiv 2411.16724)."""
    return torch.where(image, z + weight * z.abs().mean(dim=1, keepdim=True), z)


def before(z: Tensor, weight: Tensor, image: Tensor, _own: Tensor) -> Tensor:
    """Multiply logits towards the text before the image: w z (VAF, arXiv 2503.13107)."""
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


def _log_mass(z: Tensor, columns: Tensor) -> Tensor:
    """Compute the log of the unnormalised mass of some columns, (..., 1)."""
    return z.masked_fill(~columns, float("-inf")).logsumexp(dim=-1, keepdim=True)


# A formula, (A, H or 1) its weight per arm and head, neutral where nothing is scaled, and which of several images.
Weighted = tuple[Formula, Tensor, str]


def layer_scalings(intervention: Intervention, shape: tuple[int, int], device: torch.device) -> list[list[Weighted]]:
    """List what is scaled in each layer; `shape`: layers and heads. Raises ModelError on absent layers or heads."""
    arms = intervention.arms
    plain = (arm.untouched or arm.attention.remembers for arm in arms)
    chosen = [
        {} if skipped else intervention.scaled_heads(arm, *shape) for arm, skipped in zip(arms, plain, strict=True)
    ]
    made: dict[tuple[tuple[int, ...] | None, ...], list[Weighted]] = {}  # most layers scale the same
    scalings = []
    for layer in range(shape[0]):
        key = tuple(by_layer.get(layer) for by_layer in chosen)
        if key not in made:
            made[key] = _scale_layer(arms, key, shape[1], device)
        scalings.append(made[key])
    return scalings


def _scale_layer(
    arms: Sequence[Arm], chosen: Sequence[tuple[int, ...] | None], heads: int, device: torch.device
) -> list[Weighted]:
    """Collect the scalings of one layer; `chosen` holds each arm's heads, None where it scales nothing there."""
    made = []
    weights = [
        {(kind, arm.attention.image_index): weight for kind, weight in list_formulas(arm.attention).items()}
        if selected is not None
        else {}
        for arm, selected in zip(arms, chosen, strict=True)
    ]
    for kind, index in dict.fromkeys(key for own in weights for key in own):
        weight = torch.full((len(arms), heads), NEUTRAL[kind])
        for row, own, selected in zip(weight, weights, chosen, strict=True):
            if selected is not None and (kind, index) in own:
                row[list(selected)] = own[kind, index]
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
        slot: (N,) a prompt's place among the I * n; None where each prompt's place is its index.
    """

    images: int
    most: int
    slot: Tensor | None

    @classmethod
    def arrange(cls, image: Sequence[int], images: int, device: torch.device) -> Packing:
        """Lay out prompts by the image that each reads, an index below `images`."""
        counts, ranks = [0] * images, []
        for number in image:
            ranks.append(counts[number])
            counts[number] += 1
        most = max(counts)
        slots = [number * most + rank for number, rank in zip(image, ranks, strict=True)]
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
        image: (N, P) bool, each prompt's image tokens. seen: (N, R, P) bool, the keys that are not hidden.
    """

    rank: int
    image: Tensor
    seen: Tensor | None = None

    def apply(self, layer: int, logits: Tensor, own_mass: Tensor) -> Tensor:
        """Return logits (N, H, R, P), -inf where a key is hidden; `own_mass` as in Formula."""
        if layer == PRUNED_FROM - 1:
            total = torch.logaddexp(logits.logsumexp(dim=-1, keepdim=True), own_mass)
            probs, image = (logits - total).exp().mean(dim=1), self.image.to(logits.device)[:, None]
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
            logits = multiply_keys(query[:, :, -1:].float(), key.float()) * scaling  # (1, H, 1, L)
            if mask is not None:
                logits = logits.masked_fill(~mask[:, :, -1:], float("-inf"))
            self.pruning.apply(layer, logits, torch.full_like(logits[..., :1], float("-inf")))
        if layer >= PRUNED_FROM and self.pruning.seen is not None:
            causal = torch.ones(length, length, dtype=torch.bool, device=key.device).tril() if mask is None else mask
            mask = causal & self.pruning.seen.to(key.device)
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)[0]


@dataclass(slots=True)
class OwnRows:
    """Run attention in one forward pass over the prompts' own rows: what follows the image, or a decode step.

    Attributes:
        prefix, packing: what the rows read beside their own columns, and how they are laid out for it.
        scalings: per layer what is scaled, its weights (1 or N, H or 1, R', 1) for the last `arms` rows of each prompt.
        arms: R', how many of the last rows are scaled or captured. kept: how many are read in the last layer.
        layers: those that must scale, be it with a neutral weight. fired: those that did, in order.
        capture: keeps what the last `kept` rows attend to.
        memories: change probabilities of the last `arms` rows. pruning: of their image keys.
    """

    prefix: ImagePrefix
    packing: Packing
    scalings: Sequence[Sequence[Weighted]]
    arms: int
    kept: int
    layers: Sequence[int] = ()
    fired: list[int] = field(default_factory=list)
    capture: AttentionCapture | None = None
    memories: Sequence[Memory] = ()
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
        first = rows - self.kept if layer == len(self.scalings) - 1 else 0
        arms = max(rows - self.arms, first)  # where their rows begin
        parts = []
        if first < arms:
            plain = slice(first, arms)
            parts.append(self._attend_plain(layer, query[:, :, plain], key, value, ~mask[..., plain, :], scaling))
        if arms < rows:
            parts.append(self._attend_arms(layer, query[:, :, arms:], key, value, ~mask[..., arms:, :], scaling))
        out = (torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]).to(query.dtype).transpose(1, 2)
        return pad(out, (0, 0, 0, 0, first, 0)) if first else out

    def check_fired(self) -> None:
        """Check the count. Raises ModelError unless every selected layer was scaled exactly once."""
        if sorted(self.fired) != list(self.layers):
            raise ModelError(
                f"the intervention fired in layers {sorted(self.fired)} instead of once in each of "
                f"{list(self.layers)}: its attention bypasses transformers' interface{PER_ARM}"
            )

    def _attend_plain(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, unseen: Tensor, scaling: float
    ) -> Tensor:
        """Attend as the model does: (N, H, R, D) float32; `unseen` (N, 1, R, C) bool, of the own columns."""
        keys, values = self.prefix.layers[layer]
        hidden = None if self.prefix.hidden is None else self.prefix.hidden.to(keys.device)[:, None, None]
        kernel = find_kernel(keys.device.type, keys.dtype, keys.shape[-1], masked=hidden is not None)
        packed = kernel(self._pack(query, keys.shape[1]), keys, values, scaling, hidden)
        shared, shared_lse = (self._unpack(part, query.shape[2]).float() for part in (packed[0], packed[1][..., None]))
        own, own_lse = attend_plainly(query, key, value, scaling, unseen)  # every row sees a column
        return torch.lerp(own, shared, torch.sigmoid(shared_lse - own_lse[..., None]))

    def _attend_arms(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, unseen: Tensor, scaling: float
    ) -> Tensor:
        """Attend as the arms change it, in float32 whatever the model's dtype: (N, H, R', D); `unseen` as above."""
        keys, values = self.prefix.layers[layer]
        rows, columns, groups = query.shape[2], keys.shape[2], keys.shape[1]
        logits = multiply_keys(self._pack(query, groups).float(), keys.float()) * scaling
        shared = self._unpack(logits, rows)  # (N, H, R', P)
        if self.prefix.hidden is not None:
            shared = shared.masked_fill(self._by_prompt(self.prefix.hidden, keys.device), float("-inf"))
        own = (multiply_keys(query.float(), key.float()) * scaling).masked_fill(unseen, float("-inf"))
        if self.scalings[layer] or self.pruning is not None:
            own_mass = own.logsumexp(dim=-1, keepdim=True)  # (N, H, R', 1)
        if self.pruning is not None:
            shared = self.pruning.apply(layer, shared, own_mass)
        for formula, weight, index in self.scalings[layer]:
            scaled = self._by_prompt(self.prefix.scaled[index], keys.device)
            shared = formula(shared, weight.to(keys.device), scaled, own_mass)
        probs = torch.softmax(torch.cat([shared, own], dim=-1), dim=-1)
        for memory in self.memories:
            probs = memory.weigh(layer, probs)
        if self.capture is not None:
            self.capture.take(layer, probs[:, :, -self.kept :, :columns])
        seen = self._unpack(mix_values(self._pack(probs[..., :columns], groups), values.float()), rows)
        return seen + mix_values(probs[..., columns:], value.float())

    def _pack(self, rows: Tensor, groups: int) -> Tensor:
        """Rearrange (N, H, R, D) to (I, G, H/G * n * R, D)."""
        (heads, count, size), most = rows.shape[1:], self.packing.most
        placed = self.packing.spread(rows).reshape(-1, most, groups, heads // groups, count, size)
        return placed.permute(0, 2, 3, 1, 4, 5).flatten(2, 4)

    def _unpack(self, packed: Tensor, rows: int) -> Tensor:
        """Rearrange (I, G, H/G * n * R, D) to (N, H, R, D)."""
        placed = packed.reshape(*packed.shape[:2], -1, self.packing.most, rows, packed.shape[-1])
        return self.packing.gather(placed.permute(0, 3, 1, 2, 4, 5).flatten(2, 3))

    def _by_prompt(self, columns: Tensor, device: torch.device) -> Tensor:
        """Repeat what is known of each image's columns, (I, P), for its prompts: (N, 1, 1, P)."""
        return self.packing.gather(columns.to(device)[:, None].expand(-1, self.packing.most, -1))[:, None, None]


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


@contextmanager
def last_layer_trimmed(model: Any, width: int) -> Iterator[None]:
    """Restrict the last layer to the last `width` rows; of the others the cache needs only keys and values.

    Saves four fifths of a layer in a prefill; modules of other names read all rows. With `width` 0 logits are
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


@contextmanager
def watch_layers(model: Any, layers: Sequence[int], keep: Callable[[Tensor], Tensor]) -> Iterator[dict[int, Tensor]]:
    """Fill the mapping with what `keep` makes of the input (B, R, hidden size) of each of the decoder layers."""
    kept: dict[int, Tensor] = {}
    handles = []
    for index in layers:

        def look(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
            kept[index] = keep(args[0] if args else kwargs["hidden_states"])

        handles.append(model.get_decoder().layers[index].register_forward_pre_hook(look, with_kwargs=True))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def register() -> None:
    """Register `shared_attention` and its mask function with transformers."""
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
