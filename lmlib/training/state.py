"""The state of a model, an optimizer and the random generators as tensors and JSON: nothing is pickled."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lmlib.training.tensors import write_tensors

MODEL, OPTIMIZER, OPTIONS = "model.safetensors", "optimizer.safetensors", "optimizer.json"


def write_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write ``model.safetensors``, ``optimizer.safetensors`` and ``optimizer.json`` into a folder."""
    write_tensors(path / MODEL, unique_tensors(model))
    tensors, options = pack_optimizer(optimizer.state_dict())
    write_tensors(path / OPTIMIZER, tensors)
    (path / OPTIONS).write_text(json.dumps(options), encoding="utf-8")


def read_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load what ``write_state`` wrote, in place.

    Raises:
        ValueError: if a tensor is missing, left over, or of another shape; names it.
    """
    load_model(path, model)
    options = json.loads((path / OPTIONS).read_text(encoding="utf-8"))
    optimizer.load_state_dict(unpack_optimizer(load_file(path / OPTIMIZER), options))


def load_model(path: Path, model: nn.Module) -> None:
    """Load the model's weights of a checkpoint's folder.

    Raises:
        ValueError: if a tensor is missing, left over, or of another shape; names it.
    """
    saved, wanted = load_file(path / MODEL), unique_tensors(model)
    for name, tensor in wanted.items():
        if name not in saved:
            raise ValueError(f"{path / MODEL} lacks {name}, shape {tuple(tensor.shape)}: another model's?")
        if saved[name].shape != tensor.shape:
            raise ValueError(
                f"{path / MODEL}: {name} has shape {tuple(saved[name].shape)}, "
                f"the model's has {tuple(tensor.shape)}"
            )
    if extra := sorted(saved.keys() - wanted.keys()):
        raise ValueError(f"{path / MODEL} holds {extra[0]}, which the model does not have")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(saved[name])


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name; a tied parameter once, under the first of its names."""
    named = model.state_dict(keep_vars=True)
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in named.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def pack_optimizer(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's ``state_dict`` as named tensors, and JSON for all that is no tensor."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for index, state in state_dict["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                values.setdefault(str(index), {})[name] = value
    return tensors, {"values": values, "groups": state_dict["param_groups"]}


def unpack_optimizer(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """The ``state_dict`` that ``pack_optimizer`` took apart."""
    state: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in options["values"].items()
    }
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    groups = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()}
        for group in options["groups"]
    ]
    return {"state": dict(sorted(state.items())), "param_groups": groups}


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and PyTorch's generators (all CUDA devices included), for JSON."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],  # type: ignore[union-attr]
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in cuda],
    }


def set_random_state(saved: Mapping[str, Any]) -> None:
    """Bring all generators back to a state of ``random_state``; CUDA's as far as there are devices."""
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_tensor(saved["torch"]))
    if torch.cuda.is_available():
        for device, state in zip(range(torch.cuda.device_count()), saved["cuda"], strict=False):
            torch.cuda.set_rng_state(_tensor(state), device)


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
