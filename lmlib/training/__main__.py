"""Train from one file: ``python -m lmlib.training CONFIG_OR_PRESET [--set section.key=value ...]``.

python -m lmlib.training micro                          # a preset, on whatever is there
python -m lmlib.training my.toml --out runs/mine --set trainer.batch_size=64
python -m lmlib.training micro --out runs/micro --resume
torchrun --nproc-per-node 2 -m lmlib.training my.toml --set parallel.kind=fsdp2
python -m lmlib.training leaderboard --minutes 10       # an entry within a budget of time
python -m lmlib.training leaderboard --flops 1e15 --config my.toml
python -m lmlib.training verify entry.json --checkpoint runs/leaderboard/checkpoints
"""

from __future__ import annotations

import time

_STARTED = time.monotonic()  # before the imports: a budget of time counts them

import argparse  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402

from lmlib.resources.units import ArgumentError  # noqa: E402
from lmlib.training.config import presets, read  # noqa: E402


def _train(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lmlib.training",
        description="Train a language model from one readable file.",
        epilog="Also: `leaderboard` (train within a budget, write an entry) and `verify` (check an entry); "
        "each has a --help.",
    )
    parser.add_argument("config", help=f"a TOML file, or a preset: {', '.join(presets())}")
    _common(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the newest intact checkpoint")
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration and stop")
    chosen = parser.parse_args(arguments)
    config = read(chosen.config, chosen.set)
    if chosen.print_config:
        print(config.to_toml(), end="")
        return 0
    from lmlib.training.run import run

    out = chosen.out or Path("runs") / config.name
    trainer = run(config, out, data_folder=chosen.data, resume=chosen.resume)
    parallel = trainer.parallel
    if parallel.is_main:
        values = trainer.last
        shown = ", ".join(
            f"{name} {values[name]:.4f}"
            for name in ("loss", "val_loss", "val_loss_per_byte")
            if name in values
        )
        print(f"{out}: step {trainer.step:,}, {trainer.tokens:,} tokens, {trainer.seconds:.0f} s; {shown}")
    del trainer
    parallel.leave()
    return 0


def _leaderboard(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lmlib.training leaderboard",
        description="Train within a budget and write an entry that its hash signs. The clock runs from the "
        "start of this command: imports, data and compilation count, evaluation does not.",
    )
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="budget of training time")
    budget.add_argument("--flops", type=float, help="budget of model FLOPs, whatever the hardware")
    parser.add_argument("--config", default="leaderboard", help="a TOML file or preset (%(default)s)")
    parser.add_argument("--title", help="of the entry, in a few words (default: the configuration's name)")
    parser.add_argument("--describe-data", help="what the data is, in a sentence")
    _common(parser)
    chosen = parser.parse_args(arguments)
    from lmlib.training.leaderboard import compete, read_for_budget, write_entry

    seconds = None if chosen.minutes is None else 60 * chosen.minutes
    config = read_for_budget(chosen.config, chosen.set, seconds=seconds, flops=chosen.flops)
    out = chosen.out or Path("runs") / f"{config.name}-leaderboard"
    entry = compete(
        config,
        out,
        seconds=seconds,
        flops=chosen.flops,
        title=chosen.title,
        describe=chosen.describe_data,
        data_folder=chosen.data,
        started=_STARTED,
    )
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and int(os.environ.get("RANK", "0")) > 0:  # one entry is enough, the first process's
        return 0
    path = write_entry(entry, out / "entry.json")
    print(
        f"{path}: {entry['class']}: {entry['loss']:.4f} nats/token, {entry['bits_per_byte']:.4f} bits/byte, "
        f"{entry['tokens']:,} tokens in {entry['seconds']:.0f} s"
    )
    return 0


def _verify(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lmlib.training verify",
        description="Check an entry: its hash, its data's hash, and the loss, computed anew.",
    )
    parser.add_argument("entry", type=Path, help="the JSON file")
    parser.add_argument("--checkpoint", type=Path, help="folder of checkpoints (default: beside the entry)")
    parser.add_argument("--data", type=Path, help="folder of token files (default: beside the entry)")
    chosen = parser.parse_args(arguments)
    from lmlib.training.leaderboard import verify

    found = verify(chosen.entry, checkpoints=chosen.checkpoint, data_folder=chosen.data)
    print(f"{chosen.entry}: hash, data and weights are the entry's; loss {found:.4f} nats/token, as it says")
    return 0


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, may be repeated"
    )
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME)")
    parser.add_argument("--data", type=Path, help="folder of tokenizers and token files (default: OUT/data)")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code: 2 for a refused argument, 1 for anything else that failed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"leaderboard": _leaderboard, "verify": _verify}
    try:
        if given and given[0] in commands:
            return commands[given[0]](given[1:])
        return _train(given)
    except ArgumentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError, ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
