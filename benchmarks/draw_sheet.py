"""Draws docs/scenes.png: a few scenes of every form with their questions, to be looked at by a person.

`python benchmarks/draw_sheet.py --out docs/scenes.png [--difficulty medium] [--seed 0] [--answers]`
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from spatial_eval.benchmarks.scenes.canvas import SIDE
from spatial_eval.benchmarks.scenes.generator import DIFFICULTIES, FORMS, Scene, generate_scenes
from spatial_eval.benchmarks.scenes.pictures import describe_picture

COLUMNS, GAP, TEXT, HEAD = 5, 12, 50, 26
INK, GREY = (30, 32, 38), (110, 114, 122)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--difficulty", choices=list(DIFFICULTIES), default="medium")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="sets to pass over, to see others")
    parser.add_argument("--answers", action="store_true", help="write the right answer under each picture")
    args = parser.parse_args()
    row = HEAD + SIDE + TEXT + GAP
    sheet = Image.new("RGB", (GAP + COLUMNS * (SIDE + GAP), GAP + len(FORMS) * row), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(16), ImageFont.load_default(12)
    for index, form in enumerate(FORMS):
        rows, top = generate_scenes(form, args.difficulty, args.seed), GAP + index * row
        draw.text((GAP, top), f"{form}: {', '.join(FORMS[form].relations)}", INK, large)
        for column in range(COLUMNS):
            scene = rows[4 * (args.skip + column) + (column + index) % 4]
            left = GAP + column * (SIDE + GAP)
            sheet.paste(describe_picture(scene).image, (left, top + HEAD))
            draw.multiline_text((left, top + HEAD + SIDE + 3), caption(scene, args.answers), INK, small, spacing=2)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, method=Image.Quantize.FASTOCTREE, kmeans=4, dither=Image.Dither.NONE).save(
        args.out, optimize=True
    )
    print(args.out)


def caption(scene: Scene, answers: bool) -> str:
    ask = scene.question.split("USER: ")[1].split("?")[0].replace(" in relation", "\nin relation") + "?"
    return f"{ask}  {scene.answer}" if answers else ask


if __name__ == "__main__":
    main()
