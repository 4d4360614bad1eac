"""A small site of the widgets alone, driven in a browser without building the book; chapters in parts."""

import contextlib
import copy
import functools
import http.server
import itertools
import json
import math
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from filelock import FileLock
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from lmlib.book import forms, page_files
from lmlib.book.declare import Choice, Number, Text, Toggle, Widget, registered
from lmlib.book.pipeline import execute
from lmlib.book.pipeline.site import install_scripts

ROOT = Path(__file__).resolve().parents[2]
PYODIDE = ROOT / "book" / "node_modules" / "pyodide"
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Widgets</title>
<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width">
<link rel="stylesheet" href="_static/live/live.css">
<style>body {{ font-family: sans-serif; margin: 8px }}</style>
<script defer src="_static/live/live.js"></script><main>{}</main></html>"""


@pytest.fixture
def cells_until() -> Callable[[str, str], nbformat.NotebookNode]:
    """``cells_until(chapter, claim)``: its code cells up to the one that claims, and its last, the check."""

    def shortened(chapter: str, claim: str) -> nbformat.NotebookNode:
        notebook = nbformat.read(ROOT / "chapters" / f"{chapter}.ipynb", as_version=4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        made = re.compile(rf'"{claim}"')
        names = re.compile(rf'\b(show|exercise)\("{claim}"\)')  # a widget or an exercise may bear the name
        end = next(i for i, cell in enumerate(cells) if made.search(names.sub("", cell.source)))
        notebook.cells = copy.deepcopy([*cells[: end + 1], cells[-1]])
        return notebook

    return shortened


class CellError(Exception):
    """A cell failed; the message is its traceback."""


@pytest.fixture(scope="session")
def cells_process() -> Iterator[Callable[[list[str]], str | None]]:
    """``cells_process(sources)``: asks ``forked_cells.py``, which is started once."""
    # Asked through NVML whether there is a GPU, CUDA is not started, and can be in a fork.
    environment = {**os.environ, "LMLIB_BOOK_BUILD": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    program = [sys.executable, str(Path(__file__).with_name("forked_cells.py"))]
    numbers = itertools.count()
    with subprocess.Popen(
        program, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None

        def ask(sources: list[str]) -> str | None:
            number = next(numbers)
            running.stdin.write(json.dumps([number, sources]) + "\n")
            running.stdin.flush()
            for line in running.stdout:  # or what a library printed, or an answer that nobody waited for
                with contextlib.suppress(ValueError):
                    answered, failure = json.loads(line)
                    if answered == number:
                        return failure
            pytest.fail(f"forked_cells.py ended with status {running.wait()}")

        yield ask
        running.kill()


@pytest.fixture
def run_cells(request: pytest.FixtureRequest) -> Callable[[nbformat.NotebookNode], None]:
    """Runs the code cells of a notebook from the book's root, in a process of their own, without outputs."""
    if sys.platform == "darwin":  # whose libraries do not bear a fork
        return request.getfixturevalue("run_notebook")
    ask = request.getfixturevalue("cells_process")

    def run(notebook: nbformat.NotebookNode) -> None:
        failure = ask([cell.source for cell in notebook.cells if cell.cell_type == "code"])
        if failure is not None:
            raise CellError(failure)

    return run


@pytest.fixture
def run_notebook(monkeypatch: pytest.MonkeyPatch) -> Callable[[nbformat.NotebookNode], None]:
    """Runs a notebook in a kernel, from the book's root; its cells have their outputs afterwards."""
    monkeypatch.setenv("LMLIB_BOOK_BUILD", "1")

    def run(notebook: nbformat.NotebookNode) -> None:
        try:
            NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
        except CellExecutionError as error:
            raise CellError(str(error)) from error

    return run


@pytest.fixture
def fails_its_claim(
    run_cells: Callable[[nbformat.NotebookNode], None],
) -> Callable[[nbformat.NotebookNode, str], None]:
    """``fails_its_claim(notebook, claim)``: the check at its end stops the run, and names the claim."""

    def fails(notebook: nbformat.NotebookNode, claim: str) -> None:
        with pytest.raises(CellError, match=rf"(?s)do(es)? not hold.*\[{claim}\]"):
            run_cells(notebook)

    return fails


@pytest.fixture(scope="session")
def live_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the site: what the page needs, and one page for each widget, named after it."""
    (ROOT / "_build").mkdir(exist_ok=True)
    with FileLock(ROOT / "_build" / "pipeline.lock"):  # another worker may be at it, or the build
        install_scripts(ROOT)
    folder = tmp_path_factory.mktemp("live")
    shutil.copytree(ROOT / "book" / "_static" / "live", folder / "_static" / "live")
    shutil.copytree(PYODIDE, folder / "_static" / "pyodide")
    plotly = find_spec("plotly")
    assert plotly is not None
    assert plotly.origin is not None
    shutil.copy(Path(plotly.origin).parent / "package_data" / "plotly.min.js", folder / "_static")
    page_files.write_archive(folder / "_static" / "live")
    for widget in registered():
        if not widget.name.startswith("demo/"):
            what = widget.name.partition("/")[2]
            (folder / f"{what}.html").write_text(PAGE.format(forms.form_html(widget)))
    return folder


@pytest.fixture(scope="session")
def live_url(live_folder: Path) -> Iterator[str]:
    """Address at which the small site is served, without a closing slash."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(live_folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def write_page(live_folder: Path) -> Callable[[str, str], None]:
    """``write_page("exercise", html)`` adds a page to the site."""
    return lambda name, html: (live_folder / f"{name}.html").write_text(PAGE.format(html)) and None


@pytest.fixture
def visit(browser: Any, live_url: str) -> Iterator[Callable[..., Any]]:
    """Opens a widget's page, waits until it is alive; in the end no request has left, no error is logged."""
    said: list[str] = []
    asked: list[str] = []
    contexts: list[Any] = []

    def open_page(name: str, query: str = "", **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{live_url}/{name.partition('/')[2]}.html{query}")
        page.wait_for_selector("lm-widget[data-state=live], lm-exercise.lm-live", timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith((live_url, "data:", "blob:"))] == []


@pytest.fixture
def ask_worker(browser: Any, live_url: str) -> Callable[[str, list[dict[str, str]]], list[str]]:
    """``ask_worker(name, entries)``: what Python in a page answers to each entry, as JSON.

    The page has no widgets, so that no other worker starts beside this one.
    """

    def ask(name: str, entries: list[dict[str, str]]) -> list[str]:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{live_url}/_static/live/live.css")
        answers: list[str] = page.evaluate(
            """async ([name, entries]) => {
                const worker = new Worker("worker.js", {type: "module"}), answers = [];
                const reply = () => new Promise(ok => {
                    worker.onmessage = ({data}) => { if (!data.started) ok(data); };
                });
                await reply();
                for (const [id, entry] of entries.entries()) {
                    const waiting = reply();
                    worker.postMessage({id, kind: "answer", name, text: JSON.stringify(entry)});
                    answers.push((await waiting).result);
                }
                worker.terminate();
                return answers;
            }""",
            [name, entries],
        )
        context.close()
        return answers

    return ask


@pytest.fixture
def spent(browser: Any) -> Callable[[], tuple[float, float]]:
    """``spent()``: ms of processor time so far of the page's worker, and of the thread that draws the page.

    Another program that wants the processor does not add to it, as it does to what a clock shows. Linux says
    it, of each thread; where nothing says it, both stay 0.
    """

    def read() -> tuple[float, float]:
        worker = drawing = 0.0
        for process in psutil.Process().children(recursive=True):
            threads = Path(f"/proc/{process.pid}/task")
            try:
                names = {each: (each / "comm").read_text() for each in threads.iterdir()}
                workers = [each for each, name in names.items() if name.startswith("DedicatedWorker")]
                if workers:
                    worker += sum(map(_processor_ms, workers))
                    drawing += _processor_ms(threads / str(process.pid))
            except OSError:
                continue  # it ended meanwhile, or this is not Linux
        return worker, drawing

    return read


@pytest.fixture
def slower() -> Callable[[], float]:
    """``slower()``: how many times the stated time a machine of this pace may take now."""
    return lambda: execute.allowance(statistics.median(execute.pace() for _ in range(9)))


def _processor_ms(thread: Path) -> float:
    return int((thread / "schedstat").read_text().split()[0]) / 1e6


@pytest.fixture
def random_texts() -> Callable[[Widget, random.Random], dict[str, str]]:
    """``random_texts(widget, chance)``: random entries of a form, mostly good, sometimes refused."""
    return _random_texts


@pytest.fixture
def random_plan() -> Callable[[Widget, random.Random], dict[str, str]]:
    """``random_plan(widget, chance)``: entries near a start, some far off, some nonsense."""
    return _random_plan


def _random_plan(widget: Widget, chance: random.Random) -> dict[str, str]:
    texts = {name: widget.input(name).text(value) for name, value in widget.defaults().items()}
    for one in widget.inputs:
        if isinstance(one, Choice) and chance.random() < 0.6:
            value = chance.choice(one.options)[0]
            filled = {name: widget.input(name).text(to) for name, to in one.presets.get(value, {}).items()}
            texts |= {one.name: value, **filled}
        elif isinstance(one, Toggle) and chance.random() < 0.3:
            texts[one.name] = chance.choice(["true", "false"])
        elif isinstance(one, Text) and chance.random() < 0.3:
            texts[one.name] = chance.choice(
                ["", "{", "[1]", '{"model_type": "bert"}', '{"model_type": "llama"}']
            )
        elif isinstance(one, Number) and chance.random() < 0.25:
            texts[one.name] = _random_number(one, chance)
    if "dp" in texts and chance.random() < 0.8:
        texts["n_devices"] = str(math.prod(_whole(texts[name]) for name in ("dp", "tp", "pp", "cp")))
    return texts


def _random_number(one: Number, chance: random.Random) -> str:
    near = Fraction(one.default) * chance.choice([Fraction(1, 4), Fraction(1, 2), 2, 4, 8]) or Fraction(1)
    kept = min(max(near, Fraction(one.minimum)), Fraction(one.maximum))
    good = str(int(kept)) if one.integer else repr(float(kept))
    odd = [one.text(one.minimum), one.text(one.maximum), "7", "-1", "1.5", "nonsense", "", str(2**70)]
    return good if chance.random() < 0.8 else chance.choice(odd)


def _whole(text: str) -> int:
    return int(text) if text.isdigit() else 1


def _random_texts(widget: Widget, chance: random.Random) -> dict[str, str]:
    """Random entries of a form: mostly good, sometimes refused."""
    texts = {}
    for one in widget.inputs:
        match one:
            case Number():
                low, high = int(one.minimum), int(one.maximum)
                good = [chance.randint(low, high), low, high, chance.choice(one.stops or (low,))]
                odd = [f"{chance.randint(1, 99)}k", "2^12", "nonsense", str(high + 1), "1.5", str(2**70)]
                texts[one.name] = chance.choice(
                    [str(chance.choice(good))] * 9 + odd[:1] + [chance.choice(odd)]
                )
            case Choice():
                texts[one.name] = chance.choice(one.options)[0]
            case Toggle():
                texts[one.name] = chance.choice(["true", "false"])
            case Text():
                alphabet = "ab cd low \n\té€東😀\u00a0'll 123,."
                texts[one.name] = "".join(chance.choices(alphabet, k=chance.randint(0, 120)))
    if "n_heads" in texts and chance.random() < 0.8:  # mostly heads that divide
        heads = chance.choice([1, 2, 4, 8, 16])
        texts |= {"n_heads": str(heads), "n_kv_heads": "1", "d_model": str(heads * chance.randint(16, 600))}
    return texts
