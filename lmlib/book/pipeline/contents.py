"""Which chapters and pages there are: read from `_toc.yml`, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmlib.book import settings

GENERATED_PAGES = ("book/execution", "book/claims", "book/leaderboard")
"""Pages that the pipeline writes into the staging tree."""

_NUMBERED = re.compile(r"\d\d_(\w+)")
# What a first cell says that its chapter takes: "**On CPU:** the code runs in at most 90 seconds and 2 GiB".
_STATED = re.compile(r"\*\*On (CPU|GPU):\*\*[^*]*?([\d.]+) (second|minute)s?\b[^*]*?([\d.]+) GiB")
_PROFILE_ON = {"CPU": "quick", "GPU": "full"}


@dataclass(frozen=True)
class Chapter:
    """One notebook of the book; `name` is its file name without ending, `word` what its package is called."""

    path: Path

    @property
    def name(self) -> str:
        """`01_tokenization`, the name that everything built from the chapter carries."""
        return self.path.stem

    @property
    def word(self) -> str:
        """`tokenization`: names the package, the tests, the widgets and the exercises."""
        numbered = _NUMBERED.fullmatch(self.name)
        if not numbered:
            raise ValueError(f"a chapter's file is called NN_word.ipynb, not {self.path.name}")
        return numbered[1]

    @property
    def title(self) -> str:
        """The notebook's first heading."""
        for cell in settings.read_notebook(self.path)["cells"]:
            for line in "".join(cell["source"]).splitlines():
                if cell["cell_type"] == "markdown" and line.startswith("# "):
                    return line[2:].strip()
        raise ValueError(f"{self.path} has no title: its first cell must begin with '# '")

    def stated_limits(self) -> dict[str, tuple[float, float]]:
        """Per profile what the first cell says that the chapter takes: (seconds, GiB)."""
        first = "".join(settings.read_notebook(self.path)["cells"][0]["source"])
        found = {}
        for device, amount, unit, memory in _STATED.findall(first):
            found[_PROFILE_ON[device]] = (float(amount) * (1 if unit == "second" else 60), float(memory))
        return found


def documents(toc: Path) -> list[str]:
    """Every document that `_toc.yml` names, in order, without endings."""

    def files(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("root", "file"):
                    yield str(value).removesuffix(".ipynb").removesuffix(".md")
                else:
                    yield from files(value)
        elif isinstance(node, list):
            for each in node:
                yield from files(each)

    return list(files(yaml.safe_load(toc.read_text(encoding="utf-8"))))


def chapters(root: Path) -> list[Chapter]:
    """The notebooks that `_toc.yml` names, in its order.

    Raises:
        FileNotFoundError: the contents name a document that is neither there nor generated.
    """
    found = []
    for document in documents(root / "_toc.yml"):
        notebook = root / f"{document}.ipynb"
        if notebook.is_file():
            found.append(Chapter(notebook))
        elif not (root / f"{document}.md").is_file() and document not in GENERATED_PAGES:
            raise FileNotFoundError(f"_toc.yml names {document}, but there is no {document}.md or .ipynb")
    return found
