"""Promises of runs: reuse by key, gates, failures by kind, cancel and retry, recovery after SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from happyneurons.executors.local import LocalExecutor
from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.orchestrator import Orchestrator, RequestConflictError
from happyneurons.orchestrator.pipeline import PipelineError
from happyneurons.orchestrator.runlog import read_events
from happyneurons.orchestrator.state import RUN_FINAL, GatePhase, JobPhase, RunPhase, RunStatus

from ..worker.waiting import wait_for

TWO = """
jobs:
  first: {stage: sandbox, params: {tasks: 3, control: CONTROL}}
  second: {stage: sandbox, params: {tasks: 4, control: CONTROL}, needs: [first]}
"""


def finish(driver: RunDriver) -> RunPhase:
    wait_for(lambda: driver.status.phase in RUN_FINAL, "the run's end", 90)
    return driver.status.phase


def events(driver: RunDriver) -> list[str]:
    return [f"{e.type} {e.subject}".strip() for e in driver.events]


def test_second_run_computes_nothing(orchestrator, spec, control):
    assert finish(orchestrator.submit(spec(TWO))) is RunPhase.SUCCEEDED
    before = sorted(control.iterdir())
    again = orchestrator.submit(spec(TWO))
    assert finish(again) is RunPhase.SUCCEEDED
    assert sorted(control.iterdir()) == before
    assert all(j.reused for j in again.status.jobs.values())


def test_changed_parameter_recomputes_that_job_only(orchestrator, spec):
    finish(orchestrator.submit(spec(TWO)))
    changed = orchestrator.submit(spec(TWO.replace("tasks: 4", "tasks: 5")))
    finish(changed)
    assert {n: j.reused for n, j in changed.status.jobs.items()} == {"first": True, "second": False}


def test_manual_gate_waits_for_a_decision(orchestrator, spec):
    driver = orchestrator.submit(
        spec(TWO.replace("[first]", "[look]") + "gates:\n  look: {after: [first], ask: 'Good?'}\n")
    )
    wait_for(lambda: driver.status.phase is RunPhase.WAITING, "the gate")
    assert driver.status.jobs["second"].phase is JobPhase.WAITING
    driver.decide("look", True, "ann", "fine")
    assert finish(driver) is RunPhase.SUCCEEDED
    assert driver.status.gates["look"].decided_by == "ann"


def test_rejected_gate_skips_what_follows(orchestrator, spec):
    text = TWO.replace("[first]", "[look]") + "gates:\n  look: {condition: first.sum > 1000, otherwise: reject}\n"
    driver = orchestrator.submit(spec(text))
    assert finish(driver) is RunPhase.FAILED
    assert driver.status.gates["look"].phase is GatePhase.REJECTED
    assert driver.status.jobs["second"].phase is JobPhase.SKIPPED


@pytest.mark.parametrize(("behaviour", "kind"), [("fail", "task"), ("user", "user")])
def test_failure_has_its_kind_and_is_not_retried(orchestrator, spec, behaviour, kind):
    driver = orchestrator.submit(spec(TWO.replace("tasks: 3", f"tasks: 3, behaviour: {{'1': {behaviour}}}")))
    assert finish(driver) is RunPhase.FAILED
    assert driver.status.jobs["first"].failure_kind == kind
    assert events(driver).count("job_submitted first") == 1
    assert driver.status.jobs["second"].phase is JobPhase.SKIPPED


def test_dead_rank_is_retried_as_infrastructure(orchestrator, spec):
    driver = orchestrator.submit(spec(TWO.replace("tasks: 3", "tasks: 3, behaviour: {'1': die-once}")))
    assert finish(driver) is RunPhase.SUCCEEDED
    assert driver.status.jobs["first"].infrastructure_retries == 1


def test_cancel_then_retry(orchestrator, spec, control):
    driver = orchestrator.submit(spec(TWO.replace("tasks: 3", "tasks: 3, behaviour: {'1': block}")))
    wait_for(lambda: list(control.glob("started-1-*")), "task 1")
    driver.cancel("changed my mind")
    assert finish(driver) is RunPhase.CANCELLED
    (control / "release").touch()
    driver.retry([], retry_quarantined=False)
    orchestrator.wake()
    wait_for(lambda: driver.status.phase is RunPhase.SUCCEEDED, "the retried run")
    assert len(list(control.glob("started-0-*"))) == 2, "task 0 of each job was done once"


def test_same_request_id_is_the_same_run(orchestrator, spec):
    a = orchestrator.submit(spec(TWO), request_id="wish-1")
    b = orchestrator.submit(spec(TWO), request_id="wish-1")
    assert a is b
    with pytest.raises(RequestConflictError):
        orchestrator.submit(spec(TWO.replace("tasks: 4", "tasks: 6")), request_id="wish-1")
    finish(a)


def test_impossible_resources_are_refused_at_once(orchestrator, spec, store):
    with pytest.raises(PipelineError, match=r"jobs\.first\.resources: needs 64 cores .* this machine gives 4"):
        orchestrator.submit(spec(TWO.replace("first: {", "first: {resources: {ranks: 64}, ")))
    assert store.folders("runs") == []


def test_equal_jobs_of_two_runs_are_computed_once(orchestrator, spec, control):
    text = TWO.replace("tasks: 3", "tasks: 3, behaviour: {'1': block}")
    a = orchestrator.submit(spec(text))
    wait_for(lambda: list(control.glob("started-1-*")), "task 1")
    b = orchestrator.submit(spec(text))
    ticks = orchestrator.ticks
    wait_for(lambda: orchestrator.ticks > ticks + 2, "the scheduler to see both")
    (control / "release").touch()
    assert finish(a) is finish(b) is RunPhase.SUCCEEDED
    assert len(list(control.glob("started-1-*"))) <= 2, "once for each of the two jobs"


PREDECESSOR = """
import sys, time
from happyneurons.executors.local import LocalExecutor
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.store.documents import Store
orchestrator = Orchestrator(Store(sys.argv[1]), {"local": LocalExecutor()})
orchestrator.start()
yaml = open(sys.argv[2]).read()
run = orchestrator.submit({"yaml": yaml, "parameters": {}, "source_name": "", "base_uri": ""})
print(run.status.run_id, flush=True)
time.sleep(600)
"""


def test_successor_finishes_what_a_killed_orchestrator_began(store, spec, control, tmp_path):
    text = spec(TWO.replace("tasks: 3", "tasks: 3, behaviour: {'1': block}"))["yaml"]
    (tmp_path / "p.yaml").write_text(text)
    predecessor = subprocess.Popen(
        [sys.executable, "-c", PREDECESSOR, store.uri, str(tmp_path / "p.yaml")], stdout=subprocess.PIPE, text=True
    )
    assert predecessor.stdout is not None
    run_id = predecessor.stdout.readline().strip()
    wait_for(lambda: list(control.glob("started-1-*")), "task 1")
    os.kill(predecessor.pid, signal.SIGKILL)
    predecessor.wait()

    successor = Orchestrator(store, {"local": LocalExecutor()})
    successor.start()
    try:
        (control / "release").touch()
        driver = successor.driver(run_id)
        assert finish(driver) is RunPhase.SUCCEEDED
        assert len(list(control.glob("started-1-*"))) == 2, "the running attempt was adopted, not repeated"
        replayed = RunStatus.fresh(run_id, driver.status.pipeline, driver.status.spec)
        for event in read_events(store, run_id):
            replayed.apply(event)
        assert replayed == driver.status
    finally:
        successor.close()
