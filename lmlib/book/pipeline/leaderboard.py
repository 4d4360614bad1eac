"""The *Leaderboard* page: every entry under `book/results/leaderboard/`, by class, with its curve."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lmlib.book import plots
from lmlib.book.pipeline.pages import list_table, plain
from lmlib.book.records import record
from lmlib.training.leaderboard import read_entry
from lmlib.training.sweep import LADDER

_PAGE = """\
# Leaderboard

The lowest validation loss within a budget. The clock starts with the command, so that imports, tokenizing and
compilation count; evaluation does not. Every entry is evaluated with a context of 512 tokens over the whole
validation file. Losses compare within one class and one data set, and across tokenizers only per byte.
*Start* is what went by before the first step, compilation apart; a short budget can lose half there.

Take part: `python -m lmlib.training leaderboard --minutes 10` trains on the micro-world within ten minutes of
CPU and writes an entry; `--flops` gives a budget that is the same for every machine;
`python -m lmlib.training verify entry.json` computes the loss anew. An entry carries the hash of its own
content, of its data and of its weights; this page is built only from entries whose hash is right.

{classes}

## What each idea bought

The micro-world preset at {flops} FLOPs, one idea after another, each rung at several learning rates and shown
at its best: a {where}, one seed. A loss that falls short of its neighbour's by a few hundredths says little.

```{{list-table}}
:header-rows: 1

{ladder}
```
"""


def leaderboard_page(folder: Path, results: Path) -> str:
    """Markdown of the page.

    Raises:
        ValueError: for an entry that was changed after it was signed.
    """
    entries = [read_entry(path) for path in sorted(folder.glob("*.json"))]
    entries.sort(key=lambda entry: (entry["class"], entry["data"]["val_sha256"], entry["loss"]))
    classes = []
    for name, group in groupby(entries, key=lambda entry: entry["class"]):
        by_data = groupby(group, key=lambda entry: entry["data"]["val_sha256"])
        classes += [f"## {plain(name)}", *(_section(name, list(each)) for _, each in by_data)]
    made = record("cpu-16core", "ladder", results)
    flops = max(each["flops"] for each in made.about["runs"].values() if "flops" in each)
    return _PAGE.format(
        classes="\n\n".join(classes),
        ladder=list_table(_ladder(made.samples)),
        flops=f"{flops:.2g}",
        where=plain(made.where),
    )


def _section(name: str, entries: Sequence[dict[str, Any]]) -> str:
    """The entries of one class on one data set, which alone compare."""
    data = entries[0]["data"]
    # The date has no column of its own: eight are wider than the page.
    rows = [["Entry (date)", "Nats/token", "Bits/byte", "Parameters", "Tokens", "FLOPs", "Start (s)"]]
    for entry in entries:
        bits = entry["bits_per_byte"]
        rows.append(
            [
                plain(f"{entry['title']} ({entry['date']})"),
                f"{entry['loss']:.4f}",
                "" if bits is None else f"{bits:.4f}",
                f"{entry['parameters'] / 1e6:.1f}M",
                f"{entry['tokens'] / 1e6:.1f}M",
                f"{entry['flops']:.2e}",
                f"{entry['start_seconds']:.0f}",
            ]
        )
    traces = [
        {
            "x": [point[0] / 60 for point in entry["curve"]],
            "y": [point[2] for point in entry["curve"]],
            "name": entry["title"],
        }
        for entry in entries
    ]
    best = min(entries, key=lambda entry: entry["loss"])
    shown = plots.figure(
        traces,
        title=f"Training loss, {name}",
        x="Time since the command started (minutes)",
        y="Training loss (nats/token)",
        alt=f"Training loss over time, a line for each of the entries ({len(entries)}); the best ends at a "
        f"validation loss of {best['loss']:.3f} nats per token.",
    )
    html = plots.page_html(shown.to_plotly_json())
    table = f"```{{list-table}}\n:header-rows: 1\n:class: lm-wide\n\n{list_table(rows)}\n```"
    where = f"On {plain(data['description'])}; hash of the validation file `{data['val_sha256'][:12]}`."
    return f"{where}\n\n{table}\n\n````{{raw}} html\n{html}\n````"


def _ladder(samples: Any) -> list[list[str]]:
    rows, before = [["Added", "Validation loss (nats/token)", "Change", "Best rate of those tried"]], None
    for label, _ in LADDER:
        found = {
            float(name.split(" @ ")[1]): each.median
            for name, each in samples.items()
            if name.split(" @ ")[0] == label
        }
        if not found:
            continue
        rate = min(found, key=lambda each: found[each])
        change = "" if before is None else f"{found[rate] - before:+.3f}"
        rows.append([plain(label), f"{found[rate]:.3f}", change, f"{rate:g}"])
        before = found[rate]
    return rows
