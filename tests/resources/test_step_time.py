"""Step time against published runs, a simulated pipeline, and its own parts."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlib.resources import MLP, ArgumentError, Attention, Layer, Model, load
from lmlib.resources.flops import training
from lmlib.resources.hardware import device
from lmlib.resources.layout import Divided, Layout
from lmlib.resources.step_time import stage_flops, step_time

H100, A100 = device("h100"), device("a100-80gb")
MODEL = Model("small", 64, 512, 128, (Layer(Attention(8, 4, 8), MLP(128)),) * 24, tied=False, norm="rmsnorm")


def test_one_rank_is_flops_over_what_it_reaches():
    step = step_time(MODEL, Layout(microbatches=3), H100, 2, 128, efficiency=0.5, mask="causal")
    flops = training(MODEL, 6, 128, mask="causal", count="hardware", kernel="flash").total
    assert float(step.seconds) == pytest.approx(float(flops) / (989.4e12 * 0.5))
    assert step.tokens == 3 * 2 * 128


@given(
    tp=st.sampled_from([1, 2, 4]),
    cp=st.sampled_from([1, 2]),
    pp=st.sampled_from([1, 2, 4]),
    recompute=st.sampled_from(["none", "core", "full"]),
    model=st.sampled_from([MODEL, load("llama-3-8b"), load("gemma-2-9b")]),
)
@settings(max_examples=40, deadline=None)
def test_the_ranks_of_all_stages_compute_the_whole_model(tp, cp, pp, recompute, model):
    layers = tuple(model.n_layers // pp + (index < model.n_layers % pp) for index in range(pp))
    divided = Divided(model, Layout(tp=tp, sp=tp > 1, cp=cp, pp=pp, chunk_layers=layers))
    stages = [
        stage_flops(divided, stage, 1, 128, mask="causal", recompute=recompute).total for stage in range(pp)
    ]
    whole = training(
        model, 1, 128, mask="causal", count="hardware", kernel="flash", recompute=recompute
    ).total
    assert sum(stages) * tp * cp == whole


def one_f_one_b(stages, microbatches, ahead, back):
    """When the last stage of a 1F1B pipeline is done, by playing it: each task waits for its inputs."""
    orders = []
    for stage in range(stages):
        warm = min(stages - stage - 1, microbatches)
        order = [("f", index) for index in range(warm)]
        for index in range(microbatches - warm):
            order += [("f", warm + index), ("b", index)]
        order += [("b", index) for index in range(microbatches - warm, microbatches)]
        orders.append(order)
    done: dict[tuple[str, int, int], int] = {}
    clock, place = [0] * stages, [0] * stages
    while any(place[stage] < len(orders[stage]) for stage in range(stages)):
        for stage in range(stages):
            while place[stage] < len(orders[stage]):
                kind, index = orders[stage][place[stage]]
                before = (kind, index, stage + (1 if kind == "b" else -1))
                if kind == "b" and stage == stages - 1:
                    before = ("f", index, stage)
                if kind == "f" and stage == 0:
                    ready = 0
                elif before in done:
                    ready = done[before]
                else:
                    break
                clock[stage] = max(clock[stage], ready) + (ahead if kind == "f" else back)
                done[kind, index, stage] = clock[stage]
                place[stage] += 1
    return max(clock)


@pytest.mark.parametrize(("pp", "microbatches"), [(2, 2), (2, 8), (4, 4), (4, 12), (8, 8), (8, 32)])
def test_arithmetic_and_bubble_are_what_a_played_pipeline_takes(pp, microbatches):
    layout = Layout(pp=pp, microbatches=microbatches)
    step = step_time(MODEL, layout, H100, 1, 128, efficiency=0.5, mask="causal")
    busy, bubble = step.ledger["arithmetic"].value, step.ledger["pipeline bubble"].value
    sent = step.ledger["sent for micro-batches, not hidden"].total
    played = Fraction(one_f_one_b(pp, microbatches, 1, 2), 3 * microbatches)
    assert float((busy + sent + bubble) / (busy + sent)) == pytest.approx(float(played))


def test_what_is_hidden_is_not_waited_for_and_never_more_than_there_is_arithmetic():
    layout = Layout(dp=8, zero=3)
    whole, half, none = (
        step_time(MODEL, layout, H100, 64, 128, efficiency=0.5, mask="causal", hidden={"dp": share})
        for share in (0, 0.5, 1)
    )
    sent = whole.ledger["sent once a step, not hidden"].total
    work = whole.ledger["arithmetic"].value
    assert sent < work
    assert float(whole.seconds - half.seconds) == pytest.approx(float(sent) / 2)
    assert float(none.seconds) == pytest.approx(float(work))
    slow = step_time(MODEL, layout, device("l4"), 1, 1, efficiency=1, mask="causal", hidden={"dp": 1})
    assert slow.ledger["sent once a step, not hidden"].total > 0
    assert float(slow.seconds) == pytest.approx(
        float(sum(term.value for term in slow.traffic.seconds(device("l4"))))
    )


def test_mfu_is_efficiency_less_what_is_waited_for():
    model = load("llama-3-8b")
    alone = step_time(model, Layout(), H100, 1, 8192, efficiency=0.6, mask="full", kernel="math")
    assert float(alone.mfu(model, 8192, H100, convention="megatron").value) == pytest.approx(0.6)
    piped = step_time(
        model, Layout(pp=4, microbatches=12), H100, 1, 8192, efficiency=0.6, mask="full", kernel="math"
    )
    assert float(piped.mfu(model, 8192, H100, convention="megatron").value) < 0.6 / 1.25


MEGATRON = [  # arXiv:2205.05198, tables 3 and 5: heads, width, layers, layout, micro-batch, seconds
    (96, 12288, 96, Layout(tp=8, sp=True, pp=8, vpp=3, microbatches=64), 13.75),
    (128, 20480, 105, Layout(tp=8, sp=True, pp=35, vpp=3, microbatches=280), 37.83),
    (160, 25600, 128, Layout(tp=8, sp=True, pp=64, microbatches=512), 71.49),
]


def megatron(heads, width, layers, layout, efficiency):
    attention = Attention(heads, heads, width // heads, qkv_bias=True, out_bias=True)
    block = Layer(attention, MLP(4 * width, gated=False, bias=True, activation="gelu"))
    model = Model("gpt", width, 51200, 2048, (block,) * layers, True, "layernorm", 2048)
    return step_time(
        model,
        layout,
        A100,
        1,
        2048,
        efficiency=efficiency,
        mask="full",
        kernel="math",
        recompute="core",
        latency=5e-6,
    )


@pytest.mark.parametrize(("heads", "width", "layers", "layout", "seconds"), MEGATRON)
def test_megatrons_iterations_within_a_tenth_by_one_efficiency(heads, width, layers, layout, seconds):
    """175B, 530B and 1T on 64 to 512 A100. The 0.68 was fitted to these three runs: no prediction.

    Known mismatch: its 22B, of width 6,144, needs about 0.5; with 0.68 it comes out more than 20 % too fast.
    Most of that is what is not a product, see ``test_kernel_time``.
    DeepSeek-V3's published MFU is not reached either, whose exchanges of experts are hidden. The interleaving
    (3 chunks a stage for 175B and 530B, none for 1T) is that of the paper's table 3.
    """
    ours = float(megatron(heads, width, layers, layout, 0.68).seconds)
    assert ours == pytest.approx(seconds, rel=0.1)


def test_without_bubble_and_communication_one_efficiency_would_not_fit():
    """What the layout adds is what brings the published runs together: the test above can fail."""
    ratios = []
    for heads, width, layers, layout, seconds in MEGATRON:
        ledger = megatron(heads, width, layers, layout, 0.68).ledger
        ratios.append(float(ledger["arithmetic"].value) / seconds)
    assert max(abs(ratio - 1) for ratio in ratios) > 0.1


def test_llama_405b_reaches_its_tflops_by_a_plausible_efficiency():
    """430 TFLOP/s a GPU on 8,192 H100 (arXiv:2407.21783, table 4): tp 8, pp 16, dp 64, 16M tokens.

    Assumed, not read in the report: one layer a chunk, none in the first and last, and sums of gradients all
    behind the backward pass. Then the published figure lies between efficiencies of 0.5 and 0.6.
    """
    model = load("llama-3-405b")
    layout = Layout(
        dp=64, zero=1, tp=8, sp=True, pp=16, vpp=8, microbatches=32, chunk_layers=(0, *(1,) * 126, 0)
    )
    reached = []
    for efficiency in (0.5, 0.6):
        step = step_time(
            model, layout, H100, 1, 8192, efficiency=efficiency, mask="full", latency=5e-6, hidden={"dp": 1}
        )
        assert step.tokens == 2**24
        reached.append(989.4 * float(step.mfu(model, 8192, H100, convention="megatron").value))
    assert reached[0] < 430 < reached[1], reached


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"efficiency": 0}, "efficiency"),
        ({"efficiency": 1.1}, "efficiency"),
        ({"hidden": {"dp": 2}}, "hidden"),
        ({"hidden": {"wires": 1}}, "hidden"),
        ({"latency": -1}, "latency"),
        ({"dtype": "int4"}, "dtype"),
    ],
)
def test_bad_input_is_refused(given, field):
    with pytest.raises(ArgumentError) as refused:
        step_time(MODEL, Layout(dp=2), H100, 1, 128, **{"efficiency": 0.5, "mask": "causal"} | given)
    assert refused.value.field == field
