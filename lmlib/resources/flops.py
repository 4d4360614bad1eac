"""FLOPs of a transformer, matrix by matrix. A multiply-add is two.

- Forward: two FLOPs for each weight that a token meets, and the two products of attention. Norms,
  softmax, rotations and other elementwise work are not counted, as in every published figure.
- Backward: twice forward. *Model* FLOPs stop there; *hardware* FLOPs add what is computed again: by
  a flash kernel (Dao et al. 2022, arXiv:2205.14135, appendix B) and by activation recomputation.
- ``mask`` decides how many query-key pairs count: papers differ, so there is no default.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from lmlib.resources.ledger import Ledger, Term, derive
from lmlib.resources.model import MLP, Layer, Model
from lmlib.resources.parameters import MATMUL, active, group_names, layer_weights, matmul_size, parameters
from lmlib.resources.sources import PRODUCTS, SIX_N_D
from lmlib.resources.units import LARGEST_COUNT, ArgumentError, check_choice, check_integer

MASKS = ("full", "half", "causal")
COUNTS = ("model", "hardware")
KERNELS = ("math", "flash")
RECOMPUTE = ("none", "core", "full", "full_early_stop")

SCORES, MIX = "attention scores", "attention values"


def attended_pairs(length: int, mask: str, window: int | None = None, past: int = 0) -> int | Fraction:
    """Query-key pairs of one head and one sequence of ``length`` new tokens after ``past`` cached ones.

    - ``full``: every query with every key, what a kernel without a mask computes and PyTorch's counter
      counts.
    - ``half``: half of that, the convention of most papers that say "causal".
    - ``causal``: exactly the pairs that the mask and a sliding ``window`` leave, each query with itself
      and those before it.

    Raises:
        ArgumentError: ``half`` with cached tokens, where it means nothing.
    """
    check_choice("mask", mask, MASKS)
    check_integer("length", length, 1, LARGEST_COUNT)
    check_integer("past", past, 0, LARGEST_COUNT)
    if mask == "full":
        return length * (past + length)
    if mask == "half":
        if past:
            raise ArgumentError("mask", "half is meant for whole sequences; with cached tokens use causal")
        half = Fraction(length * length, 2)
        return half.numerator if half.denominator == 1 else half
    reach = past + length if window is None else window
    growing = min(max(reach - past, 0), length)  # the queries that still see everything before them
    return growing * past + growing * (growing + 1) // 2 + (length - growing) * reach


def _layer_terms(
    model: Model, layer: Layer, count: int, batch: int, length: int, mask: str, past: int
) -> tuple[Term, ...]:
    terms = [
        derive(
            weight.name,
            f"2 * tokens * layers * {weight.active}",
            "FLOPs",
            PRODUCTS,
            tokens=batch * length,
            layers=count,
            **weight.values,
        )
        for weight in layer_weights(model, layer)
        if weight.role == MATMUL
    ]
    attention = layer.attention
    pairs = attended_pairs(length, mask, attention.window, past)
    for name, width, value in (
        (SCORES, "query_dim", attention.query_dim),
        (MIX, "value_dim", attention.value_dim),
    ):
        symbols = {
            "layers": count,
            "batch": batch,
            "n_heads": attention.n_heads,
            "pairs": pairs,
            width: value,
        }
        terms.append(
            derive(name, f"2 * layers * batch * n_heads * pairs * {width}", "FLOPs", PRODUCTS, **symbols)
        )
    return tuple(terms)


@lru_cache(maxsize=64)
def forward(model: Model, batch: int, length: int, *, mask: str, past: int = 0) -> Ledger:
    """FLOPs of one forward pass over ``batch`` sequences of ``length`` tokens, logits of all included.

    Args:
        past: tokens already in the cache, for prefill in pieces and for decoding.

    Raises:
        ArgumentError: for a size out of bounds or an unknown mask.
    """
    check_integer("batch", batch, 1, LARGEST_COUNT)
    entries: list[Term | Ledger] = [
        Ledger(name, "FLOPs", _layer_terms(model, layer, count, batch, length, mask, past))
        for name, (layer, count) in zip(group_names(model), model.groups, strict=True)
    ]
    head = derive(
        "head",
        "2 * tokens * d_model * vocab_size",
        "FLOPs",
        PRODUCTS,
        tokens=batch * length,
        d_model=model.d_model,
        vocab_size=model.padded_vocab_size,
    )
    return Ledger("forward", "FLOPs", (*entries, head))


def _each(ledger: Ledger, change: Callable[[Term], Term], name: str) -> Ledger:
    """The same tree with every term changed."""
    entries = tuple(
        _each(entry, change, entry.name) if isinstance(entry, Ledger) else change(entry) for entry in ledger
    )
    return Ledger(name, ledger.unit, entries)


def backward(ahead: Ledger, *, kernel: str = "math") -> Ledger:
    """The backward pass of a ``forward`` ledger: two products for each one.

    ``flash`` recomputes the scores, so attention has five products where forward has two: three as
    wide as the queries, two as wide as the values.
    """
    check_choice("kernel", kernel, KERNELS)

    def change(term: Term) -> Term:
        return term.scale(3 if kernel == "flash" and term.name == SCORES else 2)

    return _each(ahead, change, "backward")


def _recomputed(model: Model, ahead: Ledger, recompute: str) -> Ledger:
    """What is computed a second time before the backward pass of each layer."""
    groups: list[Ledger] = []
    for (layer, _), group in zip(model.groups, ahead.entries, strict=False):
        assert isinstance(group, Ledger)
        terms = [term for term in group.entries if isinstance(term, Term)]
        if recompute == "core":
            terms = [term for term in terms if term.name in (SCORES, MIX)]
        elif recompute == "full_early_stop" and isinstance(layer.mlp, MLP):
            terms = [term for term in terms if term.name != "mlp.down_proj"]
        groups.append(Ledger(group.name, "FLOPs", tuple(terms)))
    return Ledger("recomputation", "FLOPs", tuple(groups))


def training(
    model: Model,
    batch: int,
    length: int,
    *,
    mask: str,
    count: str = "model",
    kernel: str = "math",
    recompute: str = "none",
) -> Ledger:
    """FLOPs of one forward and backward pass.

    Args:
        count: ``model``: three times forward, whatever is computed again (Chowdhery et al. 2022,
            arXiv:2204.02311, appendix B); ``hardware``: with the kernel's and the policy's recomputation.
        kernel: ``math`` keeps the attention weights, ``flash`` computes them again; for ``hardware``.
        recompute: for ``hardware``: ``core`` repeats the products of attention, ``full`` whole layers,
            ``full_early_stop`` whole layers but for the last product of a dense one, whose result
            nothing needs: that is ``torch.utils.checkpoint`` with ``use_reentrant=False``.
    """
    check_choice("count", count, COUNTS)
    check_choice("recompute", recompute, RECOMPUTE)
    check_choice("kernel", kernel, KERNELS)
    ahead = forward(model, batch, length, mask=mask)
    if count == "model":
        return Ledger("training", "FLOPs", (ahead, backward(ahead)))
    passes = [ahead, backward(ahead, kernel=kernel)]
    if recompute != "none":
        passes.append(_recomputed(model, ahead, recompute))
    return Ledger("training", "FLOPs", tuple(passes))


def six_n_d(n_parameters: int, tokens: int) -> Term:
    """The rule ``C = 6 N D`` (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)."""
    check_integer("n_parameters", n_parameters, 1, 10**18)
    check_integer("tokens", tokens, 1, 10**18)
    return derive(
        "6 N D",
        "6 * parameters * tokens",
        "FLOPs",
        SIX_N_D,
        parameters=n_parameters,
        tokens=tokens,
    )


def departures(model: Model, batch: int, length: int, *, mask: str) -> Ledger:
    """From ``6 N D``, with N all parameters, to the model FLOPs of training, one reason a term.

    The total equals that of ``training``.
    """
    tokens = batch * length
    everything = int(parameters(model).total)
    met = int(active(model, count_embedding=True, count_head=True).total)
    multiplied = matmul_size(model)
    looked_up = (0 if model.tied else model.padded_vocab_size * model.d_model) + (
        model.learned_positions * model.d_model
    )
    ahead = forward(model, batch, length, mask=mask)
    attention = sum(term.value for path, term in ahead.terms() if path[-1] in (SCORES, MIX))
    terms = (
        six_n_d(everything, tokens),
        derive(
            "experts a token does not visit",
            "-6 * tokens * (parameters - active)",
            "FLOPs",
            PRODUCTS,
            tokens=tokens,
            parameters=everything,
            active=met,
        ),
        derive(
            "embeddings, looked up and not multiplied",
            "-6 * tokens * looked_up",
            "FLOPs",
            PRODUCTS,
            tokens=tokens,
            looked_up=looked_up,
        ),
        derive(
            "norms, biases and sinks",
            "-6 * tokens * (active - looked_up - multiplied)",
            "FLOPs",
            PRODUCTS,
            tokens=tokens,
            active=met,
            looked_up=looked_up,
            multiplied=multiplied,
        ),
        derive("attention", "3 * attention_forward", "FLOPs", PRODUCTS, attention_forward=attention),
    )
    return Ledger("from 6 N D to the model FLOPs", "FLOPs", terms)
