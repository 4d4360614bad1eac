"""What cannot be is refused in the page: beside its field, with what is allowed; the last answer stays."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from lmlib.book.declare import Choice, Text, Toggle, get
from lmlib.resources.presets import PRESETS

pytestmark = pytest.mark.browser

LLAMA = PRESETS["llama-3-8b"].config
CONFIGS = [  # a pasted config.json, and what is said of it
    ("{", "not JSON"),
    ("{}", "model_type"),
    ('{"model_type": "bert"}', "must be one of"),
    ('{"model_type": "llama"}', "is missing from this llama configuration"),
    (json.dumps({**LLAMA, "num_key_value_heads": 7}), "must divide n_heads = 32"),
    (json.dumps({**LLAMA, "hidden_size": -1}), "at least 0"),
    (json.dumps({**LLAMA, "vocab_size": "many"}), "must be an integer"),
]
PASTED: list[tuple[dict[str, str], str, str]] = [
    ({"model": "config", "config": text}, "config", said) for text, said in CONFIGS
]
CASES: dict[str, list[tuple[dict[str, str], str, str]]] = {
    "roofline": [
        ({"m": "0"}, "m", "from 1 to"),
        ({"m": "many"}, "m", "is not a number"),
        ({"k": "1e40"}, "k", "from 1 to"),
        ({"operation": "attention", "n_kv_heads": "7"}, "n_kv_heads", "Must divide n_heads = 32"),
        ({"operation": "attention", "queries": "9000"}, "keys", "from 9,000"),
        ({"device": "a100-80gb", "dtype": "fp8"}, "dtype", "it has bf16, fp16"),
    ],
    "how-long": [
        *PASTED,
        ({"mfu_percent": "140"}, "mfu_percent", "from 0.01 to 100"),
        ({"tokens": "-5"}, "tokens", "from 1 to"),
        ({"n_devices": "1.5"}, "n_devices", "whole number"),
        ({"price_per_hour": "-1"}, "price_per_hour", "from 0 to"),
        ({"device": "apple-m4-max"}, "dtype", "publishes no FLOP/s"),
    ],
    "serve": [
        *PASTED,
        ({"model": "sizes", "n_kv_heads": "7"}, "n_kv_heads", "Must divide n_heads = 32"),
        ({"model": "sizes", "n_experts": "4", "top_k": "8"}, "top_k", "from 1 to 4"),
        ({"model": "sizes", "n_layers": "5000"}, "n_layers", "from 1 to 4,096"),
        ({"model": "sizes", "d_model": "-4"}, "d_model", "from 1 to"),
        ({"model": "gpt2", "context_length": "2048"}, "context_length", "positions for 1,024"),
        ({"n_devices": "0"}, "n_devices", "from 1 to"),
        ({"batch": "1e40"}, "batch", "from 1 to"),
    ],
    "train-what": [
        ({"flops": "1"}, "flops", "Allowed is from"),
        ({"flops": ""}, "flops", "is needed"),
        ({"budget_by": "devices", "days": "-3"}, "days", "from"),
        ({"budget_by": "devices", "device": "apple-m4-max"}, "device", "publishes no FLOP/s"),
    ],
    "layout": [
        *PASTED,
        ({"model": "llama-3-8b", "dp": "1", "pp": "1", "tp": "64"}, "tp", "32 heads, got 64"),
        ({"dp": "1", "tp": "16"}, "tp", "8 key/value heads, got 16; replicate_kv"),
        ({"dp": "3"}, "n_devices", "is 96, there are 64 devices"),
        ({"pp": "3", "n_devices": "48"}, "pp", "must divide the 80 layers"),
        ({"ep": "2"}, "ep", "has no experts"),
        ({"vpp": "2", "microbatches": "6"}, "microbatches", "multiple of pp = 4"),
        ({"n_devices": "8", "tp": "1"}, "sp", "needs tp > 1"),
        ({"context_length": "8191"}, "context_length", "multiple of cp"),
        ({"device": "rtx-4090"}, "device", "reaches 8 devices"),
        ({"dp": "-2"}, "dp", "from 1 to"),
        ({"tp": "1e9"}, "tp", "from 1 to"),
    ],
    "does-it-fit": [
        *PASTED,
        ({"tp": "3"}, "tp", "Must divide the 8 devices"),
        ({"n_devices": "16", "tp": "16"}, "tp", "8 key/value heads, got 16"),
        ({"n_devices": "64", "pp": "64"}, "pp", "too many for 32 layers"),
        ({"ep": "2"}, "ep", "has no experts"),
        ({"tp": "8", "context_length": "8191"}, "context_length", "multiple of tp = 8"),
        ({"model": "deepseek-v3", "attention": "eager"}, "attention", "flash only"),
        ({"batch_size": "-1"}, "batch_size", "from 1 to"),
    ],
}


def settled(page: Any, act: Callable[[], Any]) -> None:
    """Do something and wait for the widget's next answer."""
    before = int(page.get_attribute("lm-widget", "data-answers") or 0)
    act()
    page.wait_for_function(f"+document.querySelector('lm-widget').dataset.answers > {before}", timeout=20_000)
    page.wait_for_function("!document.querySelector('lm-widget').busy")


def enter(page: Any, name: str, field: str, value: str) -> None:
    """Put a value in as a reader does; nothing happens where it stands there already."""
    at = page.locator(f"lm-widget [name={field}]")
    match get(name).input(field):
        case Choice():
            if at.input_value() != value:
                settled(page, lambda: at.select_option(value))
        case Toggle():
            if at.is_checked() != (value == "true"):
                settled(page, lambda: at.set_checked(value == "true"))
        case _:
            if at.input_value() != value:
                settled(page, lambda: at.fill(value))


def answer(page: Any) -> str:
    """What the outputs say, but for the words of plots: a plot is drawn when it comes into view."""
    said: str = page.evaluate(
        """() => {
            const shown = document.querySelector(".lm-outputs").cloneNode(true);
            shown.querySelectorAll("lm-plot").forEach(plot => plot.remove());
            return shown.textContent;
        }"""
    )
    return said


@pytest.mark.parametrize("what", CASES)
def test_what_cannot_be_is_refused_beside_its_field(visit: Callable[..., Any], what: str) -> None:
    name = f"resources/{what}"
    page, widget = visit(name), get(name)
    for entries, field, said in CASES[what]:
        settled(page, lambda: page.get_by_role("button", name="Reset", exact=True).click())
        assert page.locator(".lm-error:not([hidden])").count() == 0
        for key, value in entries.items():
            before = answer(page)
            enter(page, name, key, value)
        shown = page.locator(".lm-error:not([hidden])")
        assert shown.count() == 1, (entries, shown.all_inner_texts())
        error = page.locator(f"[data-field={field}] .lm-error")
        assert said in error.inner_text(), (entries, error.inner_text())
        assert error.get_attribute("role") == "alert"
        invalid = page.locator(f"lm-widget [name={field}]")
        assert invalid.get_attribute("aria-invalid") == "true"
        assert error.get_attribute("id") in invalid.get_attribute("aria-describedby")
        assert before
        assert answer(page) == before
        # What the page says is what Python says.
        if not any(isinstance(widget.input(key), Text) for key in entries):
            texts = page.evaluate(
                "Object.fromEntries([...document.querySelectorAll('lm-widget [name]')]"
                ".map(at => [at.name, at.type === 'checkbox' ? String(at.checked) : at.value]))"
            )
            assert widget.run(texts)["errors"] == {field: error.inner_text()}
