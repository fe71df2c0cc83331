"""The tiny model's card. `python benchmarks/tiny_card.py FOLDER` renews its figures and keeps its recipe."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tiny_figures import figures, load

from spatial_eval.benchmarks.scenes.generator import DIFFICULTIES, FORMS

DEFAULT = "medium"


def _table(head: list[str], rows: list[list[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _by_form(every: dict, level: str, part: str) -> str:
    head = list(every[level][next(iter(FORMS))][part])
    return _table(["form", *head], [[form, *(f"{every[level][form][part][key]:g}" for key in head)] for form in FORMS])


def card(every: dict, recipe: str) -> str:
    levels, usual = list(every), every[DEFAULT]
    accuracy = [[form, *(f"{every[level][form]['accuracy']['1']:g}" for level in levels)] for form in FORMS]
    relations = [[form, ", ".join(f"{k} {v:g}" for k, v in usual[form]["relations"].items())] for form in FORMS]
    adapt = [
        [
            form,
            f"{a['weight1']:g}, {a['weight2']:g}, {a['threshold']:g}",
            a["base"],
            a["adapt_vis"],
            f"{a['gain']:+g} ± {a['half']:g}",
        ]
        for form in FORMS
        for a in [usual[form]["adapt"]]
    ]
    helped = [form for form in FORMS if usual[form]["adapt"]["gain"] > usual[form]["adapt"]["half"]]
    verdict = (
        f"AdaptVis changes its answers but does not help it significantly on any form at {DEFAULT}."
        if not helped
        else f"AdaptVis helps it significantly on {', '.join(helped)} at {DEFAULT}, and on no other form."
    )
    return TEXT.format(
        recipe=recipe,
        default=DEFAULT,
        accuracy=_table(["form", *levels], accuracy),
        relations=_table(["form", "accuracy by relation"], relations),
        weights=_by_form(every, DEFAULT, "accuracy"),
        changed=_by_form(every, DEFAULT, "changed"),
        routed=_by_form(every, DEFAULT, "routed"),
        adapt=_table(["form", "weight1, weight2, threshold", "weight 1", "AdaptVis", "gain"], adapt),
        verdict=verdict,
        figures=json.dumps(every),
    )


TEXT = """---
library_name: transformers
pipeline_tag: image-text-to-text
license: apache-2.0
---
# The embedded tiny model

A stock `LlavaForConditionalGeneration` of 1.2 million parameters, trained on drawn scenes, so that the whole tool can
be tried and tested on a laptop without a network: a CLIP vision tower (3 layers, width 96, 64 patches of a 96 pixel
image), a projector, and a Llama (4 layers, width 128, a vocabulary of 456). It loads like any model of the hub.

**What it is for**: a first run, examples, and tests on a model that gives right and wrong answers.
**What it is not for**: any claim about vision-language models. It was trained on drawings of 20 things and 6 pieces of
furniture and on the questions of the four scene forms, and answers anything else with one of their words.
Of two named things it often confuses which is which, and then answers with the commoner word (left, front, above).
{verdict} It shows the tool, not the method.

## Data

Scenes of this package's renderer (`spatial_eval/benchmarks/scenes`), drawn at random from a mix that differs from the
benchmark's: in training every thing has one relation that occurs three times as often, and left and right are
commoner than the rest, so the question alone suggests an answer that the image may contradict. Benchmark scenes are
balanced, use other random streams, and their default difficulty is {default}. No photograph,
no other text and no other model was used.

## Recipe

{recipe}

Prompts are LLaVA-1.5 style, `<image>\\nUSER: ... \\nASSISTANT:`, taken as they stand; answers are one word and
the end of sequence. Weights are stored in bfloat16 and meant to be run in float32 (`dtype` in config.json).

## Accuracy

First generated word, baseline (weight 1), float32, seed 0 of each form, in percent; chance is 25, and without the
image the accuracy is exactly that, because the four pictures of a set share one question.

{accuracy}

At {default}, by relation:

{relations}

## Response to the weight

Accuracy by weight on the image logits of the last prompt token, at {default}:

{weights}

Share of answers that differ from those at weight 1:

{changed}

## Routing

Share of questions whose confidence, rounded to two decimals, lies below a threshold, at {default}:

{routed}

AdaptVis with its setting picked on the validation split, on the test split, at {default} (gain with the half width of a
95 % interval of the paired difference):

{adapt}

## Figures

Difficulty, form, then as `figures` in benchmarks/tiny_figures.py gives them; a test recomputes them.

```json
{figures}
```
"""


def write(folder: Path, recipe: str) -> None:
    model, processor = load(folder)
    every: dict[str, dict[str, object]] = {}
    for level in DIFFICULTIES:
        every[level] = {}
        for form in FORMS:
            every[level][form] = found = figures(model, processor, form, level)
            print(f"{level} {form}: {found}", flush=True)
    (folder / "README.md").write_text(card(every, recipe), "utf8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    old = (args.folder / "README.md").read_text("utf8")
    write(args.folder, old.split("## Recipe\n\n")[1].split("\n\nPrompts are")[0])


if __name__ == "__main__":
    main()
