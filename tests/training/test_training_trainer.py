"""The trainer: what it learns, that pieces equal the whole, what it measures, where it stops."""

import copy
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmlib.architecture import ModelConfig, TransformerLM
from lmlib.data import micro_world
from lmlib.resources import flops
from lmlib.resources.units import ArgumentError
from lmlib.tokenization import train_bpe
from lmlib.training import throughput
from lmlib.training.alone import compile_options
from lmlib.training.dataset import TokenData, write_tokens
from lmlib.training.loss import LossModule
from lmlib.training.optimizers import OptimizerSettings
from lmlib.training.precision import precision
from lmlib.training.schedules import Schedule
from lmlib.training.settings import TrainerSettings
from lmlib.training.sgd import SGD
from lmlib.training.step import train_step
from lmlib.training.trainer import NonFiniteError, Trainer

CONFIG = ModelConfig(vocab_size=64, context_length=16, d_model=32, n_layers=2, n_heads=2)
RANDOM = TokenData.from_array(np.random.default_rng(0).integers(0, 64, 3000), vocab_size=64)


class _Lines:
    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.events: list[str] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.lines.append((step, dict(values)))

    def start(self, trainer: Trainer) -> None:
        self.events.append("start")

    def resume(self, step: int) -> None:
        self.events.append(f"resume {step}")

    def close(self) -> None:
        self.events.append("close")


def _trainer(
    *,
    config: ModelConfig = CONFIG,
    data: TokenData = RANDOM,
    val: TokenData | None = None,
    optimizer: Any = None,
    schedule: Any = None,
    lines: _Lines | None = None,
    policy: str = "fp32",
    folder: Path | None = None,
    **options: Any,
) -> Trainer:
    torch.manual_seed(0)
    options = {"batch_size": 8, "context_length": 16, "max_steps": 10, "device": "cpu", **options}
    return Trainer(
        TransformerLM(config),
        optimizer or OptimizerSettings(),
        schedule or Schedule("constant", peak=1e-2),
        data,
        val,
        TrainerSettings(**options),
        [] if lines is None else [lines],
        policy,
        folder=folder,
    )


# -- it learns -----------------------------------------------------------------------------------------------


def test_overfits_one_batch() -> None:
    data = TokenData.from_array(RANDOM.ids[:17], vocab_size=64)
    losses = _Lines()
    trainer = _trainer(data=data, batch_size=2, max_steps=80, log_every=1, lines=losses)
    found = trainer.fit()
    assert losses.lines[0][1]["loss"] == pytest.approx(math.log(64), abs=0.5)
    assert found["loss"] < 0.02
    tokens, targets = data.windows(np.array([0]), 16)
    assert torch.equal(trainer.model(tokens).argmax(-1), targets)


def test_learns_the_micro_world_far_below_its_unigram_entropy(tmp_path: Path) -> None:
    texts = list(micro_world(n_documents=250).texts())
    tokenizer = train_bpe(texts[:100], vocab_size=400, special_tokens=["<|endoftext|>"])
    data = write_tokens(tmp_path / "train.tokens", texts, tokenizer)
    val = write_tokens(tmp_path / "val.tokens", micro_world(split="valid", n_documents=15).texts(), tokenizer)
    counts = np.array(list(Counter(val.ids.tolist()).values())) / len(val)
    unigram = -float((counts * np.log(counts)).sum())  # the best that a model without context can do
    config = ModelConfig(vocab_size=400, context_length=64, d_model=64, n_layers=2, n_heads=2)
    steps = 100
    trainer = _trainer(
        config=config,
        data=data,
        val=val,
        schedule=Schedule(peak=1e-2, total=steps, warmup=10),
        batch_size=8,
        context_length=64,
        max_steps=steps,
    )
    found = trainer.fit()
    assert found["val_loss"] < unigram - 1.5
    assert found["val_loss_per_byte"] < found["val_loss"]


# -- pieces equal the whole ----------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulation_equals_the_big_batch(accumulate: int) -> None:
    config = CONFIG.replace(norm="layernorm", mlp="gelu")

    def run(pieces: int) -> tuple[list[float], list[torch.Tensor]]:
        lines = _Lines()
        # float64, and plain gradient descent: Adam's first steps divide rounding errors by themselves
        torch.manual_seed(0)
        model = TransformerLM(config).double()
        options = TrainerSettings(8, 16, pieces, max_steps=5, log_every=1, z_loss=1e-3, device="cpu")
        maker = SGD(model.parameters(), lr=0.1, momentum=0.9)
        Trainer(model, maker, lambda step: 0.1, RANDOM, None, options, [lines]).fit()
        return [values["loss"] for _, values in lines.lines], list(model.parameters())

    (whole, weights), (pieces, others) = run(1), run(accumulate)
    assert pieces == pytest.approx(whole, rel=1e-6)
    for mine, other in zip(weights, others, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


def test_accumulation_weighs_targets_not_micro_batches() -> None:
    """Micro-batches with different numbers of targets that count: the gradient is still the whole batch's."""
    torch.manual_seed(0)
    model = TransformerLM(CONFIG).double()
    tokens, targets = torch.randint(64, (2, 4, 16))
    targets[:2, 3:] = -100
    logits = model(tokens).flatten(0, 1)
    F.cross_entropy(logits, targets.flatten()).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    optimizer = SGD(model.parameters(), lr=0.0)
    batches = list(zip(tokens.split(2), targets.split(2), strict=True))
    loss, norm = train_step(LossModule(model), optimizer, batches, policy=precision("fp32"), clip_norm=None)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, targets.flatten()).item())
    assert norm.item() == pytest.approx(torch.cat([each.flatten() for each in expected]).norm().item())
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(
    "options",
    [
        {"activation_checkpointing": True},
        {"loss": "full"},
        {"loss_chunk": 7},
        {"compile": "aot_eager", "activation_checkpointing": True},
    ],
    ids=str,
)
def test_ways_to_compute_the_same(options: dict[str, Any]) -> None:
    plain, other = _Lines(), _Lines()
    same = {"config": CONFIG.replace(n_layers=1), "val": RANDOM, "eval_tokens": 100, "eval_every": 5}
    _trainer(log_every=1, lines=plain, **same).fit()
    torch._dynamo.reset()
    _trainer(log_every=1, lines=other, **same, **options).fit()
    for (step, mine), (_, peer) in zip(plain.lines, other.lines, strict=True):
        for name in ("loss", "val_loss", "grad_norm"):
            if name in mine:
                assert peer[name] == pytest.approx(mine[name], rel=2e-3), (step, name)


def test_an_optimizer_that_clips_as_it_reads_takes_the_same_steps() -> None:
    lines = []
    for implementation in ("triton", "loop"):
        torch.manual_seed(0)
        model = TransformerLM(CONFIG.replace(n_layers=1))
        optimizer = OptimizerSettings(implementation=implementation).build(model)
        tokens, targets = torch.randint(64, (2, 4, 16))
        steps = []
        for _ in range(3):
            loss, norm = train_step(
                LossModule(model), optimizer, [(tokens, targets)], policy=precision("fp32"), clip_norm=0.1
            )
            assert norm > 0.1
            steps += [loss.item(), norm.item()]
        assert hasattr(optimizer, "grad_factor") == (implementation == "triton")
        lines.append(steps)
    assert lines[0] == pytest.approx(lines[1], rel=1e-5)
    assert lines[0][2] < lines[0][0]


def test_reading_ahead_gives_the_same_batches_and_ends() -> None:
    plain, ahead = _Lines(), _Lines()
    _trainer(log_every=1, lines=plain, accumulate=2).fit()
    trainer = _trainer(log_every=1, lines=ahead, accumulate=2)
    trainer._read_ahead = True  # as beside a GPU
    trainer.fit()
    for (_, mine), (_, other) in zip(plain.lines, ahead.lines, strict=True):
        assert mine["loss"] == other["loss"]
    assert trainer._reader is None


def test_activation_checkpointing_keeps_less() -> None:
    def kept(checkpointing: bool) -> int:
        trainer = _trainer(activation_checkpointing=checkpointing)
        tokens, targets = trainer._batches()[0]
        sizes: list[int] = []
        pack = lambda tensor: sizes.append(tensor.numel()) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.module(tokens, targets)
        return sum(sizes)

    assert kept(True) < kept(False) / 3


def test_a_mixture_of_experts_trains_with_its_balance_loss() -> None:
    from lmlib.architecture.config import MoEConfig

    config = CONFIG.replace(moe=MoEConfig(n_experts=4, top_k=2, d_ff=16, balance_weight=0.1))
    found = _trainer(config=config, activation_checkpointing=True, max_steps=5).fit()
    assert math.isfinite(found["loss"])
    biased = CONFIG.replace(moe=MoEConfig(n_experts=4, top_k=2, d_ff=16, balance="bias"))
    trainer = _trainer(config=biased, max_steps=5)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.fit()
    biases = [name for name in before if "bias" in name]
    assert any(not torch.equal(before[name], trainer.model.state_dict()[name]) for name in biases)


# -- evaluation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_tokens", [2, 17, 18, 16 * 16 + 1, 500])
@pytest.mark.parametrize("limit", [None, 1, 16, 130])
def test_evaluation_predicts_every_token_once(n_tokens: int, limit: int | None) -> None:
    val = TokenData.from_array(RANDOM.ids[:n_tokens], vocab_size=64, n_bytes=3 * n_tokens)
    trainer = _trainer(val=val, z_loss=0.5)
    found = trainer.evaluate(limit)
    predictions = min(n_tokens - 1, limit or n_tokens)
    losses: list[float] = []
    with torch.no_grad():
        for start in range(0, n_tokens - 1, 16):
            window = torch.from_numpy(val.ids[start : start + 17]).view(1, -1)
            logits = trainer.model(window[:, :-1])[0]
            losses += F.cross_entropy(logits, window[0, 1:], reduction="none").tolist()
    assert found["tokens"] == predictions
    assert found["loss"] == pytest.approx(np.mean(losses[:predictions]), rel=1e-5)
    if predictions == n_tokens - 1:
        assert found["loss_per_byte"] == pytest.approx(np.sum(losses) / (3 * n_tokens), rel=1e-5)
    else:
        assert "loss_per_byte" not in found


# -- what it measures ----------------------------------------------------------------------------------------


def test_log_lines(tmp_path: Path) -> None:
    lines = _Lines()
    schedule = Schedule(peak=1e-2, total=10, warmup=3)
    trainer = _trainer(
        val=RANDOM,
        schedule=schedule,
        lines=lines,
        folder=tmp_path,
        log_every=5,
        eval_every=10,
        eval_tokens=64,
    )
    found = trainer.fit()
    assert [step for step, _ in lines.lines] == [5, 10, 10]
    (_, first), (_, second), (_, evaluation) = lines.lines
    assert (first["tokens"], second["tokens"]) == (5 * 8 * 16, 10 * 8 * 16)
    assert first["lr"] == schedule(4)
    assert second["lr"] == schedule(9)
    per_step = float(flops.training(CONFIG.resources(), 8, 16, mask="causal").total)
    assert second["flops"] == pytest.approx(10 * per_step)
    assert second["tokens_per_second"] == pytest.approx(8 * 16 / second["step_seconds"])
    assert second["seconds"] >= 5 * second["step_seconds"]
    assert second["grad_norm"] > 0
    assert "mfu" not in second  # a CPU is not in the table: no MFU is better than a wrong one
    assert evaluation.keys() == {"val_loss", "tokens", "seconds"}
    assert found["val_loss"] == evaluation["val_loss"]
    assert lines.events == ["start", "close"]
    assert trainer.checkpoints is not None
    assert trainer.checkpoints.manifest(10)["metric"] == evaluation["val_loss"]
    again = _trainer(val=RANDOM, schedule=schedule, lines=lines, folder=tmp_path, max_steps=12)
    assert again.resume() == 10
    again.fit()
    assert lines.events[2:] == ["resume 10", "start", "close"]
    assert again.seconds > second["seconds"]  # the clock goes on where the checkpoint left it


def test_groups_keep_their_share_of_the_rate() -> None:
    def maker(model: torch.nn.Module, policy: Any) -> torch.optim.Optimizer:
        first, *others = model.parameters()
        return SGD([{"params": [first], "lr_scale": 0.25}, {"params": others}])

    trainer = _trainer(optimizer=maker, schedule=Schedule("constant", peak=0.8), max_steps=1)
    trainer.fit()
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.2, 0.8]


def test_mfu_of_a_known_gpu_and_none_of_an_unknown_one(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"known": "NVIDIA H100 80GB HBM3", "unknown": "NVIDIA H100 Laptop"}
    found = {}
    for kind, name in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        found[kind] = throughput.peak_flops(torch.device("cuda"), precision("bf16-autocast"))
    assert found == {"known": 989.4e12, "unknown": None}
    lines = _Lines()
    trainer = _trainer(lines=lines, max_steps=10)
    trainer.peak = 1e12
    trainer.fit()
    (_, values) = lines.lines[-1]
    per_token = float(flops.training(CONFIG.resources(), 1, 16, mask="causal").total) / 16
    assert values["mfu"] == pytest.approx(per_token * values["tokens_per_second"] / 1e12)


# -- where it stops ------------------------------------------------------------------------------------------


def test_limits() -> None:
    per_step = float(flops.training(CONFIG.resources(), 8, 16, mask="causal").total)
    for options, steps in (
        ({"max_steps": None, "max_tokens": 7 * 8 * 16 - 1}, 7),
        ({"max_steps": None, "max_flops": 4.5 * per_step}, 5),
        ({"max_steps": 9, "max_tokens": 3 * 8 * 16, "max_seconds": 1e6}, 3),
    ):
        trainer = _trainer(**options)
        trainer.fit()
        assert trainer.step == steps


def test_a_budget_of_time_is_kept_and_excludes_evaluation() -> None:
    lines = _Lines()
    trainer = _trainer(
        val=RANDOM,
        max_steps=None,
        max_seconds=1.0,
        schedule=Schedule(peak=1e-2, total=100, warmup=10),
        schedule_by="budget",
        eval_every=10,
        log_every=5,
        lines=lines,
    )
    trainer.fit()
    rates = [values["lr"] for _, values in lines.lines if "lr" in values]
    assert trainer.seconds <= 1.0 + 0.3  # one slow step on a busy machine
    assert trainer.step > 10
    assert max(rates) > 5e-3
    assert rates[-1] < 2e-3  # the schedule has come to its end with the time
    assert rates.index(max(rates)) < len(rates) / 2


def _poisoned(step_of_death: int, lines: _Lines | None = None, **options: Any) -> Trainer:
    """A run whose rate becomes infinite at a step: the loss of the next is NaN."""
    return _trainer(schedule=lambda step: 1e-3 if step < step_of_death else 1e30, lines=lines, **options)


@pytest.mark.parametrize("log_every", [1, 4, 100])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_checkpoint(
    tmp_path: Path, log_every: int
) -> None:
    lines = _Lines()
    trainer = _poisoned(11, lines, max_steps=100, log_every=log_every, save_every=6, folder=tmp_path)
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit()
    error = caught.value
    assert error.step in (12, 13)  # the twelfth update ruins the weights
    assert error.last_good == error.step - 1
    # 12 is saved only if all losses up to it were finite; its own update cannot be known to be bad
    assert error.checkpoint is not None
    assert f"at step {error.step}" in str(error)
    assert str(error.checkpoint) in str(error)
    assert lines.events[-1] == "close"
    assert trainer.checkpoints is not None
    assert 6 in trainer.checkpoints.steps()
    assert _trainer(folder=tmp_path).resume(step=6) == 6


def test_without_a_checkpoint_the_error_says_so() -> None:
    with pytest.raises(NonFiniteError, match=r"at step [34]; .* there is no checkpoint"):
        _poisoned(2, max_steps=20).fit()


@pytest.mark.gpu
@pytest.mark.parametrize("policy", ["bf16", "bf16-autocast", "fp16-autocast"])
def test_on_a_gpu(tmp_path: Path, policy: str) -> None:
    """Compiled, read ahead, resumed: close to the CPU's fp32 run."""
    plain, lines = _Lines(), _Lines()
    options: dict[str, Any] = {"val": RANDOM, "eval_tokens": 500, "log_every": 1, "max_steps": 20}
    _trainer(lines=plain, **options).fit()
    options |= {"device": "cuda", "compile": True, "policy": policy, "folder": tmp_path, "lines": lines}
    _trainer(**{**options, "max_steps": 12}).fit()
    trainer = _trainer(**options)
    assert trainer.resume() == 12
    found = trainer.fit()
    assert found["val_loss"] == pytest.approx(plain.lines[-1][1]["val_loss"], abs=0.05)
    if throughput.peak_flops(trainer.device, trainer.policy) is not None:
        assert 0 < found["mfu"] < 1


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"context_length": 32}, "context_length"),
        ({"data": TokenData.from_array([1, 2, 3])}, "train_data"),
        ({"val": TokenData.from_array([1])}, "val_data"),
        ({"data": TokenData.from_array(RANDOM.ids, vocab_size=65)}, "train_data"),
        ({"batch_size": 9, "accumulate": 2}, "accumulate"),
        ({"max_steps": None}, "max_steps"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_seconds": float("nan")}, "max_seconds"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"schedule_by": "time"}, "schedule_by"),
        ({"schedule_by": "budget", "schedule": lambda step: 1.0}, "schedule_by"),
        ({"loss": "fused"}, "loss"),
        ({"sampling": "shuffle"}, "sampling"),
        ({"compile": 3}, "compile"),
        ({"compile": "reduce-overhead", "accumulate": 2}, "compile"),
        ({"compile": "max-autotune", "accumulate": 2}, "compile"),
        ({"policy": "fp8"}, "precision"),
        ({"z_loss": -1.0}, "z_loss"),
        ({"seed": -1}, "seed"),
        ({"keep_last": 0}, "keep_last"),
    ],
)
def test_bad_input_names_the_argument(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        _trainer(**options)
    assert caught.value.field == field


def test_a_mode_of_the_compiler_is_told_from_a_backend() -> None:
    for mode in ("reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"):
        assert compile_options(mode) == {"mode": mode, "dynamic": False}
        torch.compile(**compile_options(mode))  # which would refuse a name that it does not know
    for backend in ("inductor", "aot_eager"):
        assert compile_options(backend) == {"backend": backend, "dynamic": False}


def test_cuda_graphs_take_one_pass_a_step() -> None:
    """Their gradients are overwritten by the next pass; what records none, and a single pass, may go on."""
    with pytest.raises(ArgumentError, match=r"^compile: .*needs accumulate=1, got 2"):
        TrainerSettings(8, 16, max_steps=1, accumulate=2, compile="reduce-overhead")
    TrainerSettings(8, 16, max_steps=1, accumulate=1, compile="reduce-overhead")
    TrainerSettings(8, 16, max_steps=1, accumulate=2, compile="max-autotune-no-cudagraphs")
    TrainerSettings(8, 16, max_steps=1, accumulate=2, compile="inductor")


def test_an_id_beyond_the_vocabulary_is_found_and_placed() -> None:
    ids = RANDOM.ids.copy()
    ids[100] = 64
    with pytest.raises(
        ArgumentError, match="holds token id 64 at position 100, the model's vocabulary has 64"
    ):
        _trainer(data=TokenData.from_array(ids), max_steps=200).fit()


def test_evaluating_without_data() -> None:
    with pytest.raises(ArgumentError, match="val_data: there is none"):
        _trainer().evaluate()


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArgumentError, match="device: must be a device of this machine"):
        _trainer(device="cuda")
