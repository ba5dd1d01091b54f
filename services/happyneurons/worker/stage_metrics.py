"""Metrics of a stage server: what stands in its queue, what is at work, and what they take of its machine.

What its jobs do is told by the orchestrator, who reads it in the store.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from happyneurons.rpc.metric_families import gauge
from happyneurons.worker.stage_jobs import StageJobs

BYTES_PER_GB = 1e9


class StageServerCollector(Collector):
    """Asked at each scrape; reads nothing from the store."""

    def __init__(self, jobs: StageJobs) -> None:
        self._pool = jobs.pool

    def collect(self) -> Iterator[Metric]:
        used, pool = self._pool.usage(), self._pool
        yield gauge(
            "happyneurons_stage_server_jobs", "Jobs of this stage server", ["state"],
            {("queued",): used.waiting, ("running",): used.running},
        )  # fmt: skip
        yield gauge(
            "happyneurons_stage_server_cores", "Cores that jobs may use together", ["state"],
            {("used",): used.cores, ("free",): pool.cores - used.cores},
        )  # fmt: skip
        yield gauge(
            "happyneurons_stage_server_memory_bytes", "Memory that jobs may use together, as they ask for it",
            ["state"],
            {
                ("used",): used.memory_gb * BYTES_PER_GB,
                ("free",): (pool.memory_gb - used.memory_gb) * BYTES_PER_GB,
            },
        )  # fmt: skip
