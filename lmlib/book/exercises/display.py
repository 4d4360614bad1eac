"""How an exercise looks: the task, its starter, hints and a worked solution, the last two folded."""

from __future__ import annotations

from lmlib.book.display import building, emit, escape, markdown, script_json
from lmlib.book.exercises.machinery import DIFFICULTIES, Exercise, get
from lmlib.book.source import highlighted


def exercise(name: str) -> None:
    """Show an exercise. In the built page it becomes an editor with a check where its answer can run there.

    Raises:
        KeyError: no such exercise.
    """
    chosen = get(name)
    emit(exercise_html(chosen), exercise_text(chosen))


def exercise_html(chosen: Exercise) -> str:
    """The exercise as HTML; in the page wrapped in `<lm-exercise>` with what its editor needs as JSON."""
    if not (building() and chosen.in_page):
        return f'<section class="lm-exercise">{_content(chosen)}</section>'
    spec = script_json(
        {
            "name": chosen.name,
            "title": chosen.title,
            "module": f"lmlib.book.exercises.{chosen.name.partition('/')[0]}",
            "function": chosen.function,
            "starter": chosen.starter_source,
        }
    )
    return (
        f'<lm-exercise class="lm-exercise" data-name="{escape(chosen.name)}">'
        f"{_content(chosen)}"
        f'<script type="application/json">{spec}</script></lm-exercise>'
    )


def exercise_text(chosen: Exercise) -> str:
    """The exercise for a terminal, without hints and solution."""
    check = f'check("{chosen.name}", {chosen.function})'
    return (
        f"Exercise: {chosen.title} ({_effort(chosen)})\n\n{chosen.task.strip()}\n\n"
        f"{chosen.starter_source}\nThen: {check}"
    )


def _effort(chosen: Exercise) -> str:
    return f"{DIFFICULTIES[chosen.difficulty]}, {chosen.difficulty} of 5, about {chosen.minutes} minutes"


def _starter(chosen: Exercise) -> str:
    """The starter to copy; in the page the editor takes its place."""
    check = f'check("{chosen.name}", {chosen.function})'
    return (
        f'<div class="lm-exercise-starter">{highlighted(chosen.starter_source)}'
        f"<p>Copy this into a cell, fill it in, and run <code>{escape(check)}</code>.</p></div>"
    )


def _content(chosen: Exercise) -> str:
    dots = "●" * chosen.difficulty + "○" * (5 - chosen.difficulty)
    hints = "".join(
        _folded(f"Hint {place} of {len(chosen.hints)}", markdown(hint), "lm-hint")
        for place, hint in enumerate(chosen.hints, 1)
    )
    solution = highlighted(chosen.solution_source) + markdown(chosen.remark)
    return (
        f'<p class="lm-exercise-title"><strong>Exercise: {escape(chosen.title)}</strong> '
        f'<span class="lm-difficulty"><span aria-hidden="true">{dots}</span> {escape(_effort(chosen))}</span>'
        "</p>"
        f'<div class="lm-exercise-task">{markdown(chosen.task)}</div>'
        f"{_starter(chosen)}{hints}{_folded('Worked solution', solution, 'lm-solution')}"
    )


def _folded(summary: str, content: str, css: str) -> str:
    return f'<details class="{css}"><summary>{escape(summary)}</summary>{content}</details>'
