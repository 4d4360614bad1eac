"""The picture of a chip: its memories from registers to HBM, their sizes, bandwidths and latencies.

Every figure comes with where it was read. What was not read, but assumed, says so, and a figure that
nobody published is left out rather than guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from lmlib.book.declare import (
    Choice,
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
from lmlib.book.quantities import readable
from lmlib.resources.chip import CHIPS, CLOCK_SOURCES, CLOCKS, Chip
from lmlib.resources.hardware_sources import ASSUMED
from lmlib.resources.units import MIB

SECTION = "../chapters/05_kernels.html#sec-chip"
BANKS, BANK_BYTES = 32, 4  # shared memory serves one word of each bank in a cycle
_BANKS_SOURCE = "32 banks of 4 bytes a cycle: CUDA C++ Programming Guide, as quoted [cudaguide]"


@dataclass(frozen=True)
class Level:
    """One memory of a chip: bytes of all its parts together, and of one part; ``None`` where unpublished."""

    name: str
    size: int
    parts: int
    size_source: str
    bandwidth: int | None
    bandwidth_source: str
    cycles: float | None
    cycles_source: str

    @property
    def each(self) -> int:
        """Bytes of one part: what one SM has, or all of it."""
        return self.size // self.parts


def levels(chip: Chip) -> list[Level]:
    """The memories of a chip, from the nearest to the farthest."""
    source, device, latency = chip.sources, chip.device, chip.latency
    banks = chip.sms * BANKS * BANK_BYTES * CLOCKS[chip.name] if chip.name in CLOCKS else None
    tensor = chip.sms * chip.tensor_memory_per_sm
    found = [
        Level(
            "Registers",
            int(chip.register_bytes.value),
            chip.sms,
            source["registers_per_sm"],
            None,
            "",
            None,
            "",
        ),
        Level(
            "Shared memory",
            chip.sms * chip.shared_per_sm,
            chip.sms,
            source["shared_per_sm"],
            banks,
            f"{_BANKS_SOURCE}; {CLOCK_SOURCES[chip.name]}" if banks else "",
            latency.get("shared"),
            source.get("latency shared", ""),
        ),
        Level(
            "L1 (holds shared memory)",
            chip.sms * chip.l1_per_sm,
            chip.sms,
            source["l1_per_sm"],
            None,
            "",
            latency.get("l1"),
            source.get("latency l1", ""),
        ),
        Level("L2", chip.l2, 1, source["l2"], None, "", latency.get("l2"), source.get("latency l2", "")),
        Level(
            "HBM" if chip.name != "rtx-4090" else "GDDR",
            chip.device.memory,
            1,
            device.source_of("memory"),
            chip.device.bandwidth,
            device.source_of("bandwidth"),
            latency.get("global"),
            source.get("latency global", ""),
        ),
    ]
    if tensor:
        sized = source["tensor_memory_per_sm"]
        found.insert(1, Level("Tensor memory", tensor, chip.sms, sized, None, "", None, ""))
    return found


def was_read(source: str) -> bool:
    """Whether a figure was read in the source that it names."""
    return bool(source) and ASSUMED.strip(": ") not in source


def _with_source(source: str) -> str:
    if not source:
        return "no figure read"
    return source if was_read(source) else f"not read: {source}"


def picture(chip: str, beside: str, tensor: float) -> Sequence[Output]:
    """Sizes, bandwidths and latencies of one chip beside another, and where a tensor fits."""
    shown = CHIPS[chip]
    found = levels(shown)
    size = round(tensor * MIB)
    on_chip = found[:-1]
    holding = next((level for level in on_chip if level.size >= size), None)
    seconds = Fraction(size, shown.device.bandwidth)
    title, outer = shown.device.title, found[-1]
    if holding:
        fits = f"All of it would fit into {_article(holding.name)} of {title} taken together."
    elif size <= outer.size:
        fits = f"No memory on the chip holds it: it lives in {outer.name} and is streamed through."
    else:
        fits = f"It is larger than the {outer.name} of {title}."
    return [
        Value("Reading your tensor once takes at least", float(seconds), "s", headline=True),
        Value("All registers together", found[0].size, "B"),
        Value("SMs", shown.sms),
        Value("Warps that one SM keeps ready", shown.warps_per_sm),
        Note(fits, "info" if holding else "warning"),
        _sizes_plot(shown, found, CHIPS[beside]),
        *_latency_outputs(shown, found),
        _table(found),
        _sources(found),
    ]


def _article(name: str) -> str:
    return {"Registers": "the registers", "L2": "the L2 cache"}.get(
        name, "the " + name[:1].lower() + name[1:]
    )


def _sizes_plot(chip: Chip, found: Sequence[Level], other: Chip) -> Plot:
    pairs = [(chip, found)] if chip is other else [(chip, found), (other, levels(other))]
    listed = "; ".join(f"{level.name} {readable(level.size, 'B')}" for level in found)
    return Plot(
        "Bytes of each memory, the whole chip together",
        f"Horizontal bars on a logarithmic axis. {chip.device.title}: {listed}.",
        [
            {
                "type": "bar",
                "orientation": "h",
                "y": [level.name for level in reversed(each)],
                "x": [level.size for level in reversed(each)],
                "name": one.device.title,
            }
            for one, each in pairs
        ],
        {"xaxis": {"type": "log", "title": {"text": "Bytes"}}, "yaxis": {"title": {"text": ""}}},
    )


def _latency_outputs(chip: Chip, found: Sequence[Level]) -> list[Output]:
    known = [level for level in found if level.cycles is not None]
    if not known:
        return [Note(f"No measured latency of {chip.device.title} was read; makers publish none.", "warning")]
    outputs: list[Output] = [
        Plot(
            "Cycles from asking to getting",
            "Horizontal bars of latency in cycles: "
            + ", ".join(f"{level.name} {level.cycles:g}" for level in known)
            + ".",
            [
                {
                    "type": "bar",
                    "orientation": "h",
                    "y": [level.name for level in reversed(known)],
                    "x": [level.cycles for level in reversed(known)],
                }
            ],
            {"xaxis": {"title": {"text": "Latency (cycles)"}}, "yaxis": {"title": {"text": ""}}},
        )
    ]
    if chip.name in CLOCKS:
        term = chip.in_flight
        value = Fraction(term.value)
        outputs.append(
            LedgerTable(
                "Bytes that must be on their way to keep memory busy",
                [
                    Term(
                        term.name,
                        term.formula,
                        term.numbers,
                        round(value),
                        "B",
                        _with_source(term.source),
                        SECTION,
                    )
                ],
                "Bandwidth times latency",
            )
        )
    return outputs


def _table(found: Sequence[Level]) -> Table:
    return Table(
        "The memories, from the nearest to the farthest",
        ["Memory", "Bytes of one", "How many", "Bytes together", "Bandwidth (GB/s)", "Latency (cycles)"],
        [
            [
                level.name,
                level.each,
                level.parts,
                level.size,
                "no figure read" if level.bandwidth is None else round(level.bandwidth / 10**9),
                "no figure read" if level.cycles is None else level.cycles,
            ]
            for level in found
        ],
    )


def _sources(found: Sequence[Level]) -> Table:
    rows: list[list[str]] = []
    for level in found:
        rows.append([level.name, "size", _with_source(level.size_source)])
        if level.bandwidth is not None:
            rows.append([level.name, "bandwidth", _with_source(level.bandwidth_source)])
        if level.cycles is not None:
            rows.append([level.name, "latency", _with_source(level.cycles_source)])
    return Table("Where each figure was read", ["Memory", "Figure", "Source"], rows)


_CHOICES = tuple((name, chip.device.title) for name, chip in CHIPS.items())

register(
    Widget(
        name="kernels/chip",
        title="The memories of a GPU",
        description=(
            "Sizes, bandwidths and latencies from the registers to the memory beside the chip, each with "
            "where it was read, and how far a tensor of yours gets in."
        ),
        inputs=(
            Choice("chip", "GPU", _CHOICES, "h100"),
            Choice("beside", "Beside it", _CHOICES, "a100-80gb"),
            Number(
                "tensor",
                "Your tensor",
                128,
                0.001,
                10**6,
                unit="MiB",
                integer=False,
                help="16,384 × 4,096 numbers of bf16 are 128 MiB",
            ),
        ),
        compute=picture,
        section=SECTION,
    )
)
