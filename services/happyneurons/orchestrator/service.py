"""PipelineService: the orchestrator over gRPC. Errors become statuses in happyneurons.rpc.server."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc

from happyneurons.errors import NotFoundError, PreconditionError, UnavailableError, UserError
from happyneurons.executors.base import Executor
from happyneurons.orchestrator.convert import RUN_STATES, event_message, progress_event, run_message, summary_message
from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.explain import FinishedJobs, explain_job
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.pipeline import PipelineError
from happyneurons.orchestrator.runlog import LogConflictError
from happyneurons.orchestrator.state import RUN_FINAL, GatePhase, JobPhase, RunPhase, RunStatus
from happyneurons.rpc.auth.principal import DEFAULT_PROJECT, Role, caller
from happyneurons.rpc.convert import stage_message
from happyneurons.rpc.logs import tail_log
from happyneurons.stages import load_stage, loadable_stages
from happyneurons.v1 import pipeline_service_pb2 as pb
from happyneurons.v1 import pipeline_service_pb2_grpc, pipelines_pb2

REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}\Z")
PAGE_SIZE, LARGEST_PAGE = 50, 500
PAGE_TOKEN = re.compile(r"before:([0-9a-f-]+)\Z")
WATCH_WAIT_S = 1.0  # how soon a watcher notices that its client is gone
TRIES = 10  # of a decision, while another orchestrator writes to the run's log
ALONE = "another orchestrator is writing to this run's log; try again"


class PipelineServicer(pipeline_service_pb2_grpc.PipelineServiceServicer):
    """`stopping` ends the streams. `descriptions`: site → what to say of it."""

    def __init__(
        self, orchestrator: Orchestrator, stopping: threading.Event, descriptions: Mapping[str, str] | None = None
    ) -> None:
        self._orchestrator, self._store, self._stopping = orchestrator, orchestrator.store, stopping
        self._descriptions = descriptions or {}
        self._finished = FinishedJobs(orchestrator.store)

    # --- runs ----------------------------------------------------------------------------------

    def ValidatePipeline(
        self, request: pb.ValidatePipelineRequest, context: grpc.ServicerContext
    ) -> pb.ValidatePipelineResponse:
        try:
            who = caller()
            spec = _run_spec(request.pipeline)
            pipeline = self._orchestrator.validate(spec, unbounded=who.role is Role.ADMIN and bool(who.name))
        except PipelineError as error:
            found = [
                pipelines_pb2.PipelineViolation(
                    field=v.field, description=v.description, line=v.line, column=v.column
                )
                for v in error.found
            ]  # fmt: skip
            return pb.ValidatePipelineResponse(violations=found)
        return pb.ValidatePipelineResponse(
            jobs=[*pipeline.templates, *(n for n in pipeline.order if n in pipeline.jobs)]
        )

    def SubmitRun(self, request: pb.SubmitRunRequest, context: grpc.ServicerContext) -> pb.SubmitRunResponse:
        self.check_drives()
        if request.request_id and not REQUEST_ID.match(request.request_id):
            expected = "up to 128 characters of A-Z a-z 0-9 _ . : -"
            raise UserError(f"request_id: expected {expected}", [("request_id", expected)])
        spec = _run_spec(request.pipeline)
        if request.default_site:
            spec["default_site"] = request.default_site
        who = caller()
        project = who.project_for(request.project)
        if project != DEFAULT_PROJECT:
            spec["project"] = project
        driver = self._orchestrator.submit(
            spec, request.request_id, by=who.name, unbounded=who.role is Role.ADMIN and bool(who.name)
        )
        return pb.SubmitRunResponse(run=self._run(driver))

    def GetRun(self, request: pb.GetRunRequest, context: grpc.ServicerContext) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=self._run(self._driver(request.run_id)))

    def ListRuns(self, request: pb.ListRunsRequest, context: grpc.ServicerContext) -> pb.ListRunsResponse:
        before = ""
        if request.page_token:
            match = PAGE_TOKEN.match(request.page_token)
            if match is None:
                expected = "next_page_token of the page before, or none"
                raise UserError(f"page_token: expected {expected}", [("page_token", expected)])
            before = match[1]
        size = min(request.page_size or PAGE_SIZE, LARGEST_PAGE)
        if size < 0:
            raise UserError("page_size: expected 0 to 500", [("page_size", "expected 0 to 500")])
        response = pb.ListRunsResponse()
        who = caller()
        for run_id, summary in self._orchestrator.summaries(before):
            project = summary.get("project", DEFAULT_PROJECT)
            if not who.sees(project) or request.project not in ("", project):
                continue
            if request.states and RUN_STATES[RunPhase(summary["phase"])] not in request.states:
                continue
            if len(response.runs) == size:
                response.next_page_token = f"before:{response.runs[-1].id}"
                break
            response.runs.append(summary_message(self._store, run_id, summary))
        return response

    def WatchRun(self, request: pb.WatchRunRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchRunResponse]:
        driver = self._driver(request.run_id)
        for event in watch(driver, request.after_event, request.progress, lambda: self._goes_on(context)):
            yield pb.WatchRunResponse(event=event)
        if self._stopping.is_set() and driver.status.phase not in RUN_FINAL:
            raise UnavailableError("the orchestrator is stopping; watch again after the last event seen")

    # --- decisions -----------------------------------------------------------------------------

    def CancelRun(self, request: pb.CancelRunRequest, context: grpc.ServicerContext) -> pb.CancelRunResponse:
        driver = self._driver(request.run_id)
        self._change(driver, lambda: driver.cancel(request.reason, caller().name))
        return pb.CancelRunResponse(run=self._run(driver))

    def RetryRun(self, request: pb.RetryRunRequest, context: grpc.ServicerContext) -> pb.RetryRunResponse:
        driver = self._driver(request.run_id)

        def retry() -> None:
            for name in request.jobs:
                driver.status.job(name)
            if driver.status.phase is RunPhase.SUCCEEDED:
                raise PreconditionError(f"run {request.run_id}: every job succeeded; there is nothing to retry")
            driver.retry(list(request.jobs), request.retry_quarantined, caller().name)

        self._change(driver, retry)
        return pb.RetryRunResponse(run=self._run(driver))

    def DecideGate(self, request: pb.DecideGateRequest, context: grpc.ServicerContext) -> pb.DecideGateResponse:
        driver = self._driver(request.run_id)
        if request.decision not in (pb.GATE_DECISION_APPROVE, pb.GATE_DECISION_REJECT):
            raise UserError("decision: expected approve or reject", [("decision", "expected approve or reject")])
        approved = request.decision == pb.GATE_DECISION_APPROVE

        def decide() -> None:
            gate = driver.status.gates.get(request.gate)
            if gate is None:
                known = ", ".join(driver.status.gates) or "none"
                raise NotFoundError(f"run {request.run_id}: no gate {request.gate!r}; there are: {known}")
            wanted = GatePhase.APPROVED if approved else GatePhase.REJECTED
            if gate.phase not in (wanted, GatePhase.WAITING):
                waits = "what it judges is not there yet" if gate.phase is GatePhase.CLOSED else "it was decided before"
                raise PreconditionError(f"gate {request.gate} is {gate.phase.value}: {waits}")
            if driver.status.phase in RUN_FINAL and gate.phase is not wanted:
                raise PreconditionError(
                    f"run {request.run_id} is {driver.status.phase.value}: nothing is left to decide"
                )
            # Who it is that calls counts before what a client says.
            driver.decide(request.gate, approved, caller().name or request.decided_by, request.comment)

        self._change(driver, decide)
        return pb.DecideGateResponse(run=self._run(driver))

    # --- what is going on ------------------------------------------------------------------------

    def ExplainJob(self, request: pb.ExplainJobRequest, context: grpc.ServicerContext) -> pb.ExplainJobResponse:
        driver = self._driver(request.run_id)
        return pb.ExplainJobResponse(
            explanation=explain_job(
                self._orchestrator, self._finished, driver, request.job, everything=caller().projects is None
            )
        )  # fmt: skip

    def TailJobLogs(
        self, request: pb.TailJobLogsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.TailJobLogsResponse]:
        driver = self._driver(request.run_id)
        with driver.changed:
            key = driver.status.job(request.job).key
        if not key:
            raise NotFoundError(f"job {request.job} has no attempt yet; `hpn explain` says what it waits for")
        for chunk in tail_log(
            self._store, key, request.attempt, request.follow, request.resume_token,
            alive=lambda: self._goes_on(context),
        ):  # fmt: skip
            yield pb.TailJobLogsResponse(chunk=chunk)
        if request.follow and self._stopping.is_set():
            raise UnavailableError("the orchestrator is stopping; go on from the last resume_token")

    def ListStages(self, request: pb.ListStagesRequest, context: grpc.ServicerContext) -> pb.ListStagesResponse:
        return pb.ListStagesResponse(stages=[stage_message(stage) for stage in loadable_stages()])

    def DescribeStage(
        self, request: pb.DescribeStageRequest, context: grpc.ServicerContext
    ) -> pb.DescribeStageResponse:
        try:
            return pb.DescribeStageResponse(stage=stage_message(load_stage(request.stage)))
        except UserError as error:
            raise NotFoundError(str(error)) from error

    def ListSites(self, request: pb.ListSitesRequest, context: grpc.ServicerContext) -> pb.ListSitesResponse:
        counts = Counter(
            (job.job.site, job.phase) for driver in self._orchestrator.drivers() for job in driver.status.jobs.values()
        )
        return pb.ListSitesResponse(
            sites=[
                self._site(name, executor, counts[name, JobPhase.QUEUED], counts[name, JobPhase.RUNNING])
                for name, executor in sorted(self._orchestrator.sites.items())
            ]
        )

    # --- parts -----------------------------------------------------------------------------------

    def _driver(self, run_id: str) -> RunDriver:
        """The driver of a run that the caller may see. Raises NotFoundError."""
        return driver_for_caller(self._orchestrator, run_id)

    def _site(self, name: str, executor: Executor, queued: int, running: int) -> pipelines_pb2.Site:
        capacity = executor.capacity()
        return pipelines_pb2.Site(
            name=name, executor=executor.kind, description=self._descriptions.get(name, ""),
            cores=capacity.cores, memory_gb=capacity.memory_gb,
            available=not capacity.problem, problem=capacity.problem,
            jobs_queued=queued, jobs_running=running,
        )  # fmt: skip

    def _run(self, driver: RunDriver) -> pipelines_pb2.Run:
        with driver.changed:
            return run_message(self._store, driver.status, driver.progress, driver.intake)

    def _goes_on(self, context: grpc.ServicerContext) -> bool:
        return bool(context.is_active()) and not self._stopping.is_set()

    def check_drives(self) -> None:
        """Raises PreconditionError where runs are only read."""
        if not self._orchestrator.drive:
            raise PreconditionError(
                f"nobody drives the runs of {self._store.uri} here: start `hpn serve orchestrator --store "
                f"{self._store.uri}` and give its address with --orchestrator"
            )

    def _change(self, driver: RunDriver, action: Callable[[], None]) -> None:
        """Carry out a decision; if another orchestrator wrote to the run's log, look first what."""
        self.check_drives()
        for _ in range(TRIES):
            try:
                with driver.changed:
                    action()
            except LogConflictError:
                self._orchestrator.catch_up(driver)
            else:
                self._orchestrator.adopt(driver.status.run_id)
                return
        raise UnavailableError(ALONE)


def driver_for_caller(orchestrator: Orchestrator, run_id: str) -> RunDriver:
    """The driver of a run. Raises NotFoundError, in the same words for no run and for another project's."""
    who = caller()
    try:
        driver = orchestrator.driver(run_id)
    except NotFoundError:
        if who.projects is not None:
            who.check_sees("", run_id)
        raise
    who.check_sees(driver.status.project, run_id)
    return driver


def watch(
    driver: RunDriver, after_event: int, progress: bool, goes_on: Callable[[], bool]
) -> Iterator[pipelines_pb2.RunEvent]:
    """Events of a run after a number, until the run is final or `goes_on` says no.

    Each comes with the job or gate as it was right after it, so a late watcher sees what an early
    one saw: the state is folded again beside the driver's own.
    """
    status = RunStatus.fresh(driver.status.run_id, driver.status.written, driver.status.spec)
    position = 0
    told: dict[str, Any] = {}
    while goes_on():
        with driver.changed:
            while True:
                events = driver.events[position:]
                news = {n: p for n, p in driver.progress.items() if progress and told.get(n) is not p}
                final = driver.status.phase in RUN_FINAL
                if events or news or final or not goes_on():
                    break
                driver.changed.wait(WATCH_WAIT_S)
        for event in events:
            status.apply(event)
            if event.number > after_event:
                yield event_message(driver.store, status, event)
        position += len(events)
        for name, document in news.items():
            told[name] = document
            if status.jobs[name].phase is JobPhase.RUNNING:
                yield progress_event(driver.store, status, name, document)
        if final:
            return


def _run_spec(message: pipelines_pb2.PipelineSpec) -> dict[str, Any]:
    if not message.yaml.strip():
        raise UserError("pipeline.yaml is empty", [("pipeline.yaml", "the pipeline's text")])
    return {
        "yaml": message.yaml,
        "parameters": dict(message.parameters),
        "source_name": message.source_name,
        "base_uri": message.base_uri,
    }
