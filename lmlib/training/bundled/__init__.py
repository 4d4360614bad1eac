"""The small model that comes with the book, and its tokenizer.

4.5 million parameters, trained on stories of the micro-world by ``python -m lmlib.training.bundle``; what it
scored, on what, and how it was made stands in ``record.json``.

>>> from lmlib.training.bundled import load
>>> model, tokenizer = load()
>>> model.config.context_length
512
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from lmlib.architecture import ModelConfig, TransformerLM
from lmlib.tokenization import Tokenizer, formats
from lmlib.training.state import MODEL, load_model

FOLDER = Path(__file__).parent


def record(folder: Path | None = None) -> dict[str, Any]:
    """Recipe, hashes and scores of the bundled model, or of one made like it in another folder."""
    return json.loads(((folder or FOLDER) / "record.json").read_text(encoding="utf-8"))


def load(
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
) -> tuple[TransformerLM, Tokenizer]:
    """Model (in evaluation mode) and tokenizer. The weights are stored in bf16.

    ``folder`` holds another model that ``lmlib.training.bundle`` has made.

    Raises:
        ValueError: if a file is not the one that the record was made for.
    """
    folder = folder or FOLDER
    made = record(folder)
    for name, expected in made["files"].items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
            raise ValueError(
                f"{folder / name} is not the bundled model's: its sha256 differs from the record's"
            )
    model = TransformerLM(ModelConfig.from_dict(made["model"]))
    load_model(folder, model)
    assert MODEL in made["files"]
    return model.to(device, dtype).eval(), formats.load_hf(folder / "tokenizer.json")
