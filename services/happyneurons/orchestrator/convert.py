"""The state of runs as messages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from happyneurons.errors import HappyError
from happyneurons.jobs.spec import job_uri
from happyneurons.orchestrator.graph import reference
from happyneurons.orchestrator.intake import Intake
from happyneurons.orchestrator.intake import progress as sections_progress
from happyneurons.orchestrator.runlog import Event, now, run_folder
from happyneurons.orchestrator.state import GatePhase, GateStatus, JobPhase, JobStatus, RunPhase, RunStatus
from happyneurons.rpc.auth.principal import DEFAULT_PROJECT
from happyneurons.rpc.convert import (
    artifact_message,
    duration,
    failure_message,
    job_spec_message,
    progress_message,
    timestamp,
)
from happyneurons.store.artifacts import Artifact, load_artifact
from happyneurons.store.documents import Store
from happyneurons.v1 import artifacts_pb2, jobs_pb2, pipelines_pb2

JOB_STATES = {phase: jobs_pb2.JobState.Value(f"JOB_STATE_{phase.name}") for phase in JobPhase}
RUN_STATES = {phase: pipelines_pb2.RunState.Value(f"RUN_STATE_{phase.name}") for phase in RunPhase}
GAPS_SHOWN = 100
GATE_STATES = {phase: pipelines_pb2.GateState.Value(f"GATE_STATE_{phase.name}") for phase in GatePhase}


def run_message(
    store: Store, status: RunStatus, progress: Mapping[str, Mapping[str, Any]], intake: Intake | None = None
) -> pipelines_pb2.Run:
    """A run with its jobs and gates. `progress`: job name → progress.json of its attempt at work.

    intake: of an open run.
    """
    spec = status.spec
    message = pipelines_pb2.Run(
        id=status.run_id,
        uri=store.url(run_folder(status.run_id)),
        name=status.pipeline.name,
        state=RUN_STATES[status.phase],
        message=status.message,
        jobs=[run_job_message(store, status, name, progress.get(name)) for name in status.jobs],
        gates=[gate_message(status, name) for name in status.gates],
        pipeline=pipelines_pb2.PipelineSpec(
            yaml=spec["yaml"],
            parameters=spec["parameters"],
            source_name=spec["source_name"],
            base_uri=spec["base_uri"],
        ),
        submit_time=timestamp(status.submit_time),
        end_time=timestamp(status.end_time),
        last_event=status.last_event,
        project=status.project,
        submitted_by=spec.get("submitted_by", ""),
    )
    if intake is not None and status.acquisition is not None:
        message.acquisition.CopyFrom(acquisition_message(status, intake))
    return message


def acquisition_message(status: RunStatus, intake: Intake) -> pipelines_pb2.AcquisitionStatus:
    """Where the sections of an open run stand. Raises StoreError if the reports have to be read and cannot be."""
    assert status.acquisition is not None
    found = sections_progress(status, intake.reports, now())
    return pipelines_pb2.AcquisitionStatus(
        sections_reported=found.reported, sections_waiting=found.waiting, sections_in_work=found.in_work,
        sections_done=found.done, sections_failed=found.failed, sections_imaged_again=found.imaged_again,
        batches=len(status.acquisition.batches), ended=status.acquisition.ended,
        gaps=[pipelines_pb2.SectionRange(first_z=a, last_z=b) for a, b in found.gaps[:GAPS_SHOWN]],
        sections_in_gaps=sum(b - a + 1 for a, b in found.gaps), lag=duration(found.lag_s),
    )  # fmt: skip


def summary_message(store: Store, run_id: str, summary: Mapping[str, Any]) -> pipelines_pb2.Run:
    """A run without its jobs' details, from `runs/ID/summary.json`."""
    return pipelines_pb2.Run(
        id=run_id,
        uri=store.url(run_folder(run_id)),
        name=summary["name"],
        state=RUN_STATES[RunPhase(summary["phase"])],
        message=summary["message"],
        submit_time=timestamp(summary["submit_time"]),
        end_time=timestamp(summary["end_time"]),
        last_event=summary["last_event"],
        project=summary.get("project", DEFAULT_PROJECT),
    )


def run_job_message(
    store: Store, status: RunStatus, name: str, progress: Mapping[str, Any] | None
) -> pipelines_pb2.RunJob:
    """A job's place in a run."""
    job = status.jobs[name]
    return pipelines_pb2.RunJob(
        name=name,
        site=job.job.site,
        needs=job.job.upstream(),
        job=_job_message(store, status, job, progress),
        infrastructure_retries=job.infrastructure_retries,
    )


def gate_message(status: RunStatus, name: str) -> pipelines_pb2.Gate:
    """A gate with what is known for its decision."""
    gate, state = status.pipeline.gates[name], status.gates[name]
    return pipelines_pb2.Gate(
        name=name,
        needs=gate.after,
        state=GATE_STATES[state.phase],
        question=gate.ask,
        condition=gate.condition,
        metrics=state.metrics,
        decided_by=state.decided_by,
        decide_time=timestamp(state.time),
        comment=state.comment,
    )


def event_message(store: Store, status: RunStatus, event: Event) -> pipelines_pb2.RunEvent:
    """An event; `status` is the run's state right after it."""
    message = pipelines_pb2.RunEvent(
        number=event.number,
        time=timestamp(event.time),
        type=event.type,
        subject=event.subject,
        message=event.message,
        run_state=RUN_STATES[status.phase],
        caller=event.data.get("by", ""),
    )
    if event.subject in status.jobs:
        message.job.CopyFrom(run_job_message(store, status, event.subject, None))
    elif event.subject in status.gates:
        message.gate.CopyFrom(gate_message(status, event.subject))
    return message


def progress_event(
    store: Store, status: RunStatus, name: str, progress: Mapping[str, Any]
) -> pipelines_pb2.RunEvent:  # fmt: skip
    """A running job's progress; its number is that of the event before, so that resuming is not disturbed."""
    return pipelines_pb2.RunEvent(
        number=status.last_event,
        time=timestamp(progress["time"]),
        type="job_progress",
        subject=name,
        run_state=RUN_STATES[status.phase],
        job=run_job_message(store, status, name, progress),
    )


def waits_for(status: RunStatus, job: JobStatus) -> list[str]:
    """What a job waits for, one phrase each; empty if nothing in the run keeps it."""
    found = []
    for name in job.job.upstream():
        if status.passed(name):
            continue
        if name in status.pipeline.templates:
            found.append(f"{name} of all batches (the acquisition goes on)")
        elif name in status.jobs:
            found.append(f"job {name} ({status.jobs[name].phase.value})")
        else:
            gate: GateStatus = status.gates[name]
            found.append(f"a decision at gate {name}" if gate.phase is GatePhase.WAITING else f"gate {name}")
    if job.site_away:
        found.append(job.site_away)
    return found


def _job_message(
    store: Store, status: RunStatus, job: JobStatus, progress: Mapping[str, Any] | None
) -> jobs_pb2.Job:  # fmt: skip
    inputs = {name: [_resolved(status, uri) for uri in uris] for name, uris in job.job.inputs.items()}
    waiting_for = ""
    if job.phase is JobPhase.WAITING:
        waiting_for = ", ".join(waits_for(status, job)) or job.message or "its turn"
    elif job.phase is JobPhase.QUEUED:
        waiting_for = f"site {job.job.site}"
    message = jobs_pb2.Job(
        key=job.key,
        uri=job_uri(store, job.key) if job.key else "",
        spec=job_spec_message(job.job.stage, inputs, job.job.params, job.resources, job.job.allow_failed_tasks),
        state=JOB_STATES[job.phase],
        waiting_for=waiting_for,
        attempt=job.attempt,
        outputs={name: _artifact_of(uri) for name, uri in job.outputs.items()},
        metrics=job.metrics,
        reused=job.reused,
        submit_time=timestamp(job.queue_time),
        start_time=timestamp(job.start_time),
        end_time=timestamp(job.end_time),
    )
    if progress is not None and job.phase is JobPhase.RUNNING:
        message.progress.CopyFrom(progress_message(progress))
    if job.phase is JobPhase.FAILED:
        uri = job_uri(store, job.key) if job.key else ""
        message.failure.CopyFrom(failure_message(job.failure_kind, job.message, uri, job.quarantined))
    return message


def _resolved(status: RunStatus, uri: str) -> str:
    """An input's artifact where it is known, `JOB.OUTPUT` before."""
    match = reference(uri)
    if match is None:
        return uri
    known = status.jobs.get(match[1])  # none for jobs of all batches, while there may be more of them
    return known.outputs.get(match[2], uri) if known else uri


@lru_cache(maxsize=4096)
def _published(uri: str) -> Artifact:
    return load_artifact(uri)


def _artifact_of(uri: str) -> artifacts_pb2.Artifact:
    """A published output. Manifests never change, so each is read once; one that is gone leaves its URI."""
    try:
        return artifact_message(_published(uri))
    except HappyError:
        return artifacts_pb2.Artifact(uri=uri)
