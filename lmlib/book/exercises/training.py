"""The exercises of chapter 3, in its order: from the loss of a token to the peak memory of a step."""

import math
from typing import Any

from lmlib.book.exercises.machinery import Case, Exercise, Wrong, register

# ---- training/bits-per-byte


def perplexity_and_bits(losses: list[float], n_bytes: int) -> tuple[float, float]:
    perplexity = math.exp(sum(losses) / len(losses))
    return perplexity, sum(losses) / math.log(2) / n_bytes


def _mean_of_exponentials(losses: list[float], n_bytes: int) -> tuple[float, float]:
    return sum(map(math.exp, losses)) / len(losses), sum(losses) / math.log(2) / n_bytes


def _nats(losses: list[float], n_bytes: int) -> tuple[float, float]:
    return math.exp(sum(losses) / len(losses)), sum(losses) / n_bytes


def _bits_per_token(losses: list[float], n_bytes: int) -> tuple[float, float]:
    return math.exp(sum(losses) / len(losses)), sum(losses) / math.log(2) / len(losses)


BITS_PER_BYTE = Exercise(
    name="training/bits-per-byte",
    title="Perplexity, and bits per byte",
    task="""
Write `perplexity_and_bits(losses, n_bytes)`. `losses` holds the cross-entropy of each token in nats, and
the text that the tokens spell has `n_bytes` bytes. Return the perplexity per token and the bits per byte.

Which of the two can be compared between models with different tokenizers?
""",
    difficulty=1,
    minutes=5,
    starter="""
import math

def perplexity_and_bits(losses: list[float], n_bytes: int) -> tuple[float, float]:
    raise NotImplementedError
""",
    hints=(
        "Perplexity is the exponential of the mean loss.",
        "A nat is `1 / ln 2` bits.",
        "Bits per byte take the sum of the losses, not their mean: the whole text is paid for.",
    ),
    solution=perplexity_and_bits,
    remark="""
Bits per byte can: the bytes of a text are the same whatever cuts them. A tokenizer with longer tokens has
fewer, harder guesses, and so a higher perplexity for the same quality.
""",
    cases=(
        Case(
            "even odds over two",
            ([math.log(2)], 1),
            (2.0, 1.0),
            "One guess of two: a perplexity of 2, one bit.",
        ),
        Case(
            "two bytes a token", ([math.log(2)] * 3, 6), (2.0, 0.5), "Divide by the bytes, not by the tokens."
        ),
        Case(
            "unequal losses",
            ([0.0, math.log(16)], 8),
            (4.0, 0.5),
            "Take the exponential of the mean, not the mean of exponentials.",
        ),
    ),
    wrong=(
        Wrong(_nats, "one bit"),
        Wrong(_bits_per_token, "by the bytes"),
        Wrong(_mean_of_exponentials, "exponential of the mean"),
    ),
)

# ---- training/cross-entropy


def cross_entropy(logits: list[float], target: int) -> float:
    largest = max(logits)
    return largest + math.log(sum(math.exp(logit - largest) for logit in logits)) - logits[target]


def _unstable(logits: list[float], target: int) -> float:
    return math.log(sum(math.exp(logit) for logit in logits)) - logits[target]


def _no_largest(logits: list[float], target: int) -> float:
    largest = max(logits)
    return math.log(sum(math.exp(logit - largest) for logit in logits)) - logits[target]


def _log_of_softmax(logits: list[float], target: int) -> float:
    largest = max(logits)
    powers = [math.exp(logit - largest) for logit in logits]
    return -math.log(powers[target] / sum(powers))


CROSS_ENTROPY = Exercise(
    name="training/cross-entropy",
    title="Cross-entropy that survives large logits",
    task="""
Write `cross_entropy(logits, target)`: minus the log of the softmax's probability of the token `target`,
in nats. It must be right for any finite logits of reasonable size, among them some in the thousands.
""",
    difficulty=2,
    minutes=10,
    starter="""
import math

def cross_entropy(logits: list[float], target: int) -> float:
    raise NotImplementedError
""",
    hints=(
        "Write the log of the quotient as a difference, so that no probability is ever formed.",
        "Adding one number to every logit leaves the softmax as it is.",
        "With `m = max(logits)`: the loss is `m + log(sum(exp(x - m))) - logits[target]`.",
    ),
    solution=cross_entropy,
    remark="""
The largest exponent is then 0: nothing overflows, and the sum is at least 1, so that the logarithm is
finite. A probability that underflows to 0 would have an infinite loss and no gradient.
""",
    cases=(
        Case("all logits 0", ([0.0] * 4, 1), math.log(4), "Equal odds over V tokens cost ln V."),
        Case(
            "the likelier token",
            ([math.log(3), 0.0], 0),
            math.log(4 / 3),
            "The largest is added back at the end.",
        ),
        Case(
            "shifted by 1,000",
            ([1000.0 + math.log(3), 1000.0], 0),
            math.log(4 / 3),
            "exp(1000) overflows: subtract the largest first.",
        ),
        Case(
            "a hopeless target",
            ([2000.0, 0.0], 1),
            2000.0,
            "The probability underflows to 0: stay with logarithms.",
        ),
    ),
    wrong=(
        Wrong(_no_largest, "added back"),
        Wrong(_unstable, "overflows"),
        Wrong(_log_of_softmax, "stay with logarithms"),
    ),
)

# ---- training/clip


def clip(gradients: list[list[float]], max_norm: float) -> tuple[list[list[float]], float]:
    norm = math.sqrt(sum(value * value for tensor in gradients for value in tensor))
    scale = max_norm / norm if norm > max_norm else 1.0
    return [[value * scale for value in tensor] for tensor in gradients], norm


def _each_alone(gradients: list[list[float]], max_norm: float) -> tuple[list[list[float]], float]:
    clipped = [clip([tensor], max_norm)[0][0] for tensor in gradients]
    return clipped, clip(gradients, max_norm)[1]


def _always(gradients: list[list[float]], max_norm: float) -> tuple[list[list[float]], float]:
    norm = math.sqrt(sum(value * value for tensor in gradients for value in tensor))
    return [[value * max_norm / norm for value in tensor] for tensor in gradients], norm


def _norm_after(gradients: list[list[float]], max_norm: float) -> tuple[list[list[float]], float]:
    clipped, norm = clip(gradients, max_norm)
    return clipped, min(norm, max_norm)


CLIP = Exercise(
    name="training/clip",
    title="Clip by the global norm",
    task="""
Write `clip(gradients, max_norm)`. `gradients` holds one list of numbers for each parameter tensor. If
the Euclidean norm of all of them together exceeds `max_norm`, scale them so that it equals it. Return
the gradients and the norm that they had before; change no argument.
""",
    difficulty=2,
    minutes=8,
    starter="""
import math

def clip(gradients: list[list[float]], max_norm: float) -> tuple[list[list[float]], float]:
    raise NotImplementedError
""",
    hints=(
        "One norm: the root of the sum of squares over every tensor.",
        "One factor for all tensors, so that the direction of the step stays.",
        "The factor is `max_norm / norm` where the norm is larger, and 1 elsewhere, also for a norm of 0.",
    ),
    solution=clip,
    cases=(
        Case(
            "too long",
            ([[6.0, 8.0]], 5.0),
            ([[3.0, 4.0]], 10.0),
            "Return the norm before clipping: it is what you log.",
        ),
        Case("short enough", ([[0.3, 0.4]], 1.0), ([[0.3, 0.4]], 0.5), "A short gradient stays as it is."),
        Case(
            "two tensors",
            ([[3.0], [4.0]], 2.5),
            ([[1.5], [2.0]], 5.0),
            "One norm over all tensors keeps the direction.",
        ),
        Case(
            "all zero",
            ([[0.0, 0.0], [0.0]], 1.0),
            ([[0.0, 0.0], [0.0]], 0.0),
            "Do not divide by a norm of 0.",
        ),
    ),
    wrong=(
        Wrong(_norm_after, "before clipping"),
        Wrong(_always, "stays as it is"),
        Wrong(_each_alone, "keeps the direction"),
    ),
)

# ---- training/pieces


def whole_gradient(pieces: list[tuple[list[float], int]]) -> list[float]:
    in_all = sum(count for _, count in pieces)
    counted = [(gradient, count) for gradient, count in pieces if count]
    return [
        sum(gradient[i] * count for gradient, count in counted) / in_all for i in range(len(pieces[0][0]))
    ]


def _mean_of_means(pieces: list[tuple[list[float], int]]) -> list[float]:
    return [sum(gradient[i] for gradient, _ in pieces) / len(pieces) for i in range(len(pieces[0][0]))]


def _by_pieces(pieces: list[tuple[list[float], int]]) -> list[float]:
    summed = [sum(gradient[i] * count for gradient, count in pieces) for i in range(len(pieces[0][0]))]
    return [value / len(pieces) for value in summed]


def _with_empty_pieces(pieces: list[tuple[list[float], int]]) -> list[float]:
    in_all = sum(count for _, count in pieces)
    return [sum(gradient[i] * count for gradient, count in pieces) / in_all for i in range(len(pieces[0][0]))]


PIECES = Exercise(
    name="training/pieces",
    title="The gradient of a batch in pieces",
    task="""
Write `whole_gradient(pieces)`. A batch was cut into micro-batches. For each of them `pieces` holds a pair:
the gradient of *its own* mean loss, and the number of its targets. Return the gradient of the mean loss
over all targets of the batch. A piece that is all padding has 0 targets, and its mean is not-a-number.
""",
    difficulty=2,
    minutes=10,
    starter="""
def whole_gradient(pieces: list[tuple[list[float], int]]) -> list[float]:
    raise NotImplementedError
""",
    hints=(
        "A mean times its count is a sum, and sums add up.",
        "Divide once, at the end, by the targets of all pieces.",
        "Not-a-number times 0 is not 0: leave out pieces without targets.",
    ),
    solution=whole_gradient,
    remark="""
It is simpler never to form the means: let each piece give its *summed* loss, divided by the targets of the
whole batch, and let the gradients add up. `lmlib.training.step.train_step` does that.
""",
    cases=(
        Case("one piece", ([([0.5, -1.0], 7)],), [0.5, -1.0], "One piece is the batch itself."),
        Case("two pieces alike", ([([1.0], 4), ([3.0], 4)],), [2.0], "Divide by the targets of all pieces."),
        Case(
            "unequal pieces",
            ([([1.0, 0.0], 1), ([5.0, 4.0], 3)],),
            [4.0, 3.0],
            "A piece with more targets weighs more: its mean times its count is its sum.",
        ),
        Case(
            "a piece without targets",
            ([([2.0], 2), ([math.nan], 0), ([4.0], 2)],),
            [3.0],
            "Leave out a piece without targets: its mean is not-a-number.",
        ),
    ),
    wrong=(
        Wrong(_by_pieces, "the batch itself"),
        Wrong(_mean_of_means, "weighs more"),
        Wrong(_with_empty_pieces, "without targets"),
    ),
)

# ---- training/schedule


def learning_rate(step: int, peak: float, final: float, warmup: int, total: int) -> float:
    if step < warmup:
        return peak * step / warmup
    if step >= total:
        return final
    done = (step - warmup) / (total - warmup)
    return final + (peak - final) * (1 + math.cos(math.pi * done)) / 2


def _from_zero(step: int, peak: float, final: float, warmup: int, total: int) -> float:
    if step < warmup:
        return peak * step / warmup
    return final + (peak - final) * (1 + math.cos(math.pi * min(step, total) / total)) / 2


def _rises_again(step: int, peak: float, final: float, warmup: int, total: int) -> float:
    if step < warmup:
        return peak * step / warmup
    return final + (peak - final) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def _falls_to_zero(step: int, peak: float, final: float, warmup: int, total: int) -> float:
    return (
        max(final, learning_rate(step, peak, 0.0, warmup, total)) if step >= warmup else peak * step / warmup
    )


SCHEDULE = Exercise(
    name="training/schedule",
    title="Warm-up, then half a cosine",
    task="""
Write `learning_rate(step, peak, final, warmup, total)`. From step 0 the rate grows in a straight line from
0 to `peak`, which step `warmup` has; then it falls along half a cosine to `final`, which step `total` has,
and stays there. `warmup` is less than `total`, and may be 0.
""",
    difficulty=2,
    minutes=10,
    starter="""
import math

def learning_rate(step: int, peak: float, final: float, warmup: int, total: int) -> float:
    raise NotImplementedError
""",
    hints=(
        "Three pieces: before `warmup`, up to `total`, and after.",
        "The cosine's own clock starts at `warmup` and ends at `total`.",
        "`(1 + cos(pi * done)) / 2` goes from 1 to 0; it weighs `peak - final`.",
    ),
    solution=learning_rate,
    remark="""
`lmlib.training.schedules.cosine` differs in one detail: its first update already has a small rate, since
one at rate 0 would be a batch wasted.
""",
    cases=(
        Case("half warm", (5, 1.0, 0.1, 10, 110), 0.5, "The warm-up is a straight line from 0."),
        Case("warm", (10, 1.0, 0.1, 10, 110), 1.0, "The cosine starts when the warm-up ends, at the peak."),
        Case("half way down", (60, 1.0, 0.1, 10, 110), 0.55, "Half way is the middle of peak and final."),
        Case("at the end", (110, 1.0, 0.1, 10, 110), 0.1),
        Case(
            "long after",
            (160, 1.0, 0.1, 10, 110),
            0.1,
            "After `total` the rate stays; a cosine would rise again.",
        ),
        Case("no warm-up", (0, 2.0, 0.0, 0, 10), 2.0, "Without warm-up the first step has the peak."),
    ),
    wrong=(
        Wrong(_from_zero, "starts when the warm-up ends"),
        Wrong(_falls_to_zero, "middle of peak and final"),
        Wrong(_rises_again, "rise again"),
    ),
)

# ---- training/windows


def windows(path: str, starts: list[int], length: int) -> tuple[Any, Any]:
    import numpy as np

    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    x = np.stack([tokens[start : start + length] for start in starts])
    y = np.stack([tokens[start + 1 : start + 1 + length] for start in starts])
    return x.astype(np.int64), y.astype(np.int64)


def _same(path: str, starts: list[int], length: int) -> tuple[Any, Any]:
    x, _ = windows(path, starts, length)
    return x, x


def _rolled(path: str, starts: list[int], length: int) -> tuple[Any, Any]:
    import numpy as np

    x, _ = windows(path, starts, length)
    return x, np.roll(x, -1, axis=1)


def _narrow(path: str, starts: list[int], length: int) -> tuple[Any, Any]:
    import numpy as np

    x, y = windows(path, starts, length)
    return x.astype(np.int16), y.astype(np.int16)


_FILES: list[Any] = []  # kept open: a temporary file lives as long as its object


def _token_file(count: int, starts: list[int], length: int) -> tuple[str, list[int], int]:
    """A file of `count` uint16 tokens, ids from 65,530 down in threes, and what to read of it."""
    import tempfile
    from pathlib import Path

    folder = tempfile.TemporaryDirectory()
    _FILES[:] = [*_FILES[-3:], folder]
    path = Path(folder.name) / "tokens.bin"
    path.write_bytes(b"".join((65530 - 3 * i).to_bytes(2, "little") for i in range(count)))
    return str(path), starts, length


def _as_lists(answer: tuple[Any, Any]) -> list[Any]:
    return [part.tolist() for part in answer]


WINDOWS = Exercise(
    name="training/windows",
    title="Windows of a file of tokens",
    task="""
Write `windows(path, starts, length)`. The file at `path` holds token ids as uint16, low byte first, and
nothing else; it may be larger than memory, so map it with `numpy.memmap`. Return two int64 arrays of shape
`(len(starts), length)`: inputs `x`, each row from its start on, and targets `y`, the token after each.
""",
    difficulty=3,
    minutes=12,
    starter="""
from typing import Any

def windows(path: str, starts: list[int], length: int) -> tuple[Any, Any]:
    raise NotImplementedError
""",
    hints=(
        'Open it with `np.memmap(path, dtype=np.uint16, mode="r")`: slicing reads only the pages touched.',
        "The targets are the same slices, one place later in the file: `length + 1` tokens in all.",
        "Stack the rows with `np.stack` and widen them with `astype(np.int64)`.",
    ),
    solution=windows,
    remark="A start may be at most `len(tokens) - length - 1`: the last target needs a token too.",
    cases=(
        Case(
            "one window",
            lambda: _token_file(8, [0], 2),
            [[[65530, 65527]], [[65527, 65524]]],
            "The targets are the inputs one place later in the file; ids up to 65,535 need uint16 or wider.",
            then=_as_lists,
            call="windows(path, [0], 2)",
        ),
        Case(
            "two windows up to the end",
            lambda: _token_file(8, [5, 1], 2),
            [[[65515, 65512], [65527, 65524]], [[65512, 65509], [65524, 65521]]],
            "The last target is the token after the window, read from the file.",
            then=_as_lists,
            call="windows(path, [5, 1], 2)",
        ),
        Case(
            "the type",
            lambda: _token_file(8, [0], 3),
            ["int64", "int64"],
            "An embedding wants int64.",
            then=lambda answer: [str(part.dtype) for part in answer],
            call="windows(path, [0], 3)",
        ),
    ),
    wrong=(
        Wrong(_same, "one place later"),
        Wrong(_rolled, "one place later"),
        Wrong(_narrow, "uint16 or wider"),
    ),
    in_page=False,
)

# ---- training/adamw


def adamw(
    weights: list[float], gradients: list[list[float]], lr: float, decay: float, beta1: float, beta2: float
) -> list[float]:
    weights, eps = list(weights), 1e-8
    first, second = [0.0] * len(weights), [0.0] * len(weights)
    for step, gradient in enumerate(gradients, start=1):
        for i, g in enumerate(gradient):
            first[i] = beta1 * first[i] + (1 - beta1) * g
            second[i] = beta2 * second[i] + (1 - beta2) * g * g
            mean, square = first[i] / (1 - beta1**step), second[i] / (1 - beta2**step)
            weights[i] = weights[i] * (1 - lr * decay) - lr * mean / (math.sqrt(square) + eps)
    return weights


def _decay_in_gradient(
    weights: list[float], gradients: list[list[float]], lr: float, decay: float, beta1: float, beta2: float
) -> list[float]:
    weights, eps = list(weights), 1e-8
    first, second = [0.0] * len(weights), [0.0] * len(weights)
    for step, gradient in enumerate(gradients, start=1):
        for i, g in enumerate(gradient):
            g = g + decay * weights[i]
            first[i] = beta1 * first[i] + (1 - beta1) * g
            second[i] = beta2 * second[i] + (1 - beta2) * g * g
            mean, square = first[i] / (1 - beta1**step), second[i] / (1 - beta2**step)
            weights[i] -= lr * mean / (math.sqrt(square) + eps)
    return weights


def _no_correction(
    weights: list[float], gradients: list[list[float]], lr: float, decay: float, beta1: float, beta2: float
) -> list[float]:
    weights, eps = list(weights), 1e-8
    first, second = [0.0] * len(weights), [0.0] * len(weights)
    for gradient in gradients:
        for i, g in enumerate(gradient):
            first[i] = beta1 * first[i] + (1 - beta1) * g
            second[i] = beta2 * second[i] + (1 - beta2) * g * g
            weights[i] = weights[i] * (1 - lr * decay) - lr * first[i] / (math.sqrt(second[i]) + eps)
    return weights


ADAMW = Exercise(
    name="training/adamw",
    title="AdamW",
    task="""
Write `adamw(weights, gradients, lr, decay, beta1, beta2)`: the weights after one update for each entry of
`gradients`, which holds a gradient for every weight. Both moments start at 0 and are corrected for it, eps
is `1e-8`, added outside the root, and the weight decay is decoupled: `lr * decay` of each weight goes, and
the moments never see it.
""",
    difficulty=3,
    minutes=20,
    starter="""
import math

def adamw(
    weights: list[float], gradients: list[list[float]], lr: float, decay: float, beta1: float, beta2: float
) -> list[float]:
    raise NotImplementedError
""",
    hints=(
        "Keep two lists: `m = beta1 * m + (1 - beta1) * g`, and the same of `g * g` with `beta2`.",
        "After step t, counted from 1, divide them by `1 - beta1**t` and `1 - beta2**t`.",
        "First `w *= 1 - lr * decay`, then `w -= lr * m / (sqrt(v) + 1e-8)` with the corrected moments.",
    ),
    solution=adamw,
    remark="""
The first step has the size of the learning rate whatever the gradient's size: the quotient is its sign.
""",
    cases=(
        Case(
            "first step",
            ([1.0, 1.0], [[0.5, -20.0]], 0.1, 0.0, 0.9, 0.999),
            [0.9, 1.1],
            "Corrected, the first step has the size of lr: divide by 1 - beta**t.",
        ),
        Case(
            "decay alone",
            ([2.0], [[0.0]], 0.1, 0.25, 0.9, 0.999),
            [1.95],
            "Decoupled: lr × decay × w goes, and the moments never see it.",
        ),
        Case("both", ([2.0], [[1.0]], 0.1, 0.5, 0.9, 0.999), [1.8]),
        Case(
            "two steps",
            ([0.0], [[1.0], [-1.0]], 0.1, 0.0, 0.5, 0.5),
            [-0.1 + 0.1 / 3],
            "The moments carry over, and t is 2 in the second step.",
        ),
    ),
    wrong=(Wrong(_no_correction, "size of lr"), Wrong(_decay_in_gradient, "the moments never see it")),
)

# ---- training/top-p


def top_p(probabilities: list[float], p: float) -> list[float]:
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    kept, mass = [], 0.0
    for i in order:
        kept.append(i)
        mass += probabilities[i]
        if mass >= p:
            break
    return [probabilities[i] / mass if i in kept else 0.0 for i in range(len(probabilities))]


def generate(model: Any, prompt: list[int], end: int, most: int, p: float, draws: list[float]) -> list[int]:
    tokens = list(prompt)
    for draw in draws[:most]:
        below = 0.0
        probabilities = top_p(model(tokens), p)
        chosen = max(i for i, share in enumerate(probabilities) if share > 0)  # where rounding leaves a gap
        for i, share in enumerate(probabilities):
            below += share
            if draw < below:
                chosen = i
                break
        if chosen == end:
            break
        tokens.append(chosen)
    return tokens[len(prompt) :]


def _keeps_the_end(
    model: Any, prompt: list[int], end: int, most: int, p: float, draws: list[float]
) -> list[int]:
    tokens = generate(model, prompt, end, most, p, draws)
    return [*tokens, end] if len(tokens) < min(most, len(draws)) else tokens


def _with_prompt(
    model: Any, prompt: list[int], end: int, most: int, p: float, draws: list[float]
) -> list[int]:
    return [*prompt, *generate(model, prompt, end, most, p, draws)]


def _no_cut(model: Any, prompt: list[int], end: int, most: int, p: float, draws: list[float]) -> list[int]:
    return generate(model, prompt, end, most, 1.0, draws)


def _bigram(tokens: list[int]) -> list[float]:
    """Four tokens, 0 the end: what follows each."""
    return [[1.0, 0.0, 0.0, 0.0], [0.0, 0.1, 0.6, 0.3], [0.1, 0.2, 0.0, 0.7], [0.5, 0.3, 0.2, 0.0]][
        tokens[-1]
    ]


TOP_P = Exercise(
    name="training/top-p",
    title="Sample until the end",
    task="""
Write `generate(model, prompt, end, most, p, draws)`. `model(tokens)` gives the probabilities of the next
token. In each step let `top_p` (given) keep the likeliest tokens whose probabilities first sum to at
least `p`, scaled to sum to 1. Then take the first id, in order of ids, at which the running sum exceeds
the next number of `draws` (each is from 0 up to 1). Stop at the token `end` (`<|endoftext|>`) or after
`most` tokens. Return the new tokens only, without `end`.
""",
    difficulty=4,
    minutes=25,
    starter="""
from typing import Any

def generate(model: Any, prompt: list[int], end: int, most: int, p: float, draws: list[float]) -> list[int]:
    raise NotImplementedError
""",
    hints=(
        "Each step: `top_p(model(tokens), p)`, then one draw.",
        "Add the probabilities in the order of ids and stop at the first sum above the draw.",
        "Each new token is appended before the model is asked again; `end` is not appended.",
    ),
    solution=generate,
    given=(top_p,),
    cases=(
        Case(
            "one token", (_bigram, [1], 0, 1, 1.0, [0.2]), [2], "Return the new tokens only, not the prompt."
        ),
        Case(
            "the tail is cut",
            (_bigram, [1], 0, 1, 0.85, [0.05]),
            [2],
            "Token 1 is outside the likeliest that sum to p: keep them only.",
        ),
        Case(
            "until the end",
            (_bigram, [1], 0, 9, 1.0, [0.2, 0.99, 0.1, 0.5]),
            [2, 3],
            "The end stops the text, and is no part of it.",
        ),
        Case("at most so many", (_bigram, [1], 0, 2, 1.0, [0.2, 0.99, 0.6]), [2, 3]),
    ),
    wrong=(
        Wrong(_with_prompt, "not the prompt"),
        Wrong(_no_cut, "keep them only"),
        Wrong(_keeps_the_end, "no part of it"),
    ),
)

# ---- training/peak


def peak_bytes(parameters: list[int], saved: list[int], width: int) -> int:
    fixed = 3 * width * sum(parameters)  # parameters and two moments
    held, gradients = sum(saved), 0
    peak = fixed + held
    for count, activation in zip(reversed(parameters), reversed(saved), strict=True):
        gradients += count * width
        peak = max(peak, fixed + held + gradients)
        held -= activation
    return peak


def _everything(parameters: list[int], saved: list[int], width: int) -> int:
    return 4 * width * sum(parameters) + sum(saved)


def _after_forward(parameters: list[int], saved: list[int], width: int) -> int:
    return 3 * width * sum(parameters) + sum(saved)


def _freed_first(parameters: list[int], saved: list[int], width: int) -> int:
    fixed, held, gradients = 3 * width * sum(parameters), sum(saved), 0
    peak = fixed + held
    for count, activation in zip(reversed(parameters), reversed(saved), strict=True):
        held -= activation
        gradients += count * width
        peak = max(peak, fixed + held + gradients)
    return peak


PEAK = Exercise(
    name="training/peak",
    title="Where a step's memory peaks",
    task="""
Write `peak_bytes(parameters, saved, width)`: the most bytes alive at once in a step of AdamW after the
first. Layer i has `parameters[i]` numbers and saves `saved[i]` bytes for the backward pass. Parameters,
gradients and both moments take `width` bytes a number. Gradients were set to `None` before the step; the
backward pass goes from the last layer to the first, and in each layer all gradients of its parameters
appear before its saved bytes are freed. Ignore every other temporary.
""",
    difficulty=5,
    minutes=30,
    starter="""
def peak_bytes(parameters: list[int], saved: list[int], width: int) -> int:
    raise NotImplementedError
""",
    hints=(
        "Parameters and moments are there all the time: three numbers for each parameter.",
        "Walk backwards through the layers and keep two sums: bytes still saved, and gradients so far.",
        "Look at the sum just after a layer's gradients appear, before its saved bytes go; keep the largest.",
    ),
    solution=peak_bytes,
    remark="""
Where activations outweigh parameters, the peak stands at the start of the backward pass, and gradients
mostly come free; where parameters outweigh them, it stands at its end. Adding the maxima of each kind
overestimates both.
""",
    cases=(
        Case(
            "one layer",
            ([10], [100], 4),
            260,
            "At the layer, its gradients and what it saved live together: 120 + 40 + 100.",
        ),
        Case(
            "activations rule",
            ([10, 10], [500, 500], 4),
            1280,
            "The first layer's gradients come when the second's saved bytes are gone.",
        ),
        Case("parameters rule", ([100, 100], [10, 10], 4), 3210),
        Case("a large head", ([5, 5, 1000], [100, 100, 50], 2), 8310),
        Case("a large embedding", ([1000, 5, 5], [10, 300, 300], 2), 8090),
    ),
    wrong=(
        Wrong(_after_forward, "live together"),
        Wrong(_freed_first, "live together"),
        Wrong(_everything, "saved bytes are gone"),
    ),
)

register(BITS_PER_BYTE, CROSS_ENTROPY, CLIP, PIECES, SCHEDULE, WINDOWS, ADAMW, TOP_P, PEAK)
