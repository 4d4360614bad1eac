"""FlashAttention against plain attention in float64: dtypes, masks, shapes, strides, gradients, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import flash_attention
from kernels._runtime import HAVE_TRITON, INTERPRETED
from kernels.attention import launch_forward, reference
from kernels.attention_backward import launch_backward

pytestmark = pytest.mark.skipif(not HAVE_TRITON, reason="Triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Largest ‖out - exact‖ / ‖exact‖: some roundings of the format.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}
DTYPES = tuple(TOLERANCE)


def drawn(
    B: int, H: int, G: int, T: int, S: int, K: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        values = torch.randn(*sizes, generator=generator, device=DEVICE)
        return values.to(dtype).requires_grad_()

    return normal(B, H, T, K), normal(B, G, S, K), normal(B, G, S, K)


def with_gradients(function: Any, tensors: tuple[Tensor, ...], dout: Tensor, **options: Any) -> list[Tensor]:
    out = function(*tensors, **options)
    return [out, *torch.autograd.grad(out, tensors, dout.to(out.dtype))]


def errors(tensors: tuple[Tensor, ...], function: Any = flash_attention, **options: Any) -> list[float]:
    """Relative errors of the output and the three gradients against float64."""
    dout = torch.randn(tensors[0].shape, device=DEVICE).to(tensors[0].dtype)
    found = with_gradients(function, tensors, dout, **options)
    exact = tuple(x.detach().double().requires_grad_() for x in tensors)
    wanted = with_gradients(reference, exact, dout, **options)
    # A gradient that is exactly 0 (of a query that sees one key) is measured against its tensor instead.
    return [
        float(
            (a.detach().double() - b.detach()).norm()
            / (b if b.norm() > 1e-9 * x.norm() else x).detach().norm()
        )
        for a, b, x in zip(found, wanted, (tensors[2], *tensors), strict=True)
    ]


def assert_close(tensors: tuple[Tensor, ...], **options: Any) -> None:
    worst = max(errors(tensors, **options))
    assert worst < TOLERANCE[tensors[0].dtype], f"relative error {worst:.1e}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_forward_and_backward(dtype: torch.dtype) -> None:
    assert_close(drawn(1, 2, 1, 100, 100, 32, dtype))


@pytest.mark.parametrize("K", [1, 16, 64, 80, 96, 128, 256])
def test_head_dimensions_powers_of_two_or_not(K: int) -> None:
    assert_close(drawn(1, 1, 1, 70, 70, K, torch.float32))


@pytest.mark.parametrize(
    ("T", "S", "causal", "window"),
    [
        (64, 64, True, None),  # exactly one tile
        (129, 129, True, None),  # one row more than two tiles
        (1, 1, True, None),
        (1, 90, True, None),  # decoding: one query at the end of the keys
        (70, 130, True, None),  # queries are the last of the positions
        (70, 20, True, None),  # more queries than keys: the first see nothing
        (70, 20, True, 15),
        (60, 75, False, None),
        (130, 130, True, 1),  # every query sees itself alone
        (200, 200, True, 50),
        (130, 130, True, 64),
        (66, 140, True, 40),
        (70, 70, True, 1000),  # a window longer than the sequence
        (1, 90, True, 7),
    ],
)
def test_lengths_and_masks(T: int, S: int, causal: bool, window: int | None) -> None:
    assert_close(drawn(1, 2, 1, T, S, 16, torch.float32), causal=causal, window=window)


@pytest.mark.parametrize(("H", "G"), [(3, 3), (4, 2), (4, 1)])
def test_query_heads_share_key_heads(H: int, G: int) -> None:
    assert_close(drawn(2, H, G, 40, 40, 16, torch.float32))


def test_rows_that_see_no_key_give_zero_and_receive_zero() -> None:
    tensors = drawn(1, 1, 1, 10, 4, 16, torch.float32)
    out, dq, dk, dv = with_gradients(flash_attention, tensors, torch.ones(1, 1, 10, 16, device=DEVICE))
    assert not out[0, 0, :6].any()
    assert not dq[0, 0, :6].any()
    assert out[0, 0, 6:].abs().min() > 0
    assert all(torch.isfinite(x).all() for x in (out, dq, dk, dv))


def test_views_of_a_projection_are_taken_and_laid_out_as_they_came() -> None:
    B, T, H, K = 2, 40, 2, 16
    qkv = torch.randn(B, T, 3, H, K, device=DEVICE, requires_grad=True)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    assert not q.is_contiguous()
    assert_close((q, k, v))
    separate = torch.randn(B, T, H, K, device=DEVICE).transpose(1, 2)
    assert flash_attention(separate, separate, separate).stride() == separate.stride()


def test_a_last_axis_that_is_not_contiguous_and_broadcast_heads() -> None:
    q = torch.randn(1, 2, 16, 40, device=DEVICE).mT.requires_grad_()
    k = torch.randn(1, 1, 40, 16, device=DEVICE).expand(1, 2, 40, 16).detach().requires_grad_()
    assert_close((q, k, k.detach().clone().requires_grad_()))


@pytest.mark.parametrize("sizes", [(0, 2, 5, 5), (1, 2, 0, 5), (1, 2, 5, 0), (1, 0, 5, 5)])
def test_empty(sizes: tuple[int, int, int, int]) -> None:
    B, H, T, S = sizes
    tensors = drawn(B, H, H, T, S, 16, torch.float32)
    out, *gradients = with_gradients(flash_attention, tensors, torch.ones(B, H, T, 16, device=DEVICE))
    assert out.shape == (B, H, T, 16)
    assert not out.any()
    for gradient, x in zip(gradients, tensors, strict=True):
        assert gradient.shape == x.shape
        assert not gradient.any()


def test_scale_and_large_scores() -> None:
    q, k, v = drawn(1, 1, 1, 50, 50, 16, torch.float32)
    assert_close((q, k, v), scale=1.7)
    with torch.no_grad():
        out = flash_attention(
            q * 1e3, k * 1e3, v
        )  # exp of such scores overflows unless the maximum is taken off
        exact = reference(q.double() * 1e3, k.double() * 1e3, v.double())
    assert float((out - exact).norm() / exact.norm()) < 1e-3


def test_logsumexp_is_saved() -> None:
    q, k, v = (x.detach() for x in drawn(1, 2, 2, 30, 50, 16, torch.float32))
    _, lse = launch_forward(q, k, v, False, 0, 0.25)
    exact = torch.logsumexp(q.double() @ k.double().mT * 0.25, -1)
    torch.testing.assert_close(lse.double(), exact, rtol=1e-6, atol=1e-5)


def test_two_runs_give_the_same_bits() -> None:
    tensors = drawn(1, 4, 2, 90, 90, 32, torch.bfloat16)
    dout = torch.randn(1, 4, 90, 32, device=DEVICE)
    runs = [with_gradients(flash_attention, tensors, dout) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_float64_goes_to_pytorch_and_passes_gradcheck() -> None:
    tensors = tuple(x.double().detach().requires_grad_() for x in drawn(1, 2, 1, 5, 7, 3, torch.float32))
    assert torch.autograd.gradcheck(lambda *x: flash_attention(*x, window=3), tensors)


def test_a_head_dimension_beyond_the_kernels_goes_to_pytorch() -> None:
    assert_close(drawn(1, 2, 1, 9, 12, 300, torch.float32))


def test_gradient_matches_finite_differences() -> None:
    q, k, v = drawn(1, 1, 1, 6, 6, 4, torch.float32)
    dout, direction = torch.randn(2, *q.shape, device=DEVICE)
    analytic = torch.autograd.grad(flash_attention(q, k, v), (q, k, v), dout)
    step = 1e-2
    with torch.no_grad():
        for place in range(3):
            moved = [
                [x + sign * step * direction if i == place else x for i, x in enumerate((q, k, v))]
                for sign in (1, -1)
            ]
            up, down = ((flash_attention(*inputs) * dout).sum() for inputs in moved)
            slope = float((up - down) / (2 * step))
            assert slope == pytest.approx(float((analytic[place] * direction).sum()), rel=2e-2, abs=2e-3)


def test_it_stays_in_a_compiled_graph() -> None:
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    tensors = drawn(1, 2, 1, 20, 20, 16, torch.float32)
    compiled = torch.compile(lambda *x: flash_attention(*x) * 2, fullgraph=True, backend=backend)
    dout = torch.randn(1, 2, 20, 16, device=DEVICE)
    found = with_gradients(compiled, tensors, dout)
    wanted = with_gradients(lambda *x: flash_attention(*x) * 2, tensors, dout)
    assert any("flash_attention" in target for target in targets)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_operator_passes_pytorchs_own_checks() -> None:
    q, k, v = drawn(1, 2, 1, 12, 12, 16, torch.float32)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.lmlib.flash_attention.default, (q, k, v, True, 0, 0.25), test_utils=tests)
    torch.library.opcheck(
        torch.ops.lmlib.flash_attention_backward.default,
        (q.detach(), q.detach(), k.detach(), v.detach(), q.detach(), q.detach()[..., 0], True, 0, 0.25),
        test_utils=tests,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 3, 4)}, "q must have 4 axes"),
        ({"k": torch.zeros(1, 2, 5, 8)}, "k and v must have one shape"),
        ({"q": torch.zeros(1, 2, 5, 16)}, "agree in batch and head dim"),
        ({"q": torch.zeros(1, 3, 5, 8)}, "multiple of those of k, got 3 and 2"),
        ({"q": torch.zeros(1, 2, 5, 8, dtype=torch.float64)}, "share dtype"),
        ({"window": 0}, "window must be at least 1"),
        ({"window": 4, "causal": False}, "needs causal=True"),
        ({"scale": -1.0}, "scale must be positive"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    x = torch.zeros(1, 2, 6, 8)
    with pytest.raises(ValueError, match=message):
        flash_attention(**({"q": x, "k": x, "v": x} | change))


def test_a_wrong_mask_would_be_seen() -> None:
    """The comparison above must fail for a kernel that is off by one."""
    tensors = drawn(1, 1, 1, 30, 30, 16, torch.float32)
    wrong = errors(tensors, function=lambda *x, window: flash_attention(*x, window=window + 1), window=4)
    assert min(wrong) > 100 * TOLERANCE[torch.float32]


# -- on a GPU ------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("H", "G", "T", "K"), [(4, 4, 2048, 64), (8, 2, 1537, 128), (2, 1, 1000, 256), (2, 2, 777, 80)]
)
def test_error_is_no_larger_than_pytorchs_flash_kernel(
    dtype: torch.dtype, causal: bool, H: int, G: int, T: int, K: int
) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    assert not INTERPRETED

    def flash(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=H != G)

    tensors = drawn(2, H, G, T, T, K, dtype)
    torch.manual_seed(0)
    ours = errors(tensors, causal=causal)
    torch.manual_seed(0)
    theirs = errors(tensors, function=flash, causal=causal)
    assert all(a < 1.1 * b for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("K", [64, 128])
def test_long_windowed_and_decoding_shapes_on_a_gpu(K: int) -> None:
    assert_close(drawn(1, 4, 2, 3000, 3000, K, torch.bfloat16), window=500)
    assert_close(drawn(2, 8, 2, 1, 4000, K, torch.bfloat16))
    assert_close(drawn(1, 2, 1, 500, 4000, K, torch.float16))
    assert_close(drawn(1, 2, 1, 1000, 1000, K, torch.float32))


@pytest.mark.gpu
def test_runs_are_bitwise_equal_on_a_gpu() -> None:
    tensors = drawn(2, 8, 8, 4096, 4096, 128, torch.bfloat16)
    dout = torch.randn(2, 8, 4096, 128, device="cuda", dtype=torch.bfloat16)
    first, *others = (with_gradients(flash_attention, tensors, dout) for _ in range(5))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.gpu
def test_memory_is_linear_in_length() -> None:
    def extra(T: int) -> int:
        q, k, v = (x.detach() for x in drawn(1, 4, 4, T, T, 64, torch.bfloat16))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out, lse = launch_forward(q, k, v, True, 0, 0.125)
        launch_backward(out, q, k, v, out, lse, True, 0, 0.125)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    assert extra(16384) < 2.1 * extra(8192)
