"""The calculator *Pipeline and sharding layout*: what each rank holds, sends and waits for."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from lmlib.book.declare import (
    Choice,
    InputError,
    Note,
    Number,
    Output,
    Plot,
    Table,
    Toggle,
    Value,
    Widget,
    register,
)
from lmlib.book.quantities import readable
from lmlib.book.widgets.resources_devices import device_inputs, read_device
from lmlib.book.widgets.resources_explain import explained, plain, section, steps
from lmlib.book.widgets.resources_models import REHEARSAL, check_context, model_inputs, with_model
from lmlib.resources.communication import Traffic, communication
from lmlib.resources.hardware import Device
from lmlib.resources.layout import LARGEST_GROUP, Divided, Layout, part, rank
from lmlib.resources.ledger import Ledger, Term
from lmlib.resources.model import Model
from lmlib.resources.step_time import StepTime, step_time

_ANCHOR, _STATES, _SENT, _STEP_ANCHOR = "sec-layout", "sec-states", "sec-sending", "sec-step-time"
_MOST_ROWS = 32


def calculate(
    model: Model,
    start: str,
    n_devices: int,
    zero: str,
    uneven: bool,
    micro_batch: int,
    context_length: int,
    recompute: str,
    gradient_bytes: str,
    latency: float,
    efficiency_percent: float,
    hidden_percent: float,
    **rest: Any,
) -> Sequence[Output]:
    """State of every rank, what is sent in a step, and how long the step takes."""
    del start  # it only fills the other fields
    device = read_device(rest)
    warning = check_context(model, context_length)
    layout = _layout(model, int(zero), uneven, rest)
    layout.check_ranks(n_devices)
    divided = Divided(model, layout)
    wide = int(gradient_bytes)
    states = _states(divided, wide)
    fullest = max(range(layout.pp), key=lambda stage: states[stage].total)
    traffic = [
        communication(
            model,
            layout,
            micro_batch,
            context_length,
            stage=stage,
            gradient_bytes=wide,
            recompute=recompute,
        )
        for stage in sorted({0, layout.pp // 2, layout.pp - 1})
    ]
    times = [each.seconds(device, latency / 10**6) for each in traffic]
    busiest = max(range(len(times)), key=lambda index: times[index].total)
    sent, seconds = traffic[busiest].ledger(), times[busiest]
    hidden = hidden_percent / 100
    step = step_time(
        model,
        layout,
        device,
        micro_batch,
        context_length,
        efficiency=efficiency_percent / 100,
        mask="causal",
        hidden={"dp": hidden, "edp": hidden},
        latency=latency / 10**6,
        recompute=recompute,
        gradient_bytes=wide,
    )
    mfu = step.mfu(model, context_length, device, convention="causal")
    return [
        Value("State on the fullest rank", int(states[fullest].total), "B", headline=True),
        Value("A step takes", plain(step.seconds), "s", headline=True),
        Value("MFU (causal)", plain(100 * mfu.value), "%", headline=True),
        Value("Speed", plain(step.tokens_per_second.value), "tokens/s"),
        Value("Pipeline bubble", plain(100 * layout.bubble), "%", help="Idle over busy time"),
        Value("Sending, if nothing overlaps", plain(seconds.total), "s"),
        Value("Sent by one rank in a step", plain(sent.total), "B"),
        Value("Tokens of a step", step.tokens, "tokens"),
        Value("Memory of a device", device.memory, "B"),
        *_notes(warning, layout, device, int(states[fullest].total)),
        _plot(states, device),
        _table(divided, states),
        *_step(step, mfu),
        explained(states[fullest], f"State of the fullest rank, of stage {fullest}", _STATES),
        *_communication(traffic[busiest], sent, seconds),
    ]


def _layout(model: Model, zero: int, uneven: bool, sizes: dict[str, Any]) -> Layout:
    chunks = sizes["pp"] * sizes["vpp"]
    layers = None
    if chunks > model.n_layers:
        raise InputError("pp", f"pp · vpp = {chunks:,} chunks are too many for {model.n_layers:,} layers.")
    if model.n_layers % chunks:
        if not uneven:
            hint = "switch on Uneven stages to give the first a layer more"
            raise InputError("pp", f"pp · vpp = {chunks} must divide the {model.n_layers} layers; {hint}.")
        layers = tuple(part(model.n_layers, chunks, index) for index in range(chunks))
    return Layout(zero=zero, chunk_layers=layers, **sizes)


def _states(divided: Divided, gradient_bytes: int) -> list[Ledger]:
    """Bytes on the first rank of each stage, which holds the most of it; equal stages are computed once."""
    layout, known = divided.layout, {}
    found = []
    for stage in range(layout.pp):
        key = (tuple(divided.stage_groups(stage).items()), stage == 0, stage == layout.pp - 1)
        if key not in known:
            first = rank(layout, stage * layout.n_ranks // layout.pp)
            known[key] = divided.state(first, gradient_bytes=gradient_bytes)
        found.append(known[key])
    return found


def _notes(warning: str, layout: Layout, device: Device, most: int) -> list[Note]:
    notes = [Note(warning, "warning")] if warning else []
    if most > device.memory:
        text = f"The state alone, {readable(most, 'B')}, is more than {device.title} has."
        notes.append(Note(f"{text} ZeRO, or more tp or pp, makes it smaller.", "bad"))
    if layout.tp > device.node_size:
        notes.append(
            Note(
                f"tp = {layout.tp} reaches beyond a node of {device.node_size}: every layer's sums then "
                "cross the slower network.",
                "warning",
            )
        )
    if layout.bubble > Fraction(1, 4):
        notes.append(Note("More micro-batches, or vpp, would shrink the bubble.", "warning"))
    return notes


def _table(divided: Divided, states: list[Ledger]) -> Table:
    layout, per_stage = divided.layout, divided.layout.n_ranks // divided.layout.pp
    shown = range(min(layout.pp, _MOST_ROWS))
    more = f", the first {_MOST_ROWS} of {layout.pp:,}" if layout.pp > _MOST_ROWS else ""
    return Table(
        f"The fullest rank of each stage{more}, in bytes",
        ["Stage", "Ranks", "Layers", "Parameters", "Gradients", "Optimizer", "Together", "Chunks in flight"],
        [
            [
                stage,
                f"{stage * per_stage:,} to {(stage + 1) * per_stage - 1:,}",
                len(divided.stages[stage]),
                *(int(term.value) for term in states[stage]),
                int(states[stage].total),
                layout.in_flight(stage),
            ]
            for stage in shown
        ],
    )


def _plot(states: list[Ledger], device: Device) -> Plot:
    stages = list(range(min(len(states), _MOST_ROWS)))
    kinds = ("parameters", "gradients", "optimizer")
    most = max(int(state.total) for state in states)
    return Plot(
        "State of one rank, by stage",
        f"Stacked bars of parameters, gradients and optimizer's state for {len(stages)} stages; the "
        f"highest is {readable(most, 'B')} of {readable(device.memory, 'B')}.",
        [
            {
                "type": "bar",
                "x": stages,
                "y": [plain(states[stage][kind].value / 10**9) for stage in stages],
                "name": kind,
            }
            for kind in kinds
        ],
        {
            "barmode": "stack",
            "xaxis": {"title": {"text": "Pipeline stage"}, "dtick": 1 if len(stages) < 17 else 4},
            "yaxis": {"title": {"text": "GB on one rank"}},
        },
    )


def _step(step: StepTime, mfu: Term) -> list[Output]:
    return [
        explained(step.ledger, f"Seconds of a step, at the pace of stage {step.stage}", _STEP_ANCHOR),
        steps("From seconds to speed and MFU", "sec-mfu", step.tokens_per_second, mfu),
    ]


def _communication(traffic: Traffic, sent: Ledger, seconds: Ledger) -> list[Output]:
    if not len(sent):
        return [Note("One rank alone sends nothing.")]
    calls = Table(
        f"Exchanges of a rank of stage {traffic.stage} in one step",
        ["What", "Operation", "Group", "Ranks", "Calls", "Bytes of one"],
        [[c.name, c.op, c.group, c.ranks, c.count, c.payload] for c in traffic.collectives],
    )
    return [
        explained(sent, f"Bytes sent in one step, stage {traffic.stage}", _SENT),
        explained(seconds, "Seconds of the same, one after the other", _SENT),
        calls,
    ]


def _start(model: str, device: str, n_devices: int, **layout: Any) -> dict[str, Any]:
    plain_layout = {"dp": 1, "tp": 1, "pp": 1, "vpp": 1, "cp": 1, "ep": 1, "etp": 1, "zero": "1"}
    whole = {"sp": False, "uneven": False, "microbatches": 1, "micro_batch": 1, "context_length": 4096}
    return {"model": model, "device": device, "n_devices": n_devices, **plain_layout, **whole, **layout}


_STARTS = {
    "fsdp-8b": (
        "Llama 3 8B on 8 H100, ZeRO 3",
        _start("llama-3-8b", "h100", 8, dp=8, zero="3", context_length=8192),
    ),
    "3d-70b": (
        "Llama 3 70B on 64 H100, tp 8, pp 4",
        _start("llama-3-70b", "h100", 64, dp=2, tp=8, sp=True, pp=4, microbatches=16, context_length=8192),
    ),
    "llama-405b": (
        "Llama 3.1 405B on 8,192 H100, as in its report, table 4",
        _start(
            "llama-3-405b",
            "h100",
            8192,
            dp=64,
            tp=8,
            sp=True,
            pp=16,
            microbatches=32,
            uneven=True,
            context_length=8192,
        ),
    ),
    "deepseek-v3": (
        "DeepSeek-V3 on 2,048 H800: pp 16, ep 64",
        _start("deepseek-v3", "h800", 2048, dp=128, pp=16, ep=64, microbatches=64, uneven=True),
    ),
}
_LAYOUT, _STEP = "The layout", "The step"


def _ranks(name: str, label: str, help_: str = "") -> Number:
    return Number(name, label, 1, 1, LARGEST_GROUP, help=help_, group=_LAYOUT)


register(
    Widget(
        name="resources/layout",
        title="Pipeline and sharding layout",
        description=(
            "What each rank of a parallel layout holds, to the byte, what it sends in one step, how long its "
            "pipeline idles, and how long the step takes. Training is in bf16 with AdamW and fp32 master "
            "weights."
        ),
        inputs=(
            Choice(
                "start",
                "Start from",
                (
                    ("custom", "A layout of your own"),
                    *((key, title) for key, (title, _) in _STARTS.items()),
                ),
                "3d-70b",
                presets={key: filled for key, (_, filled) in _STARTS.items()},
            ),
            *model_inputs("llama-3-70b"),
            *device_inputs("peak", "memory", "link", "node_size", "network"),
            Number("n_devices", "Devices", 64, 1, 2**24, help="dp · tp · pp · cp", group="The hardware"),
            Number(
                "latency",
                "Latency of a hop",
                10.0,
                0,
                10**6,
                unit="µs",
                integer=False,
                group="The hardware",
            ),
            Number(
                "efficiency_percent",
                "Efficiency of arithmetic",
                65.0,
                0.1,
                100,
                unit="%",
                integer=False,
                help="Of the peak, while a rank computes; 68 fits the Megatron runs of 175B to 1T",
                group="The hardware",
            ),
            Number(
                "hidden_percent",
                "Hidden of data parallel sums",
                90.0,
                0,
                100,
                unit="%",
                integer=False,
                help="Runs behind arithmetic; everything else that is sent is waited for",
                group="The hardware",
            ),
            _ranks("dp", "dp", "Data parallel ranks"),
            Choice(
                "zero",
                "ZeRO",
                (
                    ("0", "0: nothing is cut"),
                    ("1", "1: optimizer"),
                    ("2", "2: and gradients"),
                    ("3", "3: and parameters"),
                ),
                "1",
                help="Over data and context parallel ranks",
                group=_LAYOUT,
            ),
            _ranks("tp", "tp", "Tensor parallel ranks; must divide the heads"),
            Toggle("sp", "sp", False, help="Cut the sequence between tensor parallel parts", group=_LAYOUT),
            Toggle(
                "replicate_kv",
                "replicate_kv",
                False,
                help="Copy key/value heads where tp exceeds them",
                group=_LAYOUT,
            ),
            _ranks("pp", "pp", "Pipeline stages"),
            _ranks("vpp", "vpp", "Chunks of layers a stage, interleaved"),
            Toggle("uneven", "Uneven stages", False, help="The first get a layer more", group=_LAYOUT),
            _ranks("cp", "cp", "Context parallel ranks"),
            _ranks("ep", "ep", "Ranks that divide the experts among them"),
            _ranks("etp", "etp", "Ranks that divide one expert"),
            Number("microbatches", "Micro-batches", 16, 1, 10**6, help="Of one step and rank", group=_STEP),
            Number("micro_batch", "Sequences of one", 1, 1, 10**6, group=_STEP),
            Number("context_length", "context_length", 8192, 1, 10**7, unit="tokens", group=_STEP),
            Choice(
                "recompute",
                "Recomputation",
                (("none", "none"), ("core", "attention without projections"), ("full", "whole layers")),
                "none",
                group=_STEP,
            ),
            Choice("gradient_bytes", "Gradients in", (("2", "bf16"), ("4", "fp32")), "2", group=_STEP),
        ),
        compute=with_model(
            calculate,
            {
                "length": "context_length",
                "n_ranks": "n_devices",
                "efficiency": "efficiency_percent",
                "dtype": "device",
            },
        ),
        section=section(_ANCHOR),
        rehearsal=REHEARSAL,
    )
)
