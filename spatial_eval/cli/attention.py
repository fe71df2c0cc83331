"""Use captured attention: draw it as pictures (attention), and rank heads for a set that method.heads takes (heads)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from spatial_eval.analysis.sweep_data import find_sweep, read_sweep_data
from spatial_eval.cli.arguments import OUTPUT_DIR, SWEEP, Commands
from spatial_eval.core.arms import BASE
from spatial_eval.core.errors import ConfigError, DataError
from spatial_eval.core.files import write_atomic
from spatial_eval.core.layers import canonical_heads, canonical_layers, layer_indices
from spatial_eval.store import attention

EXAMPLES = 4
SHOWN = 20  # heads in the printed table, at least


def add_attention(commands: Commands) -> None:
    """Add `attention` and `heads` to the subparsers of the command line."""
    maps = commands["attention"](parents=[SWEEP, OUTPUT_DIR])
    maps.add_argument("--question", action="append", metavar="ID", help="the questions to draw, by id")
    maps.add_argument("--examples", type=int, metavar="N", help=f"or evenly spread ones (default: {EXAMPLES})")
    maps.add_argument("--arm", action="append", metavar="LABEL", help="arms as results name them, 0.5 (default: all)")
    maps.add_argument("--layer", action="append", metavar="L", help="an index, or mean over all (default: mean)")
    _add_which(maps)
    maps.add_argument("--max-new-tokens", type=int, default=0, metavar="N", help="which, where there are several")
    maps.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the PNG files")
    maps.set_defaults(run=draw_maps)
    heads = commands["heads"](parents=[SWEEP, OUTPUT_DIR])
    heads.add_argument("--on", choices=["val"], default="val", help="questions that are looked at: val, never test")
    heads.add_argument(
        "--by",
        choices=["auroc", "share", "entropy", "overlap"],
        default="auroc",
        help="auroc: its share on the image tells right from wrong (default); share: largest on the image; entropy: "
        "sharpest on the image; overlap: on the objects asked about (scenes)",
    )
    heads.add_argument(
        "--layers",
        default="all",
        help="decoder layers that are ranked, as method.layers, 9-14/32 for vaf (default: all)",
    )
    heads.add_argument("--top", type=int, default=10, metavar="N", help="heads in the set (default: 10)")
    _add_which(heads)
    heads.add_argument("--out", type=Path, required=True, metavar="FILE", help="the set, FILE.json for method.heads=")
    heads.set_defaults(run=write_head_set)


def _add_which(parser: argparse.ArgumentParser) -> None:
    for name in ("dataset", "model"):
        parser.add_argument(f"--{name}", default="", help=f"which {name}, where the sweep has several")


def draw_maps(parsed: argparse.Namespace) -> None:
    """Draw one PNG per question and layer, all arms on one scale; print their paths."""
    from spatial_eval.report.figures import thumbnails
    from spatial_eval.report.panels import PanelSource, draw_panel

    files = read_sweep_data(find_sweep(parsed.output_dir, parsed.sweep))
    captured = attention.find_attention(files.folder, parsed.dataset, parsed.model, parsed.max_new_tokens)
    if not len(captured.map):
        raise ConfigError(f"sweep {files.folder.name} has no maps: run its command with capture=map, or heads")
    layers = [read_layer(text, captured.mass.shape[2]) for text in parsed.layer or ["mean"]]
    base_first = sorted(range(len(captured.arms)), key=lambda index: captured.arms[index] != BASE)
    arms = [captured.arm(label) for label in parsed.arm] if parsed.arm else base_first
    chosen = select_questions(captured.ids, parsed.question, parsed.examples)
    source = PanelSource(files, captured, thumbnails(files.about))
    images = source.find_images()
    if any(captured.views[i] is None for i in chosen):
        sys.stderr.write(
            f"{captured.model}: where its tokens lie on the picture is not known: maps are drawn as strips\n"
        )
    for i in chosen:
        paths, sample_id = images[i], captured.ids[i]
        if not paths:
            raise DataError(f"the picture of question {sample_id} is not where its sweep found it")
        for name, index in layers:
            target = parsed.out / f"{_join_names(captured.dataset, captured.model, sample_id, name)}.png"
            picture = draw_panel(source.build(i, paths, arms, index), name)
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.save(target)
            sys.stdout.write(f"{target}\n")


def select_questions(ids: Sequence[str], named: Sequence[str] | None, examples: int | None) -> list[int]:
    """Return the indices of the questions to draw. Raises ConfigError where there is no such question."""
    if named:
        absent = [name for name in named if name not in ids]
        if absent:
            some = ", ".join(ids if len(ids) <= 8 else [*ids[:5], "...", ids[-1]])
            raise ConfigError(f"question {absent[0]} is not captured; those are {some} (split= and limit= of the run)")
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


def _join_names(*parts: str) -> str:
    return "--".join("".join(c if c.isalnum() or c in "._=," else "-" for c in part) for part in parts)


def write_head_set(parsed: argparse.Namespace) -> None:
    """Print the ranking of heads, best first, and write the set."""
    from spatial_eval.analysis.head_scores import HeadScore, rank_heads, score_heads

    if parsed.out.suffix != ".json" or parsed.top < 1:
        raise ConfigError(f"--out {parsed.out} --top {parsed.top} is not valid; expected FILE.json and at least 1 head")
    files = read_sweep_data(find_sweep(parsed.output_dir, parsed.sweep))
    captured = attention.find_attention(files.folder, parsed.dataset, parsed.model)
    if not len(captured.heads):
        raise ConfigError(f"sweep {files.folder.name} has no heads: run its command with capture=heads")
    if BASE not in captured.arms:
        raise ConfigError(f"sweep {files.folder.name} has no captured baseline: run its command with method=base too")
    arm = captured.arms.index(BASE)
    in_split = attention.in_split(files.samples, captured, parsed.on)
    if not in_split.any():
        raise ConfigError(f"sweep {files.folder.name} captured no question of {parsed.on}: run it with split=val")
    right = attention.answered_right(files.samples, captured)[:, arm]
    ids = [sample_id for sample_id, is_in in zip(captured.ids, in_split, strict=True) if is_in]
    objects = _find_objects(files.about, captured.dataset, ids)
    layers = layer_indices(canonical_layers(parsed.layers, "--layers"), captured.mass.shape[2])
    scores = score_heads(captured, arm, right, in_split, objects)
    ranked = rank_heads([score for score in scores if score.layer in layers], parsed.by)
    sys.stdout.write("  ".join(f"{column.name:>7}" for column in fields(HeadScore)) + "\n")
    for score in ranked[: max(parsed.top, SHOWN)]:
        values = asdict(score).values()
        sys.stdout.write("  ".join(f"{v:>7}" if isinstance(v, int) else f"{v:>7.3f}" for v in values) + "\n")
    heads = canonical_heads(tuple(f"{score.layer}:{score.head}" for score in ranked[: parsed.top]), "--top")
    about = {"sweep": files.folder.name, "dataset": captured.dataset, "model": captured.model, "split": parsed.on}
    write_atomic(parsed.out, json.dumps({"heads": heads, "by": parsed.by, **about}, indent=2) + "\n")
    sys.stdout.write(f"{parsed.out}\n")


def _find_objects(about: Mapping[str, Any], dataset: str, ids: Sequence[str]) -> Mapping[str, Any]:
    """Find where the objects are that questions name, by question; {} for datasets other than scenes."""
    from spatial_eval.benchmarks.scenes.rendered import Scenes

    described = [trunk["dataset"] for trunk in about["trunks"] if trunk["dataset"]["name"] == dataset]
    tree: Mapping[str, Any] = described[0] if described else {}
    while "benchmark" in tree:  # of a template's or a framing's wrapper
        tree = tree["benchmark"]
    keys = ("name", "form", "difficulty", "seed")
    return Scenes(**{key: tree[key] for key in keys}).find_objects(ids) if tree.keys() >= set(keys) else {}
