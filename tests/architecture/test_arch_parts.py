"""Attention, positions, experts and initial parameters, each against a plainer statement of itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from lmlib.architecture import ModelConfig, MoEConfig, TransformerLM
from lmlib.architecture.attention import eager_attention, sdpa_attention, visible
from lmlib.architecture.moe import Experts, MixtureOfExperts
from lmlib.architecture.positions import rotate, sinusoids

BASE: dict[str, Any] = {"vocab_size": 50, "context_length": 64, "d_model": 32, "n_layers": 3, "n_heads": 4}


def loops(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None = None
) -> Tensor:
    """Attention, one query at a time, over the keys that it may see."""
    B, H, T, _ = q.shape
    G, S = k.shape[1], k.shape[2]
    out = q.new_zeros(B, H, T, v.shape[3])
    for b in range(B):
        for h in range(H):
            for t in range(T):
                last = S - T + t
                first = 0 if window is None else max(0, last - window + 1)
                g = h * G // H
                scores = scale * k[b, g, first : last + 1] @ q[b, h, t]
                if softcap is not None:
                    scores = softcap * (scores / softcap).tanh()
                out[b, h, t] = scores.softmax(0) @ v[b, g, first : last + 1]
    return out


@settings(deadline=None, max_examples=60)
@given(
    T=st.integers(1, 9),
    past=st.integers(0, 9),
    G=st.integers(1, 2),
    times=st.integers(1, 3),
    window=st.none() | st.integers(1, 12),
    softcap=st.none() | st.floats(0.5, 5),
    K=st.integers(1, 6),
    W=st.integers(1, 6),
)
def test_attention_equals_loops(
    T: int, past: int, G: int, times: int, window: int | None, softcap: float | None, K: int, W: int
) -> None:
    torch.manual_seed(T + 10 * past)
    q = torch.randn(2, G * times, T, K, dtype=torch.float64)
    k = torch.randn(2, G, T + past, K, dtype=torch.float64)
    v = torch.randn(2, G, T + past, W, dtype=torch.float64)
    wanted = loops(q, k, v, 0.7, window, softcap)
    torch.testing.assert_close(eager_attention(q, k, v, scale=0.7, window=window, softcap=softcap), wanted)
    if softcap is None:
        torch.testing.assert_close(sdpa_attention(q, k, v, scale=0.7, window=window), wanted)


def test_eager_attention_takes_its_softmax_in_fp32() -> None:
    """In bf16, 4,096 equal weights of 1/4096 sum to 1; a bf16 softmax's sums stall far below."""
    q, k = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16), torch.zeros(1, 1, 4096, 8, dtype=torch.bfloat16)
    v = torch.ones(1, 1, 4096, 8, dtype=torch.bfloat16)
    torch.testing.assert_close(eager_attention(q, k, v, scale=1.0), torch.ones_like(q))


def test_what_is_visible() -> None:
    seen = visible(2, 4, 2, torch.device("cpu"))
    assert seen.tolist() == [[False, True, True, False], [False, False, True, True]]


def test_rotation_is_multiplication_with_unit_complex_numbers() -> None:
    x, angles = torch.randn(2, 5, 3, 8, dtype=torch.float64), torch.rand(5, 4, dtype=torch.float64) * 7
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    out = rotate(x, angles.cos(), angles.sin())
    torch.testing.assert_close(out, torch.cat((turned.real, turned.imag), -1))
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotate(out, angles.cos(), -angles.sin()), x)


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(torch.arange(9), 6)
    for position in (0, 1, 8):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def experts(**values: Any) -> MixtureOfExperts:
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(**BASE, moe=MoEConfig(5, 2, 16, **values)))
    block = model.blocks[0].mlp
    assert isinstance(block, MixtureOfExperts)
    return block


def token_by_token(block: MixtureOfExperts, x: Tensor, normalise: bool) -> Tensor:
    """Mixtral's definition, arXiv:2401.04088, section 2.1: a softmax over the chosen logits."""
    out = torch.zeros_like(x)
    for place in range(len(x)):
        logits = block.router.weight @ x[place]
        best = sorted(range(5), key=lambda e: -float(logits[e]))[:2]
        weights = logits[best].softmax(0) if normalise else logits.softmax(0)[best]
        for weight, e in zip(weights, best, strict=True):
            gate, up = (block.experts.gate_up_proj[e] @ x[place]).chunk(2)
            out[place] += weight * (block.experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up))
    return out


@pytest.mark.parametrize("normalise", [True, False])
@torch.no_grad()
def test_experts_equal_a_loop_over_tokens(normalise: bool) -> None:
    block = experts(normalise=normalise)
    x = torch.randn(3, 7, 32)
    wanted = token_by_token(block, x.flatten(0, 1), normalise).view(x.shape)
    torch.testing.assert_close(block(x), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_three_ways_through_the_experts_agree() -> None:
    block = experts()
    x = torch.randn(40, 32)
    weights, chosen = block.router(x)
    sorted_way = block.experts(x, weights, chosen)
    torch.testing.assert_close(
        block.experts._everywhere(x, weights, chosen), sorted_way, rtol=1e-4, atol=1e-5
    )
    if not hasattr(torch.nn.functional, "grouped_mm"):
        return  # before torch 2.10 there is no third way
    assert block.experts.aligned
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grouped = block.experts(x, weights, chosen)
    assert grouped.dtype == torch.bfloat16
    assert (grouped.float() - sorted_way).abs().max() < 0.03 * sorted_way.abs().max()


@torch.no_grad()
def test_experts_without_tokens_are_no_trouble() -> None:
    layer: Experts = experts().experts
    x, chosen = torch.randn(4, 32), torch.tensor([[1, 3]]).expand(4, 2)
    assert layer(x, torch.full((4, 2), 0.5), chosen).shape == (4, 32)


def test_balance_loss_equals_transformers() -> None:
    """Theirs adds up over the choices, ours is their mean, so that 1 is the least for any top_k."""
    block = experts(balance_weight=1.0)
    x = torch.randn(2, 30, 32)
    block(x)
    assert block.router.loss is not None
    logits = x.flatten(0, 1) @ block.router.weight.T
    wanted = load_balancing_loss_func((logits,), num_experts=5, top_k=2) / 2
    torch.testing.assert_close(block.router.loss, wanted)
    assert block.router.loss > 1
    assert torch.equal(block.router.load, logits.topk(2).indices.flatten().bincount(minlength=5))


def test_balance_loss_is_one_where_all_is_even() -> None:
    block = experts(balance_weight=0.5, z_weight=0.25)
    torch.nn.init.zeros_(block.router.weight)
    block(torch.randn(1, 10, 32))
    assert block.router.loss is not None
    # Even probabilities make the balance loss 1 whatever the choice; the logits are 0, so z = ln(5)^2.
    assert block.router.loss.item() == pytest.approx(0.5 + 0.25 * math.log(5) ** 2)


def test_auxiliary_loss_adds_up_over_layers() -> None:
    model = TransformerLM(ModelConfig(**BASE, moe=MoEConfig(4, 2, 16, first_dense=1)))
    model(torch.randint(50, (2, 9)))
    losses = [block.mlp.router.loss for block in model.blocks[1:]]
    torch.testing.assert_close(model.auxiliary_loss(), losses[0] + losses[1])
    assert TransformerLM(ModelConfig(**BASE)).auxiliary_loss().item() == 0


def test_correction_bias_evens_the_load() -> None:
    """A router that prefers two experts sends tokens to all five after enough updates, untrained."""
    block = experts(balance="bias", score="sigmoid")
    x = torch.randn(1, 200, 32) + 0.5
    block.router.weight.data[:2] += 0.2

    def spread() -> float:
        block(x)
        assert block.router.load is not None
        return float(block.router.load.max() / block.router.load.float().mean())

    before = spread()
    for _ in range(300):
        block.router.update_bias(0.01)
        after = spread()
    assert before > 2
    assert after < 1.15
    assert block.router.loss is not None
    assert block.router.loss.item() == 0  # nothing to add to the training loss
    assert "router.correction_bias" in block.state_dict()


@pytest.mark.parametrize("tied", [False, True])
def test_initial_parameters(tied: bool) -> None:
    """Std 1/sqrt(fan_in) but for what cutting at three takes, nothing beyond, norms 1, biases 0."""
    torch.manual_seed(0)
    config = ModelConfig(300, 64, 256, 2, 4, bias=True, tied=tied, position="learned", norm="layernorm")
    model = TransformerLM(config)
    left = 0.98658  # std of a standard normal cut at 3: sqrt(1 - 6 phi(3) / (2 Phi(3) - 1))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert parameter.unique().item() == float("norm.weight" in name), name
            continue
        embeds = "embedding" in name or "positions" in name
        std = config.embedding_std if embeds else parameter.shape[1] ** -0.5
        assert parameter.std().item() == pytest.approx(left * std, rel=0.02), name
        assert abs(parameter.mean().item()) < 4 * std / parameter.numel() ** 0.5
        assert 2.8 * std < parameter.abs().max().item() <= 3 * std * (1 + 1e-6), name
    assert config.embedding_std == (1 / 16 if tied else 1)


def test_initial_scales_of_head_and_residual_projections() -> None:
    torch.manual_seed(0)
    moe = MoEConfig(4, 2, 64, n_shared=1, first_dense=1)
    config = ModelConfig(300, 64, 256, 2, 4, head_init_scale=0.0, residual_init_scale=0.5, moe=moe)
    model = TransformerLM(config)
    for name, parameter in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            assert parameter.std().item() == pytest.approx(0.4933 * parameter.shape[-1] ** -0.5, rel=0.03)
        elif "blocks" in name and parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.9866 / 16, rel=0.05), name
    tokens = torch.randint(300, (2, 20))
    loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(math.log(300))


def test_signals_keep_their_size_through_the_layers() -> None:
    """Each branch of a pre-norm block adds a variance of the order of 1, whatever the width."""
    for width in (64, 512):
        torch.manual_seed(0)
        model = TransformerLM(ModelConfig(300, 64, width, 4, 8, mlp="gelu"))
        x = model.embedding(torch.randint(300, (4, 64)))
        for block in model.blocks:
            before = x
            x = block(x, model.rotary(torch.arange(64)))
            assert 0.1 < (x - before).var().item() < 2


def test_seed_decides_the_parameters() -> None:
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(TransformerLM(ModelConfig(**BASE)))
    first, same, other = (model.head_weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
