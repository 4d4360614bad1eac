"""Serving: how long a token takes at least, and how many sequences fit.

- Decoding reads every weight that the batch meets, and each sequence's cache, once a step. Matrix products
  share the weights between sequences; attention shares nothing. So a step is at least
  ``max(products, weights) + max(attention, cache)``, one after the other (Austin et al. 2025, "How to
  scale your model", part 7).
- With experts a batch meets only some of them: each of ``n_experts`` is missed by all tokens with
  probability ``(1 - top_k / n_experts) ** batch`` if routing is uniform.
- Devices split weights and cache evenly, as tensor parallelism does; what they send each other is apart,
  in ``communication``.
"""

from dataclasses import dataclass
from fractions import Fraction

from lmlib.resources.flops import MIX, SCORES, forward
from lmlib.resources.hardware import Device
from lmlib.resources.kv_cache import cache
from lmlib.resources.ledger import Ledger, Term, derive
from lmlib.resources.model import Model, MoE
from lmlib.resources.parameters import MATMUL, group_names, layer_weights, parameters
from lmlib.resources.sources import DEFINITION, GIVEN, SERVING, WEIGHTS
from lmlib.resources.units import (
    DTYPE_BYTES,
    LARGEST_COUNT,
    ArgumentError,
    Number,
    check_choice,
    check_integer,
    check_number,
)

LARGEST_BATCH = 10**7
_UNIFORM = "expected under uniform routing: 1 - (1 - top_k / n_experts)^tokens"


@dataclass(frozen=True)
class Bound:
    """One step of a batch at its fastest.

    ``products`` and ``attention`` are arithmetic, ``weights`` and ``cache`` reading memory, all in seconds
    and for all devices at once; ``seconds`` is the step, ``bound`` names the part that takes longest.
    """

    products: Term
    weights: Term
    attention: Term
    cache: Term
    seconds: Term
    tokens_per_second: Term
    bound: str


def weights_read(model: Model, tokens: int, dtype: str = "bf16") -> Ledger:
    """Bytes of weights that a step over ``tokens`` tokens reads: experts in expectation, no input embedding.

    The head is read whole; of the embedding, only rows.
    """
    check_integer("tokens", tokens, 1, LARGEST_COUNT)
    check_choice("dtype", dtype, DTYPE_BYTES)
    value = DTYPE_BYTES[dtype]
    entries: list[Term] = []
    for name, (layer, layers) in zip(group_names(model), model.groups, strict=True):
        weights = [weight for weight in layer_weights(model, layer) if weight.role == MATMUL]
        always = sum(weight.size for weight in weights if not weight.expert)
        entries.append(
            derive(
                name,
                "layers * size * value_bytes",
                "bytes",
                SERVING,
                layers=layers,
                size=always,
                value_bytes=value,
            )
        )
        if isinstance(layer.mlp, MoE):
            experts = sum(weight.size for weight in weights if weight.expert)
            entries.append(
                derive(
                    f"{name}: experts",
                    "layers * size * met * value_bytes",
                    "bytes",
                    _UNIFORM,
                    layers=layers,
                    size=experts,
                    met=experts_met(layer.mlp, tokens),
                    value_bytes=value,
                )
            )
    head = {"d_model": model.d_model, "vocab_size": model.padded_vocab_size}
    entries.append(
        derive("head", "d_model * vocab_size * value_bytes", "bytes", SERVING, value_bytes=value, **head)
    )
    return Ledger("weights read", "bytes", tuple(entries))


def experts_met(moe: MoE, tokens: int) -> float:
    """Expected share of the experts that at least one of ``tokens`` tokens visits, routed uniformly."""
    return 1 - (1 - moe.top_k / moe.n_experts) ** min(tokens, 10**6)


def step_bound(
    matmul_flops: Number,
    weight_bytes: Number,
    attention_flops: Number,
    cache_bytes: Number,
    tokens: int,
    peak: Number,
    bandwidth: Number,
) -> Bound:
    """The least time of a step from what it computes and reads; ``peak`` and ``bandwidth`` of all devices."""

    def over(name: str, work: Number, rate: Number) -> Term:
        return derive(name, "work / rate", "seconds", SERVING, work=work, rate=rate)

    products, weights = over("products", matmul_flops, peak), over("weights", weight_bytes, bandwidth)
    scores, cached = over("attention", attention_flops, peak), over("cache", cache_bytes, bandwidth)
    parts = (products, weights, scores, cached)
    seconds = derive(
        "step",
        "max(products, weights) + max(attention, cache)",
        "seconds",
        SERVING,
        **{term.name: term.value for term in parts},
    )
    rate = derive(
        "tokens a second", "tokens / step", "tokens/second", DEFINITION, tokens=tokens, step=seconds.value
    )
    longest = max(parts, key=lambda term: term.value)
    return Bound(products, weights, scores, cached, seconds, rate, longest.name)


def _bound(
    model: Model,
    device: Device,
    batch: int,
    new: int,
    past: int,
    n_devices: int,
    dtypes: tuple[str, str, str],
) -> Bound:
    check_integer("n_devices", n_devices, 1, 10**6)
    check_integer("batch", batch, 1, LARGEST_BATCH)
    weight_dtype, cache_dtype, compute_dtype = dtypes
    ahead = forward(model, batch, new, mask="causal", past=past)
    paired = sum(term.value for path, term in ahead.terms() if path[-1] in (SCORES, MIX))
    return step_bound(
        ahead.total - paired,
        weights_read(model, batch * new, weight_dtype).total,
        paired,
        cache(model, past + new, batch, cache_dtype).total,
        batch * new,
        n_devices * device.peak_of(compute_dtype or device.default_dtype),
        n_devices * device.bandwidth,
    )


def decode(
    model: Model,
    device: Device,
    batch: int,
    context: int,
    n_devices: int = 1,
    *,
    weight_dtype: str = "bf16",
    cache_dtype: str = "bf16",
    compute_dtype: str = "",
) -> Bound:
    """One more token for each of ``batch`` sequences, which see ``context`` tokens with the new one.

    Raises:
        ArgumentError: for a size out of bounds or an unknown dtype.
    """
    check_integer("context", context, 1, LARGEST_COUNT)
    return _bound(model, device, batch, 1, context - 1, n_devices, (weight_dtype, cache_dtype, compute_dtype))


def prefill(
    model: Model,
    device: Device,
    prompt: int,
    batch: int = 1,
    n_devices: int = 1,
    *,
    weight_dtype: str = "bf16",
    cache_dtype: str = "bf16",
    compute_dtype: str = "",
) -> Bound:
    """Reading ``batch`` prompts of ``prompt`` tokens: the least time to the first token.

    The head is charged for all positions, as in ``flops.forward``.
    """
    check_integer("prompt", prompt, 1, LARGEST_COUNT)
    return _bound(model, device, batch, prompt, 0, n_devices, (weight_dtype, cache_dtype, compute_dtype))


def room(
    model: Model,
    device: Device,
    n_devices: int = 1,
    *,
    weight_dtype: str = "bf16",
    usable: Number = Fraction(9, 10),
    reserved: int = 0,
) -> Ledger:
    """Bytes left for the cache on ``n_devices``, negative if the weights do not fit.

    Args:
        usable: share of the memory that the server may use (vLLM's ``gpu_memory_utilization``).
        reserved: bytes a device for activations, graphs and communication.
    """
    check_integer("n_devices", n_devices, 1, 10**6)
    check_integer("reserved", reserved, 0, 10**15)
    check_number("usable", usable, 0.01, 1)
    check_choice("weight_dtype", weight_dtype, DTYPE_BYTES)
    memory = {"n_devices": n_devices, "memory": device.memory, "usable": usable}
    entries = (
        derive("usable memory", "n_devices * memory * usable", "bytes", device.source_of("memory"), **memory),
        derive(
            "weights",
            "-parameters * value_bytes",
            "bytes",
            WEIGHTS,
            parameters=int(parameters(model).total),
            value_bytes=DTYPE_BYTES[weight_dtype],
        ),
        derive("reserved", "-n_devices * reserved", "bytes", GIVEN, n_devices=n_devices, reserved=reserved),
    )
    return Ledger("room for the cache", "bytes", entries)


def largest_batch(
    model: Model,
    device: Device,
    context: int,
    n_devices: int = 1,
    *,
    weight_dtype: str = "bf16",
    cache_dtype: str = "bf16",
    usable: Number = Fraction(9, 10),
    reserved: int = 0,
) -> Term:
    """The most sequences of ``context`` tokens whose caches fit beside the weights; 0 if none does."""
    check_integer("context", context, 1, LARGEST_COUNT)
    left = room(model, device, n_devices, weight_dtype=weight_dtype, usable=usable, reserved=reserved).total
    one = cache(model, context, 1, cache_dtype).total
    return derive(
        "largest batch", "max(0, floor(room / cache))", "sequence", DEFINITION, room=left, cache=one
    )


def least_devices(
    model: Model, device: Device, context: int, batch: int = 1, *, most: int = 4096, **options: str
) -> int:
    """The smallest power of two of devices that holds the weights and ``batch`` caches.

    Raises:
        ArgumentError: if ``most`` are too few.
    """
    count = 1
    while count <= most:
        if largest_batch(model, device, context, count, **options).value >= batch:  # type: ignore[arg-type]
            return count
        count *= 2
    raise ArgumentError("batch", f"{batch:,} sequences of {context:,} tokens do not fit {most:,} devices")
