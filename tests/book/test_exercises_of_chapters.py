"""Every chapter's exercises: solutions pass, plausible mistakes fail with the message that points at them.

What the solutions compute is compared with PyTorch and other oracles in the chapters' own tests.
"""

import pytest

from lmlib.book.display import markdown
from lmlib.book.exercises import machinery
from lmlib.book.exercises.display import exercise_html
from lmlib.book.exercises.machinery import check, check_source

# A chapter's word, and how many exercises it has at least.
CHAPTERS = {"tokenization": 10, "architecture": 10, "training": 7, "resources": 10, "kernels": 8}
EXERCISES = [machinery.get(name) for word in CHAPTERS for name in machinery.names(word)]
NAMES = [each.name for each in EXERCISES]
WRONG = [(each, wrong) for each in EXERCISES for wrong in each.wrong]


@pytest.mark.parametrize("word", CHAPTERS)
def test_a_chapter_goes_from_warm_up_to_project(word):
    difficulties = [machinery.get(name).difficulty for name in machinery.names(word)]
    assert len(difficulties) >= CHAPTERS[word]
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
    html = exercise_html(exercise)
    assert exercise.title in html
    assert ("<lm-exercise" in html) == exercise.in_page


def test_chapters_of_the_standard_library_are_solved_in_the_page():
    for word in ("tokenization", "resources"):
        assert all(machinery.get(name).in_page for name in machinery.names(word))
