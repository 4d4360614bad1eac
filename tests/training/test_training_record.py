"""Records: where they come from is said, they are read as the book reads them, and written whole or not."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from lmlib.book.records import parse
from lmlib.training import record, sweep


def test_a_record_says_where_it_comes_from(tmp_path: Path) -> None:
    place = tmp_path / "not there yet" / "r.json"
    origin = record.origin("lmlib.training.bench", ["step", "--tiny"], "abc1234")
    record.write(place, {**origin, "samples": {"speed": {"unit": "s", "values": [1.5]}}, "about": {"é": 1}})
    read = parse(json.loads(place.read_text(encoding="utf-8")), "r")
    assert read.command == "python -m lmlib.training.bench step --tiny"
    assert read.commit == "abc1234"
    assert read.date == datetime.now(UTC).date().isoformat()
    assert read.torch == torch.__version__
    assert read["speed"].values == (1.5,)


def test_what_cannot_be_written_leaves_the_old_record(tmp_path: Path) -> None:
    place = tmp_path / "r.json"
    record.write(place, {"kept": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        record.write(place, {"lost": object()})
    assert json.loads(place.read_text(encoding="utf-8")) == {"kept": 1}
    assert list(tmp_path.iterdir()) == [place]


def test_a_sweeps_record(tmp_path: Path) -> None:
    """Runs that failed are told about, and give no value."""
    results = {"a": {"val_loss": 2.5}, "b": {"error": "NaN"}}
    made = sweep.as_record("micro", results, record.origin("lmlib.training.sweep", ["micro"], "abc"))
    read = parse(json.loads(json.dumps(made)), "sweep")
    assert read["a"].values == (2.5,)
    assert "b" not in made["samples"]
    assert read.about["runs"]["b"] == {"error": "NaN"}
