"""The exercises of chapter 5: from two numbers that carry a softmax to a benchmark of attention.

All but the first need torch, and most need Triton: they are solved in the notebook.
"""

import importlib
import math
from importlib.util import find_spec

from lmlib.book.exercises.machinery import Case, Exercise, Wrong, register

# ---- kernels/merge


def merge(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    m = max(a[0], b[0])
    if m == -math.inf:
        return m, 0.0
    return m, a[1] * math.exp(a[0] - m) + b[1] * math.exp(b[0] - m)


def _sums_added(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return max(a[0], b[0]), a[1] + b[1]


def _second_unscaled(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    m = max(a[0], b[0])
    return m, a[1] * math.exp(a[0] - m) + b[1]


def _from_exponentials(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    m = max(a[0], b[0])
    return m, (a[1] * math.exp(a[0]) + b[1] * math.exp(b[0])) / math.exp(m)


def _empty_forgotten(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    m = max(a[0], b[0])
    return m, a[1] * math.exp(a[0] - m) + b[1] * math.exp(b[0] - m)


MERGE = Exercise(
    name="kernels/merge",
    title="Two pieces of a softmax",
    task="""
Two programs have each read a part of a row of scores. Each hands over a pair (m, s): the largest score of its
part, and the sum of `exp(score - m)` over its part. A part in which every score is masked hands over
`(-math.inf, 0.0)`. Write `merge(a, b)`, which gives the pair of both parts together.
""",
    difficulty=1,
    minutes=8,
    starter="""
import math

def merge(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    raise NotImplementedError
""",
    hints=(
        "The new maximum is the larger of the two.",
        "A sum relative to m becomes one relative to a larger m' when it is multiplied by `exp(m - m')`.",
        "Both sums are rescaled, one of them by 1. Where both maxima are -inf, their difference is no "
        "number: answer `(-math.inf, 0.0)`.",
    ),
    solution=merge,
    remark="""
The order of merging does not matter, but for rounding: that is why a long row can be cut among programs in
any way. Carry the weighted sum of values along, rescaled by the same factors, and you have FlashAttention.
""",
    cases=(
        Case("equal maxima", ((2.0, 1.0), (2.0, 3.0)), (2.0, 4.0), "Under one maximum sums add up."),
        Case(
            "the second is larger",
            ((0.0, 4.0), (math.log(2), 1.0)),
            (math.log(2), 3.0),
            "Rescale the sum of the smaller maximum by exp(m - m_new).",
        ),
        Case(
            "the first is larger",
            ((math.log(4), 1.0), (0.0, 8.0)),
            (math.log(4), 3.0),
            "Either of the two may have to be rescaled.",
        ),
        Case(
            "large scores",
            ((1000.0, 1.0), (1000.0 - math.log(2), 2.0)),
            (1000.0, 2.0),
            "exp(1000) overflows: only take exponentials of differences that are at most 0.",
        ),
        Case(
            "one part all masked",
            ((-math.inf, 0.0), (1.5, 2.0)),
            (1.5, 2.0),
            "exp(-inf) is 0: an empty part adds nothing.",
        ),
        Case(
            "both masked",
            ((-math.inf, 0.0), (-math.inf, 0.0)),
            (-math.inf, 0.0),
            "-inf minus -inf is not a number: treat two empty parts apart.",
        ),
    ),
    wrong=(
        Wrong(_sums_added, "Rescale the sum"),
        Wrong(_second_unscaled, "Either of the two"),
        Wrong(_from_exponentials, "overflows"),
        Wrong(_empty_forgotten, "treat two empty parts apart"),
    ),
)


def _register_with_triton() -> None:
    """Register all in the chapter's order. Imported here, so that the page does not look for torch."""
    from kernels._runtime import INTERPRETED, tl  # before anything else imports Triton

    if INTERPRETED and isinstance(tl.zeros, importlib.import_module("triton.runtime.jit").JITFunction):
        raise ImportError(
            "Triton was imported before kernels._runtime, and is set to compile for a GPU that is not here. "
            "Restart, and import kernels._runtime first."
        )
    from lmlib.book.exercises.kernels_attention import FLASH_BACKWARD, FLASH_TILES, FLASH_TRITON
    from lmlib.book.exercises.kernels_benchmark import BENCHMARK
    from lmlib.book.exercises.kernels_rows import RMS_NORM, RMS_NORM_BACKWARD, SOFTMAX

    register(
        MERGE,
        RMS_NORM,
        SOFTMAX,
        RMS_NORM_BACKWARD,
        FLASH_TILES,
        FLASH_BACKWARD,
        FLASH_TRITON,
        BENCHMARK,
    )


if find_spec("torch") and find_spec("triton"):
    _register_with_triton()
else:
    register(MERGE)
