"""Initial parameters: normal with std 1/sqrt(fan_in), cut at three standard deviations.

A product of a row of n such numbers with n inputs of variance 1 has variance 1, so that signals keep their
size through the layers (LeCun et al. 1998, section 4.6). Cutting at 3 takes 1.3 % off the std.
"""

from __future__ import annotations

from torch import Tensor, nn

from lmlib.architecture.config import ModelConfig
from lmlib.architecture.moe import Experts, Router
from lmlib.architecture.norms import LayerNorm, RMSNorm

CUT = 3.0


def truncated_normal(weight: Tensor, std: float) -> None:
    """Fill in place; ``std`` is that of the normal before it is cut at ``CUT`` times it."""
    if std == 0:
        nn.init.zeros_(weight)
    else:
        nn.init.trunc_normal_(weight, 0.0, std, -CUT * std, CUT * std)


def initialize(model: nn.Module, config: ModelConfig) -> None:
    """Set every parameter of a ``TransformerLM``: matrices as above, norms to 1, biases to 0 (routers' too).

    Projections into the residual stream are multiplied with ``residual_init_scale``, the head with
    ``head_init_scale``; embeddings, of tokens and of positions, have ``embedding_std``.
    """
    for name, module in model.named_modules():
        last = name.rpartition(".")[-1]
        scale = config.residual_init_scale if last in ("o_proj", "down_proj") else 1.0
        if last == "head":
            scale = config.head_init_scale
        if isinstance(module, nn.Linear):
            truncated_normal(module.weight, scale * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            truncated_normal(module.weight, config.embedding_std)
        elif isinstance(module, RMSNorm | LayerNorm):
            nn.init.ones_(module.weight)
            if isinstance(module, LayerNorm):
                nn.init.zeros_(module.bias)
        elif isinstance(module, Router):
            truncated_normal(module.weight, config.d_model**-0.5)
            if module.correction_bias is not None:
                nn.init.zeros_(module.correction_bias)
        elif isinstance(module, Experts):
            truncated_normal(module.gate_up_proj, config.d_model**-0.5)
            inner = module.down_proj.shape[-1]
            truncated_normal(module.down_proj, config.residual_init_scale * inner**-0.5)
