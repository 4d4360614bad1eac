"""One rank of a pipeline run by ``torch.distributed.pipelining``; writes what autograd kept on it, and when.

Started by ``test_pipeline_schedules`` with torchrun, once for all cases: starting Python and PyTorch takes
longer than the pipelines. The stages are made of the reference whose saved bytes the ledgers match alone.
"""

import json
import sys
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
)

from lmlib.book.measure.reference import Reference, again
from lmlib.resources.model import MLP, Attention, Layer, Model
from lmlib.resources.profile import Profile

MODEL = Model("llama", 32, 300, 16, (Layer(Attention(4, 2, 8), MLP(80)),) * 8, False)
MICRO_BATCH, LENGTH = 2, 16


class Alive:
    """Bytes that autograd holds at this moment, each storage once, without ``left_out``."""

    def __init__(self, left_out: list[Tensor]) -> None:
        self.left_out = {tensor.untyped_storage()._cdata for tensor in left_out}
        self.holders: dict[int, int] = {}
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> "Kept":
        kept = Kept(tensor.detach())
        storage = tensor.untyped_storage()
        if storage._cdata not in self.left_out:
            holders = self.holders.get(storage._cdata, 0)
            self.holders[storage._cdata] = holders + 1
            self.now += 0 if holders else storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(kept, self.release, storage._cdata, storage.nbytes())
        return kept

    def release(self, key: int, nbytes: int) -> None:
        self.holders[key] -= 1
        if not self.holders[key]:
            self.now -= nbytes


class Kept:
    """What autograd holds in place of a saved tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Chunk(nn.Module):
    """Consecutive blocks of the reference, with its embedding or its last norm at an end of the model."""

    def __init__(self, net: Reference, index: int, chunks: int) -> None:
        super().__init__()
        self.whole = net.profile.recompute == "full"
        each = len(net.blocks) // chunks
        self.blocks = net.blocks[index * each : (index + 1) * each]
        self.embedding = net.embedding if index == 0 else nn.Identity()
        self.norm = net.norm if index == chunks - 1 else nn.Identity()
        for name in ("cos", "sin", "mask"):
            self.register_buffer(name, getattr(net, name), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            tables = (self.cos, self.sin, self.mask)
            x = again(block, x, *tables) if self.whole else block(x, *tables)
        return self.norm(x)


def run(
    kind: str, pp: int, vpp: int, microbatches: int, precision: str, recompute: str, group: Any
) -> dict[str, int]:
    """One step of one schedule on this rank: the most that was in flight and kept."""
    torch.manual_seed(0)
    here = dist.get_rank(group)
    net = Reference(MODEL, Profile(precision=precision, recompute=recompute, device="cpu"), LENGTH, "cpu")
    chunks = [Chunk(net, index, pp * vpp) for index in range(here, pp * vpp, pp)]
    stages = [
        PipelineStage(chunk, here + number * pp, pp * vpp, torch.device("cpu"), group=group)
        for number, chunk in enumerate(chunks)
    ]
    in_flight = [0, 0]  # now, most
    for stage in stages:
        watch(stage, in_flight)
    ids = torch.randint(MODEL.vocab_size, (microbatches * MICRO_BATCH, LENGTH))
    alive = Alive([ids, *net.parameters(), *net.buffers()])
    options = {"n_microbatches": microbatches, "loss_fn": lambda hidden, wanted: net.loss(hidden, wanted)[0]}
    if kind == "interleaved":
        schedule: Any = ScheduleInterleaved1F1B(stages, **options)
    else:
        schedule = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[kind](stages[0], **options)
    arguments = (ids,) if here == 0 else ()
    targets = {"target": ids} if here == pp - 1 else {}
    schedule.step(*arguments, **targets, return_outputs=False)  # the first step finds out shapes
    in_flight[1] = 0
    with torch.autograd.graph.saved_tensors_hooks(alive.pack, lambda kept: kept.tensor):
        schedule.step(*arguments, **targets, return_outputs=False)
    return {"in_flight": in_flight[1], "kept": alive.most, "left": alive.now}


def watch(stage: PipelineStage, in_flight: list[int]) -> None:
    """Count micro-batches that have gone forward through a stage and not yet backward."""
    ahead, back = stage.forward_one_chunk, stage.backward_one_chunk

    def forward_one_chunk(*arguments: Any, **options: Any) -> Any:
        in_flight[0] += 1
        in_flight[1] = max(in_flight)
        return ahead(*arguments, **options)

    def backward_one_chunk(*arguments: Any, **options: Any) -> Any:
        done = back(*arguments, **options)
        in_flight[0] -= 1
        return done

    stage.forward_one_chunk = forward_one_chunk  # type: ignore[method-assign]
    stage.backward_one_chunk = backward_one_chunk  # type: ignore[method-assign]


def main() -> None:
    """``pipeline_worker.py CASES FOLDER``: runs cases on the first ``pp`` ranks each; a file a rank."""
    cases = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    with ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        groups = {pp: dist.new_group(list(range(pp))) for pp in sorted({case[1] for case in cases})}
        found = [run(*case, group=groups[case[1]]) if dist.get_rank() < case[1] else None for case in cases]
        out = Path(sys.argv[2]) / f"{dist.get_rank()}.json"
        out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
