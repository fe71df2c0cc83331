"""The comparison with the oracle at the start of a run: planted faults that only it can see stop the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from questions import ARMS, WEIGHTS, ask, eight, load, saved

from spatial_eval import attention, oracle, streams, tail
from spatial_eval.errors import ModelError
from spatial_eval.hf import HF


def shifted_span(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = streams._image_keys
    monkeypatch.setattr(streams, "_image_keys", lambda *args, **kwargs: keys(*args, **kwargs).roll(1, dims=-1))


def wrong_position(monkeypatch: pytest.MonkeyPatch) -> None:
    fan = streams._fan

    def moved(columns: torch.Tensor, width: int) -> torch.Tensor:
        wide = fan(columns, width)
        is_position = columns.shape == (1, wide.shape[-1] - width + 1) and bool((columns.diff() == 1).all())
        return wide + (torch.arange(wide.shape[-1]) >= columns.shape[-1]) if is_position else wide

    monkeypatch.setattr(streams, "_fan", moved)


def scaled_rows_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.torch, "eye", lambda size, **kwargs: torch.ones(size, size, **kwargs))


def unscaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail.Rows, "apply", lambda self, logits, image: logits)


@pytest.mark.parametrize("fault", [shifted_span, wrong_position, scaled_rows_see_each_other, unscaled])
def test_selfcheck_stops_a_run_that_is_not_exact(
    fault: Callable[[pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = saved("llava")
    fault(monkeypatch)
    with pytest.raises(ModelError, match="the shared prefix is not exact on this model"):
        ask(load(HF(path, selfcheck="first"), tmp_path), eight()[:1])
    assert len(ask(load(HF(path, selfcheck="never"), tmp_path), eight()[:1])) == len(WEIGHTS)


def test_selfcheck_first_and_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    decode = oracle.decode

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append("oracle")
        return decode(*args, **kwargs)

    monkeypatch.setattr(oracle, "decode", counted)
    for selfcheck, expected in (("never", 0), ("first", 1), ("always", 3)):
        calls.clear()
        ask(load(HF(saved("llava"), selfcheck=selfcheck), tmp_path, tokens=2), eight()[:3], ARMS[:2])
        assert len(calls) == expected
