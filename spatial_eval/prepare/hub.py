"""Fetch and read data sets of the Hugging Face hub (huggingface_hub, `datasets`), and files of Google Drive (gdown)."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from spatial_eval.core.errors import ConfigError, DataError, describe_unknown, first_line
from spatial_eval.core.files import find_entries, translate_os_errors
from spatial_eval.models.spec import hub_errors
from spatial_eval.prepare.http import check_space
from spatial_eval.prepare.verify import Checksums, sha256


@dataclass(frozen=True, slots=True)
class HubFile:
    """Describe a file of a repository: its size in bytes, and its digest on the hub, `sha256:HEX` or `git:HEX`."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Repository:
    """Describe a data set at one commit of the hub, or a folder in the hub's layout (commit "").

    Attributes:
        folder: where its files lie, or will lie after the download. files: by name.
    """

    name: str
    commit: str
    folder: Path
    files: Mapping[str, HubFile]


def find_repository(repo: str, revision: str, downloads: Path) -> Repository:
    """List the files of a repository or a folder.

    Args:
        revision: a branch, tag or commit; "" = the default branch. downloads: folder to download its files into.

    Raises:
        DataError: it does not exist, or the hub is unreachable or denies access.
    """
    folder = Path(repo).expanduser()
    if folder.is_dir():
        names = [path.relative_to(folder).as_posix() for path in find_entries(folder, "**/*") if path.is_file()]
        return Repository(repo, "", folder, dict.fromkeys(names, HubFile(0, "")))
    if repo.count("/") != 1 or repo.startswith(("/", ".", "~")):
        raise DataError(f"repo={repo} is neither a folder nor a data set on the hub (organisation/name)")
    from huggingface_hub import HfApi

    with _translate_hub_errors(repo):
        info = HfApi(endpoint=_endpoint()).dataset_info(repo, revision=revision or None, files_metadata=True)
    # The hub states the SHA-256 of files in LFS and git's name of the others.
    files = {
        file.rfilename: HubFile(file.size or 0, f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}")
        for file in info.siblings or []
    }
    outside = [name for name in files if name.startswith("/") or ".." in PurePosixPath(name).parts]
    if outside or not info.sha:
        raise DataError(
            f"{_endpoint()} lists files of {repo} that lead out of a folder ({outside}), or names no commit"
        )
    return Repository(repo, info.sha, downloads / repo.replace("/", "--") / info.sha, files)


def download_repository(repository: Repository, names: Sequence[str], data: Path) -> list[Path]:
    """Download files of a repository (a folder's own files stay where they are); return the folder that holds them.

    Prints their size first, needs the same space again for unpacking, and compares each file with the hub's digest.
    A complete file stays; a file that a kill interrupted starts again (huggingface_hub keeps no part of it).

    Raises:
        DataError: the hub denies access, or a file differs from its checksum. StoreError: a write fails.
    """
    from huggingface_hub import hf_hub_download

    paths = {name: repository.folder / name for name in names}
    if not repository.commit:
        return list(paths.values())
    missing = {name: path for name, path in paths.items() if not _is_whole(path, repository.files[name])}
    if missing:
        what = "1 file" if len(missing) == 1 else f"{len(missing):,} files"
        need = sum(repository.files[name].size for name in missing)
        check_space(data, repository.name, what, need, beside=need)
    for name, path in missing.items():
        with translate_os_errors(path), _translate_hub_errors(repository.name):
            path.unlink(missing_ok=True)
            hf_hub_download(
                repository.name,
                name,
                repo_type="dataset",
                revision=repository.commit,
                local_dir=repository.folder,
                endpoint=_endpoint(),
            )
        if not _is_whole(path, repository.files[name]):
            path.unlink()
            raise DataError(
                f"{name} of {repository.name} arrived with another checksum than {repository.files[name].digest}; "
                "nothing of it was kept: run the same command again"
            )
    return list(paths.values())


@contextmanager
def open_split(
    repository: Repository, config: str, split: str, data: Path, *, keep: bool = False
) -> Iterator[Callable[[Sequence[str]], Iterator[dict[str, Any]]]]:
    """Yield a function of column names that reads a split's rows ([] = all columns), an image as {"bytes", "path"}.

    Its files are downloaded first and removed at a clean end, so that one split at a time takes disk space; `keep`
    leaves them there.

    Raises:
        DataError: as `download_repository`; or `datasets` cannot read it, or there is no such split.
    """
    import datasets

    datasets.disable_progress_bars()
    # `datasets` decides from file names and the README which files make the split; the others stay empty.
    with tempfile.TemporaryDirectory() as scratch:
        shape = Path(scratch) / (PurePosixPath(repository.name).name or "data")
        readme = [name for name in repository.files if name == "README.md"]
        download_repository(repository, readme, data)
        for name in repository.files:
            _place(shape / name, repository.folder / name if name in readme else None)
        names = _split_files(datasets, repository, shape, config, split)
        paths = download_repository(repository, names, data)
        for name, path in zip(names, paths, strict=True):
            (shape / name).unlink()
            _place(shape / name, path)

        yield partial(_read_rows, datasets, repository, shape, names, split)
        if repository.commit and not keep:
            for path in paths:
                path.unlink(missing_ok=True)


def _split_files(datasets: Any, repository: Repository, shape: Path, config: str, split: str) -> list[str]:
    if any(name.endswith("state.json") for name in repository.files):  # Dataset.save_to_disk
        return list(repository.files)
    try:
        builder = datasets.load_dataset_builder(str(shape), config or None, cache_dir=str(shape.parent / "cache"))
        splits = {str(name): files for name, files in (builder.config.data_files or {}).items()}
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{repository.name} cannot be read by `datasets`: {first_line(error)}") from None
    if split not in splits:
        raise DataError(f"{repository.name}: {describe_unknown('split', split, splits)}")
    return [Path(os.path.relpath(file, shape)).as_posix() for file in splits[split]]


def _read_rows(
    datasets: Any, repository: Repository, shape: Path, names: Sequence[str], split: str, columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    try:
        if (shape / "dataset_dict.json").is_file() or (shape / "state.json").is_file():
            table = datasets.load_from_disk(str(shape))
            table = table[split] if isinstance(table, datasets.DatasetDict) else table
        else:
            table = datasets.load_dataset(
                str(shape),
                data_files={split: list(names)},  # else it would look into the empty files of other splits
                split=split,
                streaming=True,
                cache_dir=str(shape.parent / "cache"),
            )
        if columns:
            table = table.select_columns(list(columns))
        if table.features is not None:
            # Files as they are: decoding would turn pictures by their EXIF note and save them anew.
            table = table.cast(datasets.Features({k: _undecoded(datasets, f) for k, f in table.features.items()}))
        for i, row in enumerate(table):
            yield {
                key: _load_images(value, shape, f"{repository.name}, row {i}: `{key}`") for key, value in row.items()
            }
    except (ValueError, KeyError, OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{repository.name}, split {split}: {first_line(error)}") from None


def _load_images(value: Any, shape: Path, where: str) -> Any:
    """Return a value with the content of its images, at any depth.

    Raises:
        DataError: an image has no content, and its path leads out of the data set: nothing else of a disk is copied.
    """
    if isinstance(value, dict) and value.keys() == {"bytes", "path"} and value["bytes"] is None:
        path = Path(os.path.normpath(str(value["path"] or "")))
        if not (path.is_relative_to(shape) and path.is_file()):
            raise DataError(f"{where} names {str(path)[:200]!r}, a path without content; expected the image itself")
        return {"bytes": path.read_bytes(), "path": value["path"]}
    if isinstance(value, dict):
        return {key: _load_images(inner, shape, where) for key, inner in value.items()}
    return [_load_images(inner, shape, where) for inner in value] if isinstance(value, list) else value


def _undecoded(datasets: Any, feature: Any) -> Any:
    """Return a column's type with images as bytes, at any depth."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, list):
        return [_undecoded(datasets, feature[0])]
    if isinstance(feature, datasets.List | datasets.LargeList):
        return type(feature)(_undecoded(datasets, feature.feature))
    return feature


def _place(path: Path, target: Path | None) -> None:
    """Make a link to `target`, an empty file without one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if target is None:
        path.touch()
    else:
        path.symlink_to(target.resolve())


def _endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _is_whole(path: Path, file: HubFile) -> bool:
    """Return whether `path` holds what the hub says of the file."""
    if not path.is_file():
        return False
    if file.digest.startswith("sha256:"):
        return file.digest == f"sha256:{sha256(path)}"
    content = path.read_bytes()  # outside LFS, therefore small
    head = b"blob %d\0" % len(content)
    return file.digest == f"git:{hashlib.sha1(head + content, usedforsecurity=False).hexdigest()}"


# What the hub's errors mean, by the name of their class.
REASONS = {
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set; unset it where there is network",
    "GatedRepoError": "it asks for an agreement; give it on its page, then set HF_TOKEN",
    "RepositoryNotFoundError": "it is not there, or is private; check the name, or set an HF_TOKEN that may read it",
    "RevisionNotFoundError": "it has no such revision; check dataset.revision",
}


@contextmanager
def _translate_hub_errors(repo: str) -> Iterator[None]:
    """Turn what the hub and its client raise into one line; an OSError with an errno, the disk's, passes."""
    try:
        yield
    except hub_errors() as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        retry = f"{first_line(error)}; check the network and run the same command again"
        reason = REASONS.get(type(error).__name__, retry)
        raise DataError(f"{repo} cannot be fetched from {_endpoint()}: {reason}") from None


def download_from_drive(server: str, file_id: str, name: str, data: Path, checksums: Checksums) -> Path:
    """Download a file of Google Drive unless it is there; gdown resumes an interrupted download.

    Drive states neither size nor checksum: later downloads must equal the first one.

    Raises:
        ConfigError: gdown is not installed. DataError: Drive sends another content.
    """
    try:
        import gdown
    except ImportError:
        raise ConfigError("--source drive needs gdown: pip install gdown, or use --source hub") from None
    # a folder of its own: gdown resumes whatever begins with `name`
    path = data / "cache" / "downloads" / file_id / name
    if checksums.has(path):
        return path
    known = checksums.get(path)
    check_space(data, name, "from Google Drive", known.size if known else 0)
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    try:
        done = gdown.download(url=f"{server}/uc?id={file_id}", output=str(path), quiet=True, resume=True)
    except Exception as error:  # gdown raises what its own client raises
        raise DataError(f"{name} ({file_id}): {first_line(error)}") from error
    if not done or not path.is_file():
        raise DataError(f"{name} ({file_id}) did not come from Google Drive: try again later, or use --source hub")
    problem = checksums.problem(path)
    if problem:
        path.unlink()
        raise DataError(f"{problem}; nothing of it was kept")
    checksums.note(path, f"{server}/uc?id={file_id}")
    return path
