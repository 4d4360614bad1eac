"""Shared by all tests: threads and order, the built site, a browser, and the account of what was left out.

Tests that are not quick (marked `notebook`, `browser` or `distributed`) run last, and share one built site.
Other tests run beside them, so they time processor time where they can.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("TQDM_DISABLE", "1")

# Before any test imports Triton, through torch's counter of FLOPs for instance: without a GPU this chooses
# Triton's interpreter, and what Triton has defined by then would stay compiled.
import kernels._runtime  # noqa: E402, F401

ROOT = Path(__file__).resolve().parents[1]
# The browser last: its session keeps an event loop running in the thread of the tests.
SLOW = ("notebook", "distributed", "browser")
BOOK_TIMEOUT = 1800
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NO_CHROMIUM = "no Chromium or Chrome on the PATH; Debian and Ubuntu: apt install chromium, then `make test`"
NO_GPU = "no CUDA GPU on this machine; on one that has: `make gpu`"


def chromium() -> str | None:
    """Path of an installed Chromium or Chrome."""
    found = map(shutil.which, CHROMIUM_NAMES)
    return next(filter(None, found), None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Quick tests first; then the others by kind, with time to build the book."""

    def kind(item: pytest.Item) -> int:
        marks = [place for place, name in enumerate(SLOW, 1) if item.get_closest_marker(name)]
        return max(marks, default=0)

    items.sort(key=kind)
    for item in items:
        if not kind(item):
            continue
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(BOOK_TIMEOUT))
        if item.get_closest_marker("browser") and chromium() is None:
            item.add_marker(pytest.mark.skip(reason=NO_CHROMIUM))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name every test that was left out, why, and what brings it."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        reasons[reason] = reasons.get(reason, 0) + 1
    if "not gpu" in (config.option.markexpr or ""):
        reasons[f"marked gpu: {NO_GPU}"] = _count_marked_gpu()
    left_out = {reason: number for reason, number in reasons.items() if number}
    if left_out:
        terminalreporter.section("left out")
        for reason, number in left_out.items():
            terminalreporter.write_line(f"{number} left out: {reason}")


def _count_marked_gpu() -> int:
    """How many test functions say `pytest.mark.gpu`; under xdist the main process has collected nothing."""
    files = (ROOT / "tests").rglob("test_*.py")
    return sum(path.read_text(encoding="utf-8").count("@pytest.mark.gpu") for path in files)


@pytest.fixture(scope="session")
def built_site() -> Path:
    """Folder of the built site, brought up to date by the same pipeline that `make book` runs.

    Its lock lets workers and a `make book` beside them share one build; a failure shows what it said.
    """
    command = [sys.executable, "-m", "lmlib.book.pipeline"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"the book did not build:\n{done.stdout[-12000:]}\n{done.stderr[-12000:]}", pytrace=False)
    return ROOT / "_build" / "html"


@pytest.fixture(scope="session")
def site_url(built_site: Path) -> Iterator[str]:
    """Address at which the built site is served while the tests run, without a closing slash."""
    from lmlib.book.pipeline.serve import server

    running = server(built_site, port=0)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, the one that the machine has."""
    from playwright.sync_api import sync_playwright

    executable = chromium()
    if executable is None:
        pytest.skip(NO_CHROMIUM)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any, site_url: str) -> Iterator[Callable[..., Any]]:
    """`open_page("/book/claims.html", viewport=..., color_scheme="dark")` gives a playwright Page.

    The page carries `requests`, every address asked for, and `console_errors`. When the test ends, both are
    checked: no request may have left localhost, and no error may stand in the console. (A test that provokes
    an error on purpose empties the list.) Requests to elsewhere are also refused, so that none gets out.
    """
    pages = []

    def open_one(path: str = "", **context_options: Any) -> Any:
        context = browser.new_context(base_url=site_url, **context_options)
        page = context.new_page()
        page.requests, page.console_errors = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.console_errors.append(str(error)))
        page.on(
            "console", lambda said: page.console_errors.append(said.text) if said.type == "error" else None
        )
        context.route(_is_external, lambda route: route.abort())
        pages.append(page)
        if path:
            page.goto(path)
        return page

    yield open_one
    for page in pages:
        page.context.close()
    assert [url for page in pages for url in page.requests if _is_external(url)] == []
    assert [error for page in pages for error in page.console_errors] == []


@pytest.fixture
def browser_page(open_page: Callable[..., Any]) -> Any:
    """An empty page of ordinary size, see `open_page`; `browser_page.goto("/book/claims.html")` fills it."""
    return open_page()


def _is_external(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in ("127.0.0.1", "localhost")
