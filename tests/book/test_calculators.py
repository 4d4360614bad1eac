"""The calculators of chapter 4: relations that must hold between entries and answers, and what is refused."""

import json
import random
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlib.book import forms
from lmlib.book.declare import Choice, Number, Widget, get
from lmlib.book.quantities import readable
from lmlib.book.widgets.resources_models import sizes_of
from lmlib.resources import load
from lmlib.resources.kv_cache import cache
from lmlib.resources.memory import memory
from lmlib.resources.optimizer import Optimizer
from lmlib.resources.parameters import parameters
from lmlib.resources.presets import PRESETS
from lmlib.resources.profile import Profile

ROOF, LONG, SERVE, TRAIN, LAYOUT, FIT = NAMES = tuple(
    f"resources/{what}" for what in ("roofline", "how-long", "serve", "train-what", "layout", "does-it-fit")
)
WITH_MODEL = (LONG, SERVE, LAYOUT, FIT)
FAULT = "could not be computed"
_LONE = {"dp": 1, "tp": 1, "pp": 1, "sp": "false", "n_devices": 1}


def ask(name: str, **entries: object) -> list[dict[str, Any]]:
    """The outputs for these entries, which must not be refused; groups are opened."""
    answer = get(name).run({key: str(value) for key, value in entries.items()})
    assert answer["ok"], answer

    def flat(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [one for out in outputs for one in (flat(out["outputs"]) if out["kind"] == "group" else [out])]

    return flat(answer["outputs"])


def refusal(name: str, **entries: object) -> dict[str, str]:
    answer = get(name).run({key: str(value) for key, value in entries.items()})
    assert not answer["ok"], f"{entries} were accepted"
    errors: dict[str, str] = answer["errors"]
    return errors


def number(outputs: list[dict[str, Any]], label: str) -> float:
    return float(Fraction(word(outputs, label)))


def word(outputs: list[dict[str, Any]], label: str) -> str:
    return next(str(out["value"]) for out in outputs if out["kind"] == "value" and out["label"] == label)


def table(outputs: list[dict[str, Any]], start: str) -> list[list[str]]:
    return next(out["rows"] for out in outputs if out["kind"] == "table" and out["caption"].startswith(start))


def ledger(outputs: list[dict[str, Any]], start: str) -> list[dict[str, Any]]:
    found = (
        out["terms"] for out in outputs if out["kind"] == "ledgertable" and out["caption"].startswith(start)
    )
    return next(found)


# all of them


@pytest.mark.parametrize("name", NAMES)
def test_the_form_stands_with_its_answer_and_explains_every_term(name: str) -> None:
    assert "lm-outputs" in forms.form_html(get(name))
    outputs = ask(name)
    terms = [term for out in outputs if out["kind"] == "ledgertable" for term in out["terms"]]
    assert len(terms) >= 3
    for term in terms:
        assert term["formula"], term
        assert term["numbers"], term
        assert term["section"].startswith("../chapters/04_resources.html#sec-"), term
    assert get(name).section


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_every_choice_answers_or_says_what_is_allowed(name: str) -> None:
    widget = get(name)
    for choice in widget.inputs:
        if not isinstance(choice, Choice):
            continue
        for value, _ in choice.options:
            filled = {key: widget.input(key).text(to) for key, to in choice.presets.get(value, {}).items()}
            answer = widget.run({choice.name: value, **filled})
            assert FAULT not in str(answer.get("errors")), (choice.name, value, answer)
            if choice.name == "start":
                assert answer["ok"], (value, answer)


@pytest.mark.parametrize("name", NAMES)
def test_random_entries_are_answered_or_refused_never_failed(
    name: str, random_plan: Callable[[Widget, random.Random], dict[str, str]]
) -> None:
    widget, chance, good = get(name), random.Random(11), 0
    for _ in range(150):
        entries = random_plan(widget, chance)
        answer = json.loads(json.dumps(widget.run(entries)))
        assert FAULT not in str(answer.get("errors")), (entries, answer)
        good += answer["ok"]
    assert 25 < good < 150


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_number_within_its_bounds_alone_is_answered_or_refused(name: str, data: st.DataObject) -> None:
    widget = get(name)
    one = data.draw(st.sampled_from([each for each in widget.inputs if isinstance(each, Number)]))
    if one.integer:
        value = str(data.draw(st.integers(int(one.minimum), int(one.maximum))))
    else:
        value = repr(data.draw(st.floats(float(one.minimum), float(one.maximum))))
    answer = widget.run({one.name: value})
    assert FAULT not in str(answer.get("errors")), (one.name, value, answer)


# the model


@pytest.mark.parametrize("name", WITH_MODEL)
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("", "not JSON"),
        ("{'model_type': 'llama'}", "not JSON"),
        ("[" * 15_000, "not JSON"),
        ("[1, 2]", "must be an object"),
        ("{}", "model_type"),
        ('{"model_type": "bert"}', "must be one of"),
        ('{"model_type": "llama"}', "is missing from this llama configuration"),
        (json.dumps({**PRESETS["llama-3-8b"].config, "num_key_value_heads": 7}), "must divide n_heads = 32"),
        (json.dumps({**PRESETS["llama-3-8b"].config, "hidden_size": -1}), "at least 0"),
        (json.dumps({**PRESETS["llama-3-8b"].config, "num_hidden_layers": 10**9}), "4,096"),
        (json.dumps({**PRESETS["llama-3-8b"].config, "vocab_size": "many"}), "must be an integer"),
        (json.dumps({**PRESETS["gpt2"].config, "n_head": 7}), "must divide n_embd = 768"),
    ],
)
def test_a_bad_configuration_is_refused_beside_its_field(name: str, config: str, said: str) -> None:
    errors = refusal(name, model="config", config=config)
    assert list(errors) == ["config"]
    assert said in errors["config"]


def test_a_pasted_configuration_answers_as_its_preset() -> None:
    pasted = ask(SERVE, model="config", config=json.dumps(PRESETS["deepseek-v3"].config), n_devices=16)
    assert pasted == ask(SERVE, model="deepseek-v3", n_devices=16)
    assert word(pasted, "Cache of one token") == "70272"  # DeepSeek-AI, arXiv:2505.09343, table 1


@pytest.mark.parametrize("name", WITH_MODEL)
def test_what_a_configuration_leaves_open_is_said(name: str) -> None:
    """Nothing is guessed silently: heads of keys and values, and whether the head is tied."""
    config = dict(PRESETS["llama-3-8b"].config)
    said = [out["text"] for out in ask(name, model="config", config=json.dumps(config)) if "text" in out]
    assert not any("Not in this config.json" in text for text in said)
    config = {key: config[key] for key in config if key not in ("num_key_value_heads", "tie_word_embeddings")}
    said = [out["text"] for out in ask(name, model="config", config=json.dumps(config)) if "text" in out]
    (note,) = [text for text in said if "Not in this config.json" in text]
    assert "num_key_value_heads = 32: absent, as many as there are query heads" in note
    assert "tie_word_embeddings = false: absent, the default of llama" in note


def test_a_preset_fills_the_sizes_that_describe_it_in_full() -> None:
    choice = get(SERVE).input("model")
    assert isinstance(choice, Choice)
    assert len(choice.presets) >= 10
    for name, filled in choice.presets.items():
        assert filled == sizes_of(load(name))
        by_sizes = ask(
            SERVE, **{**{key: get(SERVE).input(key).text(to) for key, to in filled.items()}, "model": "sizes"}
        )
        by_name = ask(SERVE, model=name)
        assert number(by_sizes, "Tokens a second, at most") == number(by_name, "Tokens a second, at most"), (
            name
        )
    assert sizes_of(load("deepseek-v3")) is None
    assert sizes_of(load("gemma-2-9b")) is None
    assert sizes_of(load("gpt2")) is None


@pytest.mark.parametrize(
    ("name", "entries", "field", "said"),
    [
        (SERVE, {"model": "sizes", "n_kv_heads": 7}, "n_kv_heads", "Must divide n_heads = 32"),
        (SERVE, {"model": "sizes", "n_experts": 4, "top_k": 8}, "top_k", "from 1 to 4"),
        (SERVE, {"model": "sizes", "n_experts": 4, "gated": "false"}, "gated", "experts are gated"),
        (SERVE, {"model": "sizes", "n_layers": 5000}, "n_layers", "from 1 to 4,096"),
        (SERVE, {"model": "sizes", "d_model": -4}, "d_model", "from 1 to"),
        (SERVE, {"model": "gpt2", "context_length": 2048}, "context_length", "positions for 1,024"),
        (SERVE, {"device": "a100-80gb", "compute_dtype": "fp8"}, "compute_dtype", "it has bf16"),
        (SERVE, {"n_devices": 0}, "n_devices", "from 1 to"),
        (SERVE, {"batch": "1e40"}, "batch", "from 1 to"),
        (SERVE, {"model": "bloom"}, "model", "is not one of"),
        (ROOF, {"operation": "attention", "n_kv_heads": 7}, "n_kv_heads", "Must divide n_heads = 32"),
        (ROOF, {"operation": "attention", "queries": 9000}, "keys", "from 9,000"),
        (ROOF, {"dtype": "fp8", "device": "a100-80gb"}, "dtype", "it has bf16, fp16"),
        (ROOF, {"m": 0}, "m", "from 1 to"),
        (ROOF, {"m": "many"}, "m", "is not a number"),
        (LONG, {"device": "apple-m4-max"}, "dtype", "publishes no FLOP/s"),
        (LONG, {"mfu_percent": 140}, "mfu_percent", "from 0.01 to 100"),
        (LONG, {"price_per_hour": -1}, "price_per_hour", "from 0 to"),
        (LONG, {"tokens": "1e30"}, "tokens", "from 1 to"),
        (TRAIN, {"flops": 1}, "flops", "Allowed is from"),
        (
            TRAIN,
            {"budget_by": "devices", "days": "0.001", "mfu_percent": "0.01", "n_devices": 1},
            "days",
            "10^15",
        ),
        (TRAIN, {"budget_by": "devices", "device": "apple-m4-max"}, "device", "publishes no FLOP/s"),
        (LAYOUT, {"tp": 64, "dp": 1, "pp": 1, "model": "llama-3-8b"}, "tp", "32 heads, got 64"),
        (LAYOUT, {"tp": 16, "dp": 1}, "tp", "8 key/value heads, got 16; replicate_kv"),
        (LAYOUT, {"dp": 3}, "n_devices", "is 96, there are 64 devices"),
        (LAYOUT, {"pp": 3, "n_devices": 48}, "pp", "must divide the 80 layers; switch on Uneven"),
        (LAYOUT, {"pp": 128, "n_devices": 2048}, "pp", "too many for 80 layers"),
        (LAYOUT, {"ep": 2}, "ep", "has no experts"),
        (LAYOUT, {"ep": 7}, "ep", "must divide the dp"),
        (LAYOUT, {"vpp": 2, "microbatches": 6}, "microbatches", "multiple of pp = 4"),
        (LAYOUT, {"context_length": 8191}, "context_length", "multiple of cp"),
        (LAYOUT, {"sp": "true", "tp": 1, "n_devices": 8}, "sp", "needs tp > 1"),
        (LAYOUT, {"device": "rtx-4090"}, "device", "reaches 8 devices"),
        (LAYOUT, {**_LONE, "device": "apple-m4-max"}, "device", "publishes no FLOP/s"),
        (LAYOUT, {"efficiency_percent": 0}, "efficiency_percent", "from 0.1 to 100"),
        (FIT, {"pp": 3}, "pp", "must divide the 8 devices"),
        (FIT, {"pp": 64, "n_devices": 64}, "pp", "too many for 32 layers"),
        (FIT, {"pp": 4, "vpp": 2, "microbatches": 6}, "microbatches", "multiple of pp = 4"),
        (FIT, {"vpp": 2}, "vpp", "needs pp > 1"),
        (FIT, {"ep": 2}, "ep", "has no experts"),
        (FIT, {"model": "deepseek-v3", "ep": 8, "precision": "autocast"}, "precision", "without ep"),
        (FIT, {"tp": 3}, "tp", "Must divide the 8 devices"),
        (FIT, {"tp": 16, "n_devices": 16}, "tp", "8 key/value heads, got 16"),
        (FIT, {"tp": 8, "context_length": 8191}, "context_length", "multiple of tp = 8"),
        (FIT, {"model": "deepseek-v3", "attention": "eager"}, "attention", "flash only"),
        (FIT, {"batch_size": -1}, "batch_size", "from 1 to"),
    ],
)
def test_bad_input_is_refused_beside_its_field(
    name: str, entries: dict[str, object], field: str, said: str
) -> None:
    errors = refusal(name, **entries)
    assert list(errors) == [field], errors
    assert said in errors[field]


# roofline


@given(st.integers(1, 10**5), st.integers(1, 10**5), st.sampled_from(["h100", "a100-80gb", "l4", "tpu-v5e"]))
@settings(max_examples=60, deadline=None)
def test_the_advised_number_of_rows_is_where_arithmetic_takes_over(k: int, n: int, device: str) -> None:
    outputs = ask(ROOF, m=1, k=k, n=n, device=device)
    advice = next(out["text"] for out in outputs if out["kind"] == "note")
    if "However many rows" in advice:
        assert word(ask(ROOF, m=2**32, k=k, n=n, device=device), "Bound by") == "memory"
        return
    rows = int(advice.split("m = ")[1].split(" rows")[0].replace(",", ""))
    if rows <= 2**32:
        assert word(ask(ROOF, m=rows, k=k, n=n, device=device), "Bound by") == "arithmetic"
    if 1 < rows <= 2**32:
        assert word(ask(ROOF, m=rows - 1, k=k, n=n, device=device), "Bound by") == "memory"


def test_the_time_of_a_product_is_flops_over_peak_or_bytes_over_bandwidth() -> None:
    one = ask(ROOF, device="own", peak=100, bandwidth=1000, m=1, k=1000, n=1000)
    assert number(one, "Takes at least") == pytest.approx(2 * (10**6 + 2000) / 1e12)
    many = ask(ROOF, device="own", peak=100, bandwidth=1000, m=10**6, k=1000, n=1000)
    assert number(many, "Takes at least") == pytest.approx(2e12 / 1e14)
    assert number(many, "Share of the peak") == 100


# how long


def test_six_n_d_over_the_speed_of_the_devices() -> None:
    run = ask(LONG, convention="6nd")  # 70B on 15T tokens, 1,024 H100 at 40 %
    count = parameters(load("llama-3-70b")).total
    assert number(run, "Takes") == pytest.approx(6 * count * 15e12 / (1024 * 989.4e12 * 0.4), rel=1e-9)
    assert number(run, "Costs") == pytest.approx(2 * 1024 * number(run, "Takes") / 3600, rel=1e-8)


@given(st.integers(1, 10**5), st.floats(1, 100), st.sampled_from(["causal", "megatron", "palm", "6nd"]))
@settings(max_examples=30, deadline=None)
def test_devices_divide_the_days_and_the_convention_gives_its_mfu_back(
    n_devices: int, percent: float, convention: str
) -> None:
    entries = {"mfu_percent": percent, "convention": convention}
    one, two = ask(LONG, n_devices=n_devices, **entries), ask(LONG, n_devices=2 * n_devices, **entries)
    assert number(two, "Takes") == pytest.approx(number(one, "Takes") / 2, rel=1e-8)
    assert number(two, "Device-hours") == pytest.approx(number(one, "Device-hours"), rel=1e-8)
    rows = dict(table(one, "The same speed as MFU"))
    assert float(rows[convention]) == pytest.approx(percent, rel=1e-8)


def test_a_device_of_unknown_power_has_no_energy_and_says_so() -> None:
    outputs = ask(LONG, device="tpu-v5e")
    assert all(out.get("label") != "Energy" for out in outputs)
    assert any("power" in out["text"] for out in outputs if out["kind"] == "note")


# serving


@pytest.mark.parametrize("model", ["llama-3-8b", "deepseek-v3", "gemma-2-27b", "gpt-oss-20b"])
def test_the_largest_batch_is_the_last_that_fits(model: str) -> None:
    outputs = ask(SERVE, model=model, n_devices=32, device="h200")
    most, one = int(word(outputs, "Largest batch")), cache(load(model), 8192).total
    usable = 32 * 141 * 10**9 * Fraction(9, 10) - 2 * int(parameters(load(model)).total)
    assert most * one <= usable < (most + 1) * one
    assert int(table(outputs, "Bounds by batch")[-1][0]) == max(most, 16)


def test_fewer_bits_fit_more_sequences_and_decode_faster() -> None:
    wide, narrow = ask(SERVE), ask(SERVE, weight_dtype="int4", cache_dtype="fp8")
    assert int(word(narrow, "Largest batch")) > 2 * int(word(wide, "Largest batch"))
    assert number(narrow, "Time of a token, at least") < number(wide, "Time of a token, at least")


# what to train


@pytest.mark.parametrize("flops", ["1e18", "5.76e23", "3.8e25"])
def test_every_law_spends_the_whole_budget(flops: str) -> None:
    for _, size, tokens, *_ in table(ask(TRAIN, flops=flops), "One budget"):
        assert 6 * float(size) * float(tokens) == pytest.approx(float(flops), rel=0.01)


def test_the_refit_of_chinchilla_and_the_disagreement() -> None:
    outputs = ask(TRAIN)
    assert number(outputs, "Parameters") == pytest.approx(72.3e9, rel=0.002)  # arXiv:2404.10102
    assert number(outputs, "Tokens per parameter") == pytest.approx(18.4, rel=0.002)
    sizes = [float(row[1]) for row in table(outputs, "One budget")]
    assert f"factor of {max(sizes) / min(sizes):.3g}" in str(outputs)


def test_a_budget_of_devices_is_their_product_and_serving_shrinks_the_model() -> None:
    outputs = ask(TRAIN, budget_by="devices", n_devices=8, days=1, mfu_percent=40)
    assert number(outputs, "Budget") == pytest.approx(8 * 86_400 * 989.4e12 * 0.4)
    trained, lifetime = table(ask(TRAIN, tokens_served=10**13), "The same loss")
    assert float(lifetime[1]) < float(trained[1])
    assert float(lifetime[2]) > float(trained[2])
    assert float(lifetime[5]) < float(trained[5])


# layouts


@pytest.mark.parametrize("pp", [1, 2, 4, 8])
@pytest.mark.parametrize("tp", [1, 2, 8])
def test_stages_and_tensor_parallel_ranks_add_up_to_the_whole_model(pp: int, tp: int) -> None:
    outputs = ask(LAYOUT, start="custom", pp=pp, tp=tp, dp=1, zero=0, sp="false", n_devices=pp * tp)
    held = sum(int(row[3]) for row in table(outputs, "The fullest rank")) * tp // 2
    model = load("llama-3-70b")
    copied = (tp - 1) * (2 * model.n_layers + 1) * model.d_model  # norms are on every rank
    assert held == parameters(model).total + copied
    assert number(outputs, "Pipeline bubble") == pytest.approx(100 * (pp - 1) / 16)


def test_zero_cuts_what_it_says_and_only_that() -> None:
    rows = []
    for zero in range(4):
        outputs = ask(LAYOUT, start="custom", zero=zero, dp=8, tp=1, pp=1, sp="false", n_devices=8)
        rows.append([int(cell) for cell in table(outputs, "The fullest rank")[0][3:6]])
    whole = rows[0]
    for zero, row in enumerate(rows):
        cut = [zero >= 3, zero >= 2, zero >= 1]
        for kind in range(3):
            assert row[kind] == pytest.approx(whole[kind] / (8 if cut[kind] else 1), rel=1e-6)


def test_a_lone_rank_sends_nothing() -> None:
    outputs = ask(LAYOUT, start="custom", dp=1, tp=1, pp=1, sp="false", n_devices=1)
    assert number(outputs, "Sent by one rank in a step") == 0
    assert any("sends nothing" in out.get("text", "") for out in outputs)


# does it fit


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("model", ["llama-3-8b", "mixtral-8x7b", "deepseek-v3"])
def test_without_sharding_the_peak_is_that_of_the_timeline(model: str, recompute: str) -> None:
    outputs = ask(FIT, model=model, recompute=recompute)
    timeline = memory(load(model), Profile(recompute=recompute), Optimizer(master=True), 1, 8192)
    assert int(word(outputs, "Peak on one rank")) == timeline.peak
    assert sum(int(term["value"]) for term in ledger(outputs, "What is alive")) == timeline.peak
    rows = table(outputs, "Bytes at the peak")
    assert sum(int(row[1]) for row in rows[:-1]) == int(rows[-1][1]) == timeline.peak
    assert all(int(cell) >= 0 for row in rows for cell in row[1:])


_ALONE = {"model": "llama-3.2-1b", "device": "own", "n_devices": 1}


@pytest.mark.parametrize(
    ("entries", "change", "then"),
    [
        ({}, "ZeRO 3", {"zero": 3}),
        ({**_ALONE, "memory": 36}, "a loss in chunks", {"loss": "chunked"}),
        (
            {**_ALONE, "memory": 45, "loss": "chunked", "batch_size": 4},
            "micro-batches of 1",
            {"batch_size": 1},
        ),
    ],
)
def test_the_change_that_is_named_makes_it_fit(
    entries: dict[str, object], change: str, then: dict[str, object]
) -> None:
    before, after = ask(FIT, **entries), ask(FIT, **entries | then)
    assert word(before, "Fits") == "no"
    note = next(out["text"] for out in before if out["kind"] == "note")
    assert f"It would with {change}" in note
    assert word(after, "Fits") == "yes"
    promised = table(before, "Bytes at the peak")[-1][2]
    assert word(after, "Peak on one rank") == promised
    assert readable(int(promised), "B") in note


def test_a_pipeline_is_shown_stage_by_stage_and_its_fullest_rank_counts() -> None:
    outputs = ask(FIT, model="llama-3-70b", n_devices=64, tp=8, pp=4, zero=1, batch_size=2)
    stages = table(outputs, "Bytes at the peak of a rank of each stage")
    assert len(stages) == 4
    peaks = [int(row[-2]) for row in stages]
    assert str(max(peaks)) == word(outputs, "Peak on one rank")
    for row in stages:
        assert sum(int(value) for value in row[1:-2]) == int(row[-2])


_CUT = {"zero": 3, "loss": "chunked", "recompute": "full"}


@pytest.mark.parametrize(
    ("entries", "name"),
    [
        ({**_CUT, "model": "mixtral-8x7b", "n_devices": 64, "device": "rtx-4090"}, "tp"),
        (
            {
                **_CUT,
                "model": "deepseek-v3",
                "n_devices": 2048,
                "context_length": 4096,
                "device": "own",
                "memory": 50,
                "node_size": 1,
            },
            "ep",
        ),
    ],
)
def test_more_parallelism_that_is_named_makes_it_fit(entries: dict[str, object], name: str) -> None:
    """The change is read from the answer, entered, and must do what was promised."""
    before = ask(FIT, **entries)
    note = next(out["text"] for out in before if out["kind"] == "note")
    found = re.search(rf"It would with {name} = (\d+)", note)
    assert found, note
    assert word(ask(FIT, **entries, **{name: found[1]}), "Fits") == "yes"
    assert word(ask(FIT, **entries, **{name: int(found[1]) // 2}), "Fits") == "no"


def test_seconds_of_a_step_add_up_and_give_its_speed() -> None:
    outputs = ask(LAYOUT)
    terms = ledger(outputs, "Seconds of a step")
    seconds = number(outputs, "A step takes")
    assert sum(float(term["value"]) for term in terms) == pytest.approx(seconds, rel=1e-6)
    tokens = number(outputs, "Tokens of a step")
    assert number(outputs, "Speed") == pytest.approx(tokens / seconds, rel=1e-6)
    faster = ask(LAYOUT, efficiency_percent=80)
    assert number(faster, "MFU (causal)") > number(outputs, "MFU (causal)")


def test_what_cannot_fit_is_said_to_need_more_devices() -> None:
    outputs = ask(FIT, model="deepseek-v3")
    assert word(outputs, "Fits") == "no"
    assert any("takes more devices" in out.get("text", "") for out in outputs)


def test_times_and_energies_read_well() -> None:
    assert [readable(value, "s") for value in (0, 3e-9, 0.0125, 45, 600, 7200, 864_000, 4e7)] == [
        "0 s",
        "3 ns",
        "12.5 ms",
        "45 s",
        "10 minutes",
        "2 hours",
        "10 days",
        "1.268 years",
    ]
    assert readable(70_272, "B/token") == "70.27 kB/token"
