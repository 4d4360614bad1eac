"""The exercise on benchmarking: a table of attention over lengths and head dimensions.

It is checked on a pretended GPU, whose times are known exactly, then on the machine that there is.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmlib.book.exercises.kernels_checks import GPU, Inputs, slip
from lmlib.book.exercises.machinery import Case, Exercise, Wrong

LENGTHS = [2**power for power in range(7, 17)]  # 128 to 65,536
HEAD_DIMS = [16, 32, 64, 128]


# ---- the exercise's own functions


def wait_for_gpu() -> None:
    """Return when the GPU has done everything that was enqueued; at once where there is none."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def attention_inputs(length: int, head_dim: int, heads: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Fresh q, k and v (1, heads, length, head_dim) that require gradients; bfloat16 on a GPU."""
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    q, k, v = torch.randn(3, 1, heads, length, head_dim, device=device, dtype=dtype)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def seconds_of_one(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    qkv: tuple[Tensor, Tensor, Tensor],
    phase: str,
    clock: Callable[[], float],
    synchronize: Callable[[], None],
) -> float:
    if phase == "backward":
        out = function(*qkv)
        upstream = torch.ones_like(out)
    synchronize()
    began = clock()
    if phase == "backward":
        torch.autograd.grad(out, qkv, upstream)
    else:
        function(*qkv)
    synchronize()
    return clock() - began


def benchmark_table(
    functions: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]],
    lengths: list[int],
    head_dims: list[int],
    inputs: Callable[[int, int], tuple[Tensor, Tensor, Tensor]],
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], None] = wait_for_gpu,
    warmups: int = 3,
    samples: int = 5,
) -> list[dict[str, Any]]:
    rows = []
    for length, head_dim in itertools.product(lengths, head_dims):
        qkv = inputs(length, head_dim)
        for name, function in functions.items():
            row: dict[str, Any] = {"length": length, "head_dim": head_dim, "name": name}
            for phase in ("forward", "backward"):
                try:
                    seconds = [
                        seconds_of_one(function, qkv, phase, clock, synchronize)
                        for _ in range(warmups + samples)
                    ]
                    row[f"{phase}_ms"] = 1e3 * statistics.median(seconds[warmups:])
                except torch.OutOfMemoryError:
                    row[f"{phase}_ms"] = None
            rows.append(row)
    return rows


# ---- the pretended GPU


class _Pretended(torch.autograd.Function):
    """An output like q, whose forward and backward only tell the machine that they were called."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, called: Callable[[str], None]) -> Tensor:
        ctx.called = called
        called("forward")
        return q.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        ctx.called("backward")
        return upstream[0], upstream[0], upstream[0], None


class Machine:
    """A GPU of known speed: calls are enqueued and return at once, and its clock moves when one waits.

    Args:
        first_calls_slow: the first three calls of each function, shape and phase take 50 times as long.
        hiccups: of five calls one takes five times as long, and one half as long.
        memory: the scores that "written out" can hold, length times length; its backward needs four times
            as many.
        broken: its functions stop with an error that has nothing to do with memory.
    """

    def __init__(
        self,
        *,
        first_calls_slow: bool = False,
        hiccups: bool = False,
        memory: int = 2**60,
        broken: bool = False,
    ) -> None:
        self.first_calls_slow, self.hiccups, self.memory, self.broken = (
            first_calls_slow,
            hiccups,
            memory,
            broken,
        )
        self.now = self.queue_ends = 0.0
        self.calls: dict[tuple[str, int, int, str], int] = {}

    def clock(self) -> float:
        """Seconds since the start."""
        return self.now

    def synchronize(self) -> None:
        """Wait until the queue is empty."""
        self.now = max(self.now, self.queue_ends)

    def inputs(self, length: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tensors of the right shape that take no memory."""
        q, k, v = (torch.zeros(1, requires_grad=True).expand(1, 1, length, head_dim) for _ in range(3))
        return q, k, v

    def attention(self, name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Attention "in tiles", or "written out", which takes twice as long, and memory."""

        def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            length, head_dim = q.shape[-2:]

            def called(phase: str) -> None:
                self._called(name, length, head_dim, phase)

            made: Tensor = _Pretended.apply(q[..., :1, :], k[..., :1, :], v[..., :1, :], called)
            return made

        return function

    def arguments(self, lengths: list[int], head_dims: list[int], *names: str) -> Inputs:
        """Those of `benchmark_table`."""
        functions = {name: self.attention(name) for name in names}
        return functions, lengths, head_dims, self.inputs, self.clock, self.synchronize, 3, 5

    def _called(self, name: str, length: int, head_dim: int, phase: str) -> None:
        if self.broken:
            raise RuntimeError("the number of heads must divide the width")
        needed = length * length * (4 if phase == "backward" else 1)
        if name == "written out" and needed > self.memory:
            raise torch.OutOfMemoryError(f"out of memory: {needed:,} scores")
        place = self.calls.get((name, length, head_dim, phase), 0)
        self.calls[name, length, head_dim, phase] = place + 1
        factor = 1.0
        if self.first_calls_slow and place < 3:
            factor = 50.0
        elif self.hiccups:
            factor = (1.0, 5.0, 1.0, 0.5, 1.0)[place % 5]
        seconds = factor * milliseconds(name, length, head_dim, phase) / 1e3
        self.queue_ends = max(self.queue_ends, self.now) + seconds


def milliseconds(name: str, length: int, head_dim: int, phase: str) -> float:
    """What a call takes on the pretended GPU, once warm."""
    product = 1e-9 * length * length * head_dim
    return product * (2.0 if name == "written out" else 1.0) * (2.5 if phase == "backward" else 1.0)


def _table(
    lengths: list[int], head_dims: list[int], *names: str, memory: int = 2**60
) -> list[dict[str, Any]]:
    """The table of the pretended GPU."""
    rows = []
    for length, head_dim, name in itertools.product(lengths, head_dims, names):
        row: dict[str, Any] = {"length": length, "head_dim": head_dim, "name": name}
        for phase, scores in (("forward", length**2), ("backward", 4 * length**2)):
            fits = name != "written out" or scores <= memory
            row[f"{phase}_ms"] = milliseconds(name, length, head_dim, phase) if fits else None
        rows.append(row)
    return rows


# ---- this machine


def _eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    length = q.shape[-2]
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(later, float("-inf"))
    return scores.softmax(-1) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


_REAL = {"written out": _eager, "scaled_dot_product_attention": _sdpa}
# Long enough for a GPU, where launching alone takes as long as the work of 512 tokens.
_SHORT = [2048, 16_384] if torch.cuda.is_available() else [64, 512]


def _plausible(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Whether times of a short and a longer length are those of a clock that ran."""
    told = {}
    for name in _REAL:
        for phase in ("forward_ms", "backward_ms"):
            times = [row[phase] for row in rows if row["name"] == name]
            grows = len(times) == 2 and None not in times and 0 < times[0] < times[1]
            told[f"{name}, {phase}"] = "grows with length" if grows else f"{times}"
    return told


def _on_gpu(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The whole table of a GPU, one entry of it measured again by the book's own harness."""
    from kernels.bench.timing import Clock, Timed

    by_place = {(row["name"], row["length"], row["head_dim"]): row for row in rows}
    sdpa = [row for row in rows if row["name"] == "scaled_dot_product_attention"]
    measured = all(row["forward_ms"] and row["backward_ms"] for row in sdpa)
    longest = by_place.get(("written out", LENGTHS[-1], 128), {"forward_ms": 0.0})
    clock, qkv = Clock(), attention_inputs(16_384, 128)
    work = Timed(lambda _: _sdpa(*qkv))
    clock.warm_up(work)
    again = 1e3 * statistics.median(clock.samples(work, 9))
    found = by_place.get(("scaled_dot_product_attention", 16_384, 128), {"forward_ms": None})["forward_ms"]
    near = found is not None and 0.7 * again <= found <= 1.5 * again
    return {
        "rows": str(len(rows)),
        "scaled_dot_product_attention": "measured everywhere" if measured else "not measured everywhere",
        "written out at 65,536": "out of memory" if longest["forward_ms"] is None else "a number",
        "forward at 16,384 × 128": "as measured again" if near else f"{found} ms, {again:.2f} ms again",
    }


def _table_slip(name: str, old: str, new: str) -> Any:
    return slip(name, old, new, benchmark_table, seconds_of_one)


def _simulated(name: str, lengths: list[int], head_dims: list[int], message: str, **machine: Any) -> Case:
    names = ("in tiles", "written out")
    memory = {"memory": machine["memory"]} if "memory" in machine else {}
    return Case(
        name,
        lambda: Machine(**machine).arguments(lengths, head_dims, *names),
        _table(lengths, head_dims, *names, **memory),
        message,
        call=f"benchmark_table(two functions, {lengths}, {head_dims}, inputs, clock, synchronize)"
        if len(lengths) < 9
        else "benchmark_table(two functions, 128 to 65,536, 16 to 128, inputs, clock, synchronize)",
        seconds=60.0,
    )


BENCHMARK = Exercise(
    name="kernels/benchmark-table",
    title="A benchmark table of attention",
    task="""
Write `benchmark_table(functions, lengths, head_dims, inputs, clock, synchronize, warmups, samples)`. Each of
`functions`, by name, computes attention from q, k and v; `inputs(length, head_dim)` makes the three, which
require gradients. Return one dict for each length, head dimension and function, in this order, the function
changing fastest, with the keys

- `length`, `head_dim`, `name`;
- `forward_ms`: the median of `samples` times of a forward, in milliseconds;
- `backward_ms`: the same of a backward alone, each after a forward that is not timed.

Of each phase make `warmups` calls first that do not count. Read the time from `clock()`, in seconds. Calls
only enqueue work; `synchronize()` returns when it is done. A function may run out of memory
(`torch.OutOfMemoryError`), in both phases or in the backward alone: then the time is `None`, and the table
goes on. Any other error is a mistake to be seen, not to be hidden.

The check runs your function on a pretended GPU, whose times are known exactly, and then on your machine.
""",
    difficulty=5,
    minutes=60,
    starter="""
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any
import torch
from torch import Tensor


def benchmark_table(
    functions: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]],
    lengths: list[int],
    head_dims: list[int],
    inputs: Callable[[int, int], tuple[Tensor, Tensor, Tensor]],
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], None] = wait_for_gpu,
    warmups: int = 3,
    samples: int = 5,
) -> list[dict[str, Any]]:
    raise NotImplementedError
""",
    hints=(
        "A time is: synchronize, read the clock, call, synchronize, read the clock. The first wait matters "
        "as much as the second, or the forward that you did not mean to time is timed with the backward.",
        "Write a function for one time of one phase, and call it `warmups + samples` times. For the backward "
        "`torch.autograd.grad(out, (q, k, v), upstream)` leaves no gradients behind.",
        "`try` stands around one phase, not around the row or the table, and `except` names "
        "`torch.OutOfMemoryError` alone. It is a kind of `RuntimeError`; to catch those would hide mistakes.",
    ),
    solution=benchmark_table,
    parts=(seconds_of_one,),
    given=(wait_for_gpu, attention_inputs),
    in_page=False,
    remark="""
Now use it. On a GPU: `benchmark_table(functions, [2**n for n in range(7, 17)], [16, 32, 64, 128],
attention_inputs)`, with attention written out, `scaled_dot_product_attention`, `kernels.flash_attention`, and
yours; on a CPU stop at a length of 1,024 or so. Three things are left to improve, and the book's harness does
them: events in place of the CPU's clock, which also counts the launch; a cache that is emptied before each
call; and competitors that take turns.
""",
    cases=(
        Case(
            "one function, one shape",
            lambda: Machine().arguments([256], [32], "in tiles"),
            _table([256], [32], "in tiles"),
            "Wait for the GPU before you start the clock, and again before you stop it: the call returns at "
            "once, and the forward before a backward must be over. Times are in milliseconds.",
            call="benchmark_table(one function, [256], [32], inputs, clock, synchronize)",
            seconds=60.0,
        ),
        _simulated(
            "the order of rows",
            [128, 256, 512],
            [16, 64],
            "A row for each length, head dimension and function; the function changes fastest.",
        ),
        _simulated(
            "slow first calls",
            [256],
            [16, 32],
            "The first calls compile and fill caches: make `warmups` calls of each phase and shape that do "
            "not count.",
            first_calls_slow=True,
        ),
        _simulated(
            "hiccups",
            [256],
            [32],
            "One call in five was held up, and one was lucky: take the median, not the mean or the least.",
            first_calls_slow=True,
            hiccups=True,
        ),
        _simulated(
            "out of memory",
            [512, 1024, 2048],
            [16],
            "A phase that runs out of memory has the time None; its row stays, and so do all the others.",
            memory=2**20,
        ),
        Case(
            "another error",
            lambda: Machine(broken=True).arguments([128], [16], "in tiles"),
            None,
            "Catch torch.OutOfMemoryError and nothing wider: this RuntimeError is a mistake in a function.",
            raises=RuntimeError,
            call="benchmark_table(a function that stops with RuntimeError, [128], [16], …)",
            seconds=60.0,
        ),
        _simulated(
            "the whole table",
            LENGTHS,
            HEAD_DIMS,
            "128 to 65,536 tokens, heads of 16 to 128.",
            first_calls_slow=True,
            hiccups=True,
            memory=2**28,
        ),
        Case(
            "this machine",
            lambda: (_REAL, _SHORT, [16], attention_inputs),
            {
                f"{name}, {phase}": "grows with length"
                for name in _REAL
                for phase in ("forward_ms", "backward_ms")
            },
            "With its defaults the function measures real time, and eight times the length takes longer.",
            then=_plausible,
            call=f"benchmark_table(two functions, {_SHORT}, [16], attention_inputs)",
            seconds=60.0,
        ),
    )
    + (
        (
            Case(
                "GPU: the whole table",
                lambda: (_REAL, LENGTHS, HEAD_DIMS, attention_inputs),
                {
                    "rows": str(len(LENGTHS) * len(HEAD_DIMS) * len(_REAL)),
                    "scaled_dot_product_attention": "measured everywhere",
                    "written out at 65,536": "out of memory",
                    "forward at 16,384 × 128": "as measured again",
                },
                "Keep nothing of one row while the next is measured: outputs hold the graph, and the graph "
                "holds the scores.",
                then=_on_gpu,
                call="benchmark_table(two functions, 128 to 65,536, 16 to 128, attention_inputs)",
                seconds=400.0,
            ),
        )
        if GPU
        else ()
    ),
    wrong=(
        Wrong(
            _table_slip("no_wait_at_the_end", "    synchronize()\n    return", "    return"),
            "before you stop it",
        ),
        Wrong(
            _table_slip("no_wait_at_the_start", "    synchronize()\n    began", "    began"),
            "before a backward must be over",
        ),
        Wrong(_table_slip("no_warm_up", "seconds[warmups:]", "seconds[:samples]"), "do not count"),
        Wrong(_table_slip("mean", "statistics.median(", "statistics.mean("), "take the median"),
        Wrong(_table_slip("least", "statistics.median(", "min("), "take the median"),
        Wrong(_table_slip("shapes_in_pairs", "itertools.product(", "zip("), "A row for each length"),
        Wrong(_table_slip("stops_out_of_memory", 'row[f"{phase}_ms"] = None', "raise"), "has the time None"),
        Wrong(_table_slip("hides_errors", "torch.OutOfMemoryError", "RuntimeError"), "nothing wider"),
    ),
)
