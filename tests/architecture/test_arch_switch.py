"""The switch to this book's kernels: each is called where it applies, and gives the same model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmlib.architecture import MLAConfig, ModelConfig, MoEConfig, TransformerLM
from lmlib.architecture.attention import eager_attention
from lmlib.architecture.config import KERNELS
from lmlib.architecture.positions import rotate
from lmlib.resources.units import ArgumentError

BASE: dict[str, Any] = {"vocab_size": 50, "context_length": 64, "d_model": 32, "n_layers": 2, "n_heads": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"n_kv_heads": 2, "qk_norm": True},
    "window": {"window": 5, "window_pattern": "LG"},
    "gpt2": {"norm": "layernorm", "position": "learned", "mlp": "gelu_tanh", "bias": True, "tied": True},
    "gpt2-exact": {"norm": "layernorm", "position": "learned", "mlp": "gelu", "bias": True, "tied": True},
    "mla": {"attention": "mla", "mla": MLAConfig(8, 6, 4, 10)},
    "moe": {"moe": MoEConfig(4, 2, 16, n_shared=1)},
    "soft-cap": {"attention_softcap": 5.0},
    "post-norm": {"norm_position": "post"},
    "no norm": {"norm_position": "none", "bias": True},
}
GPT2 = {"layer_norm": 1, "layer_norm with residual": 4, "qkv_linear": 2, "flash_attention": 2, "gelu_mlp": 2}
CALLS: Counter[str] = Counter()


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None) -> Any:
    CALLS["rms_norm with residual" if residual is not None else "rms_norm"] += 1
    total = x if residual is None else x + residual
    out = F.rms_norm(total, weight.shape, weight, eps)
    return out if residual is None else (out, total)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    shift: Tensor | None = None,
) -> Any:
    if shift is not None:
        x = x + shift
    CALLS["layer_norm with residual" if residual is not None else "layer_norm"] += 1
    total = x if residual is None else x + residual
    out = F.layer_norm(total, weight.shape, weight, bias, eps)
    return out if residual is None else (out, total)


def gelu_mlp(
    x: Tensor,
    w_up: Tensor,
    b_up: Tensor | None,
    w_down: Tensor,
    b_down: Tensor | None,
    approximate: str = "none",
) -> Tensor:
    CALLS["gelu_mlp"] += 1
    return F.linear(F.gelu(F.linear(x, w_up, b_up), approximate=approximate), w_down, b_down)


def qkv_linear(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: list[int]) -> tuple[Tensor, ...]:
    CALLS["qkv_linear"] += 1
    return F.linear(x, weight, bias).split(list(sizes), -1)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    CALLS["swiglu"] += 1
    return F.silu(gate) * up


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    CALLS["rope"] += 1
    assert q.shape[:2] == k.shape[:2]  # both (B, T, heads, K)
    assert cos.shape == sin.shape
    assert 2 * cos.shape[-1] == q.shape[-1]
    return rotate(q, cos, sin), rotate(k, cos, sin)


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    CALLS["flash_attention"] += 1
    assert causal
    assert q.shape[2] == k.shape[2]
    return eager_attention(q, k, v, scale=q.shape[-1] ** -0.5 if scale is None else scale, window=window)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of the agreed signatures in plain PyTorch, which count their calls."""
    import kernels

    for function in (rms_norm, layer_norm, gelu_mlp, qkv_linear, swiglu, rope, flash_attention):
        monkeypatch.setitem(vars(kernels), function.__name__, function)
    CALLS.clear()


def models(name: str, triton: str = "triton") -> tuple[TransformerLM, TransformerLM]:
    pair = []
    for kernels in ("sdpa", triton):
        torch.manual_seed(0)
        pair.append(TransformerLM(ModelConfig(**BASE, **CONFIGS[name], kernels=kernels)))
    return pair[0], pair[1]


def compare(name: str, triton: str = "triton", rtol: float = 1e-4, atol: float = 2e-5) -> None:
    """Logits, gradients, and decoding with a cache."""
    tokens = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(3))
    gradients = []
    for model in (pair := models(name, triton)):
        logits = model(tokens)
        logits.square().mean().backward()
        gradients.append([logits, *(p.grad for p in model.parameters())])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
    with torch.no_grad():
        cache = pair[1].new_cache()
        parts = [pair[1](part, cache) for part in tokens.split([9, 1, 14], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), gradients[0][0], rtol=rtol, atol=atol)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("triton", ["triton", "triton-sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_kernels_are_called_as_agreed(name: str, triton: str) -> None:
    compare(name, triton)


@pytest.mark.usefixtures("plain")
def test_every_kernel_that_applies_is_called() -> None:
    expected = {
        "llama": {"rms_norm": 5, "rms_norm with residual": 4, "rope": 2, "swiglu": 2, "flash_attention": 2},
        "gpt2": GPT2,
        "gpt2-exact": GPT2,
        "soft-cap": {"rms_norm": 1, "rms_norm with residual": 4, "rope": 2, "swiglu": 2},
        "mla": {"rms_norm": 3, "rms_norm with residual": 4, "rope": 2, "swiglu": 2, "flash_attention": 2},
    }
    for name, calls in expected.items():
        CALLS.clear()
        models(name)[1](torch.randint(50, (2, 24)))
        assert calls == CALLS, name
        CALLS.clear()
        models(name, "triton-sdpa")[1](torch.randint(50, (2, 24)))
        assert {each: calls[each] for each in calls if each != "flash_attention"} == CALLS, name


def test_a_kernel_that_is_missing_says_what_to_do() -> None:
    from lmlib.architecture.switch import kernel

    with pytest.raises(ImportError, match=r"needs kernels\.nothing; choose kernels=.sdpa."):
        kernel("nothing")


@pytest.mark.parametrize(
    ("kernels", "changes"),
    [
        ("triton", {"n_kv_heads": 2, "qk_norm": True, "window": 5}),
        ("triton-sdpa", {"n_kv_heads": 2}),
        ("triton-sdpa", CONFIGS["gpt2-exact"]),
    ],
    ids=["triton, llama", "triton-sdpa, llama", "triton-sdpa, gpt2"],
)
def test_the_books_kernels_give_the_same_model(kernels: str, changes: dict[str, Any]) -> None:
    """The kernels themselves: under Triton's interpreter here, so one layer and few tokens."""
    tokens = torch.randint(50, (1, 8), generator=torch.Generator().manual_seed(3))
    results = []
    for each in ("eager", kernels):
        torch.manual_seed(0)
        model = TransformerLM(ModelConfig(50, 8, 32, 1, 4, **changes, kernels=each))
        logits = model(tokens)
        logits.square().mean().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_names_of_the_switch() -> None:
    config = ModelConfig(**BASE)
    assert [config.replace(kernels=name).triton for name in KERNELS] == [False, False, True, True]
    for wrong in ("flash", "triton-eager", "sdpa-triton", ""):
        with pytest.raises(ArgumentError, match="sdpa, eager, triton, triton-sdpa") as caught:
            config.replace(kernels=wrong)
        assert caught.value.field == "kernels"


@pytest.mark.parametrize("name", ["o_proj", "qkv_proj", "up_proj", "down_proj"])
def test_a_layer_that_somebody_replaced_is_called(name: str) -> None:
    """Also where a kernel would read the weight of the plain layer: the replacement doubles what it gives."""

    class Doubled(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    outputs = []
    for model in models("gpt2-exact", "triton-sdpa"):
        for block in model.blocks:
            part = block.attention if name in ("o_proj", "qkv_proj") else block.mlp
            old = getattr(part, name)
            new = Doubled(old.in_features, old.out_features)
            new.load_state_dict(old.state_dict())
            setattr(part, name, new)
        outputs.append(model(torch.arange(24)[None] % 50))
    assert torch.allclose(*outputs, atol=1e-5)
