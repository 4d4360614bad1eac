"""LayerNorm: errors against float64 beside PyTorch's, layouts, large means, repeatability, bad input."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import layer_norm
from kernels._runtime import DTYPES

module = importlib.import_module("kernels.layer_norm")
Check = Callable[..., None]


def torchs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, 1e-5)


def torchs_add(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torchs(x + residual, weight, bias), x + residual


def ours_add(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return layer_norm(x, weight, bias, 1e-5, residual)


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: str, count: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, device=device).to(dtype) for _ in range(count)]


def compare(check: Check, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x, residual = draw(shape, dtype, device, 2)
    weight, bias = torch.randn(2, shape[-1], device=device).to(dtype)
    check(layer_norm, torchs, module.reference, [x, weight, bias])
    check(ours_add, torchs_add, torchs_add, [x, residual, weight, bias])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 131), (2, 3, 64), (70, 33)])
def test_as_exact_as_pytorch(
    assert_as_exact: Check, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    compare(assert_as_exact, shape, dtype, device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(4096, 512), (4096, 768), (3000, 2048), (2049, 4096), (1025, 8192), (300, 16_384)]
)
def test_as_exact_as_pytorch_at_size(
    assert_as_exact: Check, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    compare(assert_as_exact, shape, dtype, device)


@pytest.mark.parametrize(
    ("columns", "whole", "warps"),
    [
        *((768, True, 1), (2048, True, 2), (2049, False, 2), (4096, False, 4), (5120, False, 4)),
        *((8192, False, 8), (16_384, False, 16)),
    ],
)
def test_what_the_forward_holds_whole(
    columns: int, whole: bool, warps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Narrow rows and sums; wide rows take four chunks or more, 16 bytes a lane, marked where none is cut."""
    seen = []

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *_, **options: seen.append((self.name, grid, options))

    for name in ("_forward", "_forward_in_chunks"):
        monkeypatch.setattr(module, name, Kernel(name))
    x = torch.zeros(3, columns, dtype=torch.bfloat16)
    module.launch_forward(x, None, None, x[0], x[0], 1e-5)
    module.launch_forward(x, None, x, x[0], x[0], 1e-5)
    (name, grid, options), (summed, _, of_sum) = seen
    assert (name, grid, options["num_warps"]) == ("_forward" if whole else "_forward_in_chunks", (3,), warps)
    assert (summed, of_sum["BLOCK"] >= columns) == ("_forward", True)
    if not whole:
        assert options["CHUNK"] == 256 * warps <= columns / 4
        assert options["VECTOR"] == 8
        assert options["EVEN"] == (columns != 2049)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [8, 16, 64, 256])
@pytest.mark.parametrize("shape", [(1, 131), (7, 33), (2, 3, 64)])
def test_chunks_are_as_exact(
    assert_as_exact: Check, shape: tuple[int, ...], dtype: torch.dtype, chunk: int, device: str
) -> None:
    """Chunks that fill the row, that leave a rest, and one that is longer than the row."""
    x = torch.randn(shape, device=device).to(dtype)
    weight, bias = torch.randn(2, shape[-1], device=device).to(dtype)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        launch = module.Launch(1, 1, chunk=chunk)
        y, _, stats = module.launch_forward(x, None, None, weight, bias, 1e-5, launch)
        return y, stats

    def by(norm: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
        def both(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            wide = (x if x.dtype == torch.float64 else x.float()).flatten(0, -2)
            rstd = torch.rsqrt(wide.var(-1, correction=0) + 1e-5)
            return norm(x, x.shape[-1:], weight, bias, 1e-5), torch.stack([wide.mean(-1), rstd])

        return both

    assert_as_exact(ours, by(F.layer_norm), by(F.layer_norm), [x, weight, bias], gradients=False)


def test_chunks_of_strided_rows(device: str) -> None:
    wide = torch.randn(6, 80, device=device)
    weight, bias = torch.randn(2, 80, device=device)[:, ::2]
    y, _, _ = module.launch_forward(
        wide[:, 20:60], None, None, weight, bias, 1e-5, module.Launch(1, 1, chunk=16)
    )
    assert torch.allclose(y, torchs(wide[:, 20:60], weight, bias), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("far", ["row", "first", "last"])
@pytest.mark.parametrize("columns", [64, 77])
def test_chunks_of_rows_far_from_zero(columns: int, far: str, device: str) -> None:
    """A row at 1,000; and one value of 10,000, which many are compared with if it comes first."""
    x = torch.randn(3, columns, device=device)
    if far == "row":
        x += 1000
    else:
        x[:, 0 if far == "first" else -1] = 10_000
    weight, bias = torch.ones(2, columns, device=device)
    _, _, stats = module.launch_forward(x, None, None, weight, bias, 1e-5, module.Launch(1, 1, chunk=16))
    exact = torch.rsqrt(x.double().var(-1, correction=0) + 1e-5)
    assert (stats[1].double() / exact - 1).abs().max() < 5e-7


@pytest.fixture
def few_adders(monkeypatch: pytest.MonkeyPatch) -> None:
    """One program adds many columns: of wide rows the interpreter would have thousands."""
    monkeypatch.setattr("kernels._rows.ADD_COLUMNS", 512)


@pytest.mark.usefixtures("few_adders")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [module.HELD_COLUMNS + 1, 12_345, module.MAX_COLUMNS])
def test_rows_that_are_read_twice(
    assert_as_exact: Check, columns: int, dtype: torch.dtype, device: str
) -> None:
    """Five rows by the interpreter's two programs: each keeps sums over several."""
    compare(assert_as_exact, (5, columns), dtype, device)


@pytest.mark.parametrize(("columns", "twice"), [(768, False), (8192, False), (8193, True), (16_384, True)])
def test_only_rows_that_would_spill_are_read_twice(
    columns: int, twice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *_, **options: seen.append((self.name, options["BLOCK"] >= columns))

    for name in ("_backward", "_backward_in_two_reads"):
        monkeypatch.setattr(module, name, Kernel(name))
    monkeypatch.setattr(module, "add_parts", lambda *_: None)
    x = torch.zeros(3, columns)
    module.launch_backward(x, None, x, x[0], torch.zeros(2, 3), False)
    assert seen == [("_backward_in_two_reads" if twice else "_backward", True)]


def test_rows_of_one_column_leave_the_bias(device: str) -> None:
    x = torch.tensor([[3.0], [-0.5]], device=device, requires_grad=True)
    bias = x.detach().new_tensor([0.25]).requires_grad_()
    y = layer_norm(x, bias.detach() + 2, bias)
    assert torch.equal(y, bias.detach().expand(2, 1))
    dx, dbias = torch.autograd.grad(y.sum(), (x, bias))
    assert not dx.any()
    assert torch.equal(dbias, dbias.new_tensor([2.0]))


def test_a_vector_is_one_row(device: str) -> None:
    x, weight, bias = draw((24,), torch.float32, device, 3)
    assert torch.allclose(layer_norm(x, weight, bias), torchs(x, weight, bias), atol=1e-6)


def test_strided_rows_are_read_in_place(device: str) -> None:
    wide = torch.randn(6, 80, device=device, requires_grad=True)
    weight, bias = torch.randn(80, 2, device=device)[::2].unbind(1)
    upstream = torch.randn(2, 6, 40, device=device)

    def both(function: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        outputs = function(wide[:, :40], wide[:, 40:], weight, bias)
        return *outputs, torch.autograd.grad(outputs, wide, list(upstream))[0]

    for found, expected in zip(both(ours_add), both(torchs_add), strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_other_layouts_are_copied(device: str) -> None:
    turned = torch.randn(8, 2, 6, device=device).permute(1, 2, 0)
    weight, bias = torch.randn(2, 8, device=device)
    leaf = turned.requires_grad_()
    found, expected = (each(leaf, weight, bias) for each in (layer_norm, torchs))
    assert torch.allclose(found, expected, atol=1e-6)
    dy = torch.randn(8, 2, 6, device=device).permute(1, 2, 0)  # nor is what comes back contiguous
    ours, theirs = (torch.autograd.grad(each, leaf, dy)[0] for each in (found, expected))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=2e-6)


def test_a_large_mean_does_not_cancel(device: str) -> None:
    """At a mean of 1e4 the squares are 1e8, whose last bit in float32 is 8: their mean says nothing."""
    torch.manual_seed(0)
    x = torch.randn(5, 300, device=device) + 1e4
    weight, bias = torch.ones(300, device=device), torch.zeros(300, device=device)
    exact = torchs(x.double(), weight.double(), bias.double())
    found = layer_norm(x, weight, bias)
    # float32 at 1e4 is rounded to 2**-10: the mean is off by half of that, and by as much by its sum.
    assert (found - exact).abs().max() < 3 * 2**-11
    assert (found.std(-1).double() / exact.std(-1) - 1).abs().max() < 1e-6


def test_a_residual_that_is_x_itself(device: str) -> None:
    leaf, weight, bias, dy = draw((4, 24), torch.float32, device, 4)
    leaf.requires_grad_()
    outputs = [each(leaf, leaf, weight[0], bias[0]) for each in (ours_add, torchs_add)]
    assert torch.equal(outputs[0][1], 2 * leaf)
    found, expected = (torch.autograd.grad(each, leaf, [dy, dy.flip(0)])[0] for each in outputs)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_only_one_output_used(device: str) -> None:
    x, residual, weight, bias = (torch.randn(4, 16, device=device, requires_grad=True) for _ in range(4))
    total = layer_norm(x, weight[0], bias[0], residual=residual)[1]
    leaves = (x, residual, weight, bias)
    dx, dresidual, *none = torch.autograd.grad(total.sum(), leaves, allow_unused=True)
    assert torch.equal(dx, torch.ones_like(x))
    assert torch.equal(dresidual, dx)
    assert not any(each.any() for each in none if each is not None)
    y = layer_norm(x, weight[0], bias[0], residual=residual)[0]
    alone = layer_norm(x + residual, weight[0], bias[0])
    for found, expected in zip(
        *(torch.autograd.grad(each.square().sum(), leaves) for each in (y, alone)), strict=True
    ):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_stream_in_float32_and_a_branch_in_bfloat16(device: str) -> None:
    """y like the branch, the sum like the stream, and gradients like what they belong to."""
    x, residual, weight, bias = torch.randn(4, 5, 32, device=device)
    branch, stream = x.bfloat16().requires_grad_(), residual.clone().requires_grad_()
    scale, shift = weight[0].clone().requires_grad_(), bias[0].clone().requires_grad_()
    y, total = layer_norm(branch, scale, shift, residual=stream)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(total, branch.float() + stream)
    grads = torch.autograd.grad(y.float().square().sum(), (branch, stream, scale, shift))
    assert [each.dtype for each in grads] == [torch.bfloat16] + [torch.float32] * 3
    assert torch.equal(grads[0], grads[1].bfloat16())


def test_what_is_frozen_gets_no_gradient(device: str) -> None:
    tensors = draw((4, 16), torch.float32, device, 4)
    tensors[1:3] = [each[0].clone() for each in tensors[1:3]]
    x, weight, bias, residual = tensors
    for wanted in tensors:
        for each in tensors:
            each.requires_grad_(each is wanted)
            each.grad = None
        y, total = layer_norm(x, weight, bias, residual=residual)
        (y * total.detach()).sum().backward()
        assert [each.grad is not None for each in tensors] == [each is wanted for each in tensors]
        y, total = torchs_add(x, residual, weight, bias)
        (expected,) = torch.autograd.grad((y * total.detach()).sum(), wanted)
        assert torch.allclose(wanted.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (3, 0)])
def test_empty(shape: tuple[int, ...], device: str) -> None:
    x = torch.randn(shape, device=device, requires_grad=True)
    weight, bias = (torch.randn(shape[-1], device=device, requires_grad=True) for _ in range(2))
    y, total = layer_norm(x, weight, bias, residual=x)
    assert y.shape == total.shape == layer_norm(x, weight, bias).shape == shape
    y.sum().backward()
    for each in (weight, bias):
        assert each.grad is not None
        assert not each.grad.any()


@pytest.mark.usefixtures("few_adders")
@pytest.mark.parametrize("columns", [256, 9000])
def test_backward_is_bitwise_repeatable(device: str, columns: int) -> None:
    rows = 20_000 if device == "cuda" else 40
    x, residual, dy = draw((rows, columns), torch.bfloat16, device, 3)
    weight, bias = torch.randn(2, columns, device=device, dtype=torch.bfloat16)
    leaves = [each.requires_grad_() for each in (x, residual, weight.clone(), bias.clone())]
    runs = [torch.autograd.grad(ours_add(*leaves), leaves, [dy, dy]) for _ in range(3)]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


@pytest.mark.usefixtures("few_adders")
@pytest.mark.parametrize(("rows", "columns"), [(1, 48), (21, 48), (5, 9001)])
def test_a_shift_is_added_and_gets_its_gradient(device: str, rows: int, columns: int) -> None:
    """Of norm and sum together, and of the sum alone; float64 adds all three."""
    x, residual = draw((rows, columns), torch.bfloat16, device, 2)
    weight, bias, shift = torch.randn(3, columns, device=device).bfloat16()
    upstream = torch.randn(2, rows, columns, device=device).bfloat16()
    for outputs in ((0, 1), (1,)):
        found = [each.clone().requires_grad_() for each in (x, weight, bias, residual, shift)]
        exact = [each.double().requires_grad_() for each in (x, weight, bias, residual, shift)]
        for function, leaves in ((layer_norm, found), (module.reference, exact)):
            x_, weight_, bias_, residual_, shift_ = leaves
            results = function(x_, weight_, bias_, 1e-5, residual_, shift_)
            sent = [upstream[place].to(results[place].dtype) for place in outputs]
            torch.autograd.backward([results[place] for place in outputs], sent)
        for a, b in zip(found, exact, strict=True):
            if b.grad is not None:
                assert a.grad is not None
                assert (a.grad.double() - b.grad).norm() <= 0.02 * b.grad.norm()
        assert found[4].grad is not None


def test_a_shift_without_a_residual_is_refused(device: str) -> None:
    x = torch.randn(3, 8, device=device)
    with pytest.raises(ValueError, match="shift needs a residual"):
        layer_norm(x, x[0], x[0], shift=x[0])
    with pytest.raises(ValueError, match=r"shift must have shape \(8,\)"):
        layer_norm(x, x[0], x[0], residual=x, shift=x[0, :4])


def test_every_launch_gives_the_same(device: str) -> None:
    """Tiles of several rows, few programs, several stages: the same numbers but for the order of sums."""
    x, dy = draw((21, 48), torch.float32, device, 2)
    weight, bias = torch.randn(2, 48, device=device)
    _, _, stats = module.launch_forward(x, None, None, weight, bias, 1e-6)
    gradients = module.launch_backward(dy, None, x, weight, stats, False)
    for launch in (module.Launch(1, 1), module.Launch(4, 2, 1, 3), module.Launch(8, 4, 2, 2)):
        again = module.launch_backward(dy, None, x, weight, stats, False, launch)
        for a, b in zip(again, gradients, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_torch_compile_keeps_the_operators(device: str) -> None:
    x, residual = (torch.randn(3, 32, device=device, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(32, device=device, requires_grad=True) for _ in range(2))

    def function(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, total = layer_norm(2 * x, weight, bias, residual=residual)
        return (layer_norm(y, weight, bias) * total).sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    leaves = (x, residual, weight, bias)
    for a, b in zip(
        *(torch.autograd.grad(each(*leaves), leaves) for each in (compiled, function)), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_operators_keep_pytorchs_rules(device: str) -> None:
    x, residual = (torch.randn(3, 32, device=device, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(32, device=device, requires_grad=True) for _ in range(2))
    operators = torch.ops.lmlib
    torch.library.opcheck(operators.layer_norm.default, (x, weight, bias, 1e-6))
    torch.library.opcheck(operators.add_layer_norm.default, (x, bias, residual, weight, bias, 1e-6))
    torch.library.opcheck(operators.add_layer_norm.default, (x, None, residual, weight, bias, 1e-6))
    stats = operators.layer_norm(x, weight, bias, 1e-6)[1]
    plain = (x.detach(), residual.detach(), weight.detach(), stats)
    torch.library.opcheck(operators.layer_norm_backward.default, (plain[0], None, *plain[1:], True))
    torch.library.opcheck(operators.layer_norm_backward.default, (plain[0], *plain, False))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_equals_eager_on_a_gpu(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(300, 768, device=device, dtype=dtype, requires_grad=True) for _ in range(2)]
    leaves += [torch.randn(768, device=device, dtype=dtype, requires_grad=True) for _ in range(2)]
    compiled = torch.compile(ours_add, fullgraph=True)
    runs = []
    for each in (compiled, ours_add):
        outputs = each(*leaves)
        runs.append([*outputs, *torch.autograd.grad(outputs, leaves, outputs)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_beyond_the_kernel_the_reference_computes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = module.MAX_COLUMNS + 1
    wide, weight, bias = torch.randn(2, columns, device=device), *torch.randn(2, columns, device=device)

    def launched(*_: object) -> None:
        raise AssertionError("no kernel takes this")

    monkeypatch.setattr(module, "_layer_norm", launched)
    monkeypatch.setattr(module, "_add_layer_norm", launched)
    assert torch.allclose(layer_norm(wide, weight, bias), torchs(wide, weight, bias), atol=1e-5)
    exact, scale, shift = wide[:, :9].double(), weight[:9].double(), bias[:9].double()
    y, total = layer_norm(exact, scale, shift, residual=exact)
    assert total.dtype == torch.float64
    assert torch.allclose(y, torchs(2 * exact, scale, shift), rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(layer_norm, [each.requires_grad_() for each in (exact, scale, shift)])
    with pytest.raises(AssertionError, match="no kernel"):
        layer_norm(wide[:, :9], weight[:9], bias[:9])


def test_no_second_derivative_rather_than_a_wrong_one(device: str) -> None:
    x = torch.randn(2, 8, device=device, requires_grad=True)
    one, zero = torch.ones(8, device=device), torch.zeros(8, device=device)
    for y in (layer_norm(x, one, zero), layer_norm(x, one, zero, residual=x)[0]):
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            dx.sum().backward()


def test_bad_input_is_named(device: str) -> None:
    x = torch.randn(2, 8, device=device)
    row = x[0]
    with pytest.raises(ValueError, match=r"weight must have shape \(8,\).*got \(4,\)"):
        layer_norm(x, row[:4], row)
    with pytest.raises(ValueError, match=r"bias must have shape \(8,\).*got \(1, 8\)"):
        layer_norm(x, row, x[:1])
    with pytest.raises(ValueError, match="weight must have shape"):
        layer_norm(x[0, 0], x[0, 0], x[0, 0])
    with pytest.raises(ValueError, match=r"residual must have x's shape \(2, 8\), got \(1, 8\)"):
        layer_norm(x, row, row, residual=x[:1])
    with pytest.raises(ValueError, match=r"one dtype, got torch.float32 and torch.bfloat16"):
        layer_norm(x, row, row.bfloat16())
    whole = torch.ones(8, dtype=torch.int64, device=device)
    for name, call in (
        ("x", lambda: layer_norm(x.long(), row, row)),
        ("weight", lambda: layer_norm(x, whole, whole)),
        ("residual", lambda: layer_norm(x, row, row, residual=x.long())),
    ):
        with pytest.raises(TypeError, match=f"^{name} must hold floating-point numbers, got torch.int64"):
            call()
