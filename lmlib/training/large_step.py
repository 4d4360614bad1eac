"""The training step of a model that fills a GPU, timed, with its memory foretold.

    python -m lmlib.training.large_step --out record.json [--layers N] [--context N] [--seconds S]

The model is that of the 2026 course leaderboard (Stanford CS336): 8.1e9 parameters, 2 sequences of 32,768
tokens, AdamW. On one GPU of 141 GB it fits like this:

- Parameters, gradients and both moments are bfloat16, 8 bytes a parameter, without a float32 master copy
  (``--moments float32``: 12 bytes). Steps smaller than half the distance to the next bfloat16 are lost, so
  this measures a step, and is no recipe for training.
- A block keeps its input, and where memory is left also what attention gave, which takes the longest to
  compute again; the rest is computed again in the backward pass.
- Logits exist for some thousands of tokens at a time.

First every variant is run on one block and a short context (``rehearsal``), which compiles its kernels and
compares losses and gradients. Then each trains the same model on, over one fixed batch of random tokens. The
first step of a variant is not counted. The record is written anew after each step; a variant that fails is
named in it and left, and none is begun that would not end within ``--seconds``.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kernels
from kernels.linear_cross_entropy import chunk_rows
from lmlib.architecture import ModelConfig, TransformerLM
from lmlib.resources import flops, hardware
from lmlib.resources.memory import memory
from lmlib.resources.optimizer import Optimizer
from lmlib.resources.parameters import parameters
from lmlib.resources.profile import Profile
from lmlib.training import record
from lmlib.training.bench import need_gpu
from lmlib.training.run import attention_backend
from lmlib.training.step import checkpoint_blocks

BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.1
MOMENTS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
REHEARSED = 2048  # tokens of a sequence in the rehearsal
GB = 1e9


@dataclass(frozen=True)
class Shape:
    """The model and the batch."""

    vocab_size: int = 151_936
    context_length: int = 32_768
    batch_size: int = 2
    d_model: int = 4096
    d_ff: int = 11_008
    n_layers: int = 34
    n_heads: int = 32
    lr: float = 1e-4

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch_size * self.context_length

    def config(self) -> ModelConfig:
        """Llama's architecture; small initial logits, so that the first loss is close to ln(vocab_size)."""
        return ModelConfig(
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            d_model=self.d_model,
            d_ff=self.d_ff,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            embedding_std=0.02,
            head_init_scale=0.1,
            residual_init_scale=(2 * self.n_layers) ** -0.5,
            kernels="triton",
        )


TINY = Shape(40, 12, 1, 32, 24, 2, 1, lr=1e-3)


@dataclass(frozen=True)
class Variant:
    """How attention is computed, whether its result is kept for the backward pass, and how often to step."""

    label: str
    attention: str
    keeps: bool
    steps: int


VARIANTS = (
    Variant("our attention", "triton", False, 1),
    Variant("cuDNN attention, result kept", "cudnn", True, 3),
    Variant("our attention, result kept", "triton", True, 2),
    Variant("cuDNN attention", "cudnn", False, 1),
)

# ---------------------------------------------------------------------------------------------------------
# What to expect
# ---------------------------------------------------------------------------------------------------------


def predict(shape: Shape, variant: Variant, moments: str) -> dict[str, Any]:
    """Peak memory in bytes, by the calculator of chapter 4, which knows the same step made of PyTorch's ops.

    Beside it stand the two things that it does not know: attention's results that are kept (those of one
    block are in it), and moments that are wider than the parameters.
    """
    model = shape.config().resources()
    rows = chunk_rows(shape.tokens, shape.vocab_size, shape.d_model, 2)
    profile = Profile(recompute="full", loss="chunked", loss_chunks=math.ceil(shape.tokens / rows))
    timeline = memory(model, profile, Optimizer(), shape.batch_size, shape.context_length)
    kept = (shape.n_layers - 1) * shape.tokens * (2 * shape.d_model + 4 * shape.n_heads)
    terms = {
        "calculator": timeline.peak,
        "attention's results": kept if variant.keeps else 0,
        "wider moments": 4 * int(parameters(model).total) if moments == "float32" else 0,
    }
    return {
        "bytes": sum(terms.values()),
        "terms": terms,
        "at": timeline.at.to_json(),
        "before the step": int(timeline.standing.total),
    }


def count_flops(shape: Shape, variant: Variant) -> dict[str, int]:
    """FLOPs of a step: ``model``, three times forward, causal; ``hardware``, with what is computed again.

    Flash attention's backward computes the scores again: five products of a query and a key where forward has
    two. Ours has seven, as two kernels compute the scores and the gradient of the probabilities.
    """
    model, sizes = shape.config().resources(), (shape.batch_size, shape.context_length)
    ahead = flops.forward(model, *sizes, mask="causal")
    attention = sum(t.value for path, t in ahead.terms() if path[-1] in (flops.SCORES, flops.MIX))
    again = flops.training(
        model, *sizes, mask="causal", count="hardware", kernel="flash", recompute="full_early_stop"
    )
    twice = attention if variant.attention == "triton" else 0
    return {
        "model": int(flops.training(model, *sizes, mask="causal").total),
        "hardware": int(again.total - (attention if variant.keeps else 0) + twice),
    }


# ---------------------------------------------------------------------------------------------------------
# The step
# ---------------------------------------------------------------------------------------------------------


def make_model(shape: Shape, device: str) -> TransformerLM:
    """The initial model in bfloat16, made where it will stay."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = TransformerLM(shape.config())
    finally:
        torch.set_default_dtype(before)
    model.to_empty(device=device)
    torch.manual_seed(0)
    model.reset_parameters()
    return model


def make_optimizer(model: TransformerLM, shape: Shape, moments: str) -> kernels.FusedAdamW:
    """AdamW without master copies."""
    return kernels.FusedAdamW(
        model.parameters(),
        lr=shape.lr,
        betas=BETAS,
        weight_decay=WEIGHT_DECAY,
        moments=MOMENTS[moments],
        master=False,
    )


def make_batch(shape: Shape, device: str) -> tuple[Tensor, Tensor]:
    """Random tokens, and after each the next one."""
    generator = torch.Generator(device).manual_seed(1)
    size = (shape.batch_size, shape.context_length + 1)
    drawn = torch.randint(shape.vocab_size, size, generator=generator, device=device)
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()


def _our_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, scale: float) -> Tensor:
    """As ``kernels.flash_attention``, always as an operator, for checkpoints to see its results."""
    out: Tensor = torch.ops.lmlib.flash_attention(q, k, v, causal, window or 0, scale)[0]
    return out


def _attention_operators() -> list[Any]:
    names = ("cudnn_attention", "flash_attention", "flash_attention_for_cpu", "efficient_attention")
    theirs = [getattr(torch.ops.aten, f"_scaled_dot_product_{name}").default for name in names]
    return [torch.ops.lmlib.flash_attention.default, *theirs]


def arrange(model: TransformerLM, variant: Variant) -> None:
    """Make the blocks compute, keep and compute again as the variant says."""
    blocks: Any = model.blocks
    for block in blocks:
        block.attention.attend.flash = _our_attention if variant.attention == "triton" else None
    checkpoint_blocks(model, keep=_attention_operators() if variant.keeps else ())


def backward(model: TransformerLM, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean loss in nats a token, and gradients in the parameters."""
    model.zero_grad(set_to_none=True)
    tokens, targets = batch
    loss = kernels.linear_cross_entropy(model.hidden(tokens), model.head_weight, targets)
    loss.backward()
    return loss.detach()


def step(model: TransformerLM, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> Tensor:
    """One step; the loss before it."""
    loss = backward(model, batch)
    optimizer.step()
    return loss


def forget() -> None:
    """Give back what nobody refers to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def wait() -> None:
    """Until the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ---------------------------------------------------------------------------------------------------------
# Where the time goes
# ---------------------------------------------------------------------------------------------------------

KINDS = (
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm")),
    ("attention", ("flash_attention", "scaled_dot_product")),
    ("norms", ("rms_norm",)),
    ("SwiGLU", ("swiglu",)),
    ("RoPE", ("rope",)),
    ("loss", ("linear_cross_entropy",)),
)
OTHER = "sums, copies, embedding"


def kind_of(names: Iterable[str]) -> str:
    """The kind of a kernel from the names of the operations that launched it, the innermost first."""
    for name in names:
        for kind, words in KINDS:
            if any(word in name for word in words):
                return kind
    return OTHER


def _ancestry(event: Any) -> Iterable[str]:
    while event is not None:
        yield event.name
        event = event.cpu_parent


def kernel_seconds(events: Iterable[Any]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Seconds of each kind of kernel, and of each kernel by name with its calls, from a profiler's events.

    Only of kernels that an operator of PyTorch launched: AdamW's, which Triton launches, is not among them.
    """
    kinds: dict[str, float] = {}
    each: dict[str, list[float]] = {}
    for event in events:
        for kernel in getattr(event, "kernels", None) or ():
            if "#" in kernel.name or "::evaluate_function" in kernel.name:
                continue  # a range that somebody marked, no kernel
            kind, seconds = kind_of(_ancestry(event)), kernel.duration / 1e6
            kinds[kind] = kinds.get(kind, 0.0) + seconds
            row = each.setdefault(f"{kind}: {kernel.name[:120]}", [0.0, 0])
            row[0] += seconds
            row[1] += 1
    return kinds, each


def profiled(run: Callable[[], Tensor]) -> tuple[Tensor, dict[str, float], dict[str, list[float]]]:
    """What ``run`` gives, and its kernels."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as seen:
        result = run()
        wait()
    return result, *kernel_seconds(seen.events() or ())


# ---------------------------------------------------------------------------------------------------------
# The program
# ---------------------------------------------------------------------------------------------------------


class Report:
    """The record, written anew at each change, and printed."""

    def __init__(self, path: Path | None, origin: dict[str, Any], about: dict[str, Any]) -> None:
        self.path, self.origin, self.samples, self.about = path, origin, dict[str, Any](), about
        self.began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the program began."""
        return time.perf_counter() - self.began

    def say(self, text: str) -> None:
        """Print a line with the time, and save."""
        print(f"[{self.seconds:6.1f} s] {text}", flush=True)
        self.save()

    def add(self, label: str, unit: str, value: float) -> None:
        """One more sample."""
        self.samples.setdefault(label, {"unit": unit, "values": []})["values"].append(value)

    def save(self) -> None:
        """Write all of it, whole or not at all."""
        if self.path is not None:
            record.write(self.path, {**self.origin, "samples": self.samples, "about": self.about})


@dataclass
class Bench:
    """What the program holds while it runs."""

    shape: Shape
    device: str
    moments: str
    limit: float  # seconds
    bytes_there: float
    report: Report

    def note(self, variant: Variant, **values: Any) -> None:
        """Facts about a variant."""
        self.report.about["variants"].setdefault(variant.label, asdict(variant)).update(values)

    def guarded(self, variant: Variant, run: Callable[[], Any]) -> bool:
        """Whether ``run`` ended well; if not, the record says what happened."""
        try:
            run()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self.note(variant, failed=text[:2000])
            self.report.say(f"{variant.label}: FAILED: {text[:600]}")
            return False
        return True

    def fits(self, variant: Variant) -> bool:
        """Whether the calculator expects it to."""
        expected = predict(self.shape, variant, self.moments)
        self.note(variant, predicted=expected, flops=count_flops(self.shape, variant))
        text = f"{variant.label}: {expected['bytes'] / GB:.1f} GB predicted"
        if expected["bytes"] > self.bytes_there:
            self.note(variant, skipped=f"{text}, {self.bytes_there / GB:.1f} GB there")
            self.report.say(f"{text}, {self.bytes_there / GB:.1f} GB there: skipped")
            return False
        self.report.say(text)
        return True

    def measure_rate(self) -> None:
        """Of the matrix unit, by PyTorch's product of two large squares."""
        if self.device != "cuda":
            return
        from kernels.bench.timing import Clock, matmul_rate

        rates = matmul_rate(Clock())
        for rate in rates:
            self.report.add("matrix product 8192 x 8192 x 8192", "FLOP/s", rate)
        self.report.about["matmul_rate"] = statistics.median(rates)
        self.report.say(f"matrix products: {statistics.median(rates) / 1e12:.0f} TFLOP/s")

    def rehearse(self, variants: Sequence[Variant]) -> list[Variant]:
        """Those variants that run on one block and a short context."""
        short = replace(self.shape, n_layers=1, context_length=min(self.shape.context_length, REHEARSED))
        model, batch = make_model(short, self.device), make_batch(short, self.device)
        optimizer = make_optimizer(model, short, self.moments)

        def rehearse(variant: Variant) -> None:
            arrange(model, variant)
            with attention_backend(variant.attention if variant.attention == "cudnn" else "auto"):
                loss = float(backward(model, batch))
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            norms = [torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in grads]
            found = {"loss": loss, "gradient_norm": float(torch.stack(norms).norm()), "grads": len(grads)}
            if not all(map(math.isfinite, found.values())):
                raise ArithmeticError(f"not finite: {found}")
            self.note(variant, rehearsal=found)
            self.report.say(f"rehearsal, {variant.label}: {found}")

        ready = [each for each in variants if self.guarded(each, partial(rehearse, each))]
        if ready:
            self.guarded(ready[0], optimizer.step)
        wait()
        return ready

    def measure(
        self,
        variant: Variant,
        model: TransformerLM,
        optimizer: torch.optim.Optimizer,
        batch: tuple[Tensor, Tensor],
    ) -> None:
        """One step that does not count, then ``variant.steps``, then one under the profiler."""
        arrange(model, variant)
        forget()
        expected = self.report.about.get("longest_step", 0.0)
        number = 0
        while number <= variant.steps:
            if self.report.seconds + 1.1 * expected > self.limit:
                self.note(variant, stopped=f"after {number} steps: {self.limit:.0f} s would not be enough")
                self.report.say(f"{variant.label}: no time for another step")
                return
            wait()
            began = time.perf_counter()
            loss = float(step(model, optimizer, batch))
            wait()
            expected = time.perf_counter() - began
            self._stepped(variant, number, expected, loss)
            number += 1
        if self.report.seconds + 1.5 * expected + 2 < self.limit:
            loss_after, kinds, each = profiled(lambda: step(model, optimizer, batch))
            self.report.add("loss", "nats/token", float(loss_after))
            top = dict(sorted(each.items(), key=lambda row: -row[1][0])[:30])
            self.note(variant, kernel_seconds=kinds, kernels=top)
            shown = ", ".join(f"{kind} {s:.3f}" for kind, s in sorted(kinds.items(), key=lambda kv: -kv[1]))
            self.report.say(f"{variant.label}: seconds of kernels: {shown}")

    def _stepped(self, variant: Variant, number: int, seconds: float, loss: float) -> None:
        report, label = self.report, variant.label
        report.add("loss", "nats/token", loss)
        report.add(f"{label}: {'step' if number else 'first step'}", "s", seconds)
        text = (
            f"{label}, {'step ' + str(number) if number else 'first step'}: {seconds:.3f} s, loss {loss:.4f}"
        )
        if self.device == "cuda":
            peak = torch.cuda.max_memory_allocated()
            report.samples[f"{label}: peak memory"] = {"unit": "GB", "values": [peak / GB]}
            self.note(variant, peak_bytes=peak)
            text += f", peak {peak / GB:.1f} GB"
        if number:
            report.about["longest_step"] = max(report.about.get("longest_step", 0.0), seconds)
            text += self._shares(variant)
        report.say(text)
        if not math.isfinite(loss):
            raise ArithmeticError(f"the loss is {loss}")

    def _shares(self, variant: Variant) -> str:
        """Tokens a second and shares of the floors, from the median of the steps so far."""
        median = statistics.median(self.report.samples[f"{variant.label}: step"]["values"])
        counted = count_flops(self.shape, variant)
        facts: dict[str, Any] = {"seconds": median, "tokens_per_second": self.shape.tokens / median}
        known = hardware.identify(torch.cuda.get_device_name()) if self.device == "cuda" else None
        rates = {
            "measured": self.report.about.get("matmul_rate"),
            "published": None if known is None else known.peak.get("bf16"),
        }
        for name, rate in rates.items():
            if rate:
                floor = counted["model"] / rate
                facts[f"floor_{name}"], facts[f"share_{name}"] = floor, floor / median
                facts[f"hardware_share_{name}"] = counted["hardware"] / rate / median
        self.note(variant, **facts)
        shares = [f"{facts[f'share_{name}']:.1%} of the {name} rate" for name, rate in rates.items() if rate]
        return ", ".join(["", f"{facts['tokens_per_second']:,.0f} tokens/s", *shares])


def run(bench: Bench, variants: Sequence[Variant]) -> None:
    """Rate, rehearsal, then each variant in turn."""
    report = bench.report
    planned = [each for each in variants if bench.fits(each)]
    bench.measure_rate()
    forget()
    ready = bench.rehearse(planned)
    forget()
    model, batch = make_model(bench.shape, bench.device), make_batch(bench.shape, bench.device)
    optimizer = make_optimizer(model, bench.shape, bench.moments)
    wait()
    report.say("the model is there")
    for variant in ready:
        with attention_backend(variant.attention if variant.attention == "cudnn" else "auto"):
            bench.guarded(variant, partial(bench.measure, variant, model, optimizer, batch))
        model.zero_grad(set_to_none=True)
        forget()
    report.say("done")


def _check(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """End the program for numbers that no run can have."""
    for name, value in (("layers", chosen.layers), ("context", chosen.context)):
        if value is not None and value < 1:
            parser.error(f"--{name}: must be at least 1, got {value}")
    for name, value in (("seconds", chosen.seconds), ("limit-gb", chosen.limit_gb)):
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{name}: must be positive and finite, got {value:g}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m lmlib.training.large_step", description=__doc__)
    parser.add_argument("--out", type=Path, help="write a record")
    parser.add_argument("--commit", default="unknown", help="of the source, for the record")
    parser.add_argument("--layers", type=int, help="fewer layers, for a smaller GPU")
    parser.add_argument("--context", type=int, help="a shorter context")
    parser.add_argument("--attention", choices=("triton", "cudnn"), help="only such variants")
    parser.add_argument("--moments", choices=tuple(MOMENTS), default="bfloat16", help="their type")
    parser.add_argument("--seconds", type=float, default=120, help="after which no step is begun")
    parser.add_argument("--limit-gb", type=float, help="take no more of the GPU's memory, in 1e9 bytes")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, for a machine without a GPU")
    chosen = parser.parse_args(given)
    need_gpu(parser, chosen.tiny)
    _check(parser, chosen)
    shape = TINY if chosen.tiny else Shape()
    changes = {"n_layers": chosen.layers, "context_length": chosen.context}
    shape = replace(shape, **{name: value for name, value in changes.items() if value is not None})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    there = math.inf
    if device == "cuda":
        there = total = float(torch.cuda.mem_get_info()[1])
        if chosen.limit_gb is not None:
            there = min(total, chosen.limit_gb * GB)
            torch.cuda.set_per_process_memory_fraction(there / total)
    about = {"shape": asdict(shape), "moments": chosen.moments, "betas": list(BETAS), "variants": {}}
    origin = record.origin("lmlib.training.large_step", given, chosen.commit)
    report = Report(chosen.out, origin, about)
    variants = [each for each in VARIANTS if chosen.attention in (None, each.attention)]
    run(Bench(shape, device, chosen.moments, chosen.seconds, there, report), variants)


if __name__ == "__main__":
    main()
