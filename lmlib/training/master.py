"""fp32 master weights for parameters in 16 bits, around any optimizer.

Micikevicius et al. 2018, arXiv:1710.03740, section 3.1: an update that is small beside its weight is lost
when it is added in 16 bits, and adds up when it is added in 32. The model computes with a rounded copy.

The copies have to start from weights that were never rounded (``keep_unrounded``). A rounded weight stands on
a point of the 16-bit grid, and the first steps of AdamW are all of one size, the learning rate: where that is
less than half the distance of two points, the weights that the model sees stay where they are, all of them,
and then move together, too far. Weights that stand anywhere between the points cross to the next one now and
then, and so move by the right amount on average.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

Groups = list[dict[str, Any]]
_KEPT = "unrounded"  # attribute of a parameter


def keep_unrounded(model: nn.Module) -> None:
    """Let the fp32 parameters remember their values, before the model is cast to 16 bits."""
    for parameter in model.parameters():
        if parameter.dtype == torch.float32:
            setattr(parameter, _KEPT, parameter.detach())


def take_unrounded(parameter: Tensor) -> Tensor | None:
    """What ``keep_unrounded`` kept, which is then forgotten; ``None`` for nothing, or if it still is fp32."""
    kept = parameter.__dict__.pop(_KEPT, None)
    return None if parameter.dtype == torch.float32 else kept


def forget_unrounded(model: nn.Module) -> None:
    """Drop what no optimizer has taken: it is as large as the master weights."""
    for parameter in model.parameters():
        take_unrounded(parameter)


class MasterWeights(torch.optim.Optimizer):
    """An optimizer over fp32 copies, whose results are rounded into the parameters after each step.

    The copies are what ``keep_unrounded`` kept, and of parameters without that what they are now.

    Args:
        groups: parameter groups with the model's own parameters.
        make: makes the optimizer proper from groups of the same options over the copies.

    Attributes:
        grad_factor: a tensor without axes that the next step multiplies every gradient by, in fp32, or
            ``None``. Clipping rounds no gradient to 16 bits this way; each step sets it back to ``None``.
    """

    def __init__(self, groups: Groups, make: Callable[[Groups], torch.optim.Optimizer]) -> None:
        self.grad_factor: Tensor | None = None
        self.parameters: list[Tensor] = list(chain.from_iterable(group["params"] for group in groups))
        self.masters: list[Tensor] = [_master(each) for each in self.parameters]
        copies = iter(self.masters)
        mirrored = [{**group, "params": [next(copies) for _ in group["params"]]} for group in groups]
        self.inner = make(mirrored)
        # Not super().__init__: groups and state are the inner optimizer's, and whoever sets the rate of a
        # group sets it there.
        self.param_groups = self.inner.param_groups
        self.state = self.inner.state
        self.defaults = self.inner.defaults

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Step in fp32, then round into the parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaled = self.grad_factor is not None
        for parameter, copy in zip(self.parameters, self.masters, strict=True):
            # A gradient that is fp32 already is the model's own, and is not to change.
            copy.grad = None if parameter.grad is None else parameter.grad.to(torch.float32, copy=scaled)
        wide = [copy.grad for copy in self.masters if copy.grad is not None]
        if self.grad_factor is not None and wide:
            torch._foreach_mul_(wide, self.grad_factor.to(wide[0].device, torch.float32))
        self.grad_factor = None
        self.inner.step()
        for copy in self.masters:
            copy.grad = None
        torch._foreach_copy_(self.parameters, self.masters)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the parameters."""
        for parameter in self.parameters:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state, with each parameter's ``master`` beside its moments."""
        document = self.inner.state_dict()
        state = {key: dict(value) for key, value in document["state"].items()}
        for index, copy in enumerate(self.masters):
            state.setdefault(index, {})["master"] = copy
        return {**document, "state": state}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that ``state_dict`` gave, and round its masters into the parameters."""
        state = {key: dict(value) for key, value in state_dict["state"].items()}
        for index, copy in enumerate(self.masters):
            copy.copy_(state[index].pop("master"))
        self.inner.load_state_dict(
            {**state_dict, "state": {key: value for key, value in state.items() if value}}
        )
        # load_state_dict makes new groups and a new state
        self.param_groups = self.inner.param_groups
        self.state = self.inner.state
        torch._foreach_copy_(self.parameters, self.masters)

    def __repr__(self) -> str:
        return f"MasterWeights({self.inner!r})"


def _master(parameter: Tensor) -> Tensor:
    kept = take_unrounded(parameter)
    return parameter.detach().to(torch.float32, copy=True) if kept is None else kept
