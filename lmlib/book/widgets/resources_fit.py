"""The calculator *Does it fit?*: memory of a training step on one rank, its peak, and what would make it
fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from lmlib.book.declare import Choice, InputError, Note, Number, Output, Plot, Table, Value, Widget, register
from lmlib.book.quantities import readable
from lmlib.book.widgets.resources_devices import device_inputs, read_device
from lmlib.book.widgets.resources_explain import explained, plain, section
from lmlib.book.widgets.resources_models import REHEARSAL, check_context, model_inputs, with_model
from lmlib.resources.layout import Layout, part
from lmlib.resources.ledger import Ledger, Term, derive
from lmlib.resources.memory import Shards, Timeline, memory, peak
from lmlib.resources.model import Model, MoE
from lmlib.resources.optimizer import Optimizer
from lmlib.resources.parameters import BUFFER, layer_weights, parameters
from lmlib.resources.pipeline_memory import StagePeak, stage_peaks
from lmlib.resources.profile import Profile
from lmlib.resources.units import ArgumentError, exact
from lmlib.resources.units import Number as Quantity

_ANCHOR = "sec-timeline"
_KINDS = ("parameters", "gradients", "optimizer", "activations", "gathered layers", "other")
_MOST_POINTS = 400
_MOST_BARS = 16


@dataclass(frozen=True)
class Setting:
    """Everything about a run that the search may change."""

    profile: Profile
    optimizer: Optimizer
    batch_size: int
    context_length: int
    n_devices: int
    tp: int
    zero: int
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    microbatches: int = 1

    @property
    def dp(self) -> int:
        """Data parallel ranks: what tensor parallelism and the pipeline leave."""
        return self.n_devices // (self.tp * self.pp)

    @property
    def staged(self) -> bool:
        """Whether ranks differ, so that each stage has a peak of its own."""
        return self.pp > 1 or self.ep > 1

    def layout(self, model: Model) -> Layout:
        """Experts are cut by ``tp`` as other matrices are; ``sp`` wherever there is something to cut.

        Of layers that chunks do not divide, the first chunks get one more.
        """
        chunks = self.pp * self.vpp
        if chunks > model.n_layers:
            raise InputError(
                "pp", f"pp · vpp = {chunks:,} chunks are too many for {model.n_layers:,} layers."
            )
        return Layout(
            dp=self.dp,
            zero=self.zero,
            tp=self.tp,
            sp=self.tp > 1,
            pp=self.pp,
            vpp=self.vpp,
            ep=self.ep,
            etp=self.tp if model.is_moe else 1,
            microbatches=self.microbatches,
            chunk_layers=tuple(part(model.n_layers, chunks, index) for index in range(chunks)),
        )

    @property
    def shards(self) -> Shards:
        """Over how many ranks each kind is divided."""
        whole, states, gradients = (self.tp * (self.dp if self.zero >= stage else 1) for stage in (3, 1, 2))
        return Shards(whole, gradients, states, self.tp)


@dataclass(frozen=True)
class Need:
    """The peak of one rank, and of what it is made; ``stages`` where ranks differ, else a ``timeline``."""

    timeline: Timeline | None
    gathered: Term | None
    stages: tuple[StagePeak, ...] = ()

    @property
    def peak(self) -> int:
        """Bytes of the fullest rank, with the layers that ZeRO 3 has gathered."""
        if self.timeline is None:
            return self.fullest.peak
        return self.timeline.peak + (int(self.gathered.value) if self.gathered else 0)

    @property
    def fullest(self) -> StagePeak:
        """The stage that needs most."""
        return max(self.stages, key=lambda each: each.peak)

    @property
    def at(self) -> str:
        """Where the peak is, in words."""
        if self.timeline is None:
            stage = self.fullest
            return f"stage {stage.stage}, {'optimizer' if stage.at == 'step' else 'backward'}, {stage.at}"
        row = self.timeline.at
        return f"{row.phase}, {row.segment}: {row.op}"

    def kinds(self) -> dict[str, int]:
        """Bytes at the peak, by kind."""
        if self.timeline is None:
            return stage_kinds(self.fullest)
        kinds = dict.fromkeys(_KINDS, 0)
        for term in self.timeline.standing:
            kinds[_kind(term.name)] += int(term.value)
        if "gradients so far" in self.timeline.alive:
            kinds["gradients"] += int(self.timeline.alive["gradients so far"].value)
        kinds["gathered layers"] = self.peak - self.timeline.peak
        kinds["activations"] = self.peak - sum(kinds.values())
        return kinds


def stage_kinds(stage: StagePeak) -> dict[str, int]:
    """Bytes at the peak of a stage, by kind."""
    kinds = dict.fromkeys(_KINDS, 0)
    for term in stage.ledger:
        kinds[_kind(term.name)] += int(term.value)
    return kinds


def _kind(name: str) -> str:
    if name in ("parameters", "gradients"):
        return name
    if name.startswith(("running", "kept activations")):
        return "activations"
    if name.startswith("two layers"):
        return "gathered layers"
    return "optimizer" if name.startswith(("optimizer", "step counters", "scratch")) else "other"


def _check(model: Model, setting: Setting) -> None:
    if setting.staged and setting.ep > 1 and setting.profile.autocast:
        raise InputError("precision", "Autocast is modelled without ep: choose parameters in bf16.")
    setting.layout(model).check(model)
    if setting.context_length % setting.tp:
        raise InputError("context_length", f"Must be a multiple of tp = {setting.tp}.")


@lru_cache(maxsize=64)
def need(model: Model, setting: Setting) -> Need:
    """What one rank needs; refusals of the library pass through."""
    _check(model, setting)
    size = (setting.profile, setting.optimizer, setting.batch_size, setting.context_length)
    if setting.staged:
        return Need(None, None, stage_peaks(model, setting.layout(model), *size))
    timeline = memory(model, *size, shards=setting.shards)
    return Need(timeline, _gathered(model, setting))


def _peak(model: Model, setting: Setting) -> int:
    """The peak alone, which is quicker to find."""
    if setting.staged:
        return need(model, setting).peak
    _check(model, setting)
    size = (setting.profile, setting.optimizer, setting.batch_size, setting.context_length)
    gathered = _gathered(model, setting)
    return peak(model, *size, shards=setting.shards) + (int(gathered.value) if gathered else 0)


def _gathered(model: Model, setting: Setting) -> Term | None:
    """ZeRO 3 holds one layer whole while it runs, and the next one already."""
    if setting.zero < 3 or setting.dp == 1:
        return None
    largest = max(
        sum(weight.size for weight in layer_weights(model, layer) if weight.role != BUFFER)
        for layer, _ in model.groups
    )
    return derive(
        "two layers gathered by ZeRO 3",
        "2 * ceil(layer * width / tp)",
        "bytes",
        "torch.distributed.fsdp.fully_shard, one layer prefetched",
        layer=largest,
        width=setting.profile.compute_bytes,
        tp=setting.tp,
    )


@lru_cache(maxsize=64)
def _sizes(model: Model) -> tuple[int, int]:
    """Parameters outside of experts, and in them."""
    experts = sum(
        count * sum(weight.size for weight in layer_weights(model, layer) if weight.expert)
        for layer, count in model.groups
    )
    return int(parameters(model).total) - experts, experts


def _least(model: Model, setting: Setting) -> int:
    """State alone, without which nothing runs: rules out settings before their timeline is played."""
    dense, experts = _sizes(model)
    layout_ranks = setting.tp * setting.pp
    width = setting.profile.parameter_bytes
    states = {"adamw": 2, "muon": 1, "sgd": 0, "adamw8bit": 0}[setting.optimizer.kind]
    kept = states * setting.optimizer.state_width(width) + (4 if setting.optimizer.master else 0)
    gradients = setting.optimizer.gradient_bytes(width) if setting.staged else 0

    def share(stage: int) -> int:
        cut = setting.zero >= stage
        replicas, copies = (setting.dp, setting.dp // setting.ep) if cut else (1, 1)
        return dense // (layout_ranks * replicas) + experts // (layout_ranks * setting.ep * copies)

    return share(3) * width + share(2) * gradients + share(1) * kept


def _changes(setting: Setting) -> list[tuple[str, dict[str, Any]]]:
    """Single changes, those that cost least first."""
    found: list[tuple[str, dict[str, Any]]] = []
    if setting.profile.attention != "flash":
        found.append(("flash attention", {"attention": "flash"}))
    if setting.dp > 1:
        found += [(f"ZeRO {stage}", {"zero": stage}) for stage in (1, 2, 3) if stage > setting.zero]
    if setting.profile.loss == "fp32_ce":
        found.append(("a loss in chunks", {"loss": "chunked"}))
    if setting.batch_size > 1:
        found.append((f"micro-batches of 1 in place of {setting.batch_size:,}", {"batch_size": 1}))
    if setting.profile.recompute != "full":
        found.append(("recomputing whole layers", {"recompute": "full"}))
    return found


def _changed(setting: Setting, change: dict[str, Any]) -> Setting:
    profile = {name: value for name, value in change.items() if hasattr(setting.profile, name)}
    rest = {name: value for name, value in change.items() if name not in profile}
    return replace(setting, profile=replace(setting.profile, **profile), **rest)


def _wider(model: Model, setting: Setting, name: str, limit: int) -> Iterator[tuple[str, Setting]]:
    """The same devices with more of ``tp``, ``pp`` or ``ep``, as far as model, layout and ``limit`` allow."""
    value = getattr(setting, name) * 2
    while value <= limit:
        wider = replace(setting, **{name: value})
        if wider.dp * wider.tp * wider.pp == setting.n_devices:
            try:
                _check(model, wider)
            except (ArgumentError, InputError):
                if name != "ep":
                    return
            else:
                yield f"{name} = {value}", wider
        value *= 2


def _more_parallel(model: Model, setting: Setting, node_size: int) -> Iterator[list[tuple[str, Setting]]]:
    """More tensor parallelism within a node, then experts divided, then stages."""
    yield list(_wider(model, setting, "tp", node_size))
    experts = max((layer.mlp.n_experts for layer, _ in model.groups if isinstance(layer.mlp, MoE)), default=1)
    yield list(_wider(model, setting, "ep", min(experts, setting.dp)))
    if setting.microbatches > 1:
        yield list(_wider(model, setting, "pp", min(64, setting.microbatches)))


def first_fit(model: Model, setting: Setting, room: int, node_size: int) -> tuple[str, Setting] | None:
    """The first single change after which it fits, else changes added up in their order; None if none do."""

    def fits(changed: Setting) -> bool:
        return _least(model, changed) <= room and _peak(model, changed) <= room

    def more(start: Setting) -> tuple[str, Setting] | None:
        for options in _more_parallel(model, start, node_size):
            if options and fits(options[-1][1]):  # or else fewer ranks would not do either
                return next(option for option in options if fits(option[1]))
        return None

    for name, change in _changes(setting):
        changed = _changed(setting, change)
        if fits(changed):
            return name, changed
    if found := more(setting):
        return found
    everything = setting
    names: list[str] = []
    for name, change in _changes(setting):
        if "zero" in change and change["zero"] < 3:
            continue
        everything, names = _changed(everything, change), [*names, name]
        if fits(everything):
            return " and ".join(names), everything
    if found := more(everything):
        return " and ".join([*names, found[0]]), found[1]
    return None


def calculate(
    model: Model,
    n_devices: int,
    tp: int,
    pp: int,
    vpp: int,
    ep: int,
    microbatches: int,
    zero: str,
    reserved: float,
    batch_size: int,
    context_length: int,
    precision: str,
    optimizer: str,
    recompute: str,
    attention: str,
    loss: str,
    **hardware: Any,
) -> Sequence[Output]:
    """Peak of one rank, what is alive there, and the first change that makes it fit."""
    node_size = int(hardware["node_size"])
    device = read_device(hardware)
    if n_devices % tp:
        raise InputError("tp", f"Must divide the {n_devices:,} devices, got {tp}.")
    if n_devices % (tp * pp):
        raise InputError("pp", f"tp · pp = {tp * pp:,} must divide the {n_devices:,} devices.")
    for layer, _ in model.groups:
        if layer.attention.n_kv_heads % tp:
            heads = layer.attention.n_kv_heads
            raise InputError("tp", f"Must divide the {heads} key/value heads, got {tp}.")
    warning = check_context(model, context_length)
    kind, _, master = optimizer.partition("+")
    setting = Setting(
        Profile(precision=precision, attention=attention, loss=loss, recompute=recompute),
        Optimizer(kind=kind, master=bool(master) and precision in ("bf16", "fp16")),
        batch_size,
        context_length,
        n_devices,
        tp,
        int(zero),
        pp,
        vpp,
        ep,
        microbatches,
    )
    room = device.memory - round(reserved * 10**9)
    now = need(model, setting)
    found = first_fit(model, setting, room, node_size) if now.peak > room else None
    better = need(model, found[1]) if found else None
    bars = [("as it is", now)] + ([(f"with {found[0]}", better)] if found and better else [])
    return [
        Value("Peak on one rank", now.peak, "B", headline=True),
        Value("Fits", "yes" if now.peak <= room else "no", headline=True),
        Value("Peak is in", now.at, headline=True),
        Value("Room", room, "B", help=f"{device.title}, less what is kept free"),
        Value("Tokens of one micro-batch, all ranks", setting.dp * batch_size * context_length, "tokens"),
        *([Note(warning, "warning")] if warning else []),
        _verdict(now, room, found, better),
        _bars(bars, room),
        _kinds_table(bars),
        *([_over_time(now, now.timeline, room)] if now.timeline else _by_stage(now, room)),
        *_alive(now),
    ]


def _verdict(now: Need, room: int, found: tuple[str, Setting] | None, better: Need | None) -> Note:
    if now.peak <= room:
        return Note(f"It fits, with {readable(room - now.peak, 'B')} to spare on each rank.", "good")
    over = f"It does not fit: {readable(now.peak - room, 'B')} too much on each rank."
    if found and better:
        return Note(f"{over} It would with {found[0]}: {readable(better.peak, 'B')}.", "bad")
    return Note(
        f"{over} Neither recomputation, ZeRO, shorter micro-batches, nor more tp, ep or pp suffice: it "
        "takes more devices, a longer pipeline, or an optimizer that keeps less.",
        "bad",
    )


def _bars(bars: list[tuple[str, Need]], room: int) -> Plot:
    kinds = [each.kinds() for _, each in bars]
    names = [name for name, _ in bars]
    peaks = " and ".join(f"{readable(each.peak, 'B')} {name}" for name, each in bars)
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "orientation": "h",
            "y": names,
            "x": [plain(each[kind] / 10**9) for each in kinds],
            "name": kind,
        }
        for kind in _KINDS
        if any(each[kind] for each in kinds)
    ]
    line = {"type": "line", "x0": room / 10**9, "x1": room / 10**9, "y0": 0, "y1": 1, "yref": "paper"}
    return Plot(
        "One rank at its peak; the line is the room there is",
        f"Stacked bars by kind: {peaks}, with room for {readable(room, 'B')}.",
        data,
        {
            "barmode": "stack",
            "shapes": [line | {"line": {"color": "#d55e00", "dash": "dash"}}],
            "xaxis": {"title": {"text": "GB on one rank"}, "rangemode": "tozero"},
            "yaxis": {"automargin": True},
            "height": 220 + 40 * len(bars),
        },
    )


def _kinds_table(bars: list[tuple[str, Need]]) -> Table:
    rows: list[list[Quantity | str]] = []
    kinds = [each.kinds() for _, each in bars]
    for kind in _KINDS:
        rows.append([kind, *(each[kind] for each in kinds)])
    rows.append(["together", *(each.peak for _, each in bars)])
    return Table("Bytes at the peak of one rank", ["Kind", *(name for name, _ in bars)], rows)


def _by_stage(now: Need, room: int) -> list[Output]:
    """The fullest rank of each stage, as bars and numbers."""
    step = -(-len(now.stages) // _MOST_BARS)
    shown = now.stages[::step]
    kinds = [stage_kinds(stage) for stage in now.stages]
    names = [f"stage {stage.stage}" for stage in shown]
    most = readable(now.peak, "B")
    bars = [
        {
            "type": "bar",
            "x": names,
            "y": [plain(kinds[stage.stage][kind] / 10**9) for stage in shown],
            "name": kind,
        }
        for kind in _KINDS
        if any(each[kind] for each in kinds)
    ]
    line = {"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": room / 10**9, "y1": room / 10**9}
    return [
        Plot(
            "Peak of a rank of each stage; the line is the room there is",
            f"Stacked bars by kind for {len(shown)} stages; the highest is {most}, with room for "
            f"{readable(room, 'B')}.",
            bars,
            {
                "barmode": "stack",
                "shapes": [line | {"line": {"color": "#d55e00", "dash": "dash"}}],
                "yaxis": {"title": {"text": "GB on one rank"}, "rangemode": "tozero"},
            },
        ),
        Table(
            "Bytes at the peak of a rank of each stage",
            ["Stage", *_KINDS, "together", "at"],
            [
                [stage.stage, *(kinds[stage.stage][kind] for kind in _KINDS), stage.peak, stage.at]
                for stage in now.stages[:64]
            ],
        ),
    ]


def _over_time(now: Need, timeline: Timeline, room: int) -> Plot:
    rows = timeline.rows
    step = -(-len(rows) // _MOST_POINTS)
    shown = [max(rows[start : start + step], key=lambda row: row.peak) for start in range(0, len(rows), step)]
    extra = now.peak - timeline.peak
    heights = [plain((row.peak + extra) / 10**9) for row in shown]
    return Plot(
        "Memory over one step, by segment",
        f"Bytes alive over {len(rows)} segments of a step; the most, {readable(now.peak, 'B')}, is in "
        f"{timeline.at.phase}, {timeline.at.segment}.",
        [
            {
                "x": list(range(len(shown))),
                "y": heights,
                "text": [f"{row.phase}, {row.segment}" for row in shown],
                "name": "alive at most",
                "mode": "lines",
            },
            {
                "x": [0, len(shown) - 1],
                "y": [plain(room / 10**9)] * 2,
                "name": "room",
                "mode": "lines",
            },
        ],
        {
            "xaxis": {"title": {"text": "Segments: forward, backward, update"}},
            "yaxis": {"title": {"text": "GB on one rank"}, "rangemode": "tozero"},
        },
    )


def _alive(now: Need) -> list[Output]:
    if now.timeline is None:
        caption = f"What is alive at the peak of stage {now.fullest.stage}"
        return [explained(now.fullest.ledger, caption, "sec-pipeline", "The peak")]
    ledger = now.timeline.alive
    if now.gathered:
        ledger = ledger + now.gathered
    return [explained(_flat(ledger), "What is alive at the peak", _ANCHOR, "The peak")]


def _flat(ledger: Ledger) -> Ledger:
    """Saved tensors of many layers in one term a segment; the rest as it is."""
    entries: list[Term | Ledger] = []
    for entry in ledger:
        if isinstance(entry, Ledger) and entry.name != "before the step" and len(entry) > 6:
            terms = [(path[-1], term) for path, term in entry.terms()]
            entries.append(
                Term(
                    entry.name,
                    " + ".join(name for name, _ in terms),
                    " + ".join(
                        f"{term.value:,}" if isinstance(term.value, int) else f"({exact(term.value)})"
                        for _, term in terms
                    ),
                    entry.total,
                    "bytes",
                    terms[0][1].source,
                )
            )
        else:
            entries.append(entry)
    return Ledger(ledger.name, ledger.unit, tuple(entries))


def _choice(name: str, label: str, options: tuple[tuple[str, str], ...], help_: str = "") -> Choice:
    return Choice(name, label, options, options[0][0], help=help_, group="How it is trained")


register(
    Widget(
        name="resources/does-it-fit",
        title="Does it fit?",
        description=(
            "Peak memory of one training step on each of N devices, played through operation by operation, "
            "and the first change that would make it fit. With a pipeline or divided experts, stage by stage."
        ),
        inputs=(
            *model_inputs("llama-3-8b"),
            *device_inputs("memory", "node_size"),
            Number("n_devices", "Devices", 8, 1, 2**16, group="The hardware"),
            Number(
                "reserved",
                "Kept free on each",
                2.0,
                0,
                10**5,
                unit="GB",
                integer=False,
                help="Driver, communication, fragmentation",
                group="The hardware",
            ),
            _choice(
                "zero",
                "ZeRO",
                (
                    ("0", "0: nothing is cut"),
                    ("1", "1: optimizer"),
                    ("2", "2: and gradients"),
                    ("3", "3: and parameters"),
                ),
                "Over the data parallel ranks: devices / (tp · pp)",
            ),
            Number(
                "tp",
                "tp",
                1,
                1,
                2**16,
                help="Tensor parallel ranks, with the sequence cut between them",
                group="How it is trained",
            ),
            Number("pp", "pp", 1, 1, 256, help="Pipeline stages, under 1F1B", group="How it is trained"),
            Number(
                "vpp",
                "vpp",
                1,
                1,
                64,
                help="Chunks of layers a stage, interleaved",
                group="How it is trained",
            ),
            Number(
                "ep",
                "ep",
                1,
                1,
                2**16,
                help="Data parallel ranks that divide the experts among them",
                group="How it is trained",
            ),
            Number(
                "microbatches",
                "Micro-batches",
                16,
                1,
                10**6,
                help="Of one step; a pipeline holds several of them at once",
                group="How it is trained",
            ),
            Number("batch_size", "Sequences of a micro-batch", 1, 1, 10**6, group="How it is trained"),
            Number(
                "context_length",
                "context_length",
                8192,
                1,
                10**7,
                unit="tokens",
                group="How it is trained",
            ),
            _choice(
                "precision",
                "Precision",
                (
                    ("bf16", "parameters in bf16"),
                    ("autocast", "fp32 with autocast to bf16"),
                    ("fp32", "fp32"),
                    ("fp16", "parameters in fp16"),
                ),
            ),
            _choice(
                "optimizer",
                "Optimizer",
                (
                    ("adamw+master", "AdamW with fp32 master weights"),
                    ("adamw", "AdamW in the parameters' type"),
                    ("adamw8bit", "8-bit AdamW"),
                    ("muon", "Muon"),
                    ("sgd", "SGD"),
                ),
                "Master weights only beside parameters in 16 bits",
            ),
            _choice(
                "recompute",
                "Recomputation",
                (
                    ("none", "none"),
                    ("core", "attention without projections"),
                    ("core_act", "that, and activations of the MLP"),
                    ("full", "whole layers"),
                ),
            ),
            _choice(
                "attention",
                "Attention",
                (("flash", "flash"), ("math", "PyTorch's reference"), ("eager", "written out")),
            ),
            _choice(
                "loss",
                "Loss",
                (
                    ("fp32_ce", "logits in fp32, cross-entropy"),
                    ("chunked", "in 8 chunks of tokens"),
                    ("fused", "one fused kernel"),
                ),
            ),
        ),
        compute=with_model(
            calculate, {"length": "context_length", "kind": "optimizer", "master": "optimizer", "etp": "tp"}
        ),
        section=section(_ANCHOR),
        rehearsal=REHEARSAL,
    )
)
