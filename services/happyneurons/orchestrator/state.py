"""The state of a run: a fold over its events. No other input, so a replay gives the same state."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from happyneurons.errors import NotFoundError
from happyneurons.jobs.spec import Resources
from happyneurons.orchestrator.batches import instance_name, with_batch, with_end
from happyneurons.orchestrator.graph import Pipeline, PipelineJob
from happyneurons.orchestrator.runlog import Event
from happyneurons.rpc.auth.principal import DEFAULT_PROJECT


class JobPhase(StrEnum):
    """Where a job of a run stands. Names follow happyneurons.v1.JobState."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


FINAL = {JobPhase.SUCCEEDED, JobPhase.FAILED, JobPhase.CANCELLED, JobPhase.SKIPPED}


class GatePhase(StrEnum):
    CLOSED = "closed"
    WAITING = "waiting"
    APPROVED = "approved"
    REJECTED = "rejected"


class RunPhase(StrEnum):
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


RUN_FINAL = {RunPhase.SUCCEEDED, RunPhase.FAILED, RunPhase.CANCELLED}


@dataclass
class JobStatus:
    """What the log says of one job."""

    job: PipelineJob
    phase: JobPhase = JobPhase.WAITING
    key: str = ""
    handle: str = ""
    reused: bool = False
    submitted_after_attempt: int = 0
    """Number of the latest attempt when this one was submitted; a later one is ours."""
    attempt: int = 0
    """Number of our latest attempt that began."""
    placed: Resources | None = None
    """What its site gave it: the pipeline's resources, the rest filled in by the site. None before."""
    submissions: int = 0
    """How often it was submitted, in all: names each submission, also across restarts and retries."""
    site_away: str = ""
    """Why it could not be submitted yet; empty if nobody refused it."""
    infrastructure_retries: int = 0
    fruitless_attempts: int = 0
    """Attempts in a row that the infrastructure ended before they had finished a task."""
    drains: int = 0
    retry_quarantined: bool = False
    failure_kind: str = ""
    message: str = ""
    quarantined: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    queue_time: float = 0.0
    start_time: float = 0.0
    end_time: float = 0.0

    @property
    def resources(self) -> Resources:
        """What it runs with, as far as it is known."""
        return self.placed or self.job.resources


@dataclass
class GateStatus:
    phase: GatePhase = GatePhase.CLOSED
    metrics: dict[str, float] = field(default_factory=dict)
    decided_by: str = ""
    comment: str = ""
    time: float = 0.0


@dataclass
class Batch:
    """Sections of an open run that go through the jobs for each batch together."""

    number: int
    uri: str
    sections: list[tuple[int, int]]
    """(z, version) of each."""
    reported: list[float]
    """When each was reported."""
    jobs: tuple[str, ...]
    left: set[str]
    """Its jobs that have not succeeded."""
    finished: float = 0.0
    """When the last of its jobs had succeeded; 0 before."""


@dataclass
class AcquisitionStatus:
    """What the log says of an open run's sections."""

    batches: list[Batch] = field(default_factory=list)
    batched: dict[int, int] = field(default_factory=dict)
    """z → its latest version that is in a batch."""
    batch_of: dict[str, Batch] = field(default_factory=dict)
    """Job of a batch → the batch."""
    finished: list[Batch] = field(default_factory=list)
    """Batches that are through their jobs, in that order."""
    ended: bool = False


@dataclass
class RunStatus:
    """A run as its log tells it."""

    run_id: str
    pipeline: Pipeline
    """As it is now: an open run's grows with its batches."""
    spec: dict[str, Any]
    jobs: dict[str, JobStatus]
    gates: dict[str, GateStatus]
    phase: RunPhase = RunPhase.RUNNING
    message: str = ""
    last_event: int = 0
    cancel_requested: bool = False
    submit_time: float = 0.0
    end_time: float = 0.0
    written: Pipeline = field(init=False)
    """The pipeline as it was before any batch."""
    acquisition: AcquisitionStatus | None = None
    """Of an open run; None for others."""

    def __post_init__(self) -> None:
        self.written = self.pipeline

    @classmethod
    def fresh(cls, run_id: str, pipeline: Pipeline, spec: dict[str, Any]) -> RunStatus:
        jobs = {name: JobStatus(job) for name, job in pipeline.jobs.items()}
        gates = {name: GateStatus() for name in pipeline.gates}
        acquisition = AcquisitionStatus() if pipeline.acquisition else None
        return cls(run_id, pipeline, spec, jobs, gates, submit_time=spec["time"], acquisition=acquisition)

    @property
    def project(self) -> str:
        """Whose run it is."""
        return str(self.spec.get("project", DEFAULT_PROJECT))

    @property
    def open(self) -> bool:
        """Whether it takes sections: it is an open run, and its acquisition has not ended."""
        return self.acquisition is not None and not self.acquisition.ended

    def job(self, name: str) -> JobStatus:
        """A job by its name. Raises NotFoundError that names some of those there are."""
        if name in self.jobs:
            return self.jobs[name]
        if name in self.pipeline.templates:
            made = self.acquisition.batches if self.acquisition else []
            last = f"{instance_name(name, 1)} to {instance_name(name, len(made))}" if made else "none yet"
            raise NotFoundError(f"run {self.run_id}: {name} is a job for each batch of sections: {last}")
        known = [*self.pipeline.templates, *self.written.jobs]
        raise NotFoundError(f"run {self.run_id}: no job {name!r}; there are {', '.join(known)}")

    def passed(self, name: str) -> bool:
        """Whether a job or gate is through."""
        if name in self.jobs:
            return self.jobs[name].phase is JobPhase.SUCCEEDED
        if name in self.pipeline.templates:
            return False  # it stands for all batches until the acquisition has ended, then for none
        return self.gates[name].phase is GatePhase.APPROVED

    def lost(self, name: str) -> bool:
        """Whether a job or gate can no longer be passed."""
        if name in self.jobs:
            return self.jobs[name].phase in FINAL - {JobPhase.SUCCEEDED}
        if name in self.pipeline.templates:
            return False
        if self.gates[name].phase is GatePhase.REJECTED:
            return True
        return any(self.lost(n) for n in self.pipeline.gates[name].after)

    def apply(self, event: Event) -> None:
        """Advance by one event."""
        self.last_event = event.number
        handler = getattr(self, f"_on_{event.type}", None)
        if handler is None:
            raise ValueError(f"run {self.run_id}: event {event.number} has unknown type {event.type!r}")
        handler(event)

    # --- run -----------------------------------------------------------------------------------

    def _on_run_submitted(self, event: Event) -> None:
        self.submit_time = event.time

    def _on_run_cancel_requested(self, event: Event) -> None:
        self.cancel_requested = True
        self.message = event.message

    def _on_run_ended(self, event: Event) -> None:
        self.phase = RunPhase(event.data["phase"])
        self.message, self.end_time = event.message, event.time

    def _on_run_waiting(self, event: Event) -> None:
        self.phase, self.message = RunPhase.WAITING, event.message

    def _on_run_running(self, event: Event) -> None:
        self.phase, self.message = RunPhase.RUNNING, ""

    def _on_run_retried(self, event: Event) -> None:
        self.phase, self.message, self.cancel_requested, self.end_time = RunPhase.RUNNING, "", False, 0.0
        for name in event.data["jobs"]:
            job = self.jobs[name]
            self.jobs[name] = JobStatus(
                job.job, submissions=job.submissions, retry_quarantined=event.data["retry_quarantined"]
            )
        for name, gate in self.gates.items():
            if gate.phase is GatePhase.REJECTED or self.lost(name):
                self.gates[name] = GateStatus()

    # --- sections ------------------------------------------------------------------------------

    def _on_batch_opened(self, event: Event) -> None:
        acquisition, number, uri = self.acquisition, int(event.data["batch"]), event.data["uri"]
        assert acquisition is not None
        assert number == len(acquisition.batches) + 1
        self.pipeline = with_batch(self.pipeline, number, uri)
        names = tuple(instance_name(name, number) for name in self.pipeline.templates)
        sections = [(int(z), int(version)) for z, version in event.data["sections"]]
        batch = Batch(number, uri, sections, list(event.data["reported"]), names, set(names))
        acquisition.batches.append(batch)
        acquisition.batched |= dict(sections)
        acquisition.batch_of |= dict.fromkeys(names, batch)
        self._take_pipeline()

    def _on_acquisition_ended(self, event: Event) -> None:
        assert self.acquisition is not None
        self.acquisition.ended = True
        self.pipeline = with_end(self.pipeline, len(self.acquisition.batches))
        self._take_pipeline()

    def _take_pipeline(self) -> None:
        """Jobs as the grown pipeline has them, in its order; what is known of them stays."""
        known, self.jobs = self.jobs, {}
        for name in self.pipeline.order:
            if name in self.pipeline.jobs:
                job = self.pipeline.jobs[name]
                self.jobs[name] = known.get(name) or JobStatus(job)
                self.jobs[name].job = job

    # --- jobs ----------------------------------------------------------------------------------

    def _on_job_submitted(self, event: Event) -> None:
        job = self.jobs[event.subject]
        job.phase, job.queue_time = JobPhase.QUEUED, job.queue_time or event.time
        job.key, job.handle = event.data["key"], event.data["handle"]
        job.submitted_after_attempt = event.data["after_attempt"]
        if "resources" in event.data:
            job.placed = Resources.model_validate(event.data["resources"])
        job.submissions += 1
        job.site_away = ""

    def _on_job_waits(self, event: Event) -> None:
        self.jobs[event.subject].site_away = event.message

    def _on_job_started(self, event: Event) -> None:
        job = self.jobs[event.subject]
        job.phase, job.start_time = JobPhase.RUNNING, job.start_time or event.data.get("began", event.time)
        job.attempt = event.data["attempt"]

    def _on_job_interrupted(self, event: Event) -> None:
        job = self.jobs[event.subject]
        job.phase, job.handle, job.message = JobPhase.WAITING, "", event.message
        if event.data["state"] == "drained":
            job.drains += 1
        else:
            job.infrastructure_retries += 1
            job.fruitless_attempts = 0 if event.data.get("progressed") else job.fruitless_attempts + 1

    def _on_job_succeeded(self, event: Event) -> None:
        job = self.jobs[event.subject]
        job.phase, job.end_time, job.message = JobPhase.SUCCEEDED, event.time, ""
        job.key, job.reused = event.data["key"], event.data["reused"]
        job.metrics, job.outputs = event.data["metrics"], event.data["outputs"]
        if self.acquisition and (batch := self.acquisition.batch_of.get(event.subject)):
            batch.left.discard(event.subject)
            if not batch.left and not batch.finished:
                batch.finished = event.time
                self.acquisition.finished.append(batch)

    def _on_job_failed(self, event: Event) -> None:
        job = self.jobs[event.subject]
        job.phase, job.end_time, job.message = JobPhase.FAILED, event.time, event.message
        job.failure_kind, job.quarantined = event.data["kind"], event.data.get("quarantined", [])

    def _on_job_cancelled(self, event: Event) -> None:
        job = self.jobs[event.subject]
        job.phase, job.end_time, job.message = JobPhase.CANCELLED, event.time, event.message

    def _on_job_skipped(self, event: Event) -> None:
        job = self.jobs[event.subject]
        job.phase, job.end_time, job.message = JobPhase.SKIPPED, event.time, event.message

    # --- gates ---------------------------------------------------------------------------------

    def _on_gate_waiting(self, event: Event) -> None:
        gate = self.gates[event.subject]
        gate.phase, gate.metrics = GatePhase.WAITING, event.data["metrics"]

    def _on_gate_decided(self, event: Event) -> None:
        gate = self.gates[event.subject]
        gate.phase = GatePhase.APPROVED if event.data["approved"] else GatePhase.REJECTED
        gate.metrics = event.data.get("metrics", gate.metrics)
        gate.decided_by, gate.comment, gate.time = event.data["decided_by"], event.message, event.time
