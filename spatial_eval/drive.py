"""Files on Google Drive, through gdown, which knows its pages; its only home."""

from __future__ import annotations

from pathlib import Path

from .checksums import Checksums
from .errors import ConfigError, DataError
from .fetching import tell
from .store import refusals


def download(server: str, file_id: str, name: str, data: Path, checksums: Checksums) -> Path:
    """The file, fetched if need be; gdown goes on where it was cut off. Raises ConfigError without gdown, DataError.

    Drive states neither size nor checksum: what came the first time is what must come again.
    """
    try:
        import gdown
    except ImportError:
        raise ConfigError("--source drive needs gdown: pip install gdown, or use --source hub") from None
    path = (
        data / "cache" / "downloads" / file_id / name
    )  # a folder of its own: gdown resumes whatever begins with `name`
    if not checksums.has(path):
        known = checksums.get(path)
        tell(data, name, "from Google Drive", known.size if known else 0)
        with refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        try:
            done = gdown.download(url=f"{server}/uc?id={file_id}", output=str(path), quiet=True, resume=True)
        except Exception as error:
            raise DataError(f"{name} ({file_id}): {(str(error).split(chr(10)) or [''])[0]}") from error
        if not done or not path.is_file():
            raise DataError(f"{name} ({file_id}) did not come from Google Drive: try again later, or use --source hub")
        problem = checksums.problem(path)
        if problem:
            path.unlink()
            raise DataError(f"{problem}; nothing of it was kept")
        checksums.note(path, f"{server}/uc?id={file_id}")
    return path
