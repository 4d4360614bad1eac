"""Time kernel by kernel: all FLOPs are there, bytes are the least, and published steps come out closer."""

import pytest

from lmlib.resources import MLP, ArgumentError, Attention, Layer, Model, load
from lmlib.resources import roofline as ops
from lmlib.resources.flops import training
from lmlib.resources.hardware import device
from lmlib.resources.kernel_time import Kernels, Product, kernel_seconds, update_seconds
from lmlib.resources.layout import Divided, Layout
from lmlib.resources.step_time import stage_flops, step_time

A100, H100, LENGTH = device("a100-80gb"), device("h100"), 512


def seconds(model, layout, chip=A100, stage=0, kernels=Kernels(1), **options):  # noqa: B008
    given = {"mask": "full", "kernel": "math", "recompute": "none"} | options
    peak = chip.peak_of("bf16")
    return kernel_seconds(Divided(model, layout), stage, chip, kernels, 2, LENGTH, peak=peak, **given)


@pytest.mark.parametrize("kernel", ["math", "flash"])
@pytest.mark.parametrize("recompute", ["none", "core", "full"])
@pytest.mark.parametrize("name", ["gpt2", "llama-3-8b", "gemma-2-9b", "mixtral-8x7b", "deepseek-v2-lite"])
def test_products_have_all_flops_of_the_stage(name, recompute, kernel):
    model = load(name)
    tp = 4 if name == "llama-3-8b" else 1
    layout = Layout(tp=tp, sp=tp > 1)
    options = {"mask": "full", "kernel": kernel, "recompute": recompute}
    ledger = seconds(model, layout, **options)
    expected = stage_flops(Divided(model, layout), 0, 2, LENGTH, **options).total
    assert float(ledger["products"].value) == pytest.approx(float(expected) / A100.peak_of("bf16"), rel=1e-12)


def test_stages_of_a_pipeline_compute_the_whole_model():
    model = load("llama-3-8b")
    parts = [float(seconds(model, Layout(pp=4), stage=stage)["products"].value) for stage in range(4)]
    whole = training(model, 2, LENGTH, mask="full").total
    assert sum(parts) == pytest.approx(float(whole) / A100.peak_of("bf16"), rel=1e-12)


def test_waves_of_tiles():
    """8,192 × 2,304 in tiles of 128 × 256: 576 of them, 108 at a time, take six waves, not 5 1/3."""
    assert float(Product(8192, 6144, 2304).waves(108)) == pytest.approx(6 / (576 / 108))
    assert float(Product(128 * 108, 64, 256).waves(108)) == 1
    assert float(Product(1, 4096, 4096).waves(108)) > 100
    # One tile more than a wave takes twice as long.
    assert float(Product(128 * 109, 64, 256).waves(108)) == pytest.approx(2 * 108 / 109)
    assert Product(8192, 6144, 2304).waves(0) == 1


def test_gradients_of_a_product():
    for one in Product(3, 5, 7, 2).backward():
        assert one.flops == Product(3, 5, 7, 2).flops
    assert Product(3, 5, 7).backward() == (Product(3, 7, 5), Product(5, 3, 7))
    assert Product(3, 5, 7, 2).moved == 2 * 2 * (3 * 5 + 5 * 7 + 3 * 7)


def test_a_device_whose_multiprocessors_are_unknown_has_no_waves():
    names = [term.name for term in seconds(load("gpt2"), Layout(), device("tpu-v5e"))]
    assert not any("waves" in name for name in names)
    assert any("waves" in term.name for term in seconds(load("gpt2"), Layout()))


def test_norms_move_what_the_roofline_says():
    """Forward, each norm reads and writes its tokens; the weight's few bytes are left out."""
    model = load("llama-3-8b")
    whole = ops.norm(2 * LENGTH, 4096)
    forward = 64 * float(whole.moved["input and output"].value) / A100.bandwidth
    once = seconds(model, Layout(), recompute="none")["norms"].value
    twice = seconds(model, Layout(), recompute="full")["norms"].value
    assert float(twice - once) == pytest.approx(forward)


def test_a_flash_kernel_keeps_scores_on_the_chip_and_dropout_adds_masks():
    model = load("gpt2")
    plain = seconds(model, Layout())
    assert "softmax of attention" not in seconds(model, Layout(), kernel="flash")
    dropped = seconds(model, Layout(), kernels=Kernels(1, dropout=True))
    assert dropped["softmax of attention"].value == pytest.approx(2 * plain["softmax of attention"].value)
    assert dropped["norms"].value == plain["norms"].value


def test_the_update_reads_and_writes_28_bytes_a_parameter():
    model = load("llama-3-8b")
    whole, cut = (update_seconds(Divided(model, Layout(dp=8, zero=zero)), 0, A100).value for zero in (0, 1))
    assert float(whole) == pytest.approx(28 * 8_030_261_248 / A100.bandwidth)
    assert float(cut) == pytest.approx(float(whole) / 8)


MEGATRON = {  # arXiv:2205.05198, tables 3 and 5: heads, width, layers, micro-batch, layout, seconds
    "22B": (64, 6144, 48, 4, Layout(tp=8, sp=True), 1.10),
    "175B": (96, 12288, 96, 1, Layout(tp=8, sp=True, pp=8, vpp=3, microbatches=64), 13.75),
    "530B": (128, 20480, 105, 1, Layout(tp=8, sp=True, pp=35, vpp=3, microbatches=280), 37.83),
    "1T": (160, 25600, 128, 1, Layout(tp=8, sp=True, pp=64, microbatches=512), 71.49),
}


def off(name, efficiency):
    """By how many percent our step is longer than the published one."""
    heads, width, layers, micro_batch, layout, published = MEGATRON[name]
    attention = Attention(heads, heads, width // heads, qkv_bias=True, out_bias=True)
    block = Layer(attention, MLP(4 * width, gated=False, bias=True, activation="gelu"))
    model = Model("gpt", width, 51200, 2048, (block,) * layers, True, "layernorm", 2048)
    options = {"mask": "full", "kernel": "math", "recompute": "core", "latency": 5e-6}
    step = step_time(model, layout, A100, micro_batch, 2048, efficiency=efficiency, **options)
    return 100 * (float(step.seconds) / published - 1)


def test_megatrons_steps_kernel_by_kernel():
    """One fitted number as before, 0.76 of the peak for a large product, and what it cannot know is counted.

    The three large runs come within 3.5 %, where one efficiency for everything left 8 %. Known mismatch: the
    22B, not in the fit, comes out 7 % too fast in place of 22 %.
    """
    large = ("175B", "530B", "1T")
    kernels = Kernels(0.76, dropout=True)
    assert max(abs(off(name, kernels)) for name in large) < 3.5
    assert max(abs(off(name, 0.68)) for name in large) > 7
    assert -8 < off("22B", kernels) < -6
    assert -25 < off("22B", 0.68) < -20


def test_llama_405b_is_not_reached():
    """Known mismatch: 430 TFLOP/s (arXiv:2407.21783, table 4) take 0.6 of the peak here.

    Kernels of an H100 reach more alone; what stays between them and the run, this does not know.
    """
    layout = Layout(
        dp=64, zero=1, tp=8, sp=True, pp=16, vpp=8, microbatches=32, chunk_layers=(0, *(1,) * 126, 0)
    )
    model = load("llama-3-405b")
    reached = [
        989.4
        * float(
            step_time(
                model,
                layout,
                H100,
                1,
                8192,
                efficiency=Kernels(efficiency),
                mask="full",
                latency=5e-6,
                hidden={"dp": 1},
            )
            .mfu(model, 8192, H100, convention="megatron")
            .value
        )
        for efficiency in (0.55, 0.65)
    ]
    assert reached[0] < 430 < reached[1]


@pytest.mark.parametrize("efficiency", [0, 1.1, -1])
def test_bad_efficiency_is_refused(efficiency):
    with pytest.raises(ArgumentError) as refused:
        step_time(load("gpt2"), Layout(), A100, 1, 128, efficiency=Kernels(efficiency), mask="full")
    assert refused.value.field == "efficiency"
