"""What stands outside docs/ and is linked from there is part of the site, under repository/.

Links between pages are those of the checkout, so that they work there too; here they are led to
where the site has the pages.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = [
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")),
    *sorted((ROOT / "recipes").glob("*/*.*")),
]
INDEX = {ROOT / "README.md": "index.md"}
"""Pages outside docs/ in whose place the site has a page of its own."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/."""
    for path in OUTSIDE:
        files.append(File.generated(config, _place(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that cross the border of docs/ to where the site has their pages."""
    docs = Path(config.docs_dir)
    here = Path(page.file.src_uri)
    outside = here.parts[0] == "repository"
    source = ROOT / here.relative_to("repository") if outside else docs / here

    def lead(match: re.Match[str]) -> str:
        path, _, anchor = match[1].partition("#")
        target = Path(os.path.normpath(source.parent / path))
        if not path or "://" in path or not target.exists():
            return match[0]
        if not outside and docs in target.parents:
            return match[0]  # a link as MkDocs knows it
        if target.is_dir():
            target /= "README.md"
        place = str(target.relative_to(docs)) if docs in target.parents else _place(target)
        return f"]({os.path.relpath(place, here.parent)}{'#' + anchor if anchor else ''})"

    return re.sub(r"\]\(([^)\s]+)\)", lead, markdown)


def _place(path: Path) -> str:
    return INDEX.get(path, f"repository/{path.relative_to(ROOT)}")
