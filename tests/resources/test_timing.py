"""Utilisation, time and cost of runs: inverses of one another, units, and what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlib.resources import ArgumentError, load
from lmlib.resources.cost import cost
from lmlib.resources.flops import training
from lmlib.resources.hardware import device
from lmlib.resources.parameters import active, parameters
from lmlib.resources.timing import CONVENTIONS, hfu, mfu, model_flops, run_time, utilisation

H100, LLAMA = device("h100"), load("llama-3-8b")


@pytest.mark.parametrize("name", ["llama-3-8b", "deepseek-v3", "gemma-2-9b", "gpt2"])
def test_conventions_are_what_their_formulas_say(name):
    model = load(name)
    n = int(active(model, count_embedding=True, count_head=True).total)
    length = 1024
    heads = sum(
        layer.attention.n_heads * (layer.attention.query_dim + layer.attention.value_dim) / 2
        for layer in model.layers
    )
    by = {each: float(model_flops(model, 2, length, convention=each).total) for each in CONVENTIONS}
    assert by["6nd"] == 6 * n * 2 * length
    assert by["palm"] == pytest.approx(by["6nd"] + 12 * heads * length * 2 * length)
    assert by["megatron"] == float(training(model, 2, length, mask="full").total)
    assert by["megatron"] - by["causal"] == pytest.approx((by["palm"] - by["6nd"]) / 2)


@given(st.integers(10**6, 10**13), st.integers(1, 10**5), st.floats(0.01, 1), st.sampled_from(CONVENTIONS))
@settings(max_examples=40, deadline=None)
def test_a_run_at_some_mfu_has_that_mfu(tokens, n_devices, share, convention):
    run = run_time(LLAMA, tokens, 8192, H100, n_devices, utilisation=share, convention=convention)
    rate = run.tokens_per_second.value
    again = mfu(LLAMA, rate, 8192, H100, n_devices, convention=convention)
    assert float(again.value) == pytest.approx(share)
    assert float(run.days.value) * 86_400 == pytest.approx(float(run.seconds.value))
    assert float(rate * run.seconds.value) == pytest.approx(tokens)


def test_hfu_exceeds_mfu_by_what_is_repeated():
    rate = 10_000
    model = float(mfu(LLAMA, rate, 8192, H100, convention="megatron").value)
    none, core, full = (
        float(hfu(LLAMA, rate, 8192, H100, mask="full", kernel="math", recompute=each).value)
        for each in ("none", "core", "full")
    )
    assert none == pytest.approx(model)
    assert none < core < full < 4 / 3 * model  # the head is not repeated


def test_utilisation_is_of_all_devices_and_of_the_dtype():
    one = utilisation(10**15, 2, H100, 4)
    assert float(one.value) == pytest.approx(1e15 / (2 * 4 * 989.4e12))
    assert float(utilisation(10**15, 2, H100, 4, "fp8").value) == pytest.approx(
        float(one.value) / 2, rel=1e-4
    )


def test_refusals_name_the_argument():
    for bad, field in (
        ({"tokens": 0}, "tokens"),
        ({"n_devices": 0}, "n_devices"),
        ({"utilisation": 1.5}, "utilisation"),
        ({"convention": "mine"}, "convention"),
        ({"dtype": "fp4"}, "dtype"),
        ({"length": -1}, "length"),
    ):
        given_ = {"tokens": 1, "length": 1, "n_devices": 1, "utilisation": 0.5, "convention": "6nd"} | bad
        with pytest.raises(ArgumentError) as refused:
            run_time(LLAMA, device=H100, **given_)
        assert refused.value.field == field


# cost


def test_cost_is_hours_times_price_and_energy_hours_times_watts():
    one = cost(7200, H100, 8, price_per_hour=2.5, power_share=0.5, pue=1.2, price_per_kwh=0.1)
    assert one.device_hours.value == 16
    assert float(one.money.value) == 40
    assert float(one.energy.value) == pytest.approx(16 * 0.7 * 0.5 * 1.2)
    assert float(one.electricity.value) == pytest.approx(0.1 * float(one.energy.value))


def test_llama_3_emissions_take_its_card_at_its_limit():
    """The model card of Llama 3.1 charges 700 W for each of 30.84 million hours of the 405B: 21.6 GWh."""
    one = cost(30.84e6 * 3600, H100, 1, price_per_hour=0)
    assert float(one.energy.value) / 1e6 == pytest.approx(21.59, abs=0.01)


def test_unknown_power_has_no_energy_and_no_price_of_it():
    unknown = device("tpu-v6e")
    assert cost(3600, unknown, 1, price_per_hour=1).energy is None
    with pytest.raises(ArgumentError, match="not published"):
        cost(3600, unknown, 1, price_per_hour=1, price_per_kwh=0.1)
    for bad in ({"pue": 0.9}, {"power_share": 1.1}, {"price_per_hour": -1}, {"seconds": -1}):
        with pytest.raises(ArgumentError) as refused:
            cost(**{"seconds": 1, "price_per_hour": 1, "device": H100, "n_devices": 1} | bad)
        assert refused.value.field in bad


def test_six_n_d_by_hand():
    n = int(parameters(LLAMA).total)
    assert model_flops(LLAMA, 1, 4096, convention="6nd").total == 6 * n * 4096
