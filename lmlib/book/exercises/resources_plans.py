"""Exercises on plans: parameters, FLOPs, cache, time, utilisation, the peak, and activations."""

import math

from lmlib.book.exercises.machinery import Case, Exercise, Wrong

LLAMA_3_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
LLAMA_2_7B = LLAMA_3_8B | {"num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000}
LLAMA_32_1B = LLAMA_3_8B | {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "intermediate_size": 8192,
    "tie_word_embeddings": True,
}
# One layer of Qwen3's shape, whose heads are wider together than the model, with a vocabulary of ten.
WIDE_HEADS = LLAMA_3_8B | {
    "hidden_size": 1024,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "intermediate_size": 3072,
    "head_dim": 128,
    "vocab_size": 10,
}

# ---- resources/count-parameters


def count_parameters(config: dict) -> int:
    d, f, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    n_heads, n_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", d // n_heads)
    attention = 2 * d * n_heads * head_dim + 2 * d * n_kv_heads * head_dim
    layer = attention + 3 * d * f + 2 * d
    embeddings = vocab * d * (1 if config["tie_word_embeddings"] else 2)
    return config["num_hidden_layers"] * layer + embeddings + d


def _four_squares(config: dict) -> int:
    return count_parameters(config | {"num_key_value_heads": config["num_attention_heads"]})


def _one_embedding(config: dict) -> int:
    return count_parameters(config | {"tie_word_embeddings": True})


def _always_two(config: dict) -> int:
    return count_parameters(config | {"tie_word_embeddings": False})


def _no_head_dim(config: dict) -> int:
    return count_parameters({key: value for key, value in config.items() if key != "head_dim"})


COUNT_PARAMETERS = Exercise(
    name="resources/count-parameters",
    title="Count a Llama",
    task="""
Write `count_parameters(config)` for models of the Llama family. `config` holds what their `config.json`
does: `hidden_size`, `num_hidden_layers`, `num_attention_heads`, `num_key_value_heads`,
`intermediate_size`, `vocab_size`, `tie_word_embeddings`, and perhaps `head_dim` (otherwise it is
`hidden_size` over the heads).

A block has projections for queries, keys, values and output, three matrices of a gated feed-forward
layer, and two norms with a weight for each of the `hidden_size` numbers. There are no biases. After the
last block comes one more norm, then the head, which is the embedding's own matrix where they are tied.
""",
    difficulty=3,
    minutes=20,
    starter="""
def count_parameters(config: dict) -> int:
    raise NotImplementedError
""",
    hints=(
        "Queries and output are `hidden_size` by `heads * head_dim`; keys and values have the key/value "
        "heads only.",
        "A gated feed-forward layer has three matrices of `hidden_size` by `intermediate_size`.",
        "Tied: one matrix of `vocab_size` by `hidden_size`; otherwise two.",
    ),
    solution=count_parameters,
    remark="""
The results are the published counts to the unit. Three traps, each of which a widely used calculator
falls into: grouped keys and values, a head that is not tied, and heads that are wider together than the
model.
""",
    cases=(
        Case(
            "Llama 2 7B",
            (LLAMA_2_7B,),
            6_738_415_616,
            "Not tied: embedding and head are two matrices. Do not forget the norms.",
        ),
        Case(
            "Llama 3 8B",
            (LLAMA_3_8B,),
            8_030_261_248,
            "Keys and values have 8 heads here, not 32.",
        ),
        Case("Llama 3.2 1B", (LLAMA_32_1B,), 1_235_814_400, "Tied: the head is the embedding's matrix."),
        Case(
            "heads wider than the model",
            (WIDE_HEADS,),
            15_752_192,
            "Where head_dim is given, use it: 16 heads of 128 are 2,048, not 1,024.",
        ),
    ),
    wrong=(
        Wrong(_four_squares, "8 heads here"),
        Wrong(_one_embedding, "two matrices"),
        Wrong(_always_two, "the embedding's matrix"),
        Wrong(_no_head_dim, "use it"),
    ),
)

# ---- resources/matmul-flops


def matmul_flops(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    if a[-1] != b[-2]:
        raise ValueError(f"inner sizes differ: {a[-1]} and {b[-2]}")
    return 2 * math.prod(a) * b[-1]


def _no_two(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return matmul_flops(a, b) // 2


def _no_batch(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return matmul_flops(a[-2:], b[-2:])


def _unchecked(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return 2 * math.prod(a) * b[-1]


MATMUL_FLOPS = Exercise(
    name="resources/matmul-flops",
    title="FLOPs of a product",
    task="""
Write `matmul_flops(a, b)`: the FLOPs of the product of two tensors, given their shapes. The first may
have batch dimensions in front; the second has none, or the same. An addition and a multiplication are
two FLOPs. Shapes that cannot be multiplied raise a `ValueError`.
""",
    difficulty=2,
    minutes=10,
    starter="""
import math


def matmul_flops(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    raise NotImplementedError
""",
    hints=(
        "Each number of the result is a sum of as many products as the inner size.",
        "2 · m · k · n for matrices; every batch dimension of the first multiplies that.",
        "The inner sizes are the last of `a` and the last but one of `b`.",
    ),
    solution=matmul_flops,
    remark="""
With batch and sequence in front, `(B, T, D) @ (D, F)` costs 2BTDF: two FLOPs for each weight and token.
""",
    cases=(
        Case(
            "two matrices", ((2, 3), (3, 5)), 60, "2 · m · k · n: an addition comes with each multiplication."
        ),
        Case("one column", ((4096, 4096), (4096, 1)), 33_554_432),
        Case(
            "a batch of sequences", ((4, 256, 512), (512, 2048)), 2_147_483_648, "Batch dimensions multiply."
        ),
        Case(
            "scores of all heads",
            ((4, 8, 256, 64), (4, 8, 64, 256)),
            268_435_456,
            "Batch dimensions multiply, once.",
        ),
        Case(
            "shapes that do not fit", ((2, 3), (4, 5)), raises=ValueError, message="Compare the inner sizes."
        ),
    ),
    wrong=(
        Wrong(_no_two, "an addition comes"),
        Wrong(_no_batch, "Batch dimensions"),
        Wrong(_unchecked, "Compare the inner sizes"),
    ),
)

# ---- resources/training-flops


def training_flops(config: dict, tokens: int, length: int) -> int:
    d, n_heads, n_layers = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
    head_dim = config.get("head_dim", d // n_heads)
    keys = config["num_key_value_heads"] * head_dim
    layer = 2 * d * n_heads * head_dim + 2 * d * keys + 3 * d * config["intermediate_size"]
    multiplied = n_layers * layer + config["vocab_size"] * d
    attention = 6 * n_layers * n_heads * head_dim * length  # 12 for every pair, of which the mask leaves half
    return tokens * (6 * multiplied + attention)


def _with_embedding(config: dict, tokens: int, length: int) -> int:
    return training_flops(config, tokens, length) + 6 * tokens * config["vocab_size"] * config["hidden_size"]


def _no_attention(config: dict, tokens: int, length: int) -> int:
    return training_flops(config, tokens, 0)


def _all_pairs(config: dict, tokens: int, length: int) -> int:
    return training_flops(config, tokens, 2 * length)


TRAINING_FLOPS = Exercise(
    name="resources/training-flops",
    title="Better than 6ND",
    task="""
Write `training_flops(config, tokens, length)`: the FLOPs of training a model of the Llama family on
`tokens` tokens in sequences of `length`. Count two FLOPs forward and four backward for each token and
each weight *that it is multiplied with*: norms do not count, the input embedding is looked up, the head
is multiplied even where it is tied. Add attention's two products, with half of the pairs, since the
mask forbids the rest.

`config` is as in the exercise before. By what factor does 6ND miss the truth for Llama 3 8B at 8,192
tokens?
""",
    difficulty=3,
    minutes=25,
    starter="""
def training_flops(config: dict, tokens: int, length: int) -> int:
    raise NotImplementedError
""",
    hints=(
        "The matrices of a block, times layers, plus `vocab_size * hidden_size` for the head, once, tied "
        "or not.",
        "Scores: for each token, head and earlier position, 2 · head_dim FLOPs forward; the mix of values "
        "costs the same.",
        "So attention costs 12 · layers · heads · head_dim · length a token with all pairs, training "
        "included, and half of it here.",
    ),
    solution=training_flops,
    remark="""
For Llama 3 8B at 8,192 tokens it is 1.068 times 6ND: 6.5 % less for the embedding that is only looked
up, 13.4 % more for attention.
""",
    cases=(
        Case(
            "hardly any context",
            (LLAMA_3_8B, 1, 2),
            45_029_523_456,
            "The input embedding is looked up, not multiplied. Attention: half of 12 · layers · heads · "
            "head_dim · length for each token.",
        ),
        Case(
            "Llama 3 8B, one full sequence",
            (LLAMA_3_8B, 8192, 8192),
            421_645_529_382_912,
            "Attention: half of 12 · layers · heads · head_dim · length for each token.",
        ),
        Case(
            "a tied head",
            (LLAMA_32_1B, 4096, 4096),
            33_668_248_633_344,
            "The head is multiplied even where it is tied.",
        ),
        Case("heads wider than the model", (WIDE_HEADS, 100, 64), 9_521_971_200),
    ),
    wrong=(
        Wrong(_with_embedding, "looked up"),
        Wrong(_no_attention, "Attention"),
        Wrong(_all_pairs, "half of 12"),
    ),
)

# ---- resources/kv-bytes


def cache_bytes(windows: list[int | None], n_kv_heads: int, head_dim: int, tokens: int, batch: int) -> int:
    kept = sum(tokens if window is None else min(tokens, window) for window in windows)
    return 2 * 2 * n_kv_heads * head_dim * kept * batch


def _keys_only(windows: list[int | None], n_kv_heads: int, head_dim: int, tokens: int, batch: int) -> int:
    return cache_bytes(windows, n_kv_heads, head_dim, tokens, batch) // 2


def _windows_ignored(
    windows: list[int | None], n_kv_heads: int, head_dim: int, tokens: int, batch: int
) -> int:
    return cache_bytes([None] * len(windows), n_kv_heads, head_dim, tokens, batch)


def _windows_full(windows: list[int | None], n_kv_heads: int, head_dim: int, tokens: int, batch: int) -> int:
    return 4 * n_kv_heads * head_dim * batch * sum(tokens if w is None else w for w in windows)


KV_BYTES = Exercise(
    name="resources/kv-bytes",
    title="The cache of many conversations",
    task="""
Write `cache_bytes(windows, n_kv_heads, head_dim, tokens, batch)`: bytes of the key/value cache in bf16,
after `tokens` tokens in each of `batch` conversations. `windows` has an entry for each layer: `None` if
it sees all tokens, otherwise how many of the last ones it sees, and so keeps.
""",
    difficulty=2,
    minutes=10,
    starter="""
def cache_bytes(
    windows: list[int | None], n_kv_heads: int, head_dim: int, tokens: int, batch: int
) -> int:
    raise NotImplementedError
""",
    hints=(
        "A key and a value, each of `n_kv_heads * head_dim` numbers of 2 bytes, for each token kept in "
        "each layer.",
        "A layer with a window keeps at most that many tokens.",
        "It keeps no more than there are: the smaller of window and tokens.",
    ),
    solution=cache_bytes,
    remark="""
Gemma 2 alternates: every second layer has a window of 4,096 tokens. At 8,192 tokens that saves a
quarter of the cache, at 131,072 nearly half. Calculators that ignore it charge twice.
""",
    cases=(
        Case(
            "one token, one layer", ([None], 8, 128, 1, 1), 4096, "A key and a value, of 2 bytes each number."
        ),
        Case("Llama 3 8B at 8,192", ([None] * 32, 8, 128, 8192, 1), 1_073_741_824),
        Case("sixteen conversations", ([None] * 32, 8, 128, 8192, 16), 17_179_869_184),
        Case(
            "every second layer has a window",
            ([4096, None] * 21, 8, 256, 8192, 1),
            2_113_929_216,
            "A layer with a window keeps the window and no more.",
        ),
        Case(
            "fewer tokens than the window",
            ([4096, None], 8, 256, 100, 1),
            1_638_400,
            "It keeps no more than there are.",
        ),
    ),
    wrong=(
        Wrong(_keys_only, "A key and a value"),
        Wrong(_windows_ignored, "keeps the window"),
        Wrong(_windows_full, "no more than there are"),
    ),
)

# ---- resources/how-long


def days(parameters: float, tokens: float, n_gpus: int, peak: float, mfu: float) -> float:
    return 6 * parameters * tokens / (n_gpus * peak * mfu) / 86400


def _hours(parameters: float, tokens: float, n_gpus: int, peak: float, mfu: float) -> float:
    return days(parameters, tokens, n_gpus, peak, mfu) * 24


def _forward_only(parameters: float, tokens: float, n_gpus: int, peak: float, mfu: float) -> float:
    return days(parameters, tokens, n_gpus, peak, mfu) / 3


def _at_peak(parameters: float, tokens: float, n_gpus: int, peak: float, mfu: float) -> float:
    return days(parameters, tokens, n_gpus, peak, 1.0)


HOW_LONG = Exercise(
    name="resources/how-long",
    title="How long for 70B on 15T tokens?",
    task="""
Write `days(parameters, tokens, n_gpus, peak, mfu)`: days of training by the rule 6ND, on `n_gpus` GPUs
whose peak is `peak` FLOP/s each, of which the share `mfu` is used.

Then answer without running it: how many days for 70B parameters on 15T tokens with 1,024 H100 (989.4e12
FLOP/s dense in bf16) at 40 %?
""",
    difficulty=1,
    minutes=5,
    starter="""
def days(parameters: float, tokens: float, n_gpus: int, peak: float, mfu: float) -> float:
    raise NotImplementedError
""",
    hints=(
        "FLOPs of the run: 6 · parameters · tokens.",
        "FLOP/s of the machine: GPUs · peak · MFU.",
        "A day has 86,400 seconds.",
    ),
    solution=days,
    remark="""
6.3e24 FLOPs at 4.05e17 FLOP/s are 1.55e7 seconds, 180 days. With twice the GPUs it is half, as long as
the MFU holds.
""",
    cases=(
        Case(
            "one FLOP/s",
            (1, 14400, 1, 1.0, 1.0),
            1.0,
            "6 FLOPs for each parameter and token; a day has 86,400 seconds.",
        ),
        Case(
            "70B on 15T",
            (70e9, 15e12, 1024, 989.4e12, 0.4),
            179.92642584,
            "Only the share `mfu` of the peak is used.",
        ),
        Case("GPT-2 on one card", (124e6, 10e9, 1, 165.2e12, 0.3), 1.73751233),
    ),
    wrong=(
        Wrong(_hours, "86,400 seconds"),
        Wrong(_forward_only, "6 FLOPs"),
        Wrong(_at_peak, "Only the share"),
    ),
)

# ---- resources/mfu


def mfu(flops_per_token: float, tokens_per_second: float, n_gpus: int, dense_peak: float) -> float:
    return flops_per_token * tokens_per_second / (n_gpus * dense_peak)


def _sparse(flops_per_token: float, tokens_per_second: float, n_gpus: int, dense_peak: float) -> float:
    return mfu(flops_per_token, tokens_per_second, n_gpus, 2 * dense_peak)


def _one_gpu(flops_per_token: float, tokens_per_second: float, n_gpus: int, dense_peak: float) -> float:
    return mfu(flops_per_token, tokens_per_second, 1, dense_peak)


MFU = Exercise(
    name="resources/mfu",
    title="Of what, exactly?",
    task="""
Write `mfu(flops_per_token, tokens_per_second, n_gpus, dense_peak)`: the share of the machine's peak
that goes into FLOPs which the model needs. `tokens_per_second` is that of all GPUs together.

The report of Llama 3 405B gives 400 TFLOP/s a GPU and an MFU of 41 % on 16,384 H100. Which peak did
they divide by?
""",
    difficulty=1,
    minutes=5,
    starter="""
def mfu(flops_per_token: float, tokens_per_second: float, n_gpus: int, dense_peak: float) -> float:
    raise NotImplementedError
""",
    hints=(
        "FLOPs a second that the model needs: FLOPs per token times tokens per second.",
        "FLOPs a second that the machine could do: GPUs times peak.",
        "Data sheets print a second peak, for sparse matrices, that is twice as high. It is not meant here.",
    ),
    solution=mfu,
    remark="""
400 over 0.41 is 976 TFLOP/s; the data sheet's dense peak is 989.4, which gives 40.4 %. Rounding
explains the rest. By the sparse peak of 1,979 it would be 20 %.
""",
    cases=(
        Case("half of the peak", (1e9, 500.0, 1, 1e12), 0.5, "Divide by the dense peak, once."),
        Case(
            "many GPUs",
            (6e9, 1e6, 100, 1e14),
            0.6,
            "The speed is that of all GPUs together: divide by all their peaks.",
        ),
        Case("a real run", (2.812e11, 272.8e9 / 86400, 2048, 989.4e12), 0.43817145),
    ),
    wrong=(Wrong(_sparse, "dense peak, once"), Wrong(_one_gpu, "all GPUs together")),
)

# ---- resources/roofline-time


def roofline_time(flops: float, nbytes: float, peak: float, bandwidth: float) -> tuple[float, str]:
    computing, moving = flops / peak, nbytes / bandwidth
    return max(computing, moving), "compute" if computing >= moving else "memory"


def _added(flops: float, nbytes: float, peak: float, bandwidth: float) -> tuple[float, str]:
    return flops / peak + nbytes / bandwidth, roofline_time(flops, nbytes, peak, bandwidth)[1]


def _swapped(flops: float, nbytes: float, peak: float, bandwidth: float) -> tuple[float, str]:
    time, bound = roofline_time(flops, nbytes, peak, bandwidth)
    return time, "memory" if bound == "compute" else "compute"


ROOFLINE_TIME = Exercise(
    name="resources/roofline-time",
    title="Under the roof",
    task="""
Write `roofline_time(flops, nbytes, peak, bandwidth)`: the least time in seconds that an operation takes
which does `flops` FLOPs and moves `nbytes` bytes, when both go on at once, and what bounds it:
`"compute"` (also if both take equally long) or `"memory"`. Return both as a tuple.

From which batch on is a product with a weight matrix in bf16 bound by compute on an H100 (989.4e12
FLOP/s, 3.35e12 bytes/s)?
""",
    difficulty=2,
    minutes=8,
    starter="""
def roofline_time(flops: float, nbytes: float, peak: float, bandwidth: float) -> tuple[float, str]:
    raise NotImplementedError
""",
    hints=(
        "Two times: FLOPs over peak, bytes over bandwidth.",
        "They overlap, so the longer one counts, not their sum.",
        "The bound is whatever takes longer.",
    ),
    solution=roofline_time,
    remark="""
With b columns each weight (2 bytes) gives 2b FLOPs, so about b FLOPs per byte; the ridge of an H100 is
at 295. A bit more is needed, since inputs and results are moved as well.
""",
    cases=(
        Case(
            "compute", (10.0, 1.0, 1.0, 1.0), (10.0, "compute"), "The longer of the two times, not their sum."
        ),
        Case("memory", (1.0, 10.0, 1.0, 1.0), (10.0, "memory"), "What takes longer is the bound."),
        Case("on the ridge", (6.0, 2.0, 3.0, 1.0), (2.0, "compute")),
        Case("one column of a matrix", (2.0**25, 2.0**25, 989.4e12, 3.35e12), (2.0**25 / 3.35e12, "memory")),
    ),
    wrong=(Wrong(_added, "not their sum"), Wrong(_swapped, "got 'memory'")),
)

# ---- resources/activation-bytes


def activation_bytes(config: dict, batch: int, length: int, recompute: bool) -> int:
    d, f, n_heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim", d // n_heads)
    queries, keys = n_heads * head_dim, config["num_key_value_heads"] * head_dim
    norm = 2 * d + 4  # its input in bf16, and one number in fp32
    attention = 2 * d + 2 * queries + 2 * (2 * keys) + 2 * queries + 4 * n_heads
    feed_forward = 2 * d + 4 * (2 * f)
    layer = 2 * d if recompute else 2 * norm + attention + feed_forward
    tail = norm + 2 * d + 4 * config["vocab_size"]
    return batch * length * (config["num_hidden_layers"] * layer + tail)


def _two_wide(config: dict, batch: int, length: int, recompute: bool) -> int:
    missing = 4 * config["intermediate_size"] * config["num_hidden_layers"]
    return activation_bytes(config, batch, length, recompute) - (0 if recompute else batch * length * missing)


def _no_loss(config: dict, batch: int, length: int, recompute: bool) -> int:
    return activation_bytes(config, batch, length, recompute) - 4 * batch * length * config["vocab_size"]


def _all_heads(config: dict, batch: int, length: int, recompute: bool) -> int:
    return activation_bytes(
        config | {"num_key_value_heads": config["num_attention_heads"]}, batch, length, recompute
    )


def _all_forgotten(config: dict, batch: int, length: int, recompute: bool) -> int:
    whole = activation_bytes(config, batch, length, recompute)
    inputs = 2 * config["hidden_size"] * config["num_hidden_layers"] * batch * length
    return whole - inputs if recompute else whole


ACTIVATION_BYTES = Exercise(
    name="resources/activation-bytes",
    title="Activations of a Llama, to the byte",
    task="""
Write `activation_bytes(config, batch, length, recompute)`: the bytes that autograd keeps between the
forward and the backward pass of a Llama in bf16 with fused kernels. For each token, a block keeps

- for each of its two norms the input, and one number in fp32;
- the input that queries, keys and values share;
- rotated queries, rotated keys, values, and attention's output;
- for each head one number in fp32 (the logarithm of its softmax's sum);
- the input that gate and up projection share, and four tensors of the inner width: both projections'
  results, the activation of the gate, and the product.

With `recompute`, each block keeps its input only. After the blocks come the final norm (as above), the
head's input, and the loss, which keeps a number in fp32 for every token of the vocabulary. Token ids,
which are in the batch anyway, and single numbers are left out.

When it passes, compare with PyTorch: build the chapter's network in bf16 and count what its hooks see.
""",
    difficulty=5,
    minutes=60,
    starter="""
def activation_bytes(config: dict, batch: int, length: int, recompute: bool) -> int:
    raise NotImplementedError
""",
    hints=(
        "Write the bytes of one token in one block first; everything is proportional to tokens.",
        "bf16 numbers have 2 bytes. Queries and output have `heads * head_dim` numbers, keys and values "
        "fewer.",
        "For Llama 3 8B a block keeps 168,072 bytes a token.",
        "After the blocks: 2d + 4 for the norm, 2d for the head's input, 4 bytes for each token of the "
        "vocabulary.",
    ),
    solution=activation_bytes,
    remark="""
8d + 4a + 4k + 8f + 4H + 8 bytes for each token and block, where a and k are the widths of all query
heads and of all key/value heads. The four tensors of the inner width are two thirds of it, which is why
recomputing just the activation function already helps.
""",
    cases=(
        Case(
            "one token",
            (LLAMA_3_8B | {"num_hidden_layers": 1, "vocab_size": 0}, 1, 1, False),
            184_460,
            "One block keeps 168,072 bytes: four tensors of the inner width, keys and values of 8 heads. "
            "16,388 follow it.",
        ),
        Case(
            "the loss",
            (LLAMA_3_8B, 1, 1, False),
            5_907_716,
            "The loss keeps 4 bytes for each token of the vocabulary.",
        ),
        Case("8,192 tokens", (LLAMA_3_8B, 1, 8192, False), 48_396_009_472),
        Case("two sequences of half the length", (LLAMA_3_8B, 2, 4096, False), 48_396_009_472),
        Case(
            "recomputing",
            (LLAMA_3_8B, 1, 8192, True),
            6_484_426_752,
            "Each block still keeps its input, and the tail stays.",
        ),
        Case("heads wider than the model", (WIDE_HEADS, 2, 100, False), 9_853_600),
    ),
    wrong=(
        Wrong(_two_wide, "four tensors"),
        Wrong(_no_loss, "The loss keeps"),
        Wrong(_all_heads, "keys and values of 8 heads"),
        Wrong(_all_forgotten, "still keeps its input"),
    ),
)
