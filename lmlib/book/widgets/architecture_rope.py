"""The widget of rotary positions: how a score depends on distance, and on nothing else."""

import math

from lmlib.book.declare import Choice, InputError, Number, Output, Plot, Table, Value, Widget, register

SCALINGS = (("none", "none"), ("linear", "linear: all angles divided"), ("llama3", "Llama 3: slow ones only"))
LOW, HIGH = 1.0, 4.0  # Llama 3.1's low_freq_factor and high_freq_factor
_POINTS = 240
_ROUNDING = 1e-8  # what is less than this says something of the machine's libm, and nothing of RoPE


def rates(head_dim: int, theta: float, scaling: str, factor: float, trained: int) -> list[float]:
    """Radians per token of each pair (Su et al. 2021, section 3.2.2), stretched as Llama 3.1 does."""
    plain = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    if scaling == "none":
        return plain
    if scaling == "linear":
        return [rate / factor for rate in plain]
    stretched = []
    for rate in plain:
        turns = trained * rate / (2 * math.pi)  # within the length of the training
        kept = min(max((turns - LOW) / (HIGH - LOW), 0.0), 1.0)
        stretched.append(kept * rate + (1 - kept) * rate / factor)
    return stretched


def score(turning: list[float], query_at: int, key_at: int) -> float:
    """Product of a query and a key of ones, each turned by its own position; the mean over coordinates."""
    total = 0.0
    for rate in turning:
        q, k = query_at * rate, key_at * rate
        a, b = math.cos(q) - math.sin(q), math.sin(q) + math.cos(q)
        total += a * (math.cos(k) - math.sin(k)) + b * (math.sin(k) + math.cos(k))
    return total / (2 * len(turning))


def _turns(pair: int, rate: float, trained: int) -> tuple[int | float | str, ...]:
    """Row of the table: a pair's rate, its wavelength, its turns within the training's length."""
    turn = 2 * math.pi / rate
    return pair, f"{rate:.6g}", round(turn, 1), round(trained / turn, 2)


def _rounded(value: float) -> float:
    """Six digits, alike on every machine, and no -0.0."""
    return round(value, 6) + 0.0


def _small(value: float) -> str:
    return f"less than {_ROUNDING:g}" if value < _ROUNDING else f"{value:.1e}"


def rope(
    head_dim: int, theta: float, distance: int, offset: int, scaling: str, factor: float, trained: int
) -> list[Output]:
    """Score against distance, the same score elsewhere, and the wavelength of each pair."""
    if head_dim % 2:
        raise InputError("head_dim", f"Pairs are turned: the width must be even, {head_dim} is not.")
    turning = rates(head_dim, theta, scaling, factor, trained)
    step = max(1, distance // _POINTS)
    places = list(range(0, distance + 1, step))
    here = [_rounded(score(turning, place, 0)) for place in places]
    there = score(turning, offset + distance, offset)
    at_end = score(turning, distance, 0)
    shown = range(0, len(turning), max(1, len(turning) // 16))
    rows = [_turns(i, turning[i], trained) for i in shown]
    return [
        Value("Score at the distance", f"{_rounded(at_end):.6f}", headline=True),
        Value("The same, both moved by the offset", f"{_rounded(there):.6f}"),
        Value("Difference", _small(abs(there - at_end)), help="rounding, nothing else"),
        Plot(
            "Score of a query and a key of ones",
            "The score starts at 1 and falls with the distance, with ripples.",
            [{"x": places, "y": here, "mode": "lines", "name": "score"}],
            {"xaxis": {"title": {"text": "Distance (tokens)"}}, "yaxis": {"title": {"text": "Score"}}},
        ),
        Table(
            "Pairs of coordinates, from fast to slow",
            ["Pair", "Radians per token", "Tokens for a turn", "Turns in the training's length"],
            rows,
        ),
    ]


register(
    Widget(
        name="architecture/rope",
        title="Rotary positions",
        description="Queries and keys are turned by their position. The score depends on the distance "
        "between them: move both by any offset and nothing changes.",
        inputs=(
            Number("head_dim", "Width of a head", 64, 2, 256, slider=True, step=2),
            Number("theta", "Base of the frequencies", 10_000.0, 10.0, 1e8, integer=False, scale="log"),
            Number("distance", "Distance", 256, 1, 100_000, unit="tokens", scale="log", slider=True),
            Number("offset", "Offset of both", 1000, 0, 1_000_000, unit="tokens"),
            Choice("scaling", "Stretching", SCALINGS, "none"),
            Number(
                "factor",
                "Factor",
                8.0,
                1.0,
                1000.0,
                integer=False,
                visible_when=("scaling", ("linear", "llama3")),
            ),
            Number("trained", "Length of the training", 8192, 16, 10_000_000, unit="tokens", scale="log"),
        ),
        compute=rope,
        section="../chapters/02_architecture.html#sec-arch-positions",
    )
)
