"""Chapter 2's ablations: one small model, trained again and again with one thing changed.

    python -m lmlib.book.measure.ablations --steps 1000 --runs 2 --commit $(git rev-parse --short HEAD)

The chapter trains each variant once and for short; the record holds longer runs, and more of them. Both come
from the functions here.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmlib.architecture import MLAConfig, ModelConfig, MoEConfig, TransformerLM
from lmlib.book.records import Record, Samples, write
from lmlib.data import micro_world
from lmlib.tokenization import Tokenizer, train_bpe

RATE, BATCH = 1.5e-2, 16
BASE = ModelConfig(vocab_size=512, context_length=48, d_model=48, n_layers=2, n_heads=4, d_ff=128)
_MLA = MLAConfig(kv_lora_rank=16, nope_head_dim=12, rope_head_dim=6, v_head_dim=12)
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "sinusoidal": {"position": "sinusoidal"},
    "learned": {"position": "learned"},
    "none": {"position": "none"},
    "layernorm": {"norm": "layernorm"},
    "qk-norm": {"qk_norm": True},
    "biases": {"bias": True},
    "relu": {"mlp": "relu", "d_ff": 192},
    "gelu": {"mlp": "gelu", "d_ff": 192},
    "tiny": {"d_ff": 1},
    "moe": {"moe": MoEConfig(n_experts=8, top_k=2, d_ff=64)},
    "gqa": {"n_kv_heads": 2},
    "mqa": {"n_kv_heads": 1},
    "mla": {"attention": "mla", "mla": _MLA},
    "window 8": {"window": 8},
    "window 2": {"window": 2},
    "window 1": {"window": 1},
    "tied": {"tied": True},
}
"""What each variant changes in ``BASE``."""


@dataclass(frozen=True)
class Task:
    """Token ids to train on and to be judged by, one after another, and the tokenizer that made them."""

    tokenizer: Tokenizer
    train: Int[Tensor, " N"]
    valid: Int[Tensor, " N"]


def micro_world_task(train_bytes: int = 600_000, valid_bytes: int = 60_000) -> Task:
    """Stories of the micro-world, under a tokenizer of 512 entries trained on them."""
    stories = list(micro_world(seed=0, n_bytes=train_bytes).texts())
    tokenizer = train_bpe(stories, vocab_size=BASE.vocab_size, special_tokens=("<|endoftext|>",))
    end = tokenizer.encode("<|endoftext|>", allowed_special="all")

    def ids(texts: Sequence[str]) -> Tensor:
        return torch.tensor([i for text in texts for i in [*tokenizer.encode(text), *end]])

    unseen = list(micro_world(seed=0, split="valid", n_bytes=valid_bytes).texts())
    return Task(tokenizer, ids(stories), ids(unseen))


def batches(
    data: Int[Tensor, " N"], count: int, batch: int, length: int, seed: int
) -> Iterator[tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]]:
    """Random windows: inputs, and the same moved on by one token."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        start = torch.randint(len(data) - length, (batch,), generator=generator)
        window = data[start[:, None] + torch.arange(length + 1)]
        yield window[:, :-1], window[:, 1:]


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats per token."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def evaluate(model: nn.Module, data: Int[Tensor, " N"], length: int = BASE.context_length) -> float:
    """Loss on 256 windows of ``data``, the same for every model."""
    windows = list(batches(data, 8, 32, length, seed=99))
    return sum(loss_of(model, x, y).item() for x, y in windows) / len(windows)


def train(
    config: ModelConfig,
    data: Int[Tensor, " N"],
    steps: int,
    seed: int = 0,
    rate: float = RATE,
    batch: int = BATCH,
    warm_up: int = 10,
) -> tuple[TransformerLM, list[float]]:
    """A trained model, and the losses on the way.

    Args:
        seed: of the initial weights and of the order of the data.
        rate: the highest learning rate; it falls to zero over the second half.
        warm_up: steps in which it rises.
    """
    torch.manual_seed(seed)
    model = TransformerLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    losses = []
    for step, (x, y) in enumerate(batches(data, steps, batch, config.context_length, seed)):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / max(warm_up, 1), 2 * (1 - step / steps))
        loss = loss_of(model, x, y)
        optimizer.zero_grad()
        (loss + model.auxiliary_loss()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the variants and write the record."""
    parser = argparse.ArgumentParser(prog="python -m lmlib.book.measure.ablations", description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=2, help="seeds of each variant; the base gets one more")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--device", default="cpu-2core", help="folder of the record")
    parser.add_argument("--name", default="ablations", help="of the record")
    parser.add_argument("--results", type=Path, default=None, help="instead of book/results")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task = micro_world_task()
    losses: dict[str, list[float]] = {}
    # Seed by seed, and written after each: an interrupted measurement has every variant equally often.
    for seed in range(chosen.runs + 1):
        for name in chosen.variants if seed < chosen.runs else ("base",):
            model, _ = train(BASE.replace(**VARIANTS[name]), task.train, chosen.steps, seed)
            losses.setdefault(name, []).append(evaluate(model, task.valid))
            print(f"{name}, seed {seed}: {losses[name][-1]:.4f}", flush=True)
        print(write(_record(losses, chosen), chosen.device, chosen.name, chosen.results))


def _record(losses: dict[str, list[float]], chosen: argparse.Namespace) -> Record:
    return Record(
        device=f"{platform.machine()} CPU, {os.cpu_count()} cores, one thread",
        driver=None,
        torch=torch.__version__,
        triton=None,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        commit=chosen.commit,
        command=f"python -m lmlib.book.measure.ablations --steps {chosen.steps} --runs {chosen.runs}",
        samples={name: Samples("nats per token", tuple(values)) for name, values in losses.items()},
        about={"steps": chosen.steps, "rate": RATE, "batch": BATCH, "base": BASE.to_dict()},
    )


if __name__ == "__main__":
    main()
