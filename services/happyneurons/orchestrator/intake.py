"""What an open run does with the sections that it is told of: batches, and how far behind it is.

Sections are put into batches in the order in which they arrived, whatever their numbers, so late
and early ones are nothing special. A batch is closed when it is full, when its first section has
waited long enough, or when the acquisition has ended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from happyneurons.orchestrator.graph import Acquisition
from happyneurons.orchestrator.reports import Reports, Waiting
from happyneurons.orchestrator.state import FINAL, AcquisitionStatus, Batch, JobPhase, RunStatus
from happyneurons.store.documents import Store, canonical_json

MOST_BATCHES = 50
"""Batches opened at one look, so that the first of a great many begin before the last is written."""

MOST_IN_WORK = 200
"""Batches in work at a time: each costs a question to its site and to the store at every look."""


class Intake:
    """The sections of one open run on their way into batches."""

    def __init__(self, store: Store, run_id: str, acquisition: Acquisition) -> None:
        self.reports = Reports(store, run_id)
        self._store, self._acquisition = store, acquisition
        self._complete = False

    def due(
        self, status: AcquisitionStatus, at: float, in_work: int = 0
    ) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
        """`(line for people, data)` of each batch to open now; the caller records it before it asks for the next.

        at: seconds since 1970. in_work: batches in work already.
        """
        for _ in range(min(MOST_BATCHES, MOST_IN_WORK - in_work)):
            waiting = self._waiting(status)
            full = len(waiting) >= self._acquisition.batch
            if not waiting or not (
                full or self.reports.ended or at - waiting[0].reported >= self._acquisition.wait_s
            ):  # fmt: skip
                return
            taken = waiting[: self._acquisition.batch]
            number = len(status.batches) + 1
            sections = [(w.z, w.version) for w in taken]
            data = {
                "batch": number,
                "sections": sections,
                "reported": [w.reported for w in taken],
                "uri": self._write(taken),
            }
            yield batch_text(number, sections), data

    def ready(self, status: AcquisitionStatus) -> bool:
        """Whether there is something to do before anybody's time is up: a full batch, or the end."""
        return self.reports.ended or len(self.reports.waiting(status.batched)) >= self._acquisition.batch

    def over(self, status: AcquisitionStatus) -> bool:
        """Whether the acquisition has ended and every section is in a batch."""
        return self.reports.ended and not self._waiting(status)

    def _waiting(self, status: AcquisitionStatus) -> list[Waiting]:
        if self.reports.ended and not self._complete:
            self.reports.reload()  # what another orchestrator took in must not be left behind
            self._complete = True
        return self.reports.waiting(status.batched)

    def _write(self, sections: Sequence[Waiting]) -> str:
        """Write the batch's document; returns its URI.

        It is named by its content: the same sections in another run are the same batch, and what was
        computed from it is used again.
        """
        found = self.reports.documents(sorted((w.z, w.version) for w in sections))
        kept = ("z", "version", "pixel_size_nm", "thickness_nm", "tiles")
        content = canonical_json({"schema_version": 1, "sections": [{k: d[k] for k in kept} for d in found]})
        path = f"batches/{hashlib.sha256(content).hexdigest()[:40]}.json"
        self._store.create(path, content)
        return self._store.url(path)


@dataclass(frozen=True)
class Progress:
    """How far an open run is. Sections are counted once, in the state of their latest version."""

    reported: int
    waiting: int
    in_work: int
    done: int
    failed: int
    imaged_again: int
    gaps: tuple[tuple[int, int], ...]
    """(first, last) of the ranges between the first and the last section that were not reported."""
    lag_s: float | None
    """Since the oldest section that waits or is in work was reported; None if there is none."""


def progress(status: RunStatus, reports: Reports, at: float) -> Progress:
    """Where the sections of an open run stand at a time (seconds since 1970)."""
    acquisition = status.acquisition
    assert acquisition is not None
    states: dict[int, str] = {}
    oldest: list[float] = []
    for batch in acquisition.batches:
        state = batch_state(status, batch)
        states |= dict.fromkeys((z for z, _ in batch.sections), state)
        if state == "in_work":
            oldest.append(min(batch.reported))
    waiting = reports.waiting(acquisition.batched)
    states |= dict.fromkeys((w.z for w in waiting), "waiting")
    oldest += [w.reported for w in waiting]
    numbers = reports.numbers()
    count = list(states.values()).count
    return Progress(
        reported=len(numbers), waiting=count("waiting"), in_work=count("in_work"), done=count("done"),
        failed=count("failed"), imaged_again=reports.imaged_again(),
        gaps=tuple((a + 1, b - 1) for a, b in pairwise(numbers) if b > a + 1),
        lag_s=max(0.0, at - min(oldest)) if oldest else None,
    )  # fmt: skip


def batch_state(status: RunStatus, batch: Batch) -> str:
    """in_work, done or failed."""
    if not batch.left:
        return "done"
    lost = any(status.jobs[name].phase in FINAL - {JobPhase.SUCCEEDED} for name in batch.left)
    return "failed" if lost else "in_work"


def ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges (first, last)."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def batch_text(number: int, sections: Sequence[tuple[int, int]]) -> str:
    """A batch of (z, version) in a few words: `batch 3: sections 8-11, 4 (version 2)`."""
    new = ranges(sorted(z for z, version in sections if version == 1))
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in new]
    parts += [f"{z} (version {version})" for z, version in sorted(sections) if version > 1]
    return f"batch {number}: sections {', '.join(parts)}"
