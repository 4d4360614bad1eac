"""The ipywidgets front: the same declaration, live in a kernel."""

import builtins
from typing import Any

import pytest

from lmlib.book import notebook, render
from lmlib.book.declare import get


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    import IPython.display

    seen: list[Any] = []
    monkeypatch.setattr(IPython.display, "display", lambda *objects, **_: seen.extend(objects))
    return seen


@pytest.fixture
def live() -> notebook.Live:
    return notebook.Live(get("tokenization/vocabulary-size"))


def test_controls_recompute_with_the_markup_of_the_page(live: notebook.Live) -> None:
    live.controls["vocab_size"].value = "64Ki"
    outputs, _, errors = live.widget.outputs(live.raw())
    assert errors == {}
    rest = [output for output in outputs if type(output).__name__ != "Plot"]
    assert render.outputs_html(rest) in live.answer.value
    assert "65,536" in live.answer.value
    assert len(live.plots.outputs) == 1


def test_a_preset_fills_and_an_edit_makes_it_custom(live: notebook.Live) -> None:
    live.controls["model"].value = "llama-3-8b"
    assert (live.controls["d_model"].value, live.controls["tied"].value) == ("4096", False)
    live.controls["d_model"].value = "2048"
    assert live.controls["model"].value == "custom"
    assert live.controls["n_layers"].value == "32"


def test_bad_input_is_said_beside_its_field_and_the_answer_stays(live: notebook.Live) -> None:
    before = live.answer.value
    live.controls["n_heads"].value = "7"
    assert "768 / 7 leaves 5" in live.errors["n_heads"].value
    assert live.answer.value == before
    live.controls["n_heads"].value = "12"
    assert live.errors["n_heads"].value == ""


def test_slider_and_field_move_together() -> None:
    live = notebook.Live(get("tokenization/merge-steps"))
    slider, field = live.rows["n_merges"].children[0].children[1:3]
    slider.value = "7"
    assert field.value == "7"
    field.value = "3"
    assert slider.value == "3"


def test_building_shows_static_forms_with_ids_of_their_own(
    monkeypatch: pytest.MonkeyPatch, shown: list[Any]
) -> None:
    monkeypatch.setenv("LMLIB_BOOK_BUILD", "1")
    monkeypatch.setattr(notebook, "_SHOWN", type(notebook._SHOWN)())
    notebook.show("tokenization/merge-steps")
    notebook.show("tokenization/merge-steps")
    ids = [page.data.split('id="')[1].split('"')[0] for page in shown]
    assert ids == ["tokenization-merge-steps", "tokenization-merge-steps-2"]


def test_without_ipywidgets_the_form_is_static(monkeypatch: pytest.MonkeyPatch, shown: list[Any]) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "ipywidgets":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.delenv("LMLIB_BOOK_BUILD", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    notebook.show("tokenization/merge-steps")
    assert "<lm-widget" in shown[0].data
