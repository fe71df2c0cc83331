"""List samples with the answers of arms and cells, for the page's sample browser and for the terminal.

The page holds a sweep's answers as JSON (`pack_samples`); templates/samples.js filters and shows them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from spatial_eval.analysis.metrics import label_arm, label_method
from spatial_eval.analysis.selection import Selected
from spatial_eval.analysis.sweep_data import SplitAnswers, SweepData
from spatial_eval.core.arms import BASE, Arm, find_arm
from spatial_eval.core.columns import EXPERIMENT_COLUMNS
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.files import write_atomic
from spatial_eval.core.paths import SweepPaths
from spatial_eval.core.types import Method
from spatial_eval.report.figures import Thumbnails, thumbnails

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_ROWS = 20_000  # answers in the page, one per question and arm; report_samples.js holds all
MAX_BYTES = 6_000_000  # of them in the page
MAX_PICTURES = 300  # of the samples, small ones in the page, for when it is read without its folder
PICTURE_SIZE = 160  # pixels of those, the longer edge
MAX_ROUTED = 300_000  # answers of cells that route between arms, per page
FLIPS = ("fixed", "broken")
COLUMNS = (
    *("dataset", "model", "max_new_tokens", "split", "sample_id", "relation", "gold", "cell", "arm"),
    *("prediction", "correct", "correct_strict", "correct_base", "flip", "confidence", "text", "question", "image"),
)
_PROMPT = re.compile(r"<image>|\b(?:USER|ASSISTANT|User|Assistant):")


def shorten_text(text: str, most: int = 160) -> str:
    """Return a prompt or an answer on one line, without the roles of a chat, cut at `most` characters."""
    line = " ".join(_PROMPT.sub(" ", text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def list_answers(files: SweepData, *, cell: int | None = None, arm: str | None = None) -> pd.DataFrame:
    """Return COLUMNS, one row per answered question and stored arm, or per answered question of one cell.

    Args:
        cell: a row of results.csv, from 0. arm: one arm as `find_arm` reads it; None = all.

    Raises:
        ConfigError: there is no such cell or arm.
    """
    if cell is None:
        stored = sorted({one for part in files.experiments.values() for one in part.arms})
        named = None if arm is None else find_arm(arm, stored)
        frames = []
        for key, part in files.experiments.items():
            found = [_answer_rows(part, one) for one in sorted(part.arms) if named in (None, one)]
            if found:
                rows = pd.concat(found).sort_values("row", kind="stable")
                frames.append(rows.assign(**dict(zip(EXPERIMENT_COLUMNS, key, strict=True))))
    else:
        if not 0 <= cell < len(files.cells):
            raise ConfigError(f"no cell {cell}: cells are rows of results.csv, 0 to {len(files.cells) - 1}")
        key, method = files.keys[cell], files.methods[cell]
        if key not in files.parts:
            raise ConfigError(
                f"cell {cell} ({label_method(method)}) has no stored answer: run the sweep's command again"
            )
        frames = [_answer_rows(files.parts[key], method).assign(**dict(zip(EXPERIMENT_COLUMNS, key, strict=False)))]
    return pd.concat(frames or [pd.DataFrame(columns=list(COLUMNS))], ignore_index=True)[list(COLUMNS)]


def _answer_rows(part: SplitAnswers, source: Arm | Method) -> pd.DataFrame:
    """Return the answers of one arm, or those that a method takes, in row order."""
    if isinstance(source, Arm):
        arms, branch, label = [source], np.zeros(len(part.questions), dtype=int), ""
        answered, right, strict = part.arms[source].signals.answered, part.arms[source].right, part.arms[source].strict
    else:
        found = part.follow(source)
        arms, branch, label = list(source.branches().values()), found.branch, label_method(source)
        answered, right, strict = found.answered, found.right, found.strict
    base, blank = part.arms.get(BASE), np.full(len(part.questions), "", dtype=object)
    both = answered & base.signals.answered if base else np.zeros_like(answered)
    correct_base = base.right if base else both

    def take(columns: Mapping[Arm, NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
        return np.stack([columns.get(arm, empty) for arm in arms])[branch, np.arange(len(branch))]

    confidence = {arm: graded.signals.max_prob for arm, graded in part.arms.items()}
    frame = part.questions.assign(
        cell=label,
        arm=np.array([arm.label for arm in arms], dtype=object)[branch],
        text=take(part.texts, blank),
        prediction=take(part.predictions, blank),
        confidence=take(confidence, np.full(len(branch), np.nan)),
        correct=right,
        correct_strict=strict,
        correct_base=pd.Series(correct_base, dtype=object).where(both, None),
        flip=np.select([both & right & ~correct_base, both & ~right & correct_base], list(FLIPS), ""),
    )
    return frame[answered]


def pack_samples(files: SweepData, chosen: Sequence[Selected], pictures: Thumbnails) -> str:
    """Pack the answers for the page's sample browser, as JSON that may stand in a script element.

    Where a sweep has more than MAX_ROWS answers, or they take more than MAX_BYTES: the first questions of each
    dataset and model. Small pictures fill the remaining bytes.
    """
    most = max((len(part.questions) for part in files.experiments.values()), default=0)
    arms = sum(len(part.arms) for part in files.experiments.values())
    limit = most if files.size <= MAX_ROWS else max(1, MAX_ROWS // arms)
    while True:
        data = _pack(files, chosen, pictures, limit)
        size = len(_dump(data | {"small": {}}).encode())
        if size <= MAX_BYTES or limit <= 1:
            return _dump(data | {"small": _pack_pictures(files, chosen, pictures, limit, MAX_BYTES - size)})
        limit //= 2


def _pack_pictures(
    files: SweepData, chosen: Sequence[Selected], pictures: Thumbnails, limit: int, room: int
) -> dict[str, str]:
    """Return small pictures by the image's name: first of questions that the best cells fix or break, then in order."""
    images: dict[str, str] = {}  # -> dataset
    for flipped in (True, False):
        for key, part in files.experiments.items():
            changed = np.zeros(len(part.questions), dtype=bool)
            for s in chosen:
                if BASE in part.arms and files.keys[s.cell][: len(key)] == key:
                    new, base = part.follow(s.method), part.arms[BASE]
                    changed |= new.answered & base.signals.answered & (new.right != base.right)
            wanted = (changed == flipped) & (np.arange(len(changed)) < limit)
            images |= {str(name): str(key[0]) for name in part.questions["image"][wanted] if str(name) not in images}
    small, found = replace(pictures, uris={}, most=MAX_PICTURES, size=PICTURE_SIZE), dict[str, str]()
    for name, dataset in images.items():
        uri = small.uri(name, dataset)
        room -= len(uri) + len(json.dumps(name).encode()) + 8
        if len(small.uris) >= MAX_PICTURES or room < 0:
            break
        if uri:
            found[name] = uri
    return found


def write_samples(files: SweepData, chosen: Sequence[Selected]) -> None:
    """Write report_samples.js with all answers where the page does not hold them; else remove it."""
    path = SweepPaths(files.folder).report_samples
    text = _dump(_pack(files, chosen, thumbnails(files.about), None))
    if files.size <= MAX_ROWS and len(text.encode()) <= MAX_BYTES:
        path.unlink(missing_ok=True)
    else:
        write_atomic(path, f"spatialEvalSamples({text});\n")


def _dump(data: Mapping[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _pack(files: SweepData, chosen: Sequence[Selected], pictures: Thumbnails, limit: int | None) -> dict[str, Any]:
    """Return texts once each, and columns of their places in that list, per dataset and model."""
    codes: dict[str, int] = {}

    def encode(texts: Any) -> list[int]:
        return [codes.setdefault(str(text), len(codes)) for text in texts]

    @cache
    def address(images: str) -> str:
        """Return the addresses of a question's images, in lines."""
        paths = [os.path.relpath(path.absolute(), files.folder.absolute()) for path in pictures.find_all(images)]
        return "\n".join(quote(Path(path).as_posix()) for path in paths)

    packed: list[dict[str, Any]] = []
    for key, stored in files.experiments.items():
        total = len(stored.questions)
        part = stored if limit is None or total <= limit else stored.within(np.arange(total) < limit)
        questions, arms = part.questions, sorted(part.arms, key=lambda arm: (arm != BASE, arm))
        columns = {name: encode(questions[name]) for name in ("sample_id", "split", "relation", "gold", "image")}
        columns["question"] = encode(map(_strip_places, questions["question"]))
        columns["picture"] = encode(map(address, questions["image"]))
        best = sorted((s for s in chosen if files.keys[s.cell][: len(key)] == key), key=lambda s: s.family != "")
        methods = [m for m, other in zip(files.methods, files.keys, strict=True) if other[: len(key)] == key]
        routed = [m for m in dict.fromkeys([*(s.method for s in best), *methods]) if len(_branch_arms(m)) > 1]
        budget = MAX_ROUTED // max(1, len(files.experiments) * len(questions))
        first = _branch_arms(best[0].method) if best else [BASE]  # of the best cell, which leads `routed` if it routes
        answers = {
            "total": total,
            "stored": pictures.orientation(str(key[0])) == "stored",
            "columns": columns,
            "arms": [_pack_arm(part, arm, encode) for arm in arms],
            "base": arms.index(BASE) if BASE in arms else -1,
            "cells": [_pack_cell(part, method, arms) for method in routed[: max(1, budget)]],
            "every": len(routed),
            "shown": len(arms) if len(first) > 1 else arms.index(first[0]) if first[0] in arms else 0,
            "split": best[0].split if best else "all",
        }
        packed.append(dict(zip(EXPERIMENT_COLUMNS, key, strict=True)) | answers)
    digest = (files.about.get("digests") or {}).get("samples.parquet", "")
    whole = all(len(part["columns"]["gold"]) == part["total"] for part in packed)
    return {"digest": digest, "whole": whole, "texts": list(codes), "trunks": packed}


def _strip_places(question: str) -> str:
    """Return a question without what frames it; of several images the places stay."""
    return question if question.count("<image>") > 1 else _PROMPT.sub(" ", question).strip()


def _branch_arms(method: Method) -> list[Arm]:
    return list(dict.fromkeys(method.branches().values()))


def _pack_arm(part: SplitAnswers, arm: Arm, encode: Any) -> dict[str, Any]:
    """Return an arm's columns; the text of a question without an answer is -1."""
    graded = part.arms[arm]
    texts = zip(encode(part.texts[arm]), graded.signals.answered, strict=True)
    return {
        "label": label_arm(arm),
        "text": [code if answered else -1 for code, answered in texts],
        "said": encode(part.predictions[arm]),
        "right": graded.right.astype(int).tolist(),
        "confidence": [None if np.isnan(p) else round(float(p), 3) for p in graded.signals.max_prob],
    }


def _pack_cell(part: SplitAnswers, method: Method, arms: Sequence[Arm]) -> dict[str, Any]:
    """Return which of `arms` a method takes for each question, -1 where it has no answer."""
    found, places = part.follow(method), {arm: i for i, arm in enumerate(arms)}
    taken = np.array([places.get(arm, -1) for arm in method.branches().values()])[found.branch]
    return {"label": label_method(method), "arm": np.where(found.answered, taken, -1).tolist()}
