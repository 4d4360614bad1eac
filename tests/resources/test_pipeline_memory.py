"""Peak memory by stage against the timeline of a lone rank, and against how layouts divide."""

import pytest

from lmlib.resources import ArgumentError, load
from lmlib.resources.layout import Layout
from lmlib.resources.memory import memory, peak
from lmlib.resources.optimizer import Optimizer
from lmlib.resources.parameters import parameters
from lmlib.resources.pipeline_memory import stage_peaks
from lmlib.resources.profile import Profile

KEPT, HELD = "kept activations of micro-batches in flight", Optimizer(master=True, accumulation=True)


@pytest.mark.parametrize("recompute", ["none", "core", "full"])
@pytest.mark.parametrize("name", ["llama-3-8b", "gemma-2-9b", "mixtral-8x7b", "deepseek-v2-lite", "gpt2"])
def test_one_stage_has_the_peak_of_the_timeline(name, recompute):
    """Up to the rounding of allocations, which only the timeline counts: less than 0.01 %."""
    model, profile = load(name), Profile(recompute=recompute)
    timeline = memory(model, profile, HELD, 1, 1024)
    (stage,) = stage_peaks(model, Layout(microbatches=4), profile, HELD, 1, 1024)
    assert stage.peak == pytest.approx(timeline.peak, rel=1e-4)
    assert stage.at == timeline.at.segment


@pytest.mark.parametrize("name", ["llama-3-8b", "deepseek-v3"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_the_peak_alone_is_that_of_the_timeline(name, zero):
    from lmlib.resources.memory import Shards

    shards = Shards(*((8 if zero >= stage else 1) for stage in (3, 2, 1)))
    model, profile, optimizer = load(name), Profile(recompute="full"), Optimizer(master=True)
    timeline = memory(model, profile, optimizer, 1, 1024, shards=shards)
    assert peak(model, profile, optimizer, 1, 1024, shards=shards) == timeline.peak


@pytest.mark.parametrize("first_step", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(accumulation=True),
        Optimizer(implementation="foreach"),  # whose copies make the update the peak
        Optimizer(kind="muon", gradients="fp32"),
        Optimizer(kind="sgd"),
    ],
    ids=["accumulation", "foreach", "muon", "sgd"],
)
@pytest.mark.parametrize("name", ["gpt2", "deepseek-v2-lite"])  # tied, and with layers of two kinds
def test_the_peak_alone_is_that_of_the_timeline_in_every_step(name, optimizer, device, first_step):
    from lmlib.resources.memory import Shards

    model, profile = load(name), Profile(device=device, loss="chunked")
    for shards in (Shards(), Shards(3, 5, 7, 2)):
        how = {"first_step": first_step, "shards": shards}
        timeline = memory(model, profile, optimizer, 1, 1000, **how)
        assert peak(model, profile, optimizer, 1, 1000, **how) == timeline.peak


def test_earlier_stages_hold_more_micro_batches_at_once():
    model, profile = load("llama-3-8b"), Profile()
    stages = stage_peaks(model, Layout(pp=4, microbatches=8), profile, HELD, 1, 1024)
    kept = [int(stage.ledger[KEPT].value) for stage in stages]
    layers = kept[2] // 2  # the third of four stages holds two
    assert kept[1] == 3 * layers
    assert kept[0] == 4 * layers  # the embedding keeps nothing but the batch
    few = stage_peaks(model, Layout(pp=4, microbatches=2), profile, HELD, 1, 1024)
    assert int(few[0].ledger[KEPT].value) < kept[0] / 1.9


def test_interleaving_holds_more():
    """(1 + (pp - 1) / (pp vpp)) times as much on the first stage: Narayanan et al. 2021, section 2.2."""
    model, profile = load("llama-3-8b"), Profile()
    plain, woven = (
        stage_peaks(model, Layout(pp=4, vpp=vpp, microbatches=32), profile, HELD, 1, 1024)[0]
        for vpp in (1, 4)
    )
    more = float(woven.ledger[KEPT].value / plain.ledger[KEPT].value)
    assert more == pytest.approx(1 + 3 / 16, abs=0.01)


def test_states_of_all_stages_are_those_of_the_model():
    model = load("llama-3-70b")
    stages = stage_peaks(model, Layout(pp=8, microbatches=8), Profile(), HELD, 1, 1024)
    held = sum(int(stage.ledger["parameters"].value) for stage in stages)
    assert held == 2 * int(parameters(model).total)
    assert sum(int(stage.ledger["optimizer state"].value) for stage in stages) == 6 * held


@pytest.mark.parametrize("ep", [2, 8, 64])
def test_experts_are_divided_and_the_rest_is_not(ep):
    model = load("deepseek-v3")
    whole, cut = (
        stage_peaks(model, Layout(dp=64, ep=ranks), Profile(recompute="full"), HELD, 1, 1024)[0].ledger
        for ranks in (1, ep)
    )
    experts = sum(3 * 256 * 2048 * 7168 for layer in model.layers if layer.mlp.__class__.__name__ == "MoE")
    assert whole["parameters"].value - cut["parameters"].value == 2 * (experts - experts // ep)


@pytest.mark.parametrize("ep", [2, 8])
def test_routed_tokens_are_as_many_without_dividing_experts(ep):
    """Even routing: the same activations are kept, and only gradients of own experts are made."""
    model = load("mixtral-8x7b")
    whole, cut = (
        stage_peaks(model, Layout(dp=8, ep=ranks), Profile(), HELD, 4, 4096)[0].ledger for ranks in (1, ep)
    )
    assert whole[KEPT].value == cut[KEPT].value


def test_tensor_parallelism_divides_states_and_activations():
    model = load("llama-3-8b")
    one, eight = (
        stage_peaks(model, Layout(tp=tp, sp=tp > 1, pp=2, microbatches=2), Profile(), HELD, 1, 1024)[0].peak
        for tp in (1, 8)
    )
    assert one / 8 < eight < one / 7


@pytest.mark.parametrize(
    ("layout", "profile", "length", "field"),
    [
        (Layout(cp=2), Profile(), 1024, "cp"),
        (Layout(dp=8, ep=8), Profile(precision="autocast"), 1024, "precision"),
        (Layout(tp=8, sp=True, etp=8), Profile(), 1023, "length"),
        (Layout(pp=3), Profile(), 1024, "pp"),
        (Layout(dp=7, ep=7), Profile(), 1024, "ep"),
    ],
)
def test_what_does_not_fit_is_refused(layout, profile, length, field):
    with pytest.raises(ArgumentError) as refused:
        stage_peaks(load("mixtral-8x7b"), layout, profile, HELD, 1, length)
    assert refused.value.field == field
