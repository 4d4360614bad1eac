"""Sampling: against a loop without a cache, and by the frequencies that it must have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlib.architecture import ModelConfig, TransformerLM, generate
from lmlib.architecture.generation import draw


def model(**values: Any) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(ModelConfig(30, 24, 32, 2, 4, **values))


PROMPT = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("values", [{}, {"window": 4}, {"position": "learned", "tied": True}])
@torch.no_grad()
def test_greedy_equals_the_likeliest_token_of_full_passes(values: dict[str, Any]) -> None:
    lm = model(**values)
    tokens = PROMPT
    for _ in range(21):
        tokens = torch.cat((tokens, lm(tokens)[:, -1:].argmax(-1)), 1)
    assert torch.equal(generate(lm, PROMPT, 21, temperature=0), tokens)


def test_generator_decides_the_draws() -> None:
    lm = model()

    def run(seed: int) -> list[list[int]]:
        return generate(lm, PROMPT, 15, generator=torch.Generator().manual_seed(seed)).tolist()

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_stops_at_a_stop_token_and_fills_up() -> None:
    lm = model()
    free = generate(lm, PROMPT, 20, temperature=0)
    stop = int(free[0, 6])
    out = generate(lm, PROMPT, 20, temperature=0, stop=stop)
    for row, whole in zip(out.tolist(), free.tolist(), strict=True):
        end = whole.index(stop, 3) + 1 if stop in whole[3:] else len(whole)
        assert row[:end] == whole[:end]
        assert set(row[end:]) <= {stop}
    alone = generate(lm, PROMPT[:1], 20, temperature=0, stop=[stop, 29])
    assert alone[0, -1] == stop
    assert alone.shape[1] <= 7


def test_nothing_to_add() -> None:
    assert torch.equal(generate(model(), PROMPT, 0), PROMPT)


@settings(deadline=None, max_examples=40)
@given(
    logits=st.lists(st.floats(-4, 4), min_size=2, max_size=8),
    top_k=st.none() | st.integers(1, 9),
    top_p=st.none() | st.floats(0.05, 1),
)
def test_only_allowed_tokens_are_drawn(logits: list[float], top_k: int | None, top_p: float | None) -> None:
    """A brute-force nucleus: likeliest first, until the probability is reached."""
    row = torch.tensor(logits, dtype=torch.float64).float()
    order = sorted(range(len(logits)), key=lambda i: -float(row[i]))
    least = float(row[order[min(top_k or 99, len(order)) - 1]])
    order = [i for i in order if float(row[i]) >= least]
    kept = row[order].double().softmax(0)
    allowed, total = set(), 0.0
    for i, share in zip(order, kept.tolist(), strict=True):
        if total < (top_p or 2) + 1e-6:
            allowed |= {j for j in order if float(row[j]) == float(row[i])}  # ties may go either way
        total += share
    drawn = draw(row.repeat(200, 1), 1.0, top_k, top_p, torch.Generator().manual_seed(0))
    assert set(drawn.flatten().tolist()) <= allowed


def test_frequencies_follow_the_temperature() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    for temperature in (0.5, 1.0, 2.0):
        drawn = draw(logits.repeat(40000, 1), temperature, generator=torch.Generator().manual_seed(0))
        share = drawn.flatten().bincount(minlength=3) / 40000
        torch.testing.assert_close(share, (logits / temperature).softmax(0), rtol=0, atol=0.01)


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
def test_a_temperature_near_zero_takes_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([[1.0, 300.0, -2.0], [5.0, 4.9, 4.8]])
    assert draw(logits, temperature).flatten().tolist() == [1, 0]
    assert draw(-1e30 * logits.abs(), temperature).flatten().tolist() == [0, 2]


def test_a_nucleus_of_everything_keeps_the_unlikely() -> None:
    """fp32 sums of 100,000 shares pass 1 before the last; top_p = 1 must cut nothing off all the same."""
    logits = torch.zeros(1, 100_000)
    for seed in range(20):
        both = [draw(logits, top_p=p, generator=torch.Generator().manual_seed(seed)) for p in (None, 1.0)]
        assert torch.equal(*both)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 0)])
def test_a_prompt_must_be_a_batch_of_tokens(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"tokens: must be of shape \(batch, length\)"):
        generate(model(), torch.zeros(shape, dtype=torch.long), 3)


def test_a_prompt_beyond_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens: 25 tokens exceed the model's context_length = 24"):
        generate(model(), torch.zeros(1, 25, dtype=torch.long), 0)
    assert generate(model(), torch.zeros(1, 24, dtype=torch.long), 0).shape == (1, 24)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens: must be at least 0"),
        ({"max_new_tokens": 22}, "max_new_tokens: must be at most 21, context_length = 24 less"),
        ({"temperature": -1.0}, "temperature: must be 0 or a positive number"),
        ({"temperature": float("nan")}, "temperature: must be 0 or a positive number"),
        ({"top_k": 0}, "top_k: must be at least 1"),
        ({"top_p": 0.0}, "top_p: must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p: must be above 0 and at most 1"),
    ],
)
def test_bad_arguments_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model(), PROMPT, **{"max_new_tokens": 3} | values)
