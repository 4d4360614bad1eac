"""What calculators of chapter 4 ask about the hardware: a device from the table, or figures of one's own."""

from typing import Any

from lmlib.book.declare import Choice, Input, Number
from lmlib.resources.hardware import DEVICES, GIGA, TERA, Device
from lmlib.resources.units import DTYPE_BYTES

OWN = "own"
_GROUP = "The hardware"
_FIELDS = (  # argument of Device, label, smallest, largest, unit, what one unit is, whole or not, help
    ("peak", "Peak", 0.001, 1e6, "TFLOP/s", TERA, False, "Dense, in the dtype that is computed in"),
    ("bandwidth", "Memory bandwidth", 0.1, 1e6, "GB/s", GIGA, False, ""),
    ("memory", "Memory", 0.1, 1e5, "GB", GIGA, False, "1 GB = 10⁹ bytes"),
    ("link", "Link within a node", 0, 1e5, "GB/s", GIGA, False, "What one device sends, in one direction"),
    ("node_size", "Devices in a node", 1, 2**16, "", 1, True, ""),
    ("network", "Link between nodes", 0, 1e5, "GB/s", GIGA, False, "What one device sends, in one direction"),
    ("power", "Power", 1, 10**5, "W", 1, True, "Limit of the board"),
)


def device_inputs(
    *fields: str, default: str = "h100", visible_when: tuple[str, tuple[str, ...]] | None = None
) -> tuple[Input, ...]:
    """A choice of device, and its ``fields`` to fill in where the choice is a device of one's own."""
    options = ((OWN, "A device of your own"), *((name, one.title) for name, one in DEVICES.items()))
    presets = {
        name: {field: figure for field in fields if (figure := _figure(one, field)) is not None}
        for name, one in DEVICES.items()
    }
    choice = Choice(
        "device", "Device", options, default, presets=presets, group=_GROUP, visible_when=visible_when
    )
    return (choice, *(_number(field, DEVICES[default]) for field in fields))


def _number(field: str, device: Device) -> Number:
    name, label, low, high, unit, _, whole, help_ = next(row for row in _FIELDS if row[0] == field)
    figure = _figure(device, field)
    return Number(
        name,
        label,
        low if figure is None else figure,
        low,
        high,
        unit=unit,
        help=help_,
        integer=whole,
        group=_GROUP,
        visible_when=("device", (OWN,)),
    )


def _figure(device: Device, field: str) -> int | float | None:
    """A device's figure in the field's unit, None where its maker gives none; the peak is that of the dtype
    one trains in."""
    scale, whole = next((row[5], row[6]) for row in _FIELDS if row[0] == field)
    value = device.peak.get(device.default_dtype) if field == "peak" else getattr(device, field)
    if value is None:
        return None
    return int(value) if whole else value / scale


def read_device(values: dict[str, Any]) -> Device:
    """Take the device's inputs out of ``values``; a device of one's own has its peak in every dtype."""
    chosen = values.pop("device")
    figures = {}
    for name, _, _, _, _, scale, _, _ in _FIELDS:
        if name in values:
            figures[name] = round(values.pop(name) * scale)
    if chosen != OWN:
        return DEVICES[chosen]
    peak = figures.pop("peak", 1)
    return Device(
        "own",
        "your device",
        dict.fromkeys(DTYPE_BYTES, peak),
        figures.pop("bandwidth", 1),
        figures.pop("memory", 1),
        "your figures",
        **figures,
    )
