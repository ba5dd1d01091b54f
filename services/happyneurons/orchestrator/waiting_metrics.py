"""Metrics of what stands still: why jobs wait, which decisions are due, which runs do not get on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import Metric

from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.runlog import Event
from happyneurons.orchestrator.state import RUN_FINAL, GatePhase, JobPhase, JobStatus, RunPhase
from happyneurons.rpc.metric_families import counter, gauge

REASONS = {
    "upstream": "another job of its run",
    "decision": "a person, at a gate",
    "sections": "the end of the acquisition",
    "site_queue": "its site, which has it and has not begun",
    "site_away": "its site, which does not answer",
    "pause": "the pause after an attempt that was interrupted",
    "elsewhere": "the same job in another run",
    "scheduler": "the orchestrator's next look",
}
"""Why a job waits: for …"""


def waiting_reason(driver: RunDriver, name: str) -> str | None:
    """One of REASONS, or None if the job does not wait."""
    status, job = driver.status, driver.status.jobs[name]
    if job.phase is JobPhase.QUEUED:
        return "site_queue"
    if job.phase is not JobPhase.WAITING:
        return None
    missing = [n for n in job.job.upstream() if not status.passed(n)]
    if any(n in status.gates and status.gates[n].phase is GatePhase.WAITING for n in missing):
        return "decision"
    if missing:
        return "sections" if all(n in status.pipeline.templates for n in missing) else "upstream"
    if job.site_away:
        return "site_away"
    if name in driver.elsewhere:
        return "elsewhere"
    return "pause" if driver.paused(name) else "scheduler"


class WaitingMetrics:
    """Since when something waits is known from the log, or from the first scrape that saw it."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], tuple[str, float]] = {}
        """(run, job) → (reason, since when)"""
        self._gates_since: dict[tuple[str, str], float] = {}
        self._moved: dict[str, tuple[object, float]] = {}
        """run → (what it had done, when that changed)"""
        self._decided: Counter[tuple[str, str]] = Counter()
        self.begin()

    def begin(self) -> None:
        """A new scrape."""
        self._waiting: Counter[tuple[str, str, str]] = Counter()
        self._oldest: dict[str, float] = dict.fromkeys(REASONS, 0.0)
        self._gates: Counter[str] = Counter({phase.value: 0 for phase in GatePhase})
        self._gate_s = self._stalled_s = 0.0

    def count(self, driver: RunDriver, event: Event, since: float) -> None:
        """Take over an event. since: what happened before was counted by another process."""
        key = (driver.status.run_id, event.subject)
        if event.type == "gate_waiting":
            self._gates_since[key] = event.time
        elif event.type == "gate_decided":
            self._gates_since.pop(key, None)
            if event.time >= since:
                by = "condition" if event.data["decided_by"] == "condition" else "person"
                self._decided[by, "approved" if event.data["approved"] else "rejected"] += 1

    def see(self, driver: RunDriver) -> None:
        """What of a run stands still now."""
        status, now = driver.status, time.time()
        if status.phase in RUN_FINAL:
            self.forget(status.run_id)
            return
        for name, job in status.jobs.items():
            self._see_job(driver, name, job, now)
        for name, gate in status.gates.items():
            self._gates[gate.phase.value] += 1
            if gate.phase is GatePhase.WAITING:
                since = self._gates_since.setdefault((status.run_id, name), now)
                self._gate_s = max(self._gate_s, now - since)
        if status.phase is RunPhase.RUNNING:
            self._stalled_s = max(self._stalled_s, now - self._last_move(driver, now))

    def _see_job(self, driver: RunDriver, name: str, job: JobStatus, now: float) -> None:
        key, reason = (driver.status.run_id, name), waiting_reason(driver, name)
        if reason is None:
            self._since.pop(key, None)
            return
        self._waiting[job.job.stage, job.job.site, reason] += 1
        known = self._since.get(key)
        if known is None or known[0] != reason:
            known = self._since[key] = (reason, job.queue_time if reason == "site_queue" else now)
        self._oldest[reason] = max(self._oldest[reason], now - known[1])

    def _last_move(self, driver: RunDriver, now: float) -> float:
        """When a run last had an event or finished a task, if it has jobs at work; now otherwise."""
        status = driver.status
        done = tuple((n, p.get("round"), p.get("tasks_done")) for n, p in driver.progress.items())
        sign = (status.last_event, done)
        known = self._moved.get(status.run_id)
        if known is None or known[0] != sign:
            last = driver.events[-1].time if known is None and driver.events and not done else now
            known = self._moved[status.run_id] = (sign, last)
        working = any(j.phase is JobPhase.RUNNING for j in status.jobs.values())
        return known[1] if working else now

    def forget(self, run_id: str) -> None:
        """A run is over."""
        self._moved.pop(run_id, None)
        for known in (self._since, self._gates_since):
            for key in [k for k in known if k[0] == run_id]:
                del known[key]

    def families(self) -> Iterator[Metric]:
        yield gauge(
            "happyneurons_jobs_waiting", "Jobs that wait, by what they wait for", ["stage", "site", "reason"],
            self._waiting,
        )  # fmt: skip
        yield gauge(
            "happyneurons_job_wait_seconds", "How long the job has waited that waits longest, by what it waits for",
            ["reason"], {(reason,): value for reason, value in self._oldest.items()},
        )  # fmt: skip
        yield gauge(
            "happyneurons_gates", "Gates of unfinished runs", ["state"], {(k,): v for k, v in self._gates.items()}
        )  # fmt: skip
        yield counter(
            "happyneurons_gate_decisions", "Decisions at gates", ["by", "decision"],
            {(by, d): self._decided[by, d] for by in ("condition", "person") for d in ("approved", "rejected")},
        )  # fmt: skip
        yield gauge(
            "happyneurons_gate_wait_seconds", "How long the gate has waited for a person that waits longest", [],
            {(): self._gate_s},
        )  # fmt: skip
        yield gauge(
            "happyneurons_run_stalled_seconds",
            "Longest time that a run with jobs at work has had no event and finished no task", [],
            {(): self._stalled_s},
        )  # fmt: skip
