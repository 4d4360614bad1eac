"""The harness: it sees wrong kernels, its records are the book's, its tables hold what was measured."""

import ctypes
import json
from pathlib import Path

import pytest
import torch

from kernels.bench import timing
from kernels.bench.__main__ import main
from kernels.bench.case import FORWARD, Bench, Shape, UnavailableError, Work
from kernels.bench.machine import description, folder_name
from kernels.bench.measure import OURS, Case, measure, verify
from kernels.bench.profile import parse_counters
from kernels.bench.report import record, table, write
from lmlib.book.records import parse

SHAPE = Shape({"n": 12}, torch.float32)


def square(x: torch.Tensor) -> torch.Tensor:
    return x * x


def bench(ours=square, **changes) -> Bench:
    return Bench(
        **{
            "name": "square",
            "inputs": lambda shape, generator: {
                "x": torch.randn(shape["n"], generator=generator, device=generator.device)
            },
            "ours": ours,
            "reference": square,
            "grads": ("x",),
            "work": lambda shape: {"forward": Work(8 * shape["n"]), "backward": Work(12 * shape["n"])},
            "shapes": (SHAPE,),
            **changes,
        }
    )


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return grad


def _unwritten(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    out[:-1] = (x * x)[:-1].detach()
    return out + 0 * x


def test_a_right_kernel_passes() -> None:
    case = measure(bench(), SHAPE, None, seed=1, seconds=0.1)
    assert case.wrong is None
    assert case.same_bits
    assert set(case.errors[OURS]) == {"output", "gradient of x"}


@pytest.mark.parametrize(
    "ours",
    [
        lambda x: x * x * 1.001,
        _WrongGradient.apply,
        _unwritten,
        lambda x: (x * x)[:-1],
        lambda x: x * x * float("nan"),
    ],
    ids=["a thousandth off", "wrong gradient", "last element unwritten", "too short", "nan"],
)
def test_a_wrong_kernel_is_found_and_not_timed(ours) -> None:
    case = Case(bench(ours), SHAPE)
    assert OURS not in verify(case, "cpu", seed=1, with_peers=False)
    assert case.wrong


def test_peers_are_checked_and_those_missing_say_why() -> None:
    def missing():
        raise UnavailableError("not installed")

    peers = {"good": lambda: square, "other": lambda: torch.exp, "missing": missing}
    case = Case(bench(peers=peers), SHAPE)
    assert list(verify(case, "cpu", seed=1, with_peers=True)) == [OURS, "good"]
    assert case.left_out["missing"] == "not installed"
    assert "something else" in case.left_out["other"]


def test_inputs_are_fresh_for_each_seed() -> None:
    seen = []
    for seed in (1, 2):
        measure(bench(lambda x: seen.append(x.detach().clone()) or x * x), SHAPE, None, seed, 0.1)
    assert not torch.equal(seen[0], seen[-1])


def test_the_record_is_one_of_the_books(tmp_path: Path) -> None:
    case = measure(bench(), SHAPE, None, seed=1, seconds=0.1)
    case.copy_rate, case.matmul_rate = 1e12, 1e14
    case.seconds[OURS, FORWARD] = [2e-10, 1e-10, 3e-10]
    case.peak[OURS], case.kept[OURS] = 96, 48
    write(
        record([case], description("a command", "abc"), {"copy bandwidth": [1e12]}, 1.0), tmp_path / "k.json"
    )
    read = parse(json.loads((tmp_path / "k.json").read_text()), "test")
    assert read["square, n 12, float32: ours, forward"].median == 2e-10
    assert read["square, n 12, float32: ours, memory"].unit == "bytes"
    assert case.fraction(OURS, FORWARD) == pytest.approx(96 / 2e-10 / 1e12)
    assert "0.0000" in table(case)
    assert list(tmp_path.iterdir()) == [tmp_path / "k.json"]


def test_declarations_are_checked() -> None:
    with pytest.raises(ValueError, match="phases"):
        bench(phases=("sideways",))
    with pytest.raises(ValueError, match="names no grads"):
        bench(grads=())
    with pytest.raises(ValueError, match="bound"):
        bench(bound="luck")


@pytest.mark.skipif(torch.cuda.is_available(), reason="what the command says without a GPU")
def test_the_command_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cross_entropy", "--quick"]) == 0
    assert "Times, and the peers, need a CUDA GPU" in capsys.readouterr().out
    assert main(["profile", "cross_entropy"]) == 2


def test_tiny_checks_and_times_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For a memory checker: on a GPU too it leaves no record. A planted error is counted and ends with 1."""
    tiny = (SHAPE, Shape({"n": 3}, torch.float32))
    planted = bench(lambda x: x * x * (1.001 if len(x) == 3 else 1), name="planted", tiny=tiny)
    assert main(["layer_norm", "gelu_mlp", "--tiny"]) == 0
    assert "5 of 5 cases right" in capsys.readouterr().out
    benches = {"square": bench(tiny=tiny), "planted": planted}
    monkeypatch.setattr("kernels.bench.__main__.load", lambda names: [benches[name] for name in names])
    out = tmp_path / "kernels.json"
    assert main(["square", "--tiny", "--out", str(out)]) == 0
    assert "2 of 2 cases right" in capsys.readouterr().out
    assert main(["square", "planted", "--tiny"]) == 1
    said = capsys.readouterr()
    assert "3 of 4 cases right" in said.out
    assert "planted" in said.err
    assert not out.exists()


def test_an_unknown_kernel_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rms_nrom"]) == 2
    assert "got rms_nrom" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--seconds", "--limit"])
@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "soon"])
def test_a_time_that_is_none_is_refused(
    option: str, value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels.bench.__main__.run", lambda *given: [])
    with pytest.raises(SystemExit, match="2"):
        main(["cross_entropy", "--quick", option, value])
    expected = f"argument {option}: must be a finite number above 0, got '{value}'"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "folder"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("", "gpu"),
    ],
)
def test_folder_names(device: str, folder: str) -> None:
    assert folder_name(device) == folder


def test_counters_are_read_in_base_units() -> None:
    text = """==PROF== Connected
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","k","dram__bytes_read.sum","Mbyte","1,823.5"
"0","k","gpu__time_duration.sum","us","12.5"
"0","k","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","91.2"
"0","k","launch__registers_per_thread","register/thread","32"
"""
    found = parse_counters(text)["k"]
    assert found["bytes read"] == [pytest.approx(1823.5e6)]
    assert found["time"] == [pytest.approx(12.5e-6)]
    assert found["memory throughput"] == [91.2]
    assert found["registers"] == [32]
    assert parse_counters("==ERROR== no permission") == {}


@pytest.mark.gpu
def test_the_command_on_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    assert main(["cross_entropy", "--quick", "--seconds", "0.01", "--out", str(out)]) == 0
    read = parse(json.loads(out.read_text()), "kernels")
    assert read["copy bandwidth"].median > 0
    assert any(": ours, forward + backward" in label for label in read.samples)


@pytest.mark.parametrize(("capability", "asked"), [((7, 5), 0), ((8, 0), 1), ((9, 0), 1)])
def test_only_gpus_that_keep_lines_are_asked_to_let_them_go(
    capability: tuple[int, int], asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Runtime:
        def __init__(self, name: str) -> None:
            assert name == "libcudart.so.13"

        def cudaCtxResetPersistingL2Cache(self) -> int:  # noqa: N802
            return calls.append("asked") or 0

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(ctypes, "CDLL", Runtime)
    timing._let_lines_go.__wrapped__()()
    assert len(calls) == asked


def test_a_sample_that_the_cpu_was_too_slow_for_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    pauses = {2: 2e-3, 4: 1.0}  # the second call, and the fourth, which no wait covers

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.after = len(calls)

        def elapsed_time(self, end: "Event") -> float:
            return 1e3 * end.after

    def run(_: None) -> None:
        calls.append(len(calls) + 1)
        seconds.append(seconds[-1] + pauses.get(calls[-1], 1e-6))

    seconds = [0.0]
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("synchronize", "_sleep"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(timing, "_let_lines_go", lambda: lambda: None)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: seconds[-1])
    clock = object.__new__(timing.Clock)
    clock.flush = torch.ones(3)
    timed = timing.Timed(run, wait=1e-3)
    assert clock.samples(timed, 2) == [1, 3]
    assert timed.wait == pytest.approx(3e-3)
    assert clock.samples(timed, 2) == [5, 6]
    assert timed.wait == timing.LONGEST_WAIT
