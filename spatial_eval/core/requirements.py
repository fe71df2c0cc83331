"""Read the requirements of this package (pyproject.toml), and list installed versions newer than the tested ones."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

_FILE = Path(__file__).resolve().parents[2] / "pyproject.toml"


def read_python() -> SpecifierSet:
    """Return the versions of Python that pyproject.toml allows, or the installed metadata without that file."""
    if _FILE.is_file():
        return SpecifierSet(tomllib.loads(_FILE.read_text("utf8"))["project"]["requires-python"])
    return SpecifierSet(str(metadata.metadata("spatial-eval")["Requires-Python"]))


def read_packages() -> list[Requirement]:
    """List the packages that are always needed, from the source of read_python."""
    if _FILE.is_file():
        return list(map(Requirement, tomllib.loads(_FILE.read_text("utf8"))["project"]["dependencies"]))
    return [Requirement(line) for line in metadata.requires("spatial-eval") or [] if "extra ==" not in line]


def find_version(name: str) -> str:
    """Return the installed version of a package; "" where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def choose_hydra_base() -> dict[str, str]:
    """Return the arguments that ask Hydra for the behaviour of 1.3; 1.4 has no other, and warns about the question."""
    return {"version_base": "1.3"} if Version(find_version("hydra-core")).release < (1, 4) else {}


def is_newer(package: Requirement, version: str) -> bool:
    """Return whether `version` is above the upper bound, the newest tested one, and meets the other bounds."""
    others = SpecifierSet(",".join(str(bound) for bound in package.specifier if bound.operator != "<"))
    return others.contains(version, prereleases=True) and not package.specifier.contains(version, prereleases=True)


def list_newer() -> list[str]:
    """Return one line per installed package that is newer than the newest one tested."""
    lines = []
    for package in read_packages():
        version = find_version(package.name)
        if version and is_newer(package, version):
            wanted = f"pip install '{package}'"
            lines.append(f"{package.name} {version} is newer than the newest tested one: {wanted} if anything fails")
    return lines
