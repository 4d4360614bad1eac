"""What runs on the GPU in one call of a kernel: time by kernel, and hardware counters where they can be read.

    python -m kernels.bench profile rms_norm --out profile.json

The first table comes from torch.profiler. The second needs Nsight Compute (``ncu`` on the PATH, and leave to
read counters); clocks are left as they are. It runs the command again in a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kernels.bench import check
from kernels.bench.case import BOTH, STEP, Bench, Shape
from kernels.bench.machine import description
from kernels.bench.measure import one_phase
from kernels.bench.registry import FILES, load
from kernels.bench.report import text_table, write
from kernels.bench.timing import Timed

COUNTERS = {
    "gpu__time_duration.sum": "time",
    "dram__bytes_read.sum": "bytes read",
    "dram__bytes_write.sum": "bytes written",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory throughput",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM throughput",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy",
    "launch__registers_per_thread": "registers",
}
UNITS = {"time": "s", "bytes read": "bytes", "bytes written": "bytes", "registers": "registers"}
_PREFIX = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}


def _call(bench: Bench, shape: Shape, competitor: str, seed: int) -> Timed:
    """One call, forward and backward where there is one; its kernels are compiled already."""
    function = bench.ours if competitor == "ours" else bench.peers[competitor]()
    phase = next((each for each in (BOTH, STEP) if each in bench.phases), bench.phases[0])
    timed = one_phase(bench, function, check.draw(bench, shape, "cuda", seed), phase, seed)
    for _ in range(2):
        timed.run(timed.prepare())
    torch.cuda.synchronize()
    return timed


def traced(timed: Timed, calls: int = 5) -> list[tuple[str, float, list[float]]]:
    """(kernel, runs per call, seconds of each run), most time first."""
    from torch.autograd import DeviceType

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            timed.run(timed.prepare())
        torch.cuda.synchronize()
    found: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA:
            found[event.name].append(event.self_device_time_total / 1e6)
    rows = [(name, len(times) / calls, times) for name, times in found.items()]
    return sorted(rows, key=lambda row: -sum(row[2]))


def summary(rows: Sequence[tuple[str, float, list[float]]]) -> str:
    """Kernel, runs and time per call, and its share."""
    total = sum(sum(times) for _, _, times in rows) or 1.0
    lines = [
        (name[:70], f"{runs:g}", f"{1e6 * sum(times) / len(times):.1f}", f"{100 * sum(times) / total:.1f} %")
        for name, runs, times in rows
    ]
    return text_table(("kernel", "runs per call", "µs each", "share"), lines)


def parse_counters(text: str) -> dict[str, dict[str, list[float]]]:
    """Values of ``COUNTERS`` by kernel, in seconds, bytes, percent and numbers, from ncu's CSV."""
    lines = text.splitlines()
    head = next((place for place, line in enumerate(lines) if line.startswith('"ID"')), None)
    if head is None:
        return {}
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in csv.DictReader(io.StringIO("\n".join(lines[head:]))):
        name = COUNTERS.get(row.get("Metric Name") or "")
        try:
            value = float((row.get("Metric Value") or "").replace(",", ""))
        except ValueError:
            continue
        if name:
            found[row["Kernel Name"]][name].append(value * _factor(row["Metric Unit"]))
    return {kernel: dict(counters) for kernel, counters in found.items()}


def _factor(unit: str) -> float:
    """What takes a value in ``unit`` ("Mbyte", "us", "%") to bytes, seconds or percent."""
    for word in ("second", "byte", "s"):
        if unit.endswith(word) and unit[: -len(word)] in _PREFIX:
            return _PREFIX[unit[: -len(word)]]
    return 1.0


def counters(arguments: Sequence[str]) -> tuple[dict[str, dict[str, list[float]]], str]:
    """Counters of one call in a process of its own; and, where there are none, the reason."""
    ncu = shutil.which("ncu")
    if ncu is None:
        return {}, "Nsight Compute (ncu) is not on the PATH"
    command = [ncu, "--csv", "--clock-control", "none", "--profile-from-start", "off"]
    command += ["--metrics", ",".join(COUNTERS), sys.executable, "-m", "kernels.bench", "profile"]
    try:
        done = subprocess.run([*command, *arguments, "--child"], capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return {}, "ncu took longer than 300 s"
    found = parse_counters(done.stdout)
    return found, "" if found else f"ncu gave no counters: {(done.stdout + done.stderr).strip()[-300:]}"


def counter_table(found: dict[str, dict[str, list[float]]]) -> str:
    """Mean of each counter, kernel by kernel."""
    names = list(COUNTERS.values())
    scale = {"time": (1e6, "µs"), "bytes read": (1e-6, "MB"), "bytes written": (1e-6, "MB")}
    headers = ["kernel", *(f"{name} ({scale[name][1]})" if name in scale else name for name in names)]
    lines = []
    for kernel, values in found.items():
        means = [sum(values[name]) / len(values[name]) if name in values else None for name in names]
        cells = [
            "" if mean is None else f"{mean * scale.get(name, (1, ''))[0]:.1f}"
            for name, mean in zip(names, means, strict=True)
        ]
        lines.append([kernel[:50], *cells])
    return text_table(headers, lines)


def main(arguments: Sequence[str]) -> int:
    """``profile`` of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench profile", description=__doc__)
    parser.add_argument("kernel", choices=FILES)
    parser.add_argument("--competitor", default="ours", help='"ours" or a peer of the kernel')
    parser.add_argument("--shape", type=int, default=0, help="which of the kernel's shapes, from 0")
    parser.add_argument("--out", type=Path, help="file for the record")
    parser.add_argument("--commit", help="commit to note, where git can't say")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    bench = load([options.kernel])[0]
    if options.competitor != "ours" and options.competitor not in bench.peers:
        parser.error(f"--competitor must be ours or one of {', '.join(bench.peers)}")
    if not 0 <= options.shape < len(bench.shapes):
        parser.error(f"--shape must be from 0 to {len(bench.shapes) - 1}")
    if not torch.cuda.is_available():
        print("kernels.bench profile: needs a CUDA GPU; none is here", file=sys.stderr)
        return 2
    shape = bench.shapes[options.shape]
    timed = _call(bench, shape, options.competitor, seed=0)
    if options.child:
        torch.cuda.cudart().cudaProfilerStart()
        timed.run(timed.prepare())
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStop()
        return 0
    rows = traced(timed)
    print(f"{bench.name}, {shape.label}: {options.competitor}\n{summary(rows)}\n")
    del timed
    torch.cuda.empty_cache()
    chosen = [options.kernel, "--competitor", options.competitor, "--shape", str(options.shape)]
    found, why = counters(chosen)
    print(counter_table(found) if found else why)
    samples: dict[str, Any] = {f"{name}, time": {"unit": "s", "values": times} for name, _, times in rows}
    for kernel, values in found.items():
        for name, each in values.items():
            samples[f"{kernel}, counter: {name}"] = {"unit": UNITS.get(name, "%"), "values": each}
    if options.out and samples:
        machine = description("python -m kernels.bench profile " + " ".join(chosen), options.commit)
        about = {
            "kernel": bench.name,
            "shape": shape.label,
            "competitor": options.competitor,
            "left out": why,
        }
        write({**machine, "samples": samples, "about": about}, options.out)
    return 0
