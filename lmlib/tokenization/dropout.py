"""BPE dropout: several segmentations of the same text, so that a model sees words cut in more than one way.

Provilkov, Emelianenko and Voita (2020), algorithm 1: at every step each possible merge is left out with
probability p, and the best of the rest is applied; when none is left, the word is done. p = 0 is ordinary
encoding, p = 1 leaves single bytes. Decoding knows nothing of it.
"""

from itertools import pairwise
from random import Random

from lmlib.tokenization.tokenizer import Tokenizer


def encode_with_dropout(tokenizer: Tokenizer, text: str, p: float, rng: Random) -> list[int]:
    """Token ids of ordinary text with merges dropped with probability p (between 0 and 1).

    Raises ValueError for another p.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p is a probability from 0 to 1, got {p!r}")
    ids: list[int] = []
    for word in tokenizer.pretokens(text):
        ids += _merge_with_dropout(tokenizer, tokenizer.byte_ids(word.encode()), p, rng)
    return ids


def _merge_with_dropout(tokenizer: Tokenizer, ids: list[int], p: float, rng: Random) -> list[int]:
    ranks, made = tokenizer.pair_ranks, tokenizer.merged_ids
    while True:
        possible = [
            (ranks[pair], at) for at, pair in enumerate(pairwise(ids)) if pair in ranks and rng.random() >= p
        ]
        if not possible:
            return ids
        rank, at = min(possible)
        ids[at : at + 2] = [made[rank]]
