"""What a transformer is, as far as its resources go: sizes, layer by layer.

- Every layer is described on its own, so that sliding windows, leading dense layers and experts mix.
- Equal layers are counted once (``Model.groups``, ``Model.runs``): a model of 126 layers costs as much
  time as one of 2.
- Nothing is derived from a name: ``head_dim`` is given, never ``d_model / n_heads``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lmlib.resources.units import ArgumentError, check_bool, check_choice, check_integer

LARGEST_WIDTH = 2**20
LARGEST_HEADS = 2**14
LARGEST_EXPERTS = 2**16
LARGEST_LAYERS = 2**12
LARGEST_VOCABULARY = 2**24
LARGEST_CONTEXT = 2**30

NORMS = ("rmsnorm", "layernorm")
QK_NORMS = ("none", "head", "width")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "clipped_swiglu")


@dataclass(frozen=True)
class Attention:
    """Multi-head attention, and its grouped-query and multi-query forms.

    Args:
        n_heads: query heads.
        n_kv_heads: key/value heads; must divide ``n_heads`` (GQA, Ainslie et al. 2023, section 2).
        head_dim: width of a head, for queries, keys and values alike.
        qkv_bias, out_bias: whether these projections add a bias.
        qk_norm: ``head``: queries and keys are normalised over ``head_dim`` (Qwen3, Gemma 3);
            ``width``: over all heads together (OLMo 2); or ``none``.
        window: a query sees itself and the ``window - 1`` tokens before it; ``None``: all of them.
        sinks: a learned logit per head that joins the softmax (gpt-oss).
        fused_qkv: one matrix for all three projections. Same sizes, fewer copies under autocast.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: str = "none"
    window: int | None = None
    sinks: bool = False
    fused_qkv: bool = False

    def __post_init__(self) -> None:
        check_integer("n_heads", self.n_heads, 1, LARGEST_HEADS)
        check_integer("n_kv_heads", self.n_kv_heads, 1, LARGEST_HEADS)
        check_integer("head_dim", self.head_dim, 1, LARGEST_WIDTH)
        check_choice("qk_norm", self.qk_norm, QK_NORMS)
        if self.window is not None:
            check_integer("window", self.window, 1, LARGEST_CONTEXT)
        for field in ("qkv_bias", "out_bias", "sinks", "fused_qkv"):
            check_bool(field, getattr(self, field))
        if self.n_heads % self.n_kv_heads:
            raise ArgumentError("n_kv_heads", f"must divide n_heads = {self.n_heads}, got {self.n_kv_heads}")

    @property
    def kind(self) -> str:
        """``mha``, ``gqa`` or ``mqa``."""
        if self.n_kv_heads == self.n_heads:
            return "mha"
        return "mqa" if self.n_kv_heads == 1 else "gqa"

    @property
    def query_dim(self) -> int:
        """Width of a query and a key head."""
        return self.head_dim

    @property
    def value_dim(self) -> int:
        """Width of a value head."""
        return self.head_dim

    @property
    def cached_values(self) -> int:
        """Values that one token leaves in the cache of one layer: keys and values of all kv heads."""
        return 2 * self.n_kv_heads * self.head_dim


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    Args:
        n_heads: query heads.
        q_lora_rank: width of the compressed query, ``None`` where queries are projected directly.
        kv_lora_rank: width of the compressed key/value, which is what the cache holds.
        rope_head_dim: width of the rotated part; its key is shared by all heads, and cached.
        nope_head_dim: width of the part of a query or key head without rotation.
        v_head_dim: width of a value head.
        bias: whether the down projections and the output projection add a bias.
    """

    n_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    rope_head_dim: int
    nope_head_dim: int
    v_head_dim: int
    bias: bool = False

    def __post_init__(self) -> None:
        check_integer("n_heads", self.n_heads, 1, LARGEST_HEADS)
        if self.q_lora_rank is not None:
            check_integer("q_lora_rank", self.q_lora_rank, 1, LARGEST_WIDTH)
        for field in ("kv_lora_rank", "rope_head_dim", "nope_head_dim", "v_head_dim"):
            check_integer(field, getattr(self, field), 1, LARGEST_WIDTH)
        check_bool("bias", self.bias)

    @property
    def window(self) -> None:
        """Every earlier token is seen."""
        return None

    @property
    def kind(self) -> str:
        """``mla``."""
        return "mla"

    @property
    def n_kv_heads(self) -> int:
        """Expanded keys and values have a head for each query head."""
        return self.n_heads

    @property
    def query_dim(self) -> int:
        """Width of a query and a key head, both parts."""
        return self.nope_head_dim + self.rope_head_dim

    @property
    def value_dim(self) -> int:
        """Width of a value head."""
        return self.v_head_dim

    @property
    def cached_values(self) -> int:
        """Values that one token leaves in the cache of one layer: the latent and the rotated key."""
        return self.kv_lora_rank + self.rope_head_dim


@dataclass(frozen=True)
class MLP:
    """A dense feed-forward block; ``gated`` adds a second input matrix (SwiGLU, GeGLU; Shazeer 2020)."""

    d_ff: int
    gated: bool = True
    bias: bool = False
    activation: str = "silu"

    def __post_init__(self) -> None:
        check_integer("d_ff", self.d_ff, 1, LARGEST_WIDTH)
        check_bool("gated", self.gated)
        check_bool("bias", self.bias)
        check_choice("activation", self.activation, ACTIVATIONS)


@dataclass(frozen=True)
class MoE:
    """A router and gated experts, of which ``top_k`` see each token (Mixtral, DeepSeekMoE).

    Args:
        n_experts, top_k: routed experts, and how many of them one token visits.
        d_ff: inner width of one routed expert.
        shared_d_ff: inner width of the experts that every token visits, all together; 0 for none.
        shared_gate: whether a learned gate, one number a token, scales the shared expert (Qwen2-MoE).
        router_bias: a trained bias on the router's logits (gpt-oss).
        correction_bias: a buffer, updated by rule and not by gradient, that balances the experts
            (DeepSeek-V3, arXiv:2412.19437, section 2.1.2).
        bias: whether the experts' projections add biases (gpt-oss).
    """

    n_experts: int
    top_k: int
    d_ff: int
    shared_d_ff: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    correction_bias: bool = False
    bias: bool = False
    activation: str = "silu"

    def __post_init__(self) -> None:
        check_integer("n_experts", self.n_experts, 1, LARGEST_EXPERTS)
        check_integer("top_k", self.top_k, 1, self.n_experts)
        check_integer("d_ff", self.d_ff, 1, LARGEST_WIDTH)
        check_integer("shared_d_ff", self.shared_d_ff, 0, LARGEST_WIDTH)
        for field in ("shared_gate", "router_bias", "correction_bias", "bias"):
            check_bool(field, getattr(self, field))
        check_choice("activation", self.activation, ACTIVATIONS)
        if self.shared_gate and not self.shared_d_ff:
            raise ArgumentError("shared_gate", "needs a shared expert: shared_d_ff is 0")


@dataclass(frozen=True)
class Layer:
    """One block: attention, feed-forward, and how many norms of width ``d_model`` it holds.

    Two norms are usual; four where the outputs are normalised as well (Gemma 2); one where attention
    and MLP read the same norm (Phi). ``parallel``: both are added to the residual at once (GPT-J).
    """

    attention: Attention | LatentAttention
    mlp: MLP | MoE
    norms: int = 2
    parallel: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.attention, Attention | LatentAttention):
            raise ArgumentError("attention", f"must be Attention or LatentAttention, got {self.attention!r}")
        if not isinstance(self.mlp, MLP | MoE):
            raise ArgumentError("mlp", f"must be MLP or MoE, got {self.mlp!r}")
        check_integer("norms", self.norms, 0, 4)
        check_bool("parallel", self.parallel)


@dataclass(frozen=True)
class Model:
    """A decoder-only transformer.

    Args:
        d_model: width of the residual stream.
        vocab_size: tokens in the vocabulary; the matrices have ``padded_vocab_size`` rows.
        context_length: the most tokens it was made for.
        layers: one ``Layer`` a layer; equal ones may be the same object.
        tied: whether the head is the input embedding's matrix.
        norm: ``rmsnorm`` (a weight) or ``layernorm`` (a weight and a bias).
        learned_positions: rows of a learned position embedding, 0 for none.
        head_bias: whether the head adds a bias (Phi).
        pad_vocab_to: the vocabulary is padded to a multiple of this (Megatron-LM's
            ``make-vocab-size-divisible-by``).
        next_n_predict_layers: extra layers that predict further tokens during training (DeepSeek-V3);
            counted apart, by ``parameters.multi_token_prediction``.
        assumptions: what a configuration left out and its architecture's default filled in.

    Raises:
        ArgumentError: for a size out of bounds; its ``field`` names the argument.
    """

    name: str
    d_model: int
    vocab_size: int
    context_length: int
    layers: tuple[Layer, ...]
    tied: bool
    norm: str = "rmsnorm"
    learned_positions: int = 0
    head_bias: bool = False
    pad_vocab_to: int = 1
    next_n_predict_layers: int = 0
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_integer("d_model", self.d_model, 1, LARGEST_WIDTH)
        check_integer("vocab_size", self.vocab_size, 1, LARGEST_VOCABULARY)
        check_integer("context_length", self.context_length, 1, LARGEST_CONTEXT)
        check_integer("n_layers", len(self.layers), 1, LARGEST_LAYERS)
        check_integer("learned_positions", self.learned_positions, 0, LARGEST_CONTEXT)
        check_integer("pad_vocab_to", self.pad_vocab_to, 1, LARGEST_VOCABULARY)
        check_integer("next_n_predict_layers", self.next_n_predict_layers, 0, 16)
        check_choice("norm", self.norm, NORMS)
        check_bool("tied", self.tied)
        check_bool("head_bias", self.head_bias)

    @cached_property
    def _hash(self) -> int:
        return hash((self.name, self.d_model, self.vocab_size, self.tied, self.runs))

    def __hash__(self) -> int:
        """Computed once: models are keys of caches, and a hundred layers take long to hash."""
        return self._hash

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], name: str = "") -> "Model":
        """Read the contents of a Hugging Face ``config.json``, see ``config.read``."""
        from lmlib.resources.config import read

        return read(config, name)

    @property
    def n_layers(self) -> int:
        """Number of layers, without those that predict further tokens."""
        return len(self.layers)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and of the head."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    @property
    def is_moe(self) -> bool:
        """Whether any layer has experts."""
        return any(isinstance(layer.mlp, MoE) for layer, _ in self.groups)

    @cached_property
    def groups(self) -> tuple[tuple[Layer, int], ...]:
        """Distinct layers in order of first appearance, each with how often it occurs."""
        counts: dict[Layer, int] = {}
        for layer, count in self.runs:
            counts[layer] = counts.get(layer, 0) + count
        return tuple(counts.items())

    @cached_property
    def runs(self) -> tuple[tuple[Layer, int], ...]:
        """Consecutive equal layers, each run with its length."""
        runs: list[tuple[Layer, int]] = []
        for layer in self.layers:
            if runs and (runs[-1][0] is layer or runs[-1][0] == layer):
                runs[-1] = (layer, runs[-1][1] + 1)
            else:
                runs.append((layer, 1))
        return tuple(runs)


def describe(layer: Layer) -> str:
    """A few words that tell this layer from the others of its model: ``gqa, window 4096, moe``."""
    words = [layer.attention.kind]
    if layer.attention.window is not None:
        words.append(f"window {layer.attention.window}")
    words.append("moe" if isinstance(layer.mlp, MoE) else "dense")
    return ", ".join(words)
