"""The attention weights that are shown are those that PyTorch's attention uses and does not return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lmlib.architecture import MLAConfig, ModelConfig, TransformerLM, attention_weights
from lmlib.architecture.attention import Attend

BASE = ModelConfig(vocab_size=50, context_length=16, d_model=32, n_layers=3, n_heads=4)
CASES = {
    "heads": BASE,
    "grouped": BASE.replace(n_kv_heads=2, qk_norm=True),
    "window": BASE.replace(window=4, window_pattern="LG"),
    "softcap": BASE.replace(attention_softcap=1.5),
    "latent": BASE.replace(attention="mla", mla=MLAConfig(16, 8, 4, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_weights_times_values_are_what_attention_returned(name: str) -> None:
    torch.manual_seed(0)
    model = TransformerLM(CASES[name])
    tokens = torch.randint(50, (2, 12))
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: Attend, arguments: tuple[Tensor, ...], result: Any) -> None:
        seen.append((arguments[2], result))

    for block in model.blocks:
        block.attention.attend.register_forward_hook(keep)
    weights = attention_weights(model, tokens)
    assert len(weights) == len(seen) == 3
    for each, (v, mixed) in zip(weights, seen, strict=True):
        assert each.shape == (2, 4, 12, 12)
        torch.testing.assert_close(each.sum(-1), torch.ones(2, 4, 12))
        repeated = v.repeat_interleave(4 // v.shape[1], 1)
        torch.testing.assert_close(each @ repeated, mixed)


def test_a_window_and_the_future_get_no_weight() -> None:
    weights = attention_weights(TransformerLM(CASES["window"]), torch.randint(50, (1, 12)))
    distance = torch.arange(12)[:, None] - torch.arange(12)
    assert weights[0][0, :, (distance < 0) | (distance >= 4)].abs().max() == 0
    assert weights[1][0, :, distance < 0].abs().max() == 0
    assert weights[1][0, :, distance >= 4].min() > 0


def test_nothing_stays_behind_in_the_model() -> None:
    model = TransformerLM(BASE)
    attention_weights(model, torch.randint(50, (1, 4)))
    with pytest.raises(ValueError, match="ids must be from 0 to 49"):
        attention_weights(model, torch.tensor([[50]]))
    assert not any(block.attention.attend._forward_hooks for block in model.blocks)
