"""What a GPU is made of: multiprocessors, and the memories from registers to HBM.

- Sizes are those of the product that is sold, not of the full die.
- Shared memory and L1 cache are one memory of each SM; ``shared_per_sm`` is the most that a kernel may take
  as shared memory, ``l1_per_sm`` the whole.
- Latencies are measured, in cycles, by pointer chasing: makers publish none. L1, L2 and main memory are of
  one program on all chips, so that they compare; shared memory is of others. Other programs give other
  figures: main memory of an H100 answers after 700 cycles by one, after 834 by another.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lmlib.resources.hardware import DEVICES, Device
from lmlib.resources.ledger import Term, derive
from lmlib.resources.units import KIB, MIB, ArgumentError

_BOOK = "How to scale your model, part 12 [scalingbook]"
_DEWING = "measured by Dewing, AI_kernels/latency [dewing]"
_MT4G_H100 = "reported by CUDA, in MT4G's sample of an H100 [mt4g]"
_MT4G_A100 = "reported by CUDA, in MT4G's sample of an A100 [mt4g]"
_ADA = "NVIDIA's guide to tuning for Ada, as quoted [adatuning]"
_CUDA = "reported by CUDA on a B200 [torchao4002]"
LEVELS = ("l1", "shared", "l2", "global")


@dataclass(frozen=True)
class Chip:
    """One GPU as a programmer meets it; bytes, and cycles of latency by level of ``LEVELS``.

    Args:
        name: as in ``hardware.DEVICES``.
        registers_per_sm: 32-bit registers. warps_per_sm: the most that are resident.
        tensor_memory_per_sm: memory of the tensor cores' own (Blackwell), 0 where there is none.
        latency: of the levels that a measurement was read of; empty where of none.
        sources: of each figure, by its name; of a latency, ``latency`` and its level.
    """

    name: str
    sms: int
    registers_per_sm: int
    l1_per_sm: int
    shared_per_sm: int
    l2: int
    warps_per_sm: int
    tensor_memory_per_sm: int
    latency: Mapping[str, float]
    sources: Mapping[str, str]

    @property
    def device(self) -> Device:
        """Its peaks, memory and bandwidth."""
        return DEVICES[self.name]

    @property
    def register_bytes(self) -> Term:
        """Bytes of all registers of the chip."""
        return derive(
            "registers",
            "sms * registers_per_sm * 4",
            "bytes",
            self.sources["registers_per_sm"],
            sms=self.sms,
            registers_per_sm=self.registers_per_sm,
        )

    @property
    def in_flight(self) -> Term:
        """Bytes that must be on their way to keep memory busy: bandwidth times latency (Little's law).

        Raises:
            ArgumentError: where no latency is known, or no clock to turn cycles into seconds.
        """
        if "global" not in self.latency or self.name not in CLOCKS:
            raise ArgumentError("chip", f"no latency or no clock is known of {self.device.title}")
        sources = (
            self.device.source_of("bandwidth"),
            self.sources["latency global"],
            CLOCK_SOURCES[self.name],
        )
        return derive(
            "bytes in flight",
            "bandwidth * cycles / clock",
            "bytes",
            "; ".join(sources),
            bandwidth=self.device.bandwidth,
            cycles=self.latency["global"],
            clock=CLOCKS[self.name],
        )


CLOCKS = {"a100-80gb": 1_410_000_000, "h100": 1_980_000_000, "h200": 1_980_000_000}  # the highest, Hz
CLOCK_SOURCES = {
    "a100-80gb": f"clock {_MT4G_A100}",
    "h100": f"clock {_MT4G_H100}",
    "h200": "clock assumed: as the H100, whose chip it has",
}


def _latencies(l1: float, l2: float, main: float) -> dict[str, float]:
    return {"l1": l1, "l2": l2, "global": main}


_CYCLES = {f"latency {level}": _DEWING for level in ("l1", "l2", "global")}
_SIZES = {"sms": _BOOK, "l1_per_sm": _BOOK, "l2": _BOOK}

_ALL = (
    Chip(
        "a100-80gb",
        108,
        65_536,
        192 * KIB,
        164 * KIB,
        40 * MIB,
        64,
        0,
        {"shared": 23, **_latencies(39, 210, 550)},
        {
            **_SIZES,
            **dict.fromkeys(("registers_per_sm", "shared_per_sm", "warps_per_sm"), _MT4G_A100),
            **_CYCLES,
            "latency shared": "measured by Abdelkhalik et al., table 4, a load, as quoted [abdelkhalik2022]",
        },
    ),
    Chip(
        "h100",
        132,
        65_536,
        256 * KIB,
        228 * KIB,
        50 * MIB,
        64,
        0,
        {"shared": 29.9, **_latencies(40, 291, 700)},
        {
            **_SIZES,
            **dict.fromkeys(("registers_per_sm", "shared_per_sm", "warps_per_sm"), _MT4G_H100),
            **_CYCLES,
            "latency shared": "measured by MT4G [mt4g]",
        },
    ),
    Chip(
        "h200",
        132,
        65_536,
        256 * KIB,
        228 * KIB,
        50 * MIB,
        64,
        0,
        {},
        {
            **_SIZES,
            **dict.fromkeys(
                ("registers_per_sm", "shared_per_sm", "warps_per_sm"),
                f"of an H100, whose chip it has; {_MT4G_H100}",
            ),
        },
    ),
    Chip(
        "b200",
        148,
        65_536,
        256 * KIB,
        228 * KIB,
        126 * MIB,
        64,
        256 * KIB,
        _latencies(40, 295, 860),
        {
            "registers_per_sm": _CUDA,
            "shared_per_sm": _CUDA,
            "warps_per_sm": _CUDA,
            "sms": f"{_BOOK}; {_CUDA}",
            "l1_per_sm": f"{_BOOK}; {_DEWING.replace('measured', 'stated')}",
            "l2": f"{_BOOK}; {_CUDA}: 126.5 MiB",
            "tensor_memory_per_sm": _BOOK,
            **_CYCLES,
        },
    ),
    Chip(
        "rtx-4090",
        128,
        65_536,
        128 * KIB,
        100 * KIB,
        72 * MIB,
        48,
        0,
        {"shared": 30.1, **_latencies(40, 296, 636)},
        {
            "sms": "Tom's Hardware's table, as quoted at holynerdvana.blogspot.com",
            "registers_per_sm": "thefpsreview.com: 256 KB",
            "l1_per_sm": _ADA,
            "shared_per_sm": _ADA,
            "l2": "Tom's Hardware's table, as quoted at holynerdvana.blogspot.com; stated by Dewing [dewing]",
            "warps_per_sm": _ADA,
            **_CYCLES,
            "latency shared": "measured by Luo et al., table 3, as quoted [luo2025]",
        },
    ),
)

CHIPS: dict[str, Chip] = {chip.name: chip for chip in _ALL}


def chip(name: str) -> Chip:
    """The chip of that name.

    Raises:
        ArgumentError: for one that is not in the table, which lists what is.
    """
    if name not in CHIPS:
        raise ArgumentError("chip", f"must be one of {', '.join(CHIPS)}; got {name!r}")
    return CHIPS[name]
