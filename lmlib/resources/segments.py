"""A training step in segments: embedding, each kind of layer, head and loss.

Equal layers are played once: where a layer stands changes what is alive around it, not within it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from lmlib.resources.blocks import layer_program
from lmlib.resources.ends import embedding_gradient, embedding_program, head_program
from lmlib.resources.model import LARGEST_CONTEXT, Model, describe
from lmlib.resources.profile import LOSSES, Profile
from lmlib.resources.program import Builder
from lmlib.resources.tape import Checkpoint, Moment, Op, Run, Step, Tensor, like
from lmlib.resources.units import check_integer

GRANULE = 512  # PyTorch's CUDA allocator rounds every request up to this (c10/cuda/CUDACachingAllocator.cpp)
LARGEST_BATCH = 2**24


@dataclass(frozen=True)
class Played:
    """What a segment does to memory, in bytes.

    Args:
        forward, backward: its moments; bytes count what the segment itself has made, its input included.
        forward_end: alive once it has returned, its output included.
        kept_forward: kept until autocast ends; ``kept``: kept for the backward pass.
        output_bytes: its output.
        stored: gradients of parameters that its backward pass leaves behind, once it has run; where they are
            added to gradients that are there already, those that wait for another use of their weight (less
            than nothing where this was the use that they waited for).
    """

    forward: tuple[Moment, ...]
    backward: tuple[Moment, ...]
    forward_end: int
    kept_forward: int
    kept: int
    output_bytes: int
    stored: int

    @cached_property
    def forward_highest(self) -> tuple[Moment, ...]:
        """Those moments of the forward pass that can be the highest, however bytes are divided."""
        return _highest(self.forward)

    @cached_property
    def backward_highest(self) -> tuple[Moment, ...]:
        """The same of the backward pass."""
        return _highest(self.backward)


def _highest(moments: tuple[Moment, ...]) -> tuple[Moment, ...]:
    """Moments than which no other has both as much alive and as many gradients; of equals the first."""
    found: list[Moment] = []
    most: int | None = None
    for moment in sorted(moments, key=lambda each: (-each.alive, -each.gradients)):
        if most is None or moment.gradients > most:
            found.append(moment)
            most = moment.gradients
    return tuple(found)


@dataclass(frozen=True)
class Segment:
    """``count`` equal stretches of the program, of which one is described.

    ``held`` stays with Python when the segment is over; gradients in ``stored`` are there already when its
    backward pass comes, and those in ``waits`` get another part after it, from an earlier segment.
    """

    name: str
    count: int
    steps: tuple[Step, ...]
    source: Tensor | None
    output: Tensor
    held: tuple[Tensor, ...] = ()
    stored: tuple[Tensor, ...] = ()
    waits: tuple[Tensor, ...] = ()

    def uses(self) -> dict[Tensor, int]:
        """How many gradients each parameter gets, from this segment's backward pass and later ones."""
        found = dict.fromkeys(self.waits, 1)
        for step in self.steps:
            for op in step.ops if isinstance(step, Checkpoint) else (step,):
                for parameter in op.parameters:
                    if parameter.joins is None:
                        found[parameter.key] = found.get(parameter.key, 0) + 1
        return found

    def saved(self) -> list[Tensor]:
        """Storages that autograd keeps for the backward pass, each once, in the order they were saved."""
        found: dict[Tensor, None] = {}
        for step in self.steps:
            tensors: Sequence[Tensor] = step.inputs if isinstance(step, Checkpoint) else step.saves
            if isinstance(step, Op):
                tensors = (*tensors, *(copy for each in step.parameters for copy in each.kept_copies))
            found |= dict.fromkeys(tensor.storage for tensor in tensors)
        return list(found)

    def played(self, granule: int, accumulates: bool) -> Played:
        """What ``play`` finds, remembered: a change of the loss leaves the layers as they are."""
        return _played(self, granule, accumulates)

    def play(self, granule: int, accumulates: bool, snapshot_at: int | None = None) -> tuple[Played, Run]:
        """Run the segment forward and backward."""
        run = Run(accumulates=accumulates, granule=granule, snapshot_at=snapshot_at, uses=self.uses())
        run.stored |= set(self.stored)
        if self.source is not None:
            run.hold(self.source)
        run.forward(self.steps)
        forward_end, forward = run.alive, tuple(run.moments)
        if self.source is not None:
            run.release(self.source)
        if self.output not in self.held:
            run.release(self.output)
        kept_forward = run.alive
        run.leave_autocast()
        kept = run.alive
        run.phase = "backward"
        gradient = like(self.output, "gradient of")
        run.hold(gradient)
        run.gradients[self.output] = gradient
        run.backward(self.steps)
        played = Played(
            forward,
            tuple(run.moments[len(forward) :]),
            forward_end,
            kept_forward,
            kept,
            run.taken(self.output),
            run.stored_bytes,
        )
        return played, run


@lru_cache(maxsize=128)
def _played(segment: Segment, granule: int, accumulates: bool) -> Played:
    return segment.play(granule, accumulates)[0]


def segments(model: Model, profile: Profile, batch_size: int, context_length: int) -> tuple[Segment, ...]:
    """The embedding, one segment for each of ``model.groups``, and the head with the loss.

    Raises:
        ArgumentError: for sizes out of bounds, or a kernel that this attention cannot use.
    """
    check_integer("batch_size", batch_size, 1, LARGEST_BATCH)
    largest = model.learned_positions or LARGEST_CONTEXT
    check_integer("context_length", context_length, 1, largest)

    def builder() -> Builder:
        return Builder(model, profile, batch_size, context_length)

    first, shared = builder(), embedding_gradient(builder())
    start = embedding_program(first, shared)
    parts = [Segment("embedding", 1, tuple(first.steps), None, start, (), (shared,) if model.tied else ())]
    parts += _layer_segments(model, replace(profile, loss=LOSSES[0]), batch_size, context_length)
    last = builder()
    x, loss, logits = head_program(last, shared)
    held = (loss,) if logits is None else (loss, logits)
    waits = (shared,) if model.tied else ()
    parts.append(Segment("head and loss", 1, tuple(last.steps), x, loss, held, waits=waits))
    return tuple(parts)


@lru_cache(maxsize=32)
def _layer_segments(
    model: Model, profile: Profile, batch_size: int, context_length: int
) -> tuple[Segment, ...]:
    """One segment for each of ``model.groups``; all losses share them, so ``profile.loss`` is set aside."""
    found = []
    for number, (layer, count) in enumerate(model.groups):
        build = Builder(model, profile, batch_size, context_length)
        x, y = layer_program(build, layer, rotary=not model.learned_positions)
        name = "layer" if len(model.groups) == 1 else f"layer of kind {number + 1} ({describe(layer)})"
        found.append(Segment(name, count, tuple(build.steps), x, y))
    return tuple(found)
