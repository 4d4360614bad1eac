"""A run as one readable file: TOML in, checked dataclasses out, and back.

    [model]                      # lmlib.architecture.ModelConfig; what is left out has its default
    d_model = 128
    [trainer]
    max_flops = 1e13

- A key that does not exist is refused under its full name, with the names that it may have meant.
- ``--set trainer.batch_size=64`` on the command line is the same as a line in the file, and comes later.
- TOML has no null: ``"none"`` stands for it, in fields that may be empty.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from lmlib.architecture.config import ModelConfig
from lmlib.data.sources import HUB
from lmlib.resources.units import ArgumentError, check_bool, check_choice, check_integer, check_number
from lmlib.tokenization import PATTERNS
from lmlib.training.optimizers import OptimizerSettings
from lmlib.training.precision import POLICIES
from lmlib.training.schedules import KINDS, Schedule
from lmlib.training.settings import TrainerSettings
from lmlib.training.throughput import flops_per_token

PARALLEL = ("none", "ddp", "fsdp2")
ATTENTION_BACKENDS = ("auto", "cudnn", "flash")


@dataclass(frozen=True)
class DataSettings:
    """What is trained on.

    Args:
        source: ``micro-world``, a name on the hub that ``lmlib.data.load`` knows, or ``file``.
        kind: of the micro-world's documents.
        train, val: for ``file``: a text (``.txt``, ``.jsonl``, ``.parquet``, ...), a folder of them, or a
            token file made before (``.tokens``), which is taken as it is.
        train_bytes, val_bytes: how much text; ``None``: all there is (the micro-world has no end).
        val_split: the split that validates, where the source has several; a hub name without one gives its
            first ``val_bytes`` bytes to validation and the rest to training.
        seed: of the micro-world.
        workers: processes that make and encode text.

    Raises:
        ArgumentError: names the field; also for files where the source is not ``file``.
    """

    source: str = "micro-world"
    kind: str = "story"
    train: str | None = None
    val: str | None = None
    train_bytes: int | None = None
    val_bytes: int | None = None
    val_split: str | None = "valid"
    seed: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("train_bytes", "val_bytes"):
            if getattr(self, name) is not None:
                check_integer(f"{name}", getattr(self, name), 1, 2**62)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        check_integer("workers", self.workers, 1, 1024)
        check_choice("source", self.source, ("micro-world", "file", *HUB))
        if self.source == "file" and (self.train is None or self.val is None):
            raise ArgumentError("train", "and val must both be given for source = 'file'")
        for name in ("train", "val"):
            if self.source != "file" and getattr(self, name) is not None:
                raise ArgumentError(
                    name,
                    f"is read for data.source = 'file' alone, and the source is {self.source!r}; "
                    "give --set data.source=file as well",
                )
        if self.source == "micro-world" and None in (self.train_bytes, self.val_bytes):
            raise ArgumentError("train_bytes", "and val_bytes must be given: the micro-world is endless")


@dataclass(frozen=True)
class TokenizerSettings:
    """The tokenizer: trained on the beginning of the training text, or read from a file.

    Args:
        vocab_size: tokens in all, ``<|endoftext|>`` included.
        pattern: pre-tokenization.
        training_bytes: of the training text that the merges are learned from.
        path: a ``tokenizer.json`` in Hugging Face's format instead.
    """

    vocab_size: int = 1024
    pattern: str = "gpt2"
    training_bytes: int = 2_000_000
    path: str | None = None

    def __post_init__(self) -> None:
        check_integer("vocab_size", self.vocab_size, 257, 2**24)
        check_choice("pattern", self.pattern, PATTERNS)
        check_integer("training_bytes", self.training_bytes, 1, 2**62)


@dataclass(frozen=True)
class ScheduleSettings:
    """The learning rate over the run, in shares of it, so that a longer run needs no new numbers.

    Args:
        kind: ``cosine``, ``linear``, ``wsd`` or ``constant``.
        lr: the largest learning rate.
        warmup: share of the run.
        final: last rate as a share of ``lr``.
        decay: for ``wsd``: share of the run that decays.
    """

    kind: str = "cosine"
    lr: float = 1e-3
    warmup: float = 0.05
    final: float = 0.1
    decay: float = 0.2

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_number("lr", self.lr, 0, 1e6)
        for name in ("warmup", "final", "decay"):
            check_number(f"{name}", getattr(self, name), 0, 1)


@dataclass(frozen=True)
class ParallelSettings:
    """How processes started by ``torchrun`` share the work.

    Args:
        kind: ``none``: one process; ``ddp``: each holds the whole model; ``fsdp2``: parameters, gradients and
            optimizer state are cut into shares (``fully_shard``).
        reshard_after_forward: FSDP2: drop gathered parameters between forward and backward.
    """

    kind: str = "none"
    reshard_after_forward: bool = True

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, PARALLEL)
        check_bool("reshard_after_forward", self.reshard_after_forward)


@dataclass(frozen=True)
class MupSettings:
    """Learning rates that carry over from a narrower model: see ``lmlib.training.mup``.

    Args:
        base_d_model: the width at which the rate was tuned; ``None``: off.
    """

    base_d_model: int | None = None

    def __post_init__(self) -> None:
        if self.base_d_model is not None:
            check_integer("base_d_model", self.base_d_model, 1, 2**24)


@dataclass(frozen=True)
class LogSettings:
    """Where the numbers go: JSON lines always, TensorBoard and a progress bar if wanted."""

    tensorboard: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        check_bool("tensorboard", self.tensorboard)
        check_bool("progress", self.progress)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run.

    Args:
        name: of the run; names its folder.
        precision: a policy of ``lmlib.training.precision``, or ``auto``: bf16 on a GPU that has it.
        attention_backend: what PyTorch's attention runs on: ``cudnn`` before ``flash`` where it can, or as
            PyTorch decides (``auto``). On Hopper cards cuDNN's is the faster one.
        model: fields of ``ModelConfig``; ``vocab_size`` and ``context_length`` come from tokenizer and
            trainer where they are left out.
    """

    name: str = "run"
    precision: str = "auto"
    attention_backend: str = "auto"
    model: Mapping[str, Any] = field(default_factory=dict)
    data: DataSettings = field(
        default_factory=lambda: DataSettings(train_bytes=20_000_000, val_bytes=500_000)
    )
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    trainer: TrainerSettings = field(default_factory=lambda: TrainerSettings(max_steps=1000))
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    mup: MupSettings = field(default_factory=MupSettings)
    log: LogSettings = field(default_factory=LogSettings)

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, ("auto", *POLICIES))
        check_choice("attention_backend", self.attention_backend, ATTENTION_BACKENDS)
        self.model_config()
        self.make_schedule()

    def model_config(self) -> ModelConfig:
        """The model, with sizes from tokenizer and trainer where the file leaves them out."""
        defaults = {
            "vocab_size": self.tokenizer.vocab_size,
            "context_length": self.trainer.context_length,
        }
        try:
            return ModelConfig.from_dict({**defaults, **self.model})
        except ArgumentError as error:
            raise ArgumentError(f"model.{error.field}", error.message) from None

    def total_steps(self) -> float | None:
        """How many steps the limits on steps, tokens and FLOPs allow; ``None`` if only time is limited."""
        settings = self.trainer
        per_step = settings.batch_size * settings.context_length
        limits: list[float] = []
        if settings.max_steps is not None:
            limits.append(settings.max_steps)
        if settings.max_tokens is not None:
            limits.append(math.ceil(settings.max_tokens / per_step))
        if settings.max_flops is not None:
            flops = flops_per_token(self.model_config(), settings.context_length)
            assert flops is not None
            limits.append(math.ceil(settings.max_flops / (flops * per_step)))
        return max(1, min(limits)) if limits else None

    def make_schedule(self) -> Schedule:
        """The schedule in steps.

        Raises:
            ArgumentError: if only time limits the run, and yet the schedule goes by steps.
        """
        chosen, total = self.schedule, self.total_steps()
        if self.trainer.schedule_by == "budget":
            total = 10_000.0  # any number: the trainer asks for shares of it
        if total is None:
            raise ArgumentError(
                "trainer.schedule_by", "must be 'budget' where only trainer.max_seconds limits the run"
            )
        return Schedule(
            chosen.kind, chosen.lr, total, chosen.warmup * total, chosen.final * chosen.lr, chosen.decay
        )

    # -- in and out ------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """A checked configuration.

        Raises:
            ArgumentError: for a key that is not known (under its full name) or a value that is not allowed.
        """
        return _build(cls, values, "")

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold, and ``from_dict`` takes."""
        values = dataclasses.asdict(self)
        values["model"] = dict(self.model)
        values["optimizer"]["betas"] = list(self.optimizer.betas)
        return values

    def to_toml(self) -> str:
        """The same as a file that ``read`` takes."""
        values = self.to_dict()
        lines = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
        for section, content in values.items():
            if isinstance(content, dict):
                lines += ["", f"[{section}]"]
                lines += [f"{key} = {_toml(value)}" for key, value in content.items()]
        return "\n".join(lines) + "\n"


def presets() -> list[str]:
    """Names of the configurations that come with the package."""
    folder = resources.files("lmlib.training").joinpath("presets")
    return sorted(each.name.removesuffix(".toml") for each in folder.iterdir() if each.name.endswith(".toml"))


def read(source: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A configuration from a file or a preset's name, with ``section.key=value`` on top.

    Raises:
        ArgumentError: for a name that is neither, a file that is not TOML, or anything ``from_dict`` refuses.
    """
    values = read_values(source)
    for each in overrides:
        apply(values, each)
    return RunConfig.from_dict(values)


def read_values(source: str | Path) -> dict[str, Any]:
    """The bare content of a file or preset."""
    path = Path(source)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise ArgumentError("config", f"there is no file {str(path)!r}")
        text, values = path.read_text(encoding="utf-8"), {"name": path.stem}
    else:
        names = presets()
        if str(source) not in names:
            near = _near(str(source), names)
            raise ArgumentError(
                "config", f"{str(source)!r} is no file and no preset; presets are {', '.join(names)}{near}"
            )
        file = resources.files("lmlib.training").joinpath("presets", f"{source}.toml")
        text, values = file.read_text(encoding="utf-8"), {"name": str(source)}
    try:
        return {**values, **tomllib.loads(text)}
    except tomllib.TOMLDecodeError as error:
        raise ArgumentError("config", f"{source} is not TOML: {error}") from None


def apply(values: dict[str, Any], override: str) -> None:
    """Put ``section.key=value`` into the content of a file; the value is TOML, or else a string.

    Raises:
        ArgumentError: for something without ``=`` or without a key.
    """
    name, equals, text = override.partition("=")
    parts = [part.strip() for part in name.split(".")]
    if not equals or not all(parts):
        raise ArgumentError("--set", f"takes section.key=value, got {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for part in parts[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ArgumentError("--set", f"{name.strip()}: {part} is a value, not a section")
        values = inner
    values[parts[-1]] = value


def _build(kind: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ArgumentError(prefix.rstrip("."), f"is a section, got the value {values!r}")
    hints = typing.get_type_hints(kind)
    names = [each.name for each in dataclasses.fields(kind)]
    built: dict[str, Any] = {}
    for key, value in values.items():
        full = prefix + key
        if key not in names:
            raise ArgumentError(full, f"is not a setting; {_allowed(full, names, prefix)}")
        built[key] = _value(hints[key], value, full)
    try:
        return kind(**built)
    except ArgumentError as error:
        raise ArgumentError(prefix + error.field, error.message) from None


def _value(hint: Any, value: Any, full: str) -> Any:
    """The value as its field wants it; what the field does not allow is refused by its own checks."""
    if full == "model":
        return _model(value)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, full + ".")
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value == "none" and types.NoneType in options:
        return None
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if int in options and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e6 is a float in TOML
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return tuple(value)
    plain = tuple(option for option in options if isinstance(option, type))
    if str in options and value is not None and not isinstance(value, plain):
        raise ArgumentError(full, f"must be text, got {value!r}")
    return value


def _model(values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ArgumentError("model", f"is a section, got the value {values!r}")
    hints = {each.name: str(each.type) for each in dataclasses.fields(ModelConfig) if each.init}
    for key in values:
        if key not in hints:
            raise ArgumentError(
                f"model.{key}", f"is not a setting; {_allowed(f'model.{key}', list(hints), 'model.')}"
            )
    return {key: None if value == "none" and "None" in hints[key] else value for key, value in values.items()}


def _allowed(full: str, names: Sequence[str], prefix: str) -> str:
    near = _near(full.rpartition(".")[2], names, prefix)
    return f"allowed are {', '.join(names)}{near}"


def _near(given: str, names: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(given, names, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(prefix + each for each in close)}?" if close else ""


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
