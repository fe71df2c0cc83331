"""Grade a sweep's stored answers again, by other scoring rules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spatial_eval.analysis.metrics import accuracy_figures, mark_yes, percent, yes_no_figures
from spatial_eval.analysis.sweep_data import SweepData, none_if_empty, translate_damage
from spatial_eval.benchmarks.scoring import RULES, YES_NO, Grade, check_rule, grade_answer, read_number
from spatial_eval.core.columns import IDENTITY
from spatial_eval.core.errors import DataError
from spatial_eval.core.files import parse_json
from spatial_eval.core.types import Sample

if TYPE_CHECKING:
    import pandas as pd

NEEDED = {"letters": "options with letters", "yes_no": "golds yes and no", "number": "golds that are numbers"}
RULE_FIGURES = (
    *("scoring", "n", "accuracy", "accuracy_low", "accuracy_high", "accuracy_strict"),
    *("precision", "recall", "f1", "yes_rate", "unreadable"),
)


def write_choices(sample: Sample) -> tuple[str, str]:
    """Return the columns of samples.parquet for later grading: all gold answers and the options, as JSON texts.

    The gold answers are "" where there is one, which stands in `gold`; options are "" where none are known.
    """
    golds = json.dumps(sample.answers, ensure_ascii=False) if len(sample.answers) > 1 else ""
    pairs = dict(zip(sample.options, sample.option_texts, strict=True)) if sample.option_texts else sample.options
    return golds, json.dumps(pairs, ensure_ascii=False) if pairs else ""


def rule_rows(files: SweepData, rules: Sequence[str]) -> list[dict[str, Any]]:
    """Grade a sweep's stored answers by other scoring rules: one row per cell and rule that its dataset can be read by.

    Raises:
        ConfigError: no such rule. DataError: a rule reads none of the datasets, or the files hold no options.
    """
    lacking = [name for name in ("golds", "options") if name not in files.samples]
    if lacking:
        raise DataError(
            f"{files.folder}/samples.parquet is of an older version (no {lacking[0]}): run its launch.py command "
            "again, which computes nothing"
        )
    if not len(files.samples) or not files.keys:
        raise DataError(f"--rule: no cell of {files.folder.name} has a stored answer; run its launch.py command again")
    kept = (*IDENTITY, "missing")
    rows: list[dict[str, Any]] = []
    for rule in rules:
        check_rule(rule, where="--rule")
        with translate_damage(files.folder):
            names = [name for name, frame in files.samples.groupby("dataset") if _can_read(rule, frame)]
        if not names:
            raise DataError(
                f"--rule {rule} reads {NEEDED[RULES[rule].needs]}; no dataset of {files.folder.name} has them"
            )
        samples = files.samples[files.samples["dataset"].isin(names)]
        with translate_damage(files.folder):
            grades = [_grade_row(row, rule) for row in samples.to_dict("records")]
        options, right, strict = (list(column) for column in zip(*grades, strict=True))
        samples = samples.assign(prediction=options, correct=right, correct_strict=strict, scoring=rule)
        regraded = replace(files, content=samples.to_parquet(index=False))
        for cell, key in enumerate(files.keys):
            if key in regraded.parts:
                outcome = regraded.outcome(cell)
                figures = accuracy_figures(outcome)
                figures |= yes_no_figures(outcome, mark_yes(list(regraded.parts[key].questions["gold"])))
                figures |= {"unreadable": percent(int(outcome.unreadable.sum()), figures["n"]), "scoring": rule}
                values = {name: value for name, value in files.row(cell).items() if name in kept}
                plain = {name: v.item() if isinstance(v, np.generic) else v for name, v in values.items()}
                known = {name: none_if_empty(value) for name, value in plain.items()}
                rows.append(known | {name: figures.get(name) for name in RULE_FIGURES})
    return rows


def _can_read(rule: str, frame: pd.DataFrame) -> bool:
    """Return whether a rule can read the answers of a dataset."""
    needs = RULES[rule].needs
    if needs == "yes_no":
        return set(frame["gold"]) <= set(YES_NO)
    if needs == "number":
        return all(map(read_number, set(frame["gold"])))
    if needs == "letters":
        return all(text and all(len(option) == 1 for option in parse_json(text)) for text in set(frame["options"]))
    return True


def _grade_row(row: Mapping[Any, Any], rule: str) -> Grade:
    options = parse_json(row["options"] or "[]")
    texts = tuple(options.values()) if isinstance(options, dict) else ()
    golds = tuple(parse_json(row["golds"])) if row["golds"] else (row["gold"],)
    return grade_answer(Sample("", 0, "", golds, tuple(options), scoring=rule, option_texts=texts), row["text"])
