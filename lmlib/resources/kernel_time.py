"""How long a rank computes, kernel by kernel, where one efficiency for everything is too coarse.

- A product takes FLOPs over the speed that large products reach, or the time to read its factors and write
  its result, whichever is longer (see ``roofline``).
- Its result is cut into tiles, one a multiprocessor at a time. The last wave of tiles takes as long as a full
  one: narrow products lose most of it (NVIDIA, Matrix Multiplication Background User's Guide, section 3).
- Everything between products (norms, sums, activations, softmax, rotations) moves bytes: the least possible,
  each input read once and each result written once, whatever lies between two products being one kernel.
- The optimizer's step reads and writes all of its state once.

What remains is one number, the share of the peak that a large product reaches. It can be measured alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod

from lmlib.resources.chip import CHIPS
from lmlib.resources.flops import attended_pairs
from lmlib.resources.hardware import Device
from lmlib.resources.layout import Divided, rank
from lmlib.resources.ledger import Ledger, Term, derive
from lmlib.resources.model import MLP, Attention, Layer, MoE
from lmlib.resources.parameters import COLUMN, MATMUL, ROW, layer_weights
from lmlib.resources.sources import ROOFLINE
from lmlib.resources.units import Number

TILE = (128, 256)
_WAVES = "NVIDIA, Matrix Multiplication Background User's Guide, section 3"
_TRAFFIC = "each tensor between two products read or written once"
_VALUE, _MASK = 2, 1  # bytes of a value, and of a place in a dropout mask
_UPDATE = 28  # AdamW: reads gradient 2, master and moments 12; writes them and the weight, 12 + 2


@dataclass(frozen=True)
class Product:
    """``count`` products of (m, k) with (k, n), ``batch`` of them side by side in one kernel."""

    m: int
    k: int
    n: int
    batch: int = 1

    @property
    def flops(self) -> int:
        """Of one kernel."""
        return 2 * self.m * self.k * self.n * self.batch

    @property
    def moved(self) -> int:
        """Bytes: factors read and result written once."""
        return _VALUE * self.batch * (self.m * self.k + self.k * self.n + self.m * self.n)

    def waves(self, sms: int) -> Number:
        """Time over that of an even cut into tiles, which lie the better of two ways round."""
        if not sms:
            return 1
        area = self.m * self.n * self.batch
        best = min(
            ceil(ceil(self.m / high) * ceil(self.n / wide) * self.batch / sms)
            for high, wide in (TILE, TILE[::-1])
        )
        return best * sms * prod(TILE) / area

    def backward(self) -> "tuple[Product, Product]":
        """Gradients of the input and of the weight."""
        return Product(self.m, self.n, self.k, self.batch), Product(self.k, self.m, self.n, self.batch)


@dataclass(frozen=True)
class Kernels:
    """How kernels run.

    Args:
        efficiency: share of the peak that a large product reaches.
        dropout: whether residual branches and attention's weights are dropped out in training.
    """

    efficiency: Number
    dropout: bool = False


def kernel_seconds(
    divided: Divided,
    stage: int,
    device: Device,
    kernels: Kernels,
    micro_batch: int,
    length: int,
    *,
    mask: str,
    kernel: str,
    recompute: str,
    peak: Number,
) -> Ledger:
    """Seconds that a rank of ``stage`` computes for one micro-batch, forward and backward."""
    work = _Work(divided, device, kernels, micro_batch, length, peak)
    for layer, count in divided.stage_groups(stage).items():
        work.layer(layer, count, mask, kernel, recompute)
    if stage == divided.layout.pp - 1:
        work.head()
    return work.ledger()


def update_seconds(divided: Divided, stage: int, device: Device) -> Term:
    """AdamW's step, with fp32 master weights, of a rank of ``stage``."""
    layout = divided.layout
    dense, experts = divided.parameters(rank(layout, stage * layout.n_ranks // layout.pp))
    cut = layout.zero > 0
    return derive(
        "update of the weights",
        "(dense / ranks + experts / expert_ranks) * bytes / bandwidth",
        "seconds",
        device.source_of("bandwidth"),
        dense=dense,
        experts=experts,
        ranks=layout.replicas if cut else 1,
        expert_ranks=layout.expert_replicas if cut else 1,
        bytes=_UPDATE,
        bandwidth=device.bandwidth,
    )


class _Work:
    """Adds up products and bytes moved, by what they are for."""

    def __init__(
        self,
        divided: Divided,
        device: Device,
        kernels: Kernels,
        micro_batch: int,
        length: int,
        peak: Number,
    ) -> None:
        self.model, self.layout = divided.model, divided.layout
        self.device, self.kernels, self.peak = device, kernels, peak
        self.sequences, self.length = micro_batch, length
        self.tokens = micro_batch * length // self.layout.cp
        chip = CHIPS.get(device.name)
        self.sms = chip.sms if chip else 0
        self.flops: Number = 0
        self.filled = 0.0  # seconds of products with the last waves of their tiles
        self.starved = [0, 0.0]  # of products bound by memory: bytes, seconds that their FLOPs would take
        self.moved: dict[str, int] = {}

    @property
    def even(self) -> float:
        """Seconds of all products if tiles filled every wave."""
        return float(self.flops / (self.peak * self.kernels.efficiency))

    def product(self, one: Product, count: int) -> None:
        """Add ``count`` equal kernels."""
        filled = float(one.flops / (self.peak * self.kernels.efficiency) * one.waves(self.sms))
        self.flops += count * one.flops
        self.filled += count * filled
        if one.moved / self.device.bandwidth > filled:
            self.starved[0] += count * one.moved
            self.starved[1] += count * filled

    def move(self, what: str, values: int) -> None:
        """Add bytes that no product reads or writes."""
        self.moved[what] = self.moved.get(what, 0) + values

    def layer(self, layer: Layer, count: int, mask: str, kernel: str, recompute: str) -> None:
        """All kernels of ``count`` equal layers."""
        passes = 2 if recompute.startswith("full") else 1
        for one in self._products(layer):
            self.product(one, count * passes)
            for back in one.backward():
                self.product(back, count)
        core = passes + (recompute == "core")
        self._core(layer, count, mask, kernel, core)
        self._between(layer, count, passes)

    def _products(self, layer: Layer) -> Iterator[Product]:
        tp, mlp = self.layout.tp, layer.mlp
        for weight in layer_weights(self.model, layer):
            if weight.role != MATMUL:
                continue
            outputs, inputs = weight.shape
            if weight.expert:
                assert isinstance(mlp, MoE)
                own = mlp.n_experts // self.layout.ep
                each = max(1, self.tokens // (tp if self.layout.sp else 1) * mlp.top_k // own)
                cut = self.layout.etp
                outputs, inputs = (
                    (outputs // cut, inputs) if weight.split == COLUMN else (outputs, inputs // cut)
                )
                yield Product(each, inputs, outputs, own)
                continue
            if weight.split == COLUMN:
                outputs = max(1, outputs // tp)
            elif weight.split == ROW:
                inputs //= tp
            yield Product(self.tokens, inputs, outputs)

    def _core(self, layer: Layer, count: int, mask: str, kernel: str, passes: int) -> None:
        """Attention between its projections: a flash kernel keeps scores on the chip."""
        attention = layer.attention
        heads = attention.n_heads // self.layout.tp
        pairs = self.sequences * attended_pairs(self.length, mask, attention.window) / self.layout.cp
        flops = 2 * heads * pairs * (attention.query_dim + attention.value_dim)
        if kernel == "flash":
            again = 2 * heads * pairs * attention.query_dim  # scores, once more in the backward pass
            work = count * ((passes + 2) * flops + again)
            before = self.even
            self.flops += work
            self.filled += self.even - before
            return
        side, batch = self.length, heads * self.sequences
        scores, mix = (
            Product(side, attention.query_dim, side, batch),
            Product(side, side, attention.value_dim, batch),
        )
        for one in (scores, mix):
            self.product(one, count * passes)
            for back in one.backward():
                self.product(back, count)
        values = batch * side * side
        dropped = 2 * _VALUE + _MASK if self.kernels.dropout else 0
        bytes_ = passes * (2 * _VALUE + dropped) + 3 * _VALUE + dropped
        self.move("softmax of attention", count * values * bytes_)

    def _between(self, layer: Layer, count: int, passes: int) -> None:
        """Norms, residual sums, activations, rotations, and the sorting of tokens by expert."""
        model, layout, attention, mlp = self.model, self.layout, layer.attention, layer.mlp
        stream = self.tokens * model.d_model // (layout.tp if layout.sp else 1)
        norms = passes * 2 * _VALUE + 3 * _VALUE
        self.move("norms", count * layer.norms * stream * norms)
        dropped = 2 * _VALUE + _MASK if self.kernels.dropout else 0
        # Forward, the mask is written by the kernel of the sum.
        sums = passes * (3 * _VALUE + (_MASK if self.kernels.dropout else 0)) + 3 * _VALUE + dropped
        self.move("residual sums", count * (1 if layer.parallel else 2) * stream * sums)
        if not model.learned_positions:
            width = attention.query_dim if isinstance(attention, Attention) else attention.rope_head_dim
            groups = attention.n_kv_heads if isinstance(attention, Attention) else 1
            turned = self.tokens * width * (attention.n_heads + groups) // layout.tp
            self.move("rotations", count * turned * (passes + 1) * 2 * _VALUE)
        self._activation(mlp, count, passes)

    def _activation(self, mlp: MLP | MoE, count: int, passes: int) -> None:
        gated = passes * 3 * _VALUE + 5 * _VALUE
        if isinstance(mlp, MLP):
            one = gated if mlp.gated else passes * 2 * _VALUE + 3 * _VALUE
            self.move("activations", count * self.tokens * mlp.d_ff // self.layout.tp * one)
            return
        tokens = self.tokens // (self.layout.tp if self.layout.sp else 1)
        routed = tokens * mlp.top_k
        self.move("activations", count * (routed * mlp.d_ff + tokens * mlp.shared_d_ff) * gated)
        self.move("tokens sorted by expert", count * routed * self.model.d_model * (passes + 1) * 4 * _VALUE)

    def head(self) -> None:
        """The last product, and the loss: logits are read, and read and overwritten by their gradient."""
        one = Product(self.tokens, self.model.d_model, -(-self.model.padded_vocab_size // self.layout.tp))
        self.product(one, 1)
        for back in one.backward():
            self.product(back, 1)
        self.move("loss", self.tokens * one.n * 3 * _VALUE)

    def ledger(self) -> Ledger:
        """Seconds, by kind."""
        speed = {"peak": self.peak, "efficiency": self.kernels.efficiency}
        source = self.device.source_of(self.device.default_dtype)
        terms = [
            derive(
                "products", "flops / (peak * efficiency)", "seconds", source, flops=float(self.flops), **speed
            )
        ]
        if self.filled > self.even:
            terms.append(
                derive(
                    "waves of tiles that are not full",
                    "products * (filled - 1)",
                    "seconds",
                    _WAVES,
                    products=self.even,
                    filled=self.filled / self.even,
                )
            )
        if self.starved[0]:
            terms.append(
                derive(
                    "products that wait for memory",
                    "bytes / bandwidth - arithmetic",
                    "seconds",
                    ROOFLINE,
                    bytes=self.starved[0],
                    bandwidth=self.device.bandwidth,
                    arithmetic=self.starved[1],
                )
            )
        for name, moved in self.moved.items():
            terms.append(
                derive(
                    name,
                    "bytes / bandwidth",
                    "seconds",
                    _TRAFFIC,
                    bytes=moved,
                    bandwidth=self.device.bandwidth,
                )
            )
        return Ledger("kernels of a micro-batch", "seconds", tuple(terms))
