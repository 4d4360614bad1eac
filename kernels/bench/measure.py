"""One kernel at one shape beside its peers: checked first, then timed. What comes out is a `Case`."""

from __future__ import annotations

import gc
import statistics
from dataclasses import dataclass, field
from typing import Any

import torch

from kernels.bench import check
from kernels.bench.case import BACKWARD, BOTH, FORWARD, STEP, Bench, Function, Shape, UnavailableError
from kernels.bench.timing import Clock, Timed, memory_of

OURS = "ours"
FAILURES = (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, ImportError)


@dataclass
class Case:
    """What was found about one kernel at one shape."""

    bench: Bench
    shape: Shape
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    """Relative error against float64 by competitor and quantity."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Competitors that were not timed, and why."""
    same_bits: bool | None = None
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """Raw samples by competitor and phase."""
    peak: dict[str, int] = field(default_factory=dict)
    """Bytes beyond the inputs at the peak of one call, forward and backward where there is one."""
    kept: dict[str, int] = field(default_factory=dict)
    """Of those, the bytes of results and gradients."""
    copy_rate: float | None = None
    matmul_rate: float | None = None

    @property
    def name(self) -> str:
        """Kernel and shape."""
        return f"{self.bench.name}, {self.shape.label}"

    @property
    def wrong(self) -> str | None:
        """What is wrong with our kernel, or None."""
        return self.left_out.get(OURS)

    def fraction(self, competitor: str, phase: str) -> float | None:
        """Share of the machine's copy bandwidth or matmul rate, whichever bounds the kernel."""
        samples, work = self.seconds.get((competitor, phase)), self.bench.work_of(self.shape).get(phase)
        rate = self.copy_rate if self.bench.bound == "copy" else self.matmul_rate
        if not samples or not work or not rate:
            return None
        done = work.bytes if self.bench.bound == "copy" else work.flops
        return done / statistics.median(samples) / rate


def _why(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def verify(case: Case, device: str, seed: int, with_peers: bool) -> dict[str, Function]:
    """Check everybody, note errors and reasons, and return those that are right, ours first."""
    bench, shape = case.bench, case.bench.check(case.shape)
    right = check.expected(bench, shape, device, seed)
    functions: dict[str, Function] = {}
    try:
        case.errors[OURS], case.same_bits = check.check_ours(bench, shape, device, seed, right)
        worst = max(case.errors[OURS].values())
        limit = bench.limit(shape.dtype)
        if worst > limit:
            case.left_out[OURS] = f"wrong: relative error {worst:.2g}, allowed {limit:.2g}, seed {seed}"
        else:
            functions[OURS] = bench.ours
    except FAILURES as error:
        case.left_out[OURS] = _why(error)
    for name, factory in bench.peers.items() if with_peers else ():
        _release()
        try:
            function = factory()
            found = case.errors[name] = check.check_peer(bench, function, shape, device, seed, right)
            worst = max(found.values())
            if worst > check.PEER_SLACK * bench.limit(shape.dtype):
                case.left_out[name] = f"computes something else: relative error {worst:.2g}"
            else:
                functions[name] = function
        except UnavailableError as reason:
            case.left_out[name] = str(reason)
        except FAILURES as error:
            case.left_out[name] = _why(error)
    return functions


def one_phase(bench: Bench, function: Function, inputs: dict[str, Any], phase: str, seed: int) -> Timed:
    """One phase of one competitor, ready for the clock."""
    if phase == STEP:
        step = function(**inputs)
        return Timed(lambda _: step())
    if phase == FORWARD:
        return Timed(lambda _: function(**inputs))
    wanted = check.leaves(bench, inputs)
    sent = check.upstream(check.outputs(function(**inputs)), seed)
    scalar = len(sent) == 1 and sent[0].dim() == 0

    def backward(results: tuple[torch.Tensor, ...]) -> Any:
        return torch.autograd.grad(results, wanted, None if scalar else sent)

    if phase == BACKWARD:
        return Timed(backward, prepare=lambda: check.outputs(function(**inputs)))
    return Timed(lambda _: backward(check.outputs(function(**inputs))))


def time_all(case: Case, functions: dict[str, Function], clock: Clock, seed: int, seconds: float) -> None:
    """Samples of every phase, all competitors in turns; then memory, one by one."""
    bench = case.bench
    widest = BOTH if BOTH in bench.phases else bench.phases[-1]
    inputs = {name: check.draw(bench, case.shape, "cuda", seed) for name in functions}
    for phase in bench.phases:
        ready: dict[str, Timed] = {}
        for name in list(functions):
            try:
                timed = one_phase(bench, functions[name], inputs[name], phase, seed)
                clock.warm_up(timed)
                if phase == widest:
                    case.peak[name], case.kept[name] = memory_of(timed)
                ready[name] = timed
            except FAILURES as error:
                case.left_out[name] = _why(error)
                functions.pop(name)
                _release()
        for name, samples in clock.compare(ready, seconds).items():
            case.seconds[name, phase] = samples


def measure(bench: Bench, shape: Shape, clock: Clock | None, seed: int, seconds: float) -> Case:
    """Check one kernel at one shape and, with a clock, time it beside its peers; not a wrong kernel."""
    case = Case(bench, shape)
    torch._dynamo.reset()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    functions = verify(case, device, seed, with_peers=clock is not None)
    _release()
    if clock is not None and functions:
        time_all(case, functions, clock, seed, seconds)
    _release()
    return case
