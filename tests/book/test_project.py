"""The repository keeps its own rules: notebooks, contents, lint, types, imports, links in its documents."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from lmlib.book import settings
from lmlib.book.pipeline import contents, execute

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "chapters").glob("*.ipynb"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def run_tool(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@every_notebook
def test_notebook_holds_no_outputs(path: Path) -> None:
    notebook = settings.read_notebook(path)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["source"] for cell in code if cell["outputs"] or cell["execution_count"]] == []
    assert "widgets" not in notebook["metadata"]


@every_notebook
def test_setup_cell_is_the_generated_one(path: Path) -> None:
    cells = settings.cells_with_tag(settings.read_notebook(path), settings.SETUP_TAG)
    found = ["".join(cell["source"]) for cell in cells]
    assert found == [settings.setup_cell()], "run `python -m lmlib.book.settings`"


@every_notebook
def test_parameters_cell_says_the_defaults(path: Path) -> None:
    (cell,) = settings.cells_with_tag(settings.read_notebook(path), "parameters")
    said = {}
    for node in ast.parse("".join(cell["source"])).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            said[node.targets[0].id] = ast.literal_eval(node.value)
    assert said == settings.DEFAULT_PARAMETERS


def _unshown_figures(source: str) -> list[str]:
    """Calls of `figure` whose result goes nowhere: Jupyter shows only the value of a cell's last line."""
    cell = ast.parse(source)
    return [
        ast.unparse(node)[:60]
        for node in ast.walk(cell)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "figure"
        and node is not cell.body[-1]
    ]


def test_a_figure_in_the_middle_of_a_cell_is_found() -> None:
    drawn = "figure([], title='T')"
    for shown in (drawn, f"x = 1\n{drawn}", f"{drawn}.show()\nx = 1", f"made = {drawn}\ndisplay(made)"):
        assert _unshown_figures(shown) == []
    for lost in (f"{drawn}\nx = 1", f"for x in range(2):\n    {drawn}", f"if x:\n    {drawn}\n"):
        assert _unshown_figures(lost) == [drawn]


@every_notebook
def test_every_figure_is_shown(path: Path) -> None:
    cells = settings.read_notebook(path)["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert [call for source in code for call in _unshown_figures(source)] == []


@every_notebook
def test_chapter_states_what_it_takes_within_the_limits(path: Path) -> None:
    stated = contents.Chapter(path).stated_limits()
    assert "quick" in stated, "the first cell must say: **On CPU:** ... 90 seconds and 1.5 GiB"
    seconds, memory = stated["quick"]
    assert seconds <= execute.LIMITS["quick"][0]
    assert memory <= execute.LIMITS["quick"][1]


def test_every_document_is_in_the_contents() -> None:
    listed = set(contents.documents(ROOT / "_toc.yml"))
    present = {f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")}
    present |= {f"chapters/{path.stem}" for path in NOTEBOOKS}
    assert listed == present | set(contents.GENERATED_PAGES)


def test_setup_cell_does_nothing_where_lmlib_is(tmp_path: Path) -> None:
    source = settings.setup_cell() + "\nassert 'book' not in globals()"
    subprocess.run([sys.executable, "-c", source], cwd=tmp_path, check=True, env={"PYTHONPATH": str(ROOT)})


def test_setup_cell_without_lmlib_and_address_says_what_to_do(tmp_path: Path) -> None:
    # -S -I: no site-packages, so no lmlib, as in a fresh kernel
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", settings.setup_cell()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    if settings.REPOSITORY:
        pytest.skip("the repository's address is set: the cell would fetch it")
    assert done.returncode == 1
    assert "set REPOSITORY in this cell to its address" in done.stderr


@pytest.mark.parametrize("folder", ["", "chapters"])
def test_setup_cell_installs_where_only_the_files_of_lmlib_are(folder: str, tmp_path: Path) -> None:
    """The kernel of an editor may start in the clone itself: lmlib can be found, what it needs cannot."""
    clone, pip = tmp_path / "clone", tmp_path / "elsewhere" / "pip"
    for place in (clone / "lmlib", clone / "chapters", pip):
        place.mkdir(parents=True)
        (place / "__init__.py").touch()
    (pip / "__main__.py").write_text("import sys\nprint(*sys.argv[1:])")
    done = subprocess.run(
        [sys.executable, "-S", "-c", settings.setup_cell()],
        cwd=clone / folder,
        env={"PYTHONPATH": str(pip.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    # No torch is installed here, so none is held fast.
    assert f"install --quiet --editable {clone.resolve()}[chapters]\n" in done.stdout


def test_setup_cell_asks_for_what_the_project_depends_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["chapters"]]
    modules = {re.split(r"[<>=!;~ ]", each, maxsplit=1)[0].replace("-", "_") for each in wanted}
    assert set(settings.NEEDED) == modules - {"triton"} | {"lmlib"}


def test_setup_cells_are_refreshed_and_nothing_else_changes(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "code", "metadata": {"tags": ["setup"]}, "source": ["old"]},
        {"cell_type": "code", "metadata": {}, "source": ["ä = 1\n", "b = 2"]},
    ]
    path = tmp_path / "01_first.ipynb"
    settings.write_notebook(path, {"cells": cells, "metadata": {}})
    assert settings.refresh_setup_cells(tmp_path) == [path]
    setup, other = settings.read_notebook(path)["cells"]
    assert "".join(setup["source"]) == settings.setup_cell()
    assert other == cells[1]
    assert settings.refresh_setup_cells(tmp_path) == []


def test_environment_for_conda_takes_its_versions_from_the_constraints() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [each["pip"] for each in environment["dependencies"] if isinstance(each, dict)]
    assert pip == ["--constraint constraints.txt", "--editable .[book]"]


def test_every_direct_dependency_is_pinned_in_the_constraints() -> None:
    def plain(name: str) -> str:
        return re.split(r"[\[<>=!;~ ]", name, maxsplit=1)[0].lower().replace("_", "-")

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {plain(each) for each in [*project["dependencies"], *extras["book"], *extras["test"]]}
    pinned = {plain(line) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert wanted - pinned - {"lmlib"} == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_link_to_files_that_are_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    quoted = re.findall(r"`((?:lmlib|book|tests|chapters|kernels)/[a-z0-9_/.]+\.[a-z]+)`", text)
    assert [link for link in [*links, *quoted] if not (ROOT / link).exists()] == []


def test_lint() -> None:
    run_tool("ruff", "check", ".")
    run_tool("ruff", "format", "--check", ".")


@pytest.mark.timeout(300)
def test_types() -> None:
    run_tool("mypy")


def test_imports_go_one_way() -> None:
    run_tool("importlinter.cli", "lint", "--no-cache")
