"""The built pages, read as files: nothing is fetched from elsewhere, and every link leads somewhere."""

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

pytestmark = pytest.mark.notebook

ROOT = Path(__file__).resolve().parents[2]
FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
    "input": "src",
}
FETCHING_LINKS = {
    "stylesheet",
    "icon",
    "preload",
    "modulepreload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "manifest",
}
LAUNCH_HOSTS = ("mybinder.org", "colab.research.google.com")


@cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def pages(site: Path) -> list[Path]:
    found = sorted(path for path in site.rglob("*.html") if "_static" not in path.relative_to(site).parts)
    assert len(found) > 8
    return found


def is_remote(address: str) -> bool:
    return bool(urlsplit(address).netloc) or urlsplit(address).scheme in ("http", "https", "ws", "wss")


def test_no_page_fetches_from_another_host(built_site: Path) -> None:
    remote = []
    for page in pages(built_site):
        for tag, attribute in FETCHED.items():
            remote += [
                (page.name, e[attribute])
                for e in soup(page).find_all(tag, {attribute: True})
                if is_remote(e[attribute])
            ]
        for link in soup(page).find_all("link", href=True):
            if FETCHING_LINKS & set(link.get("rel", [])) and is_remote(link["href"]):
                remote.append((page.name, link["href"]))
        for style in soup(page).find_all("style"):
            remote += [(page.name, url) for url in addresses_in_css(style.get_text()) if is_remote(url)]
    assert remote == []


def addresses_in_css(css: str) -> list[str]:
    """What a style sheet makes the browser fetch."""
    without_comments = re.sub(r"/\*.*?\*/", "", css, flags=re.S)
    found = re.findall(r"""url\(\s*(?:"([^"]*)"|'([^']*)'|([^"')\s]*))\s*\)""", without_comments)
    found += re.findall(r"""@import\s+(?:"([^"]*)"|'([^']*)')()""", without_comments)
    return [next(filter(None, one), "") for one in found]


def test_style_sheets_find_their_files_in_the_site(built_site: Path) -> None:
    linked = {
        (page.parent / unquote(urlsplit(link["href"]).path)).resolve()
        for page in pages(built_site)
        for link in soup(page).find_all("link", rel="stylesheet")
    }
    assert len(linked) > 5
    missing = []
    for sheet in linked:
        for address in addresses_in_css(sheet.read_text(encoding="utf-8")):
            if not address.startswith("data:"):
                target = sheet.parent / unquote(urlsplit(address).path)
                if is_remote(address) or not target.is_file():
                    missing.append((sheet.name, address))
    assert missing == []


def test_links_and_anchors_inside_the_site_resolve(built_site: Path) -> None:
    broken = []
    for page in pages(built_site):
        if page.name == "404.html":
            continue  # its links are relative to a root that only the browser knows; tested there
        for link in soup(page).find_all("a", href=True):
            address = urlsplit(link["href"])
            if address.scheme or address.netloc:
                continue
            target = (page.parent / unquote(address.path)).resolve() if address.path else page
            if not target.is_file():
                broken.append((page.name, link["href"]))
            elif address.fragment and target.suffix == ".html":
                name = unquote(address.fragment)
                if not soup(target).find(id=name):
                    broken.append((page.name, link["href"]))
    assert broken == []


def test_files_that_pages_name_exist(built_site: Path) -> None:
    missing = []
    for page in pages(built_site):
        named = [e["src"] for e in soup(page).find_all(["script", "img"], src=True)]
        named += [e["href"] for e in soup(page).find_all("link", href=True)]
        missing += [
            (page.name, name)
            for name in named
            if urlsplit(name).path
            and not name.startswith("data:")
            and not (page.parent / unquote(urlsplit(name).path)).resolve().is_file()
        ]
    assert missing == []


def test_every_page_says_what_it_is(built_site: Path) -> None:
    for page in pages(built_site):
        html = soup(page)
        where = page.relative_to(built_site)
        assert html.html["lang"] == "en", where
        assert html.title.get_text(strip=True), where
        (description,) = html.find_all("meta", attrs={"name": "description"})
        assert description["content"].strip(), where
        assert len(html.find_all("h1")) == 1, where


def test_pages_have_descriptions_of_their_own(built_site: Path) -> None:
    own = [
        soup(page).find("meta", attrs={"name": "description"})["content"]
        for folder in ("book", "chapters")
        for page in (built_site / folder).glob("*.html")
    ]
    assert len(own) > 7
    assert len(set(own)) == len(own)


def test_images_have_alternative_text(built_site: Path) -> None:
    without = [
        (page.name, image.get("src"))
        for page in pages(built_site)
        for image in soup(page).find_all("img")
        if not image.get("alt", "").strip()
    ]
    assert without == []


def test_ids_are_unique(built_site: Path) -> None:
    doubled = []
    for page in pages(built_site):
        ids = [element["id"] for element in soup(page).find_all(id=True)]
        doubled += [(page.name, each) for each in set(ids) if ids.count(each) > 1]
    assert doubled == []


def test_one_search_box_and_no_dead_scripts(built_site: Path) -> None:
    for page in pages(built_site):
        sources = [script["src"] for script in soup(page).find_all("script", src=True)]
        assert len(sources) == len({urlsplit(source).path for source in sources}), page.name
        assert not [source for source in sources if re.search("thebe|fontawesome|MathJax", source)], page.name
        assert len(soup(page).select("form.bd-search")) <= (2 if page.name == "search.html" else 1), page.name
    assert not list(built_site.rglob("fontawesome*"))


def test_runtime_is_in_the_site(built_site: Path) -> None:
    static = built_site / "_static"
    for name in (
        "pyodide/pyodide.mjs",
        "pyodide/pyodide.asm.wasm",
        "plotly.min.js",
        "live/lmlib.zip",
        "math.css",
    ):
        assert (static / name).stat().st_size > 1000, name
    assert not list(static.rglob("*.map"))


def test_glossary_terms_of_a_page_carry_their_definitions(built_site: Path) -> None:
    home = soup(built_site / "book" / "index.html")
    terms = home.select("a > .std-term")
    assert terms
    data = home.find("script", id="lm-terms").get_text()
    for term in terms:
        assert f'"{urlsplit(term.parent["href"]).fragment}":' in data


def test_glossary_is_large_enough_to_help(built_site: Path) -> None:
    assert len(soup(built_site / "book" / "glossary.html").select("dl.glossary dt")) >= 50


def test_no_launch_buttons_while_no_repository_is_named(built_site: Path) -> None:
    from lmlib.book import settings

    if settings.REPOSITORY:
        pytest.skip("the book names a repository; the other state is tested by building a small book")
    for page in pages(built_site):
        for link in soup(page).find_all("a", href=True):
            assert not link["href"].startswith(tuple(f"https://{host}" for host in LAUNCH_HOSTS)), page.name
        assert not soup(page).select(".lm-launch, .lm-repository"), page.name


SMALL_TOC = """\
format: jb-book
root: book/index
parts:
  - caption: Chapters
    chapters:
      - file: chapters/01_small
      - file: book/about
"""
SMALL_NOTEBOOK = (
    '{"cells": [{"cell_type": "markdown", "metadata": {}, "source": "# Small\\n\\nA chapter with $x^2$."}],'
    ' "metadata": {"kernelspec": {"name": "python3", "display_name": "P", "language": "python"}},'
    ' "nbformat": 4, "nbformat_minor": 4}'
)


def test_launch_buttons_appear_when_a_repository_is_named(tmp_path: Path) -> None:
    book = tmp_path / "source"
    (book / "chapters").mkdir(parents=True)
    ignored = shutil.ignore_patterns("node_modules", "results", "__pycache__", "*.md")
    shutil.copytree(ROOT / "book", book / "book", ignore=ignored)
    shutil.copy(ROOT / "_config.yml", book)
    (book / "_toc.yml").write_text(SMALL_TOC)
    (book / "book" / "index.md").write_text("# Small book\n\nIts only page.\n")
    (book / "book" / "about.md").write_text("# About\n\nAbout it.\n")
    (book / "chapters" / "01_small.ipynb").write_text(SMALL_NOTEBOOK)
    program = (
        "from lmlib.book import settings; settings.REPOSITORY = 'https://github.com/owner/name'\n"
        "from jupyter_book.cli.main import main; main()"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "build",
        "--all",
        "-W",
        "--path-output",
        str(tmp_path),
        str(book),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    chapter = soup(tmp_path / "_build" / "html" / "chapters" / "01_small.html")
    links = {link.get_text(strip=True): link["href"] for link in chapter.select("a.lm-launch")}
    assert set(links) == {"Colab", "Binder"}
    assert links["Colab"].endswith("/github/owner/name/blob/main/chapters/01_small.ipynb")
    assert chapter.select_one("a.lm-repository")["href"] == "https://github.com/owner/name"
    download = chapter.select_one("a.lm-download")["href"]
    assert (tmp_path / "_build" / "html" / "chapters" / download).resolve().is_file()
    page = soup(tmp_path / "_build" / "html" / "book" / "about.html")
    assert not page.select("a.lm-launch"), "only chapters can be launched"
