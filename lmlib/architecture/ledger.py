"""A configuration as ``lmlib.resources`` sees it, so that a model is costed by the ledgers of chapter 4."""

from __future__ import annotations

from lmlib.architecture.config import GATED, UNGATED, ModelConfig
from lmlib.resources.model import MLP, Attention, LatentAttention, Layer, Model, MoE

NORMS = {"pre": 2, "post": 2, "output": 2, "both": 4, "none": 0}


def describe(config: ModelConfig) -> Model:
    """The model of ``config``: as many parameters, and as many FLOPs, as the module has.

    ``relu2`` counts as ``relu``: equal but for what autograd keeps.
    """
    return Model(
        name="lmlib",
        d_model=config.d_model,
        vocab_size=config.vocab_size,
        context_length=config.context_length,
        layers=tuple(_layer(config, layer) for layer in range(config.n_layers)),
        tied=config.tied,
        norm=config.norm,
        learned_positions=config.context_length if config.position == "learned" else 0,
    )


def _layer(config: ModelConfig, layer: int) -> Layer:
    attention = _attention(config, layer) if config.mla is None else _latent(config)
    mlp = _experts(config) if config.is_moe(layer) else _dense(config)
    return Layer(attention, mlp, norms=NORMS[config.norm_position])


def _attention(config: ModelConfig, layer: int) -> Attention:
    return Attention(
        config.n_heads,
        config.n_kv_heads,
        config.head_dim,
        qkv_bias=config.qkv_bias,
        out_bias=config.out_bias,
        qk_norm="head" if config.qk_norm else "none",
        window=config.layer_window(layer),
        fused_qkv=True,
    )


def _latent(config: ModelConfig) -> LatentAttention:
    m = config.mla
    assert m is not None
    return LatentAttention(
        config.n_heads,
        m.q_lora_rank,
        m.kv_lora_rank,
        m.rope_head_dim,
        m.nope_head_dim,
        m.v_head_dim,
        bias=config.bias,
    )


def _dense(config: ModelConfig) -> MLP:
    activation = {**GATED, **UNGATED}[config.mlp]
    return MLP(config.d_ff, gated=config.gated, bias=config.bias, activation=activation)


def _experts(config: ModelConfig) -> MoE:
    moe = config.moe
    assert moe is not None
    return MoE(
        moe.n_experts,
        moe.top_k,
        moe.d_ff,
        shared_d_ff=moe.n_shared * moe.d_ff,
        correction_bias=moe.balance == "bias",
        activation={**GATED, **UNGATED}[config.mlp],
    )
