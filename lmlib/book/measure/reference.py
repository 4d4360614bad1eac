"""The transformer that the memory calculators describe: plain PyTorch, every choice of a Profile a switch.

- Built from ``lmlib.resources.Model``: RMSNorm/RoPE/SwiGLU/GQA (Llama), and LayerNorm/GELU/learned
  positions/dropout (GPT-2).
- Which tensors autograd keeps, and which ones Python holds how long, is what the calculators count: lines
  that look as if they could be written shorter often decide a byte.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from lmlib.book.measure.kernels import EPS, fused_loss, fused_norm
from lmlib.resources.model import MLP, Attention, Layer, Model
from lmlib.resources.profile import Profile

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "autocast": torch.float32,
}
DROPOUT = 0.1
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


def again(function: Callable[..., Tensor], *inputs: Tensor, randomness: bool = False) -> Tensor:
    """Call ``function``, keep its inputs only, and call it again in the backward pass."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=randomness)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, fused, written out, or PyTorch's."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "fused":
            return fused_norm(x, self.weight)
        if self.kind == "composite":
            return F.rms_norm(x, (x.shape[-1],), self.weight, EPS)
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)
        return self.weight * h.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions; x is (batch, heads, length, head_dim), the tables (length, head_dim)."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal flash attention; grouped keys and values are not repeated."""
    if q.is_meta:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's reference implementation of attention."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def repeat(x: Tensor, times: int) -> Tensor:
    """Keys or values for every query head, contiguous."""
    return x.contiguous() if times == 1 else x.repeat_interleave(times, 1)


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary or no positions."""

    def __init__(self, model: Model, a: Attention, profile: Profile) -> None:
        super().__init__()
        self.a, self.profile = a, profile
        self.rotary = not model.learned_positions
        width, heads, kv = model.d_model, a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim
        if a.fused_qkv:
            self.qkv_proj = nn.Linear(width, heads + 2 * kv, bias=a.qkv_bias)
        else:
            self.q_proj = nn.Linear(width, heads, bias=a.qkv_bias)
            self.k_proj = nn.Linear(width, kv, bias=a.qkv_bias)
            self.v_proj = nn.Linear(width, kv, bias=a.qkv_bias)
        self.o_proj = nn.Linear(heads, width, bias=a.out_bias)
        if a.qk_norm == "head":
            self.q_norm, self.k_norm = RMSNorm(a.head_dim, profile.norm), RMSNorm(a.head_dim, profile.norm)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        if self.rotary:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.profile.recompute in ("core", "core_act"):
            mixed = again(self.core, q, k, v, mask, randomness=self.profile.dropout)
        else:
            mixed = self.core(q, k, v, mask)
        return self.o_proj(mixed)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as (batch, heads, length, head_dim)."""
        dim = self.a.head_dim
        if self.a.fused_qkv:
            counts = (self.a.n_heads, self.a.n_kv_heads, self.a.n_kv_heads)
            parts = self.qkv_proj(x).split([count * dim for count in counts], -1)
            q, k, v = (part.unflatten(-1, (-1, dim)).transpose(1, 2) for part in parts)
            return q, k, v
        q = self.q_proj(x).unflatten(-1, (-1, dim)).transpose(1, 2)
        k = self.k_proj(x).unflatten(-1, (-1, dim)).transpose(1, 2)
        v = self.v_proj(x).unflatten(-1, (-1, dim)).transpose(1, 2)
        if self.a.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def core(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Everything between the projections; returns (batch, length, heads * head_dim)."""
        kernels = {"flash": flash, "math": math}
        kind = self.profile.attention
        out = self.eager(q, k, v, mask) if kind == "eager" else kernels[kind](q, k, v)
        return out.transpose(1, 2).flatten(2)

    def eager(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attention written out, with the softmax in fp32."""
        times = self.a.n_heads // self.a.n_kv_heads
        queries, keys, values = q.contiguous(), repeat(k, times), repeat(v, times)
        scores = (queries @ keys.transpose(-2, -1)) * self.a.head_dim**-0.5
        p = F.softmax(scores.masked_fill(mask, float("-inf")), -1, dtype=torch.float32).to(values.dtype)
        del scores
        if self.profile.dropout:
            p = F.dropout(p, DROPOUT)
        return p @ values


class FeedForward(nn.Module):
    """SwiGLU, or a plain MLP."""

    def __init__(self, model: Model, mlp: MLP, profile: Profile) -> None:
        super().__init__()
        self.profile, self.gated = profile, mlp.gated
        self.act = ACTIVATIONS[mlp.activation]
        if mlp.gated:
            self.gate_proj = nn.Linear(model.d_model, mlp.d_ff, bias=mlp.bias)
        self.up_proj = nn.Linear(model.d_model, mlp.d_ff, bias=mlp.bias)
        self.down_proj = nn.Linear(mlp.d_ff, model.d_model, bias=mlp.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.profile.recompute == "core_act":
            if self.gated:
                return again(lambda g, u: self.down_proj(self.act(g) * u), self.gate_proj(x), self.up_proj(x))
            return again(lambda u: self.down_proj(self.act(u)), self.up_proj(x))
        if self.gated:
            return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(self.act(self.up_proj(x)))


class Block(nn.Module):
    """Pre-norm block with residual sums."""

    def __init__(self, model: Model, layer: Layer, profile: Profile) -> None:
        super().__init__()
        if not isinstance(layer.attention, Attention) or not isinstance(layer.mlp, MLP):
            raise ValueError("the reference has dense layers with ordinary attention only")
        self.attention_norm = _norm(model, profile)
        self.attention = SelfAttention(model, layer.attention, profile)
        self.mlp_norm = _norm(model, profile)
        self.mlp = FeedForward(model, layer.mlp, profile)
        self.dropout = nn.Dropout(DROPOUT) if profile.dropout else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin, mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


def _norm(model: Model, profile: Profile) -> nn.Module:
    if model.norm == "layernorm":
        return nn.LayerNorm(model.d_model, EPS)
    return RMSNorm(model.d_model, profile.norm)


class Reference(nn.Module):
    """A decoder-only transformer with its loss; parameters in the profile's type, on ``device``."""

    cos: Tensor
    sin: Tensor
    mask: Tensor

    def __init__(self, model: Model, profile: Profile, context_length: int, device: str) -> None:
        super().__init__()
        self.profile = profile
        before = torch.get_default_dtype()
        torch.set_default_dtype(DTYPES[profile.precision])
        try:
            with torch.device(device):
                self._build(model, profile)
                self._tables(model, profile, context_length)
        finally:
            torch.set_default_dtype(before)

    def _build(self, model: Model, profile: Profile) -> None:
        vocab = model.padded_vocab_size
        self.embedding = nn.Embedding(vocab, model.d_model)
        self.positions = (
            nn.Embedding(model.learned_positions, model.d_model) if model.learned_positions else None
        )
        self.blocks = nn.ModuleList(Block(model, layer, profile) for layer in model.layers)
        self.norm = _norm(model, profile)
        self.head = nn.Linear(model.d_model, vocab, bias=model.head_bias)
        if model.tied:
            self.head.weight = self.embedding.weight
        self.dropout = nn.Dropout(DROPOUT) if profile.dropout else nn.Identity()

    def _tables(self, model: Model, profile: Profile, length: int) -> None:
        attention = model.layers[0].attention
        assert isinstance(attention, Attention)
        dim = attention.head_dim
        narrow = torch.bfloat16 if profile.autocast else DTYPES[profile.precision]
        empty = torch.empty(0)
        cos = sin = mask = empty
        if not model.learned_positions:
            frequencies = 10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
            angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat(1, 2)
            cos, sin = angles.cos().to(narrow), angles.sin().to(narrow)
        if profile.attention == "eager":
            mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        for name, table in (("cos", cos), ("sin", sin), ("mask", mask)):
            self.register_buffer(name, table, persistent=False)

    def forward(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean cross-entropy, and the logits if the profile holds them; ids and targets (batch, length)."""
        x = self.embedding(ids)
        if self.positions is not None:
            x = x + self.positions(torch.arange(ids.shape[1], device=ids.device))
        x = self.dropout(x)
        for block in self.blocks:
            if self.profile.recompute == "full":
                x = again(block, x, self.cos, self.sin, self.mask, randomness=self.profile.dropout)
            else:
                x = block(x, self.cos, self.sin, self.mask)
        hidden = self.norm(x)
        return self.loss(hidden, targets)

    def loss(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean cross-entropy of the next token."""
        if self.profile.loss == "chunked":
            return self.chunked(hidden.flatten(0, 1), targets.flatten()), None
        logits = self.head(hidden)
        if self.profile.loss == "fused":
            return fused_loss(logits.flatten(0, 1), targets.flatten()), None
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        return loss, logits if self.profile.holds_logits else None

    def chunked(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Head and loss of one chunk of tokens at a time."""

        def part(h: Tensor, wanted: Tensor) -> Tensor:
            return F.cross_entropy(self.head(h).float(), wanted, reduction="sum") / len(targets)

        pieces = self.profile.loss_chunks
        total = hidden.new_zeros((), dtype=torch.float32)
        for h, wanted in zip(hidden.chunk(pieces), targets.chunk(pieces), strict=True):
            total = total + again(part, h, wanted)
        return total


def precision(profile: Profile, device: str) -> contextlib.AbstractContextManager[None]:
    """``torch.autocast`` in bf16 if the profile asks for it."""
    if not profile.autocast:
        return contextlib.nullcontext()
    return torch.autocast("cpu" if device == "meta" else device, dtype=torch.bfloat16)
