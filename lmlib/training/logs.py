"""What becomes of a run's numbers: JSON lines, TensorBoard, a progress bar; all callbacks of ``Trainer``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

Values = dict[str, float]


def quiet() -> bool:
    """Whether nobody watches: under CI, or while the book is built."""
    return "CI" in os.environ or "LMLIB_BOOK_BUILD" in os.environ


class JsonLines:
    """One JSON object a line, each written at once, so that a killed run leaves whole lines.

    On resuming, what was logged after the checkpoint is cut off: the file is that of an uninterrupted run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def log(self, step: int, values: Values) -> None:
        """Append a line with one write."""
        line = json.dumps({"step": step, **values}) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def resume(self, step: int) -> None:
        """Keep the lines up to ``step``."""
        if self.path.is_file():
            kept = [json.dumps(row) + "\n" for row in read_lines(self.path) if row["step"] <= step]
            partial = self.path.with_suffix(self.path.suffix + ".partial")
            partial.write_text("".join(kept), encoding="utf-8")
            os.replace(partial, self.path)


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a log; a line that was cut off by a crash of the machine is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class TensorBoard:
    """Every value as a scalar of ``tensorboard --logdir FOLDER``.

    Raises:
        ImportError: where the package ``tensorboard`` is not installed; says how to get it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("log.tensorboard needs `pip install tensorboard`") from error
        self._make = lambda step: SummaryWriter(str(folder), purge_step=step)
        self._writer: Any = None

    def log(self, step: int, values: Values) -> None:
        """Write scalars; losses go under one heading each for training and validation."""
        writer = self._open()
        for name, value in values.items():
            if name == "tokens":
                continue
            group = "validation" if name.startswith("val_") else "training"
            writer.add_scalar(f"{group}/{name.removeprefix('val_')}", value, step)

    def resume(self, step: int) -> None:
        """Hide what was logged after ``step``."""
        self.close()
        self._writer = self._make(step + 1)

    def close(self) -> None:
        """Write out what is held back."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> Any:
        if self._writer is None:
            self._writer = self._make(None)
        return self._writer


class Progress:
    """A bar over the share of the budget, with the last losses beside it; silent under CI."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._trainer: Any = None
        self._shown: dict[str, str] = {}

    def start(self, trainer: Any) -> None:
        """Begin at the share that is used already."""
        self._trainer = trainer
        if not quiet():
            self._bar = tqdm(total=100, delay=2, unit="%", bar_format="{l_bar}{bar}| {elapsed}{postfix}")
            self._move()

    def log(self, step: int, values: Values) -> None:
        """Move on."""
        for name, digits in (("loss", 3), ("val_loss", 3), ("tokens_per_second", 0), ("mfu", 2)):
            if name in values:
                self._shown[name] = f"{values[name]:,.{digits}f}"
        if self._bar is not None:
            self._bar.set_postfix({"step": step, **self._shown}, refresh=False)
            self._move()

    def close(self) -> None:
        """Leave the last state standing, and let go of the trainer."""
        self._trainer = None
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _move(self) -> None:
        self._bar.n = min(100, round(100 * self._trainer.progress(), 1))
        self._bar.refresh()
