"""Mixed precision as an explicit policy: what the parameters are, what products are computed in.

| policy | parameters | products | master weights | used for |
|---|---|---|---|---|
| ``fp32`` | fp32 | fp32 | | CPU, and as the reference |
| ``tf32`` | fp32 | fp32 storage, 10 bits of fraction inside matrix products | | Ampere GPUs and later |
| ``bf16`` | bf16 | bf16 | fp32, in the optimizer | the least memory traffic |
| ``bf16-autocast`` | fp32 | bf16 where PyTorch finds it safe | the parameters | the usual choice |
| ``fp16-autocast`` | fp32 | fp16 likewise, with a scaled loss | the parameters | cards without bf16 |

Micikevicius et al. 2018, arXiv:1710.03740, sections 3.1 (master weights) and 3.2 (loss scaling). bf16 has the
exponent range of fp32, so that its gradients do not underflow and the loss needs no scale; but its 8 bits of
fraction lose an update that is smaller than 1/256 of the weight, so it needs the master weights.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from lmlib.resources.units import ArgumentError, check_choice


@dataclass(frozen=True)
class Precision:
    """A policy; take one from ``precision(name)``.

    Args:
        name: as in the table above.
        parameters: dtype of the model's parameters.
        autocast: dtype of products where parameters are in another.
        peak: the name of the units in a hardware table (``lmlib.resources.hardware``) that do the products.
        tf32: whether fp32 products may round their inputs to 10 bits of fraction.
    """

    name: str
    parameters: torch.dtype
    autocast: torch.dtype | None
    peak: str
    tf32: bool = False

    @property
    def master(self) -> bool:
        """Whether the optimizer keeps fp32 copies of the parameters."""
        return self.parameters != torch.float32

    @property
    def scaled(self) -> bool:
        """Whether the loss is scaled, so that small gradients do not underflow."""
        return self.autocast == torch.float16

    def prepare(self, model: nn.Module) -> nn.Module:
        """Cast the model's floating-point parameters and buffers, in place."""
        if self.parameters != torch.float32:
            model.to(self.parameters)
        return model

    def computing(self, device: torch.device | str) -> AbstractContextManager[object]:
        """The context in which forward passes run."""
        kind = torch.device(device).type
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(kind, dtype=self.autocast)

    def scaler(self, device: torch.device | str) -> torch.amp.GradScaler | None:
        """The loss scaler, where the policy needs one."""
        return torch.amp.GradScaler(torch.device(device).type) if self.scaled else None

    def check(self, device: torch.device | str) -> None:
        """Refuse a device that cannot do this.

        Raises:
            ArgumentError: for bf16 on a GPU without units for it; says what to use instead.
        """
        low = torch.bfloat16 in (self.parameters, self.autocast)
        if low and torch.device(device).type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ArgumentError(
                "precision", f"{self.name} needs bf16, which this GPU lacks; use fp16-autocast or fp32"
            )


_ALL = (
    Precision("fp32", torch.float32, None, "fp32"),
    Precision("tf32", torch.float32, None, "tf32", tf32=True),
    Precision("bf16", torch.bfloat16, None, "bf16"),
    Precision("bf16-autocast", torch.float32, torch.bfloat16, "bf16"),
    Precision("fp16-autocast", torch.float32, torch.float16, "fp16"),
)
POLICIES = {policy.name: policy for policy in _ALL}


def precision(policy: "str | Precision") -> Precision:
    """The policy of that name.

    Raises:
        ArgumentError: for an unknown name; the message lists the known ones.
    """
    if isinstance(policy, Precision):
        return policy
    check_choice("precision", policy, POLICIES)
    return POLICIES[policy]
