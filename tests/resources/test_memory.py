"""Activations and the peak of training memory against what autograd keeps and a live count of bytes."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch

from lmlib.book.measure.reference import Reference, precision
from lmlib.book.measure.trackers import LiveBytes, saved_tensors
from lmlib.resources import memory as memory_module
from lmlib.resources import segments as segments_module
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
    remembered = (memory_module._played, segments_module._played)  # as played without one
    for each in remembered:
        each.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for each in remembered:
        each.cache_clear()


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


def _with(attention, mlp=LLAMA.layers[0].mlp, vocab=1000):
    return replace(LLAMA, layers=(Layer(attention, mlp),) * 3, vocab_size=vocab)


OTHERS = {
    "norms of queries and keys": _with(Attention(4, 2, 16, qk_norm="head")),
    "the same, wide heads": _with(Attention(4, 1, 32, qk_norm="head")),
    "the same, a small vocabulary": _with(Attention(4, 2, 16, qk_norm="head"), vocab=50),
    "relu and biases": _with(
        Attention(4, 2, 16, qkv_bias=True), MLP(256, gated=False, bias=True, activation="relu")
    ),
    "a bias of the head": replace(LLAMA, head_bias=True),
    "unequal layers": replace(
        LLAMA, layers=(Layer(Attention(4, 4, 16), MLP(64)), Layer(Attention(4, 2, 16), MLP(512)))
    ),
    "a small vocabulary": replace(LLAMA, vocab_size=50),  # the peak is in a layer
    "a small vocabulary, tied": replace(GPT, vocab_size=50),
}


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("attention", ["flash", "eager"])
@pytest.mark.parametrize("norm", ["fused", "manual"])
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", OTHERS)
def test_other_models(name, dtype, norm, attention, recompute):
    profile = Profile(precision=dtype, norm=norm, attention=attention, recompute=recompute, device="cpu")
    _compare(OTHERS[name], profile, BATCH, LENGTH)


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("attention", ["flash", "eager"])
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("heads", [2, 4])
def test_composite_norms_of_queries_and_keys(heads, dtype, attention, recompute):
    """They come out contiguous: with a key head for each query head, nothing is copied before attention."""
    model = _with(Attention(4, heads, 16, qk_norm="head"), vocab=50)
    profile = Profile(
        precision=dtype, norm="composite", attention=attention, recompute=recompute, device="cpu"
    )
    _compare(model, profile, BATCH, LENGTH)


SMALL = {  # with 50 words the peak is in a layer
    "groups": _with(Attention(4, 2, 16), vocab=50),
    "a key head for each query head": _with(Attention(4, 4, 16), vocab=50),
    "norms of queries and keys": _with(Attention(4, 4, 16, qk_norm="head"), vocab=50),
    "one key head, wide heads": _with(Attention(4, 1, 64), MLP(64), vocab=50),
    "one head, tied": replace(_with(Attention(1, 1, 32), MLP(32), vocab=50), tied=True),
    "learned positions": replace(GPT, vocab_size=50),
}


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("batch", [1, 2])  # one sequence: heads merge with the batch without a copy
@pytest.mark.parametrize("name", SMALL)
def test_peak_inside_a_layer_with_the_reference_kernel(name, batch, dtype, recompute):
    profile = Profile(precision=dtype, attention="math", recompute=recompute, device="cpu")
    _compare(SMALL[name], profile, batch, LENGTH)


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("attention", ["flash", "eager", "math"])
@pytest.mark.parametrize("norm", ["fused", "manual", "composite"])
@pytest.mark.parametrize("name", ["one key head, wide heads", "one head, tied"])
def test_peak_at_a_cast_under_autocast(name, norm, attention, recompute):
    """With few tokens, the order in which autograd undoes the casts of a product decides the peak."""
    profile = Profile(precision="autocast", norm=norm, attention=attention, recompute=recompute, device="cpu")
    _compare(SMALL[name], profile, 2, 16)


@pytest.mark.parametrize("recompute", ["none", "core_act"])
@pytest.mark.parametrize("attention", ["flash", "eager"])
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("qk_norm", ["none", "head"])
def test_one_head_is_a_view_and_not_copied(qk_norm, batch, dtype, attention, recompute):
    """Heads by tokens and tokens by heads are one order in memory where there is one head."""
    model = _with(Attention(1, 1, 64, qk_norm=qk_norm), MLP(64), vocab=50)
    profile = Profile(precision=dtype, attention=attention, recompute=recompute, device="cpu")
    _compare(model, profile, batch, LENGTH)


ADAMW, SGD = torch.optim.AdamW, torch.optim.SGD
OPTIMIZERS = {
    "foreach": (Optimizer(implementation="foreach"), partial(ADAMW, foreach=True)),
    "loop": (Optimizer(implementation="loop"), partial(ADAMW, foreach=False)),
    "sgd": (Optimizer("sgd"), partial(SGD, lr=0.1, foreach=False)),
    "momentum": (Optimizer("sgd", momentum=True), partial(SGD, lr=0.1, momentum=0.9, foreach=False)),
}
FUSED = partial(ADAMW, fused=True)


@pytest.mark.parametrize(("batch", "length"), [(1, 7), (2, 64)])  # the peak in the step, or in backward
@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("model", [LLAMA, GPT], ids=lambda model: model.name)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_peak_with_other_optimizers(kind, model, dtype, recompute, batch, length):
    optimizer, make = OPTIMIZERS[kind]
    profile = Profile(precision=dtype, recompute=recompute, device="cpu")
    _compare_peaks(model, profile, batch, length, optimizer, make)


@pytest.mark.parametrize("kind", ["first", "accumulation"])
@pytest.mark.parametrize(("batch", "length"), [(1, 7), (2, 64)])
@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("loss", "chunks"), [("fp32_ce", 1), ("chunked", 3), ("fused", 1)])
@pytest.mark.parametrize(
    "model", [LLAMA, GPT, replace(LLAMA, name="llama-tied", tied=True)], ids=lambda model: model.name
)
def test_peak_of_a_first_step_and_with_gradients_there(
    model, loss, chunks, dtype, recompute, batch, length, kind
):
    """Where gradients accumulate, those of a weight that is used twice are summed beside them first."""
    profile = Profile(precision=dtype, loss=loss, loss_chunks=chunks, recompute=recompute, device="cpu")
    optimizer = Optimizer(accumulation=kind == "accumulation")
    _compare_peaks(model, profile, batch, length, optimizer, FUSED, first_step=kind == "first")


def _compare(model, profile, batch, length):
    net = Reference(model, profile, length, "cpu")
    ids, targets = _batch(model, batch, length)
    with saved_tensors([*net.parameters(), *net.buffers()]) as saved, precision(profile, "cpu"):
        loss, logits = net(ids, targets)
    assert saved.nbytes == activations(model, profile, batch, length).total
    del loss, logits, saved
    _compare_peaks(model, profile, batch, length, Optimizer(), FUSED)


def _batch(model, batch, length):
    """Two calls: halves of one tensor would share a storage, which is kept whole."""
    shape = (batch, length)
    return torch.randint(0, model.vocab_size, shape), torch.randint(0, model.vocab_size, shape)


def _compare_peaks(model, profile, batch, length, described, make, first_step=False):
    net = Reference(model, profile, length, "cpu")
    ids, targets = _batch(model, batch, length)
    optimizer = make(net.parameters())

    def backward():
        with precision(profile, "cpu"):
            kept = net(ids, targets)
        kept[0].backward()
        return kept

    def step():
        kept = backward()
        optimizer.step()
        del kept

    if not first_step:
        step()
        optimizer.zero_grad()
    if described.accumulation:
        backward()
    there = [*net.parameters(), *net.buffers(), ids, targets]
    there += [tensor for entry in optimizer.state.values() for tensor in entry.values() if tensor is not None]
    there += [weight.grad for weight in net.parameters() if weight.grad is not None]
    with LiveBytes(there) as live:
        step()
    predicted = memory(model, profile, described, batch, length, first_step=first_step).peak
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
