"""Widgets of chapter 1: the price of a vocabulary, merging step by step, and texts in coloured tokens."""

import json
import pkgutil
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from math import log2
from typing import Any

from lmlib.book.declare import (
    Choice,
    InputError,
    LedgerTable,
    Note,
    Number,
    Output,
    Plot,
    Table,
    Term,
    Text,
    Toggle,
    Tokens,
    Value,
    Widget,
    register,
)
from lmlib.book.quantities import readable
from lmlib.tokenization import naive
from lmlib.tokenization.merging import merge_ids


@lru_cache(maxsize=1)
def measured() -> dict[str, Any]:
    """What ``lmlib.book.bundle_tokenizers`` measured and trained: ``recipe``, ``curve``, ``merges``."""
    data = pkgutil.get_data("lmlib.book.widgets", "tokenization.json")
    assert data is not None, "tokenization.json belongs to the package"
    return json.loads(data)


# the price of a vocabulary


def bytes_per_token(vocab_size: int) -> Fraction:
    """Measured compression on English held out from training, between measured sizes linear in
    log2(vocab_size)."""
    curve = [(size, Fraction(_held_out_bytes(), tokens)) for size, tokens in measured()["curve"]]
    for (small, few), (large, many) in pairwise(curve):
        if small <= vocab_size <= large:
            part = round(log2(vocab_size / small) / log2(large / small), 6)
            return few + (many - few) * Fraction(f"{part:.6f}")
    raise InputError(
        "vocab_size", f"Measured are vocabularies from {curve[0][0]:,} to {curve[-1][0]:,} tokens."
    )


def _held_out_bytes() -> int:
    return int(measured()["recipe"]["texts"]["english"]["held_out_bytes"])


def _forward_terms(
    vocab_size: int,
    n_layers: int,
    d_model: int,
    n_heads: int,
    n_kv_heads: int,
    d_ff: int,
    gated: bool,
    context: int,
) -> list[Term]:
    """Forward FLOPs of one token, a multiply and an add counted as 2; the lookup of its embedding costs
    none."""
    d_kv = d_model // n_heads * n_kv_heads
    matrices = 3 if gated else 2
    shape = {"n_layers": n_layers, "d_model": d_model}
    source = "2 FLOPs for each weight of a matrix (Kaplan et al. 2020, section 2.1)"
    return [
        Term(
            "Attention: queries, keys, values, output",
            "2 · n_layers · (2 · d_model² + 2 · d_model · d_kv)",
            {**shape, "d_kv": d_kv},
            2 * n_layers * (2 * d_model**2 + 2 * d_model * d_kv),
            "FLOPs",
            source,
        ),
        Term(
            "Attention: scores and weighted sum",
            "2 · n_layers · d_model · (context_length + 1)",
            {**shape, "context_length": context},
            2 * n_layers * d_model * (context + 1),
            "FLOPs",
            "causal: (context_length + 1) / 2 positions on average, 4 · d_model FLOPs each",
        ),
        Term(
            "Feed-forward",
            "2 · n_layers · matrices · d_model · d_ff",
            {**shape, "matrices": matrices, "d_ff": d_ff},
            2 * n_layers * matrices * d_model * d_ff,
            "FLOPs",
            source,
        ),
        Term(
            "Logits: a score for every token",
            "2 · d_model · vocab_size",
            {"d_model": d_model, "vocab_size": vocab_size},
            2 * d_model * vocab_size,
            "FLOPs",
            source,
        ),
    ]


def _price(vocab_size: int, d_model: int, tied: bool, body: int, terms: Sequence[Term]) -> dict[str, Any]:
    """The figures of one vocabulary size; ``body`` is the parameters besides the embeddings."""
    embedding = vocab_size * d_model * (1 if tied else 2)
    compression = bytes_per_token(vocab_size)
    return {
        "compression": compression,
        "embedding": embedding,
        "share": Fraction(100 * embedding, embedding + body),
        "flops": Fraction(sum(int(term.value) for term in terms)) / compression,
    }


def vocabulary_size(
    model: str,
    vocab_size: int,
    d_model: int,
    tied: bool,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    d_ff: int,
    gated: bool,
    context_length: int,
) -> list[Output]:
    """Bytes per token, embedding parameters and FLOPs per byte of a vocabulary size."""
    if d_model % n_heads:
        raise InputError(
            "n_heads", f"Heads must divide d_model: {d_model} / {n_heads} leaves {d_model % n_heads}."
        )
    if n_heads % n_kv_heads:
        raise InputError(
            "n_kv_heads", f"Key/value heads must divide the {n_heads} heads; {n_kv_heads} do not."
        )

    d_kv = d_model // n_heads * n_kv_heads
    body = n_layers * (2 * d_model**2 + 2 * d_model * d_kv + (3 if gated else 2) * d_model * d_ff)

    def at(size: int) -> tuple[dict[str, Any], list[Term]]:
        terms = _forward_terms(size, n_layers, d_model, n_heads, n_kv_heads, d_ff, gated, context_length)
        return _price(size, d_model, tied, body, terms), terms

    now, terms = at(vocab_size)
    sizes = sorted({size for size, _ in measured()["curve"]} | {vocab_size})
    prices = {size: at(size)[0] for size in sizes}
    cheapest = min(sizes, key=lambda size: prices[size]["flops"])
    return [
        Value("Bytes per token", now["compression"], "", f"{float(now['compression']):.2f}", headline=True),
        Value(
            "Embedding parameters", now["embedding"], "parameters", readable(now["embedding"]), headline=True
        ),
        Value("Forward FLOPs per byte of text", now["flops"], "FLOPs", headline=True),
        Value("Share of all parameters", now["share"], "%", f"{float(now['share']):.1f} %"),
        Value("Text in one context", context_length * now["compression"], "B"),
        Note(
            f"Of these sizes, {cheapest:,} needs the fewest FLOPs per byte for this model: "
            + (
                "a larger vocabulary would pay more for logits than it saves in tokens."
                if cheapest < sizes[-1]
                else "up to here every doubling saves more in tokens than its logits cost."
            ),
            "info",
        ),
        _price_plot(sizes, prices, vocab_size),
        LedgerTable("Forward FLOPs of one token", terms, "All of one token"),
        Table(
            "The same model with other vocabularies",
            ["Vocabulary", "Bytes per token", "Embedding parameters", "Share (%)", "FLOPs per byte"],
            [
                [
                    size,
                    float(price["compression"]),
                    price["embedding"],
                    float(price["share"]),
                    round(price["flops"]),
                ]
                for size, price in prices.items()
            ],
        ),
    ]


def _price_plot(sizes: Sequence[int], prices: dict[int, dict[str, Any]], vocab_size: int) -> Plot:
    flops = [float(prices[size]["flops"]) for size in sizes]
    here = float(prices[vocab_size]["flops"])
    return Plot(
        "FLOPs for a byte of text, by vocabulary size",
        f"Forward FLOPs per byte over vocabulary sizes from {sizes[0]:,} to {sizes[-1]:,}: from "
        f"{readable(flops[0], 'FLOPs')} to {readable(flops[-1], 'FLOPs')}; "
        f"{readable(here, 'FLOPs')} at {vocab_size:,}.",
        [
            {"x": list(sizes), "y": flops, "name": "measured sizes", "mode": "lines+markers"},
            {
                "x": [vocab_size],
                "y": [here],
                "name": "yours",
                "mode": "markers",
                "marker": {"size": 13, "color": "#d55e00"},
            },
        ],
        {
            "xaxis": {"type": "log", "dtick": 1, "title": {"text": "Vocabulary size (tokens)"}},
            "yaxis": {
                "rangemode": "tozero",
                "title": {"text": "Forward FLOPs per byte"},
                "exponentformat": "SI",
            },
        },
    )


def _shape(
    vocab_size: int,
    d_model: int,
    tied: bool,
    n_layers: int,
    heads: tuple[int, int],
    d_ff: int,
    gated: bool,
    context: int,
) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "tied": tied,
        "n_layers": n_layers,
        "n_heads": heads[0],
        "n_kv_heads": heads[1],
        "d_ff": d_ff,
        "gated": gated,
        "context_length": context,
    }


_MODELS = {
    "gpt2": _shape(50_257, 768, True, 12, (12, 12), 3072, False, 1024),
    "gpt2-xl": _shape(50_257, 1600, True, 48, (25, 25), 6400, False, 1024),
    "llama-3-8b": _shape(128_256, 4096, False, 32, (32, 8), 14_336, True, 8192),
    "stories": _shape(10_000, 512, False, 4, (16, 16), 1344, True, 256),
}
_BODY = "The rest of the model"

register(
    Widget(
        name="tokenization/vocabulary-size",
        title="What does a larger vocabulary cost?",
        description=(
            "A larger vocabulary takes fewer tokens for the same text, and more parameters and logits for "
            "each. Bytes per token were measured on English that the vocabularies had not seen; the rest is "
            "counted."
        ),
        inputs=(
            Choice(
                "model",
                "Start from",
                (
                    ("gpt2", "GPT-2, 124M"),
                    ("gpt2-xl", "GPT-2 XL, 1.5B"),
                    ("llama-3-8b", "Llama 3, 8B"),
                    ("stories", "A small model for stories"),
                    ("custom", "Your own"),
                ),
                "gpt2",
                presets=_MODELS,
            ),
            Number(
                "vocab_size",
                "Vocabulary size",
                50_257,
                256,
                131_072,
                unit="tokens",
                slider=True,
                stops=tuple(
                    sorted({2**power for power in range(8, 18)} | {32_000, 50_257, 100_277, 128_256, 10_000})
                ),
            ),
            Number("d_model", "d_model", 768, 16, 65_536, help="Width of the model, and of each embedding"),
            Toggle("tied", "Tied embeddings", True, help="The output layer uses the input embeddings again"),
            Number("n_layers", "n_layers", 12, 1, 1000, group=_BODY),
            Number("n_heads", "n_heads", 12, 1, 1024, group=_BODY),
            Number(
                "n_kv_heads", "n_kv_heads", 12, 1, 1024, help="Fewer than n_heads: grouped-query", group=_BODY
            ),
            Number("d_ff", "d_ff", 3072, 1, 10**6, help="Width of the feed-forward layers", group=_BODY),
            Toggle(
                "gated",
                "Gated feed-forward",
                False,
                help="SwiGLU: three matrices in place of two",
                group=_BODY,
            ),
            Number("context_length", "context_length", 1024, 1, 10**7, unit="tokens", group=_BODY),
        ),
        compute=vocabulary_size,
    )
)

# merging step by step

_SAMPLE = "low low low low low lower lower newest newest newest newest newest newest widest widest widest"


class _Lesson:
    """The steps of training on one text, computed as far as they are asked for."""

    def __init__(self, text: str) -> None:
        self.start = [tuple(word.encode()) for word in naive.pretokenize(text)]
        self._coming: Iterator[naive.MergeStep] = naive.merge_steps(text)
        self.steps: list[naive.MergeStep] = []

    def upto(self, number: int) -> list[naive.MergeStep]:
        """The first ``number`` steps, or all there are."""
        while len(self.steps) < number and (step := next(self._coming, None)):
            self.steps.append(step)
        return self.steps[:number]


@lru_cache(maxsize=8)
def _lesson(text: str) -> _Lesson:
    return _Lesson(text)


def merge_steps(text: str, n_merges: int) -> list[Output]:
    """The reader's text after so many merges, the pairs that compete, and the merge that comes next."""
    if not text.strip():
        raise InputError("text", "Some text is needed here, with at least one pair of letters.")
    lesson = _lesson(text)
    done, ahead = lesson.upto(n_merges), lesson.upto(n_merges + 1)
    words = done[-1].words if done else lesson.start
    vocab = done[-1].vocab if done else {byte: bytes([byte]) for byte in range(256)}
    n_bytes, n_tokens = len(text.encode()), sum(map(len, words))
    pieces = [(_readable(vocab[i]), i, _title(i, vocab[i])) for word in words for i in word]
    pairs = ahead[-1].pairs if len(ahead) > len(done) else naive.count_pairs(Counter(words)).most_common()
    ranked = sorted(pairs, key=lambda entry: (entry[1], vocab[entry[0][0]], vocab[entry[0][1]]), reverse=True)
    return [
        Value("Tokens", n_tokens, headline=True),
        Value("Bytes", n_bytes, headline=True),
        Value("Bytes per token", Fraction(n_bytes, n_tokens), "", f"{n_bytes / n_tokens:.2f}", headline=True),
        Value("Vocabulary", 256 + len(done), "", f"256 bytes + {len(done)}"),
        _next_merge(ahead[-1] if len(ahead) > len(done) else None, vocab, n_merges, len(done)),
        Tokens(f"The text after {len(done)} merges; a dot is a space", pieces),
        Table(
            "The most frequent pairs, in the order in which they would be merged",
            ["Left", "Right", "Together", "Count"],
            [
                [
                    *(_code(vocab[i]) for i in pair),
                    _code(vocab[pair[0]] + vocab[pair[1]]),
                    count,
                ]
                for pair, count in ranked[:8]
            ],
        ),
        Table(
            "Merges so far, last first",
            ["Id", "Left", "Right", "Together", "Count"],
            [
                [
                    step.new_id,
                    *(_code(step.vocab[i]) for i in step.pair),
                    _code(step.vocab[step.new_id]),
                    step.count,
                ]
                for step in reversed(done[-8:])
            ],
        ),
    ]


def _next_merge(step: naive.MergeStep | None, vocab: Any, asked: int, done: int) -> Note:
    if step is None:
        early = f" Only {done} of the {asked} merges were possible." if done < asked else ""
        return Note(
            f"No pair occurs twice any more: there is nothing left to learn from this text.{early}", "good"
        )
    left, right = (_code(vocab[i]) for i in step.pair)
    why = f"Next, {left} and {right} become token {step.new_id}: they stand together {step.count} times"
    if not step.ties:
        return Note(f"{why}, more often than any other pair.")
    others = (
        "as often as one other pair" if len(step.ties) == 1 else f"as often as {len(step.ties)} other pairs"
    )
    return Note(f"{why}, {others}, and of equals the pair whose bytes come last in the alphabet goes first.")


def _readable(token: bytes) -> str:
    """The token as text, or its bytes in hexadecimal where they are no whole characters."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return token.hex(" ").upper()


def _code(token: bytes) -> str:
    """The token within a sentence or a table, where a space at its border would not be seen."""
    shown = _readable(token).replace(" ", "·").replace("\n", "⏎").replace("`", "\u02cb")
    return f"`{shown}`"


def _title(number: int, token: bytes) -> str:
    return f"token {number}, bytes {token.hex(' ')}"


register(
    Widget(
        name="tokenization/merge-steps",
        title="Byte-pair encoding, one merge at a time",
        description=(
            "Training starts from single bytes. Again and again it takes the pair that stands together most "
            "often and makes it one token. Put in your own text, and step."
        ),
        inputs=(
            Text("text", "Your text", _SAMPLE, max_length=1000, rows=3),
            Number("n_merges", "Merges done", 4, 0, 60, step=1, slider=True),
        ),
        compute=merge_steps,
    )
)

# texts in tokens

_BPE = {
    "english-512": ("BPE from English, 512 tokens", "english", 512),
    "english-2048": ("BPE from English, 2,048 tokens", "english", 2048),
    "english-8192": ("BPE from English, 8,192 tokens", "english", 8192),
    "code-4096": ("BPE from Python code, 4,096 tokens", "code", 4096),
}
_VIEWS = {
    "bytes": "Bytes",
    "characters": "Characters",
    "words": "Words",
    **{key: bpe[0] for key, bpe in _BPE.items()},
}


class _Vocabulary:
    """A bundled vocabulary; words are remembered, so that typing costs the word that changes."""

    def __init__(self, text: str, size: int) -> None:
        flat = list(map(int, text.split()))[: 2 * (size - 256)]
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self.made = range(256, 256 + len(pairs))
        self.tokens = [bytes([byte]) for byte in range(256)]
        for left, right in pairs:
            self.tokens.append(self.tokens[left] + self.tokens[right])
        self.encode_word = lru_cache(maxsize=20_000)(self._encode_word)

    def _encode_word(self, word: str) -> tuple[int, ...]:
        return tuple(merge_ids(list(word.encode()), self.ranks, self.made))


@lru_cache(maxsize=len(_BPE))
def _vocabulary(key: str) -> _Vocabulary:
    _, name, size = _BPE[key]
    return _Vocabulary(measured()["merges"][name], size)


def _cut(view: str, text: str) -> list[tuple[str, int, str]]:
    """Pieces of the text under one way of cutting it: what is seen, its id, a title."""
    if view == "bytes":
        return [(_readable(bytes([byte])), byte, f"byte {byte:02x}") for byte in text.encode()]
    if view == "characters":
        return [(character, ord(character), f"U+{ord(character):04X}") for character in text]
    words = naive.pretokenize(text)
    if view == "words":
        seen: dict[str, int] = {}
        return [
            (word, number := seen.setdefault(word, len(seen)), f"word {number} of this text")
            for word in words
        ]
    vocabulary = _vocabulary(view)
    ids = [number for word in words for number in vocabulary.encode_word(word)]
    return [(_readable(vocabulary.tokens[i]), i, _title(i, vocabulary.tokens[i])) for i in ids]


def _size_of(view: str) -> str:
    return {"bytes": "256", "characters": "up to 1,112,064", "words": "without end"}.get(
        view
    ) or f"{_BPE[view][2]:,}"


def token_view(text: str, first: str, second: str) -> list[Output]:
    """Two coloured views of a text, and how many tokens every way of cutting takes."""
    if not text:
        raise InputError("text", "Some text is needed here.")
    n_bytes = len(text.encode())
    cuts = {view: _cut(view, text) for view in _VIEWS}
    return [
        *(
            Tokens(
                f"{_VIEWS[view]}: {len(cuts[view]):,} tokens, {n_bytes / len(cuts[view]):.2f} bytes each",
                cuts[view],
            )
            for view in dict.fromkeys((first, second))
        ),
        Table(
            "The same text, cut in all ways",
            ["Tokens are", "Vocabulary", "Tokens", "Bytes per token"],
            [[_VIEWS[view], _size_of(view), len(cut), n_bytes / len(cut)] for view, cut in cuts.items()],
        ),
        Note(
            "The vocabulary of words has no end: a word that training did not see has no token. The three of "
            "English are one training, stopped earlier or later; a byte that no merge takes up stays a token."
        ),
    ]


_TEXT = (
    "Unbelievably, 12345 + 67890 = 80235 tokenizers agree on nothing: naïve café, 東京, 😀!\n"
    "    def encode(self, text):\n        return self.ids[text]"
)

register(
    Widget(
        name="tokenization/token-view",
        title="One text, many tokenizers",
        description="Each coloured piece is one token, its id below it; a dot is a space. Type and compare.",
        inputs=(
            Text("text", "Your text", _TEXT, max_length=1500, rows=4),
            Choice("first", "Above", tuple(_VIEWS.items()), "english-8192"),
            Choice("second", "Below", tuple(_VIEWS.items()), "code-4096"),
        ),
        compute=token_view,
    )
)
