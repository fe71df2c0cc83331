"""Change attention after its softmax, with what was kept of earlier tokens: VAR and SPARC.

Each kind is a memory: it learns which rows come, gets each layer's probabilities, and changes those of its own arms.

N prompts, n that still decode with R rows each, A arms, P prefix columns, C own columns, H heads, D hidden size.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from spatial_eval.core.arms import Arm, Sparc, Var
from spatial_eval.core.layers import layer_indices
from spatial_eval.engine.request import Intervention

Dimensions = tuple[int, ...]  # of the hidden state, in which sinks are large


@dataclass(slots=True)
class Memory:
    """Hold what a kind of attention knows of prompts and arms, for the rows of one forward pass after the other.

    Attributes:
        image: (N, P) bool, the image's columns.
        heads: by layer (A, H) bool, the heads that each arm changes there; none of arms of other kinds.
        prompt: (n,) which prompts the rows are of. arm: (n, R) which arms.
        decoding: whether the rows are those of generated tokens.
    """

    image: Tensor
    heads: Mapping[int, Tensor]
    prompt: Tensor
    arm: Tensor
    decoding: bool = field(default=False, kw_only=True)

    def turn(self, prompt: Tensor, arm: Tensor) -> None:
        """Expect the rows of the next decode step."""
        self.prompt, self.arm, self.decoding = prompt, arm, True

    def weigh(self, layer: int, probs: Tensor) -> Tensor:
        """Change (n, H, R, P + C) float32 probabilities, the prefix's columns first."""
        raise NotImplementedError

    def _chosen(self, layer: int) -> Tensor | None:
        """Return (n, H, R, 1) bool, the heads that the rows' arms change; None where none does."""
        heads = self.heads.get(layer)
        return None if heads is None else heads.to(self.arm.device)[self.arm].transpose(1, 2)[..., None]

    def _knob(self, values: Sequence[float]) -> Tensor:
        """Return (n, 1, R, 1), a number of each row's arm."""
        return torch.tensor(values, device=self.arm.device)[self.arm][:, None, :, None]


@dataclass(slots=True)
class SinkMemory(Memory):
    """Move attention from sinks to other image tokens in the heads that look at the image (VAR, arXiv 2503.03321).

    Attributes:
        arms: by number, any for arms of other kinds. dimensions: of each arm's sinks.
        prefix: by layer (dimensions, N, P) strength as sinks of the prefix columns.
        own: by layer (dimensions, n, C) that of the own columns: of each row of the prompts while these are read,
            then by prompt.
    """

    arms: Sequence[Var]
    dimensions: Sequence[Dimensions]
    prefix: Mapping[int, Tensor]
    own: dict[int, Tensor] = field(default_factory=dict)

    @property
    def known(self) -> list[Dimensions]:
        return sorted(set(self.dimensions))

    def weigh(self, layer: int, probs: Tensor) -> Tensor:
        if (chosen := self._chosen(layer)) is None:
            return probs
        device = probs.device
        self.prompt, self.arm = self.prompt.to(device), self.arm.to(device)
        own = self.own[layer].to(device)
        own = own[:, self.prompt] if self.decoding else own
        strengths = torch.cat([self.prefix[layer].to(device)[:, self.prompt], own], dim=-1)  # (dimensions, n, P + C)
        places = torch.tensor([self.known.index(one) for one in self.dimensions], device=device)[self.arm]
        strength = strengths[places, torch.arange(len(places), device=device)[:, None]]
        width = probs.shape[-1]
        sinks = pad(
            strength[:, None] > self._knob([arm.sink_min for arm in self.arms]), (0, width - strength.shape[-1])
        )  # (n, 1, R, P + C)
        image = pad(self.image.to(device)[self.prompt], (0, width - self.image.shape[1]))[:, None, None]
        on_image, moved = _sum(probs, image), self._knob([arm.moved for arm in self.arms])
        on_sinks = _sum(probs, image & sinks)
        share = on_sinks / (on_image + 1e-6 * image.sum(dim=-1, keepdim=True))
        nonsink_min = self._knob([arm.nonsink_min for arm in self.arms])
        image_min = self._knob([arm.image_min for arm in self.arms])
        chosen = chosen & (share <= 1 - nonsink_min) & (on_image >= image_min) & (image & sinks).any(-1, keepdim=True)
        others = _sum(probs, image & ~sinks)
        chosen = chosen & (others > 0)
        raised = 1 + moved * _sum(probs, sinks) / others.where(others > 0, 1.0)
        return torch.where(chosen, probs * torch.where(sinks, 1 - moved, raised.where(image, 1.0)), probs)

    def lay_out(self, copies: int, columns: int) -> None:
        """Sort own columns by prompt once all are read: copies (dimensions, copies * N, S) behind `columns` others."""
        for layer, strength in self.own.items():
            by_copy = strength.view(len(strength), copies, -1, strength.shape[-1])
            self.own[layer] = pad(by_copy.transpose(1, 2).flatten(2), (columns, 0))


@dataclass(slots=True)
class GainMemory(Memory):
    """Raise the values of image tokens whose attention rises from step to step (SPARC, arXiv 2502.01419).

    Attributes:
        arms: by number, any for arms of other kinds. reads: by arm the layer that is compared, -1 for those.
        usual: (N, A, P) smoothed attention on the image there. times: (N, A, P) how often each token was selected.
        selected: (N, A, P) bool, in the last step: what the next one is to count.
        row: which of a prompt's rows is the baseline's last one while prompts are read.
    """

    arms: Sequence[Sparc]
    reads: Sequence[int]
    usual: Tensor
    times: Tensor
    selected: Tensor
    row: int = -1

    def turn(self, prompt: Tensor, arm: Tensor) -> None:
        Memory.turn(self, prompt, arm)
        self.times = self.times + self.selected

    def weigh(self, layer: int, probs: Tensor) -> Tensor:
        device, columns = probs.device, self.image.shape[1]
        if layer in self.reads:
            self._compare(layer, probs[..., :columns].mean(dim=1).to(self.usual.device))
        chosen = self._chosen(layer) if self.decoding else None
        if chosen is None:
            return probs
        times = self.times[self.prompt[:, None], self.arm][:, None]  # (n, 1, R, P)
        gains = (self._knob([arm.gain for arm in self.arms]) ** times).where(chosen, 1.0)
        return probs * pad(gains, (0, probs.shape[-1] - columns), value=1.0).to(device)

    def _compare(self, layer: int, seen: Tensor) -> None:
        """Compare (n, R, P) attention with the usual, which it then moves; at prefill it is the usual."""
        if not self.decoding:
            reads = torch.tensor(self.reads, device=seen.device)[:, None] == layer
            self.usual = torch.where(reads, seen[:, [self.row]], self.usual)
            return
        rows = (self.prompt[:, None].expand_as(self.arm), self.arm)
        usual, here = self.usual[rows], torch.tensor(self.reads, device=seen.device)[self.arm][..., None] == layer
        least = self._knob([arm.rise_min for arm in self.arms])[:, 0]
        pace = self._knob([arm.pace for arm in self.arms])[:, 0]
        rises = ((seen - usual) / usual >= least) & self.image[self.prompt][:, None]
        self.selected[rows] = torch.where(here, rises, self.selected[rows])
        self.usual[rows] = torch.where(here, pace * seen + (1 - pace) * usual, usual)


def open_gains(asked: Intervention, image: Tensor, shape: tuple[int, int], rows: Sequence[int]) -> GainMemory | None:
    """Open the memory of SPARC's arms before prompts are read; None where there is none.

    Args:
        image: (N, P). shape: number of layers, and of heads. rows: by arm which of the rows that are read it continues.
    """
    effective = [arm.attention.effective for arm in asked.arms]
    changes = {i: change for i, change in enumerate(effective) if isinstance(change, Sparc)}
    if not changes:
        return None
    arms = [changes.get(i, Sparc()) for i in range(len(asked.arms))]
    reads = [layer_indices(arm.read_layer, shape[0])[0] if i in changes else -1 for i, arm in enumerate(arms)]
    heads, prompt = _heads_of(asked, changes, shape, image.device), torch.arange(len(image), device=image.device)
    times = image.new_zeros(len(image), len(arms), image.shape[1], dtype=torch.long)
    given = (image, heads, prompt, prompt[:, None] & 0)
    return GainMemory(*given, arms, reads, times.float(), times, times > 0, rows[min(changes)])


def open_sinks(
    asked: Intervention,
    image: Tensor,
    shape: tuple[int, int],
    dimensions: Mapping[Arm, Dimensions],
    prefix: Mapping[int, Tensor],
    arm: Tensor,
) -> SinkMemory | None:
    """Open the memory of VAR's arms before copies of prompts are read; None where there is none.

    Args:
        image, shape: as of `open_gains`. dimensions: by arm. prefix: as of SinkMemory. arm: (copies * N, 1).
    """
    effective = [one.attention.effective for one in asked.arms]
    changes = {i: change for i, change in enumerate(effective) if isinstance(change, Var)}
    if not changes:
        return None
    arms = [changes.get(i, Var()) for i in range(len(asked.arms))]
    known = [dimensions.get(one, dimensions[asked.arms[min(changes)]]) for one in asked.arms]
    heads = _heads_of(asked, changes, shape, image.device)
    prompt = torch.arange(len(arm), device=image.device) % len(image)
    return SinkMemory(image, heads, prompt, arm, arms, known, prefix)


def _heads_of(
    asked: Intervention, arms: Container[int], shape: tuple[int, int], device: torch.device
) -> dict[int, Tensor]:
    """Find by layer (A, H) bool the heads that some of the arms change, by number."""
    chosen = [asked.scaled_heads(arm, *shape) if i in arms else {} for i, arm in enumerate(asked.arms)]
    return layer_heads(chosen, shape[1], device)


def layer_heads(chosen: Sequence[Mapping[int, Sequence[int]]], heads: int, device: torch.device) -> dict[int, Tensor]:
    """Turn each arm's heads by layer into (A, heads) bool by layer."""
    by_layer = {layer: torch.zeros(len(chosen), heads, dtype=torch.bool) for arm in chosen for layer in arm}
    for number, arm in enumerate(chosen):
        for layer, selected in arm.items():
            by_layer[layer][number, list(selected)] = True
    return {layer: mask.to(device) for layer, mask in by_layer.items()}


def sink_strengths(entering: Tensor, known: Sequence[Dimensions]) -> Tensor:
    """Compute (dimensions, n, R), how strong a sink each token is: its largest |x| there over its root mean square."""
    whole = entering.float()
    typical = (whole.square().mean(dim=-1) + 1e-6).sqrt()
    return torch.stack([whole[..., list(some)].abs().amax(dim=-1) / typical for some in known])


def _sum(probs: Tensor, columns: Tensor) -> Tensor:
    return torch.where(columns, probs, 0.0).sum(dim=-1, keepdim=True)
