"""Runs code cells in forks of one process that has already imported what the chapters import.

A kernel of its own takes ten seconds to start and import, as long as most tests' cells run. Reads a line of
JSON for each notebook, a list of sources; answers with one, how the first cell that failed did, or null.
"""

import json
import os
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


def failure_of(sources: list[str]) -> str | None:
    """Traceback of the first cell that fails."""
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    for source in sources:
        result = shell.run_cell(source)
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            return "".join(traceback.format_exception(error))
    return None


def run_in_a_fork(sources: list[str]) -> str | None:
    """The same in a child process, whose output goes nowhere."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        try:
            answer = failure_of(sources)
        except BaseException:  # whatever it was must be told, and the fork must not go on as its parent would
            answer = traceback.format_exc()
        os.write(theirs, json.dumps(answer).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    answer = json.loads(told) if told else f"the process ended with status {status}"
    return None if answer is None else str(answer)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run_in_a_fork(json.loads(line))), flush=True)
