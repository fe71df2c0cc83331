"""Mirror a question: left and right swapped in its words, and its picture flipped about the vertical axis.

Only words that name a side are swapped. "right" and "left" mean other things too (the right answer, right behind, what
is left): where no pattern here shows that a side is meant, the question is rejected. Other things that depend on the
side are not changed: clockwise, east, and text in the picture, which is not read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from spatial_eval.benchmarks.image_files import digest_images, open_rgb
from spatial_eval.core.files import write_atomic
from spatial_eval.core.hashing import hash_text
from spatial_eval.core.types import Places, Sample

MARK = "@flip"  # behind the id of a mirrored question
_WORD = re.compile(r"(?<!\w)(left|right)(?=(most|wards?|hand(?:ed)?)?(?!\w))", re.IGNORECASE)
_SIDE = r"(?:left|right)"
_OTHER_NOUN = r"(?:answers?|choice|options?|one|words?|order|way|response|letter|amount|number|place|time|size|kind)\b"
# A word names a side where a pattern before it and one behind it match.
_PATTERNS = tuple(
    (re.compile(rf"(?:{before})$", re.IGNORECASE), re.compile(behind, re.IGNORECASE))
    for before, behind in (
        # to the left, on its right
        (
            r"\b(?:to|on|at|from|towards?|in)\s+(?:the|its|his|her|their|your|my|our)\s+"
            r"(?:(?:far|very|upper|lower|top|bottom|front|back)\s+)?",
            rf"(?!\s+{_OTHER_NOUN})",
        ),
        # left of, right side, left-hand; not right of way
        (
            r"",
            r"(?:\s+|-)(?:of\b(?!\s+way\b)|sides?|hand|half|edge|corner|part|end|arm|leg|foot|eye|ear|wing|wheel|"
            r"shoulder|lane|door|border|third|column)\b",
        ),
        # leftmost, rightward
        (r"", r"(?:most|wards?|hand(?:ed)?)(?!\w)"),
        # left or right, left, right and left/right
        (r"", rf"\s*(?:/|,|\b(?:or|and)\b)\s*(?:(?:or|and)\s+)?(?:the\s+)?{_SIDE}(?!\w)"),
        (rf"(?<!\w){_SIDE}\s*(?:/|,|\b(?:or|and)\b)\s*(?:(?:or|and)\s+)?(?:the\s+)?", r"(?!\s+\w+ing\b)"),
        # an item of a list, or all of a line: "with left, on or under", "A. left"
        (
            r"(?:^|\n|[,;:/(\[\"'\u201c\u2018]|\b(?:with|or)\b|(?:^|[\s(])[A-Za-z][.):])\s*",
            r"\s*(?:$|\n|[,;/.()\]\"'\u201d\u2019?!]|\b(?:or|and)\b)",
        ),
        # facing left, turn right
        (
            r"\b(?:fac|turn|look|point|mov|lean|head)(?:e|es|ed|s|ing)?\s+(?:to\s+)?",
            rf"(?!\s+(?:away|now|at|behind|{_OTHER_NOUN}))",
        ),
    )
)


def mirror_words(text: str) -> str:
    """Return a text with its sides swapped, in the case in which they are written.

    Raises:
        ValueError: one of the words may have another meaning; the message quotes it.
    """

    def swap(found: re.Match[str]) -> str:
        before, behind = text[: found.start()], text[found.end() :]
        if not any(a.search(before) and b.match(behind) for a, b in _PATTERNS):
            quoted = f"{before[-20:]}{found[0]}{behind[:20]}".replace("\n", " ").strip()
            raise ValueError(f'"{found[0]}" in "{quoted}" may mean no side, so its words cannot be mirrored')
        other = "right" if found[0].lower() == "left" else "left"
        return other.upper() if found[0].isupper() else other.title() if found[0][0].isupper() else other

    return _WORD.sub(swap, text)


def mirror_sample(sample: Sample) -> Sample:
    """Return the mirrored question, with the source's picture. Raises ValueError (`mirror_words`)."""
    if sample.image is None:
        raise ValueError("it has no picture that could be mirrored")
    if sample.further_images:
        raise ValueError(f"it shows {len(sample.images)} pictures, whose order a mirror changes; it mirrors one")
    answers, options, texts = (
        tuple(map(mirror_words, words)) for words in (sample.answers, sample.options, sample.option_texts)
    )
    return replace(
        sample,
        id=sample.id + MARK,
        question=mirror_words(sample.question),
        answers=answers,
        options=options,
        option_texts=texts,
        relation=_mirror_label(sample.relation),
    )


def _mirror_label(relation: str) -> str:
    """Return the relation that a mirrored picture shows; one whose words say no side stays as it is."""
    try:
        return mirror_words(relation)
    except ValueError:
        return relation


def mirror_pictures(samples: Sequence[Sample], orientation: str, places: Places) -> list[Sample]:
    """Return samples with the paths of mirrored pictures in place of their own; the files may not exist yet.

    A mirrored picture's digest follows from its source's; without a source there is no file.
    """
    unknown = list(dict.fromkeys(one.image for one in samples if one.image is not None and not one.image_digest))
    known = dict(zip(unknown, digest_images(unknown, orientation, places), strict=True))
    found = []
    for one in samples:
        digest = one.image_digest or known.get(one.image, "missing") if one.image is not None else "missing"
        absent = digest == "missing"
        name = hash_text(f"{one.image}" if absent else f"mirrored {digest}")
        folder = places.cache / "mirrored" / ("missing" if absent else "")
        found.append(replace(one, image=folder / f"{name}.png", image_digest="" if absent else name))
    return found


def draw_mirrored(source: Path, path: Path, orientation: str) -> None:
    """Write a picture's mirror image as PNG, unless it exists. An absent source is passed over.

    Raises:
        StoreError: the file cannot be written.
    """
    from PIL import ImageOps

    if path.exists() or not source.is_file():
        return
    try:
        picture = ImageOps.mirror(open_rgb(source, orientation))
    except (OSError, ValueError, SyntaxError):  # no picture: its questions fail, as the source's do
        return
    file = io.BytesIO()
    picture.save(file, "PNG")
    write_atomic(path, file.getvalue())
