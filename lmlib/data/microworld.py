"""The micro-world as a corpus: any amount of text, in shards, from a seed.

Document i depends on (seed, split, kind, i) and on nothing else: any shard can be made by itself, in any
order, in any number of processes. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice

from lmlib.data.dice import Dice
from lmlib.data.document import Document
from lmlib.data.splits import check_stream
from lmlib.data.stories import Story
from lmlib.data.tasks import arithmetic, fact, preference, question
from lmlib.data.web import web_page

Maker = Callable[[str, int, str, int], Document]  # (key, seed, split, index) -> document


def _story(key: str, seed: int, split: str, index: int) -> Document:
    dice = Dice(key)
    out: list[str] = []
    story = Story(dice, out)
    story.tell()
    return Document("".join(out)[1:], key, "story", -dice.bits, story.ending())


KINDS: dict[str, Maker] = {
    "story": _story,
    "web": web_page,
    "fact": fact,
    "question": question,
    "arithmetic": arithmetic,
    "preference": preference,
}


@dataclass(frozen=True)
class MicroWorld:
    """An endless or bounded stream of documents; iterating yields `Document`s, `texts()` yields str.

    Bounds: `n_documents` documents, or documents until `n_bytes` bytes (UTF-8, without separators) are
    reached. `shard=(k, n)` keeps the documents whose index is k modulo n; bounds hold for each shard.
    """

    seed: int = 0
    split: str = "train"
    kind: str = "story"
    n_documents: int | None = None
    n_bytes: int | None = None
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        check_stream(self.seed, self.split)
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        for name in ("n_documents", "n_bytes"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 0):
                raise ValueError(f"{name} must be a whole number from 0, or None for no bound, got {value!r}")
        part, parts = self.shard
        if not 0 <= part < parts:
            raise ValueError(f"shard must be (k, n) with 0 <= k < n, got {self.shard!r}")

    def document(self, index: int) -> Document:
        """Document `index`, made by itself."""
        if index < 0:
            raise IndexError(f"index must be 0 or more, got {index}")
        return next(self._made([index]))

    def documents(self) -> Iterator[Document]:
        """The documents of this shard, in order, up to the bounds."""
        documents = self._made(islice(count(*self.shard), self.n_documents))
        if self.n_bytes is None:
            yield from documents
            return
        size = 0
        while size < self.n_bytes and (document := next(documents, None)):
            size += len(document.text.encode())
            yield document

    __iter__ = documents

    def _made(self, indices: Iterable[int]) -> Iterator[Document]:
        make, seed, split = KINDS[self.kind], self.seed, self.split
        name = f"{self.kind}/{split}/{seed}/"
        return (make(f"{name}{index}", seed, split, index) for index in indices)

    def texts(self) -> Iterator[str]:
        """The texts of `documents()`."""
        return (document.text for document in self.documents())


def micro_world(
    seed: int = 0,
    *,
    split: str = "train",
    kind: str = "story",
    n_documents: int | None = None,
    n_bytes: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> MicroWorld:
    """A corpus of the micro-world.

    `kind`: one of `KINDS`. Endless unless bounded by `n_documents` or `n_bytes`. Raises ValueError for an
    unknown split or kind, a negative seed or bound, or an impossible shard.
    """
    return MicroWorld(seed, split, kind, n_documents, n_bytes, shard)
