"""A job as the store shows it, as a message and with the number of its event.

What a stage server adds to the store's account of a job is `jobs/KEY/submission.json`, the latest
submission through any server of this store: when it was asked for, with which resources, which
attempts there were before, and how it ended if that was before an attempt began. So the view is the
same after a restart of the server; only what stands in its queue is not known to the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from happyneurons.errors import NotFoundError
from happyneurons.jobs.attempts import (
    EndState,
    attempt_end,
    attempt_folder,
    attempt_numbers,
    attempt_progress,
    settle,
)
from happyneurons.jobs.spec import JobSpec, Resources, job_uri, spec_path
from happyneurons.rpc.convert import (
    artifact_message,
    failure_message,
    job_spec_message,
    progress_message,
    timestamp,
)
from happyneurons.store.artifacts import Manifest, artifact_uri
from happyneurons.store.documents import Store
from happyneurons.v1 import jobs_pb2

FINAL_STATES = (jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED)

# Numbers of events: what was begun or submitted counts in billions, what an attempt says below it.
EPOCH = 10**9
QUEUED, WAITING, RUNNING, THOUGHT_DEAD, ENDED = 1, 2, 3, EPOCH - 2, EPOCH - 1

NOT_HERE = "it stands in no queue of this server (never submitted here, or the server was restarted): submit it again"

Dead = Callable[[str, int, Mapping[str, Any] | None], str | None]
"""`(job key, number of an open attempt, its progress) → why it must be dead, or None`."""


@dataclass(frozen=True)
class JobView:
    """A job at one moment."""

    job: jobs_pb2.Job
    event_number: int
    """Grows whenever something happens to the job, also over restarts of the server."""
    time: float
    """Of the latest thing that happened to it; 0: nothing did."""

    @property
    def final(self) -> bool:
        return self.job.state in FINAL_STATES

    def event(self) -> jobs_pb2.JobEvent:
        return jobs_pb2.JobEvent(number=self.event_number, time=timestamp(self.time), job=self.job)


def submission_path(key: str) -> str:
    return f"jobs/{key}/submission.json"


def find_spec(store: Store, key: str) -> JobSpec:
    """Spec of a job. Raises NotFoundError, also for what cannot be a key."""
    document = store.find_json(spec_path(key)) if key.isalnum() else None
    if document is None:
        raise NotFoundError(f"job {key!r}: no such job in {store.uri}")
    return JobSpec.model_validate(document)


def view_job(store: Store, key: str, queued: str | None, dead: Dead) -> JobView:
    """A job as it stands. Raises NotFoundError.

    queued: what it waits for where it stands in a queue or its processes start, None where it does
    not; looked up before this call, because what leaves the queue leaves its trace in the store first.
    """
    return _Reader(store, key, queued, dead).view()


class _Reader:
    """Reads what the store holds of a job; one use."""

    def __init__(self, store: Store, key: str, queued: str | None, dead: Dead) -> None:
        self.store, self.key, self.queued, self.dead = store, key, queued, dead
        self.spec = find_spec(store, key)
        self.submission: dict[str, Any] = store.find_json(submission_path(key)) or {}
        self.manifest = settle(store, key)
        numbers = attempt_numbers(store, key)
        self.number = numbers[-1] if numbers else 0
        self.job = jobs_pb2.Job(
            key=key,
            uri=job_uri(store, key),
            spec=job_spec_message(
                self.spec.stage,
                {name: [r.uri for r in refs] for name, refs in self.spec.inputs.items()},
                self.spec.params,
                Resources.model_validate(self.submission.get("resources", {})),
                self.spec.allow_failed_tasks,
            ),
            attempt=self.number,
            submit_time=timestamp(self.submission.get("time", 0)),
        )

    def view(self) -> JobView:
        if self.manifest is None and self.number <= self.submission.get("after_attempt", 0):
            return self._unbegun()
        return self._attempted()

    def _view(self, state: jobs_pb2.JobState.ValueType, step: int, time: float) -> JobView:
        self.job.state = state
        epoch = self.number + int(self.submission.get("number", 0))
        return JobView(self.job, epoch * EPOCH + step, time)

    def _unbegun(self) -> JobView:
        """Nothing was begun since it was last submitted."""
        ended, time = self.submission.get("ended"), self.submission.get("time", 0)
        if ended is not None:
            return self._ended(ended["state"], ended["message"], ended["time"], ended.get("kind", ""))
        if self.queued is not None:
            self.job.waiting_for = self.queued
            return self._view(jobs_pb2.JOB_STATE_QUEUED, QUEUED, time)
        self.job.waiting_for = NOT_HERE
        return self._view(jobs_pb2.JOB_STATE_WAITING, WAITING, time)

    def _attempted(self) -> JobView:
        begin = self.store.find_json(f"{attempt_folder(self.key, self.number)}/begin.json") or {}
        began = begin.get("time", 0)
        end = attempt_end(self.store, self.key, self.number)
        _set_time(self.job.start_time, began)
        if self.manifest is None and end is not None and end["state"] == EndState.SUCCEEDED:
            self.manifest = settle(self.store, self.key)
        if self.manifest is not None:
            return self._succeeded(self.manifest, end)
        if end is not None:
            kind = {EndState.FAILED_USER: "user", EndState.FAILED_TASKS: "task"}.get(end["state"], "infrastructure")
            state = "cancelled" if end["state"] == EndState.CANCELLED else "failed"
            return self._ended(state, end["message"], end["time"], kind, end.get("quarantined", ()))
        progress = attempt_progress(self.store, self.key, self.number)
        if progress is not None:
            self.job.progress.CopyFrom(progress_message(progress))
        why = self.dead(self.key, self.number, progress)
        if why is not None:
            self.job.failure.CopyFrom(failure_message("infrastructure", why, self.job.uri))
            return self._view(jobs_pb2.JOB_STATE_FAILED, THOUGHT_DEAD, began)
        if progress is None:
            return self._view(jobs_pb2.JOB_STATE_RUNNING, RUNNING, began)
        return self._view(jobs_pb2.JOB_STATE_RUNNING, RUNNING + int(progress["sequence"]), progress["time"])

    def _ended(self, state: str, message: str, time: float, kind: str, quarantined: Any = ()) -> JobView:
        _set_time(self.job.end_time, time)
        if state == "cancelled":
            return self._view(jobs_pb2.JOB_STATE_CANCELLED, ENDED, time)
        self.job.failure.CopyFrom(failure_message(kind, message, self.job.uri, quarantined))
        return self._view(jobs_pb2.JOB_STATE_FAILED, ENDED, time)

    def _succeeded(self, manifest: Manifest, end: Mapping[str, Any] | None) -> JobView:
        time = end["time"] if end is not None else 0
        _set_time(self.job.end_time, time)
        for name, artifact in manifest.outputs.items():
            # A store may be mounted elsewhere than where it was written.
            here = {"uri": artifact_uri(self.store, self.key, name)}
            here["data_uri"] = self.store.url(f"artifacts/{self.key}/{name}")
            self.job.outputs[name].CopyFrom(artifact_message(artifact.model_copy(update=here)))
        self.job.metrics.update(manifest.metrics)
        progress = attempt_progress(self.store, self.key, self.number)
        if progress is not None:
            self.job.progress.CopyFrom(progress_message(progress))
        return self._view(jobs_pb2.JOB_STATE_SUCCEEDED, ENDED, time)


def _set_time(field: Timestamp, seconds: float) -> None:
    moment = timestamp(seconds)
    if moment is not None:
        field.CopyFrom(moment)
