"""Sampling, token by token, with a cache."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmlib.architecture.model import TransformerLM

_COLDEST = 1e-30  # what is below is the same in fp32: only the likeliest token is left


@torch.no_grad()
def generate(
    model: TransformerLM,
    tokens: Int[Tensor, "B T"],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | Collection[int] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "B N"]:
    """Continue each row of ``tokens``.

    Args:
        max_new_tokens: how many tokens to add; the whole must fit the model's context.
        temperature: what logits are divided by; 0 takes the likeliest token.
        top_k: draw from the k likeliest tokens only (Fan et al. 2018, arXiv:1805.04833).
        top_p: draw from the likeliest tokens that have this probability together (Holtzman et al. 2020,
            arXiv:1904.09751).
        stop: token or tokens that end a row. Ended rows are filled with the token that ended them, and
            when all rows have ended, no more is computed.
        generator: of the random numbers, on the tokens' device.

    Returns:
        Prompt and continuation, ``T`` to ``T + max_new_tokens`` tokens long.

    Raises:
        ValueError: for an argument out of bounds, with what is allowed.
    """
    _check(model, tokens, max_new_tokens, temperature, top_k, top_p)
    stops = torch.tensor(
        [stop] if isinstance(stop, int) else sorted(stop or ()), dtype=tokens.dtype, device=tokens.device
    )
    cache = model.new_cache(tokens.shape[1] + max_new_tokens)
    new, ended = tokens, torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in range(max_new_tokens):
        logits = model.logits(model.hidden(new, cache)[:, -1])  # B V, of the last token only
        chosen = draw(logits, temperature, top_k, top_p, generator).to(tokens.dtype)
        new = torch.where(ended[:, None], tokens[:, -1:], chosen)
        tokens = torch.cat((tokens, new), 1)
        if len(stops):
            ended = ended | torch.isin(new[:, 0], stops)
            if ended.all():
                break
    return tokens


def draw(
    logits: Float[Tensor, "B V"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "B 1"]:
    """One token for each row of logits; arguments as of ``generate``."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    # The largest becomes 0 first: a temperature near 0 then leaves it, where dividing would overflow.
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, _COLDEST)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # what likelier tokens have together
        ordered = ordered.masked_fill(before >= top_p, -math.inf)
        logits = torch.empty_like(logits).scatter(-1, order, ordered)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)


def _check(
    model: TransformerLM,
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    if tokens.ndim != 2 or not tokens.numel():
        raise ValueError(
            f"tokens: must be of shape (batch, length), neither 0, got shape {tuple(tokens.shape)}"
        )
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens: must be at least 0, got {max_new_tokens}")
    room = model.config.context_length - tokens.shape[-1]
    if room < 0:
        given, limit = tokens.shape[-1], model.config.context_length
        raise ValueError(f"tokens: {given} tokens exceed the model's context_length = {limit}")
    if max_new_tokens > room:
        raise ValueError(
            f"max_new_tokens: must be at most {room}, context_length = {model.config.context_length} less "
            f"the {tokens.shape[-1]} given tokens, got {max_new_tokens}"
        )
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: must be 0 or a positive number, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: must be above 0 and at most 1, got {top_p}")
