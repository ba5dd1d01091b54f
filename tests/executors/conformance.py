"""What every executor promises. Subclasses run it on one: they give a fixture `site`.

It needs a fixture `control`, the folder that sandbox jobs are steered by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from happyneurons.errors import EXIT_FAILED, EXIT_OK, EXIT_TRY_AGAIN, EXIT_USAGE
from happyneurons.executors.base import Executor, ProcessReport, ProcessState, Submission
from happyneurons.jobs.attempts import attempt_numbers, settle
from happyneurons.jobs.spec import Resources, job_uri, make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.store.documents import Store
from tests.worker.waiting import wait_for


@dataclass(frozen=True)
class Site:
    """An executor, its store, and what is particular to it."""

    executor: Executor
    store: Store
    cores: int
    memory_gb: float
    knows_stages: bool = True
    """Whether it can say that a stage is not there."""
    drains: bool = False
    """Whether a cancelled attempt finishes the task that it is at."""
    in_use: str = "2 of 2 cores"
    """How it says that all is in use."""
    limit_s: float = 60.0

    def submit(self, key: str, resources: Resources | None = None, token: str = "") -> str:
        return self.executor.submit(
            Submission(job_uri(self.store, key), "sandbox", resources or Resources(), token=token)
        )

    def all_cores(self) -> Resources:
        """Nothing runs beside such a job."""
        return Resources(threads_per_rank=self.cores)

    def state(self, handle: str) -> ProcessState:
        return self.executor.poll([handle])[handle].state

    def running(self, handle: str) -> None:
        wait_for(lambda: self.state(handle) is ProcessState.RUNNING, f"{handle} to run", self.limit_s)

    def ended(self, handle: str) -> ProcessReport:
        def look() -> ProcessReport | None:
            report = self.executor.poll([handle])[handle]
            assert report.state is not ProcessState.UNKNOWN, report.detail
            return report if report.state is ProcessState.EXITED else None

        return wait_for(look, f"the end of {handle}", self.limit_s)

    def explains(self, handle: str, pattern: str) -> None:
        said: list[str] = []

        def look() -> bool:
            said.append(self.executor.explain(handle))
            return re.search(pattern, said[-1]) is not None

        try:
            wait_for(look, "an explanation", self.limit_s)
        except AssertionError:
            raise AssertionError(f"{pattern!r} was not said, but: {set(said)}") from None


class ExecutorConformance:
    @pytest.fixture
    def new_job(self, site: Site, control: Path) -> Callable[..., str]:
        """Register a sandbox job; returns its key."""

        def make(**params: Any) -> str:
            spec = make_spec(load_stage("sandbox"), inputs={}, params={**params, "control": str(control)})
            save_spec(site.store, spec)
            return spec.key

        return make

    def test_a_job_is_carried_out(self, site: Site, new_job: Callable[..., str]) -> None:
        key = new_job(tasks=4)
        handle = site.submit(key)
        assert site.state(handle) in (ProcessState.QUEUED, ProcessState.RUNNING)
        assert site.ended(handle).exit_code == EXIT_OK
        manifest = settle(site.store, key)
        assert manifest is not None
        assert manifest.metrics == {"sum": 14}
        assert site.ended(site.submit(key)).exit_code == EXIT_OK, "a finished job may be submitted again"
        assert attempt_numbers(site.store, key) == [1], "and nothing is computed for it"

    def test_more_ranks(self, site: Site, new_job: Callable[..., str]) -> None:
        key = new_job(tasks=6)
        assert site.ended(site.submit(key, Resources(ranks=2))).exit_code == EXIT_OK
        manifest = settle(site.store, key)
        assert manifest is not None
        assert manifest.metrics == {"sum": 55}

    def test_handles_of_nobody(self, site: Site) -> None:
        handles = ["nobody", "f" * 40, "of another/executor"]

        def states(reports: Mapping[str, ProcessReport]) -> set[ProcessState]:
            return {report.state for report in reports.values()}

        wait_for(lambda: states(site.executor.poll(handles)) == {ProcessState.UNKNOWN}, "it to be known", site.limit_s)
        assert site.executor.poll([]) == {}
        site.executor.cancel("nobody")
        assert site.executor.explain("nobody")

    def test_what_does_not_fit_waits_and_says_why(self, site: Site, control: Path, new_job: Callable[..., str]) -> None:
        first, second, third = (new_job(tasks=n, behaviour={"0": "block"}) for n in (1, 2, 3))
        running = site.submit(first, site.all_cores())
        site.running(running)
        waiting, behind = site.submit(second, site.all_cores()), site.submit(third)
        site.explains(waiting, site.in_use)
        site.explains(behind, "1 jobs ahead")
        assert site.state(waiting) is ProcessState.QUEUED
        assert site.state(behind) is ProcessState.QUEUED, "a large job is not overtaken"
        site.executor.cancel(waiting)
        assert site.ended(waiting).exit_code != EXIT_OK
        assert attempt_numbers(site.store, second) == [], "it never began"
        (control / "release").touch()
        assert site.ended(running).exit_code == EXIT_OK
        assert site.ended(behind).exit_code == EXIT_OK, "what waited has its turn by itself"

    def test_cancel_ends_it_and_it_can_go_on(self, site: Site, control: Path, new_job: Callable[..., str]) -> None:
        key = new_job(tasks=20, behaviour={"5": "block"})
        handle = site.submit(key)
        wait_for(lambda: list(control.glob("started-5-*")), "task 5", site.limit_s)
        site.executor.cancel(handle)
        if site.drains:
            (control / "release").touch()
        assert site.ended(handle).exit_code not in (EXIT_OK, EXIT_USAGE)
        assert settle(site.store, key) is None
        site.executor.cancel(handle)

        (control / "release").touch()
        again = site.submit(key)
        assert site.state(again) is not ProcessState.EXITED, "what ended before does not count"
        assert site.ended(again).exit_code == EXIT_OK
        assert attempt_numbers(site.store, key) == [1, 2]

    def test_exit_codes_say_whose_failure_it_was(self, site: Site, new_job: Callable[..., str]) -> None:
        codes = {"fail": EXIT_FAILED, "user": EXIT_USAGE, "nospace": EXIT_TRY_AGAIN}
        handles = {kind: site.submit(new_job(tasks=1, behaviour={"0": kind})) for kind in codes}
        assert {kind: site.ended(handle).exit_code for kind, handle in handles.items()} == codes

    def test_killed_processes_have_exited(self, site: Site, new_job: Callable[..., str]) -> None:
        code = site.ended(site.submit(new_job(tasks=2, behaviour={"1": "die"}))).exit_code
        assert code not in (None, EXIT_OK, EXIT_FAILED, EXIT_USAGE), "neither the user's nor the task's failure"

    def test_what_can_never_run_is_refused(self, site: Site) -> None:
        assert site.executor.refuse("sandbox", Resources(ranks=site.cores)) is None
        for resources, why in [
            (Resources(ranks=3), "needs 3 cores"),
            (Resources(ranks=2, threads_per_rank=2), "needs 4 cores"),
            (Resources(memory_gb=5), "needs 5 GB of memory"),
            (Resources(gpus_per_rank=1), "needs GPUs"),
        ]:
            refusal = site.executor.refuse("sandbox", resources)
            assert refusal is not None
            assert why in refusal
        if site.knows_stages:
            refusal = site.executor.refuse("no-such-stage", Resources())
            assert refusal is not None
            assert "no stage 'no-such-stage'" in refusal

    def test_capacity(self, site: Site) -> None:
        capacity = site.executor.capacity()
        assert (capacity.cores, capacity.memory_gb, capacity.problem) == (site.cores, site.memory_gb, "")
