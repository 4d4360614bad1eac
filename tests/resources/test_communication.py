"""Communication against the collectives that PyTorch hands to its fake process group, call by call."""

from collections import Counter
from fractions import Fraction

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from lmlib.resources import MLP, ArgumentError, Attention, Layer, Model, MoE, load
from lmlib.resources.communication import Collective, communication, volume
from lmlib.resources.hardware import device
from lmlib.resources.layout import Layout

RANKS, LAYERS, D, FF, V, B, T = 4, 3, 16, 48, 64, 2, 8
BLOCK = Layer(Attention(4, 4, 4, fused_qkv=True), MLP(FF, gated=False))
MODEL = Model("small", D, V, T, (BLOCK,) * LAYERS, tied=False)


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    yield init_device_mesh("cpu", (RANKS,))
    dist.destroy_process_group()


class Seen(TorchDispatchMode):
    """Records each collective as (kind, bytes of its whole tensor)."""

    KINDS = {  # noqa: RUF012
        "_allgather_base_": ("all_gather", 0),
        "_reduce_scatter_base_": ("reduce_scatter", 1),
        "all_reduce": ("all_reduce", 0),
        "all_gather_into_tensor": ("all_gather", 0),
        "reduce_scatter_tensor": ("reduce_scatter", 0),
        "alltoall_base_": ("all_to_all", 0),
        "all_to_all_single": ("all_to_all", 0),
        "send": ("send", 0),
    }

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        space, name, _ = str(function).split(".")
        if "c10d" in space and name in self.KINDS:
            kind, place = self.KINDS[name]
            tensor = args[place][0] if isinstance(args[place], list) else args[place]
            # The functional gather takes the part of one rank, all others the whole tensor.
            times = RANKS if name == "all_gather_into_tensor" else 1
            self.calls[kind, tensor.nbytes * times] += 1
        return function(*args, **(kwargs or {}))


def expected(collectives):
    calls = Counter()
    for each in collectives:
        calls[each.op, each.payload] += each.count
    return calls


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))

    def forward(self, x):
        return x * self.weight


class Half(nn.Module):
    """Half a block: norm, a matrix into the inner width, one back; attention between them moves nothing."""

    def __init__(self, inner, outer):
        super().__init__()
        self.norm, self.into = Norm(), nn.Linear(D, inner, bias=False)
        self.back, self.outer = nn.Linear(outer, D, bias=False), outer

    def forward(self, x):
        hidden = self.into(self.norm(x))
        if hidden.shape[-1] != self.outer:
            hidden = hidden[..., : hidden.shape[-1] // 3]
        return x + self.back(hidden)


class Small(nn.Module):
    """The matrices of MODEL, in its order."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.layers = nn.ModuleList(nn.Sequential(Half(3 * D, D), Half(FF, FF)) for _ in range(LAYERS))
        self.norm, self.head = Norm(), nn.Linear(D, V, bias=False)

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def test_the_reference_has_the_models_parameters():
    from lmlib.resources.parameters import parameters

    assert sum(each.numel() for each in Small().parameters()) == parameters(MODEL).total


def test_ddp(mesh):
    model = nn.parallel.DistributedDataParallel(Small())
    sizes = []

    def hook(_, bucket):
        sizes.append(bucket.buffer().nbytes)
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    model.register_comm_hook(None, hook)
    model(torch.zeros(B, T, dtype=torch.long)).sum().backward()
    (found,) = communication(MODEL, Layout(dp=RANKS), B, T, gradient_bytes=4).collectives
    assert (found.op, found.payload * found.count) == ("all_reduce", sum(sizes))


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("reduced", [torch.float32, torch.bfloat16])
def test_fsdp2_is_zero_3(mesh, microbatches, reduced):
    """The whole model as one unit, so that the forward and the backward pass each gather it."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    model = nn.Sequential(Small())
    fully_shard(
        model[0], mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=reduced)
    )
    fully_shard(model, mesh=mesh)
    with Seen() as seen:
        for _ in range(microbatches):
            model(torch.zeros(B, T, dtype=torch.long)).float().sum().backward()
    layout = Layout(dp=RANKS, zero=3, microbatches=microbatches)
    traffic = communication(MODEL, layout, B, T, gradient_bytes=reduced.itemsize)
    assert seen.calls == expected(traffic.collectives)


def test_fsdp2_by_layers_moves_the_same_bytes(mesh):
    model = Small()
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    with Seen() as seen:
        model(torch.zeros(B, T, dtype=torch.long)).sum().backward()
    moved = Counter()
    for (op, size), count in seen.calls.items():
        moved[op] += size * count
    traffic = communication(MODEL, Layout(dp=RANKS, zero=3), B, T, parameter_bytes=4, gradient_bytes=4)
    assert moved == {each.op: each.payload * each.count for each in traffic.collectives}


def tensor_parallel(mesh, sp):
    model = Small()
    cut = Shard(1) if sp else Replicate()
    plan = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=cut),
        "head": ColwiseParallel(input_layouts=cut, output_layouts=Shard(-1)),
    }
    for layer in range(LAYERS):
        for half in range(2):
            plan[f"layers.{layer}.{half}.into"] = ColwiseParallel(input_layouts=cut)
            plan[f"layers.{layer}.{half}.back"] = RowwiseParallel(output_layouts=cut)
    return parallelize_module(model, mesh, plan)


@pytest.mark.parametrize("sp", [False, True])
def test_tensor_parallel(mesh, sp):
    """DTensor: sums of blocks, embedding and head; with sp, gathers and scatters in their place."""
    model = tensor_parallel(mesh, sp)
    for half in (half for layer in model.layers for half in layer):
        half.outer = half.outer // RANKS
    with Seen() as seen:
        model(torch.zeros(B, T, dtype=torch.long)).sum().backward()
    layout = Layout(tp=RANKS, sp=sp)
    traffic = communication(MODEL, layout, B, T, value_bytes=4, gradient_bytes=4, regather=False)
    # Gradients of norms are summed by the training loop, which this test does not have.
    loop = [each for each in traffic.collectives if each.name != "gradients of copied weights"]
    assert seen.calls == expected(loop)


def test_copied_weights_under_sequence_parallelism():
    traffic = communication(MODEL, Layout(tp=RANKS, sp=True), B, T, gradient_bytes=4)
    (norms,) = [each for each in traffic.collectives if each.name == "gradients of copied weights"]
    assert norms.payload == 4 * (2 * LAYERS + 1) * D


def flash(query, key, value, is_causal=False, **_):
    """The kernel that PyTorch would hand to its ring on a GPU has this twin: gives (out, log of sums)."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, is_causal)


def flash_backward(query, key, value, out, logsumexp, is_causal, gradient, **_):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, query, key, value, out, logsumexp, 0.0, is_causal
    )


@pytest.fixture
def ring():
    """PyTorch's own ring attention; its options are put back."""
    attention = pytest.importorskip("torch.distributed.tensor.experimental._context_parallel._attention")
    options = attention._cp_options
    kept = options.enable_load_balance, options.rotate_method
    yield attention
    options.enable_load_balance, options.rotate_method = kept


def test_pytorchs_ring_gathers_and_sums_in_fp32_unless_told_otherwise(ring):
    assert ring._cp_options.rotate_method == ring._RotateMethod.ALL_GATHER
    assert ring._cp_options.convert_to_f32


@pytest.mark.parametrize("rotates", ["ALL_GATHER", "ALL_TO_ALL"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("groups", [1, 4])
def test_context_parallel_ring(mesh, ring, groups, dtype, causal, rotates):
    """PyTorch's ring attention, forward and backward, sends what the ledger says: call by call, all of it.

    It is called where its dispatcher would call it, which has no entry for kernels of the CPU. Causal, its
    load balancing is on. Its other way of rotating sends the same bytes as p - 1 permutations, which PyTorch
    writes as an all-to-all with one receiver.
    """
    attention = Attention(4, groups, 4)
    model = Model("small", D, V, T, (Layer(attention, MLP(FF)),) * LAYERS, tied=False)
    ring._cp_options.enable_load_balance = causal
    ring._cp_options.rotate_method = getattr(ring._RotateMethod, rotates)
    q = torch.randn(B, 4, T // RANKS, 4, dtype=dtype)
    k, v = (torch.randn(B, groups, T // RANKS, 4, dtype=dtype) for _ in range(2))

    def grouped(key):  # the CPU kernel wants a key for each query head; what is sent stays as it was
        return key.repeat_interleave(4 // groups, dim=1)

    def ahead(query, key, value, **given):
        return flash(query, grouped(key), grouped(value), **given)

    def back(query, key, value, **given):
        gradients = flash_backward(query, grouped(key), grouped(value), **given)
        small = (each.unflatten(1, (groups, -1)).sum(2) for each in gradients[1:])
        return gradients[0], *small

    with Seen() as seen:
        out, logsumexp = ring._templated_ring_attention(mesh.get_group(), 2, ahead, q, k, v, causal)
        ring._templated_ring_attention_backward(
            mesh.get_group(), 2, back, torch.ones_like(out), "gradient", q, k, v, out, logsumexp, causal
        )
    layout = Layout(cp=RANKS, microbatches=3)
    found = communication(model, layout, B, T, value_bytes=dtype.itemsize).collectives
    said = Counter()
    for each in found:
        if each.group == "cp":
            gathers = each.op == "all_gather" and rotates == "ALL_TO_ALL"
            hops, payload = (RANKS - 1, each.payload // RANKS) if gathers else (1, each.payload)
            kind = "all_gather" if each.op == "all_gather" and not gathers else "all_to_all"
            said[kind, payload] += each.count * hops
    assert {call: 3 * LAYERS * count for call, count in seen.calls.items()} == said


def test_transformer_engines_ring_sends_fewer_gradients():
    """One hop less, and in the activations' type: 2 (p - 1) / (p - 1 + 2 p) of PyTorch's backward bytes."""

    def backward(ring):
        found = communication(MODEL, Layout(cp=RANKS), B, T, ring=ring).collectives
        return sum(each.sent.value for each in found if each.group == "cp" and "forward" not in each.name)

    one = B * T // RANKS * 2 * D * 2 * LAYERS
    assert backward("transformer_engine") == 2 * (RANKS - 1) * one
    assert backward("pytorch") == (RANKS - 1 + 2 * RANKS) * one


@pytest.mark.parametrize(("recompute", "times"), [("none", 1), ("core", 2), ("full", 2)])
@pytest.mark.parametrize("ring", ["pytorch", "transformer_engine"])
def test_recomputed_attention_asks_for_keys_and_values_again(ring, recompute, times):
    found = communication(MODEL, Layout(cp=RANKS), B, T, recompute=recompute, ring=ring).collectives
    sent = {each.name: each.sent.value for each in found}
    assert sent["keys and values, forward"] == times * sent["keys and values, backward"]


def test_expert_parallel(mesh):
    """A layer of experts sends its tokens with PyTorch's differentiable all-to-all: twice in each pass.

    Tokens are sorted by expert, with equal shares; backward, autograd sends the gradients the other way.
    """
    from torch.distributed._functional_collectives import all_to_all_single_autograd

    moe = Layer(BLOCK.attention, MoE(n_experts=8, top_k=2, d_ff=FF))
    model = Model("experts", D, V, T, (moe,) * LAYERS, tied=False)
    weights = [torch.zeros(8 // RANKS, D, D, requires_grad=True) for _ in range(LAYERS)]
    x = torch.zeros(B * T, D, requires_grad=True)
    with Seen() as seen:
        hidden = x
        for weight in weights:
            chosen = hidden.repeat_interleave(2, dim=0)
            here = all_to_all_single_autograd(chosen, None, None, mesh.get_group())
            worked = torch.bmm(here.view(8 // RANKS, -1, D), weight).view(-1, D)
            home = all_to_all_single_autograd(worked, None, None, mesh.get_group())
            hidden = hidden + home.view(-1, 2, D).sum(1)
        hidden.sum().backward()
    traffic = communication(model, Layout(dp=RANKS, ep=RANKS), B, T, value_bytes=4)
    assert seen.calls == expected(each for each in traffic.collectives if each.group == "ep")


@pytest.mark.parametrize(("zero", "times"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_zero_volumes(zero, times):
    """2 Ψ up to stage 2, 3 Ψ for stage 3 (arXiv:1910.02054, section 7), times (p - 1) / p."""
    traffic = communication(load("llama-3-8b"), Layout(dp=8, zero=zero), 1, 128)
    assert volume(traffic.collectives) == times * Fraction(7, 8) * 2 * 8_030_261_248


def test_pipeline_sends():
    """Each stage but the last sends forward, each but the first backward; interleaving multiplies both."""
    model = Model("deep", D, V, T, (BLOCK,) * 8, tied=False)
    for vpp in (1, 2):
        layout = Layout(pp=4, vpp=vpp, microbatches=8)
        found = [
            {each.name: each.count for each in communication(model, layout, B, T, stage=stage).collectives}
            for stage in range(4)
        ]
        ahead = [each.get("activations to the next stage", 0) for each in found]
        back = [each.get("gradients to the stage before", 0) for each in found]
        assert sum(ahead) == sum(back) == 8 * (4 * vpp - 1)


def test_times_are_alpha_beta():
    ring = Collective("sum", "all_reduce", "dp", 8, 8 * 10**9, 2)
    assert ring.sent.value == 2 * 2 * 7 * 10**9
    assert float(ring.seconds(10**9, 1e-3).value) == pytest.approx(28 + 2 * 14 * 1e-3)
    h100 = device("h100")
    inside = communication(MODEL, Layout(dp=8), B, T).seconds(h100).total
    outside = communication(MODEL, Layout(dp=16), B, T).seconds(h100).total
    assert outside / inside == pytest.approx((15 / 16) / (7 / 8) * 450 / 50)


def test_refused():
    with pytest.raises(ArgumentError, match="length"):
        communication(MODEL, Layout(cp=3), B, T)
    with pytest.raises(ArgumentError, match="stage"):
        communication(MODEL, Layout(), B, T, stage=1)
    with pytest.raises(ArgumentError, match="ring"):
        communication(MODEL, Layout(cp=2), B, T, ring="zigzag")
    with pytest.raises(ArgumentError, match="device"):
        communication(MODEL, Layout(dp=16), B, T).seconds(device("apple-m2"))
