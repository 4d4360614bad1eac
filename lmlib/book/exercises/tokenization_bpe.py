"""Exercises on byte-pair encoding: count, merge, train, encode, and encode a stream."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from lmlib.book.exercises.machinery import Case, Exercise, Wrong
from lmlib.book.exercises.tokenization_text import pretokenize

# ---- tokenization/count-pairs


def count_pairs(words: dict[tuple, int]) -> dict[tuple, int]:
    counts: dict[tuple, int] = {}
    for word, times in words.items():
        for pair in pairwise(word):
            counts[pair] = counts.get(pair, 0) + times
    return counts


def _each_word_once(words: dict[tuple, int]) -> dict[tuple, int]:
    return dict(Counter(pair for word in words for pair in pairwise(word)))


def _each_pair_once_a_word(words: dict[tuple, int]) -> dict[tuple, int]:
    counts: Counter = Counter()
    for word, times in words.items():
        for pair in set(pairwise(word)):
            counts[pair] += times
    return dict(counts)


def _across_words(words: dict[tuple, int]) -> dict[tuple, int]:
    text = [symbol for word, times in words.items() for _ in range(times) for symbol in word]
    return dict(Counter(pairwise(text)))


COUNT_PAIRS = Exercise(
    name="tokenization/count-pairs",
    title="Count neighbours",
    task="""
A corpus, cut into pre-tokens, is a dictionary: each distinct word, as a tuple of its symbols, with how
many times it occurs. Write `count_pairs(words)`: how many times each pair of neighbours occurs in the
corpus. Pairs never reach from one word into another.
""",
    difficulty=1,
    minutes=10,
    starter="""
from itertools import pairwise


def count_pairs(words: dict[tuple, int]) -> dict[tuple, int]:
    raise NotImplementedError
""",
    hints=(
        "`itertools.pairwise(word)` gives the neighbours of one word.",
        "A word that occurs 5 times brings each of its pairs 5 times.",
        "`counts.get(pair, 0)` is 0 for a pair not seen before; or use `collections.Counter`.",
    ),
    solution=count_pairs,
    cases=(
        Case("one word", ({("l", "o", "w"): 1},), {("l", "o"): 1, ("o", "w"): 1}),
        Case(
            "a word that occurs often",
            ({("l", "o", "w"): 5, ("l", "o"): 2},),
            {("l", "o"): 7, ("o", "w"): 5},
            "A word that occurs 5 times brings each of its pairs 5 times.",
        ),
        Case(
            "the same pair twice in a word",
            ({("n", "a", "n", "a"): 3},),
            {("n", "a"): 6, ("a", "n"): 3},
            "A pair counts as often as it stands in the word.",
        ),
        Case(
            "nothing across words",
            ({("a", "b"): 1, ("c",): 1},),
            {("a", "b"): 1},
            "Pairs never reach from one word into another.",
        ),
        Case("integers do as well", ({(1, 1, 1): 2},), {(1, 1): 4}),
        Case("no words", ({},), {}),
    ),
    wrong=(
        Wrong(_each_word_once, "occurs 5 times"),
        Wrong(_each_pair_once_a_word, "as often as it stands in the word"),
        Wrong(_across_words, "occurs 5 times"),
    ),
)

# ---- tokenization/merge


def merge(symbols: list, pair: tuple, new: object) -> list:
    merged, position = [], 0
    while position < len(symbols):
        if tuple(symbols[position : position + 2]) == pair:
            merged.append(new)
            position += 2
        else:
            merged.append(symbols[position])
            position += 1
    return merged


def _overlapping(symbols: list, pair: tuple, new: object) -> list:
    merged = []
    for left, right in zip(symbols, [*symbols[1:], None], strict=True):
        merged.append(new if (left, right) == pair else left)
    return merged


def _last_lost(symbols: list, pair: tuple, new: object) -> list:
    merged, position = [], 0
    while position < len(symbols) - 1:
        hit = (symbols[position], symbols[position + 1]) == pair
        merged.append(new if hit else symbols[position])
        position += 2 if hit else 1
    return merged


def _in_place(symbols: list, pair: tuple, new: object) -> list:
    position = 0
    while position < len(symbols) - 1:
        if (symbols[position], symbols[position + 1]) == pair:
            symbols[position : position + 2] = [new]
        position += 1
    return symbols


MERGE = Exercise(
    name="tokenization/merge",
    title="Merge one pair",
    task="""
Write `merge(symbols, pair, new)`: the symbols with every occurrence of `pair` replaced by `new`, found
from left to right. An occurrence uses up both its symbols: in `1 1 1`, the pair `1 1` occurs once. The
argument stays as it is.
""",
    difficulty=2,
    minutes=10,
    starter="""
def merge(symbols: list, pair: tuple, new: object) -> list:
    raise NotImplementedError
""",
    hints=(
        "Keep a position and build a new list; a `for` loop cannot skip, a `while` loop can.",
        "After a merge the position moves by two, otherwise by one.",
        "The last symbol has no right neighbour, and must not be lost. A slice does not run past the end.",
    ),
    solution=merge,
    cases=(
        Case(
            "one occurrence",
            ([1, 2, 3], (1, 2), 9),
            [9, 3],
            "An occurrence uses up both its symbols. Is the last symbol lost? It has no right neighbour.",
        ),
        Case(
            "none", ([1, 2, 3], (2, 1), 9), [1, 2, 3], "Is the last symbol lost? It has no right neighbour."
        ),
        Case("at the end", ([3, 1, 2], (1, 2), 9), [3, 9]),
        Case("several", ([1, 2, 1, 2, 1], (1, 2), 9), [9, 9, 1], "Is the last symbol lost?"),
        Case("overlapping", ([1, 1, 1], (1, 1), 9), [9, 1], "After a merge go on behind it."),
        Case(
            "not merged again", ([1, 1, 1, 1], (1, 1), 1), [1, 1], "What was merged is not looked at again."
        ),
        Case("byte strings", ([b"t", b"h", b"e"], (b"t", b"h"), b"th"), [b"th", b"e"]),
        Case("one symbol", ([1], (1, 1), 9), [1]),
        Case("none at all", ([], (1, 1), 9), []),
    ),
    wrong=(
        Wrong(_overlapping, "uses up both"),
        Wrong(_last_lost, "Is the last symbol lost"),
        Wrong(_in_place, "changed its argument"),
    ),
)

# ---- tokenization/train


def train(words: dict[bytes, int], n_merges: int) -> list[tuple[bytes, bytes]]:
    corpus = {tuple(bytes([byte]) for byte in word): times for word, times in words.items()}
    merges = []
    for _ in range(n_merges):
        counts = count_pairs(corpus)
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        corpus = {tuple(merge(list(word), best, best[0] + best[1])): times for word, times in corpus.items()}
        merges.append(best)
    return merges


def _first_seen_wins(words: dict[bytes, int], n_merges: int) -> list[tuple[bytes, bytes]]:
    corpus = {tuple(bytes([byte]) for byte in word): times for word, times in words.items()}
    merges = []
    for _ in range(n_merges):
        counts = count_pairs(corpus)
        if not counts:
            break
        best = max(counts, key=lambda pair: counts[pair])
        corpus = {tuple(merge(list(word), best, best[0] + best[1])): times for word, times in corpus.items()}
        merges.append(best)
    return merges


def _most_common_at_the_start(words: dict[bytes, int], n_merges: int) -> list[tuple[bytes, bytes]]:
    corpus = {tuple(bytes([byte]) for byte in word): times for word, times in words.items()}
    counts = count_pairs(corpus)
    return sorted(counts, key=lambda pair: (counts[pair], pair), reverse=True)[:n_merges]


def _never_out_of_pairs(words: dict[bytes, int], n_merges: int) -> list[tuple[bytes, bytes]]:
    corpus = {tuple(bytes([byte]) for byte in word): times for word, times in words.items()}
    merges = []
    for _ in range(n_merges):
        counts = count_pairs(corpus)
        best = max(counts, key=lambda pair: (counts[pair], pair))
        corpus = {tuple(merge(list(word), best, best[0] + best[1])): times for word, times in corpus.items()}
        merges.append(best)
    return merges


TRAIN = Exercise(
    name="tokenization/train",
    title="Train BPE",
    task="""
Write `train(words, n_merges)`: the merges that byte-pair encoding learns, in the order learned. `words`
holds each distinct pre-token as bytes with its count. Start from single bytes; again and again merge the
pair that occurs most, everywhere. Among equals take the lexicographically greatest pair of byte strings.
Stop early when no pair is left. `count_pairs` and `merge` from the exercises before stand ready.
""",
    difficulty=3,
    minutes=30,
    starter="""
from itertools import pairwise


def train(words: dict[bytes, int], n_merges: int) -> list[tuple[bytes, bytes]]:
    raise NotImplementedError
""",
    given=(count_pairs, merge),
    hints=(
        "`bytes([97])` is the byte string of one byte; indexing bytes gives an integer.",
        "Pairs are tuples of byte strings, which Python compares lexicographically by itself.",
        "`max(counts, key=...)` with a key that is a tuple: the count first, then the pair.",
        "Count again after every merge: merging changes what stands beside what.",
    ),
    solution=train,
    remark="""
Counting the whole corpus again after every merge takes time proportional to its size each time. The
library's trainer keeps the counts and changes only those of pairs beside a merge; the merges are the
same.
""",
    cases=(
        Case(
            "the most frequent pair",
            ({b"low": 5, b"on": 2}, 1),
            [(b"o", b"w")],
            "Among equals: the greatest.",
        ),
        Case(
            "a merge changes the counts",
            ({b"aab": 4, b"ab": 3, b"aa": 2}, 2),
            [(b"a", b"b"), (b"a", b"ab")],
            "Count again after every merge: tokens that were merged are new neighbours.",
        ),
        Case(
            "equals",
            ({b"ab": 2, b"ba": 2, b"az": 2}, 3),
            [(b"b", b"a"), (b"a", b"z"), (b"a", b"b")],
            "Among equals: the greatest pair of byte strings, not the one seen first.",
        ),
        Case(
            "words from a well-known example",
            ({b"low": 5, b"lower": 2, b"widest": 3, b"newest": 6}, 6),
            [(b"s", b"t"), (b"e", b"st"), (b"o", b"w"), (b"l", b"ow"), (b"w", b"est"), (b"n", b"e")],
            "Do you count again after each merge, and break ties by the greatest pair?",
        ),
        Case(
            "no pair left",
            ({b"ab": 1}, 5),
            [(b"a", b"b")],
            "When every word is one token there is no pair left: stop.",
        ),
        Case("no merges asked for", ({b"ab": 1}, 0), []),
        Case("bytes beyond ASCII", ({"é".encode(): 3}, 1), [(b"\xc3", b"\xa9")]),
    ),
    wrong=(
        Wrong(_first_seen_wins, "Among equals"),
        Wrong(_most_common_at_the_start, "Count again after every merge"),
        Wrong(_never_out_of_pairs, "no pair left: stop"),
    ),
)

# ---- tokenization/encode


def encode(word: bytes, merges: list[tuple[bytes, bytes]]) -> list[bytes]:
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    tokens = [bytes([byte]) for byte in word]
    while len(tokens) > 1:
        pairs = set(pairwise(tokens))
        first = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if first not in ranks:
            break
        tokens = merge(tokens, first, first[0] + first[1])
    return tokens


def _longest_first(word: bytes, merges: list[tuple[bytes, bytes]]) -> list[bytes]:
    known = {left + right for left, right in merges}
    tokens, start = [], 0
    while start < len(word):
        end = next((end for end in range(len(word), start + 1, -1) if word[start:end] in known), start + 1)
        tokens.append(word[start:end])
        start = end
    return tokens


def _leftmost_first(word: bytes, merges: list[tuple[bytes, bytes]]) -> list[bytes]:
    tokens = [bytes([byte]) for byte in word]
    while True:
        pairs = list(pairwise(tokens))
        hit = next((place for place, pair in enumerate(pairs) if pair in merges), None)
        if hit is None:
            return tokens
        tokens[hit : hit + 2] = [tokens[hit] + tokens[hit + 1]]


def _one_round(word: bytes, merges: list[tuple[bytes, bytes]]) -> list[bytes]:
    tokens = [bytes([byte]) for byte in word]
    first = next((pair for pair in merges if pair in pairwise(tokens)), None)
    return merge(tokens, first, first[0] + first[1]) if first else tokens


ENCODE = Exercise(
    name="tokenization/encode",
    title="Encode with learned merges",
    task="""
Write `encode(word, merges)`: the tokens, as byte strings, of one pre-token. Start from single bytes and
replay the training: of all the merges that could be done now, do the one learned earliest, wherever it
occurs; again until none can be done. `merge` stands ready.
""",
    difficulty=3,
    minutes=20,
    starter="""
from itertools import pairwise


def encode(word: bytes, merges: list[tuple[bytes, bytes]]) -> list[bytes]:
    raise NotImplementedError
""",
    given=(merge,),
    hints=(
        "The position of a pair in `merges` is its rank. A dictionary from pair to rank answers quickly.",
        "`min(pairs, key=...)` finds the pair of lowest rank; an unknown pair gets a rank beyond all.",
        "After a merge there are new pairs: start again from what there is now.",
        "The longest token that fits is not always right: the order of learning decides.",
    ),
    solution=encode,
    cases=(
        Case("one merge", (b"at", [(b"a", b"t")]), [b"at"]),
        Case("nothing learned", (b"abc", []), [b"a", b"b", b"c"]),
        Case(
            "merges upon merges",
            (b"that", [(b"t", b"h"), (b"a", b"t"), (b"th", b"at")]),
            [b"that"],
            "Go on until no merge can be done: tokens that were merged are merged on.",
        ),
        Case(
            "the earliest merge first",
            (b"abc", [(b"b", b"c"), (b"a", b"b")]),
            [b"a", b"bc"],
            "Of all merges that could be done now, the one learned earliest comes first, not the leftmost.",
        ),
        Case(
            "not the longest token",
            (b"abcd", [(b"a", b"b"), (b"c", b"d"), (b"b", b"c"), (b"bc", b"d"), (b"a", b"bcd")]),
            [b"ab", b"cd"],
            "`abcd` is a token, but the merges lead elsewhere: the order of learning decides.",
        ),
        Case("every occurrence", (b"aaaaa", [(b"a", b"a"), (b"aa", b"aa")]), [b"aaaa", b"a"]),
        Case("bytes beyond ASCII", ("éé".encode(), [(b"\xc3", b"\xa9")]), [b"\xc3\xa9", b"\xc3\xa9"]),
        Case("no bytes", (b"", [(b"a", b"t")]), []),
    ),
    wrong=(
        Wrong(_longest_first, "learned earliest"),
        Wrong(_leftmost_first, "not the leftmost"),
        Wrong(_one_round, "Go on until no merge"),
    ),
)

# ---- tokenization/encode-stream


def encode_stream(pieces: Iterable[str], encode: Callable[[str], list]) -> Iterator:
    held = ""
    for piece in pieces:
        *safe, second, last = ["", "", *pretokenize(held + piece)]
        held = second + last
        for word in safe:
            if word:
                yield from encode(word)
    for word in pretokenize(held):
        yield from encode(word)


def _piece_by_piece(pieces: Iterable[str], encode: Callable[[str], list]) -> Iterator:
    for piece in pieces:
        for word in pretokenize(piece):
            yield from encode(word)


def _all_at_once(pieces: Iterable[str], encode: Callable[[str], list]) -> Iterator:
    for word in pretokenize("".join(pieces)):
        yield from encode(word)


def _one_held_back(pieces: Iterable[str], encode: Callable[[str], list]) -> Iterator:
    held = ""
    for piece in pieces:
        *safe, held = ["", *pretokenize(held + piece)]
        for word in safe:
            if word:
                yield from encode(word)
    for word in pretokenize(held):
        yield from encode(word)


def _end_forgotten(pieces: Iterable[str], encode: Callable[[str], list]) -> Iterator:
    held = ""
    for piece in pieces:
        *safe, second, last = ["", "", *pretokenize(held + piece)]
        held = second + last
        for word in safe:
            if word:
                yield from encode(word)


class _ReadTooFarError(Exception):
    """The stream was asked for more although tokens could have been given out."""


def _reluctant() -> Iterator[str]:
    yield "one two three four "
    raise _ReadTooFarError("asked for the next piece before the first token was given out")


def _first(tokens: Iterable[str]) -> str:
    return next(iter(tokens))


def _stream(*pieces: str) -> Callable[[], tuple]:
    return lambda: (iter(pieces), lambda word: [word])


def _call(*pieces: str) -> str:
    return f"list(encode_stream(iter({list(pieces)!r}), encode=lambda word: [word]))"


ENCODE_STREAM = Exercise(
    name="tokenization/encode-stream",
    title="Encode a file larger than memory",
    task="""
A file arrives in pieces, cut anywhere: inside a word, between two spaces, behind an apostrophe. Write the
generator `encode_stream(pieces, encode)`: the tokens that `pretokenize` (given) and `encode` (called with
one pre-token, returns the list of its tokens) give for the whole text, wherever it was cut, holding only
a little text at a time and giving tokens out as soon as they are certain.

What is certain? A pre-token at the end of what has arrived may still grow. Find out how much of the end
must be held back for this pattern, and argue that it is enough.
""",
    difficulty=5,
    minutes=60,
    starter="""
import re
from collections.abc import Callable, Iterable, Iterator


def encode_stream(pieces: Iterable[str], encode: Callable[[str], list]) -> Iterator:
    raise NotImplementedError
""",
    given=(pretokenize,),
    hints=(
        "Put what was held back in front of the next piece, and pre-tokenize both together.",
        "The last pre-token can always grow: hold it back. At the end, encode what is held.",
        "Is one enough? Take `'` and then `r` and then `e`. `'r` is two pre-tokens, `'re` is one.",
        "A match depends on its own characters, one after them (the look-ahead), behind an apostrophe two.",
    ),
    solution=encode_stream,
    remark="""
Two pre-tokens are at least two characters. A pre-token with two more after it has seen, besides its own
characters, the next two: enough for the look-ahead of one character and for the longest contraction, `'`
and two letters. So it is certain. What this does not bound is a pre-token itself: a piece of a million
letters without a space is held, and cut again with every new piece. The library's
`encode_iterable` holds it as well: its memory is a block of text or the longest single pre-token.
""",
    cases=(
        Case(
            "one piece",
            _stream("the cat"),
            ["the", " cat"],
            "What was held back must be encoded at the end.",
            call=_call("the cat"),
            then=list,
        ),
        Case(
            "cut inside a word",
            _stream("the c", "at sat"),
            ["the", " cat", " sat"],
            "A pre-token at the end of a piece may go on in the next one: hold it back.",
            call=_call("the c", "at sat"),
            then=list,
        ),
        Case(
            "cut between spaces",
            _stream("a  ", "b"),
            ["a", " ", " b"],
            call=_call("a  ", "b"),
            then=list,
        ),
        Case(
            "cut inside a contraction",
            _stream("they'", "r", "e here"),
            ["they", "'re", " here"],
            "`'r` is two pre-tokens, which `e` makes one: holding one back is not enough.",
            call=_call("they'", "r", "e here"),
            then=list,
        ),
        Case(
            "one character at a time",
            _stream(*"we've  12\n\n3 naïve 🙂s'll"),
            ["we", "'ve", " ", " 12", "\n", "\n", "3", " naïve", " 🙂", "s", "'ll"],
            call="list(encode_stream(iter(\"we've  12\\n\\n3 naïve 🙂s'll\"), encode=lambda word: [word]))",
            then=list,
        ),
        Case(
            "tokens before the end",
            lambda: (_reluctant(), lambda word: [word]),
            "one",
            "Give tokens out while pieces still come: reading all first would fill the memory.",
            call="next(encode_stream(a stream that fails if read too far, encode=lambda word: [word]))",
            then=_first,
        ),
        Case(
            "empty pieces", _stream("", "a", "", "b", ""), ["ab"], call=_call("", "a", "", "b", ""), then=list
        ),
        Case("no pieces", _stream(), [], call=_call(), then=list),
    ),
    wrong=(
        Wrong(_piece_by_piece, "hold it back"),
        Wrong(_all_at_once, "reading all first would fill the memory"),
        Wrong(_one_held_back, "holding one back is not enough"),
        Wrong(_end_forgotten, "encoded at the end"),
    ),
)
