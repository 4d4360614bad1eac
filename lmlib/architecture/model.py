"""The transformer: embedding, blocks, norm, head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmlib.architecture.attention import SelfAttention
from lmlib.architecture.cache import KVCache, LayerCache
from lmlib.architecture.config import ModelConfig
from lmlib.architecture.feed_forward import FeedForward
from lmlib.architecture.initialize import initialize
from lmlib.architecture.latent import LatentAttention
from lmlib.architecture.moe import MixtureOfExperts
from lmlib.architecture.norms import make_norm
from lmlib.architecture.positions import Rotary, Rotation, sinusoids

Left = tuple[Tensor, Tensor | None]
"""What a block leaves to be added to the residual stream: a branch (B, T, D), and its bias (D,) or None."""


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream, with norms where the config says."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_position = config.norm_position
        self.attention = (LatentAttention if config.mla else SelfAttention)(config, layer)
        self.mlp = MixtureOfExperts(config) if config.is_moe(layer) else FeedForward(config)
        if config.norm_position != "none":
            self.attention_norm, self.mlp_norm = make_norm(config), make_norm(config)
        if config.norm_position == "both":
            self.attention_out_norm, self.mlp_out_norm = make_norm(config), make_norm(config)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
        *,
        chained: bool = False,
        left: Left | None = None,
    ) -> Tensor | tuple[Tensor, Left]:
        """The residual stream after this block.

        ``chained``, for pre-norm: ``left`` is what the block before has left to be added to ``x``, and what
        comes back is again the stream and something left, so that sums are one kernel with the norm after.
        """
        if chained:
            return self._chained(x, left, rotation, cache)
        match self.norm_position:
            case "pre":
                h, x = self.mlp_norm.after_sum(self.attention(self.attention_norm(x), rotation, cache), x)
                return x + self.mlp(h)
            case "both":
                x = x + self.attention_out_norm(self.attention(self.attention_norm(x), rotation, cache))
                return x + self.mlp_out_norm(self.mlp(self.mlp_norm(x)))
            case "post":
                x = self.attention_norm(x + self.attention(x, rotation, cache))
                return self.mlp_norm(x + self.mlp(x))
            case "output":
                x = x + self.attention_norm(self.attention(x, rotation, cache))
                return x + self.mlp_norm(self.mlp(x))
            case _:
                x = x + self.attention(x, rotation, cache)
                return x + self.mlp(x)

    def _chained(
        self, x: Tensor, left: Left | None, rotation: Rotation | None, cache: LayerCache | None
    ) -> tuple[Tensor, Left]:
        h, x = (
            (self.attention_norm(x), x)
            if left is None
            else self.attention_norm.after_sum(left[0], x, left[1])
        )
        # Another layer than a plain linear one, put there by somebody, adds its bias itself.
        if type(self.attention.o_proj) is nn.Linear:
            branch, shift = self.attention(h, rotation, cache, biased=False), self.attention.o_proj.bias
        else:
            branch, shift = self.attention(h, rotation, cache), None
        h, x = self.mlp_norm.after_sum(branch, x, shift)
        if isinstance(self.mlp, FeedForward) and type(self.mlp.down_proj) is nn.Linear:
            return x, (self.mlp(h, biased=False), self.mlp.down_proj.bias)
        return x, (self.mlp(h), None)


class TransformerLM(nn.Module):
    """A decoder-only language model.

    Parameters are made in the default type (fp32) and on the default device, so that
    ``with torch.device("meta")`` and the like work. Token ids are checked on the CPU, where that is free;
    on a GPU, looking at them would stall every step, so there a bad id ends in a device-side assertion,
    unless ``check_tokens`` is called.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positions: nn.Embedding | None = None
        if config.position == "learned":
            self.positions = nn.Embedding(config.context_length, config.d_model)
        self.rotary = Rotary(config) if config.position == "rope" else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = make_norm(config)
        self.chained = config.triton and config.norm_position == "pre"  # see ``Block.forward``
        self.head = None if config.tied else nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.reset_parameters()

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        cache: KVCache | None = None,
        positions: Int[Tensor, "*B T"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the next token after each token.

        Args:
            tokens: ids from 0 to ``vocab_size - 1``.
            cache: keys and values of the tokens before these; these are added to it.
            positions: of the tokens, where they are not consecutive from the cache's end. They turn RoPE and
                pick embeddings; what a token sees goes by order, not by position.

        Raises:
            ValueError: for a bad shape or type, an id out of range (on the CPU), more tokens than the
                context, or a cache of another model or batch.
        """
        return self.logits(self.hidden(tokens, cache, positions))

    def hidden(
        self,
        tokens: Int[Tensor, "B T"],
        cache: KVCache | None = None,
        positions: Int[Tensor, "*B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The residual stream after the last norm: what the head reads. Arguments as of ``forward``."""
        start = 0 if cache is None else cache.length
        self._check(tokens, start, cache)
        if positions is None:
            positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        else:
            self._check_positions(positions, tokens)
        x = self._embed(tokens, positions)
        rotation = None if self.rotary is None else self.rotary(positions)
        layers = [None] * len(self.blocks) if cache is None else cache.layers
        left = None
        for block, layer in zip(self.blocks, layers, strict=True):
            if self.chained:
                x, left = block(x, rotation, layer, chained=True, left=left)
            else:
                x = block(x, rotation, layer)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return self.norm(x) if left is None else self.norm.after_sum(left[0], x, left[1])[0]

    def logits(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """The head: one product, then ``logit_scale`` and the soft-cap where there are any."""
        logits = F.linear(hidden, self.head_weight)
        if self.config.logit_scale != 1.0:
            logits = logits * self.config.logit_scale
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """The head's matrix, which is the embedding's where they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.config.embedding_scale != 1.0:
            x = x * self.config.embedding_scale
        if self.positions is not None:
            x = x + self.positions(positions)
        elif self.config.position == "sinusoidal":
            x = x + sinusoids(positions, self.config.d_model).to(x.dtype)
        return x

    def _check(self, tokens: Tensor, start: int, cache: KVCache | None) -> None:
        if tokens.ndim != 2 or tokens.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"tokens: must be int64 or int32 of shape (batch, length), got {_say(tokens)}")
        if not tokens.numel():
            raise ValueError(f"tokens: must hold at least one token, got {_say(tokens)}")
        if cache is not None and len(cache.layers) != len(self.blocks):
            raise ValueError(
                f"cache: is another model's, of {len(cache.layers)} layers; this one has {len(self.blocks)}"
            )
        limit = self.config.context_length if cache is None else cache.max_length
        if start + tokens.shape[1] > limit:
            before = f" after {start} in the cache" if start else ""
            name = "the model's context_length" if cache is None else "the cache's max_length"
            raise ValueError(f"tokens: {tokens.shape[1]} tokens{before} exceed {name} = {limit}")
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            self.check_tokens(tokens)

    def _check_positions(self, positions: Tensor, tokens: Tensor) -> None:
        if tuple(positions.shape) not in (tuple(tokens.shape), tuple(tokens.shape[1:])):
            shapes = f"{tuple(tokens.shape[1:])} or {tuple(tokens.shape)}"
            raise ValueError(f"positions: must be of shape {shapes}, got {_say(positions)}")
        if self.positions is None or positions.device.type != "cpu" or torch.compiler.is_compiling():
            return
        low, high = positions.aminmax()
        if low < 0 or high >= self.config.context_length:
            bad = int(low) if low < 0 else int(high)
            raise ValueError(
                f"positions: learned ones are from 0 to {self.config.context_length - 1}, got {bad}"
            )

    def check_tokens(self, tokens: Int[Tensor, "B T"]) -> None:
        """Raise ValueError if an id is out of range. On a GPU this waits for the tokens to be computed."""
        low, high = tokens.aminmax()
        if low < 0 or high >= self.config.vocab_size:
            bad = int(low) if low < 0 else int(high)
            raise ValueError(f"tokens: ids must be from 0 to {self.config.vocab_size - 1}, got {bad}")

    def reset_parameters(self) -> None:
        """Draw initial parameters anew, see ``initialize``."""
        initialize(self, self.config)

    def new_cache(self, max_length: int | None = None) -> KVCache:
        """An empty cache for this model."""
        return KVCache(self.config, max_length)

    def auxiliary_loss(self) -> Float[Tensor, ""]:
        """Sum of the MoE layers' balance and z-losses in the last forward pass, weighted; 0 without MoE."""
        routers = [block.mlp.router for block in self.blocks if isinstance(block.mlp, MixtureOfExperts)]
        losses = [router.loss for router in routers if router.loss is not None]
        return torch.stack(losses).sum() if losses else self.embedding.weight.new_zeros(())

    def update_router_biases(self, rate: float = 1e-3) -> None:
        """Move the biases of ``balance="bias"`` by the last forward pass's loads; call it once a step."""
        for block in self.blocks:
            if isinstance(block.mlp, MixtureOfExperts):
                block.mlp.router.update_bias(rate)


def _say(tokens: Tensor) -> str:
    return f"{str(tokens.dtype).removeprefix('torch.')} of shape {tuple(tokens.shape)}"
