"""Activations and the peak of training memory against what autograd keeps and a live count of bytes."""

import itertools
from dataclasses import replace

import pytest
import torch

from lmlib.book.measure.reference import Reference, precision
from lmlib.book.measure.trackers import LiveBytes, saved_tensors
from lmlib.resources.activations import activations
from lmlib.resources.memory import memory
from lmlib.resources.model import MLP, Attention, Layer, Model
from lmlib.resources.optimizer import Optimizer
from lmlib.resources.presets import load
from lmlib.resources.profile import Profile
from lmlib.resources.tape import Run

BATCH, LENGTH = 2, 64
LLAMA = Model("llama", 64, 1000, LENGTH, (Layer(Attention(4, 2, 16), MLP(176)),) * 3, False)
GPT = Model(
    "gpt",
    64,
    1000,
    LENGTH,
    (
        Layer(
            Attention(4, 4, 16, qkv_bias=True, out_bias=True, fused_qkv=True),
            MLP(256, gated=False, bias=True, activation="gelu_tanh"),
        ),
    )
    * 3,
    True,
    norm="layernorm",
    learned_positions=LENGTH,
)
PRECISIONS = ("bf16", "autocast", "fp32")
RECOMPUTE = ("none", "core", "core_act", "full")


def _profiles():
    for dtype, norm, attention, recompute in itertools.product(
        PRECISIONS, ("fused", "manual", "composite"), ("flash", "eager", "math"), RECOMPUTE
    ):
        if norm == "fused" or attention == "flash" or recompute in ("none", "full"):
            yield (
                LLAMA,
                Profile(precision=dtype, norm=norm, attention=attention, recompute=recompute, device="cpu"),
            )
    for dtype, attention, recompute, dropout in itertools.product(
        PRECISIONS, ("flash", "eager", "math"), RECOMPUTE, (False, True)
    ):
        if not (attention == "math" and dropout):
            yield (
                GPT,
                Profile(
                    precision=dtype, attention=attention, recompute=recompute, dropout=dropout, device="cpu"
                ),
            )
    for model, dtype, (loss, holds), recompute in itertools.product(
        (LLAMA, GPT),
        PRECISIONS,
        (("fp32_ce", False), ("fp32_ce", True), ("chunked", False), ("fused", False)),
        ("none", "full"),
    ):
        yield (
            model,
            Profile(
                precision=dtype,
                loss=loss,
                recompute=recompute,
                holds_logits=holds,
                loss_chunks=4,
                device="cpu",
            ),
        )


def _name(value):
    if isinstance(value, Model):
        return value.name
    parts = [value.precision, value.norm, value.attention, value.recompute, value.loss]
    return "-".join([*parts, *["dropout"] * value.dropout, *["held"] * value.holds_logits])


@pytest.fixture(autouse=True)
def _as_under_a_dispatch_mode(monkeypatch):
    """The byte tracker is a dispatch mode, under which autograd adds gradients into a new tensor."""
    monkeypatch.setattr(Run, "sums_in_place", False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("model", "profile"), list(_profiles()), ids=_name)
def test_saved_bytes_and_peak(model, profile):
    _compare(model, profile, BATCH, LENGTH)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("batch", "length"), [(2, 64), (3, 37)])  # 111 tokens leave a short last chunk
@pytest.mark.parametrize("chunks", [1, 2, 3, 7, 64])
@pytest.mark.parametrize(
    "model",
    [LLAMA, GPT, replace(LLAMA, name="llama-tied", tied=True), replace(GPT, name="gpt-untied", tied=False)],
    ids=lambda model: model.name,
)
def test_peak_with_a_loss_in_chunks(model, chunks, batch, length, dtype, recompute):
    profile = Profile(precision=dtype, loss="chunked", loss_chunks=chunks, recompute=recompute, device="cpu")
    _compare(model, profile, batch, length)


def _compare(model, profile, batch, length):
    net = Reference(model, profile, length, "cpu")
    # Two calls: halves of one tensor would share a storage, which is kept whole.
    ids = torch.randint(0, model.vocab_size, (batch, length))
    targets = torch.randint(0, model.vocab_size, (batch, length))
    state = [*net.parameters(), *net.buffers()]
    with saved_tensors(state) as saved, precision(profile, "cpu"):
        loss, logits = net(ids, targets)
    assert saved.nbytes == activations(model, profile, batch, length).total
    del loss, logits, saved

    optimizer = torch.optim.AdamW(net.parameters(), fused=True)

    def step():
        with precision(profile, "cpu"):
            kept = net(ids, targets)
        kept[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    moments = [tensor for entry in optimizer.state.values() for tensor in entry.values()]
    with LiveBytes([*state, *moments, ids, targets]) as live:
        step()
    predicted = memory(model, profile, Optimizer(), batch, length).peak
    assert predicted == pytest.approx(live.peak, rel=0.001)


@pytest.mark.parametrize("name", ["llama3-8b", "llama3-70b"])
def test_saved_bytes_of_full_size_on_the_meta_device(name):
    model, profile, length = load(name), Profile(precision="bf16"), 8192
    net = Reference(model, profile, length, "meta")
    ids, targets = torch.zeros(2, 1, length, dtype=torch.long, device="meta")
    with saved_tensors([*net.parameters(), *net.buffers()]) as saved, precision(profile, "meta"):
        kept = net(ids, targets)
    assert activations(model, profile, 1, length).total == pytest.approx(saved.nbytes, rel=0.001)
    del kept
