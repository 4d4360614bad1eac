"""Records: dated measurements of a named machine, kept as JSON under `book/results/<device>/<name>.json`.

What a reader's machine cannot measure is shown from a record, with every raw sample, so that median and
spread are computed here and not typed. The file:

    {"device": "NVIDIA H200", "driver": "570.124", "torch": "2.11.0", "triton": "3.6.0",
     "date": "2026-11-24", "commit": "90c53f1", "command": "python -m kernels.bench attention",
     "samples": {"flash forward": {"unit": "s", "values": [0.0101, 0.0100, 0.0102]}},
     "about": {"batch": 4}}

`driver`, `torch` and `triton` are null where there is none; `about` is optional and free.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from lmlib.book.display import emit, table, text_table

RESULTS = Path(__file__).resolve().parents[2] / "book" / "results"

_TEXTS = ("device", "date", "commit", "command")
_TEXTS_OR_NULL = ("driver", "torch", "triton")
_REQUIRED = (*_TEXTS, *_TEXTS_OR_NULL, "samples")
_FILE_NAME = re.compile(r"[a-z0-9]+(?:[-_.][a-z0-9]+)*")


class RecordError(ValueError):
    """A record that cannot be found, read or trusted."""


@dataclass(frozen=True)
class Samples:
    """Every raw sample of one quantity, in the order taken. `unit` is that of each value, never empty."""

    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the samples, in `unit`."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Largest minus smallest, as a fraction of the median; 0 where there is one sample."""
        width = max(self.values) - min(self.values)
        return width / abs(self.median) if width else 0.0


@dataclass(frozen=True)
class Record:
    """One measurement: the machine, its software, when, how, and every sample."""

    device: str
    driver: str | None
    torch: str | None
    triton: str | None
    date: str
    commit: str
    command: str
    samples: dict[str, Samples]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The words with which a claim or caption names this record."""
        return f"record of {self.date} on {self.device}"

    def __getitem__(self, label: str) -> Samples:
        if label not in self.samples:
            raise RecordError(f"this record has no samples {label!r}; it has {', '.join(self.samples)}")
        return self.samples[label]

    def show(self) -> None:
        """Show median, spread and number of samples of each quantity, with device and date."""
        headers = ("Quantity", "Median", "Unit", "Spread (%)", "Samples")
        rows = [
            (label, each.median, each.unit, 100 * each.spread, len(each.values))
            for label, each in self.samples.items()
        ]
        caption = f"{self._caption()}; command: {self.command}"
        emit(table(headers, rows, caption=caption), f"{caption}\n{text_table(headers, rows)}")

    def _caption(self) -> str:
        versions = [
            f"{name} {value}"
            for name, value in (("driver", self.driver), ("torch", self.torch), ("triton", self.triton))
            if value is not None
        ]
        return ", ".join([f"Record of {self.date} on {self.device}", *versions, f"commit {self.commit}"])


def record(device: str, name: str, folder: Path | None = None) -> Record:
    """Read `book/results/<device>/<name>.json`.

    Raises:
        RecordError: no such record (those that exist are named), or one that is malformed.
    """
    path = _path(device, name, folder)
    if not path.is_file():
        root = folder or RESULTS
        there = sorted(str(each.relative_to(root).with_suffix("")) for each in root.glob("*/*.json"))
        raise RecordError(f"no record {device}/{name}; there are: {', '.join(there) or 'none'}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"record {device}/{name} is not JSON: {error}") from None
    return parse(content, f"record {device}/{name}")


def write(made: Record, device: str, name: str, folder: Path | None = None) -> Path:
    """Write a record where `record(device, name)` finds it, whole or not at all; return its path.

    Raises:
        RecordError: the record would not be read back.
    """
    path = _path(device, name, folder)
    content = asdict(made)
    if not content["about"]:
        del content["about"]
    # Through text, so that what is checked is what will be read.
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecordError(f"record {device}/{name} cannot be written as JSON: {error}") from None
    parse(json.loads(text), f"record {device}/{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".json.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path


def parse(content: Any, what: str) -> Record:
    """A checked record from decoded JSON; `what` names it in errors.

    Raises:
        RecordError: naming the field, the value and what is allowed.
    """
    if not isinstance(content, dict):
        raise RecordError(f"{what} must be a JSON object, got {type(content).__name__}")
    missing = [key for key in _REQUIRED if key not in content]
    unknown = [key for key in content if key not in (*_REQUIRED, "about")]
    if missing or unknown:
        complaints = [f"lacks {', '.join(missing)}"] if missing else []
        complaints += [f"has unknown {', '.join(unknown)} (free fields go into 'about')"] if unknown else []
        raise RecordError(f"{what} {' and '.join(complaints)}")
    for key in _TEXTS:
        if not isinstance(content[key], str) or not content[key].strip():
            raise RecordError(f"{what}: {key} must be text, got {content[key]!r}")
    for key in _TEXTS_OR_NULL:
        if content[key] is not None and (not isinstance(content[key], str) or not content[key].strip()):
            raise RecordError(f"{what}: {key} must be text or null, got {content[key]!r}")
    try:
        date.fromisoformat(content["date"])
    except ValueError:
        raise RecordError(f"{what}: date must be YYYY-MM-DD, got {content['date']!r}") from None
    about = content.get("about", {})
    if not isinstance(about, dict):
        raise RecordError(f"{what}: about must be an object, got {type(about).__name__}")
    fields = {key: content[key] for key in (*_TEXTS, *_TEXTS_OR_NULL)}
    return Record(**fields, samples=_samples(content["samples"], what), about=about)


def _samples(content: Any, what: str) -> dict[str, Samples]:
    if not isinstance(content, dict) or not content:
        raise RecordError(f"{what}: samples must be an object with at least one quantity, got {content!r}")
    parsed = {}
    for label, each in content.items():
        place = f"{what}: samples[{label!r}]"
        if not isinstance(each, dict) or set(each) != {"unit", "values"}:
            raise RecordError(f"{place} must have exactly unit and values, got {each!r}")
        if not isinstance(each["unit"], str) or not each["unit"].strip():
            raise RecordError(f"{place}: unit must be text, got {each['unit']!r}")
        values = each["values"]
        if not isinstance(values, list) or not values:
            raise RecordError(f"{place}: values must be a list of at least one number, got {values!r}")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise RecordError(f"{place}: every value must be a finite number, got {value!r}")
        parsed[label] = Samples(each["unit"], tuple(values))
    return parsed


def _path(device: str, name: str, folder: Path | None) -> Path:
    for argument, value in (("device", device), ("name", name)):
        if not _FILE_NAME.fullmatch(value):
            raise RecordError(
                f"{argument} {value!r} is not usable: lower-case words joined by '-', '_' or '.'"
            )
    return (folder or RESULTS) / device / f"{name}.json"
