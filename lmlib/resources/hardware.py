"""Accelerators: what their makers say they can do.

- Peaks are *dense*. Data sheets print twice as much with 2:4 sparsity, which no training run uses, and
  an MFU against the sparse figure is half of what it should be.
- For GeForce cards the peak is that with accumulation in fp32; with fp16 it is twice as high.
- Interconnects are in bytes per second that one device sends, in one direction. Data sheets print both
  directions added up.
- Memory is what the maker prints, and a GB is 10⁹ bytes. A GPU has more: CUDA reports 85.2 GB of an H100
  that is sold as 80. Only Google prints GiB.
- ``Device.source_of`` says of each figure where it was read, or that it was not and is assumed.
- A device that is not in the table has no peak: ``identify`` gives ``None``, and no MFU is better than a
  wrong one. Prices are inputs, never in the table.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from lmlib.resources.hardware_sources import SOURCES
from lmlib.resources.units import GIB, ArgumentError, Number, check_integer, check_number

TERA = 10**12
GIGA = 10**9
LARGEST_RATE = 10**21  # FLOP/s or bytes/s of one device


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Args:
        peak: dense FLOP/s by dtype; a dtype that it has no units for is absent.
        bandwidth: bytes/s between memory and chip.
        memory: bytes.
        link: bytes/s that it sends to others of its node (NVLink, Infinity Fabric, ICI, PCIe).
        node_size: devices of one node, which reach each other at ``link``.
        network: bytes/s that it sends out of its node: one network card a device, as in the reference
            design of its maker; 0 where it has none.
        power: watts, the maker's limit for the board; ``None`` where unpublished.
        torch_names: what ``torch.cuda.get_device_name`` says on it.
        sources: where each figure was read, by its name; peaks by dtype.

    Raises:
        ArgumentError: for a figure out of bounds.
    """

    name: str
    title: str
    peak: Mapping[str, int]
    bandwidth: int
    memory: int
    source: str
    link: int = 0
    node_size: int = 1
    network: int = 0
    power: int | None = None
    torch_names: tuple[str, ...] = field(default=())
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for dtype, flops in self.peak.items():
            check_integer(f"peak[{dtype}]", flops, 1, LARGEST_RATE)
        check_integer("bandwidth", self.bandwidth, 1, LARGEST_RATE)
        check_integer("memory", self.memory, 1, 10**15)
        check_integer("link", self.link, 0, LARGEST_RATE)
        check_integer("network", self.network, 0, LARGEST_RATE)
        check_integer("node_size", self.node_size, 1, 2**16)
        if self.power is not None:
            check_integer("power", self.power, 1, 10**6)

    def peak_of(self, dtype: str) -> int:
        """Dense FLOP/s for ``dtype``.

        Raises:
            ArgumentError: if the maker publishes none; the message lists those it does.
        """
        if dtype not in self.peak:
            known = ", ".join(self.peak) or "none: its maker publishes no FLOP/s"
            raise ArgumentError("dtype", f"{self.title} has no published peak for {dtype!r}; it has {known}")
        return self.peak[dtype]

    @property
    def default_dtype(self) -> str:
        """What one trains in: bf16 where there are units for it, or else fp16, or else fp32."""
        return next((dtype for dtype in ("bf16", "fp16", "fp32") if dtype in self.peak), "bf16")

    def source_of(self, figure: str) -> str:
        """Where ``figure`` was read: a dtype, for its peak, or ``bandwidth``, ``memory``, ``power``, ..."""
        return self.sources.get(figure, self.source)

    def rate(self, group: int) -> int:
        """Bytes/s that one device of a group of neighbours sends: the slowest link of the ring.

        Raises:
            ArgumentError: if the group is larger than a node and the device has no network.
        """
        if group <= self.node_size:
            return self.link
        if not self.network:
            raise ArgumentError(
                "device", f"{self.title} reaches {self.node_size} devices, the group has {group}"
            )
        return self.network


def _peaks(**teraflops: float) -> dict[str, int]:
    return {dtype: round(value * TERA) for dtype, value in teraflops.items()}


def _device(
    name: str,
    title: str,
    peaks: dict[str, int],
    gb_per_s: float,
    gb: float,
    source: str,
    *,
    link: float = 0,
    node: int = 1,
    network: float = 0,
    watts: int | None = None,
    torch_names: tuple[str, ...] = (),
) -> Device:
    return Device(
        name,
        title,
        peaks,
        round(gb_per_s * GIGA),
        round(gb * GIGA),
        source,
        round(link * GIGA),
        node,
        round(network * GIGA),
        watts,
        torch_names,
        SOURCES[name],
    )


_V100 = "NVIDIA V100 data sheet; DGX-1: four 100 Gb/s network cards for 8 GPUs"
_A100 = "NVIDIA A100 data sheet; DGX A100: one 200 Gb/s network card a GPU"
_H100 = "NVIDIA H100 data sheet; DGX H100: one 400 Gb/s network card a GPU"
_ADA = "NVIDIA Ada GPU architecture white paper, appendix A"
_TPU = "Google Cloud TPU documentation"
_PEAKS_A100 = _peaks(bf16=312, fp16=312, tf32=156, fp32=19.5, int8=624)
_PEAKS_H100 = _peaks(bf16=989.4, fp16=989.4, tf32=494.7, fp32=66.9, fp8=1978.9, int8=1978.9)

_ALL = (
    _device(
        "v100",
        "V100 SXM2 32 GB",
        _peaks(fp16=125, fp32=15.7),
        900,
        32,
        _V100,
        link=150,
        node=8,
        network=6.25,
        watts=300,
        torch_names=("Tesla V100-SXM2-32GB",),
    ),
    _device(
        "v100-16gb",
        "V100 SXM2 16 GB",
        _peaks(fp16=125, fp32=15.7),
        900,
        16,
        _V100,
        link=150,
        node=8,
        network=6.25,
        watts=300,
        torch_names=("Tesla V100-SXM2-16GB",),
    ),
    _device(
        "t4",
        "T4",
        _peaks(fp16=65, fp32=8.1, int8=130),
        320,
        16,
        "NVIDIA T4 data sheet",
        link=16,
        watts=70,
        torch_names=("Tesla T4",),
    ),
    _device(
        "a100-40gb",
        "A100 SXM 40 GB",
        _PEAKS_A100,
        1555,
        40,
        _A100,
        link=300,
        node=8,
        network=25,
        watts=400,
        torch_names=("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
    ),
    _device(
        "a100-80gb",
        "A100 SXM 80 GB",
        _PEAKS_A100,
        2039,
        80,
        _A100,
        link=300,
        node=8,
        network=25,
        watts=400,
        torch_names=("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
    ),
    _device(
        "a100-pcie-80gb",
        "A100 PCIe 80 GB",
        _PEAKS_A100,
        1935,
        80,
        _A100,
        link=32,
        node=8,
        network=25,
        watts=300,
        torch_names=("NVIDIA A100 80GB PCIe",),
    ),
    _device(
        "h100",
        "H100 SXM",
        _PEAKS_H100,
        3350,
        80,
        _H100,
        link=450,
        node=8,
        network=50,
        watts=700,
        torch_names=("NVIDIA H100 80GB HBM3",),
    ),
    _device(
        "h100-pcie",
        "H100 PCIe",
        _peaks(bf16=756, fp16=756, tf32=378, fp32=51.2, fp8=1513, int8=1513),
        2000,
        80,
        _H100,
        link=64,
        node=8,
        network=50,
        watts=350,
        torch_names=("NVIDIA H100 PCIe",),
    ),
    _device(
        "h800",
        "H800 SXM",
        _PEAKS_H100,
        3350,
        80,
        "as H100, with NVLink of 400 GB/s both ways",
        link=200,
        node=8,
        network=50,
        watts=700,
        torch_names=("NVIDIA H800",),
    ),
    _device(
        "h200",
        "H200 SXM",
        _PEAKS_H100,
        4800,
        141,
        "NVIDIA H200 data sheet; compute as in the H100",
        link=450,
        node=8,
        network=50,
        watts=700,
        torch_names=("NVIDIA H200",),
    ),
    _device(
        "b200",
        "B200",
        _peaks(bf16=2250, fp16=2250, tf32=1125, fp32=75, fp8=4500, int8=4500),
        7700,
        180,
        "NVIDIA HGX B200, per GPU",
        link=900,
        node=8,
        network=50,
        watts=1000,
        torch_names=("NVIDIA B200",),
    ),
    _device(
        "gb200",
        "GB200 (NVL72)",
        _peaks(bf16=2500, fp16=2500, tf32=1250, fp32=80, fp8=5000, int8=5000),
        8000,
        186,
        "NVIDIA GB200 NVL72 data sheet, per GPU",
        link=900,
        node=72,
        network=50,
        watts=1200,
        torch_names=("NVIDIA GB200",),
    ),
    _device(
        "l4",
        "L4",
        _peaks(bf16=121, fp16=121, tf32=60, fp32=30.3, fp8=242.5, int8=242.5),
        300,
        24,
        "NVIDIA L4 data sheet, half of the figures with sparsity",
        link=32,
        node=8,
        watts=72,
        torch_names=("NVIDIA L4",),
    ),
    _device(
        "l40s",
        "L40S",
        _peaks(bf16=362.05, fp16=362.05, tf32=183, fp32=91.6, fp8=733, int8=733),
        864,
        48,
        "NVIDIA L40S data sheet",
        link=32,
        node=8,
        watts=350,
        torch_names=("NVIDIA L40S",),
    ),
    _device(
        "a10",
        "A10",
        _peaks(bf16=125, fp16=125, tf32=62.5, fp32=31.2, int8=250),
        600,
        24,
        "NVIDIA A10 data sheet",
        link=32,
        node=8,
        watts=150,
        torch_names=("NVIDIA A10",),
    ),
    _device(
        "rtx-3090",
        "GeForce RTX 3090",
        _peaks(bf16=71, fp16=71, tf32=35.6, fp32=35.6, int8=284),
        936,
        24,
        "NVIDIA Ampere GA102 white paper, appendix A",
        link=32,
        node=8,
        watts=350,
        torch_names=("NVIDIA GeForce RTX 3090", "GeForce RTX 3090"),
    ),
    _device(
        "rtx-4090",
        "GeForce RTX 4090",
        _peaks(bf16=165.2, fp16=165.2, tf32=82.6, fp32=82.6, fp8=330.3, int8=660.6),
        1008,
        24,
        _ADA,
        link=32,
        node=8,
        watts=450,
        torch_names=("NVIDIA GeForce RTX 4090",),
    ),
    _device(
        "rtx-5090",
        "GeForce RTX 5090",
        _peaks(bf16=209.5, fp16=209.5, tf32=104.8, fp32=104.8, fp8=419, int8=838),
        1792,
        32,
        "NVIDIA RTX Blackwell GPU architecture white paper, appendix A",
        link=64,
        node=8,
        watts=575,
        torch_names=("NVIDIA GeForce RTX 5090",),
    ),
    _device(
        "mi300x",
        "Instinct MI300X",
        _peaks(bf16=1307.4, fp16=1307.4, tf32=653.7, fp32=163.4, fp8=2614.9, int8=2614.9),
        5300,
        192,
        "AMD Instinct MI300X; seven Infinity Fabric links of 64 GB/s each way",
        link=448,
        node=8,
        network=50,
        watts=750,
        torch_names=("AMD Instinct MI300X", "AMD Instinct MI300X OAM"),
    ),
    _device(
        "tpu-v4",
        "TPU v4",
        _peaks(bf16=275, int8=275),
        1200,
        32 * GIB / GIGA,
        _TPU,
        link=270,
        node=4096,
        network=6.25,
        watts=192,
    ),
    _device(
        "tpu-v5e", "TPU v5e", _peaks(bf16=197, int8=394), 819, 16, _TPU, link=200, node=256, network=3.125
    ),
    _device(
        "tpu-v5p",
        "TPU v5p",
        _peaks(bf16=459, int8=918),
        2765,
        95 * GIB / GIGA,
        _TPU,
        link=600,
        node=8960,
        network=6.25,
    ),
    _device(
        "tpu-v6e",
        "TPU v6e",
        _peaks(bf16=918, int8=1836),
        1640,
        32,
        _TPU,
        link=400,
        node=256,
        network=12.5,
    ),
    _device(
        "apple-m1",
        "Apple M1, GPU of 8 cores",
        _peaks(fp32=2.6),
        68.25,
        16,
        "Apple, M1 announcement, 10 November 2020",
    ),
    _device(
        "apple-m2",
        "Apple M2, GPU of 10 cores",
        _peaks(fp32=3.6),
        100,
        24,
        "Apple, M2 announcement, 6 June 2022",
    ),
    _device(
        "apple-m1-ultra",
        "Apple M1 Ultra, GPU of 64 cores",
        _peaks(fp32=21),
        800,
        128,
        "Apple, M1 Ultra announcement, 8 March 2022",
    ),
    _device(
        "apple-m4-max",
        "Apple M4 Max, GPU of 40 cores",
        {},
        546,
        128,
        "Apple, M4 Max announcement, 30 October 2024, which gives no FLOP/s",
    ),
)

DEVICES: dict[str, Device] = {device.name: device for device in _ALL}
_BY_TORCH_NAME = {name.lower(): device for device in _ALL for name in device.torch_names}


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_BY_KEY = {_key(spelling): device for device in _ALL for spelling in (device.name, device.title)}


def device(name: str) -> Device:
    """The device of that name, loosely spelt (``h100``, ``H100 SXM``).

    Raises:
        ArgumentError: for a name that is not in the table; the message lists the nearest ones.
    """
    if not isinstance(name, str):
        raise ArgumentError("device", f"must be a name, got {name!r}")
    found = _BY_KEY.get(_key(name))
    if found is None:
        near = get_close_matches(_key(name), list(_BY_KEY), n=5, cutoff=0.4)
        names = dict.fromkeys(_BY_KEY[key].name for key in near) or DEVICES
        listed = "nearest" if near else "known"
        raise ArgumentError("device", f"there is no device {name!r}; the {listed} are {', '.join(names)}")
    return found


def identify(torch_name: str) -> Device | None:
    """The device that calls itself ``torch_name``, or ``None``; no part of a name is taken for the whole.

    A "GeForce RTX 4090 Laptop GPU" is not a GeForce RTX 4090.
    """
    return _BY_TORCH_NAME.get(" ".join(torch_name.lower().split()))


def cpu(cores: int, gigahertz: Number, flops_per_cycle: int, gb_per_s: Number, memory_gb: Number) -> Device:
    """A processor: cores times clock times FLOPs a cycle, in fp32.

    Args:
        flops_per_cycle: of one core: vector units times lanes times 2 for a fused multiply-add, so 32
            for two AVX2 units, 64 for two of AVX-512.
    """
    check_integer("cores", cores, 1, 4096)
    check_integer("flops_per_cycle", flops_per_cycle, 1, 2**16)
    check_number("gigahertz", gigahertz, 0.1, 10)
    check_number("gb_per_s", gb_per_s, 0.1, 10_000)
    check_number("memory_gb", memory_gb, 0.1, 10**5)
    peak = round(cores * gigahertz * GIGA * flops_per_cycle)
    return Device(
        "cpu",
        f"CPU, {cores} cores at {float(gigahertz):g} GHz",
        {"fp32": peak},
        round(gb_per_s * GIGA),
        round(memory_gb * GIGA),
        "cores × clock × FLOPs a cycle",
    )
