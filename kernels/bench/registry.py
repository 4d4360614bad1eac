"""The kernels that declare a benchmark, by name."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from kernels.bench.case import Bench

FILES = (
    "rms_norm",
    "layer_norm",
    "softmax",
    "swiglu",
    "rope",
    "cross_entropy",
    "linear_cross_entropy",
    "gelu_mlp",
    "qkv_linear",
    "attention",
    "matmul",
    "adamw",
)


def load(names: Iterable[str] = ()) -> list[Bench]:
    """What the named kernels' files declare, all of them where none is named, in the order of ``FILES``.

    Raises:
        ValueError: a name that is no kernel's, or a file that declares nothing.
    """
    wanted = list(names) or list(FILES)
    unknown = [name for name in wanted if name not in FILES]
    if unknown:
        raise ValueError(f"kernel must be one of {', '.join(FILES)}, got {', '.join(unknown)}")
    found: list[Bench] = []
    for name in FILES:
        if name in wanted:
            declared = getattr(importlib.import_module(f"kernels.{name}"), "BENCH", None)
            if declared is None:
                raise ValueError(f"kernels/{name}.py declares no BENCH")
            found += [declared] if isinstance(declared, Bench) else list(declared)
    return found
