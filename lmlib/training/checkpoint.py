"""Checkpoints that are there whole or not at all.

A checkpoint is a folder ``step-00001000`` of files and a manifest with the sha256 of each.

1. Everything is written into a hidden folder beside it, and forced to the disk (``fsync``).
2. The hidden folder is renamed: a file system does that at once. Whoever looks before sees the earlier
   checkpoints, whoever looks after sees one more; a process killed at any moment leaves no third state.
3. Older ones go only after that, by being renamed first and then emptied.

Reading begins with comparing every file with its hash, and goes back to the next older checkpoint if one is
damaged. (The order write, sync, rename, sync the folder is that of Pillai et al. 2014, "All File Systems Are
Not Created Equal", OSDI, section 2.)
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lmlib.resources.units import check_integer

FORMAT, VERSION = "lmlib-checkpoint", 1
MANIFEST, STATE = "manifest.json", "state.json"
_PARTIAL, _REMOVED = ".partial-", ".removed-"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message names it and says what is left."""


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        path: the folder, made when the first checkpoint is written.
        keep_last: how many of the newest stay.
        keep_best: whether the one with the lowest metric stays as well.

    Raises:
        ArgumentError: for a number below 1.
    """

    def __init__(self, path: str | os.PathLike[str], *, keep_last: int = 2, keep_best: bool = True) -> None:
        self.path = Path(path)
        self.keep_last = check_integer("keep_last", keep_last, 1, 10**9)
        self.keep_best = keep_best

    def place(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.path / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, oldest first; whether they are intact, ``verify`` says."""
        found = (entry.name.removeprefix("step-") for entry in self.path.glob("step-*") if entry.is_dir())
        return sorted(int(name) for name in found if name.isdecimal())

    # -- writing ---------------------------------------------------------------------------------------------

    def begin(self, step: int) -> Path:
        """An empty hidden folder to write a checkpoint into; leftovers of killed runs go.

        Raises:
            CheckpointError: if the folder cannot be made.
        """
        partial = self.path / f"{_PARTIAL}{step:08d}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.sweep()
            partial.mkdir()
        except OSError as error:
            raise self._failed(step, error) from error
        return partial

    def commit(self, step: int, partial: Path, state: Mapping[str, Any], metric: float | None = None) -> Path:
        """Make the folder that ``begin`` gave a checkpoint, with ``state`` (JSON) beside its files.

        Raises:
            CheckpointError: if the disk does not take it; what was there before is still there.
        """
        try:
            (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
            files = {
                str(file.relative_to(partial)): {"sha256": _sync_and_hash(file), "bytes": file.stat().st_size}
                for file in sorted(partial.rglob("*"))
                if file.is_file()
            }
            manifest: dict[str, Any] = {
                "format": FORMAT,
                "version": VERSION,
                "step": step,
                "metric": metric,
                "files": files,
            }
            manifest["sha256"] = _hash_of(manifest)
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            _sync_and_hash(partial / MANIFEST)
            for folder in {file.parent for file in partial.rglob("*")}:
                _sync_folder(folder)
            place = self.place(step)
            if place.exists():  # one that did not verify when the run was resumed
                place.rename(self.path / f"{_REMOVED}{step:08d}")
            partial.rename(place)
            _sync_folder(self.path)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise self._failed(step, error) from error
        self.prune()
        return place

    @contextmanager
    def staging(self, step: int, state: Mapping[str, Any], metric: float | None = None) -> Iterator[Path]:
        """``begin`` and ``commit`` around the writing of files; on an error nothing is left of it.

        Raises:
            CheckpointError: if the disk does not take it.
        """
        partial = self.begin(step)
        try:
            yield partial
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError):
                raise self._failed(step, error) from error
            raise
        self.commit(step, partial, state, metric)

    def prune(self) -> None:
        """Remove what is neither among the newest nor the best."""
        steps = self.steps()
        keep = set(steps[-self.keep_last :])
        best = self.best() if self.keep_best and len(steps) > self.keep_last else None
        for step in steps:
            if step not in keep and step != best:
                with suppress(OSError):
                    self.place(step).rename(self.path / f"{_REMOVED}{step:08d}")
        self.sweep()

    def sweep(self) -> None:
        """Remove hidden folders: what a killed run was writing or removing."""
        for prefix in (_PARTIAL, _REMOVED):
            for leftover in self.path.glob(f"{prefix}*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def _failed(self, step: int, error: OSError) -> CheckpointError:
        whole = self.steps()
        left = f"the checkpoint of step {whole[-1]} is still there" if whole else "there is no earlier one"
        return CheckpointError(
            f"could not write the checkpoint of step {step} into {self.path}: "
            f"{error.strerror or error}; {left}"
        )

    # -- reading ---------------------------------------------------------------------------------------------

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest of a checkpoint, compared with its own hash.

        Raises:
            CheckpointError: if it is missing or damaged, or of another format.
        """
        path = self.place(step) / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"there is no checkpoint of step {step} in {self.path}; steps there: {known}"
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not the manifest of a checkpoint of this library")
        if manifest.get("version") != VERSION:
            raise CheckpointError(f"{path} has version {manifest.get('version')!r}; this library reads 1")
        if manifest.pop("sha256", None) != _hash_of(manifest):
            raise CheckpointError(f"{path} does not match its own sha256: it is damaged")
        return manifest

    def verify(self, step: int) -> Path:
        """The folder of a checkpoint, once every file has been compared with its hash.

        Raises:
            CheckpointError: names the first file that is missing, too short or different.
        """
        place = self.place(step)
        for name, expected in self.manifest(step)["files"].items():
            file = place / name
            if not file.is_file():
                raise CheckpointError(f"{file} is missing: the checkpoint of step {step} is damaged")
            if (size := file.stat().st_size) != expected["bytes"]:
                raise CheckpointError(
                    f"{file} has {size:,} bytes, not {expected['bytes']:,}: "
                    f"the checkpoint of step {step} is damaged"
                )
            if _hash_file(file) != expected["sha256"]:
                raise CheckpointError(
                    f"{file} does not match its sha256: the checkpoint of step {step} is damaged"
                )
        return place

    def newest(self) -> int | None:
        """The newest step whose checkpoint verifies; ``None`` if there is none at all.

        Raises:
            CheckpointError: if there are some and every one is damaged.
        """
        problems: list[str] = []
        for step in reversed(self.steps()):
            try:
                self.verify(step)
            except CheckpointError as error:
                problems.append(str(error))
            else:
                return step
        if problems:
            raise CheckpointError(f"no checkpoint in {self.path} can be used: " + "; ".join(problems))
        return None

    def best(self) -> int | None:
        """The step whose checkpoint has the lowest metric; ``None`` if none has one."""
        scored: list[tuple[float, int]] = []
        for step in self.steps():
            with suppress(CheckpointError):
                metric = self.manifest(step)["metric"]
                if metric is not None:
                    scored.append((metric, step))
        return min(scored)[1] if scored else None

    def state(self, step: int) -> dict[str, Any]:
        """The JSON state of a checkpoint that has been verified."""
        return json.loads((self.place(step) / STATE).read_text(encoding="utf-8"))


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_and_hash(path: Path) -> str:
    with path.open("rb+") as file:  # Windows syncs only what may be written
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash_of(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
