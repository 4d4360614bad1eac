"""Head, scripts and buttons of every page: only what the site serves itself, and only what works.

Launch and repository buttons appear once `lmlib.book.settings` names the repository; until then nothing on
the page leads nowhere.
"""

from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

from lmlib.book import settings

TEMPLATES = Path(__file__).parent / "templates"
LIVE_STYLE, LIVE_SCRIPT = "live/live.css", "live/live.js"
UNWANTED = ("thebe", "design-tabs")
THEME_OPTIONS: dict[str, Any] = {
    "navbar_persistent": [],
    "article_header_end": ["lm-buttons.html"],
    "search_bar_text": "Search the book",
    "toc_title": "On this page",
    "show_toc_level": 2,
    "back_to_top_button": False,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_repository_button": False,
    "use_issues_button": False,
    "repository_url": "",
    "launch_buttons": {},
    "footer_content_items": ["lm-footer.html"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
DESCRIPTION_LENGTH = 200


def set_theme_options(app: Sphinx, config: Config) -> None:
    """Merge into the theme's dictionary, where Jupyter Book keeps settings of its own."""
    config.html_theme_options.update(THEME_OPTIONS)
    config.templates_path.insert(0, str(TEMPLATES))


def description_of(doctree: nodes.document | None) -> str:
    """The first paragraph of a page as plain text, cut at a word."""
    if doctree is None:
        return ""
    for paragraph in doctree.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section):
            text = " ".join(paragraph.astext().split())
            if len(text) > DESCRIPTION_LENGTH:
                text = text[:DESCRIPTION_LENGTH].rsplit(" ", 1)[0].rstrip(",;:") + " …"
            return text
    return ""


def launch_links(page: str, repository: str, branch: str) -> list[dict[str, str]]:
    """Where a chapter can be opened: Colab for a repository on GitHub, Binder for any."""
    if not repository:
        return []
    address = urlsplit(repository.removesuffix(".git").rstrip("/"))
    notebook = quote(f"{page}.ipynb")
    on_github = address.hostname == "github.com"
    where = f"gh{address.path}" if on_github else f"git/{quote(address.geturl(), safe='')}"
    links = [
        {
            "label": "Binder",
            "icon": "binder",
            "title": "Run this chapter on Binder",
            "url": f"https://mybinder.org/v2/{where}/{quote(branch, safe='')}?urlpath=lab/tree/{notebook}",
        }
    ]
    if on_github:
        colab = f"https://colab.research.google.com/github{address.path}/blob/{quote(branch)}/{notebook}"
        links.insert(
            0, {"label": "Colab", "icon": "colab", "title": "Run this chapter in Google Colab", "url": colab}
        )
    return links


def is_notebook(app: Sphinx, page: str) -> bool:
    return page in app.env.all_docs and Path(app.env.doc2path(page)).suffix == ".ipynb"


def fill_context(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Give the templates their buttons and metadata, and drop scripts that are unused, doubled or remote."""
    notebook = is_notebook(app, page)
    context["lm_launch"] = launch_links(page, settings.REPOSITORY, settings.BRANCH) if notebook else []
    context["lm_repository"] = settings.REPOSITORY
    context["lm_download"] = f"_sources/{page}.ipynb" if notebook else ""
    context["lm_is_home"] = page == app.config.root_doc
    described = doctree is not None and any(
        meta.get("name") == "description" for meta in doctree.findall(nodes.meta)
    )
    context["lm_description"] = description_of(doctree)
    context["lm_needs_description"] = not described
    context["script_files"] = tidy(context.get("script_files", []))
    context["css_files"] = tidy(context.get("css_files", []))


def tidy(files: list[Any]) -> list[Any]:
    """Without thebe (which names a CDN), tabs that no page has, and whatever was registered twice."""
    seen: set[str] = set()
    kept = []
    for file in files:
        key = str(getattr(file, "attributes", {}).get("body") or getattr(file, "filename", file) or "")
        if key not in seen and not any(word in key.lower() for word in UNWANTED):
            kept.append(file)
        seen.add(key)
    return kept


def add_own_files(app: Sphinx) -> None:
    """Link the book's styles and scripts; those of live widgets when they are there."""
    app.add_css_file("site.css", priority=900)
    app.add_js_file("site.js", defer="defer", priority=900)
    static = Path(app.srcdir) / "book" / "_static"
    if (static / LIVE_STYLE).is_file():
        app.add_css_file(LIVE_STYLE, priority=910)
    if (static / LIVE_SCRIPT).is_file():
        app.add_js_file(LIVE_SCRIPT, defer="defer", priority=890)


def setup(app: Sphinx) -> None:
    app.connect("config-inited", set_theme_options)
    app.connect("builder-inited", add_own_files)
    app.connect("html-page-context", fill_context, priority=900)
