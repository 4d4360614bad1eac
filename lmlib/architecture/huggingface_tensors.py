"""Which tensors of a Hugging Face checkpoint make up each of ours.

Ours are theirs one below the other: queries, keys and values in one matrix, gates above ups, expert after
expert. GPT-2 alone stores its matrices transposed (inputs first).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlib.architecture.config import ModelConfig


@dataclass(frozen=True)
class Pair:
    """One of our parameters, and the tensors it consists of, each with its rows."""

    ours: str
    theirs: tuple[tuple[str, int], ...]
    transposed: bool = False

    def shapes(self, ours: Tensor) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The shape that each of their tensors must have."""
        for name, rows in self.theirs:
            shape = (rows, *ours.shape[-1:]) if ours.ndim > 1 else (rows,)
            yield name, shape[::-1] if self.transposed else shape

    def join(self, theirs: list[Tensor], shape: torch.Size) -> Tensor:
        """Ours from theirs."""
        return torch.cat([x.T if self.transposed else x for x in theirs]).view(shape)

    def split(self, ours: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Theirs from ours, each contiguous and with memory of its own."""
        flat = ours.detach().flatten(0, -2) if ours.ndim > 1 else ours.detach()
        parts = flat.split([rows for _, rows in self.theirs])
        for (name, _), part in zip(self.theirs, parts, strict=True):
            yield name, (part.T if self.transposed else part).contiguous().cpu().clone()


def pairs(config: ModelConfig, family: str) -> list[Pair]:
    """All parameters of a model of one of ``huggingface_config.FAMILIES``."""
    return list(_gpt2(config) if family == "gpt2" else _llama_like(config))


def _gpt2(config: ModelConfig) -> Iterator[Pair]:
    D, F = config.d_model, config.d_ff
    yield Pair("embedding.weight", (("transformer.wte.weight", config.vocab_size),))
    yield Pair("positions.weight", (("transformer.wpe.weight", config.context_length),))
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}.", f"transformer.h.{i}."
        for norm, name in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
            for kind in ("weight", "bias"):
                yield Pair(f"{ours}{norm}.{kind}", ((f"{theirs}{name}.{kind}", D),))
        for linear, name, rows in (
            ("attention.qkv_proj", "attn.c_attn", 3 * D),
            ("attention.o_proj", "attn.c_proj", D),
            ("mlp.up_proj", "mlp.c_fc", F),
            ("mlp.down_proj", "mlp.c_proj", D),
        ):
            yield Pair(f"{ours}{linear}.weight", ((f"{theirs}{name}.weight", rows),), transposed=True)
            yield Pair(f"{ours}{linear}.bias", ((f"{theirs}{name}.bias", rows),))
    yield Pair("norm.weight", (("transformer.ln_f.weight", D),))
    yield Pair("norm.bias", (("transformer.ln_f.bias", D),))
    yield from _head(config)


def _llama_like(config: ModelConfig) -> Iterator[Pair]:
    D = config.d_model
    yield Pair("embedding.weight", (("model.embed_tokens.weight", config.vocab_size),))
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        yield Pair(f"{ours}attention_norm.weight", ((f"{theirs}input_layernorm.weight", D),))
        yield Pair(f"{ours}mlp_norm.weight", ((f"{theirs}post_attention_layernorm.weight", D),))
        yield from _attention(config, f"{ours}attention.", f"{theirs}self_attn.")
        if config.moe is not None:
            yield from _experts(config, f"{ours}mlp.", f"{theirs}block_sparse_moe.")
        else:
            yield from _mlp(config, f"{ours}mlp.", f"{theirs}mlp.")
    yield Pair("norm.weight", (("model.norm.weight", D),))
    yield from _head(config)


def _head(config: ModelConfig) -> Iterator[Pair]:
    if not config.tied:
        yield Pair("head.weight", (("lm_head.weight", config.vocab_size),))


def _attention(config: ModelConfig, ours: str, theirs: str) -> Iterator[Pair]:
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
        rows = ((f"{theirs}q_proj.{kind}", queries), (f"{theirs}k_proj.{kind}", keys))
        yield Pair(f"{ours}qkv_proj.{kind}", (*rows, (f"{theirs}v_proj.{kind}", keys)))
    for kind in ("weight", "bias") if config.out_bias else ("weight",):
        yield Pair(f"{ours}o_proj.{kind}", ((f"{theirs}o_proj.{kind}", config.d_model),))
    for norm in ("q_norm", "k_norm") if config.qk_norm else ():
        yield Pair(f"{ours}{norm}.weight", ((f"{theirs}{norm}.weight", config.head_dim),))


def _mlp(config: ModelConfig, ours: str, theirs: str) -> Iterator[Pair]:
    for kind in ("weight", "bias") if config.bias else ("weight",):
        rows = ((f"{theirs}gate_proj.{kind}", config.d_ff), (f"{theirs}up_proj.{kind}", config.d_ff))
        yield Pair(f"{ours}gate_up_proj.{kind}", rows)
        yield Pair(f"{ours}down_proj.{kind}", ((f"{theirs}down_proj.{kind}", config.d_model),))


def _experts(config: ModelConfig, ours: str, theirs: str) -> Iterator[Pair]:
    """Mixtral's names: w1 is the gate, w3 goes up, w2 comes down."""
    moe = config.moe
    assert moe is not None
    yield Pair(f"{ours}router.weight", ((f"{theirs}gate.weight", moe.n_experts),))
    experts = [f"{theirs}experts.{e}." for e in range(moe.n_experts)]
    rows = tuple((f"{expert}{w}.weight", moe.d_ff) for expert in experts for w in ("w1", "w3"))
    yield Pair(f"{ours}experts.gate_up_proj", rows)
    down = tuple((f"{expert}w2.weight", config.d_model) for expert in experts)
    yield Pair(f"{ours}experts.down_proj", down)
