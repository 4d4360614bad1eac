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


def record() -> dict[str, Any]:
    """Recipe, hashes and scores of the bundled model."""
    return json.loads((FOLDER / "record.json").read_text(encoding="utf-8"))


def load(
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[TransformerLM, Tokenizer]:
    """Model (in evaluation mode) and tokenizer. The weights are stored in bf16.

    Raises:
        ValueError: if a file is not the one that the record was made for.
    """
    made = record()
    for name, expected in made["files"].items():
        if hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() != expected:
            raise ValueError(
                f"{FOLDER / name} is not the bundled model's: its sha256 differs from the record's"
            )
    model = TransformerLM(ModelConfig.from_dict(made["model"]))
    load_model(FOLDER, model)
    assert MODEL in made["files"]
    return model.to(device, dtype).eval(), formats.load_hf(FOLDER / "tokenizer.json")
