"""Lay out captured attention question by question: the picture, each arm's map on one scale, gold answer and answers.

The report shows a panel as HTML; `draw_panel` draws it as one picture for the command line.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from spatial_eval.analysis.metrics import label_arm
from spatial_eval.analysis.sweep_data import SweepData
from spatial_eval.core.types import BASE, Arm
from spatial_eval.report.figures import RAMP, Thumbnails, draw_attention, fit_picture
from spatial_eval.report.samples import shorten_text
from spatial_eval.store import attention as captured
from spatial_eval.store.attention import Attention, View

TILE, GAP, LINE = 320, 20, 20  # pixels
COLUMNS = 4  # of tiles in a panel
BAR = 260  # pixels, the width of the colour bar
INK, SOFT, RIGHT, WRONG = (27, 31, 36), (88, 96, 105), (20, 114, 58), (179, 38, 30)


@dataclass(frozen=True, slots=True)
class ArmMap:
    """Hold one arm's map, (n,) shares of its last prompt row, the image's share of that row, and the arm's answer.

    `right`: None where the answer is not stored.
    """

    arm: Arm
    values: NDArray[np.float32]
    share: float
    answer: str
    right: bool | None

    @property
    def name(self) -> str:
        return label_arm(self.arm)

    @property
    def caption(self) -> str:
        brightest = float(np.nan_to_num(self.values).max(initial=0))
        text = f"{100 * self.share:.1f} % on the image, brightest token {100 * brightest:.2f} %"
        return text + " (as base)" * (self.arm != BASE and self.arm.attention.untouched)


@dataclass(frozen=True, slots=True)
class Panel:
    """Hold a question with the maps of its arms; `top`: value of the brightest colour, shared by all arms."""

    id: str
    question: str
    gold: str
    images: tuple[Path, ...]
    orientation: str
    view: View | None
    arms: Sequence[ArmMap]

    @property
    def top(self) -> float:
        return float(np.nan_to_num(np.stack([arm.values for arm in self.arms])).max(initial=0))

    def draw_arms(self, size: int) -> list[Image.Image]:
        """Draw each arm's map on the one scale. Raises DataError where the file is not an image."""
        how: dict[str, Any] = {"top": self.top, "size": size, "orientation": self.orientation}
        return [draw_attention(self.images, one.values, self.view, **how) for one in self.arms]

    def draw_image(self, size: int) -> Image.Image:
        """Draw the picture alone. Raises DataError where the file is not an image."""
        return fit_picture(self.images, size=size, orientation=self.orientation)


@dataclass(frozen=True)
class PanelSource:
    """Build panels of one capture."""

    files: SweepData
    capture: Attention
    pictures: Thumbnails

    def find_images(self) -> list[tuple[Path, ...]]:
        """Return the picture files of each question; () where one is absent."""
        images = captured.image_paths(self.files.samples, self.capture)
        return [self.pictures.find_all(images.get(sample_id, "")) for sample_id in self.capture.ids]

    def build(self, question: int, images: tuple[Path, ...], arms: Sequence[int], layers: slice = slice(None)) -> Panel:
        """Build the panel of a question with some arms, both indices of the capture, over some layers."""
        capture = self.capture
        part = self.files.experiments[capture.dataset, capture.model, capture.max_new_tokens]
        row = int(np.flatnonzero(part.questions["sample_id"].astype(str) == capture.ids[question])[0])
        asked = part.questions.iloc[row]
        maps = captured.select_layer(capture.map[question], layers)

        def build_arm(w: int) -> ArmMap:
            arm = capture.arms[w]
            share = float(np.nanmean(capture.mass[question, w, layers]))
            if arm not in part.arms or not part.arms[arm].signals.answered[row]:
                return ArmMap(arm, maps[w], share, "", None)
            return ArmMap(arm, maps[w], share, shorten_text(part.texts[arm][row], 60), bool(part.arms[arm].right[row]))

        return Panel(
            capture.ids[question],
            shorten_text(str(asked["question"])),
            str(asked["gold"]),
            images,
            self.pictures.orientation(capture.dataset),
            capture.views[question],
            [build_arm(w) for w in arms],
        )


def draw_panel(panel: Panel, layer: str) -> Image.Image:
    """Draw a panel: question and gold answer, the picture and the arms side by side, and the colour bar.

    Args:
        layer: layer of the maps, or `mean`.

    Raises:
        DataError: the picture's file is not an image.
    """
    tiles = [panel.draw_image(TILE), *panel.draw_arms(TILE)]
    columns = min(COLUMNS, len(tiles))
    width = columns * (TILE + GAP) + GAP
    font, bold = ImageFont.load_default(15), ImageFont.load_default(17)
    asked = _wrap(panel.question, bold, width - 2 * GAP)
    scale = f"{100 * panel.top:.2f} % of the last prompt token's attention, per image token"
    where = "mean over layers and heads" if layer == "mean" else f"layer {layer}, mean over heads"
    notes = f"Prefill, {where}; one scale for all arms of this question. "
    notes += "What the model did not see is dark." if panel.view else "Tokens in their order: their place is not known."
    below = _wrap(notes, font, width - 2 * GAP)
    height = max(tile.height for tile in tiles)
    rows = -(-len(tiles) // columns)
    top = GAP + LINE * len(asked) + LINE + GAP
    row_height = height + 3 * LINE + GAP
    canvas = Image.new("RGB", (width, top + rows * row_height + LINE * (2 + len(below)) + GAP), "white")
    draw = ImageDraw.Draw(canvas)

    def write(x: int, y: int, text: str, colour: tuple[int, int, int] = INK, face: Any = font) -> None:
        draw.text((x, y), text.encode("latin-1", "replace").decode("latin-1"), fill=colour, font=face)

    for i, line in enumerate(asked):
        write(GAP, GAP + LINE * i, line, face=bold)
    write(GAP, GAP + LINE * len(asked), f"Gold answer: {panel.gold}")
    for i, tile in enumerate(tiles):
        x, y = GAP + (i % columns) * (TILE + GAP), top + (i // columns) * row_height
        canvas.paste(tile, (x, y))
        y += height + 2
        if not i:
            write(x, y, f"Picture of question {panel.id}", SOFT)
            continue
        arm = panel.arms[i - 1]
        write(x, y, arm.name)
        if arm.right is None:
            write(x, y + LINE, "no answer stored", SOFT)
        else:
            colour = RIGHT if arm.right else WRONG
            _draw_mark(draw, (x, y + LINE + 4), colour, right=arm.right)
            write(x + LINE, y + LINE, arm.answer or "(empty)", colour)
        write(x, y + 2 * LINE, arm.caption, SOFT)
    y = top + rows * row_height
    steps = np.linspace(0, 1, len(RAMP))
    for x in range(BAR):
        r, g, b = (round(float(np.interp(x / (BAR - 1), steps, RAMP[:, channel]))) for channel in range(3))
        draw.line((GAP + 30 + x, y + 2, GAP + 30 + x, y + 14), fill=(r, g, b))
    write(GAP, y, "0 %")
    write(GAP + 38 + BAR, y, scale)
    for i, line in enumerate(below):
        write(GAP, y + LINE * (i + 1) + 4, line, SOFT)
    return canvas


def _draw_mark(draw: ImageDraw.ImageDraw, at: tuple[int, int], colour: tuple[int, int, int], *, right: bool) -> None:
    """Draw a tick or a cross of 12 pixels: not every font has them."""
    x, y = at
    if right:
        draw.line([(x, y + 7), (x + 4, y + 11), (x + 12, y)], fill=colour, width=2)
    else:
        draw.line([(x, y), (x + 11, y + 11)], fill=colour, width=2)
        draw.line([(x, y + 11), (x + 11, y)], fill=colour, width=2)


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels, by the font's mean width of a letter."""
    letters = max(20, int(width / (font.getlength("abcdefghijklmnopqrstuvwxyz ") / 27)) - 2)
    return textwrap.wrap(text, letters) or [""]
