"""Compute-optimal plans against scipy's minimiser."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from lmlib.resources import ArgumentError
from lmlib.resources.planning import LAWS, PLANS, lifetime_plan, optimal_tokens, plan, plans, tokens_to_reach

budgets = st.floats(15, 27).map(lambda power: 10**power)


@given(budgets, st.sampled_from(list(LAWS)))
@settings(max_examples=40, deadline=None)
def test_the_plan_is_where_scipy_finds_the_least_loss(flops, law):
    def loss(position):
        n = math.exp(position)
        return LAWS[law].loss(n, flops / (6 * n))

    best = minimize_scalar(loss, bounds=(5, 40), method="bounded", options={"xatol": 1e-10})
    ours = plan(flops, law)
    assert ours.loss == pytest.approx(best.fun, rel=1e-12)
    assert math.log(float(ours.parameters.value)) == pytest.approx(best.x, abs=1e-3)
    assert 6 * float(ours.parameters.value) * float(ours.tokens.value) == pytest.approx(flops)


@given(budgets, st.sampled_from(list(LAWS)))
@settings(max_examples=30, deadline=None)
def test_optimal_tokens_inverts_the_plan(flops, law):
    found = plan(flops, law)
    again = optimal_tokens(float(found.parameters.value), law)
    assert float(again.value) == pytest.approx(float(found.tokens.value), rel=1e-6)


@given(st.sampled_from(list(LAWS)), st.floats(2.0, 3.5), st.floats(0, 14))
@settings(max_examples=30, deadline=None)
def test_the_lifetime_plan_is_where_scipy_finds_the_fewest_flops(law, loss, power):
    served = 10**power

    def whole(position):
        n = math.exp(position)
        left = loss - LAWS[law].e - LAWS[law].a / n ** LAWS[law].alpha
        if left <= 0:
            return math.inf
        return 6 * n * (LAWS[law].b / left) ** (1 / LAWS[law].beta) + 2 * n * served

    least = math.log((LAWS[law].a / (loss - LAWS[law].e)) ** (1 / LAWS[law].alpha))
    best = minimize_scalar(
        whole, bounds=(least + 1e-6, least + 40), method="bounded", options={"xatol": 1e-10}
    )
    ours = lifetime_plan(loss, served, law)
    assert ours.flops == pytest.approx(best.fun, rel=1e-6)
    assert LAWS[law].loss(ours.n_parameters, ours.tokens) == pytest.approx(loss)


def test_serving_makes_the_best_model_smaller():
    sizes = [lifetime_plan(2.2, served, "besiroglu").n_parameters for served in (0, 1e12, 1e13, 1e14)]
    assert sizes == sorted(sizes, reverse=True)


def test_kaplan_grows_as_the_budget_to_the_0_73():
    one, ten = (float(plan(flops, "kaplan").parameters.value) for flops in (1e21, 1e22))
    assert ten / one == pytest.approx(10**0.73)
    assert [found.law for found in plans(1e22)] == list(PLANS)


def test_bad_input_is_refused():
    for bad, field in (
        ((0, "besiroglu"), "flops"),
        ((math.nan, "besiroglu"), "flops"),
        ((1e40, "hoffmann"), "flops"),
        ((1e20, "mine"), "law"),
    ):
        with pytest.raises(ArgumentError) as refused:
            plan(*bad)
        assert refused.value.field == field
    with pytest.raises(ArgumentError, match="never reach"):
        tokens_to_reach(1e6, 1.9, "besiroglu")
    with pytest.raises(ArgumentError) as refused:
        lifetime_plan(1.0, 0, "besiroglu")
    assert refused.value.field == "loss"
