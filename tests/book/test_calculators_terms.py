"""Each calculator explains every term for every published model, and its terms add up to what it shows."""

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from lmlib.book.declare import Choice, get
from lmlib.book.widgets.resources_explain import CHAPTER
from lmlib.resources.ledger import evaluate
from lmlib.resources.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
ALONE = {"dp": 1, "tp": 1, "pp": 1, "sp": "false", "n_devices": 1}
WITH_MODEL: dict[str, dict[str, object]] = {  # what makes the calculator answer for every model
    "how-long": {"context_length": 1024},
    "serve": {"context_length": 1024},
    "layout": {"context_length": 1024, **ALONE},
    "does-it-fit": {"context_length": 1024},
}
WITHOUT = ("roofline", "train-what")
# Headings of ledgers, and the value that their terms must add up to.
TOTALS = {
    "does-it-fit": {"What is alive at the peak": "Peak on one rank"},
    "layout": {
        "State of the fullest rank": "State on the fullest rank",
        "Seconds of a step": "A step takes",
        "Bytes sent in one step": "Sent by one rank in a step",
        "Seconds of the same": "Sending, if nothing overlaps",
    },
}


def flat(outputs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for out in outputs:
        yield from flat(out["outputs"]) if out["kind"] == "group" else [out]


def answered(name: str, entries: dict[str, object]) -> list[dict[str, Any]]:
    answer = get(name).run({key: str(value) for key, value in entries.items()})
    assert answer["ok"], (entries, answer)
    return list(flat(answer["outputs"]))


def check(what: str, outputs: list[dict[str, Any]]) -> None:
    anchors = set(re.findall(r"\(([\w-]+)\)=", (ROOT / "chapters/04_resources.ipynb").read_text("utf-8")))
    values = {
        out["label"]: Fraction(out["value"]) for out in outputs if out["kind"] == "value" and out["unit"]
    }
    ledgers = [out for out in outputs if out["kind"] == "ledgertable"]
    assert ledgers
    for ledger in ledgers:
        assert ledger["terms"], ledger["caption"]
        for term in ledger["terms"]:
            for field in ("name", "formula", "numbers", "unit", "source", "section"):
                assert str(term[field]).strip(), (ledger["caption"], field, term)
            assert float(evaluate(term["numbers"])) == pytest.approx(float(Fraction(term["value"])), rel=1e-8)
            chapter, _, anchor = term["section"].partition("#")
            assert (chapter, anchor in anchors) == (CHAPTER, True), term
        for start, label in TOTALS.get(what, {}).items():
            if ledger["caption"].startswith(start):
                whole = sum(Fraction(term["value"]) for term in ledger["terms"])
                assert float(whole) == pytest.approx(float(values[label]), rel=1e-8), (start, values)


@pytest.mark.parametrize("what", WITH_MODEL)
@pytest.mark.parametrize("model", PRESETS)
def test_every_term_of_every_model(model: str, what: str) -> None:
    check(what, answered(f"resources/{what}", {"model": model, **WITH_MODEL[what]}))
    if what == "does-it-fit":
        pipeline = {"pp": 2, "vpp": 2, "microbatches": 4, "recompute": "full"}
        check(what, answered(f"resources/{what}", {"model": model, **WITH_MODEL[what], **pipeline}))


@pytest.mark.parametrize("what", [*WITH_MODEL, *WITHOUT])
def test_every_term_of_every_start(what: str) -> None:
    widget = get(f"resources/{what}")
    for choice in widget.inputs:
        if isinstance(choice, Choice) and choice.name in ("start", "operation", "budget_by", "law"):
            for value, _ in choice.options:
                filled = {
                    key: widget.input(key).text(to) for key, to in choice.presets.get(value, {}).items()
                }
                check(what, answered(widget.name, {choice.name: value, **filled}))
    check(what, answered(widget.name, {}))


@pytest.mark.parametrize("what", TOTALS)
def test_the_totals_that_are_compared_are_shown(what: str) -> None:
    outputs = answered(f"resources/{what}", {})
    captions = [out["caption"] for out in outputs if out["kind"] == "ledgertable"]
    labels = [out["label"] for out in outputs if out["kind"] == "value"]
    for start, label in TOTALS[what].items():
        assert any(caption.startswith(start) for caption in captions), captions
        assert label in labels
