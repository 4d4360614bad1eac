"""What decoding keeps: keys and values of the tokens so far, or with MLA their latents.

- Each layer's buffers are allocated once, at the first tokens, which decide batch, type and device.
- A layer with a window keeps no more than it can still see: room for twice the window, and when that is
  full, the last ``window - 1`` tokens move to the front. Keys stay in order and in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lmlib.architecture.config import ModelConfig


class LayerCache:
    """Buffers of one layer. Axis -2 of all tensors counts tokens."""

    def __init__(self, capacity: int, window: int | None) -> None:
        self.window = window
        self.capacity = capacity if window is None else min(capacity, 2 * window)
        self.buffers: list[Tensor] = []
        self.filled = 0
        self.dropped = 0  # tokens that no later query can see, and that are gone

    def update(self, *new: Float[Tensor, "B G T K"]) -> list[Float[Tensor, "B G S K"]]:
        """Add tokens; return those that are kept and the new ones, views of the buffers, oldest first.

        Raises:
            ValueError: for another batch, or other heads, than the tokens before had.
        """
        new = tuple(x.detach() for x in new)
        if not self.buffers:
            self.buffers = [x.new_empty(*x.shape[:-2], self.capacity, x.shape[-1]) for x in new]
        for buffer, x in zip(self.buffers, new, strict=True):
            _check_alike(buffer, x)
        length = new[0].shape[-2]
        if self.filled + length > self.capacity:
            self._forget()
        if self.filled + length > self.capacity:
            return self._pass_through(new)
        for buffer, x in zip(self.buffers, new, strict=True):
            buffer.narrow(-2, self.filled, length).copy_(x)
        self.filled += length
        return self.tensors()

    def tensors(self) -> list[Tensor]:
        """What is kept, as views."""
        return [buffer.narrow(-2, 0, self.filled) for buffer in self.buffers]

    def _forget(self) -> None:
        """Move the tokens that the next query can still see to the front."""
        keep = min(self.filled, (self.window or self.capacity) - 1)
        for buffer in self.buffers:
            buffer.narrow(-2, 0, keep).copy_(buffer.narrow(-2, self.filled - keep, keep).clone())
        self.dropped += self.filled - keep
        self.filled = keep

    def _pass_through(self, new: Sequence[Tensor]) -> list[Tensor]:
        """More new tokens than there is room for: hand them on, keep their end."""
        joint = [torch.cat((old, x), -2) for old, x in zip(self.tensors(), new, strict=True)]
        total = joint[0].shape[-2]
        keep = min(total, (self.window or 1) - 1)
        for buffer, x in zip(self.buffers, joint, strict=True):
            buffer.narrow(-2, 0, keep).copy_(x.narrow(-2, total - keep, keep))
        self.dropped += total - keep
        self.filled = keep
        return joint

    def check_truncate(self, length: int) -> None:
        """Raise ValueError if what the next query after ``length`` tokens can see is no longer here."""
        seen = self.dropped + self.filled
        lost = max(0, length - (self.window or length + 1) + 1)  # the first token that the next query misses
        if length < seen and lost < self.dropped:
            raise ValueError(
                f"length: a layer with window {self.window} has dropped its first {self.dropped} tokens, "
                f"so that {length} cannot be restored"
            )

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens of the sequence."""
        self.check_truncate(length)
        self.filled = min(self.filled, length - self.dropped)


def _check_alike(buffer: Tensor, new: Tensor) -> None:
    if new.shape[0] != buffer.shape[0]:
        raise ValueError(f"cache: holds a batch of {buffer.shape[0]}, the tokens are one of {new.shape[0]}")
    held, given = ((*x.shape[1:-2], x.shape[-1]) for x in (buffer, new))
    if held != given:
        raise ValueError(
            f"cache: is another model's: holds heads and widths {held}, this model's are {given}"
        )


class KVCache:
    """Caches of all layers, and how many tokens they have seen.

    Args:
        config: of the model that it is for.
        max_length: the most tokens that it will hold; ``None``: the model's context.

    Tokens go in under ``model(tokens, cache=cache)``; no gradients flow through it.
    """

    def __init__(self, config: ModelConfig, max_length: int | None = None) -> None:
        self.max_length = config.context_length if max_length is None else max_length
        if not 1 <= self.max_length <= config.context_length:
            raise ValueError(
                f"max_length: must be from 1 to the model's context_length = {config.context_length}, "
                f"got {max_length}"
            )
        self.length = 0
        self.layers = [
            LayerCache(self.max_length, config.layer_window(layer)) for layer in range(config.n_layers)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for layer in self.layers for buffer in layer.buffers)

    def advance(self, tokens: int) -> None:
        """Count tokens that all layers have taken; the model calls it."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Go back to the first ``length`` tokens, as speculative decoding does after a refusal.

        Raises:
            ValueError: if a layer with a window no longer has what that needs; nothing is forgotten then.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"length: must be from 0 to {self.length}, got {length}")
        for layer in self.layers:
            layer.check_truncate(length)
        for layer in self.layers:
            layer.truncate(length)
        self.length = length
