"""Which model to train, on how many tokens: scaling laws side by side, with their constants.

- A law of the form ``L(N, D) = E + A / N**alpha + B / D**beta`` has, under ``C = 6 N D``, its optimum at
  ``N = G (C / 6) ** a``, ``D = (C / 6) ** b / G``, with ``G = (alpha A / (beta B)) ** (1 / (alpha + beta))``,
  ``a = beta / (alpha + beta)``, ``b = 1 - a`` (Hoffmann et al. 2022, arXiv:2203.15556, equation 4).
- The laws disagree by a factor of three at one budget. Two printed digits of the exponents move D for 10B
  parameters by 60 %: ``hoffmann`` has the digits of the paper's source, ``hoffmann-rounded`` those in its
  text, and Besiroglu et al. fitted the same data again and found other values.
- Kaplan et al. count N without embeddings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log

from lmlib.resources.ledger import Term, derive
from lmlib.resources.sources import DEFINITION, SIX_N_D
from lmlib.resources.units import ArgumentError, Number, check_choice, check_number

PF_DAY = 8.64e19  # FLOPs: 10^15 a second for a day
SMALLEST_BUDGET, LARGEST_BUDGET = 1e12, 1e32


@dataclass(frozen=True)
class Law:
    """``L(N, D) = e + a / N**alpha + b / D**beta``, in nats a token."""

    name: str
    title: str
    e: float
    a: float
    b: float
    alpha: float
    beta: float
    source: str

    def loss(self, n_parameters: Number, tokens: Number) -> float:
        """Predicted loss in nats a token, on that law's own data and tokenizer."""
        return self.e + self.a / float(n_parameters) ** self.alpha + self.b / float(tokens) ** self.beta


LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law(
            "besiroglu",
            "Besiroglu et al. 2024",
            1.8172,
            482.01,
            2085.43,
            0.3478,
            0.3658,
            "arXiv:2404.10102, section 3",
        ),
        Law(
            "hoffmann",
            "Hoffmann et al. 2022, more digits",
            1.6934,
            406.4,
            410.7,
            0.3392,
            0.2849,
            "arXiv:2203.15556, the TeX source, as read by arXiv:2404.10102",
        ),
        Law(
            "hoffmann-rounded",
            "Hoffmann et al. 2022, as printed",
            1.69,
            406.4,
            410.7,
            0.34,
            0.28,
            "arXiv:2203.15556, equation 10",
        ),
    )
}
KAPLAN = "kaplan"
PLANS = (*LAWS, KAPLAN)
_KAPLAN_SOURCE = (
    "arXiv:2001.08361, table 6, at the critical batch size: C_min = C / 2; 1.3e9 and 0.73 were read in a "
    "summary of its tables, and its prediction at 1e21 in arXiv:2203.15556, appendix D.4"
)


@dataclass(frozen=True)
class Plan:
    """A compute-optimal plan: ``parameters``, ``tokens`` and their ``ratio``.

    ``loss`` is ``None`` for Kaplan, whose loss is on other data. ``counts`` says what N counts.
    """

    law: str
    title: str
    parameters: Term
    tokens: Term
    ratio: Term
    loss: float | None
    counts: str
    source: str


def plan(flops: Number, law: str) -> Plan:
    """The best model for a training budget of ``flops``, by one law.

    Raises:
        ArgumentError: for an unknown law, or a budget outside 10^12 to 10^32 FLOPs.
    """
    check_choice("law", law, PLANS)
    check_number("flops", flops, SMALLEST_BUDGET, LARGEST_BUDGET)
    return _kaplan(float(flops)) if law == KAPLAN else _parametric(float(flops), LAWS[law])


def plans(flops: Number) -> tuple[Plan, ...]:
    """All laws on one budget."""
    return tuple(plan(flops, law) for law in PLANS)


def _finish(
    law: str, title: str, parameters: Term, flops: float, loss: Law | None, counts: str, source: str
) -> Plan:
    n = parameters.value
    tokens = derive("tokens", "flops / (6 * parameters)", "tokens", SIX_N_D, flops=flops, parameters=n)
    ratio = derive(
        "tokens per parameter", "tokens / parameters", "ratio", DEFINITION, tokens=tokens.value, parameters=n
    )
    return Plan(
        law, title, parameters, tokens, ratio, loss.loss(n, tokens.value) if loss else None, counts, source
    )


def _parametric(flops: float, law: Law) -> Plan:
    parameters = derive(
        "parameters",
        "(alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (flops / 6) ** (beta / (alpha + beta))",
        "parameters",
        law.source,
        alpha=law.alpha,
        beta=law.beta,
        a=law.a,
        b=law.b,
        flops=flops,
    )
    return _finish(law.name, law.title, parameters, flops, law, "all parameters", law.source)


def _kaplan(flops: float) -> Plan:
    parameters = derive(
        "parameters",
        "1300000000 * (flops / 2 / pf_day) ** exponent",
        "parameters",
        _KAPLAN_SOURCE,
        flops=flops,
        pf_day=PF_DAY,
        exponent=0.73,
    )
    return _finish(
        KAPLAN, "Kaplan et al. 2020", parameters, flops, None, "without embeddings", _KAPLAN_SOURCE
    )


def optimal_tokens(n_parameters: Number, law: str) -> Term:
    """Tokens for which a model of ``n_parameters`` is the compute-optimal one."""
    check_choice("law", law, LAWS)
    check_number("n_parameters", n_parameters, 1e3, 1e16)
    chosen = LAWS[law]
    return derive(
        "tokens",
        "(beta * b / (alpha * a)) ** (1 / beta) * parameters ** (alpha / beta)",
        "tokens",
        chosen.source,
        alpha=chosen.alpha,
        beta=chosen.beta,
        a=chosen.a,
        b=chosen.b,
        parameters=float(n_parameters),
    )


def tokens_to_reach(n_parameters: Number, loss: float, law: str) -> float:
    """Tokens on which a model of ``n_parameters`` reaches ``loss``.

    Raises:
        ArgumentError: if a model of this size never does.
    """
    chosen = LAWS[law]
    left = loss - chosen.e - chosen.a / float(n_parameters) ** chosen.alpha
    if left <= 0:
        raise ArgumentError("loss", f"{float(n_parameters):.3g} parameters never reach {loss:.4f}")
    return float((chosen.b / left) ** (1 / chosen.beta))


@dataclass(frozen=True)
class LifetimePlan:
    """The cheapest model of a given loss once it also has to serve: smaller, and trained for longer."""

    n_parameters: float
    tokens: float
    training: float
    inference: float

    @property
    def flops(self) -> float:
        """Training and inference together."""
        return self.training + self.inference


def lifetime_plan(loss: float, tokens_served: Number, law: str) -> LifetimePlan:
    """The model that reaches ``loss`` with the fewest FLOPs over its life: ``6 N D + 2 N tokens_served``.

    Sardana et al. 2024, arXiv:2401.00448, equation 3. FLOPs of serving are counted as if it were as
    efficient as training; decoding is not, so the true optimum is smaller still.

    Raises:
        ArgumentError: for a loss that the law does not reach, or a negative demand.
    """
    check_choice("law", law, LAWS)
    chosen = LAWS[law]
    check_number("loss", loss, chosen.e + 0.01, 10)
    check_number("tokens_served", tokens_served, 0, 1e20)
    served = float(tokens_served)
    # The smallest model that reaches the loss at all, with infinite data, bounds the search from below.
    least = log((chosen.a / (loss - chosen.e)) ** (1 / chosen.alpha))

    def whole(position: float) -> float:
        n = exp(position)
        return 6 * n * tokens_to_reach(n, loss, law) + 2 * n * served

    n = exp(_least(whole, least + 1e-6, least + 40))
    tokens = tokens_to_reach(n, loss, law)
    return LifetimePlan(n, tokens, 6 * n * tokens, 2 * n * served)


def _least(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is least, by golden-section search."""
    golden = (5**0.5 - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > 1e-9:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = function(right)
    return (low + high) / 2
