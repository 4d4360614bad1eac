"""What the forward and the backward of attention share: tiles of heads, the mask, the order of programs.

Tensors are (B, heads, rows, HEAD_DIM), of any strides but a contiguous last axis, so that the transposed view
of a projection's (B, rows, heads, HEAD_DIM) output costs no copy. A tile is (BLOCK, WIDTH), where WIDTH is
HEAD_DIM padded to a power of two, as ``tl.dot`` needs; padding is zero and adds nothing to any product.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels._runtime import UPCAST, capability, l2_bytes, next_power_of_2, tl, triton

try:  # Triton 3.4 and later
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:
    TensorDescriptor = None

LOG2_E = math.log2(math.e)


class Tile(NamedTuple):
    """How a kernel is cut: rows of queries and of keys per tile, warps, and depth of the load pipeline."""

    block_t: int
    block_s: int
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        """Launch options of a Triton kernel."""
        return {"num_warps": self.warps, "num_stages": self.stages}


@triton.jit
def head_of(x, stride_b, stride_h, batch, head, TMA: tl.constexpr):
    """Where one head of a (batch, heads, rows, HEAD_DIM) tensor starts; a descriptor needs no such start."""
    if TMA:  # noqa: SIM108  a descriptor and a pointer are no two values of one type
        start = x
    else:
        start = x + tl.cast(batch, tl.int64) * stride_b + tl.cast(head, tl.int64) * stride_h
    return start


@triton.jit
def _cells(stride_t, row, n_rows, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets of a tile from the start of its head, and which of its cells exist."""
    rows = tl.arange(0, BLOCK)
    columns = tl.arange(0, WIDTH)
    inside = (row + rows)[:, None] < n_rows
    if WIDTH != HEAD_DIM:
        inside &= columns[None, :] < HEAD_DIM
    return tl.cast(row, tl.int64) * stride_t + (rows[:, None] * stride_t + columns[None, :]), inside


@triton.jit
def load_tile(
    x,
    stride_t,
    batch,
    head,
    row,
    n_rows,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Rows ``row`` .. ``row + BLOCK`` of one head, (BLOCK, WIDTH); zero beyond ``n_rows`` and HEAD_DIM.

    ``x`` is what ``head_of`` gave. Under TMA, Hopper's copy engine fetches the tile and fills in the zeros.
    """
    if TMA:
        tile = x.load([batch, head, row, 0]).reshape(BLOCK, WIDTH)
    else:
        cells, inside = _cells(stride_t, row, n_rows, HEAD_DIM, WIDTH, BLOCK)
        tile = tl.load(x + cells, mask=inside, other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def store_tile(
    x, stride_t, row, n_rows, tile, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """Write rows of one head through a pointer, in the pointer's type."""
    cells, inside = _cells(stride_t, row, n_rows, HEAD_DIM, WIDTH, BLOCK)
    tl.store(x + cells, tile.to(x.dtype.element_ty), mask=inside)


@triton.jit
def visible(position, s, S, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """Whether the query at ``position`` (counted in keys) sees key ``s``; both broadcast."""
    seen = s < S
    if CAUSAL:
        seen &= s <= position
    if WINDOWED:
        seen &= s > position - window
    return seen


@triton.jit
def key_ranges(
    first,
    S,
    window,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """(start, inner, outer, end) of the keys of BLOCK_T queries, the first of them at position ``first``.

    Keys start .. inner lie on the edge of the window, inner .. outer are seen by every query of the tile,
    outer .. end lie on the diagonal or hold the end of the keys.
    """
    start = 0
    inner = 0
    outer = S // BLOCK_S * BLOCK_S
    end = S
    if CAUSAL:
        end = tl.minimum(S, tl.maximum(first + BLOCK_T, 0))
        outer = tl.minimum(outer, tl.maximum(first + 1, 0) // BLOCK_S * BLOCK_S)
    if WINDOWED:
        start = tl.maximum(first - window + 1, 0) // BLOCK_S * BLOCK_S
        inner = tl.cdiv(tl.maximum(first + BLOCK_T - window, 0), BLOCK_S) * BLOCK_S
        inner = tl.minimum(tl.maximum(inner, start), tl.maximum(end, start))
        outer = tl.maximum(outer, inner)
    return start, inner, outer, end


@triton.jit
def place(n_tiles, n_heads, section):
    """(tile, head) of this program: heads in sections, and within one, tile by tile through its heads."""
    pid = tl.program_id(0)
    first = pid // (n_tiles * section) * section
    heads = tl.minimum(n_heads - first, section)
    rest = pid - n_tiles * first
    return rest // heads, first + rest % heads


def _aligned_strides(x: Tensor) -> bool:
    """Whether the copy engine takes ``x``: starts and steps on 16 bytes, and no axis is broadcast."""
    size = x.element_size()
    steps = [(n, step) for n, step in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n > 1]
    return x.data_ptr() % 16 == 0 and all(step > 0 and step * size % 16 == 0 for _, step in steps)


def can_use_tma(*tensors: Tensor) -> bool:
    """Whether tiles of these (B, heads, rows, K) tensors can be fetched through tensor descriptors."""
    if UPCAST or capability(tensors[0].device) < (9, 0) or TensorDescriptor is None:
        return False
    return all(x.element_size() == 2 and _aligned_strides(x) for x in tensors)


def describe(x: Tensor, block: int, width: int) -> Any:
    """A tensor descriptor that gives (block, width) tiles of the heads of a (B, heads, rows, K) tensor."""
    aligned = 16 // x.element_size()  # an axis of length 1 may have any stride: give it a valid one
    strides = [step if n > 1 else aligned for n, step in zip(x.shape[:-1], x.stride()[:-1], strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], [1, 1, block, width])


def section_of(keys: Tensor) -> int:
    """How many key/value heads to take at once, so that their keys and values stay in the L2 cache."""
    bytes_per_head = max(2 * keys.shape[2] * keys.shape[3] * keys.element_size(), 1)
    return max(int(0.6 * l2_bytes(keys.device)) // bytes_per_head, 1)


def with_unit_stride(x: Tensor) -> Tensor:
    """``x`` itself where its last axis is contiguous, else a contiguous copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def width_of(head_dim: int) -> int:
    """Columns of a tile: the head dimension padded to a power of two that the matrix units take."""
    return max(next_power_of_2(head_dim), 16)


def like(x: Tensor) -> Tensor:
    """Empty, shaped and laid out as ``x``, with a contiguous last axis."""
    if x.stride(-1) == 1 or x.shape[-1] <= 1:
        return torch.empty_like(x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)
