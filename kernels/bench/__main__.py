"""Check every kernel against float64, then time it beside its peers.

    python -m kernels.bench [kernel ...]

    python -m kernels.bench                                       all kernels, a table for each shape
    python -m kernels.bench rms_norm softmax --quick              two kernels, their first shape
    python -m kernels.bench --full --results book/results         all sizes, written as <device>/kernels.json
    python -m kernels.bench profile attention                     what runs on the GPU, and its counters
    compute-sanitizer python -m kernels.bench --tiny              small odd shapes alone, for a memory checker

Without a GPU the kernels are checked under Triton's interpreter, on small shapes; times need a GPU.
Exit status 1: a kernel is wrong or failed, and was not timed.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from kernels.bench.case import Bench, Shape
from kernels.bench.machine import description, device_name, folder_name
from kernels.bench.measure import Case, measure
from kernels.bench.registry import FILES, load
from kernels.bench.report import record, table, write
from kernels.bench.timing import Clock, copy_bandwidth, matmul_rate


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kernel", nargs="*", help=f"which kernels: {', '.join(FILES)}")
    parser.add_argument("--kernels", default="", help="the same, separated by commas")
    parser.add_argument("--quick", action="store_true", help="the first shape of each kernel alone")
    parser.add_argument("--full", action="store_true", help="the comparison over sizes besides")
    parser.add_argument("--tiny", action="store_true", help="check small odd shapes, and time nothing")
    parser.add_argument("--seconds", type=_positive, default=0.1, help="of samples per competitor and phase")
    parser.add_argument("--limit", type=_positive, help="start no further shape after this many seconds")
    parser.add_argument("--seed", type=int, help="of the random inputs; another one each time if not given")
    parser.add_argument("--out", type=Path, help="file for the record")
    parser.add_argument("--results", type=Path, help="folder for the record, as <device>/kernels.json")
    parser.add_argument("--commit", help="commit to note, where git can't say")
    return parser


def _shapes(bench: Bench, timed: bool, quick: bool, full: bool) -> tuple[Shape, ...]:
    if not timed:
        return bench.tiny[:1] if quick else bench.tiny
    chosen = bench.shapes[:1] if quick else bench.shapes
    more = tuple(shape for shape in bench.full if shape not in chosen) if full else ()
    return chosen + more


def run(benches: Sequence[Bench], options: argparse.Namespace, command: str) -> list[Case]:
    """Measure shape by shape, print each, and write the record after each, so that none is lost."""
    began = time.perf_counter()
    seed = options.seed if options.seed is not None else time.time_ns() % 2**31
    timed = torch.cuda.is_available() and not options.tiny
    paths = [options.out] if options.out else []
    if options.results:
        paths.append(options.results / folder_name(device_name()) / "kernels.json")
    clock = Clock() if timed else None
    machine = description(command, options.commit)
    rates: dict[str, list[float]] = {"copy bandwidth": [], "matmul rate": []}
    cases: list[Case] = []
    for bench in benches:
        if clock is not None:
            copies, products = copy_bandwidth(clock), matmul_rate(clock)
            rates["copy bandwidth"] += copies
            rates["matmul rate"] += products
        for shape in _shapes(bench, timed, options.quick, options.full):
            if options.limit and time.perf_counter() - began > options.limit:
                print(f"{bench.name}, {shape.label}: not measured, {options.limit:g} s are over", flush=True)
                continue
            started = time.perf_counter()
            case = measure(bench, shape, clock, seed, options.seconds)
            if clock is not None:
                case.copy_rate, case.matmul_rate = statistics.median(copies), statistics.median(products)
            cases.append(case)
            print(f"{table(case)}\n  ({time.perf_counter() - started:.1f} s)\n", flush=True)
            if timed:
                content = record(cases, machine, rates, time.perf_counter() - began)
                for path in paths:
                    write(content, path)
    if timed and cases:
        copy, product = (statistics.median(rates[name]) for name in rates)
        print(
            f"{machine['device']}: copy {copy / 1e12:.2f} TB/s, matmul {product / 1e12:.0f} TFLOP/s, "
            f"seed {seed}, {time.perf_counter() - began:.0f} s"
        )
    return cases


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["profile"]:
        from kernels.bench.profile import main as profile

        return profile(given[1:])
    options = _parser().parse_args(given)
    names = [*options.kernel, *filter(None, options.kernels.split(","))]
    try:
        benches = load(names)
    except ValueError as error:
        print(f"kernels.bench: {error}", file=sys.stderr)
        return 2
    cases = run(benches, options, "python -m kernels.bench " + shlex.join(given))
    wrong = [f"{case.name}: {case.wrong}" for case in cases if case.wrong]
    if options.tiny:
        print(f"{len(cases) - len(wrong)} of {len(cases)} cases right")
    elif not torch.cuda.is_available():
        print(
            f"{len(cases) - len(wrong)} of {len(cases)} cases right under Triton's interpreter. "
            "Times, and the peers, need a CUDA GPU; none is here" + (", so no record was written." if
            options.out or options.results else ".")
        )  # fmt: skip
    for each in wrong:
        print(f"WRONG {each}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
