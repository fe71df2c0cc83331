"""The data card of an export: what it is, of which models, how to read it, whose it is. No path of this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from . import __version__, show
from .origins import ARM, SAID

LABELS = ("dataset", "model", "max_new_tokens")
QUESTION = ("row", "sample_id", "question", "gold", "split")
READERS = {  # by format; pandas' own guesses lose digits and turn ids into numbers
    "jsonl": "read_json('{file}', lines=True, precise_float=True, dtype={{'sample_id': str}})",
    "parquet": "read_parquet('{file}')",
}
CARD = """# Answers of vision-language models to spatial questions

`{file}` holds {rows:,} generations, one row a question and arm (a way to decode: the weight on the attention towards
the image, its scaling and layers, or a contrast). Written by spatial_eval {version}. Neither weights nor images are
included.

## Contents

{counts}

`failed`: answers that could not be computed. They have no row: missing, not wrong.
{cells}
## Models and decoding

What each trunk's answers are stored under (trunks.json): the model's content, dtype, batch, decoding.

{models}

{versions}

## Reading it

`pandas.{reader}`. Columns: {labels}; {question} (row: index in the whole dataset; gold in lower case); the arm's
fields ({arm}); the answer's ({said}). The numbers are those of the arm's first token: confidence (largest
probability, in [0, 1], unrounded), entropy (nats), margin (largest minus second largest probability), logit (the
largest). In JSON lines a field that is absent was not recorded, or is at its default; in parquet it is null, and
option_probs is JSON.

Back into spatial_eval, where the same commands make the same tables of it:

    python -m spatial_eval import FOLDER --data-dir DATA

## Licences

Questions and gold answers belong to their benchmarks, whose licences govern them (What'sUp, arXiv 2310.19785; VSR,
arXiv 2205.00363; and what else is listed above); so do the images, which are not here. A model's licence may say
what its outputs can be used for.
"""


def card(
    file: str,
    rows: int,
    trunks: Mapping[str, Mapping[str, Any]],
    versions: Sequence[Mapping[str, str]],
    cells: Sequence[Mapping[str, str]],
) -> str:
    """README.md of an export. `trunks` as in trunks.json; `cells`: rows of results.csv, or none."""
    names = (*LABELS, "questions", "answers", "failed")
    counts = [{**{name: one[name] for name in names}, "arms": "; ".join(one["arms"])} for one in trunks.values()]
    models = [
        f"* `{one['dataset']} x {one['model']}`: `{json.dumps(one['identity'], sort_keys=True)}`"
        for one in trunks.values()
    ]
    return CARD.format(
        file=file,
        rows=rows,
        version=__version__,
        counts=_table(counts),
        cells=f"\n## Accuracy, percent\n\n{show.markdown(cells)}\n\n{_rules(cells)}\n" if cells else "",
        models="\n".join(models),
        versions=_table(versions),
        reader=READERS[file.rpartition(".")[2]].format(file=file),
        labels=", ".join(LABELS),
        question=", ".join(QUESTION),
        arm=", ".join(ARM),
        said=", ".join(SAID),
    )


def _rules(cells: Sequence[Mapping[str, str]]) -> str:
    """How an answer counts; in a table that names no rule, one of before 0.2, by the paper's."""
    rules = dict.fromkeys((one["dataset"], one.get("scoring") or "paper") for one in cells)
    named = ", ".join(f"{dataset}: `{rule}`" for dataset, rule in rules)
    return f"Rule by which an answer counts (`dataset.scoring`, docs/results.md of spatial_eval): {named}."


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0]) if rows else []
    lines = [names, ["---"] * len(names), *([str(row[name]).replace("|", "\\|") for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
