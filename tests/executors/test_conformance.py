"""What every executor promises, on each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from happyneurons.errors import EXIT_FAILED, EXIT_OK, EXIT_TRY_AGAIN, EXIT_USAGE
from happyneurons.executors.base import Executor, ProcessReport, ProcessState, Submission
from happyneurons.executors.local import LocalExecutor
from happyneurons.executors.service import ServiceExecutor
from happyneurons.jobs.attempts import attempt_end, attempt_numbers, settle
from happyneurons.jobs.spec import Resources, job_uri
from happyneurons.store.documents import Store
from tests.worker.waiting import wait_for

from .conftest import CORES, MEMORY_GB, ServerProcess

ALL = Resources(threads_per_rank=CORES)
"""All cores: nothing runs beside such a job."""


@pytest.fixture(params=["local", "service"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    found: Executor
    if request.param == "local":
        found = LocalExecutor(CORES, MEMORY_GB)
    else:
        found = ServiceExecutor(request.getfixturevalue("shared_server").address)
    yield found
    found.close()


@pytest.fixture
def submit(executor: Executor, store: Store) -> Callable[..., str]:
    def run(key: str, resources: Resources | None = None) -> str:
        return executor.submit(Submission(job_uri(store, key), "sandbox", resources or Resources()))

    return run


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


def test_a_job_is_carried_out(executor: Executor, store: Store, new_job: Callable[..., str], submit) -> None:
    key = new_job(tasks=4)
    handle = submit(key)
    assert state(executor, handle) in (ProcessState.QUEUED, ProcessState.RUNNING)
    assert ended(executor, handle).exit_code == EXIT_OK
    manifest = settle(store, key)
    assert manifest is not None
    assert manifest.metrics == {"sum": 14}
    assert ended(executor, submit(key)).exit_code == EXIT_OK, "a finished job may be submitted again"
    assert attempt_numbers(store, key) == [1], "and nothing is computed for it"


def test_more_ranks(executor: Executor, store: Store, new_job: Callable[..., str], submit) -> None:
    key = new_job(tasks=6)
    assert ended(executor, submit(key, Resources(ranks=2))).exit_code == EXIT_OK
    manifest = settle(store, key)
    assert manifest is not None
    assert manifest.metrics == {"sum": 55}


def test_handles_of_nobody(executor: Executor) -> None:
    report = executor.poll(["nobody", "f" * 40])
    assert {r.state for r in report.values()} == {ProcessState.UNKNOWN}
    assert executor.poll([]) == {}
    executor.cancel("nobody")
    assert executor.explain("nobody")


def test_what_does_not_fit_waits_and_says_why(
    executor: Executor, store: Store, control: Path, new_job: Callable[..., str], submit
) -> None:
    first, second, third = (new_job(tasks=n, behaviour={"0": "block"}) for n in (1, 2, 3))
    running, waiting, behind = submit(first, ALL), submit(second, ALL), submit(third)
    wait_for(lambda: state(executor, running) is ProcessState.RUNNING, "the first")
    assert state(executor, waiting) is ProcessState.QUEUED
    assert state(executor, behind) is ProcessState.QUEUED, "a large job is not overtaken"
    assert "2 of 2 cores" in executor.explain(waiting)
    assert "1 jobs ahead" in executor.explain(behind)
    executor.cancel(waiting)
    assert ended(executor, waiting).exit_code != EXIT_OK
    assert attempt_numbers(store, second) == [], "it never began"
    (control / "release").touch()
    assert ended(executor, running).exit_code == EXIT_OK
    assert ended(executor, behind).exit_code == EXIT_OK, "what waited has its turn by itself"


def test_cancel_ends_it_and_it_can_go_on(
    executor: Executor, store: Store, control: Path, new_job: Callable[..., str], submit
) -> None:
    key = new_job(tasks=20, behaviour={"5": "block"})
    handle = submit(key)
    wait_for(lambda: started(control, 5), "task 5")
    executor.cancel(handle)
    if executor.kind == "local":
        (control / "release").touch()  # a drained attempt lets its running task finish
    assert ended(executor, handle).exit_code not in (EXIT_OK, EXIT_USAGE)
    assert settle(store, key) is None
    executor.cancel(handle)

    (control / "release").touch()
    again = submit(key)
    assert state(executor, again) is not ProcessState.EXITED, "what ended before does not count"
    assert ended(executor, again).exit_code == EXIT_OK
    assert attempt_numbers(store, key) == [1, 2]


def test_exit_codes_say_whose_failure_it_was(executor: Executor, new_job: Callable[..., str], submit) -> None:
    codes = {"fail": EXIT_FAILED, "user": EXIT_USAGE, "nospace": EXIT_TRY_AGAIN}
    handles = {kind: submit(new_job(tasks=1, behaviour={"0": kind})) for kind in codes}
    assert {kind: ended(executor, handle).exit_code for kind, handle in handles.items()} == codes


def test_killed_processes_have_exited(executor: Executor, new_job: Callable[..., str], submit) -> None:
    code = ended(executor, submit(new_job(tasks=2, behaviour={"1": "die"}))).exit_code
    assert code not in (None, EXIT_OK, EXIT_FAILED, EXIT_USAGE), "neither the user's nor the task's failure"


def test_what_can_never_run_is_refused(executor: Executor) -> None:
    assert executor.refuse("sandbox", Resources(ranks=CORES)) is None
    for resources, why in [
        (Resources(ranks=3), "needs 3 cores"),
        (Resources(ranks=2, threads_per_rank=2), "needs 4 cores"),
        (Resources(memory_gb=5), "needs 5 GB of memory"),
        (Resources(gpus_per_rank=1), "needs GPUs"),
    ]:
        refusal = executor.refuse("sandbox", resources)
        assert refusal is not None
        assert why in refusal
    refusal = executor.refuse("no-such-stage", Resources())
    assert refusal is not None
    assert "no stage 'no-such-stage'" in refusal


def test_capacity(executor: Executor) -> None:
    capacity = executor.capacity()
    assert (capacity.cores, capacity.memory_gb, capacity.problem) == (CORES, MEMORY_GB, "")


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
