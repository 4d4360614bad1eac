"""Chapter 5's exercises: what the solutions compute, against PyTorch and the library's own kernels."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import rms_norm
from lmlib.book.exercises import kernels as chapter
from lmlib.book.exercises import kernels_checks as checks
from lmlib.book.exercises import kernels_rows as rows
from lmlib.book.exercises import machinery

SCORES = st.lists(st.floats(-500, 500), min_size=1, max_size=6)


def error(found, right):
    return checks.relative(found, right)


@settings(deadline=None)
@given(SCORES, SCORES)
def test_merged_pieces_are_torch_s_logsumexp(first, second):
    pieces = [(max(part), sum(math.exp(x - max(part)) for x in part)) for part in (first, second)]
    m, s = chapter.merge(*pieces)
    expected = torch.tensor(first + second, dtype=torch.float64).logsumexp(0).item()
    assert m == max(first + second)
    assert m + math.log(s) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 1000)])
def test_softmax_is_torch_s(shape):
    x = checks.draw(*shape, scale=5.0)
    assert error(rows.softmax(x), torch.softmax(x.double(), 1)) < 1e-6


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 1000)])
def test_the_sum_and_its_norm_are_torch_s_and_the_library_s(shape):
    x, residual = checks.draw(*shape), checks.draw(*shape, seed=1)
    weight = checks.draw(shape[1], seed=2)
    y, total = rows.add_rms_norm(x, residual, weight, 1e-5)
    wide = x.double() + residual.double()
    assert error(total, wide) < 1e-7
    assert error(y, F.rms_norm(wide, shape[1:], weight.double(), 1e-5)) < 1e-6
    ours = rms_norm(x, weight, eps=1e-5, residual=residual)
    assert error(y, ours[0].double()) < 1e-6


# How answers are judged.


def test_a_verdict_says_what_is_wrong():
    right = checks.draw(4, 5).double()
    theirs = right.float()
    assert checks.verdict(theirs, right, theirs) == checks.RIGHT
    assert checks.verdict(None, right, theirs) == "no tensor but NoneType"
    assert checks.verdict(theirs[:3], right, theirs) == "of shape (3, 5), not (4, 5)"
    assert checks.verdict(right, right, theirs) == "float64, not float32"
    assert checks.verdict(theirs / 0, right, theirs) == "not finite everywhere"
    assert checks.verdict(theirs * 1.01, right, theirs).startswith("off by 1.0e-02, allowed")


def test_the_error_allowed_grows_with_that_of_torch():
    right = checks.draw(100, seed=3).double()
    rounded = right.bfloat16()
    allowed = checks.SLACK * error(rounded, right) + checks.UNIT[torch.bfloat16]
    assert checks.verdict((right * (1 + 0.5 * allowed)).bfloat16(), right, rounded) == checks.RIGHT
    assert "off by" in checks.verdict((right * (1 + 3 * allowed)).bfloat16(), right, rounded)


def test_launches_and_large_tensors_are_seen_and_nothing_stays_replaced():
    x = checks.draw(4, 64)
    for _ in range(2):
        with checks.watching() as seen:
            rows.softmax(x)
        assert seen.launches == 1
        assert seen.largest == checks.bytes_of(x)
        assert not checks.INTERPRETED or (seen.loaded, seen.stored) == (1024, 1024)
    with pytest.raises(RuntimeError, match="stops"), checks.watching() as seen:
        raise RuntimeError("stops")
    rows.softmax(x)
    assert seen.launches == 0


def test_bytes_outside_their_bounds_are_told():
    assert checks.amount(100, 90, 100) == checks.ONCE
    assert checks.amount(250, 90, 100) == "2.5 times what is needed"
    assert checks.amount(50, 90, 100) == "not all of it"


def test_a_slip_changes_one_passage_and_no_other():
    wrong = checks.slip("halved", "power / tl.sum", "0.5 * power / tl.sum", rows.softmax, rows.softmax_kernel)
    x = checks.draw(2, 8)
    torch.testing.assert_close(wrong(x), rows.softmax(x) / 2)
    assert wrong.__name__ == "halved"
    for old in ("column", "no such passage"):
        with pytest.raises(ValueError, match="stands"):
            checks.slip("unclear", old, "", rows.softmax, rows.softmax_kernel)(x)


def test_the_error_of_a_kernel_is_shown_with_the_kernel_s_line():
    exercise = machinery.get("kernels/softmax")
    source = exercise.solution_source.replace("tl.exp(", "tl.expp(")
    (result,) = [
        r for r in machinery.check_source(exercise.name, source)["results"] if r["state"] == "failed"
    ]
    assert "tl.expp(" in result["line"]
