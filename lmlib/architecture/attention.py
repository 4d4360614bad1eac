"""Attention: the sum over what a query may see, three ways, and the module around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lmlib.architecture.cache import LayerCache
from lmlib.architecture.config import ModelConfig
from lmlib.architecture.norms import RMSNorm
from lmlib.architecture.positions import Rotation, rotate_both
from lmlib.architecture.switch import kernel


def visible(T: int, S: int, window: int | None, device: torch.device) -> Bool[Tensor, "T S"]:
    """What the last ``T`` of ``S`` tokens see: themselves and those before, ``window`` of them at most."""
    queries = torch.arange(S - T, S, device=device)[:, None]
    keys = torch.arange(S, device=device)
    seen = keys <= queries
    return seen if window is None else seen & (keys > queries - window)


def eager_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S W"],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "B H T W"]:
    """Attention written out: scores, soft-cap, mask, softmax in fp32, weighted sum of the values."""
    groups = q.unflatten(1, (k.shape[1], -1))  # B G H/G T K: query heads beside the key head that they share
    scores = groups @ k[:, :, None].transpose(-2, -1) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible(q.shape[2], k.shape[2], window, q.device), float("-inf"))
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
    return (weights @ v[:, :, None]).flatten(1, 2)


def sdpa_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S W"],
    *,
    scale: float,
    window: int | None = None,
) -> Float[Tensor, "B H T W"]:
    """PyTorch's fused attention, which has a fast path without a mask and is given one where it can be."""
    T, S = q.shape[2], k.shape[2]
    if T == 1 and window is not None:  # a single query sees the end of the keys, all of it
        k, v, S = k[:, :, -window:], v[:, :, -window:], min(S, window)
    grouped = q.shape[1] != k.shape[1]
    if T == 1:
        return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=grouped)
    if T == S and (window is None or window >= S):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    if grouped:  # with a mask, only PyTorch's slow path shares key heads
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    mask = visible(T, S, window, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


class Attend(nn.Module):
    """The switch between the three. The queries are the last ``T`` of the ``S`` tokens.

    ``sdpa`` has no soft-cap, so a model with one takes the written-out form. ``triton`` has none either, and
    no queries that stand apart from the first key (decoding with a cache): those take ``sdpa``, as all do
    with ``triton-sdpa``.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.kernels, self.softcap, self.scale = config.kernels, config.attention_softcap, config.scale
        self.window = config.layer_window(layer)
        self.flash = kernel("flash_attention") if config.kernels == "triton" else None

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.kernels == "eager" or self.softcap is not None:
            return eager_attention(q, k, v, scale=self.scale, window=self.window, softcap=self.softcap)
        same = q.shape[2] == k.shape[2] and k.shape[3] == v.shape[3]
        if self.flash is not None and same and q.shape[2] > 1:
            return self.flash(q, k, v, causal=True, window=self.window, scale=self.scale)
        return sdpa_attention(q, k, v, scale=self.scale, window=self.window)


class SelfAttention(nn.Module):
    """Multi-head attention with shared key/value heads (GQA, Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.heads = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
        # One matrix for all three: the input is read once, and one large product beats three small ones.
        self.qkv_proj = nn.Linear(config.d_model, sum(self.heads) * self.head_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.n_heads * self.head_dim, config.d_model, bias=config.out_bias)
        # Without a bias there is nothing to gain: what copies the gradients side by side is the compiler.
        self.project = kernel("qkv_linear") if config.triton and config.qkv_bias else None
        self.attend = Attend(config, layer)
        self.rotate = kernel("rope") if config.triton else rotate_both
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.norm_eps, config.kernels)
            self.k_norm = RMSNorm(self.head_dim, config.norm_eps, config.kernels)

    def _project(self, x: Float[Tensor, "B T D"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, T, heads, K)."""
        if self.project is None or type(self.qkv_proj) is not nn.Linear:  # somebody put another layer there
            q, k, v = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim)).split(self.heads, 2)
            return q, k, v
        sizes = [heads * self.head_dim for heads in self.heads]
        parts = self.project(x, self.qkv_proj.weight, self.qkv_proj.bias, sizes)
        q, k, v = (each.unflatten(-1, (-1, self.head_dim)) for each in parts)
        return q, k, v

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotation: Rotation | None,
        cache: LayerCache | None,
        biased: bool = True,
    ) -> Float[Tensor, "B T D"]:
        """``biased=False`` leaves the bias of the last layer for the caller to add."""
        q, k, v = self._project(x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = self.rotate(q, k, *rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v)
        mixed = self.attend(q, k, v).transpose(1, 2).flatten(2)
        return self.o_proj(mixed) if biased else F.linear(mixed, self.o_proj.weight)
