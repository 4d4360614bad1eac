"""Layouts: what ranks hold adds up to the whole, for every combination; bad layouts are refused."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmlib.resources import MLP, ArgumentError, Attention, Layer, Model, MoE, load
from lmlib.resources.layout import Divided, Layout, part, rank
from lmlib.resources.parameters import parameters

DENSE = Layer(Attention(8, 4, 6, qkv_bias=True, out_bias=True, qk_norm="head"), MLP(24, bias=True))
FUSED = Layer(Attention(8, 2, 6, qkv_bias=True, fused_qkv=True, sinks=True), MLP(48, gated=False))
EXPERTS = Layer(
    Attention(8, 8, 6, qk_norm="width"), MoE(8, 2, 16, shared_d_ff=8, shared_gate=True, bias=True)
)

models = st.builds(
    lambda layers, tied, norm, positions, bias, vocab: Model(
        "small", 20, vocab, 64, tuple(layers), tied, norm, positions, bias
    ),
    st.lists(st.sampled_from((DENSE, FUSED, EXPERTS)), min_size=4, max_size=4),
    st.booleans(),
    st.sampled_from(("rmsnorm", "layernorm")),
    st.sampled_from((0, 64)),
    st.booleans(),
    st.integers(90, 110),
)
layouts = st.builds(
    lambda dp, zero, tp, pipeline, cp, ep, etp: (dp, zero, tp, pipeline, cp, ep, etp),
    st.sampled_from((1, 2, 3)),
    st.integers(0, 3),
    st.sampled_from((1, 2, 4)),
    st.sampled_from(((1, 1, None), (2, 1, None), (2, 2, None), (4, 1, None), (2, 1, (1, 3)))),
    st.sampled_from((1, 2)),
    st.sampled_from((1, 2, 4)),
    st.sampled_from((1, 2)),
)


def built(model, sizes):
    dp, zero, tp, (pp, vpp, chunks), cp, ep, etp = sizes
    ep, etp = (ep, etp) if model.is_moe else (1, 1)
    assume(dp * cp * tp % (ep * etp) == 0)
    return Layout(dp, zero, tp, tp > 1, pp, vpp, cp, ep, etp, 4, chunks, replicate_kv=True)


@settings(max_examples=150, deadline=None)
@given(models, layouts)
def test_shares_add_up_to_the_model(model, sizes):
    """Copies of norms, routers, key/value heads and the tied matrix count once."""
    layout = built(model, sizes)
    divided = Divided(model, layout)
    whole = 0
    for number in range(layout.n_ranks):
        place = rank(layout, number)
        for share in divided.held(place):
            # Dense shares are repeated in each replica, those of experts in each expert replica.
            replicas = layout.expert_replicas if share.expert else layout.replicas
            whole += share.elements * 5040 // (share.copies * replicas)
            assert share.elements * 5040 % (share.copies * replicas) == 0
    assert whole == 5040 * parameters(model).total


@settings(max_examples=100, deadline=None)
@given(models, layouts)
def test_zero_cuts_exactly_what_replicas_hold_twice(model, sizes):
    """Over all ranks, what is cut adds up to one replica's, uneven cuts included; the rest to all of them."""
    layout = built(model, sizes)
    divided = Divided(model, layout)
    places = [rank(layout, number) for number in range(layout.n_ranks)]
    ledgers = [divided.state(p, parameter_bytes=2, gradient_bytes=4, optimizer_bytes=12) for p in places]
    for name, width, cut_from in (("parameters", 2, 3), ("gradients", 4, 2), ("optimizer", 12, 1)):
        found = sum(ledger[name].value for ledger in ledgers)
        cut = layout.zero >= cut_from
        expected = sum(
            width
            * sum(
                share.elements
                for share in divided.held(place)
                if not cut or (place.expert_replica if share.expert else place.replica) == 0
            )
            for place in places
        )
        assert found == expected


@given(st.integers(0, 10**6), st.integers(1, 64))
def test_part_is_exact_and_even(size, parts):
    cuts = [part(size, parts, index) for index in range(parts)]
    assert sum(cuts) == size
    assert max(cuts) - min(cuts) <= 1


@given(layouts)
def test_ranks_have_distinct_places(sizes):
    dp, zero, tp, (pp, vpp, _), cp, ep, etp = sizes
    assume(dp * cp * tp % (ep * etp) == 0)
    layout = Layout(dp, zero, tp, tp > 1, pp, vpp, cp, ep, etp, 4)
    places = [rank(layout, number) for number in range(layout.n_ranks)]
    assert len({(p.stage, p.dp, p.cp, p.tp) for p in places}) == layout.n_ranks
    assert len({(p.stage, p.expert_replica, p.ep, p.etp) for p in places}) == layout.n_ranks


def one_f_one_b(stages, microbatches):
    """Simulate the schedule with forward 1, backward 2: makespan, and most micro-batches alive a stage."""
    orders = []
    for stage in range(stages):
        warm = min(microbatches, stages - stage - 1)
        order = [("F", i) for i in range(warm)]
        for i in range(microbatches - warm):
            order += [("F", warm + i), ("B", i)]
        orders.append(order + [("B", i) for i in range(microbatches - warm, microbatches)])
    done, clock, alive, most = {}, [0] * stages, [0] * stages, [0] * stages
    while any(orders):
        for stage, order in enumerate(orders):
            while order:
                kind, i = order[0]
                needs = ("F", stage - 1, i) if kind == "F" else ("B", stage + 1, i)
                at_edge = stage == 0 if kind == "F" else stage == stages - 1
                if not at_edge and needs not in done:
                    break
                start = max(clock[stage], 0 if at_edge else done[needs])
                clock[stage] = done[kind, stage, i] = start + (1 if kind == "F" else 2)
                alive[stage] += 1 if kind == "F" else -1
                most[stage] = max(most[stage], alive[stage])
                order.pop(0)
    return max(clock), most


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 1), (2, 2), (4, 4), (4, 12), (8, 9), (8, 3)])
def test_bubble_and_micro_batches_in_flight_of_a_simulated_schedule(stages, microbatches):
    makespan, alive = one_f_one_b(stages, microbatches)
    layout = Layout(pp=stages, microbatches=microbatches)
    busy = 3 * microbatches
    assert makespan == busy * (1 + layout.bubble)
    assert alive == [layout.in_flight(stage) for stage in range(stages)]


def test_llama_3_405b_as_trained():
    """16,384 GPUs, tp 8, pp 16, dp 128 (arXiv:2407.21783, table 4), first and last stage a layer short."""
    layout = Layout(128, 1, 8, True, 16, microbatches=16, chunk_layers=(7, *(8,) * 14, 7))
    layout.check_ranks(16_384)
    rows = Divided(load("llama-3-405b"), layout).table()
    assert [row["layers"] for row in rows] == [7, *[8] * 14, 7]
    assert rows[0]["in_flight"] == 16


@pytest.mark.parametrize(
    ("sizes", "field"),
    [
        ({"tp": 3}, "tp"),
        ({"tp": 16}, "tp"),
        ({"pp": 5}, "pp"),
        ({"ep": 2, "dp": 2}, "ep"),
        ({"pp": 2, "chunk_layers": (30, 30)}, "chunk_layers"),
    ],
)
def test_a_model_that_does_not_divide_is_refused(sizes, field):
    with pytest.raises(ArgumentError) as refused:
        Divided(load("llama-3-8b"), Layout(**sizes))
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("sizes", "field"),
    [
        ({"dp": 0}, "dp"),
        ({"dp": True}, "dp"),
        ({"zero": 4}, "zero"),
        ({"sp": True}, "sp"),
        ({"vpp": 2}, "vpp"),
        ({"pp": 4, "vpp": 2, "microbatches": 6}, "microbatches"),
        ({"pp": 4, "vpp": 2, "microbatches": 8, "schedule": "gpipe"}, "schedule"),
        ({"schedule": "zb"}, "schedule"),
        ({"ep": 3, "dp": 4}, "ep"),
        ({"pp": 2, "chunk_layers": (1,)}, "chunk_layers"),
        ({"pp": 2, "chunk_layers": (-1, 33)}, "chunk_layers"),
        ({"pp": 2, "chunk_layers": (1.5, 30.5)}, "chunk_layers"),
        ({"tp": 2**17}, "tp"),
        ({"dp": -4}, "dp"),
        ({"cp": "2"}, "cp"),
        ({"microbatches": -1}, "microbatches"),
    ],
)
def test_contradictory_sizes_are_refused(sizes, field):
    with pytest.raises(ArgumentError) as refused:
        Layout(**sizes)
    assert refused.value.field == field


def test_number_of_devices_and_kv_policy():
    with pytest.raises(ArgumentError, match="dp \\* cp \\* tp \\* pp is 8, there are 16 devices"):
        Layout(dp=4, tp=2).check_ranks(16)
    with pytest.raises(ArgumentError, match="replicate_kv copies them"):
        Divided(load("llama-3-8b"), Layout(tp=16))
    copied = Layout(tp=16, replicate_kv=True)
    assert Divided(load("llama-3-8b"), copied).parameters(rank(copied, 0))[0] > 8_030_261_248 // 16
    with pytest.raises(ArgumentError, match="sp"):
        Divided(load("mixtral-8x7b"), replace(Layout(tp=2), sp=False))
