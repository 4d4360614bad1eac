"""Applying trained merges to one pretoken: always the merge learned first, and of equals the leftmost.

Two ways with equal results. Short pretokens (nearly all) keep the rank of every adjacent pair in a list,
whose minimum C finds quickly; that is quadratic in the length. Long ones use a heap over a linked list,
n log n, so that a megabyte without a single space costs seconds and not days.
"""

import heapq
from collections.abc import Mapping, Sequence
from itertools import pairwise, repeat

Pair = tuple[int, int]

LONG = 64  # ids; above this the heap wins
_NO_RANK = 1 << 62


def merge_ids(ids: list[int], ranks: Mapping[Pair, int], made: Sequence[int]) -> list[int]:
    """The ids of one pretoken after all merges.

    ids: one id a byte; may be changed in place.
    ranks: pair of ids -> rank, 0 for the merge learned first.
    made: rank -> id of the token that the merge makes.
    """
    return (_merge_short if len(ids) <= LONG else _merge_long)(ids, ranks, made)


def _merge_short(ids: list[int], ranks: Mapping[Pair, int], made: Sequence[int]) -> list[int]:
    rank_of = ranks.get
    pair_ranks = list(map(rank_of, pairwise(ids), repeat(_NO_RANK)))
    while pair_ranks:
        best = min(pair_ranks)
        if best == _NO_RANK:
            break
        at = pair_ranks.index(best)
        new = ids[at] = made[best]
        del ids[at + 1], pair_ranks[at]
        if at < len(pair_ranks):
            pair_ranks[at] = rank_of((new, ids[at + 1]), _NO_RANK)
        if at:
            pair_ranks[at - 1] = rank_of((ids[at - 1], new), _NO_RANK)
    return ids


def _merge_long(ids: list[int], ranks: Mapping[Pair, int], made: Sequence[int]) -> list[int]:
    end = len(ids)
    following = list(range(1, end + 1))
    before = list(range(-1, end - 1))
    # An entry is one number, rank above and place below: numbers compare faster than pairs of them.
    bits = end.bit_length()
    below = (1 << bits) - 1
    heap = [ranks[pair] << bits | at for at, pair in enumerate(pairwise(ids)) if pair in ranks]
    heapq.heapify(heap)
    rank_of, pop, push = ranks.get, heapq.heappop, heapq.heappush

    while heap:
        entry = pop(heap)
        rank, at = entry >> bits, entry & below
        right = following[at]
        # An entry is stale if one of its two tokens has since been merged into another (-1: swallowed).
        if right == end or ids[at] < 0 or rank_of((ids[at], ids[right])) != rank:
            continue
        new = ids[at] = made[rank]
        ids[right] = -1
        following[at] = after = following[right]
        if after < end:
            before[after] = at
            joined = rank_of((new, ids[after]))
            if joined is not None:
                push(heap, joined << bits | at)
        left = before[at]
        if left >= 0:
            joined = rank_of((ids[left], new))
            if joined is not None:
                push(heap, joined << bits | left)
    return [token for token in ids if token >= 0]
