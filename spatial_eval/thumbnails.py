"""Small pictures inside a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIZE = 96  # pixels, the longer edge
MOST = 24  # pictures a page


@dataclass
class Thumbnails:
    """At most MOST pictures; a file that is absent or unreadable has none. `roots`: where relative paths start."""

    roots: tuple[Path, ...]
    made: dict[Path, str] = field(default_factory=dict)

    def find(self, image: str) -> Path | None:
        """The file, if it is at hand."""
        return next((p for p in (root / image for root in self.roots) if image and p.is_file()), None)

    def uri(self, image: str) -> str:
        """A `data:` address, or ""."""
        path = self.find(image)
        if path is None or (path not in self.made and len(self.made) >= MOST):
            return ""
        if path not in self.made:
            self.made[path] = _encode(path)
        return self.made[path]


def thumbnails(about: Mapping[str, Any]) -> Thumbnails:
    """Of a sweep, by its sweep.json."""
    config = about.get("config", {})
    return Thumbnails(tuple(Path(config[name]) for name in ("data_dir", "output_dir") if config.get(name)))


def _encode(path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail((SIZE, SIZE))
            return encode(small)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return ""


def encode(picture: Any) -> str:
    """A PIL picture as a `data:` address."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=60)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
