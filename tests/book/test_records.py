"""Records come back as written; malformed ones are refused with the field and the value."""

import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlib.book import records
from lmlib.book.records import Record, RecordError, Samples, parse, record, write
from lmlib.training.leaderboard import read_entry

GOOD = {
    "device": "NVIDIA H200",
    "driver": "570.124",
    "torch": "2.11.0",
    "triton": None,
    "date": "2026-11-24",
    "commit": "90c53f1",
    "command": "python -m kernels.bench attention",
    "samples": {"forward": {"unit": "s", "values": [0.012, 0.010, 0.011]}},
}


def test_what_is_written_is_read_back(tmp_path):
    made = parse({**GOOD, "about": {"batch": 4}}, "record")
    path = write(made, "nvidia-h200", "attention", tmp_path)
    assert path == tmp_path / "nvidia-h200" / "attention.json"
    assert record("nvidia-h200", "attention", tmp_path) == made
    assert [each.name for each in path.parent.iterdir()] == ["attention.json"]  # no partial file is left
    assert set(json.loads(path.read_text())) == {*GOOD, "about"}


@given(st.lists(st.floats(min_value=1e-9, max_value=1e9), min_size=1, max_size=9))
def test_median_and_spread_come_from_every_sample(values):
    samples = Samples("s", tuple(values))
    assert samples.median == statistics.median(values)
    assert samples.spread == pytest.approx((max(values) - min(values)) / statistics.median(values))


def test_a_quantity_of_zeros_has_no_spread():
    assert Samples("B", (0, 0)).spread == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"device": ""}, "device must be text, got ''"),
        ({"driver": 570}, "driver must be text or null, got 570"),
        ({"date": "24.11.2026"}, "YYYY-MM-DD, got '24.11.2026'"),
        ({"samples": {}}, "at least one quantity"),
        ({"samples": {"t": [1, 2]}}, r"samples\['t'\] must have exactly unit and values"),
        ({"samples": {"t": {"unit": "", "values": [1]}}}, "unit must be text"),
        ({"samples": {"t": {"unit": "s", "values": []}}}, "at least one number"),
        ({"samples": {"t": {"unit": "s", "values": [1, "2"]}}}, "finite number, got '2'"),
        ({"samples": {"t": {"unit": "s", "values": [float("nan")]}}}, "finite number, got nan"),
        ({"samples": {"t": {"unit": "s", "values": [True]}}}, "finite number, got True"),
        ({"median": 3}, "unknown median"),
        ({"about": 3}, "about must be an object"),
    ],
)
def test_malformed_records_are_refused_by_field_and_value(change, named):
    with pytest.raises(RecordError, match=named):
        parse({**GOOD, **change}, "record cpu/x")


@pytest.mark.parametrize("key", GOOD)
def test_every_field_is_required(key):
    with pytest.raises(RecordError, match=f"lacks {key}"):
        parse({name: value for name, value in GOOD.items() if name != key}, "record")


def test_a_missing_record_names_those_there_are(tmp_path):
    write(parse(GOOD, "record"), "cpu", "encode", tmp_path)
    with pytest.raises(RecordError, match="no record cpu/train; there are: cpu/encode"):
        record("cpu", "train", tmp_path)
    with pytest.raises(RecordError, match=r"'\.\./x' is not usable"):
        record("cpu", "../x", tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    path = write(parse(GOOD, "record"), "cpu", "encode", tmp_path)
    path.write_text(path.read_text()[:40])
    with pytest.raises(RecordError, match="record cpu/encode is not JSON"):
        record("cpu", "encode", tmp_path)


def test_a_record_that_could_not_be_read_back_is_not_written(tmp_path):
    good = parse(GOOD, "record")
    bad = Record(**{**vars(good), "samples": {"t": Samples("s", (float("inf"),))}})
    with pytest.raises(RecordError):
        write(bad, "cpu", "encode", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_table_says_device_date_and_command(capsys):
    parse(GOOD, "record").show()
    shown = capsys.readouterr().out
    for part in ("NVIDIA H200", "2026-11-24", "90c53f1", "kernels.bench", "0.011", "forward"):
        assert part in shown
    assert "triton" not in shown


def test_an_unknown_quantity_names_the_known():
    with pytest.raises(RecordError, match="'backward'; it has forward"):
        parse(GOOD, "record")["backward"]


def test_all_records_of_the_book_are_sound():
    """Whatever is in the results folder can be read; entries of the leaderboard are signed instead."""
    for path in records.RESULTS.glob("*/*.json"):
        if path.parent.name == "leaderboard":
            assert read_entry(path)["loss"] > 0  # refuses an entry whose hash does not fit
        else:
            assert record(path.parent.name, path.stem).samples
