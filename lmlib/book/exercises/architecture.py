"""The exercises of chapter 2: from the width of a layer to a model that decodes with a cache.

Those on tensors need torch: they are solved in the notebook, and the page does without them.
"""

from importlib.util import find_spec

from lmlib.book.exercises.architecture_numbers import ACCOUNTING, FF_WIDTH, INITIAL_STD, RMS_NORM, SOFTMAX
from lmlib.book.exercises.machinery import register


def _register_with_torch() -> None:
    """Register all in the chapter's order. Imported here, so that the page does not look for torch."""
    from lmlib.book.exercises import architecture_attention as attention
    from lmlib.book.exercises import architecture_models as models

    register(
        FF_WIDTH,
        SOFTMAX,
        INITIAL_STD,
        RMS_NORM,
        models.SWIGLU,
        attention.ROPE,
        attention.ATTENTION,
        attention.GROUPED,
        attention.SELF_ATTENTION,
        models.BLOCK,
        models.MOE,
        models.TRANSFORMER,
        models.CACHE,
        ACCOUNTING,
    )


if find_spec("torch"):
    _register_with_torch()
else:
    register(FF_WIDTH, SOFTMAX, INITIAL_STD, RMS_NORM, ACCOUNTING)
