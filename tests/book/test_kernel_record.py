"""A record of the kernel benchmark, opened up: who was timed, shares, memory, and panels for plots."""

from pathlib import Path
from typing import Any

import pytest

from kernels.bench.case import Bench, Shape, Work
from kernels.bench.measure import Case as Measured
from kernels.bench.report import record, write
from lmlib.book.kernel_record import KernelRecord, axis_of, completed, newest, panels, read, together
from lmlib.book.records import RecordError

PEER = "eager, unfused"  # a comma in a name must not be taken for the one before the phase
MACHINE = {
    "device": "a test",
    "driver": None,
    "torch": "0",
    "triton": None,
    "date": "2026-01-02",
    "commit": "none",
    "command": "none",
}


def _bench(bound: Any = "copy") -> Bench:
    return Bench(
        name="norm",
        inputs=lambda shape, generator: {},
        ours=lambda: None,
        reference=lambda: None,
        grads=("x",),
        work=lambda shape: {
            "forward": Work(bytes=4 * shape["rows"] * shape["columns"], flops=1000),
            "backward": Work(bytes=6 * shape["rows"] * shape["columns"]),
        },
        shapes=(),
        bound=bound,
    )


def _measured(rows: int, columns: int, ours: float, theirs: float) -> Measured:
    case = Measured(_bench(), Shape({"rows": rows, "columns": columns}))
    case.copy_rate = 1e9
    case.seconds["ours", "forward"] = [ours, 3 * ours, ours / 2]
    case.seconds[PEER, "forward"] = [theirs] * 3
    case.seconds["CUDA C++ (ours)", "forward"] = [ours / 4] * 3
    case.peak = {"ours": 10, PEER: 40}
    case.kept = {"ours": 4}
    case.errors = {"ours": {"output": 1e-3}}
    case.left_out = {"Liger": "not installed"}
    return case


@pytest.fixture
def opened(tmp_path: Path) -> KernelRecord:
    cases = [
        _measured(rows, columns, 1e-3, 4e-3)
        for rows in (8, 16)
        for columns in ((64, 128, 256) if rows == 16 else (64, 128))
    ]
    rates = {"copy bandwidth": [1e9, 1e9, 3e9], "matmul rate": [1e12]}
    write(record(cases, dict(MACHINE), rates, 1.0), tmp_path / "gpu" / "kernels.json")
    found = newest(folder=tmp_path)
    assert found is not None
    return found


def test_every_sample_finds_its_competitor_and_phase(opened: KernelRecord) -> None:
    case = opened.case("norm", rows=16, columns=128)
    assert case is not None
    assert case.competitors == ["ours", PEER, "CUDA C++ (ours)"]
    assert case.phases == ["forward"]
    assert (case.shape, case.brief) == ("rows 16, columns 128", "16 × 128")
    assert case.seconds("ours", "forward") == 1e-3
    assert case.seconds("nobody", "forward") is None
    assert case.peaks == {"ours": 10, PEER: 40}
    assert case.left_out == {"Liger": "not installed"}


def test_share_is_least_work_over_time_and_rate(opened: KernelRecord) -> None:
    case = opened.case("norm", rows=16, columns=128)
    assert case is not None
    assert case.share("ours", "forward") == pytest.approx(100 * 4 * 16 * 128 / 1e-3 / 1e9)
    assert case.share("ours", "backward") is None
    assert case.tflops("ours", "forward") == pytest.approx(1000 / 1e-3 / 1e12)
    assert opened.rate("copy bandwidth") == 1e9
    assert opened.rate("nothing") is None


def test_a_copy_that_was_disturbed_does_not_flatter_the_kernel(tmp_path: Path) -> None:
    """A case is held against the record's median copy where the copy beside it was slower than that."""
    cases = [_measured(16, columns, 1e-3, 4e-3) for columns in (64, 128)]
    cases[0].copy_rate = 0.5e9
    cases[1].copy_rate = 2e9
    write(record(cases, dict(MACHINE), {"copy bandwidth": [1e9]}, 1.0), tmp_path / "kernels.json")
    assert [case.rate for case in read(tmp_path / "kernels.json").cases] == [1e9, 2e9]


def test_our_own_other_kernel_is_no_peer(opened: KernelRecord) -> None:
    case = opened.cases[0]
    assert case.best_peer("forward") == (PEER, 4e-3)
    assert case.speedup("forward") == pytest.approx(4)
    assert case.best_peer("backward") is None


def test_panels_are_told_apart_by_what_the_axis_does_not_decide(opened: KernelRecord) -> None:
    axis = axis_of(opened.of("norm"))
    assert axis == "columns"
    found = panels(opened.of("norm"), axis)
    assert [(dict(key)["rows"], len(cases)) for key, cases in found.items()] == [(16, 3), (8, 2)]
    assert axis_of(opened.of("norm")[:1]) is None
    assert axis_of([]) is None


def test_a_size_that_follows_from_the_axis_makes_no_panel(tmp_path: Path) -> None:
    cases = [_measured(2**10 // columns, columns, 1e-3, 2e-3) for columns in (64, 128, 256)]
    path = tmp_path / "kernels.json"
    write(record(cases, dict(MACHINE), {}, 1.0), path)
    found = read(path)
    assert axis_of(found.of("norm")) == "columns"
    assert len(panels(found.of("norm"), "columns")) == 1


def test_no_record_is_none_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    assert newest(folder=tmp_path) is None
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "kernels.json").write_text("{}")
    with pytest.raises(RecordError, match="lacks"):
        newest(folder=tmp_path)


def test_the_latest_of_two_is_taken(opened: KernelRecord, tmp_path: Path) -> None:
    case = _measured(4, 64, 1e-3, 2e-3)
    write(record([case], {**MACHINE, "date": "2026-03-01"}, {}, 1.0), tmp_path / "later" / "kernels.json")
    found = newest(folder=tmp_path)
    assert found is not None
    assert found.record.date == "2026-03-01"
    assert found.cases[0].rate == 1e9


def test_a_later_record_holds_where_both_have_a_case(opened: KernelRecord, tmp_path: Path) -> None:
    later = [_measured(16, 128, 2e-3, 4e-3), _measured(64, 512, 3e-3, 9e-3)]
    path = tmp_path / "later.json"
    write(record(later, {**MACHINE, "date": "2026-02-01"}, {"copy bandwidth": [5e9]}, 1.0), path)
    both = together(opened, read(path).record)
    assert len(both.cases) == len(opened.cases) + 1
    assert [case.sizes for case in both.cases[:-1]] == [case.sizes for case in opened.cases]
    replaced, kept, new = (
        both.case("norm", rows=16, columns=128),
        both.case("norm", rows=16, columns=64),
        both.cases[-1],
    )
    assert replaced is not None
    assert kept is not None
    assert (replaced.seconds("ours", "forward"), replaced.rate) == (2e-3, 5e9)
    assert (kept.seconds("ours", "forward"), kept.rate) == (1e-3, 1e9)
    assert (new.sizes["columns"], new.seconds("ours", "forward")) == (512, 3e-3)
    assert (both.record, [each.date for each in both.later]) == (opened.record, ["2026-02-01"])
    assert (kept.where, new.where) == (opened.record.where, both.later[0].where)
    assert kept.where != new.where
    assert opened.where == opened.record.where
    assert both.where == f"records of {opened.record.date} and 2026-02-01 on {opened.record.device}"


def test_a_record_is_completed_by_those_of_its_device_that_are_no_older(
    opened: KernelRecord, tmp_path: Path
) -> None:
    for folder, about in {
        "gpu": {},
        "another": {"device": "another", "date": "2026-05-01"},
        "older": {"date": "2025-12-31"},
    }.items():
        case = _measured(64, 512, 3e-3, 9e-3)
        write(record([case], {**MACHINE, **about}, {}, 1.0), tmp_path / folder / "kernels-rows.json")
    found = completed(opened, "kernels-rows", "no such record", folder=tmp_path)
    assert found is not None
    assert [each.date for each in found.later] == [MACHINE["date"]]
    assert len(found.cases) == len(opened.cases) + 1
    assert completed(None, "kernels-rows", folder=tmp_path) is None


def test_of_two_records_the_later_one_holds_whatever_their_names(
    opened: KernelRecord, tmp_path: Path
) -> None:
    for name, date, seconds in (
        ("kernels-rows", "2026-03-01", 3e-3),
        ("kernels-products", "2026-02-01", 5e-3),
    ):
        case = _measured(64, 512, seconds, 9e-3)
        write(record([case], {**MACHINE, "date": date}, {}, 1.0), tmp_path / "gpu" / f"{name}.json")
    found = completed(opened, "kernels-rows", "kernels-products", folder=tmp_path)
    assert found is not None
    (held,) = found.of("norm", rows=64)
    assert held.where == found.later[-1].where
    assert found.later[-1].date == "2026-03-01"


@pytest.mark.parametrize("other", [{"device": "another"}, {"date": "2025-12-31"}])
def test_records_of_two_devices_or_in_the_wrong_order_are_not_mixed(
    opened: KernelRecord, tmp_path: Path, other: dict[str, str]
) -> None:
    path = tmp_path / "other.json"
    write(record([_measured(4, 64, 1e-3, 2e-3)], {**MACHINE, **other}, {}, 1.0), path)
    with pytest.raises(RecordError, match="cannot complete"):
        together(opened, read(path).record)
