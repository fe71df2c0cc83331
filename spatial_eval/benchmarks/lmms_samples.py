"""Read samples of lmms-eval (`--log_samples`), for import and for dataset.form=lmms.

Older files hold `doc`, without its pictures, and `arguments`; the newest hold `input` in their place, and `resps` only
where it differs from `filtered_resps`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spatial_eval.core.errors import DataError


def list_texts(value: Any) -> list[str]:
    """List the texts in nested lists and mappings, in order."""
    if isinstance(value, dict | list | tuple):
        nested = value.values() if isinstance(value, dict) else value
        return [text for inner in nested for text in list_texts(inner)]
    return [value] if isinstance(value, str) else []


def read_prompt(record: Mapping[str, Any]) -> str | None:
    """Return the model's prompt, with the task's instruction; None where the record has none."""
    return next(filter(str.strip, list_texts(record.get("arguments", record.get("input")))), None)


def read_target(record: Mapping[str, Any]) -> str | None:
    """Return the gold answer; None where it is no text."""
    target = record.get("target")
    return target if isinstance(target, str) and target.strip() else None


def read_responses(record: Mapping[str, Any]) -> list[str]:
    """Return the model's texts, before any filter."""
    return list_texts(record.get("resps", record.get("filtered_resps")))


def read_question(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sample as a row of a question file: id, question and answer, and the columns of its document.

    Raises:
        DataError: the sample holds no prompt; the message does not name the record's place.
    """
    doc, number, prompt = record.get("doc"), record.get("doc_id"), read_prompt(record)
    if type(number) is not int or prompt is None:
        raise DataError("needs doc_id, a whole number, and input or arguments: it is no sample of lmms-eval's")
    columns = {**record, **(doc if isinstance(doc, dict) else {})}
    return {**columns, "id": number, "question": prompt, "answer": record.get("target")}
