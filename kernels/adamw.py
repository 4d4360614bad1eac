"""AdamW as one kernel launch for all tensors of a parameter group.

    p <- p (1 - lr wd);  m <- m + (1 - b1)(g - m);  v <- b2 v + (1 - b2) g^2
    p <- p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2017, arXiv:1711.05101), algorithm 2.

Contract: dense parameters. float32 parameters take float32 gradients; bfloat16 and float16 parameters get a
float32 master copy in the optimizer's state, which is what is updated, and are rounded from it. State is
float32. ``master=False`` and ``moments=torch.bfloat16`` do with less, where memory is what limits a run.
``state_dict`` has torch.optim.AdamW's names (exp_avg, exp_avg_sq, step) and can be exchanged with it.

Bytes a parameter: 28 in float32 (read p, g, m, v; write p, m, v); 28 with a master as well (its g and p are 2
bytes: read 2 + 12, write 2 + 12). About 15 FLOPs. A model has hundreds of tensors, most of them small: a
launch for each would cost more than the work. Instead all tensors are cut into chunks of BLOCK values, and a
program looks up which chunk of which tensor is its own. The tables are made once; a step sends new addresses
only where gradients have moved. Every value is computed by one thread: results are bitwise repeatable.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from kernels._math import divide
from kernels._runtime import DTYPES, _on_device, cdiv, tl, triton, triton_dtype, usable
from kernels.bench.case import Bench, Factory, Inputs, Shape, Work, normal

# Four values a thread: with eight, and a master copy, a processor has room for few threads, and 84 % of the
# copy bandwidth instead of 97 is reached.
BLOCK, WARPS = 512, 4


@triton.jit
def _update(
    p,
    g,
    m,
    v,
    low,
    place,
    size,
    decay,
    beta1_rest,
    beta2_rest,
    step_size,
    root_bias2,
    eps,
    factor,
    MASTER: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """One chunk. WHOLE: no mask, so that loads stay 16 bytes wide whatever the tensor's size."""
    mask = None if WHOLE else place < size
    grad = tl.load(g + place, mask).to(tl.float32) * factor
    mean = tl.load(m + place, mask).to(tl.float32)
    square = tl.load(v + place, mask).to(tl.float32)
    value = tl.load(p + place, mask).to(tl.float32)
    # Differences times small constants: 1 - lr wd and b2 in float32 would err the same way at each step.
    value -= decay * value
    mean += beta1_rest * (grad - mean)
    square += beta2_rest * (grad * grad - square)
    root = divide(tl.sqrt_rn(square), root_bias2, True) + eps
    value -= step_size * divide(mean, root, True)
    tl.store(p + place, value.to(p.dtype.element_ty), mask)
    tl.store(m + place, mean.to(m.dtype.element_ty), mask)
    tl.store(v + place, square.to(v.dtype.element_ty), mask)
    if MASTER:
        tl.store(low + place, value.to(low.dtype.element_ty), mask)


@triton.jit
def _adamw(
    POINTERS,
    SIZES,
    FIRST,
    OWNER,
    tensors,
    decay,
    beta1_rest,
    beta2_rest,
    step_size,
    root_bias2,
    eps,
    FACTOR,
    SCALED: tl.constexpr,
    DTYPE: tl.constexpr,
    MOMENTS: tl.constexpr,
    WIDE: tl.constexpr,
    MASTER: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunk = tl.program_id(0)
    owner = tl.load(OWNER + chunk)
    start = (chunk - tl.load(FIRST + owner)).to(tl.int64) * BLOCK
    size = tl.load(SIZES + owner)
    p = tl.multiple_of(tl.load(POINTERS + owner).to(tl.pointer_type(WIDE)), ALIGN)
    g = tl.multiple_of(tl.load(POINTERS + tensors + owner).to(tl.pointer_type(DTYPE)), ALIGN)
    m = tl.multiple_of(tl.load(POINTERS + 2 * tensors + owner).to(tl.pointer_type(MOMENTS)), ALIGN)
    v = tl.multiple_of(tl.load(POINTERS + 3 * tensors + owner).to(tl.pointer_type(MOMENTS)), ALIGN)
    low = tl.multiple_of(tl.load(POINTERS + 4 * tensors + owner).to(tl.pointer_type(DTYPE)), ALIGN)
    place = start + tl.arange(0, BLOCK)
    factor = 1.0
    if SCALED:
        factor = tl.load(FACTOR).to(tl.float32)
    # fmt: off
    if start + BLOCK <= size:
        _update(p, g, m, v, low, place, size, decay, beta1_rest, beta2_rest, step_size, root_bias2, eps,
                factor, MASTER, True)
    else:
        _update(p, g, m, v, low, place, size, decay, beta1_rest, beta2_rest, step_size, root_bias2, eps,
                factor, MASTER, False)
    # fmt: on


class _Tables:
    """Addresses of some tensors of one dtype on one device, and the chunks they are cut into."""

    def __init__(self, params: list[Tensor], states: list[dict[str, Any]], block: int, warps: int) -> None:
        self.params, self.states, self.block, self.warps = params, states, block, warps
        self.device, self.dtype = params[0].device, params[0].dtype
        self.master = "master" in states[0]
        self.moments = states[0]["exp_avg"].dtype
        sizes = [p.numel() for p in params]
        chunks = torch.tensor([cdiv(size, block) for size in sizes])
        self.chunks = int(chunks.sum())
        owner = torch.repeat_interleave(torch.arange(len(params), dtype=torch.int32), chunks)
        self.owner = owner.to(self.device)
        self.first = (chunks.cumsum(0) - chunks).to(self.device, torch.int32)
        self.sizes = torch.tensor(sizes, device=self.device)
        self.addresses: list[int] = []
        self.pointers = self.sizes
        self.align = 0

    def _point(self, grads: list[Tensor]) -> None:
        wide = [s["master"] for s in self.states] if self.master else self.params
        columns = (
            wide,
            grads,
            [s["exp_avg"] for s in self.states],
            [s["exp_avg_sq"] for s in self.states],
            self.params,
        )
        addresses = [t.data_ptr() for column in columns for t in column]
        if addresses == self.addresses:
            return
        self.addresses = addresses
        self.align = 16 if all(address % 16 == 0 for address in addresses) else self.dtype.itemsize
        table = torch.tensor(addresses, pin_memory=self.device.type == "cuda")
        self.pointers = table.to(self.device, non_blocking=True)

    def step(self, grads: list[Tensor], scalars: tuple[float, ...], factor: Tensor | None) -> None:
        """One step with the gradients of ``params``, contiguous and in their dtype, times ``factor``."""
        self._point(grads)
        _launch(self.pointers, self, scalars, factor)


@_on_device
def _launch(pointers: Tensor, tables: _Tables, scalars: tuple[float, ...], factor: Tensor | None) -> None:
    _adamw[(tables.chunks,)](
        pointers,
        tables.sizes,
        tables.first,
        tables.owner,
        len(tables.params),
        *scalars,
        tables.sizes if factor is None else factor,
        SCALED=factor is not None,
        DTYPE=triton_dtype(tables.dtype),
        MOMENTS=triton_dtype(tables.moments),
        WIDE=triton_dtype(torch.float32 if tables.master else tables.dtype),
        MASTER=tables.master,
        ALIGN=tables.align,
        BLOCK=tables.block,
        num_warps=tables.warps,
    )


def _scalars(
    lr: float, betas: tuple[float, float], eps: float, weight_decay: float, step: int
) -> tuple[float, ...]:
    """What the kernel needs, computed in double precision."""
    beta1, beta2 = betas
    bias1, bias2 = 1 - beta1**step, 1 - beta2**step
    return lr * weight_decay, 1 - beta1, 1 - beta2, lr / bias1, math.sqrt(bias2), eps


def reference(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    step: int = 1,
) -> None:
    """One step in plain PyTorch, in place on p, m and v; ``step`` counts from 1."""
    decay, beta1_rest, beta2_rest, step_size, root_bias2, eps = _scalars(lr, betas, eps, weight_decay, step)
    p.mul_(1 - decay)
    m.lerp_(g, beta1_rest)
    v.mul_(betas[1]).addcmul_(g, g, value=beta2_rest)
    p.addcdiv_(m, v.sqrt().div_(root_bias2).add_(eps), value=-step_size)


def _check_group(group: dict[str, Any]) -> None:
    """Raises ValueError, naming the argument, what came and what is allowed."""
    if not float(group["lr"]) >= 0:
        raise ValueError(f"lr must be at least 0, got {group['lr']}")
    if len(group["betas"]) != 2 or not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas must be two numbers, 0 or more and less than 1, got {group['betas']}")
    for name in ("eps", "weight_decay"):
        if not group[name] >= 0:
            raise ValueError(f"{name} must be at least 0, got {group[name]}")
    for name in ("amsgrad", "maximize"):
        if group.get(name):
            raise ValueError(f"{name} is not supported: it must be False")


class FusedAdamW(torch.optim.Optimizer):
    """AdamW; a step is one launch for each parameter group, dtype and number of steps taken.

    Equal to torch.optim.AdamW to float32 rounding for float32 parameters. Parameters that the kernel cannot
    take (not contiguous, on a CPU without Triton's interpreter, float64) are updated in plain PyTorch.

    Args:
        moments: the type of both moments; a parameter of a wider type keeps them in its own. In bfloat16 a
            second moment follows only changes of more than 1 part in 512 a step: then choose b2 of 0.99 or
            less. Arithmetic is float32 in any case.
        master: whether a parameter of 16 bits has a float32 copy, which takes the steps. Without one, steps
            smaller than half the distance to the next value are lost.

    Attributes:
        grad_factor: a tensor of one value that the next step multiplies every gradient by, in float32, or
            ``None``. Clipping costs no pass over the gradients this way; each step sets it back to ``None``.

    Raises:
        ValueError: a hyperparameter outside its range, moments that are no floating-point type.
        RuntimeError: a gradient that is sparse or not of its parameter's dtype.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        moments: torch.dtype = torch.float32,
        master: bool = True,
        block: int = BLOCK,
        warps: int = WARPS,
    ) -> None:
        self._tables: dict[tuple[int, ...], _Tables] = {}
        self.grad_factor: Tensor | None = None
        self._block, self._warps = block, warps
        if moments not in DTYPES:
            raise ValueError(f"moments must be one of {', '.join(map(str, DTYPES))}, got {moments}")
        self._moments, self._master = moments, master
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        for group in self.param_groups:
            _check_group(group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._tables = {}
        self.grad_factor = None

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_block", "_warps", "_moments", "_master")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the state has the types that this optimizer keeps, whatever the parameter's."""
        super().load_state_dict(state_dict)
        self._tables = {}
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        mine = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(saved, mine, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if name != "step" and isinstance(value, Tensor):
                    dtype = torch.float32 if name == "master" else self._moments_of(p)
                    # A copy of its own, as torch's cast is none where dtype and device are right already.
                    self.state[p][name] = value.detach().to(p.device, dtype, copy=True).contiguous()
            if not self._master:
                self.state[p].pop("master", None)
        for group in self.param_groups:
            _check_group(group)

    def _moments_of(self, p: Tensor) -> torch.dtype:
        return torch.promote_types(p.dtype, self._moments)

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        state = self.state[p]
        if "step" not in state:  # there may be a master already, from values that were never rounded
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(p, dtype=self._moments_of(p))
            state["exp_avg_sq"] = torch.zeros_like(p, dtype=self._moments_of(p))
        if self._master and p.dtype in (torch.bfloat16, torch.float16) and "master" not in state:
            state["master"] = p.detach().float()
        if state["step"].is_cuda:  # from a state_dict of torch's fused AdamW
            state["step"] = state["step"].cpu()
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure``, where given, computes the loss (with gradients) first and it is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        self.grad_factor = None
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        states = [self._state_of(p) for p in params]
        torch._foreach_add_([s["step"] for s in states], 1)
        alike: dict[tuple[Any, ...], list[int]] = {}
        for index, (p, state) in enumerate(zip(params, states, strict=True)):
            if p.grad.is_sparse or p.grad.dtype != p.dtype:
                raise RuntimeError(
                    f"gradients must be dense and {p.dtype} like their parameter, "
                    f"got {p.grad.layout}, {p.grad.dtype}"
                )
            if p.numel():
                # A tensor that is spread over processes has no address of its own.
                plain = type(p) in (Tensor, torch.nn.Parameter)
                fused = plain and usable(p) and p.is_contiguous()
                alike.setdefault((int(state["step"]), p.device, p.dtype, fused), []).append(index)
        for (step, _, _, fused), indices in alike.items():
            update = self._fused if fused else self._plain
            update([params[i] for i in indices], [states[i] for i in indices], group, step)

    def _fused(
        self, params: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any], step: int
    ) -> None:
        key = tuple(map(id, params))
        if key not in self._tables:
            self._tables[key] = _Tables(params, states, self._block, self._warps)
        hyper = (float(group["lr"]), group["betas"], group["eps"], group["weight_decay"], step)
        grads = [p.grad.contiguous() for p in params if p.grad is not None]
        factor = None if self.grad_factor is None else self.grad_factor.to(params[0].device)
        self._tables[key].step(grads, _scalars(*hyper), factor)

    def _plain(
        self, params: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any], step: int
    ) -> None:
        hyper = {name: group[name] for name in ("betas", "eps", "weight_decay")}
        for p, state in zip(params, states, strict=True):
            kept = (state.get("master", p), state["exp_avg"], state["exp_avg_sq"])
            wide = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in kept]
            assert p.grad is not None
            grad = p.grad.to(wide[0].dtype)
            if self.grad_factor is not None:
                grad = grad * self.grad_factor.to(grad.device, grad.dtype)
            reference(wide[0], grad, *wide[1:], lr=float(group["lr"]), step=step, **hyper)
            for t, found in zip(kept, wide, strict=True):
                if t is not found:
                    t.copy_(found)
            if kept[0] is not p:
                p.copy_(kept[0])


# -- the benchmark -------------------------------------------------------------------------------------------


def _sizes(shape: Shape) -> list[tuple[int, ...]]:
    """The matrices and vectors of a decoder with tied embeddings."""
    d, f = shape["d_model"], shape["d_ff"]
    layer: list[tuple[int, ...]] = [(d, d)] * 4 + [(f, d)] * 3 + [(d,)] * 2
    return [(shape["vocab_size"], d), *(layer * shape["n_layers"]), (d,)]


def _inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    return {name: [normal(shape, generator, *size) for size in _sizes(shape)] for name in ("params", "grads")}


def _step_of(make: Callable[..., torch.optim.Optimizer]) -> Callable[..., Callable[[], list[Tensor]]]:
    def start(params: list[Tensor], grads: list[Tensor]) -> Callable[[], list[Tensor]]:
        leaves = [torch.nn.Parameter(p.detach()) for p in params]
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad
        optimizer = make(leaves, lr=1e-3, weight_decay=0.1)

        def step() -> list[Tensor]:
            optimizer.step()
            return [leaf.detach() for leaf in leaves]

        return step

    return start


def _reference(params: list[Tensor], grads: list[Tensor]) -> Callable[[], list[Tensor]]:
    def step() -> list[Tensor]:
        for p, g in zip(params, grads, strict=True):
            reference(p, g, torch.zeros_like(p), torch.zeros_like(p), lr=1e-3, weight_decay=0.1)
        return params

    return step


def _torch(**options: Any) -> Factory:
    return lambda: _step_of(functools.partial(torch.optim.AdamW, **options))


def _work(shape: Shape) -> dict[str, Work]:
    values = sum(map(math.prod, _sizes(shape)))
    return {"step": Work(28 * values, 15 * values)}


def _shape(n_layers: int, d_model: int, d_ff: int, vocab_size: int) -> Shape:
    sizes = {"n_layers": n_layers, "d_model": d_model, "d_ff": d_ff, "vocab_size": vocab_size}
    return Shape(sizes, torch.float32)


BENCH = Bench(
    name="adamw",
    inputs=_inputs,
    ours=_step_of(FusedAdamW),
    reference=_reference,
    phases=("step",),
    peers={"torch, foreach": _torch(foreach=True), "torch, fused": _torch(fused=True)},
    work=_work,
    shapes=(_shape(24, 1024, 4096, 50_257),),
    full=(_shape(12, 768, 2048, 50_257), _shape(4, 256, 768, 8192)),
    tiny=(_shape(1, 16, 24, 37),),
)
