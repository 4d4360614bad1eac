"""The calculator *How long, how much?*: FLOPs, days, money and energy of a training run."""

from collections.abc import Sequence
from typing import Any

from lmlib.book.declare import Choice, Group, Note, Number, Output, Table, Value, Widget, register
from lmlib.book.quantities import readable
from lmlib.book.widgets.resources_devices import device_inputs, read_device
from lmlib.book.widgets.resources_explain import explained, plain, section, steps
from lmlib.book.widgets.resources_models import REHEARSAL, check_context, model_inputs, with_model
from lmlib.resources.cost import cost
from lmlib.resources.flops import departures, training
from lmlib.resources.hardware import Device
from lmlib.resources.model import Model
from lmlib.resources.parameters import parameters
from lmlib.resources.timing import CONVENTIONS, LARGEST_CLUSTER, mfu, run_time
from lmlib.resources.units import LARGEST_COUNT

_ANCHOR, _MONEY = "sec-mfu", "sec-worked"
_STATE_BYTES = 16  # of a parameter: bf16 weight and gradient, fp32 master and two moments
_MASKS = {"megatron": "full", "palm": "full", "causal": "half", "6nd": "half"}


def calculate(
    model: Model,
    tokens: int,
    context_length: int,
    n_devices: int,
    dtype: str,
    mfu_percent: float,
    convention: str,
    recompute: str,
    price_per_hour: float,
    price_per_kwh: float,
    power_percent: float,
    pue: float,
    **hardware: Any,
) -> Sequence[Output]:
    """Time, cost and energy of training ``model`` on ``tokens`` tokens."""
    device = read_device(hardware)
    warning = check_context(model, context_length)
    share = mfu_percent / 100
    run = run_time(
        model,
        tokens,
        context_length,
        device,
        n_devices,
        utilisation=share,
        convention=convention,
        dtype=dtype,
    )
    spent = cost(
        run.seconds.value,
        device,
        n_devices,
        price_per_hour=price_per_hour,
        power_share=power_percent / 100,
        pue=pue,
        price_per_kwh=price_per_kwh if device.power else 0,
    )
    ledger = [spent.device_hours, spent.money, *([spent.energy, spent.electricity] if spent.energy else [])]
    values = [
        Value("Takes", plain(run.seconds.value), "s", headline=True),
        Value("Device-hours", plain(spent.device_hours.value), "", headline=True),
        Value("Costs", plain(spent.money.value), "USD", headline=True),
        Value("FLOPs of the model", plain(run.flops.total), "FLOPs"),
        Value("Speed", plain(run.tokens_per_second.value), "tokens/s"),
        Value("Computed, with what is repeated", *_hardware(model, run, tokens, context_length, recompute)),
    ]
    if spent.energy and spent.electricity:
        values.append(Value("Energy", plain(spent.energy.value), "kWh"))
        values.append(Value("Electricity", plain(spent.electricity.value), "USD"))
    steps_of = departures(model, 1, context_length, mask=_MASKS[convention])
    return [
        *values,
        *_notes(warning, model, device, n_devices),
        steps("From FLOPs to days", _ANCHOR, run.seconds, run.days, run.tokens_per_second),
        steps("From days to money and energy", _MONEY, *(term for term in ledger if term)),
        explained(
            steps_of,
            f"Why it is not 6 N D: one sequence, attention counted {_MASKS[convention]}",
            "sec-six-n-d",
        ),
        _conventions(model, device, dtype, plain(run.tokens_per_second.value), context_length, n_devices),
        _other_shares(plain(run.seconds.value) * share, n_devices, price_per_hour),
        Group(
            "FLOPs of the whole run, matrix by matrix",
            [explained(run.flops, "Training FLOPs", "sec-flops")],
            folded=True,
        ),
    ]


def _hardware(
    model: Model, run: Any, tokens: int, context_length: int, recompute: str
) -> tuple[int | float, str, str]:
    """FLOPs a second that the devices really do at this speed: causal attention, and what is recomputed."""
    ledger = training(
        model, 1, context_length, mask="half", count="hardware", kernel="flash", recompute=recompute
    )
    rate = plain(ledger.total / context_length * run.tokens_per_second.value)
    return rate, "FLOP/s", ""


def _notes(warning: str, model: Model, device: Device, n_devices: int) -> list[Note]:
    notes = [Note(warning, "warning")] if warning else []
    held, room = _STATE_BYTES * int(parameters(model).total), n_devices * device.memory
    if held > room:
        notes.append(
            Note(
                f"Mixed-precision AdamW keeps {_STATE_BYTES} bytes a parameter, {readable(held, 'B')}; these "
                f"devices have {readable(room, 'B')} together. The run would not fit, however long it took.",
                "bad",
            )
        )
    if device.power is None:
        notes.append(Note(f"The power of {device.title} is not published, so energy is left out.", "warning"))
    return notes


def _conventions(
    model: Model, device: Device, dtype: str, speed: int | float, context_length: int, n_devices: int
) -> Table:
    rows: list[list[str | int | float]] = []
    for convention in CONVENTIONS:
        term = mfu(model, speed, context_length, device, n_devices, convention=convention, dtype=dtype)
        rows.append([convention, plain(100 * term.value)])
    return Table("The same speed as MFU, by convention", ["Convention", "MFU (%)"], rows)


def _other_shares(full_speed: float, n_devices: int, price_per_hour: float) -> Table:
    """Days and money at other utilisations; ``full_speed`` is seconds at an MFU of 1."""
    rows: list[list[str | int | float]] = []
    for percent in (20, 30, 40, 50, 60):
        seconds = full_speed * 100 / percent
        hours = n_devices * seconds / 3600
        rows.append([percent, plain(seconds / 86_400), plain(hours), plain(hours * price_per_hour)])
    return Table("At other utilisations", ["MFU (%)", "Days", "Device-hours", "USD"], rows)


_RUN, _PRICE = "The run", "What you pay"

register(
    Widget(
        name="resources/how-long",
        title="How long, how much?",
        description=(
            "FLOPs of a training run, the days it takes at an assumed utilisation, and what that costs. "
            "The price is yours to put in."
        ),
        inputs=(
            *model_inputs("llama-3-70b"),
            Number("tokens", "Training tokens", 15 * 10**12, 1, LARGEST_COUNT, unit="tokens", group=_RUN),
            Number("context_length", "context_length", 8192, 1, 10**7, unit="tokens", group=_RUN),
            Number(
                "mfu_percent",
                "MFU",
                40.0,
                0.01,
                100,
                unit="%",
                integer=False,
                help="Share of the peak; published runs reach 30 to 55 %",
                group=_RUN,
            ),
            Choice(
                "convention",
                "FLOPs counted",
                (
                    ("causal", "matrices and half of attention"),
                    ("megatron", "matrices and all of attention"),
                    ("palm", "6 N D and all of attention"),
                    ("6nd", "6 N D"),
                ),
                "causal",
                help="The MFU must be meant by the same convention",
                group=_RUN,
            ),
            Choice(
                "recompute",
                "Recomputation",
                (("none", "none"), ("core", "attention without projections"), ("full", "whole layers")),
                "none",
                help="Costs FLOPs that MFU does not count",
                group=_RUN,
            ),
            *device_inputs("peak", "memory", "power"),
            Number("n_devices", "Devices", 1024, 1, LARGEST_CLUSTER, group="The hardware"),
            Choice(
                "dtype",
                "dtype",
                tuple((dtype, dtype) for dtype in ("bf16", "fp16", "fp32", "fp8")),
                "bf16",
                help="Whose peak counts",
                group="The hardware",
            ),
            Number(
                "price_per_hour",
                "Price of a device-hour",
                2.0,
                0,
                10_000,
                unit="USD",
                integer=False,
                help="An example: put in what you are asked to pay",
                group=_PRICE,
            ),
            Number(
                "price_per_kwh",
                "Price of electricity",
                0.1,
                0,
                100,
                unit="USD/kWh",
                integer=False,
                help="An example: put in yours",
                group=_PRICE,
            ),
            Number(
                "power_percent",
                "Power drawn",
                100.0,
                1,
                100,
                unit="%",
                integer=False,
                help="Share of the board's limit, on average",
                group=_PRICE,
            ),
            Number(
                "pue",
                "PUE",
                1.2,
                1,
                5,
                integer=False,
                help="What the building draws over what the devices draw; an example",
                group=_PRICE,
            ),
        ),
        compute=with_model(calculate, {"length": "context_length", "utilisation": "mfu_percent"}),
        section=section(_MONEY),
        rehearsal=REHEARSAL,
    )
)
