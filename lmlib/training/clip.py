"""Clipping the gradient to a global norm (Pascanu et al. 2013, arXiv:1211.5063, algorithm 1)."""

from collections.abc import Iterable
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from lmlib.resources.units import check_number

EPSILON = 1e-6  # PyTorch's: a gradient of zero is not divided by zero


def global_norm(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The 2-norm of all values together, in fp32 or better; 0 for no tensors."""
    tensors = list(tensors)
    if not tensors:
        return torch.zeros(())
    kinds = {(each.dtype, each.device) for each in tensors}
    wide = reduce(torch.promote_types, (each.dtype for each in tensors), torch.float32)
    if len(kinds) == 1:  # a few launches for all
        norms = list(torch._foreach_norm(tensors, 2, dtype=wide))
    else:
        norms = [torch.linalg.vector_norm(each, dtype=wide).to(tensors[0].device) for each in tensors]
    return torch.linalg.vector_norm(torch.stack(norms))


def clip_factor(norm: Float[Tensor, ""], max_norm: float) -> Float[Tensor, ""]:
    """What gradients of that global norm are multiplied by to have at most ``max_norm``; 1 if they have.

    Raises:
        ArgumentError: for a ``max_norm`` that is not positive.
    """
    check_number("max_norm", max_norm, 1e-30, 1e30)
    return (max_norm / (norm + EPSILON)).clamp(max=1.0)


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float | None) -> Float[Tensor, ""]:
    """Scale all gradients in place so that their global norm is at most ``max_norm``; return what it was.

    Nothing waits for a GPU: the factor stays a tensor, 1 where nothing is to be clipped. ``None`` only
    measures.

    Raises:
        ArgumentError: for a norm that is not positive.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = global_norm(gradients)
    if max_norm is not None:
        factor = clip_factor(norm, max_norm)
        if gradients:
            # in the gradients' type where they share one: only then is it a single launch
            one = len({each.dtype for each in gradients}) == 1
            torch._foreach_mul_(
                gradients, factor.to(gradients[0].device, gradients[0].dtype if one else None)
            )
    return norm
