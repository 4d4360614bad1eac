"""How long one training step takes under a layout: arithmetic, what is sent and not hidden, and the bubble.

- Arithmetic is the FLOPs of the slowest stage over peak times ``efficiency``, which stands for everything
  that a count of FLOPs cannot know: the speed of kernels, norms and other memory-bound work, launches.
- What is sent takes alpha-beta time, see ``communication``. ``hidden`` says for each group which share of
  it runs behind arithmetic; a layout's data parallel sums can, tensor parallel ones hardly do. No more is
  hidden than there is arithmetic.
- A pipeline idles ``(pp - 1) / (vpp * microbatches)`` of the time that its stages are busy with
  micro-batches (Narayanan et al. 2021, arXiv:2104.04473, section 2.2). What is sent once a step is not
  part of that.
- One efficiency for everything leaves the optimizer's update out, which reads and writes its state at the
  speed of memory, and belongs to one width and machine. ``Kernels`` in its place count kernel by kernel, see
  ``kernel_time``: the one number that remains is the speed of a large product.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from lmlib.resources.communication import COPIED, GROUPS, Traffic, communication
from lmlib.resources.flops import training
from lmlib.resources.hardware import Device
from lmlib.resources.kernel_time import Kernels, kernel_seconds, update_seconds
from lmlib.resources.layout import Divided, Layout
from lmlib.resources.ledger import Ledger, Term, derive
from lmlib.resources.model import Model
from lmlib.resources.parameters import group_names
from lmlib.resources.sources import DEFINITION, PIPELINE, PRODUCTS
from lmlib.resources.timing import model_flops
from lmlib.resources.units import Number, check_choice, check_number

ONCE_A_STEP = ("dp", "edp", "embedding")


@dataclass(frozen=True)
class StepTime:
    """One step: ``ledger`` adds up to its seconds; ``tokens`` are those of all ranks.

    ``flops`` are those that a rank of the slowest ``stage`` computes, ``traffic`` is what it sends.
    """

    ledger: Ledger
    stage: int
    tokens: int
    flops: Ledger
    traffic: Traffic

    @property
    def seconds(self) -> Number:
        """The whole step."""
        return self.ledger.total

    @property
    def tokens_per_second(self) -> Term:
        """Of all ranks."""
        return derive(
            "tokens a second",
            "tokens / step",
            "tokens/second",
            DEFINITION,
            tokens=self.tokens,
            step=self.seconds,
        )

    def mfu(self, model: Model, length: int, device: Device, *, convention: str, dtype: str = "") -> Term:
        """Model FLOPs over what all ranks could do in that time; see ``timing`` for the conventions."""
        sequences = Fraction(self.tokens, length)
        one = model_flops(model, 1, length, convention=convention).total
        return derive(
            f"MFU ({convention})",
            "flops / (step * ranks * peak)",
            "ratio",
            device.source_of(dtype or device.default_dtype),
            flops=one * sequences,
            step=self.seconds,
            ranks=self.traffic.layout.n_ranks,
            peak=device.peak_of(dtype or device.default_dtype),
        )


def stage_flops(
    divided: Divided,
    stage: int,
    micro_batch: int,
    length: int,
    *,
    mask: str,
    kernel: str = "flash",
    recompute: str = "none",
) -> Ledger:
    """FLOPs that one rank of ``stage`` computes for one micro-batch, forward and backward.

    Tensor parallel ranks share every product, context parallel ranks the tokens (evenly, as a striped
    order of the sequence gives it), and experts are met evenly.
    """
    whole = training(
        divided.model, micro_batch, length, mask=mask, count="hardware", kernel=kernel, recompute=recompute
    )
    return _stage_share(divided, stage, whole)


def _stage_share(divided: Divided, stage: int, whole: Ledger) -> Ledger:
    """What of the ``whole`` model's FLOPs a rank of ``stage`` computes."""
    model, layout = divided.model, divided.layout
    held, ranks = divided.stage_groups(stage), layout.tp * layout.cp
    terms = []
    for name, (layer, layers) in zip(group_names(model), model.groups, strict=True):
        if layer in held:
            symbols = {"flops": _of(whole, name), "layers": layers, "held": held[layer], "ranks": ranks}
            terms.append(derive(name, "flops / layers * held / ranks", "FLOPs", PRODUCTS, **symbols))
    if stage == layout.pp - 1:
        terms.append(
            derive("head", "flops / ranks", "FLOPs", PRODUCTS, flops=_of(whole, "head"), ranks=ranks)
        )
    return Ledger(f"FLOPs of a rank of stage {stage}", "FLOPs", tuple(terms))


def _of(whole: Ledger, name: str) -> Number:
    """FLOPs of all passes with that name."""
    return sum(part[name].value for part in whole if isinstance(part, Ledger) and name in part)


def _slowest(divided: Divided, whole: Ledger) -> tuple[int, Ledger]:
    """The stage with most FLOPs, which all others wait for, and those."""
    shares = [(stage, _stage_share(divided, stage, whole)) for stage in _kinds(divided)]
    return max(shares, key=lambda share: share[1].total)


def _kinds(divided: Divided) -> tuple[int, ...]:
    """One stage of each kind: equal ones need not be counted twice."""
    found: dict[tuple[object, ...], int] = {}
    for stage in range(divided.layout.pp):
        found[(tuple(divided.stage_groups(stage).items()), stage == divided.layout.pp - 1)] = stage
    return tuple(found.values())


def step_time(
    model: Model,
    layout: Layout,
    device: Device,
    micro_batch: int,
    length: int,
    *,
    efficiency: Number | Kernels,
    mask: str,
    hidden: Mapping[str, Number] | None = None,
    latency: Number = 0,
    kernel: str = "flash",
    recompute: str = "none",
    dtype: str = "",
    gradient_bytes: int = 2,
) -> StepTime:
    """Seconds of one step of ``layout.microbatches`` micro-batches.

    Args:
        micro_batch: sequences of one micro-batch and data parallel rank. length: tokens of each.
        efficiency: share of the peak that a rank reaches while it computes, 0 to 1; or how its kernels run.
        mask: what attention computes, see ``flops.attended_pairs``: ``full``, or ``causal`` for a kernel
            that leaves masked blocks out.
        hidden: share of each group's communication that runs behind arithmetic; 0 where not given.
        latency: seconds of one hop.

    Raises:
        ArgumentError: for a layout that does not fit the model, or a figure out of bounds.
    """
    kernels = efficiency if isinstance(efficiency, Kernels) else None
    share = efficiency.efficiency if isinstance(efficiency, Kernels) else efficiency
    check_number("efficiency", share, 0.0001, 1)
    shares = dict(hidden or {})
    for group, part in shares.items():
        check_choice("hidden", group, GROUPS)
        check_number("hidden", part, 0, 1)
    divided = Divided(model, layout)
    whole = training(
        model, micro_batch, length, mask=mask, count="hardware", kernel=kernel, recompute=recompute
    )
    stage, flops = _slowest(divided, whole)
    traffic = communication(
        model,
        layout,
        micro_batch,
        length,
        stage=stage,
        recompute="none" if recompute == "none" else "full" if recompute.startswith("full") else "core",
        gradient_bytes=gradient_bytes,
    )
    peak = device.peak_of(dtype or device.default_dtype)
    compute: Term | Ledger
    if kernels:
        compute = kernel_seconds(
            divided,
            stage,
            device,
            kernels,
            micro_batch,
            length,
            mask=mask,
            kernel=kernel,
            recompute=recompute,
            peak=peak,
        ).scale(layout.microbatches, "microbatches")
    else:
        compute = derive(
            "arithmetic",
            "microbatches * flops / (peak * efficiency)",
            "seconds",
            device.source_of(dtype or device.default_dtype),
            microbatches=layout.microbatches,
            flops=flops.total,
            peak=peak,
            efficiency=share,
        )
    busy, once = _exposed(traffic, device, latency, shares, compute.value)
    entries: list[Term | Ledger] = [compute]
    if busy:
        entries.append(Ledger("sent for micro-batches, not hidden", "seconds", tuple(busy)))
    if layout.pp > 1:
        entries.append(
            derive(
                "pipeline bubble",
                "(pp - 1) / (vpp * microbatches) * busy",
                "seconds",
                PIPELINE,
                pp=layout.pp,
                vpp=layout.vpp,
                microbatches=layout.microbatches,
                busy=compute.value + sum(term.value for term in busy),
            )
        )
    if once:
        entries.append(Ledger("sent once a step, not hidden", "seconds", tuple(once)))
    if kernels:
        entries.append(update_seconds(divided, stage, device))
    tokens = layout.dp * layout.microbatches * micro_batch * length
    return StepTime(Ledger("step", "seconds", tuple(entries)), stage, tokens, flops, traffic)


def _exposed(
    traffic: Traffic, device: Device, latency: Number, hidden: Mapping[str, Number], compute: Number
) -> tuple[list[Term], list[Term]]:
    """What remains of each collective's time: of those of each micro-batch, and of those once a step."""
    room = compute
    busy: list[Term] = []
    once: list[Term] = []
    for each, taken in zip(traffic.collectives, traffic.seconds(device, latency), strict=True):
        behind = min(taken.value * hidden.get(each.group, 0), room)
        room -= behind
        term = derive(
            f"{each.name} ({each.group})",
            "sent - hidden",
            "seconds",
            each.source,
            sent=taken.value,
            hidden=behind,
        )
        # ZeRO 2 and 3 talk once a micro-batch, but the pipeline does not wait for that: all stages do.
        (once if each.group in ONCE_A_STEP or each.name == COPIED else busy).append(term)
    return busy, once
