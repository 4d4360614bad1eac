"""How fast a training step is, beside a plain model's on the same data in the same run.

    python -m lmlib.training.bench step --out record.json [--data FILE.tokens]

GPT-2's 124M shape, context 1,024, vocabulary padded to 50,304. Both models start from the same weights, see
the same batches and follow the same schedule with the same optimizer, so that in fp32 their losses agree step
by step (``agreement``; the record says by how much). In bf16 they round differently, and while the loss falls
steeply such differences grow: two runs of the plain model itself part there, and meet again later. Time is
taken between the end of warm-up and the last step, with one wait for the GPU at each end of a stretch.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmlib.architecture import ModelConfig, TransformerLM
from lmlib.training import record
from lmlib.training.config import DataSettings, TokenizerSettings
from lmlib.training.dataset import TokenData, open_tokens
from lmlib.training.optimizers import OptimizerSettings
from lmlib.training.plain_gpt import PlainGPT, PlainTrainer, renamed
from lmlib.training.prepare import prepare
from lmlib.training.run import attention_backend
from lmlib.training.sampler import Sampler
from lmlib.training.schedules import Schedule
from lmlib.training.settings import TrainerSettings
from lmlib.training.throughput import flops_per_token
from lmlib.training.trainer import Trainer


@dataclass(frozen=True)
class Shape:
    """What is trained, and for how long; ``stretch`` steps are one sample of the speed."""

    vocab_size: int = 50_304
    context_length: int = 1024
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    batch_size: int = 32
    warm: int = 10
    steps: int = 150
    stretch: int = 20
    log: int = 10
    lr: float = 6e-4

    def config(self) -> ModelConfig:
        """GPT-2: learned positions, LayerNorm, the GELU by tanh, biases, tied."""
        return ModelConfig(
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            d_model=self.d_model,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            norm="layernorm",
            mlp="gelu_tanh",
            bias=True,
            position="learned",
            tied=True,
        )

    def schedule(self) -> Schedule:
        """Linear warm-up over the warm steps, then a cosine."""
        return Schedule("cosine", self.lr, self.steps, self.warm, 0.1 * self.lr)


TINY = Shape(512, 64, 64, 2, 2, batch_size=4, warm=2, steps=8, stretch=2, log=2)


@dataclass(frozen=True)
class Variant:
    """One way to run our trainer; ``loss_chunk`` as large as this is all tokens at once."""

    label: str
    precision: str = "bf16"
    attention: str = "cudnn"
    kernels: str = "triton-sdpa"
    loss: str = "kernel"
    loss_chunk: int = 2**20
    optimizer: str = "triton"
    compile: str = "reduce-overhead"


VARIANTS = (
    Variant("ours"),
    Variant("ours, without CUDA graphs", compile="inductor"),
    Variant("ours, PyTorch's loss", loss="full"),
    Variant("ours, PyTorch's feed-forward", kernels="sdpa"),
    Variant("ours, PyTorch's AdamW", optimizer="fused"),
    Variant("ours, loss in chunks", loss_chunk=4096),
    Variant("ours, autocast", precision="bf16-autocast", optimizer="fused"),
)


@dataclass
class Timed:
    """Mean losses of every ``LOG`` steps, seconds a step of every stretch after warm-up, peak memory."""

    losses: list[float]
    seconds: list[float]
    peak_bytes: int


class Timer:
    """Takes the time of stretches of steps: a callback of ``Trainer``, called by hand for the plain one."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self._since = 0.0

    def log(self, step: int, values: dict[str, float]) -> None:
        """After ``step`` steps, whose losses somebody has just waited for."""
        self.losses.append(values["loss"])
        past = step - self.shape.warm
        if past < 0 or past % self.shape.stretch:
            return
        now = time.perf_counter()
        if past:
            self.seconds.append((now - self._since) / self.shape.stretch)
        self._since = now


def starting_model(shape: Shape) -> PlainGPT:
    """The plain model as all runs start from it."""
    torch.manual_seed(0)
    return PlainGPT(shape.vocab_size, shape.context_length, shape.d_model, shape.n_layers, shape.n_heads)


def time_plain(
    shape: Shape, data: TokenData, start: PlainGPT, device: str, *, autocast: bool = True
) -> Timed:
    """The plain model in a plain loop."""
    trainer = PlainTrainer(start, device=device, compiled=device == "cuda", lr=shape.lr, autocast=autocast)
    sampler = Sampler(len(data), shape.context_length, 0, "replacement")
    schedule, timer, pending = shape.schedule(), Timer(shape), list[Tensor]()
    for step in range(shape.steps):
        starts = sampler.starts(step * shape.batch_size, shape.batch_size)
        both = data.windows(starts, shape.context_length)
        if device == "cuda":
            both = both[0].pin_memory(), both[1].pin_memory()
        tokens, targets = (each.to(device, non_blocking=True) for each in both)
        pending.append(trainer.step(tokens, targets, schedule(step)))
        if len(pending) == shape.log:
            timer.log(step + 1, {"loss": float(torch.stack(pending).mean())})
            pending.clear()
    profile("plain", lambda: trainer.step(tokens, targets, 0.0))
    return Timed(timer.losses, timer.seconds, _peak())


def time_ours(shape: Shape, data: TokenData, start: PlainGPT, device: str, variant: Variant) -> Timed:
    """Our trainer, from the same weights."""
    model = TransformerLM(shape.config().replace(kernels=variant.kernels))
    model.load_state_dict(renamed(start))
    timer = Timer(shape)
    settings = TrainerSettings(
        batch_size=shape.batch_size,
        context_length=shape.context_length,
        max_steps=shape.steps,
        log_every=shape.log,
        loss=variant.loss,
        loss_chunk=variant.loss_chunk,
        compile=device == "cuda" and variant.compile,
        device=device,
    )
    with attention_backend(variant.attention):
        trainer = Trainer(
            model,
            OptimizerSettings(implementation=variant.optimizer),
            shape.schedule(),
            data,
            None,
            settings,
            callbacks=[timer],
            precision=variant.precision,
        )
        trainer.fit()
        profile(variant.label, trainer._advance)
    return Timed(timer.losses, timer.seconds, _peak())


def agreement(shape: Shape, data: TokenData, start: PlainGPT, device: str, steps: int = 50) -> float:
    """The largest difference between the losses of both programs in fp32, over every one of ``steps`` steps.

    Same weights, optimizer, schedule, clipping and windows: what is left is the order of sums. It looks for a
    setting that differs, which a benchmark in bf16 cannot tell from rounding.
    """
    short = replace(shape, batch_size=min(4, shape.batch_size), steps=steps, log=1, stretch=steps)
    plain = time_plain(short, data, copy.deepcopy(start), device, autocast=False)
    variant = Variant("fp32", "fp32", "auto", optimizer="auto", compile="inductor")
    if device != "cuda":  # Triton would interpret its kernels
        variant = replace(variant, kernels="sdpa", loss="full")
    ours = time_ours(short, data, start, device, variant)
    return max(abs(one - other) for one, other in zip(plain.losses, ours.losses, strict=True))


PROFILE = 0  # kernels to list


def profile(label: str, step: Callable[[], Any]) -> None:
    """List the kernels that a step spends its time in, if asked to."""
    if not PROFILE:
        return
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as seen:
        for _ in range(2):
            step()
        torch.cuda.synchronize()
    rows = [
        (each.self_device_time_total / 2000, each.count // 2, each.key)
        for each in seen.key_averages()
        # A name that was given to a stretch of kernels stands beside them.
        if each.device_type == torch.autograd.DeviceType.CUDA
        and not getattr(each, "is_user_annotation", False)
    ]
    rows.sort(reverse=True)
    print(f"-- {label}: {sum(row[0] for row in rows):.2f} ms of kernels a step")
    for milliseconds, count, name in rows[:PROFILE]:
        print(f"{milliseconds:8.3f} ms {count:5d} x {name[:110]}")


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def _forget() -> None:
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure(
    shape: Shape, data: TokenData, device: str, variants: Sequence[Variant] = VARIANTS
) -> dict[str, Timed]:
    """The plain model, ours in each variant, and the plain one again: machines change their speed."""
    found: dict[str, Timed] = {}
    start = starting_model(shape)
    runs: list[tuple[str, Callable[[], Timed]]] = [
        ("plain", lambda: time_plain(shape, data, copy.deepcopy(start), device)),
        *((variant.label, partial(time_ours, shape, data, start, device, variant)) for variant in variants),
        ("plain again", lambda: time_plain(shape, data, copy.deepcopy(start), device)),
    ]
    for label, run in runs:
        _forget()
        before = time.perf_counter()
        found[label] = run()
        _say(shape, label, found[label], time.perf_counter() - before)
    return found


def _say(shape: Shape, label: str, timed: Timed, seconds: float) -> None:
    rate = shape.batch_size * shape.context_length / statistics.median(timed.seconds)
    print(
        f"{label:45s} {rate:10,.0f} tokens/s, {timed.peak_bytes / 1e9:5.1f} GB, "
        f"loss {timed.losses[0]:.4f} .. {timed.losses[-1]:.4f}  ({seconds:.0f} s in all)",
        flush=True,
    )


def describe(
    shape: Shape, data: TokenData, found: dict[str, Timed], origin: dict[str, Any], apart: float
) -> dict[str, Any]:
    """A record; ``apart`` is what ``agreement`` found."""
    per_step = shape.batch_size * shape.context_length
    rates = {label: [per_step / each for each in timed.seconds] for label, timed in found.items()}
    samples: dict[str, Any] = {}
    for label, timed in found.items():
        samples[f"{label}: speed"] = {"unit": "tokens/s", "values": rates[label]}
        samples[f"{label}: loss"] = {"unit": "nats/token", "values": timed.losses}
        samples[f"{label}: peak memory"] = {"unit": "GB", "values": [timed.peak_bytes / 1e9]}
    flops = flops_per_token(shape.config(), shape.context_length)
    return {
        **origin,
        "samples": samples,
        "about": {
            "shape": asdict(shape),
            "log_every": shape.log,
            "largest_difference_in_fp32": apart,
            "flops_per_token": flops,
            "data_sha256": data.sha256,
            "variants": {variant.label: asdict(variant) for variant in VARIANTS if variant.label in found},
        },
    }


def micro_world_tokens(shape: Shape, folder: str) -> TokenData:
    """A few megabytes of stories, for a benchmark without a file of its own."""
    data = DataSettings(train_bytes=20_000 * shape.context_length, val_bytes=1000)
    tokenizer = TokenizerSettings(vocab_size=min(1024, shape.vocab_size), training_bytes=300_000)
    return prepare(data, tokenizer, folder).train


def need_gpu(parser: argparse.ArgumentParser, tiny: bool) -> None:
    """End the program without a GPU, unless the shape is tiny: a CPU would need hours for the full one."""
    if not tiny and not torch.cuda.is_available():
        parser.error(
            "the full shape needs a CUDA GPU, and PyTorch sees none here; "
            "without one, --tiny runs a small shape on the CPU"
        )


def _check(parser: argparse.ArgumentParser, chosen: argparse.Namespace, shape: Shape) -> None:
    """End the program for arguments that would fail, or leave something out, only after minutes."""
    known = [variant.label for variant in VARIANTS]
    if unknown := [label for label in chosen.only or () if label not in known]:
        parser.error(f"--only: must be among {known}, got {unknown}")
    for name, least in (("batch_size", 1), ("steps", shape.warm + shape.stretch)):
        value = getattr(chosen, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')}: must be at least {least}, got {value}")
    if chosen.data and not chosen.data.is_file():
        parser.error(f"--data: there is no token file '{chosen.data}'")
    if chosen.profile and not torch.cuda.is_available():
        parser.error("--profile: lists kernels of a CUDA GPU, and PyTorch sees none here")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    import kernels._runtime  # noqa: F401  (before anything imports Triton: it chooses how Triton runs)

    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m lmlib.training.bench", description=__doc__)
    parser.add_argument("what", choices=["step"], help="step: a training step beside a plain model's")
    parser.add_argument("--out", type=Path, help="write a record")
    parser.add_argument("--data", type=Path, help="a token file (default: stories of the micro-world)")
    parser.add_argument("--commit", default="unknown", help="of the source, for the record")
    parser.add_argument("--only", nargs="*", help="labels of variants (default: all)")
    parser.add_argument("--tiny", action="store_true", help="a small shape, for a machine without a GPU")
    parser.add_argument("--profile", type=int, default=0, help="list so many kernels of a step")
    for name in ("batch_size", "steps"):
        parser.add_argument("--" + name.replace("_", "-"), type=int)
    chosen = parser.parse_args(given)
    need_gpu(parser, chosen.tiny)
    global PROFILE
    PROFILE = chosen.profile
    shape = TINY if chosen.tiny else Shape()
    _check(parser, chosen, shape)
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)  # now, and not when all is measured
    changes = {name: getattr(chosen, name) for name in ("batch_size", "steps") if getattr(chosen, name)}
    shape = replace(shape, **changes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    variants = [each for each in VARIANTS if not chosen.only or each.label in chosen.only]
    with tempfile.TemporaryDirectory() as folder:
        data = open_tokens(chosen.data) if chosen.data else micro_world_tokens(shape, folder)
        apart = agreement(shape, data, starting_model(shape), device)
        print(f"in fp32 the losses of both programs differ by {apart:.1e} at most", flush=True)
        found = measure(shape, data, device, variants)
    if chosen.out:
        origin = record.origin("lmlib.training.bench", given, chosen.commit)
        record.write(chosen.out, describe(shape, data, found, origin, apart))


if __name__ == "__main__":
    main()
