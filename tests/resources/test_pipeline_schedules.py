"""Pipelines that PyTorch itself runs, over gloo: what each stage keeps, to the byte, and how many at once."""

import importlib.util
import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from lmlib.resources.layout import Layout
from lmlib.resources.optimizer import Optimizer
from lmlib.resources.pipeline_memory import _in_flight, _places, stage_peaks
from lmlib.resources.profile import Profile

WORKER = Path(__file__).with_name("pipeline_worker.py")
KEPT = "kept activations of micro-batches in flight"
LOSS = 4  # bytes of the loss, which our timeline counts as held by Python, and autograd does not save
CASES = [  # schedule, pp, vpp, micro-batches, precision, recompute
    ("gpipe", 4, 1, 6, "fp32", "none"),
    ("gpipe", 2, 1, 3, "bf16", "full"),
    ("1f1b", 4, 1, 8, "fp32", "none"),
    ("1f1b", 4, 1, 4, "bf16", "none"),
    ("1f1b", 2, 1, 5, "bf16", "core"),
    ("interleaved", 4, 2, 8, "fp32", "none"),
    ("interleaved", 4, 2, 4, "bf16", "full"),
    ("interleaved", 2, 4, 8, "bf16", "none"),
    ("interleaved", 2, 2, 2, "bf16", "core"),
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What four processes found: for each rank, a result for each case."""
    folder = tmp_path_factory.mktemp("pipelines")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    command += [str(WORKER), json.dumps(CASES), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(4)]


@lru_cache
def worker():
    spec = importlib.util.spec_from_file_location("pipeline_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.distributed
@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(map(str, case)) for case in CASES])
def test_what_a_stage_keeps_is_what_autograd_keeps(ran, number):
    """Ids are left out of both: PyTorch's micro-batches are views of the whole batch."""
    kind, pp, vpp, microbatches, precision, recompute = CASES[number]
    layout = Layout(
        pp=pp, vpp=vpp, microbatches=microbatches, schedule="gpipe" if kind == "gpipe" else "1f1b"
    )
    profile, given = Profile(precision=precision, recompute=recompute, device="cpu"), worker()
    stages = stage_peaks(given.MODEL, layout, profile, Optimizer(), given.MICRO_BATCH, given.LENGTH)
    for rank, stage in enumerate(stages):
        found = ran[rank][number]
        assert found["in_flight"] == layout.in_flight(rank)
        losses = layout.in_flight(rank) if vpp == 1 else 1
        held = LOSS * losses if rank == pp - 1 else 0
        assert found["kept"] == stage.ledger[KEPT].value - held
        assert found["left"] == 0


@pytest.mark.parametrize("pp", [2, 3, 4, 8])
@pytest.mark.parametrize("vpp", [2, 3, 5])
@pytest.mark.parametrize("rounds", [1, 2, 7])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 9), (9, 1, 1, 1, 1), (2, 1, 7, 3, 5)])
def test_the_fullest_moment_is_among_the_places_tried(pp, vpp, rounds, sizes):
    """Against a played order of one stage: forward passes until it is full, then in turns."""
    layout = Layout(pp=pp, vpp=vpp, microbatches=pp * rounds)
    passes = layout.microbatches * vpp
    for stage in range(pp):
        held, most, forward = [0] * vpp, (0, []), 0
        for back in range(passes):
            while forward < min(passes, back + layout.in_flight(stage)):
                held[forward // pp % vpp] += 1
                forward += 1
            most = max(most, (sum(a * b for a, b in zip(held, sizes, strict=False)), list(held)))
            assert _in_flight(layout, stage, back) == held
            held[vpp - 1 - back // pp % vpp] -= 1
        assert held == [0] * vpp
        tried = [_in_flight(layout, stage, place) for place in _places(layout, stage)]
        assert most[0] == max(sum(a * b for a, b in zip(each, sizes, strict=False)) for each in tried)
