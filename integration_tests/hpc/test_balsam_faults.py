"""What can go wrong between the orchestrator and Balsam does, on the real parts: no job is lost, none is made twice."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from integration_tests.hpc.rig import QUEUE, Rig
from tests.worker.waiting import wait_for

from happyneurons.executors.balsam import explain, keeper
from happyneurons.executors.balsam.config import BalsamAccess, PoolLimits
from happyneurons.executors.balsam.executor import BalsamExecutor
from happyneurons.hpc.folders import load_site_folder
from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.explain import FinishedJobs, explain_job
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.state import RUN_FINAL, JobPhase, RunPhase
from happyneurons.store.documents import Store

LIMIT_S = 240.0

DIES_AFTER_SUBMIT = """
import os, sys
from happyneurons.executors.balsam.executor import BalsamExecutor
from happyneurons.executors.balsam.config import BalsamAccess, PoolLimits
from happyneurons.hpc.folders import load_site_folder
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.store.documents import Store

class Dies(BalsamExecutor):
    def submit(self, submission):
        super().submit(submission)
        os._exit(9)

store, folder, access, text = sys.argv[1:]
executor = Dies("rig", load_site_folder(folder), BalsamAccess.model_validate_json(access), PoolLimits())
orchestrator = Orchestrator(Store(store), {"hpc": executor}, "hpc")
orchestrator.start()
orchestrator.submit({"yaml": text, "parameters": {}, "source_name": "t.yaml", "base_uri": ""})
orchestrator._thread.join()
"""


@pytest.fixture
def store(rig: Rig) -> Store:
    return rig.new_store()


@pytest.fixture
def access(rig: Rig) -> BalsamAccess:
    return BalsamAccess(api=rig.api, site=rig.site_name, token_file=rig.token_file, poll_s=0.5, timeout_s=5)


@pytest.fixture
def orchestrate(rig: Rig, store: Store, access: BalsamAccess) -> Iterator[Callable[..., Orchestrator]]:
    """Start an orchestrator whose site `hpc` is the rig."""
    made: list[tuple[Orchestrator, BalsamExecutor]] = []

    def make(access: BalsamAccess = access, **limits: Any) -> Orchestrator:
        pool = PoolLimits(queue=QUEUE, walltime_min=30, **({"max_nodes": 1} | limits))
        executor = BalsamExecutor(rig.site_name, load_site_folder(str(rig.site_folder)), access, pool)
        orchestrator = Orchestrator(store, {"hpc": executor}, "hpc")
        made.append((orchestrator, executor))
        orchestrator.start()
        return orchestrator

    yield make
    for orchestrator, executor in made:
        orchestrator.close()
        executor.close()


def jobs_yaml(control: Path, **jobs: dict[str, Any]) -> str:
    """A pipeline of sandbox jobs; each may have `needs`, `resources` and parameters."""
    document = {}
    for name, fields in jobs.items():
        rest = {key: fields.pop(key) for key in ("needs", "resources") if key in fields}
        document[name] = {"stage": "sandbox", "params": {**fields, "control": str(control)}, **rest}
    return yaml.safe_dump({"jobs": document})


def submit(orchestrator: Orchestrator, text: str) -> RunDriver:
    return orchestrator.submit({"yaml": text, "parameters": {}, "source_name": "t.yaml", "base_uri": ""})


def finish(run: RunDriver) -> None:
    wait_for(lambda: run.status.phase in RUN_FINAL, "the run's end", LIMIT_S)
    said = {name: (job.phase, job.message) for name, job in run.status.jobs.items()}
    assert run.status.phase is RunPhase.SUCCEEDED, said


def explained(orchestrator: Orchestrator, run: RunDriver, name: str) -> str:
    """All that `hpn explain` says of a job."""
    said = explain_job(orchestrator, FinishedJobs(orchestrator.store), run, name)
    return "\n".join([*said.reasons, said.site_explanation])


def at_task(control: Path, number: int) -> None:
    wait_for(lambda: list(control.glob(f"started-{number}-*")), f"task {number}", LIMIT_S)


def submissions(rig: Rig, run: RunDriver) -> Counter[str]:
    """Balsam jobs by token, for the run's jobs."""
    keys = {job.key for job in run.status.jobs.values()}
    jobs = rig.call("GET", "/jobs/", limit=1000)["results"]
    return Counter(job["tags"]["hpn"] for job in jobs if job["tags"].get("hpn_key") in keys)


def test_the_server_may_be_away_during_a_run(rig: Rig, control: Path, orchestrate: Callable[..., Orchestrator]) -> None:
    orchestrator = orchestrate()
    text = jobs_yaml(
        control, a={"tasks": 2, "behaviour": {"1": "block"}}, b={"tasks": 3, "needs": ["a"]},
        c={"tasks": 4, "needs": ["a"]},
    )  # fmt: skip
    run = submit(orchestrator, text)
    at_task(control, 1)
    rig.stop_server()
    wait_for(lambda: orchestrator.sites["hpc"].capacity().problem, "the executor to notice", LIMIT_S)
    (control / "release").touch()
    wait_for(lambda: run.status.jobs["b"].site_away, "the next jobs to wait", LIMIT_S)
    assert f"Balsam server {rig.api} does not answer" in explained(orchestrator, run, "b")
    rig.start_server()
    finish(run)
    assert set(submissions(rig, run).values()) == {1}
    assert len(submissions(rig, run)) == 3
    assert [job.infrastructure_retries for job in run.status.jobs.values()] == [0, 0, 0]
    assert "does not answer" in explained(orchestrator, run, "b"), "also afterwards"


def test_an_expired_token_is_waited_for(
    rig: Rig, control: Path, access: BalsamAccess, tmp_path: Path, orchestrate: Callable[..., Orchestrator]
) -> None:
    token_file = tmp_path / "client.yml"
    token_file.write_text(f"token: {rig.token}\ntoken_expiry: 2026-01-01 00:00:00\n")
    orchestrator = orchestrate(access.model_copy(update={"token_file": token_file}))
    run = submit(orchestrator, jobs_yaml(control, a={"tasks": 3}))
    wait_for(lambda: run.status.jobs["a"].site_away, "the job to wait", LIMIT_S)
    assert "expired at 2026-01-01 00:00 UTC: run `balsam login`" in explained(orchestrator, run, "a")
    token_file.write_text(rig.token_file.read_text())
    finish(run)
    assert set(submissions(rig, run).values()) == {1}


def test_a_token_that_the_server_refuses_is_waited_for(
    rig: Rig, control: Path, access: BalsamAccess, tmp_path: Path, orchestrate: Callable[..., Orchestrator]
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(rig.token[:-3] + "abc")
    orchestrator = orchestrate(access.model_copy(update={"token_file": token_file}))
    run = submit(orchestrator, jobs_yaml(control, a={"tasks": 3}))
    wait_for(lambda: run.status.jobs["a"].site_away, "the job to wait", LIMIT_S)
    assert "Could not validate credentials): run `balsam login`" in explained(orchestrator, run, "a")
    token_file.write_text(rig.token)
    finish(run)


def test_a_wrong_app_is_the_users_error(
    control: Path, access: BalsamAccess, orchestrate: Callable[..., Orchestrator]
) -> None:
    orchestrator = orchestrate(access.model_copy(update={"app": "Nobodys"}))
    run = submit(orchestrator, jobs_yaml(control, a={"tasks": 3}))
    wait_for(lambda: run.status.phase in RUN_FINAL, "the run's end", LIMIT_S)
    job = run.status.jobs["a"]
    assert (job.phase, job.failure_kind) == (JobPhase.FAILED, "user")
    assert "has no app 'Nobodys' (it has: HappyStage)" in job.message


def test_a_full_queue_is_explained_and_waited_for(
    rig: Rig, control: Path, orchestrate: Callable[..., Orchestrator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "FIRST_HOLD_S", 3.0)
    limit = load_site_folder(str(rig.site_folder)).facts.queues[QUEUE].max_queued
    for _ in range(limit):
        rig.daemons.run("sbatch", "--hold", "-o", "/dev/null", "--wrap", "true")
    orchestrator = orchestrate()
    run = submit(orchestrator, jobs_yaml(control, a={"tasks": 3}))
    wait_for(lambda: f"Exceeded max {limit} jobs in queue {QUEUE}" in explained(orchestrator, run, "a"), "it", LIMIT_S)
    rig.end_batch_jobs()
    finish(run)
    assert set(submissions(rig, run).values()) == {1}


def test_the_pools_limit_is_explained_and_waited_for(
    rig: Rig, control: Path, orchestrate: Callable[..., Orchestrator]
) -> None:
    orchestrator = orchestrate(max_nodes=1)
    whole = {"ranks": 1, "threads_per_rank": rig.cores}
    blocked = {"behaviour": {"0": "block"}, "resources": whole}  # whichever comes first
    text = jobs_yaml(control, a={"tasks": 1, **blocked}, b={"tasks": 2, **blocked})
    run = submit(orchestrator, text)
    at_task(control, 0)
    wait_for(
        lambda: any("1 of 1 nodes of batch job" in explained(orchestrator, run, name) for name in "ab"), "it", LIMIT_S
    )
    (control / "release").touch()
    finish(run)
    assert len(rig.slurm_queue()) <= 1


@pytest.mark.parametrize("fault", ["rank", "launcher", "batch job"])
def test_what_is_killed_is_done_again(
    rig: Rig, store: Store, control: Path, orchestrate: Callable[..., Orchestrator], fault: str
) -> None:
    orchestrator = orchestrate()
    text = jobs_yaml(control, a={"tasks": 6, "behaviour": {"3": "block"}, "resources": {"ranks": 2}})
    run = submit(orchestrator, text)
    at_task(control, 3)
    wait_for(lambda: run.status.jobs["a"].phase is JobPhase.RUNNING, "the attempt to be seen", LIMIT_S)
    key = run.status.jobs["a"].key
    if fault == "rank":
        rig.ranks(key)[-1].kill()
    elif fault == "launcher":
        assert rig.kill_launcher()
    else:
        rig.end_batch_jobs()
    wait_for(lambda: not rig.ranks(key), "its ranks to be ended", LIMIT_S)
    (control / "release").touch()
    finish(run)
    job = run.status.jobs["a"]
    assert job.metrics == {"sum": 55}
    assert job.infrastructure_retries + job.drains >= 1
    assert set(submissions(rig, run).values()) == {1}
    assert len(submissions(rig, run)) == 2
    said = explained(orchestrator, run, "a")
    print(fault, said)
    assert any(word in said for word in ("exit code", "drained", "batch job")), said


def test_a_batch_job_that_ends_at_its_walltime_costs_nothing_but_time(
    rig: Rig, control: Path, orchestrate: Callable[..., Orchestrator]
) -> None:
    """That ranks drain before the end is shown in test_balsam_rig; here a task is in their way until then."""
    orchestrator = orchestrate(max_nodes=0)  # nodes by hand: shorter ones than the pool would ask for
    text = jobs_yaml(control, a={"tasks": 6, "behaviour": {"3": "block"}, "resources": {"ranks": 2}})
    run = submit(orchestrator, text)
    rig.request_nodes(walltime_min=1)
    at_task(control, 3)
    job = run.status.jobs["a"]
    wait_for(lambda: job.drains + job.infrastructure_retries, "the attempt's end", LIMIT_S)
    wait_for(lambda: not rig.slurm_queue(), "the end of the batch job", LIMIT_S)
    (control / "release").touch()
    rig.request_nodes()
    finish(run)
    assert job.metrics == {"sum": 55}
    assert job.quarantined == []
    said = explained(orchestrator, run, "a")
    assert any(words in said for words in ("the walltime ends", "the batch job ended", "got SIGTERM", "exit code")), (
        said
    )


def test_a_silent_agent_is_named(
    rig: Rig, control: Path, orchestrate: Callable[..., Orchestrator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "AGENT_SILENT_S", 5.0)
    orchestrator = orchestrate()
    rig.stop_agent()
    run = submit(orchestrator, jobs_yaml(control, a={"tasks": 3}))
    said = f"start it again (`{rig.site_path}/hpn-site start`"
    wait_for(lambda: said in explained(orchestrator, run, "a"), "an explanation", LIMIT_S)
    rig.start_agent()
    finish(run)


def test_an_orchestrator_killed_between_submit_and_event(
    rig: Rig, store: Store, control: Path, access: BalsamAccess, orchestrate: Callable[..., Orchestrator]
) -> None:
    text = jobs_yaml(control, a={"tasks": 3}, b={"tasks": 4})
    command = [sys.executable, "-c", DIES_AFTER_SUBMIT, store.uri, str(rig.site_folder), access.model_dump_json(), text]
    assert subprocess.run(command, timeout=LIMIT_S).returncode == 9
    assert (
        rig.call("GET", "/jobs/", tags="hpn_pool:rig", state="STAGED_IN")["count"]
        + rig.call("GET", "/jobs/", tags="hpn_pool:rig", state="PREPROCESSED")["count"]
        >= 1
    ), "it had submitted one"
    orchestrator = orchestrate()
    run = next(iter(orchestrator._drivers.values()))
    finish(run)
    assert Counter(submissions(rig, run).values()) == {1: 2}, "one of each"
