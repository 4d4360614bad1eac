"""Cross-entropy: written out, and in chunks of tokens so that the logits of a batch never exist as a whole.

- Stable: the largest logit is taken out before exponentials, and sums run in fp32 or better.
- ``z_loss`` adds ``z_loss * logsumexp(logits)^2``, which keeps the normaliser near 1 (Chowdhery et al. 2022,
  arXiv:2204.02311, section 5).
- The chunked form computes the gradients while a chunk's logits are there, in the forward pass, so that three
  matrix products are done, as without chunks, and not four (Wijmans et al. 2024, arXiv:2411.09009, keep even
  less; Hsu et al. 2024, arXiv:2410.10989, section 3.2, are the closest).
- ``LossModule`` is what a trainer calls, wraps and compiles: tokens and targets in, a summed loss out.
"""

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmlib.resources.units import ArgumentError, check_choice, check_integer, check_number

IGNORE = -100  # the target that counts for nothing, as in torch.nn.functional.cross_entropy
CHUNK = 4096  # tokens whose logits exist at a time
REDUCTIONS = ("mean", "sum", "none")
FORMS = ("auto", "full", "chunked", "kernel")


def cross_entropy(
    logits: Float[Tensor, "N V"],
    targets: Int[Tensor, " N"],
    *,
    ignore_index: int = IGNORE,
    reduction: str = "mean",
    z_loss: float = 0.0,
) -> Tensor:
    """Cross-entropy in nats: ``logsumexp(logits) - logits[target]``, for each token or over all.

    Args:
        reduction: ``mean`` over the targets that count (NaN if there is none, as in PyTorch), ``sum``,
            or ``none`` for a value a token, 0 where the target is ignored.
        z_loss: weight of the squared logarithm of the normaliser.

    Raises:
        ArgumentError: for shapes that do not fit, an unknown reduction or a negative ``z_loss``.
    """
    _check(logits.shape[:-1], targets, reduction, z_loss)
    kept = targets != ignore_index
    logits = _wide(logits)
    largest = logits.detach().amax(-1, keepdim=True)
    shifted = logits - largest
    log_sum = shifted.exp().sum(-1).log()
    losses = log_sum - shifted.gather(-1, targets.where(kept, 0).unsqueeze(-1)).squeeze(-1)
    if z_loss:
        losses = losses + z_loss * (log_sum + largest.squeeze(-1)).square()
    return _reduce(losses.where(kept, 0.0), kept, reduction)


def linear_cross_entropy(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    *,
    ignore_index: int = IGNORE,
    reduction: str = "mean",
    z_loss: float = 0.0,
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """``cross_entropy(hidden @ weight.T, targets)`` with the logits of ``chunk`` tokens at a time.

    Beside the result it holds ``chunk * V`` logits and, when gradients are wanted, those of ``hidden`` and of
    ``weight`` (the latter summed over chunks in fp32).

    Args:
        reduction: ``mean`` or ``sum``.
        softcap: logits become ``softcap * tanh(logits / softcap)`` first (Gemma 2, arXiv:2408.00118).
        chunk: tokens.

    Raises:
        ArgumentError: for shapes that do not fit or an argument out of bounds.
    """
    _check(hidden.shape[:-1], targets, reduction, z_loss)
    check_choice("reduction", reduction, ("mean", "sum"))
    check_integer("chunk", chunk, 1, 2**40)
    if hidden.shape[-1] != weight.shape[-1]:
        raise ArgumentError(
            "weight", f"must be (V, {hidden.shape[-1]}) to fit hidden, got {tuple(weight.shape)}"
        )
    needed = (torch.is_grad_enabled() and (hidden.requires_grad, weight.requires_grad)) or (False, False)
    total = cast(
        Tensor,
        _ChunkedLoss.apply(hidden, weight, targets, ignore_index, z_loss, softcap or 0.0, chunk, *needed),
    )
    return total if reduction == "sum" else total / (targets != ignore_index).sum()


class _ChunkedLoss(torch.autograd.Function):
    """The summed loss of all chunks; its gradients are ready when forward ends, and backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        ignore_index: int,
        z_loss: float,
        softcap: float,
        chunk: int,
        needs_hidden: bool,
        needs_weight: bool,
    ) -> Tensor:
        wide = _wide_dtype(hidden.dtype)
        if torch.is_autocast_enabled(hidden.device.type):  # a custom function casts for itself
            cast_to = torch.get_autocast_dtype(hidden.device.type)
            products, matrix = hidden.to(cast_to), weight.to(cast_to)
        else:
            products, matrix = hidden, weight.to(hidden.dtype)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        # Nothing is written in place: some versions of torch.compile save a tensor as it was before.
        pieces: list[Tensor] = []
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            loss, slope = _chunk(products[rows] @ matrix.T, targets[rows], ignore_index, z_loss, softcap)
            total = total + loss
            if needs_hidden:
                pieces.append((slope @ matrix).to(hidden.dtype))
            if grad_weight is not None:
                grad_weight = grad_weight + slope.T @ products[rows]
        grad_hidden = torch.cat(pieces) if needs_hidden else None
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *outgoing: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        (scale,) = outgoing
        if grad_hidden is not None:
            grad_hidden = grad_hidden * scale.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * scale.to(grad_weight.dtype)).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, *(None,) * 7


def _chunk(
    logits: Tensor, targets: Tensor, ignore_index: int, z_loss: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """The summed loss of one chunk, and its gradient with respect to the logits before the soft cap.

    d loss / d logits = softmax * (1 + 2 z_loss logsumexp) - onehot(target); tanh' = 1 - tanh^2.
    """
    dtype = logits.dtype
    logits = _wide(logits)
    if softcap:
        squashed = torch.tanh(logits / softcap)
        logits = softcap * squashed
    kept = targets != ignore_index
    index = targets.where(kept, 0).unsqueeze(-1)
    largest = logits.amax(-1, keepdim=True)
    shifted = logits - largest
    log_sum = shifted.exp().sum(-1, keepdim=True).log()
    losses = (log_sum - shifted.gather(-1, index)).squeeze(-1)
    slope = (shifted - log_sum).exp()
    if z_loss:
        log_normaliser = log_sum + largest
        losses = losses + z_loss * log_normaliser.square().squeeze(-1)
        slope = slope * (1 + 2 * z_loss * log_normaliser)
    slope = slope.scatter_add(-1, index, torch.full_like(index, -1, dtype=slope.dtype))
    if softcap:
        slope = slope * (1 - squashed.square())
    return losses.where(kept, 0.0).sum(), (slope * kept.unsqueeze(-1)).to(dtype)


class LossModule(nn.Module):
    """A language model with its loss: what is wrapped for many GPUs, compiled, and called in training.

    ``form``: ``full`` makes all logits at once (the fastest where they fit, and what ``torch.compile`` fuses
    best), ``chunked`` as above, ``kernel`` calls ``kernels.linear_cross_entropy``; ``auto`` is ``kernel``
    for a model whose config says ``kernels="triton"`` or ``"triton-sdpa"``, and else ``chunked``.
    """

    def __init__(self, model: nn.Module, *, z_loss: float = 0.0, form: str = "auto", chunk: int = CHUNK):
        super().__init__()
        check_choice("loss", form, FORMS)
        self.model = model
        self.z_loss = z_loss
        self.chunk = chunk
        config = getattr(model, "config", None)
        if form == "auto":
            form = "kernel" if getattr(config, "triton", False) else "chunked"
        self.softcap: float | None = getattr(config, "logit_softcap", None)
        self.scale: float = getattr(config, "logit_scale", 1.0)
        if form == "kernel" and self.softcap:
            form = "chunked"  # the kernel knows no soft cap
        self.form = form
        if form == "kernel":
            # Not in forward: what is first imported while torch.compile traces may cut its graph in two.
            import kernels

            self.kernel = kernels.linear_cross_entropy

    def forward(
        self, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Sum of the cross-entropy over all targets that count, in nats; and the model's auxiliary loss."""
        model = cast(Any, self.model)
        hidden = model.hidden(tokens).flatten(0, 1)
        if self.scale != 1.0:
            hidden = hidden * self.scale
        weight, flat = model.head_weight, targets.flatten()
        z_loss = self.z_loss if self.training else 0.0
        if self.form == "chunked":
            loss = linear_cross_entropy(
                hidden,
                weight,
                flat,
                reduction="sum",
                z_loss=z_loss,
                softcap=self.softcap,
                chunk=self.chunk,
            )
        elif self.form == "kernel":
            loss = self.kernel(hidden, weight, flat, reduction="sum", z_loss=z_loss, chunk=self.chunk)
        else:
            logits = nn.functional.linear(hidden, weight.to(hidden.dtype))
            if self.softcap:
                logits = self.softcap * torch.tanh(_wide(logits) / self.softcap)
            # PyTorch's own, which inductor fuses so that no logits in fp32 are ever written
            loss = (
                cross_entropy(logits, flat, reduction="sum", z_loss=z_loss)
                if z_loss
                else nn.functional.cross_entropy(_wide(logits), flat, ignore_index=IGNORE, reduction="sum")
            )
        extra = model.auxiliary_loss() if hasattr(model, "auxiliary_loss") else None
        return loss, loss.new_zeros(()) if extra is None else torch.as_tensor(extra, device=loss.device)


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _wide(values: Tensor) -> Tensor:
    """In fp32, or in fp64 if they are."""
    return values.to(_wide_dtype(values.dtype))


def _reduce(losses: Tensor, kept: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / kept.sum()


def _check(rows: torch.Size, targets: Tensor, reduction: str, z_loss: float) -> None:
    check_choice("reduction", reduction, REDUCTIONS)
    check_number("z_loss", z_loss, 0, 1e3)
    if rows != targets.shape or len(rows) != 1:
        raise ArgumentError("targets", f"must be {tuple(rows)} to fit the rows, got {tuple(targets.shape)}")
    if targets.dtype not in (torch.int64, torch.int32):
        raise ArgumentError("targets", f"must be int64 or int32, got {targets.dtype}")
