"""Metrics of jobs: where they stand, how they ended, what they held and what that cost."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator

from prometheus_client.core import Metric

from happyneurons.jobs.attempts import EndState
from happyneurons.orchestrator.costs import SiteRate, SiteRates
from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.runlog import Event
from happyneurons.orchestrator.state import RUN_FINAL, JobPhase
from happyneurons.rpc.metric_families import Buckets, counter, gauge

QUEUE_BUCKETS_S = (1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0)
RUN_BUCKETS_S = (1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0)
ENDS = ("job_succeeded", "job_failed", "job_cancelled", "job_interrupted")
OUTCOMES = ("succeeded", "reused", "failed", "cancelled")
INTERRUPTIONS = (EndState.ERROR.value, EndState.DRAINED.value, EndState.SUPERSEDED.value)
FAILURE_KINDS = ("user", "task", "infrastructure")

Place = tuple[str, str]
"""(stage, site)"""


class JobMetrics:
    """Folded from events; what is at work is counted up to the scrape, so that a job of a day shows its cost by day."""

    def __init__(self, rates: SiteRates) -> None:
        self._rates = rates
        self._submitted: dict[tuple[str, str], float] = {}
        self._begun: dict[tuple[str, str], float] = {}
        """When the attempt at work began, or since when we count it."""
        self._queue = Buckets(QUEUE_BUCKETS_S)
        self._duration = Buckets(RUN_BUCKETS_S)
        self._ended: Counter[tuple[str, str, str]] = Counter()
        self._failed: Counter[tuple[str, str, str]] = Counter()
        self._retries: Counter[tuple[str, str, str]] = Counter()
        self._runs_ended: Counter[str] = Counter()
        self._core_seconds: dict[Place, float] = defaultdict(float)
        self._places: set[Place] = set()
        self.begin()

    def begin(self) -> None:
        """A new scrape."""
        self._jobs: Counter[tuple[str, str, str]] = Counter()
        self._runs: Counter[str] = Counter()
        self._cores: Counter[Place] = Counter()
        self._held: Counter[Place] = Counter()
        self._eta: dict[Place, float] = {}

    def count(self, driver: RunDriver, event: Event, since: float) -> None:
        """Take over an event. since: what happened before was counted by another process."""
        if event.type == "run_ended" and event.time >= since:
            self._runs_ended[event.data["phase"]] += 1
        if event.subject not in driver.status.jobs:
            return
        status = driver.status.jobs[event.subject]
        place, key = (status.job.stage, status.job.site), (driver.status.run_id, event.subject)
        if event.time >= since:
            self._places.add(place)
        if event.type == "job_submitted":
            self._submitted[key] = event.time
        elif event.type == "job_started":
            began = event.data["began"]
            self._begun[key] = max(began, since)
            if event.time >= since and key in self._submitted:
                self._queue.observe(place, max(0.0, began - self._submitted[key]))
        elif event.type in ENDS:
            self._end(place, key, event, status.resources.cores, since)

    def _end(self, place: Place, key: tuple[str, str], event: Event, cores: int, since: float) -> None:
        begun = self._begun.pop(key, None)
        if event.time < since:
            return
        if begun is not None:
            self._core_seconds[place] += max(0.0, event.time - begun) * cores
            self._duration.observe(place, max(0.0, event.time - begun))
        if event.type == "job_interrupted":
            self._retries[*place, event.data["state"]] += 1
            return
        self._ended[*place, "reused" if event.data.get("reused") else event.type.removeprefix("job_")] += 1
        if event.type == "job_failed":
            self._failed[*place, event.data["kind"]] += 1

    def see(self, driver: RunDriver) -> None:
        """Where a run's jobs stand now."""
        status, now = driver.status, time.time()
        self._runs[status.phase.value] += 1
        if status.phase in RUN_FINAL:
            return
        for name, job in status.jobs.items():
            place = (job.job.stage, job.job.site)
            self._places.add(place)
            self._jobs[*place, job.phase.value] += 1
            if job.phase is not JobPhase.RUNNING:
                continue
            self._cores[place] += job.resources.cores
            begun = self._begun.get((status.run_id, name), now)
            self._held[place] += max(0.0, now - begun) * job.resources.cores  # type: ignore[assignment]
            eta_s = (driver.progress.get(name) or {}).get("eta_s")
            if eta_s is not None:
                self._eta[place] = max(self._eta.get(place, 0.0), eta_s)

    def forget(self, run_id: str) -> None:
        """A run left the memory."""
        for known in (self._submitted, self._begun):
            for key in [k for k in known if k[0] == run_id]:
                del known[key]

    def families(self) -> Iterator[Metric]:
        """All of them. Places are shown with zeros from their first job on: what a counter begins with is lost."""
        places = sorted(self._places)
        for place in places:
            self._queue.touch(place)
            self._duration.touch(place)
        where = ["stage", "site"]
        yield gauge("happyneurons_jobs", "Jobs of unfinished runs", [*where, "state"], self._jobs)
        yield gauge("happyneurons_runs", "Runs in memory", ["state"], {(k,): v for k, v in self._runs.items()})
        yield counter(
            "happyneurons_runs_ended", "Runs that ended", ["state"],
            {(s,): self._runs_ended[s] for s in ("succeeded", "failed", "cancelled")},
        )  # fmt: skip
        yield self._queue.family("happyneurons_job_queue_seconds", "Time from a job's submission to its start", where)
        yield self._duration.family(
            "happyneurons_job_attempt_seconds", "Time from an attempt's start to its end", where
        )
        yield counter(
            "happyneurons_jobs_ended", "Jobs that ended", [*where, "outcome"],
            {(*p, o): self._ended[*p, o] for p in places for o in OUTCOMES},
        )  # fmt: skip
        yield counter(
            "happyneurons_jobs_failed", "Jobs that failed, by whose failure it was", [*where, "kind"],
            {(*p, k): self._failed[*p, k] for p in places for k in FAILURE_KINDS},
        )  # fmt: skip
        yield counter(
            "happyneurons_retries", "Attempts that the infrastructure ended", [*where, "kind"],
            {(*p, k): self._retries[*p, k] for p in places for k in INTERRUPTIONS},
        )  # fmt: skip
        yield gauge(
            "happyneurons_job_eta_seconds", "Time left in the rounds at work, the longest of them", where, self._eta
        )  # fmt: skip
        yield gauge(
            "happyneurons_run_eta_seconds", "Time left in the rounds at work, the longest of all", [],
            {(): max(self._eta.values(), default=0.0)},
        )  # fmt: skip
        yield gauge("happyneurons_cores_in_use", "Cores that running jobs hold", where, self._cores)
        yield from self._costs(places)

    def _costs(self, places: list[Place]) -> Iterator[Metric]:
        where = ["stage", "site"]
        core_seconds = {p: self._core_seconds[p] + self._held[p] for p in places}
        rates = {p: self._rates.get(p[1], SiteRate()) for p in places}
        yield counter("happyneurons_core_seconds", "Cores × time that attempts held them", where, core_seconds)
        yield counter(
            "happyneurons_node_seconds", "Nodes × time that attempts held them; of a shared node its share", where,
            {p: s / n for p, s in core_seconds.items() if (n := rates[p].cores_per_node)},
        )  # fmt: skip
        yield counter(
            "happyneurons_cost", "Cores × time × the price in the sites file", [*where, "currency"],
            {
                (*p, rates[p].currency): s / 3600 * price
                for p, s in core_seconds.items()
                if (price := rates[p].per_core_hour) is not None
            },
        )  # fmt: skip
