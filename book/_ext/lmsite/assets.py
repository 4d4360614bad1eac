"""Stage what the pages load, so that the site needs no other host.

npm packages (pinned by `book/package-lock.json`, whose hashes npm checks) give Pyodide and the fonts, those
of formulas among them. plotly.js comes out of the installed Python package, so that it matches what made the
figures, and the template of those figures stands in a script of its own. The sources of lmlib that run in
the page come as one archive. The theme's own style sheet is copied
without the rules of the icon font, which the book does not use.
"""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from lmlib.book.page_files import write_archive
from lmlib.book.plots import template_script

PYODIDE = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "pyodide-lock.json", "python_stdlib.zip")
MATHJAX_FONTS = "output/chtml/fonts/woff-v2"
FONTS = {
    "source-serif-4": ("normal", "italic"),
    "inter": ("normal",),
    "jetbrains-mono": ("normal",),
}
THEME_STYLES = "styles/pydata-sphinx-theme.css"


def node_modules(source: Path) -> Path:
    """The folder that `npm ci` filled: beside the book's pages, or in the checkout lmlib is imported from."""
    candidates = [source / "book" / "node_modules"]
    spec = find_spec("lmlib")
    if spec and spec.submodule_search_locations:
        candidates.append(Path(next(iter(spec.submodule_search_locations))).parent / "book" / "node_modules")
    for candidate in candidates:
        if (candidate / "pyodide" / "package.json").is_file():
            return candidate
    raise ExtensionError(
        f"no JavaScript packages in {' or '.join(map(str, candidates))}: run `npm ci` in the folder book/"
    )


def package_folder(name: str) -> Path:
    """Where an installed Python package keeps its files."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ExtensionError(f"Python package {name!r} is not installed: install lmlib with the extra `book`")
    return Path(next(iter(spec.submodule_search_locations)))


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder, making the folders above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def without_icon_font(css: str) -> str:
    """The theme's style sheet less Font Awesome: rules all of whose selectors are its classes, and its faces.

    The book draws the few icons that it uses in `site.css`; the font and its 1.5 MB script are not served.
    """
    css = re.sub(r"@font-face\{[^{}]*Font Awesome[^{}]*\}", "", css.replace("\\ ", " "))
    icon = r"\.fa(?:[srlbd]|-[\w-]+)?(?::{1,2}(?:before|after))?"
    css = re.sub(rf"(?<=[}}/]){icon}(?:,{icon})*\{{[^{{}}]*\}}", "", css)
    return re.sub(r"/\*# sourceMappingURL=.*?\*/", "", css)


def stage(app: Sphinx) -> None:
    """Gather the files in a folder beside the doctrees and add it to Sphinx's static folders."""
    if app.builder.format != "html":
        return
    packages = node_modules(Path(app.srcdir))
    out = Path(app.doctreedir).parent / "site_assets"
    shutil.rmtree(out, ignore_errors=True)
    for name in PYODIDE:
        copy(packages / "pyodide" / name, out / "pyodide" / name)
    copy(packages / "mathjax" / "es5" / MATHJAX_FONTS, out / "mathjax" / "fonts")
    for font, styles in FONTS.items():
        for style in styles:
            for subset in ("latin", "latin-ext"):
                name = f"{font}-{subset}-wght-{style}.woff2"
                copy(packages / "@fontsource-variable" / font / "files" / name, out / "fonts" / name)
    copy(package_folder("plotly") / "package_data" / "plotly.min.js", out / "plotly.min.js")
    theme = package_folder("pydata_sphinx_theme") / "theme" / "pydata_sphinx_theme" / "static" / THEME_STYLES
    target = out / THEME_STYLES
    target.parent.mkdir(parents=True)
    target.write_text(without_icon_font(theme.read_text(encoding="utf-8")), encoding="utf-8")
    write_archive(out / "live")
    (out / "live" / "template.js").write_text(template_script(), encoding="utf-8")
    app.config.html_static_path.append(str(out))


def drop_unused(app: Sphinx, error: Exception | None) -> None:
    """Remove what was copied and no page loads: the icon font, scripts of the theme, thebe, source maps."""
    if error or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    shutil.rmtree(static / "vendor" / "fontawesome", ignore_errors=True)
    for pattern in (
        "scripts/fontawesome.js*",
        "scripts/bootstrap.js*",
        "sphinx-thebe.*",
        "**/*.js.map",
        "**/*.css.map",
    ):
        for unused in static.glob(pattern):
            unused.unlink()


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", stage)
    app.connect("build-finished", drop_unused)
