"""The books of the executor that starts attempts on this machine."""

from __future__ import annotations

from happyneurons.executors import local
from happyneurons.executors.base import ProcessState, Submission
from happyneurons.executors.local import LocalExecutor
from happyneurons.jobs.spec import Resources


def test_of_ended_attempts_only_the_latest_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "MOST_EXITED", 3)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    executor = LocalExecutor(cores=1)
    work = Submission(f"{tmp_path.as_uri()}/store/jobs/none", "sandbox", Resources())
    busy = executor.submit(work)  # has the only core
    waiting = executor.submit(work)
    try:
        dropped = [executor.submit(work) for _ in range(6)]
        for handle in dropped:
            executor.cancel(handle)
        first = executor.poll(dropped)  # whoever asks in time is told
        assert {report.state for report in first.values()} == {ProcessState.EXITED}
        then = executor.poll(dropped)
        assert then[dropped[0]].state is ProcessState.UNKNOWN
        assert then[dropped[-1]].state is ProcessState.EXITED
        assert executor.poll([waiting])[waiting].state is not ProcessState.UNKNOWN  # what waits is never forgotten
    finally:
        executor.cancel(waiting)
        executor.cancel(busy)
