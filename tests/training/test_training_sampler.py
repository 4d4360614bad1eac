"""The order of the data: a function of seed and place, whoever asks and in whatever pieces."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from lmlib.resources.units import ArgumentError
from lmlib.training.sampler import MODES, Sampler, splitmix


@given(
    mode=st.sampled_from(MODES),
    n_tokens=st.integers(5, 300),
    seed=st.integers(0, 2**40),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_pieces_give_the_order_of_the_whole(mode: str, n_tokens: int, seed: int, cuts: list[int]) -> None:
    whole = Sampler(n_tokens, 4, seed, mode).starts(0, 60)
    assert whole.min() >= 0
    assert whole.max() + 4 + 1 <= n_tokens
    edges = [0, *sorted(cuts), 60]
    sampler = Sampler(n_tokens, 4, seed, mode)
    parts = []
    for start, stop in pairwise(edges):
        parts.append(sampler.next(stop - start))
        sampler = Sampler(n_tokens, 4, seed, mode)  # as after a kill: only the integers survive
        sampler.load_state_dict({"position": stop, "seed": seed, "mode": mode, "length": 4})
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_together_see_what_one_process_sees(mode: str, world: int) -> None:
    alone = Sampler(1000, 10, 7, mode)
    ranks = [Sampler(1000, 10, 7, mode) for _ in range(world)]
    for _ in range(30):
        expected = alone.next(12)
        shares = [sampler.next(12, rank, world) for rank, sampler in enumerate(ranks)]
        assert np.array_equal(np.stack(shares, 1).ravel(), expected)


@given(n_tokens=st.integers(11, 500), seed=st.integers(0, 1000))
def test_an_epoch_holds_every_window_once(n_tokens: int, seed: int) -> None:
    sampler = Sampler(n_tokens, 10, seed, "epochs")
    count = sampler.windows_per_epoch
    for epoch in range(3):
        starts = np.sort(sampler.starts(epoch * count, count))
        assert np.array_equal(np.diff(starts), np.full(count - 1, 10))
    assert (count + 1) * 10 + 10 > n_tokens - 1  # less than two windows are left out


def test_epochs_differ_in_order_and_cut_and_seeds_differ() -> None:
    sampler = Sampler(10_000, 10, 0, "epochs")
    count = sampler.windows_per_epoch
    epochs = [sampler.starts(epoch * count, count) for epoch in range(4)]
    assert len({int(starts.min()) for starts in epochs}) > 1
    assert len({tuple(np.argsort(starts)[:20]) for starts in epochs}) == 4
    other = Sampler(10_000, 10, 1, "epochs").starts(0, count)
    assert not np.array_equal(epochs[0], other)


@pytest.mark.parametrize("seed", [0, 1, 2**60])
def test_draws_with_replacement_are_uniform_and_independent(seed: int) -> None:
    n_tokens, length = 265, 10
    starts = Sampler(n_tokens, length, seed).starts(0, 51_000)
    counts = np.bincount(starts, minlength=n_tokens - length)
    assert len(counts) == n_tokens - length
    assert chisquare(counts).pvalue > 1e-4
    low, high = starts[:-1] // 51, starts[1:] // 51  # neighbours, in five classes each
    pairs = np.bincount(low * 5 + high, minlength=25)
    assert chisquare(pairs).pvalue > 1e-4


def test_numbers_are_those_of_splitmix64() -> None:
    """The published first outputs for the seed 1234567 (Vigna's splitmix64.c; Rosetta Code has them): the
    order of the data must not change with a version of NumPy or of this file."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix(np.arange(5, dtype=np.uint64), 1234567).tolist() == published


def test_the_order_is_fixed_for_good() -> None:
    assert Sampler(1000, 10, 3).starts(5, 4).tolist() == [275, 735, 680, 956]
    assert Sampler(1000, 10, 3, "epochs").starts(97, 4).tolist() == [461, 71, 351, 601]


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: Sampler(10, 10), "train_data"),
        (lambda: Sampler(10, 0), "context_length"),
        (lambda: Sampler(10, 5, mode="shuffled"), "sampling"),
        (lambda: Sampler(10, 5, seed=-1), "seed"),
        (lambda: Sampler(10, 5).next(3, 0, 2), "batch_size"),
        (lambda: Sampler(10, 5).load_state_dict(Sampler(10, 5, 1).state_dict()), "seed"),
        (lambda: Sampler(10, 5).load_state_dict(Sampler(10, 4).state_dict()), "length"),
    ],
)
def test_bad_input_names_the_argument(call, field: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ArgumentError) as caught:
        call()
    assert caught.value.field == field
