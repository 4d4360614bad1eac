"""How answers on kernels are checked: against float64 beside PyTorch, by bytes moved, by time on a GPU."""

from __future__ import annotations

import importlib
import inspect
import linecache
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels._runtime import HAVE_TRITON, INTERPRETED
from lmlib.book.exercises.machinery import Case

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
RIGHT, ONCE = "right", "once"
SECONDS = 60.0  # of a case: the interpreter is slow, and so is the first compilation

# Largest relative error of an answer: SLACK times that of PyTorch at the same dtype, and UNIT. Triton's
# interpreter cuts float32 to bfloat16 instead of rounding, and has no fused multiply-add.
SLACK, INTERPRETER_SLACK = 1.25, 2.5
UNIT = {torch.float32: 2.0**-21, torch.bfloat16: 2.0**-11}
INTERPRETER_UNIT = {torch.float32: 2.0**-21, torch.bfloat16: 2.0**-8}

Inputs = tuple[Any, ...]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Normal numbers, the same each time, on the GPU where there is one."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, device=DEVICE)).to(dtype)


# -- against float64 -----------------------------------------------------------------------------------------


def relative(found: Tensor, right: Tensor) -> float:
    """‖found - right‖ / ‖right‖ in float64."""
    right = right.double()
    return float((found.double() - right).norm() / right.norm().clamp_min(1e-30))


def verdict(got: object, right: Tensor, theirs: Tensor, interpreted: bool = INTERPRETED) -> str:
    """`RIGHT`, or in a few words what is wrong with a tensor.

    Args:
        got: the answer.
        right: what it should be, in float64.
        theirs: PyTorch's answer at the dtype that is wanted, float32 or bfloat16.
        interpreted: True allows for the interpreter's own errors.
    """
    if not isinstance(got, Tensor):
        return f"no tensor but {type(got).__name__}"
    if got.shape != right.shape:
        return f"of shape {tuple(got.shape)}, not {tuple(right.shape)}"
    if got.dtype != theirs.dtype:
        return f"{got.dtype}, not {theirs.dtype}".replace("torch.", "")
    if not bool(got.isfinite().all()):
        return "not finite everywhere"
    slack, unit = (INTERPRETER_SLACK, INTERPRETER_UNIT) if interpreted else (SLACK, UNIT)
    allowed = slack * relative(theirs, right) + unit[theirs.dtype]
    off = relative(got, right)
    return RIGHT if off <= allowed else f"off by {off:.1e}, allowed {allowed:.1e}"


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def compared(
    name: str,
    make: Callable[[], Inputs],
    message: str = "",
    *,
    call: str,
    results: Sequence[str],
    reference: Callable[..., Any],
    peer: Callable[..., Any],
    interpreted: bool = INTERPRETED,
) -> Case:
    """A case that holds each result against the reference in float64, beside PyTorch's error.

    Args:
        name, message, call: of the case.
        make: the arguments, equal each time.
        results: what the answer's tensors are called.
        reference: gives the right ones from float64 arguments.
        peer: PyTorch's way from the arguments as they are; its dtypes are those wanted.
        interpreted: False where the answer is PyTorch, not Triton, and so is held to PyTorch's own error.
    """

    def judged(got: Any) -> Any:
        found, inputs = _several(got), make()
        if len(found) != len(results):
            return f"{len(found)} results, not {len(results)}"
        right, theirs = _several(reference(*map(_wide, inputs))), _several(peer(*inputs))
        each = zip(results, found, right, theirs, strict=True)
        return {name: verdict(mine, exact, torchs, interpreted) for name, mine, exact, torchs in each}

    expected = dict.fromkeys(results, RIGHT)
    return Case(name, make, expected, message, then=judged, call=call, seconds=SECONDS)


# -- what a call does ----------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What happened in a call: Triton kernels started, bytes that they moved, the largest tensor made.

    Bytes are counted under the interpreter only.
    """

    launches: int = 0
    loaded: int = 0
    stored: int = 0
    largest: int = 0


class _Largest(TorchDispatchMode):
    """Notes the most bytes that one operation of PyTorch returned."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            sizes = [t.numel() * t.element_size() for t in tree_leaves(made) if isinstance(t, Tensor)]
            self.seen.largest = max([self.seen.largest, *sizes])
        return made


@contextmanager
def _replaced(owner: Any, changes: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    kept = {name: getattr(owner, name) for name in changes}
    for name, change in changes.items():
        setattr(owner, name, change(kept[name]))
    try:
        yield
    finally:
        for name, original in kept.items():
            setattr(owner, name, original)


@contextmanager
def watching() -> Iterator[Seen]:
    """Count what the code inside does."""
    seen = Seen()

    def counts_launches(run: Callable[..., Any]) -> Callable[..., Any]:
        def counting(kernel: Any, *args: Any, **options: Any) -> Any:
            seen.launches += 1
            return run(kernel, *args, **options)

        return counting

    def counts_bytes(kind: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def change(move: Callable[..., Any]) -> Callable[..., Any]:
            # Both take the pointers first; the mask is second for a load, third for a store.
            def counting(builder: Any, pointers: Any, *rest: Any, **options: Any) -> Any:
                mask = options["mask"] if "mask" in options else rest[kind == "stored"]
                size = pointers.get_element_ty().primitive_bitwidth // 8
                setattr(seen, kind, getattr(seen, kind) + int(mask.data.sum()) * size)
                return move(builder, pointers, *rest, **options)

            return counting

        return change

    with _Largest(seen):
        if not HAVE_TRITON:
            yield seen
        elif INTERPRETED:
            interpreter = importlib.import_module("triton.runtime.interpreter")
            moves = {
                "create_masked_load": counts_bytes("loaded"),
                "create_masked_store": counts_bytes("stored"),
            }
            with (
                _replaced(interpreter.InterpretedFunction, {"run": counts_launches}),
                _replaced(interpreter.InterpreterBuilder, moves),
            ):
                yield seen
        else:
            jit = importlib.import_module("triton.runtime.jit")
            with _replaced(jit.JITFunction, {"run": counts_launches}):
                yield seen


def watched(function: Callable[..., Any]) -> Callable[..., Seen]:
    """The function, which then returns what it did instead of its results."""

    def called(*arguments: Any) -> Seen:
        with watching() as seen:
            function(*arguments)
        return seen

    return called


def amount(moved: int, least: int, most: int) -> str:
    """`ONCE` for bytes from `least` to `most`, or how far outside they are."""
    if least <= moved <= most:
        return ONCE
    return f"{moved / most:.2g} times what is needed" if moved > most else "not all of it"


def in_one_pass(
    name: str,
    make: Callable[[], Inputs],
    message: str,
    *,
    call: str,
    bounds: Callable[..., tuple[tuple[int, int], tuple[int, int]]],
) -> Case:
    """A case that sees a Triton kernel run and, under the interpreter, counts the bytes that it moved.

    Args:
        name, make, message, call: of the case.
        bounds: from the arguments, (least, most) bytes loaded, and stored.
    """

    def told(seen: Seen) -> dict[str, str]:
        if not seen.launches:
            return dict.fromkeys(expected, "nothing") | {"Triton kernel": "none ran"}
        if not INTERPRETED:
            return expected
        loads, stores = bounds(*make())
        return {
            "Triton kernel": "ran",
            "read": amount(seen.loaded, *loads),
            "written": amount(seen.stored, *stores),
        }

    expected = {"Triton kernel": "ran"} | ({"read": ONCE, "written": ONCE} if INTERPRETED else {})
    return Case(name, make, expected, message, around=watched, then=told, call=call, seconds=SECONDS)


def bytes_of(*tensors: Tensor) -> int:
    """What these tensors take, each number once."""
    return sum(each.numel() * each.element_size() for each in tensors)


# -- on a GPU ------------------------------------------------------------------------------------------------


def fast(
    name: str,
    make: Callable[[], Inputs],
    message: str,
    *,
    call: str,
    share: float,
    moved: Callable[..., int],
) -> Case:
    """A case for a GPU: the least bytes, over the time, are at least `share` % of the copy bandwidth."""

    def timed(function: Callable[..., Any]) -> Callable[..., float]:
        def called(*arguments: Any) -> float:
            from kernels.bench.timing import Clock, Timed, copy_bandwidth

            clock, work = Clock(), Timed(lambda _: function(*arguments))
            clock.warm_up(work)
            seconds = sorted(clock.samples(work, 15))[7]
            copy = sorted(copy_bandwidth(clock))[5]
            return 100 * moved(*arguments) / seconds / copy

        return called

    def told(reached: float) -> str:
        return enough if reached >= share else f"{reached:.0f} %"

    enough = f"at least {share:g} % of a copy's speed"
    return Case(name, make, enough, message, around=timed, then=told, call=call, seconds=4 * SECONDS)


# -- mistakes ------------------------------------------------------------------------------------------------


def slip(name: str, old: str, new: str, solution: Callable[..., Any], *parts: Any) -> Callable[..., Any]:
    """A wrong answer: the worked solution with one passage changed.

    Args:
        name: of the function that is made.
        old, new: the passage, which stands in the source once, and what stands there instead.
        solution, parts: the solution and the kernels that it needs.

    Raises:
        ValueError: the passage does not stand in the source once.
    """
    made: list[Callable[..., Any]] = []

    def build() -> Callable[..., Any]:
        sources = [
            textwrap.dedent(inspect.getsource(getattr(part, "fn", part))) for part in (*parts, solution)
        ]
        source = "\n\n".join(sources)
        if source.count(old) != 1:
            raise ValueError(f"{old!r} stands {source.count(old)} times in {solution.__name__}")
        source, file = source.replace(old, new), f"<{name}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        namespace = dict(vars(inspect.getmodule(solution)))
        exec(compile(source, file, "exec", dont_inherit=True), namespace)
        answer: Callable[..., Any] = namespace[solution.__name__]
        return answer

    def wrong(*arguments: Any) -> Any:
        if not made:
            made.append(build())
        return made[0](*arguments)

    wrong.__name__ = wrong.__qualname__ = name
    return wrong
