"""The leaderboard: budgets are kept, entries cannot be changed unseen, and the loss can be computed anew."""

import json
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmlib.resources.units import ArgumentError
from lmlib.training import leaderboard
from lmlib.training.__main__ import main
from lmlib.training.alone import Alone
from lmlib.training.checkpoint import CheckpointError
from lmlib.training.config import read
from lmlib.training.leaderboard import (
    compete,
    digest,
    read_entry,
    read_for_budget,
    sign,
    verify,
    write_entry,
)
from lmlib.training.settings import LIMITS

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
]


ONLY_MODEL = [*SMALL, "model.context_length=512"]  # beside the limits, for a file that holds nothing else


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("entry")
    entry = compete(read("leaderboard", SMALL), folder, flops=5e8, title="small")
    write_entry(entry, folder / "entry.json")
    return folder, entry


def test_an_entry_says_everything_and_can_be_verified(made: tuple[Path, dict[str, Any]]) -> None:
    folder, entry = made
    assert entry["class"] == "5e+08 FLOPs"
    assert 5e8 <= entry["flops"] < 5e8 + entry["flops"] / entry["steps"] * 1.001
    assert entry["curve"][-1][1] == entry["tokens"]
    nats = entry["loss"] * (entry["data"]["val_tokens"] - 1)
    assert entry["loss_per_byte"] == pytest.approx(nats / entry["data"]["val_bytes"])
    assert verify(folder / "entry.json") == pytest.approx(entry["loss"], abs=1e-4)


def test_processes_part_when_all_is_evaluated(
    made: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And when the trainer is gone: DDP in it may not be the group's last owner (see ``Together.leave``)."""
    done: list[str] = []
    module: list[weakref.ref[Any]] = []

    def evaluate(given: Any, *rest: Any) -> tuple[float, int]:
        module.append(weakref.ref(given))
        done.append("evaluated")
        return 2.0, 100

    monkeypatch.setattr(leaderboard, "_evaluate", evaluate)
    monkeypatch.setattr(Alone, "leave", lambda self: done.append(f"left, module {module[0]()}"))
    compete(read("leaderboard", SMALL), tmp_path, flops=1e6, data_folder=made[0] / "data")
    assert done == ["evaluated", "left, module None"]


def test_one_process_of_several_writes_the_entry(
    made: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(leaderboard, "compete", lambda *given, **named: made[1])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, written in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        assert main(["leaderboard", "--flops", "1e6", "--out", str(tmp_path)]) == 0
        assert ((tmp_path / "entry.json").is_file(), "nats/token" in capsys.readouterr().out) == (
            written,
        ) * 2


@pytest.mark.parametrize(("key", "value"), [("loss", 0.1), ("seconds", 1.0), ("tokens", 1)])
def test_a_changed_entry_is_refused(
    made: tuple[Path, dict[str, Any]], tmp_path: Path, key: str, value: float
) -> None:
    path = write_entry({**made[1], key: value}, tmp_path / "entry.json")
    with pytest.raises(ValueError, match="does not match its sha256"):
        read_entry(path)


def test_a_false_loss_is_found_even_if_signed_anew(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, entry = made
    lie = {key: value for key, value in entry.items() if key != "sha256"} | {"loss": entry["loss"] - 0.05}
    path = write_entry(sign(lie), tmp_path / "entry.json")
    options: dict[str, Any] = {"checkpoints": folder / "checkpoints", "data_folder": folder / "data"}
    with pytest.raises(ValueError, match="the checkpoint's loss is"):
        verify(path, **options)
    other = json.loads(json.dumps(lie))
    other["data"]["val_sha256"] = "0" * 64
    with pytest.raises(ValueError, match="the val data have sha256"):
        verify(write_entry(sign(other), path), **options)
    with pytest.raises(CheckpointError):
        verify(folder / "entry.json", checkpoints=tmp_path / "none", data_folder=folder / "data")


def test_an_entry_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "nothing.json", tmp_path):
        assert main(["verify", str(path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(
            "error: entry: must be an entry.json that `leaderboard` wrote; there is no file"
        )
        assert repr(str(path)) in said


def test_the_hash_is_of_the_content_not_of_its_order() -> None:
    assert digest({"a": 1, "b": [1.5]}) == digest({"b": [1.5], "a": 1, "sha256": "?"})


def test_time_counts_from_the_start(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Two seconds that went by before training began are taken off the budget (the data is there already)."""
    began = time.monotonic()
    config = read("leaderboard", SMALL)
    entry = compete(config, tmp_path, seconds=5.0, started=began - 2.0, data_folder=made[0] / "data")
    assert entry["start_seconds"] >= 2.0
    assert entry["seconds"] <= 5.5
    assert entry["class"] == "CPU, 0.0833333 minutes"
    with pytest.raises(ArgumentError, match="minutes: are used up"):
        compete(config, tmp_path, seconds=1.0, started=time.monotonic() - 2.0, data_folder=made[0] / "data")


def test_refuses_a_context_below_that_of_the_evaluation(tmp_path: Path) -> None:
    config = read("leaderboard", SMALL)
    with pytest.raises(ArgumentError, match=r"model\.context_length: must be at least 512"):
        compete(replace(config, model={**config.model, "context_length": 256}), tmp_path, flops=1e8)
    with pytest.raises(ArgumentError, match="seconds: or flops"):
        compete(config, tmp_path)


@pytest.mark.parametrize(("flag", "budget"), [("--flops", 5e8), ("--minutes", 0.05)])
@pytest.mark.parametrize("limit", ["", "max_steps = 1", "max_seconds = 0.001"])
def test_the_budget_is_the_limit_whatever_the_file_says(
    made: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
    budget: float,
    limit: str,
) -> None:
    """A file without a limit is taken, and one that would end after a step or a millisecond gives way."""
    lines = ["[trainer]", limit, 'device = "cpu"', 'schedule_by = "budget"' if "seconds" in limit else ""]
    (tmp_path / "mine.toml").write_text("\n".join(lines), encoding="utf-8")
    command = ["leaderboard", flag, str(budget), "--config", str(tmp_path / "mine.toml")]
    command += ["--out", str(tmp_path / "out"), "--data", str(made[0] / "data")]
    monkeypatch.setattr("lmlib.training.__main__._STARTED", time.monotonic())  # not the tests' own start
    assert main([*command, *(part for each in ONLY_MODEL for part in ("--set", each))]) == 0
    entry = read_entry(tmp_path / "out" / "entry.json")
    limits = {name: entry["config"]["trainer"][name] for name in LIMITS}
    if flag == "--flops":
        assert limits == dict.fromkeys(LIMITS) | {"max_flops": budget}
        assert budget <= entry["flops"] < budget + entry["flops"] / entry["steps"] * 1.001
    else:
        assert entry["seconds"] >= 60 * budget > entry["start_seconds"]
        assert {name for name in LIMITS if limits[name] is not None} == {"max_seconds"}
        assert entry["config"]["trainer"]["schedule_by"] == "budget"
    assert entry["steps"] > 1


def test_a_budget_hides_no_mistake_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    for text, message in (
        ("[trainer]\nmax_steps = -3", r"trainer\.max_steps: must be"),
        ("[trainer]\nmax_step = 3", r"trainer\.max_step: is not a setting"),
        ("trainer = 3", "trainer: is a section"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ArgumentError, match=message):
            read_for_budget(path, ONLY_MODEL[:2], seconds=60.0)
    with pytest.raises(ArgumentError, match="minutes: must be from"):
        read_for_budget(path, seconds=-60.0)


@pytest.mark.parametrize(
    "budget", [{"seconds": -60}, {"seconds": float("nan")}, {"seconds": 0}, {"flops": -1e9}]
)
def test_an_impossible_budget_is_refused_before_data_is_made(
    tmp_path: Path, budget: dict[str, float]
) -> None:
    with pytest.raises(ArgumentError, match="must be from"):
        compete(read("leaderboard", SMALL), tmp_path, **budget)
    assert not list(tmp_path.iterdir())
