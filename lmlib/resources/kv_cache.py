"""Bytes of the key/value cache.

- A token leaves ``2 * n_kv_heads * head_dim`` values in a layer, or the latent and the rotated key where
  attention is latent (arXiv:2405.04434, table 1).
- A sliding-window layer keeps the last ``window`` tokens and no more.
"""

from collections.abc import Iterator

from lmlib.resources.ledger import Ledger, Term, derive
from lmlib.resources.model import Attention, Model
from lmlib.resources.parameters import group_names
from lmlib.resources.sources import CACHE, LATENT_CACHE
from lmlib.resources.units import DTYPE_BYTES, LARGEST_COUNT, check_choice, check_integer


def _terms(model: Model, start: str, unit: str, dtype: str, **symbols: int) -> Iterator[Term]:
    check_choice("dtype", dtype, DTYPE_BYTES)
    for name, (layer, count) in zip(group_names(model), model.groups, strict=True):
        attention = layer.attention
        if isinstance(attention, Attention):
            values = "2 * n_kv_heads * head_dim"
            sizes, source = {"n_kv_heads": attention.n_kv_heads, "head_dim": attention.head_dim}, CACHE
        else:
            values = "(kv_lora_rank + rope_head_dim)"
            sizes = {"kv_lora_rank": attention.kv_lora_rank, "rope_head_dim": attention.rope_head_dim}
            source = LATENT_CACHE
        kept = start
        if attention.window is not None and "tokens" in symbols:
            kept = start.replace("tokens", "min(tokens, window)")
            sizes["window"] = attention.window
        formula = f"layers * {kept}{values} * value_bytes"
        yield derive(
            name, formula, unit, source, layers=count, value_bytes=DTYPE_BYTES[dtype], **sizes, **symbols
        )


def per_token(model: Model, dtype: str = "bf16") -> Ledger:
    """Bytes that one more token adds while every window still has room."""
    return Ledger("KV cache per token", "bytes/token", tuple(_terms(model, "", "bytes/token", dtype)))


def cache(model: Model, tokens: int, batch: int = 1, dtype: str = "bf16") -> Ledger:
    """Bytes of the cache after ``tokens`` tokens in each of ``batch`` sequences.

    Raises:
        ArgumentError: for a size out of bounds or an unknown dtype.
    """
    check_integer("tokens", tokens, 0, LARGEST_COUNT)
    check_integer("batch", batch, 1, LARGEST_COUNT)
    entries = tuple(_terms(model, "batch * tokens * ", "bytes", dtype, batch=batch, tokens=tokens))
    return Ledger("KV cache", "bytes", entries)
