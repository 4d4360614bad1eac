"""What a GPU is made of: multiprocessors, and the memories from registers to HBM.

- Sizes are those of the product that is sold, not of the full die.
- Shared memory and L1 cache are one memory of each SM; ``shared_per_sm`` is the most that a kernel may take
  as shared memory, ``l1_per_sm`` the whole.
- Latencies are measured, in cycles, by pointer chasing: makers publish none, and other methods give others.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lmlib.resources.hardware import DEVICES, Device
from lmlib.resources.ledger import Term, derive
from lmlib.resources.units import KIB, MIB, ArgumentError

_BOOK = "How to scale your model, part 12 (jax-ml/scaling-book)"
_WHITE = "NVIDIA white papers' tables of compute capability, in transcriptions"
_LUO = (
    "Luo et al. 2024, arXiv:2402.13499 (A100 and H100 PCIe, RTX 4090); read were its title and abstract, "
    "the cycles are from memory"
)
LEVELS = ("l1", "shared", "l2", "global")


@dataclass(frozen=True)
class Chip:
    """One GPU as a programmer meets it; bytes, and cycles of latency by level of ``LEVELS``.

    Args:
        name: as in ``hardware.DEVICES``.
        registers_per_sm: 32-bit registers. warps_per_sm: the most that are resident.
        tensor_memory_per_sm: memory of the tensor cores' own (Blackwell), 0 where there is none.
        latency: empty where no measurement is known to us.
        sources: of each figure, by its name.
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
            sms=self.sms,
            registers_per_sm=self.registers_per_sm,
        )

    @property
    def in_flight(self) -> Term:
        """Bytes that must be on their way to keep memory busy: bandwidth times latency (Little's law).

        Raises:
            ArgumentError: where no latency is known, or no clock to turn cycles into seconds.
        """
        if not self.latency or self.name not in CLOCKS:
            raise ArgumentError("chip", f"no latency is known of {self.device.title}")
        return derive(
            "bytes in flight",
            "bandwidth * cycles / clock",
            "bytes",
            _LUO,
            bandwidth=self.device.bandwidth,
            cycles=self.latency["global"],
            clock=CLOCKS[self.name],
        )


CLOCKS = {"a100-80gb": 1_410_000_000, "h100": 1_980_000_000, "h200": 1_980_000_000}  # the highest, Hz

_SIZES = {"sms": _BOOK, "l1_per_sm": _BOOK, "l2": _BOOK, "registers_per_sm": f"{_BOOK}; {_WHITE}"}
_CAPABILITY = {"shared_per_sm": _WHITE, "warps_per_sm": _WHITE}
_CUDA = "what CUDA reports on a B200, pytorch/ao pull request 4002"
_HOPPER = {"l1": 40.7, "shared": 29.0, "l2": 263.0, "global": 478.8}

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
        {"l1": 37.9, "shared": 29.0, "l2": 261.5, "global": 466.3},
        {**_SIZES, **_CAPABILITY, "latency": _LUO},
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
        _HOPPER,
        {**_SIZES, **_CAPABILITY, "latency": _LUO},
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
        _HOPPER,
        {**_SIZES, **_CAPABILITY, "latency": f"taken over from the H100: {_LUO}"},
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
        {},
        {
            **_SIZES,
            "shared_per_sm": _CUDA,
            "warps_per_sm": _CUDA,
            "sms": f"{_BOOK}; {_CUDA}",
            "l2": f"{_BOOK}; {_CUDA}",
            "tensor_memory_per_sm": _BOOK,
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
        {"l1": 43.4, "shared": 30.1, "l2": 273.0, "global": 541.5},
        {
            "sms": "thefpsreview.com: 16,384 CUDA cores, 128 an SM",
            "registers_per_sm": "thefpsreview.com: 256 KB",
            "l1_per_sm": "thefpsreview.com",
            "shared_per_sm": "from memory of the CUDA programming guide, compute capability 8.9",
            "l2": "from memory of the Ada white paper, appendix A",
            "warps_per_sm": "docs.rs, oxicuda-launch: 1,536 threads",
            "latency": _LUO,
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
