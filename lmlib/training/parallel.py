"""Several processes, one run: DDP and FSDP2 by one setting, started by ``torchrun``.

- ``ddp``: every process holds the whole model; gradients are averaged (Li et al. 2020, arXiv:2006.15704).
- ``fsdp2``: each process holds a share of every parameter, of its gradient and of the optimizer's state;
  blocks are gathered as they are needed (``fully_shard``; Zhao et al. 2023, arXiv:2304.11277). Under the
  policy ``bf16`` shares are fp32, as master weights are, and what is gathered is bf16. Checkpoints go
  through ``torch.distributed.checkpoint``, so that they can be read by another number of processes.

The loss of a process is its mean over its share of the batch, and shares are equal, so that the average of
gradients is the gradient of the whole batch: the loss curve is that of one process.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import load as load_shards
from torch.distributed.checkpoint import save as save_shards
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lmlib.resources.units import ArgumentError
from lmlib.training.alone import Alone, compile_options
from lmlib.training.checkpoint import CheckpointFolder
from lmlib.training.config import ParallelSettings
from lmlib.training.precision import Precision

SHARDS = "shards"


def join(settings: ParallelSettings, device: str = "auto") -> Alone:
    """Join the other processes of this run.

    Raises:
        ArgumentError: if this process was not started by ``torchrun``.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise ArgumentError(
            "parallel.kind",
            f"{settings.kind!r} needs several processes: torchrun --nproc-per-node N -m lmlib.training ...",
        )
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if gpu else "gloo")
    place = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    if settings.kind == "ddp":
        return Replicated(place)
    return Sharded(place, reshard=settings.reshard_after_forward)


class Together(Alone):
    """What every way of several processes shares."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on each of them."""
        values = values.clone()
        dist.all_reduce(values)
        return values

    def same(self, value: float) -> float:
        """The main process's value, on each."""
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)

    def barrier(self) -> None:
        """Wait until every process is here."""
        dist.barrier()

    def leave(self) -> None:
        """Part from the other processes, when nothing is to be exchanged any more.

        Let go of the trainer first. DDP's reducer owns the process group, too, and as its last owner it ends
        the group with Python's lock in hand: over gloo that waits for ever for a thread of the group which
        wants the lock to drop its last tensor (PyTorch's issue 56297; with torch 2.13 in one run of ten).
        """
        dist.barrier()
        time.sleep(0.1)  # a compiled trainer lives on: here the thread finds the lock free
        dist.destroy_process_group()

    def save(
        self,
        checkpoints: CheckpointFolder,
        step: int,
        state: Mapping[str, Any],
        metric: float | None,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """The main process begins and commits; all write in between, each what is its own."""
        partial = self._all_or_none(lambda: checkpoints.begin(step))
        self._all_or_none(lambda: self.write_state(partial, model, optimizer), everyone=True)
        self._all_or_none(lambda: checkpoints.commit(step, partial, state, metric))

    def _all_or_none(self, action: Any, everyone: bool = False) -> Any:
        """Run on the main process (or on all); if it fails anywhere, every process raises."""
        result, failure = None, ""
        try:
            if everyone or self.is_main:
                result = action()
        except Exception as error:
            failure = f"process {self.rank}: {type(error).__name__}: {error}"
        told: list[Any] = [None] * self.world_size
        dist.all_gather_object(told, (failure, result if self.is_main else None))
        failures = [each[0] for each in told if each[0]]
        if failures:
            raise RuntimeError("saving failed: " + "; ".join(failures))
        return told[0][1]


class Replicated(Together):
    """DDP."""

    def prepare(self, model: nn.Module, policy: Precision) -> Precision:
        """As of one process, from the main one's weights: DDP hands on those that are rounded, later."""
        if policy.master:
            for parameter in model.parameters():
                dist.broadcast(parameter.detach(), 0)
        return super().prepare(model, policy)

    def wrap(self, module: nn.Module, model: nn.Module) -> nn.Module:
        """The module whose backward pass averages gradients over the processes."""
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Exchange gradients in the last micro-batch only."""
        return nullcontext() if last else module.no_sync()  # type: ignore[union-attr, operator]

    def write_state(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """All processes hold the same: the main one writes."""
        if self.is_main:
            super().write_state(path, model, optimizer)


class Sharded(Together):
    """FSDP2."""

    def __init__(self, device: torch.device, reshard: bool = True) -> None:
        super().__init__(device)
        self.reshard = reshard
        self.gathered: torch.dtype | None = None  # as the shares are

    def prepare(self, model: nn.Module, policy: Precision) -> Precision:
        """Leave parameters in fp32: their shares are the master weights, and are rounded when gathered."""
        if not policy.master:
            return super().prepare(model, policy)
        self.gathered = policy.parameters
        return replace(policy, parameters=torch.float32)

    def wrap(self, module: nn.Module, model: nn.Module) -> nn.Module:
        """Cut each block, then what is left (embedding, norm, head), over the processes; in place."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(self.device.type, (self.world_size,))
        # Gradients are added up over the processes in the type that the optimizer reads.
        types = MixedPrecisionPolicy(param_dtype=self.gathered, reduce_dtype=torch.float32)
        model.chained = False  # type: ignore[assignment]  # a block's bias is cut up again when it has run
        for block in model.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=mesh, reshard_after_forward=self.reshard, mp_policy=types)
        fully_shard(module, mesh=mesh, reshard_after_forward=False, mp_policy=types)
        return module

    def compile(self, module: nn.Module, model: nn.Module, backend: str) -> None:
        """Compile block by block: what gathers parameters stays outside of the graphs."""
        for block in model.blocks:  # type: ignore[union-attr]
            block.compile(**compile_options(backend))

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Reduce gradients in the last micro-batch only."""
        return self._exchanging(module, last)

    @contextmanager
    def _exchanging(self, module: Any, last: bool) -> Iterator[None]:
        module.set_requires_gradient_sync(last)
        yield

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
        """Clip by the norm of all shares together."""
        gradients = [each.grad for each in parameters if each.grad is not None]
        locals_ = [each.to_local() if isinstance(each, DTensor) else each for each in gradients]
        squares = torch.stack([each.float().square().sum() for each in locals_]).sum()
        norm = self.sum(squares).sqrt()
        if max_norm is not None:
            torch._foreach_mul_(locals_, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def write_state(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Every process writes its shares."""
        weights, state = get_state_dict(model, optimizer)
        save_shards({"model": weights, "optimizer": state}, checkpoint_id=path / SHARDS)

    def read_state(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Every process reads what its shares need, whoever wrote it."""
        weights, state = get_state_dict(model, optimizer)
        load_shards({"model": weights, "optimizer": state}, checkpoint_id=path / SHARDS)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)


def full_state(path: Path) -> dict[str, Tensor]:
    """The whole weights of a sharded checkpoint, in one process: what to load for inference."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory() as folder:
        dcp_to_torch_save(path / SHARDS, Path(folder) / "whole.pt")
        return torch.load(Path(folder) / "whole.pt", weights_only=False)["model"]
