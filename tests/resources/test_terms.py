"""Every figure explains itself: name, formula, numbers, value and source, and the terms add up."""

import pytest

from lmlib.resources import PRESETS, ArgumentError, load
from lmlib.resources import roofline as ops
from lmlib.resources.activations import activations
from lmlib.resources.communication import RINGS, communication
from lmlib.resources.cost import cost
from lmlib.resources.flops import RECOMPUTE, departures, forward, training
from lmlib.resources.hardware import device
from lmlib.resources.kernel_time import Kernels
from lmlib.resources.kv_cache import cache, per_token
from lmlib.resources.layout import Divided, Layout, part, rank
from lmlib.resources.ledger import Ledger, Term, evaluate
from lmlib.resources.memory import memory, surroundings
from lmlib.resources.optimizer import Optimizer
from lmlib.resources.parameters import active, buffers, non_embedding, parameters
from lmlib.resources.pipeline_memory import stage_peaks
from lmlib.resources.planning import plans
from lmlib.resources.profile import Profile
from lmlib.resources.serving import decode, largest_batch, prefill, room, weights_read
from lmlib.resources.step_time import step_time
from lmlib.resources.timing import CONVENTIONS, hfu, mfu, model_flops, run_time, utilisation

H100, LENGTH = device("h100"), 512
RECIPES = [
    (Profile(), Optimizer(master=True)),
    (Profile(recompute="full", loss="chunked"), Optimizer(accumulation=True)),
    (Profile(precision="autocast", device="cpu", recompute="core"), Optimizer()),
    (Profile(precision="fp32"), Optimizer(kind="muon")),
]


def of(model):
    """All that can be asked about a model by itself."""
    yield from (parameters(model), non_embedding(model), buffers(model))
    for embedding in (False, True):
        for head in (False, True):
            yield active(model, count_embedding=embedding, count_head=head)
    for mask in ("full", "half", "causal"):
        yield from (forward(model, 2, LENGTH, mask=mask), departures(model, 2, LENGTH, mask=mask))
        for recompute in RECOMPUTE:
            options = {"mask": mask, "recompute": recompute, "kernel": "flash"}
            yield training(model, 2, LENGTH, count="hardware", **options)
            yield hfu(model, 10_000, LENGTH, H100, **options)
    for convention in CONVENTIONS:
        yield model_flops(model, 2, LENGTH, convention=convention)
        yield mfu(model, 10_000, LENGTH, H100, 8, convention=convention)
        run = run_time(model, 10**12, LENGTH, H100, 1024, utilisation=0.4, convention=convention)
        yield from (run.flops, run.seconds, run.days, run.tokens_per_second)
    for dtype in ("bf16", "fp8"):
        yield from (per_token(model, dtype), cache(model, LENGTH, 4, dtype), weights_read(model, 7, dtype))
    yield from (room(model, H100, 64, reserved=10**9), largest_batch(model, H100, LENGTH, 64))
    for bound in (decode(model, H100, 4, LENGTH, 8), prefill(model, H100, LENGTH, 2, 8)):
        yield from (bound.products, bound.weights, bound.attention, bound.cache, bound.seconds)
        yield bound.tokens_per_second


def of_memory(model):
    """Activations and the timeline of several recipes; of one that a model cannot have, nothing."""
    for profile, optimizer in RECIPES:
        yield activations(model, profile, 2, LENGTH)
        for first_step in (False, True):
            timeline = memory(model, profile, optimizer, 2, LENGTH, first_step=first_step)
            yield from (timeline.standing, timeline.alive)
            assert timeline.alive.total == timeline.peak
        yield from surroundings(model, profile, 2, LENGTH)


def of_layout(model):
    """States, peaks, exchanges and steps of layouts that fit the model."""
    pp = 2
    chunks = tuple(part(model.n_layers, pp, index) for index in range(pp))
    tp = 2 if all(layer.attention.n_kv_heads % 2 == 0 for layer in model.layers) else 1
    ep = 2 if model.is_moe else 1
    for zero in (0, 1, 3):
        layout = Layout(
            dp=4, zero=zero, tp=tp, sp=tp > 1, pp=pp, cp=2, ep=ep, microbatches=4, chunk_layers=chunks
        )
        divided = Divided(model, layout)
        for stage in range(pp):
            yield divided.state(rank(layout, stage * layout.n_ranks // pp))
            for ring in RINGS:
                traffic = communication(model, layout, 1, LENGTH, stage=stage, ring=ring, recompute="full")
                yield from (traffic.ledger(), traffic.seconds(H100, 1e-5))
        step = step_time(model, layout, H100, 1, LENGTH, efficiency=0.5, mask="causal", hidden={"dp": 0.9})
        yield from (step.ledger, step.flops, step.tokens_per_second)
        for kernel in ("flash", "math"):
            options = {"mask": "full", "kernel": kernel, "recompute": "core"}
            yield step_time(model, layout, H100, 1, LENGTH, efficiency=Kernels(0.7, True), **options).ledger
        yield step.mfu(model, LENGTH, H100, convention="causal")
        alone = Layout(dp=4, zero=zero, tp=tp, sp=tp > 1, pp=pp, ep=ep, microbatches=4, chunk_layers=chunks)
        for each in stage_peaks(model, alone, Profile(), Optimizer(master=True), 1, LENGTH):
            yield each.ledger


def without_a_model():
    for operation in (
        ops.matmul(64, 128, 256),
        ops.attention(2, 8, 2, 64, 128, 16, mask="causal"),
        ops.attention(2, 8, 2, 64, 128, 16, mask="full", kernel="math"),
        ops.norm(64, 128),
        ops.elementwise(1000, inputs=2),
    ):
        yield from (operation.flops, operation.moved, operation.intensity)
        roof = ops.roofline(operation, H100)
        yield from (roof.compute, roof.memory, roof.ridge, roof.seconds, roof.reached)
    yield utilisation(10**15, 10, H100, 8)
    spent = cost(10**6, H100, 1024, price_per_hour=2, price_per_kwh=0.1)
    yield from (spent.device_hours, spent.money, spent.energy, spent.electricity)
    for plan in plans(1e23):
        yield from (plan.parameters, plan.tokens, plan.ratio)


def check(found):
    """One term, or a ledger and all below it."""
    if isinstance(found, Ledger):
        assert found.name
        for values in ([entry.value for entry in found], [term.value for _, term in found.terms()]):
            exact = not any(isinstance(value, float) for value in values)
            assert found.total == (sum(values) if exact else pytest.approx(sum(values), rel=1e-12))
        for entry in found:
            check(entry)
        return
    assert isinstance(found, Term)
    for field in ("name", "formula", "numbers", "unit", "source"):
        assert getattr(found, field).strip(), (field, found)
    value = evaluate(found.numbers)
    if isinstance(found.value, float) or isinstance(value, float):
        assert float(value) == pytest.approx(float(found.value), rel=1e-9), found
    else:
        assert value == found.value, found


@pytest.mark.parametrize("kind", [of, of_memory, of_layout], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", PRESETS)
def test_every_term_of_every_preset(name, kind):
    count = 0
    for found in kind(load(name)):
        check(found)
        count += 1
    assert count > 10


def test_every_term_of_what_needs_no_model():
    for found in without_a_model():
        check(found)


def test_a_term_without_a_source_is_noticed():
    with pytest.raises(AssertionError, match="source"):
        check(Term("a", "x", "1", 1, "bytes"))
    with pytest.raises(AssertionError):
        check(Term("a", "x", "2", 1, "bytes", "somewhere"))
    with pytest.raises(ArgumentError):
        check(Term("a", "x", "not a number", 1, "bytes", "somewhere"))
