"""Definitions where the terms stand: pointing at or focusing a glossary term shows what it means.

A page that uses terms carries their definitions as JSON; `site.js` shows them. Without JavaScript a term
is a link to the glossary.
"""

import json
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

GLOSSARY = "book/glossary"


def definitions(app: Sphinx) -> dict[str, str]:
    """Plain text of every definition in the glossary by the anchor of its term; read once per build."""
    known: dict[str, str] | None = getattr(app.env, "lm_definitions", None)
    if known is None:
        known = {}
        if GLOSSARY in app.env.all_docs:
            for glossary in app.env.get_doctree(GLOSSARY).findall(addnodes.glossary):
                for item in glossary.findall(nodes.definition_list_item):
                    body = next(item.findall(nodes.definition))
                    first = next(body.findall(nodes.paragraph), body)
                    for term in item.findall(nodes.term):
                        known.update(dict.fromkeys(term["ids"], " ".join(first.astext().split())))
        app.env.lm_definitions = known  # type: ignore[attr-defined]
    return known


def forget(app: Sphinx, *_: Any) -> None:
    """The glossary may have changed since the environment was pickled."""
    app.env.lm_definitions = None  # type: ignore[attr-defined]


def collect(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Put the definitions of the terms that this page links to into its context."""
    if doctree is None or page == GLOSSARY:
        return
    used = {}
    for link in doctree.findall(nodes.reference):
        anchor = (link.get("refuri") or "").partition("#")[2]
        if anchor.startswith("term-") and anchor in definitions(app):
            used[anchor] = definitions(app)[anchor]
    if used:
        data = json.dumps(used, ensure_ascii=False, sort_keys=True).replace("</", "<\\/")
        context["lm_terms"] = data


def setup(app: Sphinx) -> None:
    app.connect("env-updated", forget)
    app.connect("html-page-context", collect)
