"""Time on a GPU: events round each call, a cold cache, full queues, and rounds in which all take turns.

- Before each call a buffer larger than the L2 cache is overwritten, so that inputs come from memory. That
  leaves the lines that a kernel loaded with ``evict_last``: the next call, its own or a competitor's, finds
  them (on an H100 3 of 28 microseconds). So the driver is first asked to let them go.
- Then the GPU is kept waiting for as long as the CPU needs to enqueue the call. The events so see the time of
  the kernels alone, as in training, where the CPU is ahead; otherwise small kernels would be timed by how
  fast Python launches them. A sample for which the CPU took longer is taken again, with a longer wait.
- Competitors take turns, round by round, so that a clock that drifts hits all of them.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kernels._runtime import MIN_CAPABILITY

FLUSH_BYTES = 256 * 2**20
ROUNDS = 5
LEAST, MOST = 2, 20  # samples of a competitor in a round
LONGEST_WAIT = 4e-3
CYCLES = 2.0e9  # of the waiting kernel, per second, about


@dataclass
class Timed:
    """``run(prepare())`` with only ``run`` on the clock."""

    run: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None
    wait: float = 0.0  # seconds that the CPU needs to enqueue it
    cost: float = 0.0  # seconds of a whole sample


@functools.cache
def _let_lines_go() -> Callable[[], Any]:
    """``cudaCtxResetPersistingL2Cache`` of PyTorch's CUDA runtime; where there is none, nothing.

    GPUs before Ampere keep no such lines and may refuse, which PyTorch would report as an error of its next
    kernel.
    """
    major = (torch.version.cuda or "0").split(".")[0]
    if torch.cuda.get_device_capability() < MIN_CAPABILITY:
        return lambda: None
    try:
        return ctypes.CDLL(f"libcudart.so.{major}").cudaCtxResetPersistingL2Cache
    except (OSError, AttributeError):
        return lambda: None


class Clock:
    """Takes samples on the current GPU."""

    def __init__(self) -> None:
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def samples(self, timed: Timed, count: int) -> list[float]:
        """Seconds of ``count`` calls."""
        events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        while len(events) < count:
            given = timed.prepare()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()  # the next call is not in a queue: it acts at once
            _let_lines_go()()
            self.flush.zero_()
            began = time.perf_counter()
            torch.cuda._sleep(int(timed.wait * CYCLES))
            start.record()
            timed.run(given)
            end.record()
            took = time.perf_counter() - began
            del given
            if timed.wait < took and timed.wait < LONGEST_WAIT:
                timed.wait = min(1.5 * took, LONGEST_WAIT)
            else:
                events.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in events]

    def warm_up(self, timed: Timed) -> None:
        """Compile, fill the allocator's pools, and learn what a call costs."""
        timed.run(timed.prepare())
        torch.cuda.synchronize()
        waits = []
        for _ in range(3):
            given = timed.prepare()
            torch.cuda.synchronize()
            began = time.perf_counter()
            timed.run(given)
            waits.append(time.perf_counter() - began)
            torch.cuda.synchronize()
            del given
        timed.wait = min(1.5 * sorted(waits)[1] + 2e-5, LONGEST_WAIT)
        began = time.perf_counter()
        self.samples(timed, 2)
        timed.cost = (time.perf_counter() - began) / 2

    def compare(self, competitors: Mapping[str, Timed], seconds: float) -> dict[str, list[float]]:
        """About ``seconds`` of samples of each, in rounds; all have been warmed up."""
        found: dict[str, list[float]] = {name: [] for name in competitors}
        for _ in range(ROUNDS):
            for name, timed in competitors.items():
                count = int(seconds / ROUNDS / max(timed.cost, 1e-9))
                found[name] += self.samples(timed, min(max(count, LEAST), MOST))
        return found


def memory_of(timed: Timed) -> tuple[int, int]:
    """Bytes that one call takes at its peak beyond what it is given, and those that its results keep."""
    given = timed.prepare()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = timed.run(given)
    torch.cuda.synchronize()
    peak, after = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    del result, given
    return peak - before, after - before


def copy_bandwidth(clock: Clock, count: int = 10) -> list[float]:
    """Bytes per second, read and written together, of a copy of 1 GiB within the GPU's memory."""
    source = torch.randint(-128, 128, (2**30,), dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    timed = Timed(lambda _: target.copy_(source))
    clock.warm_up(timed)
    return [2 * source.numel() / each for each in clock.samples(timed, count)]


def matmul_rate(clock: Clock, count: int = 10, size: int = 8192) -> list[float]:
    """FLOP per second of a bfloat16 product of two random square matrices, PyTorch's."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    out = torch.empty_like(a)
    timed = Timed(lambda _: torch.mm(a, b, out=out))
    clock.warm_up(timed)
    return [2 * size**3 / each for each in clock.samples(timed, count)]
