"""Read the headers of a checkpoint's files: find the files that a run loads, check them, list their tensors.

Reads no weight and needs no torch. A safetensors file starts with the length of its header (8 bytes, little endian),
the header (JSON: name -> dtype, shape, place) and then the tensors, up to its last byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from spatial_eval.core.errors import ModelError
from spatial_eval.core.files import find_entries, parse_json, read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What a run reads beside the weights: config, tokenizer, processor, chat templates.
TEXTS = ("*.json", "*.model", "*.txt", "*.jinja", "additional_chat_templates/*.jinja")
LFS = b"version https://git-lfs.github.com/spec/"  # how a git LFS pointer starts
LONGEST_HEADER = 100_000_000  # bytes; safetensors itself rejects more
NAMED = 3  # tensors or files that a message names; the others are counted
ORIGINAL_LLAVA = re.compile(r"Llava\w*ForCausalLM")
CONVERTED = "llava-hf/llava-1.5-7b-hf for liuhaotian/llava-v1.5-7b"


@dataclass(frozen=True, slots=True)
class Header:
    """Hold a tensor's entry in a file's header. `dtype` as safetensors writes it: F32, BF16, ..."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def check_files(folder: Path, label: str) -> None:
    """Read config.json, the index and every header of the checkpoint in `folder`.

    `label`: the folder as the user named it. Raises ModelError, one line with the file and the next step, where a file
    is absent, cut off, damaged or a git LFS pointer, and where the checkpoint is in the original LLaVA layout.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"model.path={label} has no config.json: it is not a model in transformers' format")
    for path in sorted({path for pattern in TEXTS for path in find_entries(folder, pattern) if path.is_file()}):
        with path.open("rb") as file:
            _reject_pointer(path, file.read(len(LFS)))
    config = _read_object(folder / "config.json")
    if is_original_llava(config):
        kind = next(iter(config.get("architectures") or []), "a LLaVA model")
        raise ModelError(
            f"model.path={label} is {kind} in the original LLaVA layout, which transformers cannot load: name the "
            f"converted checkpoint, whose config.json has a text_config ({CONVERTED})"
        )
    read_headers(folder, label)


def is_original_llava(config: Mapping[str, Any]) -> bool:
    """Return whether config.json has the layout of LLaVA's own repositories: transformers would read it as a model with
    default sizes."""
    own = any(ORIGINAL_LLAVA.fullmatch(str(name)) for name in config.get("architectures") or [])
    return "text_config" not in config and (own or config.get("model_type") == "llava")


def find_files(folder: Path, label: str) -> list[Path]:
    """Find the weight files that transformers loads: the single file, else those that the index lists.

    Raises ModelError where there is none, the index cannot be read, or a file that it lists is absent.
    """
    named = _read_object(folder / "config.json").get("transformers_weights")
    index = folder / INDEX
    if isinstance(named, str) and named.endswith(".index.json"):
        index = folder / named
    elif isinstance(named, str) or (folder / SINGLE).is_file():
        return [_check_there(folder / (named if isinstance(named, str) else SINGLE), "config.json names it")]
    if not index.is_file():
        if not find_entries(folder, "*.safetensors"):
            raise ModelError(f"model.path={label} has no *.safetensors file; other formats run code and are rejected")
        raise ModelError(f"model.path={label} has neither {SINGLE} nor {INDEX}: copy or fetch the whole checkpoint")
    places = _read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ModelError(f"{index} lists no file of weights (weight_map): copy or fetch it again")
    names = sorted(set(places.values()))
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        others = f" and {len(absent) - 1:,} more of {len(names):,}" if len(absent) > 1 else ""
        _check_there(folder / absent[0], f"{index.name} lists it{others}")
    return [folder / name for name in names]


def is_complete(folder: Path) -> bool:
    """Return whether every weight file of a run is in `folder`; opens none of them."""
    try:
        return bool(find_files(folder, str(folder)))
    except ModelError:
        return False


def read_headers(folder: Path, label: str) -> dict[str, Header]:
    """Read the header entry of each tensor of the checkpoint, by its name in the files. Raises ModelError."""
    headers: dict[str, Header] = {}
    for path in find_files(folder, label):
        facts = path.stat()
        headers |= _read_header(path, (facts.st_size, facts.st_mtime_ns, facts.st_ino, facts.st_ctime_ns))
    return headers


def count_parameters(headers: Mapping[str, Header]) -> int:
    return sum(prod(header.shape) for header in headers.values())


def shorten(names: Iterable[str]) -> str:
    """Join names as `a, b, c and 7 more`, in the order of layers."""
    ordered = sorted(names, key=_split_name)
    others = f" and {len(ordered) - NAMED:,} more" if len(ordered) > NAMED else ""
    return ", ".join(ordered[:NAMED]) + others


@lru_cache(maxsize=256)
def _read_header(path: Path, facts: tuple[int, ...]) -> dict[str, Header]:
    """Read the header of one file. `facts`: its size, and what else changes with its content."""
    size = facts[0]
    with path.open("rb") as file:
        start = file.read(len(LFS))
        _reject_pointer(path, start)
        file.seek(8)
        length = int.from_bytes(start[:8], "little")
        text = file.read(length) if length <= min(size, LONGEST_HEADER) else b""
    again = "copy or fetch it again"
    try:
        if len(start) <= 8 or len(text) < length:
            raise ValueError("it ends within its header")
        rows = parse_json(text)
        rows.pop("__metadata__", None)
        ends = [int(row["data_offsets"][1]) for row in rows.values()]
        headers = {name: Header(path, str(row["dtype"]), tuple(map(int, row["shape"]))) for name, row in rows.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        why = str(error) if "within" in str(error) else "its header cannot be read"
        raise ModelError(f"{path} ({size:,} bytes) is cut off or no safetensors file: {why}; {again}") from None
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        raise ModelError(f"{path} is cut off: {size:,} of {whole:,} bytes are there; {again}")
    if size > whole:
        raise ModelError(f"{path} is damaged: it has {size:,} bytes, its header describes {whole:,}; {again}")
    return headers


def _reject_pointer(path: Path, start: bytes) -> None:
    if start == LFS:
        raise ModelError(
            f"{path} is a git LFS pointer, not the file that it stands for: run `git lfs pull` in {path.parent}, or "
            "fetch the checkpoint again"
        )


def _check_there(path: Path, why: str) -> Path:
    if not path.is_file():
        link = " (its link leads nowhere)" if path.is_symlink() else ""  # a hub cache that was cleaned up
        raise ModelError(f"{path} is not there{link}, and {why}: copy or fetch the whole checkpoint")
    return path


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise ModelError(f"{path} cannot be read ({why}): copy or fetch it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object: copy or fetch it again")
    return value


def _split_name(name: str) -> list[str]:
    """Split a tensor's name for sorting, so that layer 2 stands before layer 10."""
    return [part.rjust(9, "0") if part.isdigit() else part for part in name.split(".")]
