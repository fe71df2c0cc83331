"""Each benchmark's files, from where they are public into a data_dir, in the layout that the readers know."""

from __future__ import annotations

import json
import logging
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import repositories, sources
from .archives import extract
from .benchmarks import Vsr, WhatsUp, first
from .checksums import Checksums
from .drive import download
from .errors import ConfigError, DataError, StoreError
from .fetching import fetch
from .lines import answers, json_lines
from .sources import COCO_IMAGE, Way
from .store import replace
from .transfer import Remote, size_of
from .types import Places

log = logging.getLogger(__name__)


def whatsup(dataset: WhatsUp, data: Path, way: Way, checksums: Checksums) -> None:
    """After this call its prompts, annotation and images lie in `data`. Raises DataError, StoreError.

    What is there stays, unless it is known to be damaged. Rows are checked against each other before they are written.
    """
    if dataset.upstream not in sources.SOURCES:
        raise ConfigError(f"no public source of {dataset.name} is known; known: {', '.join(sources.SOURCES)}")
    prompts = first(data, f"prompts/{dataset.prompts}", dataset.prompts) or data / "prompts" / dataset.prompts
    annotation = first(data, dataset.annotation, f"annotations/{dataset.annotation}") or data / dataset.annotation
    if way.source == "files":
        for path, names in (
            (prompts, (f"prompts/{dataset.prompts}", dataset.prompts)),
            (annotation, (annotation.name,)),
        ):
            if not checksums.has(path):
                _copy(_given(way, *names), path, checksums)
    elif way.source == "drive" and not checksums.has(annotation):
        found = download(way.drive, sources.SOURCES[dataset.upstream].annotation, annotation.name, data, checksums)
        _copy(found, annotation, checksums)
    if not (checksums.has(prompts) and checksums.has(annotation)):
        _text(dataset, data, prompts, annotation, checksums)
    missing = _missing([sample.image for sample in dataset.read(Places(data, data))], dataset.name, checksums)
    if missing:
        _images(dataset, data, way, missing, checksums)


def vsr(dataset: Vsr, data: Path, way: Way, checksums: Checksums) -> None:
    """As `whatsup`: the split's file, and each picture once. Raises DataError, StoreError."""
    path = first(data, f"vsr/{dataset.file}", dataset.file) or data / "vsr" / dataset.file
    upstream = dataset.file.removeprefix("zeroshot_")
    if not checksums.has(path):
        if way.source == "files":
            _copy(_given(way, f"vsr/{dataset.file}", dataset.file, upstream), path, checksums)
        else:
            found = repositories.look(sources.VSR, "", _downloads(data)).files.get(upstream)
            if found is None:
                raise DataError(
                    f"{sources.VSR} has no {upstream}: dataset.file names a split as zeroshot_test.jsonl does"
                )
            fetch([Remote(found.url, path, found.size, found.digest, found.secret)], checksums, name=dataset.name)
    images = [sample.image for sample in dataset.read(Places(data, data))]
    missing = _missing(images, dataset.name, checksums)
    links = {
        Path(row["image"]).name: urllib.parse.urlsplit(str(row.get("image_link"))).path for row in json_lines(path)
    }
    _coco(missing, links, f"{dataset.images}.zip", data, way, checksums, name=dataset.name)


def _text(dataset: WhatsUp, data: Path, prompts: Path, annotation: Path, checksums: Checksums) -> None:
    """Prompts and annotation from the hub, whichever of the two is missing."""
    source = sources.SOURCES[dataset.upstream]
    text = repositories.look(sources.TEXT, "", _downloads(data))
    with repositories.split(text, source.text, "test", checksums) as read:
        rows = list(read([]))
    _count(rows, dataset, sources.TEXT)
    lines = [{key: row.get(key) for key in ("id", "question", "answer")} for row in rows]
    golds = [answers(line, Path(sources.TEXT), i)[0] for i, line in enumerate(lines)]
    if checksums.has(prompts):  # then they, not the hub's, are what the annotation must fit
        golds = [answers(line, prompts, i)[0] for i, line in enumerate(json_lines(prompts))]
    if not checksums.has(annotation):
        images = repositories.look(sources.IMAGES, "", _downloads(data))
        with repositories.split(images, "", dataset.upstream, checksums, keep=source.archive != "val2017.zip") as read:
            captions = [row["caption_options"] for row in read(["caption_options"])]
        _count(captions, dataset, sources.IMAGES)
        for i, (gold, options) in enumerate(zip(golds, captions, strict=True)):
            if not options or gold not in str(options[0]).lower():
                raise DataError(
                    f"row {i} of {dataset.name}: the question's answer is {gold!r}, the first caption of "
                    f"{sources.IMAGES} is {(options or [''])[0]!r}: they do not belong together, nothing was written"
                )
        notes = [_note(row, options, dataset, i) for i, (row, options) in enumerate(zip(rows, captions, strict=True))]
        _write(annotation, json.dumps(notes, indent=0).encode(), sources.IMAGES, checksums)
    if not checksums.has(prompts):
        _write(prompts, "".join(json.dumps(line) + "\n" for line in lines).encode(), sources.TEXT, checksums)


def _note(row: dict[str, Any], options: Sequence[str], dataset: WhatsUp, i: int) -> dict[str, Any] | list[Any]:
    """A row of the annotation as upstream writes it."""
    if not dataset.image_file and isinstance(row.get("image_path"), str):
        path = f"data/{dataset.images}/{Path(row['image_path']).name}"
        return {"image_path": path, "caption_options": list(options)}
    if dataset.image_file and row.get("image_id") is not None:
        return [row["image_id"], *options]
    wanted = "image_id" if dataset.image_file else "image_path"
    raise DataError(f"{sources.TEXT}, row {i} of {dataset.upstream}: no {wanted}; it has {', '.join(row)}")


def _images(dataset: WhatsUp, data: Path, way: Way, missing: Sequence[Path], checksums: Checksums) -> None:
    source = sources.SOURCES[dataset.upstream]
    if way.source == "files":
        _unpack(_given(way, source.archive), missing, checksums)
    elif source.archive == "val2017.zip" and (way.source == "hub" or way.pictures == "url"):
        links = {path.name: f"/val2017/{path.name}" for path in missing}
        _coco(missing, links, source.archive, data, way, checksums, name=dataset.name)
    elif way.source == "drive":
        archive = download(way.drive, source.images, source.archive, data, checksums)
        _unpack(archive, missing, checksums)
    else:
        _from_hub(dataset, data, set(missing), checksums)


def _from_hub(dataset: WhatsUp, data: Path, missing: set[Path], checksums: Checksums) -> None:
    places = [sample.image for sample in dataset.read(Places(data, data))]
    images = repositories.look(sources.IMAGES, "", _downloads(data))
    with repositories.split(images, "", dataset.upstream, checksums) as read:
        rows = read(["image_options"])
        for i, (path, row) in enumerate(zip(places, rows, strict=True)):
            if path in missing:
                picture = row["image_options"]
                picture = picture[0] if isinstance(picture, list) and picture else picture
                if not isinstance(picture, dict) or not picture.get("bytes"):
                    raise DataError(f"{sources.IMAGES}, row {i} of {dataset.upstream} has no image")
                _write(path, picture["bytes"], f"{sources.IMAGES}@{images.commit}", checksums)
                missing.discard(path)


def _coco(
    missing: Sequence[Path],
    links: dict[str, str],
    archive: str,
    data: Path,
    way: Way,
    checksums: Checksums,
    *,
    name: str,
) -> None:
    """COCO's pictures, singly or from a year's archive. `links`: path on the server by file name."""
    if not missing:
        return
    if way.source == "files":
        _unpack(_given(way, archive), missing, checksums)
    elif way.pictures == "archive":
        url = f"{way.coco}/zips/{archive}"
        packed = Remote(url, _downloads(data) / archive, size_of(url))
        fetch([packed], checksums, name=archive, beside=len(missing) * COCO_IMAGE)
        _unpack(packed.path, missing, checksums)
    else:
        remotes = [Remote(f"{way.coco}{links[path.name]}", path, COCO_IMAGE) for path in missing]
        fetch(remotes, checksums, name=f"{name}, images from {way.coco}")


def _missing(images: Iterable[Path | None], name: str, checksums: Checksums) -> list[Path]:
    """The images that must be fetched. Raises StoreError where they would be written into somebody's checkout."""
    paths = list(dict.fromkeys(path for path in images if path is not None))
    missing = [path for path in paths if not checksums.has(path)]
    for path in missing:
        if path.name in ("", ".", "..") or path.parent != paths[0].parent:
            raise DataError(f"{name}: an image's name leads out of its folder: {path}")
        if path.parent.is_symlink():
            raise StoreError(
                f"{path.parent} is a link to {path.parent.resolve()}, which lacks {len(missing)} images: "
                "complete it there, or remove the link and run the same command again"
            )
    return missing


def _unpack(archive: Path, missing: Sequence[Path], checksums: Checksums) -> None:
    names = {path.name for path in missing}
    for path in missing:
        path.unlink(missing_ok=True)  # those that are there are damaged
    for path in extract(archive, missing[0].parent, keep=names.__contains__):
        checksums.note(path, archive.name)
        names.discard(path.name)
    if names:
        raise DataError(f"{archive} lacks {len(names)} images, {min(names)} for one: is it the right archive?")


def _given(way: Way, *names: str) -> Path:
    folder = way.folder or Path()
    places = [place for place in (folder, folder / "data", folder.parent) if place.is_dir()]
    found = next((place for place in (first(place, *names) for place in places) if place), None)
    if found is None:
        raise DataError(f"--from {folder} has no {names[0]}")
    return found


def _copy(source: Path, path: Path, checksums: Checksums) -> None:
    try:
        content = source.read_bytes()
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from None
    _write(path, content, source.name, checksums)


def _write(path: Path, content: bytes, source: str, checksums: Checksums) -> None:
    replace(path, content)
    checksums.note(path, source)


def _count(rows: Sequence[Any], dataset: WhatsUp, source: str) -> None:
    if len(rows) != dataset.rows:
        raise DataError(f"{source} has {len(rows)} rows of {dataset.upstream}, {dataset.name} has {dataset.rows}")


def _downloads(data: Path) -> Path:
    return data / "cache" / "downloads"
