"""The orchestrator with a stage server as its site: the server attempts, the orchestrator decides about retrying."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from happyneurons.executors.service import ServiceExecutor
from happyneurons.jobs.attempts import EndState, attempt_end, attempt_numbers
from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.pipeline import PipelineError
from happyneurons.orchestrator.state import RUN_FINAL, JobPhase, RunPhase
from happyneurons.store.documents import Store
from tests.worker.waiting import wait_for

from .conftest import ServerProcess


@pytest.fixture
def orchestrator(store: Store, shared_server: ServerProcess) -> Iterator[Orchestrator]:
    found = Orchestrator(store, {"box": ServiceExecutor(shared_server.address)}, "box")
    found.start()
    yield found
    found.close()


def submit(orchestrator: Orchestrator, yaml: str, control: Path) -> RunDriver:
    spec = {"yaml": yaml.replace("CONTROL", str(control)), "parameters": {}, "source_name": "t.yaml", "base_uri": ""}
    return orchestrator.submit(spec)


def finish(driver: RunDriver) -> RunPhase:
    wait_for(lambda: driver.status.phase in RUN_FINAL, "the run's end", 90)
    return driver.status.phase


def test_a_killed_attempt_is_retried_until_the_run_succeeds(
    orchestrator: Orchestrator, store: Store, control: Path
) -> None:
    yaml = "jobs:\n  a: {stage: sandbox, params: {tasks: 4, control: CONTROL, behaviour: {'2': die-once}}}\n"
    driver = submit(orchestrator, yaml, control)
    assert finish(driver) is RunPhase.SUCCEEDED
    job = driver.status.jobs["a"]
    assert job.infrastructure_retries == 1
    assert job.metrics == {"sum": 14}
    assert attempt_numbers(store, job.key) == [1, 2]
    end = attempt_end(store, job.key, 1)
    assert end is not None
    assert end["state"] == EndState.SUPERSEDED


def test_what_is_no_use_to_retry_is_not(orchestrator: Orchestrator, store: Store, control: Path) -> None:
    yaml = "jobs:\n  a: {stage: sandbox, params: {tasks: 1, control: CONTROL, behaviour: {'0': user}}}\n"
    driver = submit(orchestrator, yaml, control)
    assert finish(driver) is RunPhase.FAILED
    job = driver.status.jobs["a"]
    assert (job.failure_kind, job.message) == ("user", "the input is wrong")
    assert attempt_numbers(store, job.key) == [1]
    with pytest.raises(PipelineError, match="needs 9 cores; the stage server at .* gives 2"):
        submit(orchestrator, "jobs:\n  b: {stage: sandbox, resources: {ranks: 9}}\n", control)


def test_cancelling_the_run_cancels_its_jobs(orchestrator: Orchestrator, store: Store, control: Path) -> None:
    yaml = "jobs:\n  a: {stage: sandbox, params: {tasks: 2, control: CONTROL, behaviour: {'1': block}}}\n"
    driver = submit(orchestrator, yaml, control)
    wait_for(lambda: list(control.glob("started-1-*")), "task 1")
    driver.cancel("changed my mind")
    assert finish(driver) is RunPhase.CANCELLED
    assert driver.status.jobs["a"].phase is JobPhase.CANCELLED
    end = attempt_end(store, driver.status.jobs["a"].key, 1)
    assert end is not None
    assert end["state"] == EndState.CANCELLED
