"""The documentation as a site: it builds without a warning, and stands alone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

ROOT = Path(__file__).parent.parent
RESOURCES = {("script", "src"), ("img", "src"), ("link", "href"), ("audio", "src")}
WANTED = ("Encode a folder", "Train on your data", "Stream in Python", "Read the tokens in PyTorch")


class Page(HTMLParser):
    """The links of a page, the names that lead into it, and its title."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.article: list[str] = []
        """Those of the text alone, not of the navigation."""
        self.resources: list[str] = []
        self.names: set[str] = set()
        self.title = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.names |= {values[name] for name in ("id", "name") if name in values}
        if tag in ("h1", "article", "title"):
            self._open.append(tag)
        for name, value in values.items():
            if (tag, name) in RESOURCES and values.get("rel") != "canonical":
                self.resources.append(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)
                if "article" in self._open:
                    self.article.append(value)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            self._open.remove(tag)

    def handle_data(self, data: str) -> None:
        if "h1" in self._open and "article" in self._open:
            self.title += data.strip("\n¶")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site: the one that continuous integration has built, or one built here."""
    if built := os.environ.get("AUDIOVQ_SITE"):
        return Path(built)
    folder = tmp_path_factory.mktemp("site")
    call = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def inner(pages: dict[Path, Page], path: Path, links: list[str]) -> Iterator[tuple[str, Path, str]]:
    """Links that stay in the site, with the files and the names they lead to."""
    for link in links:
        parts = urlsplit(link)
        if not parts.scheme and not parts.netloc:
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            yield link, target / "index.html" if target.is_dir() else target, parts.fragment


def test_no_link_is_broken(site, pages):
    assert len(pages) > 30
    for path, page in pages.items():
        if path.name == "404.html":  # its links begin at the root, wherever that is
            continue
        for link, target, name in inner(pages, path, page.links + page.resources):
            assert target.exists(), f"{path.relative_to(site)}: {link}"
            if name and target in pages:
                names = {unquote(n) for n in pages[target].names} | {"__top"}
                assert unquote(name) in names, f"{path.relative_to(site)}: {link}"


def test_nothing_is_fetched_from_elsewhere(site, pages):
    for path, page in pages.items():
        for resource in page.resources:
            assert not urlsplit(resource).netloc, f"{path.relative_to(site)}: {resource}"
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert "url(http" not in text, path
        assert "@import" not in text, path


def test_what_a_newcomer_seeks_is_two_clicks_away(site, pages):
    found, here = {}, {site / "index.html"}
    for clicks in (1, 2):
        here = {
            target
            for path in here
            for _, target, _ in inner(pages, path, pages[path].article)
            if target in pages
        }
        found |= {pages[path].title: clicks for path in here if pages[path].title not in found}
    assert set(WANTED) <= set(found)


def test_the_reference_is_made_from_the_code(site):
    from audiovq.training.recipe import TrainSettings

    settings = (site / "reference" / "recipe.html").read_text(encoding="utf-8")
    assert all(name in settings for name in TrainSettings.__dataclass_fields__)
    commands = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    assert "--keep-broken" in commands
    assert "...</li>" not in commands  # typer cuts what a list says of a verb
    assert "<!-- made from" not in commands + settings
