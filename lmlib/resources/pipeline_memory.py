"""Memory of a training step on each stage of a pipeline, with experts divided as well.

- Under 1F1B a stage holds the saved activations of several micro-batches at once, the first stage the most:
  ``min(microbatches, pp - stage)`` of them, and with interleaving so many chunks (``Layout.in_flight``;
  Narayanan et al. 2021, arXiv:2104.04473, section 2.2). Which chunks is counted too: the one with the head
  keeps most, and goes backward at once.
- Its peak is in a backward pass, while all of them are still there: the segments of ``memory`` are played
  for the chunk that runs, the others are what they keep.
  Or it is in the optimizer's step, if that takes more scratch.
- What PyTorch's schedules hold beside that is not part of it: a buffer for what each micro-batch receives,
  and each stage's output until its gradient has come back.
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
from lmlib.resources.sources import OPTIMIZER, PIPELINE, REFERENCE, STATES, ZERO
from lmlib.resources.tape import Checkpoint, Op, Parameter, Step
from lmlib.resources.units import ArgumentError


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
    played = _played(model, profile, micro_batch, length, layout.ep, layout.pp == 1)
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
        most = _most(divided, stage, played)
        held: tuple[Term, ...] = (_kept(most, layout), most.term(layout.tp))
        at = most.at
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
        OPTIMIZER,
        scratch=optimizer.scratch(trained_tensors(divided.model), profile.parameter_bytes),
        ranks=layout.tp * (layout.replicas if layout.zero else 1),
    )


@dataclass(frozen=True)
class _Most:
    """The fullest moment of a stage.

    Args:
        kept: pairs of bytes that a chunk keeps, and how many such chunks are in flight.
        running: bytes alive in the segment ``at`` beside what is kept.
    """

    kept: tuple[tuple[int, int], ...]
    running: int
    at: str

    @property
    def alive(self) -> int:
        """Bytes, before tensor parallelism divides them."""
        return self.running + sum(size * times for size, times in self.kept)

    def term(self, tp: int) -> Term:
        """What runs."""
        return derive(
            f"running: {self.at}", "ceil(alive / tp)", "bytes", REFERENCE, alive=self.running, tp=tp
        )


def _kept(most: _Most, layout: Layout) -> Term:
    """What micro-batches in flight keep; chunks of equal size are counted together."""
    parts: list[str] = []
    symbols: dict[str, int] = {}
    for number, (size, times) in enumerate(most.kept, 1):
        mark = f"_{number}" if len(most.kept) > 1 else ""
        parts.append(f"kept{mark} * in_flight{mark}")
        symbols |= {f"kept{mark}": size, f"in_flight{mark}": times}
    whole = parts[0] if len(parts) == 1 else f"({' + '.join(parts)})"
    name = "kept activations of micro-batches in flight"
    return derive(name, f"ceil({whole} / tp)", "bytes", PIPELINE, **symbols, tp=layout.tp)


def _most(divided: Divided, stage: int, played: tuple[Played, ...]) -> _Most:
    """The moment of a stage when most is alive: in which backward pass of which chunk.

    ``played`` are the embedding, one of each kind of layer, and the head.
    """
    layout = divided.layout
    chunks = _chunks(divided, stage, len(played) - 1)
    kept = [sum(played[number].kept for number, _ in chunk) for chunk in chunks]
    running = [_running(chunk, played) for chunk in chunks]
    best, counts = -1, [0] * len(chunks)
    for place in _places(layout, stage):
        held = _in_flight(layout, stage, place)
        total = sum(size * times for size, times in zip(kept, held, strict=True))
        total += running[_turn(layout, place, back=True)][0]
        if total > best:
            best, counts, runs = total, held, _turn(layout, place, back=True)
    sizes: dict[int, int] = {}
    for size, times in zip(kept, counts, strict=True):
        if times:
            sizes[size] = sizes.get(size, 0) + times
    return _Most(tuple(sizes.items()), *running[runs])


def _chunks(divided: Divided, stage: int, head: int) -> list[list[tuple[int, str]]]:
    """The segments of each chunk of a stage: number in ``played``, and name."""
    model, layout = divided.model, divided.layout
    place = {layer: number for number, (layer, _) in enumerate(model.groups, 1)}
    count = layout.pp * layout.vpp
    sizes = (layout.chunk_layers or (model.n_layers // count,) * count)[stage :: layout.pp]
    layers = [(place[layer], f"layer {index}") for index, layer in enumerate(divided.stages[stage], 1)]
    found, start = [], 0
    for size in sizes:
        found.append(layers[start : start + size])
        start += size
    if stage == 0:
        found[0] = [(0, "embedding"), *found[0]]
    if stage == layout.pp - 1:
        found[-1] = [*found[-1], (head, "head and loss")]
    return found


def _running(chunk: list[tuple[int, str]], played: tuple[Played, ...]) -> tuple[int, str]:
    """What the highest moment of a chunk's backward pass adds to what is kept, and where that is.

    Gradients are there already; what waits is a tied matrix's from the head, until the embedding's comes.
    """
    released, waiting, best, at = 0, 0, 0, chunk[-1][1] if chunk else "nothing"
    for number, name in reversed(chunk):
        one = played[number]
        alive = [each.alive for each in one.forward]
        alive += [each.alive + each.gradients + waiting for each in one.backward]
        highest = max(alive) - one.kept - released
        if highest > best:
            best, at = highest, name
        released += one.kept
        waiting += one.stored
    return best, at


def _turn(layout: Layout, place: int, *, back: bool) -> int:
    """The chunk of a stage whose turn is in its forward or backward pass number ``place``.

    Interleaved, each chunk takes ``pp`` micro-batches at a time; backward, the last chunk comes first.
    """
    turn = place // layout.pp % layout.vpp
    return layout.vpp - 1 - turn if back else turn


def _in_flight(layout: Layout, stage: int, place: int) -> list[int]:
    """How often each chunk has gone forward but not backward, at the stage's backward pass ``place``."""
    passes = layout.microbatches * layout.vpp
    ahead = min(passes, place + layout.in_flight(stage))
    turns, own = layout.pp * layout.vpp, layout.pp

    def gone(count: int, turn: int) -> int:
        rounds, rest = divmod(count, turns)
        return rounds * own + min(max(rest - turn * own, 0), own)

    return [gone(ahead, chunk) - gone(place, layout.vpp - 1 - chunk) for chunk in range(layout.vpp)]


def _places(layout: Layout, stage: int) -> list[int]:
    """Backward passes of which one is the fullest: just before and after turns change, in one round."""
    passes = layout.microbatches * layout.vpp
    if layout.vpp == 1:
        return [0]
    shift = layout.in_flight(stage) % layout.pp
    around = {
        turn * layout.pp - offset + step
        for turn in range(layout.vpp + 1)
        for offset in (0, shift)
        for step in (-1, 0, 1)
    }
    return sorted(place for place in around if 0 <= place < passes)


@lru_cache(maxsize=32)
def _played(
    model: Model, profile: Profile, micro_batch: int, length: int, ep: int, one_stage: bool
) -> tuple[Played, ...]:
    granule = GRANULE if profile.device == "cuda" else 1
    parts = segments(model, profile, micro_batch, length)
    if not one_stage:  # the first and the last stage each have their own copy of a tied matrix
        parts = tuple(replace(part, stored=(), waits=()) for part in parts)
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
            ZERO if cut else STATES,
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
