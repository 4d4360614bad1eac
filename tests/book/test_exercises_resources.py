"""Chapter 4's exercises: solutions pass, plausible mistakes fail with the message that points at them."""

import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmlib.book.display import markdown
from lmlib.book.exercises import machinery
from lmlib.book.exercises import resources_numbers as numbers
from lmlib.book.exercises import resources_plans as plans
from lmlib.book.exercises.display import exercise_html
from lmlib.book.exercises.machinery import check, check_source
from lmlib.resources import Model, flops, kv_cache, load
from lmlib.resources.activations import activations
from lmlib.resources.parameters import parameters
from lmlib.resources.presets import PRESETS
from lmlib.resources.profile import Profile

NAMES = machinery.names("resources")
EXERCISES = [machinery.get(name) for name in NAMES]
WRONG = [(each, wrong) for each in EXERCISES for wrong in each.wrong]


def test_the_chapter_goes_from_warm_up_to_project():
    assert len(NAMES) >= 10
    assert EXERCISES[0].difficulty == 1
    assert EXERCISES[-1].difficulty == 5


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
    assert exercise.in_page
    for prose in (exercise.task, exercise.remark, *exercise.hints):
        assert "`" not in markdown(prose)  # every code span is closed
    assert exercise.function in exercise.starter
    assert "<lm-exercise" in exercise_html(exercise)


# The solutions against oracles: Python's struct, PyTorch, and the ledgers that the library's tests check.

LLAMAS = [name for name, preset in PRESETS.items() if preset.config["model_type"] == "llama"]


@given(st.integers(0, 2**16 - 1))
def test_bits_of_fp16_mean_what_struct_reads(code):
    (expected,) = struct.unpack(">e", code.to_bytes(2, "big"))
    ours = numbers.float_value(f"{code:016b}", 5)
    assert ours == expected or (math.isnan(ours) and math.isnan(expected))


@given(st.lists(st.integers(1, 2**20).map(lambda n: n / 2**12), max_size=20))
def test_sums_in_bf16_are_torch_s(terms):
    total = torch.tensor(0.0, dtype=torch.bfloat16)
    for term in terms:
        total = total + torch.tensor(term).to(torch.bfloat16)
    assert numbers.rounded_sum(terms, 7) == total.item()


def test_products_cost_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    for a, b in (((3, 5), (5, 7)), ((2, 4, 8), (2, 8, 3))):
        with FlopCounterMode(display=False) as counter:
            torch.ones(a) @ torch.ones(b)
        assert plans.matmul_flops(a, b) == counter.get_total_flops()


@pytest.mark.parametrize("name", LLAMAS)
def test_plans_of_the_llama_family_agree_with_the_ledgers(name):
    config, model = PRESETS[name].config, load(name)
    assert plans.count_parameters(config) == parameters(model).total
    assert plans.training_flops(config, 4096, 4096) == flops.training(model, 1, 4096, mask="half").total
    attention = model.layers[0].attention
    windows = [layer.attention.window for layer in model.layers]
    ours = plans.cache_bytes(windows, attention.n_kv_heads, attention.head_dim, 5000, 3)
    assert ours == kv_cache.cache(model, 5000, 3).total


@pytest.mark.parametrize("recompute", [False, True])
def test_activations_agree_with_the_ledger_but_for_token_ids_and_a_scalar(recompute):
    model = Model.from_hf(PRESETS["tinyllama-1.1b"].config)
    profile = Profile(recompute="full" if recompute else "none")
    ids_and_scalar = 2 * 8 * 3 * 512 + 4
    ours = plans.activation_bytes(PRESETS["tinyllama-1.1b"].config, 3, 512, recompute)
    assert ours == activations(model, profile, 3, 512).total - ids_and_scalar
