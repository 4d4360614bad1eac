"""What a model is: every choice of architecture as one checked, frozen dataclass.

- The defaults are those of Llama: pre-norm RMSNorm, SwiGLU, RoPE, no biases.
- Sizes that are left out are derived; ``replace`` derives them anew, ``dataclasses.replace`` would not.
- Standard library only, so that a configuration can be read, checked and costed without torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmlib.architecture.parts import MLAConfig, MoEConfig, RopeScaling
from lmlib.resources.model import (
    LARGEST_CONTEXT,
    LARGEST_HEADS,
    LARGEST_LAYERS,
    LARGEST_VOCABULARY,
    LARGEST_WIDTH,
    Model,
)
from lmlib.resources.units import ArgumentError, check_bool, check_choice, check_integer, check_number

NORMS = ("rmsnorm", "layernorm")
NORM_POSITIONS = ("pre", "post", "both", "output", "none")
POSITIONS = ("rope", "learned", "sinusoidal", "none")
ATTENTIONS = ("gqa", "mla")
KERNELS = ("sdpa", "eager", "triton", "triton-sdpa")
GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}
UNGATED = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_tanh", "silu": "silu", "relu2": "relu"}


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.

    Args:
        vocab_size: tokens in the vocabulary.
        context_length: the most tokens that a sequence may have.
        d_model: width of the residual stream.
        n_layers: blocks.
        n_heads: query heads.
        n_kv_heads: key/value heads; divides ``n_heads`` (GQA; 1 for MQA). Derived: ``n_heads``.
        head_dim: width of a head. Derived: ``d_model / n_heads``.
        d_ff: inner width of the feed-forward block. Derived: 4 ``d_model``, or for gated ones, which have
            three matrices, 8/3 ``d_model`` rounded up to a multiple of 64.
        norm: ``rmsnorm`` (Zhang & Sennrich 2019) or ``layernorm`` (with bias).
        norm_eps: what the norms add to the variance.
        norm_position: ``pre``: x + f(norm(x)); ``post``: norm(x + f(x)) (Vaswani et al. 2017); ``both``:
            x + norm(f(norm(x))) (Gemma 2); ``output``: x + norm(f(x)) (OLMo 2); ``none``: x + f(x).
            A norm before the head comes with all of them.
        mlp: ``swiglu``, ``geglu``, ``geglu_tanh`` (Shazeer 2020), or without gate ``relu``, ``gelu``,
            ``gelu_tanh``, ``silu``, ``relu2`` (squared ReLU; So et al. 2021).
        bias: whether projections add biases.
        qkv_bias, out_bias: the same for those of attention. Derived: ``bias``.
        position: ``rope`` (Su et al. 2021), ``learned``, ``sinusoidal`` or ``none``.
        rope_theta: base of the frequencies.
        rope_scaling: see ``RopeScaling``.
        tied: whether the head is the embedding's matrix (Press & Wolf 2017).
        qk_norm: RMSNorm of each query and key head before RoPE (Qwen3).
        attention: ``gqa``, with MHA and MQA as its ends, or ``mla``, which needs ``mla``.
        window: a query sees itself and the ``window - 1`` tokens before it; ``None``: all.
        window_pattern: ``L`` for a layer with the window, ``G`` for one that sees all, repeated over the
            layers: ``LG`` (Gemma 2), ``LLLLLG`` (Gemma 3).
        attention_scale: factor of the scores. ``None``: 1 / sqrt(head_dim).
        attention_softcap, logit_softcap: c tanh(x / c) of scores and of logits (Gemma 2, arXiv:2408.00118).
        embedding_scale: factor of the embedding's output. Derived: 1, or sqrt(d_model) where a tied
            embedding meets sinusoids (Vaswani et al. 2017, section 3.4).
        logit_scale: factor of the logits.
        moe: see ``MoEConfig``.
        embedding_std: of the initial embedding. Derived: 1, or 1 / sqrt(d_model) if tied, for the head.
        head_init_scale: factor of the initial head; 0 makes the first loss ln(vocab_size) exactly.
        residual_init_scale: factor of the projections that write into the residual stream; GPT-2 has
            1 / sqrt(2 n_layers).
        kernels: ``eager``: every formula written out; ``sdpa``: PyTorch's fused functions; ``triton``: this
            book's kernels, where they apply; ``triton-sdpa``: these, but for attention, where cuDNN's is
            faster on the GPUs that have it. Both read the weights of plain linear layers where a kernel takes
            more than one layer: hooks on these layers are not called.

    Raises:
        ArgumentError: for a value out of bounds; ``field`` names the argument.
    """

    vocab_size: int
    context_length: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int = None  # type: ignore[assignment]  # derived, as below: never None after construction
    head_dim: int = None  # type: ignore[assignment]
    d_ff: int = None  # type: ignore[assignment]
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    norm_position: str = "pre"
    mlp: str = "swiglu"
    bias: bool = False
    qkv_bias: bool = None  # type: ignore[assignment]
    out_bias: bool = None  # type: ignore[assignment]
    position: str = "rope"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tied: bool = False
    qk_norm: bool = False
    attention: str = "gqa"
    mla: MLAConfig | None = None
    window: int | None = None
    window_pattern: str = "L"
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = None  # type: ignore[assignment]
    logit_scale: float = 1.0
    moe: MoEConfig | None = None
    embedding_std: float = None  # type: ignore[assignment]
    head_init_scale: float = 1.0
    residual_init_scale: float = 1.0
    kernels: str = "sdpa"
    derived: frozenset[str] = field(init=False, repr=False, compare=False, default=frozenset())

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_choices()
        self._derive()
        self._check_derived()

    def _check_sizes(self) -> None:
        check_integer("vocab_size", self.vocab_size, 1, LARGEST_VOCABULARY)
        check_integer("context_length", self.context_length, 1, LARGEST_CONTEXT)
        check_integer("d_model", self.d_model, 1, LARGEST_WIDTH)
        check_integer("n_layers", self.n_layers, 1, LARGEST_LAYERS)
        check_integer("n_heads", self.n_heads, 1, LARGEST_HEADS)
        if self.window is not None:
            check_integer("window", self.window, 1, LARGEST_CONTEXT)
        for name in ("attention_scale", "attention_softcap", "logit_softcap"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 1e-9, 10**9)
        for name in ("norm_eps", "rope_theta"):
            check_number(name, getattr(self, name), 1e-12, 10**12)
        for name in ("logit_scale", "head_init_scale", "residual_init_scale"):
            check_number(name, getattr(self, name), 0, 10**6)

    def _check_choices(self) -> None:
        check_choice("norm", self.norm, NORMS)
        check_choice("norm_position", self.norm_position, NORM_POSITIONS)
        check_choice("mlp", self.mlp, (*GATED, *UNGATED))
        check_choice("position", self.position, POSITIONS)
        check_choice("attention", self.attention, ATTENTIONS)
        check_choice("kernels", self.kernels, KERNELS)
        for name in ("bias", "tied", "qk_norm"):
            check_bool(name, getattr(self, name))
        for name, kind in (("rope_scaling", RopeScaling), ("mla", MLAConfig), ("moe", MoEConfig)):
            if not isinstance(getattr(self, name), kind | None):
                raise ArgumentError(name, f"must be {kind.__name__} or None, got {getattr(self, name)!r}")
        if not isinstance(self.window_pattern, str) or not self.window_pattern:
            raise ArgumentError("window_pattern", f"must be letters L and G, got {self.window_pattern!r}")
        if set(self.window_pattern) - {"L", "G"}:
            raise ArgumentError("window_pattern", f"must be letters L and G, got {self.window_pattern!r}")
        self._check_latent()

    def _check_latent(self) -> None:
        if (self.attention == "mla") != (self.mla is not None):
            raise ArgumentError("mla", f"must be given with attention='mla' and only then, got {self.mla!r}")
        if self.attention != "mla":
            return
        for name in ("n_kv_heads", "head_dim", "qkv_bias", "out_bias", "window"):
            allowed = {None, self._derivation(name)} if name != "window" else {None}
            if getattr(self, name) not in allowed:
                raise ArgumentError(
                    name, f"cannot be chosen with attention='mla', got {getattr(self, name)!r}"
                )
        if self.qk_norm:
            raise ArgumentError("qk_norm", "cannot be chosen with attention='mla', which norms its latents")

    def _derivation(self, name: str) -> Any:
        if name == "n_kv_heads":
            return self.n_heads
        if name == "head_dim":
            if self.mla is not None:
                return self.mla.nope_head_dim + self.mla.rope_head_dim
            if self.d_model % self.n_heads:
                raise ArgumentError(
                    "n_heads",
                    f"must divide d_model = {self.d_model} where head_dim is not given, got {self.n_heads}",
                )
            return self.d_model // self.n_heads
        if name == "d_ff":
            return -(-8 * self.d_model // 3 // 64) * 64 if self.gated else 4 * self.d_model
        if name in ("qkv_bias", "out_bias"):
            return self.bias
        if name == "embedding_scale":
            return self.d_model**0.5 if self.tied and self.position == "sinusoidal" else 1.0
        assert name == "embedding_std", name
        return self.d_model**-0.5 if self.tied else 1.0

    def _derive(self) -> None:
        derivable = (
            "n_kv_heads",
            "head_dim",
            "d_ff",
            "qkv_bias",
            "out_bias",
            "embedding_scale",
            "embedding_std",
        )
        absent = [name for name in derivable if getattr(self, name) is None]
        for name in absent:
            object.__setattr__(self, name, self._derivation(name))
        object.__setattr__(self, "derived", frozenset(absent))

    def _check_derived(self) -> None:
        check_integer("n_kv_heads", self.n_kv_heads, 1, LARGEST_HEADS)
        check_integer("head_dim", self.head_dim, 1, LARGEST_WIDTH)
        check_integer("d_ff", self.d_ff, 1, LARGEST_WIDTH)
        check_bool("qkv_bias", self.qkv_bias)
        check_bool("out_bias", self.out_bias)
        check_number("embedding_scale", self.embedding_scale, 0, 10**6)
        check_number("embedding_std", self.embedding_std, 0, 10**6)
        if self.n_heads % self.n_kv_heads:
            raise ArgumentError("n_kv_heads", f"must divide n_heads = {self.n_heads}, got {self.n_kv_heads}")
        if self.position == "rope" and self.rope_dim % 2:
            name = "head_dim" if self.mla is None else "mla.rope_head_dim"
            raise ArgumentError(name, f"must be even for RoPE, which rotates pairs, got {self.rope_dim}")
        if self.position == "sinusoidal" and self.d_model % 2:
            raise ArgumentError("d_model", f"must be even for sinusoidal positions, got {self.d_model}")
        if self.rope_scaling is not None and self.position != "rope":
            raise ArgumentError("rope_scaling", f"needs position='rope', got position={self.position!r}")

    @property
    def triton(self) -> bool:
        """Whether norms, rotation, feed-forward and loss are this book's kernels, where they apply."""
        return self.kernels.startswith("triton")

    @property
    def gated(self) -> bool:
        """Whether the feed-forward block has a gate."""
        return self.mlp in GATED

    @property
    def rope_dim(self) -> int:
        """Width of what RoPE rotates in a head."""
        return self.head_dim if self.mla is None else self.mla.rope_head_dim

    @property
    def scale(self) -> float:
        """Factor of the attention scores."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def layer_window(self, layer: int) -> int | None:
        """The window of layer ``layer``, counted from 0; ``None`` where it sees all."""
        return self.window if self.window_pattern[layer % len(self.window_pattern)] == "L" else None

    def is_moe(self, layer: int) -> bool:
        """Whether layer ``layer`` has experts."""
        return self.moe is not None and layer >= self.moe.first_dense

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with ``changes``; what was derived before, and is not given now, is derived anew."""
        anew: dict[str, Any] = dict.fromkeys(self.derived)
        return dataclasses.replace(self, **(anew | changes))

    def to_dict(self) -> dict[str, Any]:
        """Every field, derived ones too, as what JSON can hold."""
        values = dataclasses.asdict(self)
        del values["derived"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The configuration of ``to_dict``, or of a config file that leaves out what has a default.

        Raises:
            ArgumentError: for a key that is no field, or a field without default that is missing.
        """
        parts = {"rope_scaling": RopeScaling, "mla": MLAConfig, "moe": MoEConfig}
        built = dict(values)
        for name, kind in parts.items():
            if isinstance(built.get(name), Mapping):
                built[name] = _from_mapping(kind, built[name], f"{name}.")
        return _from_mapping(cls, built)

    def resources(self) -> Model:
        """The same model for ``lmlib.resources``: parameters, FLOPs, memory and time."""
        from lmlib.architecture.ledger import describe

        return describe(self)


def _from_mapping(kind: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    known = {f.name: f for f in dataclasses.fields(kind) if f.init}
    for name in values:
        if name not in known:
            raise ArgumentError(f"{prefix}{name}", f"is not known; allowed are {', '.join(known)}")
    for name, f in known.items():
        if name not in values and f.default is dataclasses.MISSING:
            raise ArgumentError(f"{prefix}{name}", "is missing")
    return kind(**values)
