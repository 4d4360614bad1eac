"""Weights of GPT-2, Llama, Mistral, Qwen2, Qwen3 and Mixtral, from and to Hugging Face folders.

A folder holds ``config.json`` and safetensors, in one file or in shards with an index. A hub name is
downloaded to Hugging Face's cache first; without a connection, only what the cache holds already loads.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lmlib.architecture.huggingface_config import read_config, write_config
from lmlib.architecture.huggingface_tensors import Pair, pairs
from lmlib.architecture.model import TransformerLM
from lmlib.data.sources import _reachable

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# Kept in old checkpoints, and computed here: masks and frequencies.
_COMPUTED = re.compile(r"(\.attn\.(masked_)?bias|rotary_emb\.inv_freq)$")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FLOATS = ("F64", "F32", "F16", "BF16")  # integers and fp8 come with scales, which are not read
_SHOWN = 5  # names in an error message


def load_pretrained(
    source: str | os.PathLike[str],
    *,
    kernels: str = "sdpa",
    context_length: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> TransformerLM:
    """A model with the weights of a folder or of a name on the Hugging Face hub.

    Args:
        source: a folder, or a name such as ``openai-community/gpt2``.
        context_length: shorter than the checkpoint's, to save memory; not with learned positions.
        dtype: of the parameters; the checkpoint's are converted.

    Raises:
        FileNotFoundError: for a missing folder or file.
        ValueError: for a family or setting that is not supported (``ArgumentError``), a damaged file, or
            tensors that are missing, left over, of another shape or quantized, which are named.
        ConnectionError: for a hub name that is not in the cache while the hub cannot be reached.
    """
    folder = _folder(source)
    written = _read_json(folder / CONFIG)
    config = read_config(written).replace(kernels=kernels)
    if context_length is not None:
        if context_length > config.context_length or config.position == "learned":
            raise ValueError(
                f"context_length: must be at most the checkpoint's {config.context_length}, and left out "
                f"with learned positions, got {context_length}"
            )
        config = config.replace(context_length=context_length)
    with torch.device("meta"):
        model = TransformerLM(config)
    model = model.to(dtype).to_empty(device=device)
    _fill(model, written["model_type"], folder)
    return model


def _fill(model: TransformerLM, family: str, folder: Path) -> None:
    """Copy the folder's tensors into the model, after looking at all names and shapes."""
    found = {_common_name(name, family): (name, file) for name, file in _places(folder).items()}
    parameters = dict(model.named_parameters())
    wanted = pairs(model.config, family)
    names = {name for pair in wanted for name, _ in pair.theirs}
    extra = {name for name in found if name not in names and not _COMPUTED.search(name)}
    if model.config.tied:
        extra.discard("lm_head.weight")
    _refuse("lacks", sorted(names - found.keys()), folder)
    _refuse("holds what this model has no place for:", sorted(extra), folder)
    files = {file: _open(folder / file) for file in sorted({file for _, file in found.values()})}
    _check_shapes(wanted, parameters, found, files, folder)
    with torch.no_grad():
        for pair in wanted:
            ours = parameters[pair.ours]
            stored = [found[name] for name, _ in pair.theirs]
            theirs = [files[file].get_tensor(name) for name, file in stored]
            ours.copy_(pair.join(theirs, ours.shape))


def _check_shapes(
    wanted: list[Pair],
    parameters: dict[str, nn.Parameter],
    found: dict[str, tuple[str, str]],
    files: dict[str, Any],
    folder: Path,
) -> None:
    wrong = []
    for pair in wanted:
        for name, shape in pair.shapes(parameters[pair.ours]):
            stored, file = found[name]
            try:
                tensor = files[file].get_slice(stored)
            except SafetensorError as error:
                raise ValueError(f"{str(folder / file)!r} lacks {stored}, which the index names") from error
            there = tuple(tensor.get_shape())
            if there != shape:
                wrong.append(f"{name} of shape {there} instead of {shape}")
            elif tensor.get_dtype() not in _FLOATS:
                wrong.append(f"{name} of type {tensor.get_dtype()} instead of one of {', '.join(_FLOATS)}")
    _refuse("holds", wrong, folder)


def _refuse(verb: str, names: list[str], folder: Path) -> None:
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise ValueError(f"{str(folder)!r} {verb} {', '.join(names[:_SHOWN])}{more}")


def _common_name(name: str, family: str) -> str:
    """GPT-2's first checkpoints have no prefix."""
    if family == "gpt2" and not name.startswith(("transformer.", "lm_head.")):
        return f"transformer.{name}"
    return name


def _places(folder: Path) -> dict[str, str]:
    """The file of every tensor."""
    if (folder / INDEX).exists():
        places = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise ValueError(f"{str(folder / INDEX)!r} has no weight_map from tensors to files")
        return places
    if not (folder / WEIGHTS).exists():
        raise FileNotFoundError(f"{str(folder)!r} has no {WEIGHTS} or its index; other formats are not read")
    return dict.fromkeys(_open(folder / WEIGHTS).keys(), WEIGHTS)


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        if not file.exists():
            raise FileNotFoundError(f"{str(file)!r}, which the index names, is missing") from error
        raise ValueError(f"{str(file)!r} is damaged: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise FileNotFoundError(f"{str(file)!r} does not exist")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{str(file)!r} must hold an object, got {type(values).__name__}")
    return values


def _folder(source: str | os.PathLike[str]) -> Path:
    """A local folder: ``source`` itself, or where the hub's files of that name lie."""
    path = Path(source)
    if path.is_dir():
        return path
    if not isinstance(source, str) or not _HUB_NAME.fullmatch(source) or path.exists():
        raise FileNotFoundError(f"source: must be a folder or a name on the hub, got {str(source)!r}")
    way_on = "give a folder with its config.json and safetensors"
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(f"{source!r} needs `pip install huggingface-hub`; without it, {way_on}") from error
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"} or not _reachable()
    patterns = [CONFIG, INDEX, "*.safetensors"]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, local_files_only=offline))
    except OSError as error:
        if not offline:
            raise
        raise ConnectionError(
            f"{source!r} is no folder and not in Hugging Face's cache, and the hub is out of reach: {way_on}."
        ) from error


def save_pretrained(
    model: TransformerLM,
    folder: str | os.PathLike[str],
    *,
    family: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write ``config.json`` and safetensors that transformers' AutoModelForCausalLM loads.

    Args:
        folder: made if it does not exist.
        family: one of ``huggingface_config.FAMILIES``; ``None``: the first that can hold the model.
        max_shard_bytes: above this, tensors go into several files with an index.

    Raises:
        ArgumentError: if no family has what this model has, or ``family`` has not; it names the fields.
    """
    written = write_config(model.config, family)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    written["dtype"] = str(model.head_weight.dtype).removeprefix("torch.")
    shards = _shards(model, written["model_type"], max_shard_bytes)
    jsons = {CONFIG: written}
    files = {WEIGHTS: shards[0]}
    if len(shards) > 1:
        files = {f"model-{n:05}-of-{len(shards):05}.safetensors": shard for n, shard in enumerate(shards, 1)}
        places = {name: file for file, shard in files.items() for name in shard}
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        jsons[INDEX] = {"metadata": {"total_size": total}, "weight_map": places}
    _replace_files(path, files, jsons)


def _shards(model: TransformerLM, family: str, limit: int) -> list[dict[str, Tensor]]:
    """All tensors under their names, filled into shards in order."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in _theirs(model, family):
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _theirs(model: TransformerLM, family: str) -> Iterator[tuple[str, Tensor]]:
    parameters = dict(model.named_parameters())
    for pair in pairs(model.config, family):
        yield from pair.split(parameters[pair.ours])


def _replace_files(path: Path, files: dict[str, dict[str, Tensor]], jsons: dict[str, dict[str, Any]]) -> None:
    """Write everything beside what is there; only when all is written do the new files take the names.

    An index or a shard of an earlier save goes: it would be read in place of the new files.
    """
    parts = {name: path / f"{name}.part" for name in (*files, *jsons)}
    try:
        for name, tensors in files.items():
            save_file(tensors, parts[name], {"format": "pt"})
        for name, values in jsons.items():
            parts[name].write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        for old in (*path.glob("model-*-of-*.safetensors"), path / INDEX, path / WEIGHTS):
            if old.name not in parts:
                old.unlink(missing_ok=True)
        for name, part in parts.items():
            os.replace(part, path / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
