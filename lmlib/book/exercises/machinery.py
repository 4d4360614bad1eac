"""Exercises and their checks, in the notebook and in the page. Standard library only.

An exercise holds a task, a starter, hints, a worked solution (real functions, whose source is shown), named
cases ordered from the most basic, and wrong answers that the cases must catch. `check` runs a reader's
function on the cases and reports the first that fails: what was expected, what came, where they part.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import io
import linecache
import signal
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lmlib.book.display import escape, markdown
from lmlib.book.exercises.compare import difference, shown

DIFFICULTIES = {1: "warm-up", 2: "easy", 3: "medium", 4: "hard", 5: "project"}
ANSWER_FILE = "<your answer>"
_PRINTED_MOST = 4000


@dataclass(frozen=True)
class Case:
    """One check. `expected` is what the function must return for `arguments` (or `raises`, the error).

    `message` says what a failure usually means. `then` turns what the function returned into what is compared
    (`list`, for one that yields). A callable `arguments` makes them afresh for each run, for iterators and
    others that cannot be copied. `call` shows the call where the arguments would be too long to read.
    `around` makes of the reader's function the one that is called: one that also counts or times, say.
    """

    name: str
    arguments: tuple[Any, ...] | Callable[[], tuple[Any, ...]]
    expected: Any = None
    message: str = ""
    raises: type[Exception] | None = None
    then: Callable[[Any], Any] | None = None
    around: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    call: str = ""
    tolerance: float = 1e-6
    seconds: float = 5.0


@dataclass(frozen=True)
class Wrong:
    """A plausible wrong answer, and words of the message that must catch it."""

    answer: Callable[..., Any]
    says: str


@dataclass(frozen=True)
class Exercise:
    """One exercise; `name` is `<chapter's word>/<what>`, and the reader writes the function `solution` names.

    `task` and `hints` are in the small Markdown of `lmlib.book.display.markdown`. `given` are helpers that
    stand, complete, above the starter. `parts` are what the worked solution has beside its function: kernels,
    classes. `in_page` says that the check needs only the standard library.
    """

    name: str
    title: str
    task: str
    difficulty: int
    minutes: int
    starter: str
    hints: tuple[str, ...]
    solution: Callable[..., Any]
    cases: tuple[Case, ...]
    wrong: tuple[Wrong, ...]
    given: tuple[Callable[..., Any], ...] = ()
    parts: tuple[Any, ...] = ()
    remark: str = ""
    in_page: bool = True

    def __post_init__(self) -> None:
        if self.difficulty not in DIFFICULTIES:
            raise ValueError(f"difficulty of {self.name!r} must be 1 to 5, got {self.difficulty}")
        if not self.cases or len({case.name for case in self.cases}) != len(self.cases):
            raise ValueError(f"{self.name!r} needs cases, each with a name of its own")

    @property
    def function(self) -> str:
        """Name of the function that the reader writes."""
        return self.solution.__name__

    @property
    def starter_source(self) -> str:
        """What the editor starts with: imports, the helpers given, then the function to fill in."""
        imports, function = self._starter_parts()
        return _joined([*imports, *map(_source, self.given), function])

    @property
    def solution_source(self) -> str:
        """The worked solution with the imports and helpers that it needs: it runs as it stands."""
        imports, _ = self._starter_parts()
        return _joined([*imports, *map(_source, (*self.given, *self.parts, self.solution))])

    def _starter_parts(self) -> tuple[list[str], str]:
        """The starter's lines of imports, as one block if there are any, and the rest of it."""
        lines = textwrap.dedent(self.starter).strip().splitlines()
        n_imports = next(i for i, line in enumerate(lines) if not line.startswith(("import ", "from ")))
        imports = ["\n".join(lines[:n_imports])] if n_imports else []
        return imports, "\n".join(lines[n_imports:]).strip()


@dataclass(frozen=True)
class Result:
    """How one case went. `state` is "passed", "failed" or "not run"."""

    name: str
    state: str
    call: str = ""
    expected: str = ""
    got: str = ""
    difference: str = ""
    message: str = ""
    line: str = ""


@dataclass(frozen=True)
class Report:
    """The answer to a reader's answer: text, HTML in a notebook, JSON in the page.

    `problem` is set where no case could be run: nothing written yet, a syntax error, no such function.
    """

    exercise: str
    title: str
    results: tuple[Result, ...]
    problem: str = ""
    printed: str = ""

    @property
    def passed(self) -> bool:
        """Whether every case was run and passed."""
        return bool(self.results) and not self.problem and all(r.state == "passed" for r in self.results)

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.problem:
            return self.problem
        n_passed = sum(result.state == "passed" for result in self.results)
        if self.passed:
            return f"All {n_passed} checks passed."
        return f"{n_passed} of {len(self.results)} checks passed."

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with the HTML and text that show it."""
        return {
            "exercise": self.exercise,
            "title": self.title,
            "passed": self.passed,
            "summary": self.summary,
            "problem": self.problem,
            "printed": self.printed,
            "results": [asdict(result) for result in self.results],
            "html": self._repr_html_(),
            "text": str(self),
        }

    def __str__(self) -> str:
        lines = [f"{self.title}: {self.summary}"]
        for result in self.results:
            lines.append(f"  {_MARKS[result.state]} {result.name}")
            lines += [f"      {label}: {text}" for label, text in _details(result)]
        if self.printed:
            lines += ["  Your code printed:", textwrap.indent(self.printed, "      ")]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(_result_html(result) for result in self.results if result.state != "not run")
        waiting = [result.name for result in self.results if result.state == "not run"]
        if waiting:
            names = escape(", ".join(waiting))
            rows += f'<li class="lm-case lm-case-not-run">{_MARKS["not run"]} {names}</li>'
        printed = f"<p>Your code printed:</p><pre>{escape(self.printed)}</pre>" if self.printed else ""
        state = "passed" if self.passed else "failed"
        return (
            f'<div class="lm-checks lm-checks-{state}"><p><strong>{escape(self.title)}</strong>: '
            f'{escape(self.summary)}</p><ul style="list-style:none;padding-left:0">{rows}</ul>{printed}</div>'
        )


_MARKS = {"passed": "✓ passed:", "failed": "✗ failed:", "not run": "· not run:"}


def _details(result: Result) -> list[tuple[str, str]]:
    labelled = [
        ("call", result.call),
        ("expected", result.expected),
        ("got", result.got),
        ("where", result.difference),
        ("line", result.line),
        ("hint", result.message),
    ]
    return [(label, text) for label, text in labelled if text] if result.state == "failed" else []


def _result_html(result: Result) -> str:
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left;vertical-align:top">{label}</th>'
        '<td style="text-align:left">'
        f"{markdown(text) if label == 'hint' else f'<code>{escape(text)}</code>'}</td></tr>"
        for label, text in _details(result)
    )
    body = f'<table class="lm-case-details"><tbody>{rows}</tbody></table>' if rows else ""
    return (
        f'<li class="lm-case lm-case-{result.state}">{_MARKS[result.state]} {escape(result.name)}{body}</li>'
    )


_exercises: dict[str, Exercise] = {}


def register(*exercises: Exercise) -> None:
    """Make exercises known by their names; those of the same name are replaced."""
    _exercises.update({each.name: each for each in exercises})


def get(name: str) -> Exercise:
    """The exercise of that name, whose chapter's module is imported if need be.

    Raises:
        KeyError: no such exercise; those of the chapter are named.
    """
    word = name.partition("/")[0]
    there = names(word)
    if name not in there:
        raise KeyError(f"no exercise {name!r}; chapter {word!r} has: {', '.join(there) or 'none'}")
    return _exercises[name]


def names(word: str) -> list[str]:
    """Names of a chapter's exercises, in order."""
    if word.isidentifier():
        module = f"lmlib.book.exercises.{word}"
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    return [name for name in _exercises if name.startswith(f"{word}/")]


def check(name: str, function: Callable[..., Any], *, keep_going: bool = False) -> Report:
    """Run an exercise's cases on a reader's function, the most basic first.

    Args:
        name: the exercise.
        function: the reader's answer.
        keep_going: True runs every case; otherwise the first that fails is the last that is run.

    Raises:
        KeyError: no such exercise.
    """
    chosen = get(name)
    if not callable(function):
        problem = f"check needs your function {chosen.function}, got {shown(function)}."
        return Report(chosen.name, chosen.title, (), problem)
    printed = io.StringIO()
    results: list[Result] = []
    with contextlib.redirect_stdout(printed):
        for case in chosen.cases:
            if not keep_going and any(result.state == "failed" for result in results):
                results.append(Result(case.name, "not run"))
                continue
            try:
                results.append(_run(case, function))
            except NotImplementedError:
                problem = f"Nothing to check yet: {chosen.function} still raises NotImplementedError."
                return Report(chosen.name, chosen.title, (), problem, _cut(printed.getvalue()))
    return Report(chosen.name, chosen.title, tuple(results), printed=_cut(printed.getvalue()))


def check_source(name: str, source: str, keep_going: bool = False) -> dict[str, Any]:
    """Check an answer given as source text, as the page does; never raises for what the reader wrote.

    The source runs in a namespace of its own. Returns `Report.to_dict()`.

    Raises:
        KeyError: no such exercise.
    """
    chosen = get(name)
    linecache.cache[ANSWER_FILE] = (len(source), None, source.splitlines(keepends=True), ANSWER_FILE)
    namespace: dict[str, Any] = {"__name__": "answer"}
    printed = io.StringIO()
    problem = ""
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(source, ANSWER_FILE, "exec", dont_inherit=True), namespace)
    except SyntaxError as error:
        line = (error.text or "").strip()
        problem = f"Python cannot read line {error.lineno}: {error.msg}" + (f": {line}" if line else ".")
    except (Exception, SystemExit) as error:
        problem = f"Your code stopped before the check, with {_error_text(error)} ({_reader_line(error)})."
    if not problem and chosen.function not in namespace:
        problem = f"Your code defines no function {chosen.function}; the check looks for that name."
    if problem:
        return Report(chosen.name, chosen.title, (), problem, _cut(printed.getvalue())).to_dict()
    return check(name, namespace[chosen.function], keep_going=keep_going).to_dict()


class _TimeUp(BaseException):
    """Raised inside the reader's function; not an Exception, so that `except Exception` does not keep it."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Stop what runs inside after `seconds`, where the system can: in the main thread, not in the page.

    (The page ends its worker instead.)
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TimeUp

    try:
        handler = signal.signal(signal.SIGALRM, stop)
        timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    except (OSError, ValueError, AttributeError):
        yield
        return
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)  # someone else's alarm, if one was set


def _run(case: Case, function: Callable[..., Any]) -> Result:
    made_afresh = callable(case.arguments)
    arguments = case.arguments() if callable(case.arguments) else copy.deepcopy(case.arguments)
    untouched = () if made_afresh else copy.deepcopy(arguments)
    call = case.call or f"{function.__name__}({', '.join(map(shown, arguments))})"
    wanted = f"an error: {case.raises.__name__}" if case.raises else shown(case.expected)

    def failed(got: str, where: str, line: str = "") -> Result:
        return Result(case.name, "failed", call, wanted, got, where, case.message, line)

    called = case.around(function) if case.around else function
    try:
        with _time_limit(case.seconds):
            got = called(*arguments)
            got = case.then(got) if case.then else got
    except NotImplementedError:
        raise
    except _TimeUp:
        return failed("no answer", f"stopped after {case.seconds:g} seconds")
    except (Exception, SystemExit) as error:
        if case.raises and isinstance(error, case.raises):
            return Result(case.name, "passed")
        return failed(f"an error: {_error_text(error)}", "", _reader_line(error, function))
    if case.raises:
        return failed(shown(got), "an error should have been raised, and was not")
    if where := difference(case.expected, got, case.tolerance):
        return failed(shown(got), where)
    if not made_afresh and (where := difference(untouched, arguments, 0.0)):
        return failed(
            shown(got), f"right, but your function changed its argument {where.removeprefix('at ')}"
        )
    return Result(case.name, "passed")


def _error_text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _reader_line(error: BaseException, function: Callable[..., Any] | None = None) -> str:
    """The last line of the reader's own code on the way to the error: theirs, not this module's.

    An error may have been raised from another one, as Triton's interpreter does: then the line is where the
    first of them arose, if that is in the same file.
    """
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if f.filename != _reader_line.__code__.co_filename
    ]
    if not frames:
        return ""
    code = getattr(function, "__code__", None)
    files = {f.filename for f in frames}
    file = code.co_filename if code and code.co_filename in files else frames[0].filename
    own = [f for f in frames if f.filename == file]
    while error.__cause__ is not None:
        error = error.__cause__
        own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file] or own
    return f"line {own[-1].lineno}: {own[-1].line}"


def _cut(text: str) -> str:
    return text if len(text) <= _PRINTED_MOST else f"{text[:_PRINTED_MOST]}… ({len(text):,} characters)"


def _source(function: Any) -> str:
    """Source of a function or class, or of the function inside a Triton kernel."""
    return textwrap.dedent(inspect.getsource(getattr(function, "fn", function))).strip()


def _joined(parts: list[str]) -> str:
    return "\n\n\n".join(parts) + "\n"
