"""Training memory over time: what is alive while each segment of a step runs, and the peak.

The peak is a maximum over the step, not a sum of parts: saved activations shrink as gradients grow.

>>> from lmlib.resources import load
>>> from lmlib.resources.memory import memory
>>> from lmlib.resources.optimizer import Optimizer
>>> from lmlib.resources.profile import Profile
>>> timeline = memory(load("llama-3-8b"), Profile(recompute="full"), Optimizer(), 1, 8192)
>>> timeline.at.segment, timeline.at.phase
('layer 1', 'backward')
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from math import ceil

from lmlib.resources.activations import saved_ledger, tensor_ledger
from lmlib.resources.ledger import Ledger, Term, derive
from lmlib.resources.model import Attention, Model
from lmlib.resources.optimizer import Optimizer, trained_tensors
from lmlib.resources.parameters import buffers, parameters
from lmlib.resources.profile import Profile
from lmlib.resources.segments import GRANULE, Played, Segment, segments
from lmlib.resources.sources import ALLOCATOR, OPTIMIZER, REFERENCE, STATES, WEIGHTS
from lmlib.resources.units import ArgumentError, check_bool, check_integer

_CUBLAS = "PyTorch, aten/src/ATen/cuda/CUDABlas.cpp"


@dataclass(frozen=True)
class Shards:
    """Over how many ranks each kind of bytes is divided evenly; 1 for not at all.

    ZeRO 1 divides the optimizer's state, ZeRO 2 gradients as well, ZeRO 3 parameters too (Rajbhandari et
    al. 2020, arXiv:1910.02054, section 5).
    """

    parameters: int = 1
    gradients: int = 1
    optimizer: int = 1
    activations: int = 1

    def __post_init__(self) -> None:
        for name in ("parameters", "gradients", "optimizer", "activations"):
            check_integer(name, getattr(self, name), 1, 2**24)


@dataclass(frozen=True)
class Row:
    """One stretch of the timeline: bytes alive at its start, at most, and at its end.

    ``op`` is running when the most is alive; layers are counted from 1.
    """

    phase: str
    segment: str
    op: str
    start: int
    peak: int
    end: int

    def to_json(self) -> dict[str, str | int]:
        """The row as JSON-able values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Timeline:
    """Memory of one training step. ``rows`` are in order of time, for plotting; all numbers are bytes."""

    rows: tuple[Row, ...]
    standing: Ledger
    alive: Ledger
    peak: int

    @cached_property
    def at(self) -> Row:
        """The row of the peak, the first of equals."""
        return max(self.rows, key=lambda row: row.peak)

    def to_json(self) -> dict[str, object]:
        """Peak, where it is, what is alive there, and every row."""
        return {
            "peak": self.peak,
            "at": self.at.to_json(),
            "alive": self.alive.to_json(),
            "rows": [row.to_json() for row in self.rows],
        }


def memory(
    model: Model,
    profile: Profile,
    optimizer: Optimizer,
    batch_size: int,
    context_length: int,
    *,
    first_step: bool = False,
    shards: Shards | None = None,
) -> Timeline:
    """The timeline of one training step: forward, backward, optimizer.

    Args:
        batch_size: sequences of one forward pass.
        context_length: tokens of each.
        first_step: the optimizer's state is made at this step's end, instead of being there from the start.
        shards: over how many ranks parameters, gradients, states and activations are divided.

    Raises:
        ArgumentError: for sizes out of bounds, or choices that do not go together.
    """
    step = _step(model, profile, optimizer, batch_size, context_length, first_step, shards)
    return step.timeline()


def peak(
    model: Model,
    profile: Profile,
    optimizer: Optimizer,
    batch_size: int,
    context_length: int,
    *,
    first_step: bool = False,
    shards: Shards | None = None,
) -> int:
    """The peak of ``memory`` alone, without the account of what is alive there."""
    return _step(model, profile, optimizer, batch_size, context_length, first_step, shards).peak()


def _step(
    model: Model,
    profile: Profile,
    optimizer: Optimizer,
    batch_size: int,
    context_length: int,
    first_step: bool,
    shards: Shards | None,
) -> "_Step":
    check_bool("first_step", first_step)
    if optimizer.master and profile.parameter_bytes == 4:
        raise ArgumentError("master", f"is for parameters in 16 bits; precision is {profile.precision}")
    return _Step(model, profile, optimizer, batch_size, context_length, first_step, shards or Shards())


def surroundings(model: Model, profile: Profile, batch_size: int, context_length: int) -> list[Term]:
    """What is there beside parameters and their like: the batch, buffers, tables, masks, workspaces."""
    tokens = batch_size * context_length
    terms = [derive("batch: input and target ids", "2 * 8 * tokens", "bytes", REFERENCE, tokens=tokens)]
    if buffers(model).total:
        terms.append(derive("buffers", "4 * values", "bytes", WEIGHTS, values=buffers(model).total))
    attention = model.layers[0].attention
    if not model.learned_positions:
        width = attention.head_dim if isinstance(attention, Attention) else attention.rope_head_dim
        terms.append(
            derive(
                "rotary cosines and sines",
                "2 * context_length * head_dim * width",
                "bytes",
                REFERENCE,
                context_length=context_length,
                head_dim=width,
                width=profile.compute_bytes,
            )
        )
    if profile.attention == "eager":
        length = context_length
        terms.append(derive("causal mask", "context_length**2", "bytes", REFERENCE, context_length=length))
    if profile.device == "cuda" and profile.workspace_bytes:
        size = profile.workspace_bytes
        terms.append(derive("cuBLAS workspaces", "workspaces", "bytes", _CUBLAS, workspaces=size))
    return terms


@lru_cache(maxsize=32)
def _in_order(model: Model) -> tuple[tuple[int, str], ...]:
    """The segments of the model in order of time: the number of the part, and a name."""
    place = {layer: number for number, (layer, _) in enumerate(model.groups, 1)}
    layers = ((place[layer], f"layer {index}") for index, layer in enumerate(model.layers, 1))
    return ((0, "embedding"), *layers, (len(model.groups) + 1, "head and loss"))


@lru_cache(maxsize=32)
def _state_sizes(
    model: Model, optimizer: Optimizer, parameter_bytes: int
) -> tuple[tuple[bool, Fraction, int], ...]:
    """Weights of equal state together: whether Muon updates them, bytes of state of each, and how many."""
    groups: dict[tuple[bool, Fraction], int] = {}
    for each in trained_tensors(model):
        key = (each.hidden and optimizer.kind == "muon", optimizer.state_bytes(each, parameter_bytes))
        groups[key] = groups.get(key, 0) + each.size * each.count
    return tuple((hidden, width, size) for (hidden, width), size in groups.items())


@lru_cache(maxsize=32)
def _played(
    model: Model,
    profile: Profile,
    batch_size: int,
    context_length: int,
    granule: int,
    accumulates: bool,
) -> tuple[tuple[Segment, ...], tuple[Played, ...]]:
    """The segments, and what each does to memory: neither depends on how much is sharded."""
    parts = segments(model, profile, batch_size, context_length)
    return parts, tuple(part.played(granule, accumulates) for part in parts)


class _Step:
    """The parts of one step, and their composition."""

    def __init__(
        self,
        model: Model,
        profile: Profile,
        optimizer: Optimizer,
        batch_size: int,
        context_length: int,
        first_step: bool,
        shards: Shards,
    ) -> None:
        self.model, self.profile, self.optimizer, self.shards = model, profile, optimizer, shards
        self.batch_size, self.context_length, self.first_step = batch_size, context_length, first_step
        self.granule = GRANULE if profile.device == "cuda" else 1
        self.trained = trained_tensors(model)
        self.parts, self.played = _played(
            model, profile, batch_size, context_length, self.granule, optimizer.keeps_gradients
        )
        self.order = _in_order(model)
        self.held = sum(tensor.nbytes for tensor in self.parts[-1].held)

    def standing(self) -> Ledger:
        """What is there before the forward pass: parameters, states, kept gradients, the batch."""
        entries = [self._parameters()]
        if not self.first_step:
            entries += self._states()
        if self.optimizer.keeps_gradients:
            entries.append(self._kept_gradients())
        entries += surroundings(self.model, self.profile, self.batch_size, self.context_length)
        rounding = self._rounding(entries)
        return Ledger("before the step", "bytes", tuple(entries + rounding))

    def _parameters(self) -> Term:
        return derive(
            "parameters",
            "ceil(parameters * width / ranks)",
            "bytes",
            STATES,
            parameters=parameters(self.model).total,
            width=self.profile.parameter_bytes,
            ranks=self.shards.parameters,
        )

    def _kept_gradients(self) -> Term:
        return derive(
            "gradients",
            "ceil(parameters * width / ranks)",
            "bytes",
            STATES,
            parameters=parameters(self.model).total,
            width=self.optimizer.gradient_bytes(self.profile.parameter_bytes),
            ranks=self.shards.gradients,
        )

    def _states(self) -> list[Term]:
        """The optimizer's state, equal kinds of weights together."""
        terms = []
        for hidden, width, size in _state_sizes(self.model, self.optimizer, self.profile.parameter_bytes):
            name = "optimizer state of hidden matrices" if hidden else "optimizer state"
            terms.append(
                derive(
                    name,
                    "ceil(parameters * width / ranks)",
                    "bytes",
                    STATES,
                    parameters=size,
                    width=width,
                    ranks=self.shards.optimizer,
                )
            )
        return [*terms, *self._counters()]

    def _counters(self) -> list[Term]:
        """PyTorch's AdamW counts steps in one fp32 number for each parameter tensor."""
        if self.optimizer.kind != "adamw":
            return []
        on_host = self.profile.device == "cuda" and self.optimizer.implementation != "fused"
        if on_host:
            return []
        tensors = sum(each.count for each in self.trained)
        return [derive("step counters", "4 * tensors", "bytes", OPTIMIZER, tensors=tensors)]

    def _rounding(self, entries: list[Term]) -> list[Term]:
        """What the allocator adds to parameters and states, tensor by tensor."""
        if self.granule == 1:
            return []
        extra = self._excess(self.profile.parameter_bytes, self.shards.parameters)
        if not self.first_step:
            extra += self._state_excess()
        if self.optimizer.keeps_gradients:
            width = self.optimizer.gradient_bytes(self.profile.parameter_bytes)
            extra += self._excess(width, self.shards.gradients)
        return [derive("rounding of allocations to 512 bytes", "extra", "bytes", ALLOCATOR, extra=extra)]

    def _excess(self, width: int, ranks: int) -> int:
        excess = 0
        for each in self.trained:
            share = -(-each.size * width // ranks)
            excess += each.count * (-share % self.granule)
        return excess

    def _state_excess(self) -> int:
        """Two moments (or as many as there are) for each tensor, and its counter."""
        if self.optimizer.kind != "adamw":
            return 0
        width = self.optimizer.state_width(self.profile.parameter_bytes)
        extra = (3 if self.optimizer.master else 2) * self._excess(width, self.shards.optimizer)
        counters = sum(each.count for each in self.trained) if self._counters() else 0
        return extra + counters * (self.granule - 4)

    def timeline(self) -> Timeline:
        """Forward, backward, optimizer, and what is alive at the peak."""
        standing = self.standing()
        base, turns = int(standing.total), list(self._passes())
        rows = [*(self._row(base, *turn) for turn in turns), self._update(base)]
        peak = max(row.peak for row in rows)
        first = next(place for place, row in enumerate(rows) if row.peak == peak)
        alive = self._alive(standing, rows[first], turns[first] if first < len(turns) else None)
        return Timeline(tuple(rows), standing, alive, peak)

    def peak(self) -> int:
        """The highest row of the timeline, without its rows."""
        highest = 0
        for phase, place, kept, stored in self._passes():
            played = self.played[self.order[place][0]]
            for moment in played.forward_highest if phase == "forward" else played.backward_highest:
                alive = self._share(kept + moment.alive) + self._gradient_share(stored + moment.gradients)
                highest = max(highest, alive)
        base = int(self.standing().total)
        return max(base + highest, self._update(base).peak)

    def _passes(self) -> Iterator[tuple[str, int, int, int]]:
        """Each segment's turns in order of time: phase, place, bytes kept and gradients stored before it."""
        kept = 0
        for place, (number, _) in enumerate(self.order):
            yield "forward", place, kept, 0
            kept += self.played[number].kept_forward
        kept = sum(self.played[number].kept for number, _ in self.order)
        stored = 0
        for place in reversed(range(len(self.order))):
            number, _ = self.order[place]
            kept -= self.played[number].kept
            yield "backward", place, kept, stored
            kept += self._held_by(number)
            stored += self.played[number].stored

    @cached_property
    def stored(self) -> int:
        """Gradients that the backward pass leaves behind."""
        return sum(self.played[number].stored for number, _ in self.order)

    def _held_by(self, number: int) -> int:
        """What Python still refers to once the head's backward pass is over."""
        return self.held if number == len(self.parts) - 1 else 0

    def _input_bytes(self, place: int) -> int:
        """The gradient that a segment hands to the one before it: of that one's output."""
        return self.played[self.order[place - 1][0]].output_bytes if place else 0

    def _row(self, base: int, phase: str, place: int, kept: int, stored: int) -> Row:
        number, name = self.order[place]
        played = self.played[number]
        if phase == "forward":
            first, candidates = played.forward[0], played.forward_highest
            end, stored_end = played.forward_end, 0
        else:
            first, candidates = played.backward[0], played.backward_highest
            end, stored_end = self._input_bytes(place) + self._held_by(number), played.stored

        def total(alive: int, gradients: int) -> int:
            return base + self._share(kept + alive) + self._gradient_share(stored + gradients)

        totals = [total(moment.alive, moment.gradients) for moment in (first, *candidates)]
        most = max(totals)
        highest = (first, *candidates)[totals.index(most)]
        return Row(
            phase,
            name,
            highest.op if highest.phase != "recompute" else f"{highest.op} (recomputed)",
            totals[0],
            most,
            total(end, stored_end),
        )

    def _share(self, activations: int) -> int:
        return -(-activations // self.shards.activations)

    def _gradient_share(self, gradients: int) -> int:
        return -(-gradients // self.shards.gradients)

    def _update(self, base: int) -> Row:
        """The optimizer's step: its state if this is the first one, and its scratch."""
        before = base + self._gradient_share(self.stored) + self._share(self.held)
        after = before + self._new_states()
        scratch = self._scratch()
        return Row("optimizer", "step", "update", before, after + scratch, after)

    def _scratch(self) -> int:
        return ceil(
            Fraction(
                self.optimizer.scratch(self.trained, self.profile.parameter_bytes), self.shards.optimizer
            )
        )

    def _new_states(self) -> int:
        if not self.first_step:
            return 0
        extra = self._state_excess() if self.granule > 1 else 0
        return int(sum(term.value for term in self._states())) + extra

    def _alive(self, standing: Ledger, row: Row, turn: tuple[str, int, int, int] | None) -> Ledger:
        """Everything that is alive at the peak; its total is the peak. ``turn`` is None in the update."""
        entries: list[Term | Ledger] = [standing]
        if turn is None:
            entries += self._states() if self.first_step else []
            if self.optimizer.scratch(self.trained, self.profile.parameter_bytes):
                scratch = self._scratch()
                entries.append(
                    derive("scratch of the update", "scratch", "bytes", OPTIMIZER, scratch=scratch)
                )
            entries += [*self._gradients(self.stored), *self._logits()]
        else:
            entries += self._around(row, turn)
        known = sum(entry.value for entry in entries)
        rest = row.peak - known
        if rest:
            entries.append(
                derive("rounding of shares and allocations", "rest", "bytes", ALLOCATOR, rest=rest)
            )
        return Ledger("alive at the peak", "bytes", tuple(entries))

    def _logits(self) -> list[Term]:
        """The loss, and the logits if the profile says so, to which Python still refers."""
        return [derive("loss and logits that Python holds", "held", "bytes", REFERENCE, held=self.held)]

    def _gradients(self, stored: int) -> list[Term]:
        if not stored:
            return []
        ranks = self.shards.gradients
        formula = "ceil(bytes_so_far / ranks)"
        waits = self.optimizer.keeps_gradients
        name = "gradients that wait for another use of their weight" if waits else "gradients so far"
        return [derive(name, formula, "bytes", STATES, bytes_so_far=stored, ranks=ranks)]

    def _around(self, row: Row, turn: tuple[str, int, int, int]) -> list[Term | Ledger]:
        """Saved activations of the other segments, gradients, and what the running one holds."""
        _, place, _, stored = turn
        number, _ = self.order[place]
        part, played = self.parts[number], self.played[number]
        moments = played.forward if row.phase == "forward" else played.backward
        index = max(
            range(len(moments)),
            key=lambda each: (
                moments[each].alive / self.shards.activations
                + moments[each].gradients / self.shards.gradients,
                -each,
            ),
        )
        offset = 0 if row.phase == "forward" else len(played.forward)
        _, run = part.play(self.granule, self.optimizer.keeps_gradients, snapshot_at=offset + index)
        entries: list[Term | Ledger] = []
        for other, segment in enumerate(self.parts):
            count = sum(1 for each, _ in self.order[:place] if each == other)
            if count and segment.saved():
                entries.append(self._divided(self._kept(segment, count)))
        entries += self._gradients(stored + moments[index].gradients)
        return [
            *entries,
            self._divided(tensor_ledger(f"{row.phase} of {row.segment}: {row.op}", run.snapshot)),
        ]

    def _kept(self, segment: Segment, count: int) -> Ledger:
        ledger = saved_ledger(segment, count)
        batch = ("input ids", "target ids")
        kept = tuple(term for term in ledger.entries if term.name not in batch)
        return Ledger(f"kept by {ledger.name}", "bytes", kept)

    def _divided(self, ledger: Ledger) -> Ledger:
        ranks = self.shards.activations
        return ledger if ranks == 1 else ledger / ranks
