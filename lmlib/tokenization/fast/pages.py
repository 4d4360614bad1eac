"""Arrays in memory that comes straight from the operating system.

The allocator keeps large blocks that were freed, and they would count against the next step's peak. These go
back at once; they start as zeros, and a page that is never touched costs nothing, so that an array may be
given room for the worst case.
"""

from __future__ import annotations

import math
import mmap

import numpy as np


def pages(shape: int | tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """A writable array of zeros."""
    n = math.prod(shape) if isinstance(shape, tuple) else shape
    memory = mmap.mmap(-1, max(1, n * np.dtype(dtype).itemsize))
    return np.frombuffer(memory, dtype=dtype, count=n).reshape(shape)
