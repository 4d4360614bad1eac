"""Which of lmlib's sources run in the page, as one archive: ``python -m lmlib.book.page_files <folder>``.

The archive holds, byte for byte, the widgets, the exercises and everything of lmlib that they import. What it
imports besides must be the standard library, because that is all that the page's Python has.
"""

import ast
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = "lmlib.zip"
_ENTRIES = ("lmlib.book.forms", "lmlib.book.exercises.machinery")
_FIXED_TIME = (2026, 1, 1, 0, 0, 0)  # the same sources give the same archive


class PageImportError(ImportError):
    """A module that must run in the page imports something that the page does not have."""


def page_files() -> dict[str, Path]:
    """Archive name to file, for every source and data file that goes into the page.

    Raises PageImportError, with the chain of imports, if a widget needs more than the standard library. An
    exercise module that does is left out: its exercises are solved in the notebook.
    """
    found: dict[str, Path] = {}
    for module in (*_ENTRIES, *_modules_in("lmlib/book/widgets"), *_declared_modules()):
        _collect(module, (module,), found)
    for module in _modules_in("lmlib/book/exercises"):
        with_this = dict(found)
        try:
            _collect(module, (module,), with_this)
        except PageImportError:
            continue
        found = with_this
    for data in sorted((ROOT / "lmlib/book/widgets").glob("*.json")):
        found[data.relative_to(ROOT).as_posix()] = data
    return dict(sorted(found.items()))


def write_archive(folder: Path) -> Path:
    """Write ``lmlib.zip`` into the folder and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in page_files().items():
            archive.writestr(zipfile.ZipInfo(name, _FIXED_TIME), file.read_bytes(), zipfile.ZIP_DEFLATED)
    return folder / ARCHIVE


def _modules_in(folder: str) -> list[str]:
    files = sorted((ROOT / folder).glob("*.py"))
    return [".".join((*Path(folder).parts, file.stem)) for file in files if file.stem != "__init__"]


def _declared_modules() -> list[str]:
    """Modules that widgets import only when they compute."""
    from importlib import import_module

    from lmlib.book import declare

    for module in _modules_in("lmlib/book/widgets"):
        import_module(module)
    return sorted({name for widget in declare.registered() for name in widget.modules})


def _collect(module: str, chain: tuple[str, ...], found: dict[str, Path]) -> None:
    """Add the module, its packages and what they import; ``chain`` is how we came here, for the message."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        path = ROOT.joinpath(*parts[:length])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        name = file.relative_to(ROOT).as_posix()
        if name in found:
            continue
        if not file.is_file():
            raise PageImportError(f"{' -> '.join(chain)}: there is no {name}")
        found[name] = file
        for imported in _imports(file):
            if imported.partition(".")[0] == "lmlib":
                _collect(imported, (*chain, imported), found)
            elif imported.partition(".")[0] not in sys.stdlib_module_names:
                raise PageImportError(
                    f"{' -> '.join(chain)} imports {imported}, and the page has the standard library only"
                )


def _imports(file: Path) -> Iterator[str]:
    """Modules imported when the file is; what a function imports when called, or only for types, is left
    alone."""
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _imported_from(node, file)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def _imported_from(node: ast.ImportFrom, file: Path) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        package = file.relative_to(ROOT).parts[:-1]
        above = package[: len(package) - node.level + 1]
        base = ".".join((*above, *([node.module] if node.module else [])))
    yield base
    folder = ROOT.joinpath(*base.split("."))
    for alias in node.names:  # `from package import module` imports the module too
        if (folder / f"{alias.name}.py").is_file() or (folder / alias.name / "__init__.py").is_file():
            yield f"{base}.{alias.name}"


if __name__ == "__main__":
    print(write_archive(Path(sys.argv[1])))
