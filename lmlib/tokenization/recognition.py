"""Which tokens are their own encoding: a word that is one of them needs no merging.

Two words in five that a text brings for the first time are in the vocabulary. Merging their bytes gives the
token nearly always, but not always: in its word a merge may come first that was impossible where the token
was learned. Whether it does can be seen without merging. The two parts of the token must be their own
encodings, and no merge before the token's own may join what stands at their border. The border's history
follows from how the two were made: undo the younger one, look, undo again, down to single bytes. (GitHub's
`bpe` crate tests neighbours so, see "Backtracking" in its README.)

This holds where each token has one merge, learned after the merges of its parts: what training gives.
"""

from collections.abc import Mapping, Sequence

from lmlib.tokenization.merging import Pair

_NEVER = 1 << 62


class OwnEncodings:
    """Answers whether merging a token's bytes gives the token; what was found is remembered.

    byte_ids: ids of the 256 single bytes.
    ranks: pair of ids -> rank, 0 for the merge learned first.
    made: rank -> id of the token that the merge makes.
    """

    def __init__(self, byte_ids: Sequence[int], ranks: Mapping[Pair, int], made: Sequence[int]) -> None:
        self._ranks = ranks
        self._born = dict.fromkeys(byte_ids, -1)  # id -> rank of its merge
        self._parts: dict[int, Pair] = {}
        self._known = dict.fromkeys(byte_ids, True)
        for pair, rank in ranks.items():
            token = made[rank]
            if token in self._born or not all(self._born.get(part, rank) < rank for part in pair):
                self._parts, self._known = {}, {}  # not as training gives them: recognise nothing
                return
            self._born[token], self._parts[token] = rank, pair

    def __contains__(self, token: int) -> bool:
        known = self._known.get(token)
        if known is None:
            parts = self._parts.get(token)
            known = parts is not None and parts[0] in self and parts[1] in self and self._joins(*parts)
            self._known[token] = known
        return known

    def _joins(self, left: int, right: int) -> bool:
        """Whether two tokens, each its own encoding, are joined by their own merge and by none before it.

        Backwards in time, from the two as they are joined. A merge at the border takes place if its rank is
        below those that would have swallowed its left or right side first; of equal ranks the leftmost goes
        first, so the border goes before the right side.
        """
        born, parts, rank_of = self._born, self._parts, self._ranks.get
        end_left = end_right = rank_of((left, right), _NEVER)
        while True:
            if born[left] > born[right]:
                end_left = born[left]
                left = parts[left][1]
            elif born[right] >= 0:
                end_right = born[right]
                right = parts[right][0]
            else:
                return True
            rank = rank_of((left, right), _NEVER)
            if rank < end_left and rank <= end_right:
                return False
