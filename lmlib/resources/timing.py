"""How long a run takes, and how much of the hardware it uses.

- MFU is *model* FLOPs a second over peak (Chowdhery et al. 2022, arXiv:2204.02311, appendix B); HFU
  counts what was really computed, recomputation included (Korthikanti et al. 2022, arXiv:2205.05198).
- Papers count model FLOPs differently; ``convention`` says how, and has no default:

  - ``palm``: 6 N + 12 L H Q T a token, N all (active) parameters, attention without the mask's half;
  - ``megatron``: matrices with the head, without the input embedding; attention in full;
  - ``causal``: as ``megatron`` with half the attention;
  - ``6nd``: 6 N D, no attention.
"""

from dataclasses import dataclass

from lmlib.resources.flops import training
from lmlib.resources.hardware import Device
from lmlib.resources.ledger import Ledger, Term, derive
from lmlib.resources.model import Model
from lmlib.resources.parameters import active
from lmlib.resources.sources import DEFINITION, MODEL_FLOPS, SIX_N_D
from lmlib.resources.units import LARGEST_COUNT, Number, check_choice, check_integer, check_number

CONVENTIONS = ("palm", "megatron", "causal", "6nd")
LARGEST_CLUSTER = 10**7
_MASKS = {"megatron": "full", "causal": "half"}


def model_flops(model: Model, batch: int, length: int, *, convention: str) -> Ledger:
    """Training FLOPs of ``batch`` sequences of ``length`` tokens, counted by ``convention``."""
    check_choice("convention", convention, CONVENTIONS)
    if convention in _MASKS:
        return training(model, batch, length, mask=_MASKS[convention])
    check_integer("batch", batch, 1, LARGEST_COUNT)
    check_integer("length", length, 1, LARGEST_COUNT)
    count = int(active(model, count_embedding=True, count_head=True).total)
    tokens = batch * length
    terms = [
        derive(
            "6 N D",
            "6 * active_parameters * tokens",
            "FLOPs",
            SIX_N_D,
            active_parameters=count,
            tokens=tokens,
        )
    ]
    if convention == "palm":
        for index, (layer, layers) in enumerate(model.groups):
            attention = layer.attention
            terms.append(
                derive(
                    f"attention {index + 1}" if len(model.groups) > 1 else "attention",
                    "6 * layers * n_heads * (query_dim + value_dim) * length * tokens",
                    "FLOPs",
                    MODEL_FLOPS,
                    layers=layers,
                    n_heads=attention.n_heads,
                    query_dim=attention.query_dim,
                    value_dim=attention.value_dim,
                    length=length,
                    tokens=tokens,
                )
            )
    return Ledger(f"model FLOPs ({convention})", "FLOPs", tuple(terms))


def utilisation(flops: Number, seconds: Number, device: Device, n_devices: int, dtype: str = "") -> Term:
    """FLOPs done in ``seconds`` by ``n_devices``, as a share of their dense peak."""
    check_integer("n_devices", n_devices, 1, LARGEST_CLUSTER)
    check_number("flops", flops, 0, 10**40)
    check_number("seconds", seconds, 1e-12, 1e15)
    return derive(
        "utilisation",
        "flops / (seconds * n_devices * peak)",
        "ratio",
        device.source_of(dtype or device.default_dtype),
        flops=flops,
        seconds=seconds,
        n_devices=n_devices,
        peak=device.peak_of(dtype or device.default_dtype),
    )


def mfu(
    model: Model,
    tokens_per_second: Number,
    length: int,
    device: Device,
    n_devices: int = 1,
    *,
    convention: str,
    dtype: str = "",
) -> Term:
    """Model FLOPs utilisation at a measured speed.

    Args:
        tokens_per_second: of all devices together.
        length: tokens of a sequence, which attention's share depends on.

    Raises:
        ArgumentError: also where the device has no published peak for ``dtype``.
    """
    check_number("tokens_per_second", tokens_per_second, 0, 10**15)
    check_integer("n_devices", n_devices, 1, LARGEST_CLUSTER)
    per_token = model_flops(model, 1, length, convention=convention).per(length, "token").total
    return derive(
        f"MFU ({convention})",
        "flops_per_token * tokens_per_second / (n_devices * peak)",
        "ratio",
        device.source_of(dtype or device.default_dtype),
        flops_per_token=per_token,
        tokens_per_second=tokens_per_second,
        n_devices=n_devices,
        peak=device.peak_of(dtype or device.default_dtype),
    )


def hfu(
    model: Model,
    tokens_per_second: Number,
    length: int,
    device: Device,
    n_devices: int = 1,
    *,
    mask: str,
    kernel: str = "flash",
    recompute: str = "none",
    dtype: str = "",
) -> Term:
    """Hardware FLOPs utilisation: as ``mfu``, of what was computed; see ``flops.training``."""
    check_number("tokens_per_second", tokens_per_second, 0, 10**15)
    check_integer("n_devices", n_devices, 1, LARGEST_CLUSTER)
    ledger = training(model, 1, length, mask=mask, count="hardware", kernel=kernel, recompute=recompute)
    return derive(
        "HFU",
        "flops_per_token * tokens_per_second / (n_devices * peak)",
        "ratio",
        device.source_of(dtype or device.default_dtype),
        flops_per_token=ledger.per(length, "token").total,
        tokens_per_second=tokens_per_second,
        n_devices=n_devices,
        peak=device.peak_of(dtype or device.default_dtype),
    )


@dataclass(frozen=True)
class RunTime:
    """A run: ``flops`` of all of it, ``seconds``, ``days``, ``tokens_per_second`` of all devices."""

    flops: Ledger
    seconds: Term
    days: Term
    tokens_per_second: Term


def run_time(
    model: Model,
    tokens: int,
    length: int,
    device: Device,
    n_devices: int,
    *,
    utilisation: Number,
    convention: str,
    dtype: str = "",
) -> RunTime:
    """Time to train on ``tokens`` tokens at an assumed MFU, by the same convention as that MFU.

    Args:
        utilisation: MFU from 0 to 1; published runs reach 0.3 to 0.55.
    """
    check_integer("tokens", tokens, 1, LARGEST_COUNT)
    check_integer("n_devices", n_devices, 1, LARGEST_CLUSTER)
    check_number("utilisation", utilisation, 0.0001, 1)
    sequence = model_flops(model, 1, length, convention=convention)
    # The whole is scaled by tokens over length, so that a run need not be whole sequences.
    flops = sequence.per(length, symbol="length").scale(tokens, "tokens")
    rate = {"n_devices": n_devices, "peak": device.peak_of(dtype or device.default_dtype), "mfu": utilisation}
    seconds = derive(
        "time",
        "flops / (n_devices * peak * mfu)",
        "seconds",
        device.source_of(dtype or device.default_dtype),
        flops=flops.total,
        **rate,
    )
    return RunTime(
        flops,
        seconds,
        derive("days", "seconds / 86400", "days", DEFINITION, seconds=seconds.value),
        derive(
            "tokens a second",
            "tokens / seconds",
            "tokens/second",
            DEFINITION,
            tokens=tokens,
            seconds=seconds.value,
        ),
    )
