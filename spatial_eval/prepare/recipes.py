"""Fetch each benchmark's public files into a data_dir, in the layout that the readers expect."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from spatial_eval.benchmarks.hub_dataset import Hub, prepared_folder
from spatial_eval.benchmarks.question_files import PublicFile
from spatial_eval.benchmarks.readers import Vsr, WhatsUp, first_existing
from spatial_eval.core.errors import ConfigError, DataError, StoreError
from spatial_eval.core.files import find_entries, translate_os_errors, write_atomic
from spatial_eval.core.jsonl import read_gold_answers, read_json_lines
from spatial_eval.core.types import Benchmark, Places
from spatial_eval.core.validate import field_values
from spatial_eval.prepare import sources
from spatial_eval.prepare.archives import extract_files
from spatial_eval.prepare.http import RemoteFile, download_files, remote_size
from spatial_eval.prepare.hub import download_from_drive, download_repository, find_repository, open_split
from spatial_eval.prepare.sources import IMAGES, PUBLIC, TEXT, UPSTREAMS, VSR, FetchOptions
from spatial_eval.prepare.verify import BenchmarkState, Checksums, check_benchmark, sha256, split_damages

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DataFolder:
    """Write files into a data_dir, with their checksums."""

    path: Path
    checksums: Checksums

    @property
    def downloads(self) -> Path:
        """Return the folder of files that are unpacked or copied from; removed at the end."""
        return self.path / "cache" / "downloads"

    def has(self, path: Path) -> bool:
        return self.checksums.has(path)

    def write(self, path: Path, content: bytes, source: str) -> None:
        """Write a file by rename and record its checksum."""
        write_atomic(path, content)
        self.checksums.note(path, source)

    def copy(self, source: Path, path: Path) -> None:
        try:
            content = source.read_bytes()
        except OSError as error:
            raise DataError(f"{source} cannot be read: {error.strerror}") from None
        self.write(path, content, source.name)


def link_checkout(checkout: Path, data: Path) -> list[Path]:
    """Link an upstream checkout, or its data/ folder, into `data` without copying; return the new links.

    Existing files stay as they are.

    Raises:
        DataError: `checkout` holds no known file. StoreError: `data` cannot be written, or holds another file.
    """
    places = [place for place in (checkout, checkout / "data", checkout.parent) if place.is_dir()]
    names = sources.CHECKOUT
    known = {name: place / name for place in reversed(places) for name in names if (place / name).exists()}
    # The parent is asked only for the prompts, which stand beside data/.
    known = {name: path for name, path in known.items() if path.parent != checkout.parent or name == "prompts"}
    if not known:
        raise DataError(
            f"{checkout} has none of the upstream files ({names[0]}, ...): name a checkout or its data/ folder"
        )
    links = []
    for name, path in sorted(known.items()):
        link = data / name
        if link.exists() or link.is_symlink():
            if link.resolve() != path.resolve():
                raise StoreError(f"{link} is there already and is not {path}; move it away first")
            continue
        with translate_os_errors(link):
            data.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        links.append(link)
    return links


def fetch_benchmarks(
    benchmarks: Iterable[tuple[str, Benchmark]], data: Path, options: FetchOptions
) -> Iterator[BenchmarkState]:
    """Fetch each benchmark's missing files and yield its state; one process at a time writes into `data`.

    Args:
        benchmarks: with their names in conf/dataset.

    Raises:
        DataError, StoreError, ConfigError: a file cannot be fetched; earlier ones stay.
    """
    with _lock(data):
        for name, dataset in benchmarks:
            RECIPES[type(dataset)](dataset, DataFolder(data, Checksums(data)), options)
            yield check_benchmark(name, dataset, data)
        shutil.rmtree(data / "cache" / "downloads", ignore_errors=True)


@contextmanager
def _lock(data: Path) -> Iterator[None]:
    """Lock the data_dir against other processes; waits for a process that has locked it.

    A folder that cannot be written is not locked: the writes themselves fail with a message.
    """
    lock = FileLock(data / "cache" / "prepare.lock")
    try:
        (data / "cache").mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another `prepare` writes into %s: waiting until it ends", data)
        lock.acquire()
    except OSError as error:
        log.debug("%s is not locked: %s", data, error)
    try:
        yield
    finally:
        lock.release()


def fetch_whatsup(dataset: WhatsUp, data: DataFolder, options: FetchOptions) -> None:
    """Fetch prompts, annotation and images of a benchmark of What'sUp.

    Existing files stay, unless they are known to be damaged. The rows of the files are compared with each other before
    they are written.

    Raises:
        DataError, StoreError, ConfigError.
    """
    if dataset.upstream not in UPSTREAMS:
        raise ConfigError(f"no public source of {dataset.name} is known; known: {', '.join(UPSTREAMS)}")
    prompt_names = (f"prompts/{dataset.prompts}", dataset.prompts)
    note_names = (dataset.annotation, f"annotations/{dataset.annotation}")
    prompts = first_existing(data.path, *prompt_names) or data.path / prompt_names[0]
    annotation = first_existing(data.path, *note_names) or data.path / note_names[0]
    if options.source == "files":
        for path, names in ((prompts, prompt_names), (annotation, (annotation.name,))):
            if not data.has(path):
                data.copy(_find_given(options, *names), path)
    elif options.source == "drive" and not data.has(annotation):
        file_id = UPSTREAMS[dataset.upstream].annotation
        path = download_from_drive(options.drive, file_id, annotation.name, data.path, data.checksums)
        data.copy(path, annotation)
    if not (data.has(prompts) and data.has(annotation)):
        _fetch_text(dataset, data, prompts, annotation)
    if missing := _list_missing_images(dataset, data):
        _fetch_images(dataset, data, options, missing)


def fetch_vsr(dataset: Vsr, data: DataFolder, options: FetchOptions) -> None:
    """Fetch the file of the split and each picture once. Raises DataError, StoreError."""
    path = first_existing(data.path, f"vsr/{dataset.file}", dataset.file) or data.path / "vsr" / dataset.file
    which, _, upstream = dataset.file.partition("_")
    which, upstream = (which, upstream) if which in VSR else ("zeroshot", dataset.file)
    if not data.has(path):
        if options.source == "files":
            data.copy(_find_given(options, f"vsr/{dataset.file}", dataset.file, upstream), path)
        else:
            repository = find_repository(VSR[which], "", data.downloads)
            if upstream not in repository.files:
                raise DataError(
                    f"{VSR[which]} has no {upstream}: dataset.file names a split as zeroshot_test.jsonl does"
                )
            data.copy(download_repository(repository, [upstream], data.path)[0], path)
    missing = _list_missing_images(dataset, data)
    links = {Path(row["image"]).name: str(row.get("image_link")) for row in read_json_lines(path)}
    addresses = {name: urllib.parse.urlsplit(link).path for name, link in links.items()}
    _fetch_coco_images(dataset.name, missing, addresses, data, options)


def fetch_public_file(dataset: PublicFile, data: DataFolder, options: FetchOptions) -> None:
    """Fetch the questions of a public file and their pictures. Raises DataError, StoreError."""
    if dataset.benchmark not in PUBLIC:
        raise ConfigError(f"no public source of {dataset.benchmark} is known; known: {', '.join(PUBLIC)}")
    source = PUBLIC[dataset.benchmark]
    origins = (source.questions, source.corrections.get(dataset.corrections, ""))
    for file, origin in zip(dataset.files, origins, strict=False):
        for split in dataset.parts:
            name = file.format(split_name=split)
            path = data.path / name
            if data.has(path):
                continue
            if options.source == "files":
                data.copy(_find_given(options, name, path.name), path)
            else:
                url = f"{options.github}/{origin.format(split_name=split)}"
                download_files([RemoteFile(url, path)], data.checksums, name=name)
    missing = _list_missing_images(dataset, data)
    if missing and source.coco:
        addresses = {path.name: f"/{source.coco}/{path.name}" for path in missing}
        _fetch_coco_images(dataset.name, missing, addresses, data, options)
    elif missing and options.source == "files":
        _unpack(_find_given(options, source.archive), missing, data)
    elif missing:
        raise DataError(
            f"{dataset.name}: {len(missing)} pictures are missing, which come in one archive: download "
            f"{source.archive} from the data set's page into FOLDER, then `python -m spatial_eval prepare "
            f"{dataset.fetched_by} --source files --from FOLDER`"
        )


def _fetch_text(dataset: WhatsUp, data: DataFolder, prompts: Path, annotation: Path) -> None:
    """Fetch prompts and annotation from the hub, whichever of the two is missing."""
    text = find_repository(TEXT, "", data.downloads)
    with open_split(text, UPSTREAMS[dataset.upstream].text, "test", data.path) as read:
        rows = list(read([]))
    _check_count(rows, dataset, TEXT)
    lines = [{key: row.get(key) for key in ("id", "question", "answer")} for row in rows]
    golds = [read_gold_answers(line, Path(TEXT), i)[0] for i, line in enumerate(lines)]
    if data.has(prompts):  # then they, not the hub's, are what the annotation must fit
        golds = [read_gold_answers(line, prompts, i)[0] for i, line in enumerate(read_json_lines(prompts))]
    if not data.has(annotation):
        images = find_repository(IMAGES, "", data.downloads)
        keep = UPSTREAMS[dataset.upstream].archive != "val2017.zip"  # COCO's pictures come from COCO
        with open_split(images, "", dataset.upstream, data.path, keep=keep) as read:
            captions = [row["caption_options"] for row in read(["caption_options"])]
        _check_count(captions, dataset, IMAGES)
        for i, (gold, options) in enumerate(zip(golds, captions, strict=True)):
            if not options or gold not in str(options[0]).lower():
                raise DataError(
                    f"row {i} of {dataset.name}: the question's answer is {gold!r}, the first caption of "
                    f"{IMAGES} is {(options or [''])[0]!r}: they do not belong together, nothing was written"
                )
        pairs = zip(rows, captions, strict=True)
        entries = [_build_entry(row, options, dataset, i) for i, (row, options) in enumerate(pairs)]
        data.write(annotation, json.dumps(entries, indent=0).encode(), IMAGES)
    if not data.has(prompts):
        data.write(prompts, "".join(json.dumps(line) + "\n" for line in lines).encode(), TEXT)


def _build_entry(row: dict[str, Any], options: Sequence[str], dataset: WhatsUp, i: int) -> dict[str, Any] | list[Any]:
    """Build an entry of the annotation as upstream writes it."""
    if not dataset.image_file and isinstance(row.get("image_path"), str):
        path = f"data/{dataset.images}/{Path(row['image_path']).name}"
        return {"image_path": path, "caption_options": list(options)}
    if dataset.image_file and row.get("image_id") is not None:
        return [row["image_id"], *options]
    wanted = "image_id" if dataset.image_file else "image_path"
    raise DataError(f"{TEXT}, row {i} of {dataset.upstream}: no {wanted}; it has {', '.join(row)}")


def _check_count(rows: Sequence[Any], dataset: WhatsUp, source: str) -> None:
    if len(rows) != dataset.rows:
        raise DataError(f"{source} has {len(rows)} rows of {dataset.upstream}, {dataset.name} has {dataset.rows}")


def _fetch_images(dataset: WhatsUp, data: DataFolder, options: FetchOptions, missing: Sequence[Path]) -> None:
    upstream = UPSTREAMS[dataset.upstream]
    if options.source == "files":
        _unpack(_find_given(options, upstream.archive), missing, data)
    elif upstream.archive == "val2017.zip" and (options.source == "hub" or options.pictures == "url"):
        addresses = {path.name: f"/val2017/{path.name}" for path in missing}
        _fetch_coco_images(dataset.name, missing, addresses, data, options)
    elif options.source == "drive":
        archive = download_from_drive(options.drive, upstream.images, upstream.archive, data.path, data.checksums)
        _unpack(archive, missing, data)
    else:
        _fetch_hub_images(dataset, data, set(missing))


def _fetch_hub_images(dataset: WhatsUp, data: DataFolder, missing: set[Path]) -> None:
    paths = [sample.image for sample in dataset.read(Places(data.path, data.path))]
    images = find_repository(IMAGES, "", data.downloads)
    with open_split(images, "", dataset.upstream, data.path) as read:
        for i, (path, row) in enumerate(zip(paths, read(["image_options"]), strict=True)):
            if path in missing:
                picture = row["image_options"]
                picture = picture[0] if isinstance(picture, list) and picture else picture
                if not isinstance(picture, dict) or not picture.get("bytes"):
                    raise DataError(f"{IMAGES}, row {i} of {dataset.upstream} has no image")
                data.write(path, picture["bytes"], f"{IMAGES}@{images.commit}")
                missing.discard(path)


def _fetch_coco_images(
    name: str, missing: Sequence[Path], addresses: Mapping[str, str], data: DataFolder, options: FetchOptions
) -> None:
    """Fetch COCO's pictures, singly or from the archives of their years.

    Args:
        addresses: path on the server by file name, `/YEAR/NAME`.
    """
    years: dict[str, list[Path]] = {}
    for path in missing:
        years.setdefault(addresses[path.name].strip("/").partition("/")[0], []).append(path)
    if options.source == "files":
        for year, paths in years.items():
            _unpack(_find_given(options, f"{year}.zip"), paths, data)
    elif options.pictures == "archive":
        for year, paths in years.items():
            url = f"{options.coco}/zips/{year}.zip"
            packed = RemoteFile(url, data.downloads / f"{year}.zip", remote_size(url))
            download_files([packed], data.checksums, name=f"{year}.zip", beside=len(paths) * sources.COCO_IMAGE_BYTES)
            _unpack(packed.path, paths, data)
    elif missing:
        size = sources.COCO_IMAGE_BYTES
        files = [RemoteFile(f"{options.coco}{addresses[path.name]}", path, size) for path in missing]
        download_files(files, data.checksums, name=f"{name}, images from {options.coco}")


def _list_missing_images(dataset: Benchmark, data: DataFolder) -> list[Path]:
    """List the images to fetch. Raises StoreError where they would be written into somebody's checkout."""
    samples = dataset.read(Places(data.path, data.path))
    paths = list(dict.fromkeys(sample.image for sample in samples if sample.image is not None))
    missing = [path for path in paths if not data.has(path)]
    for path in missing:
        if path.name in ("", ".", "..") or path.parent != paths[0].parent:
            raise DataError(f"{dataset.name}: an image's name leads out of its folder: {path}")
        if path.parent.is_symlink():
            raise StoreError(
                f"{path.parent} is a link to {path.parent.resolve()}, which lacks {len(missing)} images: "
                "complete it there, or remove the link and run the same command again"
            )
    return missing


def _unpack(archive: Path, missing: Sequence[Path], data: DataFolder) -> None:
    names = {path.name for path in missing}
    for path in missing:
        path.unlink(missing_ok=True)  # those that are there are damaged
    for path in extract_files(archive, missing[0].parent, keep=names.__contains__):
        data.checksums.note(path, archive.name)
        names.discard(path.name)
    if names:
        raise DataError(f"{archive} lacks {len(names)} images, {min(names)} for one: is it the right archive?")


def _find_given(options: FetchOptions, *names: str) -> Path:
    """Find one of the names below the folder that --from gives. Raises DataError."""
    folder = options.folder or Path()
    for place in (folder, folder / "data", folder.parent):
        if path := first_existing(place, *names):
            return path
    raise DataError(f"--from {folder} has no {names[0]}")


def fetch_hub_split(dataset: Hub, data: DataFolder, options: FetchOptions) -> None:
    """Fetch a split of the hub into `prepared_folder`; an incomplete one is replaced.

    Every column is kept, so that another choice of `columns` or `where` needs no new download.

    Raises:
        DataError, StoreError.
    """
    del options  # a repository or a folder says itself where it lies
    folder = prepared_folder(dataset, data.path)
    if not split_damages(folder) and _has_whole_images(folder):
        return
    with translate_os_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
    repository = find_repository(dataset.repo, dataset.revision, data.downloads)
    with open_split(repository, dataset.config, dataset.split, data.path) as read:
        lines = [json.dumps({key: _to_json(value, folder) for key, value in row.items()}) for row in read([])]
    if not lines:
        raise DataError(f"{dataset.repo} has no row in split {dataset.split}")
    text = "".join(f"{line}\n" for line in lines).encode()
    write_atomic(folder / "rows.jsonl", text)
    values = field_values(dataset)
    origin = {name: values[name] for name in ("repo", "config", "split", "revision")}
    origin |= {"commit": repository.commit, "rows": len(lines), "sha256": hashlib.sha256(text).hexdigest()}
    write_atomic(folder / "prepared.json", json.dumps(origin, indent=2) + "\n")


def _has_whole_images(folder: Path) -> bool:
    """Return whether every image of the rows is there, and each holds what its name says."""
    names = {name for row in read_json_lines(folder / "rows.jsonl") for name in _list_image_names(row)}
    paths = {path.name: path for path in find_entries(folder / "images", "*")}
    return names <= paths.keys() and all(path.stem == sha256(path) for path in paths.values())


def _list_image_names(value: Any) -> Iterator[str]:
    """Yield the names of the image files in a value, at any depth."""
    if isinstance(value, dict) and value.keys() == {"image"} and isinstance(value["image"], str):
        yield value["image"]
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _list_image_names(inner)


def _to_json(value: Any, folder: Path) -> Any:
    """Return a value as JSON; an image becomes a file, once per content."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        content = value["bytes"]
        suffix = next((suffix for start, suffix in sources.SUFFIXES.items() if content.startswith(start)), ".img")
        path = folder / "images" / f"{hashlib.sha256(content).hexdigest()}{suffix}"
        if not path.is_file():
            write_atomic(path, content)
        return {"image": path.name}
    if isinstance(value, dict):
        return {key: _to_json(inner, folder) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(inner, folder) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


# The benchmarks whose files lie in a data_dir, and how they come there.
RECIPES: Mapping[type, Callable[[Any, DataFolder, FetchOptions], None]] = {
    WhatsUp: fetch_whatsup,
    Vsr: fetch_vsr,
    PublicFile: fetch_public_file,
    Hub: fetch_hub_split,
}
