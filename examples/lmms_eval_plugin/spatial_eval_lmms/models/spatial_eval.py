"""Answer lmms-eval's requests through `spatial-eval answer`, a process of another environment."""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model
from PIL import Image


@register_model("spatial_eval")
class SpatialEval(lmms):
    """Ask a model of spatial-eval under one method.

    Args:
        command: the program spatial-eval of its own environment. device: model.device. batch_size, max_batch_size:
            lmms-eval gives them; questions are asked one at a time. keys: of `spatial-eval answer`.
    """

    is_simple = True

    def __init__(
        self,
        command: str = "spatial-eval",
        device: str | None = None,
        batch_size: Any = 1,
        max_batch_size: Any = None,
        **keys: Any,
    ) -> None:
        if device is not None:
            keys = {"model.device": device, **keys}
        overrides = [f"{key}={_spell(value)}" for key, value in keys.items()]
        self._command = [*shlex.split(command), "answer", *overrides]
        self.model_name = shlex.join(["spatial_eval", *overrides])  # lmms-eval's cache of answers is by this name
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "spatial_eval answers from one process: start lmms-eval without accelerate's --num_processes"
            )
        self._process: subprocess.Popen[str] | None = None

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the texts, in order. Raises ValueError on a request that is no single picture with greedy decoding."""
        return [self._generate(*request.args) for request in requests]

    def _generate(
        self, context: str, gen_kwargs: Mapping[str, Any], doc_to_visual: Any, doc_id: Any, task: str, split: str
    ) -> str:
        where = f"{task}, question {doc_id}"
        visuals = list(doc_to_visual(self.task_dict[task][split][doc_id]) or ())
        if len(visuals) != 1 or not isinstance(visuals[0], Image.Image):
            kinds = ", ".join(type(one).__name__ for one in visuals) or "nothing"
            raise ValueError(f"{where} shows {kinds}; spatial_eval answers questions about one picture")
        sampled = gen_kwargs.get("do_sample") or (gen_kwargs.get("temperature") or 0) > 0
        if sampled or (gen_kwargs.get("num_beams") or 1) > 1:
            raise ValueError(f"{where} wants sampling or beams ({dict(gen_kwargs)}); spatial_eval decodes greedily")
        asked: dict[str, Any] = {
            "id": f"{task} {doc_id}",
            "question": context.replace("<image>", "").strip(),
            "image_base64": _encode(visuals[0]),
        }
        if gen_kwargs.get("max_new_tokens") is not None:
            asked["max_new_tokens"] = int(gen_kwargs["max_new_tokens"])
        answer = self._ask(asked)
        if answer.get("id") != asked["id"] or "error" in answer:
            raise RuntimeError(f"{where}: spatial-eval says {answer.get('error', answer)}")
        text = str(answer["text"])
        until = gen_kwargs.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop, maxsplit=1)[0] if stop else text
        self.cache_hook.add_partial("generate_until", (context, gen_kwargs), text)
        return text

    def _ask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        if self._process is None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True, encoding="utf8")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it ended, and said why on stderr
            pass
        line = self._process.stdout.readline()
        if not line:
            code = self._end()
            raise RuntimeError(f"`{shlex.join(self._command)}` ended with exit code {code}; its stderr says why")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self) -> int:
        """Close the process's stdin and wait for its end; returns its exit code."""
        assert self._process is not None
        self._process.communicate()
        code, self._process = self._process.returncode, None
        return code

    def clean(self) -> None:
        """End the process, then what the base class does."""
        if self._process is not None:
            self._end()
        super().clean()

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("spatial_eval generates texts: choose a task of output_type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("spatial_eval answers single questions: choose a task of output_type generate_until")


def _spell(value: Any) -> str:
    """Write a value as the command line takes it; lmms-eval has made numbers and booleans of texts."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _encode(picture: Image.Image) -> str:
    """Encode a picture's pixels as they are: without its EXIF orientation, which lmms-eval's models do not apply."""
    plain = picture.convert("RGB")
    plain.info.clear()
    file = io.BytesIO()
    plain.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
