"""The widgets of chapter 5: figures that agree with the tables, sources beside them, and relations."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlib.book import forms
from lmlib.book.declare import Note, Table, Value, get
from lmlib.book.widgets.kernels_chip import levels, was_read
from lmlib.book.widgets.kernels_matmul_tiles import least, moved
from lmlib.resources.chip import CHIPS
from lmlib.resources.hardware import DEVICES

CHIP, TILES = "kernels/chip", "kernels/matmul-tiles"


def _outputs(name: str, **entries: object) -> list:
    outputs, _, errors = get(name).outputs({key: str(value) for key, value in entries.items()})
    assert not errors, errors
    return list(outputs)


def _value(outputs: list, label: str):
    return next(each.value for each in outputs if isinstance(each, Value) and each.label == label)


@pytest.mark.parametrize("name", [CHIP, TILES])
def test_the_form_stands_with_its_answer(name: str) -> None:
    assert "lm-outputs" in forms.form_html(get(name))
    assert get(name).section.startswith("../chapters/05_kernels.html#sec-")


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("tensor", ["0.001", "20", "128", "1000000"])
def test_every_chip_answers_and_sources_every_figure(chip: str, tensor: str) -> None:
    outputs = _outputs(CHIP, chip=chip, beside="h200", tensor=tensor)
    memories, sources = (each for each in outputs if isinstance(each, Table))
    assert {row[0] for row in memories.rows} == {row[0] for row in sources.rows}
    figures = sum(not isinstance(cell, str) for row in memories.rows for cell in row[4:])
    assert len(sources.rows) == len(memories.rows) + figures
    assert all(row[2] and row[2] != "no figure read" for row in sources.rows)


def test_sizes_are_those_of_the_tables() -> None:
    for chip in CHIPS.values():
        found = {level.name: level for level in levels(chip)}
        assert found["Registers"].size == chip.sms * chip.registers_per_sm * 4
        assert found["Shared memory"].each == chip.shared_per_sm
        assert found["L2"].size == chip.l2
        assert list(found.values())[-1].size == DEVICES[chip.name].memory


def test_latency_is_larger_outward() -> None:
    for chip in CHIPS.values():
        cycles = [level.cycles for level in levels(chip) if level.cycles is not None]
        assert cycles == sorted(cycles)


def test_what_was_assumed_is_marked() -> None:
    assert not was_read("")
    assert not was_read("measured by others; clock assumed: as the H100")
    assert was_read("How to scale your model, part 12")
    sources = {
        chip: [each for each in _outputs(CHIP, chip=chip) if isinstance(each, Table)][1].rows
        for chip in ("h100", "h200")
    }
    unread = {
        chip: {(row[0], row[1]) for row in rows if row[2].startswith("not read")}
        for chip, rows in sources.items()
    }
    assert unread == {"h100": set(), "h200": {("Shared memory", "bandwidth")}}
    latencies = [row[2] for row in sources["h100"] if row[1] == "latency"]
    assert len(latencies) == 4
    assert all("[" in text for text in latencies)
    assert not any(row[1] == "latency" for row in sources["h200"])


def test_a_tensor_is_placed() -> None:
    notes = {
        size: next(each.text for each in _outputs(CHIP, tensor=size) if isinstance(each, Note))
        for size in (1, 40, 128, 10**6)
    }
    assert "registers" in notes[1]
    assert "L2" in notes[40]
    assert "streamed" in notes[128]
    assert "larger than" in notes[1_000_000]


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    k=st.integers(1, 12),
    bm=st.integers(1, 50),
    bn=st.integers(1, 50),
)
def test_traffic_is_what_a_loop_over_tiles_reads(m: int, n: int, k: int, bm: int, bn: int) -> None:
    values = 0
    for top in range(0, m, bm):
        for left in range(0, n, bn):
            height, width = min(bm, m - top), min(bn, n - left)
            values += height * k + k * width + height * width
    assert moved(m, n, k, bm, bn, 2) == 2 * values
    assert values >= least(m, n, k, 1)


def test_one_tile_for_all_reads_everything_once() -> None:
    assert moved(64, 48, 80, 64, 48, 2) == least(64, 48, 80, 2)


def test_the_bound_is_the_slower_of_two() -> None:
    small, large = _outputs(TILES, block_m=16, block_n=16), _outputs(TILES, block_m=512, block_n=1024)
    assert _value(small, "Bound by") == "memory"
    assert _value(large, "Bound by") == "arithmetic"
    h100 = DEVICES["h100"]
    flops, bytes_ = 2 * 8192**3, moved(8192, 8192, 8192, 16, 16, 2)
    assert _value(small, "Takes at least") == pytest.approx(float(Fraction(bytes_, h100.bandwidth)))
    assert _value(large, "Takes at least") == pytest.approx(flops / h100.peak["bf16"])


def test_tiles_that_do_not_fit_are_said() -> None:
    bad = [each for each in _outputs(TILES, block_m=1024, block_n=1024) if isinstance(each, Note)]
    assert sum(each.kind == "bad" for each in bad) == 2


def test_a_dtype_without_units_is_refused_beside_its_field() -> None:
    _, _, errors = get(TILES).outputs({"chip": "a100-80gb", "dtype": "fp8"})
    assert set(errors) == {"dtype"}
    assert "A100" in errors["dtype"]
