"""Data sets of the Hugging Face hub: which files a split consists of, and its rows. The home of `datasets`.

The hub is asked one question, GET /api/datasets/REPO/revision/REVISION?blobs=true (what huggingface_hub's
`dataset_info(files_metadata=True)` asks), and gives files at /datasets/REPO/resolve/COMMIT/FILE. They are fetched by
`fetching`, which checks the hub's own checksums; `datasets` then reads them without network.
"""

from __future__ import annotations

import os
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .checksums import Checksums
from .errors import DataError, unknown
from .fetching import fetch, forget
from .transfer import Remote, ask


@dataclass(frozen=True, slots=True)
class Repository:
    """A data set repository at one commit, or a folder in the hub's layout (commit ""); `files` by their names."""

    name: str
    commit: str
    files: Mapping[str, Remote]


def look(repo: str, revision: str, downloads: Path) -> Repository:
    """The files of a repository or a folder. Raises DataError where it cannot be had."""
    folder = Path(repo).expanduser()
    if folder.is_dir():
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return Repository(repo, "", {name: Remote("", folder / name) for name in names})
    if repo.count("/") != 1 or repo.startswith(("/", ".", "~")):
        raise DataError(f"repo={repo} is neither a folder nor a data set on the hub (organisation/name)")
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        raise DataError(f"{repo} cannot be fetched: HF_HUB_OFFLINE is set; unset it where there is network")
    hub = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    token = get_token()
    secret = {"Authorization": f"Bearer {token}"} if token else {}
    at = urllib.parse.quote(revision or "main", safe="")
    found = ask(f"{hub}/api/datasets/{repo}/revision/{at}?blobs=true", secret=secret)
    try:
        commit = str(found["sha"])
        place = downloads / repo.replace("/", "--") / commit
        files = {
            item["rfilename"]: Remote(
                f"{hub}/datasets/{repo}/resolve/{commit}/{urllib.parse.quote(_inside(item['rfilename']))}",
                place / item["rfilename"],
                int(item.get("size") or 0),
                _digest(item),
                secret,
            )
            for item in found["siblings"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{hub} answers something else than a list of files for {repo}: {error!r}") from None
    return Repository(repo, commit, files)


@contextmanager
def split(
    repository: Repository, config: str, part: str, checksums: Checksums, *, keep: bool = False
) -> Iterator[Callable[[Sequence[str]], Iterator[dict[str, Any]]]]:
    """Yields `rows(columns)`, which reads a split's rows ([] = all columns), images as {"bytes", "path"}.

    Its files are fetched first; at a clean end they are removed again, so that one split at a time takes disk, unless
    `keep` says that they are needed once more.
    Raises DataError.
    """
    import datasets

    datasets.disable_progress_bars()
    # datasets decides which files make the split from their names and the README; the others stay empty.
    with tempfile.TemporaryDirectory() as scratch:
        shape = Path(scratch) / (PurePosixPath(repository.name).name or "data")
        _fetch(repository, [name for name in repository.files if name == "README.md"], checksums)
        for name in repository.files:
            _link(shape, name, repository.files[name].path if name == "README.md" else None)
        names = _names(datasets, repository, shape, config, part)
        fetched = _fetch(repository, names, checksums)
        for name in names:
            (shape / name).unlink()
            _link(shape, name, repository.files[name].path)

        def rows(columns: Sequence[str]) -> Iterator[dict[str, Any]]:
            return _rows(datasets, repository, shape, names, part, columns)

        yield rows
        if not keep:
            forget(fetched)


def _names(datasets: Any, repository: Repository, shape: Path, config: str, part: str) -> list[str]:
    """The files of a split."""
    saved = [name for name in repository.files if name.endswith("state.json")]  # Dataset.save_to_disk
    if saved:
        return list(repository.files)
    try:
        builder = datasets.load_dataset_builder(str(shape), config or None, cache_dir=str(shape.parent / "cache"))
        found = {str(name): files for name, files in (builder.config.data_files or {}).items()}
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{repository.name} cannot be read by `datasets`: {_line(error)}") from None
    if part not in found:
        raise DataError(f"{repository.name}: {unknown('split', part, found)}")
    return [Path(os.path.relpath(file, shape)).as_posix() for file in found[part]]


def _rows(
    datasets: Any, repository: Repository, shape: Path, names: Sequence[str], part: str, columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    try:
        if (shape / "dataset_dict.json").is_file() or (shape / "state.json").is_file():
            table = datasets.load_from_disk(str(shape))
            table = table[part] if isinstance(table, datasets.DatasetDict) else table
        else:
            table = datasets.load_dataset(
                str(shape),
                data_files={part: list(names)},  # else it would look into the empty files of other splits
                split=part,
                streaming=True,
                cache_dir=str(shape.parent / "cache"),
            )
        if columns:
            table = table.select_columns(list(columns))
        if table.features is not None:
            # Files as they are: decoding would turn pictures by their EXIF note and save them anew.
            table = table.cast(datasets.Features({k: _raw(datasets, f) for k, f in table.features.items()}))
        yield from table
    except (ValueError, KeyError, OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{repository.name}, split {part}: {_line(error)}") from None


def _raw(datasets: Any, feature: Any) -> Any:
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, list):
        return [_raw(datasets, feature[0])]
    inner = getattr(feature, "feature", None)
    return feature if inner is None else type(feature)(_raw(datasets, inner))


def _fetch(repository: Repository, names: Sequence[str], checksums: Checksums) -> list[Path]:
    """Fetches what is not a folder's; returns what it fetched."""
    remotes = [repository.files[name] for name in names if repository.commit]
    beside = sum(remote.size for remote in remotes)  # what is unpacked of them before they go
    fetch(remotes, checksums, name=repository.name, beside=beside)
    return [remote.path for remote in remotes]


def _link(shape: Path, name: str, target: Path | None) -> None:
    (shape / name).parent.mkdir(parents=True, exist_ok=True)
    if target is None:
        (shape / name).touch()
    else:
        (shape / name).symlink_to(target.resolve())


def _inside(name: str) -> str:
    """A file's name in a repository. Raises ValueError where it would lead out of a folder."""
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise ValueError(name)
    return name


def _digest(item: Mapping[str, Any]) -> str:
    """The hub states the SHA-256 of files in LFS and git's name of the others."""
    if item.get("lfs"):
        return f"sha256:{item['lfs']['sha256']}"
    return f"git:{item['blobId']}" if item.get("blobId") else ""


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
