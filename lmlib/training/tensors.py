"""Writing safetensors as a stream: no second copy of the model in memory, and the disk's own errors.

The format (https://github.com/huggingface/safetensors, "Format"): 8 bytes, little-endian, with the length
of a JSON header; the header, ``{name: {"dtype", "shape", "data_offsets"}}``; then the tensors' bytes, one
after another. Reading is left to the ``safetensors`` package.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from lmlib.resources.units import ArgumentError

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, from whatever device, into a new safetensors file.

    Raises:
        ArgumentError: for a dtype that the format has no name for.
        OSError: if the disk does not take it.
    """
    header: dict[str, dict[str, object]] = {}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ArgumentError("tensors", f"{name} is {tensor.dtype}, which safetensors has no name for")
        size = tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-len(text) % 8 + len(text))  # tensors begin at a multiple of 8 bytes
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            _write(file, tensor)


def _write(file: IO[bytes], tensor: Tensor) -> None:
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    if flat.numel():
        file.write(flat.view(torch.uint8).numpy().data)
