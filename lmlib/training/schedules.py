"""Learning-rate schedules: pure functions from a step to a rate, so that nothing needs to be saved.

Step 0 is the first update. During warm-up the rate grows in equal parts up to ``peak``, which the update
numbered ``warmup`` is the first to use; the last update, ``total - 1``, comes just before ``final`` would be
reached. A step may be a fraction: a run with a budget of time gives its progress times ``total``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from lmlib.resources.units import ArgumentError, check_choice, check_number

KINDS = ("cosine", "linear", "wsd", "constant")


def warm(step: float, warmup: float) -> float:
    """The share of the peak that warm-up allows: ``(step + 1) / (warmup + 1)``, at most 1.

    The first update is not wasted on a rate of 0.
    """
    return min(1.0, (step + 1) / (warmup + 1))


def progress(step: float, start: float, end: float) -> float:
    """How much of the way from ``start`` to ``end`` is done, from 0 to 1."""
    if end <= start:
        return 1.0 if step >= end else 0.0
    return min(1.0, max(0.0, (step - start) / (end - start)))


def constant(step: float, *, peak: float, warmup: float = 0) -> float:
    """The peak, once warm."""
    return peak * warm(step, warmup)


def cosine(step: float, *, peak: float, total: float, warmup: float = 0, final: float = 0.0) -> float:
    """Half a cosine from the peak to ``final`` (Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5)."""
    if step < warmup:
        return peak * warm(step, warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress(step, warmup, total)))


def linear(step: float, *, peak: float, total: float, warmup: float = 0, final: float = 0.0) -> float:
    """A straight line from the peak to ``final`` (Defazio et al. 2023, arXiv:2310.07831, section 3)."""
    if step < warmup:
        return peak * warm(step, warmup)
    done = progress(step, warmup, total)
    return peak * (1 - done) + final * done


def wsd(
    step: float, *, peak: float, total: float, warmup: float = 0, decay: float = 0.2, final: float = 0.0
) -> float:
    """Warm-up, stable, decay: the peak until the last ``decay`` share of the run, then a straight line.

    Hu et al. 2024 (MiniCPM), arXiv:2404.06395, section 4; that a longer decay than about 20 % gains little is
    from Hägele et al. 2024, arXiv:2405.18392, section 3, who find a decay by ``1 - sqrt(progress)`` a little
    better still than the straight line.
    """
    start = max(warmup, total * (1 - decay))
    if step < start:
        return peak * warm(step, warmup)
    done = progress(step, start, total)
    return peak * (1 - done) + final * done


_FUNCTIONS: dict[str, Callable[..., float]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "wsd": wsd,
}


@dataclass(frozen=True)
class Schedule:
    """A schedule with its numbers: call it with a step.

    Args:
        kind: ``cosine``, ``linear``, ``wsd`` or ``constant``.
        peak: the largest rate.
        total: updates of the whole run; ``constant`` has no use for it.
        warmup: updates of warm-up.
        final: the rate that is reached after the last update.
        decay: for ``wsd``: share of the run that decays.

    Raises:
        ArgumentError: for a number out of bounds, or a warm-up that is longer than the run.
    """

    kind: str = "cosine"
    peak: float = 1e-3
    total: float = 1000
    warmup: float = 0
    final: float = 0.0
    decay: float = 0.2

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_number("peak", self.peak, 0, 1e6)
        check_number("total", self.total, 1, 1e15)
        check_number("warmup", self.warmup, 0, 1e15)
        check_number("final", self.final, 0, 1e6)
        check_number("decay", self.decay, 0, 1)
        if self.kind != "constant" and self.warmup > self.total:
            raise ArgumentError("warmup", f"must be at most total, {self.total:g}, got {self.warmup:g}")
        if self.final > self.peak:
            raise ArgumentError("final", f"must be at most peak, {self.peak:g}, got {self.final:g}")

    def __call__(self, step: float) -> float:
        """The learning rate of update ``step``, counted from 0."""
        options: dict[str, float] = {"peak": self.peak, "warmup": self.warmup}
        if self.kind != "constant":
            options |= {"total": self.total, "final": self.final}
        if self.kind == "wsd":
            options["decay"] = self.decay
        return _FUNCTIONS[self.kind](step, **options)
