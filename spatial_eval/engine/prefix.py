"""Read images and the text before them once, as keys and values for all prompts about them.

A prefix ends with an image's last token. Several pictures of a question are one image here, from the first token of the
first of them to the last of the last, with the text between them.

I images, P prefix columns, N prompts of L tokens, V vocabulary, G key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from spatial_eval.core.arms import Contrast, SecondPrompt, Sid, Vcd
from spatial_eval.core.errors import ModelError
from spatial_eval.engine.attention import (
    PER_ARM,
    ImagePrefix,
    PrefixRows,
    PrunedRows,
    Pruning,
    last_layer_trimmed,
    watch_layers,
)
from spatial_eval.engine.kv_cache import Graphs, GrowingKVCache
from spatial_eval.engine.request import (
    SEQUENCES,
    ConfigFields,
    Intervention,
    cache_keyword,
    check_text_before,
    decoder_shape,
    image_token_id,
    prepare_inputs,
    select_image,
)
from spatial_eval.engine.reweighting import Dimensions, sink_strengths

TEXT = "text"
# Which prefix: None = the image, a number = with noise, a second prompt = with its text before, TEXT = that alone,
# `rank N` = with pruned keys, per prompt.
Place = int | str | SecondPrompt | None


def compared_prefix(contrast: Contrast) -> Place:
    """Name the prefix that a contrast reads beside the image's; None = none."""
    if isinstance(contrast, Vcd):
        return contrast.noise
    if isinstance(contrast, Sid):
        return f"rank {contrast.rank}"
    return TEXT if contrast.against == "text" else contrast.second


@dataclass(slots=True)
class PrefixMemory:
    """Hold the prefixes that were read last.

    Attributes:
        names: tell them from all others. seconds: the tokens of those of second prompts, which `names` do not tell.
    """

    names: Hashable = None
    prefixes: dict[Place, ImagePrefix] = field(default_factory=dict)
    seconds: dict[SecondPrompt, list[list[int]]] = field(default_factory=dict)

    def recall(self, names: Hashable, seconds: Mapping[SecondPrompt, list[list[int]]]) -> dict[Place, ImagePrefix]:
        """Return those of `names` and of the tokens of `seconds`; others are dropped before new ones take memory."""
        if names != self.names:
            self.names, self.prefixes, self.seconds = names, {}, {}
        for second, tokens in seconds.items():
            if self.seconds.get(second, tokens) != tokens:
                self.prefixes.pop(second, None)
            self.seconds[second] = tokens
        return self.prefixes

    def clear(self) -> None:
        self.recall(None, {})


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Hold N prompts as the processor gives them, left padded, and where their images stand.

    Attributes:
        inputs: `input_ids` (N, L), ... and the tensors of I images. image: each prompt's, an index below I.
        starts, ends: each prompt's first column, and the one behind its last image token.
    """

    inputs: Mapping[str, Tensor]
    image: Sequence[int]
    starts: Sequence[int]
    ends: Sequence[int]

    @classmethod
    def locate(cls, inputs: Mapping[str, Tensor], image: Sequence[int], token: int) -> PromptBatch:
        """Find where images stand by their token's id. Raises ValueError or ModelError where a prompt cannot be cut."""
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        valid, shown = torch.ones_like(ids) if mask is None else mask, (ids == token).int()
        ends = ids.shape[1] - shown.flip(-1).argmax(dim=-1)
        facts = torch.stack([valid.argmax(dim=-1), ends, shown.any(dim=-1), valid[:, -1].bool()], dim=1).tolist()
        if not all(has_image for _, _, has_image, _ in facts):
            raise ValueError("the prompt holds no image token, so there is nothing to scale")
        if not all(last for *_, last in facts):
            raise ModelError("the last prompt position must be a token: pad on the left")
        if any(end == ids.shape[1] for _, end, _, _ in facts):
            raise ValueError(f"the prompt ends with its image, and text must stand behind it{PER_ARM}")
        return cls(inputs, image, [fact[0] for fact in facts], [fact[1] for fact in facts])

    @property
    def first(self) -> list[int]:
        """List the first prompt of each image."""
        return [self.image.index(one) for one in range(max(self.image) + 1)]

    @property
    def prefix_ids(self) -> list[list[int]]:
        """List each image's tokens and those before it, of the first prompt about it."""
        ids = self.inputs["input_ids"][self.first].tolist()
        return [row[self.starts[one] : self.ends[one]] for one, row in zip(self.first, ids, strict=True)]

    @property
    def columns(self) -> list[Sequence[int]]:
        """List each prompt's columns up to its last image token, and one more."""
        return [range(start, end + 1) for start, end in zip(self.starts, self.ends, strict=True)]

    def columns_without_image(self, token: int) -> list[Sequence[int]]:
        """List each prompt's columns before its image, and the first one behind it.

        All from the first to the last image token is left out. Raises ModelError where no text stands before an image.
        """
        firsts = (self.inputs["input_ids"] == token).int().argmax(dim=-1).tolist()
        columns: list[Sequence[int]] = [
            [*range(start, at), end] for at, start, end in zip(firsts, self.starts, self.ends, strict=True)
        ]
        if min(map(len, columns)) == 1:
            raise ModelError(f"no token stands before the image, so no prompt can be read without it{PER_ARM}")
        return columns

    def check_window(self, text: Any, max_new_tokens: int) -> None:
        """Raise ValueError where prompt and answer exceed a sliding window: own rows attend to their whole prompt."""
        fields, positions = ConfigFields.read(text), self.inputs["input_ids"].shape[1] - min(self.starts)
        sliding = "sliding_attention" in (fields.layer_types or ("sliding_attention",))
        if sliding and fields.sliding_window is not None and positions + max_new_tokens > fields.sliding_window:
            raise ValueError(
                f"{positions + max_new_tokens} positions of prompt and answer exceed the sliding window of "
                f"{fields.sliding_window}{PER_ARM}"
            )

    def select_texts(self, rows: slice, counts: Sequence[int]) -> dict[str, Tensor]:
        """Select whole prompts without pixels: what positions and logits processors depend on.

        `counts`: how many pictures each image is; () = one.
        """
        ends = list(accumulate(counts))
        shown = self.image[rows]
        pictures = [place for one in shown for place in range(ends[one] - counts[one], ends[one])] if counts else shown
        selected = {}
        for name, tensor in self.inputs.items():
            if name in SEQUENCES:
                selected[name] = tensor[rows]
            elif not tensor.is_floating_point():  # a row per picture, or of some families one per image
                selected[name] = take(tensor, pictures if ends and len(tensor) == ends[-1] else shown)
        return selected


def take(tensor: Tensor, index: Sequence[int], dim: int = 0) -> Tensor:
    """Select along one dimension by numbers of the host."""
    return tensor.index_select(dim, torch.tensor(index, device=tensor.device))


@dataclass(frozen=True, slots=True)
class PrefixReader:
    """Read prefixes of a batch of prompts.

    Attributes:
        prompts: whose images they are. asked: which keys arms scale. dimensions: of sinks, distinct.
        graphs: with it the image's prefix, and none of the others, gets a shape that a replayed step can read.
    """

    model: Any
    prompts: PromptBatch
    asked: Intervention
    dimensions: Sequence[Dimensions]
    graphs: Graphs | None

    def complete(self, prefixes: dict[Place, ImagePrefix], seconds: Mapping[SecondPrompt, PromptBatch]) -> None:
        """Read what arms need and `prefixes` lacks. Raises ModelError where the model is not causal there."""
        prompts, inputs = self.prompts, self.prompts.inputs
        if None not in prefixes:
            prefixes[None] = self._read(prompts, prompts.columns, self.graphs)
        for step in self.asked.noised.keys() - prefixes.keys():
            noised = replace(prompts, inputs={**inputs, "pixel_values": self.asked.noised[step]})
            prefixes[step] = self._read(noised, prompts.columns)
        for second, own in seconds.items():
            if second not in prefixes:
                same = own.prefix_ids == prompts.prefix_ids
                prefixes[second] = prefixes[None] if same else self._read(own, own.columns)
        if TEXT not in prefixes and any(arm.against == "text" for arm in self.asked.arms):
            texts = replace(prompts, inputs={name: inputs[name] for name in SEQUENCES if name in inputs})
            columns = prompts.columns_without_image(image_token_id(self.model.config))
            prefixes[TEXT] = replace(self, asked=Intervention(()))._read(texts, columns)

    def _read(
        self, prompts: PromptBatch, columns: Sequence[Sequence[int]], graphs: Graphs | None = None
    ) -> ImagePrefix:
        """Prefill columns of the first prompt of each image, the last of which is not kept.

        Rows never attend to columns behind them, so right padding needs no mask. The column that is not kept shows
        whether the model keeps to that.
        """
        depth, token = decoder_shape(self.model)[0], image_token_id(self.model.config)
        inputs, lengths = dict(prompts.inputs), [len(columns[row]) - 1 for row in prompts.first]
        for name in SEQUENCES:
            if name in inputs:
                rows = [take(inputs[name][row], columns[row]) for row in prompts.first]
                inputs[name] = pad_sequence(rows, batch_first=True)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        prepared = prepare_inputs(self.model, inputs)
        ids, device, most = prepared.ids, prepared.ids.device, max(lengths)  # (I, P + 1)
        cache, width = GrowingKVCache(depth, 0), most
        if graphs is not None:
            cache, width = graphs.open_prefix(self.model, *ids.shape)
        given = prepared.given | {"attention_mask": None, "position_ids": prepared.positions}
        watched = range(depth if self.dimensions else 0)
        with (
            last_layer_trimmed(self.model, 0),
            watch_layers(self.model, watched, partial(sink_strengths, known=self.dimensions)) as strengths,
        ):
            given[cache_keyword(self.model)] = cache
            read = PrefixRows(ids != token, depth)
            self.model(input_ids=ids, use_cache=True, logits_to_keep=1, rows=read, **given)
        check_written(cache, ids.shape[1])
        shown = pad(ids[:, :most] == token, (0, width - most))
        hidden = torch.arange(width, device=device) >= torch.tensor(lengths, device=device)[:, None]
        image, span = shown & ~hidden, self.asked.span
        # Separators between tiles are text inside the image's span.
        scaled = {"": (shown.cumsum(dim=-1) > 0) & ~hidden if span else shown}
        for index in self.asked.image_indices:
            parts = [self.asked.parts[row] for row in prompts.first]
            scaled[index] = select_image(image, parts, index, span=span)
        ragged = graphs is not None or min(lengths) < most
        kept = {layer: pad(strength[..., :most], (0, width - most)) for layer, strength in strengths.items()}
        return ImagePrefix(cache.show(width), scaled, image, hidden if ragged else None, kept)


@dataclass(frozen=True, slots=True)
class PrunedReading:
    """Hold a whole prompt that was read with pruned image keys.

    Attributes:
        layers: per decoder layer keys and values (1, G, L, D). image: (L,) bool. logits: (V,). rank: of the image keys.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    image: Tensor
    logits: Tensor
    rank: int

    @classmethod
    def read(cls, model: Any, inputs: Mapping[str, Tensor], rank: int) -> PrunedReading:
        """Prefill one whole prompt without padding. Raises ModelError where a pruned row would see no key at all."""
        prepared = prepare_inputs(model, inputs)
        image, depth = prepared.ids == image_token_id(model.config), decoder_shape(model)[0]
        check_text_before(image)
        cache, rows = GrowingKVCache(depth, 0), PrunedRows(Pruning(rank, image))
        given = prepared.given | {"attention_mask": None, "position_ids": prepared.positions}
        given[cache_keyword(model)] = cache
        with last_layer_trimmed(model, 1):
            out = model(input_ids=prepared.ids, use_cache=True, logits_to_keep=1, rows=rows, **given)
        check_written(cache, image.shape[1])
        return cls(cache.show(image.shape[1]), image[0], out.logits[0, -1].float(), rank)


def check_written(cache: GrowingKVCache, columns: int) -> None:
    """Raise ModelError where the model wrote elsewhere, for example into its own cache."""
    if cache.get_seq_length() != columns:
        raise ModelError(
            f"the model wrote {cache.get_seq_length()} of {columns} positions into the KV cache that it was "
            f"given{PER_ARM}"
        )
