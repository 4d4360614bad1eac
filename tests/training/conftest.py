"""Choose Triton's interpreter, where there is no GPU, before any test compiles a model and imports Triton."""

import kernels._runtime  # noqa: F401  (importing it chooses)
