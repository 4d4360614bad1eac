"""The calculator *What should I train?*: a budget, and what four scaling laws would do with it."""

from collections.abc import Sequence
from typing import Any

from lmlib.book.declare import Choice, InputError, Note, Number, Output, Plot, Table, Value, Widget, register
from lmlib.book.quantities import Exact, readable
from lmlib.book.widgets.resources_devices import device_inputs, read_device
from lmlib.book.widgets.resources_explain import plain, refused_beside, section, steps
from lmlib.resources.ledger import Term, derive
from lmlib.resources.planning import LAWS, LifetimePlan, Plan, lifetime_plan, plan, plans
from lmlib.resources.timing import LARGEST_CLUSTER

_ANCHOR = "sec-worked"
_LEAST, _MOST = 10**15, 10**30
_TRUSTED = "besiroglu"


def calculate(
    start: str,
    budget_by: str,
    flops: float,
    n_devices: int,
    days: float,
    mfu_percent: float,
    tokens_served: int,
    law: str,
    **hardware: Any,
) -> Sequence[Output]:
    """Model and tokens for a budget, by each law, and what the laws disagree about."""
    del start  # it only fills the budget
    device = read_device(hardware)
    with refused_beside({"flops", "n_devices", "days", "mfu_percent", "device", "law"}, {"dtype": "device"}):
        budget = _budget(budget_by, flops, device, n_devices, days, mfu_percent)
        total = float(plain(budget.value))
        if not _LEAST <= total <= _MOST:
            raise InputError(
                "days" if budget_by == "devices" else "flops",
                f"The budget is {readable(total, 'FLOPs')}; allowed is from 10^15 to 10^30.",
            )
        found = plans(total)
        chosen = plan(total, law)
    sizes = [plain(each.parameters.value) for each in found]
    most = max(found, key=lambda each: each.parameters.value)
    least = min(found, key=lambda each: each.parameters.value)
    return [
        Value("Parameters", plain(chosen.parameters.value), "parameters", headline=True),
        Value("Training tokens", plain(chosen.tokens.value), "tokens", headline=True),
        Value("Tokens per parameter", plain(chosen.ratio.value), headline=True),
        Value("Budget", plain(budget.value), "FLOPs"),
        *([Value("Predicted loss", plain(chosen.loss), "nats/token")] if chosen.loss else []),
        Note(
            f"The laws disagree by a factor of {max(sizes) / min(sizes):.3g} in parameters: "
            f"{readable(min(sizes), 'parameters')} by {least.title}, {readable(max(sizes), 'parameters')} by "
            f"{most.title}.",
            "warning",
        ),
        _table(found),
        _plot(total, found),
        steps(f"By {chosen.title}", _ANCHOR, budget, chosen.parameters, chosen.tokens, chosen.ratio),
        *_lifetime(chosen, tokens_served, law),
        Note(
            "Kaplan et al. count parameters without embeddings, and fitted smaller models with a schedule of "
            "the learning rate that did not end with each run; the others fit one and the same set of runs."
        ),
    ]


def _budget(by: str, flops: float, device: Any, n_devices: int, days: float, mfu_percent: float) -> Term:
    if by == "flops":
        return derive("budget", "flops", "FLOPs", "your figure", flops=plain(flops))
    return derive(
        "budget",
        "n_devices * days * 86400 * peak * mfu",
        "FLOPs",
        device.source_of(device.default_dtype),
        n_devices=n_devices,
        days=days,
        peak=device.peak_of(device.default_dtype),
        mfu=mfu_percent / 100,
    )


def _millions(value: Exact) -> int:
    return round(float(value) / 10**6) * 10**6


def _table(found: Sequence[Plan]) -> Table:
    return Table(
        "One budget, four laws",
        ["Law", "Parameters N", "Tokens D", "D / N", "Predicted loss", "N counts", "Source"],
        [
            [
                each.title,
                _millions(each.parameters.value),
                _millions(each.tokens.value),
                plain(each.ratio.value),
                f"{each.loss:.4f}" if each.loss else "on other data",
                each.counts,
                each.source,
            ]
            for each in found
        ],
    )


def _plot(flops: float, found: Sequence[Plan]) -> Plot:
    """Predicted loss over the size of the model, along the budget; each law's optimum is marked."""
    middle = LAWS[_TRUSTED]
    best = plan(flops, _TRUSTED).parameters.value
    sizes = [plain(best * 2 ** (step / 2)) for step in range(-10, 11)]
    data: list[dict[str, Any]] = []
    for law in LAWS.values():
        losses = [plain(law.loss(size, flops / (6 * size))) for size in sizes]
        data.append({"x": sizes, "y": losses, "name": law.title, "mode": "lines"})
    marked = [each for each in found if each.loss]
    data.append(
        {
            "x": [plain(each.parameters.value) for each in marked],
            "y": [plain(each.loss or 0) for each in marked],
            "text": [each.title for each in marked],
            "name": "optimum",
            "mode": "markers",
            "marker": {"size": 12, "color": "#d55e00", "symbol": "diamond"},
        }
    )
    return Plot(
        "Loss of every split of this budget between parameters and tokens",
        f"Predicted loss over parameters at {readable(flops, 'FLOPs')}, by {len(LAWS)} laws. "
        f"{middle.title} has its minimum at {readable(plain(best), 'parameters')}; "
        "beside it the curve is flat.",
        data,
        {
            "xaxis": {"type": "log", "title": {"text": "Parameters N"}, "exponentformat": "SI"},
            "yaxis": {"title": {"text": "Predicted loss (nats/token)"}},
        },
    )


def _lifetime(chosen: Plan, tokens_served: int, law: str) -> list[Output]:
    """The model that is cheapest once it also serves ``tokens_served`` tokens, at the same predicted loss."""
    if not tokens_served or chosen.loss is None:
        return []
    if chosen.loss < LAWS[law].e + 0.02:
        return [Note("At this budget the law is at its floor; it says nothing about serving.", "warning")]
    cheapest = lifetime_plan(chosen.loss, tokens_served, law)
    return [_lifetime_table(chosen, cheapest, tokens_served)]


def _lifetime_table(chosen: Plan, cheapest: LifetimePlan, served: int) -> Table:
    def row(name: str, size: float, tokens: float) -> list[str | int | float]:
        trained, used = 6 * size * tokens, 2 * size * served
        return [name, plain(size), plain(tokens), plain(trained), plain(used), plain(trained + used)]

    return Table(
        f"The same loss, with {readable(served, 'tokens')} to serve (Sardana et al. 2024, arXiv:2401.00448)",
        ["Model", "Parameters", "Training tokens", "Training FLOPs", "Serving FLOPs", "Together"],
        [
            row("cheapest to train", float(chosen.parameters.value), float(chosen.tokens.value)),
            row("cheapest over its life", round(cheapest.n_parameters, -3), round(cheapest.tokens, -6)),
        ],
    )


_STARTS = {
    "gpt3": ("GPT-3's budget, 3.14e23", {"budget_by": "flops", "flops": 3.14e23}),
    "chinchilla": ("Chinchilla's budget, 5.76e23", {"budget_by": "flops", "flops": 5.76e23}),
    "llama-3-405b": ("Llama 3 405B's budget, 3.8e25", {"budget_by": "flops", "flops": 3.8e25}),
    "one-day": (
        "Eight H100 for one day",
        {"budget_by": "devices", "device": "h100", "n_devices": 8, "days": 1.0, "mfu_percent": 40.0},
    ),
}
_BUDGET = "The budget"
_DEVICES = ("budget_by", ("devices",))

register(
    Widget(
        name="resources/train-what",
        title="What should I train?",
        description=(
            "How to split a budget between the size of the model and the tokens it sees, by four published "
            "scaling laws, which disagree."
        ),
        inputs=(
            Choice(
                "start",
                "Start from",
                (
                    ("custom", "A budget of your own"),
                    *((key, title) for key, (title, _) in _STARTS.items()),
                ),
                "chinchilla",
                presets={key: filled for key, (_, filled) in _STARTS.items()},
                group=_BUDGET,
            ),
            Choice(
                "budget_by",
                "Budget given as",
                (("flops", "FLOPs"), ("devices", "Devices and days")),
                "flops",
                group=_BUDGET,
            ),
            Number(
                "flops",
                "Training FLOPs",
                5.76e23,
                _LEAST,
                _MOST,
                unit="FLOPs",
                integer=False,
                group=_BUDGET,
                visible_when=("budget_by", ("flops",)),
            ),
            Number("n_devices", "Devices", 8, 1, LARGEST_CLUSTER, group=_BUDGET, visible_when=_DEVICES),
            Number("days", "Days", 1.0, 0.001, 10_000, integer=False, group=_BUDGET, visible_when=_DEVICES),
            Number(
                "mfu_percent",
                "MFU",
                40.0,
                0.01,
                100,
                unit="%",
                integer=False,
                group=_BUDGET,
                visible_when=_DEVICES,
            ),
            *device_inputs("peak", visible_when=_DEVICES),
            Choice(
                "law",
                "Law to follow",
                (*((law.name, law.title) for law in LAWS.values()), ("kaplan", "Kaplan et al. 2020")),
                _TRUSTED,
                group="The plan",
            ),
            Number(
                "tokens_served",
                "Tokens to serve later",
                0,
                0,
                10**18,
                unit="tokens",
                help="Then a smaller model, trained for longer, is cheaper over its life",
                group="The plan",
            ),
        ),
        compute=calculate,
        section=section(_ANCHOR),
    )
)
