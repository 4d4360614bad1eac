"""What a run costs: device-hours, money, energy. Prices are inputs; nothing here knows one."""

from dataclasses import dataclass

from lmlib.resources.hardware import Device
from lmlib.resources.ledger import Term, derive
from lmlib.resources.sources import DEFINITION
from lmlib.resources.timing import LARGEST_CLUSTER
from lmlib.resources.units import ArgumentError, Number, check_integer, check_number

_PUT_IN = "a price that was put in"


@dataclass(frozen=True)
class Cost:
    """Of one run: ``device_hours``, ``money`` (USD), ``energy`` and ``electricity`` (kWh, USD)."""

    device_hours: Term
    money: Term
    energy: Term | None
    electricity: Term | None


def cost(
    seconds: Number,
    device: Device,
    n_devices: int,
    *,
    price_per_hour: Number,
    power_share: Number = 1,
    pue: Number = 1,
    price_per_kwh: Number = 0,
) -> Cost:
    """Cost of holding ``n_devices`` for ``seconds``.

    Args:
        price_per_hour: USD for one device and hour.
        power_share: of the device's power limit that it draws on average, 0 to 1.
        pue: power usage effectiveness, what the building draws over what the devices draw; at least 1.
            Hosts and network are not in it, so a whole system takes more.
        price_per_kwh: USD for a kilowatt-hour.

    Raises:
        ArgumentError: for a figure out of bounds, or a price of energy for a device of unknown power.
    """
    check_number("seconds", seconds, 0, 1e15)
    check_integer("n_devices", n_devices, 1, LARGEST_CLUSTER)
    check_number("price_per_hour", price_per_hour, 0, 10_000)
    check_number("power_share", power_share, 0, 1)
    check_number("pue", pue, 1, 5)
    check_number("price_per_kwh", price_per_kwh, 0, 100)
    hours = derive(
        "device-hours",
        "n_devices * seconds / 3600",
        "GPU-hours",
        DEFINITION,
        n_devices=n_devices,
        seconds=seconds,
    )
    money = derive(
        "price", "device_hours * price", "USD", _PUT_IN, device_hours=hours.value, price=price_per_hour
    )
    if device.power is None:
        if price_per_kwh:
            raise ArgumentError("price_per_kwh", f"the power of {device.title} is not published")
        return Cost(hours, money, None, None)
    energy = derive(
        "energy",
        "device_hours * watts * power_share * pue / 1000",
        "kWh",
        device.source_of("power"),
        device_hours=hours.value,
        watts=device.power,
        power_share=power_share,
        pue=pue,
    )
    paid = derive("electricity", "energy * price", "USD", _PUT_IN, energy=energy.value, price=price_per_kwh)
    return Cost(hours, money, energy, paid)
