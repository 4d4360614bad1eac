"""Optimizers against PyTorch's, over a thousand steps, and Muon against a singular value decomposition."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lmlib.architecture import ModelConfig, TransformerLM
from lmlib.resources.units import ArgumentError
from lmlib.training.adamw import AdamW
from lmlib.training.master import MasterWeights
from lmlib.training.muon import Muon, orthogonalize
from lmlib.training.optimizers import OptimizerSettings, parameter_groups
from lmlib.training.precision import precision
from lmlib.training.sgd import SGD
from lmlib.training.step import train_step

STEPS = 1000


def _weights(dtype: torch.dtype) -> list[nn.Parameter]:
    made = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=made, dtype=torch.float64).to(dtype))
        for shape in ((4, 6), (5,), (2, 3, 2))
    ]


def _run(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], steps: int = STEPS) -> None:
    """Gradients of very different size, some steps without one, and a rate that changes."""
    made = torch.Generator().manual_seed(1)
    for step in range(steps):
        for place, weight in enumerate(weights):
            drawn = torch.randn(weight.shape, generator=made, dtype=torch.float64)
            gradient = 10.0 ** (place - 2) * (drawn + 0.1 * weight.detach().double())
            weight.grad = None if (step + place) % 7 == 0 else gradient.to(weight.dtype)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps) + 1e-5
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("implementation", ["loop", "foreach"])
@pytest.mark.parametrize("options", [{}, {"betas": (0.8, 0.999), "eps": 1e-3, "weight_decay": 0.0}])
def test_adamw_equals_pytorch_over_1000_steps(
    dtype: torch.dtype, implementation: str, options: dict[str, Any]
) -> None:
    ours, theirs = _weights(dtype), _weights(dtype)
    options = {"betas": (0.9, 0.95), "weight_decay": 0.1, **options}
    _run(AdamW(ours, 1e-2, implementation=implementation, **options), ours)
    _run(torch.optim.AdamW(theirs, 1e-2, foreach=False, **options), theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() <= 1e-7 * other.abs().max()


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_equals_pytorch(momentum: float, nesterov: bool) -> None:
    ours, theirs = _weights(torch.float64), _weights(torch.float64)
    _run(SGD(ours, 1e-2, momentum=momentum, nesterov=nesterov), ours)
    _run(torch.optim.SGD(theirs, 1e-2, momentum=momentum, nesterov=nesterov), theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5), (3, 6, 10)])
def test_orthogonalize_keeps_the_singular_vectors(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix, steps=5)
    values = u.mT @ found @ vh.mT  # diagonal if the vectors are the same
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-9
    assert diagonal.min() > 0.6
    assert diagonal.max() < 1.3


def test_muon_equals_its_definition() -> None:
    """One matrix for a few steps, written out once more without batching or in-place operations."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 4, dtype=torch.float64))
    start, gradients = weight.detach().clone(), torch.randn(3, 6, 4, dtype=torch.float64)
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    expected, average = start, torch.zeros_like(start)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        average = 0.9 * average + 0.1 * gradient
        direction = orthogonalize(0.1 * gradient + 0.9 * average)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 6**0.5 * direction
    torch.testing.assert_close(weight.detach(), expected)


def test_muon_updates_the_other_groups_as_adamw() -> None:
    weights = _weights(torch.float64)
    peers = copy.deepcopy(weights)
    matrix, others = weights[0], weights[1:]
    _run(Muon([{"params": [matrix]}, {"params": others, "muon": False}], lr=1e-2), weights, 50)
    _run(AdamW(peers, lr=1e-2), peers, 50)
    for mine, other in zip(others, peers[1:], strict=True):
        torch.testing.assert_close(mine, other)
    assert not torch.allclose(matrix, peers[0])


def test_muon_batches_matrices_of_one_shape_without_mixing_them() -> None:
    torch.manual_seed(0)
    together = [nn.Parameter(torch.randn(4, 6, dtype=torch.float64)) for _ in range(3)]
    alone = copy.deepcopy(together)
    _run(Muon(together), together, 5)
    made = torch.Generator().manual_seed(1)
    optimizers = [Muon([each]) for each in alone]
    for step in range(5):
        for place, (weight, optimizer) in enumerate(zip(alone, optimizers, strict=True)):
            drawn = torch.randn(weight.shape, generator=made, dtype=torch.float64)
            gradient = 10.0 ** (place - 2) * (drawn + 0.1 * weight.detach())
            weight.grad = None if (step + place) % 7 == 0 else gradient
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 5) + 1e-5
            optimizer.step()
    for mine, other in zip(together, alone, strict=True):
        torch.testing.assert_close(mine, other)


def test_master_weights_keep_updates_that_bf16_loses() -> None:
    weight = nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
    bare = nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
    optimizer = MasterWeights([{"params": [weight]}], lambda groups: SGD(groups, lr=1e-3))
    plain = SGD([bare], lr=1e-3)
    for _ in range(100):
        weight.grad, bare.grad = torch.ones_like(weight), torch.ones_like(bare)
        optimizer.step()
        plain.step()
    assert (bare == 1).all()  # 1 - 0.001 rounds back to 1
    torch.testing.assert_close(optimizer.masters[0], torch.full((1000,), 0.9), rtol=1e-5, atol=0)
    assert (weight == torch.tensor(0.9, dtype=torch.bfloat16)).all()


def test_master_weights_equal_fp32_training_with_rounded_gradients() -> None:
    weights = [nn.Parameter(each.detach().bfloat16()) for each in _weights(torch.float32)]
    peers = [nn.Parameter(each.detach().float()) for each in weights]
    optimizer = MasterWeights([{"params": weights}], lambda groups: AdamW(groups, lr=1e-2))
    peer = AdamW(peers, lr=1e-2)
    torch.manual_seed(0)
    for _ in range(30):
        for weight, other in zip(weights, peers, strict=True):
            weight.grad = torch.randn(weight.shape, dtype=torch.bfloat16)
            other.grad = weight.grad.float()
        optimizer.step()
        peer.step()
    for copied, weight, other in zip(optimizer.masters, weights, peers, strict=True):
        assert torch.equal(copied, other.detach())
        assert torch.equal(weight.detach(), other.detach().bfloat16())


class _Slope(nn.Module):
    """A loss whose gradients are whatever is put into ``slopes``, in the parameters' own types."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)
        self.slopes = [torch.zeros_like(each) for each in weights]

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = zip(self.weights, self.slopes, strict=True)
        products = [(weight * slope).sum().float() for weight, slope in pairs]
        return torch.stack(products).sum(), torch.zeros(())


@pytest.mark.parametrize("last", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "make", [lambda groups: SGD(groups, lr=0.5), lambda groups: AdamW(groups, lr=1e-2, eps=0.1)]
)
def test_master_weights_clip_in_fp32(make: Callable[[Any], torch.optim.Optimizer], last: torch.dtype) -> None:
    """A gradient that is scaled in bf16 first is off by up to 1 part in 256."""
    types = [torch.bfloat16, torch.bfloat16, last]
    module = _Slope([each.detach().to(to) for each, to in zip(_weights(torch.float32), types, strict=True)])
    optimizer = MasterWeights([{"params": list(module.weights)}], make)
    peers = [nn.Parameter(each.detach().float().clone()) for each in module.weights]
    peer = make([{"params": peers}])
    batch = [(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))]
    torch.manual_seed(0)
    for size in (10.0, 0.01, 1.0, 3.0):
        module.slopes = [size * torch.randn_like(each) for each in module.weights]
        _, norm = train_step(module, optimizer, batch, policy=precision("bf16"), clip_norm=1.0)
        for other, slope in zip(peers, module.slopes, strict=True):
            other.grad = slope.float().clone()
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(peers, 1.0))
        peer.step()
        for weight, copied, other, slope in zip(
            module.weights, optimizer.masters, peers, module.slopes, strict=True
        ):
            torch.testing.assert_close(copied, other.detach(), rtol=0, atol=1e-7)
            assert torch.equal(weight.detach(), copied.to(weight.dtype))
            assert weight.grad is not None
            assert torch.equal(weight.grad, slope)
        assert optimizer.grad_factor is None  # it was for this step alone


def test_master_weights_survive_their_state_dict() -> None:
    def make() -> tuple[list[nn.Parameter], MasterWeights]:
        weights = [nn.Parameter(each.detach().bfloat16()) for each in _weights(torch.float32)]
        return weights, MasterWeights([{"params": weights}], lambda groups: AdamW(groups, lr=1e-2))

    weights, optimizer = make()
    _run(optimizer, weights, 7)
    saved = copy.deepcopy(optimizer.state_dict())
    others, other = make()
    other.load_state_dict(saved)
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    _run(optimizer, weights, 5)
    _run(other, others, 5)
    assert all(torch.equal(a, b) for a, b in zip(optimizer.masters, other.masters, strict=True))


def _model(**options: Any) -> TransformerLM:
    return TransformerLM(
        ModelConfig(vocab_size=32, context_length=8, d_model=16, n_layers=2, n_heads=2, **options)
    )


def test_groups_of_a_model() -> None:
    model = _model(tied=True)
    matrices, vectors = parameter_groups(model, weight_decay=0.3)
    assert all(each.ndim >= 2 for each in matrices["params"])
    assert matrices["weight_decay"] == 0.3
    assert all(each.ndim == 1 for each in vectors["params"])
    assert vectors["weight_decay"] == 0
    together = [*matrices["params"], *vectors["params"]]
    assert sorted(map(id, together)) == sorted(map(id, model.parameters()))
    hidden, rest, _ = parameter_groups(model, muon=True)
    assert [tuple(each.shape) for each in rest["params"]] == [(32, 16)]  # the embedding, once
    assert len(hidden["params"]) == len(matrices["params"]) - 1
    assert (hidden["muon"], rest["muon"]) == (True, False)


@pytest.mark.parametrize(
    "settings",
    [
        OptimizerSettings(),
        OptimizerSettings(implementation="loop"),
        OptimizerSettings(implementation="fused"),
        OptimizerSettings("muon"),
        OptimizerSettings("sgd"),
    ],
    ids=str,
)
@pytest.mark.parametrize("policy", ["fp32", "bf16"])
def test_every_setting_makes_an_optimizer_that_lowers_a_loss(
    settings: OptimizerSettings, policy: str
) -> None:
    torch.manual_seed(0)
    model = _model()
    if policy == "bf16":
        model.bfloat16()
    optimizer = settings.build(model, policy)
    tokens = torch.randint(32, (4, 8))
    losses = []
    for _ in range(20):
        for group in optimizer.param_groups:
            group["lr"] = 0.3 if settings.kind == "sgd" else 1e-2
        optimizer.zero_grad()
        logits = model(tokens[:, :-1]).float().flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: OptimizerSettings("adam"), "kind"),
        (lambda: OptimizerSettings(implementation="fast"), "implementation"),
        (lambda: OptimizerSettings(betas=(0.9, 1.0)), "betas"),
        (lambda: OptimizerSettings(betas=(0.9,)), "betas"),  # type: ignore[arg-type]
        (lambda: OptimizerSettings(momentum=0.9), "momentum"),
        (lambda: AdamW([nn.Parameter(torch.ones(1))], lr=-1), "lr"),
        (lambda: SGD([nn.Parameter(torch.ones(1))], nesterov=True), "nesterov"),
        (lambda: Muon([nn.Parameter(torch.ones(3))]), "params"),
        (lambda: orthogonalize(torch.ones(3)), "matrices"),
        (lambda: parameter_groups(nn.Identity()), "model"),
    ],
)
def test_bad_input_names_the_argument(call, field: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ArgumentError) as caught:
        call()
    assert caught.value.field == field
