"""What `bench` measures, each in a process of its own: `python -m lmlib.tokenization.bench_jobs JOB`.

JOB is JSON: {"task", "engine", "text", ...}. The answer is one line of JSON: seconds of the call itself, peak
resident memory in bytes, and a digest of the result, by which the caller sees that engines agree. Peers are
imported inside their functions, so that no process carries what it doesn't measure.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SEPARATOR = "<|endoftext|>"
Result = tuple[float, str]  # seconds, digest


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _merges_digest(tokens: list[bytes]) -> str:
    return _digest(b"\0".join(tokens))


# -- training ------------------------------------------------------------------------------------------------


def _train_ours(job: dict[str, Any], implementation: str) -> Result:
    from lmlib.tokenization import train_bpe

    start = time.perf_counter()
    tokenizer = train_bpe(
        Path(job["text"]),
        job["vocab_size"],
        [SEPARATOR],
        n_workers=job["n_workers"],
        implementation=implementation,  # type: ignore[arg-type]
        progress=False,
    )
    seconds = time.perf_counter() - start
    if "save" in job:
        _save(job["save"], [tokenizer.vocab[i] for i in range(256)], tokenizer.merges)
    return seconds, _merges_digest([left + right for left, right in tokenizer.merges])


def train_numba(job: dict[str, Any]) -> Result:
    """`train_bpe` on the fast path."""
    return _train_ours(job, "numba")


def train_python(job: dict[str, Any]) -> Result:
    """`train_bpe` on the readable path."""
    return _train_ours(job, "python")


def train_tokenizers(job: dict[str, Any]) -> Result:
    """Hugging Face tokenizers: byte-level BPE, GPT-2's pattern. It reads files by lines."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    start = time.perf_counter()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=job["vocab_size"],
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([job["text"]], trainer)
    return time.perf_counter() - start, str(tokenizer.get_vocab_size())


def train_rustbpe(job: dict[str, Any]) -> Result:
    """rustbpe with GPT-2's pattern, from a stream of documents."""
    import rustbpe

    from lmlib.tokenization.patterns import GPT2

    start = time.perf_counter()
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(_documents(job["text"]), job["vocab_size"] - 1, pattern=GPT2)
    seconds = time.perf_counter() - start
    return seconds, str(len(tokenizer.get_mergeable_ranks()))


def train_gigatoken(job: dict[str, Any]) -> Result:
    """gigatoken's trainer (GPT-2's pattern is the only one it has)."""
    import gigatoken

    start = time.perf_counter()
    source = gigatoken.TextFileSource([job["text"]], separator=SEPARATOR)
    gigatoken.train_bpe(source, job["vocab_size"], [SEPARATOR])
    return time.perf_counter() - start, ""


def _documents(path: str) -> Iterator[str]:
    rest = ""
    with open(path, encoding="utf-8", newline="") as file:
        while block := file.read(1 << 20):
            *whole, rest = (rest + block).split(SEPARATOR)
            yield from whole
    yield rest


# -- encoding ------------------------------------------------------------------------------------------------


def _save(path: str, alphabet: list[bytes], merges: Any) -> None:
    """The vocabulary that all encoders get: merges as JSON, and the same as tiktoken's ranks beside it."""
    pairs = [[left.decode("latin-1"), right.decode("latin-1")] for left, right in merges]
    Path(path).write_text(json.dumps(pairs))
    tokens = [*alphabet, *(left + right for left, right in merges)]
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    Path(path).with_suffix(".tiktoken").write_text("".join(lines))


def _merges(job: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    pairs = json.loads(Path(job["vocabulary"]).read_text())
    return [(left.encode("latin-1"), right.encode("latin-1")) for left, right in pairs]


def _ranks(job: dict[str, Any]) -> dict[bytes, int]:
    tokens = [bytes([b]) for b in range(256)] + [left + right for left, right in _merges(job)]
    return {token: rank for rank, token in enumerate(tokens)}


def _time_encoding(job: dict[str, Any], encode: Callable[[str], Any]) -> Result:
    """One call, with cold caches: the sentence before it only loads code and compiles regular expressions."""
    import numpy as np

    encode("A first call, before the clock starts." + SEPARATOR)
    text = Path(job["text"]).read_bytes().decode()
    start = time.perf_counter()
    ids = encode(text)
    seconds = time.perf_counter() - start
    return seconds, _digest(np.asarray(ids, dtype=np.uint32).data)


def _encode_ours(job: dict[str, Any], implementation: str) -> Result:
    from lmlib.tokenization import Tokenizer

    merges = _merges(job)
    vocab = {rank: token for token, rank in _ranks(job).items()}
    tokenizer = Tokenizer(vocab, merges, [SEPARATOR], implementation=implementation)  # type: ignore[arg-type]
    return _time_encoding(job, lambda text: tokenizer.encode_to_numpy(text, allowed_special="all"))


def encode_numba(job: dict[str, Any]) -> Result:
    """`Tokenizer.encode_to_numpy` on the fast path."""
    return _encode_ours(job, "numba")


def encode_python(job: dict[str, Any]) -> Result:
    """`Tokenizer.encode_to_numpy` on the readable path."""
    return _encode_ours(job, "python")


def encode_tiktoken(job: dict[str, Any]) -> Result:
    """tiktoken's `encode_to_numpy`."""
    import tiktoken

    from lmlib.tokenization.patterns import GPT2

    ranks = _ranks(job)
    encoding = tiktoken.Encoding(
        "bench", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={SEPARATOR: len(ranks)}
    )
    return _time_encoding(job, lambda text: encoding.encode_to_numpy(text, allowed_special="all"))


def encode_gigatoken(job: dict[str, Any]) -> Result:
    """gigatoken's `encode`."""
    import gigatoken

    tokenizer = gigatoken.Tokenizer.from_tiktoken(
        Path(job["vocabulary"]).with_suffix(".tiktoken"),
        pretokenizer="gpt2",
        special_tokens={SEPARATOR: len(_ranks(job))},
    )
    return _time_encoding(job, tokenizer.encode)


def _peak_memory(workers: int) -> int:
    """Peak resident bytes of this process and, on top, of its worker processes, each taken as the largest.

    Linux keeps the peak of the process before `exec` in ru_maxrss, so VmHWM is read where there is one.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    status = Path("/proc/self/status")
    if status.exists():
        own = next(int(x.split()[1]) * 1024 for x in status.read_text().splitlines() if "VmHWM" in x)
    return own + workers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


def main(argument: str) -> None:
    """Run one job and print its result."""
    job = json.loads(argument)
    seconds, digest = globals()[f"{job['task']}_{job['engine']}"](job)
    processes = job.get("n_workers", 1) if job["engine"] == "python" else 1  # the others' workers are threads
    peak = _peak_memory(processes if processes > 1 else 0)
    print(json.dumps({"seconds": seconds, "digest": digest, "peak": peak}), flush=True)
    os._exit(0)  # the wall time ends with the result, not with freeing it


if __name__ == "__main__":
    main(sys.argv[1])
