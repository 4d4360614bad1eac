"""RMSNorm: errors against float64 beside PyTorch's, layouts, repeatability, torch.compile, bad input."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import rms_norm
from kernels._runtime import DTYPES
from kernels.cuda import rms_norm as cuda

module = importlib.import_module("kernels.rms_norm")
SHAPES = ((1, 131), (2, 3, 64), (70, 33), (3, 1301))
Check = Callable[..., None]


def torchs(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, 1e-5)


def torchs_add(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torchs(x + residual, weight), x + residual


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: str, count: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, device=device).to(dtype) for _ in range(count)]


def compare(check: Check, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x, residual = draw(shape, dtype, device, 2)
    weight = torch.randn(shape[-1], device=device).to(dtype)
    check(lambda x, w: rms_norm(x, w, 1e-5), torchs, lambda x, w: module.reference(x, w, 1e-5), [x, weight])
    check(lambda x, r, w: rms_norm(x, w, 1e-5, r), torchs_add, torchs_add, [x, residual, weight])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_exact_as_pytorch(
    assert_as_exact: Check, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    compare(assert_as_exact, shape, dtype, device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        (4096, 512),
        (4096, 768),
        (900, 1100),
        (3000, 2048),
        (999, 4096),
        (2049, 4096),
        (1025, 8192),
        (300, 16_384),
        (99, 32_768),
    ],
)
def test_as_exact_as_pytorch_at_size(
    assert_as_exact: Check, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    compare(assert_as_exact, shape, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 131), (7, 33), (2, 3, 64)])
@pytest.mark.parametrize(
    "launch", [module.Launch(4, 2), *(module.Launch(1, 1, chunk=c) for c in (16, 64, 256))]
)
def test_whole_rows_and_chunks_are_as_exact(
    assert_as_exact: Check, shape: tuple[int, ...], dtype: torch.dtype, launch: module.Launch, device: str
) -> None:
    """Chunks that fill the row, that leave a rest, and one that is longer than the row."""
    x = draw(shape, dtype, device, 1)[0]
    weight = torch.randn(shape[-1], device=device).to(dtype)

    def ours(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        y, _, rstd = module.launch_forward(x, None, weight, 1e-5, launch)
        return y, rstd

    def exact(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        wide = x if x.dtype == torch.float64 else x.float()
        return module.reference(x, weight, 1e-5), torch.rsqrt(wide.square().mean(-1) + 1e-5)

    assert_as_exact(ours, lambda x, w: (torchs(x, w), exact(x, w)[1]), exact, [x, weight], gradients=False)


def test_chunks_of_strided_rows(device: str) -> None:
    wide = torch.randn(6, 80, device=device)
    weight = torch.randn(80, device=device)[::2]
    y, _, _ = module.launch_forward(wide[:, 20:60], None, weight, 1e-5, module.Launch(1, 1, chunk=16))
    assert torch.allclose(y, torchs(wide[:, 20:60], weight), rtol=1e-5, atol=1e-6)


def test_wide_rows_go_in_chunks_and_narrow_ones_and_sums_whole() -> None:
    device = torch.device("cpu")
    for rows in (1, 16, 17, 100_000):
        for columns in (1, 512, 1024):
            assert module.forward_launch(rows, columns, device).chunk == 0
        for columns in (1025, 2048, 5000, 16_384, module.MAX_COLUMNS):
            launch = module.forward_launch(rows, columns, device)
            assert launch.rows == 1
            assert 0 < launch.chunk < 2 * columns
            assert launch.warps <= 32
            assert module.forward_launch(rows, columns, device, add=True).chunk == 0


@pytest.mark.parametrize(
    ("columns", "chunk"),
    [
        *((1536, 512), (2048, 1024), (3072, 1024), (3584, 2048), (4096, 2048), (5120, 1024), (6144, 2048)),
        *((7168, 4096), (8192, 4096), (12_288, 4096), (16_384, 4096)),
    ],
)
def test_chunks_of_many_rows_fill_them(columns: int, chunk: int) -> None:
    """What was fastest, or within 1.5 % of it, on an H200."""
    launch = module.forward_launch(100_000, columns, torch.device("cpu"))
    assert (launch.chunk, launch.warps) == (chunk, chunk // 256)


def test_one_column(device: str) -> None:
    x = torch.tensor([[3.0], [-0.5]], device=device)
    assert torch.allclose(rms_norm(x, x.new_tensor([2.0]), 0.0), x.sign() * 2)


def test_strided_rows_are_read_in_place(device: str) -> None:
    wide = torch.randn(6, 80, device=device)
    x, residual = wide[:, :40], wide[:, 40:]
    weight = torch.randn(80, device=device)[::2]
    y, total = rms_norm(x, weight, residual=residual)
    assert torch.equal(total, x + residual)
    assert torch.allclose(y, module.reference(x + residual, weight), rtol=1e-5, atol=1e-6)
    turned = torch.randn(8, 6, device=device).mT
    assert torch.allclose(rms_norm(turned, weight[:8]), module.reference(turned, weight[:8]), atol=1e-6)


def test_mixed_dtypes(device: str) -> None:
    """A stream in float32, a branch in bfloat16: y like the branch, the sum like the stream."""
    x, residual = torch.randn(2, 5, 32, device=device)
    branch, weight = x.bfloat16().requires_grad_(), torch.randn(32, device=device, requires_grad=True)
    stream = residual.clone().requires_grad_()
    y, total = rms_norm(branch, weight, residual=stream)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    y.float().sum().backward()
    assert branch.grad is not None
    assert stream.grad is not None
    assert branch.grad.dtype == torch.bfloat16
    assert torch.equal(branch.grad, stream.grad.bfloat16())


def test_only_one_output_used(device: str) -> None:
    x, residual, weight = (torch.randn(4, 16, device=device, requires_grad=True) for _ in range(3))
    scale = weight[0]
    total = rms_norm(x, scale, residual=residual)[1]
    assert torch.equal(torch.autograd.grad(total.sum(), x)[0], torch.ones_like(x))
    y = rms_norm(x, scale, residual=residual)[0]
    alone = rms_norm(x + residual, scale)
    found, expected = (torch.autograd.grad(each.square().sum(), x)[0] for each in (y, alone))
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (3, 0)])
def test_empty(shape: tuple[int, ...], device: str) -> None:
    x = torch.randn(shape, device=device, requires_grad=True)
    weight = torch.randn(shape[-1], device=device, requires_grad=True)
    y, total = rms_norm(x, weight, residual=x)
    assert y.shape == total.shape == shape
    y.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_backward_is_bitwise_repeatable(device: str) -> None:
    rows = 20_000 if device == "cuda" else 40
    x, dy = draw((rows, 256), torch.bfloat16, device, 2)
    weight = torch.randn(256, device=device, dtype=torch.bfloat16)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    runs = [torch.autograd.grad(rms_norm(x, weight), leaves, dy) for _ in range(3)]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_every_launch_gives_the_same(device: str) -> None:
    """Tiles of several rows, few programs, several stages: the same numbers but for the order of sums."""
    x, dy = draw((21, 48), torch.float32, device, 2)
    weight = torch.randn(48, device=device)
    y, _, rstd = module.launch_forward(x, None, weight, 1e-6)
    gradients = module.launch_backward(dy, None, x, weight, rstd)
    for launch in (module.Launch(1, 1, chunk=16), module.Launch(4, 2, 1, 3), module.Launch(8, 4, 2, 2)):
        again, _, _ = module.launch_forward(x, None, weight, 1e-6, launch)
        assert torch.allclose(again, y, atol=1e-6)
        for a, b in zip(module.launch_backward(dy, None, x, weight, rstd, launch), gradients, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_torch_compile_keeps_the_operators(device: str) -> None:
    x, residual = (torch.randn(3, 32, device=device, requires_grad=True) for _ in range(2))
    weight = torch.randn(32, device=device, requires_grad=True)

    def function(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        y, total = rms_norm(2 * x, weight, residual=residual)
        return (rms_norm(y, weight) * total).sum()

    backend = "inductor" if device == "cuda" else "aot_eager"
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    leaves = (x, residual, weight)
    found = torch.autograd.grad(compiled(*leaves), leaves)
    for a, b in zip(found, torch.autograd.grad(function(*leaves), leaves), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
    torch.library.opcheck(torch.ops.lmlib.add_rms_norm.default, (x, residual, weight, 1e-6))


def test_beyond_the_kernel_the_reference_computes(device: str) -> None:
    wide = torch.randn(2, module.MAX_COLUMNS + 1, device=device)
    weight = torch.ones(module.MAX_COLUMNS + 1, device=device)
    assert torch.allclose(rms_norm(wide, weight), torchs(wide, weight), atol=1e-5)
    exact = wide[:, :9].double()
    assert rms_norm(exact, weight[:9].double()).dtype == torch.float64


def test_no_second_derivative_rather_than_a_wrong_one(device: str) -> None:
    x = torch.randn(2, 8, device=device, requires_grad=True)
    (dx,) = torch.autograd.grad(rms_norm(x, torch.ones_like(x[0])).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_bad_input_is_named(device: str) -> None:
    x = torch.randn(2, 8, device=device)
    with pytest.raises(ValueError, match=r"weight must have shape \(8,\).*got \(4,\)"):
        rms_norm(x, x[0, :4])
    with pytest.raises(ValueError, match=r"residual must have x's shape \(2, 8\), got \(1, 8\)"):
        rms_norm(x, x[0], residual=x[:1])
    with pytest.raises(ValueError, match="weight must have shape"):
        cuda.rms_norm(x, x[0, :4])


def test_cuda_version_falls_back(device: str) -> None:
    """Where it is not built, and for widths that it does not take."""
    x, weight = torch.randn(3, 7, device=device), torch.randn(7, device=device)
    assert torch.equal(cuda.rms_norm(x, weight), rms_norm(x, weight))


@pytest.mark.gpu
@pytest.mark.skipif(not cuda.available(), reason="no nvcc and ninja to build CUDA C++ with")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8), (2, 5, 768), (3000, 1024), (700, 4096), (301, 8192)])
def test_cuda_version_is_as_exact_as_pytorch(
    assert_as_exact: Check, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    x = draw(shape, dtype, device, 1)[0]
    weight = torch.randn(shape[-1], device=device).to(dtype)
    assert cuda.takes(x, weight)
    ours = lambda x, w: cuda.rms_norm(x, w, 1e-5)  # noqa: E731
    assert_as_exact(ours, torchs, lambda x, w: module.reference(x, w, 1e-5), [x, weight])
