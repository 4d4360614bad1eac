"""Today's predictions of the peak of training memory against the record of a GPU."""

import pytest

from lmlib.book.measure.memory_on_gpu import Case, described, main
from lmlib.book.records import record
from lmlib.resources.memory import memory
from lmlib.resources.optimizer import Optimizer

RECORD = record("h200", "memory")
MEASURED = {each["name"]: Case(**each["case"]) for each in RECORD.about["cases"] if "error" not in each}

# The allocator does not split a rest of up to 1 MiB off a block: it counts as allocated, and depends on what
# was freed before. Weights of a few MiB each, as GPT-2 has them, carry this much of it (here 3.2 and 1.1 %).
RESTS = {"gpt2": 0.035, "gpt2-large": 0.012}


def _timeline(case):
    model, profile = described(case, "cuda", tiny=False)
    return memory(model, profile, Optimizer(), case.batch_size, case.context_length)


@pytest.mark.parametrize("name", MEASURED)
def test_peak_is_within_three_percent_of_the_record(name):
    predicted = _timeline(MEASURED[name]).peak
    for measured in RECORD[f"{name}: peak"].values:
        assert predicted == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("name", MEASURED)
def test_peak_of_requests_is_within_a_thousandth(name):
    """Requests leave out what the allocator rounds up, so nothing hides in that rounding."""
    predicted = _timeline(MEASURED[name]).peak
    assert predicted == pytest.approx(RECORD[f"{name}: requested peak"].median, rel=0.001)


@pytest.mark.parametrize("name", MEASURED)
def test_what_stands_between_steps(name):
    rests = RESTS.get(MEASURED[name].model, 0.001)
    predicted = int(_timeline(MEASURED[name]).standing.total)
    assert predicted == pytest.approx(RECORD[f"{name}: standing"].median, rel=rests)


def test_record_covers_what_the_claim_says():
    cases = list(MEASURED.values())
    assert RECORD.device == "NVIDIA H200"
    assert len(cases) >= 8
    assert {case.model for case in cases} >= {"gpt2", "llama3.2-1b", "llama3.2-3b", "llama3-8b"}
    for key, values in {
        "recompute": {"none", "core", "core_act", "full"},
        "precision": {"bf16", "autocast", "fp32"},
        "loss": {"fp32_ce", "chunked"},
        "attention": {"flash", "eager", "math"},
    }.items():
        assert {getattr(described(case, "cuda", tiny=False)[1], key) for case in cases} >= values
    assert len({case.batch_size for case in cases}) >= 4
    assert len({case.context_length for case in cases}) >= 4


def test_no_case_failed_when_the_record_was_taken():
    assert [each["name"] for each in RECORD.about["cases"] if "error" in each] == []


def test_the_script_runs_on_small_models_without_a_gpu(tmp_path, capsys):
    out = tmp_path / "cpu-test" / "memory.json"
    out.parent.mkdir()
    main(["--out", str(out), "--device", "cpu", "--tiny", "--only", "llama3.2-1b"])
    small = record("cpu-test", "memory", tmp_path)
    assert len(small.samples) == 5
    assert all(each.unit == "bytes" and each.median > 0 for each in small.samples.values())
    assert "predicted" in capsys.readouterr().out
