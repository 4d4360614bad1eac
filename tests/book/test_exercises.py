"""The machinery of exercises: what a check answers to right, wrong, broken, slow and unwritten answers."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmlib.book.exercises import display, machinery
from lmlib.book.exercises.compare import difference, shown
from lmlib.book.exercises.machinery import Case, Exercise, Wrong, check, check_source


def double(values: list[int]) -> list[int]:
    return [2 * value for value in values]


def _halved(values):
    return [value / 2 for value in values]


EXERCISE = Exercise(
    name="demo/double",
    title="Twice <b>",
    task="Write `double`.",
    difficulty=2,
    minutes=3,
    starter="import math\n\n\ndef double(values):\n    raise NotImplementedError\n",
    hints=("Multiply.",),
    solution=double,
    cases=(
        Case("one", ([1],), [2], "Two times one is two."),
        Case("several", ([1, 2],), [2, 4]),
        Case("none", ([],), []),
    ),
    wrong=(Wrong(_halved, "Two times one"), Wrong(len, "Two times one")),
)


@pytest.fixture(autouse=True)
def registered():
    machinery.register(EXERCISE)
    yield
    machinery._exercises.pop(EXERCISE.name, None)


def only_case(case, function):
    machinery.register(
        Exercise(**{**vars(EXERCISE), "cases": (case,)}),
    )
    report = check(EXERCISE.name, function)
    return report, report.results[0] if report.results else None


def test_a_right_answer_passes_every_case():
    report = check("demo/double", double)
    assert report.passed
    assert report.summary == "All 3 checks passed."
    assert [result.state for result in report.results] == ["passed"] * 3


def test_the_first_failure_stops_and_says_what_was_expected_and_what_came():
    report = check("demo/double", lambda values: [value + 1 for value in values])
    assert [result.state for result in report.results] == ["passed", "failed", "not run"]
    failure = report.results[1]
    assert (failure.expected, failure.got) == ("[2, 4]", "[2, 3]")
    assert failure.difference == "at [1]: expected 4, got 3"
    assert failure.call == "<lambda>([1, 2])"
    assert "1 of 3 checks passed" in str(report)


def test_on_request_every_case_is_run():
    report = check("demo/double", lambda values: [values[0] + 1] if values else [], keep_going=True)
    assert [result.state for result in report.results] == ["passed", "failed", "passed"]


def test_an_error_is_shown_with_the_readers_own_line():
    def helper(values):
        return values["two"]

    def broken(values):
        return helper(values)

    failure = check("demo/double", broken).results[0]
    assert failure.got == "an error: TypeError: list indices must be integers or slices, not str"
    assert failure.line.endswith('return values["two"]')
    assert failure.message == "Two times one is two."


def test_nothing_written_yet_is_no_failure():
    def double(values):
        raise NotImplementedError

    report = check("demo/double", double)
    assert not report.passed
    assert "Nothing to check yet" in report.summary
    assert report.results == ()


def test_a_changed_argument_is_noticed():
    def in_place(values):
        for place in range(len(values)):
            values[place] *= 2
        return list(values)

    failure = check("demo/double", in_place).results[0]
    assert "right, but your function changed its argument" in failure.difference
    assert EXERCISE.cases[0].arguments == ([1],)  # the case itself stays as it was


def test_an_endless_loop_is_stopped():
    def endless(values):
        while True:
            with contextlib.suppress(Exception):
                time.sleep(0.01)

    started = time.monotonic()
    _, result = only_case(Case("one", ([1],), [2], seconds=0.2), endless)
    assert time.monotonic() - started < 2
    assert (result.got, result.difference) == ("no answer", "stopped after 0.2 seconds")


def test_another_alarm_survives_a_check():
    before = signal.getitimer(signal.ITIMER_REAL)
    signal.setitimer(signal.ITIMER_REAL, 500)
    try:
        check("demo/double", double)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_an_expected_error():
    case = Case("bad", (["x"],), raises=ValueError, message="Refuse text.")

    def refuses(values):
        raise ValueError("no")

    assert only_case(case, refuses)[0].passed
    _, silent = only_case(case, double)
    assert "should have been raised" in silent.difference
    _, other = only_case(case, lambda values: values.nothing)
    assert other.got.startswith("an error: AttributeError")


def test_what_the_code_prints_is_kept(capsys):
    def talking(values):
        print("called with", values)
        return double(values)

    report = check("demo/double", talking)
    assert report.printed.splitlines()[0] == "called with [1]"
    assert capsys.readouterr().out == ""
    assert "called with [1]" in str(report)


def test_no_function_and_no_exercise():
    assert "check needs your function double, got 3" in check("demo/double", 3).summary
    with pytest.raises(KeyError, match="'demo/nothing'; chapter 'demo' has: demo/double"):
        check("demo/nothing", double)
    with pytest.raises(
        KeyError, match=r"'tokenization/mergee'; chapter 'tokenization' has: .*tokenization/merge,"
    ):
        check("tokenization/mergee", double)


@pytest.mark.parametrize(
    ("expected", "got", "says"),
    [
        ([1, 2], (1, 2), "expected a list, got a tuple (its content is right)"),
        ("ab", b"ab", "expected a str, got a bytes"),
        (1, True, "expected an int, got a bool (its content is right)"),
        ([1], None, "expected a list, got None"),
        (2, 2.0, "expected an int, got a float (its content is right)"),
        ([1, 2, 3], [1, 2], "expected 3 items, got 2; the first missing, number 2, is 3"),
        ([1], [1, 7], "expected 1 items, got 2; the first too much, number 1, is 7"),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "at ['a'][1]['b']: expected 2, got 3"),
        ({"a": 1}, {}, "key 'a' is missing (expected with value 1)"),
        ({}, {"a": 1}, "key 'a' should not be there (it has value 1)"),
        (1.0, 1.1, "expected 1.0, got 1.1"),
        (float("nan"), 0.0, "expected nan, got 0.0"),
        ("hello", "hallo", "expected 'hello', got 'hallo'"),
        ("x" * 99 + "a", "x" * 99 + "b", "first different character is number 99"),
        ({1, 2}, {1, 3}, "expected {1, 2}, got {1, 3}"),
        (np.zeros((2, 3)), np.zeros((3, 2)), "expected shape (2, 3), got (3, 2)"),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), "at [1]: expected 2.0, got 2.5"),
        (torch.zeros(2), [0.0, 0.0], "expected a Tensor, got a list"),
    ],
)
def test_differences_are_said_in_words(expected, got, says):
    assert says in difference(expected, got, 1e-6)


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (0.3, 0.1 + 0.2),
        (float("nan"), float("nan")),
        (2.0, 2),
        (np.array([1.0]), np.array([1.0 + 1e-9])),
        ({"a": (1, [2.0])}, {"a": (1, [2.0 + 1e-9])}),
        (1, np.int64(1)),
    ],
)
def test_equal_enough(expected, got):
    assert difference(expected, got, 1e-6) == ""


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(plain)
def test_everything_equals_itself(value):
    assert difference(value, value, 1e-6) == ""


@given(st.lists(st.integers()), st.lists(st.integers()))
def test_a_difference_is_found_exactly_where_there_is_one(one, other):
    assert (difference(one, other, 1e-6) == "") == (one == other)


def test_long_values_are_cut():
    assert len(shown(list(range(1000)))) < 200
    assert shown(torch.zeros(1, 2)).startswith("Tensor(1, 2)")


def test_source_text_is_checked_as_the_page_does():
    answer = check_source(
        "demo/double", "def double(values):\n    print('hi')\n    return [v * 2 for v in values]\n"
    )
    assert answer["passed"] is True
    assert answer["printed"] == "hi\nhi\nhi\n"
    assert json.loads(json.dumps(answer)) == answer


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def double(values:\n    pass", "Python cannot read line 1"),
        ("x = 1 / 0\n", "ZeroDivisionError: division by zero (line 1: x = 1 / 0)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 (line 2: sys.exit(3))"),
        ("def dobule(values):\n    return values\n", "defines no function double"),
        ("", "defines no function double"),
        ("def double(values):\n    return undefined\n", "line 2: return undefined"),
        ("def double(values):\n    raise NotImplementedError\n", "Nothing to check yet"),
        ("def double(values, more):\n    return values\n", "missing 1 required positional argument"),
        ("double = 3\n", "check needs your function double"),
        ("def double(values):\n    raise SystemExit\n", "an error: SystemExit"),
        ("def double(values):\n    return double(values)\n", "RecursionError"),
    ],
)
def test_source_text_that_does_not_work(source, says):
    answer = check_source("demo/double", source)
    assert answer["passed"] is False
    assert says in answer["text"]
    assert "machinery.py" not in answer["text"]


def test_answers_do_not_see_one_another():
    check_source("demo/double", "secret = 1\ndef double(values):\n    return values\n")
    assert "NameError" in check_source("demo/double", "def double(values):\n    return secret\n")["text"]


class Balance(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.scripts, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("br", "hr", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.text).append(data)


def parsed(markup):
    parser = Balance()
    parser.feed(markup)
    parser.close()
    assert parser.open == []
    return parser


def test_reports_are_well_formed_and_escaped():
    report = check("demo/double", lambda values: "<script>alert(1)</script>")
    page = parsed(report._repr_html_())
    assert page.scripts == []
    assert "Twice <b>" in "".join(page.text)
    assert "not run: several, none" in "".join(page.text)


def test_a_hint_in_a_report_shows_its_code_as_code():
    case = Case("one", ([1],), [2], message="Use `*` here.")
    report, _ = only_case(case, lambda values: values)
    assert "Use <code>*</code> here." in report._repr_html_()


@pytest.mark.parametrize("build", ["0", "1"])
def test_an_exercise_shows_task_effort_hints_and_solution(monkeypatch, build):
    monkeypatch.setenv("LMLIB_BOOK_BUILD", build)
    markup = display.exercise_html(EXERCISE)
    page = parsed(markup)
    text = "".join(page.text)
    for part in (
        "Twice <b>",
        "easy, 2 of 5, about 3 minutes",
        "●●○○○",
        "Hint 1 of 1",
        "Multiply.",
        "2 * value",
    ):
        assert part in text
    assert markup.count("<details") == 2  # one hint, one solution, both folded
    assert "<details open" not in markup
    assert ("<lm-exercise" in markup) == (build == "1")


def test_the_page_gets_what_its_editor_needs(monkeypatch):
    monkeypatch.setenv("LMLIB_BOOK_BUILD", "1")
    markup = display.exercise_html(EXERCISE)
    (script,) = parsed(markup).scripts
    spec = json.loads(script)
    assert spec == {
        "name": "demo/double",
        "title": "Twice <b>",
        "module": "lmlib.book.exercises.demo",
        "function": "double",
        "starter": "import math\n\n\ndef double(values):\n    raise NotImplementedError\n",
    }
    assert 'class="lm-exercise-starter"' in markup  # the editor takes its place; without JavaScript it stays
    outside = Exercise(**{**vars(EXERCISE), "in_page": False})
    assert "<lm-exercise" not in display.exercise_html(outside)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"difficulty": 6}, "1 to 5, got 6"),
        ({"cases": ()}, "needs cases"),
        ({"cases": EXERCISE.cases[:1] * 2}, "name"),
    ],
)
def test_malformed_exercises_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        Exercise(**{**vars(EXERCISE), **change})


def test_the_machinery_and_its_content_need_only_the_standard_library():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('IPython', 'numpy', 'torch', 'regex', 'pygments', 'plotly')))\n"
        "from lmlib.book.exercises.machinery import check_source, names\n"
        "assert names('tokenization')\n"
        "report = check_source('tokenization/merge', 'def merge(s, p, n):\\n    return s')\n"
        "assert report['results'][0]['state'] == 'failed'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
