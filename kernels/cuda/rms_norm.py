"""Builds ``rms_norm.cu`` and calls it: the same function as ``kernels.rms_norm``, to compare with Triton's.

``torch.utils.cpp_extension`` compiles for the GPU at hand (sm_90 on Hopper) and keeps the library in its
cache. The source includes no header of torch, so that it compiles in seconds; its functions take plain
addresses and are called through ctypes.

Contract: x and weight of one dtype (float32, bfloat16, float16), columns a multiple of 16 bytes and at most
MAX_PACKS times as many; other inputs, and machines without a GPU or nvcc, take ``kernels.rms_norm``.
The backward is bitwise repeatable.
"""

import ctypes
import functools
import shutil
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from kernels._runtime import HAVE_GPU, sm_count

SOURCE = Path(__file__).with_name("rms_norm.cu")
PACK_BYTES = 16
MAX_PACKS = 2048  # 16,384 columns of 16 bits, 8,192 of 32
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_ADDRESS, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float


@functools.cache
def available() -> bool:
    """Whether this machine can build and run CUDA C++: a CUDA GPU, nvcc and ninja."""
    if not HAVE_GPU or torch.version.cuda is None or shutil.which("ninja") is None:
        return False
    from torch.utils.cpp_extension import CUDA_HOME

    return CUDA_HOME is not None and (Path(CUDA_HOME) / "bin" / "nvcc").exists()


@functools.cache
def library() -> ctypes.CDLL:
    """The built library.

    Raises:
        RuntimeError: it cannot be built; the message holds the compiler's.
    """
    from torch.utils.cpp_extension import load

    path = load(
        name="lmlib_cuda_rms_norm",
        sources=[str(SOURCE)],
        extra_cuda_cflags=["-O3", "-std=c++17"],
        is_python_module=False,
    )
    built = ctypes.CDLL(str(path))
    built.rms_norm_forward.argtypes = [_INT, *[_ADDRESS] * 4, _INT, _INT, _FLOAT, _ADDRESS]
    built.rms_norm_backward.argtypes = [_INT, *[_ADDRESS] * 7, _INT, _INT, _INT, _ADDRESS]
    return built


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"the CUDA launch failed with error {status}")


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the CUDA kernels can take these tensors on this machine."""
    packs, rest = divmod(x.shape[-1] * x.element_size(), PACK_BYTES)
    alike = x.is_cuda and weight.is_cuda and x.dtype == weight.dtype and x.dtype in DTYPES
    return alike and rest == 0 and 0 < packs <= MAX_PACKS and x.numel() > 0 and available()


def _ready(x: Tensor) -> Tensor:
    x = x.contiguous()
    return x if x.data_ptr() % PACK_BYTES == 0 else x.clone()


def launch_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y and rstd of tensors that `takes` accepts."""
    x, weight = _ready(x), _ready(weight)
    y = torch.empty_like(x)
    rstd = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    with torch.cuda.device(x.device):
        stream = torch.cuda.current_stream().cuda_stream
        addresses = (t.data_ptr() for t in (x, weight, y, rstd))
        sizes = (rstd.numel(), x.shape[-1])
        _check(library().rms_norm_forward(DTYPES[x.dtype], *addresses, *sizes, eps, stream))
    return y, rstd


def launch_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients with respect to x and weight."""
    dy, x, weight = _ready(dy), _ready(x), _ready(weight)
    dx, dweight = torch.empty_like(x), torch.empty_like(weight)
    columns, rows = x.shape[-1], rstd.numel()
    threads = columns * x.element_size() // PACK_BYTES
    blocks = min(rows, sm_count(x.device) * max(1, min(8, 1024 // threads)))
    parts = torch.empty((blocks, columns), dtype=torch.float32, device=x.device)
    with torch.cuda.device(x.device):
        stream = torch.cuda.current_stream().cuda_stream
        addresses = (t.data_ptr() for t in (dy, x, weight, rstd, dx, parts, dweight))
        _check(library().rms_norm_backward(DTYPES[x.dtype], *addresses, rows, columns, blocks, stream))
    return dx, dweight


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, rstd = launch_forward(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor):
        return *launch_backward(dy, *ctx.saved_tensors), None


def rms_norm(
    x: Float[Tensor, "*leading columns"], weight: Float[Tensor, " columns"], eps: float = 1e-6
) -> Float[Tensor, "*leading columns"]:
    """RMSNorm over the last axis, in CUDA C++ where that runs and takes the input, else ``kernels.rms_norm``.

    Raises:
        ValueError: weight is not one value for each column.
    """
    if x.dim() == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"weight must have shape {tuple(x.shape[-1:])}, x's last axis, got {tuple(weight.shape)}"
        )
    if takes(x, weight):
        return _RMSNorm.apply(x, weight, eps)
    from kernels.rms_norm import rms_norm as fallback

    y = fallback(x, weight, eps)
    assert isinstance(y, Tensor)
    return y
