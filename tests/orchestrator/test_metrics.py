"""What Prometheus is told: each thing once, over restarts and runs that left the memory, with zeros before."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client.core import Metric

from happyneurons.client import Client
from happyneurons.errors import UserError
from happyneurons.executors.local import LocalExecutor
from happyneurons.orchestrator import orchestrator as orchestrator_module
from happyneurons.orchestrator.costs import SiteCost, SiteRate, site_rate
from happyneurons.orchestrator.metrics import OrchestratorCollector
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.orchestrator.sites import SiteConfig, rate_of
from happyneurons.orchestrator.work_metrics import produced_cubic_m
from happyneurons.store.artifacts import Artifact, Bounds, Manifest
from happyneurons.store.documents import Store
from happyneurons.worker.server import StageServer
from happyneurons.worker.stage_metrics import StageServerCollector

from ..worker.waiting import wait_for

RUN = """
name: run
jobs:
  first: {stage: sandbox, params: {tasks: 3, control: "CONTROL", behaviour: {"1": FIRST}}}
  second: {stage: sandbox, params: {tasks: 4, control: "CONTROL"}, needs: [first]}
"""

Told = dict[tuple[str, ...], float]


def told(families: Any) -> Told:
    """(name, value of each label in their names' order) → value."""
    found: Told = {}
    for family in families:
        assert isinstance(family, Metric)
        for sample in family.samples:
            found[sample.name, *(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


def scrape(server: OrchestratorServer, collector: OrchestratorCollector | None = None) -> Told:
    return told((collector or OrchestratorCollector(server.orchestrator)).collect())


def test_why_jobs_wait_and_how_they_fail(store: Store, control: Any) -> None:
    rates = {"local": SiteRate(4, 0.5, "EUR", 10.0)}
    with OrchestratorServer(store, sites={"local": SiteConfig(executor="local", cores=4)}) as server:
        collector = OrchestratorCollector(server.orchestrator, rates)
        with Client(server.address) as client:
            text = RUN.replace("CONTROL", str(control))
            run = client.submit(text.replace("FIRST", "block"))
            wait_for(lambda: list(control.glob("started-1-*")), "task 1")
            wait_for(lambda: server.orchestrator.driver(run.id).progress.get("first"), "progress")
            found = scrape(server, collector)
            assert found["happyneurons_jobs_waiting", "upstream", "local", "sandbox"] == 1
            assert found["happyneurons_cores_in_use", "local", "sandbox"] == 1
            assert found["happyneurons_jobs_ended_total", "succeeded", "local", "sandbox"] == 0
            assert found["happyneurons_rank_memory_peak_bytes", "sandbox"] > 10e6
            held = found["happyneurons_core_seconds_total", "local", "sandbox"]
            assert held > 0, "what is at work is counted before it ends"
            (control / "release").touch()
            run.wait()
            failed = client.submit(text.replace("FIRST", "fail"))
            wait_for(lambda: failed.refresh().state == "failed", "the failure")
            found = scrape(server, collector)
    assert found["happyneurons_jobs_ended_total", "succeeded", "local", "sandbox"] == 2
    assert found["happyneurons_jobs_failed_total", "task", "local", "sandbox"] == 1
    assert found["happyneurons_task_failures_total", "task", "sandbox"] == 2, "two tries"
    assert found["happyneurons_tasks_total", "quarantined", "sandbox"] == 1
    assert found["happyneurons_tasks_total", "done", "sandbox"] == 9 + 2
    assert found["happyneurons_task_seconds_count", "sandbox"] == 9 + 2
    assert found["happyneurons_rank_store_call_seconds_count", "put", "sandbox"] > 9
    seconds = found["happyneurons_core_seconds_total", "local", "sandbox"]
    assert seconds > held
    assert found["happyneurons_node_seconds_total", "local", "sandbox"] == pytest.approx(seconds / 4)
    assert found["happyneurons_cost_total", "EUR", "local", "sandbox"] == pytest.approx(seconds / 3600 * 0.5)
    assert found["happyneurons_site_budget", "EUR", "local"] == 10


def test_what_was_counted_stays_when_runs_leave_the_memory(
    store: Store, control: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OrchestratorServer(store, sites={"local": SiteConfig(executor="local", cores=4)}) as server:
        collector = OrchestratorCollector(server.orchestrator)
        scrape(server, collector)
        with Client(server.address) as client:
            run = client.submit(RUN.replace("CONTROL", str(control)).replace("FIRST", "''")).wait()
            before = scrape(server, collector)
            monkeypatch.setattr(orchestrator_module, "KEEP_S", 0.0)
            wait_for(lambda: not server.orchestrator.drivers(), "the run to be let go")
            after = scrape(server, collector)
            assert client.run(run.id).state == "succeeded", "loaded again"
            again = scrape(server, collector)
    counters = [name for name in before if name[0].endswith("_total") and "scheduler" not in name[0]]
    assert before["happyneurons_tasks_total", "done", "sandbox"] == 9
    assert {n: after[n] for n in counters} == {n: before[n] for n in counters}
    assert {n: again[n] for n in counters} == {n: before[n] for n in counters}, "not counted again"


def test_a_restarted_one_begins_with_nothing_and_a_reader_tells_of_no_jobs(store: Store, control: Any) -> None:
    sites = {"local": SiteConfig(executor="local", cores=4)}
    with OrchestratorServer(store, sites=sites) as server, Client(server.address) as client:
        run = client.submit(RUN.replace("CONTROL", str(control)).replace("FIRST", "''")).wait()
    with OrchestratorServer(store, sites=sites) as server:
        collector = OrchestratorCollector(server.orchestrator)
        server.orchestrator.driver(run.id)
        found = scrape(server, collector)
        assert found["happyneurons_leader",] == 1
        assert found["happyneurons_tasks_total", "done", "sandbox"] == 0
    reader = Orchestrator(store, {"local": LocalExecutor(1)}, drive=False)
    reader.driver(run.id)
    names = {name[0] for name in told(OrchestratorCollector(reader).collect())}
    assert "happyneurons_runs" not in names
    assert told(OrchestratorCollector(reader).collect())["happyneurons_leader",] == 0


def test_progress_stays_small_and_old_images_are_understood(store: Store, control: Any) -> None:
    from happyneurons.jobs.attempts import attempt_progress
    from happyneurons.jobs.spec import make_spec, save_spec
    from happyneurons.stages import load_stage
    from happyneurons.worker.run import run_job_here

    spec = make_spec(load_stage("sandbox"), inputs={}, params={"tasks": 300})
    save_spec(store, spec)
    assert run_job_here(store, spec.key) == 0
    progress = attempt_progress(store, spec.key, 1)
    assert progress is not None
    assert len(json.dumps(progress)) < 1500
    assert sum(progress["telemetry"]["durations"]) == 301


def test_tissue_is_what_outputs_cover() -> None:
    box = Bounds(minimum_xyz=(0, 0, 0), maximum_xyz=(1000, 1000, 10))
    output = Artifact(kind="image_volume", uri="u", data_uri="d", digest="x", voxel_size_nm_xyz=(8, 8, 40), bounds=box)
    table = Artifact(kind="table", uri="u", data_uri="d", digest="x")
    manifest = Manifest(
        job_key="k", stage="s", stage_version="1", params={}, inputs={}, outputs={"a": output, "b": table},
        provenance={},
    )  # fmt: skip
    assert produced_cubic_m(manifest) == pytest.approx(8e-6 * 8e-6 * 400e-9)


def test_prices_of_sites() -> None:
    assert site_rate(SiteCost(per_node_hour=8, budget=100), 32) == SiteRate(32, 0.25, "EUR", 100)
    assert site_rate(None, 4) == SiteRate(4)
    for wrong in ({}, {"per_core_hour": 1, "per_node_hour": 1}, {"per_core_hour": 1, "currency": "a b"}):
        with pytest.raises(ValueError):
            SiteCost.model_validate(wrong)
    config = SiteConfig(executor="service", address="x:1", cost=SiteCost(per_node_hour=1))
    with pytest.raises(UserError, match="site gpu: cost.per_node_hour needs `cores:`"):
        rate_of("gpu", config)
    assert rate_of("gpu", config.model_copy(update={"cores": 64})).per_core_hour == pytest.approx(1 / 64)
    polaris = SiteConfig(
        executor="balsam", folder="polaris", cost=SiteCost(per_node_hour=1, currency="node_hours"),
    )  # fmt: skip
    assert rate_of("polaris", polaris) == SiteRate(32, 1 / 32, "node_hours")


def test_a_stage_server_tells_of_its_queue(store: Store) -> None:
    with StageServer(store, "127.0.0.1:0", cores=2, memory_gb=4) as server:
        found = told(StageServerCollector(server._jobs).collect())
    assert found["happyneurons_stage_server_cores", "free"] == 2
    assert found["happyneurons_stage_server_memory_bytes", "free"] == 4e9
    assert found["happyneurons_stage_server_jobs", "running"] == 0
