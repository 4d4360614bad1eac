"""Execute the chapters that changed, side by side over the cores, and record what each took.

A chapter's result is two files in `_build/executed`: the notebook with its outputs and, written last, a JSON
record with the fingerprint, time, peak memory, date and versions. Both appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from lmlib.book.pipeline.contents import Chapter
from lmlib.book.pipeline.fingerprint import chapter_fingerprint

GIB = 2**30
LIMITS = {"quick": (150.0, 4.0)}
"""The most that any chapter may take in a profile: (seconds, GiB)."""

PATIENCE = {"quick": 1800.0, "full": 24 * 3600.0}
"""Seconds after which a chapter is taken to hang."""

SAMPLE_EVERY = 0.2
PACE_EVERY = 10  # samples
PACE_SECONDS = 0.0021  # of the work of `pace` on the machine for which limits are stated
NAMED_VERSIONS = ("torch", "numpy", "numba", "tokenizers", "tiktoken", "plotly")


@dataclass
class Failure:
    """Why a chapter did not run through. `cell` counts from 1, as a reader would."""

    cell: int | None
    source: str
    error: str
    traceback: str

    def report(self, chapter: Chapter) -> str:
        """What the person at the terminal needs: chapter, cell, its source, the traceback."""
        place = f"cell {self.cell}" if self.cell else "no particular cell"
        shown = "\n".join(f"    {line}" for line in self.source.splitlines())
        return (
            f"\n{chapter.name} failed in {place}: {self.error}\n\n{shown}\n\n{self.traceback}".rstrip() + "\n"
        )


@dataclass
class Result:
    """What became of one chapter: a record, or a failure."""

    chapter: Chapter
    record: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    executed: bool = True


def record_path(folder: Path, chapter: Chapter) -> Path:
    """Where the record of an executed chapter lies."""
    return folder / f"{chapter.name}.json"


def notebook_path(folder: Path, chapter: Chapter) -> Path:
    """Where the executed copy of a chapter lies."""
    return folder / f"{chapter.name}.ipynb"


def load_record(folder: Path, chapter: Chapter) -> dict[str, Any] | None:
    """The record of an executed chapter; None unless it and its notebook are there and belong together."""
    try:
        record: dict[str, Any] = json.loads(record_path(folder, chapter).read_text(encoding="utf-8"))
        whole = {"cpu_seconds", "pace"} <= record.keys() and record["sha256"] == _sha256(
            notebook_path(folder, chapter)
        )
    except (OSError, ValueError, KeyError):
        return None
    return record if whole else None


def undisturbed_seconds(record: dict[str, Any]) -> float:
    """About what a run takes on a machine of the stated kind that has nothing else to do, from its record.

    On a busy machine the clock runs on while a chapter waits for a core; its processor seconds do not. They
    grow too where neighbours share the core and its caches: ``pace`` tells by how much, from a piece of work
    that is the same each time. A chapter that itself only waits cannot hide behind them: at least a quarter
    of the clock's time counts.
    """
    seconds = float(record["seconds"])
    return min(seconds, max(float(record["cpu_seconds"]) / allowance(float(record["pace"])), seconds / 4))


def allowance(pace: float) -> float:
    """How many times the stated time a machine of this pace may take: a slow one up to twice."""
    return min(2.0, max(1.0, pace))


def execute_all(
    root: Path,
    chapters: Sequence[Chapter],
    folder: Path,
    parameters: dict[str, str | int],
    force: bool = False,
) -> list[Result]:
    """Bring every chapter's executed copy in `folder` up to date; results come in the order of `chapters`.

    Args:
        root: the book.
        parameters: given to every chapter (`profile`, `seed`).
        force: execute also what has not changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Result] = {}
    stale: list[tuple[float, Chapter, str]] = []
    for chapter in chapters:
        fingerprint = chapter_fingerprint(root, chapter, parameters)
        record = load_record(folder, chapter)
        if record and record["fingerprint"] == fingerprint and not force:
            results[chapter.name] = Result(chapter, record, executed=False)
        else:
            took = record["seconds"] if record else float("inf")
            stale.append((took, chapter, fingerprint))
    if stale:
        stale.sort(key=lambda each: -each[0])  # the longest first, so that none of them trails alone
        for result in _execute_stale(root, stale, folder, parameters):
            results[result.chapter.name] = result
    return [results[chapter.name] for chapter in chapters]


def _execute_stale(
    root: Path, stale: list[tuple[float, Chapter, str]], folder: Path, parameters: dict[str, str | int]
) -> list[Result]:
    cores = os.cpu_count() or 1
    fit = int(psutil.virtual_memory().total // (LIMITS["quick"][1] * GIB))
    workers = max(1, min(cores, len(stale), fit))
    if parameters["profile"] != "quick":
        workers = 1  # at full size a chapter has the machine, and its GPU, to itself
    jobs = [
        Job(root, chapter, fingerprint, folder, parameters, threads=max(1, cores // workers))
        for _, chapter, fingerprint in stale
    ]
    quiet = bool(os.environ.get("CI")) or not sys.stderr.isatty()
    with tqdm(total=0, unit="cell", disable=quiet, leave=False) as bar, ThreadPoolExecutor(workers) as pool:

        def progress(cells: int, done: int) -> None:
            bar.total = (bar.total or 0) + cells
            bar.update(done)

        def say(line: str) -> None:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

        futures = [pool.submit(job.run, progress, say) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            for job in jobs:
                job.stop("interrupted")
            raise


class Job:
    """One chapter on its way through a process of its own."""

    def __init__(
        self,
        root: Path,
        chapter: Chapter,
        fingerprint: str,
        folder: Path,
        parameters: dict[str, str | int],
        threads: int,
    ) -> None:
        self.root, self.chapter, self.fingerprint = root, chapter, fingerprint
        self.folder, self.parameters, self.threads = folder, parameters, threads
        self.process: subprocess.Popen[str] | None = None
        self.stopped = ""
        self.peak_bytes = 0
        self.cpu_of: dict[int, float] = {}  # process -> processor seconds, as last seen
        self.paces: list[float] = []

    def run(self, progress: Callable[[int, int], None], say: Callable[[str], None]) -> Result:
        """Execute, watch, and put the result into place."""
        if self.stopped:
            raise KeyboardInterrupt
        say(f"{self.chapter.name}: executing ...")
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".partial-") as scratch:
            output = Path(scratch) / self.chapter.path.name
            failure = self._drive(output, Path(scratch) / "stderr.txt", progress)
            seconds = time.monotonic() - began
            if failure:
                self._keep_failed(output)
                say(failure.report(self.chapter))
                return Result(self.chapter, failure=failure)
            record = self._record(seconds, output)
            output.replace(notebook_path(self.folder, self.chapter))
            written = Path(scratch) / "record.json"
            written.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            written.replace(record_path(self.folder, self.chapter))
        say(f"{self.chapter.name}: {seconds:.0f} s, peak memory {self.peak_bytes / GIB:.2f} GiB")
        return Result(self.chapter, record)

    def stop(self, why: str) -> None:
        """End the chapter's processes, the kernel and what it started included."""
        self.stopped = self.stopped or why
        process = self.process
        if process is None or process.poll() is not None:
            return
        try:
            family = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.kill()

    def _drive(self, output: Path, errors: Path, progress: Callable[[int, int], None]) -> Failure | None:
        """Start the process, follow its messages to the end; returns what went wrong, if anything did."""
        source, parameters = str(self.chapter.path), json.dumps(self.parameters)
        module = "lmlib.book.pipeline.run_chapter"
        with errors.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, source, str(output), parameters],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=self.root,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C reaches only the pipeline, which then ends this family
            )
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        cell, failure, total = None, None, 0
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            if "failure" in message:
                failure = message["failure"]
            else:
                progress(message["cells"] - total, 1)
                cell, total = message["cell"], message["cells"]
        code = self.process.wait()
        watcher.join()
        if failure:
            number = failure["cell"] if failure["cell"] is not None else cell
            return Failure(None if number is None else number + 1, *_texts(failure))
        if code or self.stopped:
            told = errors.read_text(errors="replace")[-4000:]
            number = None if cell is None else cell + 1
            return Failure(number, "", self.stopped or f"its process ended with status {code}", told)
        return None

    def _environment(self) -> dict[str, str]:
        threads = str(self.threads)
        return {
            **os.environ,
            "LMLIB_BOOK_BUILD": "1",
            "PYTHONPATH": str(self.root),  # absolute: the kernel starts in the chapter's folder
            "PYTHONHASHSEED": "0",
            "TQDM_DISABLE": "1",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "NUMBA_NUM_THREADS": threads,
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # silences a warning of the kernel's debugger
        }

    def _watch(self) -> None:
        """Sample memory and time of the kernel and its children (not of papermill); end one that hangs."""
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE[str(self.parameters["profile"])]
        for sample in itertools.count():
            if sample % PACE_EVERY == 0:
                self.paces.append(pace())
            if self.process.poll() is not None:
                return
            resident, cpu = _usage_of_children(self.process.pid)
            self.peak_bytes = max(self.peak_bytes, resident)
            self.cpu_of |= cpu
            if time.monotonic() > deadline:
                self.stop("it took longer than any chapter may, and was ended")
            time.sleep(SAMPLE_EVERY)

    def _record(self, seconds: float, output: Path) -> dict[str, Any]:
        return {
            "chapter": self.chapter.name,
            "fingerprint": self.fingerprint,
            "sha256": _sha256(output),
            **self.parameters,
            "seconds": round(seconds, 2),
            "cpu_seconds": round(sum(self.cpu_of.values()), 2),
            "pace": round(statistics.median(self.paces), 3),
            "peak_bytes": self.peak_bytes,
            "threads": self.threads,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(),
        }

    def _keep_failed(self, output: Path) -> None:
        """Leave the half-run notebook where it can be looked at, away from the good ones."""
        if output.exists() and not self.stopped:
            failed = self.folder.parent / "failed"
            failed.mkdir(exist_ok=True)
            shutil.move(output, failed / output.name)


def pace() -> float:
    """How many times as long as on the machine for which limits are stated a fixed piece of work takes now.

    Half of it is Python, half arithmetic on arrays; by the processor time of this thread.
    """
    began = time.thread_time()
    for each in range(30_000):
        _ = each & 7
    values = np.full(150_000, 0.5, dtype=np.float32)
    for _ in range(6):
        values = np.exp(-values)
    return (time.thread_time() - began) / PACE_SECONDS


def versions() -> dict[str, str]:
    """Python and the packages whose versions a reader would ask for."""
    found = {"python": platform.python_version()}
    for name in NAMED_VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The machine in words: processor, cores, memory in bytes, system. No names that belong to its owner."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    memory = psutil.virtual_memory().total
    system = f"{platform.system()} {platform.machine()}"
    return {"processor": name, "cores": os.cpu_count(), "memory_bytes": memory, "system": system}


def _usage_of_children(pid: int) -> tuple[int, dict[int, float]]:
    """Resident bytes of all descendants together, and the processor seconds of each."""
    resident, cpu = 0, {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                resident += child.memory_info().rss
                times = child.cpu_times()
                cpu[child.pid] = times.user + times.system
    return resident, cpu


def _texts(failure: dict[str, Any]) -> tuple[str, str, str]:
    return failure["source"], failure["error"], failure["traceback"]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
