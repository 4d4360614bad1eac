"""The parts of a configuration that have sizes of their own: stretched RoPE, latent attention, experts."""

from __future__ import annotations

from dataclasses import dataclass

from lmlib.resources.model import LARGEST_CONTEXT, LARGEST_EXPERTS, LARGEST_LAYERS, LARGEST_WIDTH
from lmlib.resources.units import ArgumentError, check_bool, check_choice, check_integer, check_number

SCALINGS = ("linear", "llama3", "yarn")
BALANCES = ("loss", "bias", "none")
SCORES = ("softmax", "sigmoid")


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE is stretched beyond the context that a model was trained on.

    Args:
        kind: ``linear``: positions divided by ``factor`` (Chen et al. 2023, arXiv:2306.15595);
            ``llama3``: low frequencies divided, high ones kept, a ramp between (Llama 3.1);
            ``yarn``: another ramp, and sharper attention (Peng et al. 2023, arXiv:2309.00071).
        factor: by how much the context grows.
        original_context_length: tokens before the stretching (``llama3`` and ``yarn``).
        low_freq_factor, high_freq_factor: ``llama3``: wavelengths longer than ``original / low`` are divided
            by ``factor``, those shorter than ``original / high`` are kept.
        beta_fast, beta_slow: ``yarn``: turns over the original context between which the ramp lies.
        attention_factor: ``yarn``: what cosines and sines are multiplied with; ``None``: 0.1 ln(factor) + 1.
    """

    kind: str
    factor: float
    original_context_length: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        check_choice("rope_scaling.kind", self.kind, SCALINGS)
        check_number("rope_scaling.factor", self.factor, 1, 10**6)
        for name in ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
            check_number(f"rope_scaling.{name}", getattr(self, name), 1e-6, 10**6)
        if self.attention_factor is not None:
            check_number("rope_scaling.attention_factor", self.attention_factor, 1e-6, 10**6)
        if self.kind != "linear":
            check_integer(
                "rope_scaling.original_context_length", self.original_context_length, 1, LARGEST_CONTEXT
            )
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ArgumentError(
                "rope_scaling.high_freq_factor",
                f"must be above low_freq_factor = {self.low_freq_factor:g}, got {self.high_freq_factor:g}",
            )


@dataclass(frozen=True)
class MLAConfig:
    """Sizes of multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    Args:
        kv_lora_rank: width of the compressed keys and values, which the cache holds.
        nope_head_dim: width of the part of a query or key head that is not rotated.
        rope_head_dim: width of the rotated part (even); its key is shared by all heads and cached.
        v_head_dim: width of a value head.
        q_lora_rank: width of the compressed query; ``None``: queries are projected directly.
    """

    kv_lora_rank: int
    nope_head_dim: int
    rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None

    def __post_init__(self) -> None:
        for name in ("kv_lora_rank", "nope_head_dim", "rope_head_dim", "v_head_dim"):
            check_integer(f"mla.{name}", getattr(self, name), 1, LARGEST_WIDTH)
        if self.q_lora_rank is not None:
            check_integer("mla.q_lora_rank", self.q_lora_rank, 1, LARGEST_WIDTH)


@dataclass(frozen=True)
class MoEConfig:
    """Experts in place of the feed-forward block (Shazeer et al. 2017; Mixtral, arXiv:2401.04088).

    Args:
        n_experts, top_k: routed experts, and how many of them a token visits.
        d_ff: inner width of one routed expert; the experts are gated.
        n_shared: experts that every token visits, each ``d_ff`` wide (DeepSeekMoE, arXiv:2401.06066).
        first_dense: leading layers that keep a dense block (DeepSeek-V2 has 1).
        normalise: whether the weights of the chosen experts are divided by their sum.
        score: how router logits become weights: ``softmax``, or ``sigmoid`` (DeepSeek-V3).
        balance: ``loss``: the auxiliary loss of Switch (arXiv:2101.03961, section 2.2), E times the sum over
            experts of (share of choices × mean probability), 1 where all are even; ``bias``: a bias on the
            choice alone, moved by ``TransformerLM.update_router_biases`` (arXiv:2408.15664); or ``none``.
        balance_weight: what the balance loss is multiplied with in ``TransformerLM.auxiliary_loss``.
        z_weight: the same for the router's z-loss, the mean squared log of the softmax's sum
            (ST-MoE, arXiv:2202.08906, section 3.1).
    """

    n_experts: int
    top_k: int
    d_ff: int
    n_shared: int = 0
    first_dense: int = 0
    normalise: bool = True
    score: str = "softmax"
    balance: str = "loss"
    balance_weight: float = 0.01
    z_weight: float = 0.0

    def __post_init__(self) -> None:
        check_integer("moe.n_experts", self.n_experts, 1, LARGEST_EXPERTS)
        check_integer("moe.top_k", self.top_k, 1, self.n_experts)
        check_integer("moe.d_ff", self.d_ff, 1, LARGEST_WIDTH)
        check_integer("moe.n_shared", self.n_shared, 0, LARGEST_EXPERTS)
        check_integer("moe.first_dense", self.first_dense, 0, LARGEST_LAYERS)
        check_bool("moe.normalise", self.normalise)
        check_choice("moe.score", self.score, SCORES)
        check_choice("moe.balance", self.balance, BALANCES)
        check_number("moe.balance_weight", self.balance_weight, 0, 10**6)
        check_number("moe.z_weight", self.z_weight, 0, 10**6)
