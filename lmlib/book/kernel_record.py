"""Reads what ``python -m kernels.bench`` recorded: every kernel, shape, competitor and phase that is in it.

    bench = newest("kernels")              # None where there is no such record yet
    for case in bench.cases: ...           # one kernel at one shape
    bench.case("rms_norm", columns=4096, rows=16384).share("ours", "forward")

Nothing here knows which kernels or peers there are: all comes from the record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlib.book import records
from lmlib.book.records import Record, RecordError, Samples, parse

OURS = "ours"
MEMORY = "memory"
_NO_PHASE = {MEMORY}
LABELS = {"copy": "copy bandwidth", "matmul": "matmul rate"}  # what bounds a kernel -> its rate's samples


@dataclass(frozen=True)
class Case:
    """One kernel at one shape: who was timed, and what the work was."""

    kernel: str
    sizes: Mapping[str, Any]
    dtype: str
    bound: str
    """Which rate of the machine is the ceiling: "copy" or "matmul"."""
    rate: float
    """That rate, bytes or FLOPs a second: measured beside the case, or the record's median if that is higher,
    since a copy that something else disturbed would flatter the kernel."""
    work: Mapping[str, Mapping[str, int]]
    errors: Mapping[str, Mapping[str, float | None]]
    left_out: Mapping[str, str]
    same_bits: bool | None
    kept: Mapping[str, int]
    times: Mapping[tuple[str, str], Samples]
    """By competitor and phase, in seconds."""
    peaks: Mapping[str, float]
    """Bytes beyond the inputs at the peak of a call."""
    where: str
    """The record it stands in, as ``Record.where`` names it."""

    @property
    def shape(self) -> str:
        """Sizes for a table: ``rows 16,384, columns 4,096``."""
        return ", ".join(
            f"{name} {size:,}" if isinstance(size, int) and not isinstance(size, bool) else f"{name} {size}"
            for name, size in self.sizes.items()
        )

    @property
    def brief(self) -> str:
        """The same without names: ``16,384 × 4,096``; flags by their name."""
        parts = [
            name if size is True else f"{size:,}" if isinstance(size, int) else str(size)
            for name, size in self.sizes.items()
            if size is not False
        ]
        return " × ".join(parts)

    @property
    def phases(self) -> list[str]:
        """Phases that somebody was timed in, in the order of the record."""
        return list(dict.fromkeys(phase for _, phase in self.times))

    @property
    def competitors(self) -> list[str]:
        """Who was timed, ours first."""
        return sorted(dict.fromkeys(name for name, _ in self.times), key=lambda name: name != OURS)

    def seconds(self, competitor: str, phase: str) -> float | None:
        """Median time; None where it was not measured."""
        samples = self.times.get((competitor, phase))
        return samples.median if samples else None

    def share(self, competitor: str, phase: str) -> float | None:
        """Percent of the ceiling that the least possible work would take of the time."""
        seconds, work = self.seconds(competitor, phase), self._work(phase)
        return 100 * work / seconds / self.rate if seconds and work and self.rate else None

    def tflops(self, competitor: str, phase: str) -> float | None:
        """TFLOP/s of the phase's operations."""
        seconds, work = self.seconds(competitor, phase), self.work.get(phase)
        return work["flops"] / seconds / 1e12 if seconds and work else None

    def best_peer(self, phase: str) -> tuple[str, float] | None:
        """The fastest of the others in this phase, with its median time."""
        times = [
            (samples.median, name)
            for (name, each), samples in self.times.items()
            if each == phase and name != OURS and not name.endswith("(ours)")
        ]
        return (min(times)[1], min(times)[0]) if times else None

    def speedup(self, phase: str) -> float | None:
        """Time of the best peer divided by ours."""
        peer, ours = self.best_peer(phase), self.seconds(OURS, phase)
        return peer[1] / ours if peer and ours else None

    def _work(self, phase: str) -> int:
        work = self.work.get(phase, {})
        return work.get("bytes" if self.bound == "copy" else "flops", 0)


@dataclass(frozen=True)
class KernelRecord:
    """A record of the kernel benchmark, opened up."""

    record: Record
    cases: tuple[Case, ...]
    later: tuple[Record, ...] = ()
    """Records of the same device that `together` added."""

    @property
    def where(self) -> str:
        """The words with which a claim or caption names the records that hold these cases."""
        dates = sorted({each.date for each in (self.record, *self.later)})
        if len(dates) == 1:
            return self.record.where
        return f"records of {', '.join(dates[:-1])} and {dates[-1]} on {self.record.device}"

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels, in the order of the record."""
        return list(dict.fromkeys(case.kernel for case in self.cases))

    def of(self, kernel: str, **sizes: Any) -> list[Case]:
        """The cases of a kernel that have these sizes."""
        return [
            case
            for case in self.cases
            if case.kernel == kernel and all(case.sizes.get(name) == size for name, size in sizes.items())
        ]

    def case(self, kernel: str, **sizes: Any) -> Case | None:
        """The first case with these sizes, or None."""
        return next(iter(self.of(kernel, **sizes)), None)

    def rate(self, label: str) -> float | None:
        """Median of "copy bandwidth" or "matmul rate", or None."""
        samples = self.record.samples.get(label)
        return samples.median if samples else None


def newest(name: str = "kernels", folder: Path | None = None) -> KernelRecord | None:
    """The latest record of that name of any GPU, or None where there is none.

    Raises:
        RecordError: a record that is malformed.
    """
    found: list[tuple[str, Record]] = []
    for path in sorted((folder or records.RESULTS).glob(f"*/{name}.json")):
        made = records.record(path.parent.name, name, folder)
        found.append((made.date, made))
    return opened(max(found, key=lambda pair: pair[0])[1]) if found else None


def together(first: KernelRecord, later: Record) -> KernelRecord:
    """Cases of both: where both have one, that of `later`; what only `later` has follows at the end.

    Each case keeps the rates of its own record.

    Raises:
        RecordError: records of two devices, or `later` is of an earlier date.
    """
    if later.device != first.record.device or later.date < first.record.date:
        raise RecordError(f"the {later.where} cannot complete the {first.record.where}")

    def key(case: Case) -> tuple[Any, ...]:
        return case.kernel, tuple(case.sizes.items()), case.dtype

    added = {key(case): case for case in _cases(later)}
    cases = [added.pop(key(case), case) for case in first.cases]
    return KernelRecord(first.record, (*cases, *added.values()), (*first.later, later))


def completed(first: KernelRecord | None, *names: str, folder: Path | None = None) -> KernelRecord | None:
    """`first` with the records of these names, of its device and no older, the later over the earlier.

    Without a `first` there is nothing to complete: None.

    Raises:
        RecordError: a record that is malformed.
    """
    if first is None:
        return None
    found = [
        records.record(path.parent.name, name, folder)
        for name in names
        for path in sorted((folder or records.RESULTS).glob(f"*/{name}.json"))
    ]
    for later in sorted(found, key=lambda each: each.date):
        if later.device == first.record.device and later.date >= first.record.date:
            first = together(first, later)
    return first


def read(path: Path) -> KernelRecord:
    """The record in a file, wherever it lies."""
    return opened(parse(json.loads(path.read_text(encoding="utf-8")), f"record {path.name}"))


def opened(made: Record) -> KernelRecord:
    """The record's cases, each with its own samples."""
    return KernelRecord(made, tuple(_cases(made)))


def _cases(made: Record) -> Iterator[Case]:
    medians = {bound: made.samples[label].median for bound, label in LABELS.items() if label in made.samples}
    for about in made.about.get("cases", []):
        times: dict[tuple[str, str], Samples] = {}
        peaks: dict[str, float] = {}
        start = f"{about['name']}: "
        for label, samples in made.samples.items():
            if not label.startswith(start):
                continue
            competitor, _, phase = label.removeprefix(start).rpartition(", ")
            if phase in _NO_PHASE:
                peaks[competitor] = samples.median
            else:
                times[competitor, phase] = samples
        bound = about.get("bound", "copy")
        yield Case(
            kernel=about["kernel"],
            sizes=about.get("sizes", {}),
            dtype=about.get("dtype", ""),
            bound=bound,
            rate=max(about.get(LABELS[bound]) or 0.0, medians.get(bound, 0.0)),
            work=about.get("work", {}),
            errors=about.get("relative errors", {}),
            left_out=about.get("left out", {}),
            same_bits=about.get("same bits"),
            kept=about.get("kept bytes", {}),
            times=times,
            peaks=peaks,
            where=made.where,
        )


# -- panels: which size runs along the axis of a plot, and which tell one plot from another -----------------


def axis_of(cases: list[Case]) -> str | None:
    """The size with the most values among these cases; None where nothing varies."""
    names = [name for name, size in cases[0].sizes.items() if isinstance(size, int)] if cases else []
    values = {name: len({case.sizes.get(name) for case in cases}) for name in names}
    most = max(values.values(), default=1)
    # Of several that vary alike (rows that shrink as columns grow), the one that grows.
    varying = [name for name in names if values[name] == most]
    return varying[-1] if most > 1 else None


def panels(cases: list[Case], axis: str) -> dict[tuple[tuple[str, Any], ...], list[Case]]:
    """Cases that differ along the axis only, by what they have in common; the fullest first.

    A size that follows from the one on the axis (batch that shrinks as length grows) makes no panel.
    """
    others = [name for name in cases[0].sizes if name != axis]
    free = []
    for name in others:
        by_axis: dict[Any, set[Any]] = {}
        for case in cases:
            by_axis.setdefault(case.sizes.get(axis), set()).add(case.sizes.get(name))
        if any(len(values) > 1 for values in by_axis.values()):
            free.append(name)
    found: dict[tuple[tuple[str, Any], ...], list[Case]] = {}
    for case in cases:
        found.setdefault(
            (*((name, case.sizes.get(name)) for name in free), ("dtype", case.dtype)), []
        ).append(case)
    ordered = sorted(found.items(), key=lambda pair: -len(pair[1]))
    return {key: sorted(each, key=lambda case: case.sizes[axis]) for key, each in ordered}
