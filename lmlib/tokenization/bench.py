"""Training and encoding beside their peers: measures `book/results/<device>/tokenization.json`.

    python -m lmlib.tokenization.bench TEXT [TEXT ...]

The texts are joined. Every measurement runs in a process of its own, so that caches are cold and peak memory
is honest; the engines take turns, round by round. An interrupted run goes on where it stopped: raw samples
are noted as they come, in `--work`. All results are compared: that one engine encodes otherwise than the
others is an error.

Sizes are those of the book's claims: training on 100 MB, encoding 10 and 100 MB that the vocabulary was not
trained on, growth from 5 to 250 MB, five degenerate texts of 1 MB. `--quick` takes a twentieth of each.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmlib.tokenization import fast
from lmlib.tokenization.bench_jobs import SEPARATOR

_PACKAGES = ("numpy", "numba", "regex", "tiktoken", "tokenizers", "rustbpe", "gigatoken")
_ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
_TWO_THREADS = {**_ONE_THREAD, "RAYON_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "true"}
_MB = 1_000_000

_DEGENERATE = {
    "a": lambda n: "a" * n,
    "spaces": lambda n: " " * n,
    "line breaks": lambda n: "\n" * n,
    "random letters": lambda n: "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=n)),
    "emoji": lambda n: "\U0001f600" * (n // 4),
}

Plan = Iterator[tuple[str, dict[str, Any], dict[str, str]]]  # name of the samples, job, environment


def _installed() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


# -- the texts -----------------------------------------------------------------------------------------------


def _prepare(texts: list[Path], work: Path, scale: float) -> dict[str, Any]:
    """Write the texts that the jobs read, cut between documents; describe them."""
    whole = b"".join(path.read_bytes() for path in texts)
    separator = SEPARATOR.encode()
    need = int(150 * _MB * scale)
    if len(whole) < need:
        raise SystemExit(f"the texts hold {len(whole):,} bytes together, this needs {need:,} (or --quick)")

    def cut(size: float) -> int:
        at = whole.find(separator, int(size * _MB * scale))
        return len(whole) if at < 0 else at + len(separator)

    def write(name: str, data: bytes) -> dict[str, Any]:
        (work / name).write_bytes(data)
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    used = {
        "train": write("train.txt", whole[: cut(100)]),
        "vocabulary": write("vocabulary.txt", whole[: cut(40)]),
        "unseen 10": write("unseen-10.txt", whole[cut(45) : cut(55)]),
        "unseen 100": write("unseen-100.txt", whole[cut(45) : cut(145)]),
    }
    documents = whole.split(separator)
    random.Random(0).shuffle(documents)
    shuffled = separator.join(documents)
    while len(shuffled) < 251 * _MB * scale:
        shuffled += separator + shuffled
    for size in (5, 25, 100, 250):
        end = shuffled.find(separator, int(size * _MB * scale))
        used[f"growth {size}"] = write(f"growth-{size}.txt", shuffled[:end])
    for name, make in _DEGENERATE.items():
        used[name] = write(f"{name.replace(' ', '-')}.txt", make(int(_MB * scale)).encode())
    return {"sources": [path.name for path in texts], "bytes": len(whole), "used": used, "growth": _GROWTH}


_GROWTH = "the documents of all texts, shuffled; what goes beyond their size repeats them"


# -- the measurements ----------------------------------------------------------------------------------------


def _plan(work: Path, vocab_size: int, here: dict[str, str | None]) -> Plan:
    """One round."""

    def train(engine: str, text: str, n_workers: int = 1) -> dict[str, Any]:
        path = str(work / f"{text}.txt")
        return {
            "task": "train", "engine": engine, "text": path, "vocab_size": vocab_size, "n_workers": n_workers,
        }  # fmt: skip

    def encode(engine: str, text: str) -> dict[str, Any]:
        vocabulary = str(work / "vocabulary.json")
        return {
            "task": "encode",
            "engine": engine,
            "text": str(work / f"{text}.txt"),
            "vocabulary": vocabulary,
        }

    ours = ["numba", "python"]
    for engine in [*ours, *(peer for peer in ("tokenizers", "rustbpe", "gigatoken") if here[peer])]:
        yield f"train {engine}", train(engine, "train"), _ONE_THREAD
        if engine in (*ours, "tokenizers"):
            yield f"train {engine}, 2 workers", train(engine, "train", 2), _TWO_THREADS
    encoders = [*ours, *(peer for peer in ("tiktoken", "gigatoken") if here[peer])]
    for size in (10, 100):
        for engine in encoders:
            yield f"encode {engine}, {size} MB", encode(engine, f"unseen-{size}"), _ONE_THREAD
    for size in (5, 25, 100, 250):
        for engine in ours:
            yield f"growth train {engine}, {size} MB", train(engine, f"growth-{size}"), _ONE_THREAD
            yield f"growth encode {engine}, {size} MB", encode(engine, f"growth-{size}"), _ONE_THREAD
    for text in _DEGENERATE:
        for engine in encoders:
            yield f"{text} {engine}", encode(engine, text.replace(" ", "-")), _ONE_THREAD


def _run(job: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Run one job; its result with the wall seconds of the whole process, or {"error"}."""
    command = [sys.executable, "-m", "lmlib.tokenization.bench_jobs", json.dumps(job)]
    start = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    wall = time.perf_counter() - start
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"error": lines[-1][:200]}
    return {**json.loads(done.stdout.splitlines()[-1]), "wall": wall}


def measure(texts: list[Path], work: Path, rounds: int, vocab_size: int, quick: bool) -> dict[str, Any]:
    """Run what is still missing of all rounds; the samples, and what is to be said about them."""
    scale = 0.05 if quick else 1.0
    work.mkdir(parents=True, exist_ok=True)
    about_path, notes_path = work / "texts.json", work / "samples.jsonl"
    if not about_path.exists():
        described = _prepare(texts, work, scale)
        about_path.write_text(json.dumps(described))
    here = _installed()
    if not fast.is_compiled():
        fast.compile_kernels()
    if not (work / "vocabulary.json").exists():
        job = {
            "task": "train", "engine": "numba", "text": str(work / "vocabulary.txt"),
            "vocab_size": vocab_size, "n_workers": 1, "save": str(work / "vocabulary.json"),
        }  # fmt: skip
        if "error" in (result := _run(job, _ONE_THREAD)):
            raise SystemExit(f"training the vocabulary failed: {result['error']}")
    notes = [json.loads(line) for line in notes_path.read_text().splitlines()] if notes_path.exists() else []
    done = {(note["round"], note["name"]) for note in notes}
    with notes_path.open("a") as file:
        for number in range(rounds):
            for name, job, environment in _plan(work, vocab_size, here):
                if (number, name) in done:
                    continue
                result = _run(job, environment)
                notes.append({"round": number, "name": name, **result})
                file.write(json.dumps(notes[-1]) + "\n")
                file.flush()
                print(
                    f"round {number + 1}: {name}: {result.get('error') or format_result(result)}", flush=True
                )
    return {"notes": notes, "texts": json.loads(about_path.read_text()), "versions": here}


def format_result(result: dict[str, Any]) -> str:
    """One line for the terminal."""
    return f"{result['seconds']:.3f} s ({result['wall']:.3f} s process), {result['peak'] / _MB:.0f} MB"


# -- the record ----------------------------------------------------------------------------------------------


def record(measured: dict[str, Any], command: str) -> dict[str, Any]:
    """The measurements in the form of the book's records."""
    samples: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    digests: dict[str, set[str]] = {}
    for note in measured["notes"]:
        name = note["name"]
        if "error" in note:
            failures[name] = note["error"]
            continue
        quantities = {"": ("s", note["wall" if "train" in name else "seconds"])}
        if "train" in name:
            quantities[", call"] = ("s", note["seconds"])
        quantities[", peak memory"] = ("B", note["peak"])
        for suffix, (unit, value) in quantities.items():
            samples.setdefault(name + suffix, {"unit": unit, "values": []})["values"].append(value)
        for engine in ("numba", "python", "tiktoken", "gigatoken"):
            if engine in name.split(",")[0].split() and note["digest"]:
                same = name.replace(f" {engine}", "").replace(", 2 workers", "")
                digests.setdefault(same, set()).add(note["digest"])
    differing = sorted(name for name, found in digests.items() if len(found) > 1)
    if differing:
        raise SystemExit(f"the engines disagree on: {', '.join(differing)}; nothing written")
    about = {
        "texts": measured["texts"],
        "versions": {**measured["versions"], "python": platform.python_version()},
        "failures": failures,
        "training": "seconds of the whole process, imports included, compiled code loaded from disk; "
        "', call' is the training call alone; HF tokenizers reads its file by lines",
        "encoding": "one call on the whole text in a fresh process, caches empty, after one short sentence; "
        "the vocabulary was trained on other parts of the text",
        "checked": "merges and ids are equal over all engines that give them",
    }
    return {
        "device": _device(),
        "driver": None,
        "torch": None,
        "triton": None,
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "command": command,
        "samples": samples,
        "about": about,
    }


def _device() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main(arguments: list[str]) -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(
        prog="python -m lmlib.tokenization.bench", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "texts", nargs="+", type=Path, help=f"UTF-8 files, documents separated by {SEPARATOR}"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for cut texts and noted samples")
    parser.add_argument("--device", default=f"cpu-{os.cpu_count()}core", help="folder under book/results/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument(
        "--quick", action="store_true", help="a twentieth of the text; writes into --work only"
    )
    options = parser.parse_args(arguments)
    work = options.work / ("quick" if options.quick else "full")
    measured = measure(options.texts, work, options.rounds, options.vocab_size, options.quick)
    names = " ".join(path.name for path in options.texts)
    command = f"python -m lmlib.tokenization.bench {names} --rounds {options.rounds}"
    result = record(measured, command + (" --quick" if options.quick else ""))
    results = Path(__file__).resolve().parents[2] / "book" / "results" / options.device
    target = (work if options.quick else results) / "tokenization.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, target)
    print(f"wrote {target}")


if __name__ == "__main__":
    main(sys.argv[1:])
