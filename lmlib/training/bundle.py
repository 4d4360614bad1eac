"""Make the small model that comes with the book.

    python -m lmlib.training.bundle --out lmlib/training/bundled [--set trainer.max_seconds=100]
    python -m lmlib.training.bundle --rescore lmlib/training/bundled

Trains the preset ``bundled``, rounds the weights to bf16, and writes them with the tokenizer and a record:
the recipe, the loss on stories that nobody trained on (split ``test``), and how coherent its own stories are.
``--rescore`` measures the last two anew for a model that is there (some minutes on a CPU), without training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lmlib.architecture import ModelConfig, TransformerLM, generate
from lmlib.data import micro_world
from lmlib.data.truth import bits_per_byte
from lmlib.resources.units import ArgumentError
from lmlib.tokenization import Tokenizer, formats
from lmlib.training import bundled
from lmlib.training.coherence import check_stories, closing_accuracy
from lmlib.training.config import RunConfig, read
from lmlib.training.dataset import TokenData
from lmlib.training.evaluate import evaluate
from lmlib.training.logs import JsonLines, Progress
from lmlib.training.loss import LossModule
from lmlib.training.prepare import encode, prepare
from lmlib.training.record import machine
from lmlib.training.run import attention_backend, make_trainer
from lmlib.training.state import MODEL, load_model, unique_tensors
from lmlib.training.tensors import write_tensors

TEST_STORIES = 300  # what the score is measured on, about 380 kB; and as many are told by the model
COOLER = 0.8  # a temperature, besides 1, that stories are told at
LARGEST = 12_000_000  # bytes, of weights and tokenizer together


def scored_on(tokenizer: Tokenizer) -> TokenData:
    """The stories that score the bundled model: the first of the split ``test``, as token ids."""
    texts = list(micro_world(0, split="test", n_documents=TEST_STORIES).texts())
    ids, _, sizes = encode(tokenizer, texts)
    return TokenData.from_array(ids, tokenizer.vocab_size, int(sizes.sum()))


def score(model: TransformerLM, tokenizer: Tokenizer, device: str = "cpu") -> dict[str, float]:
    """Nats a token and bits a byte on ``scored_on``; end marks are predicted, and not counted as bytes."""
    found = evaluate(
        LossModule(model, form="full"),
        scored_on(tokenizer),
        context_length=model.config.context_length,
        batch_size=8,
        device=device,
    )
    return {
        "nats_per_token": found["loss"],
        "bits_per_byte": found["loss_per_byte"] / math.log(2),
        "tokens": found["tokens"],
    }


def tell(
    model: TransformerLM,
    tokenizer: Tokenizer,
    stories: int,
    device: str = "cpu",
    seed: int = 0,
    temperature: float = 1.0,
) -> list[str]:
    """Stories from nothing, those that ended within the context."""
    end = tokenizer.special_tokens["<|endoftext|>"]
    start = torch.full((stories, 1), end, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    length = model.config.context_length - 1
    rows = generate(model, start, length, temperature, stop=end, generator=generator).tolist()
    told = [row[1:] for row in rows]
    return [tokenizer.decode(row[: row.index(end)]) for row in told if end in row]


def rate(
    model: TransformerLM, tokenizer: Tokenizer, device: str = "cpu", commit: str = "unknown"
) -> dict[str, Any]:
    """The part of the record that a model earns: its loss, how coherent it is, where it was measured."""
    told = tell(model, tokenizer, TEST_STORIES, device)
    cooler = tell(model, tokenizer, TEST_STORIES, device, temperature=COOLER)
    truth = list(micro_world(0, split="test", n_documents=TEST_STORIES).documents())
    right, lines = closing_accuracy(model, tokenizer, truth, device)
    return {
        "score": score(model, tokenizer, device),
        "truth_bits_per_byte": bits_per_byte(0, TEST_STORIES, split="test"),
        "coherence": {
            "stories": {"asked": TEST_STORIES, "ended": len(told), **asdict(check_stories(told))},
            "cooler_stories": {
                "temperature": COOLER,
                "asked": TEST_STORIES,
                "ended": len(cooler),
                **asdict(check_stories(cooler)),
            },
            "true_stories": asdict(check_stories([document.text for document in truth])),
            "closing_lines": {"right": right, "all": lines},
        },
        "rated": {"date": datetime.now(UTC).date().isoformat(), "commit": commit, **machine()},
    }


def rescore(folder: Path, commit: str = "unknown") -> dict[str, Any]:
    """Rate the model of a folder that ``make`` wrote, and replace that part of its record."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = bundled.load(device=device, folder=folder)
    made = bundled.record(folder) | rate(model, tokenizer, device, commit)
    write_record(folder, made)
    return made


def write_record(folder: Path, made: dict[str, Any]) -> None:
    """As readable JSON."""
    (folder / "record.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def export(model: TransformerLM, tokenizer: Tokenizer, config: RunConfig, out: Path) -> dict[str, str]:
    """Write weights in bf16, tokenizer and recipe; gives their sha256."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to(torch.bfloat16) for name, tensor in unique_tensors(model).items()}
    (out / MODEL).unlink(missing_ok=True)
    write_tensors(out / MODEL, tensors)
    formats.save_hf(tokenizer, out / "tokenizer.json")
    (out / "recipe.toml.txt").write_text(config.to_toml(), encoding="utf-8")
    names = (MODEL, "tokenizer.json", "recipe.toml.txt")
    size = sum((out / name).stat().st_size for name in names)
    if size > LARGEST:
        raise ArgumentError("model", f"must fit {LARGEST:,} bytes with its tokenizer, has {size:,}")
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}


def make(config: RunConfig, out: Path, work: Path, commit: str) -> dict[str, Any]:
    """Train, export, score, and write the record."""
    data = prepare(config.data, config.tokenizer, work)
    assert data.tokenizer is not None
    with attention_backend(config.attention_backend):
        callbacks = [JsonLines(work / "log.jsonl"), Progress()]
        trainer = make_trainer(config, data, callbacks=callbacks)
        trainer.fit()
    trained = trainer.model
    assert isinstance(trained, TransformerLM)
    files = export(trained, data.tokenizer, config, out)
    model = TransformerLM(ModelConfig.from_dict(config.model_config().to_dict()))
    load_model(out, model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).eval()
    made = {
        "model": config.model_config().to_dict(),
        "parameters": sum(each.numel() for each in model.parameters()),
        "files": files,
        **rate(model, data.tokenizer, device, commit),
        "training": {
            "steps": trainer.step,
            "tokens": trainer.tokens,
            "flops": trainer.flops,
            "seconds": trainer.seconds,
            "data_sha256": data.train.sha256,
        },
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit,
        **machine(),
    }
    write_record(out, made)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lmlib.training.bundle", description=__doc__)
    parser.add_argument("--config", default="bundled", help="a TOML file or preset (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, help="folder that the bundled files are written to")
    place.add_argument(
        "--rescore", type=Path, metavar="FOLDER", help="a folder of bundled files to rate anew"
    )
    parser.add_argument("--work", type=Path, help="folder of the token files (default: a temporary one)")
    parser.add_argument("--commit", default="unknown", help="of the source, for the record")
    chosen = parser.parse_args(arguments)
    if chosen.rescore:
        made = rescore(chosen.rescore, chosen.commit)
    else:
        config = read(chosen.config, chosen.set)
        with tempfile.TemporaryDirectory() as temporary:
            made = make(config, chosen.out, chosen.work or Path(temporary), chosen.commit)
    print(json.dumps({key: made[key] for key in ("score", "truth_bits_per_byte", "coherence", "training")}))


if __name__ == "__main__":
    main()
