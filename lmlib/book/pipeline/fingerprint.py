"""One hash for all that a chapter's outputs depend on; equal hashes mean there is nothing to execute again.

What counts: the cells; every file of the packages that the cells import, and that those import in turn; the
chapter's own package, widgets and exercises; the recorded measurements; the pinned packages; Python and the
machine. Whole packages are taken rather than single modules, because their public names are loaded lazily,
which hides from the source what an import brings along.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.metadata import distributions
from pathlib import Path

from lmlib.book import settings
from lmlib.book.pipeline.contents import Chapter

_PER_CHAPTER = ("lmlib/book/widgets", "lmlib/book/exercises")
"""Folders of one module a chapter, named by its word; the other chapters' modules do not count."""

_PIPELINE = ("run_chapter.py", "execute.py")
"""The parts of the pipeline that decide what an executed notebook looks like."""

_MODULE = re.compile(r"(?:lmlib|kernels)(?:\.\w+)*")
_MAGIC = re.compile(r"^\s*[%!?].*$", re.MULTILINE)
_PASSED_OVER = ("__pycache__", ".numba_cache", ".ipynb_checkpoints")


def chapter_fingerprint(root: Path, chapter: Chapter, parameters: dict[str, str | int]) -> str:
    """Hash of everything that the outputs of `chapter`, run with `parameters`, depend on."""
    digest = hashlib.sha256()
    for text in (environment(), repr(sorted(parameters.items())), chapter.name, *_cells(chapter)):
        digest.update(text.encode() + b"\0")
    for path in sorted(dependencies(root, chapter)):
        digest.update(str(path.relative_to(root)).encode() + b"\0")
        digest.update(_file_hash(path, path.stat().st_mtime_ns))
    return digest.hexdigest()


def environment() -> str:
    """Python, the kind of machine and every installed package with its version."""
    packages = sorted(f"{each.name}=={each.version}" for each in distributions())
    return "\n".join([sys.version, platform.system(), platform.machine(), *packages])


def dependencies(root: Path, chapter: Chapter) -> set[Path]:
    """The files beside the notebook itself that `chapter` depends on."""
    own = root / "kernels" if chapter.word == "kernels" else root / "lmlib" / chapter.word
    found = set(tree(root / "book" / "results"))
    found |= {root / "lmlib/book/pipeline" / name for name in _PIPELINE}
    found |= {root / name for name in ("constraints.txt", "lmlib/__init__.py")}
    seen: set[Path] = set()
    waiting = [own, *_packages(root, _code(chapter))]
    while waiting:
        package = waiting.pop()
        if package in seen:
            continue
        seen.add(package)
        files = set(_package_files(root, package, chapter.word))
        found |= files
        for path in files:
            if path.suffix == ".py":
                module = ".".join(path.relative_to(root).with_suffix("").parts)
                waiting += _packages(root, [path.read_text(encoding="utf-8")], module)
    return {path for path in found if path.is_file()}


def _cells(chapter: Chapter) -> Iterator[str]:
    for cell in settings.read_notebook(chapter.path)["cells"]:
        yield f"{cell['cell_type']} {cell['metadata']} {''.join(cell['source'])}"


def _code(chapter: Chapter) -> list[str]:
    cells = settings.read_notebook(chapter.path)["cells"]
    return [_MAGIC.sub("", "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]


def _packages(root: Path, sources: Iterable[str], module: str = "") -> list[Path]:
    """The folders of the book's packages that `sources` import: `lmlib/<word>` or `kernels`."""
    found = set()
    for source in sources:
        for name in _imported(source, module):
            parts = name.split(".")
            depth = 1 if parts[0] == "kernels" else 2
            folder = root.joinpath(*parts[:depth])
            if len(parts) >= depth and folder.is_dir():
                found.add(folder)
    return sorted(found)


@lru_cache(maxsize=4096)
def _imported(source: str, module: str) -> frozenset[str]:
    """Full names of what `source` imports of the book, also where the name stands in a string."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(module.split(".")[: -node.level]) if node.level else ""
            base = ".".join(part for part in (package, node.module or "") if part)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
            found.add(node.value)
    return frozenset(name for name in found if _MODULE.fullmatch(name))


def _package_files(root: Path, package: Path, word: str) -> Iterator[Path]:
    for path in tree(package):
        relative = path.relative_to(root).as_posix()
        if relative.startswith("lmlib/book/pipeline/"):
            continue
        folder = path.parent.relative_to(root).as_posix()
        others = folder in _PER_CHAPTER and path.stem in _words(root) and path.stem != word
        if not others:
            yield path


def _words(root: Path) -> set[str]:
    """Words of the chapters, by their packages; `kernels` is the one that lives outside lmlib."""
    return {path.name for path in (root / "lmlib").iterdir() if path.is_dir()} | {"kernels"}


def tree(folder: Path) -> Iterator[Path]:
    """Files at any depth below `folder`, but for caches."""
    for path in folder.rglob("*"):
        if path.is_file() and not any(part in _PASSED_OVER for part in path.parts):
            yield path


@lru_cache(maxsize=16384)
def _file_hash(path: Path, modified: int) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
