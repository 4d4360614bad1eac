"""What only the book needs: claims, exercises, plots, records, widgets and the build pipeline.

Importing this package imports nothing but the standard library's `importlib`, because parts of it run in
the rendered page; each public name brings its module with it when it is first used.
"""

from importlib import import_module
from typing import Any

# public name -> the module that holds it
_HOMES = {
    "claim": "claims",
    "check_claims": "claims",
    "glue": "claims",
    "between": "claims",
    "at_most": "claims",
    "at_least": "claims",
    "close_to": "claims",
    "equals": "claims",
    "figure": "plots",
    "exercise": "exercises.display",
    "check": "exercises.machinery",
    "show": "notebook",
    "show_source": "source",
    "show_table": "display",
    "record": "records",
    "number": "display",
}

__all__ = [
    "at_least",
    "at_most",
    "between",
    "check",
    "check_claims",
    "claim",
    "close_to",
    "equals",
    "exercise",
    "figure",
    "glue",
    "number",
    "record",
    "show",
    "show_source",
    "show_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"lmlib.book has no {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
