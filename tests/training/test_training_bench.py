"""The benchmark of the step: both models are the same function, and the record is one."""

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lmlib.architecture import TransformerLM
from lmlib.book.records import parse
from lmlib.resources.units import ArgumentError
from lmlib.training import alone, bench, large_step
from lmlib.training.bench import (
    TINY,
    VARIANTS,
    Shape,
    Variant,
    agreement,
    main,
    micro_world_tokens,
    starting_model,
    time_ours,
    time_plain,
)
from lmlib.training.dataset import TokenData
from lmlib.training.loss import LossModule
from lmlib.training.optimizers import OptimizerSettings
from lmlib.training.plain_gpt import PlainGPT, renamed
from lmlib.training.sweep import LADDER, grid, ladder, rates_of


def test_the_plain_model_is_ours() -> None:
    torch.manual_seed(0)
    plain = PlainGPT(TINY.vocab_size, TINY.context_length, TINY.d_model, TINY.n_layers, TINY.n_heads)
    ours = TransformerLM(TINY.config())
    assert not ours.load_state_dict(renamed(plain), strict=True).missing_keys
    tokens = torch.randint(0, TINY.vocab_size, (2, 33))
    loss, _ = LossModule(ours)(tokens[:, :-1], tokens[:, 1:])
    assert float(loss.detach()) / 64 == pytest.approx(
        float(plain(tokens[:, :-1], tokens[:, 1:]).detach()), abs=1e-5
    )


def test_writes_a_record_whose_curves_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With PyTorch's operators: Triton's, interpreted, would take most of a minute."""
    parts = {"precision": "bf16-autocast", "kernels": "sdpa", "loss": "full", "optimizer": "fused"}
    monkeypatch.setattr(bench, "VARIANTS", (Variant("ours, PyTorch's parts", **parts), Variant("ours")))
    only = ["--only", "ours, PyTorch's parts"]
    main(["step", "--tiny", "--out", str(tmp_path / "r.json"), *only, "--commit", "abc"])
    record = parse(json.loads((tmp_path / "r.json").read_text(encoding="utf-8")), "record")
    assert record["plain: speed"].median > 0
    curves = zip(record["plain: loss"].values, record["ours, PyTorch's parts: loss"].values, strict=True)
    assert all(abs(one - other) < 0.01 for one, other in curves)
    assert record.about["largest_difference_in_fp32"] < 1e-5
    assert list(record.about["variants"]) == ["ours, PyTorch's parts"]


def test_the_book_kernels_take_the_same_steps() -> None:
    """All that the first variant is made of; interpreted here, so at the least size that has every part."""
    shape = Shape(67, 8, 16, 1, 2, batch_size=1, warm=1, steps=4, stretch=1, log=1, lr=3e-2)
    data, start = TokenData.from_array([3, 14, 15] * 100, vocab_size=67), starting_model(shape)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain = time_plain(shape, data, copy.deepcopy(start), device, autocast=False)
    ours = time_ours(shape, data, start, device, VARIANTS[0])
    exact = time_ours(shape, data, start, device, replace(VARIANTS[0], precision="fp32"))
    assert VARIANTS[0] == Variant("ours")
    assert len(ours.losses) == len(plain.losses) == 4
    assert max(plain.losses) - min(plain.losses) > 0.2  # steps that are seen
    assert ours.losses == pytest.approx(plain.losses, abs=0.05)
    assert exact.losses == pytest.approx(plain.losses, abs=1e-3)


def test_in_bf16_both_programs_take_the_same_first_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far closer than with master weights that start from rounded ones, which fall behind at once."""
    shape = Shape(4096, 64, 128, 2, 4, batch_size=8, warm=3, steps=4, stretch=1, log=1)
    data, start = micro_world_tokens(shape, str(tmp_path)), starting_model(shape)
    plain = time_plain(shape, data, copy.deepcopy(start), "cpu")
    variant = Variant("PyTorch's parts", attention="auto", kernels="sdpa", loss="full", optimizer="auto")

    def apart() -> float:
        ours = time_ours(shape, data, start, "cpu", variant)
        return max(abs(one - other) for one, other in zip(plain.losses, ours.losses, strict=True))

    assert apart() < 5e-4
    monkeypatch.setattr(alone, "keep_unrounded", lambda model: None)
    assert apart() > 1e-3


def test_in_fp32_both_programs_take_the_same_50_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To rounding; and one setting that differs a little is seen."""
    shape = replace(TINY, warm=10, lr=1e-3)
    data, start = micro_world_tokens(shape, str(tmp_path)), starting_model(shape)
    assert agreement(shape, data, start, "cpu", steps=50) < 1e-5
    for changed in ({"betas": (0.9, 0.96)}, {"weight_decay": 0.09}, {"eps": 1e-7}):
        monkeypatch.setattr(bench, "OptimizerSettings", partial(OptimizerSettings, **changed))
        assert agreement(shape, data, start, "cpu", steps=50) > 2e-5, changed


@pytest.mark.parametrize("module", [bench, large_step])
def test_the_full_shape_is_refused_without_a_gpu(
    module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before data or a model is made: the CPU would compute for hours without a word."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for begun in ("run", "make_model", "starting_model", "micro_world_tokens"):
        monkeypatch.setattr(module, begun, lambda *given: pytest.fail("it began"), raising=False)
    for more in ([], ["--out", "record.json"]):
        with pytest.raises(SystemExit, match="2"):
            module.main([*(["step"] if module is bench else []), *more])
        said = capsys.readouterr().err
        assert "the full shape needs a CUDA GPU, and PyTorch sees none here" in said
        assert "--tiny runs a small shape on the CPU" in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--only", "ours", "ourz"], "--only: must be among ['ours', "),
        (["--steps", "3"], "--steps: must be at least 4, got 3"),
        (["--batch-size", "0"], "--batch-size: must be at least 1, got 0"),
        (["--data", "none.tokens"], "--data: there is no token file 'none.tokens'"),
        (["--profile", "3"], "--profile: lists kernels of a CUDA GPU"),
    ],
)
def test_arguments_are_refused_before_anything_is_measured(
    given: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for begun in ("micro_world_tokens", "open_tokens"):
        monkeypatch.setattr(bench, begun, lambda *given: pytest.fail("it began"))
    with pytest.raises(SystemExit, match="2"):
        bench.main(["step", "--tiny", *given])
    assert message in capsys.readouterr().err


def test_the_folder_of_a_record_is_made_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results" / "gpu" / "record.json"

    def begin(*given: object) -> None:
        assert out.parent.is_dir()
        raise InterruptedError

    monkeypatch.setattr(bench, "micro_world_tokens", begin)
    with pytest.raises(InterruptedError):
        bench.main(["step", "--tiny", "--out", str(out)])


def test_grids_and_the_ladder() -> None:
    assert [label for label, _ in grid(["a+b=1+2,3+4", "c=5"])] == ["a=1 b=2 c=5", "a=3 b=4 c=5"]
    labels = [label.split(" @ ")[0] for label, _ in ladder()]
    assert list(dict.fromkeys(labels)) == [label for label, _ in LADDER]
    last = ladder()[-1][1]
    assert last.index("optimizer.kind='sgd'") < last.index("optimizer.kind='muon'")  # the later one holds


def test_a_ladder_at_other_rates() -> None:
    rates = rates_of(["muon=0.02,0.04"])
    assert rates == {"muon": (0.02, 0.04)}
    cases = ladder(rates)
    assert [label for label, _ in cases] == [
        f"{rung} @ {rate}" for rung in ("Muon", "linear to zero") for rate in ("0.02", "0.04")
    ]
    assert cases[0][1][-1] == "schedule.lr=0.02"
    assert cases[0][1][:-1] == next(each for label, each in ladder() if label == "Muon @ 0.01")[:-1]
    with pytest.raises(ArgumentError, match=r"rates: must be one of sgd, adamw, muon; got 'lion'"):
        rates_of(["lion=0.1"])
    with pytest.raises(ArgumentError, match=r"must be numbers after sgd=, got 'high'"):
        rates_of(["sgd=high"])
