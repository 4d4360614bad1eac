"""Chapter 5's exercises: what the solutions compute, against PyTorch and the library's own kernels."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import flash_attention, rms_norm
from lmlib.book.exercises import kernels as chapter
from lmlib.book.exercises import kernels_attention as attention
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


@pytest.mark.parametrize(("n_rows", "columns", "programs"), [(1, 1, 1), (5, 33, 2), (40, 100, 3)])
def test_the_gradients_of_the_norm_are_torch_s_and_the_library_s(n_rows, columns, programs):
    dy, x = (checks.draw(n_rows, columns, seed=seed) for seed in (0, 1))
    weight = checks.draw(columns, seed=2)
    ours = rows.rms_norm_backward(dy, x, weight, 1e-5, programs)
    for function, dtype in ((F.rms_norm, torch.float64), (None, torch.float32)):
        leaves = [each.detach().to(dtype).requires_grad_() for each in (x, weight)]
        y = function(leaves[0], (columns,), leaves[1], 1e-5) if function else rms_norm(*leaves, eps=1e-5)
        for found, right in zip(ours, torch.autograd.grad(y, leaves, dy.to(dtype)), strict=True):
            scale = max(right.norm().item(), 1.0)  # the gradient of a single number is almost 0
            assert (found - right).norm().item() < 2e-6 * scale


# Attention: lengths of queries and keys, head dimension, tiles, causal.
ATTENTION = [
    (1, 1, 16, 4, 4, True),
    (37, 37, 16, 8, 16, True),
    (5, 50, 32, 4, 16, True),
    (30, 20, 16, 7, 9, False),
]


@pytest.mark.parametrize(("T", "S", "K", "block_t", "block_s", "causal"), ATTENTION)
def test_attention_in_tiles_and_its_gradients_are_torch_s(T, S, K, block_t, block_s, causal):
    q, k, v, dout = (checks.draw(2, n, K, seed=i) for i, n in enumerate((T, S, S, T)))
    out, lse = attention.flash_forward(q, k, v, block_t, block_s, causal)
    ours = attention.flash_backward(dout, q, k, v, out, lse, block_t, block_s, causal)
    leaves = [each.double().requires_grad_() for each in (q, k, v)]
    mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T) if causal else None
    right = F.scaled_dot_product_attention(*leaves, attn_mask=mask)
    assert error(out, right.detach()) < 1e-6
    scores = leaves[0] @ leaves[1].mT * K**-0.5
    scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
    assert error(lse, scores.logsumexp(-1).detach()) < 1e-6
    for found, gradient in zip(ours, torch.autograd.grad(right, leaves, dout.double()), strict=True):
        assert (found - gradient).norm().item() < 2e-6 * max(gradient.norm().item(), 1.0)


@pytest.mark.parametrize(
    ("T", "S", "K", "causal"), [(1, 1, 16, True), (100, 100, 32, True), (3, 80, 64, False)]
)
def test_attention_in_triton_is_torch_s_and_the_library_s(T, S, K, causal):
    q, k, v = (checks.draw(1, 2, n, K, seed=i) for i, n in enumerate((T, S, S)))
    out, _ = attention.flash_attention(q, k, v, causal)
    wide = [each.double() for each in (q, k, v)]
    assert error(out, F.scaled_dot_product_attention(*wide, is_causal=causal)) < 1e-6
    assert error(out, flash_attention(q, k, v, causal=causal).double()) < 1e-6


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
    strict = checks.SLACK * error(rounded, right) + checks.UNIT[torch.bfloat16]
    for interpreted, factor in ((False, 1.0), (True, 2.5)):
        near, far = ((right * (1 + part * factor * strict)).bfloat16() for part in (0.5, 2.5))
        assert checks.verdict(near, right, rounded, interpreted) == checks.RIGHT
        assert "off by" in checks.verdict(far, right, rounded, interpreted)


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
