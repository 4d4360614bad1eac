"""What every kernel needs: where it can run, one import of Triton, and one way to become a PyTorch operator.

- With a CUDA GPU kernels are compiled. Without one, where Triton can be imported, they run under its
  interpreter on CPU tensors (slowly: it proves the arithmetic). Without Triton each public function computes
  its plain PyTorch reference. A variable ``TRITON_INTERPRET`` that the user has set is left alone.
- Kernel modules import ``tl`` and ``triton`` from here, so that the variable is set before any decorator
  runs, and so that they can be imported where there is no Triton.
- ``Operator`` gives one forward and one backward two doors: ``torch.autograd.Function`` when run eagerly,
  since it costs a few microseconds, and a ``torch.library`` custom operator under ``torch.compile``, which
  keeps it in the graph whole.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

HAVE_TRITON = importlib.util.find_spec("triton") is not None
HAVE_GPU = torch.cuda.is_available()

if HAVE_TRITON and not HAVE_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")

INTERPRETED = HAVE_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
"""True where kernels run under Triton's interpreter."""

UPCAST = INTERPRETED
"""Pass as ``UPCAST: tl.constexpr`` to kernels with ``tl.dot``, and cast 16-bit operands to float32 where it
is true: the interpreter multiplies the raw bits of bfloat16 (triton-lang/triton#11584), silently wrong."""

if TYPE_CHECKING or HAVE_TRITON:
    import triton
    import triton.language as tl
else:

    class _Missing:
        """Stands for Triton where it is missing: decorators do nothing, ``constexpr`` is an annotation."""

        constexpr = Any
        extra = None

        @staticmethod
        def jit(function: Callable[..., Any] | None = None, **_: Any) -> Any:
            return function if function is not None else lambda decorated: decorated

    triton = tl = _Missing


def _let_interpreter_index(interpreter: Any) -> None:
    """Take the one element of an array where Triton before 3.7 calls ``int`` on it, as NumPy 2.4 refuses to.

    torch 2.6 to 2.11 bring such a Triton along.
    """
    patch = interpreter._patch_lang_tensor

    def patch_and_index(tensor: Any, *rest: Any) -> None:
        patch(tensor, *rest)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_index


if INTERPRETED and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
    _let_interpreter_index(importlib.import_module("triton.runtime.interpreter"))


def _let_interpreter_fuse(interpreter: Any) -> None:
    """Round ``fma`` once, as GPUs do: the interpreter rounds the product of float32 as well."""

    def fuse(_: Any, x: Any, y: Any, z: Any) -> Any:
        exact = x.data.astype("float64") * y.data + z.data
        return interpreter.TensorHandle(exact.astype(x.data.dtype), x.dtype.scalar)

    interpreter.InterpreterBuilder.create_fma = fuse


if INTERPRETED:
    _let_interpreter_fuse(importlib.import_module("triton.runtime.interpreter"))


def _name_the_target(target: Any, args: Any, kwargs: Any) -> str:
    return f"  target: {target}"


def _let_inductor_be_brief() -> None:
    """Keep inductor from spelling out the arguments of an operator that it meets for the first time.

    Before torch 2.13 it did so for a log at level INFO, whether anybody reads that or not. An argument is
    spelled out with all that it was made of: behind a dozen blocks of our operators, of which each reads its
    input twice, that has no end.
    """
    messages = sys.modules.get("torch._inductor.exc")  # not there: another backend
    if messages is not None and torch.__version__ < "2.13":
        messages.OperatorIssue.operator_str = staticmethod(_name_the_target)  # type: ignore[attr-defined]


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What kernels compute on; everything else (float64, integers, complex) goes to the reference."""

MIN_CAPABILITY = (8, 0)  # Ampere: the first with bfloat16
LIBRARY = "lmlib"

_INTERPRETED_SM_COUNT = 2  # few programs: the interpreter's cost follows their number
_INTERPRETED_L2_BYTES = 50 * 2**20
_SMALL_SHARED_BYTES = 99 * 2**10


@functools.cache
def _gpus() -> int:
    return torch.cuda.device_count()


_CAPABLE: dict[int, bool] = {}  # by the GPU's index; torch.compile reads through it, unlike functools.cache


def _capable(index: int) -> bool:
    if index not in _CAPABLE:
        modern = torch.version.hip is not None or torch.cuda.get_device_capability(index) >= MIN_CAPABILITY
        _CAPABLE[index] = modern
    return _CAPABLE[index]


def usable(*tensors: Tensor | None) -> bool:
    """Whether Triton kernels can run on these tensors; ``None`` entries are ignored.

    They can where Triton is there, all tensors are float32, bfloat16 or float16, and all are on one GPU of
    compute capability 8.0 or newer, or all on the CPU with the interpreter on.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    if not HAVE_TRITON or not present:
        return False
    device = present[0].device
    if any(tensor.device != device or tensor.dtype not in DTYPES for tensor in present):
        return False
    if device.type == "cuda":
        return not INTERPRETED and _capable(device.index or 0)
    return device.type == "cpu" and INTERPRETED


def check_floating(**tensors: Tensor | None) -> None:
    """Refuse integers, of which the fallbacks in PyTorch would make zeros.

    Raises:
        TypeError: a tensor that holds no floating-point numbers, named.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} must hold floating-point numbers, got {tensor.dtype}")


def next_power_of_2(n: int) -> int:
    """Smallest power of two that is at least ``n`` (1 for 0)."""
    return 1 << max(n - 1, 0).bit_length()


def cdiv(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def triton_dtype(dtype: torch.dtype) -> Any:
    """``tl.bfloat16`` for ``torch.bfloat16``, and so on."""
    return getattr(tl, str(dtype).removeprefix("torch."))


# Answers about a device are cached: asking torch each time can cost as much as a launch.
def _properties(index: int) -> Any:
    return torch.cuda.get_device_properties(index)


@functools.cache
def sm_count(device: torch.device) -> int:
    """Streaming multiprocessors of the GPU; 2 on the CPU, so that the interpreter has little to do."""
    if device.type != "cuda":
        return _INTERPRETED_SM_COUNT
    return int(_properties(device.index or 0).multi_processor_count)


@functools.cache
def l2_bytes(device: torch.device) -> int:
    """Size of the GPU's L2 cache in bytes; 50 MiB, an H100's, on the CPU."""
    if device.type != "cuda":
        return _INTERPRETED_L2_BYTES
    return int(_properties(device.index or 0).L2_cache_size)


@functools.cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may have, in bytes; 99 KiB, that of small GPUs, where it is unknown."""
    if device.type != "cuda":
        return _SMALL_SHARED_BYTES
    return int(getattr(_properties(device.index or 0), "shared_memory_per_block_optin", _SMALL_SHARED_BYTES))


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of the GPU, (9, 0) for Hopper; (0, 0) on the CPU."""
    if device.type != "cuda":
        return 0, 0
    properties = _properties(device.index or 0)
    return properties.major, properties.minor


def as_rows(x: Tensor) -> Tensor:
    """``x`` as (rows, last axis), unit stride along the last axis: a view where strides allow, else a copy.

    The kernels take a row stride, so slices such as the halves of a fused projection cost no copy.
    """
    columns = x.shape[-1]
    if x.dim() != 2:
        x = x.reshape(x.numel() // columns if columns else 0, columns)
    return x if x.stride(-1) == 1 or columns <= 1 else x.contiguous()


def _plain(value: Any) -> bool:
    return not isinstance(value, Tensor) or type(value) in (Tensor, torch.nn.Parameter)


def _on_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current GPU: make the tensors' GPU the current one."""

    @functools.wraps(launch)
    def launched(*args: Any) -> Any:
        if _gpus() <= 1:
            return launch(*args)
        tensor = next(arg for arg in args if isinstance(arg, Tensor))
        if not tensor.is_cuda:
            return launch(*args)
        with torch.cuda.device(tensor.device):
            return launch(*args)

    return launched


def _eager_function(
    name: str, launch: Callable[..., Any], setup: Callable[..., None], backward: Callable[..., Any]
) -> type[torch.autograd.Function]:
    # Not as a `setup_context` of its own: with one, `apply` inspects the signature of `forward` at each call,
    # which takes longer than the kernels of small tensors.
    def forward(ctx: Any, *args: Any) -> Any:
        output = launch(*args)
        setup(ctx, args, output)
        return output

    members = {
        "forward": staticmethod(forward),
        # The kernels are not differentiable twice: an error, not a wrong number.
        "backward": staticmethod(torch.autograd.function.once_differentiable(backward)),
    }
    return type(name, (torch.autograd.Function,), members)


class Operator:
    """One function with a kernel inside, callable eagerly and under ``torch.compile``.

    Args:
        name: becomes ``torch.ops.lmlib.<name>``.
        forward: launches the kernel; annotated with Tensor, float, int, bool and ``Tensor | None``, which
            becomes the operator's schema. It returns fresh tensors, never an input or a view of one.
        fake: same arguments; returns empty tensors of the right shape, dtype and strides.
        setup: ``setup(ctx, inputs, output)`` saves what the backward needs. ``None``: not differentiable.
        backward: ``backward(ctx, *grads)`` returns one gradient (or None) for each input. Kernels in it are
            called through an ``Operator`` of their own, so that a compiled backward can keep them too.
    """

    def __init__(
        self,
        name: str,
        forward: Callable[..., Any],
        fake: Callable[..., Any],
        setup: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
    ) -> None:
        self.launch = _on_device(forward)
        definition = torch.library.custom_op(f"{LIBRARY}::{name}", self.launch, mutates_args=())

        @functools.wraps(fake)
        def traced(*args: Any) -> Any:
            _let_inductor_be_brief()  # it is tracing, or another backend is
            return fake(*args)

        definition.register_fake(traced)
        self.function: Any = None
        if setup is not None and backward is not None:
            definition.register_autograd(backward, setup_context=setup)
            self.function = _eager_function(name, self.launch, setup, backward)
        self.operator = getattr(getattr(torch.ops, LIBRARY), name)

    def __call__(self, *args: Any) -> Any:
        # Compiling, and tracing of a backward (whose tensors are subclasses), must see an operator.
        if torch.compiler.is_compiling() or not all(map(_plain, args)):
            return self.operator(*args)
        return self.launch(*args) if self.function is None else self.function.apply(*args)
