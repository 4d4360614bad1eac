"""Eight bytes at once: unaligned loads for the compiled kernels, which NumPy indexing can't express."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_intrinsic: Any = intrinsic  # its own type hints forget that the first argument is left out in calls

# What all kernels are compiled with: nogil lets threads count side by side.
OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "boundscheck": False,
    "error_model": "numpy",
    "_nrt": False,
}
INLINE: dict[str, Any] = {**OPTIONS, "forceinline": True}  # small functions of the kernels' inner loops


@_intrinsic
def _load64(typing_context: Any, data: Any, offset: Any) -> Any:
    """The little-endian integer in data[offset : offset + 8]; the caller keeps it inside the array."""
    signature = types.uint64(data, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(array.data, [arguments[1]])
        pointer = builder.bitcast(address, ir.IntType(64).as_pointer())
        return builder.load(pointer, align=1)

    return signature, generate


@_intrinsic
def _trailing_zeros(typing_context: Any, value: Any) -> Any:
    """Number of zero bits below the lowest one bit; 64 for zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


_EACH = np.uint64(0x0101010101010101)
_TOP = np.uint64(0x8080808080808080)
_TO_LOWER = np.uint64(0x20) * _EACH
_FROM_A = np.uint64(0x80 - 0x61) * _EACH  # added to seven bits, it sets the top bit from "a" on
_PAST_Z = np.uint64(0x80 - 0x7B) * _EACH  # the same, from the character after "z" on


@njit(**INLINE)
def ascii_letters(data: np.ndarray, start: int) -> int:
    """How many of the eight bytes from start on are ASCII letters, up to the first that isn't.

    All eight are looked at together (SIMD within a register), without a branch.
    """
    word: np.uint64 = _load64(data, start)
    seven = (word | _TO_LOWER) & ~_TOP
    letter = (seven + _FROM_A) & ~(seven + _PAST_Z) & ~word & _TOP
    return int(_trailing_zeros(letter ^ _TOP) >> np.uint64(3))


@njit(**INLINE)
def load(data: np.ndarray, start: int, length: int) -> np.uint64:
    """Up to eight bytes from start as an integer, the missing ones zero."""
    if length >= 8:
        return _load64(data, start)
    if start + 8 <= data.size:
        return _load64(data, start) & ((np.uint64(1) << np.uint64(8 * length)) - np.uint64(1))
    value = np.uint64(0)
    for i in range(length):
        value |= np.uint64(data[start + i]) << np.uint64(8 * i)
    return value
