"""Is a kernel right? Its outputs and gradients on fresh random input, against the reference in float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kernels.bench.case import STEP, Bench, Function, Inputs, Shape

PEER_SLACK = 30.0
"""A peer is timed up to this many times the error allowed to ours: some compute in bfloat16 throughout."""


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with its tensors changed, also those inside lists and tuples."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(mapped(each, change) for each in value)
    return value


def draw(bench: Bench, shape: Shape, device: str, seed: int) -> Inputs:
    """Fresh inputs; those with gradients are leaves that require them."""
    inputs = bench.inputs(shape, torch.Generator(device).manual_seed(seed))
    missing = [name for name in bench.grads if name not in inputs]
    if missing:
        raise ValueError(f"bench {bench.name!r} names grads {missing} that are no inputs")
    for name in bench.grads:
        inputs[name] = mapped(inputs[name], lambda each: each.detach().requires_grad_())
    return inputs


def in_float64(inputs: Inputs) -> Inputs:
    """A copy with every floating tensor in float64."""

    def change(tensor: Tensor) -> Tensor:
        copy = tensor.detach().double() if tensor.is_floating_point() else tensor.clone()
        return copy.requires_grad_(tensor.requires_grad)

    return {name: mapped(value, change) for name, value in inputs.items()}


def outputs(result: Any) -> tuple[Tensor, ...]:
    """A competitor's result as a flat tuple of tensors."""
    if isinstance(result, Tensor):
        return (result,)
    return tuple(tensor for each in result for tensor in outputs(each))


def leaves(bench: Bench, inputs: Inputs) -> list[Tensor]:
    """The inputs whose gradients are asked for."""
    return [tensor for name in bench.grads for tensor in outputs(inputs[name])]


def upstream(results: tuple[Tensor, ...], seed: int) -> list[Tensor]:
    """Gradients to send back: 1 for a scalar (a loss), else normal random numbers, the same for everybody."""
    drawn: list[Tensor] = []
    for result in results:
        generator = torch.Generator(result.device).manual_seed(seed + len(drawn))
        if result.dim() == 0:
            drawn.append(torch.ones_like(result))
        else:
            # Through bfloat16, so that every dtype gets the same numbers.
            numbers = torch.randn(result.shape, generator=generator, device=result.device)
            drawn.append(numbers.bfloat16().to(result.dtype))
    return drawn


def compute(bench: Bench, function: Function, inputs: Inputs, seed: int) -> dict[str, Tensor]:
    """Outputs and gradients of one competitor, by name."""
    result = function(**inputs)
    if STEP in bench.phases:
        return {f"tensor {place}": each for place, each in enumerate(outputs(result()))}
    results = outputs(result)
    found = {("output" if len(results) == 1 else f"output {n}"): each for n, each in enumerate(results)}
    if bench.grads:
        wanted = leaves(bench, inputs)
        grads = torch.autograd.grad(results, wanted, upstream(results, seed))
        names = bench.grads if len(wanted) == len(bench.grads) else [f"input {n}" for n in range(len(wanted))]
        found |= {f"gradient of {name}": grad for name, grad in zip(names, grads, strict=True)}
    return {name: tensor.detach() for name, tensor in found.items()}


def relative_errors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """‖found - expected‖ / ‖expected‖ of each quantity; infinite where something is NaN or misshapen."""
    errors = {}
    for name, right in expected.items():
        value = found.get(name)
        if value is None or value.shape != right.shape:
            errors[name] = math.inf
            continue
        norm = float(torch.linalg.vector_norm(right))
        off = float(torch.linalg.vector_norm(value.double() - right)) / (norm or 1.0)
        errors[name] = off if math.isfinite(off) else math.inf
    return errors


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, memory that PyTorch hands out uninitialised is full of NaN: what is never written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic  # its attributes are made at run time
    fill = settings.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        settings.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
            settings.fill_uninitialized_memory = fill


def expected(bench: Bench, shape: Shape, device: str, seed: int) -> dict[str, Tensor]:
    """What the reference gives in float64."""
    return compute(bench, bench.reference, in_float64(draw(bench, shape, device, seed)), seed)


def check_ours(
    bench: Bench, shape: Shape, device: str, seed: int, right: Mapping[str, Tensor]
) -> tuple[dict[str, float], bool]:
    """Relative error of each of our kernel's results, and whether a second run gave the same bits."""
    with poisoned():
        first = compute(bench, bench.ours, draw(bench, shape, device, seed), seed)
        second = compute(bench, bench.ours, draw(bench, shape, device, seed), seed)
    same = all(torch.equal(first[name], second[name]) for name in first)
    return relative_errors(first, right), same


def check_peer(
    bench: Bench, function: Function, shape: Shape, device: str, seed: int, right: Mapping[str, Tensor]
) -> dict[str, float]:
    """Relative error of each of a peer's results."""
    return relative_errors(compute(bench, function, draw(bench, shape, device, seed), seed), right)
