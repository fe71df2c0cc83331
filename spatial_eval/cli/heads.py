"""python -m spatial_eval heads: rank attention heads on val, and write the best as a set that `method.heads` takes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from spatial_eval.cli.arguments import OUTPUT_DIR, SWEEP, Commands
from spatial_eval.core.arms import BASE
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.files import write_atomic
from spatial_eval.core.layers import canonical_heads

SHOWN = 20  # heads in the printed table, at least


def add_heads(commands: Commands) -> None:
    """Add the command to the command line's parser."""
    made = commands.add_parser("heads", parents=[SWEEP, OUTPUT_DIR])
    made.add_argument("--on", choices=["val"], default="val", help="questions that are looked at: val, never test")
    made.add_argument(
        "--by",
        choices=["auroc", "share", "entropy", "overlap"],
        default="auroc",
        help="auroc: its share on the image tells right from wrong (default); share: largest on the image; entropy: "
        "sharpest on the image; overlap: on the objects asked about (scenes)",
    )
    made.add_argument("--top", type=int, default=10, metavar="N", help="heads in the set (default: 10)")
    for name in ("dataset", "model"):
        made.add_argument(f"--{name}", default="", help=f"which {name}, where the sweep has several")
    made.add_argument("--out", type=Path, required=True, metavar="FILE", help="the set, FILE.json for method.heads=")
    made.set_defaults(run=run_heads)


def run_heads(parsed: argparse.Namespace) -> int:
    """Print the ranking, best first, and write the set."""
    from spatial_eval.analysis.head_scores import HeadScore, rank_heads, score_heads
    from spatial_eval.analysis.sweep_data import find_sweep, read_sweep_data
    from spatial_eval.store import attention

    if parsed.out.suffix != ".json" or parsed.top < 1:
        raise ConfigError(f"--out {parsed.out} --top {parsed.top} is not valid; expected FILE.json and at least 1 head")
    files = read_sweep_data(find_sweep(parsed.output_dir, parsed.sweep))
    found = attention.find_attention(files.folder, parsed.dataset, parsed.model)
    if not len(found.heads):
        raise ConfigError(f"sweep {files.folder.name} has no heads: run its command with capture=heads")
    if BASE not in found.arms:
        raise ConfigError(f"sweep {files.folder.name} has no captured baseline: run its command with method=base too")
    arm = found.arms.index(BASE)
    asked = attention.in_split(files.samples, found, parsed.on)
    if not asked.any():
        raise ConfigError(f"sweep {files.folder.name} captured no question of {parsed.on}: run it with split=val")
    right = attention.answered_right(files.samples, found)[:, arm]
    objects = _find_objects(
        files.about, found.dataset, [one for one, ours in zip(found.ids, asked, strict=True) if ours]
    )
    ranked = rank_heads(score_heads(found, arm, right, asked, objects), parsed.by)
    names = [f.name for f in fields(HeadScore)]
    sys.stdout.write("  ".join(f"{name:>7}" for name in names) + "\n")
    for one in ranked[: max(parsed.top, SHOWN)]:
        values = asdict(one).values()
        sys.stdout.write("  ".join(f"{v:>7}" if isinstance(v, int) else f"{v:>7.3f}" for v in values) + "\n")
    chosen = canonical_heads(tuple(f"{one.layer}:{one.head}" for one in ranked[: parsed.top]), "--top")
    about = {"sweep": files.folder.name, "dataset": found.dataset, "model": found.model, "split": parsed.on}
    write_atomic(parsed.out, json.dumps({"heads": chosen, "by": parsed.by, **about}, indent=2) + "\n")
    sys.stdout.write(f"{parsed.out}\n")
    return 0


def _find_objects(about: Mapping[str, Any], dataset: str, ids: Sequence[str]) -> Mapping[str, Any]:
    """Find where the objects are that questions name, by question; {} for datasets other than scenes."""
    from spatial_eval.benchmarks.scenes.rendered import Scenes

    tree: Mapping[str, Any] = next(
        (trunk["dataset"] for trunk in about["trunks"] if trunk["dataset"]["name"] == dataset), {}
    )
    while "benchmark" in tree:  # of a template's or a framing's wrapper
        tree = tree["benchmark"]
    keys = ("name", "form", "difficulty", "seed")
    return Scenes(**{key: tree[key] for key in keys}).find_objects(ids) if tree.keys() >= set(keys) else {}
