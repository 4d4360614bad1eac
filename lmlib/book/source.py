"""Live source in the chapter: the code that is read is the code that runs and is tested."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lmlib.book import settings
from lmlib.book.display import building, emit, escape

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
# For live kernels, whose ground may be light or dark: each colour keeps 4:1 on both.
_INLINE_COLOURS = {
    "Comment": "italic #767676",
    "Keyword": "bold #a45fb5",
    "Name.Function": "#0f7fb8",
    "Name.Class": "#0f7fb8",
    "Name.Decorator": "#b5651d",
    "Literal.String": "#3d8544",
    "Literal.Number": "#b5651d",
}


class SourceError(ValueError):
    """Nothing that has readable source goes by that name."""


def show_source(what: Any, *, highlight: Collection[int] = (), docstring: bool = True) -> None:
    """Show the source of a function, class or module, highlighted, with the file it stands in.

    Args:
        what: the object, or "module:name" ("lmlib.tokenization.naive:train"; "module" alone shows the file).
        highlight: lines to mark, counted from 1 in what is shown.
        docstring: False leaves the docstring of a function or class out.

    Raises:
        SourceError: the name does not exist, has no source, or a line to highlight is outside.
    """
    target = _find(what) if isinstance(what, str) else what
    target = target.fget if isinstance(target, property) else target
    code = source_of(target, docstring=docstring)
    n_lines = len(code.splitlines())
    outside = [line for line in highlight if not 1 <= line <= n_lines]
    if outside:
        raise SourceError(f"highlight holds {outside}, but the source shown has lines 1 to {n_lines}")
    file, first_line = _place(target)
    caption = f"{file}, line {first_line}" if first_line else file
    address = link(file, first_line)
    shown = f'<a href="{escape(address)}">{escape(caption)}</a>' if address else escape(caption)
    emit(
        f'<div class="lm-source"><p class="lm-source-file"><small>{shown}</small></p>'
        f"{highlighted(code, highlight)}</div>",
        f"# {caption}\n{code}",
    )


def source_of(target: Any, *, docstring: bool = True) -> str:
    """Dedented source of an object, ending without a blank line.

    Raises:
        SourceError: Python cannot find its source.
    """
    try:
        code = textwrap.dedent(inspect.getsource(target))
    except (OSError, TypeError) as error:
        raise SourceError(f"no source for {target!r}: {error}") from None
    return (code if docstring else _without_docstring(code)).rstrip()


def highlighted(code: str, highlight: Collection[int] = ()) -> str:
    """HTML of Python code. In the page the site's own colours apply; in a kernel they are inline."""
    from pygments import highlight as render
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    options: dict[str, Any] = {"hl_lines": list(highlight), "nobackground": True}
    if not building():
        options |= {"noclasses": True, "style": _inline_style(), "prestyles": "line-height:1.35"}
    formatter = HtmlFormatter(**options)
    formatter.style.highlight_color = "rgba(128,128,128,0.25)" if not building() else "inherit"
    return f'<div class="highlight-python notranslate">{render(code, PythonLexer(), formatter)}</div>'


def link(file: str, line: int = 0) -> str:
    """Address of a file of this repository on the web; empty while the book has no public repository."""
    if not settings.REPOSITORY:
        return ""
    place = f"#L{line}" if line else ""
    return f"{settings.REPOSITORY.removesuffix('.git').rstrip('/')}/blob/{settings.BRANCH}/{file}{place}"


def _find(address: str) -> Any:
    module_name, _, name = address.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise SourceError(f"{address!r}: no module {module_name!r} ({error})") from None
    for part in name.split(".") if name else ():
        if not hasattr(target, part):
            raise SourceError(f"{address!r}: {module_name} has no {name!r}")
        target = getattr(target, part)
    return target


def _place(target: Any) -> tuple[str, int]:
    """The file, relative to the repository where it is in it, and the first line (0 for a module)."""
    unwrapped = inspect.unwrap(target) if callable(target) else target
    path = Path(inspect.getfile(unwrapped)).resolve()
    try:
        file = path.relative_to(_PACKAGE_ROOT).as_posix()
    except ValueError:
        file = path.name
    return file, 0 if inspect.ismodule(target) else inspect.getsourcelines(unwrapped)[1]


def _without_docstring(code: str) -> str:
    node = ast.parse(code).body[0]
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return code
    if not ast.get_docstring(node) or len(node.body) == 1:  # a body that is only its docstring stays
        return code
    first, lines = node.body[0], code.splitlines(keepends=True)
    assert first.end_lineno is not None
    rest = lines[first.end_lineno :]
    while rest and not rest[0].strip():
        rest.pop(0)
    return "".join(lines[: first.lineno - 1] + rest)


def _inline_style() -> Any:
    from pygments.style import Style
    from pygments.token import string_to_tokentype

    colours = {string_to_tokentype(token): style for token, style in _INLINE_COLOURS.items()}
    return type("BookStyle", (Style,), {"styles": colours, "background_color": "transparent"})
