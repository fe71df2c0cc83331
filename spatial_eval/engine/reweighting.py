"""Change attention after its softmax, with what was kept of earlier tokens: VAR and SPARC.

Arms of one such kind decode by themselves, since their rows need the probabilities of all columns at once. Their class
is a memory: it is told which rows come, and given each layer's probabilities.

n prompts (per arm of scope `text`) with R rows each, A arms, P prefix columns, C own columns, H heads, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from spatial_eval.core.arms import Arm, Sparc, Var
from spatial_eval.core.layers import layer_indices

Dimensions = tuple[int, ...]  # of the hidden state, in which sinks are large


@dataclass(slots=True)
class Memory:
    """Hold what a kind of attention knows of prompts and arms, for the rows of one forward pass after the other.

    Attributes:
        image, hidden: (N, P) bool by prompt of the prefill, the image's columns and those beyond the prefix's end.
        heads: by layer (A, H) bool, the heads that each arm changes there.
        prompt: (n,) which prompts the rows are of. arm: (n, R) which arms.
    """

    image: Tensor
    hidden: Tensor
    heads: Mapping[int, Tensor]
    prompt: Tensor
    arm: Tensor

    def turn(self, prompt: Tensor, arm: Tensor) -> None:
        """Expect the rows of the next decode step."""
        self.prompt, self.arm = prompt, arm

    def weigh(self, layer: int, probs: Tensor) -> Tensor:
        """Return what (n, H, R, P + C) float32 probabilities become, the prefix's columns first."""
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
        arms: by number. dimensions: of each arm's sinks.
        prefix: by layer (dimensions, N, P) strength as sinks of the prefix columns.
        own: by layer (dimensions, N, S) that of the prompts' own rows; filled while these are read.
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
        places = torch.tensor([self.known.index(one) for one in self.dimensions], device=device)[self.arm[:, 0]]
        strength = torch.cat([self.prefix[layer].to(device), self.own[layer].to(device)], dim=-1)[places, self.prompt]
        width = probs.shape[-1]
        sinks = pad(
            strength[:, None, None] > self._knob([arm.sink_min for arm in self.arms])[:, :, :1],
            (0, width - strength.shape[-1]),
        )  # (n, 1, 1, P + C)
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


@dataclass(slots=True)
class GainMemory(Memory):
    """Raise the values of image tokens whose attention rises from step to step (SPARC, arXiv 2502.01419).

    Attributes:
        arms: by number. reads: by arm the layer that is looked at.
        usual: (N, A, P) smoothed attention on the image there. times: (N, A, P) how often each token was selected.
        selected: (N, A, P) bool, in the last step: what the next one is to count.
    """

    arms: Sequence[Sparc]
    reads: Sequence[int]
    usual: Tensor
    times: Tensor
    selected: Tensor
    decoding: bool = False

    def turn(self, prompt: Tensor, arm: Tensor) -> None:
        Memory.turn(self, prompt, arm)
        self.times, self.decoding = self.times + self.selected, True

    def weigh(self, layer: int, probs: Tensor) -> Tensor:
        device, columns = probs.device, self.image.shape[1]
        if layer in self.reads:
            self._look(layer, probs[..., :columns].mean(dim=1).to(self.usual.device))
        chosen = self._chosen(layer) if self.decoding else None
        if chosen is None:
            return probs
        times = self.times[self.prompt[:, None], self.arm][:, None]  # (n, 1, R, P)
        gains = (self._knob([arm.gain for arm in self.arms]) ** times).where(chosen, 1.0)
        return probs * pad(gains, (0, probs.shape[-1] - columns), value=1.0).to(device)

    def _look(self, layer: int, seen: Tensor) -> None:
        """Compare (n, R, P) attention with the usual, which it then moves; at prefill it is the usual."""
        if not self.decoding:
            reads = torch.tensor(self.reads, device=seen.device)[:, None] == layer
            self.usual = torch.where(reads, seen[:, -1:], self.usual)
            return
        rows = (self.prompt[:, None].expand_as(self.arm), self.arm)
        usual, here = self.usual[rows], torch.tensor(self.reads, device=seen.device)[self.arm][..., None] == layer
        least = self._knob([arm.rise_min for arm in self.arms])[:, 0]
        pace = self._knob([arm.pace for arm in self.arms])[:, 0]
        rises = ((seen - usual) / usual >= least) & self.image[self.prompt][:, None]
        self.selected[rows] = torch.where(here, rises, self.selected[rows])
        self.usual[rows] = torch.where(here, pace * seen + (1 - pace) * usual, usual)


def open_memory(
    arms: Mapping[Arm, Dimensions],
    *,
    heads: Mapping[int, Tensor],
    image: Tensor,
    hidden: Tensor,
    arm: Tensor,
    depth: int,
    prefix: Mapping[int, Tensor],
) -> Memory:
    """Open the memory of arms of one kind, before their prompts are read; fields as in its class."""
    changes = [one.attention for one in arms]
    given = (image, hidden, heads, torch.arange(len(image), device=image.device), arm)
    gains = [change for change in changes if isinstance(change, Sparc)]
    if gains:
        reads = [layer_indices(change.read_layer, depth)[0] for change in gains]
        times = image.new_zeros(len(image), len(gains), image.shape[1], dtype=torch.long)
        return GainMemory(*given, gains, reads, times.float(), times, times > 0)
    return SinkMemory(*given, [change for change in changes if isinstance(change, Var)], list(arms.values()), prefix)


def layer_heads(chosen: Sequence[Mapping[int, Sequence[int]]], heads: int, device: torch.device) -> dict[int, Tensor]:
    """Turn each arm's heads by layer into (A, heads) bool by layer."""
    found = {layer: torch.zeros(len(chosen), heads, dtype=torch.bool) for arm in chosen for layer in arm}
    for number, arm in enumerate(chosen):
        for layer, some in arm.items():
            found[layer][number, list(some)] = True
    return {layer: where.to(device) for layer, where in found.items()}


def sink_strengths(entering: Tensor, known: Sequence[Dimensions]) -> Tensor:
    """Compute (dimensions, n, R), how strong a sink each token is: its largest |x| there over its root mean square."""
    whole = entering.float()
    typical = (whole.square().mean(dim=-1) + 1e-6).sqrt()
    return torch.stack([whole[..., list(some)].abs().amax(dim=-1) / typical for some in known])


def _sum(probs: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, probs, 0.0).sum(dim=-1, keepdim=True)
