"""The calculator *Tiles*: from the tile of a matrix product to bytes moved, intensity and bound."""

from collections.abc import Sequence
from fractions import Fraction

from lmlib.book.declare import (
    Choice,
    InputError,
    LedgerTable,
    Note,
    Number,
    Output,
    Plot,
    Table,
    Term,
    Value,
    Widget,
    register,
)
from lmlib.resources.chip import CHIPS, Chip
from lmlib.resources.units import DTYPE_BYTES

SECTION = "../chapters/05_kernels.html#sec-matmul"
SIDES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ACCUMULATOR_BYTES = 4  # sums are float32


def moved(m: int, n: int, k: int, block_m: int, block_n: int, size: int) -> int:
    """Bytes that all tiles read and write: each tile reads its strips of both inputs, and writes its result.

    A tile that hangs over the edge reads what exists.
    """
    tile_rows, tile_columns = -(-m // block_m), -(-n // block_n)
    return size * (m * k * tile_columns + k * n * tile_rows + m * n)


def least(m: int, n: int, k: int, size: int) -> int:
    """Bytes with everything read and written once, which an endless cache would allow."""
    return size * (m * k + k * n + m * n)


def calculate(
    chip: str, dtype: str, m: int, n: int, k: int, block_m: int, block_n: int, block_k: int, stages: int
) -> Sequence[Output]:
    """Traffic, intensity and bound of one tile, and of square tiles of other sizes beside it."""
    shown = CHIPS[chip]
    if dtype not in shown.device.peak:
        raise InputError("dtype", f"{shown.device.title} has no published peak in {dtype}.")
    size = int(DTYPE_BYTES[dtype])
    traffic = moved(m, n, k, block_m, block_n, size)
    flops = 2 * m * n * k
    peak, bandwidth = shown.device.peak_of(dtype), shown.device.bandwidth
    compute, memory = Fraction(flops, peak), Fraction(traffic, bandwidth)
    seconds = max(compute, memory)
    intensity = Fraction(flops, traffic)
    bound = "arithmetic" if compute >= memory else "memory"
    return [
        Value("Takes at least", float(seconds), "s", headline=True),
        Value("Bound by", bound, headline=True),
        Value("Intensity", float(intensity), "FLOPs/B", headline=True),
        Value("Ridge of the chip", peak / bandwidth, "FLOPs/B"),
        Value("Share of the peak", float(100 * compute / seconds), "%"),
        Value("Times the least traffic", float(Fraction(traffic, least(m, n, k, size)))),
        *_room(shown, block_m, block_n, block_k, stages, size),
        _plot(shown, dtype, m, n, k, block_m, block_n, size),
        _ledger(m, n, k, block_m, block_n, size),
        _square_tiles(shown, dtype, m, n, k, size),
        Note(
            "This counts what enters and leaves the SMs, as if all of it came from memory. Tiles that run at "
            "one time share strips through the L2 cache: a real kernel lies between this and the least."
        ),
    ]


def _room(chip: Chip, block_m: int, block_n: int, block_k: int, stages: int, size: int) -> list[Output]:
    """Whether the tile fits: strips in shared memory, the sums in registers."""
    strips = stages * (block_m + block_n) * block_k * size
    sums = ACCUMULATOR_BYTES * block_m * block_n
    registers = 4 * chip.registers_per_sm
    outputs: list[Output] = [
        Value("Shared memory for the strips", strips, "B", help="(BLOCK_M + BLOCK_N) · BLOCK_K · stages"),
        Value("Registers for the sums", sums, "B", help="BLOCK_M · BLOCK_N in float32"),
    ]
    if strips > chip.shared_per_sm:
        outputs.append(
            Note(f"The strips need more than the {chip.shared_per_sm:,} bytes that an SM offers.", "bad")
        )
    if sums > registers:
        outputs.append(Note(f"The sums need more than the {registers:,} bytes of an SM's registers.", "bad"))
    elif 2 * sums > registers:
        outputs.append(Note("The sums fill over half of an SM's registers: one tile at a time.", "warning"))
    return outputs


def _ledger(m: int, n: int, k: int, block_m: int, block_n: int, size: int) -> LedgerTable:
    tile_rows, tile_columns = -(-m // block_m), -(-n // block_n)
    return LedgerTable(
        "What is moved",
        [
            Term(
                "rows of a, once for each column of tiles",
                "m · k · ⌈n / BLOCK_N⌉ · bytes",
                {"m": m, "k": k, "tiles": tile_columns, "bytes": size},
                m * k * tile_columns * size,
                "B",
                section=SECTION,
            ),
            Term(
                "columns of b, once for each row of tiles",
                "k · n · ⌈m / BLOCK_M⌉ · bytes",
                {"k": k, "n": n, "tiles": tile_rows, "bytes": size},
                k * n * tile_rows * size,
                "B",
                section=SECTION,
            ),
            Term(
                "the result, written once",
                "m · n · bytes",
                {"m": m, "n": n, "bytes": size},
                m * n * size,
                "B",
                section=SECTION,
            ),
        ],
        "Bytes moved",
    )


def _square_tiles(chip: Chip, dtype: str, m: int, n: int, k: int, size: int) -> Table:
    peak, bandwidth = chip.device.peak_of(dtype), chip.device.bandwidth
    rows: list[list[str | int | float]] = []
    for side in SIDES:
        traffic = moved(m, n, k, side, side, size)
        compute, memory = Fraction(2 * m * n * k, peak), Fraction(traffic, bandwidth)
        share = 100 * compute / max(compute, memory)
        rows.append(
            [
                f"{side} × {side}",
                traffic,
                float(Fraction(2 * m * n * k, traffic)),
                "arithmetic" if compute >= memory else "memory",
                float(share),
            ]
        )
    return Table(
        "Square tiles of other sizes",
        ["Tile", "Bytes moved", "Intensity (FLOPs/B)", "Bound by", "Share of the peak (%)"],
        rows,
    )


def _plot(chip: Chip, dtype: str, m: int, n: int, k: int, block_m: int, block_n: int, size: int) -> Plot:
    peak, bandwidth = chip.device.peak_of(dtype), chip.device.bandwidth
    flops = 2 * m * n * k
    points = [flops / moved(m, n, k, side, side, size) for side in SIDES]
    here = flops / moved(m, n, k, block_m, block_n, size)
    ridge = peak / bandwidth
    low, high = min(*points, here) / 2, 4 * max(*points, here, ridge)
    reached = min(here * bandwidth, peak)
    return Plot(
        "The roofline, with tiles on it",
        f"Attainable FLOP/s over intensity on {chip.device.title}, rising to the ridge at {ridge:.4g} "
        f"FLOPs/B and flat beyond. Square tiles from 1 to 256 climb it; this tile is at {here:.4g} FLOPs/B.",
        [
            {
                "x": [low, ridge, high],
                "y": [low * bandwidth, peak, peak],
                "name": f"roof of {chip.device.title}",
                "mode": "lines",
            },
            {
                "x": points,
                "y": [min(point * bandwidth, peak) for point in points],
                "text": [f"{side} × {side}" for side in SIDES],
                "name": "square tiles, 1 to 256",
                "mode": "markers",
            },
            {
                "x": [here],
                "y": [reached],
                "name": "yours",
                "mode": "markers",
                "marker": {"size": 14, "color": "#d55e00", "symbol": "diamond"},
            },
        ],
        {
            "xaxis": {"type": "log", "title": {"text": "Intensity (FLOPs/B)"}},
            "yaxis": {"type": "log", "title": {"text": "FLOP/s"}, "exponentformat": "SI"},
        },
    )


def _size(name: str, label: str, default: int) -> Number:
    return Number(name, label, default, 1, 2**20, group="The product", help="Any size up to 1,048,576")


def _block(name: str, default: int, help_: str, most: int = 1024) -> Number:
    return Number(name, name.upper(), default, 1, most, group="The tile", help=help_)


register(
    Widget(
        name="kernels/matmul-tiles",
        title="Tiles of a matrix product",
        description=(
            "How the tile that one program computes decides the bytes moved, the intensity, and whether "
            "memory or arithmetic sets the time."
        ),
        inputs=(
            _size("m", "Rows of a", 8192),
            _size("n", "Columns of b", 8192),
            _size("k", "Columns of a, rows of b", 8192),
            _block("block_m", 64, "Rows of the tile of the result"),
            _block("block_n", 64, "Columns of the tile of the result"),
            _block("block_k", 64, "Width of the strips that are loaded at once"),
            _block("stages", 3, "Strips that are loaded ahead", 16),
            Choice("chip", "GPU", tuple((name, chip.device.title) for name, chip in CHIPS.items()), "h100"),
            Choice(
                "dtype", "dtype", tuple((dtype, dtype) for dtype in ("bf16", "fp16", "fp32", "fp8")), "bf16"
            ),
        ),
        compute=calculate,
        section=SECTION,
    )
)
