"""A loaded model that answers questions: the only door to torch."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from . import engine, oracle
from .batches import Inputs, Work, block_rows, buckets, collate, cut
from .captures import Capture
from .checkpoints import Encoder, keep_model
from .contrast import noisy
from .decoding import Attended, Decoded, Intervention, read_first_token
from .errors import ModelError, SpatialEvalError
from .graphs import Graphs
from .types import Arm, Failure, Generation, Record, Sample

if TYPE_CHECKING:
    from .hf import HF

log = logging.getLogger(__name__)

WORKERS = 2  # threads that decode and process images
AHEAD = 2  # batches prepared while one is computed
KERNELS = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "math": "MATH"}
# Largest difference of first-token logits, in their standard deviations, between engine and oracle: rounding
# stays well below (1e-5 seen in float32), a wrong span, position or layer well above.
TOLERANCE = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}


@dataclass(frozen=True, slots=True)
class _Ready:
    """A question whose image and prompt are tensors on the CPU."""

    sample: Sample
    arms: tuple[Arm, ...]
    prompt: str
    inputs: Inputs


class Loaded:
    """A model on its device with its processor. Not thread-safe."""

    def __init__(
        self, model: HF, prompt: str, distort: bool, max_new_tokens: int, *, orientation: str = "upright"
    ) -> None:
        self._cfg = model
        self._max_new_tokens = max_new_tokens
        self._vlm = keep_model(model)
        config = self._vlm.config
        self._encoder = Encoder(model, config, prompt=prompt, distort=distort, orientation=orientation)
        self._fits = block_rows(model.batch_size)
        self._unchecked = model.selfcheck != "never"
        self._device = _device_label(self._vlm.device)
        self._shared = model.decoding == "shared"
        self._graphs = Graphs() if model.graphs else None
        self._capture = "none"
        self._sink: Callable[[Capture], None] = lambda capture: None
        reason = engine.why_not(self._vlm)
        if reason and self._shared:
            log.warning("%s: %s; decoding one arm at a time (as model.decoding=per_arm)", model.name, reason)
            self._shared = False

    def watch(self, level: str, sink: Callable[[Capture], None]) -> None:
        """From now on `sink` gets every question's capture before its records are yielded."""
        self._capture, self._sink = level, sink

    def answer(self, work: Sequence[Work]) -> Iterator[list[Record]]:
        """Batches of records in row order; a question that fails alone is a Failure."""
        batches = cut(work, block_rows(self._cfg.batch_size))
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="images") as pool:
            queue: deque[list[tuple[Work, Future[tuple[str, Inputs]]]]] = deque()
            for batch in batches:
                queue.append([(item, pool.submit(self._encoder.encode, item[0])) for item in batch])
                if len(queue) > AHEAD:
                    yield self._answer(queue.popleft())
            while queue:
                yield self._answer(queue.popleft())

    def _answer(self, batch: list[tuple[Work, Future[tuple[str, Inputs]]]]) -> list[Record]:
        records: list[Record] = []
        ready: list[_Ready] = []
        for (sample, arms), future in batch:
            error = future.exception()
            if error is None:
                ready.append(_Ready(sample, arms, *future.result()))
            elif isinstance(error, Exception) and not _stops_run(error):
                records += _failures([(sample, arms)], error)
            else:
                raise error
        for bucket in buckets([one.inputs["input_ids"].shape[1] for one in ready]):
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
                records += _failures([(items[0].sample, items[0].arms)], error)
                continue
            middle = (len(items) + 1) // 2
            pending += [items[middle:], items[:middle]]
            if _out_of_memory(error):
                self._fits = middle
                log.warning("out of memory with %d questions in a batch; going on with %d", len(items), middle)
        return records

    def _decode(self, items: list[_Ready]) -> list[Record]:
        arms = items[0].arms
        inputs = collate([one.inputs for one in items], self._encoder.pad_id)
        inputs = {name: _placed(tensor, self._vlm) for name, tensor in inputs.items()}
        cfg = self._cfg
        intervention = Intervention(arms, cfg.layers, cfg.span, self._noised(items, inputs), self._capture)
        decode = partial(engine.decode, graphs=self._graphs) if self._shared else oracle.decode
        with _kernel(cfg.attn):
            decoded = decode(self._vlm, inputs, intervention=intervention, max_new_tokens=self._max_new_tokens)
            if self._unchecked and self._shared:
                self._compare(inputs, intervention, decoded)
                self._unchecked = cfg.selfcheck == "always"
        records = self._records(items, decoded)
        self._keep(items, decoded.attended)
        return records

    def _keep(self, items: list[_Ready], attended: Attended | None) -> None:
        if attended is not None:
            for index, one in enumerate(items):
                seen = None if attended.maps is None else attended.maps[index].numpy()
                view = self._encoder.view(one.sample, one.inputs)
                self._sink(Capture(one.sample.id, one.arms, attended.mass[index].numpy(), seen, view))

    def _noised(self, items: list[_Ready], inputs: Inputs) -> dict[int, torch.Tensor]:
        """The batch's image tensor with noise, by noise step, for the arms that contrast with it."""
        made = {}
        for step in {arm.noise for arm in items[0].arms if arm.contrast == "vcd"}:
            if "pixel_values" not in inputs:
                raise ModelError(f"{self._cfg.name}: vcd needs pixel_values; its processor gives {', '.join(inputs)}")
            parts = []
            for one in items:
                pixels = noisy(one.inputs["pixel_values"].float(), step, one.sample.id)
                parts.append({**one.inputs, "pixel_values": pixels})
            made[step] = _placed(collate(parts, self._encoder.pad_id)["pixel_values"], self._vlm)
        return made

    def _compare(self, inputs: Inputs, intervention: Intervention, decoded: Decoded) -> None:
        """Raises ModelError where the oracle's first logits differ by more than rounding."""
        plain = replace(intervention, capture="none")
        judge = oracle.decode(self._vlm, inputs, intervention=plain, max_new_tokens=1)
        unit = judge.logits.std(dim=-1)  # (B, W)
        # Near the edge of what is plausible rounding decides: a contrast is compared where both keep the token.
        both = decoded.scores.isfinite() & judge.scores.isfinite()
        gaps = (decoded.logits - judge.logits).abs(), (decoded.scores - judge.scores).abs().where(both, 0)
        gap = torch.stack(gaps).amax(dim=(0, -1)).div(unit).max().item()
        limit = TOLERANCE[self._cfg.run_dtype()]
        if not gap <= limit:  # nan fails too
            raise ModelError(
                f"{self._cfg.name}: the shared prefix is not exact on this model: first-token logits differ by "
                f"{gap:.2g} standard deviations from plain generate (tolerance {limit:g}); use model.decoding=per_arm"
            )
        log.info("%s: first-token logits agree with plain generate (%.1e standard deviations)", self._cfg.name, gap)

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
                        device=self._device,
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
