"""The table of hardware: figures as published, relations between them, their sources, and the chips."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lmlib.resources import ArgumentError
from lmlib.resources.chip import CHIPS, CLOCK_SOURCES, LEVELS, chip
from lmlib.resources.cost import cost
from lmlib.resources.hardware import DEVICES, Device, cpu, device, identify
from lmlib.resources.hardware_sources import ASSUMED, COMPUTED, NONE, PLACES, SOURCES
from lmlib.resources.roofline import matmul, roofline
from lmlib.resources.timing import utilisation
from lmlib.resources.units import DTYPE_BYTES, GIB

BIBLIOGRAPHY = Path(__file__).parents[2] / "book" / "references.bib"

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
BOTH_WAYS = [  # name, GB/s of one device's links to its node as its maker prints them, both directions added
    ("v100", 300),
    ("a100-40gb", 600),
    ("a100-80gb", 600),
    ("a100-pcie-80gb", 64),
    ("h100", 900),
    ("h100-pcie", 128),
    ("h800", 400),
    ("h200", 900),
    ("b200", 14_400 / 8),
    ("gb200", 130_000 / 72),
    ("mi300x", 7 * 128),
    ("tpu-v5e", 400),
    ("tpu-v5p", 1200),
    ("tpu-v6e", 800),
]
NETWORK = [  # name, devices of one node, its network cards, Gb/s of one card
    ("v100", 8, 4, 100),
    ("a100-80gb", 8, 8, 200),
    ("h100", 8, 8, 400),
    ("h200", 8, 8, 400),
    ("b200", 8, 8, 400),
    ("gb200", 4, 4, 400),
    ("mi300x", 8, 8, 400),
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


@pytest.mark.parametrize(("name", "printed"), BOTH_WAYS)
def test_links_are_of_one_direction(name, printed):
    assert device(name).link == pytest.approx(printed * 10**9 / 2, rel=0.005)


@pytest.mark.parametrize(("name", "devices", "cards", "gigabits"), NETWORK)
def test_network_is_a_devices_share_of_the_cards_in_bytes(name, devices, cards, gigabits):
    assert device(name).network == cards * gigabits * 10**9 / 8 / devices


def test_figures_that_are_computed_follow_from_what_their_source_names():
    computed = {
        ("rtx-5090", "fp32"): 21_760 * 2 * 2.407e9,
        ("rtx-5090", "tf32"): device("rtx-5090").peak_of("bf16") / 2,
        ("rtx-5090", "int8"): 3352e12 / 4,
        ("rtx-5090", "link"): 2 * 32e9,
        ("t4", "link"): 32e9 / 2,
        ("apple-m1", "bandwidth"): 128 / 8 * 4.266e9,
        ("apple-m2", "fp32"): 10 * 128 * 2 * 1.398e9,
        ("apple-m1-ultra", "fp32"): 64 * 128 * 2 * 1.296e9,
    }
    marked = {
        (name, figure)
        for name, figures in SOURCES.items()
        for figure, source in figures.items()
        if source.startswith(COMPUTED)
    }
    assert marked == computed.keys()
    for (name, figure), value in computed.items():
        assert _figure(device(name), figure) == pytest.approx(value, rel=0.015), (name, figure)


def test_memory_that_google_prints_is_in_gib():
    assert device("tpu-v4").memory == 32 * GIB
    assert device("tpu-v5p").memory == 95 * GIB
    assert device("h100").memory == 80 * 10**9


def _figure(one: Device, figure: str) -> int | None:
    return one.peak[figure] if figure in one.peak else getattr(one, figure)


@pytest.mark.parametrize("one", DEVICES.values(), ids=lambda one: one.name)
def test_every_figure_has_a_source_and_what_there_is_not_has_none(one):
    assert one.sources is SOURCES[one.name]
    assert one.sources.keys() == one.peak.keys() | set(PLACES)
    for figure, source in one.sources.items():
        absent = figure in PLACES and _figure(one, figure) in (None, 0, 1)
        assert (source == NONE) == absent, figure
        assert one.source_of(figure) == source


def _named(source: str) -> Iterator[str]:
    """What a source says that one can look up: keys of the bibliography and addresses."""
    yield from re.findall(r"\[([a-z0-9]+)\]", source)
    yield from re.findall(r"\b[\w.-]+\.(?:com|se|org)\b[\w./-]*", source)


def test_every_source_can_be_looked_up_or_is_marked_as_assumed():
    keys = set(re.findall(r"^@\w+\{([^,]+),", BIBLIOGRAPHY.read_text(), re.MULTILINE))
    sources = [
        *((name, figure, source) for name, of in SOURCES.items() for figure, source in of.items()),
        *((each.name, figure, source) for each in CHIPS.values() for figure, source in each.sources.items()),
        *((name, "clock", source) for name, source in CLOCK_SOURCES.items()),
    ]
    for name, figure, source in sources:
        for key in re.findall(r"\[([a-z0-9]+)\]", source):
            assert key in keys, (name, figure, key)
    followed = {  # by the names of the GPUs, by the figure beside it
        ("v100", "memory"),
        ("rtx-5090", "tf32"),
        ("rtx-5090", "int8"),
        ("rtx-5090", "link"),
        ("apple-m1", "bandwidth"),
    }
    for name, figure, source in sources:
        marked = source == NONE or ASSUMED.strip() in source or (name, figure) in followed
        assert marked or any(_named(source)), (name, figure, source)


def test_what_is_assumed_is_known_and_is_no_peak():
    """No peak, bandwidth or power is assumed, so that no MFU and no roof rests on a guess."""
    assumed = {
        (name, figure)
        for name, figures in SOURCES.items()
        for figure, source in figures.items()
        if source.startswith(ASSUMED)
    }
    cards = ("a100-pcie-80gb", "h100-pcie", "l4", "l40s", "a10", "rtx-3090", "rtx-4090", "rtx-5090")
    assert assumed == {
        *((name, "node_size") for name in cards),
        ("a100-pcie-80gb", "network"),
        ("h100-pcie", "network"),
        ("h100-pcie", "memory"),
        ("h800", "node_size"),
        ("h800", "network"),
        ("apple-m1", "memory"),
    }


def test_what_is_reckoned_with_a_figure_says_where_that_was_read():
    h100 = device("h100")
    roof = roofline(matmul(64, 64, 64, dtype="fp8"), h100)
    assert roof.compute.source == h100.source_of("fp8") != h100.source_of("bf16")
    assert roof.memory.source == h100.source_of("bandwidth")
    assert h100.source_of("fp8") in roof.ridge.source
    assert h100.source_of("bandwidth") in roof.ridge.source
    assert utilisation(10**15, 10, h100, 1, "bf16").source == h100.source_of("bf16")
    paid = cost(3600, h100, 8, price_per_hour=2)
    assert paid.energy is not None
    assert paid.energy.source == h100.source_of("power")
    assert paid.money.source == "a price that was put in"


def test_a_device_of_ones_own_has_one_source_for_all():
    own = cpu(2, 2.5, 32, 20, 8)
    assert own.source_of("fp32") == own.source_of("bandwidth") == own.source


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
    measured = [one.latency[level] for level in ("shared", "l1", "l2", "global") if level in one.latency]
    assert measured == sorted(measured)
    assert one.latency.keys() <= set(LEVELS)
    assert {f"latency {level}" for level in one.latency} == {
        name for name in one.sources if name.startswith("latency")
    }
    needed = {"sms", "registers_per_sm", "l1_per_sm", "shared_per_sm", "l2", "warps_per_sm"}
    assert needed <= one.sources.keys()


def test_bytes_in_flight_by_littles_law():
    ours = float(chip("h100").in_flight.value)
    assert ours == pytest.approx(3.35e12 * 700 / 1.98e9)
    for name in ("h200", "b200"):  # of the one no latency was read, of the other no clock
        with pytest.raises(ArgumentError, match="no latency or no clock"):
            chip(name).in_flight  # noqa: B018
    with pytest.raises(ArgumentError, match="must be one of a100-80gb"):
        chip("h1000")


def test_bytes_of_a_dtype_are_pytorchs():
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
    names["fp8"] = torch.float8_e4m3fn
    for name, dtype in names.items():
        assert DTYPE_BYTES[name] == torch.empty(1, dtype=dtype).element_size()
