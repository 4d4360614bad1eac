"""Oracles for memory on any device: what autograd saves, and how many bytes are alive at each operator."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Saved:
    """Storages that autograd has saved, each once, without those that it was told to leave out."""

    def __init__(self, left_out: list[torch.Tensor]) -> None:
        self.known = {tensor.untyped_storage()._cdata for tensor in left_out}
        self.kept: dict[int, torch.UntypedStorage] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all saved storages."""
        return sum(storage.nbytes() for storage in self.kept.values())

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note a saved tensor; the storage is held, so that its address stays its own."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.kept[storage._cdata] = storage
        return tensor


@contextmanager
def saved_tensors(left_out: list[torch.Tensor]) -> Iterator[Saved]:
    """Count what is saved for backward in this block, except ``left_out`` (parameters and buffers)."""
    saved = Saved(left_out)
    with torch.autograd.graph.saved_tensors_hooks(saved.add, lambda tensor: tensor):
        yield saved


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operators have returned and that are still alive.

    ``peak`` is the most at the end of any operator, ``at`` that operator; temporaries inside an operator
    are not seen.
    """

    def __init__(self, standing: list[torch.Tensor]) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.alive = self.peak = 0
        self.at = ""
        self.history: list[tuple[str, int]] = []
        for tensor in standing:
            self._watch(tensor)

    def _watch(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.alive += storage.nbytes()
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.alive -= self.sizes.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._watch(leaf)
        self.history.append((str(func), self.alive))
        if self.alive > self.peak:
            self.peak, self.at = self.alive, str(func)
        return out
