"""The command line: train, resume to the bit, refuse; and the data that it prepares."""

import json
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmlib.data import micro_world
from lmlib.training.__main__ import main
from lmlib.training.alone import Alone
from lmlib.training.config import DataSettings, TokenizerSettings, read
from lmlib.training.dataset import open_tokens, write_tokens
from lmlib.training.logs import read_lines
from lmlib.training.prepare import prepare
from lmlib.training.run import run

SMALL = [
    "data.train_bytes=60000",
    "data.val_bytes=5000",
    "tokenizer.vocab_size=300",
    "tokenizer.training_bytes=20000",
    "model.d_model=32",
    "model.n_layers=1",
    "model.n_heads=2",
    "trainer.batch_size=4",
    "trainer.context_length=32",
    "trainer.max_flops=none",
    "trainer.log_every=1",
]


def flags(*more: str) -> list[str]:
    return [part for each in (*SMALL, *more) for part in ("--set", each)]


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


def test_train_resume_and_refuse(
    tmp_path: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut in two by a checkpoint, a run logs the same numbers as in one piece."""
    same = ["micro", "--data", str(data_folder), *flags("schedule.kind=constant", "schedule.warmup=0")]
    assert main([*same, "--out", str(tmp_path / "whole"), "--set", "trainer.max_steps=8"]) == 0
    assert main([*same, "--out", str(tmp_path / "cut"), "--set", "trainer.max_steps=5"]) == 0
    again = [*same, "--out", str(tmp_path / "cut"), "--set", "trainer.max_steps=8"]
    assert main(again) == 2
    assert "--resume: is needed" in capsys.readouterr().err
    assert main([*again, "--resume"]) == 0
    losses = {
        name: [row["loss"] for row in read_lines(tmp_path / name / "log.jsonl") if "loss" in row]
        for name in ("whole", "cut")
    }
    assert len(losses["whole"]) == 8
    assert losses["cut"] == losses["whole"]
    assert read(tmp_path / "whole" / "config.toml").trainer.max_steps == 8
    assert "val_loss" in capsys.readouterr().out


def test_the_trainer_is_gone_when_processes_part(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDP in it may not be the group's last owner (see ``Together.leave``)."""
    module: list[weakref.ref[Any]] = []
    found: list[Any] = []

    def remember(*given: Any, **named: Any) -> Any:
        trainer = run(*given, **named)
        module.append(weakref.ref(trainer.module))
        return trainer

    monkeypatch.setattr("lmlib.training.run.run", remember)
    monkeypatch.setattr(Alone, "leave", lambda self: found.append(module[0]()))
    given = ["micro", "--data", str(data_folder), "--out", str(tmp_path), *flags("trainer.max_steps=1")]
    assert main(given) == 0
    assert found == [None]


def test_several_processes_need_a_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Started by torchrun without the setting, each would train the whole run into one folder."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["micro", "--out", str(tmp_path / "run"), *flags("trainer.max_steps=1")]) == 2
    assert "parallel.kind: must be 'ddp' or 'fsdp2' for 2 processes, got 'none'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_prints_the_whole_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["micro", "--print-config", "--set", "schedule.lr=0.5"]) == 0
    assert "lr = 0.5" in capsys.readouterr().out


def test_errors_are_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mikro"]) == 2
    assert capsys.readouterr().err.startswith("error: config: 'mikro' is no file and no preset")
    assert main(["micro", "--set", "parallel.kind=ddp", *flags("trainer.max_steps=1")]) == 2
    assert "torchrun" in capsys.readouterr().err


def test_resume_without_a_checkpoint_says_that_it_begins(
    tmp_path: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log of a run that was stopped before its first checkpoint is not gone on with either."""
    out = tmp_path / "new"
    out.mkdir()
    (out / "log.jsonl").write_text('{"step": 1, "loss": 9.0}\n', encoding="utf-8")
    command = ["micro", "--data", str(data_folder), "--out", str(out), "--resume"]
    line = f"--resume: there is no checkpoint in {out / 'checkpoints'}; starting from the beginning\n"
    assert main([*command, *flags("trainer.max_steps=2")]) == 0
    assert capsys.readouterr().out.count(line) == 1
    assert [row["step"] for row in read_lines(out / "log.jsonl") if "loss" in row] == [1, 2]
    assert main([*command, *flags("trainer.max_steps=3")]) == 0  # now there is one
    assert "there is no checkpoint" not in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["data.train", "data.val", "tokenizer.path"])
def test_a_file_that_is_not_there_is_named(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, nowhere = tmp_path / "text.txt", tmp_path / "nowhere.txt"
    text.write_text("a text", encoding="utf-8")
    given = {"data.source": "file", "data.train": str(text), "data.val": str(text), missing: str(nowhere)}
    sets = flags("trainer.max_steps=1", *(f"{name}={value}" for name, value in given.items()))
    assert main(["micro", "--out", str(tmp_path / "run"), *sets]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {missing}: must be a t")
    assert repr(str(nowhere)) in said
    assert "Errno" not in said
    assert not (tmp_path / "run").exists()


def test_an_empty_path_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = flags("trainer.max_steps=1", "data.source=file", "data.train=", "data.val=")
    assert main(["micro", "--out", str(tmp_path / "run"), *sets]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: data.train: must be a text")
    assert "got '', which does not exist" in said


@pytest.mark.parametrize("empty", ["data.train", "data.val"])
def test_text_without_documents_is_named(
    empty: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, nothing = tmp_path / "text.txt", tmp_path / "nothing"
    text.write_text("\n".join(micro_world(0, n_documents=100).texts()), encoding="utf-8")
    nothing.mkdir()
    given = {"data.source": "file", "data.train": str(text), "data.val": str(text), empty: str(nothing)}
    sets = flags("trainer.max_steps=1", *(f"{name}={value}" for name, value in given.items()))
    assert main(["micro", "--out", str(tmp_path / "run"), *sets]) == 2
    assert capsys.readouterr().err == f"error: {empty}: holds no document\n"


@pytest.mark.parametrize("split", ["valid", "none"])
def test_data_that_cannot_be_fetched_says_what_to_set(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    more = ["--set", f"data.val_split={split}", "--set", "data.val_bytes=1000"]
    assert main(["tinystories", "--out", str(tmp_path), *more]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: data.source: 'tinystories' is on the Hugging Face hub, which is out of")
    assert "--set data.source=file --set data.train=FILE --set data.val=FILE" in said
    assert "load(" not in said
    generated = said[said.index("--set data.source=micro-world") :].split()
    assert read("tinystories", generated[1::2]).data.train_bytes == 20_000_000  # they are settings


def test_data_that_needs_a_package_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("lmlib.data.sources._reachable", lambda: True)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install \"datasets>=3\"`\. .*--set data\.source=file"):
        prepare(read("tinystories").data, TokenizerSettings(), tmp_path)


def test_prepared_data_is_what_the_tokenizer_says(data_folder: Path) -> None:
    """The blocks hold the same ids as documents encoded one after another."""
    data, tokenizer = (
        read("micro", [*SMALL, "trainer.max_steps=1"]).data,
        TokenizerSettings(300, "gpt2", 20000),
    )
    made = prepare(data, tokenizer, data_folder)
    assert made.tokenizer is not None
    texts = list(micro_world(0, n_bytes=60000).texts())
    expected = write_tokens(data_folder / "expected.tokens", texts, made.tokenizer)
    assert np.array_equal(made.train.ids, expected.ids)
    assert (made.train.n_bytes, made.train.n_documents, made.train.sha256) == (
        expected.n_bytes,
        expected.n_documents,
        expected.sha256,
    )
    times = {each: each.stat().st_mtime_ns for each in data_folder.glob("t*-*")}
    prepare(data, tokenizer, data_folder)
    assert times == {each: each.stat().st_mtime_ns for each in data_folder.glob("t*-*")}


def test_any_number_of_workers_gives_the_same_file(tmp_path: Path) -> None:
    alone = prepare(DataSettings(train_bytes=30000, val_bytes=1000), TokenizerSettings(300), tmp_path / "1")
    both = prepare(
        DataSettings(train_bytes=30000, val_bytes=1000, workers=2), TokenizerSettings(300), tmp_path / "2"
    )
    assert alone.train.sha256 == both.train.sha256
    assert alone.val.sha256 == both.val.sha256


def test_local_text_with_marks_inside(tmp_path: Path) -> None:
    rows = ["one <|endoftext|> in the text", "two", "three"]
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"text": row * 30}) + "\n" for row in rows), encoding="utf-8"
    )
    (tmp_path / "val.txt").write_text("four<|endoftext|>five", encoding="utf-8")
    data = DataSettings("file", train=str(tmp_path / "train.jsonl"), val=str(tmp_path / "val.txt"))
    made = prepare(data, TokenizerSettings(280), tmp_path / "data")
    assert made.tokenizer is not None
    end = made.tokenizer.special_tokens["<|endoftext|>"]
    assert int((made.train.ids == end).sum()) == 3  # a mark inside a document is text
    assert (made.val.n_documents, made.val.n_bytes) == (2, 8)
    ready = DataSettings("file", train=made.train.path, val=made.val.path)
    assert prepare(ready, TokenizerSettings(), tmp_path / "x").train.sha256 == made.train.sha256
    assert open_tokens(str(made.train.path)).vocab_size == made.tokenizer.vocab_size


def test_run_in_python(tmp_path: Path, data_folder: Path) -> None:
    config = read("micro", [*SMALL, "trainer.max_steps=3", "log.tensorboard=true", "mup.base_d_model=16",
                            "model.tied=false"])  # fmt: skip
    trainer = run(config, tmp_path / "run", data_folder=data_folder)
    assert trainer.step == 3
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
