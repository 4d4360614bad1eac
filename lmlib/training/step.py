"""One optimizer step: forward and backward of each micro-batch, clip, update."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from lmlib.training.alone import Alone
from lmlib.training.clip import clip_factor
from lmlib.training.loss import IGNORE
from lmlib.training.precision import Precision

Batch = tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]  # tokens, targets


def train_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    *,
    policy: Precision,
    clip_norm: float | None = 1.0,
    parallel: Alone | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Update the parameters once on all micro-batches together.

    The summed loss of each is divided by the number of targets of *all*, so that the gradient is that of the
    whole batch, however it is cut (dividing by each one's own and then by their number would weigh targets
    by the company they are in).

    Args:
        module: a ``LossModule``, wrapped and compiled as the run has it.

    Returns:
        The mean loss over the targets of this process, and the gradient's norm before clipping: tensors on
        the device, which nobody has waited for.
    """
    parallel = parallel or Alone()
    device = batches[0][0].device
    targets_in_all = torch.stack([(targets != IGNORE).sum() for _, targets in batches]).sum()
    total = torch.zeros((), device=device)
    optimizer.zero_grad(set_to_none=True)
    for number, (tokens, targets) in enumerate(batches, 1):
        exchanging: AbstractContextManager[Any] = parallel.accumulating(module, number == len(batches))
        with exchanging:
            with policy.computing(device):
                loss, auxiliary = module(tokens, targets)
            loss = loss / targets_in_all
            both = loss + auxiliary / len(batches)
            (both if scaler is None else scaler.scale(both)).backward()
        total += loss.detach()
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [each for each in module.parameters() if each.requires_grad]
    if clip_norm is not None and scaler is None and hasattr(optimizer, "grad_factor"):
        norm = parallel.clip(parameters, None)
        optimizer.grad_factor = clip_factor(norm, clip_norm)  # it scales as it reads
    else:
        norm = parallel.clip(parameters, clip_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return total, norm


def checkpoint_blocks(model: Any, keep: Sequence[Any] = ()) -> None:
    """Make each block keep its input only and compute the rest again in backward, in place.

    Chen et al. 2016, arXiv:1604.06174, with a segment a layer. Parameters keep their names. Done again, it
    replaces what was done before.

    Args:
        keep: operators (``torch.ops...default``) whose results are kept as well, and not computed again.
    """
    model.chained = False  # a block that hands on two tensors would have two kept
    # Only where it is asked for: torch.compile refuses a context function that does nothing.
    context: dict[str, Any] = (
        {"context_fn": partial(create_selective_checkpoint_contexts, list(keep))} if keep else {}
    )
    for block in model.blocks:
        block.__dict__.pop("forward", None)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **context)
