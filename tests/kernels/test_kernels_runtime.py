"""Where kernels run, how names are loaded, and the two doors of an operator."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
from kernels import _runtime
from kernels._runtime import DTYPES, as_rows, next_power_of_2, usable


def test_importing_the_package_imports_neither_torch_nor_triton() -> None:
    code = "import kernels, sys; assert not {'torch', 'triton'} & set(sys.modules); print('ok')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "ok\n", done.stderr


def test_a_name_is_the_function_also_after_its_module_was_imported() -> None:
    module = importlib.import_module("kernels.softmax")
    assert isinstance(module, ModuleType)
    assert kernels.softmax is module.softmax
    with pytest.raises(AttributeError, match="no attribute 'soft'"):
        kernels.soft  # noqa: B018


def test_without_triton_the_reference_computes() -> None:
    code = """
import sys
sys.modules["triton"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "triton" else find(name, *more)
import torch
from kernels import FusedAdamW, gelu_mlp, layer_norm, qkv_linear, rms_norm, rope, softmax, swiglu
x, w = torch.randn(3, 8), torch.randn(8, requires_grad=True)
rms_norm(x, w, residual=x)[0].sum().backward()
layer_norm(x, w, w, residual=x)[0].sum().backward()
gelu_mlp(x, w[None], None, w[:, None], w).sum().backward()
qkv_linear(x, w.expand(3, 8), None, [1, 1, 1])[1].sum().backward()
q = torch.randn(1, 3, 2, 8)
rope(q, q, torch.randn(3, 4), torch.randn(3, 4))
swiglu(x, softmax(x))
optimizer = FusedAdamW([w])
optimizer.step()
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ok\n", done.stderr


def test_old_interpreters_read_an_index_from_an_array_of_one_element() -> None:
    class Tensor:
        """As Triton's own, whose interpreter keeps even a scalar as an array of one element."""

        handle = SimpleNamespace(data=np.array([3]))

    def patch(tensor: type) -> None:  # as in Triton 3.2
        tensor.__index__ = lambda self: int(self.handle.data[None])

    interpreter = SimpleNamespace(_patch_lang_tensor=patch)
    _runtime._let_interpreter_index(interpreter)
    interpreter._patch_lang_tensor(Tensor)
    assert list(range(5))[Tensor()] == 3


class Endless:
    def __str__(self) -> str:
        raise AssertionError("spelled out")


@pytest.mark.parametrize(("version", "brief"), [("2.11.0+cu130", True), ("2.13.0", False)])
def test_old_inductors_name_an_operator_and_not_what_it_is_given(
    version: str, brief: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue = type("OperatorIssue", (), {})
    monkeypatch.setitem(sys.modules, "torch._inductor.exc", SimpleNamespace(OperatorIssue=issue))
    monkeypatch.setattr(torch, "__version__", version)
    with FakeTensorMode() as mode:
        kernels.softmax(mode.from_tensor(torch.randn(2, 8, device=device)))
    assert hasattr(issue, "operator_str") == brief
    if brief:
        assert issue.operator_str("lmlib.softmax", [Endless()], {}) == "  target: lmlib.softmax"


def test_usable(device: str) -> None:
    x = torch.ones(3, device=device)
    assert usable(x) == usable(x, None) == _runtime.HAVE_TRITON
    assert not usable(x, x.double())
    assert not usable(x.to(torch.int32))
    assert not usable(x, torch.ones(3, device="meta"))
    assert not usable(None)
    assert len(DTYPES) == 3


def test_next_power_of_2() -> None:
    assert [next_power_of_2(n) for n in (0, 1, 2, 3, 4, 5, 1000, 1024)] == [1, 1, 2, 4, 4, 8, 1024, 1024]


def test_rows_are_views_where_strides_allow() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert as_rows(x).data_ptr() == x.data_ptr()
    assert as_rows(x).shape == (6, 4)
    half = x.reshape(6, 4)[:, 1:3]
    assert as_rows(half).data_ptr() == half.data_ptr()
    assert torch.equal(as_rows(x.transpose(0, 2)), x.transpose(0, 2).reshape(12, 2))
    assert as_rows(torch.ones(4)).shape == (1, 4)
    assert as_rows(torch.ones(4, 0)).shape == (4, 0)


INTEGERS = torch.ones(1, 1, 2, 8, dtype=torch.int64)
TARGETS = torch.zeros(1, 1, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: kernels.rms_norm(INTEGERS, torch.ones(8)), "x"),
        (lambda: kernels.rms_norm(torch.ones(2, 8), INTEGERS[0, 0, 0]), "weight"),
        (lambda: kernels.layer_norm(INTEGERS, torch.ones(8), torch.ones(8)), "x"),
        (lambda: kernels.gelu_mlp(INTEGERS, torch.ones(3, 8), None, torch.ones(8, 3), None), "x"),
        (lambda: kernels.qkv_linear(INTEGERS, torch.ones(3, 8), None, [1, 1, 1]), "x"),
        (lambda: kernels.softmax(INTEGERS), "x"),
        (lambda: kernels.swiglu(INTEGERS, INTEGERS), "gate"),
        (lambda: kernels.rope(INTEGERS, INTEGERS, torch.ones(1, 4), torch.ones(1, 4)), "q"),
        (lambda: kernels.cross_entropy(INTEGERS, TARGETS), "logits"),
        (lambda: kernels.linear_cross_entropy(INTEGERS[0, 0], INTEGERS[0, 0], TARGETS[0, 0]), "hidden"),
        (lambda: kernels.flash_attention(INTEGERS, INTEGERS, INTEGERS), "q"),
    ],
)
def test_integers_are_refused_and_not_made_zeros(call: Callable[[], object], named: str) -> None:
    with pytest.raises(TypeError, match=f"{named} must hold floating-point numbers, got torch.int64"):
        call()
