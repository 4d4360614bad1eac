"""The ops before the first block and after the last: embeddings; final norm, head and loss."""

from dataclasses import replace

from lmlib.resources.parameters import NORM, Weight
from lmlib.resources.program import Builder
from lmlib.resources.tape import Op, Parameter, Tensor

STREAM = "tokens * d_model"
_EMBEDDING_ROWS = 10  # rows that one thread of CUDA's embedding backward sums (EmbeddingBackwardKernel.cu)


def _weight(build: Builder, name: str, *dims: str, role: str = "matmul") -> Weight:
    symbols = {"d_model": build.model.d_model, "vocab_size": build.model.padded_vocab_size}
    symbols["learned_positions"] = build.model.learned_positions
    used = tuple((key, value) for key, value in symbols.items() if key in dims)
    return Weight(name, dims, used, role)


def embedding_gradient(build: Builder) -> Tensor:
    """The gradient of the token embedding, one tensor for both uses of a tied matrix."""
    weight = _weight(build, "embedding", "vocab_size", "d_model")
    return build.parameter(weight, product=False).made


def embedding_program(build: Builder, gradient: Tensor) -> Tensor:
    """Append token embedding, learned positions and dropout; return the first layer's input."""
    ids = build.tensor("input ids", 8, "tokens", kept=True)
    x = build.tensor("token embeddings", build.stream, STREAM)
    scratch: tuple[Tensor, ...] = ()
    if build.profile.device == "cuda" and build.symbols["tokens"] > 3072:
        # Sorted ids are summed in segments, in fp32.
        segments = f"(tokens // {_EMBEDDING_ROWS} + min(tokens, vocab_size))"
        scratch = (build.tensor("partial sums of the embedding's gradient", 4, f"{segments} * d_model"),)
    build.op(Op("embedding", (), (x,), (ids,), parameters=(Parameter(gradient),), backward_scratch=scratch))
    if build.model.learned_positions:
        places = build.tensor("positions", 8, "context_length")
        rows = build.tensor("position embeddings", build.stream, "context_length * d_model")
        table = _weight(build, "position embedding", "learned_positions", "d_model")
        parameters = (build.parameter(table, product=False),)
        build.op(Op("positions", (), (places,)))
        build.op(Op("position embedding", (), (rows,), (places,), parameters))
        summed = build.tensor("embeddings", build.stream, STREAM)
        build.op(Op("sum of embeddings", (x, rows), (summed,), frees=(x, rows, places), passes=True))
        x = summed
    return build.dropout("embedding dropout", x, build.stream, STREAM)


def head_program(build: Builder, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Append final norm, head and loss; return their input, the loss, and the logits if Python holds them."""
    names = ("norm.final", "norm.final.bias") if build.model.norm == "layernorm" else ("norm.final",)
    build.weights = {name: _weight(build, name, "d_model", role=NORM) for name in names}
    build.weights["head"] = _weight(build, "head", "vocab_size", "d_model")
    if build.model.head_bias:
        build.weights["head.bias"] = _weight(build, "head.bias", "vocab_size")
    x = build.tensor("last layer's output", build.stream, STREAM)
    hidden = build.norm("norm.final", x, build.stream, STREAM, "tokens")
    ends = {"fp32_ce": _cross_entropy, "chunked": _chunked, "fused": _fused}
    loss, logits = ends[build.profile.loss](build, hidden, gradient)
    build.free(hidden)
    return x, loss, logits


def _head(build: Builder, hidden: Tensor, parameter: Parameter, tokens: str) -> Tensor:
    """Logits of ``tokens`` tokens."""
    product, cast = build.narrow(hidden, "head")
    logits = build.tensor("logits", build.compute, f"{tokens} * vocab_size")
    parameters = [parameter]
    if "head.bias" in build.weights:
        parameters.append(build.parameter(build.weights["head.bias"], bias=True))
    build.op(Op("head", (product,), (logits,), (product,), tuple(parameters), late=cast))
    if cast:
        build.free(product)
    return logits


def _head_parameter(build: Builder, gradient: Tensor) -> Parameter:
    """The head's weight; its gradient is the embedding's if they are tied."""
    own = build.parameter(build.weights["head"])
    if not build.model.tied:
        return own
    return replace(own, stored=gradient) if build.profile.autocast else Parameter(gradient)


def _losses(build: Builder, logits: Tensor, tokens: str, holds: bool, named: bool = True) -> Tensor:
    """Mean cross-entropy of fp32 logits; the log-probabilities are what is kept.

    ``named``: whether a Python name refers to the logits while the loss is made; if none does, those in 16
    bits go with their cast.
    """
    source = logits
    if build.compute == 2:
        wide = build.tensor("logits in fp32", 4, f"{tokens} * vocab_size")
        source = build.unary("logits: cast", logits, wide)
        if not named:
            build.free(logits)
    probabilities = build.tensor("log-probabilities", 4, f"{tokens} * vocab_size")
    build.unary("log softmax", source, probabilities, (probabilities,))
    targets = build.tensor("target ids", 8, tokens, kept=True)
    loss, weight = build.tensor("loss", 4, "1"), build.tensor("sum of target weights", 4, "1")
    saves = (probabilities, targets, weight)
    build.op(
        Op("negative log-likelihood", (probabilities,), (loss, weight), saves, frees=(probabilities, weight))
    )
    if source is not logits:
        build.free(source)
    if not holds and (named or source is logits):
        build.free(logits)
    return loss


def _cross_entropy(build: Builder, hidden: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    logits = _head(build, hidden, _head_parameter(build, gradient), "tokens")
    holds = build.profile.holds_logits
    return _losses(build, logits, "tokens", holds), logits if holds else None


def _fused(build: Builder, hidden: Tensor, gradient: Tensor) -> tuple[Tensor, None]:
    logits = _head(build, hidden, _head_parameter(build, gradient), "tokens")
    loss = build.tensor("loss", 4, "1")
    build.op(Op("fused loss", (logits,), (loss,), (logits,), frees=(logits,), reuses=True))
    return loss, None


def _chunked(build: Builder, hidden: Tensor, gradient: Tensor) -> tuple[Tensor, None]:
    """Chunk by chunk, each a checkpoint; only views of the head's input are kept."""
    tokens = build.symbols["tokens"]
    size = -(-tokens // build.profile.loss_chunks)
    parameter = _head_parameter(build, gradient)
    if parameter.stored is not None:  # one cast for all chunks, so their gradients meet before the cast back
        joins = build.tensor("head, cast", 2, "vocab_size * d_model", kept=True)
        build.op(Op("head: cast", (), (joins,), parameters=(Parameter(parameter.stored),)))
        parameter = replace(parameter, joins=joins)
    chunks: list[Tensor] = []
    for start in range(0, tokens, size):  # the last may be shorter
        build.symbols["chunk"] = min(size, tokens - start)
        name = f"chunk {len(chunks) + 1} of the head's input"
        chunks.append(build.tensor(name, build.stream, "chunk * d_model", base=hidden))
    build.op(Op("chunks", (hidden,), tuple(chunks)))
    targets = build.tensor("target ids", 8, "tokens", kept=True)
    total: Tensor | None = None
    for number, chunk in enumerate(chunks):
        build.symbols["chunk"] = min(size, tokens - number * size)
        if hidden in build.wide:
            build.wide.add(chunk)
        build.begin()
        loss = _losses(build, _head(build, chunk, parameter, "chunk"), "chunk", holds=False, named=False)
        build.end((chunk, targets), (loss,))
        if total is None:
            total = loss
        else:
            summed = build.tensor("loss", 4, "1")
            build.op(Op("sum of losses", (total, loss), (summed,), frees=(total, loss), passes=True))
            total = summed
    assert total is not None
    build.free(*chunks)
    return total, None
