"""A site that does not answer for a while, and what a restart may know of a submission."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from happyneurons.errors import UnavailableError
from happyneurons.executors.base import Submission
from happyneurons.executors.local import LocalExecutor
from happyneurons.orchestrator import driver as driver_module
from happyneurons.orchestrator.driver import INFRASTRUCTURE_RETRIES
from happyneurons.orchestrator.explain import FinishedJobs, explain_job
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.state import RUN_FINAL, RunPhase
from happyneurons.store.documents import Store
from tests.worker.waiting import wait_for

ONE = {
    "yaml": "jobs:\n  a: {stage: sandbox, params: {tasks: 3}}\n",
    "parameters": {},
    "source_name": "",
    "base_uri": "",
}
AWAY = "the server does not answer since 12:00"


class DistantExecutor(LocalExecutor):
    """This machine behind a line that can be cut. Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(2, 4.0)
        self.reachable = threading.Event()
        self.starts = True
        self.refused = 0
        self.tokens: list[str] = []

    def submit(self, submission: Submission) -> str:
        if not self.reachable.is_set():
            self.refused += 1
            raise UnavailableError(AWAY)
        self.tokens.append(submission.token)
        if not self.starts:
            return "never started"
        return super().submit(submission)


@pytest.fixture
def distant(monkeypatch: pytest.MonkeyPatch) -> DistantExecutor:
    monkeypatch.setattr(driver_module, "SITE_AWAY_S", 0.01)
    return DistantExecutor()


@pytest.fixture
def orchestrator(store: Store, distant: DistantExecutor) -> Iterator[Orchestrator]:
    found = Orchestrator(store, {"far": distant}, "far")
    found.start()
    yield found
    found.close()


def test_waiting_for_a_site_spends_no_retries(orchestrator: Orchestrator, distant: DistantExecutor) -> None:
    run = orchestrator.submit(ONE)
    wait_for(lambda: distant.refused > 2 * INFRASTRUCTURE_RETRIES or orchestrator.wake(), "many refusals")
    said = explain_job(orchestrator, FinishedJobs(orchestrator.store), run, "a")
    assert f"waits for site far: {AWAY}" in list(said.reasons)
    assert [e.type for e in run.events].count("job_waits") == 1, "told once, not at each try"
    distant.reachable.set()
    wait_for(lambda: run.status.phase in RUN_FINAL, "the run's end")
    assert run.status.phase is RunPhase.SUCCEEDED
    assert run.status.jobs["a"].infrastructure_retries == 0
    history = explain_job(orchestrator, FinishedJobs(orchestrator.store), run, "a").reasons
    assert any(line.endswith(f"waited: site far: {AWAY}") for line in history)


def test_a_submission_has_the_same_name_after_a_restart(store: Store, distant: DistantExecutor) -> None:
    """Killed between the site's answer and the event, the next orchestrator asks for the same thing again."""
    distant.reachable.set()
    distant.starts = False
    run = Orchestrator(store, {"far": distant}, "far").submit(ONE)  # not started: ticked by hand
    run.tick()
    assert run.events[-1].type == "job_submitted"
    event = f"runs/{run.status.run_id}/events/{run.events[-1].number:08d}.json"
    (Path(store.uri.removeprefix("file://")) / event).unlink()

    again = Orchestrator(store, {"far": distant}, "far").driver(run.status.run_id)
    again.tick()
    assert len(distant.tokens) == 2
    assert distant.tokens[0] == distant.tokens[1] != ""

    again.record("job_interrupted", "a", "lost", state="error")
    wait_for(lambda: again.tick() or len(distant.tokens) == 3, "its next submission")
    assert distant.tokens[2] != distant.tokens[0], "another submission has another name"
