"""Eight-bit products against float64, PyTorch's casts and the formats' own arithmetic."""

import math
from typing import Any

import pytest
import torch

from lmlib.architecture import ModelConfig, TransformerLM
from lmlib.resources.formats import by_name, stored
from lmlib.resources.units import ArgumentError
from lmlib.training import fp8
from lmlib.training.fp8 import E4M3, E5M2, Scaled, best_scale, convert, linear, product, quantize


def _normal(*shape: int, seed: int = 0, deviation: float = 1.0) -> torch.Tensor:
    return deviation * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _error(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.double() - right).norm() / right.norm())


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
def test_a_scale_of_one_is_the_plain_cast(name: str) -> None:
    """Within the range: what PyTorch's cast gives, and what exact fractions give."""
    form = by_name(name)
    dtype = getattr(torch, form.torch_name)
    x = torch.cat([_normal(64, deviation=2.0**power) for power in range(-18, 8)])
    x = x[x.abs() <= float(form.largest)]
    found = quantize(x, dtype, 1.0)
    assert torch.equal(found.values.float(), x.to(dtype).float())
    assert found.decoded().tolist() == [float(stored(value, form)) for value in x.tolist()]


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_what_is_too_large_saturates(dtype: torch.dtype) -> None:
    top = fp8.largest(dtype)
    found = quantize(torch.tensor([top, 2 * top, -1e30, math.inf]), dtype, 1.0).decoded()
    assert found.tolist() == [top, top, -top, top]


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("deviation", [1e-20, 1e-5, 1.0, 1e12])
def test_the_largest_entry_becomes_the_largest_number(dtype: torch.dtype, deviation: float) -> None:
    x = _normal(64, 64, deviation=deviation)
    found = quantize(x, dtype)
    assert float(found.values.float().abs().max()) == fp8.largest(dtype)
    # Half a step of a fraction of 3 or 2 bits, where the number is not among the smallest.
    step = float(torch.finfo(dtype).eps)
    kept = x.abs() > x.abs().max() * 2.0**-13
    assert float(((found.decoded() - x)[kept] / x[kept]).abs().max()) <= step / 2 * 1.001


def test_zeros_have_a_scale() -> None:
    assert float(best_scale(torch.zeros(3))) == 1
    assert quantize(torch.zeros(3)).decoded().tolist() == [0, 0, 0]


@pytest.mark.parametrize(("left", "right"), [(E4M3, E4M3), (E5M2, E4M3), (E4M3, E5M2), (E5M2, E5M2)])
def test_a_product_is_that_of_the_decoded_numbers(left: torch.dtype, right: torch.dtype) -> None:
    a, b = quantize(_normal(48, 96), left), quantize(_normal(96, 32, seed=1), right)
    right_answer = a.decoded().double() @ b.decoded().double()
    assert _error(product(a, b, emulate=True), right_answer) < 1e-6
    assert product(a, b, torch.bfloat16).dtype == torch.bfloat16


def test_a_scale_makes_the_error_independent_of_the_size() -> None:
    """Near three percent with a scale; all of it where everything underflows."""
    for deviation in (1.0, 1e-4):
        a, b = _normal(64, 64, deviation=deviation), _normal(64, 64, seed=1)
        right = a.double() @ b.double()
        assert 0.01 < _error(product(quantize(a), quantize(b)), right) < 0.06
        plain = _error(product(quantize(a, scale=1.0), quantize(b, scale=1.0)), right)
        assert plain < 0.06 if deviation == 1 else plain == 1.0


def test_gradients_of_a_linear_layer() -> None:
    """Both gradients are near those of float64, as near as E5M2 and E4M3 allow."""
    x, weight = _normal(2, 16, 64).requires_grad_(), _normal(32, 64, seed=1).requires_grad_()
    direction = _normal(2, 16, 32, seed=2, deviation=1e-9)  # far below the smallest number of E5M2
    found = linear(x, weight)
    assert found.shape == (2, 16, 32)
    (found * direction).sum().backward()
    flat, flat_direction = x.detach().flatten(0, 1).double(), direction.flatten(0, 1).double()
    assert _error(found.detach().flatten(0, 1), flat @ weight.detach().double().T) < 0.06
    assert x.grad is not None
    assert weight.grad is not None
    assert _error(x.grad.flatten(0, 1), flat_direction @ weight.detach().double()) < 0.1
    assert _error(weight.grad, flat_direction.T @ flat) < 0.1

    (linear(x.detach(), weight, scaled=False) * direction).sum().backward()
    assert _error(weight.grad, flat_direction.T @ flat) < 0.1  # nothing was added: all of it underflowed


@pytest.mark.parametrize("bias", [False, True])
def test_a_converted_model_stays_near(bias: bool) -> None:
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(64, 32, 64, 2, 4, bias=bias))
    tokens = torch.randint(0, 64, (4, 32))
    before = model(tokens).detach()
    names = list(model.state_dict())
    after = convert(model)(tokens)
    assert list(model.state_dict()) == names
    assert 1e-3 < _error(after.detach(), before.double()) < 0.15
    after.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ArgumentError, match=r"dtype: must be torch.float8_e4m3fn or"):
        quantize(torch.ones(2), torch.float16)
    with pytest.raises(ArgumentError, match=r"as many rows as a has columns, got \(2, 3\) @ \(2, 3\)"):
        product(quantize(torch.ones(2, 3)), quantize(torch.ones(2, 3)))


def test_a_cpu_has_no_units() -> None:
    assert not fp8.has_units("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize(("left", "right"), [(E4M3, E4M3), (E5M2, E4M3)])
def test_the_units_agree_with_the_emulation(left: torch.dtype, right: torch.dtype) -> None:
    if not fp8.has_units("cuda"):
        pytest.skip("this GPU has no units for eight-bit floats")
    a, b = quantize(_normal(64, 128).cuda(), left), quantize(_normal(128, 48, seed=1).cuda(), right)
    right_answer = a.decoded().double() @ b.decoded().double()
    assert _error(product(a, b, emulate=False), right_answer) < 5e-3  # given as bf16
    odd = Scaled(a.values[:, :20], a.scale)
    assert product(odd, Scaled(b.values[:20], b.scale)).shape == (64, 48)  # falls back to emulation


@pytest.mark.parametrize("form", ["gpt2", "llama"])
def test_kernels_do_not_pass_by_the_converted_layers(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every linear layer of the blocks multiplies in eight bits, also where kernels would read its weight."""
    gpt2 = {"norm": "layernorm", "mlp": "gelu", "bias": True, "position": "learned"}
    sizes = {"vocab_size": 50, "context_length": 8, "d_model": 16, "n_layers": 2, "n_heads": 2}
    config = ModelConfig(**sizes, kernels="triton-sdpa", **(gpt2 if form == "gpt2" else {}))
    model = TransformerLM(config)
    calls = [0]
    launch = fp8.linear

    def counted(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        return launch(*args, **more)

    monkeypatch.setattr(fp8, "linear", counted)
    fp8.convert(model)(torch.randint(50, (1, 8)))
    layers = [each for each in model.blocks.modules() if isinstance(each, torch.nn.Linear)]
    assert calls[0] == len(layers) == 8
