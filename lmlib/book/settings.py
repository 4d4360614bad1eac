"""The book's settings that more than one part needs, each said once.

The address of the repository is set here and nowhere else: the launch buttons, the links to source files
and the setup cell of every chapter come from it. After changing it, run `python -m lmlib.book.settings`,
which rewrites the setup cells; a test fails while a chapter's cell differs from the generated one.

Standard library only: the site's extension and the notebooks import it early.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

TITLE = "Language Models, Live"
REPOSITORY = ""
"""Web address that `git clone` understands, as "https://example.org/owner/book"; empty while unpublished."""
BRANCH = "main"

DEFAULT_PARAMETERS: dict[str, str | int] = {"profile": "quick", "seed": 0}
"""What the parameters cell of every chapter says in git."""

SETUP_TAG = "setup"
"""Cell tag by which a chapter's setup cell is found."""

# Laid out for the width of a page, as chapters/ruff.toml asks of every cell.
_SETUP_CELL = """\
# Setup. Where lmlib and all that it needs are installed, this does nothing.
# Elsewhere (Colab, a kernel of your own) it fetches the book if need be and
# installs what is missing; a torch that is already there stays as it is.
import importlib.util
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REPOSITORY, BRANCH = {repository}, {branch}
NEEDED = (
{needed}
).split()

if not all(map(importlib.util.find_spec, NEEDED)):
    folders = [Path.cwd(), *Path.cwd().parents]
    around = [p for p in folders if (p / "lmlib/__init__.py").is_file()]
    book = around[0] if around else Path.cwd() / "lm-book"
    if not book.exists():
        if not REPOSITORY:
            raise RuntimeError(
                "lmlib, or a package that it needs, is not installed, and this "
                "copy of the book names no repository to fetch it from. Open the "
                "notebook inside a clone of the book, or set REPOSITORY in this "
                "cell to its address."
            )
        clone = ["git", "clone", "--depth=1", "--branch", BRANCH]
        subprocess.run([*clone, REPOSITORY, str(book)], check=True)
    try:
        keep = ["torch==" + version("torch")]
    except PackageNotFoundError:
        keep = []
    if not importlib.util.find_spec("pip"):  # an environment made by uv
        subprocess.run([sys.executable, "-m", "ensurepip"], check=True)
    print("Installing what the book needs ...", flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--editable"]
    subprocess.run([*pip, str(book) + "[chapters]", *keep], check=True)
    sys.path.insert(0, str(book))
    importlib.invalidate_caches()
"""

NEEDED = (
    "lmlib",
    "einops",
    "ipywidgets",
    "jaxtyping",
    "numba",
    "numpy",
    "plotly",
    "psutil",
    "regex",
    "safetensors",
    "tensorboard",
    "tiktoken",
    "tokenizers",
    "torch",
    "tqdm",
)
"""Modules without which the setup cell installs: a copy of lmlib in the working directory is not enough.

The project's dependencies and those of its extra `chapters`, but for Triton, which not every system has.
"""


def root() -> Path:
    """The folder that holds the book: chapters, records and this package.

    Raises:
        FileNotFoundError: lmlib was installed without the book around it.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / "_toc.yml").is_file():
        raise FileNotFoundError(
            f"no _toc.yml in {folder}: lmlib must be imported from a checkout of the book"
        )
    return folder


def setup_cell() -> str:
    """Source of the cell that every chapter starts with."""
    lines = textwrap.wrap(" ".join(NEEDED), 70)
    return _SETUP_CELL.format(
        repository=json.dumps(REPOSITORY),
        branch=json.dumps(BRANCH),
        needed="\n".join(f'    "{line} "' for line in lines),
    ).rstrip("\n")


def read_notebook(path: Path) -> dict[str, Any]:
    """The notebook as JSON; raises ValueError that names the file when it is none."""
    try:
        notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a notebook: {error}") from error
    return notebook


def write_notebook(path: Path, notebook: dict[str, Any]) -> None:
    """Write in the layout that Jupyter itself uses, so that a diff shows only what changed."""
    path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def cells_with_tag(notebook: dict[str, Any], tag: str) -> list[dict[str, Any]]:
    """The notebook's cells that carry `tag`, in order."""
    return [cell for cell in notebook["cells"] if tag in cell["metadata"].get("tags", ())]


def refresh_setup_cells(chapters: Path) -> list[Path]:
    """Put the generated setup cell into every notebook of `chapters`; returns those that changed."""
    changed = []
    for path in sorted(chapters.glob("*.ipynb")):
        notebook = read_notebook(path)
        wanted = setup_cell().splitlines(keepends=True)
        stale = [
            cell for cell in cells_with_tag(notebook, SETUP_TAG) if "".join(cell["source"]) != setup_cell()
        ]
        for cell in stale:
            cell["source"] = wanted
        if stale:
            write_notebook(path, notebook)
            changed.append(path)
    return changed


if __name__ == "__main__":
    for path in refresh_setup_cells(root() / "chapters"):
        print(f"setup cell rewritten: {path.name}")
