"""Rooflines against PyTorch's counts of FLOPs and bytes, and against their definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lmlib.resources import ArgumentError
from lmlib.resources.hardware import DEVICES, device
from lmlib.resources.roofline import attention, elementwise, matmul, norm, roofline

H100 = device("h100")
sizes = st.integers(1, 64)


@given(sizes, sizes, sizes)
@settings(max_examples=20, deadline=None)
def test_a_matmul_has_pytorchs_flops_and_bytes(m, k, n):
    x, w = torch.empty(m, k, dtype=torch.bfloat16), torch.empty(k, n, dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        y = x @ w
    ours = matmul(m, k, n)
    assert ours.flops.total == counter.get_total_flops()
    assert ours.moved.total == sum(tensor.nbytes for tensor in (x, w, y))


@given(st.integers(1, 3), st.sampled_from([(4, 4), (4, 2), (4, 1)]), st.integers(1, 16), st.integers(1, 16))
@settings(max_examples=20, deadline=None)
def test_attention_has_pytorchs_flops_and_bytes(batch, heads, length, head_dim):
    n_heads, n_kv_heads = heads
    q = torch.empty(batch, n_heads, length, head_dim)
    k, v = (torch.empty(batch, n_kv_heads, length, head_dim) for _ in "kv")
    wide = [each.repeat_interleave(n_heads // n_kv_heads, 1) for each in (k, v)]
    with FlopCounterMode(display=False) as counter:
        scores = q @ wide[0].transpose(-1, -2)
        out = scores @ wide[1]
    ours = attention(batch, n_heads, n_kv_heads, length, length, head_dim, mask="full", dtype="fp32")
    assert ours.flops.total == counter.get_total_flops()
    assert ours.moved.total == sum(tensor.nbytes for tensor in (q, k, v, out))
    plain = attention(
        batch, n_heads, n_kv_heads, length, length, head_dim, mask="full", kernel="math", dtype="fp32"
    )
    assert plain.moved.total - ours.moved.total == 4 * scores.nbytes


def test_norm_and_elementwise_read_once_and_write_once():
    x, w = torch.empty(6, 32, dtype=torch.bfloat16), torch.empty(32, dtype=torch.bfloat16)
    assert norm(6, 32).moved.total == 2 * x.nbytes + w.nbytes
    assert elementwise(x.numel(), inputs=2).moved.total == 3 * x.nbytes


def test_decoding_reads_caches_at_about_two_flops_a_byte_and_head_group():
    """One query: intensity is the query heads of a key/value head, in bf16, but for the query itself."""
    for group in (1, 4, 8):
        one = attention(1, 8 * group, 8, 1, 10**6, 128, mask="causal")
        assert float(one.intensity.value) == pytest.approx(group, rel=0.001)


@given(
    st.integers(1, 10**5),
    st.integers(1, 10**5),
    st.integers(1, 10**5),
    st.sampled_from([name for name in DEVICES if DEVICES[name].peak.get("bf16")]),
)
@settings(max_examples=60, deadline=None)
def test_the_longer_of_the_two_times_decides(m, k, n, name):
    roof = roofline(matmul(m, k, n), device(name))
    flops, moved = 2 * m * k * n, 2 * (m * k + k * n + m * n)
    compute, memory = flops / device(name).peak_of("bf16"), moved / device(name).bandwidth
    assert float(roof.seconds.value) == pytest.approx(max(compute, memory))
    assert (roof.bound == "arithmetic") == (roof.operation.intensity.value >= roof.ridge.value)
    assert float(roof.reached.value) <= device(name).peak_of("bf16") * (1 + 1e-9)


def test_the_ridge_of_an_h100_is_295_flops_a_byte():
    """Austin et al. 2025, part 12: B > 295 for an H100 in bf16."""
    roof = roofline(matmul(8192, 8192, 8192), H100)
    assert float(roof.ridge.value) == pytest.approx(295, abs=0.5)


def test_bad_sizes_and_dtypes_are_refused():
    for bad, field in (({"m": 0}, "m"), ({"k": -1}, "k"), ({"n": 1.5}, "n"), ({"dtype": "fp7"}, "dtype")):
        with pytest.raises(ArgumentError) as refused:
            matmul(**({"m": 1, "k": 1, "n": 1} | bad))
        assert refused.value.field == field
    with pytest.raises(ArgumentError) as refused:
        attention(1, 1, 1, 8, 4, 8, mask="causal")
    assert refused.value.field == "keys"
    with pytest.raises(ArgumentError, match="no published peak for 'fp8'"):
        roofline(matmul(1, 1, 1, dtype="fp8"), device("a100-80gb"))
