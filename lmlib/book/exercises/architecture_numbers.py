"""Exercises on a transformer's sizes and smallest parts, for which the standard library is enough."""

import math

from lmlib.book.exercises.machinery import Case, Exercise, Wrong

# ---- architecture/ff-width


def ff_width(d_model: int, multiple: int = 64) -> int:
    return math.ceil(8 * d_model / 3 / multiple) * multiple


def _four_times(d_model: int, multiple: int = 64) -> int:
    return 4 * d_model


def _unrounded(d_model: int, multiple: int = 64) -> int:
    return 8 * d_model // 3


def _rounded_down(d_model: int, multiple: int = 64) -> int:
    return 8 * d_model // 3 // multiple * multiple


def _sixty_four(d_model: int, multiple: int = 64) -> int:
    return ff_width(d_model)


FF_WIDTH = Exercise(
    name="architecture/ff-width",
    title="How wide is a gated feed-forward layer?",
    task="""
Without a gate, a feed-forward layer has two matrices and is usually four times as wide as the model:
8 D² parameters. With a gate it has three. Write `ff_width(d_model, multiple=64)`: the width that keeps the
parameters at 8 D² or just above, as a multiple of `multiple`, since hardware computes in tiles.
""",
    difficulty=1,
    minutes=5,
    starter="""
import math


def ff_width(d_model: int, multiple: int = 64) -> int:
    raise NotImplementedError
""",
    hints=(
        "Three matrices of D × F have 3 D F parameters. For which F are they 8 D²?",
        "F = 8/3 D. Divide by `multiple`, round up, multiply again.",
        "`math.ceil(8 * d_model / 3 / multiple) * multiple`.",
    ),
    solution=ff_width,
    remark="""
Published widths are not all made by this rule. Some round to the nearest multiple (1,344 for a width of 512
in the assignments of CS336), Llama 2 7B takes the next multiple of 256, and Llama 3 8B took 3.5 D on purpose.
""",
    cases=(
        Case("no rounding needed", (384,), 1024, "Three matrices must share 8 D²: F is 8/3 D, not 4 D."),
        Case("rounded up", (512,), 1408, "Round up to the next multiple of `multiple`."),
        Case("GPT-2 XL's width", (1600,), 4288, "Round up to the next multiple of `multiple`."),
        Case("Llama 2 7B", (4096, 256), 11008, "The second argument is the multiple, 64 only by default."),
        Case("a multiple of one", (4, 1), 11),
    ),
    wrong=(
        Wrong(_four_times, "not 4 D"),
        Wrong(_unrounded, "Round up"),
        Wrong(_rounded_down, "Round up"),
        Wrong(_sixty_four, "64 only by default"),
    ),
)

# ---- architecture/softmax


def softmax(scores: list[float]) -> list[float]:
    largest = max(scores)
    powers = [math.exp(score - largest) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def _overflows(scores: list[float]) -> list[float]:
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def _proportional(scores: list[float]) -> list[float]:
    return [score / sum(scores) for score in scores]


def _by_the_largest(scores: list[float]) -> list[float]:
    return [math.exp(score - max(scores)) for score in scores]


def _by_the_size(scores: list[float]) -> list[float]:
    size = max(map(abs, scores))
    powers = [math.exp(score - size) for score in scores]
    return [power / sum(powers) for power in powers]


SOFTMAX = Exercise(
    name="architecture/softmax",
    title="A softmax that does not overflow",
    task="""
Write `softmax(scores)`: weights proportional to the exponentials of the scores, with sum 1. Scores may be
large in either direction, and a score of minus infinity marks a key that may not be seen: its weight is 0.
At least one score is finite.
""",
    difficulty=1,
    minutes=10,
    starter="""
import math


def softmax(scores: list[float]) -> list[float]:
    raise NotImplementedError
""",
    hints=(
        "Adding the same number to all scores changes no weight: the factor cancels. Which number helps?",
        "Subtract the largest score. Then the largest exponent is 0, and nothing can overflow.",
        "`math.exp(-math.inf)` is 0.0, so a masked key needs no special case.",
    ),
    solution=softmax,
    remark="""
The sum is at least 1, since the largest score contributes exp(0): no division by zero either. A row in which
every key is masked has no largest finite score. Causal attention never has one: a token sees itself.
""",
    cases=(
        Case("equal scores", ([1.0, 1.0],), [0.5, 0.5], "Divide by the sum, so that the weights add to 1."),
        Case(
            "two to one",
            ([math.log(2), 0.0],),
            [2 / 3, 1 / 3],
            "Weights are proportional to the exponentials of the scores.",
        ),
        Case(
            "large scores",
            ([1000.0, 1000.0, 999.0],),
            [1 / (2 + math.exp(-1)), 1 / (2 + math.exp(-1)), math.exp(-1) / (2 + math.exp(-1))],
            "exp(1000) is more than a float can hold. Subtract the largest score first.",
        ),
        Case(
            "scores far below zero",
            ([-1000.0, -1000.0],),
            [0.5, 0.5],
            "All exponentials came out as 0. Subtract the largest score, not the largest absolute value.",
        ),
        Case("a masked key", ([0.0, -math.inf, 0.0],), [0.5, 0.0, 0.5], "exp(-inf) is 0: no case is needed."),
    ),
    wrong=(
        Wrong(_overflows, "Subtract the largest score first"),
        Wrong(_proportional, "exponentials of the scores"),
        Wrong(_by_the_largest, "add to 1"),
        Wrong(_by_the_size, "not the largest absolute value"),
    ),
)

# ---- architecture/initial-std


def initial_std(fan_in: int, cut: float = 3.0) -> float:
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    kept = math.erf(cut / math.sqrt(2))
    return math.sqrt((1 - 2 * cut * density / kept) / fan_in)


def _without_cut(fan_in: int, cut: float = 3.0) -> float:
    return fan_in**-0.5


def _variance(fan_in: int, cut: float = 3.0) -> float:
    return initial_std(1, cut) / fan_in


def _clamped(fan_in: int, cut: float = 3.0) -> float:
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    kept = math.erf(cut / math.sqrt(2))
    return math.sqrt((kept - 2 * cut * density + cut**2 * (1 - kept)) / fan_in)


INITIAL_STD = Exercise(
    name="architecture/initial-std",
    title="How large are the first weights?",
    task="""
A matrix that takes `fan_in` numbers starts with weights from a normal distribution of standard deviation
1/√fan_in, from which everything further out than `cut` standard deviations is thrown away and drawn again.
Write `initial_std(fan_in, cut=3.0)`: the standard deviation that the weights then have.

For a standard normal kept between −c and c, the variance is 1 − 2c φ(c) / (2Φ(c) − 1), where φ is the
density and Φ the distribution function.
""",
    difficulty=2,
    minutes=15,
    starter="""
import math


def initial_std(fan_in: int, cut: float = 3.0) -> float:
    raise NotImplementedError
""",
    hints=(
        "First solve it for fan_in = 1. The result then shrinks by √fan_in.",
        "φ(c) = exp(−c²/2) / √(2π). And 2Φ(c) − 1, the part that is kept, is `math.erf(c / math.sqrt(2))`.",
        "The formula gives a variance; its root is asked for.",
    ),
    solution=initial_std,
    remark="""
Cutting at three takes 1.3 % off; nobody corrects for it. Cutting at two, as some libraries do, takes 12 %:
after twenty layers without norms, signals would be 0.88 to the power of 20, or 8 %, of what they should be.
""",
    cases=(
        Case(
            "hardly any cut",
            (256, 8.0),
            1 / 16,
            "Without a cut the standard deviation is 1 / √fan_in, with the root.",
        ),
        Case(
            "one input, cut at three",
            (1,),
            0.9865783925521744,
            "The cut removes what is far out, so that the rest spreads less: 0.987, not 1. Draws beyond the "
            "cut are drawn again; they do not pile up at its edge.",
        ),
        Case(
            "cut at one",
            (1, 1.0),
            0.5395602260122304,
            "At a cut of one, 68 % of the draws are kept, and they spread 0.54.",
        ),
        Case("a layer of 4,096 inputs", (4096,), 0.9865783925521744 / 64),
    ),
    wrong=(
        Wrong(_without_cut, "0.987, not 1"),
        Wrong(_variance, "with the root"),
        Wrong(_clamped, "drawn again"),
    ),
)

# ---- architecture/rms-norm


def rms_norm(x: list[float], weight: list[float], eps: float = 1e-5) -> list[float]:
    mean_square = sum(value * value for value in x) / len(x)
    scale = 1 / math.sqrt(mean_square + eps)
    return [value * scale * factor for value, factor in zip(x, weight, strict=True)]


def _layer_norm(x: list[float], weight: list[float], eps: float = 1e-5) -> list[float]:
    mean = sum(x) / len(x)
    return rms_norm([value - mean for value in x], weight, eps)


def _unit_length(x: list[float], weight: list[float], eps: float = 1e-5) -> list[float]:
    scale = 1 / math.sqrt(sum(value * value for value in x) + eps)
    return [value * scale * factor for value, factor in zip(x, weight, strict=True)]


def _no_eps(x: list[float], weight: list[float], eps: float = 1e-5) -> list[float]:
    return rms_norm(x, weight, 0.0)


def _no_weight(x: list[float], weight: list[float], eps: float = 1e-5) -> list[float]:
    return rms_norm(x, [1.0] * len(x), eps)


def _eps_outside(x: list[float], weight: list[float], eps: float = 1e-5) -> list[float]:
    rms = math.sqrt(sum(value * value for value in x) / len(x))
    return [value / (rms + eps) * factor for value, factor in zip(x, weight, strict=True)]


RMS_NORM = Exercise(
    name="architecture/rms-norm",
    title="RMSNorm by hand",
    task="""
Write `rms_norm(x, weight, eps=1e-5)` for the vector of one token: divide it by the root of its mean square,
then multiply each coordinate with its weight. `eps` is added to the mean square, under the root.
""",
    difficulty=1,
    minutes=10,
    starter="""
import math


def rms_norm(x: list[float], weight: list[float], eps: float = 1e-5) -> list[float]:
    raise NotImplementedError
""",
    hints=(
        "Square each coordinate and take the mean: add them up and divide by how many there are.",
        "Add eps to the mean square, then take the root.",
        "No mean is subtracted. That is all that tells it from LayerNorm without bias.",
    ),
    solution=rms_norm,
    remark="""
In bf16 the sum of squares has to be taken in fp32: 8 bits of precision do not add up thousands of terms. The
library's norm computes in fp32 whatever comes in, and answers in the type that came.
""",
    cases=(
        Case(
            "all ones",
            ([1.0, 1.0, 1.0, 1.0], [1.0] * 4, 0.0),
            [1.0] * 4,
            "The *mean* square of ones is 1, so they stay. And no mean is subtracted: RMSNorm only divides.",
        ),
        Case("two coordinates", ([1.0, 7.0], [1.0, 1.0], 0.0), [0.2, 1.4], "√((1 + 49) / 2) is 5."),
        Case("weights", ([1.0, 7.0], [10.0, -1.0], 0.0), [2.0, -1.4], "Multiply each with its weight."),
        Case(
            "a vector of zeros",
            ([0.0, 0.0], [1.0, 1.0]),
            [0.0, 0.0],
            "Zeros would divide by zero: that is what eps is for.",
        ),
        Case(
            "a tiny vector",
            ([1e-3, -1e-3], [1.0, 1.0], 3e-6),
            [0.5, -0.5],
            "eps is added to the mean square, before the root is taken.",
        ),
    ),
    wrong=(
        Wrong(_layer_norm, "no mean is subtracted"),
        Wrong(_unit_length, "The *mean* square"),
        Wrong(_no_weight, "with its weight"),
        Wrong(_no_eps, "what eps is for"),
        Wrong(_eps_outside, "before the root"),
    ),
)

# ---- architecture/accounting

GPT2_XL = {"vocab_size": 50_257, "d_model": 1600, "n_layers": 48, "d_ff": 6400}
_GPT2_XL_NARROW = GPT2_XL | {"d_ff": 4288}
_TINY = {"vocab_size": 10, "d_model": 4, "n_layers": 1, "d_ff": 8}


def account(sizes: dict[str, int], length: int) -> dict[str, int]:
    V, D, L, F = (sizes[name] for name in ("vocab_size", "d_model", "n_layers", "d_ff"))
    return {
        "parameters": 2 * V * D + L * (4 * D * D + 3 * D * F + 2 * D) + D,
        "projections": L * 2 * length * 4 * D * D,
        "attention": L * 2 * 2 * length * length * D,
        "feed_forward": L * 2 * length * 3 * D * F,
        "head": 2 * length * D * V,
    }


def _changed(sizes: dict[str, int], length: int, **factors: float) -> dict[str, int]:
    right = account(sizes, length)
    return {name: int(value * factors.get(name, 1)) for name, value in right.items()}


def _one_flop_each(sizes: dict[str, int], length: int) -> dict[str, int]:
    return _changed(sizes, length, projections=0.5, attention=0.5, feed_forward=0.5, head=0.5)


def _without_gate(sizes: dict[str, int], length: int) -> dict[str, int]:
    saved = sizes["n_layers"] * sizes["d_model"] * sizes["d_ff"]
    answer = account(sizes, length)
    return answer | {
        "parameters": answer["parameters"] - saved,
        "feed_forward": answer["feed_forward"] * 2 // 3,
    }


def _scores_only(sizes: dict[str, int], length: int) -> dict[str, int]:
    return _changed(sizes, length, attention=0.5)


def _tied(sizes: dict[str, int], length: int) -> dict[str, int]:
    answer = account(sizes, length)
    return answer | {"parameters": answer["parameters"] - sizes["vocab_size"] * sizes["d_model"]}


def _linear_in_length(sizes: dict[str, int], length: int) -> dict[str, int]:
    answer = account(sizes, length)
    return answer | {"attention": answer["attention"] // length}


def _without_norms(sizes: dict[str, int], length: int) -> dict[str, int]:
    answer = account(sizes, length)
    return answer | {"parameters": answer["parameters"] - (2 * sizes["n_layers"] + 1) * sizes["d_model"]}


ACCOUNTING = Exercise(
    name="architecture/accounting",
    title="Project: the books of GPT-2 XL",
    task="""
Take the model of this chapter (untied, no biases, RMSNorm, SwiGLU, as many key/value heads as query heads)
and keep its books. Write `account(sizes, length)`, which returns

- `parameters`: all of them;
- `projections`: FLOPs of one forward pass over one sequence of `length` tokens in the projections to
  queries, keys and values and from the heads back, all layers together;
- `attention`: those of the two products between tokens, scores and weighted sum, counted without a mask;
- `feed_forward` and `head`: those of the feed-forward layers, and of the head.

A product of an m × k and a k × n matrix costs 2 m k n FLOPs; norms, rotations and softmax are not counted.
`sizes` has `vocab_size`, `d_model`, `n_layers` and `d_ff`.

Then answer with it: what share of the FLOPs is attention at a context of 1,024, and at 16,384, for the sizes
of GPT-2 XL (50,257 tokens, width 1,600, 48 layers)? At what length is it half?
""",
    difficulty=5,
    minutes=60,
    starter="""
def account(sizes: dict[str, int], length: int) -> dict[str, int]:
    raise NotImplementedError
""",
    hints=(
        "The number of heads does not matter: H heads of K = D/H numbers are D numbers. So W_q, W_k, W_v and "
        "W_o are D × D each.",
        "A layer: four matrices D × D, three D × F, two norms of D. Outside: embedding, last norm, head.",
        "Scores of one head: (T × K) by (K × T), so 2 T² K FLOPs; over all heads 2 T² D. The weighted sum "
        "costs the same again.",
        "The embedding is looked up, not multiplied: it has parameters, but no FLOPs. The head has both.",
    ),
    solution=account,
    remark="""
With F = 6,400: 2,127,057,600 parameters, 8.5 GB in fp32, and 4.51 TFLOPs for 1,024 tokens, of which attention
is 7 %. At 16,384 tokens it is 149.5 TFLOPs, 33 times as many for 16 times the tokens, and 55 % of them are in
the two products of attention: they are the only term that grows with the square. With F = 4,288, the rule of
the first exercise, there are 1,640,452,800 parameters, and 62 %.
""",
    cases=(
        Case(
            "a layer of width 4: parameters",
            (_TINY, 3),
            2 * 10 * 4 + (4 * 16 + 3 * 32 + 2 * 4) + 4,
            "Embedding and head have V D each, since they are not tied; a layer has 4 D² + 3 D F + 2 D; one "
            "norm of D is left, before the head.",
            then=lambda books: books["parameters"],
            call="account(tiny, 3)['parameters']",
        ),
        Case(
            "its projections",
            (_TINY, 3),
            2 * 3 * 4 * 16,
            "Four matrices D × D meet T tokens each. A multiply and an add are two FLOPs.",
            then=lambda books: books["projections"],
            call="account(tiny, 3)['projections']",
        ),
        Case(
            "its attention",
            (_TINY, 3),
            2 * 2 * 9 * 4,
            "Two products, scores and weighted sum, each over T² pairs of tokens: 2 · 2 T² D.",
            then=lambda books: books["attention"],
            call="account(tiny, 3)['attention']",
        ),
        Case(
            "its feed-forward layer and its head",
            (_TINY, 3),
            (2 * 3 * 3 * 32, 2 * 3 * 40),
            "SwiGLU has three matrices; the head has one of D × V.",
            then=lambda books: (books["feed_forward"], books["head"]),
            call="account(tiny, 3)",
        ),
        Case(
            "GPT-2 XL",
            (GPT2_XL, 1024),
            {
                "parameters": 2_127_057_600,
                "projections": 1_006_632_960_000,
                "attention": 322_122_547_200,
                "feed_forward": 3_019_898_880_000,
                "head": 164_682_137_600,
            },
            "All 48 layers count, the head once.",
            call="account(gpt2_xl, 1024)",
        ),
        Case(
            "parameters with d_ff = 4,288",
            (_GPT2_XL_NARROW, 1024),
            1_640_452_800,
            then=lambda books: books["parameters"],
            call="account(gpt2_xl | {'d_ff': 4288}, 1024)['parameters']",
        ),
        Case(
            "the share of attention at 16,384 tokens",
            (GPT2_XL, 16_384),
            82_463_372_083_200 / 149_522_795_724_800,
            "Attention grows with the square of the length, everything else with the length.",
            then=lambda books: books["attention"] / (sum(books.values()) - books["parameters"]),
            call="share of account(gpt2_xl, 16384)['attention']",
        ),
    ),
    wrong=(
        Wrong(_one_flop_each, "two FLOPs"),
        Wrong(_without_gate, "3 D F"),
        Wrong(_scores_only, "Two products"),
        Wrong(_tied, "not tied"),
        Wrong(_linear_in_length, "T² pairs"),
        Wrong(_without_norms, "2 D"),
    ),
)
