"""Execute one notebook with papermill, in the process that this module is run as.

    python -m lmlib.book.pipeline.run_chapter INPUT OUTPUT PARAMETERS_AS_JSON

Tells its caller what happens in lines of JSON on standard output: `{"cell": 3, "cells": 40}` as cells begin,
and at the end `{"failure": {...}}` where one failed. OUTPUT is written in either case, with what came out.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from lmlib.book import settings

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_CHANNEL = sys.stdout  # kept apart: whatever else prints in this process must not reach the caller's parser


def tell(**message: Any) -> None:
    """Send one message to the caller."""
    print(json.dumps(message), file=_CHANNEL, flush=True)


class TellingEngine(NBClientEngine):
    """Papermill's own engine, telling of each cell that begins."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
        start = nb_man.cell_start

        def tell_and_start(cell: Any, cell_index: int | None = None, **rest: Any) -> None:
            tell(cell=cell_index, cells=len(nb_man.nb.cells))
            start(cell, cell_index, **rest)

        nb_man.cell_start = tell_and_start
        return super().execute_managed_notebook(nb_man, kernel_name, **options)


def execute(source: Path, output: Path, parameters: dict[str, Any]) -> bool:
    """Run `source` in its own folder, write `output`; returns whether every cell ran."""
    papermill_engines.register("telling", TellingEngine)
    # Parameters that a chapter has anyway are not injected: the reader would see the same cell twice.
    changed = {
        key: value for key, value in parameters.items() if value != settings.DEFAULT_PARAMETERS.get(key)
    }
    failure = None
    try:
        papermill.execute_notebook(
            str(source),
            str(output),
            parameters=changed,
            engine_name="telling",
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=str(source.parent),
        )
    except PapermillExecutionError as error:
        failure = {
            # Papermill numbers the cells of the notebook with its injected cell; so does OUTPUT.
            "cell": error.cell_index,
            "source": error.source,
            "error": f"{error.ename}: {_ANSI.sub('', error.evalue)}",
            "traceback": _ANSI.sub("", "\n".join(error.traceback)),
        }
    except DeadKernelError as error:
        failure = {"cell": None, "source": "", "error": f"the kernel died: {error}", "traceback": ""}
    if output.exists():
        clean(output)
    if failure:
        tell(failure=failure)
    return failure is None


def clean(path: Path) -> None:
    """Drop what only made sense while running: widget state (it would pull in 3.6 MB of scripts), paths."""
    notebook = settings.read_notebook(path)
    notebook["metadata"].pop("widgets", None)
    notebook["metadata"].pop("papermill", None)
    for cell in notebook["cells"]:
        cell["metadata"].pop("papermill", None)
        cell["metadata"].pop("execution", None)
    settings.write_notebook(path, notebook)


if __name__ == "__main__":
    sys.stdout = sys.stderr
    source, output, parameters = sys.argv[1:]
    sys.exit(0 if execute(Path(source), Path(output), json.loads(parameters)) else 1)
