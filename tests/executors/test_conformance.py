"""What every executor promises, on those that need nothing but this installation (Balsam: integration_tests/hpc)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from happyneurons.errors import EXIT_OK
from happyneurons.executors.base import Executor, ProcessReport, ProcessState, Submission
from happyneurons.executors.local import LocalExecutor
from happyneurons.executors.service import ServiceExecutor
from happyneurons.jobs.attempts import attempt_end, attempt_numbers
from happyneurons.jobs.spec import Resources, job_uri
from happyneurons.store.documents import Store
from tests.worker.waiting import wait_for

from .conformance import ExecutorConformance, Site
from .conftest import CORES, MEMORY_GB, ServerProcess

ALL = Resources(threads_per_rank=CORES)
"""All cores: nothing runs beside such a job."""


class TestLocal(ExecutorConformance):
    @pytest.fixture
    def site(self, store: Store) -> Iterator[Site]:
        executor = LocalExecutor(CORES, MEMORY_GB)
        yield Site(executor, store, CORES, MEMORY_GB, drains=True)
        executor.close()


class TestService(ExecutorConformance):
    @pytest.fixture
    def site(self, store: Store, shared_server: ServerProcess) -> Iterator[Site]:
        executor = ServiceExecutor(shared_server.address)
        yield Site(executor, store, CORES, MEMORY_GB)
        executor.close()


def state(executor: Executor, handle: str) -> ProcessState:
    return executor.poll([handle])[handle].state


def ended(executor: Executor, handle: str) -> ProcessReport:
    def look() -> ProcessReport | None:
        report = executor.poll([handle])[handle]
        assert report.state is not ProcessState.UNKNOWN, report.detail
        return report if report.state is ProcessState.EXITED else None

    return wait_for(look, f"the end of {handle}")


def started(control: Path, task: int) -> bool:
    return any(control.glob(f"started-{task}-*"))


def test_a_stage_server_that_is_killed_is_no_failure(
    server: ServerProcess, store: Store, control: Path, new_job: Callable[..., str]
) -> None:
    executor = ServiceExecutor(server.address)
    key, second = new_job(tasks=3, behaviour={"1": "block"}), new_job(tasks=2)
    handle = executor.submit(Submission(job_uri(store, key), "sandbox", ALL))
    queued = executor.submit(Submission(job_uri(store, second), "sandbox", ALL))
    wait_for(lambda: started(control, 1), "task 1")
    server.kill()
    report = executor.poll([handle])[handle]
    assert report.state is ProcessState.UNKNOWN
    assert "does not answer" in report.detail
    assert "does not answer" in executor.capacity().problem
    assert executor.refuse("sandbox", Resources(ranks=99)) is None, "nobody can say never"

    server.start()
    wait_for(lambda: state(executor, handle) is ProcessState.RUNNING, "the server to find the attempt")
    assert state(executor, queued) is ProcessState.UNKNOWN, "its queue is gone: submit it again"
    assert executor.submit(Submission(job_uri(store, key), "sandbox", ALL)) == handle
    (control / "release").touch()
    assert ended(executor, handle).exit_code == EXIT_OK
    assert attempt_numbers(store, key) == [1], "it was not started twice"
    assert ended(executor, executor.submit(Submission(job_uri(store, second), "sandbox", ALL))).exit_code == EXIT_OK
    end = attempt_end(store, second, 1)
    assert end is not None
    executor.close()
