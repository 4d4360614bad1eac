"""Worker processes that start anywhere: in a notebook, under pytest, in a script without a main guard.

Processes are spawned, never forked, because forking a process that holds threads (torch, NumPy) can hang. A
spawned process begins by running its parent's main module again, which fails for code typed at a prompt and
repeats the work of a script without `if __name__ == "__main__":`. Our workers run functions of this package
only, so they need nothing of that module, and it is out of sight while they start.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from types import ModuleType
from typing import Any


@contextmanager
def worker_pool(
    n_workers: int, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that is gone at the end; on an error or an interrupt, waiting tasks are dropped."""
    pool = ProcessPoolExecutor(n_workers, get_context("spawn"), initializer, initargs)
    main = sys.modules["__main__"]
    try:
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            for _ in range(n_workers):  # each task that finds no idle process starts one
                pool.submit(int)
        finally:
            sys.modules["__main__"] = main
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
