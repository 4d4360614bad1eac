"""Schedules against PyTorch's where it has the same, and their bounds, ends and joints everywhere."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmlib.resources.units import ArgumentError
from lmlib.training.schedules import KINDS, Schedule, cosine, linear, wsd


def _torch_rates(make, steps: int) -> list[float]:  # type: ignore[no-untyped-def]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_cosine_equals_pytorch() -> None:
    peer = _torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50, eta_min=0.03), 51)
    assert [cosine(step, peak=0.3, total=50, final=0.03) for step in range(51)] == pytest.approx(peer)


def test_linear_equals_pytorch() -> None:
    peer = _torch_rates(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, 50), 55)
    assert [linear(step, peak=0.3, total=50, final=0.03) for step in range(55)] == pytest.approx(peer)


def test_warmup_grows_in_equal_parts_from_above_zero() -> None:
    rates = [Schedule("cosine", peak=1.0, total=100, warmup=4)(step) for step in range(6)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] < 1.0


def test_wsd_is_flat_and_then_falls_in_a_line() -> None:
    rates = [wsd(step, peak=2.0, total=100, warmup=10, decay=0.2, final=0.0) for step in range(101)]
    assert rates[10:80] == [2.0] * 70
    assert [rates[step] for step in (80, 85, 90, 100)] == pytest.approx([2.0, 1.5, 1.0, 0.0])


@given(
    kind=st.sampled_from(KINDS),
    total=st.integers(1, 1000),
    share=st.floats(0, 1),
    final=st.floats(0, 1),
    decay=st.floats(0, 1),
    step=st.floats(0, 2000),
)
def test_rates_stay_between_their_bounds(
    kind: str, total: int, share: float, final: float, decay: float, step: float
) -> None:
    warmup = share * total
    schedule = Schedule(kind, peak=1.0, total=total, warmup=warmup, final=final, decay=decay)
    rate = schedule(step)
    assert 0 <= rate <= 1 + 1e-12
    assert rate > 0 or (final < 1e-12 and step >= warmup)  # no update is wasted on a rate of 0
    if step >= warmup:
        assert rate >= min(final, 1.0) - 1e-12
        assert schedule(step + 1) <= rate + 1e-12  # after warm-up no rate grows
    if kind != "constant" and total > warmup:
        assert schedule(total) == pytest.approx(final, abs=1e-9) or decay == 0


def test_fractions_of_a_step_lie_between_steps() -> None:
    schedule = Schedule("cosine", peak=1.0, total=10, warmup=2)
    assert schedule(6) < schedule(5.5) < schedule(5)
    assert schedule(6) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"kind": "step"}, "kind"),
        ({"peak": -1}, "peak"),
        ({"peak": float("nan")}, "peak"),
        ({"total": 0}, "total"),
        ({"warmup": 2000}, "warmup"),
        ({"final": 1.0}, "final"),
        ({"decay": 1.5}, "decay"),
    ],
)
def test_bad_input_names_the_argument(options: dict, field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Schedule(**options)
    assert caught.value.field == field
