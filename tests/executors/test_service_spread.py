"""A stage service of many servers behind one name: jobs are spread, full servers refuse, dead ones lose an attempt."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from happyneurons.errors import EXIT_OK, OverloadedError, UnavailableError, UserError
from happyneurons.executors.base import ProcessState, Submission
from happyneurons.executors.endpoints import Endpoints, resolve
from happyneurons.executors.service import ServiceExecutor
from happyneurons.jobs.attempts import EndState, attempt_end
from happyneurons.jobs.spec import Resources, job_uri
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.state import RUN_FINAL, RunPhase
from happyneurons.store.documents import Store
from tests.worker.waiting import wait_for

from .conftest import CORES, MEMORY_GB, ServerProcess

ALL = Resources(threads_per_rank=CORES)
NAME = "dns:///stages.lab.svc:50051"


@pytest.fixture
def servers(store: Store, tmp_path: Path) -> Iterator[list[ServerProcess]]:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    made = [ServerProcess(store, folder, "--max-queued", "0", "--drain-s", "60") for folder in folders]
    yield made
    for server in made:
        server.kill()


@pytest.fixture
def executor(servers: list[ServerProcess]) -> Iterator[ServiceExecutor]:
    """The name has an address for each server that lives, as a headless Service has."""

    def resolver(host: str, port: int) -> list[str]:
        assert (host, port) == ("stages.lab.svc", 50051)
        return [server.address for server in servers if server.process.poll() is None]

    found = ServiceExecutor(NAME, resolver)
    yield found
    found.close()


def test_jobs_are_spread_and_wait_outside_when_all_are_full(
    servers: list[ServerProcess], executor: ServiceExecutor, store: Store, control: Path, new_job: Callable[..., str]
) -> None:
    assert executor.capacity().cores == 2 * CORES
    assert executor.capacity().memory_gb == 2 * MEMORY_GB
    assert "gives 2" in str(executor.refuse("sandbox", Resources(ranks=3))), "a job runs in one of them"

    def submit(tasks: int) -> str:
        return executor.submit(
            Submission(job_uri(store, new_job(tasks=tasks, behaviour={"0": "block"})), "sandbox", ALL)
        )

    handles = [submit(1), submit(2)]
    assert {handle.partition("@")[2] for handle in handles} == {server.address for server in servers}
    with pytest.raises(OverloadedError, match="2 of 2 stage servers .*: no room for another job now: 0 of 2 cores"):
        submit(3)
    (control / "release").touch()
    for handle in handles:
        wait_for(lambda h=handle: executor.poll([h])[h].exit_code == EXIT_OK, "its end")  # type: ignore[misc]

    def once_there_is_room() -> str:
        with contextlib.suppress(OverloadedError):  # a result is published before its processes are gone
            return submit(3)
        return ""

    third = wait_for(once_there_is_room, "room")
    wait_for(lambda: executor.poll([third])[third].exit_code == EXIT_OK, "the third")


def test_a_dead_server_is_a_lost_attempt_and_a_stopping_one_drains(
    servers: list[ServerProcess], executor: ServiceExecutor, store: Store, control: Path
) -> None:
    orchestrator = Orchestrator(store, {"stages": executor}, "stages")
    orchestrator.start()
    try:
        job = "stage: sandbox, resources: {threads_per_rank: 2}"
        yaml = (
            "jobs:\n"
            f"  a: {{{job}, params: {{tasks: 3, control: CONTROL, behaviour: {{'1': block}}}}}}\n"
            f"  b: {{{job}, params: {{tasks: 4, control: CONTROL, behaviour: {{'2': block}}}}}}\n"
        ).replace("CONTROL", str(control))
        run = orchestrator.submit({"yaml": yaml, "parameters": {}, "source_name": "t", "base_uri": ""})
        wait_for(lambda: list(control.glob("started-1-*")) and list(control.glob("started-2-*")), "both jobs")
        jobs = run.status.jobs
        wait_for(lambda: jobs["a"].attempt and jobs["b"].attempt, "both attempts to be known")
        place = {name: jobs[name].handle.partition("@")[2] for name in "ab"}
        of = {server.address: server for server in servers}
        # The pod of `a` dies: its server and its ranks at once.
        dying, stopping = of[place["a"]], of[place["b"]]
        assert dying is not stopping
        dying.kill()
        pid = store.get_json(f"jobs/{jobs['a'].key}/attempts/0001/begin.json")["pid"]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.getpgid(pid), signal.SIGKILL)
        dying.address = "127.0.0.1:0"
        dying.start()  # a new pod, with an address of its own
        # The pod of `b` is asked to stop: what it is at may finish.
        stopping.process.terminate()
        (control / "release").touch()
        assert stopping.process.wait(60) == 0
        wait_for(lambda: run.status.phase in RUN_FINAL, "the run's end", 120)
        assert run.status.phase is RunPhase.SUCCEEDED, run.status.message
        assert jobs["a"].infrastructure_retries == 1
        end = attempt_end(store, jobs["b"].key, 1)
        assert end is not None
        assert end["state"] in (EndState.DRAINED, EndState.SUCCEEDED)
        assert jobs["b"].infrastructure_retries == 0, "stopping in order costs nothing"
    finally:
        orchestrator.close()


def test_names_without_addresses_and_addresses_that_are_none() -> None:
    empty = ServiceExecutor(NAME, lambda host, port: [])
    assert "the name has no addresses now" in empty.capacity().problem
    with pytest.raises(UnavailableError, match="no addresses"):
        empty.poll(["k"])
        empty.submit(Submission("file:///store/jobs/" + "a" * 40, "sandbox", Resources()))
    assert empty.poll(["k"])["k"].state is ProcessState.UNKNOWN
    for wrong in ("stages", "dns:///stages", "stages:many"):
        with pytest.raises(UserError, match="write host:port, or dns:///NAME:PORT"):
            Endpoints(wrong)
    assert resolve("127.0.0.1", 50051) == ["127.0.0.1:50051"]
    assert resolve("no-such-name.invalid", 1) == []
