"""Metrics of sites that ask a batch system for nodes."""

from __future__ import annotations

from happyneurons.executors.base import Executor, PoolStatus
from happyneurons.executors.local import LocalExecutor
from happyneurons.executors.mapping import MappedExecutor, NodeSize
from happyneurons.orchestrator.site_metrics import collect_sites


class PooledExecutor(LocalExecutor):
    """This machine, as if it had a batch system."""

    def pool_status(self) -> PoolStatus:  # type: ignore[override]
        return PoolStatus(nodes_queued=3, nodes_running=2, batch_jobs_running=1, node_seconds=120.0, refused=1)


def test_nodes_and_what_the_pool_did_are_told_for_sites_that_have_one() -> None:
    sites: dict[str, Executor] = {
        "here": LocalExecutor(1),
        "hpc": MappedExecutor(PooledExecutor(1), {}, NodeSize(1)),
    }
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in collect_sites(sites)
        for sample in family.samples
    }
    assert {key[1] for key in found} == {"hpc"}
    assert found["happyneurons_site_nodes", "hpc", "queued"] == 3
    assert found["happyneurons_site_nodes", "hpc", "running"] == 2
    assert found["happyneurons_site_node_seconds_total", "hpc"] == 120
    assert found["happyneurons_site_pool_actions_total", "hpc", "refused"] == 1
