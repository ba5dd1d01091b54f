"""Metrics of open runs: how far they are behind their microscopes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import islice

from prometheus_client.core import Metric

from happyneurons.errors import HappyError
from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.intake import progress
from happyneurons.orchestrator.metric_families import Buckets, counter, gauge
from happyneurons.orchestrator.runlog import now
from happyneurons.orchestrator.state import RUN_FINAL

SECTION_BUCKETS_S = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 6 * 3600.0, 24 * 3600.0)


class SectionMetrics:
    """What happened before `started` is not counted; it was, by another process."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._seconds = Buckets(SECTION_BUCKETS_S)
        self._seconds.touch(())
        self._reported: dict[str, int] = {}
        self._looked_at: dict[str, int] = {}

    def collect(self, drivers: Iterable[RunDriver]) -> Iterator[Metric]:
        """The families, from all runs in memory."""
        lag_s, waiting = 0.0, 0
        for driver in drivers:
            if driver.intake is None:
                continue
            with driver.changed, contextlib.suppress(HappyError):  # the store is away: the next scrape will know
                self._observe(driver)
                self._reported[driver.status.run_id] = driver.intake.reports.since(self._started)
                if driver.status.phase not in RUN_FINAL:
                    found = progress(driver.status, driver.intake.reports, now())
                    lag_s = max(lag_s, found.lag_s or 0.0)
                    waiting += found.waiting + found.in_work
        yield gauge(
            "happyneurons_acquisition_lag_seconds",
            "Time since the oldest section that is not through the jobs of its batch was reported", [], {(): lag_s},
        )  # fmt: skip
        yield gauge(
            "happyneurons_acquisition_sections_waiting", "Sections that are not through the jobs of their batch", [],
            {(): waiting},
        )  # fmt: skip
        yield counter(
            "happyneurons_acquisition_sections_reported", "Reports of sections", [],
            {(): sum(self._reported.values())},
        )  # fmt: skip
        yield self._seconds.family(
            "happyneurons_acquisition_section_seconds",
            "Time from a section's report to the end of its batch's jobs",
            [],
        )

    def _observe(self, driver: RunDriver) -> None:
        """Take over batches that finished since the last look."""
        acquisition, run_id = driver.status.acquisition, driver.status.run_id
        assert acquisition is not None
        for batch in islice(acquisition.finished, self._looked_at.get(run_id, 0), None):
            if batch.finished >= self._started:
                for reported in batch.reported:
                    self._seconds.observe((), max(0.0, batch.finished - reported))
        self._looked_at[run_id] = len(acquisition.finished)
