"""Activations: what autograd keeps between the forward and the backward pass, term by term.

Each term is one storage. A tensor that two ops save, or of which one saves a view, counts once, as in
PyTorch; parameters and buffers, which are alive anyway, do not count, the batch's token ids do.
"""

import re

from lmlib.resources.ledger import Ledger, Term
from lmlib.resources.model import Model
from lmlib.resources.profile import Profile
from lmlib.resources.segments import Segment, segments
from lmlib.resources.tape import Tensor

SOURCE = "torch.autograd.graph.saved_tensors_hooks on lmlib.book.measure.reference"


def activations(model: Model, profile: Profile, batch_size: int, context_length: int) -> Ledger:
    """Bytes that autograd keeps for the backward pass of one forward pass.

    Args:
        batch_size: sequences.
        context_length: tokens of each.

    Raises:
        ArgumentError: for sizes out of bounds, or a kernel that this model's attention cannot use.
    """
    parts = segments(model, profile, batch_size, context_length)
    return Ledger("saved activations", "bytes", tuple(saved_ledger(part, part.count) for part in parts))


def saved_ledger(segment: Segment, count: int) -> Ledger:
    """The saved storages of ``count`` repetitions of a segment."""
    return tensor_ledger(f"{count} × {segment.name}" if count > 1 else segment.name, segment.saved(), count)


def tensor_ledger(name: str, tensors: "list[Tensor] | tuple[Tensor, ...]", count: int = 1) -> Ledger:
    """A ledger with a term for each tensor, numbered where names repeat."""
    seen: dict[str, int] = {}
    terms = []
    for tensor in tensors:
        seen[tensor.name] = seen.get(tensor.name, 0) + 1
        number = seen[tensor.name]
        terms.append(_term(tensor, f"{tensor.name} #{number}" if number > 1 else tensor.name, count))
    return Ledger(name, "bytes", tuple(terms))


def _term(tensor: Tensor, name: str, count: int) -> Term:
    formula = tensor.formula.replace("**", "^").replace("*", "×")
    numbers = formula
    for symbol, value in sorted(tensor.symbols, key=lambda pair: -len(pair[0])):
        numbers = re.sub(rf"\b{symbol}\b", f"{value:,}", numbers)
    term = Term(name, formula, numbers, tensor.nbytes, "bytes", SOURCE)
    return term.scale(count, "layers") if count > 1 else term
