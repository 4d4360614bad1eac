"""Chapter 5's exercises: what the solutions compute, against PyTorch and the library's own kernels."""

import importlib.util
import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import flash_attention, rms_norm
from lmlib.book.exercises import kernels as chapter
from lmlib.book.exercises import kernels_attention as attention
from lmlib.book.exercises import kernels_benchmark as benchmark
from lmlib.book.exercises import kernels_checks as checks
from lmlib.book.exercises import kernels_rows as rows
from lmlib.book.exercises import machinery
from lmlib.book.page_files import page_files

SCORES = st.lists(st.floats(-500, 500), min_size=1, max_size=6)


def error(found, right):
    return checks.relative(found, right)


@settings(deadline=None)
@given(SCORES, SCORES)
def test_merged_pieces_are_torch_s_logsumexp(first, second):
    pieces = [(max(part), sum(math.exp(x - max(part)) for x in part)) for part in (first, second)]
    m, s = chapter.merge(*pieces)
    expected = torch.tensor(first + second, dtype=torch.float64).logsumexp(0).item()
    assert m == max(first + second)
    assert m + math.log(s) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 1000)])
def test_softmax_is_torch_s(shape):
    x = checks.draw(*shape, scale=5.0)
    assert error(rows.softmax(x), torch.softmax(x.double(), 1)) < 1e-6


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 1000)])
def test_the_sum_and_its_norm_are_torch_s_and_the_library_s(shape):
    x, residual = checks.draw(*shape), checks.draw(*shape, seed=1)
    weight = checks.draw(shape[1], seed=2)
    y, total = rows.add_rms_norm(x, residual, weight, 1e-5)
    wide = x.double() + residual.double()
    assert error(total, wide) < 1e-7
    assert error(y, F.rms_norm(wide, shape[1:], weight.double(), 1e-5)) < 1e-6
    ours = rms_norm(x, weight, eps=1e-5, residual=residual)
    assert error(y, ours[0].double()) < 1e-6


@pytest.mark.parametrize(("n_rows", "columns", "programs"), [(1, 1, 1), (5, 33, 2), (40, 100, 3)])
def test_the_gradients_of_the_norm_are_torch_s_and_the_library_s(n_rows, columns, programs):
    dy, x = (checks.draw(n_rows, columns, seed=seed) for seed in (0, 1))
    weight = checks.draw(columns, seed=2)
    ours = rows.rms_norm_backward(dy, x, weight, 1e-5, programs)
    for function, dtype in ((F.rms_norm, torch.float64), (None, torch.float32)):
        leaves = [each.detach().to(dtype).requires_grad_() for each in (x, weight)]
        y = function(leaves[0], (columns,), leaves[1], 1e-5) if function else rms_norm(*leaves, eps=1e-5)
        for found, right in zip(ours, torch.autograd.grad(y, leaves, dy.to(dtype)), strict=True):
            scale = max(right.norm().item(), 1.0)  # the gradient of a single number is almost 0
            assert (found - right).norm().item() < 2e-6 * scale


# Attention: lengths of queries and keys, head dimension, tiles, causal.
ATTENTION = [
    (1, 1, 16, 4, 4, True),
    (37, 37, 16, 8, 16, True),
    (5, 50, 32, 4, 16, True),
    (30, 20, 16, 7, 9, False),
]


@pytest.mark.parametrize(("T", "S", "K", "block_t", "block_s", "causal"), ATTENTION)
def test_attention_in_tiles_and_its_gradients_are_torch_s(T, S, K, block_t, block_s, causal):
    q, k, v, dout = (checks.draw(2, n, K, seed=i) for i, n in enumerate((T, S, S, T)))
    out, lse = attention.flash_forward(q, k, v, block_t, block_s, causal)
    ours = attention.flash_backward(dout, q, k, v, out, lse, block_t, block_s, causal)
    leaves = [each.double().requires_grad_() for each in (q, k, v)]
    mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T) if causal else None
    right = F.scaled_dot_product_attention(*leaves, attn_mask=mask)
    assert error(out, right.detach()) < 1e-6
    scores = leaves[0] @ leaves[1].mT * K**-0.5
    scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
    assert error(lse, scores.logsumexp(-1).detach()) < 1e-6
    for found, gradient in zip(ours, torch.autograd.grad(right, leaves, dout.double()), strict=True):
        assert (found - gradient).norm().item() < 2e-6 * max(gradient.norm().item(), 1.0)


@pytest.mark.parametrize(
    ("T", "S", "K", "causal"), [(1, 1, 16, True), (100, 100, 32, True), (3, 80, 64, False)]
)
def test_attention_in_triton_is_torch_s_and_the_library_s(T, S, K, causal):
    q, k, v = (checks.draw(1, 2, n, K, seed=i) for i, n in enumerate((T, S, S)))
    out, _ = attention.flash_attention(q, k, v, causal)
    wide = [each.double() for each in (q, k, v)]
    assert error(out, F.scaled_dot_product_attention(*wide, is_causal=causal)) < 1e-6
    assert error(out, flash_attention(q, k, v, causal=causal).double()) < 1e-6


# How answers are judged.


def test_a_verdict_says_what_is_wrong():
    right = checks.draw(4, 5).double()
    theirs = right.float()
    assert checks.verdict(theirs, right, theirs) == checks.RIGHT
    assert checks.verdict(None, right, theirs) == "no tensor but NoneType"
    assert checks.verdict(theirs[:3], right, theirs) == "of shape (3, 5), not (4, 5)"
    assert checks.verdict(right, right, theirs) == "float64, not float32"
    assert checks.verdict(theirs / 0, right, theirs) == "not finite everywhere"
    assert checks.verdict(theirs * 1.01, right, theirs).startswith("off by 1.0e-02, allowed")


def test_the_error_allowed_grows_with_that_of_torch():
    right = checks.draw(100, seed=3).double()
    rounded = right.bfloat16()
    strict = checks.SLACK * error(rounded, right) + checks.UNIT[torch.bfloat16]
    for interpreted, factor in ((False, 1.0), (True, 2.5)):
        near, far = ((right * (1 + part * factor * strict)).bfloat16() for part in (0.5, 2.5))
        assert checks.verdict(near, right, rounded, interpreted) == checks.RIGHT
        assert "off by" in checks.verdict(far, right, rounded, interpreted)


def test_launches_and_large_tensors_are_seen_and_nothing_stays_replaced():
    x = checks.draw(4, 64)
    for _ in range(2):
        with checks.watching() as seen:
            rows.softmax(x)
        assert seen.launches == 1
        assert seen.largest == checks.bytes_of(x)
        assert not checks.INTERPRETED or (seen.loaded, seen.stored) == (1024, 1024)
    with pytest.raises(RuntimeError, match="stops"), checks.watching() as seen:
        raise RuntimeError("stops")
    rows.softmax(x)
    assert seen.launches == 0


def test_bytes_outside_their_bounds_are_told():
    assert checks.amount(100, 90, 100) == checks.ONCE
    assert checks.amount(250, 90, 100) == "2.5 times what is needed"
    assert checks.amount(50, 90, 100) == "not all of it"


def test_a_slip_changes_one_passage_and_no_other():
    wrong = checks.slip("halved", "power / tl.sum", "0.5 * power / tl.sum", rows.softmax, rows.softmax_kernel)
    x = checks.draw(2, 8)
    torch.testing.assert_close(wrong(x), rows.softmax(x) / 2)
    assert wrong.__name__ == "halved"
    for old in ("column", "no such passage"):
        with pytest.raises(ValueError, match="stands"):
            checks.slip("unclear", old, "", rows.softmax, rows.softmax_kernel)(x)


def test_the_error_of_a_kernel_is_shown_with_the_kernel_s_line():
    exercise = machinery.get("kernels/softmax")
    source = exercise.solution_source.replace("tl.exp(", "tl.expp(")
    (result,) = [
        r for r in machinery.check_source(exercise.name, source)["results"] if r["state"] == "failed"
    ]
    assert "tl.expp(" in result["line"]


def test_the_benchmark_measures_what_a_call_takes():
    def sleeps(q, k, v):
        time.sleep(0.02)
        return q + k + v

    inputs = benchmark.attention_inputs
    (row,) = benchmark.benchmark_table({"sleeps": sleeps}, [8], [4], inputs, warmups=1, samples=3)
    assert list(row) == ["length", "head_dim", "name", "forward_ms", "backward_ms"]
    assert row["forward_ms"] >= 20
    assert 0 < row["backward_ms"] < row["forward_ms"]


def test_the_pretended_gpu_is_a_queue_with_slow_first_calls_and_hiccups():
    machine = benchmark.Machine(first_calls_slow=True, hiccups=True)
    function, qkv = machine.attention("in tiles"), machine.inputs(100, 10)
    usual = benchmark.milliseconds("in tiles", 100, 10, "forward") / 1e3
    factors = []
    for _ in range(8):
        began = machine.clock()
        function(*qkv)
        assert machine.clock() == began  # enqueued, not done
        machine.synchronize()
        factors.append((machine.clock() - began) / usual)
    assert factors == pytest.approx([50, 50, 50, 0.5, 1, 1, 5, 1])


# Where the exercises are solved, and what they need.


def test_the_page_has_the_first_exercise_and_does_not_look_for_torch():
    carried = {name for name in page_files() if "exercises/kernels" in name}
    assert carried == {"lmlib/book/exercises/kernels.py"}
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else found(name, *rest)\n"
        "from lmlib.book.exercises import machinery; print(*machinery.names('kernels'))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["kernels/merge"]


@pytest.mark.skipif(not checks.INTERPRETED, reason="kernels are compiled here")
def test_triton_that_came_too_early_is_told():
    script = "import triton\nfrom lmlib.book.exercises import machinery; machinery.names('kernels')"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert "import kernels._runtime first" in run.stderr


# The cases that a GPU adds, on small tensors of this machine and with a pretended clock.


@pytest.fixture
def on_gpu(monkeypatch):
    """The content modules as they are on a GPU, but for the device, the sizes and the clock."""
    pretended = SimpleNamespace(seconds=1.0, copy_rate=1.0, peak=0)

    class Clock:
        def warm_up(self, timed):
            timed.run(timed.prepare())

        def samples(self, timed, count):
            return [pretended.seconds] * count

        def compare(self, competitors, seconds):
            return {name: self.samples(timed, 3) for name, timed in competitors.items()}

    timing = "kernels.bench.timing."
    monkeypatch.setattr(timing + "Clock", Clock)
    monkeypatch.setattr(timing + "copy_bandwidth", lambda clock: [pretended.copy_rate] * 10)
    monkeypatch.setattr(
        timing + "memory_of", lambda timed: (timed.run(timed.prepare()), (pretended.peak, 0))[1]
    )
    draw = checks.draw
    monkeypatch.setattr(checks, "GPU", True)
    monkeypatch.setattr(checks, "draw", lambda *shape, **how: draw(*(min(n, 32) for n in shape), **how))
    modules = {}
    for module in (rows, attention, benchmark):
        spec = importlib.util.spec_from_file_location(f"{module.__name__}_on_gpu", module.__file__)
        copy = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, copy)
        spec.loader.exec_module(copy)
        modules[module] = copy
    return pretended, modules


def gpu_cases(module):
    exercises = [each for each in vars(module).values() if isinstance(each, machinery.Exercise)]
    return [(each, case) for each in exercises for case in each.cases if case.name.startswith("GPU: ")]


@pytest.mark.parametrize(("module", "count"), [(rows, 7), (attention, 7)])
def test_solutions_pass_the_cases_of_a_gpu(on_gpu, module, count):
    pretended, modules = on_gpu
    pretended.seconds = 1e-9  # faster than any copy
    found = gpu_cases(modules[module])
    assert len(found) == count
    for exercise, case in found:
        result = machinery._run(case, exercise.solution)
        assert result.state == "passed", f"{exercise.name}: {result}"


def test_slow_answers_and_wide_ones_fail_the_cases_of_a_gpu(on_gpu):
    pretended, modules = on_gpu
    pretended.seconds, pretended.copy_rate, pretended.peak = 1.0, 1e6, 2**40
    measured = [
        (exercise, case)
        for module in (rows, attention)
        for exercise, case in gpu_cases(modules[module])
        if case.name in ("GPU: speed", "GPU: memory")
    ]
    failed = {
        f"{exercise.name} {case.name}"
        for exercise, case in measured
        if machinery._run(case, exercise.solution).state == "failed"
    }
    rowwise = {f"kernels/{name} GPU: speed" for name in ("softmax", "rms-norm", "rms-norm-backward")}
    tiled = {f"kernels/{name} GPU: memory" for name in ("flash-tiles", "flash-backward", "flash-triton")}
    assert failed == rowwise | tiled


def test_attention_of_six_times_torch_s_time_is_too_slow(monkeypatch):
    def compare(self, competitors, seconds):
        return {name: [6.0 if name == "yours" else 1.0] for name in competitors}

    clock = type("Clock", (), {"warm_up": lambda self, timed: None, "compare": compare})
    monkeypatch.setattr("kernels.bench.timing.Clock", clock)
    qkv = checks.draw(3, 1, 1, 8, 16)
    assert attention._against_flash(attention.flash_attention)(*qkv, True) == "6.0 times PyTorch's"


@pytest.mark.parametrize("wrong", ["nothing", "missing", "all fits", "off"])
def test_the_table_of_a_gpu_is_measured_again(on_gpu, monkeypatch, wrong):
    pretended, modules = on_gpu
    copy = modules[benchmark]
    monkeypatch.setattr(copy, "attention_inputs", lambda length, head_dim: checks.draw(3, 1, 1, 8, 16))
    table = copy._table(copy.LENGTHS, copy.HEAD_DIMS, "in tiles", "written out", memory=2**28)
    for row in table:
        row["name"] = row["name"].replace("in tiles", "scaled_dot_product_attention")
    place = next(row for row in table if (row["length"], row["head_dim"]) == (16_384, 128))
    pretended.seconds = place["forward_ms"] / 1e3
    if wrong == "missing":
        table[0]["backward_ms"] = None
    if wrong == "all fits":
        table[-1]["forward_ms"] = 1.0
    if wrong == "off":
        place["forward_ms"] *= 3
    ((_, case),) = gpu_cases(copy)
    assert (case.then(table) == case.expected) == (wrong == "nothing")


@pytest.mark.gpu
@pytest.mark.parametrize("name", machinery.names("kernels"))
def test_solutions_pass_on_a_gpu(name):
    report = machinery.check(name, machinery.get(name).solution)
    assert report.passed, str(report)
