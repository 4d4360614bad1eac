"""What a kernel's file declares about itself, so that the harness can check, time and compare it.

A file exports ``BENCH``, one `Bench` or a tuple of them:

    BENCH = Bench(
        name="swiglu",
        inputs=lambda shape, generator: {"gate": normal(shape, generator, "rows", "columns"), "up": ...},
        ours=swiglu,
        reference=reference,
        grads=("gate", "up"),
        peers={"eager": lambda: eager, "torch.compile": compiled(eager), "Liger": _liger},
        work=lambda shape: {"forward": Work(bytes=...), "backward": Work(bytes=...)},
        shapes=(Shape({"rows": 16384, "columns": 11008}),),
    )

Every competitor is called as ``function(**inputs)`` and returns a tensor or a tuple of tensors. A peer is a
factory without arguments that gives such a function, called anew for each shape; one that cannot run here
raises `UnavailableError` with the reason, which the record keeps.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from kernels._runtime import INTERPRETED

FORWARD, BACKWARD, BOTH, STEP = "forward", "backward", "forward + backward", "step"
PHASES = (FORWARD, BACKWARD, BOTH, STEP)

Inputs = dict[str, Any]
Function = Callable[..., Any]
Factory = Callable[[], Function]

# Largest ‖out - reference‖ / ‖reference‖ of a kernel that is right: a few roundings of its format.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


class UnavailableError(RuntimeError):
    """A peer that cannot run here; the message says why."""


@dataclass(frozen=True)
class Shape:
    """Sizes by name (``{"rows": 16384, "columns": 4096}``) and the dtype of the floating inputs."""

    sizes: Mapping[str, Any]
    dtype: torch.dtype = torch.bfloat16
    label: str = ""  # made from sizes and dtype where it is empty

    def __post_init__(self) -> None:
        if not self.label:
            words = ", ".join(
                f"{name} {size:,}" if isinstance(size, int) else f"{name} {size}"
                for name, size in self.sizes.items()
            )
            object.__setattr__(self, "label", f"{words}, {str(self.dtype).removeprefix('torch.')}")

    def __getitem__(self, name: str) -> Any:
        return self.sizes[name]

    def with_sizes(self, **sizes: Any) -> Shape:
        """The same with some sizes changed, and a label made anew."""
        return replace(self, sizes={**self.sizes, **sizes}, label="")


@dataclass(frozen=True)
class Work:
    """The least that a phase must do: bytes moved through device memory, and floating-point operations.

    Bytes count each input read once and each output written once; a multiply-add is two operations.
    """

    bytes: int
    flops: int = 0


@dataclass(frozen=True)
class Bench:
    """A kernel, its peers, and what to measure."""

    name: str
    inputs: Callable[[Shape, torch.Generator], Inputs]
    """Fresh random inputs on ``generator.device``. Tensors named in ``grads`` will require gradients."""
    ours: Function
    reference: Function
    """The same function in plain torch; it is called on the inputs in float64."""
    work: Callable[[Shape], Mapping[str, Work]]
    """`Work` by phase. Where `BOTH` is missing, it is forward and backward together."""
    shapes: tuple[Shape, ...]
    tiny: tuple[Shape, ...] = ()
    """Shapes for a CPU, where Triton's interpreter checks the arithmetic."""
    full: tuple[Shape, ...] = ()
    """What ``--full`` measures besides: the comparison over sizes."""
    peers: Mapping[str, Factory] = field(default_factory=dict)
    grads: tuple[str, ...] = ()
    phases: tuple[str, ...] = (FORWARD, BACKWARD, BOTH)
    """What to measure. With `STEP` alone, a competitor called with the inputs gives a function without
    arguments that does one step (of an optimizer, say) and returns the tensors to compare."""
    bound: Literal["copy", "matmul"] = "copy"
    """Which of the machine's rates is its ceiling."""
    tolerance: Mapping[torch.dtype, float] = field(default_factory=dict)
    """Relative error that is allowed, where it differs from `TOLERANCE`."""
    check: Callable[[Shape], Shape] = lambda shape: shape
    """The shape at which correctness is checked, where the reference would not fit at the one timed."""

    def __post_init__(self) -> None:
        unknown = [phase for phase in self.phases if phase not in PHASES]
        if unknown or not self.phases:
            raise ValueError(f"phases of bench {self.name!r} must be among {PHASES}, got {self.phases}")
        if STEP in self.phases and len(self.phases) > 1:
            raise ValueError(f"bench {self.name!r}: {STEP!r} must be the only phase, got {self.phases}")
        if self.bound not in ("copy", "matmul"):
            raise ValueError(f"bound of bench {self.name!r} must be copy or matmul, got {self.bound!r}")
        if {BACKWARD, BOTH} & set(self.phases) and not self.grads:
            raise ValueError(f"bench {self.name!r} measures a backward but names no grads")

    def limit(self, dtype: torch.dtype) -> float:
        """Largest relative error against float64 that passes."""
        # The interpreter cuts float32 to bfloat16 where a GPU rounds: twice the error.
        slack = 2 if INTERPRETED and dtype == torch.bfloat16 else 1
        return slack * self.tolerance.get(dtype, TOLERANCE.get(dtype, 2e-5))

    def work_of(self, shape: Shape) -> dict[str, Work]:
        """Work by phase, forward and backward together included."""
        found = dict(self.work(shape))
        if BOTH not in found and FORWARD in found and BACKWARD in found:
            one, two = found[FORWARD], found[BACKWARD]
            found[BOTH] = Work(one.bytes + two.bytes, one.flops + two.flops)
        return found


# -- for declarations ----------------------------------------------------------------------------------------


def normal(shape: Shape, generator: torch.Generator, *sizes: str | int, scale: float = 1.0) -> Tensor:
    """Normal random numbers of the shape's dtype; each size is a number or the name of one."""
    numbers = [shape[size] if isinstance(size, str) else size for size in sizes]
    drawn = torch.randn(numbers, generator=generator, device=generator.device, dtype=torch.float32)
    return (drawn * scale).to(shape.dtype)


def compiled(function: Function, **options: Any) -> Factory:
    """The peer ``torch.compile(function)``, for static shapes."""

    def make() -> Function:
        if not torch.cuda.is_available():
            raise UnavailableError("torch.compile is compared on a GPU only")
        return torch.compile(function, dynamic=False, **options)

    return make


def installed(module: str, name: str) -> Any:
    """``name`` of ``module`` of an optional package (``installed("liger_kernel.ops.rms_norm", "...")``).

    Raises:
        UnavailableError: it is not installed, or it does not have that name.
    """
    if not torch.cuda.is_available():
        raise UnavailableError(f"{module} is compared on a GPU only")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise UnavailableError(f"{module}.{name}: {type(error).__name__}: {error}") from None
