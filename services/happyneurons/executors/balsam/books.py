"""What the Balsam executor knows of its handles: filled by its thread, read by everybody. No calls here."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from happyneurons.errors import EXIT_TRY_AGAIN
from happyneurons.executors.balsam.records import ENDED, BalsamJob, report_of
from happyneurons.executors.base import ProcessReport, ProcessState

HANDLE = re.compile(r"[a-z0-9]{1,40}")
FORGET_S = 3600.0  # an ended job that nobody asked about for so long
LOOK_AGAIN_S = 30.0  # the server may learn of a job late: an answer that was lost
NOT_YET = ProcessReport(ProcessState.QUEUED, detail="the Balsam server was not asked about it yet")
NOBODY = ProcessReport(ProcessState.UNKNOWN, detail="the Balsam server has no such job")


@dataclass
class Entry:
    """One handle."""

    job_id: int | None = None
    job: BalsamJob | None = None
    report: ProcessReport = NOT_YET
    since: float = field(default_factory=time.monotonic)
    """When it was first seen in its state."""
    looked_up: float = 0.0
    """When the server last said that it knows nothing of it."""
    asked: float = field(default_factory=time.monotonic)
    """When somebody last wanted to know."""
    cancelled: bool = False
    note: str = ""
    """What stands against its cancellation."""

    @property
    def over(self) -> bool:
        return self.report.state is ProcessState.EXITED

    def seen_for(self) -> float:
        """Seconds that it has been seen in its state."""
        return time.monotonic() - self.since


class Books:
    """Entries by handle; thread-safe."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()

    def report(self, handle: str) -> tuple[ProcessReport, bool]:
        """Last known state, and whether it is a handle that was not heard of before."""
        if not HANDLE.fullmatch(handle):
            return NOBODY, False
        with self._lock:
            new = handle not in self._entries
            entry = self._entries.setdefault(handle, Entry())
            entry.asked = time.monotonic()
            return entry.report, new

    def entry(self, handle: str) -> Entry | None:
        with self._lock:
            return self._entries.get(handle)

    def cancel(self, handle: str) -> None:
        """To be stopped as soon as the thread comes to it."""
        if HANDLE.fullmatch(handle):
            with self._lock:
                self._entries.setdefault(handle, Entry()).cancelled = True

    def cancelled(self) -> list[str]:
        with self._lock:
            return [handle for handle, e in self._entries.items() if e.cancelled]

    def knows(self, handle: str) -> bool:
        """Whether the server is known to have this job."""
        with self._lock:
            entry = self._entries.get(handle)
            return entry is not None and entry.job_id is not None

    def adopt(self, handle: str, job: BalsamJob) -> None:
        """A job that was created or found."""
        with self._lock:
            self._see(self._entries.setdefault(handle, Entry()), job)

    def merge(self, jobs: Iterable[BalsamJob]) -> list[BalsamJob]:
        """Take in the jobs that are not over. Returns those that are there twice: not the first of their token."""
        duplicates = []
        with self._lock:
            for job in jobs:
                entry = self._entries.get(job.token)
                if entry is None:
                    continue
                if entry.job_id not in (None, job.id):
                    duplicates.append(job)
                else:
                    self._see(entry, job)
        return duplicates

    def missing(self, seen: set[int]) -> tuple[dict[int, str], list[str]]:
        """Handles not over that the last look did not show: job id → handle, and those without a known id."""
        with self._lock:
            now = time.monotonic()
            known, unknown = {}, []
            for handle, e in self._entries.items():
                if e.over or e.job_id in seen:
                    continue
                if e.job_id is not None:
                    known[e.job_id] = handle
                elif e.looked_up == 0.0 or (e.asked > e.looked_up and now - e.looked_up > LOOK_AGAIN_S):
                    unknown.append(handle)
            return known, unknown

    def lost(self, handle: str) -> None:
        """The server answered, and has no such job."""
        with self._lock:
            entry = self._entries[handle]
            entry.job_id, entry.job, entry.report, entry.looked_up = None, None, NOBODY, time.monotonic()

    def end(self, handle: str, job: BalsamJob, report: ProcessReport) -> None:
        with self._lock:
            entry = self._entries[handle]
            entry.job_id, entry.job, entry.report = job.id, job, report

    def batch_job_over(self, handle: str, message: str) -> None:
        """Its batch job is over, so its ranks are, although nobody told the server."""
        with self._lock:
            self._entries[handle].report = ProcessReport(ProcessState.EXITED, EXIT_TRY_AGAIN, message)

    def note(self, handle: str, text: str) -> None:
        with self._lock:
            self._entries[handle].note = text

    def prune(self) -> None:
        """Forget what is over and nobody asks about; it would be looked up again."""
        with self._lock:
            old = time.monotonic() - FORGET_S
            for handle in [h for h, e in self._entries.items() if e.asked < old and (e.over or e.job_id is None)]:
                del self._entries[handle]

    @staticmethod
    def _see(entry: Entry, job: BalsamJob) -> None:
        if entry.over:  # final, whatever a late answer says
            return
        if entry.job is None or entry.job.state != job.state:
            entry.since = time.monotonic()
        entry.job_id, entry.job = job.id, job
        if job.state not in ENDED:  # how it ended is told by its events
            entry.report = report_of(job.state, {})
