"""GPU kernels, one per file, each with its plain PyTorch reference. They import nothing of lmlib.

Names are loaded when they are first used, so importing ``kernels`` imports neither Triton nor torch. Each
function takes contiguous or strided tensors, has a backward, stays in the graph of ``torch.compile``, and
computes its reference where its kernel cannot run (see ``kernels._runtime.usable``).
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.adamw import FusedAdamW
    from kernels.attention import flash_attention
    from kernels.cross_entropy import cross_entropy
    from kernels.gelu_mlp import gelu_mlp
    from kernels.layer_norm import layer_norm
    from kernels.linear_cross_entropy import linear_cross_entropy
    from kernels.matmul import matmul
    from kernels.qkv_linear import qkv_linear
    from kernels.rms_norm import rms_norm
    from kernels.rope import rope
    from kernels.softmax import softmax
    from kernels.swiglu import swiglu

_HOME = {
    "FusedAdamW": "adamw",
    "cross_entropy": "cross_entropy",
    "flash_attention": "attention",
    "gelu_mlp": "gelu_mlp",
    "layer_norm": "layer_norm",
    "linear_cross_entropy": "linear_cross_entropy",
    "matmul": "matmul",
    "qkv_linear": "qkv_linear",
    "rms_norm": "rms_norm",
    "rope": "rope",
    "softmax": "softmax",
    "swiglu": "swiglu",
}

__all__ = [
    "FusedAdamW",
    "cross_entropy",
    "flash_attention",
    "gelu_mlp",
    "layer_norm",
    "linear_cross_entropy",
    "matmul",
    "qkv_linear",
    "rms_norm",
    "rope",
    "softmax",
    "swiglu",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A function and its module share a name: ``kernels.softmax`` is the function, always.

    When a module has been imported, Python sets it as an attribute of its package, which would hide the
    function. The module is what ``importlib.import_module("kernels.softmax")`` returns and what
    ``from kernels.softmax import ...`` reads.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name, value)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
