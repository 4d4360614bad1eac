"""Chapter 4's exercises: what the solutions compute, against oracles not written for this book."""

import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmlib.book.exercises import resources_numbers as numbers
from lmlib.book.exercises import resources_plans as plans
from lmlib.resources import Model, flops, kv_cache, load
from lmlib.resources.activations import activations
from lmlib.resources.parameters import parameters
from lmlib.resources.presets import PRESETS
from lmlib.resources.profile import Profile

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
