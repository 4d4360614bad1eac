"""A training step written down as ops on sizes: the parts that every block is made of.

``Builder`` writes the ops of the transformer in ``lmlib.book.measure.reference``, whose saved tensors and
peaks the tests compare with PyTorch's. Symbols: ``tokens`` = batch * context_length.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from lmlib.resources.ledger import evaluate
from lmlib.resources.model import Model
from lmlib.resources.parameters import Weight
from lmlib.resources.profile import Profile
from lmlib.resources.tape import Checkpoint, Op, Parameter, Step, Tensor

_NAME = re.compile(r"[A-Za-z_]\w*")
_FLASH_TILE = 128  # rows that the flash backward kernel rounds its fp32 accumulator up to


@lru_cache(maxsize=1024)
def _names(formula: str) -> tuple[str, ...]:
    """The names in a formula: the same few dozen formulas come again in every layer."""
    return tuple(_NAME.findall(formula))


class Builder:
    """Writes ops in order; ``symbols`` are the sizes that formulas may name."""

    def __init__(self, model: Model, profile: Profile, batch: int, context_length: int) -> None:
        self.model, self.profile = model, profile
        self.symbols: dict[str, int] = {
            "batch": batch,
            "context_length": context_length,
            "tokens": batch * context_length,
            "d_model": model.d_model,
            "vocab_size": model.padded_vocab_size,
        }
        self.steps: list[Step] = []
        self.outer: list[list[Step]] = []
        self.weights: Mapping[str, Weight] = {}
        self.compute = profile.compute_bytes
        self.stream = profile.stream_bytes
        self.wide: set[Tensor] = set()  # fp32 tensors that autocast narrows in front of a product

    def tensor(
        self, name: str, width: int, elements: str, base: Tensor | None = None, kept: bool = False
    ) -> Tensor:
        """``elements`` values of ``width`` bytes."""
        return self.sized(name, f"{width} * {elements}" if width > 1 else elements, self.symbols, base, kept)

    @staticmethod
    def sized(
        name: str, formula: str, symbols: Mapping[str, int], base: Tensor | None = None, kept: bool = False
    ) -> Tensor:
        """A tensor of as many bytes as the formula says."""
        used = {key: symbols[key] for key in _names(formula) if key in symbols}
        return Tensor(name, formula, tuple(used.items()), int(evaluate(formula, **used)), base, kept)

    def op(self, op: Op) -> None:
        """Append an op."""
        self.steps.append(op)

    def free(self, *tensors: Tensor) -> None:
        """Python lets go of these once the last op is done."""
        self.steps[-1] = replace(self.steps[-1], frees=self.steps[-1].frees + tensors)

    def begin(self) -> None:
        """Start a checkpoint."""
        self.outer.append(self.steps)
        self.steps = []

    def end(self, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        """End the checkpoint begun last; its ops must not free its inputs."""
        ops = tuple(step for step in self.steps if isinstance(step, Op))
        self.steps = self.outer.pop()
        self.steps.append(Checkpoint(ops, inputs, outputs))

    def unary(
        self, name: str, x: Tensor, out: Tensor, saves: tuple[Tensor, ...] = (), passes: bool = False
    ) -> Tensor:
        """An op of one input and one output."""
        self.op(Op(name, (x,), (out,), saves, passes=passes))
        return out

    def add(self, name: str, x: Tensor, y: Tensor, width: int = 0) -> Tensor:
        """A sum, in the residual stream's type unless ``width`` says other; its gradient is not copied."""
        out = self.tensor(name, width or self.stream, "tokens * d_model")
        self.op(Op(name, (x, y), (out,), passes=True))
        return out

    def parameter(self, weight: Weight, product: bool = True, bias: bool = False) -> Parameter:
        """The gradient of a weight; those of products are cast under autocast, which keeps no bias."""
        stored = self.profile.parameter_bytes
        made = self.compute if product else stored
        gradient = self.sized(weight.name, f"{made} * {weight.stored}", weight.values)
        if made == stored:
            return Parameter(gradient)
        return Parameter(
            gradient,
            stored=self.sized(weight.name, f"{stored} * {weight.stored}", weight.values),
            copy=self.sized(f"cast of {weight.name}", f"{made} * {weight.stored}", weight.values),
            keeps_copy=not bias,
        )

    def width(self, x: Tensor) -> int:
        """Bytes of a value between the products: as the products make it, or as a norm widened it."""
        return 4 if x in self.wide else self.compute

    def narrow(self, x: Tensor, name: str) -> tuple[Tensor, bool]:
        """What a product reads: under autocast a cast copy of an fp32 tensor, made anew for each product."""
        if x not in self.wide:
            return x, False
        elements = x.formula.removeprefix("4 * ")
        narrow = self.sized(f"{x.name}, cast for {name}", f"2 * {elements}", dict(x.symbols))
        return self.unary(f"{name}: cast", x, narrow), True

    def linear(self, name: str, x: Tensor, elements: str, out_name: str = "") -> Tensor:
        """A product with the weight ``name`` of the layer, and its bias if there is one."""
        product, cast = self.narrow(x, name)
        out = self.tensor(out_name or f"{name} output", self.compute, elements)
        used = tuple(
            self.parameter(self.weights[each], bias=each != name)
            for each in (name, f"{name}.bias")
            if each in self.weights
        )
        self.op(Op(name, (product,), (out,), (product,), used, late=cast))
        if cast:
            self.free(product)
        return out

    def norm(self, name: str, x: Tensor, width: int, elements: str, rows: str) -> Tensor:
        """A norm over the last axis of ``elements`` values in ``rows`` rows."""
        if self.model.norm == "layernorm":
            out = self._layernorm(name, x, width, elements, rows)
        elif self.profile.norm == "fused":
            out = self._fused_norm(name, x, width, elements, rows)
        else:
            out = self._plain_norm(name, x, width, elements, rows)
            width = max(width, self._weighted_width(width))
        if self.profile.autocast and width == 4:
            self.wide.add(out)
        return out

    def _norm_parameters(self, name: str) -> tuple[Parameter, ...]:
        names = [each for each in (name, f"{name}.bias") if each in self.weights]
        return tuple(self.parameter(self.weights[each], product=False) for each in names)

    def _fused_norm(self, name: str, x: Tensor, width: int, elements: str, rows: str) -> Tensor:
        out = self.tensor(f"{name} output", width, elements)
        scale = self.tensor(f"{name} reciprocal root mean square", 4, rows)
        self.op(Op(name, (x,), (out, scale), (x, scale), self._norm_parameters(name), (scale,)))
        return out

    def _layernorm(self, name: str, x: Tensor, width: int, elements: str, rows: str) -> Tensor:
        stat = 4 if self.profile.device == "cuda" else width
        out = self.tensor(f"{name} output", width, elements)
        mean = self.tensor(f"{name} mean", stat, rows)
        scale = self.tensor(f"{name} reciprocal deviation", stat, rows)
        self.op(
            Op(name, (x,), (out, mean, scale), (x, mean, scale), self._norm_parameters(name), (mean, scale))
        )
        return out

    def _weighted_width(self, width: int) -> int:
        """Bytes of a value of the written-out norm's output: its weight is fp32 under autocast, so is it."""
        return 4 if self.profile.autocast and self.profile.norm == "manual" else width

    def _plain_norm(self, name: str, x: Tensor, width: int, elements: str, rows: str) -> Tensor:
        """x / sqrt(mean(x^2)) * weight op by op; the product with the weight in fp32 if ``composite``."""
        narrow = width == 2
        composite = self.profile.norm == "composite"
        wide = self.tensor(f"{name} input in fp32", 4, elements)
        source = self.unary(f"{name}: cast", x, wide) if narrow else x
        square, large = self.tensor(f"{name} squares", 4, elements), self.tensor("two powers", 8, elements)
        self.op(Op(f"{name}: square", (source,), (square,), (source,), backward_scratch=(large,)))
        mean = self.unary(f"{name}: mean", square, self.tensor(f"{name} mean square", 4, rows))
        self.free(square)
        if not composite:
            shifted = self.tensor(f"{name} mean square + eps", 4, rows)
            mean = self._then_free(mean, self.unary(f"{name}: eps", mean, shifted, passes=True))
        scale = self.tensor(f"{name} reciprocal root mean square", 4, rows)
        self.unary(f"{name}: rsqrt", mean, scale, (scale,))
        self.free(mean)
        normal = self.tensor(f"{name} normalised", 4, elements)
        product = self.tensor("product of gradient and input", 4, elements)
        self.op(
            Op(
                f"{name}: scale",
                (source, scale),
                (normal,),
                (source, scale),
                frees=(scale, source) if narrow else (scale,),
                backward_scratch=(product,),
            )
        )
        if narrow and not composite:
            cast = self.tensor(f"{name} normalised, narrow", 2, elements)
            normal = self._then_free(normal, self.unary(f"{name}: narrow", normal, cast))
        inner = 4 if composite else self._weighted_width(width)
        weighted = self.tensor(f"{name} output", inner, elements)
        # Where only the output is wide, autograd narrows the input's gradient after the weight's is summed.
        late = 2 if narrow and not composite and inner == 4 else 0
        summand = self.tensor("product of gradient and normalised", inner + late, elements)
        self.op(
            Op(
                f"{name}: weight",
                (normal,),
                (weighted,),
                (normal,),
                self._norm_parameters(name),
                (normal,),
                backward_scratch=(summand,),
            )
        )
        if narrow and composite:
            cast = self.tensor(f"{name} output", 2, elements)
            weighted = self._then_free(weighted, self.unary(f"{name}: narrow", weighted, cast))
        return weighted

    def _then_free(self, old: Tensor, new: Tensor) -> Tensor:
        self.free(old)
        return new

    def dropout(self, name: str, x: Tensor, width: int, elements: str) -> Tensor:
        """Dropout, which keeps its mask; without it, ``x`` itself."""
        if not self.profile.dropout:
            return x
        width = max(width, self.width(x))
        out = self.tensor(f"{name} output", width, elements)
        mask = self.tensor(f"{name} mask", self.profile.mask_bytes(width), elements)
        self.op(Op(name, (x,), (out, mask), (mask,), frees=(mask, x)))
        return out

    def rotate(self, name: str, x: Tensor, elements: str) -> Tensor:
        """Rotary position embedding, x cos + rotate_half(x) sin: keeps nothing, needs room."""
        width = self.width(x)
        out = self.tensor(f"{name}, rotated", width, elements)
        two = self.tensor("x cos and rotated halves", 2 * width, elements)
        half = self.tensor("gradients of the halves", width * 3 // 2, elements)
        self.op(Op(f"{name}: rotate", (x,), (out,), scratch=(two,), backward_scratch=(half,)))
        if x in self.wide:
            self.wide.add(out)
        return out
