"""The settings of a training run that a trainer itself needs: how much, how often, in what pieces."""

from dataclasses import dataclass

from lmlib.resources.units import ArgumentError, check_bool, check_choice, check_integer, check_number
from lmlib.training.loss import CHUNK, FORMS
from lmlib.training.sampler import MODES

LIMITS = ("max_steps", "max_tokens", "max_seconds", "max_flops")


@dataclass(frozen=True)
class TrainerSettings:
    """How a model is trained.

    Args:
        batch_size: sequences of one optimizer step, over all processes and micro-batches together.
        context_length: tokens of a sequence.
        accumulate: micro-batches that a process cuts its share of a step into; changes memory, not results.
        max_steps, max_tokens, max_seconds, max_flops: the run ends at the first that is reached. Seconds are
            those of training: everything since ``fit`` began, compilation and saving included, evaluations
            excluded, summed over resumed parts. FLOPs are the model's (``lmlib.resources.flops``).
        schedule_by: ``step``: the schedule is asked for the step; ``budget``: for its total times the share
            of the budget that is used, so that a run limited by time ends with the schedule's end (and is
            then no longer the same run twice).
        log_every: steps between lines of the log. Losses are looked at, and stop the run where they are not
            finite, only then and before every evaluation and save: looking at each would make a GPU wait.
        eval_every: steps between evaluations; ``None``: only at the end.
        eval_tokens: of the validation data's beginning; ``None``: all.
        save_every, save_seconds: between checkpoints, in steps or in seconds.
        keep_last, keep_best: which checkpoints stay.
        clip_norm: largest norm of the gradient; ``None``: as it comes.
        z_loss: weight of the squared log-normaliser in training; it is part of the training loss in the log,
            and never of the validation loss.
        loss, loss_chunk: see ``lmlib.training.loss.LossModule``; the chunk is in tokens.
        compile: ``torch.compile`` with this backend, or in this mode of inductor; ``True`` is ``inductor``.
            ``reduce-overhead`` records the passes as CUDA graphs: for steps so short that the CPU cannot
            launch their kernels in time. Its gradients live in the graph, so it needs ``accumulate`` of 1.
        activation_checkpointing: keep only the inputs of blocks, and compute the rest again in backward.
        sampling: ``replacement`` or ``epochs``, see ``lmlib.training.sampler.Sampler``.
        seed: of the order of the data.
        device: ``auto`` is a GPU where there is one.

    Raises:
        ArgumentError: names the field, what came and what is allowed.
    """

    batch_size: int = 32
    context_length: int = 256
    accumulate: int = 1
    max_steps: int | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None
    max_flops: float | None = None
    schedule_by: str = "step"
    log_every: int = 10
    eval_every: int | None = None
    eval_tokens: int | None = None
    save_every: int | None = None
    save_seconds: float | None = None
    keep_last: int = 2
    keep_best: bool = True
    clip_norm: float | None = 1.0
    z_loss: float = 0.0
    loss: str = "auto"
    loss_chunk: int = CHUNK
    compile: bool | str = False
    activation_checkpointing: bool = False
    sampling: str = "replacement"
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("batch_size", "context_length", "accumulate", "log_every", "keep_last", "loss_chunk"):
            check_integer(name, getattr(self, name), 1, 2**40)
        for name in ("max_steps", "max_tokens", "eval_every", "eval_tokens", "save_every"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1, 2**62)
        for name in ("max_seconds", "max_flops", "save_seconds", "clip_norm"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 1e-9, 1e40)
        check_number("z_loss", self.z_loss, 0, 1e3)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        check_choice("schedule_by", self.schedule_by, ("step", "budget"))
        check_choice("loss", self.loss, FORMS)
        check_choice("sampling", self.sampling, MODES)
        check_bool("keep_best", self.keep_best)
        check_bool("activation_checkpointing", self.activation_checkpointing)
        if not isinstance(self.compile, bool | str):
            raise ArgumentError(
                "compile", f"must be true, false or the name of a backend, got {self.compile!r}"
            )
        if self.compile in ("reduce-overhead", "max-autotune", "cudagraphs") and self.accumulate > 1:
            raise ArgumentError(
                "compile",
                f"{self.compile} records CUDA graphs, whose gradients the next pass overwrites: it needs "
                f"accumulate=1, got {self.accumulate}",
            )
        if self.batch_size % self.accumulate:
            raise ArgumentError(
                "accumulate",
                f"must divide batch_size, {self.batch_size:,}, evenly, got {self.accumulate:,}",
            )
        if all(getattr(self, name) is None for name in LIMITS):
            raise ArgumentError("max_steps", f"one limit must be given: {', '.join(LIMITS)}")
