"""What kernels over the rows of a matrix share: how they are cut, and the sums of columns that they leave.

A backward that wants the sum over all rows lets each program keep its part in registers and write it as one
row of a small float32 matrix; ``add_parts`` adds these rows up. No atomics, so the bits are always the same.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels._runtime import (
    HAVE_GPU,
    capability,
    cdiv,
    next_power_of_2,
    shared_bytes,
    sm_count,
    tl,
    triton,
)

ADD_COLUMNS, ADD_VALUES, ADD_WARPS = 8, 8192, 4  # of a tile of the kernel that adds the parts
# Sums of columns: rows and columns of a tile, its warps, tiles loaded ahead; programs an SM, so that all are
# busy, and tiles of one program at most, one below the other.
SUM_ROWS, SUM_COLUMNS, SUM_WARPS, SUM_STAGES, SUM_PROGRAMS, SUM_STEPS = 32, 128, 4, 3, 8, 64

HAVE_CHAINS = HAVE_GPU and torch.version.hip is None and hasattr(getattr(tl.extra, "cuda", None), "gdc_wait")


def can_chain(device: torch.device) -> bool:
    """Whether ``add_parts`` can be launched while the kernel before it still runs.

    Hopper's programmatic dependent launch: hides some microseconds, a tenth of the backward of narrow rows.
    The kernel before calls ``gdc_launch_dependents``.
    """
    return HAVE_CHAINS and capability(device)[0] >= 9


class Launch(NamedTuple):
    """Rows of a tile, warps of a program, programs an SM (0: one a tile), tiles loaded ahead.

    ``chunk``: columns of a tile that does not hold whole rows (0: it does).
    """

    rows: int
    warps: int
    per_sm: int = 0
    stages: int = 1
    chunk: int = 0


def rows_of_tile(values: int, block: int, rows: int, device: torch.device) -> int:
    """Rows of a tile of so many values; fewer where rows are few: rather busy SMs than full programs."""
    tile = max(1, values // block)
    while tile > 1 and rows < 2 * tile * sm_count(device):
        tile //= 2
    return tile


def whole_rows(rows: int, columns: int, device: torch.device) -> Launch:
    """The launch of a forward that holds whole rows in registers, from timings on Hopper GPUs."""
    block = next_power_of_2(columns)
    tile = rows_of_tile(2048, block, rows, device)
    values_a_warp = 1024 if block <= 2048 else 512
    warps = min(max(tile * block // values_a_warp, 1), 8)
    return Launch(tile, warps if block <= 8192 else 16 if block == 16_384 else 32)


def stages(launch: Launch, tile_bytes: int, device: torch.device) -> int:
    """As many tiles loaded ahead as asked for and as fit into shared memory."""
    return max(1, min(launch.stages, shared_bytes(device) * 9 // 10 // (tile_bytes * max(launch.per_sm, 1))))


def grid(rows: int, launch: Launch, device: torch.device) -> int:
    """Programs of a launch."""
    tiles = cdiv(rows, launch.rows)
    return min(tiles, launch.per_sm * sm_count(device)) if launch.per_sm else tiles


@triton.jit
def _add_parts(PARTS, SUMS, parts, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr):
    if CHAINED:
        tl.extra.cuda.gdc_wait()  # until all of the kernel before has ended and its writes are visible
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in tl.range(0, parts, ROWS):
        row = start + tl.arange(0, ROWS)[:, None].to(tl.int64)
        total += tl.load(PARTS + row * columns + column, (row < parts) & (column < columns), other=0.0)
    summed = tl.sum(total, 0, keep_dims=True)
    tl.store(SUMS + column, summed.to(SUMS.dtype.element_ty), column < columns)


def add_parts(parts: Tensor, sums: Tensor, chained: bool = False) -> Tensor:
    """Fill ``sums`` (as many values as ``parts`` has columns) with the sums of columns, and return it."""
    rows, columns = parts.shape
    # All parts of some columns at once: their loads wait together.
    _add_parts[(cdiv(columns, ADD_COLUMNS),)](
        parts,
        sums,
        rows,
        columns,
        ROWS=min(next_power_of_2(rows), ADD_VALUES // ADD_COLUMNS),
        BLOCK=ADD_COLUMNS,
        CHAINED=chained,
        num_warps=ADD_WARPS,
        **({"launch_pdl": True} if chained else {}),
    )
    return sums


@triton.jit
def _sum_columns(
    X, PARTS, rows, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # One axis of programs, as only the first may be longer than 65,535.
    across = tl.cdiv(columns, COLUMNS)
    # The last rows first: they were written last, and may still be in the cache.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    tile, group = program % across, (program // across).to(tl.int64)
    column = tile * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        row = (group * STEPS + STEPS - 1 - step) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column < columns)
        sums += tl.load(X + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(sums, 0, keep_dims=True)
    tl.store(PARTS + group * columns + column, total, mask=column < columns)


def column_sums(x: Tensor) -> Tensor:
    """The sums of the columns of a contiguous matrix, in float32, rounded once to its dtype."""
    rows, columns = x.shape
    across = cdiv(columns, SUM_COLUMNS)
    tiles = cdiv(rows, SUM_ROWS) * across
    steps = min(next_power_of_2(cdiv(tiles, SUM_PROGRAMS * sm_count(x.device))), SUM_STEPS)
    sums = x.new_empty(columns)
    parts = torch.empty(cdiv(rows, SUM_ROWS * steps), columns, dtype=torch.float32, device=x.device)
    if not len(parts) or not columns:
        return sums.zero_()
    _sum_columns[(across * len(parts),)](
        x, parts, rows, columns, ROWS=SUM_ROWS, COLUMNS=SUM_COLUMNS, STEPS=steps, STAGES=SUM_STAGES,
        num_warps=SUM_WARPS,
    )  # fmt: skip
    return add_parts(parts, sums)
