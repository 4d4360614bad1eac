"""The widget of attention: heads whose queries and keys are built, not learned, on the reader's own words.

A word has a code of ±1 entries that its letters decide, a place has a code of cosines and sines; the product
of two codes is large where they are the same. Which code a query asks with, and which a key shows, makes the
head.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

from lmlib.book.declare import Choice, InputError, Number, Output, Plot, Table, Text, Toggle, Value, Widget
from lmlib.book.declare import register as register_widget

WIDTH = 32  # K, the width of a head
MOST_WORDS = 24
Vector = Sequence[float]
ZERO: Vector = (0.0,) * WIDTH


def word_code(word: str) -> Vector:
    """Entries of +1 and −1 from the word's hash: different words are nearly orthogonal."""
    bits = int.from_bytes(hashlib.sha256(word.lower().encode()).digest()[: WIDTH // 8], "big")
    return [1.0 if bits >> i & 1 else -1.0 for i in range(WIDTH)]


def place_code(place: int) -> Vector:
    """Cosines and sines of the place at rates from fast to slow, as sinusoidal positions have them."""
    pairs = WIDTH // 2
    angles = [place * math.pi / 1.2**i for i in range(pairs)]
    return [f(angle) * math.sqrt(2) for angle in angles for f in (math.cos, math.sin)]


def _query(head: str, words: Sequence[str], t: int) -> Vector:
    choices: dict[str, Callable[[], Vector]] = {
        "previous": lambda: place_code(t - 1),
        "same": lambda: word_code(words[t]),
        "induction": lambda: word_code(words[t]),
        "first": lambda: place_code(0),
        "even": lambda: ZERO,
    }
    return choices[head]()


def _key(head: str, words: Sequence[str], s: int) -> Vector:
    if head == "same":
        return word_code(words[s])
    if head == "induction":  # what a head in the layer below has fetched: the word before
        return word_code(words[s - 1]) if s else ZERO
    return place_code(s)


def weights(scores: Sequence[float], seen: Sequence[bool]) -> list[float]:
    """Softmax over the scores that are seen; the others get exactly 0."""
    top = max(score for score, there in zip(scores, seen, strict=True) if there)
    raised = [math.exp(score - top) if there else 0.0 for score, there in zip(scores, seen, strict=True)]
    total = sum(raised)
    return [each / total for each in raised]


def attention(
    text: str, head: str, place: int, sharpness: float, scaled: bool, causal: bool, window: int
) -> list[Output]:
    """Scores, mask and weights of one query."""
    words = text.split()
    if not words:
        raise InputError("text", "At least one word is needed.")
    if len(words) > MOST_WORDS:
        raise InputError("text", f"At most {MOST_WORDS} words, these are {len(words)}.")
    if place > len(words):
        raise InputError("place", f"The text has {len(words)} words; choose a place from 1 to {len(words)}.")
    t = place - 1
    query = [sharpness * each for each in _query(head, words, t)]
    products = [
        sum(a * b for a, b in zip(query, _key(head, words, s), strict=True)) for s in range(len(words))
    ]
    factor = WIDTH**-0.5 if scaled else 1.0
    seen = [(s <= t or not causal) and abs(t - s) < window for s in range(len(words))]
    # Rounded, since the last digits of a cosine depend on the machine's libm, and the page has its own.
    shares = [round(each, 6) for each in weights([factor * each for each in products], seen)]
    labels = [f"{s + 1} {word}" for s, word in enumerate(words)]
    best = max(range(len(words)), key=shares.__getitem__)
    rows = [
        (
            labels[s],
            round(products[s], 3) + 0.0,  # and no -0.0
            round(factor * products[s], 3) + 0.0,
            "yes" if seen[s] else "masked",
            round(shares[s], 4),
        )
        for s in range(len(words))
    ]
    return [
        Value("Most weight", f"{labels[best]}: {100 * shares[best]:.1f} %", headline=True),
        Plot(
            f"What word {labels[t]} attends to",
            f"Bars of the weights of {len(words)} words; the highest stands at {labels[best]}.",
            [{"type": "bar", "x": labels, "y": shares, "name": "weight"}],
            {"xaxis": {"title": {"text": "Word"}}, "yaxis": {"title": {"text": "Weight"}, "range": [0, 1]}},
        ),
        Table(
            f"From products to weights, query at word {labels[t]}, K = {WIDTH}",
            ["Word", "q · k", "times the factor", "Seen", "Weight"],
            rows,
        ),
    ]


register_widget(
    Widget(
        name="architecture/attention",
        title="Attention by hand",
        description="One head with queries and keys that were built for a purpose. Choose the head and the "
        "word that asks, and see how products become weights.",
        inputs=(
            Text(
                "text",
                "Text",
                "the cat saw the dog and the cat ran to the dog and the",
                help=f"up to {MOST_WORDS} words",
                max_length=400,
                rows=2,
            ),
            Choice(
                "head",
                "Head",
                (
                    ("induction", "induction: what followed this word last time"),
                    ("previous", "the word before"),
                    ("same", "the same word"),
                    ("first", "the first word"),
                    ("even", "nothing in particular (query 0)"),
                ),
                "induction",
            ),
            Number("place", "Word that asks", 13, 1, MOST_WORDS, slider=True, help="its place, from 1"),
            Number("sharpness", "Length of the query", 1.5, 0.0, 10.0, integer=False, step=0.5, slider=True),
            Toggle("scaled", "Divide by the root of K", True),
            Toggle("causal", "Mask what comes after", True),
            Number("window", "Window", MOST_WORDS, 1, MOST_WORDS, unit="words", slider=True),
        ),
        compute=attention,
        section="../chapters/02_architecture.html#sec-arch-attention",
    )
)
