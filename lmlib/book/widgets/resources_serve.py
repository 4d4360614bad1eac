"""The calculator *What can I serve?*: key/value cache, largest batch, tokens a second, latency."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from lmlib.book.declare import Choice, Note, Number, Output, Plot, Table, Value, Widget, register
from lmlib.book.quantities import readable
from lmlib.book.widgets.resources_devices import device_inputs, read_device
from lmlib.book.widgets.resources_explain import explained, plain, section, steps
from lmlib.book.widgets.resources_models import REHEARSAL, check_context, model_inputs, with_model
from lmlib.resources.kv_cache import cache, per_token
from lmlib.resources.model import Attention, Model
from lmlib.resources.serving import Bound, decode, largest_batch, prefill, room

_ANCHOR = "sec-kv-cache"
_MOST_BATCH = 10**6


def calculate(
    model: Model,
    context_length: int,
    prompt: int,
    batch: int,
    weight_dtype: str,
    cache_dtype: str,
    compute_dtype: str,
    n_devices: int,
    usable_percent: float,
    **hardware: Any,
) -> Sequence[Output]:
    """Cache, largest batch, and bounds of speed when ``batch`` sequences are decoded."""
    device = read_device(hardware)
    warning = check_context(model, context_length)
    usable = Fraction(str(usable_percent)) / 100
    most = largest_batch(
        model,
        device,
        context_length,
        n_devices,
        weight_dtype=weight_dtype,
        cache_dtype=cache_dtype,
        usable=usable,
    )
    left = room(model, device, n_devices, weight_dtype=weight_dtype, usable=usable)
    one = cache(model, context_length, 1, cache_dtype)
    speed = {"weight_dtype": weight_dtype, "cache_dtype": cache_dtype, "compute_dtype": compute_dtype}
    step = decode(model, device, batch, context_length, n_devices, **speed)
    first = prefill(model, device, prompt, 1, n_devices, **speed)
    per_second = plain(step.tokens_per_second.value)
    bounds = [
        (size, decode(model, device, size, context_length, n_devices, **speed))
        for size in _batches(int(most.value), batch)
    ]
    return [
        Value("Largest batch", int(most.value), "sequences", headline=True),
        Value("Time of a token, at least", plain(step.seconds.value), "s", headline=True),
        Value("Tokens a second, at most", per_second, "tokens/s", headline=True),
        Value("Of each sequence, at most", plain(step.tokens_per_second.value / batch), "tokens/s"),
        Value("Longest part of a step", step.bound),
        Value(
            "Time to the first token, at least",
            plain(first.seconds.value),
            "s",
            help=f"Reading a prompt of {prompt:,} tokens",
        ),
        Value("Cache of one sequence", plain(one.total), "B"),
        Value("Cache of one token", plain(per_token(model, cache_dtype).total), "B/token"),
        *_notes(warning, model, batch, int(most.value), n_devices, left.total),
        _plot(bounds, batch),
        explained(one, f"Key/value cache of {context_length:,} tokens", _ANCHOR),
        explained(left, "What is left for caches", _ANCHOR),
        steps(
            "One step of the batch",
            _ANCHOR,
            step.products,
            step.weights,
            step.attention,
            step.cache,
            step.seconds,
        ),
        _table(bounds),
    ]


def _batches(most: int, batch: int) -> list[int]:
    """Powers of two up to what fits, what fits, and what was asked for."""
    doubled = [2**power for power in range(21) if 2**power <= max(most, batch)]
    return sorted({*doubled, min(max(most, 1), _MOST_BATCH), batch})


def _notes(
    warning: str, model: Model, batch: int, most: int, n_devices: int, left: int | float | Fraction
) -> list[Note]:
    notes = [Note(warning, "warning")] if warning else []
    if left < 0:
        short = readable(plain(-left), "B")
        notes.append(
            Note(
                f"The weights alone do not fit: {short} are missing. Take more devices or fewer bits.", "bad"
            )
        )
    elif batch > most:
        notes.append(Note(f"A batch of {batch:,} does not fit: {most:,} sequences of this length do.", "bad"))
    else:
        notes.append(Note(f"A batch of {batch:,} fits; up to {most:,} do.", "good"))
    attention = model.layers[0].attention
    if isinstance(attention, Attention) and n_devices > attention.n_kv_heads:
        notes.append(
            Note(
                f"More devices than key/value heads ({attention.n_kv_heads}): tensor parallelism alone would "
                "copy the cache. The bound takes it as evenly divided.",
                "warning",
            )
        )
    return notes


def _plot(bounds: list[tuple[int, Bound]], batch: int) -> Plot:
    sizes = [size for size, _ in bounds]
    speeds = [plain(bound.tokens_per_second.value) for _, bound in bounds]
    times = [plain(bound.seconds.value * 1000) for _, bound in bounds]
    here = sizes.index(batch)
    yours = {"size": 14, "color": "#d55e00", "symbol": "diamond"}
    return Plot(
        "Throughput against latency",
        f"Tokens a second over the time of a token, for batches from {sizes[0]:,} to {sizes[-1]:,}: from "
        f"{readable(speeds[0], 'tokens/s')} at {times[0]:.4g} ms to {readable(speeds[-1], 'tokens/s')} at "
        f"{times[-1]:.4g} ms.",
        [
            {
                "x": times,
                "y": speeds,
                "text": [f"batch {size:,}" for size in sizes],
                "name": "batches",
                "mode": "lines+markers",
            },
            {"x": [times[here]], "y": [speeds[here]], "name": "yours", "mode": "markers", "marker": yours},
        ],
        {
            "xaxis": {"type": "log", "title": {"text": "Time of a token (ms)"}},
            "yaxis": {"type": "log", "title": {"text": "Tokens a second, all sequences"}},
        },
    )


def _table(bounds: list[tuple[int, Bound]]) -> Table:
    return Table(
        "Bounds by batch",
        ["Batch", "Time of a token (ms)", "Tokens/s", "Tokens/s of each", "Longest part"],
        [
            [
                size,
                plain(bound.seconds.value * 1000),
                plain(bound.tokens_per_second.value),
                plain(bound.tokens_per_second.value / size),
                bound.bound,
            ]
            for size, bound in bounds
        ],
    )


def _dtype(name: str, label: str, options: tuple[str, ...], help_: str = "") -> Choice:
    return Choice(
        name, label, tuple((one, one) for one in options), "bf16", help=help_, group="How it is served"
    )


_LOAD = "How it is served"

register(
    Widget(
        name="resources/serve",
        title="What can I serve?",
        description=(
            "How many sequences fit beside the weights, and how fast they can be at most. Weights and cache "
            "are divided evenly; what devices send each other is not counted."
        ),
        inputs=(
            *model_inputs("llama-3-8b"),
            Number(
                "context_length",
                "Tokens of a sequence",
                8192,
                1,
                10**7,
                unit="tokens",
                help="Prompt and answer together",
                group=_LOAD,
            ),
            Number("prompt", "Tokens of a prompt", 2048, 1, 10**7, unit="tokens", group=_LOAD),
            Number("batch", "Batch", 16, 1, _MOST_BATCH, unit="sequences", group=_LOAD),
            _dtype("weight_dtype", "Weights in", ("bf16", "fp8", "int8", "int4", "fp32")),
            _dtype("cache_dtype", "Cache in", ("bf16", "fp8", "int8", "int4", "fp32")),
            _dtype("compute_dtype", "Arithmetic in", ("bf16", "fp16", "fp8", "fp32"), "Whose peak counts"),
            *device_inputs("peak", "bandwidth", "memory"),
            Number("n_devices", "Devices", 1, 1, 10**5, group="The hardware"),
            Number(
                "usable_percent",
                "Memory used",
                90.0,
                1,
                100,
                unit="%",
                integer=False,
                help="The rest is left for activations and the runtime",
                group="The hardware",
            ),
        ),
        compute=with_model(
            calculate, {"context": "context_length", "dtype": "compute_dtype", "usable": "usable_percent"}
        ),
        section=section(_ANCHOR),
        rehearsal=REHEARSAL,
    )
)
