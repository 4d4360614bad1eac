"""The widgets of chapter 2 compute what PyTorch and the library compute."""

import math

import pytest
import torch

from lmlib.architecture import ModelConfig, RopeScaling, TransformerLM
from lmlib.architecture.positions import frequencies, rotate
from lmlib.book import declare
from lmlib.book.declare import InputError, Table
from lmlib.book.widgets import architecture_attention, architecture_parameters, architecture_rope

TEXT = "the cat saw the dog and the cat ran to the dog and the"


def _table(outputs) -> Table:
    return next(each for each in outputs if isinstance(each, Table))


@pytest.mark.parametrize("head", ["induction", "previous", "same", "first", "even"])
@pytest.mark.parametrize(("causal", "window"), [(True, 24), (False, 24), (True, 3)])
def test_weights_are_torchs_softmax_of_the_masked_scores(head, causal, window):
    outputs = architecture_attention.attention(TEXT, head, 9, 1.0, True, causal, window)
    rows = _table(outputs).rows
    scores = torch.tensor([row[2] for row in rows], dtype=torch.float64)
    place = torch.arange(len(rows))
    seen = ((place <= 8) | (not causal)) & ((place - 8).abs() < window)
    expected = scores.masked_fill(~seen, -math.inf).softmax(-1)
    torch.testing.assert_close(
        torch.tensor([row[4] for row in rows], dtype=torch.float64), expected, atol=2e-3, rtol=0
    )
    assert [row[3] == "yes" for row in rows] == seen.tolist()


@pytest.mark.parametrize(
    ("head", "place", "target"),
    [("previous", 8, "7 the"), ("first", 8, "1 the"), ("induction", 8, "3 saw"), ("induction", 5, None)],
)
def test_heads_attend_to_what_they_are_named_for(head, place, target):
    outputs = architecture_attention.attention(TEXT, head, place, 3.0, True, True, 24)
    shares = {row[0]: row[4] for row in _table(outputs).rows}
    if target is None:  # "dog" has not occurred before: nothing stands out for sure
        assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    else:
        assert shares[target] > 0.9


def test_without_the_root_weights_are_sharper():
    soft, sharp = (
        max(
            row[4]
            for row in _table(architecture_attention.attention(TEXT, "same", 9, 0.3, scaled, True, 24)).rows
        )
        for scaled in (True, False)
    )
    assert sharp > soft


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("  ", "same", 1, 1.0, True, True, 24), "text"),
        (("a " * 25, "same", 1, 1.0, True, True, 24), "text"),
        (("a b", "same", 3, 1.0, True, True, 24), "place"),
    ],
)
def test_attention_refuses_beside_the_field(arguments, field):
    with pytest.raises(InputError) as refused:
        architecture_attention.attention(*arguments)
    assert refused.value.field == field


@pytest.mark.parametrize("kind", ["none", "linear", "llama3"])
def test_rates_are_those_of_the_model(kind):
    scaling = None if kind == "none" else RopeScaling(kind, 8.0, original_context_length=8192)
    ours = architecture_rope.rates(64, 500_000.0, kind, 8.0, 8192)
    torch.testing.assert_close(torch.tensor(ours), frequencies(64, 500_000.0, scaling))


def test_the_score_is_that_of_the_models_rotation():
    turning = architecture_rope.rates(16, 10_000.0, "none", 1.0, 8192)
    angles = torch.tensor([[9.0], [4.0]]) * torch.tensor(turning)
    q, k = (
        rotate(torch.ones(1, 1, 1, 16), a.cos()[None, None], a.sin()[None, None]).flatten() for a in angles
    )
    assert architecture_rope.score(turning, 9, 4) == pytest.approx((q @ k).item() / 16, abs=1e-5)
    assert architecture_rope.score(turning, 1009, 1004) == pytest.approx(
        architecture_rope.score(turning, 9, 4), abs=1e-9
    )


def test_an_odd_width_cannot_be_turned():
    with pytest.raises(InputError) as refused:
        architecture_rope.rope(63, 1e4, 10, 0, "none", 1.0, 100)
    assert refused.value.field == "head_dim"


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_network(mlp, norm, tied):
    config = ModelConfig(300, 64, 48, 3, 4, n_kv_heads=2, d_ff=100, mlp=mlp, norm=norm, tied=tied)
    outputs = architecture_parameters.count(48, 3, 4, 2, 100, 300, mlp, norm, tied)
    assert outputs[0].value == sum(p.numel() for p in TransformerLM(config).parameters())


@pytest.mark.parametrize(("heads", "kv", "field"), [(7, 7, "n_heads"), (8, 3, "n_kv_heads")])
def test_parameters_refuse_heads_that_do_not_divide(heads, kv, field):
    with pytest.raises(InputError) as refused:
        architecture_parameters.count(48, 3, heads, kv, 100, 300, "swiglu", "rmsnorm", False)
    assert refused.value.field == field


@pytest.mark.parametrize("name", ["attention", "rope", "parameters"])
def test_built_in_values_give_an_answer(name):
    widget = declare.get(f"architecture/{name}")
    assert widget.compute(**{one.name: one.default for one in widget.inputs})
