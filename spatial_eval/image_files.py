"""Open a picture as its model, the overlays and the thumbnails see it: 8-bit RGB, upright unless told otherwise.

* Orientation: the EXIF note is applied (`upright`, as transformers and datasets do) or not (`stored`).
* 16-bit values become v / 257, so that 0 to 65535 map to 0 to 255; 32-bit integers count as 16-bit where they fit in.
  Floats in [0, 1] become 255 v, others are taken as 8-bit values; what lies outside [0, 255] is an error: nothing tells
  its scale. PIL's own conversion would clip all of these at 255.
* Transparency is dropped without a background, and of an animation the first frame is taken, as PIL's convert("RGB")
  does; each is said once.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .digests import digest_files, noted
from .errors import ConfigError, unknown
from .types import Places

if TYPE_CHECKING:  # Pillow costs start-up time that planning should not pay
    from PIL.Image import Image

log = logging.getLogger(__name__)

ORIENTATIONS = ("upright", "stored")
_EXIF_ORIENTATION = 0x0112
_DEEP = ("I", "F")  # modes of more than 8 bits, beside I;16 and its kin


def check(orientation: str) -> None:
    """Raises ConfigError."""
    if orientation not in ORIENTATIONS:
        raise ConfigError(unknown("dataset.orientation", orientation, ORIENTATIONS))


def describe(orientation: str) -> dict[str, str]:
    """What a dataset's identity holds of it: nothing at the default, so that older stores stay valid."""
    return {} if orientation == "upright" else {"orientation": orientation}


def open_rgb(path: Path, orientation: str) -> Image:
    """The picture in RGB. Raises OSError, ValueError and others of PIL's where the file cannot be shown."""
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        if getattr(file, "is_animated", False):
            _say(f"{path} is animated: the first frame of animated pictures is shown")
        if file.has_transparency_data:
            _say(f"{path} is transparent: the colours of transparent pictures are shown without a background")
        picture = ImageOps.exif_transpose(file) if orientation == "upright" else file
        if _is_deep(picture):
            return _eight_bit(picture, path)
        if picture.mode == "P" and picture.has_transparency_data:
            picture = picture.convert("RGBA")  # the same colours, without a warning
        return picture.convert("RGB")


def shown_size(path: Path, orientation: str) -> tuple[int, int]:
    """Width and height of `open_rgb`, from the file's head alone."""
    from PIL import Image

    with Image.open(path) as file:
        width, height = file.size
        return (height, width) if orientation == "upright" and _turn(file) in (5, 6, 7, 8) else (width, height)


def digest_images(paths: Sequence[Path], orientation: str, places: Places) -> list[str]:
    """Per file, the identity of the picture that `open_rgb` shows: 32 hex digits, "missing" where it does not exist.

    It is the content's digest where `open_rgb` changes no pixel against `convert("RGB")` alone, and differs from it
    elsewhere. Each content's head is read once, as far as `places` may remember.
    """
    contents = digest_files(paths, places)
    files = {digest: path for path, digest in zip(paths, contents, strict=True) if digest != "missing"}

    def shown(digest: str) -> str:
        changes = _changes(files[digest], orientation)
        return hashlib.blake2b(f"{digest} {changes}".encode(), digest_size=16).hexdigest() if changes else digest

    found = noted({f"{orientation}|{digest}": digest for digest in files}, shown, places)
    return [found.get(f"{orientation}|{digest}", digest) for digest in contents]


def _changes(path: Path, orientation: str) -> str:
    """What `open_rgb` does to the pixels beyond `convert("RGB")`; "" also where the file is no picture."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            turned = _turn(file) if orientation == "upright" else 1
            return " ".join(["scaled"] * _is_deep(file) + [f"turned {turned}"] * (turned in range(2, 9)))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # the question that shows it fails by name
        return ""


def _turn(file: Any) -> int:
    """The EXIF orientation that is still to apply, 1 to 8; 1 where there is none. PIL turns a TIFF by itself."""
    if file.format == "TIFF":
        return 1
    found = file.getexif().get(_EXIF_ORIENTATION, 1)
    return found if isinstance(found, int) else 1


def _is_deep(file: Any) -> bool:
    return file.mode in _DEEP or file.mode.startswith("I;16")


def _eight_bit(file: Any, path: Path) -> Image:
    import numpy as np
    from PIL import Image

    values = np.asarray(file).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    kind, top = ("floats", 255.0) if file.mode == "F" else ("integers", 65535.0)
    if kind == "floats" and low >= 0 and high <= 1:
        top = 1.0
    if not (low >= 0 and high <= top):  # nan fails too
        raise ValueError(
            f"{path.name} holds {kind} from {low:g} to {high:g}, beyond {top:g}: save it with 8 or 16 bits per channel"
        )
    return Image.fromarray(np.rint(values * (255.0 / top)).astype(np.uint8)).convert("RGB")


_SAID: set[str] = set()


def _say(line: str) -> None:
    """Once for each kind of picture in a process."""
    kind = line.rpartition(": ")[2]
    if kind not in _SAID:
        _SAID.add(kind)
        log.warning("%s", line)
