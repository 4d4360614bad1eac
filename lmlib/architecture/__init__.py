"""The transformer, choice by choice: from GPT-2 to Llama, Qwen, Mixtral, Gemma and DeepSeek.

Names are imported when first used: a configuration needs no torch.

>>> from lmlib.architecture import ModelConfig
>>> ModelConfig(vocab_size=256, context_length=64, d_model=64, n_layers=2, n_heads=4).d_ff
192
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmlib.architecture.cache import KVCache
    from lmlib.architecture.config import ModelConfig
    from lmlib.architecture.generation import generate
    from lmlib.architecture.huggingface import load_pretrained, save_pretrained
    from lmlib.architecture.inspection import attention_weights
    from lmlib.architecture.model import TransformerLM
    from lmlib.architecture.parts import MLAConfig, MoEConfig, RopeScaling

_PLACES = {
    "KVCache": "cache",
    "MLAConfig": "parts",
    "MoEConfig": "parts",
    "ModelConfig": "config",
    "RopeScaling": "parts",
    "TransformerLM": "model",
    "attention_weights": "inspection",
    "generate": "generation",
    "load_pretrained": "huggingface",
    "save_pretrained": "huggingface",
}

__all__ = [
    "KVCache",
    "MLAConfig",
    "MoEConfig",
    "ModelConfig",
    "RopeScaling",
    "TransformerLM",
    "attention_weights",
    "generate",
    "load_pretrained",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
