"""Exercises on numbers and tensors: bytes of a recipe, the value of bits, sums that stop, storages."""

import math

from lmlib.book.exercises.machinery import Case, Exercise, Wrong

# ---- resources/model-states


def model_states(n_parameters: int, width: int, master: bool) -> int:
    state_width = 4 if master else width
    copy = 4 if master else 0
    return n_parameters * (width + width + copy + 2 * state_width)


def _one_moment(n_parameters: int, width: int, master: bool) -> int:
    return n_parameters * (2 * width + (8 if master else width))


def _no_gradients(n_parameters: int, width: int, master: bool) -> int:
    return n_parameters * (width + (12 if master else 2 * width))


def _narrow_moments(n_parameters: int, width: int, master: bool) -> int:
    return n_parameters * (4 * width + (4 if master else 0))


MODEL_STATES = Exercise(
    name="resources/model-states",
    title="Bytes before the first activation",
    task="""
Write `model_states(n_parameters, width, master)`: the bytes that AdamW training occupies for
parameters, gradients and optimizer state. Parameters and gradients have `width` bytes each. AdamW keeps
two moments: in fp32, beside an fp32 copy of every parameter, if `master` is true, and otherwise in the
parameters' width.

How many parameters fit into 24 GB in each recipe?
""",
    difficulty=1,
    minutes=5,
    starter="""
def model_states(n_parameters: int, width: int, master: bool) -> int:
    raise NotImplementedError
""",
    hints=(
        "Four things: parameters, gradients, moments, and perhaps a master copy.",
        "There are two moments for each parameter.",
        "With a master copy the moments have 4 bytes, whatever the parameters have.",
    ),
    solution=model_states,
    remark="""
In fp32, and in bf16 with master weights, the sum is 16 bytes a parameter; in bf16 alone it is 8. So 24
GB hold at most 1.5 or 3 billion parameters, before any activation.
""",
    cases=(
        Case("one parameter in fp32", (1, 4, False), 16, "4 + 4 + 2 × 4: two moments, and the gradient."),
        Case("bf16 alone", (1, 2, False), 8, "Everything in 2 bytes."),
        Case("bf16 with a master copy", (1, 2, True), 16, "2 + 2 + 4 + 2 × 4: moments are fp32 then."),
        Case("Llama 3 8B", (8_030_261_248, 2, True), 128_484_179_968),
    ),
    wrong=(
        Wrong(_one_moment, "two moments"),
        Wrong(_no_gradients, "the gradient"),
        Wrong(_narrow_moments, "moments are fp32"),
    ),
)

# ---- resources/float-value


def float_value(bits: str, exponent_bits: int) -> float:
    sign = -1 if bits[0] == "1" else 1
    exponent, fraction = int(bits[1 : 1 + exponent_bits], 2), bits[1 + exponent_bits :]
    bias = 2 ** (exponent_bits - 1) - 1
    part = int(fraction, 2) / 2 ** len(fraction)
    if exponent == 2**exponent_bits - 1:
        return sign * math.inf if part == 0 else math.nan
    if exponent == 0:
        return sign * part * 2.0 ** (1 - bias)
    return sign * (1 + part) * 2.0 ** (exponent - bias)


def _no_subnormals(bits: str, exponent_bits: int) -> float:
    exponent = int(bits[1 : 1 + exponent_bits], 2)
    if exponent == 0:
        fraction = bits[1 + exponent_bits :]
        part = int(fraction, 2) / 2 ** len(fraction)
        return (1 + part) * 2.0 ** (1 - 2 ** (exponent_bits - 1)) * (-1 if bits[0] == "1" else 1)
    return float_value(bits, exponent_bits)


def _no_leading_one(bits: str, exponent_bits: int) -> float:
    fraction = bits[1 + exponent_bits :]
    exponent = int(bits[1 : 1 + exponent_bits], 2) - 2 ** (exponent_bits - 1) + 1
    return (-1 if bits[0] == "1" else 1) * int(fraction, 2) / 2 ** len(fraction) * 2.0**exponent


def _no_infinity(bits: str, exponent_bits: int) -> float:
    value = float_value(bits, exponent_bits)
    return value if math.isfinite(value) else 2.0 ** (2 ** (exponent_bits - 1))


FLOAT_VALUE = Exercise(
    name="resources/float-value",
    title="What do these bits mean?",
    task="""
Write `float_value(bits, exponent_bits)`: the value of a floating-point number given as text of zeros
and ones: sign, exponent, fraction. It must work for fp32 (8 exponent bits of 32), bf16 (8 of 16), fp16
(5 of 16) and E5M2 (5 of 8).

- The bias is half of the exponent's range: 127 for 8 bits, 15 for 5.
- An exponent of all zeros marks *subnormal* numbers: no leading one, and the power of exponent 1.
- An exponent of all ones is infinity if the fraction is 0, and otherwise not a number (`math.nan`).
""",
    difficulty=2,
    minutes=20,
    starter="""
import math


def float_value(bits: str, exponent_bits: int) -> float:
    raise NotImplementedError
""",
    hints=(
        "`int(text, 2)` reads a binary number. The bias is `2 ** (exponent_bits - 1) - 1`.",
        "The fraction is an integer over `2 ** len(fraction)`; a normal number has a one in front of it.",
        "Three branches on the exponent: all ones, all zeros, everything else.",
    ),
    solution=float_value,
    remark="""
Subnormal numbers close the gap between 0 and the smallest normal number with equal steps. In fp16 they
reach down to 6e-8, where gradients live, and a little below that everything is 0.
""",
    cases=(
        Case(
            "one, in bf16", ("0011111110000000", 8), 1.0, "A normal number has a leading one: 1 + fraction."
        ),
        Case("minus six, in fp16", ("1100011000000000", 5), -6.0),
        Case("0.01, in bf16", ("0011110000100100", 8), 0.010009765625),
        Case("zero", ("0000000000000000", 5), 0.0, "Exponent 0 is subnormal: no leading one there."),
        Case(
            "the smallest of fp16",
            ("0000000000000001", 5),
            2.0**-24,
            "Exponent 0 is subnormal: no leading one, and the power of exponent 1.",
        ),
        Case("infinity, in E5M2", ("11111100", 5), -math.inf, "An exponent of all ones is special."),
        Case("fp32", ("01000000010010010000111111011011", 8), 3.1415927410125732),
    ),
    wrong=(
        Wrong(_no_subnormals, "Exponent 0 is subnormal"),
        Wrong(_no_leading_one, "leading one"),
        Wrong(_no_infinity, "all ones is special"),
    ),
)

# ---- resources/accumulate


def rounded_sum(terms: list[float], fraction_bits: int) -> float:
    def rounded(value: float) -> float:
        mantissa, exponent = math.frexp(value)  # value = mantissa * 2**exponent, 0.5 <= |mantissa| < 1
        return math.ldexp(round(math.ldexp(mantissa, fraction_bits + 1)), exponent - fraction_bits - 1)

    total = 0.0
    for term in terms:
        total = rounded(total + rounded(term))
    return total


def _rounded_once(terms: list[float], fraction_bits: int) -> float:
    return rounded_sum([math.fsum(terms)], fraction_bits)


def _exact(terms: list[float], fraction_bits: int) -> float:
    return math.fsum(terms)


def _cut_off(terms: list[float], fraction_bits: int) -> float:
    total = 0.0
    for term in terms:
        mantissa, exponent = math.frexp(total + term)
        total = math.ldexp(int(mantissa * 2 ** (fraction_bits + 1)), exponent - fraction_bits - 1)
    return total


ACCUMULATE = Exercise(
    name="resources/accumulate",
    title="A sum that stops",
    task="""
Write `rounded_sum(terms, fraction_bits)`: add the terms one after the other, as a machine does whose
numbers have that many fraction bits: each term is rounded when it is stored, and the total after each
addition. Round to the nearest number, and to the even one of two equally near. (Ignore the exponent's
limits.)

With 7 fraction bits (bf16), a thousand times 0.01 gives 4. At what total does it stop with 10 (fp16)?
""",
    difficulty=3,
    minutes=25,
    starter="""
import math


def rounded_sum(terms: list[float], fraction_bits: int) -> float:
    raise NotImplementedError
""",
    hints=(
        "First write a function that rounds one number. `math.frexp` splits it into mantissa and exponent.",
        "frexp's mantissa lies between 0.5 and 1: `fraction_bits + 1` bits of it count, the leading one "
        "included.",
        "Shift these bits in front of the point with `math.ldexp`, round with `round` (which rounds ties "
        "to even), and shift back.",
    ),
    solution=rounded_sum,
    remark="""
A total stops where a term is less than half a step. With 10 fraction bits and terms of 0.01 that is at
32, where numbers lie 1/32 apart. This is why totals are kept in fp32, whatever format the terms have.
""",
    cases=(
        Case("one term", ([1.5], 7), 1.5),
        Case(
            "a term is rounded when stored",
            ([0.01], 7),
            0.010009765625,
            "0.01 has no exact binary form: round the term too.",
        ),
        Case("a small term is lost", ([256.0, 0.5], 7), 256.0, "Round the total after each addition."),
        Case(
            "ties to even",
            ([256.0, 3.0], 7),
            260.0,
            "259 lies between 258 and 260; 129 is odd, 130 even: take 260.",
        ),
        Case(
            "bf16 stops at 4",
            ([0.01] * 1000, 7),
            4.0,
            "Round the total after each addition, not once at the end.",
        ),
        Case(
            "fp16",
            ([0.01] * 1000, 10),
            9.953125,
            "Round the term too: fp16 stores 0.01 as 0.01000213623046875.",
        ),
        Case("no terms", ([], 7), 0.0),
    ),
    wrong=(
        Wrong(_rounded_once, "after each addition"),
        Wrong(_exact, "ound the term too"),
        Wrong(_cut_off, "ound the term too"),
    ),
)

# ---- resources/bytes-alive


def bytes_alive(tensors: list[tuple[str, int, int]]) -> int:
    return sum({storage: nbytes for storage, nbytes, _ in tensors}.values())


def _of_elements(tensors: list[tuple[str, int, int]]) -> int:
    return sum(size for *_, size in tensors)


def _each_tensor(tensors: list[tuple[str, int, int]]) -> int:
    return sum(nbytes for _, nbytes, _ in tensors)


BYTES_ALIVE = Exercise(
    name="resources/bytes-alive",
    title="Whose bytes are these?",
    task="""
A program still refers to some tensors. Each is given as `(storage, storage_bytes, own_bytes)`: the name
of the storage that it reads, how many bytes that storage has, and the bytes of the elements it shows.
Write `bytes_alive(tensors)`: how many bytes cannot be freed.
""",
    difficulty=2,
    minutes=8,
    starter="""
def bytes_alive(tensors: list[tuple[str, int, int]]) -> int:
    raise NotImplementedError
""",
    hints=(
        "A view keeps the whole storage alive, however little of it it shows.",
        "Two views of one storage keep it once.",
        "A dictionary from storage to its bytes counts each once.",
    ),
    solution=bytes_alive,
    remark="""
This is all that counting memory takes in PyTorch: `tensor.untyped_storage()` gives the storage, and the
chapter's measurements of activations and of the peak do just this.
""",
    cases=(
        Case("one tensor", ([("a", 48, 48)],), 48),
        Case(
            "a small view of large logits",
            ([("logits", 16_777_216, 65_536)],),
            16_777_216,
            "A view keeps its whole storage.",
        ),
        Case("two views of one storage", ([("a", 48, 12), ("a", 48, 48)],), 48, "Count each storage once."),
        Case(
            "an expanded tensor",
            ([("row", 16, 16_000), ("b", 8, 8)],),
            24,
            "A stride of 0 shows many elements and holds few: a view keeps its storage, no more.",
        ),
        Case("nothing", ([],), 0),
    ),
    wrong=(Wrong(_of_elements, "keeps its whole storage"), Wrong(_each_tensor, "each storage once")),
)
