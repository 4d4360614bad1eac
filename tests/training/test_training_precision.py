"""Precision policies: what is in which type, and that training in bf16 stays close to fp32."""

import copy

import numpy as np
import pytest
import torch

from lmlib.architecture import ModelConfig, TransformerLM
from lmlib.resources.units import ArgumentError
from lmlib.training.dataset import TokenData
from lmlib.training.master import MasterWeights, keep_unrounded
from lmlib.training.optimizers import OptimizerSettings
from lmlib.training.precision import POLICIES, precision
from lmlib.training.schedules import Schedule
from lmlib.training.settings import TrainerSettings
from lmlib.training.trainer import Trainer

CONFIG = ModelConfig(vocab_size=64, context_length=32, d_model=32, n_layers=2, n_heads=2)


def _data() -> TokenData:
    """A walk in which the next id is nearly decided by the one before."""
    drawn = np.random.default_rng(0)
    ids = [0]
    for noise in drawn.integers(0, 3, 4000):
        ids.append((5 * ids[-1] + int(noise)) % 64)
    return TokenData.from_array(np.array(ids), vocab_size=64)


class _Losses:
    def __init__(self) -> None:
        self.values: list[float] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        if "loss" in values:
            self.values.append(values["loss"])


def _train(policy: str, steps: int = 40) -> tuple[list[float], Trainer]:
    torch.manual_seed(0)
    losses = _Losses()
    settings = TrainerSettings(batch_size=8, context_length=32, max_steps=steps, log_every=1, device="cpu")
    schedule = Schedule(peak=1e-2, total=steps, warmup=2)
    model = TransformerLM(CONFIG)
    trainer = Trainer(model, OptimizerSettings(), schedule, _data(), None, settings, [losses], policy)
    trainer.fit()
    return losses.values, trainer


def test_what_is_in_which_type() -> None:
    for name, parameters, products, master in (
        ("fp32", torch.float32, torch.float32, False),
        ("bf16", torch.bfloat16, torch.bfloat16, True),
        ("bf16-autocast", torch.float32, torch.bfloat16, False),
    ):
        _, trainer = _train(name, steps=2)
        assert {each.dtype for each in trainer.model.parameters()} == {parameters}
        assert isinstance(trainer.optimizer, MasterWeights) is master
        states = [value for state in trainer.optimizer.state.values() for value in state.values()]
        assert {each.dtype for each in states if isinstance(each, torch.Tensor) and each.ndim} == {
            torch.float32
        }
        seen: list[torch.dtype] = []
        block = trainer.model.blocks[0]  # type: ignore[index]
        handle = block.mlp.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.dtype))
        with precision(name).computing("cpu"):
            trainer.model.hidden(torch.zeros(1, 4, dtype=torch.int64))  # type: ignore[operator]
        handle.remove()
        assert seen == [products]


@pytest.mark.parametrize("policy", ["bf16", "bf16-autocast", "fp16-autocast"])
def test_training_in_16_bits_stays_close_to_fp32(policy: str) -> None:
    reference, _ = _train("fp32")
    losses, trainer = _train(policy)
    assert reference[-1] < 2.0 < reference[0]  # it learns: ln 64 = 4.16 at the start, ln 3 = 1.1 at best
    assert losses[0] == pytest.approx(reference[0], abs=0.02)
    assert np.mean(losses[-10:]) == pytest.approx(np.mean(reference[-10:]), abs=0.05)
    assert trainer.step == 40


def test_bf16_without_master_weights_is_worse() -> None:
    """What the master weights are for: with a small rate, most updates round away."""

    def run(policy: str) -> float:
        torch.manual_seed(0)
        model = TransformerLM(CONFIG)
        if policy == "bare":
            model.bfloat16()
        maker = OptimizerSettings(weight_decay=0.0)
        settings = TrainerSettings(batch_size=8, context_length=32, max_steps=40, device="cpu")
        precise = "fp32" if policy == "bare" else policy  # "bare": bf16 parameters, updated as they are
        schedule = Schedule("constant", peak=1e-4)
        return Trainer(model, maker, schedule, _data(), None, settings, (), precise).fit()["loss"]

    fp32, mastered, bare = run("fp32"), run("bf16"), run("bare")
    assert abs(mastered - fp32) < 0.02
    assert bare - fp32 > 5 * abs(mastered - fp32)


@pytest.mark.parametrize("implementation", ["foreach", "triton"])
def test_master_weights_start_from_weights_that_were_not_rounded(implementation: str) -> None:
    torch.manual_seed(0)
    model = TransformerLM(CONFIG)
    before = copy.deepcopy(model)
    settings = TrainerSettings(batch_size=2, context_length=8, max_steps=1, device="cpu")
    maker = OptimizerSettings(implementation=implementation)
    trainer = Trainer(model, maker, Schedule("constant", peak=0.0), _data(), None, settings, (), "bf16")
    trainer.fit()  # at a rate of 0: nothing moves
    optimizer = trainer.optimizer
    if isinstance(optimizer, MasterWeights):
        masters = dict(zip(optimizer.parameters, optimizer.masters, strict=True))
    else:
        masters = {each: state["master"] for each, state in optimizer.state.items()}
    for (name, parameter), exact in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(masters[parameter], exact), name
        assert not hasattr(parameter, "unrounded")
        if implementation == "foreach":  # Triton's interpreter rounds towards zero
            assert torch.equal(parameter, exact.bfloat16()), name
    assert any(not torch.equal(each, each.bfloat16().float()) for each in masters.values())


def test_small_first_steps_are_not_rounded_away() -> None:
    """What the above is for: weights move by the learning rate, less than half a step of the 16-bit grid."""

    def moved(kept: bool) -> float:
        torch.manual_seed(0)
        layer = torch.nn.Linear(200, 200, bias=False)
        torch.nn.init.uniform_(layer.weight, 0.017, 0.031)  # there, points are 2**-13 apart
        if kept:
            keep_unrounded(layer)
        layer.bfloat16()
        before = layer.weight.detach().float()
        maker = OptimizerSettings(weight_decay=0.0)
        optimizer = maker.build(layer, "bf16", [{"params": [layer.weight], "lr": 5e-5}])
        for group in optimizer.param_groups:
            group["lr"] = 5e-5
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
        return float((before - layer.weight.detach().float()).mean()) / 5e-5

    assert moved(kept=True) == pytest.approx(1.0, abs=0.05)
    assert moved(kept=False) == 0.0


def test_fp16_skips_a_step_that_overflows_and_goes_on() -> None:
    torch.manual_seed(0)
    settings = TrainerSettings(batch_size=8, context_length=32, max_steps=30, log_every=1, device="cpu")
    model, schedule = TransformerLM(CONFIG), Schedule("constant", peak=1e-2)
    trainer = Trainer(model, OptimizerSettings(), schedule, _data(), None, settings, (), "fp16-autocast")
    assert trainer.scaler is not None
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**40})
    before = copy.deepcopy(model.state_dict())
    trainer._advance()  # the scaled loss overflows fp16
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert trainer.scaler.get_scale() < 2.0**40
    assert trainer.fit()["loss"] < 4.0


def test_bad_input() -> None:
    with pytest.raises(ArgumentError, match="precision: must be one of fp32, tf32, bf16"):
        precision("float8")
    assert precision(POLICIES["bf16"]) is POLICIES["bf16"]
    optimizer = torch.optim.AdamW(TransformerLM(CONFIG).parameters())
    settings = TrainerSettings(max_steps=1, context_length=8, device="cpu")
    with pytest.raises(ArgumentError, match=r"optimizer: must be made by a function for bf16"):
        Trainer(TransformerLM(CONFIG), optimizer, lambda step: 0.0, _data(), None, settings, (), "bf16")
    with pytest.raises(ArgumentError, match=r"optimizer: .* it holds others"):
        Trainer(TransformerLM(CONFIG), optimizer, lambda step: 0.0, _data(), None, settings)
