"""Open images as 8-bit RGB, for models, overlays and thumbnails alike.

* Orientation: the EXIF orientation is applied (`upright`, as transformers and datasets do) or not (`stored`).
* 16-bit values become v / 257, so that 0 to 65535 map to 0 to 255; 32-bit integers count as 16-bit where they fit in.
  Floats in [0, 1] become 255 v, others count as 8-bit values; values outside [0, 255] are an error, because their
  scale is not known. PIL's own conversion would clip all of these at 255.
* Transparency is dropped without a background, and an animation gives its first frame, as in PIL's convert("RGB");
  each is logged once per process.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatial_eval.core.errors import ConfigError, describe_unknown
from spatial_eval.core.hashing import compute_cached, digest_files
from spatial_eval.core.types import Places

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

ORIENTATIONS = ("upright", "stored")
_EXIF_ORIENTATION = 0x0112
_DEEP = ("I", "F")  # modes of more than 8 bits per channel, beside those that begin with I;16


def check_orientation(orientation: str) -> None:
    """Check `dataset.orientation`. Raises ConfigError where it is none of ORIENTATIONS."""
    if orientation not in ORIENTATIONS:
        raise ConfigError(describe_unknown("dataset.orientation", orientation, ORIENTATIONS))


@contextlib.contextmanager
def _translate_damage(path: Path) -> Iterator[None]:
    """Raise ValueError for what PIL raises at a damaged header beside OSError, ValueError, SyntaxError and its own."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, struct.error) as error:
        raise ValueError(f"{path} cannot be decoded ({type(error).__name__}: {error})") from error


def open_rgb(path: Path, orientation: str) -> Image:
    """Open an image in RGB. Raises OSError, ValueError and others of PIL's where the file cannot be decoded."""
    from PIL import Image, ImageOps

    if not path.is_file():  # opening a pipe would wait for ever
        raise FileNotFoundError(f"{path} is no file")
    with _translate_damage(path), Image.open(path) as file:
        if getattr(file, "is_animated", False):  # PIL: only formats of several pictures have it
            _warn_once(f"{path} is animated: the first frame of animated pictures is shown")
        if file.has_transparency_data:
            _warn_once(f"{path} is transparent: the colours of transparent pictures are shown without a background")
        picture = ImageOps.exif_transpose(file) if orientation == "upright" else file
        if _is_deep(picture):
            return _scale_to_8_bit(picture, path)
        if picture.mode == "P" and picture.has_transparency_data:
            picture = picture.convert("RGBA")  # the same colours, without a warning
        return picture.convert("RGB")


def shown_size(path: Path, orientation: str) -> tuple[int, int]:
    """Return width and height of `open_rgb`'s image in pixels, from the file's header alone."""
    from PIL import Image

    with _translate_damage(path), Image.open(path) as file:
        width, height = file.size
        return (height, width) if orientation == "upright" and _read_turn(file) in (5, 6, 7, 8) else (width, height)


def digest_images(paths: Sequence[Path], orientation: str, places: Places) -> list[str]:
    """Return, per file, the identity of `open_rgb`'s image: 32 hex digits; "missing" where there is no file.

    It is the digest of the content where `open_rgb` gives the pixels of `convert("RGB")` alone, and differs from it
    elsewhere. Each content's header is read once, where `places` has a cache.
    """
    contents = digest_files(paths, places)
    files = {digest: path for path, digest in zip(paths, contents, strict=True) if digest != "missing"}

    def digest_image(digest: str) -> str:
        changes = _changes(files[digest], orientation)
        return hashlib.blake2b(f"{digest} {changes}".encode(), digest_size=16).hexdigest() if changes else digest

    digests = compute_cached({f"{orientation}|{digest}": digest for digest in files}, digest_image, places)
    return [digests.get(f"{orientation}|{digest}", digest) for digest in contents]


def _changes(path: Path, orientation: str) -> str:
    """Return what `open_rgb` does to the pixels beyond `convert("RGB")`; "" also where the file is no image."""
    from PIL import Image

    try:
        with _translate_damage(path), Image.open(path) as file:
            turned = _read_turn(file) if orientation == "upright" else 1
            return " ".join(["scaled"] * _is_deep(file) + [f"turned {turned}"] * (turned in range(2, 9)))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # reported where the image is opened
        return ""


def _read_turn(file: Any) -> int:
    """Return the EXIF orientation that is still to apply, 1 to 8; 1 where there is none. PIL applies that of a TIFF."""
    turn = 1 if file.format == "TIFF" else file.getexif().get(_EXIF_ORIENTATION, 1)
    return turn if isinstance(turn, int) else 1


def _is_deep(file: Any) -> bool:
    return file.mode in _DEEP or file.mode.startswith("I;16")


def _scale_to_8_bit(file: Any, path: Path) -> Image:
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
    if kind == "integers" and high <= 255:
        _warn_once(
            f"{path} has no value above {high:g} of {top:g}: pictures of so few 16-bit values are nearly black; save "
            "8-bit values with 8 bits per channel"
        )
    return Image.fromarray(np.rint(values * (255.0 / top)).astype(np.uint8)).convert("RGB")


_WARNED: set[str] = set()


def _warn_once(line: str) -> None:
    """Log a warning, one per kind of image and process."""
    kind = line.rpartition(": ")[2]
    if kind not in _WARNED:
        _WARNED.add(kind)
        log.warning("%s", line)
