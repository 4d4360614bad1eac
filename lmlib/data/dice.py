"""Random choices whose probabilities are known exactly.

Notable:
- The random numbers are the bytes of SHAKE-128 (FIPS 202) of a key: the same on every platform, every
  Python, for ever, whatever happens to Python's `random`. Two keys give unrelated streams, so document i
  can be made without making the documents before it.
- Every draw has 16 bits, so every probability is a whole number of 65,536ths, known without rounding.
- A die adds up the bits of its choices: after a document, `dice.bits` is -log2 of the probability of
  exactly these choices.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from hashlib import shake_128
from itertools import chain, count
from math import log2
from typing import Any, Generic, TypeVar

T = TypeVar("T")

DRAW_BITS = 16
DRAWS = 1 << DRAW_BITS  # the number of values that one draw can take
_BLOCK = 256  # draws of one key of SHAKE-128
_FEW = (8, 84)  # draws of the first block that are made first: what is enough for short documents costs less


class Table(Generic[T]):
    """A choice among fixed values with given weights.

    The weights are rounded to whole slots of a table with a power of two of them (largest remainder,
    at least one slot for each value), so a pick is one look-up. What is declared is what happens:
    `outcomes` lists each value with its cost in bits, after the rounding.

    `shown` turns a value into words that the text is sure to contain when this value was picked; only
    the search in `lmlib.data.truth` reads it, to skip values that cannot be.
    """

    __slots__ = ("order", "outcomes", "shift", "shown", "slots")

    def __init__(
        self, values: Sequence[T], weights: Sequence[int] | None = None, *, bits: int = 12, shown: Any = None
    ) -> None:
        weights = [1] * len(values) if weights is None else list(weights)
        if not values or len(weights) != len(values) or min(weights) < 1:
            raise ValueError(
                f"weights must be a positive whole number for each of {len(values)} values, got {weights}"
            )
        if len(values) > 1 << bits or not 0 <= bits <= DRAW_BITS:
            raise ValueError(f"bits must be at most {DRAW_BITS} and hold {len(values)} values, got {bits}")
        counts = _apportion(weights, 1 << bits)
        self.outcomes = [(value, bits - log2(count)) for value, count in zip(values, counts, strict=True)]
        self.slots = [
            outcome for outcome, count in zip(self.outcomes, counts, strict=True) for _ in range(count)
        ]
        self.order = {value: index for index, value in enumerate(values)}
        self.shift = DRAW_BITS - bits
        self.shown = shown


def zipf_weights(count: int, shift: int = 3) -> list[int]:
    """Weights proportional to 1 / (rank + shift), rank from 1, as whole numbers."""
    return [10**9 // (rank + shift) for rank in range(1, count + 1)]


def _apportion(weights: list[int], slots: int) -> list[int]:
    """Share out `slots` in proportion to weights: one each first, the rest by largest remainder."""
    total = sum(weights)
    free = slots - len(weights)
    counts = [1 + free * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(free * weights[i] % total), i))
    for i in by_remainder[: slots - sum(counts)]:
        counts[i] += 1
    return counts


def _uniform_costs(n: int) -> list[float]:
    """Bits of each of the n results of `draw * n >> 16`: their counts differ by one where n is not 2^k."""
    edges = [-(-k * DRAWS // n) for k in range(n + 1)]  # the first draw that gives k
    cost = {size: DRAW_BITS - log2(size) for size in (DRAWS // n, DRAWS // n + 1) if size}
    return [cost[edges[k + 1] - edges[k]] for k in range(n)]


_UNPACK = struct.Struct(f"<{_BLOCK}H").unpack
_UNPACK_FEW = struct.Struct(f"<{_FEW[0]}H").unpack
_UNPACK_MORE = struct.Struct(f"<{_FEW[1]}H").unpack


class _Costs(dict[int, list[float]]):
    def __missing__(self, n: int) -> list[float]:
        self[n] = costs = _uniform_costs(n)
        return costs


UNIFORM_COSTS = _Costs()  # n -> bits of each result of a uniform choice among n


def _draws(key: str) -> Iterator[int]:
    """Endless 16-bit numbers: SHAKE-128 of "key/0", then of "key/1", ..., read as little-endian pairs."""
    hashed = shake_128(f"{key}/0".encode())
    few = _UNPACK_FEW(hashed.digest(2 * _FEW[0]))
    return chain(few, chain.from_iterable(_later_draws(key, hashed.digest)))


def _later_draws(key: str, digest: Callable[[int], bytes]) -> Iterator[tuple[int, ...]]:
    """What comes after the first few: a longer digest begins with the shorter one."""
    yield _UNPACK_MORE(digest(2 * _FEW[1]))[_FEW[0] :]
    yield _UNPACK(digest(2 * _BLOCK))[_FEW[1] :]
    for block in count(1):
        yield _UNPACK(shake_128(f"{key}/{block}".encode()).digest(2 * _BLOCK))


def choose_once(key: str, options: Sequence[T]) -> tuple[T, float]:
    """The first thing that `Dice(key)` would choose of `options`, and its bits, without the dice."""
    n = len(options)
    k = int.from_bytes(shake_128(f"{key}/0".encode()).digest(2), "little") * n >> DRAW_BITS
    return options[k], UNIFORM_COSTS[n][k]


class Dice:
    """A stream of choices fixed by `key`; `bits` is the sum of -log2 of their probabilities so far."""

    __slots__ = ("_draw", "bits")

    def __init__(self, key: str) -> None:
        self._draw = _draws(key).__next__
        self.bits = 0.0

    def pick(self, table: Table[T]) -> T:
        """One value of a table, with the table's probabilities."""
        value, cost = table.slots[self._draw() >> table.shift]
        self.bits += cost
        return value

    def pick_except(self, table: Table[T], taken: Collection[T]) -> T:
        """One value of a table that is not in `taken`: who draws a taken one gets the next that is free.

        Its probability is its own and that of the taken values just before it, and so are its bits.
        """
        before = self.bits
        value = self.pick(table)
        outcomes = table.outcomes
        if value not in taken and outcomes[table.order[value] - 1][0] not in taken:
            return value
        index = table.order[value]
        while outcomes[index][0] in taken:
            index = (index + 1) % len(outcomes)
        value, cost = outcomes[index]
        chance = 2.0**-cost
        while outcomes[index - 1][0] in taken:
            index -= 1
            chance += 2.0 ** -outcomes[index][1]
        self.bits = before - log2(chance)
        return value

    def choose(self, options: Sequence[T], shown: Any = None) -> T:
        """One of `options` (at most 65,536), all equally likely up to one 65,536th."""
        n = len(options)
        k = self._draw() * n >> DRAW_BITS
        self.bits += UNIFORM_COSTS[n][k]
        return options[k]

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        n = high - low + 1
        k = self._draw() * n >> DRAW_BITS
        self.bits += UNIFORM_COSTS[n][k]
        return low + k

    def shuffle(self, items: Sequence[T]) -> list[T]:
        """The items in random order."""
        rest, shuffled = list(items), []
        for n in range(len(rest), 0, -1):
            k = self._draw() * n >> DRAW_BITS
            self.bits += UNIFORM_COSTS[n][k]
            shuffled.append(rest.pop(k))
        return shuffled
