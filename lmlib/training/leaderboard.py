"""The leaderboard: the lowest validation loss within a budget, written down so that others can check it.

- The clock starts when the command starts: imports, tokenizing, compilation and checkpoints count, evaluation
  does not. Or the budget is in model FLOPs, the same for every machine.
- Every entry is evaluated alike: context 512, all of the validation file.
- An entry carries the sha256 of its own canonical JSON, of its data and of its weights; ``verify`` recomputes
  the loss from the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lmlib.architecture import ModelConfig, TransformerLM
from lmlib.resources.units import ArgumentError, check_number
from lmlib.tokenization.storage import write_text
from lmlib.training.checkpoint import CheckpointFolder
from lmlib.training.config import RunConfig, apply, read_values
from lmlib.training.dataset import TokenData
from lmlib.training.evaluate import evaluate
from lmlib.training.logs import JsonLines, Progress, read_lines
from lmlib.training.loss import LossModule
from lmlib.training.precision import precision
from lmlib.training.prepare import prepare
from lmlib.training.run import attention_backend, make_parallel, make_trainer, together
from lmlib.training.state import MODEL, load_model

FORMAT, VERSION = "lmlib-leaderboard", 1
CONTEXT = 512  # tokens, of the evaluation
TOLERANCE = 0.003  # nats a token between machines, of bf16 products; fp32 on the same machine agrees to 1e-5
_DEFAULT_DATA = "stories of the micro-world, generated"


def read_for_budget(
    source: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    seconds: float | None = None,
    flops: float | None = None,
) -> RunConfig:
    """A configuration from a file or a preset's name, which needs no limit of its own: the budget is one.

    Limits that the file has are checked like any setting; ``compete`` lets them give way to the budget.

    Raises:
        ArgumentError: for anything that ``lmlib.training.config.read`` refuses, or an impossible budget.
    """
    _check_budget(seconds, flops)
    values = read_values(os.fspath(source))
    for each in overrides:
        apply(values, each)
    trainer = values.setdefault("trainer", {})
    if isinstance(trainer, dict):  # anything else is refused below
        trainer |= (
            {"max_seconds": seconds, "schedule_by": "budget"} if flops is None else {"max_flops": flops}
        )
    return RunConfig.from_dict(values)


def _check_budget(seconds: float | None, flops: float | None) -> None:
    if (seconds is None) == (flops is None):
        raise ArgumentError("seconds", "or flops must be given, one of them")
    if seconds is not None:
        check_number("minutes", seconds / 60, 1e-9, 1e9)
    if flops is not None:
        check_number("flops", flops, 1, 1e40)


def compete(
    config: RunConfig,
    out: str | os.PathLike[str],
    *,
    seconds: float | None = None,
    flops: float | None = None,
    title: str | None = None,
    describe: str | None = None,
    data_folder: str | os.PathLike[str] | None = None,
    started: float | None = None,
) -> dict[str, Any]:
    """Train within a budget, evaluate, and give the entry.

    Args:
        seconds, flops: the budget, one of them.
        describe: what the data is.
        started: ``time.monotonic()`` when the clock started; default now.

    Raises:
        ArgumentError: for a model whose context is below that of the evaluation, or a budget that is used up
            before training has begun.
    """
    started = time.monotonic() if started is None else started
    _check_budget(seconds, flops)
    if config.model_config().context_length < CONTEXT:
        raise ArgumentError(
            "model.context_length",
            f"must be at least {CONTEXT} here, got {config.model_config().context_length}",
        )
    out, parallel = Path(out), make_parallel(config)
    folder = Path(data_folder) if data_folder is not None else out / "data"
    data = together(parallel, lambda: prepare(config.data, config.tokenizer, folder))
    limits: dict[str, Any] = {"max_steps": None, "max_tokens": None, "max_seconds": None, "max_flops": flops}
    before = 0.0
    if seconds is not None:
        before = parallel.same(time.monotonic() - started)
        if before >= seconds:
            raise ArgumentError(
                "minutes",
                f"are used up: getting ready took {before:.0f} s of {seconds:g} s "
                f"(a second run finds its data in {folder} and starts sooner)",
            )
        limits |= {"max_seconds": seconds - before, "schedule_by": "budget"}
    config = replace(config, trainer=replace(config.trainer, **limits))
    callbacks: list[Any] = [JsonLines(out / "log.jsonl"), Progress()] if parallel.is_main else []
    if parallel.is_main:
        (out / "log.jsonl").unlink(missing_ok=True)
    with attention_backend(config.attention_backend):
        trainer = make_trainer(
            config,
            data,
            folder=out / "checkpoints",
            parallel=parallel,
            callbacks=callbacks,
            validate=False,
        )
        if seconds is not None:  # making the model counts as well
            late = parallel.same(time.monotonic() - started) - before
            trainer.settings = replace(trainer.settings, max_seconds=seconds - before - late)
            before += late
        trainer.fit()
        loss, n_bytes = _evaluate(trainer.module, data.val, trainer.policy.name, trainer.device)
    rows = [row for row in read_lines(out / "log.jsonl") if "loss" in row]
    content = {
        "format": FORMAT,
        "version": VERSION,
        "title": title or config.name,
        "class": class_of(trainer.device, seconds, flops),
        "budget": {"seconds": seconds} if flops is None else {"flops": flops},
        "config": config.to_dict(),
        "precision": trainer.policy.name,
        "data": {
            "description": describe or _described(config),
            "train_sha256": data.train.sha256,
            "val_sha256": data.val.sha256,
            "train_tokens": len(data.train),
            "val_tokens": len(data.val),
            "val_bytes": n_bytes,
        },
        "hardware": hardware(trainer.device),
        "parameters": sum(each.numel() for each in trainer.model.parameters()),
        "steps": trainer.step,
        "tokens": trainer.tokens,
        "flops": trainer.flops,
        "seconds": before + trainer.seconds,
        "start_seconds": before,
        "curve": [
            [round(before + row["seconds"], 3), row["tokens"], row["loss"]] for row in _thin(rows, 200)
        ],
        "context": CONTEXT,
        "loss": loss,
        "loss_per_byte": loss * (len(data.val) - 1) / n_bytes if n_bytes else None,
        "bits_per_byte": loss * (len(data.val) - 1) / n_bytes / math.log(2) if n_bytes else None,
        "weights_sha256": _weights(out / "checkpoints", trainer.step),
        "date": datetime.now(UTC).date().isoformat(),
    }
    del trainer
    parallel.leave()
    return sign(content)


def _evaluate(
    module: Any, val: TokenData, policy: str, device: torch.device | str
) -> tuple[float, int | None]:
    found = evaluate(module, val, context_length=CONTEXT, batch_size=16, device=device, policy=policy)
    return found["loss"], val.n_bytes


def _described(config: RunConfig) -> str:
    return _DEFAULT_DATA if config.data.source == "micro-world" else config.data.source


def _thin(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Evenly spaced rows, the last among them."""
    every = max(1, -(-len(rows) // most))
    return rows[::-1][::every][::-1]


def _weights(folder: Path, step: int) -> str | None:
    file = CheckpointFolder(folder).place(step) / MODEL
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def class_of(device: torch.device, seconds: float | None, flops: float | None) -> str:
    """Who competes with whom: the device and the minutes, or the FLOPs alone."""
    if flops is not None:
        return f"{flops:.3g} FLOPs"
    assert seconds is not None
    kind = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return f"{kind}, {seconds / 60:g} minutes"


def hardware(device: torch.device) -> dict[str, Any]:
    """What it ran on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "gpu": gpu,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "cpu": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


# -- entries -------------------------------------------------------------------------------------------------


def digest(content: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON: keys sorted, no spaces, without the hash itself."""
    bare = {key: value for key, value in content.items() if key != "sha256"}
    text = json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sign(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with its hash. Through text, so that what is hashed is what will be read."""
    plain = json.loads(json.dumps(content, allow_nan=False))
    return {**plain, "sha256": digest(plain)}


def write_entry(entry: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write an entry, whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, json.dumps(entry, indent=1, ensure_ascii=False) + "\n")
    return target


def read_entry(path: str | os.PathLike[str]) -> dict[str, Any]:
    """An entry whose hash is right.

    Raises:
        ValueError: if there is none, it is not one of ours, or it was changed after it was signed.
    """
    if not Path(path).is_file():
        raise ArgumentError(
            "entry", f"must be an entry.json that `leaderboard` wrote; there is no file {os.fspath(path)!r}"
        )
    try:
        entry = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(entry, dict) or entry.get("format") != FORMAT:
        raise ValueError(f"{path} is not an entry of the leaderboard")
    if entry.get("version") != VERSION:
        raise ValueError(f"{path} has version {entry.get('version')!r}; this library reads {VERSION}")
    if entry.get("sha256") != digest(entry):
        raise ValueError(f"{path} does not match its sha256: it was changed after it was signed")
    return entry


def verify(
    path: str | os.PathLike[str],
    *,
    checkpoints: str | os.PathLike[str] | None = None,
    data_folder: str | os.PathLike[str] | None = None,
) -> float:
    """Compute an entry's loss anew from its checkpoint and data; gives it.

    Raises:
        ValueError: for an entry, data or weights that are not what the entry says, or another loss.
        CheckpointError: for a missing or damaged checkpoint.
    """
    entry, beside = read_entry(path), Path(path).parent
    config = RunConfig.from_dict(entry["config"])
    data = prepare(config.data, config.tokenizer, data_folder or beside / "data")
    for name, part in (("train", data.train), ("val", data.val)):
        part.verify()
        if part.sha256 != entry["data"][f"{name}_sha256"]:
            raise ValueError(f"the {name} data have sha256 {part.sha256}, the entry says otherwise")
    folder = CheckpointFolder(checkpoints or beside / "checkpoints")
    place = folder.verify(entry["steps"])
    if _weights(folder.path, entry["steps"]) != entry["weights_sha256"]:
        raise ValueError(f"{place / MODEL} does not hold the entry's weights")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = TransformerLM(ModelConfig.from_dict(config.model_config().to_dict()))
    policy = precision(entry["precision"] if device == "cuda" else "fp32")
    model.to(device)
    policy.prepare(model)
    load_model(place, model)
    loss, _ = _evaluate(LossModule(model), data.val, policy.name, device)
    if not abs(loss - entry["loss"]) <= TOLERANCE:
        raise ValueError(f"the checkpoint's loss is {loss:.5f}, the entry says {entry['loss']:.5f}")
    return loss
