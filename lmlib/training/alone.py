"""One process by itself: what a trainer asks of the way it is run, answered for the simplest way.

Everything that a trainer does differently over several GPUs goes through these methods; the ways to run that
``lmlib.training.parallel`` offers are subclasses.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmlib.training.checkpoint import CheckpointFolder
from lmlib.training.clip import clip_grad_norm
from lmlib.training.master import keep_unrounded
from lmlib.training.precision import Precision
from lmlib.training.state import read_state, write_state

COMPILE_MODES = ("reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Modes of inductor, given in place of a backend; all but the last record CUDA graphs."""


def compile_options(backend: str) -> dict[str, Any]:
    """Arguments of ``torch.compile`` for a backend's name or one of ``COMPILE_MODES``."""
    return {"mode" if backend in COMPILE_MODES else "backend": backend, "dynamic": False}


class Alone:
    """One process, one device."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints, logs and finishes checkpoints."""
        return self.rank == 0

    def prepare(self, model: nn.Module, policy: Precision) -> Precision:
        """Cast the model as the policy says, in place; gives the policy that the optimizer is to follow."""
        if policy.master:
            keep_unrounded(model)
        policy.prepare(model)
        return policy

    def wrap(self, module: nn.Module, model: nn.Module) -> nn.Module:
        """What to call instead of ``module``, the ``LossModule`` of ``model``."""
        return module

    def compile(self, module: nn.Module, model: nn.Module, backend: str) -> None:
        """Compile in place, so that parameters keep their names."""
        module.compile(**compile_options(backend))

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Around the passes of one micro-batch: gradients need to be exchanged after the last one only."""
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on each of them."""
        return values

    def same(self, value: float) -> float:
        """The main process's value, on each: clocks differ, and all must stop at the same step."""
        return value

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
        """Clip the gradient of the whole model; gives its norm before, () in fp32."""
        return clip_grad_norm(parameters, max_norm)

    def barrier(self) -> None:
        """Wait until every process is here."""

    def leave(self) -> None:
        """Part from the other processes, when nothing is to be exchanged any more."""

    def save(
        self,
        checkpoints: CheckpointFolder,
        step: int,
        state: Mapping[str, Any],
        metric: float | None,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Write one checkpoint; every process calls it."""
        with checkpoints.staging(step, state, metric) as path:
            self.write_state(path, model, optimizer)

    def write_state(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write the tensors of model and optimizer into the folder ``path``; every process calls it."""
        write_state(path, model, optimizer)

    def read_state(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Load what ``write_state`` wrote."""
        read_state(path, model, optimizer)
