"""Metrics of the orchestrator for Prometheus: `http://HOST:PORT/metrics`.

Labels are stages, sites, states and kinds, all of them few; never runs or jobs. Counters count
what happened since this process started: events that it only replays are not counted again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from happyneurons._version import __version__
from happyneurons.errors import HappyError, NotFoundError, UserError
from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.metric_families import Buckets, counter, gauge
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.runlog import Event
from happyneurons.orchestrator.section_metrics import SectionMetrics
from happyneurons.orchestrator.site_metrics import collect_sites
from happyneurons.orchestrator.state import RUN_FINAL, JobPhase, JobStatus
from happyneurons.store.artifacts import load_manifest
from happyneurons.store.documents import Store

QUEUE_BUCKETS_S = (1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0)
RUN_BUCKETS_S = (1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0)
ENDS = ("job_succeeded", "job_failed", "job_cancelled", "job_interrupted")


class OrchestratorCollector(Collector):
    """Reads the orchestrator's state at each scrape, and folds the events that are new since the last one."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator
        self._started = time.time()
        self._lock = threading.Lock()
        self._positions: dict[str, int] = {}
        self._submitted: dict[tuple[str, str], float] = {}
        self._begun: dict[tuple[str, str], float] = {}
        self._sections = SectionMetrics(self._started)
        self._queue = Buckets(QUEUE_BUCKETS_S)
        self._duration = Buckets(RUN_BUCKETS_S)
        self._ended: Counter[tuple[str, str, str]] = Counter()
        self._retries: Counter[str] = Counter()
        self._core_seconds: dict[str, float] = defaultdict(float)
        # (run, job) → figure → (first seen, highest seen): attempts that begin again never count backwards.
        self._work: dict[tuple[str, str, str], dict[str, tuple[float, float]]] = {}

    def describe(self) -> list[Metric]:
        """Nothing is promised before the first scrape (registering must not touch the store)."""
        return []

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            drivers = self._orchestrator.drivers()
            jobs: Counter[tuple[str, str, str]] = Counter()
            runs: Counter[str] = Counter()
            eta_s = 0.0
            for driver in drivers:
                with driver.changed:
                    self._fold(driver)
                    runs[driver.status.phase.value] += 1
                    for name, job in driver.status.jobs.items():
                        if driver.status.phase not in RUN_FINAL:
                            jobs[job.job.stage, job.job.site, job.phase.value] += 1
                        self._measure(driver, name, job)
                    eta_s = max([eta_s, *(p.get("eta_s") or 0.0 for p in driver.progress.values())])
            yield from self._families(jobs, runs, eta_s)
            yield from self._sections.collect(drivers)
            yield from collect_sites(self._orchestrator.sites)

    # --- what is counted -------------------------------------------------------------------------

    def _fold(self, driver: RunDriver) -> None:
        run_id = driver.status.run_id
        position = self._positions.get(run_id, 0)
        for event in driver.events[position:]:
            if event.subject in driver.status.jobs:
                self._count(driver, event)
        self._positions[run_id] = len(driver.events)

    def _count(self, driver: RunDriver, event: Event) -> None:
        job, key = driver.status.jobs[event.subject].job, (driver.status.run_id, event.subject)
        new = event.time >= self._started
        if event.type == "job_submitted":
            self._submitted[key] = event.time
        elif event.type == "job_started":
            self._begun[key] = began = event.data["began"]
            if new and key in self._submitted:
                self._queue.observe((job.stage, job.site), max(0.0, began - self._submitted[key]))
        elif event.type in ENDS:
            begun = self._begun.pop(key, None)
            if not new:
                return
            if begun is not None:
                self._core_seconds[job.site] += (event.time - begun) * driver.status.jobs[event.subject].resources.cores
                self._duration.observe((job.stage, job.site), event.time - begun)
            if event.type == "job_interrupted":
                self._retries[event.data["state"]] += 1
            else:
                outcome = "reused" if event.data.get("reused") else event.type.removeprefix("job_")
                self._ended[job.stage, job.site, outcome] += 1

    def _measure(self, driver: RunDriver, name: str, job: JobStatus) -> None:
        """Take over what a job's attempt, or its result, says it has done."""
        if job.reused:
            return
        figures: dict[str, float] | None = None
        if job.phase is JobPhase.SUCCEEDED:
            with contextlib.suppress(HappyError):  # the store is away: the next scrape will know
                figures = _published_work(self._orchestrator.store, job.key)
        elif progress := driver.progress.get(name):
            figures = {
                "done": progress["resumed_tasks"] + progress["computed_tasks"],
                "quarantined": progress["quarantined"],
                "voxels": progress["voxels"],
                "bytes": progress["bytes"],
            }
        if figures is None:
            return
        known = self._work.setdefault((driver.status.run_id, name, job.job.stage), {})
        before_us = bool(job.start_time) and job.start_time < self._started
        for figure, value in figures.items():
            first, highest = known.get(figure, (value if before_us else 0.0, value))
            known[figure] = (first, max(highest, value))

    def _work_done(self) -> dict[tuple[str, str], float]:
        """(stage, figure) → how much of it was done since this process started."""
        totals: dict[tuple[str, str], float] = defaultdict(float)
        for (_, _, stage), figures in self._work.items():
            for figure, (first, highest) in figures.items():
                totals[stage, figure] += highest - first
        return totals

    # --- how it is told --------------------------------------------------------------------------

    def _families(self, jobs: Counter[tuple[str, str, str]], runs: Counter[str], eta_s: float) -> Iterator[Metric]:
        yield gauge("happyneurons_build_info", "Version of the package", ["version"], {(__version__,): 1})
        yield gauge("happyneurons_jobs", "Jobs of unfinished runs", ["stage", "site", "state"], jobs)
        yield gauge("happyneurons_runs", "Runs in memory", ["state"], {(k,): v for k, v in runs.items()})
        yield self._queue.family(
            "happyneurons_job_queue_seconds", "Time from a job's submission to its start", ["stage", "site"]
        )
        yield self._duration.family(
            "happyneurons_job_attempt_seconds", "Time from an attempt's start to its end", ["stage", "site"]
        )
        yield counter("happyneurons_jobs_ended", "Jobs that ended", ["stage", "site", "outcome"], self._ended)
        yield counter(
            "happyneurons_retries", "Attempts that the infrastructure ended", ["kind"],
            {(kind,): count for kind, count in self._retries.items()},
        )  # fmt: skip
        yield counter(
            "happyneurons_core_seconds", "Cores × time that attempts held them", ["site"],
            {(site,): value for site, value in self._core_seconds.items()},
        )  # fmt: skip
        work = self._work_done()
        outcomes = ("done", "quarantined")
        yield counter(
            "happyneurons_tasks", "Tasks of jobs", ["stage", "outcome"],
            {key: value for key, value in work.items() if key[1] in outcomes},
        )  # fmt: skip
        for figure in ("voxels", "bytes"):
            values = {(stage,): value for (stage, name), value in work.items() if name == figure}
            yield counter(f"happyneurons_{figure}", f"{figure.capitalize()} that tasks made", ["stage"], values)
        yield gauge(
            "happyneurons_run_eta_seconds", "Time left in the rounds at work, the longest of them", [], {(): eta_s}
        )  # fmt: skip
        yield counter(
            "happyneurons_scheduler_ticks", "Looks at all runs", [], {(): float(self._orchestrator.ticks)}
        )  # fmt: skip
        failing = 1.0 if self._orchestrator.last_error else 0.0
        yield gauge("happyneurons_scheduler_failing", "1 while the store or a site gives errors", [], {(): failing})


@lru_cache(maxsize=65_536)
def _published_work(store: Store, key: str) -> dict[str, float]:
    """What a manifest says was done (manifests never change). Raises NotFoundError, StoreError."""
    manifest = load_manifest(store, key)
    if manifest is None:
        raise NotFoundError(f"job {key}: its manifest is gone")
    made = manifest.provenance
    return {
        "done": float(made.get("tasks_computed", 0) + made.get("tasks_resumed", 0)),
        "quarantined": float(len(made.get("tasks_quarantined", ()))),
        "voxels": float(made.get("voxels", 0)),
        "bytes": float(made.get("bytes", 0)),
    }


class MetricsServer:
    """`/metrics` over HTTP."""

    def __init__(self, address: str, registry: CollectorRegistry, tls: Mapping[str, str] | None = None) -> None:
        """address: host:port (port 0: any). tls: certfile, keyfile, and for mutual TLS client_cafile.

        Raises UserError if it cannot be listened on.
        """
        host, _, port = address.rpartition(":")
        options: dict[str, Any] = {**tls, "client_auth_required": "client_cafile" in tls} if tls else {}
        try:
            self._server, self._thread = start_http_server(int(port), host or "127.0.0.1", registry, **options)
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(f"cannot serve metrics on {address}: {error}") from None
        self.address = f"{host or '127.0.0.1'}:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
