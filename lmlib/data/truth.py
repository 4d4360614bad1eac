"""What the micro-world's text is really worth in bits.

`bits_per_byte` averages the bits of the generator's own choices. That is the entropy of the text as long
as a text can come from one series of choices only; where two series give the same text, the choices cost
more bits than the text. `surprisal` settles it for any story: it searches all series of choices that give
exactly this text and adds up their probabilities, so it is -log2 P(text) without any assumption.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, log2
from typing import Any

from lmlib.data.dice import UNIFORM_COSTS, Table
from lmlib.data.microworld import micro_world
from lmlib.data.stories import Story


def bits_per_byte(
    seed: int = 0, n_documents: int = 1000, *, split: str = "train", kind: str = "story"
) -> float:
    """Bits of the choices in `n_documents` documents over the bytes of their texts (end marks not counted).

    An upper bound of the entropy: some long stories can be told in more than one way (of two searched with
    `surprisal`, one was worth 259.2 bits where its choices cost 261.8, the other exactly its choices).

    Raises ValueError for a kind whose documents have no known probability, and for no documents.
    """
    bits = 0.0
    size = 0
    for document in micro_world(seed, split=split, kind=kind, n_documents=n_documents):
        if document.log2_probability is None:
            raise ValueError(f"kind must be one whose probability is known, got {kind!r}")
        bits -= document.log2_probability
        size += len(document.text.encode())
    if not size:
        raise ValueError(f"n_documents must be at least 1, got {n_documents}")
    return bits / size


def surprisal(text: str) -> float:
    """-log2 of the probability that the generator tells exactly this story; infinite if it never does."""
    total = 0.0
    script: list[tuple[int, float]] = []
    stack: list[Iterator[tuple[int, float]]] = []
    while True:
        try:
            dice = _Script(script, text)
            Story(dice, dice.out).tell()  # type: ignore[arg-type]
            if dice.out.length == len(dice.out.target):
                total += 2.0 ** -sum(cost for _, cost in script)
            stack.append(iter(()))
            script.append((0, 0.0))
        except _Fork as fork:
            stack.append(iter(fork.options))
            script.append((0, 0.0))
        except _Mismatch:
            stack.append(iter(()))
            script.append((0, 0.0))
        while stack:  # on to the next series of choices that has not been tried
            following = next(stack[-1], None)
            if following is not None:
                script[-1] = following
                break
            stack.pop()
            script.pop()
        if not stack:
            return -log2(total) if total else inf


class _Fork(Exception):  # noqa: N818
    """The script has come to an end: these are the ways to go on."""

    def __init__(self, options: list[tuple[int, float]]) -> None:
        self.options = options


class _Mismatch(Exception):  # noqa: N818
    """What was told is not what is written."""


class _Told(list[str]):
    """Takes the sentences of a story only while they are what the text says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.target = " " + text
        self.length = 0

    def append(self, sentence: str) -> None:
        if not self.target.startswith(sentence, self.length):
            raise _Mismatch
        self.length += len(sentence)


class _Script:
    """Dice that follow a script of (outcome, bits), and fork where it ends.

    Values whose words do not occur in what is still to be told are left out: they could not match.
    """

    def __init__(self, script: list[tuple[int, float]], text: str) -> None:
        self._script = script
        self._at = 0
        self.out = _Told(text)

    def _scripted(self) -> int | None:
        """The outcome that the script has for this choice, None at its end."""
        if self._at == len(self._script):
            return None
        self._at += 1
        return self._script[self._at - 1][0]

    def _fork(self, values: Sequence[Any], costs: Sequence[float], shown: Any) -> _Fork:
        told, start = self.out.target, self.out.length
        return _Fork(
            [
                (k, costs[k])
                for k, value in enumerate(values)
                if costs[k] < inf and (shown is None or told.find(shown(value), start) >= 0)
            ]
        )

    def pick(self, table: Table[Any]) -> Any:
        k = self._scripted()
        if k is not None:
            return table.outcomes[k][0]
        values, costs = zip(*table.outcomes, strict=True)
        raise self._fork(values, costs, table.shown)

    def pick_except(self, table: Table[Any], taken: Sequence[Any]) -> Any:
        k = self._scripted()
        outcomes = table.outcomes
        if k is not None:
            return outcomes[k][0]
        chances = [0.0] * len(outcomes)
        for k, (_, cost) in enumerate(outcomes):
            while outcomes[k][0] in taken:
                k = (k + 1) % len(outcomes)
            chances[k] += 2.0**-cost
        costs = [-log2(chance) if chance else inf for chance in chances]
        raise self._fork([value for value, _ in outcomes], costs, table.shown)

    def choose(self, options: Sequence[Any], shown: Any = None) -> Any:
        k = self._scripted()
        if k is not None:
            return options[k]
        raise self._fork(options, UNIFORM_COSTS[len(options)], shown)

    def number(self, low: int, high: int) -> int:
        return self.choose(range(low, high + 1), str)
