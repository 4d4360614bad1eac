"""The configuration: what it refuses and how it says so, overrides, presets, and the way out and in again."""

import tomllib
from pathlib import Path

import pytest

from lmlib.resources.units import ArgumentError
from lmlib.training.config import RunConfig, apply, presets, read


@pytest.mark.parametrize("name", presets())
def test_presets_come_back_from_toml_and_from_json(name: str) -> None:
    config = read(name)
    assert RunConfig.from_dict(tomllib.loads(config.to_toml())) == config
    assert RunConfig.from_dict(config.to_dict()) == config


def test_tinystories_is_the_known_run() -> None:
    config = read("tinystories")
    model = config.model_config()
    assert (model.n_layers, model.d_model, model.n_heads, model.d_ff) == (4, 512, 16, 1344)
    assert (model.vocab_size, model.context_length) == (10_000, 256)
    assert config.trainer.max_tokens == 327_680_000
    assert config.total_steps() == 327_680_000 / (128 * 256)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.batchsize=3", r"trainer\.batchsize: is not a setting.*did you mean trainer\.batch_size\?"),
        ("model.dmodel=64", r"model\.dmodel: is not a setting.*did you mean model\.d_model"),
        ("optimiser.kind='muon'", r"optimiser: is not a setting.*did you mean optimizer\?"),
        ("trainer.batch_size=0", r"trainer\.batch_size: must be from 1"),
        ("schedule.lr=fast", r"schedule\.lr: must be a number"),
        ("model.n_heads=3", r"model\.n_heads: must divide d_model = 128"),
        ("trainer.max_flops=none", r"trainer\.max_steps: one limit must be given"),
        ("data.train_bytes=none", r"^data\.train_bytes: and val_bytes must be given"),
        ("data.train=a.txt", r"^data\.train: is read for .*'micro-world'; give --set data\.source=file"),
        ("data.val=a.txt", r"^data\.val: is read for data\.source = 'file' alone"),
        ("data.source=tinystory", r"data\.source: must be one of .*tinystories.*; got 'tinystory'"),
        ("precision=fp4", "precision: "),
        ("parallel.kind=pp", r"parallel\.kind: "),
        ("trainer=3", "trainer: is a section, got the value 3"),
    ],
)
def test_refuses_by_full_name(override: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        read("micro", [override])


@pytest.mark.parametrize("override", ["trainer.batch_size", "=3", "trainer.=3"])
def test_refuses_an_override_that_is_none(override: str) -> None:
    with pytest.raises(ArgumentError, match=r"--set: takes section\.key=value"):
        apply({}, override)


def test_overrides_are_toml_or_text_and_come_last() -> None:
    config = read(
        "micro",
        ["trainer.max_tokens=1e6", "trainer.clip_norm=none", "optimizer.kind=adamw", "model.qk_norm=true"],
    )
    assert config.trainer.max_tokens == 1_000_000
    assert config.trainer.clip_norm is None
    assert config.optimizer.kind == "adamw"
    assert config.model_config().qk_norm


def test_a_file_or_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[model]\nd_model = 32\nn_layers = 1\nn_heads = 2\n", encoding="utf-8")
    assert read(file).name == "mine"
    with pytest.raises(ArgumentError, match=r"is no file and no preset.*did you mean micro"):
        read("mikro")
    with pytest.raises(ArgumentError, match="there is no file"):
        read(tmp_path / "other.toml")
    file.write_text("[model", encoding="utf-8")
    with pytest.raises(ArgumentError, match="is not TOML"):
        read(file)


def test_time_alone_needs_a_schedule_by_budget() -> None:
    limits = ["trainer.max_flops=none", "trainer.max_seconds=10"]
    with pytest.raises(ArgumentError, match=r"trainer\.schedule_by"):
        read("micro", limits)
    assert read("micro", [*limits, "trainer.schedule_by=budget"]).make_schedule().warmup == 200
