"""Trains, and kills what trains: started by test_training_kill.py as a process of its own.

    python kill_runner.py FOLDER KILLS SEED

PyTorch is imported once; each attempt is a fork of this process, which itself never computes with PyTorch (a
fork after its threads have started would hang). Prints one JSON object with what was found.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # what the first optimizer step imports: once here, and not in every attempt

from lmlib.architecture import ModelConfig, TransformerLM
from lmlib.training import OptimizerSettings, Schedule, TokenData, Trainer, TrainerSettings
from lmlib.training.checkpoint import CheckpointError, CheckpointFolder

STEPS, INTERVAL = 60, 3
DATA = TokenData.from_array(np.random.default_rng(0).integers(0, 64, 5000), vocab_size=64)


class Journal:
    """Writes each step's loss, to the bit, and a random number, so that the generators count too."""

    def __init__(self, path: Path, signal_to: int) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.signal_to = signal_to

    def start(self, trainer: Trainer) -> None:
        os.write(self.signal_to, b"!")

    def log(self, step: int, values: dict[str, float]) -> None:
        if "loss" in values:
            drawn = float(torch.rand(()))
            os.write(self.file, f"{step} {values['loss'].hex()} {drawn.hex()}\n".encode())


def train(folder: Path, signal_to: int) -> None:
    """One attempt: resume, or begin, say that the first step comes, and train to the end."""
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=64, context_length=16, d_model=32, n_layers=2, n_heads=2)
    settings = TrainerSettings(
        batch_size=4,
        context_length=16,
        max_steps=STEPS,
        log_every=1,
        eval_every=10,
        eval_tokens=64,
        save_every=INTERVAL,
        sampling="epochs",
        device="cpu",
    )
    schedule = Schedule(peak=1e-2, total=STEPS, warmup=5)
    journal = Journal(folder / "journal", signal_to)
    model = TransformerLM(config)
    trainer = Trainer(
        model, OptimizerSettings(), schedule, DATA, DATA, settings, [journal], folder=folder / "checkpoints"
    )
    trainer.resume()
    trainer.fit()


def attempt(folder: Path, delay: float | None) -> tuple[bool, float]:
    """Train in a fork, and kill it so long after its first step began.

    Returns whether it was killed before it was done, and the seconds from its first step to its end.
    """
    folder.mkdir(exist_ok=True)
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            train(folder, there)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    os.close(there)
    os.read(here, 1)  # returns nothing if the child ends before it has begun
    os.close(here)
    started = time.perf_counter()
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)  # a child that is done waits to be collected: nobody else has its id
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise SystemExit("the training process failed")
    return os.WIFSIGNALED(status), time.perf_counter() - started


def journal(folder: Path) -> list[list[str]]:
    """The lines of a journal as words."""
    path = folder / "journal"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of the tensors of the last checkpoint."""
    files = CheckpointFolder(folder / "checkpoints").manifest(STEPS)["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name != "state.json"}


def look(folder: Path) -> dict[str, int | str | None]:
    """What a kill has left: the last step in the journal, and the checkpoints."""
    checkpoints = CheckpointFolder(folder / "checkpoints")
    entries = [entry.name for entry in checkpoints.path.iterdir()] if checkpoints.path.exists() else []
    steps = checkpoints.steps()
    try:
        newest, problem = checkpoints.newest() or 0, None
    except CheckpointError as error:
        newest, problem = -1, str(error)
    lines = journal(folder)
    return {
        "trained": int(lines[-1][0]) if lines else 0,
        "newest": newest,
        "claimed": steps[-1] if steps else 0,
        "problem": problem,
        "saving": sum(name.startswith((".partial-", ".removed-")) for name in entries),
    }


def main(base: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    dice = random.Random(seed)
    _, whole = attempt(base / "straight", None)
    expected = {line[0]: line[1:] for line in journal(base / "straight")}
    found: list[dict[str, int | str | None]] = []
    finished, wrong, chain = 0, [], 0
    while len(found) < kills or finished == 0:
        folder = base / f"run-{chain}"
        # Half a run at most, so that a run is killed several times before it ends.
        delay = dice.uniform(0, whole / 2) if len(found) < kills else None
        if attempt(folder, delay)[0]:
            found.append(look(folder))
            continue
        finished += 1
        chain += 1
        wrong += [line for line in journal(folder) if expected[line[0]] != line[1:]]
        if hashes(folder) != hashes(base / "straight"):
            wrong.append([f"{folder.name} ended with other tensors"])
    report = {
        "kills": found,
        "finished": finished,
        "wrong": wrong,
        "steps": len(expected),
        "whole_seconds": whole,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
