"""Peak of training memory on a GPU beside the predicted one, for models from 0.1B to 8B.

    python -m lmlib.book.measure.memory_on_gpu --out memory.json --commit $(git rev-parse --short HEAD)

Each case builds the reference transformer under its profile, trains it for a few steps with fused AdamW, and
notes what PyTorch's allocator counted. ``--device cpu --tiny`` runs the same code on small models, with a
live count of bytes in the allocator's place.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from lmlib.book.measure.reference import Reference, precision
from lmlib.book.measure.trackers import LiveBytes
from lmlib.book.records import parse
from lmlib.resources.memory import memory
from lmlib.resources.model import Attention, Model
from lmlib.resources.optimizer import Optimizer
from lmlib.resources.presets import load
from lmlib.resources.profile import Profile

STEPS = 3
Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """One training run: a preset's name, how it is trained, and the batch."""

    model: str
    batch_size: int
    context_length: int
    profile: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The case in words, unique among cases."""
        choices = [f"{key}={value}" for key, value in self.profile.items()]
        return " ".join([self.model, f"{self.batch_size}x{self.context_length}", *choices])


def _case(model: str, batch_size: int, context_length: int, **profile: Any) -> Case:
    return Case(model, batch_size, context_length, profile)


CASES = (
    _case("gpt2", 8, 1024),
    _case("gpt2", 16, 1024, precision="autocast", dropout=True),
    _case("gpt2", 4, 1024, precision="autocast", attention="eager", dropout=True),
    _case("gpt2", 32, 512, recompute="full", loss="chunked"),
    _case("gpt2", 8, 1024, precision="fp32", attention="math"),
    _case("qwen3-0.6b", 4, 2048),
    _case("qwen3-0.6b", 2, 4096, precision="autocast", recompute="full"),
    _case("qwen3-0.6b", 4, 4096, loss="chunked"),
    _case("qwen3-0.6b", 4, 4096, precision="autocast", loss="chunked"),
    _case("gpt2-large", 4, 1024, precision="autocast"),
    _case("llama3.2-1b", 4, 2048),
    _case("llama3.2-1b", 1, 8192, precision="autocast"),
    _case("llama3.2-1b", 4, 2048, norm="manual", attention="eager"),
    _case("llama3.2-1b", 4, 4096, recompute="core_act", loss="chunked"),
    _case("llama3.2-1b", 8, 2048, precision="autocast", recompute="core", holds_logits=True),
    _case("llama3.2-3b", 2, 2048, precision="autocast", loss="chunked"),
    _case("llama3.2-3b", 4, 4096, precision="autocast", recompute="full"),
    _case("llama3.2-3b", 2, 4096),
    _case("llama3-8b", 1, 2048),
    _case("llama3-8b", 1, 8192, recompute="full"),
    _case("llama3-8b", 4, 8192, recompute="full", loss="chunked", loss_chunks=16),
    _case("llama3-8b", 2, 4096, loss="chunked", norm="manual"),
    _case("llama3-8b", 1, 4096, recompute="core"),
)


def described(case: Case, device: str, tiny: bool) -> tuple[Model, Profile]:
    """The model and profile of a case; ``tiny`` narrows the model to what a CPU trains in a second."""
    model = load(case.model)
    if tiny:
        layer = model.layers[0]
        assert isinstance(layer.attention, Attention)
        grouped = layer.attention.n_kv_heads < layer.attention.n_heads
        attention = replace(layer.attention, n_heads=4, n_kv_heads=2 if grouped else 4, head_dim=16)
        layer = replace(layer, attention=attention, mlp=replace(layer.mlp, d_ff=128))
        model = replace(model, d_model=64, vocab_size=512, layers=(layer,) * 2)
    return model, Profile(**case.profile, device=device)


def prepare(case: Case, model: Model, profile: Profile) -> Step:
    """Build model, optimizer and batch; return what trains one step."""
    device, shape = profile.device, (case.batch_size, case.context_length)
    net = Reference(model, profile, case.context_length, device)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    # Two calls: halves of one tensor would share a storage.
    ids = torch.randint(0, model.vocab_size, shape, device=device)
    targets = torch.randint(0, model.vocab_size, shape, device=device)

    def step() -> None:
        with precision(profile, device):
            kept = net(ids, targets)
        kept[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def on_gpu(step: Step) -> dict[str, list[int]]:
    """Bytes by PyTorch's allocator: what stands between steps, and the peak of each step but the first."""
    step()
    found: dict[str, list[int]] = {"standing": [], "peak": [], "requested peak": []}
    for _ in range(STEPS):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        found["standing"].append(torch.cuda.memory_allocated())
        step()
        torch.cuda.synchronize()
        found["peak"].append(torch.cuda.max_memory_allocated())
        found["requested peak"].append(torch.cuda.memory_stats()["requested_bytes.all.peak"])
    return found


def on_cpu(step: Step) -> dict[str, list[int]]:
    """The same by a live count of what operators return, which does not see parameters made earlier."""
    with LiveBytes([]) as live:
        step()
    return {"peak of what a step makes": [live.peak]}


def blocks_at_peak(step: Step) -> list[list[Any]]:
    """What one step has allocated and not freed at its peak: bytes, how many, and the Python line."""
    torch.cuda.memory._record_memory_history(context="alloc", stacks="python", max_entries=1_000_000)
    try:
        step()
        torch.cuda.synchronize()
        trace = torch.cuda.memory._snapshot()["device_traces"][0]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    alive: dict[int, Any] = {}
    most = total = 0
    until = 0
    for place, event in enumerate(trace):
        if event["action"] == "alloc":
            alive[event["addr"]] = event
            total += event["size"]
        elif event["action"] == "free_completed":
            total -= event["size"]
            alive.pop(event["addr"], None)
        if total > most:
            most, until = total, place
    alive.clear()
    for event in trace[: until + 1]:
        if event["action"] == "alloc":
            alive[event["addr"]] = event
        elif event["action"] == "free_completed":
            alive.pop(event["addr"], None)
    counts = Counter((event["size"], _line(event)) for event in alive.values())
    return [[size, count, line] for (size, line), count in sorted(counts.items(), reverse=True)]


def _line(event: dict[str, Any]) -> str:
    lines = [
        f"{frame['name']}:{frame['line']}"
        for frame in event.get("frames", [])
        if "lmlib" in frame["filename"] and frame["name"] not in ("step", "blocks_at_peak")
    ]
    return " < ".join(lines[:3])


def measure(case: Case, device: str, tiny: bool) -> dict[str, Any]:
    """Everything about one case; an error, by its words, where it failed."""
    if tiny:
        case = replace(case, batch_size=2, context_length=64)
    started = time.perf_counter()
    found: dict[str, Any] = {"case": asdict(case), "name": case.name}
    try:
        model, profile = described(case, device, tiny)
        timeline = memory(model, profile, Optimizer(), case.batch_size, case.context_length)
        found["predicted"] = {
            "peak": timeline.peak,
            "standing": int(timeline.standing.total),
            "at": timeline.at.to_json(),
        }
        step = prepare(case, model, profile)
        found["measured"] = on_gpu(step) if device == "cuda" else on_cpu(step)
        if device == "cuda":
            found["blocks"] = blocks_at_peak(step)
    except (RuntimeError, ValueError, TypeError) as error:
        found["error"] = f"{type(error).__name__}: {error}"[:500]
    step = None  # type: ignore[assignment]
    gc.collect()
    if device == "cuda":
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        found["left"] = torch.cuda.memory_allocated()
    found["seconds"] = round(time.perf_counter() - started, 2)
    return found


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def as_record(results: list[dict[str, Any]], device: str, commit: str, command: str) -> dict[str, Any]:
    """The record of all cases, as ``lmlib.book.records`` reads it."""
    samples = {
        f"{each['name']}: {what}": {"unit": "bytes", "values": values}
        for each in results
        for what, values in each.get("measured", {}).items()
    }
    cuda = device == "cuda"
    try:
        import triton

        triton_version: str | None = str(triton.__version__)
    except ImportError:
        triton_version = None
    about = [
        {key: each[key] for key in ("name", "case", "predicted", "error", "left", "seconds") if key in each}
        for each in results
    ]
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "driver": _driver() if cuda else None,
        "torch": str(torch.__version__),
        "triton": triton_version,
        "date": date.today().isoformat(),
        "commit": commit,
        "command": command,
        "samples": samples,
        "about": {"cases": about},
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure every case, printing each, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file for the record")
    parser.add_argument("--blocks", type=Path, help="file for what is alive at each peak, block by block")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", default="", help="measure the cases whose name has these words")
    options = parser.parse_args(arguments)
    command = f"python -m lmlib.book.measure.memory_on_gpu --out {options.out.name} --device {options.device}"
    command += " --tiny" * options.tiny + (f" --only '{options.only}'" if options.only else "")
    results: list[dict[str, Any]] = []
    for case in CASES:
        if options.only not in case.name:
            continue
        found = measure(case, options.device, options.tiny)
        results.append(found)
        print(_summary(found), flush=True)
        if found.get("measured"):  # after each case, so that what was measured is not lost
            content = as_record(results, options.device, options.commit, command)
            parse(content, str(options.out))
            options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if options.blocks:
            rows = {each["name"]: each.get("blocks", []) for each in results}
            options.blocks.write_text(json.dumps(rows), encoding="utf-8")


def _summary(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"{found['name']}: {found['error']}"
    predicted, measured = found["predicted"], found["measured"]
    parts = [found["name"], f"{found['seconds']} s", f"predicted {predicted['peak'] / 1e9:.3f} GB"]
    if "peak" in measured:
        peak, standing = measured["peak"][-1], measured["standing"][-1]
        parts.append(f"measured {peak / 1e9:.3f} GB ({100 * (predicted['peak'] / peak - 1):+.2f} %)")
        parts.append(f"standing {(predicted['standing'] - standing) / 1e6:+.2f} MB")
        parts.append(f"requested {measured['requested peak'][-1] / 1e9:.3f} GB")
        parts.append(f"at {predicted['at']['phase']} {predicted['at']['segment']} {predicted['at']['op']}")
    return "; ".join(parts)


if __name__ == "__main__":
    main()
