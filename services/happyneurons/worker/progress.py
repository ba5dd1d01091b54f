"""Progress and heartbeat of an attempt.

A thread of rank 0 writes `progress.json` every few seconds, flushes the journal and the logs,
and looks whether somebody wants the attempt to stop: a cancel marker, a successor, a signal.
"""

from __future__ import annotations

import contextlib
import threading
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from happyneurons.errors import (
    EXIT_FAILED,
    EXIT_TRY_AGAIN,
    CancelledError,
    DrainedError,
    HappyError,
    SupersededError,
)
from happyneurons.jobs.attempts import Attempt, EndState
from happyneurons.jobs.journal import Entry, JournalWriter
from happyneurons.jobs.stage import Task
from happyneurons.store.telemetry import TELEMETRY, Counts, add, changes, rounded
from happyneurons.worker.farm import Outcome, abort_all, peak_memory_bytes
from happyneurons.worker.logs import StoreLogHandler
from happyneurons.worker.suspects import Caution

UNWANTED_GRACE_S = 3.0
"""How long a task of a cancelled or superseded attempt may go on: nobody wants its result."""

TASK_BOUNDS_S = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0)
"""Upper bounds of the classes that tasks are counted in by how long they took; one more has what took longer."""


@dataclass
class Progress:
    """What an attempt has done. Written by the loop, read by the heartbeat.

    Of compute nodes nobody hears but through this, so it has what a monitor wants to know as well (`telemetry`): sums
    and counts in classes, of a size that does not grow with the job.
    """

    stage: str
    workers: int
    round: str = ""
    round_index: int = 0
    rounds: int = 0
    tasks_total: int = 0
    tasks_done: int = 0
    cost_total: float = 0.0
    cost_done: float = 0.0
    resumed_tasks: int = 0
    computed_tasks: int = 0
    quarantined: int = 0
    voxels: int = 0
    bytes: int = 0
    task_seconds: float = 0.0
    longest_task_s: float = 0.0
    caution: Caution = "none"
    in_flight: set[str] = field(default_factory=set)
    started: float = field(default_factory=time.time)
    _round_started: float = field(default_factory=time.monotonic)
    _cost_resumed: float = 0.0
    _failed_tries: int = 0
    _interrupted_tries: int = 0
    _durations: list[int] = field(default_factory=lambda: [0] * (len(TASK_BOUNDS_S) + 1))
    _peak_memory_bytes: int = 0
    _store: Counts = field(default_factory=dict)
    _store_before: Counts = field(default_factory=TELEMETRY.snapshot)

    def enter_round(self, name: str, index: int, rounds: int) -> None:
        self.round, self.round_index, self.rounds = name, index, rounds
        self.tasks_total = self.tasks_done = 0
        self.cost_total = self.cost_done = self._cost_resumed = self.longest_task_s = 0.0
        self._round_started = time.monotonic()

    def resumed(self, task: Task, entry: Entry) -> None:
        """A task that an earlier attempt did."""
        self.tasks_done += 1
        self.cost_done += task.cost
        self._cost_resumed += task.cost
        if not entry.quarantined:
            self.resumed_tasks += 1
            self.voxels += entry.voxels
            self.bytes += entry.bytes

    def finished(self, task: Task, outcome: Outcome) -> None:
        self.tasks_done += 1
        self.computed_tasks += 1
        self.cost_done += task.cost
        self.voxels += outcome.voxels
        self.bytes += outcome.bytes
        self.task_seconds += outcome.seconds
        self.longest_task_s = max(self.longest_task_s, outcome.seconds)
        self._durations[bisect_left(TASK_BOUNDS_S, outcome.seconds)] += 1

    def tried(self, outcome: Outcome, here: bool) -> None:
        """Any outcome, also of a try that failed. here: of a rank that is this very process."""
        self._failed_tries += outcome.status == "failed"
        self._interrupted_tries += outcome.status == "infrastructure"
        self._peak_memory_bytes = max(self._peak_memory_bytes, outcome.peak_memory_bytes)
        if not here:  # what this process asks of the store is counted as a whole
            add(self._store, outcome.store)

    def eta_s(self) -> float | None:
        """Seconds left in this round, from the rate of this attempt; None before there is one."""
        done = self.cost_done - self._cost_resumed
        if done <= 0:
            return None
        return (self.cost_total - self.cost_done) * (time.monotonic() - self._round_started) / done

    def work(self) -> dict[str, int]:
        """What is done of the job, by this attempt and those before it."""
        done = self.resumed_tasks + self.computed_tasks
        return {"done": done, "quarantined": self.quarantined, "voxels": self.voxels, "bytes": self.bytes}

    def telemetry(self) -> dict[str, Any]:
        """Of this attempt, not of those before it (but `work`), for Prometheus by way of the orchestrator.

        work: of the job so far; task_seconds, durations (by TASK_BOUNDS_S): of tasks that were done; failed,
        interrupted: tries that the task or the infrastructure ended; peak_memory_bytes: of any one rank; store: see
        happyneurons.store.telemetry.
        """
        calls = changes(self._store_before, TELEMETRY.snapshot())
        add(calls, self._store)
        return {
            "task_seconds": round(self.task_seconds, 3),
            "work": self.work(),
            "durations": list(self._durations),
            "failed": self._failed_tries,
            "interrupted": self._interrupted_tries,
            "peak_memory_bytes": max(self._peak_memory_bytes, peak_memory_bytes()),
            "store": rounded(calls),
        }

    def document(self) -> dict[str, Any]:
        eta = self.eta_s()
        fields = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        return {
            **fields,
            "in_flight": sorted(self.in_flight.copy()),
            "eta_s": None if eta is None else round(eta, 1),
            "telemetry": self.telemetry(),
            "time": time.time(),
        }


class Heartbeat:
    """The thread. `stop_reason` is what the loop has to raise once it is set."""

    def __init__(
        self, attempt: Attempt, progress: Progress, journal: JournalWriter, logs: StoreLogHandler, interval_s: float
    ) -> None:
        self._attempt, self._progress, self._journal, self._logs = attempt, progress, journal, logs
        self._interval_s = interval_s
        self._wake = threading.Event()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="heartbeat", daemon=True)
        self.stop_reason: HappyError | None = None
        self._stopped_at = 0.0
        self._abandon_after_s: float | None = None
        self._end: tuple[float, float] | None = None
        self._announced = False

    def __enter__(self) -> Heartbeat:
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=10)
        with contextlib.suppress(HappyError):
            self.beat()
        self._logs.flush()

    def beat(self) -> None:
        with self._lock:
            self._attempt.beat(self._progress.document())

    def drain(self, why: str, abandon_after_s: float | None = None) -> None:
        """Ask the loop to stop. Called from signal handlers: takes no lock.

        abandon_after_s: leave without the tasks at work when they take longer than this.
        """
        self._stop(
            DrainedError(f"drained: {why}; finished tasks are kept, run the job again to go on"), abandon_after_s
        )

    def ends(self, at: float, abandon_after_s: float) -> None:
        """Drain at this time (monotonic clock), also when the main thread is deep in a task."""
        self._end = (at, abandon_after_s)

    def _stop(self, reason: HappyError, abandon_after_s: float | None) -> None:
        if self.stop_reason is None:
            self._stopped_at, self._abandon_after_s = time.monotonic(), abandon_after_s
            self.stop_reason = reason

    def stopping_for_s(self) -> float:
        return time.monotonic() - self._stopped_at if self.stop_reason else 0.0

    def _loop(self) -> None:
        while not self._closed:
            with contextlib.suppress(HappyError):  # a store that fails for a while must not end the attempt
                self._journal.flush()
                self.beat()
                self._logs.flush()
                self._look_for_orders()
                self._announce()
            if self._abandon_after_s is not None and self.stopping_for_s() > self._abandon_after_s:
                self._abandon()
            self._wake.wait(self._interval_s)

    def _look_for_orders(self) -> None:
        if self.stop_reason is not None:
            return
        if self._end is not None and time.monotonic() > self._end[0]:
            self.drain("the walltime ends", abandon_after_s=self._end[1])
        elif self._attempt.cancel_requested():
            self._stop(CancelledError("cancelled by its owner"), UNWANTED_GRACE_S)
        elif self._attempt.superseded() and not self._closed:
            self._stop(SupersededError("another attempt took over"), UNWANTED_GRACE_S)

    def _announce(self) -> None:
        """Tell tasks that ask (`context.stopping()`)."""
        if isinstance(self.stop_reason, DrainedError) and not self._announced:
            self._attempt.announce_drain(str(self.stop_reason))
            self._announced = True

    def _abandon(self) -> None:
        """The main thread is deep in a long task and cannot answer: leave without it."""
        drained, cancelled = (isinstance(self.stop_reason, kind) for kind in (DrainedError, CancelledError))
        with contextlib.suppress(HappyError):
            self._journal.flush()
            if drained or cancelled:
                state = EndState.DRAINED if drained else EndState.CANCELLED
                message = f"{self.stop_reason} (a running task was abandoned)"
                self._attempt.end(state, message, telemetry=self._progress.telemetry())
        self._logs.flush()
        abort_all(EXIT_FAILED if cancelled else EXIT_TRY_AGAIN)
