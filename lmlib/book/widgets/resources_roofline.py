"""The calculator *Roofline*: is an operation bound by arithmetic or by memory, and how fast can it be?"""

from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from typing import Any

from lmlib.book.declare import (
    Choice,
    InputError,
    Note,
    Number,
    Output,
    Plot,
    Table,
    Value,
    Widget,
    register,
)
from lmlib.book.quantities import readable
from lmlib.book.widgets.resources_devices import device_inputs, read_device
from lmlib.book.widgets.resources_explain import explained, plain, refused_beside, section, steps
from lmlib.resources.hardware import DEVICES, Device
from lmlib.resources.roofline import Operation, Roof, attention, matmul, norm, roofline
from lmlib.resources.units import DTYPE_BYTES, ArgumentError

_ANCHOR = "sec-roofline"
_ROWS = (1, 4, 16, 64, 256, 1024, 4096, 16_384)
_SIZES = {
    "matmul": ("m", "k", "n", "weight_dtype"),
    "attention": ("batch", "n_heads", "n_kv_heads", "queries", "keys", "head_dim", "mask", "kernel"),
    "norm": ("tokens", "d_model"),
}


def calculate(start: str, operation: str, dtype: str, **values: Any) -> Sequence[Output]:
    """Time, bound and intensity of one operation on one device, and on the others."""
    del start  # it only fills the other fields
    device = read_device(values)
    sizes = {name: values[name] for name in _SIZES[operation]}
    with refused_beside({*values, "dtype"}, {}):
        made = _operation(operation, dtype, sizes)
        roof = roofline(made, device)
    share = Fraction(100 * roof.reached.value / device.peak_of(dtype))
    return [
        Value("Takes at least", plain(roof.seconds.value), "s", headline=True),
        Value("Bound by", roof.bound, headline=True),
        Value("Intensity", plain(made.intensity.value), "FLOPs/B", headline=True),
        Value(
            "Ridge of the device",
            plain(roof.ridge.value),
            "FLOPs/B",
            help="From this intensity on, arithmetic takes longer than memory",
        ),
        Value("Speed at that time", plain(roof.reached.value), "FLOP/s"),
        Value("Share of the peak", plain(share), "%"),
        Note(_advice(operation, roof, sizes, device)),
        _plot(roof, device, _with_other_rows(operation, dtype, sizes)),
        explained(made.flops, "What is computed", _ANCHOR),
        explained(made.moved, "What is moved between memory and chip", _ANCHOR, "Bytes moved"),
        steps("Which of the two takes longer", _ANCHOR, roof.compute, roof.memory),
        *_rows_table(operation, dtype, sizes, device),
        _device_table(made),
    ]


def _operation(operation: str, dtype: str, sizes: dict[str, Any]) -> Operation:
    if operation == "matmul":
        weight = sizes["weight_dtype"]
        return matmul(
            sizes["m"], sizes["k"], sizes["n"], dtype=dtype, weight_dtype="" if weight == "same" else weight
        )
    if operation == "norm":
        return norm(sizes["tokens"], sizes["d_model"], dtype=dtype)
    if sizes["n_heads"] % sizes["n_kv_heads"]:
        raise InputError(
            "n_kv_heads", f"Must divide n_heads = {sizes['n_heads']}; {sizes['n_kv_heads']} does not."
        )
    return attention(**sizes, dtype=dtype)


def _advice(operation: str, roof: Roof, sizes: dict[str, Any], device: Device) -> str:
    """What would move this operation to the other side of the ridge."""
    if operation == "matmul":
        rows = _rows_to_ridge(roof, sizes)
        if rows is None:
            return (
                f"However many rows, these matrices stay left of the ridge of {device.title}: with k = "
                f"{sizes['k']:,} and n = {sizes['n']:,} input and output alone take longer than the product."
            )
        verb = "decides" if sizes["m"] >= rows else "would decide"
        return f"From m = {rows:,} rows on, arithmetic {verb}; below, reading the weight does."
    if operation == "norm":
        return (
            "A norm does a few FLOPs for each value it moves: no size brings it near the ridge. Fusing it "
            "with its neighbours does."
        )
    if sizes["queries"] == 1 and roof.bound == "memory":
        group = sizes["n_heads"] // sizes["n_kv_heads"]
        return (
            f"Each key and value that is read serves {group} quer{'ies' if group > 1 else 'y'}: that is the "
            "intensity of decoding, whatever the batch. More query heads to a key/value head raise it."
        )
    if sizes["kernel"] == "math":
        return (
            "Most of the traffic may be scores that are written and read; kernel = flash keeps them on the "
            "chip."
        )
    return "Each key that is read serves every query of its sequence: long sequences are bound by arithmetic."


def _rows_to_ridge(roof: Roof, sizes: dict[str, Any]) -> int | None:
    """The least m at which the product takes as long as its bytes, from 2mkn / bytes = ridge."""
    k, n, ridge = sizes["k"], sizes["n"], Fraction(roof.ridge.value)
    value = DTYPE_BYTES[roof.operation.dtype]
    weight = value if sizes["weight_dtype"] == "same" else DTYPE_BYTES[sizes["weight_dtype"]]
    gain = 2 * k * n - ridge * value * (k + n)
    return ceil(ridge * weight * k * n / gain) if gain > 0 else None


def _with_other_rows(operation: str, dtype: str, sizes: dict[str, Any]) -> list[Operation]:
    if operation != "matmul":
        return []
    return [_operation(operation, dtype, {**sizes, "m": rows}) for rows in _ROWS]


def _rows_table(operation: str, dtype: str, sizes: dict[str, Any], device: Device) -> list[Output]:
    rows = [
        (made, roofline(made, device), m)
        for made, m in zip(_with_other_rows(operation, dtype, sizes), _ROWS, strict=False)
    ]
    if not rows:
        return []
    return [
        Table(
            "The same weight with other numbers of rows",
            ["Rows m", "Intensity (FLOPs/B)", "Bound by", "Least time (µs)", "TFLOP/s"],
            [
                [
                    m,
                    plain(made.intensity.value),
                    roof.bound,
                    plain(roof.seconds.value * 10**6),
                    plain(roof.reached.value / 10**12),
                ]
                for made, roof, m in rows
            ],
        )
    ]


def _device_table(made: Operation) -> Table:
    roofs = []
    for device in DEVICES.values():
        try:
            roofs.append((device, roofline(made, device)))
        except ArgumentError:  # no units for this dtype, or no published figure
            continue
    return Table(
        f"The same operation on every device with a published peak in {made.dtype}",
        ["Device", "Ridge (FLOPs/B)", "Bound by", "Least time (µs)"],
        [
            [device.title, plain(roof.ridge.value), roof.bound, plain(roof.seconds.value * 10**6)]
            for device, roof in roofs
        ],
    )


def _plot(roof: Roof, device: Device, others: list[Operation]) -> Plot:
    peak, ridge = device.peak_of(roof.operation.dtype), plain(roof.ridge.value)
    intensity, reached = plain(roof.operation.intensity.value), plain(roof.reached.value)
    ends = [min(intensity, ridge) / 16, max(intensity, ridge) * 16]
    data: list[dict[str, Any]] = [
        {
            "x": [ends[0], ridge, ends[1]],
            "y": [plain(ends[0] * device.bandwidth), peak, peak],
            "name": f"roof of {device.title}",
            "mode": "lines",
        }
    ]
    if others:
        points = [plain(made.intensity.value) for made in others]
        data.append(
            {
                "x": points,
                "y": [plain(min(point * device.bandwidth, peak)) for point in points],
                "text": [f"m = {rows:,}" for rows in _ROWS],
                "name": "other numbers of rows",
                "mode": "markers",
            }
        )
    here = {"size": 14, "color": "#d55e00", "symbol": "diamond"}
    data.append({"x": [intensity], "y": [reached], "name": "yours", "mode": "markers", "marker": here})
    return Plot(
        "The roofline",
        f"Attainable FLOP/s over intensity on {device.title}: rising to "
        f"{readable(peak, 'FLOP/s')} at the ridge of {ridge:.4g} FLOPs/B, flat beyond. "
        f"This operation is at {intensity:.4g} FLOPs/B and reaches {readable(reached, 'FLOP/s')}.",
        data,
        {
            "xaxis": {"type": "log", "title": {"text": "Intensity (FLOPs/B)"}},
            "yaxis": {"type": "log", "title": {"text": "FLOP/s"}, "exponentformat": "SI"},
        },
    )


def _product(m: int, k: int, n: int) -> dict[str, Any]:
    return {"operation": "matmul", "m": m, "k": k, "n": n}


def _heads(batch: int, queries: int) -> dict[str, Any]:
    shape = {"n_heads": 32, "n_kv_heads": 8, "head_dim": 128, "keys": 8192}
    return {"operation": "attention", "batch": batch, "queries": queries, **shape}


_STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp-train": ("Llama 3 8B, down_proj, 8,192 tokens", _product(8192, 14_336, 4096)),
    "mlp-decode": ("Llama 3 8B, down_proj, one token", _product(1, 14_336, 4096)),
    "head-decode": ("Llama 3 8B, head, 16 tokens", _product(16, 4096, 128_256)),
    "attention-train": ("Llama 3 8B, attention over 8,192 tokens", _heads(1, 8192)),
    "attention-decode": ("Llama 3 8B, attention of one new token", _heads(16, 1)),
    "norm": (
        "Llama 3 8B, RMSNorm of 8,192 tokens",
        {"operation": "norm", "tokens": 8192, "d_model": 4096},
    ),
}
_LARGEST = 2**32


def _size(name: str, operation: str, default: int, help_: str = "") -> Number:
    return Number(
        name,
        name,
        default,
        1,
        _LARGEST,
        help=help_,
        group="The operation",
        visible_when=("operation", (operation,)),
    )


def _choice(name: str, operation: str, options: tuple[tuple[str, str], ...], help_: str = "") -> Choice:
    return Choice(
        name,
        name,
        options,
        options[0][0],
        help=help_,
        group="The operation",
        visible_when=("operation", (operation,)),
    )


_DTYPES = tuple((dtype, dtype) for dtype in ("bf16", "fp16", "fp32", "fp8", "int8"))

register(
    Widget(
        name="resources/roofline",
        title="Roofline: bound by arithmetic or by memory?",
        description=(
            "The least time that an operation takes on a device: the longer of computing its FLOPs at the "
            "peak and moving its bytes at full bandwidth."
        ),
        inputs=(
            Choice(
                "start",
                "Start from",
                (
                    ("custom", "An operation of your own"),
                    *((key, title) for key, (title, _) in _STARTS.items()),
                ),
                "mlp-decode",
                presets={key: filled for key, (_, filled) in _STARTS.items()},
                group="The operation",
            ),
            Choice(
                "operation",
                "Operation",
                (("matmul", "Matrix product"), ("attention", "Attention"), ("norm", "RMSNorm")),
                "matmul",
                group="The operation",
            ),
            _size("m", "matmul", 1, "Rows of the input: tokens"),
            _size("k", "matmul", 14_336, "Columns of the input, rows of the weight"),
            _size("n", "matmul", 4096, "Columns of the weight"),
            _choice(
                "weight_dtype",
                "matmul",
                (
                    ("same", "as the input"),
                    *((dtype, dtype) for dtype in ("bf16", "fp8", "int8", "int4")),
                ),
                "How the weight is stored; it is computed with in dtype",
            ),
            _size("batch", "attention", 16),
            _size("n_heads", "attention", 32),
            _size("n_kv_heads", "attention", 8, "Must divide n_heads"),
            _size("queries", "attention", 1, "New tokens of each sequence"),
            _size("keys", "attention", 8192, "Tokens they see, themselves included"),
            _size("head_dim", "attention", 128),
            _choice("mask", "attention", (("causal", "causal"), ("full", "none"))),
            _choice(
                "kernel",
                "attention",
                (("flash", "flash: scores stay on the chip"), ("math", "math: scores go to memory and back")),
            ),
            _size("tokens", "norm", 8192),
            _size("d_model", "norm", 4096),
            Choice("dtype", "dtype", _DTYPES, "bf16", help="Of the arithmetic", group="The hardware"),
            *device_inputs("peak", "bandwidth"),
        ),
        compute=calculate,
        section=section(_ANCHOR),
    )
)
