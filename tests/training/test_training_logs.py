"""Logs: whole lines, cut when a run is resumed, readable by TensorBoard, silent where nobody watches."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lmlib.training.logs import JsonLines, Progress, TensorBoard, read_lines


def test_lines_are_kept_up_to_the_checkpoint(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "deep" / "log.jsonl")
    for step in range(1, 6):
        log.log(step, {"loss": 1 / step})
    log.resume(3)
    log.log(4, {"loss": 9.0})
    assert [(row["step"], row["loss"]) for row in read_lines(log.path)] == [
        (1, 1),
        (2, 0.5),
        (3, 1 / 3),
        (4, 9),
    ]


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo', encoding="utf-8")
    assert [row["step"] for row in read_lines(path)] == [1]


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoard(tmp_path)
    log.log(10, {"loss": 2.0, "tokens": 5.0})
    log.log(20, {"val_loss": 3.0})
    log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["training/loss", "validation/loss"]
    assert [(each.step, each.value) for each in events.Scalars("validation/loss")] == [(20, 3.0)]


def test_progress_is_silent_under_ci(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", "1")
    bar = Progress()
    bar.start(SimpleNamespace(progress=lambda: 0.5))
    bar.log(1, {"loss": 1.0})
    bar.close()
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("CI")
    monkeypatch.delenv("LMLIB_BOOK_BUILD", raising=False)
    bar.start(SimpleNamespace(progress=lambda: 0.5))
    bar.log(1, {"loss": 1.25})
    assert bar._bar.n == 50
    bar.close()
