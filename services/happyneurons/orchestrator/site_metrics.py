"""Metrics of sites with a batch system: nodes and batch jobs that there are, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import Metric

from happyneurons.executors.base import Executor
from happyneurons.orchestrator.costs import BUDGET_DAYS, SiteRates
from happyneurons.rpc.metric_families import counter, gauge


def collect_sites(sites: Mapping[str, Executor]) -> Iterator[Metric]:
    """Of every site that asks a scheduler for nodes. Answers from what executors saw last: no call goes out."""
    found = {name: status for name, executor in sites.items() if (status := executor.pool_status()) is not None}
    nodes: dict[tuple[str, str], int] = {}
    batch_jobs: dict[tuple[str, str], int] = {}
    jobs: dict[tuple[str, str], int] = {}
    actions: dict[tuple[str, str], int] = {}
    for name, status in found.items():
        nodes |= {(name, "queued"): status.nodes_queued, (name, "running"): status.nodes_running}
        batch_jobs |= {(name, "queued"): status.batch_jobs_queued, (name, "running"): status.batch_jobs_running}
        jobs |= {(name, "waiting"): status.jobs_waiting, (name, "running"): status.jobs_running}
    yield gauge("happyneurons_site_nodes", "Nodes in batch jobs that take our jobs", ["site", "state"], nodes)
    yield gauge("happyneurons_site_batch_jobs", "Batch jobs that take our jobs", ["site", "state"], batch_jobs)
    yield gauge("happyneurons_site_jobs", "Our jobs at the site's scheduler", ["site", "state"], jobs)
    yield counter(
        "happyneurons_site_node_seconds", "Nodes times seconds of running batch jobs", ["site"],
        {(name,): status.node_seconds for name, status in found.items()},
    )  # fmt: skip
    for name, status in found.items():
        actions |= {(name, "requested"): status.requested, (name, "given_back"): status.given_back}
        actions[name, "refused"] = status.refused
    yield counter("happyneurons_site_pool_actions", "What the elastic pool did", ["site", "action"], actions)


def collect_budgets(rates: SiteRates) -> Iterator[Metric]:
    """What sites cost and may cost, as the sites file has it."""
    prices = {(n, r.currency): r.per_core_hour for n, r in rates.items() if r.per_core_hour is not None}
    budgets = {(n, r.currency): r.budget for n, r in rates.items() if r.budget is not None}
    yield gauge("happyneurons_site_core_hour_price", "Price of a core for an hour", ["site", "currency"], prices)
    yield gauge(
        "happyneurons_site_budget", f"What jobs at a site may cost in {BUDGET_DAYS} days", ["site", "currency"], budgets
    )
