"""A loaded model that answers questions: the only door to torch."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from spatial_eval.core import requirements
from spatial_eval.core.errors import ModelError, SpatialEvalError
from spatial_eval.core.types import Arm, Failure, Generation, Record, Sample
from spatial_eval.engine import decode as engine
from spatial_eval.engine import reference
from spatial_eval.engine.attention import PER_ARM
from spatial_eval.engine.contrastive import add_noise
from spatial_eval.engine.kv_cache import Graphs
from spatial_eval.engine.request import Attended, Decoded, Intervention, read_first_token
from spatial_eval.models import selfcheck
from spatial_eval.models.batches import Inputs, Work, block_rows, bucket_by_length, collate, cut_batches
from spatial_eval.models.encoder import BadQuestion, Encoder
from spatial_eval.models.loading import load_config, load_model_once
from spatial_eval.store.attention import Capture

if TYPE_CHECKING:
    from spatial_eval.models.spec import CheckpointSpec

log = logging.getLogger(__name__)

WORKERS = 2  # threads that decode and process images
AHEAD = 2  # batches prepared while one is computed
EARLY = 8  # questions that must fail with one error before it is the model's or the installation's fault
KERNELS = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "math": "MATH"}


@dataclass(frozen=True, slots=True)
class _Ready:
    """A question whose image and prompt are tensors on the CPU."""

    sample: Sample
    arms: tuple[Arm, ...]
    prompt: str
    inputs: Inputs


@dataclass(frozen=True, slots=True)
class _Held:
    """One question's failures, kept until it is known whose fault they are; `cause` without numbers."""

    cause: str
    records: list[Record]


class LoadedModel:
    """A model on its device with its processor. Not thread-safe."""

    def __init__(
        self, model: CheckpointSpec, prompt: str, distort: bool, max_new_tokens: int, *, orientation: str = "upright"
    ) -> None:
        self._cfg = model
        self._max_new_tokens = max_new_tokens
        # Before the weights: what its processor lacks costs no minutes
        config = load_config(model)
        self._encoder = Encoder(model, config, prompt=prompt, distort=distort, orientation=orientation)
        self._vlm = load_model_once(model)
        self._fits = block_rows(model.batch_size)
        self._unchecked = model.selfcheck != "never"
        self.device = _device_label(self._vlm.device)
        self._shared = model.decoding == "shared"
        self._graphs = Graphs() if model.graphs else None
        self._held: list[_Held] = []
        self._works = False  # a question was answered, or questions fail for several reasons
        self._capture = "none"
        self._sink: Callable[[Capture], None] = lambda _: None
        reason = engine.reason_for_per_arm(self._vlm)
        if reason and self._shared:
            log.warning("%s: %s; decoding one arm at a time (as model.decoding=per_arm)", model.name, reason)
            self._shared = False

    def watch(self, level: str, sink: Callable[[Capture], None]) -> None:
        """From now on `sink` gets every question's capture before its records are yielded."""
        self._capture, self._sink = level, sink

    def answer(self, work: Sequence[Work]) -> Iterator[list[Record]]:
        """Batches of records in row order; a question that fails alone is a Failure.

        Raises ModelError where all questions fail with one error, before any of it is yielded: the first EARLY of
        them, or all there are, if there are at least two. What is wrong with a question's own text or image, and out
        of memory, is that question's failure however many they are.
        """
        batches = cut_batches(work, block_rows(self._cfg.batch_size))
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="images") as pool:
            queue: deque[list[tuple[Work, Future[tuple[str, Inputs]]]]] = deque()
            for batch in batches:
                queue.append([(item, pool.submit(self._encoder.encode, item[0])) for item in batch])
                if len(queue) > AHEAD:
                    yield from self._released(self._answer(queue.popleft()))
            while queue:
                yield from self._released(self._answer(queue.popleft()))
        if len(self._held) > 1:
            self._reject_model()
        yield from self._released([], over=True)

    def _released(self, records: list[Record], *, over: bool = False) -> Iterator[list[Record]]:
        """What may be stored of a batch's records and of the failures that were held back."""
        causes = {held.cause for held in self._held}
        self._works = self._works or len(causes) > 1 or any(isinstance(one, Generation) for one in records)
        if self._works or over:
            records = [*(one for held in self._held for one in held.records), *records]
            self._held.clear()
        elif len(self._held) >= EARLY:
            self._reject_model()
        if records:
            yield records

    def _reject_model(self) -> NoReturn:
        [failure, *_] = self._held[0].records
        assert isinstance(failure, Failure)
        said = [failure.error, *requirements.list_newer()]
        if self._shared and PER_ARM not in failure.error:
            said.append(
                "`python -m spatial_eval doctor` looks at what is installed, model.decoding=per_arm may still do"
            )
        raise ModelError(
            f"{self._cfg.name}: all of the first {len(self._held)} questions failed with one error, so it is no "
            f"question's fault: {'; '.join(said)}"
        )

    def _fail(self, sample: Sample, arms: tuple[Arm, ...], error: BaseException) -> list[Record]:
        """A question's failures, or nothing where they are held back."""
        failures = _failures([(sample, arms)], error)
        if self._works or _out_of_memory(error):
            return failures
        line = next(iter(str(error).splitlines()), "")
        self._held.append(_Held(f"{type(error).__name__}: {re.sub(r'[0-9]+', '#', line)}", failures))
        return []

    def _answer(self, batch: list[tuple[Work, Future[tuple[str, Inputs]]]]) -> list[Record]:
        records: list[Record] = []
        ready: list[_Ready] = []
        for (sample, arms), future in batch:
            error = future.exception()
            if error is None:
                ready.append(_Ready(sample, arms, *future.result()))
                continue
            own = isinstance(error, BadQuestion)
            error = (error.__cause__ or error) if own else error
            if not isinstance(error, Exception) or _stops_run(error):
                raise error
            records += _failures([(sample, arms)], error) if own else self._fail(sample, arms, error)
        for bucket in bucket_by_length([one.inputs["input_ids"].shape[1] for one in ready]):
            members = [ready[index] for index in sorted(bucket)]
            records += self._decode_or_halve(members)
        return records

    def _decode_or_halve(self, members: list[_Ready]) -> list[Record]:
        """Batches that fail are halved until the culprits fail alone; only they are missing."""
        records: list[Record] = []
        pending = [members]
        while pending:
            items = pending.pop()
            if len(items) > self._fits:
                pending += [items[self._fits :], items[: self._fits]]
                continue
            try:
                records += self._decode(items)
                continue
            except (RuntimeError, ValueError, TypeError, LookupError, MemoryError, OSError) as caught:
                if _stops_run(caught):
                    raise
                error = caught.with_traceback(None)  # its frames would keep the batch's tensors alive
            if _out_of_memory(error) and torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(items) == 1:
                records += self._fail(items[0].sample, items[0].arms, error)
                continue
            middle = (len(items) + 1) // 2
            pending += [items[middle:], items[:middle]]
            if _out_of_memory(error):
                self._fits = middle
                log.warning("out of memory with %d questions in a batch; going on with %d", len(items), middle)
        return records

    def _decode(self, items: list[_Ready]) -> list[Record]:
        inputs, intervention = self._collated(items, self._capture)
        decode = partial(engine.decode_arms, graphs=self._graphs) if self._shared else reference.decode_reference
        with _kernel(self._cfg.attn):
            decoded = decode(self._vlm, inputs, intervention=intervention, max_new_tokens=self._max_new_tokens)
        if self._unchecked and self._shared:
            self._compare(items, decoded)
            self._unchecked = self._cfg.selfcheck == "always"
        records = self._records(items, decoded)
        self._keep(items, decoded.attended)
        return records

    def _collated(self, items: Sequence[_Ready], capture: str) -> tuple[Inputs, Intervention]:
        """The questions as one batch on the model's device, and what is done to it."""
        inputs = collate([one.inputs for one in items], self._encoder.pad_id)
        inputs = {name: _placed(tensor, self._vlm) for name, tensor in inputs.items()}
        cfg = self._cfg
        return inputs, Intervention(items[0].arms, cfg.layers, cfg.span, self._noised(items, inputs), capture)

    def _keep(self, items: list[_Ready], attended: Attended | None) -> None:
        if attended is not None:
            for index, one in enumerate(items):
                seen = None if attended.maps is None else attended.maps[index].numpy()
                view = self._encoder.view(one.sample, one.inputs)
                self._sink(Capture(one.sample.id, one.arms, attended.mass[index].numpy(), seen, view))

    def _noised(self, items: Sequence[_Ready], inputs: Inputs) -> dict[int, torch.Tensor]:
        """The batch's image tensor with noise, by noise step, for the arms that contrast with it."""
        made = {}
        for step in {arm.noise for arm in items[0].arms if arm.contrast == "vcd"}:
            if "pixel_values" not in inputs:
                raise ModelError(f"{self._cfg.name}: vcd needs pixel_values; its processor gives {', '.join(inputs)}")
            parts = []
            for one in items:
                pixels = add_noise(one.inputs["pixel_values"].float(), step, one.sample.id)
                parts.append({**one.inputs, "pixel_values": pixels})
            made[step] = _placed(collate(parts, self._encoder.pad_id)["pixel_values"], self._vlm)
        return made

    def _compare(self, items: list[_Ready], decoded: Decoded) -> None:
        """Raises ModelError where the engine's answers to the longest and the shortest question are not exact."""
        lengths = [one.inputs["input_ids"].shape[1] for one in items]
        longest, shortest = lengths.index(max(lengths)), lengths.index(min(lengths))
        chosen = sorted({longest, shortest})
        pair = selfcheck.CheckedQuestions(
            *self._collated([items[i] for i in chosen], "none"), tuple(range(len(chosen)))
        )
        alone = selfcheck.CheckedQuestions(*self._collated([items[longest]], "none"), (chosen.index(longest),))
        given = Decoded([decoded.tokens[i] for i in chosen], decoded.logits[chosen], decoded.scores[chosen])
        selfcheck.check_prefix(
            self._vlm,
            pair,
            alone,
            given,
            name=self._cfg.name,
            dtype=self._cfg.run_dtype(),
            tf32=self._cfg.tf32,
            max_new_tokens=self._max_new_tokens,
        )

    def _records(self, items: list[_Ready], decoded: Decoded) -> list[Record]:
        records: list[Record] = []
        if not bool(torch.isfinite(decoded.logits).all()):
            raise ValueError("the model gave logits that are not finite")
        scores = decoded.scores.cpu()  # (B, W, V)
        for index, item in enumerate(items):
            options = self._encoder.option_tokens(item.sample.options)
            for position, arm in enumerate(item.arms):
                tokens = decoded.tokens[index][position]
                first = read_first_token(scores[index, position], options)
                records.append(
                    Generation(
                        sample_id=item.sample.id,
                        arm=arm,
                        text=self._encoder.decode(tokens),
                        tokens=tokens,
                        confidence=first.confidence,
                        entropy=first.entropy,
                        margin=first.margin,
                        logit=first.logit,
                        option_probs=first.option_probs,
                        prompt=item.prompt,
                        batch=len(items),
                        device=self.device,
                    )
                )
        return records


def _failures(work: Sequence[Work], error: BaseException) -> list[Record]:
    lines = str(error).splitlines() or [""]
    text = "out of memory" if _out_of_memory(error) else f"{type(error).__name__}: {lines[0]}".rstrip(": ")
    return [Failure(sample.id, arm, text) for sample, arms in work for arm in arms]


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def _stops_run(error: Exception) -> bool:
    """Not one question's fault: a guard, a job that is being requeued (submitit), or a device that is lost."""
    lost = "CUDA error" in str(error) and not _out_of_memory(error)
    return isinstance(error, SpatialEvalError) or type(error).__module__.startswith("submitit") or lost


def _placed(tensor: torch.Tensor, vlm: Any) -> torch.Tensor:
    return tensor.to(vlm.device, vlm.dtype) if tensor.is_floating_point() else tensor.to(vlm.device)


def _kernel(attn: str) -> AbstractContextManager[Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return nullcontext() if attn == "sdpa" else sdpa_kernel(getattr(SDPBackend, KERNELS[attn]))


def _device_label(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
