"""From a configuration to a trainer, and a run in a folder.

DIR/config.toml     what was run
DIR/log.jsonl       every logged value
DIR/checkpoints/    see lmlib.training.checkpoint
DIR/tensorboard/    if wanted
DATA/               tokenizer and token files, shared by runs with the same data (default DIR/data)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmlib.architecture import TransformerLM
from lmlib.resources.units import ArgumentError
from lmlib.training.alone import Alone
from lmlib.training.checkpoint import CheckpointFolder
from lmlib.training.config import RunConfig
from lmlib.training.logs import JsonLines, Progress, TensorBoard
from lmlib.training.precision import Precision, precision
from lmlib.training.prepare import Prepared, prepare
from lmlib.training.trainer import Trainer

_ORDERS = {
    "cudnn": (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION),
    "flash": (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION),
}


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """What PyTorch's attention tries first while inside: ``cudnn``, ``flash``; ``auto``: its own order."""
    if name == "auto" or not torch.cuda.is_available():
        yield
        return
    rest = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
    with sdpa_kernel([*_ORDERS[name], *rest], set_priority=True):
        yield


def choose_precision(config: RunConfig) -> Precision:
    """The policy of a run: ``auto`` is bf16 on a GPU that has it, and fp32 elsewhere."""
    if config.precision != "auto":
        return precision(config.precision)
    gpu = config.trainer.device in ("auto", "cuda") and torch.cuda.is_available()
    return precision("bf16" if gpu and torch.cuda.is_bf16_supported() else "fp32")


def make_model(config: RunConfig) -> TransformerLM:
    """The initial model, which the seed of the trainer decides."""
    torch.manual_seed(config.trainer.seed)
    return TransformerLM(config.model_config())


def make_optimizer(config: RunConfig) -> Callable[[nn.Module, Precision], torch.optim.Optimizer]:
    """How the optimizer is made; with muP, with a learning rate of its own for each kind of matrix."""
    base = config.mup.base_d_model
    if base is None:
        return config.optimizer
    from lmlib.training.mup import groups

    settings = config.optimizer

    def make(model: nn.Module, policy: Precision) -> torch.optim.Optimizer:
        return settings.build(model, policy, groups=groups(model, base, settings))

    return make


def make_parallel(config: RunConfig) -> Alone:
    """How the processes of this run work together; joins them if there are several.

    Raises:
        ArgumentError: if ``torchrun`` started several processes and the configuration knows of one, or the
            other way round.
    """
    if config.parallel.kind == "none":
        started = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
        if started > 1:
            raise ArgumentError(
                "parallel.kind",
                f"must be 'ddp' or 'fsdp2' for {started} processes, got 'none': each would train the whole "
                "run, in the same folder",
            )
        return Alone()
    from lmlib.training.parallel import join

    return join(config.parallel, config.trainer.device)


def make_trainer(
    config: RunConfig,
    data: Prepared,
    *,
    folder: str | os.PathLike[str] | None = None,
    parallel: Alone | None = None,
    callbacks: Sequence[Any] = (),
    validate: bool = True,
) -> Trainer:
    """The trainer of a configuration over prepared data; ``validate``: whether it evaluates by itself."""
    model = make_model(config)
    if config.mup.base_d_model is not None:
        from lmlib.training.mup import initialize

        initialize(model, config.mup.base_d_model)
    return Trainer(
        model,
        make_optimizer(config),
        config.make_schedule(),
        data.train,
        data.val if validate else None,
        config.trainer,
        callbacks=callbacks,
        precision=choose_precision(config),
        wrap=parallel,
        folder=folder,
        config=config.to_dict(),
    )


def run(
    config: RunConfig,
    out: str | os.PathLike[str],
    *,
    data_folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Trainer:
    """Train in the folder ``out``; gives the trainer when it has finished.

    Args:
        data_folder: of tokenizers and token files; default ``out/data``.
        resume: go on from the newest intact checkpoint in ``out``; without one, say so and start.
    """
    out = Path(out)
    if not resume and CheckpointFolder(out / "checkpoints").steps():
        raise ArgumentError(
            "--resume", f"is needed, or another --out: {out} holds checkpoints of an earlier run"
        )
    parallel = make_parallel(config)
    place = Path(data_folder) if data_folder is not None else out / "data"
    data = together(parallel, lambda: prepare(config.data, config.tokenizer, place))
    callbacks: list[Any] = []
    if parallel.is_main:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        callbacks = [JsonLines(out / "log.jsonl")]
        if not resume:
            (out / "log.jsonl").unlink(missing_ok=True)
        if config.log.tensorboard:
            callbacks.append(TensorBoard(out / "tensorboard"))
        if config.log.progress:
            callbacks.append(Progress())
    with attention_backend(config.attention_backend):
        trainer = make_trainer(
            config, data, folder=out / "checkpoints", parallel=parallel, callbacks=callbacks
        )
        if resume and not trainer.resume() and parallel.is_main:
            place = out / "checkpoints"
            print(f"--resume: there is no checkpoint in {place}; starting from the beginning", flush=True)
            (out / "log.jsonl").unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        trainer.fit()
    return trainer


def together(parallel: Alone, make: Callable[[], Prepared]) -> Prepared:
    """The main process makes the files, then the others open them."""
    if parallel.is_main:
        made = make()
        parallel.barrier()
        return made
    parallel.barrier()
    return make()
