"""Chapter 2's ablations: what is trained, how it is judged, and the record of longer runs."""

import pytest
import torch

from lmlib.book.measure import ablations
from lmlib.book.measure.ablations import BASE, VARIANTS, batches, evaluate, micro_world_task, train
from lmlib.book.records import record


@pytest.fixture(scope="module")
def task():
    return micro_world_task(train_bytes=60_000, valid_bytes=20_000)


def test_windows_are_pieces_of_the_data_and_targets_come_next():
    data = torch.arange(50)
    starts = set()
    for x, y in batches(data, 200, 4, 9, seed=0):
        assert x.shape == y.shape == (4, 9)
        assert torch.equal(x + 1, y)
        assert torch.equal(x - x[:, :1], torch.arange(9).expand(4, 9))
        starts |= set(x[:, 0].tolist())
    assert starts == set(range(41))  # from the first token to the last window that still has its target


def test_the_seed_decides_everything_and_training_helps(task):
    first, losses = train(BASE, task.train, 30, seed=1)
    again, same = train(BASE, task.train, 30, seed=1)
    other, _ = train(BASE, task.train, 30, seed=2)
    assert losses == same
    assert evaluate(first, task.valid) == evaluate(again, task.valid) != evaluate(other, task.valid)
    assert evaluate(first, task.valid) < 0.9 * losses[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains(name, task):
    config = BASE.replace(**VARIANTS[name])
    assert (config == BASE) == (name == "base")
    _, losses = train(config, task.train, 3)
    assert losses[-1] < losses[0]


def test_the_record_has_every_run(task, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "micro_world_task", lambda: task)
    common = ["--steps", "2", "--runs", "2", "--results", str(tmp_path)]
    ablations.main([*common, "--variants", "base", "tied", "--commit", "abc"])
    made = record("cpu-2core", "ablations", tmp_path)
    assert {name: len(each.values) for name, each in made.samples.items()} == {"base": 3, "tied": 2}
    assert made.about["steps"] == 2
    expected = evaluate(train(BASE, task.train, 2, seed=1)[0], task.valid)
    assert made["base"].values[1] == pytest.approx(expected)
