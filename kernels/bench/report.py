"""Results as a table to read and as a record to keep.

The record has the form of the book's others: device, driver, torch, triton, date, commit, command, samples
(label to unit and values) and about. Labels are ``"<kernel>, <shape>: <competitor>, <phase>"`` in seconds,
the same with ``memory`` in place of the phase in bytes, ``"copy bandwidth"`` and ``"matmul rate"``.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernels.bench.machine import PEERS, version
from kernels.bench.measure import OURS, Case


def text_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be, the first to the left, the others to the right."""
    lines = [headers, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(headers))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _spread(samples: Sequence[float]) -> float:
    """Range from the first to the last decile, as a share of the median."""
    if len(samples) < 2:
        return 0.0
    tenths = statistics.quantiles(samples, n=10)
    return (tenths[-1] - tenths[0]) / statistics.median(samples)


def table(case: Case) -> str:
    """Time, spread, share of the bound, times ours, error and memory of each competitor, phase by phase."""
    ceiling = "copy" if case.bench.bound == "copy" else "matmul"
    headers = (
        "competitor",
        "phase",
        "ms",
        "spread",
        f"of {ceiling}",
        "÷ ours",
        "error",
        "peak MB",
        "kept MB",
    )
    rows = []
    for (name, phase), samples in case.seconds.items():
        median = statistics.median(samples)
        ours = case.seconds.get((OURS, phase))
        share = case.fraction(name, phase)
        error = max(case.errors[name].values())
        peak, kept = case.peak.get(name), case.kept.get(name)
        rows.append(
            (
                name,
                phase,
                f"{1e3 * median:.4f}",
                f"{100 * _spread(samples):.0f} %",
                "" if share is None else f"{share:.3f}",
                "" if ours is None else f"{median / statistics.median(ours):.2f}",
                f"{error:.1e}",
                "" if peak is None else f"{peak / 1e6:.1f}",
                "" if kept is None else f"{kept / 1e6:.1f}",
            )
        )
    lines = [case.name, text_table(headers, rows)] if rows else [case.name]
    if case.errors.get(OURS):
        errors = ", ".join(f"{name} {error:.1e}" for name, error in case.errors[OURS].items())
        bits = {True: "same bits twice", False: "other bits in a second run", None: "run once"}
        lines.append(f"  ours against float64: {errors}; {bits[case.same_bits]}")
    lines += [f"  {name} left out: {why}" for name, why in case.left_out.items()]
    return "\n".join(lines)


def _about(case: Case) -> dict[str, Any]:
    work = case.bench.work_of(case.shape)
    errors = {
        name: {quantity: error if math.isfinite(error) else None for quantity, error in found.items()}
        for name, found in case.errors.items()
    }
    return {
        "name": case.name,
        "kernel": case.bench.name,
        "sizes": dict(case.shape.sizes),
        "dtype": str(case.shape.dtype).removeprefix("torch."),
        "bound": case.bench.bound,
        "work": {phase: {"bytes": each.bytes, "flops": each.flops} for phase, each in work.items()},
        "copy bandwidth": case.copy_rate,
        "matmul rate": case.matmul_rate,
        "relative errors": errors,
        "allowed error": case.bench.limit(case.shape.dtype),
        "same bits": case.same_bits,
        "kept bytes": case.kept,
        "left out": case.left_out,
    }


def record(
    cases: Sequence[Case], machine: dict[str, Any], rates: dict[str, list[float]], seconds: float
) -> dict[str, Any]:
    """The record of all cases so far."""
    samples: dict[str, Any] = {}
    units = {"copy bandwidth": "B/s", "matmul rate": "FLOP/s"}
    for name, values in rates.items():
        samples[name] = {"unit": units[name], "values": values}
    for case in cases:
        for (competitor, phase), values in case.seconds.items():
            samples[f"{case.name}: {competitor}, {phase}"] = {"unit": "s", "values": values}
        for competitor, size in case.peak.items():
            samples[f"{case.name}: {competitor}, memory"] = {"unit": "bytes", "values": [size]}
    about = {
        "peers": {package: version(package) for package in PEERS},
        "seconds": round(seconds, 1),
        "cases": [_about(case) for case in cases],
    }
    return {**machine, "samples": samples, "about": about}


def write(content: dict[str, Any], path: Path) -> None:
    """Write a record, whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)
