"""Which tokens are their own encoding: a word that is one of them needs no merging.

Two words in five that a text brings for the first time are in the vocabulary. Merging their bytes gives the
token nearly always, but not always: in its word a merge may come first that was impossible where the token
was learned. Whether it does can be seen without merging. The two parts of the token must be their own
encodings, and no merge before the token's own may join what stands at their border. The border's history
follows from how the two were made: undo the younger one, look, undo again, down to single bytes. (GitHub's
`bpe` crate tests neighbours so, see "Backtracking" in its README.) All tokens, in the order in which they
were learned, take a microsecond or two each.
"""

from collections.abc import Mapping, Sequence

from lmlib.tokenization.merging import Pair


def own_encodings(byte_ids: Sequence[int], ranks: Mapping[Pair, int], made: Sequence[int]) -> set[int]:
    """The ids of the tokens whose bytes, merged, give the token.

    byte_ids: ids of the 256 single bytes.
    ranks: pair of ids -> rank, in the order of the ranks: 0 for the merge learned first.
    made: rank -> id of the token that the merge makes.

    Empty where merges are not as training gives them: one for each token, learned after those of its parts.
    """
    born = dict.fromkeys(byte_ids, -1)  # id -> rank of its merge
    first, last = born.copy(), born.copy()  # id -> id of its left part, of its right part
    own = set(byte_ids)
    for (left, right), rank in ranks.items():
        token = made[rank]
        if token in born or left not in born or right not in born:
            return set()
        born[token], first[token], last[token] = rank, left, right
        if left in own and right in own and _joins(left, right, rank, ranks, born, first, last):
            own.add(token)
    return own


def _joins(
    left: int,
    right: int,
    rank: int,
    ranks: Mapping[Pair, int],
    born: Mapping[int, int],
    first: Mapping[int, int],
    last: Mapping[int, int],
) -> bool:
    """Whether two tokens, each its own encoding, are joined by the merge of this rank and by none before it.

    Backwards in time, from the two as they are joined. A merge at the border takes place if its rank is
    below those that would have swallowed its left or right side first; of equal ranks the leftmost goes
    first, so the border goes before the right side.
    """
    end_left = end_right = rank
    born_left, born_right = born[left], born[right]
    while born_left >= 0 or born_right >= 0:
        if born_left > born_right:
            end_left, left = born_left, last[left]
            born_left = born[left]
        else:
            end_right, right = born_right, first[right]
            born_right = born[right]
        border = ranks.get((left, right))
        if border is not None and border < end_left and border <= end_right:
            return False
    return True
