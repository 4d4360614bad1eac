"""The benchmark of products in eight bits: what can be seen without a GPU, and all of it on one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmlib.book.records import parse
from lmlib.resources.units import ArgumentError
from lmlib.training import fp8, fp8_bench


def test_three_ways_to_the_same_product() -> None:
    found = fp8_bench.errors(64, "cpu")
    assert list(found) == [fp8_bench.BF16, fp8_bench.EIGHT, fp8_bench.COUNTED]
    assert found[fp8_bench.BF16] < 3e-3
    assert 0.01 < found[fp8_bench.EIGHT] < 0.06
    assert found[fp8_bench.COUNTED] == found[fp8_bench.EIGHT]


def test_a_wrong_product_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fp8.product
    monkeypatch.setattr(fp8, "product", lambda *given: right(*given) * 1.1)
    with pytest.raises(ArithmeticError, match="64 x 64 in eight bits is wrong"):
        fp8_bench.errors(64, "cpu")


def test_sizes_that_the_units_cannot_take_are_refused() -> None:
    with pytest.raises(ArgumentError, match="multiples of 16, got 24"):
        fp8_bench.measure([32, 24])


def test_without_units_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp8, "has_units", lambda device: False)
    with pytest.raises(SystemExit) as ended:
        fp8_bench.main([])
    assert ended.value.code == 2
    assert "units for eight-bit floats" in capsys.readouterr().err


def test_its_record_is_one_of_the_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(works: dict[str, object]) -> dict[str, list[float]]:
        return {name: [1e-3, 2e-3, 1.5e-3] for name in works}

    errors, competitors = fp8_bench.errors, fp8_bench.competitors
    monkeypatch.setattr(fp8, "has_units", lambda device: device == "cuda")
    monkeypatch.setattr(fp8_bench, "seconds", timed)
    monkeypatch.setattr(fp8_bench, "errors", lambda size: errors(size, "cpu"))
    monkeypatch.setattr(fp8_bench, "competitors", lambda size, device="cpu": competitors(size, "cpu"))
    out = tmp_path / "made" / "fp8.json"
    fp8_bench.main(["--sizes", "32", "--commit", "abc1234", "--out", str(out)])
    found = parse(json.loads(out.read_text(encoding="utf-8")), "record fp8.json")
    assert found["32: 8 bits"].median == 1.5e-3
    assert found.about["sizes"] == [32]
    assert found.about["errors"]["32"][fp8_bench.BF16] < 3e-3


def test_a_bad_size_ends_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp8, "has_units", lambda device: True)
    with pytest.raises(SystemExit):
        fp8_bench.main(["--sizes", "24"])
    assert "--sizes: must be multiples of 16, got 24" in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if not fp8.has_units("cuda"):
        pytest.skip("this GPU has no units for eight-bit floats")
    samples, _ = fp8_bench.measure([256])
    for name in (fp8_bench.BF16, fp8_bench.EIGHT, fp8_bench.COUNTED):
        values = samples[f"256: {name}"]["values"]
        assert len(values) >= 10
        assert min(values) > 0
