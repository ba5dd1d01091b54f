"""Metrics of the orchestrator for Prometheus: `http://HOST:PORT/metrics`.

Labels are stages, sites, states and kinds, all of them few; never runs or jobs. Counters count
what happened since this process began to lead: events that it only replays are not counted again.
Of several orchestrators on a store the one that leads tells of jobs; the others tell of themselves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from happyneurons.orchestrator.costs import SiteRates
from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.job_metrics import JobMetrics
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.quality_metrics import QualityMetrics
from happyneurons.orchestrator.section_metrics import SectionMetrics
from happyneurons.orchestrator.site_metrics import collect_budgets, collect_sites
from happyneurons.orchestrator.waiting_metrics import WaitingMetrics
from happyneurons.orchestrator.work_metrics import WorkMetrics
from happyneurons.rpc.metric_families import counter, gauge


class OrchestratorCollector(Collector):
    """Reads the orchestrator's state at each scrape, and folds the events that are new since the last one."""

    def __init__(self, orchestrator: Orchestrator, rates: SiteRates | None = None) -> None:
        """rates: what the sites' cores are worth, where that is known."""
        self._orchestrator = orchestrator
        self._rates: SiteRates = rates or {}
        self._since = time.time()
        self._lock = threading.Lock()
        self._positions: dict[str, int] = {}
        self._jobs = JobMetrics(self._rates)
        self._waiting = WaitingMetrics()
        self._work = WorkMetrics()
        self._quality = QualityMetrics()
        self._sections = SectionMetrics()

    def describe(self) -> list[Metric]:
        """Nothing is promised before the first scrape (registering must not touch the store)."""
        return []

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            leads = self._orchestrator.leads
            yield from self._scheduler(leads)
            if not leads:
                self._since = time.time()  # what happens until we lead is counted by the one that leads now
                return
            drivers = {driver.status.run_id: driver for driver in self._orchestrator.drivers()}
            for gone in self._positions.keys() - drivers.keys():
                self._forget(gone)
            for part in (self._jobs, self._waiting, self._work):
                part.begin()
            for driver in drivers.values():
                with driver.changed:
                    self._see(driver)
            yield from self._jobs.families()
            yield from self._waiting.families()
            yield from self._work.families()
            yield from self._quality.families()
            yield from self._sections.collect(drivers.values(), self._since)
            yield from collect_sites(self._orchestrator.sites)
            yield from collect_budgets(self._rates)

    def _see(self, driver: RunDriver) -> None:
        run_id, since = driver.status.run_id, max(self._since, driver.loaded_until)
        for event in driver.events[self._positions.get(run_id, 0) :]:
            for part in (self._jobs, self._waiting, self._work, self._quality):
                part.count(driver, event, since)
        self._positions[run_id] = len(driver.events)
        self._jobs.see(driver)
        self._waiting.see(driver)
        self._work.see(driver, since)
        self._quality.see(driver)

    def _forget(self, run_id: str) -> None:
        del self._positions[run_id]
        for part in (self._jobs, self._waiting, self._work, self._sections):
            part.forget(run_id)

    def _scheduler(self, leads: bool) -> Iterator[Metric]:
        orchestrator = self._orchestrator
        yield gauge(
            "happyneurons_leader", "1 for the orchestrator that drives the runs of its store", [], {(): float(leads)}
        )  # fmt: skip
        yield counter("happyneurons_scheduler_ticks", "Looks at all runs", [], {(): float(orchestrator.ticks)})
        yield gauge(
            "happyneurons_scheduler_tick_seconds", "Duration of the latest look at all runs", [],
            {(): orchestrator.tick_s},
        )  # fmt: skip
        failing = 1.0 if orchestrator.last_error else 0.0
        yield gauge("happyneurons_scheduler_failing", "1 while the store or a site gives errors", [], {(): failing})
