"""DDP and FSDP2 over two processes: the loss curve of one process, at the same batch, and resuming."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmlib.resources.units import ArgumentError
from lmlib.training.__main__ import main
from lmlib.training.config import ParallelSettings
from lmlib.training.leaderboard import read_entry, verify
from lmlib.training.logs import read_lines
from lmlib.training.parallel import full_state, join

SMALL = [
    "data.train_bytes=60000",
    "data.val_bytes=5000",
    "tokenizer.vocab_size=300",
    "tokenizer.training_bytes=20000",
    "model.d_model=32",
    "model.n_layers=2",
    "model.n_heads=2",
    "trainer.batch_size=8",
    "trainer.context_length=32",
    "trainer.max_flops=none",
    "trainer.log_every=1",
    "optimizer.kind=adamw",
    "schedule.kind=constant",
    "schedule.warmup=0",
    "trainer.accumulate=2",
    "trainer.device=cpu",
]


def arguments(folder: Path, name: str, *more: str) -> list[str]:
    given = ["micro", "--data", str(folder / "data"), "--out", str(folder / name)]
    return given + [part for each in (*SMALL, *more) for part in ("--set", each)]


def torchrun(*given: str) -> str:
    """Two processes of a script, or of ``-m module``; gives what they print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, *given], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def train(folder: Path, name: str, *more: str, resume: bool = False) -> None:
    torchrun("-m", "lmlib.training", *arguments(folder, name, *more), *(["--resume"] if resume else []))


def curve(folder: Path, name: str) -> list[float]:
    return [row["loss"] for row in read_lines(folder / name / "log.jsonl") if "loss" in row]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    assert main(arguments(folder, "alone", "trainer.max_steps=8")) == 0
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_the_loss_curve_is_that_of_one_process(alone: Path, kind: str) -> None:
    """In one piece, and cut in two by a checkpoint."""
    chosen = f"parallel.kind={kind}"
    train(alone, kind, chosen, "trainer.max_steps=5")
    train(alone, kind, chosen, "trainer.max_steps=8", resume=True)
    assert curve(alone, kind) == pytest.approx(curve(alone, "alone"), abs=2e-5)
    rows = [
        [row["val_loss"] for row in read_lines(alone / name / "log.jsonl") if "val_loss" in row][-1]
        for name in ("alone", kind)
    ]
    assert rows[0] == pytest.approx(rows[1], abs=2e-5)
    if kind == "fsdp2":
        from safetensors.torch import load_file

        weights = full_state(alone / kind / "checkpoints" / "step-00000008")
        expected = load_file(alone / "alone" / "checkpoints" / "step-00000008" / "model.safetensors")
        assert all(torch.allclose(weights[name], each, atol=1e-5) for name, each in expected.items())


@pytest.mark.distributed
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_fsdp2_in_bf16(alone: Path, optimizer: str) -> None:
    """Shares stay fp32: a checkpoint holds what others keep as master weights. The curve is rounded."""
    chosen = ("precision=bf16", f"optimizer.kind={optimizer}", "schedule.lr=0.003")
    name = f"bf16-{optimizer}"
    assert main(arguments(alone, f"alone-{name}", *chosen, "trainer.max_steps=8")) == 0
    train(alone, name, *chosen, "parallel.kind=fsdp2", "trainer.max_steps=5")
    train(alone, name, *chosen, "parallel.kind=fsdp2", "trainer.max_steps=8", resume=True)
    losses = curve(alone, name)
    assert losses == pytest.approx(curve(alone, f"alone-{name}"), abs=1e-2)
    assert losses[-1] < losses[0] - 0.2
    weights = full_state(alone / name / "checkpoints" / "step-00000008")
    assert all(each.dtype == torch.float32 for each in weights.values())
    assert any(not torch.equal(each, each.bfloat16().float()) for each in weights.values())


UNEQUAL = """
import sys
import torch
import torch.distributed as dist
from lmlib.architecture import ModelConfig, TransformerLM
from lmlib.training.config import ParallelSettings
from lmlib.training.dataset import TokenData
from lmlib.training.optimizers import OptimizerSettings
from lmlib.training.parallel import join
from lmlib.training.schedules import Schedule
from lmlib.training.settings import TrainerSettings
from lmlib.training.trainer import Trainer

parallel = join(ParallelSettings("ddp"), "cpu")
torch.manual_seed(parallel.rank)
model = TransformerLM(ModelConfig(vocab_size=64, context_length=16, d_model=32, n_layers=1, n_heads=2))
data = TokenData.from_array(list(range(64)) * 5, vocab_size=64)
settings = TrainerSettings(batch_size=4, context_length=16, max_steps=2, device="cpu")
Trainer(
    model, OptimizerSettings(), Schedule("constant", 1e-3), data, None, settings,
    precision="bf16", wrap=parallel,
).fit()
for parameter in model.parameters():
    theirs = parameter.detach().clone()
    dist.broadcast(theirs, 0)
    assert torch.equal(theirs, parameter)
parallel.leave()
assert not dist.is_initialized()
"""


@pytest.mark.distributed
def test_processes_that_drew_different_weights_agree_on_those_of_the_first(tmp_path: Path) -> None:
    """The master weights too, which are not what DDP hands round."""
    script = tmp_path / "unequal.py"
    script.write_text(UNEQUAL, encoding="utf-8")
    torchrun(str(script))


@pytest.mark.distributed
def test_an_entry_of_two_processes(alone: Path) -> None:
    """Written and told of once, and the loss of its checkpoint is the entry's."""
    given = arguments(alone, "entry", "parallel.kind=ddp", "model.context_length=512")
    printed = torchrun("-m", "lmlib.training", "leaderboard", "--flops", "1e9", "--config", *given)
    assert printed.count("nats/token") == 1
    entry = read_entry(alone / "entry" / "entry.json")
    found = verify(alone / "entry" / "entry.json", data_folder=alone / "data")
    assert found == pytest.approx(entry["loss"], abs=1e-4)


def test_needs_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ArgumentError, match=r"parallel\.kind: 'ddp' needs several processes: torchrun"):
        join(ParallelSettings("ddp"))
