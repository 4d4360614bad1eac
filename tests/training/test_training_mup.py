"""muP: what a step changes in the hidden layers must not depend on the width (the coordinate check)."""

import pytest
import torch

from lmlib.architecture import ModelConfig, TransformerLM
from lmlib.resources.units import ArgumentError
from lmlib.training.loss import LossModule
from lmlib.training.mup import groups, initialize
from lmlib.training.optimizers import OptimizerSettings

BASE = 32


def model_of(width: int, *, mup: bool, tied: bool = False) -> TransformerLM:
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(64, 16, width, 2, width // 16, tied=tied))
    if mup:
        initialize(model, BASE)
    return model


def change_of_logits(width: int, *, mup: bool, kind: str) -> float:
    """How far a few steps move the logits, as a root mean square."""
    model, settings = model_of(width, mup=mup), OptimizerSettings(kind, weight_decay=0.0)
    made = groups(model, BASE, settings) if mup else None
    optimizer = settings.build(model, groups=made)
    for group in optimizer.param_groups:
        group["lr"] = 0.02 * group.get("lr_scale", 1.0)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 64, (8, 17), generator=generator)
    module = LossModule(model, form="full")
    before = model(tokens[:, :-1]).detach()
    for _ in range(3):
        optimizer.zero_grad()
        loss, _ = module(tokens[:, :-1], tokens[:, 1:])
        (loss / 128).backward()
        optimizer.step()
    return float((model(tokens[:, :-1]).detach() - before).square().mean().sqrt())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_coordinate_check(kind: str) -> None:
    """From width 32 to 512 the change stays where it was with muP, and grows without."""
    with_mup = change_of_logits(512, mup=True, kind=kind) / change_of_logits(BASE, mup=True, kind=kind)
    without = change_of_logits(512, mup=False, kind=kind) / change_of_logits(BASE, mup=False, kind=kind)
    assert 0.4 < with_mup < 2.0
    assert without > 2 * with_mup


def test_at_the_base_width_nothing_changes() -> None:
    assert {group["lr_scale"] for group in groups(model_of(BASE, mup=True), BASE, OptimizerSettings())} == {1}
    same = zip(model_of(BASE, mup=True).parameters(), model_of(BASE, mup=False).parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)


def test_rates_follow_the_table() -> None:
    model = model_of(128, mup=True)
    scale = {
        id(parameter): group["lr_scale"]
        for group in groups(model, BASE, OptimizerSettings("muon"))
        for parameter in group["params"]
    }
    assert len(scale) == len(list(model.parameters()))
    named = {name: scale[id(parameter)] for name, parameter in model.named_parameters()}
    assert named["embedding.weight"] == named["norm.weight"] == 1
    assert named["head.weight"] == 1 / 4
    assert named["blocks.0.mlp.down_proj.weight"] == 1 / 2
    adam = groups(model, BASE, OptimizerSettings("adamw"))
    assert sorted({group["lr_scale"] for group in adam}) == [1 / 4, 1]


def test_refuses_what_does_not_transfer() -> None:
    with pytest.raises(ArgumentError, match="tied: must be false"):
        initialize(model_of(64, mup=False, tied=True), BASE)
    with pytest.raises(ArgumentError, match=r"optimizer.kind: must be adamw or muon"):
        groups(model_of(64, mup=True), BASE, OptimizerSettings("sgd"))
