"""Rooflines: an operation is bound by arithmetic or by memory, whichever takes longer.

- Intensity is FLOPs over bytes moved; a device's ridge is its peak over its bandwidth. Left of the ridge
  memory decides, right of it arithmetic (Williams et al. 2009, doi:10.1145/1498765.1498785).
- Bytes are the least possible: every input read once, every output written once, nothing kept in caches
  between operations. A real kernel moves at least as many, so the time is a lower bound.
"""

from dataclasses import dataclass
from fractions import Fraction

from lmlib.resources.flops import attended_pairs
from lmlib.resources.hardware import Device
from lmlib.resources.ledger import Ledger, Term, derive
from lmlib.resources.sources import PRODUCTS, ROOFLINE
from lmlib.resources.units import DTYPE_BYTES, Number, check_choice, check_integer

LARGEST_SIZE = 2**40


@dataclass(frozen=True)
class Operation:
    """What an operation computes and moves; ``dtype`` is what its arithmetic runs in."""

    name: str
    dtype: str
    flops: Ledger
    moved: Ledger

    @property
    def intensity(self) -> Term:
        """FLOPs a byte moved."""
        return _term(
            "intensity", "flops / bytes", "FLOPs/byte", flops=self.flops.total, bytes=self.moved.total
        )


@dataclass(frozen=True)
class Roof:
    """An operation on a device: ``seconds`` is the longer of the two times, ``bound`` says which.

    ``reached`` is FLOP/s at that time, ``ridge`` the intensity from which arithmetic decides.
    """

    operation: Operation
    compute: Term
    memory: Term
    ridge: Term
    bound: str
    seconds: Term
    reached: Term


def _term(name: str, formula: str, unit: str, **symbols: Number) -> Term:
    return derive(name, formula, unit, PRODUCTS if unit == "FLOPs" else ROOFLINE, **symbols)


def _sizes(**sizes: int) -> dict[str, int]:
    for name, size in sizes.items():
        check_integer(name, size, 1, LARGEST_SIZE)
    return sizes


def _bytes(dtype: str) -> int | Fraction:
    check_choice("dtype", dtype, DTYPE_BYTES)
    return DTYPE_BYTES[dtype]


def matmul(m: int, k: int, n: int, *, dtype: str = "bf16", weight_dtype: str = "") -> Operation:
    """An (m, k) matrix times a (k, n) one, the weight, which may be stored narrower (``weight_dtype``)."""
    sizes = _sizes(m=m, k=k, n=n)
    value, weight = _bytes(dtype), _bytes(weight_dtype or dtype)
    moved = (
        _term("input", "m * k * value_bytes", "bytes", m=m, k=k, value_bytes=value),
        _term("weight", "k * n * weight_bytes", "bytes", k=k, n=n, weight_bytes=weight),
        _term("output", "m * n * value_bytes", "bytes", m=m, n=n, value_bytes=value),
    )
    flops = _term("product", "2 * m * k * n", "FLOPs", **sizes)
    return Operation("matmul", dtype, Ledger("FLOPs", "FLOPs", (flops,)), Ledger("bytes", "bytes", moved))


def attention(
    batch: int,
    n_heads: int,
    n_kv_heads: int,
    queries: int,
    keys: int,
    head_dim: int,
    *,
    mask: str,
    kernel: str = "flash",
    dtype: str = "bf16",
) -> Operation:
    """Attention of ``queries`` tokens over ``keys`` of them, the last ``queries`` of which are its own.

    Args:
        kernel: ``flash`` keeps scores on the chip; ``math`` writes and reads them in ``dtype`` before
            and after the softmax (Dao et al. 2022, arXiv:2205.14135, theorem 2).
        mask: see ``flops.attended_pairs``.
    """
    _sizes(batch=batch, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, queries=queries)
    check_integer("keys", keys, queries, LARGEST_SIZE)
    check_choice("kernel", kernel, ("flash", "math"))
    value = _bytes(dtype)
    pairs = attended_pairs(queries, mask, past=keys - queries)
    heads = {"batch": batch, "n_heads": n_heads, "head_dim": head_dim}
    flops = _term(
        "scores and values", "4 * batch * n_heads * pairs * head_dim", "FLOPs", pairs=pairs, **heads
    )
    cached = {"batch": batch, "n_kv_heads": n_kv_heads, "keys": keys, "head_dim": head_dim}
    moved = [
        _term(
            "queries and output",
            "2 * batch * n_heads * queries * head_dim * value_bytes",
            "bytes",
            queries=queries,
            value_bytes=value,
            **heads,
        ),
        _term(
            "keys and values",
            "2 * batch * n_kv_heads * keys * head_dim * value_bytes",
            "bytes",
            value_bytes=value,
            **cached,
        ),
    ]
    if kernel == "math":
        moved.append(
            _term(
                "scores and probabilities, written and read",
                "4 * batch * n_heads * queries * keys * value_bytes",
                "bytes",
                batch=batch,
                n_heads=n_heads,
                queries=queries,
                keys=keys,
                value_bytes=value,
            )
        )
    return Operation(
        f"attention ({kernel})",
        dtype,
        Ledger("FLOPs", "FLOPs", (flops,)),
        Ledger("bytes", "bytes", tuple(moved)),
    )


def norm(tokens: int, d_model: int, *, dtype: str = "bf16") -> Operation:
    """RMSNorm: squares and their sum, the root, two products a value; the input is read once."""
    sizes = _sizes(tokens=tokens, d_model=d_model)
    flops = _term("squares, sum, two products", "4 * tokens * d_model", "FLOPs", **sizes)
    moved = (
        _term(
            "input and output",
            "2 * tokens * d_model * value_bytes",
            "bytes",
            value_bytes=_bytes(dtype),
            **sizes,
        ),
        _term("weight", "d_model * value_bytes", "bytes", d_model=d_model, value_bytes=_bytes(dtype)),
    )
    return Operation("norm", dtype, Ledger("FLOPs", "FLOPs", (flops,)), Ledger("bytes", "bytes", moved))


def elementwise(values: int, *, inputs: int = 1, flops_per_value: int = 1, dtype: str = "bf16") -> Operation:
    """A function of ``inputs`` tensors of ``values`` values each: an addition has 2, SwiGLU's product 2."""
    _sizes(values=values, inputs=inputs, flops_per_value=flops_per_value)
    flops = _term(
        "arithmetic", "values * flops_per_value", "FLOPs", values=values, flops_per_value=flops_per_value
    )
    moved = (
        _term(
            "inputs",
            "inputs * values * value_bytes",
            "bytes",
            inputs=inputs,
            values=values,
            value_bytes=_bytes(dtype),
        ),
        _term("output", "values * value_bytes", "bytes", values=values, value_bytes=_bytes(dtype)),
    )
    return Operation(
        "elementwise", dtype, Ledger("FLOPs", "FLOPs", (flops,)), Ledger("bytes", "bytes", moved)
    )


def roofline(operation: Operation, device: Device) -> Roof:
    """The least time that ``operation`` takes on ``device``.

    Raises:
        ArgumentError: if the device has no published peak for the operation's dtype.
    """
    peak, bandwidth = device.peak_of(operation.dtype), device.bandwidth
    of_peak, of_bandwidth = device.source_of(operation.dtype), device.source_of("bandwidth")
    compute = derive("arithmetic", "flops / peak", "seconds", of_peak, flops=operation.flops.total, peak=peak)
    memory = derive(
        "memory",
        "bytes / bandwidth",
        "seconds",
        of_bandwidth,
        bytes=operation.moved.total,
        bandwidth=bandwidth,
    )
    both = "; ".join(dict.fromkeys((of_peak, of_bandwidth)))
    ridge = derive("ridge", "peak / bandwidth", "FLOPs/byte", both, peak=peak, bandwidth=bandwidth)
    bound = "arithmetic" if compute.value >= memory.value else "memory"
    seconds = derive(
        "time", "max(arithmetic, memory)", "seconds", ROOFLINE, arithmetic=compute.value, memory=memory.value
    )
    reached = derive(
        "reached",
        "flops / seconds",
        "FLOPs/second",
        ROOFLINE,
        flops=operation.flops.total,
        seconds=seconds.value,
    )
    return Roof(operation, compute, memory, ridge, bound, seconds, reached)
