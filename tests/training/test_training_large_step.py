"""The step of a model that fills a GPU, on a tiny one: the same step in every variant, and a record of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kernels.attention
from lmlib.architecture import TransformerLM
from lmlib.book.records import parse
from lmlib.training import large_step
from lmlib.training.large_step import (
    TINY,
    VARIANTS,
    Shape,
    arrange,
    backward,
    count_flops,
    kernel_seconds,
    kind_of,
    main,
    make_batch,
    make_model,
    make_optimizer,
    predict,
    step,
)

CPU = "cpu"


def test_the_model_is_the_courses() -> None:
    model = Shape().config().resources()
    with torch.device("meta"):
        made = TransformerLM(replace(Shape(), n_layers=1).config())
    shapes = {tuple(p.shape) for n, p in made.named_parameters() if ".mlp." in n}
    assert shapes == {(22_016, 4096), (4096, 11_008)}
    layer = 4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096
    assert sum(p.numel() for p in made.parameters()) == 2 * 151_936 * 4096 + layer + 4096
    assert len(model.layers) == 34
    assert Shape().tokens == 65_536


def test_made_in_place_in_bfloat16() -> None:
    model = make_model(TINY, CPU)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.rotary is not None
    assert model.rotary.rates.dtype == torch.float32
    spread = float(model.blocks[0].mlp.down_proj.weight.detach().float().std())
    assert spread == pytest.approx((2 * TINY.n_layers * TINY.d_ff) ** -0.5, rel=0.15)
    assert torch.get_default_dtype() == torch.float32


class Counter(TorchDispatchMode):
    """Counts how often PyTorch's own attention is computed; a result that is kept is not asked for here."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return func(*args, **(kwargs or {}))


def test_variants_agree_and_the_kept_result_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and every gradient; counted are calls of attention's forward, ours and PyTorch's."""
    model, batch = make_model(TINY, CPU), make_batch(TINY, CPU)
    launch, calls = kernels.attention.launch_forward, [0]

    def counted(*args: object) -> object:
        calls[0] += 1
        return launch(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels.attention, "launch_forward", counted)
    found = {}
    for variant in VARIANTS:
        arrange(model, variant)
        calls[0] = 0
        with Counter() as counter:
            loss = float(backward(model, batch))
        theirs, expected = counter.calls, TINY.n_layers * (1 if variant.keeps else 2)
        ours = variant.attention == "triton"
        assert (calls[0], theirs) == ((expected, 0) if ours else (0, expected)), variant.label
        found[variant.label] = loss, [p.grad.float() for p in model.parameters() if p.grad is not None]
    (loss, grads), *others = found.values()
    assert loss == pytest.approx(math.log(TINY.vocab_size), abs=0.1)
    assert len(grads) == len(list(model.parameters()))
    for other, theirs in others:
        assert other == pytest.approx(loss, abs=2e-3)
        for mine, their in zip(grads, theirs, strict=True):
            assert (mine - their).norm() <= 0.03 * mine.norm()


def test_the_loss_falls_on_a_fixed_batch() -> None:
    model, batch = make_model(TINY, CPU), make_batch(TINY, CPU)
    optimizer = make_optimizer(model, replace(TINY, lr=1e-2), "bfloat16")
    arrange(model, VARIANTS[1])
    losses = [float(step(model, optimizer, batch)) for _ in range(4)]
    assert losses[-1] < losses[0] - 0.1
    states = {t.dtype for state in optimizer.state.values() for t in state.values() if t.dim()}
    assert states == {torch.bfloat16}


def test_writes_a_record_and_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = large_step.arrange

    def breaks(model: TransformerLM, variant: large_step.Variant) -> None:
        if variant.label == "our attention" and len(model.blocks) > 1:
            raise torch.OutOfMemoryError("none left")
        plain(model, variant)

    monkeypatch.setattr(large_step, "arrange", breaks)
    monkeypatch.setattr(
        large_step, "VARIANTS", (VARIANTS[0], replace(VARIANTS[1], steps=1), replace(VARIANTS[2], steps=0))
    )
    main(["--tiny", "--out", str(tmp_path / "r.json"), "--commit", "abc", "--seconds", "600"])
    record = parse(json.loads((tmp_path / "r.json").read_text(encoding="utf-8")), "record")
    variants = record.about["variants"]
    assert "OutOfMemoryError: none left" in variants["our attention"]["failed"]
    assert "FAILED" in capsys.readouterr().out
    kept = variants["cuDNN attention, result kept"]
    assert kept["tokens_per_second"] == pytest.approx(TINY.tokens / kept["seconds"])
    assert record["cuDNN attention, result kept: step"].values == (kept["seconds"],)
    assert len(record["loss"].values) == 2 + 1 + 1 + 1  # with the steps under the profiler
    assert record.command == f"python -m lmlib.training.large_step --tiny --out {tmp_path / 'r.json'} " + (
        "--commit abc --seconds 600"
    )


def test_no_step_is_begun_that_would_end_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_step, "VARIANTS", VARIANTS[1:2])
    out = tmp_path / "a folder that is made" / "r.json"
    main(["--tiny", "--out", str(out), "--seconds", "0.001"])
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["samples"] == {}
    assert "would not be enough" in content["about"]["variants"]["cuDNN attention, result kept"]["stopped"]


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("layers", "-1", "must be at least 1, got -1"),
        ("layers", "0", "must be at least 1, got 0"),
        ("context", "0", "must be at least 1, got 0"),
        ("seconds", "nan", "must be positive and finite, got nan"),
        ("seconds", "-1", "must be positive and finite, got -1"),
        ("limit-gb", "0", "must be positive and finite, got 0"),
    ],
)
def test_numbers_that_no_run_can_have(
    name: str, given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--tiny", f"--{name}", given])
    assert f"--{name}: {said}" in capsys.readouterr().err


def test_predictions() -> None:
    """Parameters, moments and gradients are 8 bytes a parameter; a kept result is 2 bytes a value."""
    shape, (plain, kept, *_) = Shape(), VARIANTS
    small, large = predict(shape, plain, "bfloat16"), predict(shape, kept, "bfloat16")
    assert small["before the step"] == pytest.approx(6 * 8_125_698_048, rel=0.01)
    checkpoints = 34 * shape.tokens * shape.d_model * 2
    assert small["before the step"] + checkpoints < small["bytes"] < 100e9
    assert large["bytes"] - small["bytes"] == pytest.approx(checkpoints, rel=0.05)
    assert predict(shape, kept, "float32")["bytes"] < 141e9
    assert predict(shape, plain, "float32")["bytes"] - small["bytes"] == 4 * 8_125_698_048
    assert predict(replace(shape, n_layers=8), kept, "bfloat16")["bytes"] < 60e9


def test_flops() -> None:
    shape, (plain, kept, *_) = Shape(), VARIANTS
    tokens, d = shape.tokens, shape.d_model
    pairs = shape.batch_size * shape.n_heads * shape.context_length * (shape.context_length + 1) // 2
    attention = 34 * 4 * 128 * pairs
    matrices = 34 * (4 * d * d + 3 * d * shape.d_ff) + d * shape.vocab_size
    model = 3 * (2 * tokens * matrices + attention)
    assert count_flops(shape, plain)["model"] == model
    again = 34 * 2 * tokens * (4 * d * d + 2 * d * shape.d_ff)
    # Backward of attention: five products for two, seven in ours.
    assert count_flops(shape, plain)["hardware"] == model + again + attention + attention * 3 // 2
    assert count_flops(shape, kept)["hardware"] == model + again + attention // 2


def test_kernels_go_to_the_operation_that_launched_them() -> None:
    def event(name: str, parent: object, *kernels: tuple[str, float]) -> SimpleNamespace:
        made = [SimpleNamespace(name=kernel, duration=time) for kernel, time in kernels]
        return SimpleNamespace(name=name, cpu_parent=parent, kernels=made)

    loss = event("linear_cross_entropy_fused", None, ("_forward_kernel", 2e6))
    norm = event("autograd::engine::evaluate_function: rms_normBackward", None, ("_backward", 1e6))
    update = event("Optimizer.step#FusedAdamW.step", None, ("_foreach_add", 5e5), ("Optimizer.step#x", 9e6))
    product = event("aten::addmm", loss, ("nvjet", 4e6), ("nvjet", 4e6))
    kinds, each = kernel_seconds([loss, norm, update, product, event("aten::add", None, ("add", 1e6))])
    assert kinds == {
        "loss": 2.0,
        "norms": 1.0,
        "matrix products": 8.0,
        large_step.OTHER: 1.5,  # a marked range is no kernel
    }
    assert each["matrix products: nvjet"] == [8.0, 2]
    assert kind_of(["aten::empty", "GeneratedBackwardFor_lmlib_flash_attention_default"]) == "attention"
