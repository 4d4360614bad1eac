"""The pipeline with real kernels: executing, failing, being interrupted; and the book that it has built."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmlib.book import settings
from lmlib.book.pipeline import contents, execute

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS: dict[str, str | int] = {"profile": "quick", "seed": 0}

pytestmark = pytest.mark.notebook


def make_chapter(root: Path, name: str, *code: str) -> contents.Chapter:
    def cell(kind: str, source: str, *tags: str) -> dict[str, Any]:
        code_only = {"outputs": [], "execution_count": None} if kind == "code" else {}
        return {"cell_type": kind, "metadata": {"tags": list(tags)}, "source": source, **code_only}

    parameters = cell("code", 'profile = "quick"\nseed = 0', "parameters")
    cells = [cell("markdown", f"# {name}"), parameters, *(cell("code", each) for each in code)]
    path = root / "chapters" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    settings.write_notebook(path, {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4})
    return contents.Chapter(path)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A folder with the book's own library in it and no chapters."""
    (tmp_path / "lmlib").symlink_to(ROOT / "lmlib")
    (tmp_path / "constraints.txt").touch()
    (tmp_path / "book" / "results").mkdir(parents=True)
    return tmp_path


def texts(path: Path) -> str:
    cells = settings.read_notebook(path)["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return "".join("".join(output.get("text", "")) for output in outputs)


def test_runs_in_parallel_records_and_then_rests(book: Path) -> None:
    held = 200_000_000
    code = f"import os; x = b'a' * {held}\nprint(profile, os.environ['LMLIB_BOOK_BUILD'], os.getcwd()[-8:])"
    chapters = [make_chapter(book, f"0{n}_part{n}", code, "import time; time.sleep(1)") for n in (1, 2)]
    folder = book / "executed"
    results = execute.execute_all(book, chapters, folder, PARAMETERS)
    assert [result.failure for result in results] == [None, None]
    for result in results:
        assert result.record["seconds"] > 1
        assert 0.1 < result.record["cpu_seconds"] < 60
        assert 0.1 < result.record["pace"] < 20
        assert held < result.record["peak_bytes"] < held + 2**29
        assert result.record["versions"]["torch"]
        notebook = execute.notebook_path(folder, result.chapter)
        assert texts(notebook) == "quick 1 chapters\n"
        assert len(settings.read_notebook(notebook)["cells"]) == 4  # no second parameters cell
        assert "widgets" not in settings.read_notebook(notebook)["metadata"]
    again = execute.execute_all(book, chapters, folder, PARAMETERS)
    assert [result.executed for result in again] == [False, False]
    make_chapter(book, "02_part2", "print('changed')")
    once_more = execute.execute_all(book, chapters, folder, PARAMETERS)
    assert [result.executed for result in once_more] == [False, True]


def test_other_parameters_reach_the_chapter(book: Path) -> None:
    chapter = make_chapter(book, "01_sizes", "print(profile, seed)")
    execute.execute_all(book, [chapter], book / "executed", {"profile": "full", "seed": 3})
    assert texts(execute.notebook_path(book / "executed", chapter)) == "full 3\n"


def test_failing_cell_is_reported_and_other_chapters_go_on(
    book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = make_chapter(book, "01_bad", "x = 1", "def f():\n    return x / 0\nf()", "print('never')")
    good = make_chapter(book, "02_good", "print('fine')")
    failed, passed = execute.execute_all(book, [bad, good], book / "executed", PARAMETERS)
    assert passed.failure is None
    assert failed.failure is not None
    said = capsys.readouterr().out
    for part in (
        "01_bad failed in cell 4",
        "ZeroDivisionError: division by zero",
        "    return x / 0",
        "Traceback",
    ):
        assert part in said
    assert not execute.notebook_path(book / "executed", bad).exists()
    assert (book / "failed" / "01_bad.ipynb").exists()


def test_dying_kernel_is_a_failure_with_its_cell(book: Path) -> None:
    chapter = make_chapter(book, "01_dying", "x = 1", "import os; os._exit(9)")
    (result,) = execute.execute_all(book, [chapter], book / "executed", PARAMETERS)
    assert result.failure is not None
    assert result.failure.cell == 4
    assert "kernel died" in result.failure.error


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_interrupt_leaves_nothing_half_written_and_no_process(book: Path) -> None:
    started = book / "started"
    tell = f"import os, pathlib; pathlib.Path({str(started)!r}).write_text(str(os.getpid()))"
    cell = f"{tell}\nimport time; time.sleep(600)"
    make_chapter(book, "01_long", cell)
    (book / "_toc.yml").write_text("root: index\nchapters:\n- file: chapters/01_long\n")
    (book / "index.md").touch()
    program = (
        "import sys; from pathlib import Path; from lmlib.book.pipeline import contents, execute\n"
        "root = Path(sys.argv[1]); chapters = contents.chapters(root)\n"
        "execute.execute_all(root, chapters, root / 'executed', {'profile': 'quick', 'seed': 0})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        [sys.executable, "-c", program, str(book)], env=environment, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: started.exists() and started.read_text() != "", 60)
    kernel = int(started.read_text())
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=30) != 0
    assert list((book / "executed").iterdir()) == []
    wait_until(lambda: not Path(f"/proc/{kernel}").exists(), 10)


def test_book_is_built_and_a_second_run_does_nothing(built_site: Path) -> None:
    for page in ("index.html", "book/claims.html", "book/execution.html", "404.html"):
        assert (built_site / page).is_file(), page
    began = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "lmlib.book.pipeline"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 of ")
    assert "site unchanged" in done.stdout
    ended = os.times()  # processor seconds: a busy machine makes it slow, but no more work
    assert ended.children_user + ended.children_system - began.children_user - began.children_system < 15


def test_chapters_keep_to_the_time_and_memory_that_they_state(built_site: Path) -> None:
    found = contents.chapters(ROOT)
    assert found
    for chapter in found:
        record = execute.load_record(ROOT / "_build" / "executed", chapter)
        assert record is not None
        seconds, memory = chapter.stated_limits()["quick"]
        took = execute.undisturbed_seconds(record)
        assert took <= seconds, (
            f"{chapter.name} took {took} s, by the clock {record['seconds']} s, pace {record['pace']}"
        )
        assert record["peak_bytes"] <= memory * execute.GIB, (
            f"{chapter.name} took {record['peak_bytes']} bytes"
        )


def test_claims_page_shows_every_claim_of_every_chapter(built_site: Path) -> None:
    from bs4 import BeautifulSoup

    from lmlib.book.pipeline.pages import claims_of

    page = BeautifulSoup((built_site / "book/claims.html").read_text(encoding="utf-8"), "html.parser")
    rows = page.select("article table tbody tr")
    made = [
        claim
        for chapter in contents.chapters(ROOT)
        for claim in claims_of(
            settings.read_notebook(execute.notebook_path(ROOT / "_build" / "executed", chapter))
        )
    ]
    assert made
    assert len(rows) == len(made)
    assert all("yes" in row.get_text() for row in rows)


def test_internal_links_of_the_site_lead_somewhere(built_site: Path) -> None:
    from urllib.parse import unquote, urljoin, urlsplit

    from bs4 import BeautifulSoup

    base = "http://book"
    pages = [p for p in sorted(built_site.rglob("*.html")) if "_static" not in p.parts]  # templates lie there
    parsed = {p: BeautifulSoup(p.read_text(encoding="utf-8"), "html.parser") for p in pages}
    ids = {p: {tag["id"] for tag in soup.select("[id]")} for p, soup in parsed.items()}
    broken = []
    for page, soup in parsed.items():
        here = f"{base}/{page.relative_to(built_site).as_posix()}"
        for tag in soup.select("a[href], link[href], script[src], img[src]"):
            link = str(tag.get("href") or tag.get("src"))
            address = urlsplit(urljoin(here, link))
            if f"{address.scheme}://{address.netloc}" != base or "_static/live/" in address.path:
                continue
            target = built_site / unquote(address.path).lstrip("/")
            target = target / "index.html" if target.is_dir() else target
            fragment = unquote(address.fragment)
            if not target.is_file() or (fragment and target in ids and fragment not in ids[target]):
                broken.append(f"{page.relative_to(built_site)}: {link}")
    assert broken == []
