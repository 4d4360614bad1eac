"""`python -m lmlib.data.report`: how many bits per byte the micro-world's stories need, and by whom."""

from __future__ import annotations

import argparse
import json
import lzma
import zlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from lmlib.data import truth
from lmlib.data.microworld import micro_world
from lmlib.data.ngrams import NGram, as_bytes, as_words

Cut = Callable[[str], Sequence[Hashable]]


def report(
    train_bytes: int = 2_000_000,
    held_out_bytes: int = 200_000,
    seed: int = 0,
    *,
    cuts: Sequence[Cut] = (as_bytes, as_words),
    orders: Sequence[int] = (1, 2, 3, 5),
) -> list[dict[str, Any]]:
    """What held-out stories cost, by n-gram models fitted on `train_bytes` of training text and by the truth.

    Args:
        cuts: functions `as_<units>` that cut a text into units; strings that joined give the text, or bytes.
        orders: of the n-gram models; 3 counts a unit after each two before it.

    Returns:
        Rows of model, bits_per_byte and, for n-gram models, bits_per_unit. The last is the truth, an upper
        bound: see `truth.bits_per_byte`.
    """
    train = list(micro_world(seed, n_bytes=train_bytes).texts())
    held_out = list(micro_world(seed, split="valid", n_bytes=held_out_bytes).documents())
    texts = [document.text for document in held_out]
    size = sum(len(text.encode()) for text in texts)
    rows: list[tuple[str, float, int]] = []
    for cut in cuts:
        training, pieces = [cut(text) for text in train], [cut(text) for text in texts]
        for order in orders:
            model = NGram(order).fit(training)
            bits = sum(map(model.bits, pieces))
            rows.append((f"{order}-gram of {cut.__name__[3:]}", bits, sum(map(len, pieces))))
    whole = "\0".join(texts).encode()
    rows.append(("gzip -9", 8 * len(zlib.compress(whole, 9)), 0))
    rows.append(("xz -9e", 8 * len(lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME)), 0))
    rows.append(("truth", sum(-(document.log2_probability or 0) for document in held_out), 0))
    return [
        {"model": name, "bits_per_byte": bits / size} | ({"bits_per_unit": bits / units} if units else {})
        for name, bits, units in rows
    ]


def main() -> None:
    """Print the report as a Markdown table, or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train-bytes", type=int, default=2_000_000)
    parser.add_argument("--held-out-bytes", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = report(options.train_bytes, options.held_out_bytes, options.seed)
    bits = truth.bits_per_byte(options.seed, 10_000)
    if options.json:
        print(json.dumps({"held_out": rows, "truth_over_10000_stories": bits}, indent=2))
        return
    print("| model | bits per byte |\n|---|---:|")
    for row in rows:
        print(f"| {row['model']} | {row['bits_per_byte']:.3f} |")
    print(f"\nTruth over 10,000 training stories: {bits:.4f} bits per byte (an upper bound).")


if __name__ == "__main__":
    main()
