"""The exercises of chapter 2: from the width of a layer to a model that decodes with a cache.

Those on tensors need torch: they are solved in the notebook, and the page does without them.
"""

from importlib.util import find_spec

from lmlib.book.exercises.architecture_numbers import ACCOUNTING, FF_WIDTH, INITIAL_STD, RMS_NORM, SOFTMAX
from lmlib.book.exercises.machinery import register


def _register_with_torch() -> None:
    """Register all in the chapter's order. Imported here, so that the page does not look for torch."""
    from lmlib.book.exercises.architecture_attention import ATTENTION, GROUPED, ROPE, SELF_ATTENTION
    from lmlib.book.exercises.architecture_models import BLOCK, CACHE, MOE, SWIGLU, TRANSFORMER

    register(
        FF_WIDTH,
        SOFTMAX,
        INITIAL_STD,
        RMS_NORM,
        SWIGLU,
        ROPE,
        ATTENTION,
        GROUPED,
        SELF_ATTENTION,
        BLOCK,
        MOE,
        TRANSFORMER,
        CACHE,
        ACCOUNTING,
    )


if find_spec("torch"):
    _register_with_torch()
else:
    register(FF_WIDTH, SOFTMAX, INITIAL_STD, RMS_NORM, ACCOUNTING)
