"""The code that jobs run, and the environment that they get.

A queued job would otherwise run whatever stands on disk when it starts, hours later. And sbatch copies the
submitter's whole environment, API keys too, to the controller's disk: jobs get named variables only.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from .store import refusals

PACKAGE = Path(__file__).resolve().parent

# What a job may need of its submitter; a prefix ends in *. No token and no key: `hf auth login` leaves one under HOME.
ENVIRONMENT = (
    *("HOME", "LANG", "LC_*", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER"),
    *("LD_LIBRARY_PATH", "MODULEPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHASHSEED", "PYTHONWARNINGS"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "CUDA_HOME"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE"),
    *("XDG_CACHE_HOME", "SSL_CERT_FILE", "SLURM_CONF"),
)
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")  # never passed on, whatever it is listed as


def code(jobs: Path) -> Path:
    """A copy of this package in `jobs`, named by its content; the folder to put on PYTHONPATH. Raises StoreError."""
    files = [path for path in sorted(PACKAGE.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    digest = hashlib.blake2b(digest_size=6)
    for path in files:
        digest.update(f"{path.relative_to(PACKAGE)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    folder = jobs / f"code-{digest.hexdigest()}"
    if not folder.is_dir():
        part = jobs / f".code-{secrets.token_hex(4)}"
        with refusals(folder):
            try:
                for path in files:
                    target = part / PACKAGE.name / path.relative_to(PACKAGE)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
                if not folder.is_dir():
                    part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


def search_path(folder: Path, environ: Mapping[str, str]) -> str:
    """PYTHONPATH of a job: the snapshot first, then the submitter's own, absolute (jobs start elsewhere)."""
    own = [str(Path(entry).absolute()) for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.pathsep.join([str(folder), *own])


def allowed(environ: Mapping[str, str], more: Iterable[str] = ()) -> list[str]:
    """Names of the variables that a Slurm job gets: the whitelist, and `more` that the user names."""
    listed = (*ENVIRONMENT, *more)
    prefixes = tuple(name[:-1] for name in listed if name.endswith("*"))
    names = [name for name in environ if name in listed or (prefixes and name.startswith(prefixes))]
    return sorted(name for name in names if not any(word in name.upper() for word in SECRET))
