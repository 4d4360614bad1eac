"""Memory of a training step on each stage of a pipeline, with experts divided as well.

- Under 1F1B a stage holds the saved activations of several micro-batches at once, the first stage the most:
  ``min(microbatches, pp - stage)`` of them, and with interleaving so many chunks (``Layout.in_flight``;
  Narayanan et al. 2021, arXiv:2104.04473, section 2.2).
- Its peak is in the backward pass of the oldest of them, while all are still there: the segments of
  ``memory`` are played for one micro-batch, the others are what they keep.
  Or it is in the optimizer's step, if that takes more scratch.
- Gradients of all micro-batches are summed in buffers that stay.
- A rank of ``ep`` holds its share of the experts, and as many routed tokens as without: routing is taken
  to be even.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from math import ceil

from lmlib.resources.layout import Divided, Layout, Rank, rank
from lmlib.resources.ledger import Ledger, Term, derive
from lmlib.resources.memory import surroundings
from lmlib.resources.model import Model, MoE
from lmlib.resources.optimizer import Optimizer, Trained, trained_tensors
from lmlib.resources.parameters import BUFFER, MATMUL, layer_weights
from lmlib.resources.profile import Profile
from lmlib.resources.segments import GRANULE, Played, Segment, segments
from lmlib.resources.tape import Checkpoint, Op, Parameter, Step
from lmlib.resources.units import ArgumentError

SOURCE = "arXiv:2104.04473, section 2.2"


@dataclass(frozen=True)
class StagePeak:
    """The peak of one rank of ``stage``: ``ledger`` adds up to it, ``at`` is the segment that runs."""

    stage: int
    ledger: Ledger
    at: str

    @property
    def peak(self) -> int:
        """Bytes."""
        return int(self.ledger.total)


def stage_peaks(
    model: Model, layout: Layout, profile: Profile, optimizer: Optimizer, micro_batch: int, length: int
) -> tuple[StagePeak, ...]:
    """Peak of the first rank of each stage, which holds the most of it.

    Args:
        micro_batch: sequences of one micro-batch. length: tokens of each.

    Raises:
        ArgumentError: for a layout that does not fit the model, context parallelism, or experts divided
            under autocast, whose copies of weights are not modelled by expert.
    """
    if layout.cp > 1:
        raise ArgumentError("cp", f"is not modelled in this timeline; take 1, got {layout.cp}")
    if layout.ep > 1 and profile.autocast:
        raise ArgumentError("precision", "autocast is modelled without ep; choose parameters in bf16")
    if length % layout.tp:
        raise ArgumentError("length", f"must be a multiple of tp = {layout.tp}, got {length}")
    divided = Divided(model, layout)
    played = _played(model, profile, micro_batch, length, layout.ep)
    around = surroundings(model, profile, micro_batch, length)
    update = _update(divided, profile, optimizer)
    known: dict[object, tuple[Term, ...]] = {}
    found = []
    for stage in range(layout.pp):
        kind = (tuple(divided.stage_groups(stage).items()), stage == 0, stage == layout.pp - 1)
        if kind not in known:
            place = rank(layout, stage * layout.n_ranks // layout.pp)
            states = _states(divided, place, profile, optimizer)
            known[kind] = (*states, *_gathered(divided, stage, profile), *around)
        kept, running, at = _activations(divided, stage, played)
        held = tuple(_held(layout, stage, kept, running, at))
        if update.value > sum(term.value for term in held):
            held, at = (update,), "step"
        found.append(StagePeak(stage, Ledger("alive at the peak", "bytes", (*known[kind], *held)), at))
    return tuple(found)


def _update(divided: Divided, profile: Profile, optimizer: Optimizer) -> Term:
    """Scratch of the optimizer's step, when activations are gone."""
    layout = divided.layout
    return derive(
        "scratch of the update",
        "ceil(scratch / ranks)",
        "bytes",
        scratch=optimizer.scratch(trained_tensors(divided.model), profile.parameter_bytes),
        ranks=layout.tp * (layout.replicas if layout.zero else 1),
    )


def _held(layout: Layout, stage: int, kept: int, running: int, at: str) -> Iterator[Term]:
    yield derive(
        "kept activations of micro-batches in flight",
        "ceil(kept * chunks_in_flight / vpp / tp)",
        "bytes",
        SOURCE,
        kept=kept,
        chunks_in_flight=layout.in_flight(stage),
        vpp=layout.vpp,
        tp=layout.tp,
    )
    yield derive(f"running: {at}", "ceil(alive / tp)", "bytes", alive=running, tp=layout.tp)


def _activations(divided: Divided, stage: int, played: tuple[Played, ...]) -> tuple[int, int, str]:
    """Bytes that one micro-batch keeps on the stage, what the highest moment adds, and where that is.

    ``played`` are the embedding, one of each kind of layer, and the head.
    """
    model, layout = divided.model, divided.layout
    place = {layer: number for number, (layer, _) in enumerate(model.groups, 1)}
    numbers = [place[layer] for layer in divided.stages[stage]]
    names = [f"layer {index}" for index in range(1, len(numbers) + 1)]
    if stage == 0:
        numbers, names = [0, *numbers], ["embedding", *names]
    if stage == layout.pp - 1:
        numbers, names = [*numbers, len(played) - 1], [*names, "head and loss"]
    kept = sum(played[number].kept for number in numbers)
    released, best, at = 0, 0, names[-1] if names else "nothing"
    for number, name in reversed(list(zip(numbers, names, strict=True))):
        one = played[number]
        highest = max(moment.alive for moment in (*one.forward, *one.backward)) - one.kept - released
        if highest > best:
            best, at = highest, name
        released += one.kept
    return kept, best, at


@lru_cache(maxsize=32)
def _played(model: Model, profile: Profile, micro_batch: int, length: int, ep: int) -> tuple[Played, ...]:
    granule = GRANULE if profile.device == "cuda" else 1
    parts = segments(model, profile, micro_batch, length)
    return tuple(_share_of_experts(part, ep).play(granule, True)[0] for part in parts)


def _share_of_experts(part: Segment, ep: int) -> Segment:
    """The segment with gradients of expert weights for one rank's share of the experts."""
    return part if ep == 1 else replace(part, steps=tuple(_with_share(step, ep) for step in part.steps))


def _with_share(step: Step, ep: int) -> Step:
    if isinstance(step, Checkpoint):
        ops = tuple(op for inner in step.ops if isinstance(op := _with_share(inner, ep), Op))
        return replace(step, ops=ops)
    return replace(step, parameters=tuple(_parameter_share(each, ep) for each in step.parameters))


def _parameter_share(parameter: Parameter, ep: int) -> Parameter:
    tensor = parameter.made
    if "n_experts" not in dict(tensor.symbols) or tensor.name.startswith("router"):
        return parameter
    own = replace(tensor, formula=f"{tensor.formula} / {ep}", nbytes=tensor.nbytes // ep)
    return replace(parameter, made=own)


def _states(divided: Divided, place: Rank, profile: Profile, optimizer: Optimizer) -> Iterator[Term]:
    """Parameters, gradients and the optimizer's state of a rank, after ZeRO."""
    layout, width = divided.layout, profile.parameter_bytes
    hidden = {
        f"{number}.{weight.name}"
        for number, layer in enumerate(divided.stage_groups(place.stage), 1)
        for weight in layer_weights(divided.model, layer)
        if weight.role == MATMUL
    }
    sizes = {"dense": Fraction(0), "experts": Fraction(0)}
    states = {"dense": Fraction(0), "experts": Fraction(0)}
    for share in divided.held(place):
        kind = "experts" if share.expert else "dense"
        sizes[kind] += share.elements
        tensor = Trained(share.name, (share.elements,), 1, share.name in hidden)
        states[kind] += share.elements * optimizer.state_bytes(tensor, width)
    rows = (
        ("parameters", sizes, width, 3),
        ("gradients", sizes, optimizer.gradient_bytes(width), 2),
        ("optimizer state", states, 1, 1),
    )
    for name, values, each, cut_from in rows:
        cut = layout.zero >= cut_from
        yield derive(
            name,
            "ceil(dense * width / ranks) + ceil(experts * width / expert_ranks)",
            "bytes",
            "arXiv:1910.02054, section 5" if cut else "",
            dense=ceil(values["dense"]),
            experts=ceil(values["experts"]),
            width=each,
            ranks=layout.replicas if cut else 1,
            expert_ranks=layout.expert_replicas if cut else 1,
        )


def _gathered(divided: Divided, stage: int, profile: Profile) -> Iterator[Term]:
    """ZeRO 3 holds one layer whole while it runs, and the next one already."""
    layout = divided.layout
    if layout.zero < 3 or layout.replicas == 1:
        return
    largest = max(
        (
            sum(
                Fraction(weight.size, layout.ep * layout.etp if weight.expert else layout.tp)
                for weight in layer_weights(divided.model, layer)
                if weight.role != BUFFER
                and not (weight.expert and isinstance(layer.mlp, MoE) and layout.expert_replicas == 1)
            )
            for layer in divided.stage_groups(stage)
        ),
        default=Fraction(0),
    )
    yield derive(
        "two layers gathered by ZeRO 3",
        "2 * ceil(layer * width)",
        "bytes",
        "torch.distributed.fsdp.fully_shard, one layer prefetched",
        layer=ceil(largest),
        width=profile.compute_bytes,
    )
