"""Chapter 2's exercises: what the solutions compute, against oracles not written for this book."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lmlib.architecture import ModelConfig, MoEConfig, TransformerLM
from lmlib.architecture.initialize import truncated_normal
from lmlib.architecture.moe import Router
from lmlib.architecture.norms import RMSNorm
from lmlib.architecture.positions import frequencies, rotate
from lmlib.book.exercises import architecture_attention as attention
from lmlib.book.exercises import architecture_models as models
from lmlib.book.exercises import architecture_numbers as numbers
from lmlib.book.page_files import page_files
from lmlib.resources import flops
from lmlib.resources.parameters import parameters

IN_PAGE = {
    f"architecture/{what}" for what in ("ff-width", "softmax", "initial-std", "rms-norm", "accounting")
}


def test_the_page_has_those_that_need_no_torch_and_does_not_look_for_it():
    carried = {name for name in page_files() if "exercises/architecture" in name}
    assert carried == {
        "lmlib/book/exercises/architecture.py",
        "lmlib/book/exercises/architecture_numbers.py",
    }
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else found(name, *rest)\n"
        "from lmlib.book.exercises import machinery; print(*machinery.names('architecture'))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) == IN_PAGE


# The solutions against oracles: SciPy, PyTorch, the library's model, and the ledgers that its tests check.


@pytest.mark.parametrize("d_model", [64, 100, 512, 768, 1600, 4096])
def test_the_width_is_the_library_s(d_model):
    config = ModelConfig(vocab_size=10, context_length=8, d_model=d_model, n_layers=1, n_heads=1)
    assert numbers.ff_width(d_model) == config.d_ff


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12))
def test_softmax_is_torch_s(scores):
    expected = torch.tensor(scores, dtype=torch.float64).softmax(0)
    torch.testing.assert_close(torch.tensor(numbers.softmax(scores), dtype=torch.float64), expected)


@pytest.mark.parametrize("cut", [0.5, 1.0, 2.0, 3.0, 8.0])
def test_the_std_of_first_weights_is_scipy_s(cut):
    assert numbers.initial_std(1, cut) == pytest.approx(stats.truncnorm(-cut, cut).std(), rel=1e-9)


def test_the_std_of_first_weights_is_what_the_library_draws():
    torch.manual_seed(0)
    weight = torch.empty(1000, 1000)
    truncated_normal(weight, 1000**-0.5)
    assert weight.std().item() == pytest.approx(numbers.initial_std(1000), rel=5e-3)


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=9))
def test_rms_norm_is_the_library_s(values):
    norm = RMSNorm(len(values), 1e-5, "eager").double()
    weight = torch.linspace(-1, 2, len(values), dtype=torch.float64)
    norm.weight.data.copy_(weight)
    expected = norm(torch.tensor(values, dtype=torch.float64))
    ours = torch.tensor(numbers.rms_norm(values, weight.tolist()), dtype=torch.float64)
    torch.testing.assert_close(ours, expected)


def _sizes(d_ff):
    sizes = numbers.GPT2_XL | {"d_ff": d_ff}
    return sizes, ModelConfig(**sizes, context_length=16384, n_heads=25).resources()


@pytest.mark.parametrize("d_ff", [6400, 4288])
@pytest.mark.parametrize("length", [1024, 16384])
def test_the_books_agree_with_the_ledgers(d_ff, length):
    sizes, model = _sizes(d_ff)
    books = numbers.account(sizes, length)
    assert books.pop("parameters") == parameters(model).total
    ledger = flops.forward(model, 1, length, mask="full")
    assert sum(books.values()) == ledger.total
    pairs = sum(term.value for path, term in ledger.terms() if "attention " in path[-1])
    assert books["attention"] == pairs


def test_the_remark_s_numbers_are_those_of_the_solution():
    wide, narrow = (numbers.GPT2_XL | {"d_ff": d_ff} for d_ff in (6400, 4288))

    def total(sizes, length):
        books = numbers.account(sizes, length)
        return sum(books.values()) - books["parameters"]

    def share(sizes, length):
        return 100 * numbers.account(sizes, length)["attention"] / total(sizes, length)

    remark = numbers.ACCOUNTING.remark
    said = [
        f"{numbers.account(wide, 1)['parameters']:,} parameters",
        f"{numbers.account(wide, 1)['parameters'] * 4 / 1e9:.1f} GB",
        f"{total(wide, 1024) / 1e12:.2f} TFLOPs",
        f"is {share(wide, 1024):.0f} %",
        f"{total(wide, 16384) / 1e12:.1f} TFLOPs",
        f"{total(wide, 16384) / total(wide, 1024):.0f} times as many",
        f"{share(wide, 16384):.0f} % of them",
        f"{numbers.account(narrow, 1)['parameters']:,} parameters",
        f"{share(narrow, 16384):.0f} %",
    ]
    flat = " ".join(remark.split())
    assert [text for text in said if text not in flat] == []


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 8), st.lists(st.integers(0, 10**5), min_size=1, max_size=5), st.sampled_from([1e4, 5e5])
)
def test_rope_is_the_library_s(half, places, theta):
    positions = torch.tensor(places)
    x = attention.draw(2, 3, len(places), 2 * half)  # (B, H, T, K); the library has (B, T, H, K)
    angles = positions[:, None] * frequencies(2 * half, theta).double()
    expected = rotate(x.transpose(1, 2), angles.cos(), angles.sin()).transpose(1, 2)
    tolerance = 1e-7 * (1 + max(places))  # the library's rates are fp32
    torch.testing.assert_close(attention.rope(x, positions, theta), expected, rtol=0, atol=tolerance)


def test_rope_takes_positions_of_each_sequence():
    x, positions = attention.draw(2, 3, 4, 6), torch.tensor([[0, 1, 2, 3], [7, 8, 0, 1]])
    both = attention.rope(x, positions[:, None])
    for row in range(2):
        torch.testing.assert_close(both[row], attention.rope(x[row], positions[row]))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)])
def test_attention_is_torch_s(lead):
    q, k, v = (attention.draw(*lead, n, 4, seed=n) for n in (5, 7, 7))
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[:, 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attention.attention(q, k, v, mask), expected)


def _library_model(model, n_heads):
    """The library's model with the exercise's weights."""
    V, D = model["embedding"].shape
    d_ff = model["layers"][0]["gate_proj"].shape[0]
    config = ModelConfig(V, 64, D, len(model["layers"]), n_heads, d_ff=d_ff, kernels="eager")
    library = TransformerLM(config).double()
    library.embedding.weight.data.copy_(model["embedding"])
    library.norm.weight.data.copy_(model["norm"])
    library.head.weight.data.copy_(model["head"])
    for block, weights in zip(library.blocks, model["layers"], strict=True):
        named = {name.split(".")[-2]: value for name, value in block.named_parameters()}
        fused = {
            "qkv_proj": torch.cat([weights[name] for name in ("q_proj", "k_proj", "v_proj")]),
            "gate_up_proj": torch.cat([weights[name] for name in ("gate_proj", "up_proj")]),
        }
        alone = ("attention_norm", "o_proj", "mlp_norm", "down_proj")
        given_weights = fused | {name: weights[name] for name in alone}
        assert set(named) == set(given_weights)
        for name, value in given_weights.items():
            named[name].data.copy_(value)
    return library


@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_the_whole_model_is_the_library_s(n_heads):
    model = models.random_model(13, 16, 24, 3)
    tokens = torch.randint(13, (2, 9), generator=torch.Generator().manual_seed(3))
    expected = _library_model(model, n_heads)(tokens)
    # the library's rotations are fp32
    torch.testing.assert_close(models.transformer(tokens, model, n_heads), expected, rtol=1e-5, atol=1e-5)


def test_the_fused_module_is_the_one_of_three_matrices():
    weights, x = models.layer_weights(12, 16, 5), attention.draw(2, 7, 12)
    qkv = torch.cat([weights[name] for name in ("q_proj", "k_proj", "v_proj")])
    fused = attention.self_attention(x, qkv, weights["o_proj"], 3)
    torch.testing.assert_close(fused, models.self_attention(x, weights, 3))


@pytest.mark.parametrize("length", [1, 2, 9])
def test_steps_add_up_to_the_whole_text(length):
    weights, x = models.layer_weights(8, 12, 6), attention.draw(2, length, 8)
    cache = (torch.empty(2, 2, 0, 4, dtype=torch.float64),) * 2
    answers = []
    for t in range(length):
        out, cache = models.step(x[:, t : t + 1], cache, weights, 2)
        answers.append(out)
    torch.testing.assert_close(torch.cat(answers, 1), models.self_attention(x, weights, 2))


@pytest.mark.parametrize(("E", "top_k"), [(2, 1), (5, 2), (8, 8)])
def test_the_router_is_the_library_s(E, top_k):
    moe = MoEConfig(n_experts=E, top_k=top_k, d_ff=4, balance_weight=1.0)
    router = Router(ModelConfig(10, 8, 6, 1, 1, moe=moe)).double()
    x = attention.draw(20, 6)
    router.weight.data.copy_(attention.draw(E, 6, seed=1))
    weights, chosen = router(x)
    ours_chosen, ours_weights, balance = models.route(x @ router.weight.T, top_k)
    assert torch.equal(ours_chosen, chosen)
    torch.testing.assert_close(ours_weights, weights)
    torch.testing.assert_close(balance, router.loss)


def test_what_the_remark_of_first_weights_says():
    assert round(100 * (1 - numbers.initial_std(1, 3.0)), 1) == 1.3
    assert round(100 * (1 - numbers.initial_std(1, 2.0))) == 12
    assert math.isclose(numbers.initial_std(1, 2.0) ** 20, 0.08, abs_tol=0.005)
