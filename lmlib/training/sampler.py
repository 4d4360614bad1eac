"""Which windows of the data a step trains on: a pure function of seed and position.

So the state of a sampler is a few integers; the order does not depend on how many processes, workers or
micro-batches share a batch; and a run that is resumed, even by another number of GPUs, sees what it would
have seen. Random numbers come from a hash of their place (``splitmix64``: Steele, Lea and Flood 2014, "Fast
splittable pseudorandom number generators", OOPSLA, figure 16), not from a generator that has to be wound.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlib.resources.units import ArgumentError, check_choice, check_integer

MODES = ("replacement", "epochs")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix(places: NDArray[np.uint64], state: int) -> NDArray[np.uint64]:
    """Numbers of the SplitMix64 sequence that starts from ``state``, at the given places from 0."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        x = (places + np.uint64(1)) * _GOLDEN + np.uint64(state)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def spread(key: int) -> int:
    """A starting state from a small key, so that the sequences of neighbouring keys do not overlap."""
    return int(splitmix(np.array([key], dtype=np.uint64), 0)[0]) ^ (key * 0xD1342543DE82EF95 % 2**64)


@dataclass
class Sampler:
    """Starts of windows of ``length + 1`` tokens: the last one is only a target.

    Args:
        n_tokens: of the data.
        length: tokens of context.
        seed: chooses the order.
        mode: ``replacement``: every start is drawn from all possible ones, independently; ``epochs``: the
            data is cut into windows that do not overlap in their inputs, shifted by a random offset in each
            epoch, and each window comes once an epoch, in random order.
        position: windows drawn so far by all processes together: the whole of the state.

    Raises:
        ArgumentError: for data that is shorter than one window, or another argument out of bounds.
    """

    n_tokens: int
    length: int
    seed: int = 0
    mode: str = "replacement"
    position: int = 0

    def __post_init__(self) -> None:
        check_choice("sampling", self.mode, MODES)
        check_integer("context_length", self.length, 1, 2**40)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        check_integer("position", self.position, 0, 2**62)
        if self.n_tokens < self.length + 1:
            raise ArgumentError(
                "train_data",
                f"has {self.n_tokens:,} tokens; a window of context_length {self.length:,} needs "
                f"{self.length + 1:,}",
            )

    @property
    def windows_per_epoch(self) -> int:
        """Windows of one epoch: the whole ones that are left whatever the epoch's offset."""
        return max(1, (self.n_tokens - self.length) // self.length)

    @property
    def epoch(self) -> float:
        """Epochs drawn so far: windows times context length over tokens."""
        return self.position * self.length / self.n_tokens

    def starts(self, first: int, count: int) -> NDArray[np.int64]:
        """Starts of windows ``first`` to ``first + count``, whatever the position."""
        numbers = np.arange(first, first + count, dtype=np.uint64)
        if self.mode == "replacement":
            possible = np.uint64(self.n_tokens - self.length)
            return (splitmix(numbers, spread(self.seed)) % possible).astype(np.int64)
        per_epoch = self.windows_per_epoch
        epochs, places = np.divmod(numbers.astype(np.int64), per_epoch)
        found = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            found[chosen] = self._epoch(int(epoch), per_epoch)[places[chosen]]
        return found

    def _epoch(self, epoch: int, per_epoch: int) -> NDArray[np.int64]:
        room = min(self.length - 1, self.n_tokens - 1 - per_epoch * self.length)  # the largest offset
        return _shuffled(self.seed, epoch, per_epoch, self.length, room)

    def next(self, count: int, rank: int = 0, world_size: int = 1) -> NDArray[np.int64]:
        """Starts of this process's share of the next ``count`` windows, and move on by all of them.

        Process ``rank`` takes every ``world_size``-th window.

        Raises:
            ArgumentError: if the processes cannot share them evenly.
        """
        if count % world_size:
            raise ArgumentError(
                "batch_size", f"must be a multiple of the {world_size} processes, got {count}"
            )
        starts = self.starts(self.position, count)[rank::world_size]
        self.position += count
        return starts

    def state_dict(self) -> dict[str, Any]:
        """What to save."""
        return {"position": self.position, "seed": self.seed, "mode": self.mode, "length": self.length}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where a saved sampler stood.

        Raises:
            ArgumentError: if it drew in another order.
        """
        for name in ("seed", "mode", "length"):
            if saved[name] != getattr(self, name):
                raise ArgumentError(
                    name, f"the saved sampler has {saved[name]!r}, this one {getattr(self, name)!r}"
                )
        self.position = check_integer("position", saved["position"], 0, 2**62)


@lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, count: int, length: int, room: int) -> NDArray[np.int64]:
    """Starts of one epoch's windows in random order: sorted by a hash of their number."""
    state = spread(spread(seed) ^ epoch)
    drawn = splitmix(np.arange(count + 1, dtype=np.uint64), state)
    offset = int(drawn[-1] % np.uint64(room + 1))
    return np.argsort(drawn[:-1], kind="stable") * length + offset
