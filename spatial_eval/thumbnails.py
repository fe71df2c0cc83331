"""Small pictures inside a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .image_files import open_rgb

SIZE = 96  # pixels, the longer edge
MOST = 24  # pictures a page


@dataclass
class Thumbnails:
    """At most MOST pictures; a file that is absent or unreadable has none.

    Attributes:
        roots: where relative paths start. orientations: how a dataset's pictures were shown to its model, by label.
    """

    roots: tuple[Path, ...]
    orientations: Mapping[str, str] = field(default_factory=dict)
    made: dict[tuple[Path, str], str] = field(default_factory=dict)

    def orientation(self, dataset: str) -> str:
        return self.orientations.get(dataset, "upright")

    def find(self, image: str) -> Path | None:
        """The file, if it is at hand."""
        return next((p for p in (root / image for root in self.roots) if image and p.is_file()), None)

    def uri(self, image: str, dataset: str = "") -> str:
        """A `data:` address, or ""."""
        path = self.find(image)
        if path is None:
            return ""
        key = path, self.orientation(dataset)
        if key not in self.made and len(self.made) >= MOST:
            return ""
        if key not in self.made:
            self.made[key] = _encode(*key)
        return self.made[key]


def thumbnails(about: Mapping[str, Any]) -> Thumbnails:
    """Of a sweep, by its sweep.json."""
    config = about.get("config", {})
    roots = tuple(Path(config[name]) for name in ("data_dir", "output_dir") if config.get(name))
    # A sweep of an earlier version says nothing: its pictures were shown as they are stored.
    shown = {t["dataset"]["name"]: t["dataset"].get("orientation", "stored") for t in about.get("trunks", ())}
    return Thumbnails(roots, shown)


def _encode(path: Path, orientation: str) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        small = open_rgb(path, orientation)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return ""
    small.thumbnail((SIZE, SIZE))
    return encode(small)


def encode(picture: Any) -> str:
    """A PIL picture as a `data:` address."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=60)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
