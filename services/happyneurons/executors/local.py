"""Executor `local`: this machine's cores, by the environment's own mpiexec."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping

from happyneurons.executors.base import Capacity, ProcessReport, ProcessState, Submission
from happyneurons.jobs.spec import Resources
from happyneurons.stages import stage_names
from happyneurons.worker.launch import Launch, LocalPool

STATES = {"waiting": ProcessState.QUEUED, "running": ProcessState.RUNNING, "exited": ProcessState.EXITED}

MOST_EXITED = 1000
"""Ended attempts that are remembered. What became of an older one stands in the store, as after a restart."""


class LocalExecutor:
    """Admission by cores and memory; see :class:`happyneurons.worker.launch.LocalPool`."""

    kind = "local"
    image_digest = ""

    def __init__(self, cores: int | None = None, memory_gb: float | None = None) -> None:
        self._pool = LocalPool(cores, memory_gb)

    def refuse(self, stage: str, resources: Resources) -> str | None:
        if stage not in stage_names():
            return f"this environment has no stage {stage!r}"
        return self._pool.refuse(resources)

    def resources(self, stage: str, asked: Resources) -> Resources:
        return asked

    def submit(self, submission: Submission) -> str:
        handle = f"local-{uuid.uuid4().hex[:12]}"
        self._pool.submit(
            handle,
            Launch(submission.job_uri, submission.resources, submission.takeover, submission.retry_quarantined),
        )
        return handle

    def poll(self, handles: Iterable[str]) -> Mapping[str, ProcessReport]:
        known = self._pool.poll()
        reports = {}
        for handle in handles:
            if handle in known:
                state, code = known[handle]
                reports[handle] = ProcessReport(STATES[state], code)
            else:
                reports[handle] = ProcessReport(ProcessState.UNKNOWN)
        exited = [token for token, (state, _) in known.items() if state == "exited"]
        for token in exited[:-MOST_EXITED]:  # in the order in which they ended
            self._pool.forget(token)
        return reports

    def cancel(self, handle: str) -> None:
        self._pool.terminate(handle)

    def explain(self, handle: str) -> str:
        return self._pool.explain(handle)

    def capacity(self) -> Capacity:
        return Capacity(self._pool.cores, self._pool.memory_gb)

    def pool_status(self) -> None:
        return None

    def lead(self, leads: bool) -> None:
        return None

    def close(self) -> None:
        return None
