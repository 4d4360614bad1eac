"""Many small runs of one configuration with changes: grids, and the ladder of chapter 3's ideas.

    python -m lmlib.training.sweep micro --grid schedule.lr=0.005,0.01,0.02 --grid trainer.batch_size=8,16
    python -m lmlib.training.sweep micro --ladder
    python -m lmlib.training.sweep micro --ladder --rates muon=0.02,0.04   # more rates for some rungs

Each run is a process of its own with one thread; a budget in FLOPs makes runs comparable whatever else the
machine does meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lmlib.resources.units import ArgumentError, check_choice
from lmlib.tokenization.processes import worker_pool
from lmlib.training import record
from lmlib.training.config import RunConfig, read
from lmlib.training.prepare import prepare
from lmlib.training.run import make_trainer

Case = tuple[str, list[str]]  # label, overrides

_PLAIN = [
    "model.norm='layernorm'",
    "model.mlp='gelu'",
    "model.position='learned'",
    "model.bias=true",
    "model.qk_norm=false",
    "schedule.warmup=0",
]
LADDER: list[tuple[str, list[str]]] = [
    (
        "SGD, constant rate",
        ["optimizer.kind='sgd'", "schedule.kind='constant'", "schedule.warmup=0", *_PLAIN],
    ),
    ("AdamW", ["optimizer.kind='adamw'"]),
    ("warm-up and cosine", ["schedule.kind='cosine'", "schedule.warmup=0.05", "schedule.final=0.1"]),
    ("RMSNorm, no biases", ["model.norm='rmsnorm'", "model.bias=false"]),
    ("SwiGLU", ["model.mlp='swiglu'"]),
    ("RoPE", ["model.position='rope'"]),
    ("QK-norm", ["model.qk_norm=true"]),
    ("Muon", ["optimizer.kind='muon'"]),
    ("linear to zero", ["schedule.kind='linear'", "schedule.warmup=0.02", "schedule.final=0"]),
]
RATES = {"sgd": (0.03, 0.1, 0.3, 1.0), "adamw": (0.001, 0.003, 0.006), "muon": (0.002, 0.005, 0.01)}


def ladder(rates: Mapping[str, Sequence[float]] = RATES) -> list[Case]:
    """Each rung adds one idea to all before it, and is run at several rates, so that each has a fair one.

    Args:
        rates: by kind of optimizer; rungs of a kind that is not there are left out.
    """
    cases: list[Case] = []
    overrides: list[str] = []
    kind = "sgd"
    for label, added in LADDER:
        overrides = overrides + added
        for each in added:
            if each.startswith("optimizer.kind="):
                kind = each.split("'")[1]
        cases += [
            (f"{label} @ {rate:g}", [*overrides, f"schedule.lr={rate}"]) for rate in rates.get(kind, ())
        ]
    return cases


def rates_of(given: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Learning rates by kind of optimizer, from ``kind=rate,rate``.

    Raises:
        ArgumentError: for an unknown kind, or a rate that is no number.
    """
    found = {}
    for each in given:
        kind, _, values = each.partition("=")
        check_choice("rates", kind, RATES)
        try:
            found[kind] = tuple(float(value) for value in values.split(","))
        except ValueError:
            raise ArgumentError("rates", f"must be numbers after {kind}=, got {values!r}") from None
    return found


def grid(axes: Sequence[str]) -> list[Case]:
    """All combinations of ``key=value,value`` axes; ``+`` joins keys that change together."""
    options = []
    for axis in axes:
        key, _, values = axis.partition("=")
        keys = key.split("+")
        options.append(
            [
                [f"{name}={part}" for name, part in zip(keys, value.split("+"), strict=True)]
                for value in values.split(",")
            ]
        )
    chosen = [list(itertools.chain.from_iterable(each)) for each in itertools.product(*options)]
    return [(" ".join(each), each) for each in chosen]


def run_case(source: str, overrides: list[str], folder: str, threads: int) -> dict[str, Any]:
    """Train one case and evaluate it; what a worker process does."""
    torch.set_num_threads(threads)
    config = read(source, overrides)
    data = prepare(config.data, config.tokenizer, folder)
    try:
        trainer = make_trainer(config, data)
        values = trainer.fit()
    except RuntimeError as error:  # a rate that is too high is a result, too
        return {"error": str(error).split(";")[0]}
    return {
        "val_loss": values["val_loss"],
        "val_loss_per_byte": values.get("val_loss_per_byte"),
        "loss": values["loss"],
        "steps": trainer.step,
        "tokens": trainer.tokens,
        "flops": trainer.flops,
        "seconds": trainer.seconds,
        "parameters": sum(each.numel() for each in trainer.model.parameters()),
    }


def sweep(source: str, cases: Sequence[Case], *, jobs: int, folder: str, threads: int = 1) -> dict[str, Any]:
    """Run all cases, ``jobs`` at a time; results by label."""
    base: RunConfig = read(source, cases[0][1])
    prepare(base.data, base.tokenizer, folder)  # once, before many would
    results: dict[str, Any] = {}
    with worker_pool(jobs) as pool:
        waiting = {
            label: pool.submit(run_case, source, overrides, folder, threads) for label, overrides in cases
        }
        for label, future in waiting.items():
            results[label] = future.result()
            found = results[label]
            shown = found.get("error") or f"{found['val_loss']:.4f} ({found['seconds']:.0f} s)"
            print(f"{label:70s} {shown}", flush=True)
    return results


def as_record(source: str, results: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """A record; runs that diverged are told under ``about``."""
    good = {label: each for label, each in results.items() if "error" not in each}
    return {
        **origin,
        "samples": {
            label: {"unit": "nats/token", "values": [each["val_loss"]]} for label, each in good.items()
        },
        "about": {"config": source, "runs": results},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m lmlib.training.sweep", description=__doc__)
    parser.add_argument("config", help="a TOML file or a preset")
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=A,B,C", help="may be repeated")
    parser.add_argument("--ladder", action="store_true", help="the ladder of chapter 3's ideas")
    parser.add_argument(
        "--rates", action="append", default=[], metavar="KIND=A,B", help="of the ladder, in place of its own"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a run")
    parser.add_argument("--data", help="folder of token files (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="write a record")
    parser.add_argument("--commit", default="unknown", help="of the source, for the record")
    chosen = parser.parse_args(given)
    rates = rates_of(chosen.rates) or RATES
    cases = ladder(rates) if chosen.ladder else grid(chosen.grid)
    cases = [(label, [*chosen.set, *overrides]) for label, overrides in cases]
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)  # now, and not when all has run
    with tempfile.TemporaryDirectory() as temporary:
        results = sweep(
            chosen.config, cases, jobs=chosen.jobs, folder=chosen.data or temporary, threads=chosen.threads
        )
    if chosen.out:
        origin = record.origin("lmlib.training.sweep", given, chosen.commit)
        record.write(chosen.out, as_record(chosen.config, results, origin))


if __name__ == "__main__":
    from lmlib.training import sweep as itself  # workers look for its functions by the module's real name

    itself.main()
