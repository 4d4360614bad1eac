"""How fast products in eight bits are, beside bf16 in the same run.

    python -m lmlib.training.fp8_bench --out book/results/<device>/fp8.json

Square products of ``SIZES``, each in bf16, in eight bits, and in eight bits with scaling and casting counted:
``fp8.quantize`` of both factors, not compiled, as the layer's forward pass pays for it. Samples are taken in
turns, so that a clock that falls meets all three.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.bench.timing import Clock, Timed
from lmlib.resources.units import ArgumentError
from lmlib.training import fp8, record

SIZES = (1024, 2048, 4096, 8192)
BF16, EIGHT, COUNTED = "bf16", "8 bits", "8 bits, scaling and casting counted"
SECONDS = 0.3  # of samples of each way at each size


def competitors(size: int, device: str = "cuda") -> dict[str, Callable[[], Tensor]]:
    """The three ways to multiply two random matrices of size x size, by name."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    a8, b8 = fp8.quantize(a), fp8.quantize(b).transposed()  # held as the units read it
    return {
        BF16: lambda: a @ b.T,
        EIGHT: lambda: fp8.product(a8, b8, torch.bfloat16),
        COUNTED: lambda: fp8.product(fp8.quantize(a), fp8.quantize(b).transposed(), torch.bfloat16),
    }


def errors(size: int, device: str = "cuda") -> dict[str, float]:
    """How far each is from float64 of the same matrices, relative in norm; nothing is timed before it.

    Raises:
        ArithmeticError: for products in eight bits that are off by more than their rounding explains.
    """
    torch.manual_seed(0)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    torch.manual_seed(0)
    right = a.double() @ b.double().T
    found = {
        name: float((work().double() - right).norm() / right.norm())
        for name, work in competitors(size, device).items()
    }
    if not max(found[EIGHT], found[COUNTED]) < 0.08:  # E4M3 rounds by up to 2^-4, some 2.6 % in the mean
        raise ArithmeticError(f"a product of {size} x {size} in eight bits is wrong: {found}")
    return found


def seconds(works: dict[str, Callable[[], Tensor]]) -> dict[str, list[float]]:
    """Samples of seconds a call on the GPU, with a cold cache, taken in turns (``kernels.bench.timing``)."""

    def timed_alone(work: Callable[[], Tensor]) -> Timed:
        return Timed(lambda _: work())

    clock, timed = Clock(), {name: timed_alone(work) for name, work in works.items()}
    for each in timed.values():
        clock.warm_up(each)
    return clock.compare(timed, SECONDS)


def measure(sizes: Sequence[int] = SIZES) -> tuple[dict[str, Any], dict[str, Any]]:
    """Samples and facts for a record; prints a line for each size.

    Raises:
        ArgumentError: for sizes that the units cannot take.
    """
    for size in sizes:
        if size < 16 or size % 16:
            raise ArgumentError("sizes", f"must be multiples of 16, got {size}")
    samples: dict[str, Any] = {}
    about: dict[str, Any] = {"sizes": list(sizes), "errors": {}}
    for size in sizes:
        about["errors"][str(size)] = errors(size)
        taken = seconds(competitors(size))
        for name, values in taken.items():
            samples[f"{size}: {name}"] = {"unit": "s", "values": values}
        medians = {name: statistics.median(values) for name, values in taken.items()}
        shown = ", ".join(f"{name} {2e-12 * size**3 / each:,.0f} TFLOP/s" for name, each in medians.items())
        print(f"{size:,} x {size:,}: {shown}", flush=True)
    return samples, about


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m lmlib.training.fp8_bench", description=__doc__)
    parser.add_argument("--out", type=Path, help="write a record")
    parser.add_argument("--commit", default="unknown", help="of the source, for the record")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), help="multiples of 16")
    chosen = parser.parse_args(given)
    if not fp8.has_units("cuda"):
        parser.error(
            "it times a GPU's units for eight-bit floats (Ada, Hopper or later), and there are none here"
        )
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)  # now, and not when all is measured
    try:
        samples, about = measure(chosen.sizes)
    except ArgumentError as error:
        parser.error(f"--{error}")
    if chosen.out:
        origin = record.origin("lmlib.training.fp8_bench", given, chosen.commit)
        record.write(chosen.out, {**origin, "samples": samples, "about": about})


if __name__ == "__main__":
    main()
