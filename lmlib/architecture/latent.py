"""Multi-head latent attention: keys and values from one small latent, which is all that the cache holds.

- Without a cache (training) the latent is expanded to full heads.
- With one, the expansion moves into the queries and the output: (q W_k) · c = q · (W_k^T ... c), so every
  head attends to the latents themselves, as in multi-query attention with one wide head.

DeepSeek-V2, arXiv:2405.04434, section 2.1 and appendix C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lmlib.architecture.attention import Attend
from lmlib.architecture.cache import LayerCache
from lmlib.architecture.config import ModelConfig
from lmlib.architecture.norms import RMSNorm
from lmlib.architecture.positions import Rotation, rotate_both
from lmlib.architecture.switch import kernel


class LatentAttention(nn.Module):
    """MLA. Names of the projections follow DeepSeek's: ``a`` goes down to a latent, ``b`` up from it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        assert config.mla is not None
        self.sizes = m = config.mla
        self.n_heads = H = config.n_heads
        queries = H * (m.nope_head_dim + m.rope_head_dim)

        def norm(width: int) -> RMSNorm:
            return RMSNorm(width, config.norm_eps, config.kernels)

        if m.q_lora_rank is None:
            self.q_proj: nn.Module = nn.Linear(config.d_model, queries, bias=False)
        else:
            self.q_proj = nn.Sequential(
                nn.Linear(config.d_model, m.q_lora_rank, bias=config.bias),
                norm(m.q_lora_rank),
                nn.Linear(m.q_lora_rank, queries, bias=False),
            )
        self.kv_a_proj = nn.Linear(config.d_model, m.kv_lora_rank + m.rope_head_dim, bias=config.bias)
        self.kv_a_norm = norm(m.kv_lora_rank)
        self.kv_b_proj = nn.Linear(m.kv_lora_rank, H * (m.nope_head_dim + m.v_head_dim), bias=False)
        self.o_proj = nn.Linear(H * m.v_head_dim, config.d_model, bias=config.bias)
        self.attend = Attend(config, layer)
        self.rotate = kernel("rope") if config.triton else rotate_both

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotation: Rotation | None,
        cache: LayerCache | None,
        biased: bool = True,
    ) -> Float[Tensor, "B T D"]:
        """``biased=False`` leaves the bias of the last layer for the caller to add."""
        m = self.sizes
        q = self.q_proj(x).unflatten(-1, (self.n_heads, -1))  # B T H K
        q_plain, q_turned = q.split((m.nope_head_dim, m.rope_head_dim), -1)
        latent, k_turned = self.kv_a_proj(x).split((m.kv_lora_rank, m.rope_head_dim), -1)
        latent, k_turned = self.kv_a_norm(latent), k_turned[:, :, None]  # B T R and B T 1 K
        if rotation is not None:
            q_turned, k_turned = self.rotate(q_turned, k_turned, *rotation)
        if cache is None:
            out = self._expanded(q_plain, q_turned, latent, k_turned)
        else:
            latent, k_turned = cache.update(latent[:, None], k_turned.transpose(1, 2))
            out = self._absorbed(q_plain, q_turned, latent, k_turned)
        mixed = out.flatten(2)
        return self.o_proj(mixed) if biased else F.linear(mixed, self.o_proj.weight)

    def _expanded(self, q_plain: Tensor, q_turned: Tensor, latent: Tensor, k_turned: Tensor) -> Tensor:
        """Full keys and values of every head; returns (B, T, H, v_head_dim)."""
        m = self.sizes
        k_plain, v = (
            self.kv_b_proj(latent)
            .unflatten(-1, (self.n_heads, -1))
            .split((m.nope_head_dim, m.v_head_dim), -1)
        )
        k = torch.cat((k_plain, k_turned.expand(-1, -1, self.n_heads, -1)), -1)
        q = torch.cat((q_plain, q_turned), -1)
        return self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)

    def _absorbed(self, q_plain: Tensor, q_turned: Tensor, latent: Tensor, k_turned: Tensor) -> Tensor:
        """The same without expanding: one head of width R + K for the keys, R for the values."""
        m = self.sizes
        up = self.kv_b_proj.weight.to(q_plain.dtype).unflatten(0, (self.n_heads, -1))
        up_k, up_v = up.split((m.nope_head_dim, m.v_head_dim), 1)  # H K R and H W R
        q_latent = q_plain.transpose(1, 2) @ up_k  # B H T R
        q = torch.cat((q_latent, q_turned.transpose(1, 2)), -1)
        mixed = self.attend(q, torch.cat((latent, k_turned), -1), latent)  # B H T R
        return (mixed @ up_v.transpose(1, 2)).transpose(1, 2)
