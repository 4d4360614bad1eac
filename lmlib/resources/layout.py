"""Parallel layouts: how a model is divided over ranks, and what each rank holds, to the element.

- Ranks are numbered as in Megatron-LM: tensor parallel ranks are neighbours, then context, then data;
  pipeline stages are farthest apart. Experts are divided anew over the ranks of a stage: first within an
  expert (``etp``), then among experts (``ep``), and what is left holds copies.
- Tensor parallelism cuts matrices by columns or rows, embedding and head by rows of the vocabulary, and
  copies norms, routers and biases of row-cut matrices to each rank (Shoeybi et al. 2019,
  arXiv:1909.08053, section 3).
- ZeRO cuts what data parallel ranks would hold twice (Rajbhandari et al. 2020, arXiv:1910.02054): the
  optimizer's state from stage 1, gradients from 2, parameters from 3. Of uneven cuts the first ranks
  hold one more.
- Context parallel ranks hold the same parameters, so ZeRO cuts over them as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lmlib.resources.ledger import Ledger, derive
from lmlib.resources.model import LARGEST_LAYERS, MLP, Layer, Model, MoE
from lmlib.resources.parameters import BUFFER, WHOLE, Weight, layer_weights
from lmlib.resources.sources import STATES, ZERO
from lmlib.resources.units import ArgumentError, Number, check_bool, check_choice, check_integer

LARGEST_GROUP = 2**16
SCHEDULES = ("1f1b", "gpipe")  # gpipe: all forward passes, then all backward (arXiv:1811.06965, section 2.3)


@dataclass(frozen=True)
class Layout:
    """Sizes of the groups; ``n_ranks = dp * cp * tp * pp``.

    Args:
        dp: data parallel ranks. zero: 0 (DDP), 1, 2 or 3 (FSDP).
        tp: tensor parallel ranks. sp: whether what tensor parallelism leaves whole is cut along the
            sequence (Korthikanti et al. 2022, arXiv:2205.05198, section 4.2).
        pp: pipeline stages. vpp: chunks of layers a stage, interleaved (Narayanan et al. 2021,
            arXiv:2104.04473, section 2.2). microbatches: of one step and data parallel rank.
        cp: context parallel ranks (Liu et al. 2023, arXiv:2310.01889).
        ep: ranks that divide the experts of a layer among them. etp: ranks that divide one expert.
        chunk_layers: layers of each of the ``pp * vpp`` chunks, in order of the model, where they are
            not equal.
        replicate_kv: whether ``tp`` may exceed the key/value heads, which are then copied.
        schedule: order of a stage's forward and backward passes, of ``SCHEDULES``.

    Raises:
        ArgumentError: for a size out of bounds, or sizes that contradict each other.
    """

    dp: int = 1
    zero: int = 0
    tp: int = 1
    sp: bool = False
    pp: int = 1
    vpp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1
    microbatches: int = 1
    chunk_layers: tuple[int, ...] | None = None
    replicate_kv: bool = False
    schedule: str = "1f1b"

    def __post_init__(self) -> None:
        for name in ("dp", "tp", "pp", "vpp", "cp", "ep", "etp"):
            check_integer(name, getattr(self, name), 1, LARGEST_GROUP)
        check_integer("zero", self.zero, 0, 3)
        check_integer("microbatches", self.microbatches, 1, 10**6)
        check_bool("sp", self.sp)
        check_bool("replicate_kv", self.replicate_kv)
        check_choice("schedule", self.schedule, SCHEDULES)
        if self.sp and self.tp == 1:
            raise ArgumentError("sp", "cuts along tensor parallel ranks: it needs tp > 1")
        if self.vpp > 1 and self.pp == 1:
            raise ArgumentError("vpp", "interleaves pipeline stages: it needs pp > 1")
        if self.vpp > 1 and self.schedule == "gpipe":
            raise ArgumentError("schedule", "gpipe does not interleave: it needs vpp = 1")
        if self.vpp > 1 and self.microbatches % self.pp:
            raise ArgumentError(
                "microbatches", f"must be a multiple of pp = {self.pp} if vpp > 1, got {self.microbatches}"
            )
        stage = self.dp * self.cp * self.tp
        if stage % (self.ep * self.etp):
            raise ArgumentError(
                "ep",
                f"ep * etp = {self.ep * self.etp} must divide the dp * cp * tp = {stage} ranks of a stage",
            )
        for size in self.chunk_layers or ():
            check_integer("chunk_layers", size, 0, LARGEST_LAYERS)
        if self.chunk_layers is not None and len(self.chunk_layers) != self.pp * self.vpp:
            raise ArgumentError(
                "chunk_layers",
                f"must have pp * vpp = {self.pp * self.vpp} entries, got {len(self.chunk_layers)}",
            )

    @property
    def n_ranks(self) -> int:
        """All ranks."""
        return self.dp * self.cp * self.tp * self.pp

    @property
    def replicas(self) -> int:
        """Ranks that hold the same dense parameters: data and context parallel ones."""
        return self.dp * self.cp

    @property
    def expert_replicas(self) -> int:
        """Ranks that hold the same experts."""
        return self.dp * self.cp * self.tp // (self.ep * self.etp)

    @property
    def bubble(self) -> Number:
        """Idle time of the pipeline over the time it is busy: ``(pp - 1) / (vpp * microbatches)``."""
        return derive(
            "bubble",
            "(pp - 1) / (vpp * microbatches)",
            "ratio",
            "arXiv:2104.04473, section 2.2",
            pp=self.pp,
            vpp=self.vpp,
            microbatches=self.microbatches,
        ).value

    def in_flight(self, stage: int) -> int:
        """Chunks of layers whose activations ``stage`` holds at once, at most.

        Under 1F1B without interleaving a chunk is the stage: ``min(microbatches, pp - stage)``. GPipe holds
        all micro-batches.
        """
        check_integer("stage", stage, 0, self.pp - 1)
        if self.schedule == "gpipe":
            return self.microbatches
        if self.vpp == 1:
            return min(self.microbatches, self.pp - stage)
        warm_up = 2 * (self.pp - stage - 1) + (self.vpp - 1) * self.pp
        return min(self.microbatches * self.vpp, warm_up + 1)

    def check_ranks(self, n_ranks: int) -> None:
        """Refuse a layout that does not multiply to ``n_ranks``."""
        if self.n_ranks != n_ranks:
            raise ArgumentError(
                "n_ranks", f"dp * cp * tp * pp is {self.n_ranks:,}, there are {n_ranks:,} devices"
            )

    def check(self, model: Model) -> None:
        """Refuse a model that this layout cannot divide.

        Raises:
            ArgumentError: naming the size of the layout that does not fit.
        """
        for layer, _ in model.groups:
            _check_layer(self, layer)
        if self.ep * self.etp > 1 and not model.is_moe:
            raise ArgumentError("ep", f"{model.name} has no experts to divide")
        if model.is_moe and self.tp > 1 and not self.sp:
            raise ArgumentError(
                "sp", "experts beside tensor parallelism need sp, or each token is sent tp times"
            )
        chunks = self.pp * self.vpp
        if self.chunk_layers is None:
            if model.n_layers % chunks:
                raise ArgumentError(
                    "pp",
                    f"pp * vpp = {chunks} must divide the {model.n_layers} layers, or give chunk_layers",
                )
        elif sum(self.chunk_layers) != model.n_layers:
            raise ArgumentError(
                "chunk_layers", f"must add up to {model.n_layers} layers, got {sum(self.chunk_layers)}"
            )


def _check_layer(layout: Layout, layer: Layer) -> None:
    heads, groups = layer.attention.n_heads, layer.attention.n_kv_heads
    if heads % layout.tp:
        raise ArgumentError("tp", f"must divide the {heads} heads, got {layout.tp}")
    if groups % layout.tp and not (layout.replicate_kv and layout.tp % groups == 0):
        hint = "; replicate_kv copies them to a multiple" if layout.tp > groups else ""
        raise ArgumentError("tp", f"must divide the {groups} key/value heads, got {layout.tp}{hint}")
    if isinstance(layer.mlp, MLP):
        _divides("tp", layout.tp, layer.mlp.d_ff, "d_ff")
        return
    _divides("tp", layout.tp, layer.mlp.shared_d_ff, "shared_d_ff")
    _divides("ep", layout.ep, layer.mlp.n_experts, "n_experts")
    _divides("etp", layout.etp, layer.mlp.d_ff, "the experts' d_ff")


def _divides(field: str, size: int, whole: int, what: str) -> None:
    if whole % size:
        raise ArgumentError(field, f"must divide {what} = {whole}, got {size}")


def part(size: int, parts: int, index: int) -> int:
    """Elements that rank ``index`` gets of ``size`` cut in ``parts``; the first ones get one more."""
    return size // parts + (index < size % parts)


@dataclass(frozen=True)
class Rank:
    """A rank by its place in each group, see ``Layout``."""

    number: int
    stage: int
    dp: int
    cp: int
    tp: int
    ep: int
    etp: int
    replica: int
    expert_replica: int


def rank(layout: Layout, number: int) -> Rank:
    """The place of rank ``number``.

    Raises:
        ArgumentError: for a number out of bounds.
    """
    check_integer("rank", number, 0, layout.n_ranks - 1)
    stage, within = divmod(number, layout.dp * layout.cp * layout.tp)
    replica, tp = divmod(within, layout.tp)
    dp, cp = divmod(replica, layout.cp)
    expert, etp = divmod(within, layout.etp)
    expert_replica, ep = divmod(expert, layout.ep)
    return Rank(number, stage, dp, cp, tp, ep, etp, replica, expert_replica)


@dataclass(frozen=True)
class Share:
    """``size`` elements of a weight in each of ``layers``, held by ``copies`` ranks of a replica."""

    name: str
    size: int
    layers: int
    copies: int
    expert: bool

    @property
    def elements(self) -> int:
        """Elements of all layers."""
        return self.size * self.layers


@dataclass(frozen=True)
class Divided:
    """A model under a layout. Stages and layers that are alike are counted once."""

    model: Model
    layout: Layout

    def __post_init__(self) -> None:
        self.layout.check(self.model)

    @cached_property
    def stages(self) -> tuple[tuple[Layer, ...], ...]:
        """The layers of each stage, chunk after chunk."""
        pp, chunks = self.layout.pp, self.layout.pp * self.layout.vpp
        sizes = self.layout.chunk_layers or (self.model.n_layers // chunks,) * chunks
        found: list[list[Layer]] = [[] for _ in range(pp)]
        start = 0
        for chunk, size in enumerate(sizes):
            found[chunk % pp] += self.model.layers[start : start + size]
            start += size
        return tuple(tuple(layers) for layers in found)

    def stage_groups(self, stage: int) -> dict[Layer, int]:
        """Distinct layers of a stage, each with how often it occurs."""
        counts: dict[Layer, int] = {}
        for layer in self.stages[stage]:
            counts[layer] = counts.get(layer, 0) + 1
        return counts

    def held(self, place: Rank) -> tuple[Share, ...]:
        """Every share of trained weights that a rank holds, before ZeRO."""
        return tuple(self._held(place))

    def _held(self, place: Rank) -> Iterator[Share]:
        model, layout = self.model, self.layout
        first, last = place.stage == 0, place.stage == layout.pp - 1
        rows = part(model.padded_vocab_size, layout.tp, place.tp)
        twice = 2 if model.tied and layout.pp > 1 else 1  # the first and the last stage
        if first:
            yield Share("embedding", rows * model.d_model, 1, twice, False)
            if model.learned_positions:
                yield Share("positions", model.learned_positions * model.d_model, 1, layout.tp, False)
        for number, (layer, count) in enumerate(self.stage_groups(place.stage).items(), 1):
            for weight in layer_weights(model, layer):
                if weight.role != BUFFER:
                    for size, copies in _cut(weight, layer, layout):
                        yield Share(f"{number}.{weight.name}", size, count, copies, weight.expert)
        if last:
            norms = 2 if model.norm == "layernorm" else 1
            yield Share("final norm", norms * model.d_model, 1, layout.tp, False)
            if not model.tied or layout.pp > 1:
                yield Share("head", rows * model.d_model, 1, twice, False)
            if model.head_bias:
                yield Share("head bias", rows, 1, 1, False)

    def parameters(self, place: Rank) -> tuple[int, int]:
        """Dense and expert parameters of a rank, before ZeRO."""
        shares = self.held(place)
        dense = sum(share.elements for share in shares if not share.expert)
        return dense, sum(share.elements for share in shares if share.expert)

    def state(
        self,
        place: Rank,
        *,
        parameter_bytes: int = 2,
        gradient_bytes: int = 2,
        optimizer_bytes: int = 12,
    ) -> Ledger:
        """Bytes of parameters, gradients and optimizer's state on one rank.

        Args:
            optimizer_bytes: for each parameter; AdamW with fp32 master weights has 4 + 4 + 4 = 12.
        """
        dense, experts = self.parameters(place)
        widths = (
            ("parameters", parameter_bytes, 3),
            ("gradients", gradient_bytes, 2),
            ("optimizer", optimizer_bytes, 1),
        )
        terms = []
        for name, width, cut_from in widths:
            check_integer(f"{name}_bytes", width, 0, 64)
            cut = self.layout.zero >= cut_from
            own = part(dense, self.layout.replicas, place.replica) if cut else dense
            own_experts = part(experts, self.layout.expert_replicas, place.expert_replica) if cut else experts
            terms.append(
                derive(
                    name,
                    "(dense + experts) * width",
                    "bytes",
                    ZERO if cut else STATES,
                    dense=own,
                    experts=own_experts,
                    width=width,
                )
            )
        return Ledger(f"rank {place.number}", "bytes", tuple(terms))

    def table(self, **widths: int) -> list[dict[str, Any]]:
        """One row a stage, for its rank that holds most, with bytes by kind and chunks in flight."""
        rows = []
        for stage in range(self.layout.pp):
            place = rank(self.layout, stage * self.layout.n_ranks // self.layout.pp)
            ledger = self.state(place, **widths)
            dense, experts = self.parameters(place)
            rows.append(
                {
                    "stage": stage,
                    "ranks": f"{place.number}-{place.number + self.layout.n_ranks // self.layout.pp - 1}",
                    "layers": len(self.stages[stage]),
                    "dense_parameters": dense,
                    "expert_parameters": experts,
                    **{term.name: term.value for term in ledger},
                    "total": ledger.total,
                    "in_flight": self.layout.in_flight(stage),
                }
            )
        return rows


def _cut(weight: Weight, layer: Layer, layout: Layout) -> Iterator[tuple[int, int]]:
    """The shares of one weight on one rank: elements, and on how many ranks of a replica they are."""
    if weight.expert:
        assert isinstance(layer.mlp, MoE)
        one = weight.size // layer.mlp.n_experts
        own = layer.mlp.n_experts // layout.ep
        yield (own * one, layout.etp) if weight.split == WHOLE else (own * one // layout.etp, 1)
        return
    if weight.split == WHOLE:
        yield weight.size, layout.tp
        return
    groups = layer.attention.n_kv_heads
    copies = max(1, layout.tp // groups)
    if weight.name.startswith("attention.qkv_proj"):
        values = weight.values
        per_head = weight.size // (values["n_heads"] + 2 * groups)
        yield values["n_heads"] // layout.tp * per_head, 1
        yield 2 * max(1, groups // layout.tp) * per_head, copies
    elif weight.name.startswith(("attention.k_", "attention.v_")):
        yield weight.size // groups * max(1, groups // layout.tp), copies
    else:
        yield weight.size // layout.tp, 1
