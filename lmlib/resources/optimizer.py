"""Optimizers: what they keep for each parameter, and the scratch that one step takes.

- AdamW keeps two moments of the gradient (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1), in the type
  of the parameters, or in fp32 beside fp32 master weights (Micikevicius et al. 2018, arXiv:1710.03740).
- 8-bit AdamW keeps a byte for each moment and value, and an fp32 scale for each block of 256
  (Dettmers et al. 2022, arXiv:2110.02861; the block size is that of bitsandbytes).
- Muon keeps one momentum for the blocks' matrices; embeddings, head and vectors stay with AdamW
  (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks").
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

from lmlib.resources.model import Model
from lmlib.resources.parameters import BUFFER, MATMUL, Weight, layer_weights
from lmlib.resources.units import ArgumentError, check_bool, check_choice

KINDS = ("adamw", "adamw8bit", "muon", "sgd")
IMPLEMENTATIONS = ("fused", "foreach", "loop")
GRADIENTS = ("as parameters", "fp32")
BLOCK = 256  # values that share a scale in 8-bit states


@dataclass(frozen=True)
class Optimizer:
    """How parameters are updated.

    Args:
        kind: ``adamw``, ``adamw8bit``, ``muon`` or ``sgd``.
        momentum: for ``sgd``: whether it keeps one.
        master: fp32 copies of the parameters, and fp32 states; for parameters in 16 bits.
        implementation: ``fused``: one kernel, no scratch; ``foreach``: PyTorch's default on CUDA, whose
            AdamW step makes a copy of the size of all second moments; ``loop``: its default on CPU, two
            copies of one parameter's at a time.
        gradients: ``as parameters``, or summed in ``fp32`` buffers that stay.
        accumulation: whether a step follows several backward passes, so that each adds to gradients that
            are there already.

    Raises:
        ArgumentError: for a choice that does not exist or does not fit another.
    """

    kind: str = "adamw"
    momentum: bool = False
    master: bool = False
    implementation: str = "fused"
    gradients: str = "as parameters"
    accumulation: bool = False

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("implementation", self.implementation, IMPLEMENTATIONS)
        check_choice("gradients", self.gradients, GRADIENTS)
        for name in ("momentum", "master", "accumulation"):
            check_bool(name, getattr(self, name))
        if self.momentum and self.kind != "sgd":
            raise ArgumentError("momentum", f"is a choice of sgd; {self.kind} always keeps its moments")
        if self.kind in ("adamw8bit", "muon") and self.implementation == "foreach":
            raise ArgumentError("implementation", f"{self.kind} is modelled as fused or loop, got foreach")

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradient buffers are there before the backward pass starts."""
        return self.accumulation or self.gradients == "fp32"

    def gradient_bytes(self, parameter_bytes: int) -> int:
        """Bytes of one stored gradient."""
        return 4 if self.gradients == "fp32" else parameter_bytes

    def state_width(self, parameter_bytes: int) -> int:
        """Bytes of one value of the state."""
        return 4 if self.master else parameter_bytes

    def state_bytes(self, tensor: "Trained", parameter_bytes: int) -> Fraction:
        """Bytes that one parameter of ``tensor`` has in the state, master weight included."""
        width = self.state_width(parameter_bytes)
        master = Fraction(4 if self.master else 0)
        if self.kind == "sgd":
            return master + (width if self.momentum else 0)
        if self.kind == "adamw8bit":
            return master + 2 * (1 + Fraction(4, BLOCK))
        if self.kind == "muon" and tensor.hidden:
            return master + width
        return master + 2 * width

    def scratch(self, trained: "tuple[Trained, ...]", parameter_bytes: int) -> int:
        """Bytes that one step takes for a while."""
        width = self.state_width(parameter_bytes)
        largest = max(each.size for each in trained)
        cast = 4 * largest if self.master and self.gradient_bytes(parameter_bytes) != 4 else 0
        if self.kind == "muon":
            return cast + max(
                [newton_schulz_bytes(*each.shape) for each in trained if each.hidden], default=0
            )
        if self.kind != "adamw" or self.implementation == "fused":
            return cast
        if self.implementation == "foreach":
            return width * sum(each.size * each.count for each in trained)
        return cast + 2 * width * largest


@dataclass(frozen=True)
class Trained:
    """``count`` weight tensors of one shape; ``hidden``: matrices inside blocks, which Muon updates."""

    name: str
    shape: tuple[int, ...]
    count: int
    hidden: bool

    @cached_property
    def size(self) -> int:
        """Parameters of one tensor."""
        product = 1
        for side in self.shape:
            product *= side
        return product


def newton_schulz_bytes(rows: int, columns: int) -> int:
    """Scratch of Muon's orthogonalisation in bf16: X, its successor, and two squares of its short side."""
    short, long = min(rows, columns), max(rows, columns)
    return 2 * (2 * short * long + 2 * short * short)


@lru_cache(maxsize=64)
def trained_tensors(model: Model) -> tuple[Trained, ...]:
    """Every trained weight tensor of a model, equal layers together."""
    return tuple(_trained(model))


def _trained(model: Model) -> Iterator[Trained]:
    d, rows = model.d_model, model.padded_vocab_size
    yield Trained("embedding", (rows, d), 1, False)
    if model.learned_positions:
        yield Trained("positions", (model.learned_positions, d), 1, False)
    for layer, count in model.groups:
        for weight in layer_weights(model, layer):
            if weight.role != BUFFER:
                yield Trained(weight.name, weight.shape, count * _copies(weight), weight.role == MATMUL)
    yield Trained("final norm", (d,), 2 if model.norm == "layernorm" else 1, False)
    if not model.tied:
        yield Trained("head", (rows, d), 1, False)
    if model.head_bias:
        yield Trained("head bias", (rows,), 1, False)


def _copies(weight: Weight) -> int:
    return weight.values["n_experts"] if weight.expert else 1
