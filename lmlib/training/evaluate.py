"""The loss over a text: each token but the first is predicted once, from what its window has before it."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from lmlib.resources.units import ArgumentError, check_integer
from lmlib.training.alone import Alone
from lmlib.training.dataset import TokenData
from lmlib.training.loss import IGNORE
from lmlib.training.precision import Precision, precision


@torch.no_grad()
def evaluate(
    module: nn.Module,
    data: TokenData,
    *,
    context_length: int,
    batch_size: int = 8,
    max_tokens: int | None = None,
    device: torch.device | str = "cpu",
    policy: Precision | str = "fp32",
    parallel: Alone | None = None,
) -> dict[str, float]:
    """Mean loss in nats per token, over windows that lie end to end.

    Args:
        module: a ``LossModule``, wrapped as it may be.
        batch_size: windows at a time in each process; all batches have one shape, so that nothing is compiled
            twice and all processes make the same number of calls.
        max_tokens: how many predictions, from the beginning; ``None``: all.

    Returns:
        ``loss`` and ``tokens``; over all data whose bytes are known also ``bytes`` and ``loss_per_byte``.

    Raises:
        ArgumentError: for less than two tokens, or a size below 1.
    """
    check_integer("context_length", context_length, 1, 2**40)
    check_integer("batch_size", batch_size, 1, 2**40)
    if len(data) < 2:
        raise ArgumentError("val_data", f"must have 2 tokens or more, has {len(data)}")
    predictions = len(data) - 1
    if max_tokens is not None:
        predictions = min(predictions, check_integer("max_tokens", max_tokens, 1, 2**62))
    policy, parallel = precision(policy), parallel or Alone()
    total = torch.zeros((), dtype=torch.float64, device=device)
    was_training = module.training
    module.eval()
    try:
        for tokens, targets in _batches(data, predictions, context_length, batch_size, parallel):
            with policy.computing(device):
                loss, _ = module(tokens.to(device), targets.to(device))
            total += loss.double()
    finally:
        module.train(was_training)
    nats = float(parallel.sum(total))
    found: dict[str, float] = {"loss": nats / predictions, "tokens": predictions}
    if data.n_bytes and predictions == len(data) - 1:
        found |= {"bytes": data.n_bytes, "loss_per_byte": nats / data.n_bytes}
    return found


def _batches(
    data: TokenData, predictions: int, length: int, batch_size: int, parallel: Alone
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's batches: every ``world_size``-th, all full, ignored targets where the data has ended."""
    windows = -(-predictions // length)
    per_round = batch_size * parallel.world_size
    for first in range(0, windows, per_round):
        start = (first + parallel.rank * batch_size) * length
        stop = min(start + batch_size * length, predictions)
        ids = np.asarray(data.ids[start : max(start, stop) + 1]).astype(np.int64)
        count = max(0, len(ids) - 1)
        tokens = np.zeros(batch_size * length, dtype=np.int64)
        targets = np.full(batch_size * length, IGNORE, dtype=np.int64)
        tokens[:count], targets[:count] = ids[:count], ids[1 : count + 1]
        yield (
            torch.from_numpy(tokens).view(batch_size, length),
            torch.from_numpy(targets).view(batch_size, length),
        )
