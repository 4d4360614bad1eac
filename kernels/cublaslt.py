"""Matrix products of cuBLASLt that PyTorch does not offer: with a GELU inside, forward and backward.

    y = x W^T + b                          ``linear``
    pre = x W^T + b,  h = gelu(pre)        ``linear_gelu``: one product writes both
    dpre = (dy W) gelu'(pre)               ``gelu_backward``: the hidden gradient dy W is never in memory

- A product computes its result in registers. What is done there before it is written (an *epilogue*) costs no
  pass over memory. PyTorch has bias and GELU as epilogues, but not with the GELU's input kept, which
  training needs, nor the derivative; cuBLASLt has both, for the GELU by tanh. So it is called directly.
- For each product the library proposes several algorithms, and its first choice is not always the fastest
  (by up to 12 percent on an H100). The first call with new sizes times them, with up to 176 products; not for
  few rows, of which each number may come once, while text is generated, nor where the same product has been
  timed for TIMED_COUNTS other numbers of rows, nor for tensors so large that copies of them might not fit:
  these take the first choice. Only those algorithms count whose result has the same bits as the first's, so
  that speed never changes a number. That is found out with random numbers: of zeros, which a layer may start
  with, all sums are equal. A stream that is being captured into a CUDA graph takes the first.
- The library is the one that PyTorch has loaded; ``fits`` says where it can be used: CUDA on Hopper, 16 bits,
  sizes that are multiples of 8. (Older GPUs do the epilogue in a pass of its own, which is slower.)

Source: NVIDIA, cuBLAS documentation, "Using the cuBLASLt API". Its matrices lie column by column: a row-major
(N, K) tensor is its (K, N) matrix, and y^T = W x^T + b is what it computes.
"""

from __future__ import annotations

import ctypes
import functools
import statistics
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kernels._runtime import capability

HOPPER = (9, 0)
ALIGNED = 8  # elements: sizes are multiples of it
ALIGNED_BYTES = 256  # addresses are: what the library takes for granted where it is not told otherwise
WORKSPACE_BYTES = 32 * 2**20
PROPOSALS, SAMPLES = 16, 5
# Fewer rows, larger copies of what a product reads (the GELU's backward of 16,384 x 6,400 needs 283 MB), or
# yet another number of rows: the library's first choice.
TIMED_ROWS, TIMED_BYTES, TIMED_COUNTS = 1024, 9 * 2**25, 8
BLOCK = 2**24  # values of which the bits are added up at a time

# Values of the library's enumerations.
_FLOAT32, _TYPES = 0, {torch.float16: 2, torch.bfloat16: 14}
_COMPUTE_FLOAT32 = 68
_TRANSPOSE_A, _EPILOGUE, _BIAS, _AUX, _AUX_STRIDE, _BIAS_TYPE = 3, 7, 8, 11, 12, 26
_MAX_WORKSPACE = 1
PLAIN, WITH_BIAS, GELU_AUX, GELU_AUX_BIAS, GELU_DERIVATIVE = 1, 4, 160, 164, 192


class _Algorithm(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint64 * 8)]


class _Proposal(ctypes.Structure):
    _fields_ = [
        ("algorithm", _Algorithm),
        ("workspace_bytes", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library of PyTorch's CUDA version, which PyTorch has loaded; ``None`` where there is none."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    try:
        found = ctypes.CDLL(f"libcublasLt.so.{torch.version.cuda.split('.')[0]}")
    except OSError:
        return None
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    found.cublasLtCreate.argtypes = [pointer]
    found.cublasLtMatmulDescCreate.argtypes = [pointer, number, number]
    found.cublasLtMatmulDescSetAttribute.argtypes = [pointer, number, pointer, size]
    found.cublasLtMatrixLayoutCreate.argtypes = [pointer, number, *[ctypes.c_uint64] * 2, ctypes.c_int64]
    found.cublasLtMatmulPreferenceCreate.argtypes = [pointer]
    found.cublasLtMatmulPreferenceSetAttribute.argtypes = [pointer, number, pointer, size]
    found.cublasLtMatmulPreferenceDestroy.argtypes = [pointer]
    found.cublasLtMatmulAlgoGetHeuristic.argtypes = [*[pointer] * 7, number, pointer, pointer]
    found.cublasLtMatmul.argtypes = [*[pointer] * 14, size, pointer]
    return found


def _done(status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"cuBLASLt could not {what}: status {status}")


@functools.cache
def _handle(device: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    with torch.cuda.device(device):
        _done(_need().cublasLtCreate(ctypes.byref(handle)), "start")
    return handle


def _need() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise RuntimeError("cuBLASLt is not there: ask kernels.cublaslt.fits first")
    return library


def fits(x: Tensor, *sizes: int) -> bool:
    """Whether these products can be used for tensors like ``x`` and matrices of such sizes."""
    return (
        x.is_cuda
        and x.dtype in _TYPES
        and capability(x.device) == HOPPER
        and all(size and size % ALIGNED == 0 for size in sizes)
        and _library() is not None
    )


class _Sizes(NamedTuple):
    """A product as the library sees it: D (m, n) = op(A) op(B), column by column."""

    m: int
    n: int
    k: int
    turn_a: bool
    epilogue: int
    dtype: torch.dtype
    device: int
    stride: int  # of D: its m values lie side by side, and the next n begin so many further on


_timed: defaultdict[_Sizes, set[int]] = defaultdict(set)  # by sizes without n: each n that was timed


class _Product:
    """Descriptors of one product, and the algorithm chosen for it; kept as long as the process lives."""

    def __init__(self, sizes: _Sizes) -> None:
        self.sizes = sizes
        self.lock = threading.Lock()  # the descriptor holds the pointers of the call that is being made
        library, kind = _need(), _TYPES[sizes.dtype]
        self.descriptor = ctypes.c_void_p()
        made = library.cublasLtMatmulDescCreate(ctypes.byref(self.descriptor), _COMPUTE_FLOAT32, _FLOAT32)
        _done(made, "describe a product")
        self._set(_TRANSPOSE_A, ctypes.c_int32(sizes.turn_a))
        self._set(_EPILOGUE, ctypes.c_uint32(sizes.epilogue))
        self._set(_BIAS_TYPE, ctypes.c_int32(kind))
        if sizes.epilogue >= GELU_AUX:
            self._set(_AUX_STRIDE, ctypes.c_int64(sizes.m))
        m, n, k = sizes[:3]
        self.a = _layout(kind, *((k, m) if sizes.turn_a else (m, k)))
        self.b, self.d = _layout(kind, k, n), _layout(kind, m, n, sizes.stride)
        self.chosen: _Proposal | None = None

    def _set(self, attribute: int, value: ctypes._SimpleCData) -> None:
        done = _need().cublasLtMatmulDescSetAttribute(
            self.descriptor, attribute, ctypes.byref(value), ctypes.sizeof(value)
        )
        _done(done, f"set attribute {attribute}")

    def __call__(self, a: Tensor, b: Tensor, d: Tensor, bias: Tensor | None, aux: Tensor | None) -> None:
        with self.lock:
            self._point(bias, aux)
            if self.chosen is None:
                proposals = self._proposals()
                if not self._worth_timing(a, b, aux):
                    self.chosen = proposals[0]
                elif torch.cuda.is_current_stream_capturing():
                    # Nothing can be timed now; a later call may choose.
                    return self._launch(proposals[0], a, b, d)
                else:
                    _timed[self.sizes._replace(n=0)].add(self.sizes.n)
                    self.chosen = self._choose(proposals, a, b, d, bias, aux)
                    self._point(bias, aux)
            self._launch(self.chosen, a, b, d)

    def _worth_timing(self, a: Tensor, b: Tensor, aux: Tensor | None) -> bool:
        read = [a, b, aux] if aux is not None and self.sizes.epilogue == GELU_DERIVATIVE else [a, b]
        counts = _timed[self.sizes._replace(n=0)]
        return (
            self.sizes.n >= TIMED_ROWS
            and sum(each.nbytes for each in read) <= TIMED_BYTES
            and (self.sizes.n in counts or len(counts) < TIMED_COUNTS)
        )

    def _point(self, bias: Tensor | None, aux: Tensor | None) -> None:
        if bias is not None:
            self._set(_BIAS, ctypes.c_void_p(bias.data_ptr()))
        if aux is not None:
            self._set(_AUX, ctypes.c_void_p(aux.data_ptr()))

    def _launch(self, proposal: _Proposal, a: Tensor, b: Tensor, d: Tensor) -> None:
        workspace = torch.empty(proposal.workspace_bytes, dtype=torch.uint8, device=d.device)
        one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        done = _need().cublasLtMatmul(
            _handle(self.sizes.device), self.descriptor,
            ctypes.byref(one), a.data_ptr(), self.a, b.data_ptr(), self.b,
            ctypes.byref(zero), d.data_ptr(), self.d, d.data_ptr(), self.d,
            ctypes.byref(proposal.algorithm), workspace.data_ptr(), proposal.workspace_bytes,
            torch.cuda.current_stream(d.device).cuda_stream,
        )  # fmt: skip
        _done(done, f"multiply {self.sizes}")

    def _proposals(self) -> list[_Proposal]:
        library, preference = _need(), ctypes.c_void_p()
        _done(library.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)), "take a preference")
        limit = ctypes.c_uint64(WORKSPACE_BYTES)
        done = library.cublasLtMatmulPreferenceSetAttribute(
            preference, _MAX_WORKSPACE, ctypes.byref(limit), ctypes.sizeof(limit)
        )
        _done(done, "limit the workspace")
        found, count = (_Proposal * PROPOSALS)(), ctypes.c_int()
        done = library.cublasLtMatmulAlgoGetHeuristic(
            _handle(self.sizes.device), self.descriptor, self.a, self.b, self.d, self.d,
            preference, PROPOSALS, ctypes.byref(found), ctypes.byref(count),
        )  # fmt: skip
        library.cublasLtMatmulPreferenceDestroy(preference)
        _done(done, f"find an algorithm for {self.sizes}")
        usable = [each for each in found[: count.value] if each.state == 0]
        if not usable:
            raise RuntimeError(f"cuBLASLt has no algorithm for {self.sizes}")
        return usable

    def _choose(
        self,
        proposals: list[_Proposal],
        a: Tensor,
        b: Tensor,
        d: Tensor,
        bias: Tensor | None,
        aux: Tensor | None,
    ) -> _Proposal:
        """The fastest of those with the same bits as the first; writes to d, and to aux if it is a result."""
        generator = torch.Generator(d.device)
        a, b = _random(a, generator), _random(b, generator)
        results = [d]
        if aux is not None and self.sizes.epilogue != GELU_DERIVATIVE:
            results.append(aux)
        elif aux is not None:
            aux = _random(aux, generator)
            self._point(bias, aux)
        expected: list[Tensor] = []
        same = []
        for proposal in proposals:
            self._launch(proposal, a, b, d)
            found = [_fingerprint(each) for each in results]
            expected = expected or found
            if all(map(torch.equal, found, expected)):
                same.append(proposal)
        return min(same, key=lambda proposal: _milliseconds(lambda: self._launch(proposal, a, b, d)))


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty_like(like).normal_(generator=generator)


def _fingerprint(result: Tensor) -> Tensor:
    """Two sums over the bits of each block of rows: a copy to compare with might not fit into memory."""
    weights = torch.arange(1, result.shape[1] + 1, dtype=torch.int32, device=result.device) % 65_521
    sums = []
    for block in result.view(torch.int16).split(max(BLOCK // result.shape[1], 1)):
        bits = block.to(torch.int32)
        sums += [bits.sum(), (bits * weights).sum()]
    return torch.stack(sums)


def _layout(kind: int, rows: int, columns: int, stride: int | None = None) -> ctypes.c_void_p:
    layout = ctypes.c_void_p()
    made = _need().cublasLtMatrixLayoutCreate(ctypes.byref(layout), kind, rows, columns, stride or rows)
    _done(made, "describe a matrix")
    return layout


def _milliseconds(run: Callable[[], None]) -> float:
    """The median of some runs, each queued behind another, so that no time passes in which Python works."""
    times = []
    for _ in range(SAMPLES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        run()
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


@functools.cache
def _product(sizes: _Sizes) -> _Product:
    return _Product(sizes)


def _multiply(
    a: Tensor,
    b: Tensor,
    turn_a: bool,
    epilogue: int,
    bias: Tensor | None = None,
    aux: Tensor | None = None,
    d: Tensor | None = None,
) -> Tensor:
    """Row-major b (n, k) times a: (m, k) turned, or (k, m) as it is; gives (n, m), in d where it is given."""
    m, n, k = a.shape[0 if turn_a else 1], b.shape[0], b.shape[1]
    if d is None:
        d = b.new_empty(n, m)
    product = _product(_Sizes(m, n, k, turn_a, epilogue, b.dtype, b.get_device(), d.stride(0)))
    product(_aligned(a), _aligned(b), d, None if bias is None else _aligned(bias), aux)
    return d


def is_aligned(x: Tensor) -> bool:
    """Whether x begins at an address that the library can use."""
    return x.data_ptr() % ALIGNED_BYTES == 0


def _aligned(x: Tensor) -> Tensor:
    """x, or a copy of a view that begins in the middle of something."""
    return x if is_aligned(x) else x.clone()


def linear(
    x: Float[Tensor, "N K"],
    weight: Float[Tensor, "F K"],
    bias: Float[Tensor, " F"] | None = None,
    out: Float[Tensor, "N F"] | None = None,
) -> Float[Tensor, "N F"]:
    """``F.linear(x, weight, bias)`` of contiguous tensors that ``fits`` has been asked about.

    Args:
        out: where the result goes, which ``is_aligned``; its rows may lie further apart than F, if that fits.
    """
    return _multiply(weight, x, True, PLAIN if bias is None else WITH_BIAS, bias, d=out)


def linear_gelu(
    x: Float[Tensor, "N K"], weight: Float[Tensor, "F K"], bias: Float[Tensor, " F"] | None
) -> tuple[Float[Tensor, "N F"], Float[Tensor, "N F"]]:
    """gelu(pre) by tanh, and pre = ``F.linear(x, weight, bias)``; the GELU is taken before pre is rounded."""
    pre = x.new_empty(len(x), len(weight))
    h = _multiply(weight, x, True, GELU_AUX if bias is None else GELU_AUX_BIAS, bias, pre)
    return h, pre


def gelu_backward(
    dy: Float[Tensor, "N E"], weight: Float[Tensor, "E F"], pre: Float[Tensor, "N F"]
) -> Float[Tensor, "N F"]:
    """``(dy @ weight) * gelu'(pre)``, of the GELU by tanh."""
    return _multiply(weight, dy, False, GELU_DERIVATIVE, None, _aligned(pre))
