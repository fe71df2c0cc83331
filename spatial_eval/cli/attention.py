"""python -m spatial_eval attention: captured maps as pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spatial_eval.analysis import sweep_data
from spatial_eval.cli.arguments import OUTPUT_DIR, SWEEP, Commands
from spatial_eval.core.errors import ConfigError, DataError

EXAMPLES = 4


def add_attention(commands: Commands) -> None:
    """The command, for the command line's parser."""
    made = commands.add_parser("attention", parents=[SWEEP, OUTPUT_DIR])
    made.add_argument("--question", action="append", metavar="ID", help="the questions to draw, by id")
    made.add_argument("--examples", type=int, metavar="N", help=f"else so many, spread evenly (default: {EXAMPLES})")
    made.add_argument("--arm", action="append", metavar="LABEL", help="arms as results name them, 0.5 (default: all)")
    made.add_argument("--layer", action="append", metavar="L", help="an index, or mean over all (default: mean)")
    for name in ("dataset", "model"):
        made.add_argument(f"--{name}", default="", help=f"which {name}, where the sweep has several")
    made.add_argument("--max-new-tokens", type=int, default=0, metavar="N", help="likewise")
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the PNG files")
    made.set_defaults(run=run_attention)


def run_attention(parsed: argparse.Namespace) -> int:
    """One PNG a question, arm and layer; their paths are printed. Colours of one question and layer are comparable."""
    from spatial_eval.analysis.sweep_data import read_sweep_data
    from spatial_eval.report import figures
    from spatial_eval.report.figures import thumbnails
    from spatial_eval.store import attention

    files = read_sweep_data(sweep_data.find_sweep(parsed.output_dir, parsed.sweep))
    found = attention.find_attention(files.folder, parsed.dataset, parsed.model, parsed.max_new_tokens)
    if not len(found.map):
        raise ConfigError(f"sweep {files.folder.name} has no maps: run its command with capture=map, or heads")
    layers = [layer_of(text, found.mass.shape[2]) for text in parsed.layer or ["mean"]]
    arms = [found.arm(label) for label in parsed.arm] if parsed.arm else list(range(len(found.arms)))
    chosen = questions(found.ids, parsed.question, parsed.examples)
    images = attention.image_paths(files.samples, found)
    pictures = thumbnails(files.about)
    turn = pictures.orientation(found.dataset)
    if any(found.views[i] is None for i in chosen):
        sys.stderr.write(f"{found.model}: where its tokens lie on the picture is not known: maps are drawn as strips\n")
    for i in chosen:
        path = pictures.find(images.get(found.ids[i], ""))
        if path is None:
            raise DataError(f"the picture of question {found.ids[i]} is missing: {images.get(found.ids[i])}")
        for name, index in layers:
            maps = attention.select_layer(found.map[i], index)  # (W, n)
            top = float(maps[arms].max(initial=0.0, where=maps[arms] >= 0))
            for arm in arms:
                label, share = found.arms[arm].label, float(found.mass[i, arm, index].mean())
                drawing = figures.draw_attention(path, maps[arm], found.views[i], top=top, orientation=turn)
                own = float(maps[arm].max(initial=0.0, where=maps[arm] >= 0))
                text = f"arm {label}, layer {name}: {100 * share:.1f} % on the image, "
                text += f"brightest {100 * own:.2f} of {100 * top:.2f} %"
                target = parsed.out / f"{_safe(found.dataset, found.model, found.ids[i], label, name)}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                figures.add_caption(drawing, text).save(target)
                sys.stdout.write(f"{target}\n")
    return 0


def questions(ids: Sequence[str], named: Sequence[str] | None, examples: int | None) -> list[int]:
    """Indices of the questions to draw. Raises ConfigError."""
    if named:
        absent = [name for name in named if name not in ids]
        if absent:
            raise ConfigError(f"question {absent[0]} is not captured; ids go from {ids[0]} to {ids[-1]}")
        return [ids.index(name) for name in named]
    wanted = EXAMPLES if examples is None else examples
    if wanted < 1:
        raise ConfigError(f"--examples {wanted} is not valid; expected at least 1")
    step = max(1, len(ids) // wanted)
    return list(range(len(ids)))[::step][:wanted]


def layer_of(text: str, depth: int) -> tuple[str, slice]:
    """Its name, and which layers it is the mean of. Raises ConfigError."""
    if text == "mean":
        return text, slice(None)
    if not text.isdecimal() or int(text) >= depth:
        raise ConfigError(f"--layer {text} is not valid; expected mean, or 0 to {depth - 1}")
    return text, slice(int(text), int(text) + 1)


def _safe(*parts: str) -> str:
    return "--".join("".join(c if c.isalnum() or c in "._=," else "-" for c in part) for part in parts)
