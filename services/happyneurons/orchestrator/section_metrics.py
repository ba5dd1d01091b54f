"""Metrics of open runs: how far they are behind their microscopes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from prometheus_client.core import Metric

from happyneurons.errors import HappyError
from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.intake import progress
from happyneurons.orchestrator.runlog import now
from happyneurons.orchestrator.state import RUN_FINAL
from happyneurons.rpc.metric_families import Buckets, counter, gauge

SECTION_BUCKETS_S = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 6 * 3600.0, 24 * 3600.0)

STATES = ("waiting", "in_work", "done", "failed", "gap")


class SectionMetrics:
    """What happened before `since` is not counted; it was, by another process."""

    def __init__(self) -> None:
        self._seconds = Buckets(SECTION_BUCKETS_S)
        self._seconds.touch(())
        self._reported: dict[str, int] = {}
        self._looked_at: dict[str, int] = {}
        self._reported_before = 0

    def forget(self, run_id: str) -> None:
        """A run left the memory: its reports stay counted."""
        self._reported_before += self._reported.pop(run_id, 0)
        self._looked_at.pop(run_id, None)

    def collect(self, drivers: Iterable[RunDriver], since: float) -> Iterator[Metric]:
        """The families, from all runs in memory."""
        lag_s, open_runs, sections = 0.0, 0, Counter(dict.fromkeys(STATES, 0))
        for driver in drivers:
            if driver.intake is None:
                continue
            with driver.changed, contextlib.suppress(HappyError):  # the store is away: the next scrape will know
                ours = max(since, driver.loaded_until)
                self._observe(driver, ours)
                self._reported[driver.status.run_id] = driver.intake.reports.since(ours)
                if driver.status.phase not in RUN_FINAL:
                    open_runs += driver.status.open
                    found = progress(driver.status, driver.intake.reports, now())
                    lag_s = max(lag_s, found.lag_s or 0.0)
                    sections.update(
                        waiting=found.waiting, in_work=found.in_work, done=found.done, failed=found.failed,
                        gap=sum(b - a + 1 for a, b in found.gaps),
                    )  # fmt: skip
        yield gauge(
            "happyneurons_acquisition_lag_seconds",
            "Time since the oldest section that is not through the jobs of its batch was reported", [], {(): lag_s},
        )  # fmt: skip
        yield gauge(
            "happyneurons_acquisition_sections_waiting", "Sections that are not through the jobs of their batch", [],
            {(): sections["waiting"] + sections["in_work"]},
        )  # fmt: skip
        yield gauge(
            "happyneurons_acquisition_sections", "Sections of unfinished open runs; a gap was not reported (yet)",
            ["state"], {(state,): sections[state] for state in STATES},
        )  # fmt: skip
        yield gauge("happyneurons_acquisition_open_runs", "Runs that take sections", [], {(): open_runs})
        yield counter(
            "happyneurons_acquisition_sections_reported", "Reports of sections", [],
            {(): self._reported_before + sum(self._reported.values())},
        )  # fmt: skip
        yield self._seconds.family(
            "happyneurons_acquisition_section_seconds",
            "Time from a section's report to the end of its batch's jobs",
            [],
        )

    def _observe(self, driver: RunDriver, since: float) -> None:
        """Take over batches that finished since the last look."""
        acquisition, run_id = driver.status.acquisition, driver.status.run_id
        assert acquisition is not None
        for batch in islice(acquisition.finished, self._looked_at.get(run_id, 0), None):
            if batch.finished >= since:
                for reported in batch.reported:
                    self._seconds.observe((), max(0.0, batch.finished - reported))
        self._looked_at[run_id] = len(acquisition.finished)
