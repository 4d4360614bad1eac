"""The one record that every corpus of this package is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Document:
    """A text with what is known about it.

    `id` names it within its corpus. `log2_probability` is the logarithm of the probability with which the
    micro-world's generator makes exactly these choices (minus the bits that the document carries); None
    where that is not known. `labels` holds the truth about it: answers, planted duplicates, splits' keys.
    """

    text: str
    id: str = ""
    kind: str = "text"
    log2_probability: float | None = None
    labels: dict[str, Any] = field(default_factory=dict)
