"""Published models, each as the configuration that its authors released, with its source.

- A preset holds the keys of the model's ``config.json`` that decide sizes, under Hugging Face's names,
  so that reading one also exercises ``config.read``.
- A name is matched without regard to case, spaces and punctuation, with or without the owner:
  ``llama-3-8b``, ``Llama 3 8B`` and ``meta-llama/Llama-3-8B`` are one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from lmlib.resources.config import read
from lmlib.resources.model import Model
from lmlib.resources.units import ArgumentError


@dataclass(frozen=True)
class Preset:
    """A published model: ``config`` as in its ``config.json``, ``source`` where the sizes come from."""

    name: str
    title: str
    config: Mapping[str, Any]
    source: str


_Shape = tuple[int, ...]


def _sizes(model_type: str, keys: tuple[str, ...], shape: _Shape, **other: Any) -> dict[str, Any]:
    return {"model_type": model_type, **dict(zip(keys, shape, strict=True)), **other}


# The order in which the tables below give the sizes.
_DENSE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
_MOE = (*_DENSE, "moe_intermediate_size", "num_experts", "num_experts_per_tok")
_GPT2 = ("n_embd", "n_layer", "n_head")
_NEOX = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def _gpt2(name: str, title: str, shape: _Shape) -> Preset:
    config = _sizes("gpt2", _GPT2, shape, vocab_size=50257, n_positions=1024)
    config |= {"n_inner": None, "activation_function": "gelu_new", "tie_word_embeddings": True}
    return Preset(name, title, config, "Radford et al. 2019, table 2; config.json of openai-community/gpt2")


def _pythia(size: str, shape: _Shape) -> Preset:
    config = _sizes("gpt_neox", _NEOX, shape, intermediate_size=4 * shape[0], max_position_embeddings=2048)
    config |= {"hidden_act": "gelu", "attention_bias": True, "use_parallel_residual": True}
    config["tie_word_embeddings"] = False
    source = "Biderman et al. 2023, arXiv:2304.01373, table 1; config.json of EleutherAI/pythia"
    return Preset(f"pythia-{size.lower()}", f"Pythia {size}", config, source)


def _llama(
    name: str,
    title: str,
    shape: _Shape,
    vocab: int,
    context: int,
    source: str,
    tied: bool = False,
    head: int = 128,
) -> Preset:
    config = _sizes("llama", _DENSE, shape, vocab_size=vocab, max_position_embeddings=context, head_dim=head)
    config |= {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": tied}
    return Preset(name, title, config, source)


def _mixtral(name: str, title: str, shape: _Shape, vocab: int, context: int, source: str) -> Preset:
    config = _sizes("mixtral", _DENSE, shape, vocab_size=vocab, max_position_embeddings=context)
    config |= {"num_local_experts": 8, "num_experts_per_tok": 2, "hidden_act": "silu", "sliding_window": None}
    config["tie_word_embeddings"] = False
    return Preset(name, title, config, source)


def _gemma(name: str, title: str, shape: _Shape, head_dim: int, source: str, second: bool = False) -> Preset:
    config = _sizes("gemma2" if second else "gemma", _DENSE, shape, vocab_size=256000, head_dim=head_dim)
    config |= {"max_position_embeddings": 8192, "attention_bias": False, "tie_word_embeddings": True}
    config["hidden_activation" if second else "hidden_act"] = "gelu_pytorch_tanh"
    if second:
        kinds = ("sliding_attention", "full_attention")
        config |= {"sliding_window": 4096, "layer_types": [kinds[i % 2] for i in range(shape[2])]}
    return Preset(name, title, config, source)


def _qwen25(size: str, shape: _Shape, vocab: int, context: int, tied: bool) -> Preset:
    config = _sizes("qwen2", _DENSE, shape, vocab_size=vocab, max_position_embeddings=context)
    config |= {"hidden_act": "silu", "use_sliding_window": False, "tie_word_embeddings": tied}
    source = f"Qwen2.5 report, arXiv:2412.15115, table 1; config.json of Qwen/Qwen2.5-{size}"
    return Preset(f"qwen2.5-{size.lower()}", f"Qwen2.5 {size}", config, source)


def _qwen3(size: str, shape: _Shape, tied: bool = False) -> Preset:
    moe = len(shape) > len(_DENSE)
    config = _sizes("qwen3_moe" if moe else "qwen3", _MOE if moe else _DENSE, shape, vocab_size=151936)
    config |= {
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "hidden_act": "silu",
        "attention_bias": False,
    }
    config |= {"use_sliding_window": False, "tie_word_embeddings": tied}
    if moe:
        config |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
    source = f"Qwen3 report, arXiv:2505.09388, tables 1 and 2; config.json of Qwen/Qwen3-{size}"
    return Preset(f"qwen3-{size.lower()}", f"Qwen3 {size}", config, source)


_DEEPSEEK = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "moe_intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "first_k_dense_replace",
    "vocab_size",
)


def _deepseek(
    name: str, title: str, kind: str, shape: _Shape, q_lora: int | None, source: str, **other: Any
) -> Preset:
    config = _sizes(kind, _DEEPSEEK, shape, q_lora_rank=q_lora, kv_lora_rank=512, qk_rope_head_dim=64)
    config |= {
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "max_position_embeddings": 163840,
        "hidden_act": "silu",
    }
    config |= {"attention_bias": False, "tie_word_embeddings": False, **other}
    return Preset(name, title, config, source)


def _gpt_oss(size: str, layers: int, experts: int) -> Preset:
    kinds = ("sliding_attention", "full_attention")
    config = _sizes("gpt_oss", _DENSE, (2880, 2880, layers, 64, 8), num_local_experts=experts, head_dim=64)
    config |= {"num_experts_per_tok": 4, "vocab_size": 201088, "max_position_embeddings": 131072}
    config |= {"sliding_window": 128, "layer_types": [kinds[i % 2] for i in range(layers)]}
    config |= {"attention_bias": True, "tie_word_embeddings": False}
    source = f"gpt-oss model card, arXiv:2508.10925, table 1; config.json of openai/gpt-oss-{size}"
    return Preset(f"gpt-oss-{size}", f"gpt-oss {size}", config, source)


_LLAMA2 = "Touvron et al. 2023, arXiv:2307.09288, table 1; config.json of meta-llama/Llama-2"
_LLAMA3 = "Llama 3 report, arXiv:2407.21783, table 3; config.json of meta-llama/Llama-3"
_LLAMA32 = "config.json of meta-llama/Llama-3.2"
_GEMMA1 = "Gemma report, arXiv:2403.08295, table 1; config.json of google/gemma"
_GEMMA2 = "Gemma 2 report, arXiv:2408.00118, table 1; config.json of google/gemma-2"
_TINY = "Zhang et al. 2024, arXiv:2401.02385, table 1; config.json of TinyLlama/TinyLlama_v1.1"
_MISTRAL = "Jiang et al. 2023, arXiv:2310.06825, table 1; config.json of mistralai/Mistral-7B-v0.1"
_MIXTRAL = "Jiang et al. 2024, arXiv:2401.04088, table 1; config.json of mistralai/Mixtral-8x7B-v0.1"
_MIXTRAL22 = "config.json of mistralai/Mixtral-8x22B-Instruct-v0.1"
_V2 = "DeepSeek-V2, arXiv:2405.04434, section 3.1.2 and appendix B; config.json of deepseek-ai/DeepSeek-V2"
_V3 = "DeepSeek-V3, arXiv:2412.19437, section 4.2; config.json of deepseek-ai/DeepSeek-V3"

_MISTRAL_7B = _sizes(
    "mistral",
    _DENSE,
    (4096, 14336, 32, 32, 8),
    vocab_size=32000,
    max_position_embeddings=32768,
    sliding_window=4096,
    hidden_act="silu",
    tie_word_embeddings=False,
)

_ALL = (
    _gpt2("gpt2", "GPT-2", (768, 12, 12)),
    _gpt2("gpt2-medium", "GPT-2 medium", (1024, 24, 16)),
    _gpt2("gpt2-large", "GPT-2 large", (1280, 36, 20)),
    _gpt2("gpt2-xl", "GPT-2 XL", (1600, 48, 25)),
    _pythia("70M", (512, 6, 8, 50304)),
    _pythia("160M", (768, 12, 12, 50304)),
    _pythia("410M", (1024, 24, 16, 50304)),
    _pythia("1B", (2048, 16, 8, 50304)),
    _pythia("1.4B", (2048, 24, 16, 50304)),
    _pythia("2.8B", (2560, 32, 32, 50304)),
    _pythia("6.9B", (4096, 32, 32, 50432)),
    _pythia("12B", (5120, 36, 40, 50688)),
    _llama("llama-2-7b", "Llama 2 7B", (4096, 11008, 32, 32, 32), 32000, 4096, _LLAMA2),
    _llama("llama-2-13b", "Llama 2 13B", (5120, 13824, 40, 40, 40), 32000, 4096, _LLAMA2),
    _llama("llama-2-70b", "Llama 2 70B", (8192, 28672, 80, 64, 8), 32000, 4096, _LLAMA2),
    _llama("llama-3-8b", "Llama 3 8B", (4096, 14336, 32, 32, 8), 128256, 8192, _LLAMA3),
    _llama("llama-3-70b", "Llama 3 70B", (8192, 28672, 80, 64, 8), 128256, 8192, _LLAMA3),
    _llama("llama-3-405b", "Llama 3.1 405B", (16384, 53248, 126, 128, 8), 128256, 131072, _LLAMA3),
    _llama("llama-3.2-1b", "Llama 3.2 1B", (2048, 8192, 16, 32, 8), 128256, 131072, _LLAMA32, True, 64),
    _llama("llama-3.2-3b", "Llama 3.2 3B", (3072, 8192, 28, 24, 8), 128256, 131072, _LLAMA32, True),
    _llama("tinyllama-1.1b", "TinyLlama 1.1B", (2048, 5632, 22, 32, 4), 32000, 2048, _TINY, False, 64),
    Preset("mistral-7b-v0.1", "Mistral 7B v0.1", _MISTRAL_7B, _MISTRAL),
    _mixtral("mixtral-8x7b", "Mixtral 8x7B", (4096, 14336, 32, 32, 8), 32000, 32768, _MIXTRAL),
    _mixtral("mixtral-8x22b", "Mixtral 8x22B", (6144, 16384, 56, 48, 8), 32768, 65536, _MIXTRAL22),
    _gemma("gemma-2b", "Gemma 2B", (2048, 16384, 18, 8, 1), 256, _GEMMA1),
    _gemma("gemma-7b", "Gemma 7B", (3072, 24576, 28, 16, 16), 256, _GEMMA1),
    _gemma("gemma-2-2b", "Gemma 2 2B", (2304, 9216, 26, 8, 4), 256, _GEMMA2, second=True),
    _gemma("gemma-2-9b", "Gemma 2 9B", (3584, 14336, 42, 16, 8), 256, _GEMMA2, second=True),
    _gemma("gemma-2-27b", "Gemma 2 27B", (4608, 36864, 46, 32, 16), 128, _GEMMA2, second=True),
    _qwen25("0.5B", (896, 4864, 24, 14, 2), 151936, 32768, tied=True),
    _qwen25("1.5B", (1536, 8960, 28, 12, 2), 151936, 131072, tied=True),
    _qwen25("3B", (2048, 11008, 36, 16, 2), 151936, 32768, tied=True),
    _qwen25("7B", (3584, 18944, 28, 28, 4), 152064, 131072, tied=False),
    _qwen25("14B", (5120, 13824, 48, 40, 8), 152064, 131072, tied=False),
    _qwen25("32B", (5120, 27648, 64, 40, 8), 152064, 131072, tied=False),
    _qwen25("72B", (8192, 29568, 80, 64, 8), 152064, 131072, tied=False),
    _qwen3("0.6B", (1024, 3072, 28, 16, 8), tied=True),
    _qwen3("1.7B", (2048, 6144, 28, 16, 8), tied=True),
    _qwen3("4B", (2560, 9728, 36, 32, 8), tied=True),
    _qwen3("8B", (4096, 12288, 36, 32, 8)),
    _qwen3("14B", (5120, 17408, 40, 40, 8)),
    _qwen3("32B", (5120, 25600, 64, 64, 8)),
    _qwen3("30B-A3B", (2048, 6144, 48, 32, 4, 768, 128, 8)),
    _qwen3("235B-A22B", (4096, 12288, 94, 64, 4, 1536, 128, 8)),
    _deepseek(
        "deepseek-v2",
        "DeepSeek-V2",
        "deepseek_v2",
        (5120, 12288, 60, 128, 1536, 160, 2, 6, 1, 102400),
        1536,
        _V2,
    ),
    _deepseek(
        "deepseek-v2-lite",
        "DeepSeek-V2-Lite",
        "deepseek_v2",
        (2048, 10944, 27, 16, 1408, 64, 2, 6, 1, 102400),
        None,
        _V2,
    ),
    _deepseek(
        "deepseek-v3",
        "DeepSeek-V3",
        "deepseek_v3",
        (7168, 18432, 61, 128, 2048, 256, 1, 8, 3, 129280),
        1536,
        _V3,
        num_nextn_predict_layers=1,
    ),
    _gpt_oss("20b", 24, 32),
    _gpt_oss("120b", 36, 128),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}


def _key(name: str) -> str:
    """A name without owner, case and punctuation: what two spellings of one model share."""
    return re.sub(r"[^a-z0-9]", "", name.rsplit("/", 1)[-1].lower().replace("meta-", ""))


_BY_KEY = {_key(spelling): preset for preset in _ALL for spelling in (preset.name, preset.title)}


def preset(name: str) -> Preset:
    """Find a preset by name, loosely spelt.

    Raises:
        ArgumentError: for a name that no preset has; the message lists the nearest ones.
    """
    if not isinstance(name, str):
        raise ArgumentError("preset", f"must be a name, got {name!r}")
    found = _BY_KEY.get(_key(name))
    if found is None:
        near = get_close_matches(_key(name), list(_BY_KEY), n=5, cutoff=0.4)
        names = dict.fromkeys(_BY_KEY[key].name for key in near) or PRESETS
        listed = "nearest" if near else "known"
        raise ArgumentError("preset", f"there is no preset {name!r}; the {listed} are {', '.join(names)}")
    return found


@lru_cache(maxsize=len(_ALL))
def _model(name: str) -> Model:
    return read(PRESETS[name].config, name)


def load(name: str) -> Model:
    """The ``Model`` of a preset, see ``preset``."""
    return _model(preset(name).name)
