"""Checkpoints: whole or absent, refused when damaged or another run's, and resumed to the bit."""

import copy
import errno
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlib.architecture import ModelConfig, TransformerLM
from lmlib.training import checkpoint as checkpoint_module
from lmlib.training import tensors as tensors_module
from lmlib.training.checkpoint import MANIFEST, CheckpointError, CheckpointFolder
from lmlib.training.dataset import TokenData
from lmlib.training.optimizers import OptimizerSettings
from lmlib.training.schedules import Schedule
from lmlib.training.settings import TrainerSettings
from lmlib.training.state import pack_optimizer, random_state, set_random_state, unpack_optimizer
from lmlib.training.tensors import write_tensors
from lmlib.training.trainer import Trainer

CONFIG = ModelConfig(vocab_size=32, context_length=16, d_model=16, n_layers=2, n_heads=2)
DATA = TokenData.from_array(np.random.default_rng(0).integers(0, 32, 2000), vocab_size=32)


class _Losses:
    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def log(self, step: int, values: dict[str, float]) -> None:
        if "loss" in values:
            self.by_step[step] = values["loss"]


def _trainer(
    folder: Path | None,
    steps: int = 20,
    *,
    config: ModelConfig = CONFIG,
    kind: str = "adamw",
    policy: str = "fp32",
    seed: int = 0,
    losses: _Losses | None = None,
    **options: Any,
) -> Trainer:
    torch.manual_seed(5)
    limits = TrainerSettings(
        batch_size=4,
        context_length=16,
        max_steps=steps,
        device="cpu",
        seed=seed,
        **{"log_every": 1, "save_every": 5, "keep_last": 3, **options},
    )
    return Trainer(
        TransformerLM(config),
        OptimizerSettings(kind),
        Schedule(peak=1e-2, total=20, warmup=3),
        DATA,
        DATA,
        limits,
        [] if losses is None else [losses],
        policy,
        folder=folder,
    )


def _same_state(a: Trainer, b: Trainer) -> bool:
    left, right = (pack_optimizer(each.optimizer.state_dict())[0] for each in (a, b))
    models = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return (
        left.keys() == right.keys()
        and all(torch.equal(left[name], right[name]) for name in left)
        and all(torch.equal(*pair) for pair in models)
    )


# -- the format ----------------------------------------------------------------------------------------------


def test_tensors_read_as_safetensors(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4),
        "transposed": torch.randn(3, 4).T,
        "bf16": torch.randn(5).bfloat16(),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "ids": torch.arange(5),
        "mask": torch.tensor([True, False, True]),
    }
    write_tensors(tmp_path / "x.safetensors", tensors)
    read = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    with pytest.raises(ValueError, match=r"tensors: c is torch\.complex64"):
        write_tensors(tmp_path / "y.safetensors", {"c": torch.ones(2, dtype=torch.complex64)})


@pytest.mark.parametrize("kind", ["adamw", "torch"])
def test_optimizer_state_survives_json(kind: str) -> None:
    weights = [torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(2))]
    maker = torch.optim.AdamW if kind == "torch" else OptimizerSettings()._make
    optimizer = maker([{"params": weights, "lr": 0.1}])
    weights[0].grad = torch.ones(3)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    tensors, values = pack_optimizer(state)
    restored = unpack_optimizer(tensors, json.loads(json.dumps(values)))
    assert restored["param_groups"] == state["param_groups"]
    assert restored["state"].keys() == state["state"].keys()
    for name, value in state["state"][0].items():
        assert torch.equal(torch.as_tensor(restored["state"][0][name]), torch.as_tensor(value))


def test_random_generators_go_on_where_they_were() -> None:
    def draw() -> tuple[float, float, float, float]:
        return random.random(), random.gauss(), float(np.random.randn()), float(torch.rand(()))

    draw()
    saved = json.loads(json.dumps(random_state()))
    first = draw()
    assert draw() != first
    set_random_state(saved)
    assert draw() == first


# -- resuming ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "policy", "options"),
    [
        ("adamw", "fp32", {}),
        ("adamw", "bf16", {"accumulate": 2}),
        ("muon", "bf16-autocast", {"sampling": "epochs"}),
        ("sgd", "fp16-autocast", {"log_every": 4, "eval_every": 6, "eval_tokens": 50}),
    ],
)
def test_resumes_to_the_bit(tmp_path: Path, kind: str, policy: str, options: dict[str, Any]) -> None:
    whole, parts = _Losses(), _Losses()
    straight = _trainer(None, kind=kind, policy=policy, losses=whole, **options)
    straight.fit()
    _trainer(tmp_path, 7, kind=kind, policy=policy, losses=parts, **options).fit()
    for stop in (13, 20):
        trainer = _trainer(tmp_path, stop, kind=kind, policy=policy, losses=parts, **options)
        torch.rand(3)  # whatever else has happened in this process
        assert trainer.resume() > 0
        trainer.fit()
    assert _same_state(straight, trainer)
    kept = {step: loss for step, loss in parts.by_step.items() if step in whole.by_step}
    assert kept == whole.by_step
    assert trainer.tokens == straight.tokens == 20 * 4 * 16


def test_a_tied_model_and_a_mixture_resume(tmp_path: Path) -> None:
    from lmlib.architecture.config import MoEConfig

    config = CONFIG.replace(tied=True, moe=MoEConfig(n_experts=3, top_k=2, d_ff=8, balance="bias"))
    straight = _trainer(None, 10, config=config)
    straight.fit()
    _trainer(tmp_path, 5, config=config).fit()
    trainer = _trainer(tmp_path, 10, config=config)
    assert trainer.resume() == 5
    trainer.fit()
    assert _same_state(straight, trainer)


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert _trainer(tmp_path / "new").resume() == 0
    with pytest.raises(ValueError, match="folder"):
        _trainer(None).resume()
    with pytest.raises(ValueError, match="folder"):
        _trainer(None).save()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": CONFIG.replace(d_ff=48)}, "model.d_ff was 64 and is 48"),
        ({"seed": 3}, "seed was 0 and is 3"),
        ({"kind": "sgd"}, "optimizer was 'AdamW' and is 'SGD'"),
        ({"policy": "bf16"}, "precision was 'fp32' and is 'bf16'"),
        ({"sampling": "epochs"}, "sampling was 'replacement' and is 'epochs'"),
    ],
)
def test_another_runs_checkpoint_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    _trainer(tmp_path, 5, config=CONFIG.replace(d_ff=64)).fit()
    trainer = _trainer(tmp_path, 10, **{"config": CONFIG.replace(d_ff=64), **change})
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(CheckpointError, match="is of another run") as caught:
        trainer.resume()
    assert named in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_other_data_are_refused(tmp_path: Path) -> None:
    _trainer(tmp_path, 5).fit()
    trainer = _trainer(tmp_path, 10)
    trainer.train_data = TokenData.from_array(DATA.ids[::-1].copy(), vocab_size=32)
    with pytest.raises(CheckpointError, match="data was"):
        trainer.resume()


# -- damage --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    _trainer(folder, 10).fit()
    return folder


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_damage_to_any_file_is_found(saved: Path, data: st.DataObject) -> None:
    """One byte changed, cut, or added, anywhere: the newest that verifies is then the one before."""
    newest = saved / "step-00000010"
    file = data.draw(st.sampled_from(sorted(newest.iterdir())), label="file")
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1), label="place")
    how = data.draw(st.sampled_from(["flip", "cut", "add", "remove"]), label="how")
    damaged = bytearray(content)
    if how == "flip":
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del damaged[place:]
    elif how == "add":
        damaged.insert(place, 0x41)
    try:
        file.unlink() if how == "remove" else file.write_bytes(damaged)
        folder = CheckpointFolder(saved)
        assert folder.newest() == 5
        with pytest.raises(CheckpointError, match=r"damaged|not the manifest|version|there is no checkpoint"):
            folder.verify(10)
    finally:
        file.write_bytes(content)
    assert CheckpointFolder(saved).newest() == 10


def test_resumes_from_the_one_before_a_damaged_one(tmp_path: Path) -> None:
    straight = _trainer(None, 20)
    straight.fit()
    _trainer(tmp_path, 10).fit()
    (tmp_path / "step-00000010" / "model.safetensors").write_bytes(b"")
    trainer = _trainer(tmp_path, 20)
    assert trainer.resume() == 5
    trainer.fit()
    assert _same_state(straight, trainer)
    assert CheckpointFolder(tmp_path).verify(10)  # written anew in passing


def test_only_damaged_ones_are_an_error_that_lists_them(tmp_path: Path) -> None:
    _trainer(tmp_path, 10).fit()
    for folder in tmp_path.iterdir():
        (folder / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used: .*step 10.*step 5"):
        _trainer(tmp_path, 20).resume()
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 .* steps there: 5, 10"):
        _trainer(tmp_path, 20).resume(step=7)


# -- a full disk ---------------------------------------------------------------------------------------------


class _FullDisk:
    """Stands for ``open`` in a module: files opened for writing take ``room`` bytes and then refuse."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, path: Path, mode: str) -> Any:
        file, disk = Path(path).open(mode), self  # noqa: SIM115

        class Writer:
            def __enter__(self) -> "Writer":
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, data: Any) -> None:
                size = memoryview(data).nbytes
                if size > disk.room:
                    file.write(memoryview(data).cast("B")[: disk.room])
                    raise OSError(errno.ENOSPC, "No space left on device")
                disk.room -= size
                file.write(data)

        return Writer()


@pytest.mark.parametrize("room", [0, 100, 20_000, 60_000])
def test_a_full_disk_is_reported_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    trainer = _trainer(tmp_path, 20)
    while trainer.step < 5:
        trainer._advance()
    trainer.save()
    trainer._advance()
    monkeypatch.setattr(tensors_module, "open", _FullDisk(room), raising=False)
    with pytest.raises(CheckpointError) as caught:
        trainer.fit()
    assert caught.value.__cause__ is not None
    assert "No space left on device; the checkpoint of step 5 is still there" in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000005"]
    monkeypatch.undo()
    assert _trainer(tmp_path, 20).resume() == 5


@pytest.mark.parametrize("moment", ["fsync", "mkdir", "rename"])
def test_errors_at_other_moments_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    trainer = _trainer(tmp_path, 20)
    trainer._advance()
    trainer.save()
    trainer._advance()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "fsync":
        monkeypatch.setattr(checkpoint_module.os, "fsync", refuse)
    else:
        monkeypatch.setattr(Path, moment, refuse)
    with pytest.raises(CheckpointError, match="No space left on device; the checkpoint of step 1 is still"):
        trainer.save()
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]
    assert CheckpointFolder(tmp_path).newest() == 1


def test_a_real_full_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")

    def full(path: Path, mode: str) -> Any:
        return Path("/dev/full").open("wb")

    monkeypatch.setattr(tensors_module, "open", full, raising=False)
    trainer = _trainer(tmp_path, 20)
    trainer._advance()
    with pytest.raises(CheckpointError, match="No space left on device; there is no earlier one"):
        trainer.save()


# -- which ones stay -----------------------------------------------------------------------------------------


def _write(folder: CheckpointFolder, step: int, metric: float | None = None) -> None:
    with folder.staging(step, {"step": step}, metric) as path:
        (path / "tensors").write_bytes(bytes([step]))


def test_the_last_and_the_best_stay(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=2)
    for step, metric in enumerate([5.0, 3.0, None, 4.0, 3.5, 6.0], 1):
        _write(folder, step, metric)
    assert folder.steps() == [2, 5, 6]
    assert folder.best() == 2
    assert folder.state(6) == {"step": 6}
    plain = CheckpointFolder(tmp_path, keep_last=1, keep_best=False)
    _write(plain, 7)
    assert plain.steps() == [7]
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000007"]


def test_leftovers_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    _write(folder, 1)
    partial = folder.begin(2)
    (partial / "half").write_bytes(b"1234")
    shutil.copytree(folder.place(1), tmp_path / ".removed-00000000")
    assert folder.steps() == [1]
    assert folder.newest() == 1
    _write(folder, 2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)

    def fail() -> None:
        with folder.staging(1, {}) as path:
            (path / "half").write_bytes(b"1234")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="keep_last: must be from 1"):
        CheckpointFolder(tmp_path, keep_last=0)
