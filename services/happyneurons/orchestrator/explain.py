"""Why a job was computed, reused, or is not running (`hpn explain`)."""

from __future__ import annotations

import re
import threading
import time

from happyneurons.errors import HappyError
from happyneurons.jobs.spec import JobSpec, differences, load_spec
from happyneurons.orchestrator.convert import JOB_STATES, waits_for
from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.graph import reference
from happyneurons.orchestrator.intake import batch_text
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.state import JobPhase, JobStatus
from happyneurons.store.artifacts import load_manifest
from happyneurons.store.documents import Store
from happyneurons.v1 import pipelines_pb2

INPUT_DIFFERS = re.compile(r"inputs\.(\w+): ")


class FinishedJobs:
    """Specs of the finished jobs of a store. Those seen once are not read again: they never change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, tuple[JobSpec, float]] = {}
        self._lock = threading.Lock()

    def of_stage(self, stage: str) -> list[tuple[JobSpec, float]]:
        """`(spec, time at which it was finished)` of a stage's finished jobs."""
        with self._lock:
            for key in self._store.folders("jobs"):
                if key in self._known:
                    continue
                manifest = load_manifest(self._store, key)
                if manifest is not None:
                    finished = float(manifest.provenance.get("finished", 0.0))
                    self._known[key] = (load_spec(self._store, key), finished)
            return [found for found in self._known.values() if found[0].stage == stage]

    def most_similar(self, spec: JobSpec, before: float) -> tuple[JobSpec, list[str]] | None:
        """The job finished before a time that differs least from `spec` (of equals the latest), and how."""
        best: tuple[int, float, JobSpec, list[str]] | None = None
        for other, finished in self.of_stage(spec.stage):
            if other.key == spec.key or finished > before:
                continue
            found = differences(other, spec)
            if best is None or (len(found), -finished) < best[:2]:
                best = (len(found), -finished, other, found)
        return None if best is None else (best[2], best[3])


def explain_job(
    orchestrator: Orchestrator, finished: FinishedJobs, driver: RunDriver, name: str, *, everything: bool = True
) -> pipelines_pb2.JobExplanation:
    """Everything known about why a job stands where it stands. Raises NotFoundError.

    everything: also what is known of other runs and jobs, which may be other projects'.
    """
    with driver.changed:
        status = driver.status
        job = status.job(name)
        spec = _spec(driver, job)
        message = pipelines_pb2.JobExplanation(
            run_id=status.run_id,
            job_name=name,
            key=job.key or (spec.key if spec else ""),
            state=JOB_STATES[job.phase],
            reused=job.reused,
            reasons=[
                *_batch(driver, name),
                *_reasons(orchestrator, driver, job, spec, everything),
                *_history(driver, name),
            ],
        )
    if job.phase is JobPhase.QUEUED and job.handle:
        message.site_explanation = orchestrator.sites[job.job.site].explain(job.handle)
    if spec is None or job.reused or not everything:
        return message
    similar = finished.most_similar(spec, before=status.submit_time)
    if similar is not None:
        message.compared_with_key = similar[0].key
        message.differences.extend(_with_origin(line, job) for line in similar[1])
        if job.phase is JobPhase.SUCCEEDED:
            message.reasons.append(f"the most similar one before this run was {similar[0].key}; it differs as listed")
    elif job.phase is JobPhase.SUCCEEDED:
        message.reasons.append(f"no job of stage {spec.stage} was finished in this store before")
    return message


def _spec(driver: RunDriver, job: JobStatus) -> JobSpec | None:
    """The job's spec, as submitted or as it will be; None while its inputs are not known (or are wrong)."""
    try:
        if job.key:
            return load_spec(driver.store, job.key)
        if any(not driver.status.passed(other) for _, other, _ in job.job.references()):
            return None
        return driver.spec_of(job.job)
    except HappyError:
        return None


def _reasons(
    orchestrator: Orchestrator, driver: RunDriver, job: JobStatus, spec: JobSpec | None, everything: bool
) -> list[str]:  # fmt: skip
    retry = f"`hpn retry {driver.status.run_id}`"
    if job.phase is JobPhase.WAITING:
        found = [f"waits for {what}" for what in waits_for(driver.status, job)]
        if not found and spec and (other := orchestrator.busy_elsewhere(driver.status.run_id, spec.key)):
            where = f"run {other}" if everything else "another run"
            found.append(f"the same job is at work in {where}: its result will serve both")
        if job.message:
            found.append(f"its last attempt was interrupted: {job.message}")
        return found or ["nothing keeps it: it is about to be submitted"]
    if job.phase is JobPhase.QUEUED:
        return [f"handed to site {job.job.site}, which has not started it yet"]
    if job.phase is JobPhase.RUNNING:
        progress = driver.progress.get(job.job.name)
        at = f": round {progress['round']}, {progress['tasks_done']} of {progress['tasks_total']}" if progress else ""
        return [f"attempt {job.attempt} is at work at site {job.job.site}{at}"]
    if job.phase is JobPhase.SUCCEEDED and job.reused:
        return [
            "reused: a finished job has the same key, so its stage, version, parameters, inputs and image are the same"
        ]
    if job.phase is JobPhase.SUCCEEDED:
        return ["computed: no finished job had its key"]
    if job.phase is JobPhase.FAILED:
        advice = {
            "user": f"the request or its input is wrong: trying again alone does not help; correct it, then {retry}",
            "task": f"tasks failed twice and are quarantined; {retry} with --retry-quarantined tries them again",
        }
        return [job.message, advice.get(job.failure_kind, f"the infrastructure failed too often; {retry} goes on")]
    return [job.message or job.phase.value, f"{retry} attempts it again"]


def _batch(driver: RunDriver, name: str) -> list[str]:
    """Which sections a job for each batch has; empty for others."""
    acquisition = driver.status.acquisition
    batch = acquisition.batch_of.get(name) if acquisition else None
    return [f"it has {batch_text(batch.number, batch.sections)}"] if batch else []


def _history(driver: RunDriver, name: str) -> list[str]:
    """What happened to a job on its way: interruptions and sites that did not answer, oldest first."""
    lines = []
    for event in driver.events:
        if event.subject != name or event.type not in ("job_interrupted", "job_waits"):
            continue
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(event.time))
        what = "waited" if event.type == "job_waits" else event.data["state"]
        lines.append(f"{at}: {what}: {event.message}")
    return lines


def _with_origin(line: str, job: JobStatus) -> str:
    """Adds to `inputs.NAME: another artifact` which jobs it comes from."""
    match = INPUT_DIFFERS.match(line)
    uris = job.job.inputs.get(match[1], ()) if match else ()
    origins = dict.fromkeys(m[1] for uri in uris if (m := reference(uri)))
    return f"{line} (made by {', '.join(origins)})" if origins else line
