"""Draw captured attention maps as pictures: python -m spatial_eval attention."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spatial_eval.analysis import sweep_data
from spatial_eval.cli.arguments import OUTPUT_DIR, SWEEP, Commands
from spatial_eval.core.errors import ConfigError, DataError
from spatial_eval.core.types import BASE

EXAMPLES = 4


def add_attention(commands: Commands) -> None:
    """Add the command to the command line's parser."""
    made = commands.add_parser("attention", parents=[SWEEP, OUTPUT_DIR])
    made.add_argument("--question", action="append", metavar="ID", help="the questions to draw, by id")
    made.add_argument("--examples", type=int, metavar="N", help=f"or evenly spread ones (default: {EXAMPLES})")
    made.add_argument("--arm", action="append", metavar="LABEL", help="arms as results name them, 0.5 (default: all)")
    made.add_argument("--layer", action="append", metavar="L", help="an index, or mean over all (default: mean)")
    for name in ("dataset", "model"):
        made.add_argument(f"--{name}", default="", help=f"which {name}, where the sweep has several")
    made.add_argument("--max-new-tokens", type=int, default=0, metavar="N", help="which, where there are several")
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the PNG files")
    made.set_defaults(run=run_attention)


def run_attention(parsed: argparse.Namespace) -> int:
    """Draw one PNG per question and layer, all arms on one scale; print their paths."""
    from spatial_eval.analysis.sweep_data import read_sweep_data
    from spatial_eval.report.figures import thumbnails
    from spatial_eval.report.panels import PanelSource, draw_panel
    from spatial_eval.store import attention

    files = read_sweep_data(sweep_data.find_sweep(parsed.output_dir, parsed.sweep))
    found = attention.find_attention(files.folder, parsed.dataset, parsed.model, parsed.max_new_tokens)
    if not len(found.map):
        raise ConfigError(f"sweep {files.folder.name} has no maps: run its command with capture=map, or heads")
    layers = [read_layer(text, found.mass.shape[2]) for text in parsed.layer or ["mean"]]
    arms = (
        [found.arm(label) for label in parsed.arm]
        if parsed.arm
        else sorted(range(len(found.arms)), key=lambda w: found.arms[w] != BASE)
    )
    chosen = select_questions(found.ids, parsed.question, parsed.examples)
    source = PanelSource(files, found, thumbnails(files.about))
    images = source.find_images()
    if any(found.views[i] is None for i in chosen):
        sys.stderr.write(f"{found.model}: where its tokens lie on the picture is not known: maps are drawn as strips\n")
    for i in chosen:
        paths = images[i]
        if not paths:
            raise DataError(f"the picture of question {found.ids[i]} is not where its sweep found it")
        for name, index in layers:
            target = parsed.out / f"{_safe(found.dataset, found.model, found.ids[i], name)}.png"
            picture = draw_panel(source.build(i, paths, arms, index), name)
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.save(target)
            sys.stdout.write(f"{target}\n")
    return 0


def select_questions(ids: Sequence[str], named: Sequence[str] | None, examples: int | None) -> list[int]:
    """Return the indices of the questions to draw. Raises ConfigError where there is no such question."""
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


def read_layer(text: str, depth: int) -> tuple[str, slice]:
    """Read --layer as its name and the layers to average, out of `depth`. Raises ConfigError."""
    if text == "mean":
        return text, slice(None)
    if not text.isdecimal() or int(text) >= depth:
        raise ConfigError(f"--layer {text} is not valid; expected mean, or 0 to {depth - 1}")
    return text, slice(int(text), int(text) + 1)


def _safe(*parts: str) -> str:
    return "--".join("".join(c if c.isalnum() or c in "._=," else "-" for c in part) for part in parts)
