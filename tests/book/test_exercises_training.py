"""Chapter 3's exercises: solutions pass, plausible mistakes fail with the message that points at them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlib.book.display import markdown
from lmlib.book.exercises import machinery, training
from lmlib.book.exercises.display import exercise_html
from lmlib.book.exercises.machinery import check, check_source

NAMES = machinery.names("training")
EXERCISES = [machinery.get(name) for name in NAMES]
WRONG = [(each, wrong) for each in EXERCISES for wrong in each.wrong]


def test_the_chapter_goes_from_warm_up_to_project():
    difficulties = [each.difficulty for each in EXERCISES]
    assert len(NAMES) >= 7
    assert difficulties == sorted(difficulties)
    assert (difficulties[0], difficulties[-1]) == (1, 5)


@pytest.mark.parametrize("exercise", EXERCISES, ids=NAMES)
def test_the_solution_passes_as_a_function_and_as_the_source_shown(exercise):
    report = check(exercise.name, exercise.solution)
    assert report.passed, str(report)
    answer = check_source(exercise.name, exercise.solution_source)
    assert answer["passed"], answer["text"]


@pytest.mark.parametrize("exercise", EXERCISES, ids=NAMES)
def test_the_starter_runs_and_waits_to_be_written(exercise):
    assert "Nothing to check yet" in check_source(exercise.name, exercise.starter_source)["summary"]


@pytest.mark.parametrize(
    ("exercise", "wrong"), WRONG, ids=[f"{each.name}-{wrong.answer.__name__}" for each, wrong in WRONG]
)
def test_a_wrong_answer_fails_with_the_message_that_points_at_it(exercise, wrong):
    report = check(exercise.name, wrong.answer)
    assert not report.passed
    assert wrong.says in str(report)


@pytest.mark.parametrize("exercise", EXERCISES, ids=NAMES)
def test_every_exercise_is_complete(exercise, monkeypatch):
    monkeypatch.setenv("LMLIB_BOOK_BUILD", "1")
    assert len(exercise.hints) >= 3
    assert len(exercise.wrong) >= 2
    for prose in (exercise.task, exercise.remark, *exercise.hints):
        assert "`" not in markdown(prose)  # every code span is closed
    assert exercise.function in exercise.starter
    assert exercise.title in exercise_html(exercise)


# The solutions against PyTorch.


@settings(deadline=None)
@given(st.lists(st.floats(-3000, 3000), min_size=2, max_size=9), st.data())
def test_the_loss_is_torch_s(logits, data):
    target = data.draw(st.integers(0, len(logits) - 1))
    oracle = torch.tensor(logits, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(oracle, torch.tensor(target))
    assert training.cross_entropy(logits, target) == pytest.approx(expected.item(), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-9, 9), min_size=3, max_size=3), min_size=1, max_size=6))
def test_updates_are_torch_s(gradients):
    weights = torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
    optimizer = torch.optim.AdamW([weights], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for gradient in gradients:
        weights.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    ours = training.adamw([0.5, -1.0, 2.0], gradients, 0.01, 0.1, 0.9, 0.95)
    assert ours == pytest.approx(weights.tolist(), rel=1e-6, abs=1e-7)


@settings(deadline=None)
@given(st.lists(st.floats(-9, 9), min_size=4, max_size=4), st.floats(0.1, 20))
def test_clipping_is_torch_s_but_for_its_epsilon(gradient, max_norm):
    tensors = [torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2)]
    for tensor, part in zip(tensors, (gradient[:2], gradient[2:]), strict=True):
        tensor.grad = torch.tensor(part, dtype=torch.float64)
    norm = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
    clipped, ours = training.clip([gradient[:2], gradient[2:]], max_norm)
    assert ours == pytest.approx(norm.item(), rel=1e-9, abs=1e-12)
    assert clipped == [pytest.approx(tensor.grad.tolist(), rel=1e-4, abs=1e-6) for tensor in tensors]
