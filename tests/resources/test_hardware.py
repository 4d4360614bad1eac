"""The table of hardware: figures as published, relations between them, their sources, and the chips."""

import pytest
import torch

from lmlib.resources import ArgumentError
from lmlib.resources.chip import CHIPS, LEVELS, chip
from lmlib.resources.hardware import DEVICES, cpu, device, identify
from lmlib.resources.hardware_sources import FIGURES, NONE, SOURCES, UNREAD
from lmlib.resources.units import DTYPE_BYTES

PUBLISHED = [  # name, dtype, TFLOP/s as its maker prints it, whether that is with sparsity
    ("h100", "bf16", 1979, True),
    ("h100", "fp8", 3958, True),
    ("h100-pcie", "bf16", 1513, True),
    ("a100-80gb", "bf16", 624, True),
    ("a100-80gb", "tf32", 312, True),
    ("l4", "bf16", 242, True),
    ("l4", "fp8", 485, True),
    ("l4", "tf32", 120, True),
    ("b200", "bf16", 4500, True),
    ("gb200", "bf16", 5000, True),
    ("v100", "fp16", 125, False),
    ("t4", "fp16", 65, False),
    ("rtx-3090", "bf16", 71, False),
    ("rtx-4090", "bf16", 165.2, False),
    ("rtx-4090", "fp8", 330.3, False),
    ("mi300x", "bf16", 1307.4, False),
    ("tpu-v5p", "bf16", 459, False),
    ("tpu-v6e", "bf16", 918, False),
]


@pytest.mark.parametrize(("name", "dtype", "printed", "sparse"), PUBLISHED)
def test_peaks_are_dense(name, dtype, printed, sparse):
    ours = device(name).peak_of(dtype) / 10**12
    assert ours == pytest.approx(printed / (2 if sparse else 1), rel=0.005)


def test_peak_of_tensor_cores_is_sms_times_clock_times_operations():
    """An H100 does 1,024 FLOPs a cycle and tensor core, an A100 512, both with four of them in an SM."""
    h100, a100 = chip("h100"), chip("a100-80gb")
    assert h100.sms * 4 * 1024 * 1.83e9 == pytest.approx(device("h100").peak_of("bf16"), rel=0.001)
    assert a100.sms * 4 * 512 * 1.41e9 == pytest.approx(device("a100-80gb").peak_of("bf16"), rel=0.001)


@pytest.mark.parametrize("one", DEVICES.values(), ids=lambda one: one.name)
def test_narrower_dtypes_are_not_slower(one):
    peak = one.peak
    for wide, narrow in (("fp32", "tf32"), ("tf32", "bf16"), ("bf16", "fp8"), ("bf16", "int8")):
        if wide in peak and narrow in peak:
            assert peak[wide] <= peak[narrow]
    if "bf16" in peak and "fp16" in peak:
        assert peak["bf16"] == peak["fp16"]


@pytest.mark.parametrize("one", DEVICES.values(), ids=lambda one: one.name)
def test_memory_is_faster_than_links_and_links_than_the_network(one):
    assert one.bandwidth > one.link >= one.network
    assert one.source
    assert one.default_dtype in one.peak or not one.peak


def test_every_figure_has_a_source_or_says_that_it_has_none():
    assert SOURCES.keys() == DEVICES.keys()
    for name, figures in SOURCES.items():
        assert tuple(figures) == FIGURES
        one = DEVICES[name]
        for figure in ("link", "network", "power"):
            assert (figures[figure] == NONE) == (not getattr(one, figure)), (name, figure)
        assert (figures["peak"] == NONE) == (not one.peak)
    read = [source for figures in SOURCES.values() for source in figures.values() if source not in (NONE,)]
    assert sum(source == UNREAD for source in read) < len(read) / 2


def test_pytorchs_names_are_identified_whole():
    assert identify("NVIDIA H100 80GB HBM3") is device("h100")
    assert identify("nvidia  h200") is device("h200")
    assert identify("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    names = [name for one in DEVICES.values() for name in one.torch_names]
    assert len(names) == len(set(names))
    if torch.cuda.is_available():
        found = identify(torch.cuda.get_device_name())
        if found is not None:
            assert torch.cuda.get_device_properties(0).total_memory == pytest.approx(found.memory, rel=0.1)


def test_a_group_is_as_fast_as_its_slowest_link():
    h100 = device("H100 SXM")
    assert h100.rate(8) == 450 * 10**9
    assert h100.rate(9) == 50 * 10**9
    with pytest.raises(ArgumentError, match="reaches 8 devices, the group has 16"):
        device("l4").rate(16)


def test_unknown_devices_and_dtypes_are_refused_with_what_there_is():
    with pytest.raises(ArgumentError, match="nearest are") as refused:
        device("h1000")
    assert "h100" in str(refused.value)
    with pytest.raises(ArgumentError, match="it has bf16"):
        device("a100-80gb").peak_of("fp8")
    with pytest.raises(ArgumentError, match="must be a name"):
        device(100)  # type: ignore[arg-type]


def test_a_processor_is_cores_times_clock_times_lanes():
    assert cpu(2, 2.5, 32, 20, 8).peak_of("fp32") == 160 * 10**9
    with pytest.raises(ArgumentError, match="gigahertz"):
        cpu(2, 2500, 32, 20, 8)


# chips


@pytest.mark.parametrize("one", CHIPS.values(), ids=lambda one: one.name)
def test_a_chips_memories_grow_and_slow_down_outwards(one):
    registers = one.registers_per_sm * 4
    assert registers == 256 * 1024
    assert one.shared_per_sm < one.l1_per_sm
    assert one.sms * one.l1_per_sm < one.device.memory
    assert one.l2 < one.device.memory
    assert one.register_bytes.value == one.sms * registers
    if one.latency:
        assert tuple(one.latency) == LEVELS
        assert one.latency["shared"] < one.latency["l1"] < one.latency["l2"] < one.latency["global"]
    needed = {"sms", "registers_per_sm", "l1_per_sm", "shared_per_sm", "l2", "warps_per_sm"}
    assert needed <= one.sources.keys()


def test_bytes_in_flight_by_littles_law():
    ours = float(chip("h100").in_flight.value)
    assert ours == pytest.approx(3.35e12 * 478.8 / 1.98e9)
    with pytest.raises(ArgumentError, match="no latency"):
        chip("b200").in_flight  # noqa: B018
    with pytest.raises(ArgumentError, match="must be one of a100-80gb"):
        chip("h1000")


def test_bytes_of_a_dtype_are_pytorchs():
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
    names["fp8"] = torch.float8_e4m3fn
    for name, dtype in names.items():
        assert DTYPE_BYTES[name] == torch.empty(1, dtype=dtype).element_size()
