"""Answer questions with a loaded model, the only interface to torch."""

from __future__ import annotations

import logging
import re
import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakKeyDictionary

import torch

from spatial_eval.core import requirements
from spatial_eval.core.arms import Arm, SecondPrompt
from spatial_eval.core.errors import ModelError, SpatialEvalError
from spatial_eval.core.hashing import digest_file
from spatial_eval.core.plan import picture_name
from spatial_eval.core.types import Benchmark, Failure, Generation, Record, Sample, Work
from spatial_eval.core.validate import field_values
from spatial_eval.engine import decode as engine
from spatial_eval.engine import reference
from spatial_eval.engine.attention import PER_ARM
from spatial_eval.engine.contrastive import add_noise
from spatial_eval.engine.kv_cache import Graphs
from spatial_eval.engine.prefix import PrefixMemory
from spatial_eval.engine.request import SEQUENCES, Attended, Decoded, Intervention, read_first_tokens
from spatial_eval.models import selfcheck
from spatial_eval.models.batches import Inputs, bucket_by_length, collate, cut_batches, drop_padding, prefix_tokens
from spatial_eval.models.encoder import BadQuestion, Encoded, Encoder
from spatial_eval.models.loading import load_model_once
from spatial_eval.store.attention import Capture

if TYPE_CHECKING:
    from spatial_eval.models.spec import CheckpointSpec

log = logging.getLogger(__name__)

KERNELS = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "math": "MATH"}
EARLY = 8  # pictures whose questions must all fail with one error before the model or installation is blamed
GROW_BELOW = 0.4  # share of the device's memory that a batch may have taken for the next one to be twice as large


@dataclass(frozen=True, slots=True)
class _Ready:
    """Hold a question whose image and prompt are tensors on the CPU. Questions of one `prefix` can share it."""

    sample: Sample
    arms: tuple[Arm, ...]
    prompt: str
    inputs: Inputs
    seconds: Mapping[SecondPrompt, Encoded]
    prefix: Hashable


# The questions of a batch about each picture, and what they are encoded to.
_Pending = list[tuple[list[Work], Future[list[Encoded | Exception]]]]


# Passes over the same pictures, a dataset in several templates, run side by side and read each image once. What one
# of them remembers is to the bit what another would read: the same images in the same batch.
_memories: WeakKeyDictionary[Any, PrefixMemory] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class _Held:
    """Hold one question's failures until their cause is known; `cause` without numbers."""

    cause: str
    picture: str
    records: list[Record]


class LoadedModel:
    """Run a model on its device with its processor. Not thread-safe."""

    def __init__(self, model: CheckpointSpec, dataset: Benchmark, max_new_tokens: int) -> None:
        self._cfg = model
        self._max_new_tokens = max_new_tokens
        # Before the weights: what its processor lacks costs no minutes
        self._encoder = Encoder(model, dataset)
        self._shown = (dataset.distort, dataset.orientation)  # beside its file, what a picture's pixels depend on
        self._vlm = load_model_once(model)
        self._images = self._together = sys.maxsize  # that fit into memory: images, and prompts that decode together
        self._rows = model.batching.rows  # of a batch; grows under batch_size=auto
        self._grows = model.batch_size == "auto"
        self._unchecked = set() if model.selfcheck == "never" else {"first batch", "shared image"}  # to be compared
        self.device = _device_label(self._vlm.device)
        self._shared = model.decoding == "shared"
        automatic = model.device_map is None and self._vlm.device.type == "cuda"
        replayed = automatic if model.graphs == "auto" else model.graphs
        self._graphs = Graphs(required=model.graphs is True) if replayed else None
        self._memory = _memories.setdefault(self._vlm, PrefixMemory()) if model.shares_images else None
        self._held: list[_Held] = []
        self._works = False  # a question was answered, or questions fail for several reasons
        self._capture = "none"
        self._sink: Callable[[Capture], None] = lambda _: None
        reason = engine.reason_for_per_arm(self._vlm)
        if reason and self._shared:
            log.warning("%s: %s; decoding one arm at a time (as model.decoding=per_arm)", model.name, reason)
            self._shared = False

    def watch(self, level: str, sink: Callable[[Capture], None]) -> None:
        """Give `sink` every question's capture before its records are yielded."""
        self._capture, self._sink = level, sink

    def answer(self, blocks: Sequence[Sequence[Work]]) -> Iterator[list[Record]]:
        """Yield batches of records in the order of the blocks; a question that fails alone is a Failure.

        Raises ModelError, before the first record, where all questions on the first EARLY pictures (or on all, where
        there are fewer, but at least two) fail with one error. An error in a question's own text or image, or out of
        memory, is always the failure of that question.
        """
        rows = self._cfg.batching.rows
        with ThreadPoolExecutor(self._cfg.workers, thread_name_prefix="images") as pool:
            queue: deque[_Pending] = deque()
            for batch in (batch for block in blocks for batch in cut_batches(block)):
                queue.append(self._prepare(batch, pool))
                if len(queue) > self._cfg.prefetch * (self._rows // rows):
                    yield from self._release(self._answer(self._next_batch(queue)))
            while queue:
                yield from self._release(self._answer(self._next_batch(queue)))
        if self._count_failed_pictures() > 1:
            self._reject_model()
        yield from self._release([], over=True)

    def _release(self, records: list[Record], *, over: bool = False) -> Iterator[list[Record]]:
        """Yield what may be stored of a batch's records and of the failures that were held back."""
        causes = {held.cause for held in self._held}
        self._works = self._works or len(causes) > 1 or any(isinstance(record, Generation) for record in records)
        if self._works or over:
            records = [*(failure for held in self._held for failure in held.records), *records]
            self._held.clear()
        elif self._count_failed_pictures() >= EARLY:
            self._reject_model()
        if records:
            yield records

    def _count_failed_pictures(self) -> int:
        """Count the pictures of the failures held back: one picture may be to blame for all questions about it."""
        return len({held.picture for held in self._held})

    def _reject_model(self) -> NoReturn:
        [failure, *_] = self._held[0].records
        assert isinstance(failure, Failure)
        reasons = [failure.error, *requirements.list_newer()]
        if self._shared and PER_ARM not in failure.error:
            reasons.append(
                "`python -m spatial_eval doctor` looks at what is installed, model.decoding=per_arm may still do"
            )
        raise ModelError(
            f"{self._cfg.name}: all of the first {len(self._held)} questions failed with one error, so it is no "
            f"question's fault: {'; '.join(reasons)}"
        )

    def _fail(self, sample: Sample, arms: tuple[Arm, ...], error: BaseException) -> list[Record]:
        """Return a question's failures, or nothing where they are held back."""
        failures = _build_failures(sample, arms, error)
        if self._works or _is_out_of_memory(error):
            return failures
        line = next(iter(str(error).splitlines()), "")
        cause = f"{type(error).__name__}: {re.sub(r'[0-9]+', '#', line)}"
        self._held.append(_Held(cause, picture_name(sample), failures))
        return []

    def _prepare(self, batch: Sequence[Work], pool: Executor) -> _Pending:
        """Start to encode a batch, the questions about one picture together."""
        seconds = _list_seconds(batch[0][1])
        pictures: dict[str, list[Work]] = {}
        for item in batch:
            pictures.setdefault(picture_name(item[0]), []).append(item)
        return [
            (items, pool.submit(self._encoder.encode_picture, [sample for sample, _ in items], seconds))
            for items in pictures.values()
        ]

    def _next_batch(self, queue: deque[_Pending]) -> _Pending:
        """Return the next batch; under batch_size=auto with those behind it that fit and have the same arms."""
        batch = queue.popleft()
        while queue and self._rows > self._cfg.batching.rows:
            both = [*batch, *queue[0]]
            if _arms(queue[0]) != _arms(batch) or sum(len(items) for items, _ in both) > self._rows:
                break
            batch = [*batch, *queue.popleft()]
        return batch

    def _answer(self, batch: _Pending) -> list[Record]:
        records: list[Record] = []
        alike: dict[tuple[Arm, ...], dict[Hashable, list[_Ready]]] = {}
        for items, future in batch:
            for (sample, arms), encoded in zip(items, future.result(), strict=True):
                if isinstance(encoded, Exception):
                    records += self._fail_encoding(sample, arms, encoded)
                    continue
                errors = {second: own for second, own in encoded.seconds.items() if isinstance(own, Exception)}
                for second, error in errors.items():
                    reading = tuple(arm for arm in arms if arm.contrast and arm.contrast.second == second)
                    records += self._fail_encoding(sample, reading, error)
                if left := tuple(arm for arm in arms if not (arm.contrast and arm.contrast.second in errors)):
                    seconds = {second: own for second, own in encoded.seconds.items() if isinstance(own, Encoded)}
                    tokens = prefix_tokens(encoded.inputs, self._encoder.image_token)
                    alone = "" if self._cfg.shares_images else sample.id
                    prefix = (picture_name(sample), *self._shown, alone, tokens)
                    ready = _Ready(sample, left, encoded.prompt, encoded.inputs, seconds, prefix)
                    alike.setdefault(left, {}).setdefault(prefix, []).append(ready)
        for groups in alike.values():
            members = list(groups.values())
            lengths = [len(prefix_tokens(group[0].inputs, self._encoder.image_token)) for group in members]
            for bucket in bucket_by_length(lengths):
                records += self._decode_or_halve([members[index] for index in sorted(bucket)])
        return records

    def _fail_encoding(self, sample: Sample, arms: tuple[Arm, ...], error: Exception) -> list[Record]:
        """Return the failures of a question that could not be encoded, unless they are held back."""
        own = isinstance(error, BadQuestion)
        cause = (error.__cause__ or error) if own else error
        if not isinstance(cause, Exception) or _stops_run(cause):
            raise cause
        return _build_failures(sample, arms, cause) if own else self._fail(sample, arms, cause)

    def _decode_or_halve(self, groups: list[list[_Ready]]) -> list[Record]:
        """Answer groups of questions that share an image each. A failing batch is halved until single questions fail.

        Where memory is short, by images first, then by decoding fewer questions at a time over one image.
        """
        records: list[Record] = []
        pending = [groups]
        while pending:
            groups = pending.pop()
            if len(groups) > self._images:
                pending += [groups[self._images :], groups[: self._images]]
                continue
            try:
                records += self._decode(groups)
                self._grow()
                continue
            except (RuntimeError, ValueError, TypeError, LookupError, MemoryError, OSError) as caught:
                if _stops_run(caught):
                    raise
                error = caught.with_traceback(None)  # its frames would keep the batch's tensors alive
            items = [item for group in groups for item in group]
            short = _is_out_of_memory(error)
            if short:
                self._grows, self._rows = False, self._cfg.batching.rows
                if self._memory is not None:
                    self._memory.clear()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            if len(items) == 1:
                records += self._fail(items[0].sample, items[0].arms, error)
            elif len(groups) > 1:
                middle = (len(groups) + 1) // 2
                pending += [groups[middle:], groups[:middle]]
                if short:
                    self._images = middle
                    batch = f"{len(items)} questions on {len(groups)} images in a batch"
                    log.warning("out of memory with %s; going on with %d images", batch, middle)
            elif short and self._shared and self._together > 1:
                self._together = (min(self._together, len(items)) + 1) // 2
                pending.append(groups)
                log.warning(
                    "out of memory with %d questions on one image; decoding %d at a time", len(items), self._together
                )
            else:
                middle = (len(items) + 1) // 2
                pending += [[items[middle:]], [items[:middle]]]
        return records

    def _grow(self) -> None:
        """Under batch_size=auto, make batches twice as large while memory allows it."""
        if self._grows and _memory_share(self._vlm.device) < GROW_BELOW:
            self._rows *= 2
            log.info("%s: memory allows batches of %d questions", self._cfg.name, self._rows)

    def _decode(self, groups: list[list[_Ready]]) -> list[Record]:
        numbered = [(number, item) for number, group in enumerate(groups) for item in group]
        buckets = bucket_by_length([item.inputs["input_ids"].shape[1] for _, item in numbered])
        size = self._together
        chunks = [bucket[i : i + size] for bucket in map(sorted, buckets) for i in range(0, len(bucket), size)]
        numbered = [numbered[index] for chunk in chunks for index in chunk]
        items, image = [item for _, item in numbered], [number for number, _ in numbered]
        once = [image.index(number) for number in range(len(groups))]
        with _kernel(self._cfg.attn):
            if self._shared:
                inputs, intervention = self._collate(items, self._capture, once)
                decoded = engine.decode_arms(
                    self._vlm,
                    inputs,
                    intervention=intervention,
                    max_new_tokens=self._max_new_tokens,
                    image=image,
                    counts=[len(group[0].sample.images) for group in groups],
                    chunks=[len(chunk) for chunk in chunks],
                    graphs=self._graphs,
                    memory=self._memory,
                    names=tuple(group[0].prefix for group in groups),
                )
                if self._graphs is not None and self._graphs.fault:
                    self._graphs = None
            else:
                inputs, intervention = self._collate(items, self._capture)
                decoded = reference.decode_reference(
                    self._vlm, inputs, intervention=intervention, max_new_tokens=self._max_new_tokens
                )
        compared = {"first batch", "shared image"} if len(items) > len(groups) else {"first batch"}
        if self._shared and self._unchecked & compared:
            self._compare(items, image, decoded)
            self._unchecked -= compared if self._cfg.selfcheck == "first" else set()
        records = self._build_records(items, decoded)
        self._store_captures(items, decoded.attended)
        return records

    def _collate(
        self, items: Sequence[_Ready], capture: str, pictured: Sequence[int] | None = None
    ) -> tuple[Inputs, Intervention]:
        """Return a batch on the model's device and what is done to it; images of `pictured`, None = of all."""
        inputs = self._join([item.inputs for item in items], pictured)
        shown = items if pictured is None else [items[index] for index in pictured]
        arms, cfg = items[0].arms, self._cfg
        seconds = {}
        for second in _list_seconds(arms):
            prompts = [item.seconds[second].inputs for item in items]
            texts = [{name: prompt[name] for name in SEQUENCES if name in inputs} for prompt in prompts]
            seconds[second] = {**inputs, **self._join(texts)}
        noised, whole, names = self._add_noise(shown, inputs), [], [item.sample.id for item in items]
        if any(arm.against == "pruned" for arm in arms):
            whole = [self._join([drop_padding(item.inputs)]) for item in items]
        asked = Intervention(arms, cfg.layers, cfg.span, noised, seconds, whole, names, capture)
        if asked.image_indices:
            counts = tuple(self._encoder.count_tokens(item.sample, item.inputs) for item in items)
            asked = replace(asked, parts=counts)
        return inputs, asked

    def _join(self, prompts: Sequence[Inputs], pictured: Sequence[int] | None = None) -> Inputs:
        joined = collate(prompts, self._encoder.pad_id, pictured=pictured)
        return {name: _move(tensor, self._vlm) for name, tensor in joined.items()}

    def _store_captures(self, items: list[_Ready], attended: Attended | None) -> None:
        if attended is not None:
            for index, item in enumerate(items):
                maps = None if attended.maps is None else attended.maps[index].numpy()
                view = self._encoder.view(item.sample, item.inputs)
                self._sink(Capture(item.sample.id, item.arms, attended.mass[index].numpy(), maps, view))

    def _add_noise(self, items: Sequence[_Ready], inputs: Inputs) -> dict[int, torch.Tensor]:
        """Return the images of `items` with noise, by noise step, for the arms that contrast with it."""
        noised = {}
        for step in {arm.noise for arm in items[0].arms if arm.noise is not None}:
            if "pixel_values" not in inputs:
                raise ModelError(f"{self._cfg.name}: vcd needs pixel_values; its processor gives {', '.join(inputs)}")
            parts = []
            for item in items:
                pixels = add_noise(item.inputs["pixel_values"].float(), step, self._name_noise(item.sample))
                parts.append({**item.inputs, "pixel_values": pixels})
            noised[step] = _move(collate(parts, self._encoder.pad_id)["pixel_values"], self._vlm)
        return noised

    def _name_noise(self, sample: Sample) -> str:
        """Return the noise's seed: the same on every machine, and for every question that shares the image."""
        if not self._cfg.shares_images or sample.image is None:
            return sample.id
        return sample.image_digest or "+".join(map(digest_file, sample.images))

    def _compare(self, items: Sequence[_Ready], image: Sequence[int], decoded: Decoded) -> None:
        """Raise ModelError where the engine's answers to a few of the questions are not exact.

        `image`: each question's image. Compared are the longest and the shortest question; where questions share an
        image, one that does stands beside them.
        """
        lengths = [item.inputs["input_ids"].shape[1] for item in items]
        chosen, shared = selfcheck.choose_questions(lengths, image)
        counts = tuple(len(items[i].sample.images) for i in chosen)
        asked = selfcheck.CheckedQuestions(
            *self._collate([items[i] for i in chosen], "none"), rows=tuple(range(len(chosen))), counts=counts
        )
        others = []
        if len(chosen) > 1:
            longest = max(range(len(chosen)), key=lambda place: lengths[chosen[place]])
            alone = self._collate([items[chosen[longest]]], "none")
            others.append(selfcheck.CheckedQuestions(*alone, rows=(longest,), counts=counts[longest : longest + 1]))
        if shared is not None:
            once = [shared.index(number) for number in range(max(shared) + 1)]
            given = self._collate([items[i] for i in chosen], "none", once)
            alike = tuple(counts[place] for place in once)
            others.append(selfcheck.CheckedQuestions(*given, rows=asked.rows, counts=alike, image=shared))
        selfcheck.check_prefix(
            self._vlm,
            asked,
            others,
            Decoded([decoded.tokens[i] for i in chosen], decoded.logits[chosen], decoded.scores[chosen]),
            name=self._cfg.name,
            dtype=self._cfg.run_dtype(),
            tf32=self._cfg.tf32,
            max_new_tokens=self._max_new_tokens,
        )

    def _build_records(self, items: list[_Ready], decoded: Decoded) -> list[Record]:
        options = [self._encoder.option_tokens(item.sample.options) for item in items]
        numbers = read_first_tokens(decoded, options)
        return [
            Generation(
                sample_id=item.sample.id,
                arm=arm,
                text=self._encoder.decode(tokens),
                tokens=tokens,
                **field_values(first),
                prompt=_prompt_of(item, arm),
                batch=len(items),
                device=self.device,
            )
            for item, answers, firsts in zip(items, decoded.tokens, numbers, strict=True)
            for arm, tokens, first in zip(item.arms, answers, firsts, strict=True)
        ]


def _list_seconds(arms: Sequence[Arm]) -> list[SecondPrompt]:
    """List the second prompts that arms read, each once."""
    seconds = dict.fromkeys(arm.contrast.second for arm in arms if arm.contrast)
    return [second for second in seconds if second is not None]


def _prompt_of(item: _Ready, arm: Arm) -> str:
    """Return the prompt that the arm's answer is to."""
    if arm.contrast is None or not arm.contrast.instead or arm.contrast.second is None:
        return item.prompt
    return item.seconds[arm.contrast.second].prompt


def _arms(batch: _Pending) -> tuple[Arm, ...]:
    (_, arms), *_ = batch[0][0]
    return arms


def _build_failures(sample: Sample, arms: Sequence[Arm], error: BaseException) -> list[Record]:
    lines = str(error).splitlines() or [""]
    text = "out of memory" if _is_out_of_memory(error) else f"{type(error).__name__}: {lines[0]}".rstrip(": ")
    return [Failure(sample.id, arm, text) for arm in arms]


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def _stops_run(error: Exception) -> bool:
    """Return whether an error is of a guard, of a job that is being requeued (submitit), or of a lost device."""
    lost = "CUDA error" in str(error) and not _is_out_of_memory(error)
    return isinstance(error, SpatialEvalError) or type(error).__module__.startswith("submitit") or lost


def _move(tensor: torch.Tensor, vlm: Any) -> torch.Tensor:
    return tensor.to(vlm.device, vlm.dtype) if tensor.is_floating_point() else tensor.to(vlm.device)


def _kernel(attn: str) -> AbstractContextManager[Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return nullcontext() if attn == "sdpa" else sdpa_kernel(SDPBackend.__members__[KERNELS[attn]])


def _device_label(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _memory_share(device: torch.device) -> float:
    """Return the largest share of a device's memory that was in use; 1 where it is unknown."""
    if device.type != "cuda":
        return 1.0
    return float(torch.cuda.max_memory_allocated(device) / torch.cuda.get_device_properties(device).total_memory)
