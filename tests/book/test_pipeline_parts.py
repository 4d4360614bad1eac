"""The pipeline without a kernel: contents, fingerprints, generated pages, the installer, the server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from lmlib.book import claims, settings
from lmlib.book.pipeline import contents, execute, fingerprint, install, pages, site
from lmlib.book.pipeline.serve import server

ROOT = Path(__file__).resolve().parents[2]
TITLE = "# First\n\n**On CPU:** it takes 2 minutes and 1.5 GiB. **On GPU:** the same."
PARAMETERS: dict[str, str | int] = {"profile": "quick", "seed": 0}


def write_chapter(root: Path, name: str, *code: str) -> contents.Chapter:
    cells: list[dict[str, Any]] = [{"cell_type": "markdown", "metadata": {}, "source": TITLE}]
    cells += [{"cell_type": "code", "metadata": {}, "outputs": [], "source": each} for each in code]
    path = root / "chapters" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    settings.write_notebook(path, {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    return contents.Chapter(path)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A book of one chapter, `01_first`, whose package imports another lazily."""
    files = {
        "_toc.yml": "root: index\nchapters:\n- file: chapters/01_first\n- file: book/claims\n",
        "index.md": "# Index",
        "constraints.txt": "",
        "lmlib/__init__.py": "",
        "lmlib/first/__init__.py": "LAZY = {'f': 'lmlib.second'}",
        "lmlib/first/deep.py": "from . import table",
        "lmlib/first/table.json": "{}",
        "lmlib/second/__init__.py": "",
        "lmlib/third/__init__.py": "",
        "lmlib/book/__init__.py": "from ..third import x",
        "lmlib/book/widgets/first.py": "",
        "lmlib/book/widgets/third.py": "",
        "lmlib/book/pipeline/run_chapter.py": "",
        "lmlib/book/pipeline/execute.py": "",
        "lmlib/book/pipeline/serve.py": "",
        "book/results/h200/kernels.json": "{}",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write_chapter(tmp_path, "01_first", "%timeit 1\nimport lmlib.first", "x = 1")
    return tmp_path


def test_contents_give_chapters_in_order(tiny: Path) -> None:
    (chapter,) = contents.chapters(tiny)
    assert (chapter.name, chapter.word, chapter.title) == ("01_first", "first", "First")
    assert chapter.stated_limits() == {"quick": (120.0, 1.5)}


def test_contents_name_a_missing_document(tiny: Path) -> None:
    (tiny / "_toc.yml").write_text("root: index\nchapters:\n- file: chapters/02_gone\n")
    with pytest.raises(FileNotFoundError, match="02_gone"):
        contents.chapters(tiny)


def changed_by(tiny: Path, name: str) -> bool:
    (chapter,) = contents.chapters(tiny)
    before = fingerprint.chapter_fingerprint(tiny, chapter, PARAMETERS)
    path = tiny / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + "\n# changed")
    return fingerprint.chapter_fingerprint(tiny, chapter, PARAMETERS) != before


@pytest.mark.parametrize(
    "name",
    [
        "lmlib/first/deep.py",
        "lmlib/first/table.json",
        "lmlib/first/new.py",
        "lmlib/second/__init__.py",
        "book/results/h200/kernels.json",
        "constraints.txt",
        "lmlib/book/pipeline/execute.py",
    ],
)
def test_what_a_chapter_depends_on_makes_it_stale(tiny: Path, name: str) -> None:
    assert changed_by(tiny, name)


@pytest.mark.parametrize(
    "name",
    [
        "lmlib/third/__init__.py",
        "lmlib/book/__init__.py",
        "lmlib/book/pipeline/serve.py",
        "README.md",
        "lmlib/first/__pycache__/deep.pyc",
    ],
)
def test_what_it_does_not_depend_on_leaves_it_fresh(tiny: Path, name: str) -> None:
    assert not changed_by(tiny, name)


def test_book_machinery_brings_only_its_own_chapters_widgets(tiny: Path) -> None:
    write_chapter(tiny, "01_first", "from lmlib.book import show")
    assert changed_by(tiny, "lmlib/book/widgets/first.py")
    assert not changed_by(tiny, "lmlib/book/widgets/third.py")
    assert changed_by(tiny, "lmlib/third/__init__.py")  # through a relative import of lmlib.book


def test_parameters_and_cells_count(tiny: Path) -> None:
    (chapter,) = contents.chapters(tiny)
    before = fingerprint.chapter_fingerprint(tiny, chapter, PARAMETERS)
    assert before != fingerprint.chapter_fingerprint(tiny, chapter, {"profile": "full", "seed": 0})
    write_chapter(tiny, "01_first", "%timeit 1\nimport lmlib.first", "x = 2")
    assert before != fingerprint.chapter_fingerprint(tiny, chapter, PARAMETERS)


def test_a_record_counts_only_with_its_own_notebook(tiny: Path) -> None:
    (chapter,) = contents.chapters(tiny)
    folder = tiny / "executed"
    folder.mkdir()
    assert execute.load_record(folder, chapter) is None
    execute.notebook_path(folder, chapter).write_text("{}")
    execute.record_path(folder, chapter).write_text('{"sha256": "of another"}')
    assert execute.load_record(folder, chapter) is None
    execute.record_path(folder, chapter).write_text('{"sha256": "half')
    assert execute.load_record(folder, chapter) is None


def result_of(chapter: contents.Chapter) -> execute.Result:
    record = {
        "profile": "quick",
        "seconds": 12.4,
        "peak_bytes": 3 * 2**29,
        "threads": 2,
        "date": "2026-11-24T04:14:17+00:00",
        "machine": {"processor": "Example", "cores": 2, "memory_bytes": 24 * 2**30, "system": "Linux"},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
    }
    return execute.Result(chapter, record)


def test_execution_page_says_what_was_recorded(tiny: Path) -> None:
    (chapter,) = contents.chapters(tiny)
    page = pages.execution_page([result_of(chapter)])
    for said in ("[First](../chapters/01_first.ipynb)", "12 s", "1.50 GiB", "2026-11-24 04:14", "2.13.0"):
        assert said in page
    assert "1. Example, 2 cores, 24 GiB memory, Linux" in page


def test_claims_page_has_every_claim_with_markup_made_harmless(tiny: Path) -> None:
    (chapter,) = contents.chapters(tiny)
    made = [
        claims.Claim("first/a", "A *starred* | claim", 4, claims.at_least(3), "", "this run"),
        claims.Claim("first/b", "It broke", 2, claims.at_least(3), "", "record of a *day*"),
    ]
    outputs = [{"data": {pages.CLAIM_MIME: each.to_json()}} for each in made]
    page = pages.claims_page([(chapter, {"cells": [{"outputs": outputs}, {"cell_type": "markdown"}]})])
    assert "all 2 claims" in page
    assert r"A \*starred\* \| claim" in page
    assert "at least 3" in page
    assert page.count("**no**") == 1
    assert r"It broke [record of a \*day\*]{.lm-claim-where}" in page
    assert "this run" not in page


def test_claims_page_reads_what_claims_write() -> None:
    assert (pages.CLAIM_MIME, pages.THIS_RUN) == (claims.CLAIM_MIME, claims.THIS_RUN)


def test_stage_mirrors_the_book(tiny: Path) -> None:
    (chapter,) = contents.chapters(tiny)
    (tiny / "_config.yml").write_text("")
    executed = tiny / "executed"
    executed.mkdir()
    execute.notebook_path(executed, chapter).write_bytes(chapter.path.read_bytes())
    site.stage(tiny, executed, [result_of(chapter)], tiny / "stage")
    staged = {str(path.relative_to(tiny / "stage")) for path in (tiny / "stage").rglob("*") if path.is_file()}
    generated = {"book/execution.md", "book/claims.md", "chapters/01_first.ipynb"}
    assert staged == generated | {"_config.yml", "_toc.yml", "book/results/h200/kernels.json"}


def test_served_site_has_types_that_browsers_insist_on(tmp_path: Path) -> None:
    for name in ("index.html", "404.html", "a.mjs", "a.wasm"):
        (tmp_path / name).write_text(name)
    running = server(tmp_path, 0)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{running.server_port}/"
    try:
        for name, kind in {"a.mjs": "text/javascript", "a.wasm": "application/wasm"}.items():
            with urllib.request.urlopen(base + name) as answer:
                assert answer.headers["Content-Type"] == kind
        with pytest.raises(urllib.error.HTTPError) as missing:
            urllib.request.urlopen(base + "nowhere/at/all.html")
        assert missing.value.code == 404
        assert missing.value.read() == b"404.html"
    finally:
        running.shutdown()
        running.server_close()


def test_installer_refuses_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer; .* is 3\.9\.1"):
        install.refuse_old_python()


class FakePip:
    """Stands in for venv and pip: notes the commands, makes the folder, answers with `code`."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.commands = code, list[list[str]]()

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if "venv" in command:
            Path(command[-1]).mkdir(exist_ok=True)
        if "install" in command:
            return subprocess.CompletedProcess(command, self.code, "", "")
        return subprocess.CompletedProcess(command, 0, "", "")


def test_second_install_does_nothing_and_other_arguments_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip()
    monkeypatch.setattr(install.subprocess, "run", pip)
    install.install(tmp_path / "venv", "book", "")
    first = len(pip.commands)
    install.install(tmp_path / "venv", "book", "")
    assert len(pip.commands) == first
    install.install(tmp_path / "venv", "book,gpu", "--prefer-binary")
    assert pip.commands[-1][-1] == "--prefer-binary"


def test_install_that_was_cut_off_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = tmp_path / "venv"
    monkeypatch.setattr(install.subprocess, "run", FakePip(code=-9))
    with pytest.raises(SystemExit, match="exit status -9"):
        install.install(venv, "book", "")
    pip = FakePip()
    monkeypatch.setattr(install.subprocess, "run", pip)
    install.install(venv, "book", "")
    assert "--clear" in pip.commands[0]
    assert not (venv / "lm-book.installing").exists()


def test_failure_report_names_chapter_cell_source_and_traceback(tiny: Path) -> None:
    (chapter,) = contents.chapters(tiny)
    said = execute.Failure(7, "1 / 0", "ZeroDivisionError: division by zero", "Traceback ...").report(chapter)
    for part in ("01_first failed in cell 7", "ZeroDivisionError", "    1 / 0", "Traceback ..."):
        assert part in said


def test_machine_is_described_without_names_of_its_owner() -> None:
    described = json.dumps(execute.machine())
    assert str(Path.home()) not in described
    assert set(execute.machine()) == {"processor", "cores", "memory_bytes", "system"}


@pytest.mark.parametrize(
    ("clock", "processor", "pace", "counts"),
    [
        (100, 90, 1, 90),
        (100, 180, 1, 100),
        (400, 120, 1, 120),
        (400, 5, 1, 100),
        (400, 180, 1.5, 120),  # a machine on which everything takes half as long again
        (400, 300, 5, 150),  # and one on which it takes longer than that
        (100, 90, 0.6, 90),  # a fast one gets nothing for it
    ],
)
def test_waiting_for_other_programs_does_not_count(
    clock: float, processor: float, pace: float, counts: float
) -> None:
    record = {"seconds": clock, "cpu_seconds": processor, "pace": pace}
    assert execute.undisturbed_seconds(record) == counts
