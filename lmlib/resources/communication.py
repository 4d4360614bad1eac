"""What the ranks of a layout send each other in one training step, and how long that takes.

- A ``Collective`` has the bytes of its whole tensor (``payload``); ring algorithms send ``(p - 1) / p`` of
  it from each rank for an all-gather, a reduce-scatter or an all-to-all, and twice that for an all-reduce
  (Thakur et al. 2005, doi:10.1177/1094342005051521).
- Time is alpha-beta: a latency for each step of the ring, and bytes over the slowest link of the ring.
- Context parallel ranks exchange keys and values as PyTorch's ring attention, or as Transformer Engine's:
  see ``RINGS``.
- Losses, norms of gradients and routing counts are a few bytes, and left out; so is the loss's exchange of
  three numbers a token under tensor parallelism.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from lmlib.resources.hardware import Device
from lmlib.resources.layout import Divided, Layout, Share, rank
from lmlib.resources.ledger import Ledger, Term, derive
from lmlib.resources.model import Layer, Model, MoE
from lmlib.resources.sources import PIPELINE, RING
from lmlib.resources.units import ArgumentError, Number, check_choice, check_integer, check_number

OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
GROUPS = ("tp", "cp", "dp", "edp", "ep", "pp", "embedding")
RECOMPUTE = ("none", "core", "full")
COPIED = "gradients of copied weights"
# How keys, values and their gradients go round context parallel ranks. ``pytorch``: PyTorch gathers keys and
# values at once and hands gradients on in fp32, p times, the last time home
# (torch.distributed.tensor.experimental). ``transformer_engine``: keys and values are handed on p - 1 times;
# backward they start where they came to, so that a rank meets its own part last, and gradients need p - 1
# hops too, in the activations' type (AttnFuncWithCPAndKVP2P, which Megatron-LM uses).
_RINGS = {
    "pytorch": "torch.distributed.tensor.experimental, its ring attention",
    "transformer_engine": "github.com/NVIDIA/TransformerEngine, AttnFuncWithCPAndKVP2P",
}
RINGS = tuple(_RINGS)
_SUM_BYTES = 4  # of PyTorch's sums of gradients


@dataclass(frozen=True)
class Collective:
    """One kind of exchange of one rank.

    Args:
        op: one of ``OPS``. ranks: those that take part.
        payload: bytes of the whole tensor: input of a reduction, output of a gather.
        count: calls in one step.
        source: of the formula of what is sent, and so of its time.
    """

    name: str
    op: str
    group: str
    ranks: int
    payload: int
    count: int
    source: str = RING

    @property
    def sent(self) -> Term:
        """Bytes that one rank sends in one step."""
        factor = {"all_reduce": "2 * (ranks - 1) / ranks * ", "send": ""}.get(
            self.op, "(ranks - 1) / ranks * "
        )
        symbols = {"count": self.count, "payload": self.payload}
        if factor:
            symbols["ranks"] = self.ranks
        return derive(self.name, f"count * {factor}payload", "bytes", self.source, **symbols)

    @property
    def hops(self) -> int:
        """Steps of the ring, each with its latency, of one call."""
        return {"all_reduce": 2 * (self.ranks - 1), "send": 1}.get(self.op, self.ranks - 1)

    def seconds(self, rate: int, latency: Number) -> Term:
        """Alpha-beta time of all calls of a step over links of ``rate`` bytes/s."""
        return derive(
            self.name,
            "count * hops * latency + sent / rate",
            "seconds",
            self.source,
            count=self.count,
            hops=self.hops,
            latency=latency,
            sent=self.sent.value,
            rate=rate,
        )


@dataclass(frozen=True)
class Traffic:
    """Everything that one rank of ``stage`` sends in a step."""

    layout: Layout
    stage: int
    collectives: tuple[Collective, ...]

    def ledger(self) -> Ledger:
        """Bytes sent, one term a collective."""
        return Ledger("bytes sent", "bytes", tuple(each.sent for each in self.collectives))

    def seconds(self, device: Device, latency: Number = 0) -> Ledger:
        """Time of each collective if nothing overlaps.

        Args:
            latency: seconds of one hop.

        Raises:
            ArgumentError: if a group spans more devices than are connected.
        """
        check_number("latency", latency, 0, 1)
        rates = [link(self.layout, each.group, device) for each in self.collectives]
        pairs = zip(self.collectives, rates, strict=True)
        terms = tuple(each.seconds(rate, latency) for each, rate in pairs)
        return Ledger("communication", "seconds", terms)


def link(layout: Layout, group: str, device: Device) -> int:
    """Bytes/s of the slowest link of a group: inside a node if the ranks it spans are in one."""
    check_choice("group", group, GROUPS)
    stage = layout.dp * layout.cp * layout.tp
    span = {
        "tp": layout.tp,
        "cp": layout.tp * layout.cp,
        "ep": layout.ep * layout.etp,
        "pp": layout.n_ranks,
        "embedding": layout.n_ranks,
    }.get(group, stage)
    rate = device.rate(span)
    if not rate:
        raise ArgumentError("device", f"{device.title} has no link to others")
    return rate


def communication(
    model: Model,
    layout: Layout,
    micro_batch: int,
    length: int,
    *,
    stage: int = 0,
    value_bytes: int = 2,
    parameter_bytes: int = 2,
    gradient_bytes: int = 2,
    recompute: str = "none",
    regather: bool = True,
    ring: str = "pytorch",
) -> Traffic:
    """What a rank of ``stage`` sends in one step, of ``layout.microbatches`` micro-batches.

    Args:
        micro_batch: sequences of one micro-batch and data parallel rank. length: tokens of each.
        value_bytes: of an activation. gradient_bytes: in which gradients are summed.
        recompute: ``full`` repeats the forward exchanges inside layers; ``core`` those of context
            parallel attention.
        regather: with ``sp``, whether the gathered sequence is dropped and gathered again for the
            gradients of weights, as in Megatron-LM, or kept, as DTensor does.
        ring: of ``RINGS``, whose context parallel attention.

    Raises:
        ArgumentError: for a layout that does not fit the model, or a length that cp or sp do not divide.
    """
    check_choice("recompute", recompute, RECOMPUTE)
    check_choice("ring", ring, RINGS)
    check_integer("stage", stage, 0, layout.pp - 1)
    for name, size in (("micro_batch", micro_batch), ("length", length)):
        check_integer(name, size, 1, 10**9)
    for name, size in (("value_bytes", value_bytes), ("parameter_bytes", parameter_bytes)):
        check_integer(name, size, 1, 8)
    check_integer("gradient_bytes", gradient_bytes, 1, 8)
    cut = layout.cp * (layout.tp if layout.sp else 1)
    if length % cut:
        raise ArgumentError("length", f"must be a multiple of cp (times tp with sp) = {cut}, got {length}")
    divided = Divided(model, layout)
    maker = _Maker(divided, micro_batch * length // layout.cp, stage, value_bytes, recompute)
    found = [
        *maker.tensor(gradient_bytes, regather),
        *maker.context(ring),
        *maker.experts(),
        *maker.pipeline(gradient_bytes),
        *maker.data(parameter_bytes, gradient_bytes),
    ]
    return Traffic(
        layout, stage, tuple(each for each in found if each.ranks > 1 and each.payload and each.count)
    )


class _Maker:
    """The collectives of one stage, by kind; ``tokens`` are those of one context parallel rank."""

    def __init__(self, divided: Divided, tokens: int, stage: int, value_bytes: int, recompute: str) -> None:
        self.model, self.layout, self.divided = divided.model, divided.layout, divided
        self.tokens, self.stage, self.value_bytes, self.recompute = tokens, stage, value_bytes, recompute
        self.layers = divided.stage_groups(stage)
        self.first, self.last = stage == 0, stage == self.layout.pp - 1
        self.place = rank(self.layout, stage * self.layout.n_ranks // self.layout.pp)

    @property
    def stream(self) -> int:
        """Bytes of the residual stream of one micro-batch, before ``sp``."""
        return self.tokens * self.model.d_model * self.value_bytes

    def _blocks(self) -> int:
        """Outputs that tensor parallel ranks sum up in one forward pass."""
        return sum(count * _summed(layer) for layer, count in self.layers.items())

    def tensor(self, gradient_bytes: int, regather: bool) -> Iterator[Collective]:
        """Sums of block outputs, and their mirror in the backward pass; embedding and head as well."""
        layout, m = self.layout, self.layout.microbatches
        passes = {"forward": self._blocks(), "backward": self._blocks()}
        if self.recompute == "full":
            passes["recomputation"] = self._blocks()
        for name, blocks in passes.items():
            if layout.sp:
                # Each block gathers the sequence before its first matrix, and scatters its output's sum.
                yield self._tp(f"sequence before blocks, {name}", "all_gather", blocks * m)
                yield self._tp(f"sums after blocks, {name}", "reduce_scatter", blocks * m)
            else:
                yield self._tp(f"sums of blocks, {name}", "all_reduce", blocks * m)
        if layout.sp and regather:
            # The gather of the forward pass is not kept: weights' gradients need it again.
            yield self._tp("sequence for weights' gradients", "all_gather", (self._blocks() + self.last) * m)
        if self.first:
            yield self._tp("sum of embeddings", "reduce_scatter" if layout.sp else "all_reduce", m)
            if layout.sp:
                yield self._tp("gradient of embeddings", "all_gather", m)
        if self.last:
            if layout.sp:
                yield self._tp("sequence before the head", "all_gather", m)
            yield self._tp("gradient of the head's input", "reduce_scatter" if layout.sp else "all_reduce", m)
        if layout.sp:
            shares = self.divided.held(self.place)
            copied = sum(share.elements for share in shares if _whole(share, layout))
            yield Collective(COPIED, "all_reduce", "tp", layout.tp, copied * gradient_bytes, 1)

    def _tp(self, name: str, op: str, count: int) -> Collective:
        return Collective(name, op, "tp", self.layout.tp, self.stream, count)

    def context(self, ring: str) -> Iterator[Collective]:
        """Keys and values go round the ring; backward, they go again, and so do their gradients."""
        ranks, gathers = self.layout.cp, ring == "pytorch"
        repeated = self.recompute != "none"
        for number, (layer, count) in enumerate(self.layers.items(), 1):
            attention = layer.attention
            heads = max(1, attention.n_kv_heads // self.layout.tp)
            values = self.tokens * heads * (attention.query_dim + attention.value_dim)
            size, calls = values * self.value_bytes, self.layout.microbatches * count
            mark = f" #{number}" if len(self.layers) > 1 else ""
            for name, times in (("forward", 1 + repeated), ("backward", 1)):
                title = f"keys and values, {name}{mark}"
                if gathers:
                    whole, times = size * ranks, calls * times
                    yield Collective(title, "all_gather", "cp", ranks, whole, times, _RINGS[ring])
                else:
                    hops = calls * times * (ranks - 1)
                    yield Collective(title, "send", "cp", ranks, size, hops, _RINGS[ring])
            title = f"gradients of keys and values{mark}"
            wide, hops = (values * _SUM_BYTES, ranks) if gathers else (size, ranks - 1)
            yield Collective(title, "send", "cp", ranks, wide, calls * hops, _RINGS[ring])

    def experts(self) -> Iterator[Collective]:
        """Tokens go to their experts and back, forward and backward."""
        layout, forward = self.layout, 1 + (self.recompute == "full")
        tokens = self.tokens // (layout.tp if layout.sp else 1)
        for number, (layer, count) in enumerate(self.layers.items(), 1):
            if not isinstance(layer.mlp, MoE):
                continue
            payload = tokens * layer.mlp.top_k * self.model.d_model * self.value_bytes
            calls = layout.microbatches * count
            mark = f" #{number}" if len(self.layers) > 1 else ""
            for name, times in (("forward", forward), ("backward", 1)):
                title = f"tokens to experts and back, {name}{mark}"
                yield Collective(title, "all_to_all", "ep", layout.ep, payload, 2 * calls * times)
            if layout.etp > 1:
                # Ranks of one expert gather what each received, and scatter the sum of their outputs.
                gathered = payload * layout.etp
                for op in ("all_gather", "reduce_scatter"):
                    title = f"{op.replace('_', '-')} within experts{mark}"
                    yield Collective(title, op, "ep", layout.etp, gathered, calls * (1 + forward))

    def pipeline(self, gradient_bytes: int) -> Iterator[Collective]:
        """Activations to the next stage, gradients to the one before; copies of a tied matrix are summed."""
        layout = self.layout
        if layout.pp == 1:
            return
        payload = self.stream // (layout.tp if layout.sp else 1)
        ahead, back = layout.vpp - self.last, layout.vpp - self.first
        for name, times in (
            ("activations to the next stage", ahead),
            ("gradients to the stage before", back),
        ):
            count = layout.microbatches * times
            yield Collective(name, "send", "pp", layout.pp, payload, count, PIPELINE)
        if self.model.tied and (self.first or self.last):
            shares = {share.name: share.elements for share in self.divided.held(self.place)}
            size = shares["embedding" if self.first else "head"] * gradient_bytes
            yield Collective("gradients of the tied matrix", "all_reduce", "embedding", 2, size, 1)

    def data(self, parameter_bytes: int, gradient_bytes: int) -> Iterator[Collective]:
        """Sums of gradients, and with ZeRO the gathering of what each rank updated or holds."""
        sizes = zip(("", " of experts"), ("dp", "edp"), self.divided.parameters(self.place), strict=True)
        m, zero = self.layout.microbatches, self.layout.zero
        for suffix, group, size in sizes:
            ranks = self.layout.replicas if group == "dp" else self.layout.expert_replicas
            gradients, weights = size * gradient_bytes, size * parameter_bytes
            if zero == 0:
                yield Collective(f"gradients{suffix}", "all_reduce", group, ranks, gradients, 1)
                continue
            # From stage 2 no rank keeps whole gradients, so each micro-batch's are summed at once.
            sums = m if zero > 1 else 1
            yield Collective(f"gradients{suffix}", "reduce_scatter", group, ranks, gradients, sums)
            gathers = 2 * m if zero == 3 else 1
            yield Collective(f"parameters{suffix}", "all_gather", group, ranks, weights, gathers)


def _summed(layer: Layer) -> int:
    """Block outputs that tensor parallel ranks sum: attention's and a dense MLP's, or both at once."""
    dense = not isinstance(layer.mlp, MoE) or layer.mlp.shared_d_ff > 0
    return 1 if layer.parallel and dense else 1 + dense


def _whole(share: Share, layout: Layout) -> bool:
    """Whether each tensor parallel rank holds all of it, with the gradient of its part of the sequence."""
    return (
        not share.expert
        and layout.tp > 1
        and share.copies == layout.tp
        and share.name not in ("embedding", "head")
    )


def volume(collectives: Iterable[Collective]) -> Number:
    """Bytes that one rank sends in a step, all together."""
    return sum((each.sent.value for each in collectives), Fraction(0))
