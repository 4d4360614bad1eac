"""Runs code cells in forks of one process that has already imported what the chapters import.

A kernel of its own takes ten seconds to start and import, as long as most tests' cells run. Reads one line of
JSON for each notebook: a number, and the sources of its cells. Answers with one: the number, and how the
first cell that failed did, or null.
"""

import contextlib
import json
import os
import select
import signal
import sys
import traceback

import plotly.io  # noqa: F401
import torch  # noqa: F401
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import kernels._runtime  # noqa: F401, without a GPU this chooses the interpreter, before Triton is imported
import lmlib.architecture
import lmlib.book
import lmlib.data
import lmlib.resources
import lmlib.tokenization
import lmlib.training  # noqa: F401

LONGEST = 600  # seconds


def failure_of(sources: list[str]) -> str | None:
    """Traceback of the first cell that fails."""
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    for source in sources:
        result = shell.run_cell(source)
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            return "".join(traceback.format_exception(error))
    return None


def tell_from_a_fork(sources: list[str], answer_to: int) -> None:
    """What the child does: it reads nothing, prints nowhere, and leads a group of what its cells start."""
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    try:
        answer = failure_of(sources)
    except BaseException:  # whatever it was must be told, and the fork must not go on as its parent would
        answer = traceback.format_exc()
    with os.fdopen(answer_to, "w") as stream:
        stream.write(json.dumps(answer) + "\n")


def run_in_a_fork(sources: list[str]) -> str | None:
    """How the first cell that failed did; nothing that the cells started is left."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            tell_from_a_fork(sources, theirs)
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as stream:
        told = stream.readline() if select.select([ours], [], [], LONGEST)[0] else ""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    answer = json.loads(told) if told else f"the process ended, or took more than {LONGEST} s"
    return None if answer is None else str(answer)


if __name__ == "__main__":
    for line in sys.stdin:
        number, cells = json.loads(line)
        print(json.dumps([number, run_in_a_fork(cells)]), flush=True)
