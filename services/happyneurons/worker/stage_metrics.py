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
        room, pool = self._pool.room(), self._pool
        yield gauge(
            "happyneurons_stage_server_jobs", "Jobs of this stage server", ["state"],
            {("queued",): room.waiting, ("running",): room.running},
        )  # fmt: skip
        yield gauge(
            "happyneurons_stage_server_cores", "Cores that jobs may use together", ["state"],
            {("used",): pool.cores - room.cores, ("free",): room.cores},
        )  # fmt: skip
        yield gauge(
            "happyneurons_stage_server_memory_bytes", "Memory that jobs may use together, as they ask for it",
            ["state"],
            {
                ("used",): (pool.memory_gb - room.memory_gb) * BYTES_PER_GB,
                ("free",): room.memory_gb * BYTES_PER_GB,
            },
        )  # fmt: skip
