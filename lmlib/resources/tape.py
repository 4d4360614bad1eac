"""Automatic differentiation on sizes: which bytes are alive at every step of a forward and backward pass.

- A ``Tensor`` is a name and a number of bytes, with the formula that gives it. It stands for a storage, or
  for a view of one.
- An ``Op`` says what it makes, what autograd keeps for its backward pass, and when Python lets go of what.
- ``Run`` plays a list of ops forward, then backward in reverse, counting references as PyTorch does: a
  gradient is summed in place where nobody else refers to it, saved tensors go once their node has run, and
  a checkpoint repeats its ops until the last saved tensor is there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple


@dataclass(frozen=True, eq=False)
class Tensor:
    """``nbytes`` bytes, ``formula`` of ``symbols``; ``base`` is the tensor whose storage a view shares.

    ``kept`` marks what is alive anyway and counted elsewhere: parameters, buffers, the batch.
    """

    name: str
    formula: str
    symbols: tuple[tuple[str, int], ...]
    nbytes: int
    base: "Tensor | None" = None
    kept: bool = False

    @property
    def storage(self) -> "Tensor":
        """The tensor that owns the bytes."""
        return self.base.storage if self.base is not None else self


@dataclass(frozen=True, eq=False)
class Parameter:
    """The gradient of one weight: ``made`` by the op, then ``stored`` in another type if they differ.

    ``copy``: the narrower copy of the weight that autocast makes, or None. ``joins``: where several ops share
    one copy, the tensor at which their gradients meet before they are stored. ``keeps_copy``: whether
    autograd keeps it; a bias's copy goes when autocast ends.
    """

    made: Tensor
    stored: Tensor | None = None
    copy: Tensor | None = None
    joins: Tensor | None = None
    keeps_copy: bool = True

    @property
    def key(self) -> Tensor:
        """The gradient as it is stored."""
        return self.stored or self.made

    @property
    def kept_copies(self) -> tuple[Tensor, ...]:
        """The copy, if autograd keeps it for the backward pass."""
        return (self.copy,) if self.copy is not None and self.keeps_copy else ()


@dataclass(frozen=True, eq=False)
class Op:
    """One operation.

    Args:
        inputs: tensors that a gradient flows to.
        saves: tensors that autograd keeps until the op's backward step.
        parameters: weights that the op uses.
        frees: tensors that no Python name refers to once the op is done.
        passes: the gradient of the output is handed on as it is, without a copy.
        reuses: the gradient of the input takes the place of the first saved tensor.
        scratch, backward_scratch: alive only during the op, or its backward step.
        late: its parameters' gradients are stored after the backward step of the op before it. Autocast casts
            a product's weight, then its input, and autograd undoes the last cast first.
    """

    name: str
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    saves: tuple[Tensor, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    frees: tuple[Tensor, ...] = ()
    passes: bool = False
    reuses: bool = False
    scratch: tuple[Tensor, ...] = ()
    backward_scratch: tuple[Tensor, ...] = ()
    late: bool = False


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Ops whose saved tensors are dropped, and computed again when the backward pass needs the first.

    The caller holds ``inputs``; ``frees`` go when the checkpoint returns, so no op inside frees an input.
    """

    ops: tuple[Op, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    frees: tuple[Tensor, ...] = ()


Step = Op | Checkpoint


class Moment(NamedTuple):
    """Bytes alive while an op of a phase was running, and bytes of parameter gradients stored by then."""

    phase: str
    op: str
    alive: int
    gradients: int


@dataclass
class Run:
    """What is alive while ops are played; ``moments`` is the record.

    Args:
        accumulates: gradients of parameters are there already, and are added to, once those of all uses of
            a weight have been summed beside them.
        uses: with ``accumulates``, how many gradients each parameter still gets.
        granule: an allocation takes a multiple of this many bytes.
        snapshot_at: number of the moment at which ``snapshot`` is to hold all that is alive.

    ``sums_in_place``: PyTorch adds a second gradient to the first where nobody else refers to it, but not
    while a TorchDispatchMode watches (torch/csrc/autograd/input_buffer.cpp). A product's gradient for its
    weight is a transposed view, whose base autograd refers to as well: the first sum of such ``views`` is a
    new tensor, and the later ones are added to it (``summed``).
    """

    sums_in_place: ClassVar[bool] = True

    accumulates: bool = False
    granule: int = 1
    snapshot_at: int | None = None
    alive: int = 0
    moments: list[Moment] = field(default_factory=list)
    references: dict[Tensor, int] = field(default_factory=dict)
    gradients: dict[Tensor, Tensor] = field(default_factory=dict)
    stored: set[Tensor] = field(default_factory=set)
    stored_bytes: int = 0
    uses: dict[Tensor, int] = field(default_factory=dict)
    views: set[Tensor] = field(default_factory=set)
    summed: set[Tensor] = field(default_factory=set)
    casts: list[Tensor] = field(default_factory=list)
    waiting: list[tuple[Parameter, Tensor, str]] = field(default_factory=list)
    snapshot: tuple[Tensor, ...] = ()
    phase: str = "forward"

    def taken(self, tensor: Tensor) -> int:
        """Bytes that an allocation of this size takes."""
        return -(-tensor.nbytes // self.granule) * self.granule

    def hold(self, tensor: Tensor) -> None:
        """One more reference; the first one allocates."""
        storage = tensor.storage
        if storage.kept:
            return
        count = self.references.get(storage, 0)
        if not count:
            self.alive += self.taken(storage)
        self.references[storage] = count + 1

    def release(self, tensor: Tensor) -> None:
        """One reference fewer; the last one frees."""
        storage = tensor.storage
        if storage.kept:
            return
        self.references[storage] -= 1
        if not self.references[storage]:
            del self.references[storage]
            self.alive -= self.taken(storage)

    def mark(self, name: str) -> None:
        """Record what is alive now."""
        if self.snapshot_at == len(self.moments):
            self.snapshot = tuple(self.references)
        self.moments.append(Moment(self.phase, name, self.alive, self.stored_bytes))

    def forward(self, steps: Iterable[Step]) -> None:
        """Play steps forward, keeping what autograd keeps."""
        for step in steps:
            if isinstance(step, Op):
                self._compute(step, saving=True)
            else:
                for op in step.ops:
                    self._compute(op, saving=False)
                for tensor in step.inputs:
                    self.hold(tensor)
                for tensor in step.frees:
                    self.release(tensor)

    def leave_autocast(self) -> None:
        """The cache of cast weights goes; what autograd kept stays."""
        for tensor in self.casts:
            self.release(tensor)
        self.casts.clear()

    def _compute(self, op: Op, saving: bool) -> None:
        for parameter in op.parameters:
            if parameter.copy is not None and parameter.copy not in self.casts:
                self.hold(parameter.copy)
                self.casts.append(parameter.copy)
        made = (*op.scratch, *op.outputs)
        for tensor in made:
            self.hold(tensor)
        self.mark(op.name)
        for tensor in op.scratch:
            self.release(tensor)
        if saving:
            self._save(op)
        for tensor in op.frees:
            self.release(tensor)

    def _save(self, op: Op) -> None:
        for tensor in op.saves:
            self.hold(tensor)
        for parameter in op.parameters:
            for copy in parameter.kept_copies:
                self.hold(copy)

    def backward(self, steps: Sequence[Step]) -> None:
        """Play steps backward; the gradients of their outputs must be in ``gradients``."""
        for step in reversed(steps):
            if isinstance(step, Op):
                self._differentiate(step)
            else:
                # Ops after the last one that saves need nothing recomputed: they are differentiated before.
                saving = [place for place, op in enumerate(step.ops) if op.saves]
                for op in reversed(step.ops[saving[-1] + 1 :]):
                    self._differentiate(op)
                self._recompute(step, saving[-1])
                # The frame that holds the inputs goes with the last saved tensor.
                for place in range(saving[-1], -1, -1):
                    self._differentiate(step.ops[place], step.inputs if place == saving[0] else ())

    def _recompute(self, step: Checkpoint, last: int) -> None:
        """Forward again up to the last op that saves; nothing needs what comes after its inputs."""
        outer, self.casts = self.casts, []
        phase, self.phase = self.phase, "recompute"
        before = dict(self.references)
        for op in step.ops[:last]:
            self._compute(op, saving=True)
        final = step.ops[last]
        if any(tensor in final.saves for tensor in final.outputs):
            self._compute(final, saving=True)
        else:
            self._compute(Op(final.name, parameters=final.parameters), saving=False)
            self._save(final)
        self.leave_autocast()
        self._leave_frame(step, before, last)
        self.casts, self.phase = outer, phase

    def _leave_frame(self, step: Checkpoint, before: dict[Tensor, int], last: int) -> None:
        """Whatever Python still held when recomputation stopped is let go; saved tensors stay."""
        saved: dict[Tensor, int] = {}
        for op in step.ops[: last + 1]:
            copies = (copy for each in op.parameters for copy in each.kept_copies)
            for tensor in (*op.saves, *copies):
                saved[tensor.storage] = saved.get(tensor.storage, 0) + 1
        for storage in list(self.references):
            while self.references.get(storage, 0) > before.get(storage, 0) + saved.get(storage, 0):
                self.release(storage)

    def _differentiate(self, op: Op, held: tuple[Tensor, ...] = ()) -> None:
        """One op's backward step; ``held`` goes together with its saved tensors."""
        arriving = [self.gradients.pop(tensor) for tensor in op.outputs if tensor in self.gradients]
        if not arriving:
            return
        outgoing = [(tensor, self._gradient(op, tensor, arriving[0])) for tensor in op.inputs]
        for tensor in op.backward_scratch:
            self.hold(tensor)
        made = [(parameter, like(parameter.made, "gradient of")) for parameter in op.parameters]
        for _, gradient in made:
            self.hold(gradient)
        self.mark(op.name)
        for tensor in (*op.backward_scratch, *arriving, *op.saves, *held):
            self.release(tensor)
        for parameter in op.parameters:
            for copy in parameter.kept_copies:
                self.release(copy)
        for tensor, gradient in outgoing:
            self._accumulate(tensor, gradient, op.name)
        ready, self.waiting = self.waiting, []
        for parameter, gradient in made:
            late = op.late and parameter.stored is not None and parameter.joins is None
            (self.waiting if late else ready).append((parameter, gradient, op.name))
        for parameter, gradient, name in ready:
            self._store(parameter, gradient, name)

    def _gradient(self, op: Op, tensor: Tensor, arriving: Tensor) -> Tensor:
        if op.reuses:
            gradient = op.saves[0]
        elif op.passes and tensor.nbytes == arriving.nbytes:
            gradient = arriving
        else:
            gradient = like(tensor, "gradient of")
        self.hold(gradient)
        return gradient

    def _accumulate(self, tensor: Tensor, gradient: Tensor, name: str) -> None:
        there = self.gradients.get(tensor)
        if there is None:
            self.gradients[tensor] = gradient
        elif self.sums_in_place and self.references[there] == 1 and there not in self.views:
            self.release(gradient)
        else:
            total = like(tensor, "gradient of")
            self.hold(total)
            self.mark(name)
            self.gradients[tensor] = total
            self.views.discard(there)
            self.release(there)
            self.release(gradient)

    def _store(self, parameter: Parameter, gradient: Tensor, name: str) -> None:
        if parameter.joins is not None:
            self.views.add(gradient)
            self._accumulate(parameter.joins, gradient, name)
            return
        if parameter.stored is not None:
            cast = like(parameter.stored, "gradient of")
            self.hold(cast)
            self.mark(name)
            self.release(gradient)
            gradient = cast
        key = parameter.key
        self.uses[key] = self.uses.get(key, 1) - 1
        last = self.accumulates and not self.uses[key]
        if key in self.stored:
            if not (self.sums_in_place and key in self.summed):
                self.summed.add(key)
                total = like(key, "gradient of")
                self.hold(total)
                self.mark(name)
                self.release(total)
            if last:
                self.stored_bytes -= self.taken(gradient)
        elif not last:
            self.stored.add(key)
            self.stored_bytes += self.taken(gradient)
        self.release(gradient)


def like(tensor: Tensor, prefix: str) -> Tensor:
    """A new tensor of the same size."""
    return Tensor(f"{prefix} {tensor.name}", tensor.formula, tensor.symbols, tensor.nbytes)
