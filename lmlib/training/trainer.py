"""The trainer: steps until a budget is used up, and on the way logs, evaluates and saves.

What comes next is always a function of few numbers (step, seed, seconds), so that a run that was killed and
resumed goes on as if nothing had happened: on a CPU, to the bit.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lmlib.resources.units import ArgumentError
from lmlib.training.alone import Alone
from lmlib.training.checkpoint import CheckpointError, CheckpointFolder
from lmlib.training.dataset import TokenData
from lmlib.training.evaluate import evaluate
from lmlib.training.loss import LossModule
from lmlib.training.master import forget_unrounded
from lmlib.training.precision import Precision, precision
from lmlib.training.sampler import Sampler
from lmlib.training.settings import TrainerSettings
from lmlib.training.state import random_state, set_random_state
from lmlib.training.step import Batch, checkpoint_blocks, train_step
from lmlib.training.throughput import Stopwatch, flops_per_token, peak_flops

OptimizerMaker = Callable[[nn.Module, Precision], torch.optim.Optimizer]
Values = dict[str, float]


class Callback(Protocol):
    """Who wants to know. May also have ``start(trainer)``, ``resume(step)`` and ``close()``."""

    def log(self, step: int, values: Values) -> None:
        """Take values of a step: ``loss`` and others of training, or ``val_loss`` of an evaluation."""


class NonFiniteError(RuntimeError):
    """The loss, or the norm of the gradient, became infinite or NaN.

    ``step`` is the first such step, ``last_good`` the last one before it, ``checkpoint`` the newest
    checkpoint, all of whose steps were finite, or ``None``.
    """

    def __init__(self, what: str, value: float, step: int, checkpoint: Path | None) -> None:
        kept = f"the checkpoint {checkpoint} is from before" if checkpoint else "there is no checkpoint"
        super().__init__(
            f"the {what} is {value} at step {step}; step {step - 1} was the last good one; {kept}. "
            "Usual causes: too high a learning rate, too short a warm-up, no clipping, or fp16."
        )
        self.step, self.last_good, self.checkpoint = step, step - 1, checkpoint


class Trainer:
    """Trains a language model.

    Args:
        model: a ``TransformerLM`` or another module with ``hidden``, ``head_weight``, ``blocks`` and
            ``config``; it is moved, cast and trained in place.
        optimizer: ``OptimizerSettings``, or a function of model and precision that makes the optimizer once
            the model is on its device and wrapped, or an optimizer over the model's fp32 parameters.
        schedule: the learning rate of a step, counted from 0; a group's own ``lr_scale`` multiplies it.
        train_data, val_data: ids; without ``val_data`` nothing is evaluated.
        settings: how much, how often.
        callbacks: see ``Callback``; called in the main process.
        precision: a policy of ``lmlib.training.precision`` or its name.
        wrap: how several processes share the work; ``None``: one process.
        folder: of the checkpoints; ``None``: none are written.
        config: anything JSON can hold, saved with every checkpoint.

    Raises:
        ArgumentError: for a context beyond the model's, data that is too short, ids beyond the vocabulary,
            or a batch that the processes cannot share evenly.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerMaker | torch.optim.Optimizer,
        schedule: Callable[[float], float],
        train_data: TokenData,
        val_data: TokenData | None,
        settings: TrainerSettings,
        callbacks: Sequence[Callback] = (),
        precision: Precision | str = "fp32",
        wrap: Alone | None = None,
        folder: str | PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.schedule, self.settings = model, schedule, settings
        self.train_data, self.val_data = train_data, val_data
        self.callbacks, self.config = tuple(callbacks), dict(config or {})
        self.parallel = wrap or Alone()
        self.policy = _policy(precision)  # the argument hides the function of that name
        self.device = _device(settings.device)
        self._check()
        self.sampler = Sampler(len(train_data), settings.context_length, settings.seed, settings.sampling)
        self._build(optimizer)
        self.checkpoints = (
            None
            if folder is None
            else CheckpointFolder(folder, keep_last=settings.keep_last, keep_best=settings.keep_best)
        )
        self.step, self.lr = 0, 0.0
        self.last: Values = {}  # of the last lines of the log
        self._watch = Stopwatch()
        self._pending: list[tuple[Tensor, Tensor]] = []  # (loss, norm) of steps that nobody has looked at
        self._window: list[float] = []  # losses since the last line of the log
        self._mark = (0, 0.0)  # step and seconds of the last line of the log
        self._norm = self._step_seconds = 0.0
        self._saved = self._evaluated = -1  # the steps of the last save and evaluation
        self._saved_at = self._now = 0.0
        # Beside a GPU, a thread reads and pins the next step's windows while this one's are computed on.
        self._read_ahead = self.device.type == "cuda"
        self._reader: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, Future[list[Batch]]] | None = None

    # -- what it is made of ----------------------------------------------------------------------------------

    def _check(self) -> None:
        config, settings = getattr(self.model, "config", None), self.settings
        limit = getattr(config, "context_length", None)
        if limit is not None and settings.context_length > limit:
            raise ArgumentError(
                "context_length",
                f"must be at most the model's, {limit:,}, got {settings.context_length:,}",
            )
        share = self.parallel.world_size * settings.accumulate
        if settings.batch_size % share:
            raise ArgumentError(
                "batch_size",
                f"must be a multiple of processes times accumulate, {share}, got {settings.batch_size}",
            )
        size = getattr(config, "vocab_size", None)
        for name in ("train_data", "val_data"):
            data = getattr(self, name)
            if data is None:
                continue
            if size is not None and data.vocab_size is not None and data.vocab_size > size:
                raise ArgumentError(
                    name, f"has a vocabulary of {data.vocab_size:,} tokens, the model one of {size:,}"
                )
            if len(data) < 2:
                raise ArgumentError(name, f"must have 2 tokens or more, has {len(data)}")
        self.policy.check(self.device)
        self.flops_per_token = flops_per_token(config, settings.context_length)
        if settings.max_flops is not None and self.flops_per_token is None:
            raise ArgumentError("max_flops", "needs a model whose config has resources()")
        if settings.schedule_by == "budget" and not hasattr(self.schedule, "total"):
            raise ArgumentError("schedule_by", "budget needs a schedule that says its total")

    def _build(self, optimizer: OptimizerMaker | torch.optim.Optimizer) -> None:
        """Device, precision, recomputation, loss, wrapping, compilation, optimizer: the order matters."""
        settings, model = self.settings, self.model
        model.to(self.device)
        followed = self.parallel.prepare(model, self.policy)
        if self.policy.tf32:
            torch.set_float32_matmul_precision("high")
        if settings.activation_checkpointing:
            checkpoint_blocks(model)
        loss = LossModule(model, z_loss=settings.z_loss, form=settings.loss, chunk=settings.loss_chunk)
        self.module = self.parallel.wrap(loss, model)
        if settings.compile:
            backend = settings.compile if isinstance(settings.compile, str) else "inductor"
            self.parallel.compile(self.module, model, backend)
        if isinstance(optimizer, torch.optim.Optimizer):
            if followed.master:
                raise ArgumentError(
                    "optimizer",
                    f"must be made by a function for {self.policy.name}, which needs master weights",
                )
            mine = {id(each) for each in model.parameters()}
            if any(id(each) not in mine for group in optimizer.param_groups for each in group["params"]):
                raise ArgumentError(
                    "optimizer",
                    "must be made by a function, or be over this model's parameters: it holds others "
                    "(FSDP2 puts shares in their place)",
                )
            self.optimizer = optimizer
        else:
            self.optimizer = optimizer(model, followed)
        forget_unrounded(model)  # an optimizer of somebody's own may not have asked
        self.scaler = self.policy.scaler(self.device)
        peak = peak_flops(self.device, self.policy)
        self.peak = None if peak is None else peak * self.parallel.world_size

    # -- how far it is ---------------------------------------------------------------------------------------

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all processes."""
        return self.settings.batch_size * self.settings.context_length

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.step * self.tokens_per_step

    @property
    def flops(self) -> float | None:
        """Model FLOPs spent so far; ``None`` where they cannot be known."""
        return None if self.flops_per_token is None else self.tokens * self.flops_per_token

    @property
    def seconds(self) -> float:
        """Seconds of training so far: saves and compilation included, evaluations excluded."""
        return self._watch.seconds

    def progress(self) -> float:
        """The share of the budget that is used: that of the limit which is nearest to being reached."""
        settings = self.settings
        shares = [
            self.step / settings.max_steps if settings.max_steps else 0.0,
            self.tokens / settings.max_tokens if settings.max_tokens else 0.0,
            (self.flops or 0.0) / settings.max_flops if settings.max_flops else 0.0,
        ]
        if settings.max_seconds:
            shares.append(self._now / settings.max_seconds)
        return max(shares)

    def finished(self) -> bool:
        """Whether a limit is reached, or one of time would be passed by another step."""
        limit = self.settings.max_seconds
        if limit and self._now + self._step_seconds > limit:
            return True
        return self.progress() >= 1

    def _tick(self) -> float:
        """Read the clock: the main process's, so that all processes decide alike."""
        self._now = self.parallel.same(self.seconds)
        return self._now

    # -- training --------------------------------------------------------------------------------------------

    def fit(self) -> Values:
        """Train until a limit is reached; evaluate and save at the end; return the last values.

        Raises:
            NonFiniteError: as soon as a loss that is not finite is looked at.
            CheckpointError: if a checkpoint cannot be written.
        """
        self._tell("start", self)
        self._watch.start()
        self._saved_at = self._tick()
        self._mark = (self.step, self._now)
        try:
            timed = self.settings.max_seconds is not None or self.settings.save_seconds is not None
            while not self.finished():
                self._advance()
                if timed:  # asking for the time is an exchange between processes
                    self._tick()
                self._punctuate()
            self._look()
            if (
                self._window and self.step != self._mark[0]
            ):  # a longer run that goes on from here has its line where it always is
                self._log(last=True)
            if self.val_data is not None and self._evaluated != self.step:
                self._evaluate()
            if self.checkpoints is not None and self._saved != self.step:
                self.save()
        finally:
            self._watch.stop()
            self._stop_reading()
            self._tell("close")
        return dict(self.last)

    def _advance(self) -> None:
        self.lr = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group.get("lr_scale", 1.0)
        loss, norm = train_step(
            self.module,
            self.optimizer,
            self._batches(),
            policy=self.policy,
            clip_norm=self.settings.clip_norm,
            parallel=self.parallel,
            scaler=self.scaler,
        )
        if (update := getattr(self.model, "update_router_biases", None)) is not None:
            update()
        self._pending.append((loss, norm))
        self.step += 1
        self.sampler.position = self.step * self.settings.batch_size

    def _rate(self) -> float:
        if self.settings.schedule_by == "step":
            return self.schedule(self.step)
        return self.schedule(min(1.0, self.progress()) * self.schedule.total)  # type: ignore[attr-defined]

    def _punctuate(self) -> None:
        """What is due after a step: a line of the log, an evaluation, a checkpoint, in this order."""
        settings, step = self.settings, self.step
        if step % settings.log_every == 0:
            self._look()
            self._log()
        if settings.eval_every and step % settings.eval_every == 0 and self.val_data is not None:
            self._evaluate()
        if self.checkpoints is None:
            return
        due = settings.save_every is not None and step % settings.save_every == 0
        if settings.save_seconds is not None:
            due |= self._now - self._saved_at >= settings.save_seconds
        if due:
            self.save()

    def _look(self) -> None:
        """Wait for the pending steps, and stop if one of them is not finite."""
        if not self._pending:
            return
        losses, norms = (
            torch.stack([each.float() for each in column]) for column in zip(*self._pending, strict=True)
        )
        losses = self.parallel.sum(losses) / self.parallel.world_size
        first = self.step - len(self._pending) + 1
        found = list(zip(losses.tolist(), norms.tolist(), strict=True))
        self._pending.clear()
        for step, (loss, norm) in enumerate(found, first):
            if not math.isfinite(loss):
                raise NonFiniteError("loss", loss, step, self._newest())
            if not math.isfinite(norm) and self.scaler is None:  # a scaler skips such a step
                raise NonFiniteError("norm of the gradient", norm, step, self._newest())
            self._window.append(loss)
        self._norm = found[-1][1]

    def _newest(self) -> Path | None:
        steps = self.checkpoints.steps() if self.checkpoints else []
        return self.checkpoints.place(steps[-1]) if self.checkpoints and steps else None

    def _log(self, last: bool = False) -> None:
        seconds = self._tick()
        steps = self.step - self._mark[0]
        values: Values = {
            "loss": sum(self._window) / len(self._window),
            "lr": self.lr,
            "grad_norm": self._norm,
            "tokens": self.tokens,
            "seconds": seconds,
        }
        if self.flops is not None:
            values["flops"] = self.flops
        if steps:
            self._step_seconds = (seconds - self._mark[1]) / steps
            rate = self.tokens_per_step / self._step_seconds
            values |= {"step_seconds": self._step_seconds, "tokens_per_second": rate}
            if self.peak is not None and self.flops_per_token is not None:
                values["mfu"] = rate * self.flops_per_token / self.peak
        if not last:
            self._window.clear()
        self._mark = (self.step, seconds)
        self._send(values)

    def _send(self, values: Values) -> None:
        self.last |= values
        if self.parallel.is_main:
            for callback in self.callbacks:
                callback.log(self.step, values)

    def _tell(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks if self.parallel.is_main else ():
            if (method := getattr(callback, event, None)) is not None:
                method(*arguments)

    # -- data ------------------------------------------------------------------------------------------------

    def _batches(self) -> list[Batch]:
        """This process's micro-batches of the step that comes, on the device."""
        if not self._read_ahead:
            return self._read(self.step)
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, "token reader")
        ready = self._ahead
        batches = ready[1].result() if ready and ready[0] == self.step else self._read(self.step)
        self._ahead = (self.step + 1, self._reader.submit(self._read, self.step + 1))
        return [
            (tokens.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True))
            for tokens, targets in batches
        ]

    def _read(self, step: int) -> list[Batch]:
        settings, parallel = self.settings, self.parallel
        starts = self.sampler.starts(step * settings.batch_size, settings.batch_size)
        starts = starts[parallel.rank :: parallel.world_size]
        tokens, targets = self.train_data.windows(starts, settings.context_length)
        self._check_ids(tokens, targets, starts)
        if self.device.type == "cuda":
            tokens, targets = tokens.pin_memory(), targets.pin_memory()
        size = len(starts) // settings.accumulate
        return list(zip(tokens.split(size), targets.split(size), strict=True))

    def _check_ids(self, tokens: Tensor, targets: Tensor, starts: Any) -> None:
        size = getattr(getattr(self.model, "config", None), "vocab_size", None)
        if size is None:
            return
        largest = max(int(tokens.max()), int(targets.max()))
        if largest >= size:
            rows = torch.cat([tokens, targets[:, -1:]], 1)
            row, column = (rows >= size).nonzero()[0].tolist()
            raise ArgumentError(
                "train_data",
                f"holds token id {int(rows[row, column])} at position {int(starts[row]) + column:,}, "
                f"the model's vocabulary has {size:,}",
            )

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)
        self._reader = self._ahead = None

    # -- evaluation ------------------------------------------------------------------------------------------

    def evaluate(self, tokens: int | None = None) -> Values:
        """The validation loss in nats per token, and over how many tokens; training time stands still.

        Args:
            tokens: of the data's beginning; default ``settings.eval_tokens``.

        Returns:
            ``loss``, ``tokens``; and over all data whose bytes are known ``bytes`` and ``loss_per_byte``.

        Raises:
            ArgumentError: without validation data.
        """
        if self.val_data is None:
            raise ArgumentError("val_data", "there is none to evaluate on")
        with self._paused():
            settings = self.settings
            return evaluate(
                self.module,
                self.val_data,
                context_length=settings.context_length,
                batch_size=settings.batch_size // settings.accumulate // self.parallel.world_size,
                max_tokens=tokens if tokens is not None else settings.eval_tokens,
                device=self.device,
                policy=self.policy,
                parallel=self.parallel,
            )

    def _evaluate(self) -> None:
        self._look()
        found = self.evaluate()
        self._evaluated = self.step
        values = {"val_loss": found["loss"], "tokens": float(self.tokens), "seconds": self.seconds}
        if "loss_per_byte" in found:
            values["val_loss_per_byte"] = found["loss_per_byte"]
        self._send(values)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        running = self._watch.running
        self._watch.stop()
        try:
            yield
        finally:
            if running:
                self._watch.start()

    # -- checkpoints -----------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint of this step, after making sure that all losses up to it are finite.

        Raises:
            ArgumentError: without a folder.
            CheckpointError: if the disk does not take it; earlier checkpoints stay.
        """
        if self.checkpoints is None:
            raise ArgumentError("folder", "there is none to write checkpoints into")
        self._look()
        metric = self.last.get("val_loss") if self._evaluated == self.step else None
        if metric is not None and not math.isfinite(metric):
            metric = None
        self.parallel.save(self.checkpoints, self.step, self._state(), metric, self.model, self.optimizer)
        self._saved, self._saved_at = self.step, self._tick()
        return self.checkpoints.place(self.step)

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "sampler": self.sampler.state_dict(),
            "window": self._window,
            "last": self.last,
            "random": random_state(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "identity": self.identity(),
            "config": self.config,
        }

    def identity(self) -> dict[str, Any]:
        """What must be the same when a checkpoint is resumed: the model, and the order of the data."""
        settings = self.settings
        describe = getattr(getattr(self.model, "config", None), "to_dict", None)
        return {
            "model": None if describe is None else describe(),
            "data": self.train_data.sha256,
            "optimizer": type(self.optimizer).__name__,
            "precision": self.policy.name,
            "batch_size": settings.batch_size,
            "context_length": settings.context_length,
            "sampling": settings.sampling,
            "seed": settings.seed,
        }

    def resume(self, folder: str | PathLike[str] | None = None, step: int | None = None) -> int:
        """Go on from a checkpoint: that of ``step``, or the newest that is intact; returns its step.

        0 says that there is no checkpoint: the run then starts from the beginning.

        Args:
            folder: where it is; default the trainer's own.

        Raises:
            CheckpointError: for a checkpoint of another run (names what differs), or a damaged one where no
                other is left.
        """
        source = self.checkpoints if folder is None else CheckpointFolder(folder)
        if source is None:
            raise ArgumentError("folder", "there is none to resume from")
        if step is None:
            step = source.newest()
            if step is None:
                return 0
        place = source.verify(step)
        state = source.state(step)
        if different := _differences(state["identity"], self.identity()):
            raise CheckpointError(f"{place} is of another run: " + "; ".join(different))
        self.parallel.read_state(place, self.model, self.optimizer)
        self.sampler.load_state_dict(state["sampler"])
        self.step, self.last = state["step"], state["last"]
        self._watch = Stopwatch(state["seconds"])
        self._now = state["seconds"]
        self._window, self._pending = list(state["window"]), []
        self._saved = self.step if folder is None else -1
        self._evaluated = (
            self.step if "val_loss" in self.last and source.manifest(step)["metric"] is not None else -1
        )
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        set_random_state(state["random"])
        self._tell("resume", self.step)
        return self.step


def _policy(chosen: Precision | str) -> Precision:
    return precision(chosen)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("device", f"must be a device of this machine, which has no GPU; got {name!r}")
    return device


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """``model.d_model was 64 and is 128``, for each value that differs."""
    found: list[str] = []
    for name in sorted({*saved, *now}):
        before, after = saved.get(name), now.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _differences(before, after, f"{path}{name}.")
        elif _plain(before) != _plain(after):
            found.append(f"{path}{name} was {before!r} and is {after!r}")
    return found


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
