"""Copy the code that jobs run, and choose the environment variables that they get.

A queued job would otherwise run whatever lies on disk when it starts, hours later. And sbatch copies the submitter's
whole environment, API keys too, to the controller's disk: jobs get named variables only.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from spatial_eval.core.files import find_entries, translate_os_errors
from spatial_eval.core.hashing import hash_text
from spatial_eval.core.paths import PACKAGE

# What a job may need of its submitter; a prefix ends in *. No token and no key: `hf auth login` leaves one under HOME.
ENVIRONMENT = (
    *("HOME", "LANG", "LC_*", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER"),
    *("LD_LIBRARY_PATH", "MODULEPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHASHSEED", "PYTHONWARNINGS"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "CUDA_HOME"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE"),
    *("XDG_CACHE_HOME", "SSL_CERT_FILE", "SLURM_CONF"),
)
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")  # never passed on, whatever it is listed as
CACHE = "__pycache__"


def snapshot_code(jobs: Path) -> Path:
    """Copy this package into a folder of `jobs` named by its content; an existing copy is verified first.

    Returns:
        The folder to put on PYTHONPATH: it holds the package and nothing else.

    Raises:
        StoreError: the file system rejects it.
    """
    content = _read_package(PACKAGE.parent, PACKAGE)
    digest = _digest(content)
    folder = jobs / f"code-{digest}"
    with translate_os_errors(folder):
        if _is_intact(folder, digest):
            return folder
        if folder.exists():  # changed since it was written: jobs that run may use it, so it stays
            folder = jobs / f"code-{digest}-{secrets.token_hex(3)}"
        part = jobs / f".code-{secrets.token_hex(4)}"
        try:
            for name, data in content.items():
                path = part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            if not folder.is_dir():  # another launch may have been faster, with the same content
                part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def allowed_variables(environ: Mapping[str, str], own: Iterable[str] = ()) -> list[str]:
    """Return the names of the variables that a Slurm job gets: the whitelist, and the user's own."""
    listed = (*ENVIRONMENT, *own)
    prefixes = tuple(name[:-1] for name in listed if name.endswith("*"))
    names = [name for name in environ if name in listed or (prefixes and name.startswith(prefixes))]
    return sorted(name for name in names if not _is_secret(name))


def explain_dropped(environ: Mapping[str, str], named: Iterable[str]) -> list[str]:
    """Explain, one line per variable that the user named, why a Slurm job does not get it; list no others."""
    lines = []
    for name in named:
        if _is_secret(name):
            why = "is called as a secret is, and sbatch would leave it on the controller's disk"
            instead = "`hf auth login` on this machine, or a file that launcher.setup reads, gives jobs what they need"
            lines.append(f"launcher.environment: {name} is not passed on: it {why}; {instead}")
        elif not any(fnmatchcase(given, name) for given in environ):
            lines.append(f"launcher.environment: {name} is not set here: jobs do not get it")
    return lines


def _is_secret(name: str) -> bool:
    return any(word in name.upper() for word in SECRET)


def _is_intact(folder: Path, digest: str) -> bool:
    """Return whether a snapshot is what its name says. Its bytecode, which no digest covers, is removed first."""
    for cache in find_entries(folder, f"**/{CACHE}"):
        shutil.rmtree(cache, ignore_errors=True)
    paths = find_entries(folder, "**/*")
    regular = all(path.is_dir() or path.is_file() for path in paths)
    linked = any(path.is_symlink() for path in [folder, *paths])
    return folder.is_dir() and regular and not linked and _digest(_read_package(folder, folder)) == digest


def _read_package(root: Path, folder: Path) -> dict[str, bytes]:
    """Return the files below `folder` by path relative to `root`, bytecode left out."""
    paths = [path for path in find_entries(folder, "**/*") if path.is_file() and CACHE not in path.parts]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def _digest(content: Mapping[str, bytes]) -> str:
    return hash_text(b"".join(f"{name}\0{len(data)}\0".encode() + data for name, data in content.items()), 6)
