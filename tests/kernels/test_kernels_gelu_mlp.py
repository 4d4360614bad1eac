"""GPT-2's feed-forward: errors against float64 beside PyTorch's, GELU at its extremes, missing biases."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import gelu_mlp
from kernels._rows import add_parts, column_sums
from kernels._runtime import DTYPES, tl, triton

module = importlib.import_module("kernels.gelu_mlp")
_gelu_parts = module._gelu_parts
Check = Callable[..., None]
NAMES = ("x", "w_up", "b_up", "w_down", "b_down")


def torchs(
    x: Tensor,
    w_up: Tensor,
    b_up: Tensor | None,
    w_down: Tensor,
    b_down: Tensor | None,
    approximate: str = "none",
) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w_up, b_up), approximate=approximate), w_down, b_down)


def draw(
    shape: tuple[int, ...], inner: int, out: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[Tensor]:
    """x of a shape, and what belongs to it."""
    torch.manual_seed(0)
    width = shape[-1]
    drawn = [
        torch.randn(shape, device=device),
        torch.randn(inner, width, device=device) * max(width, 1) ** -0.5,
        torch.randn(inner, device=device) * 0.3,
        torch.randn(out, inner, device=device) * max(inner, 1) ** -0.5,
        torch.randn(out, device=device) * 0.3,
    ]
    return [each.to(dtype) for each in drawn]


def gradients(function: Callable[..., Tensor], tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """The output, and the gradients of those tensors that want one."""
    y = function(*tensors)
    leaves = [each for each in tensors if each is not None and each.requires_grad]
    upstream = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape).to(y.dtype)
    return [y, *torch.autograd.grad(y, leaves, upstream)]


def assert_same(
    tensors: Sequence[Tensor | None], rtol: float = 1e-5, atol: float = 2e-6, ours: Callable = gelu_mlp
) -> None:
    for found, expected in zip(gradients(ours, tensors), gradients(torchs, tensors), strict=True):
        assert found.dtype == expected.dtype
        assert torch.allclose(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["none", "tanh"])
@pytest.mark.parametrize(("shape", "inner"), [((1, 13), 70), ((2, 3, 16), 64), ((150, 9), 33), ((5, 1), 24)])
def test_as_exact_as_pytorch(
    assert_as_exact: Check, shape: tuple[int, ...], inner: int, form: str, dtype: torch.dtype, device: str
) -> None:
    ours, theirs = (partial(each, approximate=form) for each in (gelu_mlp, torchs))
    assert_as_exact(ours, theirs, theirs, draw(shape, inner, shape[-1] + 2, dtype, device))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["none", "tanh"])
@pytest.mark.parametrize(
    ("rows", "width", "inner"), [(4096, 768, 3072), (1025, 1600, 6400), (1032, 1600, 6400), (33, 72, 1000)]
)
def test_as_exact_as_pytorch_at_size(
    assert_as_exact: Check, rows: int, width: int, inner: int, form: str, dtype: torch.dtype, device: str
) -> None:
    ours, theirs = (partial(each, approximate=form) for each in (gelu_mlp, torchs))
    assert_as_exact(ours, theirs, theirs, draw((rows, width), inner, width, dtype, device))


def exact_gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    """gelu and its derivative in float64, by erfc: the tails keep all their digits."""
    z = z.double()
    below = 0.5 * torch.special.erfc(-z * math.sqrt(0.5))
    return z * below, below + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def points(dtype: torch.dtype, device: str) -> Tensor:
    small = torch.logspace(-7, -2, 50, dtype=torch.float64)
    z = torch.cat([torch.linspace(-9, 9, 4001, dtype=torch.float64), small, -small, torch.zeros(1)])
    return torch.cat([z, torch.tensor([-50.0, 50.0, -300.0, 300.0])]).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore:underflow:RuntimeWarning")
def test_gelu_and_its_derivative_at_every_point(dtype: torch.dtype, device: str) -> None:
    """To float32's rounding of Phi, beside 0 and in the tails; 16 bits add the rounding of the result."""
    z = points(dtype, device)
    unit = {torch.float32: 2.0**-22, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    share = 2.0**-23 if dtype == torch.float32 else 2e-7  # of Phi: the formula for 16 bits is off by 1e-7
    value, slope = exact_gelu(z)
    least = 2.0**-24 if dtype == torch.float16 else 0  # float16's smallest number
    off = (module.launch_gelu(z).double() - value).abs()
    assert (off <= unit * value.abs() + share * z.double().abs() + least).all()
    found, sums = module.launch_gelu_backward(torch.ones_like(z)[None], z[None])
    assert ((found[0].double() - slope).abs() <= unit * slope.abs() + 3 * share).all()
    assert torch.equal(sums, found[0])  # of one row
    assert found[0, -4:].tolist() == [0, 1, 0, 1]
    assert module.launch_gelu(z)[-4:].tolist() == [0, 50, 0, 300]


def exact_tanh_gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    """The GELU by tanh and its derivative in float64, by tanh itself."""
    z = z.double()
    inner = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
    below, slope = (1 + torch.tanh(inner)) / 2, math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    return z * below, below + z * slope / (2 * torch.cosh(inner.clamp(-300, 300)) ** 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore:(underflow|overflow):RuntimeWarning")
def test_the_gelu_by_tanh_at_every_point(dtype: torch.dtype, device: str) -> None:
    """As above; PyTorch's own, to which float64 is no stranger, agrees with what it is held against."""
    z = points(dtype, device)
    value, slope = exact_tanh_gelu(z)
    assert torch.allclose(value, F.gelu(z.double(), approximate="tanh"), rtol=1e-12, atol=1e-14)
    unit = {torch.float32: 2.0**-20, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    least = 2.0**-24 if dtype == torch.float16 else 0
    share = 2.0**-22
    off = (module.launch_gelu(z, True).double() - value).abs()
    assert (off <= unit * value.abs() + share * z.double().abs() + least).all()
    found, sums = module.launch_gelu_backward(torch.ones_like(z)[None], z[None], True)
    assert ((found[0].double() - slope).abs() <= unit * slope.abs() + 20 * share).all()
    assert torch.equal(sums, found[0])  # of one row
    assert found[0, -4:].tolist() == [0, 1, 0, 1]
    huge = torch.tensor(
        [[-1e4, 1e4] if dtype == torch.float16 else [-1e20, 1e20]], device=device, dtype=dtype
    )
    assert module.launch_gelu_backward(torch.ones_like(huge), huge, True)[0].tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (515, 256), (0, 5)])
def test_sums_of_columns(dtype: torch.dtype, shape: tuple[int, int], device: str) -> None:
    """To the rounding of the result, as they are taken in float32."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    found, exact = column_sums(x), x.double().sum(0)
    unit = {torch.float32: 2.0**-20, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[
        dtype
    ]  # the interpreter cuts off
    assert found.dtype == dtype
    assert ((found - exact).abs() <= unit * exact.abs() + 2.0**-20 * x.double().abs().sum(0)).all()


@pytest.mark.parametrize("biased", [True, False])
def test_columns_are_added_up_only_for_a_bias(
    biased: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where cuBLASLt makes dpre, that is a pass over memory of its own; PyTorch stands in for it here."""

    def gelu_backward(dy: Tensor, weight: Tensor, pre: Tensor) -> Tensor:
        return torch.ops.aten.gelu_backward(dy @ weight, pre, approximate="tanh")

    def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        pre = F.linear(x, weight, bias)
        return F.gelu(pre, approximate="tanh"), pre

    calls = []
    monkeypatch.setattr(module.cublaslt, "fits", lambda *_: True)
    monkeypatch.setattr(module.cublaslt, "gelu_backward", gelu_backward)
    monkeypatch.setattr(module.cublaslt, "linear_gelu", linear_gelu)
    monkeypatch.setattr(module, "column_sums", lambda x: (calls.append(1), x.sum(0))[1])
    x, w_up, b_up, w_down, b_down = (each.requires_grad_() for each in draw((7, 12), 20, 12, device=device))
    given = (x, w_up, b_up if biased else None, w_down, b_down)
    wanted = [each for each in given if each is not None]
    found = torch.autograd.grad(gelu_mlp(*given, "tanh").square().sum(), wanted)
    expected = torch.autograd.grad(torchs(*given, "tanh").square().sum(), wanted)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    assert len(calls) == biased


@triton.jit
def _parts_kernel(Z, BELOW, MORE, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    below, more = _gelu_parts(tl.load(Z + at, mask=at < count, other=0.0), "quick")
    tl.store(BELOW + at, below, mask=at < count)
    tl.store(MORE + at, more, mask=at < count)


def test_the_quick_formula_is_right_to_float32(device: str) -> None:
    """What 16 bits use, seen before it is rounded to them: formula 7.1.26 is off by 0.75e-7 itself."""
    z = points(torch.float32, device)
    below, more = torch.empty_like(z), torch.empty_like(z)
    _parts_kernel[(module.cdiv(len(z), 512),)](z, below, more, len(z), BLOCK=512)
    exact = 0.5 * torch.special.erfc(-z.double() * math.sqrt(0.5))
    assert (below.double() - exact).abs().max() < 2.0**-22
    assert (below.double() + more.double() - exact_gelu(z)[1]).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_inner_values(dtype: torch.dtype, device: str) -> None:
    x = torch.tensor([[-50.0], [50.0], [0.0]], device=device, dtype=dtype, requires_grad=True)
    one = torch.ones(1, 1, device=device, dtype=dtype)
    y = gelu_mlp(x, one, None, one, None)
    assert y.flatten().tolist() == [0, 50, 0]
    assert torch.autograd.grad(y.sum(), x)[0].flatten().tolist() == [0, 1, 0.5]


@pytest.mark.parametrize("missing", [(), ("b_up",), ("b_down",), ("b_up", "b_down")])
def test_missing_biases(missing: tuple[str, ...], device: str) -> None:
    tensors = [each.requires_grad_() for each in draw((7, 12), 20, 12, device=device)]
    given = [None if name in missing else each for name, each in zip(NAMES, tensors, strict=True)]
    assert_same(given)


@pytest.mark.parametrize("wanted", NAMES)
def test_what_is_frozen_gets_no_gradient(wanted: str, device: str) -> None:
    tensors = dict(zip(NAMES, draw((7, 12), 20, 12, device=device), strict=True))
    tensors[wanted].requires_grad_()
    gelu_mlp(*tensors.values()).sum().backward()
    assert [name for name in NAMES if tensors[name].grad is not None] == [wanted]
    assert_same(list(tensors.values()))


def test_no_gradient_asked_for(device: str) -> None:
    tensors = draw((7, 12), 20, 12, device=device)
    y = gelu_mlp(*tensors)
    assert not y.requires_grad
    assert torch.allclose(y, torchs(*tensors), atol=1e-6)


def test_many_rows_meet_in_the_gradient_of_the_bias(device: str) -> None:
    """More rows than the second pass adds at once, of one sign: a part left out or added twice is seen."""
    rows = module.ROWS * module.STEPS * (300 if device == "cuda" else 3) + 1
    dh, pre = torch.rand(2, rows, 300, device=device)
    dpre, sums = module.launch_gelu_backward(dh, pre)
    assert torch.allclose(dpre, (dh * exact_gelu(pre)[1]).float(), atol=1e-6)
    assert torch.allclose(sums.double(), (dh * exact_gelu(pre)[1]).sum(0), rtol=1e-6)
    for count in (1, 129, 300):
        parts, out = torch.rand(count, 70, device=device), torch.empty(70, device=device)
        assert torch.allclose(add_parts(parts, out), parts.sum(0), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "inner", "out"),
    [((0, 8), 12, 8), ((2, 0, 8), 12, 8), ((3, 0), 12, 8), ((3, 8), 0, 8), ((3, 8), 5, 0)],
)
def test_empty(shape: tuple[int, ...], inner: int, out: int, device: str) -> None:
    tensors = [each.requires_grad_() for each in draw(shape, inner, out, device=device)]
    assert_same(tensors)
    assert gelu_mlp(*tensors).shape == (*shape[:-1], out)


def test_any_layout(device: str) -> None:
    x = torch.randn(3, 4, 24, device=device)[..., ::2]
    w_up, w_down = torch.randn(12, 20, device=device).mT, torch.randn(40, 12, device=device)[::2].mT
    biases = torch.randn(40, 2, device=device)
    tensors = [x, w_up, biases[:20, 0], w_down, biases[::3, 1][:12]]
    assert_same([each.requires_grad_() for each in tensors], atol=1e-5)
    turned = torch.randn(12, 3, 4, device=device).permute(1, 2, 0).requires_grad_()
    assert_same([turned, *tensors[1:]], atol=1e-5)
    y = gelu_mlp(*tensors)
    dy = torch.randn(*y.shape[::-1], device=device).permute(2, 1, 0)  # nor is what comes back contiguous
    for found, expected in zip(
        *(torch.autograd.grad(each(*tensors), tensors, dy) for each in (gelu_mlp, torchs)), strict=True
    ):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_vector_is_one_row(device: str) -> None:
    assert_same([each.requires_grad_() for each in draw((9,), 14, 5, device=device)])


def test_the_same_bits_on_every_run(device: str) -> None:
    rows = 8192 if device == "cuda" else 300
    tensors = [each.requires_grad_() for each in draw((rows, 32), 96, 32, torch.bfloat16, device)]
    runs = [gradients(gelu_mlp, tensors) for _ in range(3)]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_under_autocast_products_take_16_bits(device: str) -> None:
    tensors = [each.requires_grad_() for each in draw((7, 12), 20, 12, device=device)]

    def autocast(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def cast(*inputs: Tensor) -> Tensor:
            with torch.autocast(device, dtype=torch.bfloat16):
                return function(*inputs)

        return cast

    found, expected, exact = (
        gradients(each, tensors) for each in (autocast(gelu_mlp), autocast(torchs), torchs)
    )
    assert found[0].dtype == torch.bfloat16
    for mine, theirs, right in zip(found, expected, exact, strict=True):
        assert mine.dtype == theirs.dtype
        assert 0 < (mine - right).norm() <= 2.5 * (theirs - right).norm() + 2**-8 * right.norm()


def test_torch_compile_keeps_the_operators(device: str) -> None:
    tensors = [each.requires_grad_() for each in draw((2, 5, 12), 20, 12, device=device)]

    def function(x: Tensor, *rest: Tensor) -> Tensor:
        return gelu_mlp(gelu_mlp(2 * x, *rest), *rest)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled, tensors), gradients(function, tensors), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_operators_keep_pytorchs_rules(device: str) -> None:
    tensors = [each.requires_grad_() for each in draw((5, 12), 20, 12, device=device)]
    operators = torch.ops.lmlib
    torch.library.opcheck(operators.gelu_mlp.default, (*tensors, False))
    x, w_up, _, w_down, _ = tensors
    torch.library.opcheck(operators.gelu_mlp.default, (x, w_up, None, w_down, None, True))
    pre = torch.randn(5, 20, device=device)
    torch.library.opcheck(operators.gelu_backward.default, (x.detach(), w_down.detach(), pre, False, True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_equals_eager_on_a_gpu(dtype: torch.dtype, device: str) -> None:
    tensors = [each.requires_grad_() for each in draw((300, 128), 512, 128, dtype, device)]
    compiled = torch.compile(gelu_mlp, fullgraph=True)
    for found, expected in zip(gradients(compiled, tensors), gradients(gelu_mlp, tensors), strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_beyond_the_kernel_the_reference_computes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def launched(*_: object) -> None:
        raise AssertionError("no kernel takes this")

    monkeypatch.setattr(module, "_operator", launched)
    tensors = [each.double().requires_grad_() for each in draw((3, 5), 7, 4, device=device)]
    assert torch.autograd.gradcheck(gelu_mlp, tensors)
    with pytest.raises(AssertionError, match="no kernel"):
        gelu_mlp(*(each.float() for each in tensors))


def test_no_second_derivative_rather_than_a_wrong_one(device: str) -> None:
    x, *rest = draw((3, 5), 7, 4, device=device)
    x.requires_grad_()
    (dx,) = torch.autograd.grad(gelu_mlp(x, *rest).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def _with(name: str, change: Callable[[Tensor], Tensor], device: str) -> list[Tensor]:
    tensors = dict(zip(NAMES, draw((3, 5), 7, 4, device=device), strict=True))
    return list({**tensors, name: change(tensors[name])}.values())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("w_up", lambda w: w[:, :4], r"w_up must be \(F, 5\) for x of shape \(3, 5\), got \(7, 4\)"),
        ("w_up", lambda w: w[0], r"w_up must be \(F, 5\).*got \(5,\)"),
        ("x", lambda x: x[0, 0], r"x must have at least one axis"),
        ("w_down", lambda w: w[:, :6], r"w_down must be \(E, 7\), got \(4, 6\)"),
        ("b_up", lambda b: b[:1], r"b_up must be \(7,\), got \(1,\)"),
        ("b_down", lambda b: b[None], r"b_down must be \(4,\), got \(1, 4\)"),
        ("b_up", Tensor.bfloat16, r"b_up must have x's dtype, torch.float32, got torch.bfloat16"),
        ("w_down", Tensor.double, r"w_down must have x's dtype, torch.float32, got torch.float64"),
    ],
)
def test_what_does_not_fit_is_named(
    name: str, change: Callable[[Tensor], Tensor], message: str, device: str
) -> None:
    with pytest.raises(ValueError, match=message):
        gelu_mlp(*_with(name, change, device))


def test_another_approximation_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="approximate must be 'none' or 'tanh', got 'erf'"):
        gelu_mlp(*draw((3, 5), 7, 4, device=device), approximate="erf")


@pytest.mark.parametrize("name", NAMES)
def test_integers_are_refused_by_name(name: str, device: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must hold floating-point numbers, got torch.int64"):
        gelu_mlp(*_with(name, Tensor.long, device))
