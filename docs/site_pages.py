"""Give the documentation site the pages that lie outside docs/ (a hook of mkdocs; `make site`)."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "spatial_eval/tiny/README.md": "tiny.md",
}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add PAGES, and what their pictures and notebooks need, with the links that hold on the site."""
    for source, target in PAGES.items():
        text = relink((ROOT / source).read_text("utf8"), PurePosixPath(source).parent)
        files.append(File.generated(config, target, content=text))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Turn links from docs/ to what lies above it into links to the pages that stand for it."""
    return relink(markdown, PurePosixPath("docs")) if "](../" in markdown else markdown


def relink(markdown: str, folder: PurePosixPath) -> str:
    """Replace links relative to a folder of the repository by links relative to the root of the site."""

    def replace(match: re.Match[str]) -> str:
        path = (ROOT / folder / match[1]).resolve().relative_to(ROOT).as_posix()
        return PAGES.get(path, path.removeprefix("docs/"))

    return LINK.sub(replace, markdown)
