"""Driving one run: what happens next, given its state, the store and the executors.

`tick` is called again and again; it looks, decides, and writes an event for everything that it
does. After a kill at any point, replay and the next tick go on: whatever was submitted but not
written down is found by the job's key.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from happyneurons.errors import (
    EXIT_TRY_AGAIN,
    EXIT_USAGE,
    HappyError,
    OverloadedError,
    UnavailableError,
    UserError,
)
from happyneurons.executors.base import Executor, ProcessReport, ProcessState, Submission
from happyneurons.jobs.attempts import (
    EndState,
    attempt_end,
    attempt_folder,
    attempt_numbers,
    attempt_progress,
    request_cancel,
    settle,
    supersede,
)
from happyneurons.jobs.liveness import Liveness, last_line, printed
from happyneurons.jobs.spec import JobSpec, job_uri, make_spec, save_spec
from happyneurons.orchestrator.conditions import evaluate, metric_names
from happyneurons.orchestrator.graph import PipelineJob, reference
from happyneurons.orchestrator.intake import Intake, batch_state
from happyneurons.orchestrator.runlog import Event, append_event, now, read_events
from happyneurons.orchestrator.state import (
    FINAL,
    RUN_FINAL,
    GatePhase,
    JobPhase,
    JobStatus,
    RunPhase,
    RunStatus,
)
from happyneurons.stages import load_stage
from happyneurons.store.artifacts import Manifest, artifact_uri
from happyneurons.store.documents import Store

log = logging.getLogger("happyneurons.orchestrator")

INFRASTRUCTURE_RETRIES = 5
DRAINS = 1000  # a drained attempt did what it could: going on costs nothing but a limit must be
BACKOFF_S = 1.0
SITE_AWAY_S = 5.0  # how soon a site that did not answer is asked again
FULL_S = 1.0  # … and one that had no room
CANCEL_GRACE_S = 60.0  # ranks poll the marker every few seconds; past this the site has to end them


class RunDriver:
    """One run. Its lock guards the state; the scheduler's thread ticks, servers read and decide."""

    def __init__(
        self,
        store: Store,
        status: RunStatus,
        executors: Mapping[str, Executor],
        busy_elsewhere: Callable[[str, str], str | None],
        owner: str,
    ) -> None:
        self.store, self.status, self.executors, self.owner = store, status, executors, owner
        self.busy_elsewhere = busy_elsewhere
        self.changed = threading.Condition(threading.RLock())
        self.events: list[Event] = []
        self.progress: dict[str, dict[str, Any]] = {}
        self.loaded_until = 0.0
        """Until when its events are from before it was loaded into this process; metrics do not count them."""
        self.elsewhere: set[str] = set()
        """Jobs that wait because the same job is at work in another run."""
        acquisition = status.pipeline.acquisition
        self.intake = None if acquisition is None else Intake(store, status.run_id, acquisition)
        """Sections on their way into an open run; None in others."""
        self._liveness = Liveness(store)
        self._not_before: dict[str, float] = {}
        self._cancelled_at: dict[str, float] = {}

    # --- events ------------------------------------------------------------------------------

    def record(self, type_: str, subject: str = "", message: str = "", **data: Any) -> None:
        """Write an event, then let it change the state. Raises LogConflictError."""
        with self.changed:
            event = Event(self.status.last_event + 1, type_, subject, message, now(), data)
            append_event(self.store, self.status.run_id, event)
            self.replay(event)
        log.info("run %s: %s %s %s", self.status.run_id, type_, subject, message)

    def replay(self, event: Event) -> None:
        """Take over an event that is in the log already."""
        with self.changed:
            self.status.apply(event)
            self.events.append(event)
            self.changed.notify_all()

    def observe(self) -> None:
        """Take over what another orchestrator wrote, and the progress of its jobs."""
        with self.changed:
            for event in read_events(self.store, self.status.run_id, self.status.last_event):
                self.replay(event)
                if self.intake is not None and event.type == "batch_opened":
                    self.intake.reports.reload()
            for name, job in self.status.jobs.items():
                if job.phase is not JobPhase.RUNNING:
                    self.progress.pop(name, None)
                elif (number := self._our_attempt(job)) is not None:
                    self._take_progress(name, attempt_progress(self.store, job.key, number))

    # --- one step ------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do everything that can be done now."""
        with self.changed:
            if self.status.phase in RUN_FINAL:
                return
            self._tick_sections()
            for name in self.status.pipeline.order:
                if name in self.status.gates:
                    self._tick_gate(name)
                else:
                    self._tick_job(name, self.status.jobs[name])
            self._tick_run()

    def _tick_sections(self) -> None:
        """Open batches for the sections that have arrived, and note the end of the acquisition."""
        acquisition = self.status.acquisition
        if self.intake is None or acquisition is None or acquisition.ended or self.status.cancel_requested:
            return
        in_work = sum(batch_state(self.status, batch) == "in_work" for batch in acquisition.batches)
        for message, data in self.intake.due(acquisition, now(), in_work):
            self.record("batch_opened", message=message, **data)
        if self.intake.over(acquisition):
            self.record("acquisition_ended", message=f"{self.intake.reports.count()} sections")

    def _tick_run(self) -> None:
        status = self.status
        jobs = status.jobs.values()
        if status.open and not status.cancel_requested:
            self._tick_open_run()
        elif all(j.phase in FINAL for j in jobs):
            bad = [j for j in jobs if j.phase is not JobPhase.SUCCEEDED]
            first = next((j for j in bad if j.phase is JobPhase.FAILED), None)
            if not bad and not status.open:
                waiting = [n for n, g in status.gates.items() if g.phase is GatePhase.WAITING]
                if waiting:
                    self._wait(f"a decision at gate {', '.join(waiting)}")
                    return
                self.record("run_ended", message="", phase=RunPhase.SUCCEEDED.value)
            elif status.cancel_requested:
                self.record("run_ended", message=status.message or "cancelled", phase=RunPhase.CANCELLED.value)
            else:
                text = f"{first.job.name}: {first.message}" if first else bad[0].message
                self.record("run_ended", message=text, phase=RunPhase.FAILED.value)
        else:
            waiting = [n for n, g in status.gates.items() if g.phase is GatePhase.WAITING]
            if waiting and not self._going_on():
                self._wait(f"a decision at gate {', '.join(waiting)}")
            elif status.phase is RunPhase.WAITING:
                self.record("run_running")

    def _tick_open_run(self) -> None:
        """A run that takes sections is not over, whatever became of its jobs."""
        waiting = [n for n, g in self.status.gates.items() if g.phase is GatePhase.WAITING]
        if not self._going_on():
            gates = f"a decision at gate {', '.join(waiting)}, and " if waiting else ""
            self._wait(f"{gates}sections from the microscope")
        elif self.status.phase is RunPhase.WAITING:
            self.record("run_running")

    def _going_on(self) -> bool:
        """Whether a job is at work or can be."""
        passed = self.status.passed
        return any(
            j.phase in (JobPhase.QUEUED, JobPhase.RUNNING)
            or (j.phase is JobPhase.WAITING and all(passed(n) for n in j.job.upstream()))
            for j in self.status.jobs.values()
        )

    def _wait(self, message: str) -> None:
        if self.status.phase is not RunPhase.WAITING or self.status.message != message:
            self.record("run_waiting", message=message)

    # --- gates -----------------------------------------------------------------------------------

    def _tick_gate(self, name: str) -> None:
        gate, status = self.status.pipeline.gates[name], self.status.gates[name]
        if status.phase is not GatePhase.CLOSED or not all(self.status.passed(n) for n in gate.after):
            return
        metrics: dict[str, float] = {}
        if gate.condition:
            known = {(n, k): v for n, j in self.status.jobs.items() for k, v in j.metrics.items()}
            metrics = {f"{j}.{m}": known[j, m] for j, m in metric_names(gate.condition) if (j, m) in known}
            try:
                holds, why = evaluate(gate.condition, known), f"{gate.condition}"
            except UserError as error:
                holds, why = False, str(error)
            if holds or gate.otherwise == "reject":
                verdict = f"{why} holds" if holds else f"{why} does not hold"
                self.record(
                    "gate_decided", name, verdict, approved=holds, decided_by="condition", metrics=metrics
                )  # fmt: skip
                return
        self.record("gate_waiting", name, gate.ask or f"{gate.condition} does not hold: go on?", metrics=metrics)

    # --- jobs ------------------------------------------------------------------------------------

    def _tick_job(self, name: str, job: JobStatus) -> None:
        if job.phase is JobPhase.WAITING:
            if self.status.cancel_requested:
                self.record("job_cancelled", name, "the run was cancelled")
            elif lost := [n for n in job.job.upstream() if self.status.lost(n)]:
                self.record("job_skipped", name, f"{lost[0]} did not succeed")
            elif all(self.status.passed(n) for n in job.job.upstream()) and not self.paused(name):
                self._start(name, job)
        elif job.phase in (JobPhase.QUEUED, JobPhase.RUNNING):
            self._follow(name, job)

    def paused(self, name: str) -> bool:
        """Whether a job is not tried yet because it was not long ago."""
        return time.monotonic() < self._not_before.get(name, 0.0)

    def spec_of(self, job: PipelineJob) -> JobSpec:
        """The spec of a job whose inputs are known. Raises UserError."""
        inputs = {}
        for key, uris in job.inputs.items():
            inputs[key] = [self._resolve(uri) for uri in uris]
        return make_spec(
            load_stage(job.stage), inputs=inputs, params=job.params, allow_failed_tasks=job.allow_failed_tasks,
            image_digest=self._image_digest(job.site),
        )  # fmt: skip

    def _image_digest(self, site: str) -> str | None:
        """Identity of a site's images; None where jobs run in this installation."""
        return self.executors[site].image_digest or None if site in self.executors else None

    def _resolve(self, uri: str) -> str:
        match = reference(uri)
        return self.status.jobs[match[1]].outputs[match[2]] if match else uri

    def _start(self, name: str, job: JobStatus) -> None:
        try:
            spec = self.spec_of(job.job)
        except UserError as error:
            self.record("job_failed", name, str(error), kind="user")
            return
        manifest = settle(self.store, spec.key)
        if manifest is not None:
            self._succeed(name, manifest, reused=job.key != spec.key)
            return
        if self.busy_elsewhere(self.status.run_id, spec.key):
            self.elsewhere.add(name)  # its result will serve both
            return
        self.elsewhere.discard(name)
        numbers = attempt_numbers(self.store, spec.key)
        if numbers and attempt_end(self.store, spec.key, numbers[-1]) is None:
            # Left by a process that drove another run and is gone, or driven by one that lives.
            self.record(
                "job_submitted", name, f"attempt {numbers[-1]} was open already: followed", key=spec.key, handle="",
                after_attempt=numbers[-1] - 1,
            )  # fmt: skip
            return
        executor = self.executors.get(job.job.site)
        refusal = (
            f"no site {job.job.site!r}; there are {', '.join(sorted(self.executors))}"
            if executor is None
            else executor.refuse(job.job.stage, job.job.resources)
        )
        if refusal or executor is None:
            self.record("job_failed", name, f"site {job.job.site}: {refusal}", kind="user")
            return
        save_spec(self.store, spec)
        submission = Submission(
            job_uri(self.store, spec.key), job.job.stage, job.job.resources, retry_quarantined=job.retry_quarantined,
            token=f"{self.status.run_id}/{name}/{job.submissions}",
        )  # fmt: skip
        try:
            handle = executor.submit(submission)
        except UserError as error:
            self.record("job_failed", name, str(error), kind="user")
            return
        except UnavailableError as error:  # nobody's failure: no budget is spent, however long it takes
            wait_s = FULL_S if isinstance(error, OverloadedError) else SITE_AWAY_S
            self._not_before[name] = time.monotonic() + wait_s
            message = f"site {job.job.site}: {error}"
            if job.site_away != message:
                self.record("job_waits", name, message)
            return
        except HappyError as error:
            self._interrupt(name, job, "error", f"site {job.job.site}: {error}")
            return
        self._cancelled_at.pop(name, None)
        self.record(
            "job_submitted", name, f"to site {job.job.site}", key=spec.key, handle=handle,
            resources=executor.resources(job.job.stage, job.job.resources).model_dump(exclude_none=True),
            after_attempt=numbers[-1] if numbers else 0,
        )  # fmt: skip

    def _follow(self, name: str, job: JobStatus) -> None:
        executor = self.executors[job.job.site]
        report = executor.poll([job.handle])[job.handle] if job.handle else ProcessReport(ProcessState.UNKNOWN)
        number = self._our_attempt(job)  # read after the poll: what exited has written its end
        if number is None:
            self._follow_unbegun(name, job, report)
            return
        if job.phase is JobPhase.QUEUED:
            began = self._began(job, number)
            self.record("job_started", name, f"attempt {number}", attempt=number, began=began)
        end = attempt_end(self.store, job.key, number)
        if end is None:
            progress = attempt_progress(self.store, job.key, number)
            self._take_progress(name, progress)
            if self.status.cancel_requested:
                self._stop(name, job, number)
            dead = self._death(job, number, report, progress)
            if dead is None:
                return
            ended = report.state is ProcessState.EXITED and report.exit_code == EXIT_TRY_AGAIN
            end = supersede(self.store, job.key, number, self.owner, dead, allocation_ended=ended)
        self._ended(name, job, end)

    def _stop(self, name: str, job: JobStatus, number: int) -> None:
        """Ask an attempt to stop by its marker; one that does not in time is stopped by its site."""
        request_cancel(self.store, job.key, number, self.status.message)
        since = self._cancelled_at.setdefault(name, time.monotonic())
        if time.monotonic() - since > CANCEL_GRACE_S and job.handle:
            self._cancelled_at[name] = time.monotonic()
            self.executors[job.job.site].cancel(job.handle)

    def _take_progress(self, name: str, progress: dict[str, Any] | None) -> None:
        if progress is not None and progress != self.progress.get(name):
            self.progress[name] = progress
            self.changed.notify_all()

    def _our_attempt(self, job: JobStatus) -> int | None:
        numbers = attempt_numbers(self.store, job.key)
        return numbers[-1] if numbers and numbers[-1] > job.submitted_after_attempt else None

    def _began(self, job: JobStatus, number: int) -> float:
        """When an attempt began. Another host's clock is believed between what we know by our own."""
        begin = self.store.find_json(f"{attempt_folder(job.key, number)}/begin.json") or {}
        return min(max(float(begin.get("time", now())), job.queue_time), now())

    def _follow_unbegun(self, name: str, job: JobStatus, report: ProcessReport) -> None:
        """No attempt has begun yet."""
        if self.status.cancel_requested:
            if job.handle:
                self.executors[job.job.site].cancel(job.handle)
            self.record("job_cancelled", name, "the run was cancelled")
        elif report.state is ProcessState.EXITED:
            manifest = settle(self.store, job.key)
            if manifest is not None:
                self._succeed(name, manifest, reused=True)
            elif report.exit_code == EXIT_USAGE:
                self.record("job_failed", name, printed(self.store, job.key, 0) or report.detail, kind="user")
            else:
                what = f"its processes ended before it began (exit code {report.exit_code})"
                self._interrupt(name, job, "error", f"{what}: {printed(self.store, job.key, 0) or report.detail}")
        elif report.state is ProcessState.UNKNOWN and not self._liveness.changing(
            name, (job.handle, job.submitted_after_attempt)
        ):
            # Forgotten by a restarted executor, perhaps before it started: submitting again is safe,
            # since of two attempts only one can publish.
            self._interrupt(name, job, "superseded", "the executor does not know it any more")

    def _death(self, job: JobStatus, number: int, report: ProcessReport, progress: dict[str, Any] | None) -> str | None:
        """Why an open attempt must be dead, or None if it lives as far as we can tell."""
        if report.state is ProcessState.EXITED:
            output = last_line(printed(self.store, job.key, number) or report.detail)
            return f"its processes died (exit code {report.exit_code}){': ' + output if output else ''}"
        return self._liveness.death(job.key, number, progress) if report.state is ProcessState.UNKNOWN else None

    def _ended(self, name: str, job: JobStatus, end: dict[str, Any]) -> None:
        state, message = EndState(end["state"]), end["message"]
        last = self.progress.pop(name, None) or {}
        # What its ranks met with, for metrics: nobody else tells, and what was not published has no manifest.
        told = {"telemetry": t} if (t := end.get("telemetry") or last.get("telemetry")) else {}
        if state is EndState.SUCCEEDED:
            manifest = settle(self.store, job.key)
            assert manifest is not None
            self._succeed(name, manifest, reused=False)
        elif state is EndState.FAILED_USER:
            self.record("job_failed", name, message, kind="user", **told)
        elif state is EndState.FAILED_TASKS:
            quarantined = end.get("quarantined", [])[:100]
            self.record("job_failed", name, message, kind="task", quarantined=quarantined, **told)
        elif state is EndState.CANCELLED:
            self.record("job_cancelled", name, message, **told)
        elif self.status.cancel_requested:
            self.record("job_cancelled", name, "the run was cancelled", **told)
        else:
            progress = attempt_progress(self.store, job.key, job.attempt) or {}
            progressed = progress.get("computed_tasks", 0) > 0
            self._interrupt(name, job, state.value, message, progressed=progressed, told=told)

    def _interrupt(
        self,
        name: str,
        job: JobStatus,
        state: str,
        message: str,
        *,
        progressed: bool = False,
        told: Mapping[str, Any] | None = None,
    ) -> None:
        """Attempt it again, unless that failed too often in a row: attempts that got on are no failures."""
        told = told or {}
        spent = job.drains if state == EndState.DRAINED else 0 if progressed else job.fruitless_attempts
        if spent >= (DRAINS if state == EndState.DRAINED else INFRASTRUCTURE_RETRIES):
            text = f"given up after {spent + 1} attempts: {message}"
            self.record("job_failed", name, text, kind="infrastructure", **told)
            return
        self._not_before[name] = time.monotonic() + min(60.0, BACKOFF_S * 2**job.fruitless_attempts)
        self.record("job_interrupted", name, message, state=state, progressed=progressed, **told)

    def _succeed(self, name: str, manifest: Manifest, reused: bool) -> None:
        uris = {output: artifact_uri(self.store, manifest.job_key, output) for output in manifest.outputs}
        self.record(
            "job_succeeded", name, "reused" if reused else "", key=manifest.job_key, reused=reused,
            metrics=manifest.metrics, outputs=uris,
        )  # fmt: skip

    # --- what people ask for -----------------------------------------------------------------------

    def cancel(self, reason: str, by: str = "") -> None:
        """Ask the run to stop; harmless when it is over. by: who asks, where that is known."""
        with self.changed:
            if self.status.phase not in RUN_FINAL and not self.status.cancel_requested:
                self.record("run_cancel_requested", message=reason or "cancelled", **_caller(by))

    def retry(self, jobs: list[str], retry_quarantined: bool, by: str = "") -> None:
        """Attempt again what did not succeed (or only some of it, with what follows).

        While an open run takes sections, that is what failed so far.
        """
        with self.changed:
            for name in jobs:
                self.status.job(name)
            if self.status.phase not in RUN_FINAL and (not self.status.open or self.status.cancel_requested):
                return
            if self.status.phase is RunPhase.SUCCEEDED:
                raise UserError(f"run {self.status.run_id}: every job succeeded; there is nothing to retry")
            over = FINAL if self.status.phase not in RUN_FINAL else set(JobPhase)
            again = [n for n, j in self.status.jobs.items() if j.phase in over - {JobPhase.SUCCEEDED}]
            if jobs:
                again = [n for n in again if n in jobs or self._follows(n, set(jobs))]
            if again or self.status.phase in RUN_FINAL:
                self.record("run_retried", jobs=again, retry_quarantined=retry_quarantined, **_caller(by))

    def _follows(self, name: str, sources: set[str]) -> bool:
        pipeline = self.status.pipeline
        if name in pipeline.templates:
            return False  # what waits for all batches has not been tried yet
        needs = pipeline.jobs[name].upstream() if name in pipeline.jobs else pipeline.gates[name].after
        return any(n in sources or self._follows(n, sources) for n in needs)

    def decide(self, gate: str, approved: bool, by: str, comment: str) -> None:
        """Decide at a gate. Raises UserError if it is not open or was decided otherwise."""
        with self.changed:
            status = self.status.gates.get(gate)
            if status is None:
                known = ", ".join(self.status.gates) or "none"
                raise UserError(f"run {self.status.run_id}: no gate {gate!r}; there are {known}")
            wanted = GatePhase.APPROVED if approved else GatePhase.REJECTED
            if status.phase is wanted:
                return
            if status.phase is not GatePhase.WAITING:
                raise UserError(f"gate {gate} is {status.phase.value}: only a waiting gate can be decided")
            self.record("gate_decided", gate, comment, approved=approved, decided_by=by or os.environ.get("USER", ""))


def _caller(by: str) -> dict[str, str]:
    """For an event's data: who asked for it."""
    return {"by": by} if by else {}
