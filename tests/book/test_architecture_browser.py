"""Chapter 2 in headless Chromium: widgets answer as Python does, exercises are checked without torch."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from lmlib.book import forms
from lmlib.book.declare import get
from lmlib.book.exercises import machinery
from lmlib.book.exercises.display import exercise_html

pytestmark = pytest.mark.browser

WIDGETS = [f"architecture/{what}" for what in ("attention", "rope", "parameters")]


@pytest.mark.parametrize("name", WIDGETS)
def test_page_and_python_agree_on_random_inputs(
    ask_worker: Callable[..., list[str]],
    random_plan: Callable[..., dict[str, str]],
    name: str,
) -> None:
    widget, chance = get(name), random.Random(11)
    entries = [random_plan(widget, chance) for _ in range(40)]
    answers = ask_worker(name, entries)
    for entry, answer in zip(entries, answers, strict=True):
        assert json.loads(answer) == json.loads(forms.answer(name, json.dumps(entry))), entry
    assert sum(json.loads(answer)["ok"] for answer in answers) >= 10


@pytest.mark.parametrize("what", ["rms-norm", "accounting"])
def test_an_exercise_without_torch_is_solved_in_the_page(
    visit: Callable[..., Any],
    write_page: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    monkeypatch.setenv("LMLIB_BOOK_BUILD", "1")
    chosen = machinery.get(f"architecture/{what}")
    write_page(f"exercise-{what}", exercise_html(chosen))
    page = visit(f"x/exercise-{what}")

    def verdict() -> str:
        page.get_by_role("button", name="Run checks").click()
        page.wait_for_function(
            "!document.querySelector('.lm-verdict').hasAttribute('aria-busy')", timeout=60_000
        )
        return str(page.locator(".lm-verdict").inner_text())

    assert "still raises NotImplementedError" in verdict()
    page.locator("lm-exercise textarea").fill(chosen.solution_source)
    assert "checks passed" in verdict()
    assert page.get_attribute("lm-exercise", "data-passed") == "true"
