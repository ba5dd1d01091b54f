"""Executor `service`: another process's StageService (`hpn-stage serve`), over gRPC.

The server must reach the same store. Our handle is the job's key, and with many servers where it is;
a server's own attempts are found in the store like everybody's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from happyneurons.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_TRY_AGAIN,
    EXIT_USAGE,
    HappyError,
    NotFoundError,
    OverloadedError,
    StoreError,
    UnavailableError,
    UserError,
)
from happyneurons.executors.base import Capacity, ProcessReport, ProcessState, Submission
from happyneurons.executors.endpoints import Endpoints, Resolver, resolve
from happyneurons.jobs.spec import Resources, load_spec, parse_job_uri
from happyneurons.rpc.access import Access
from happyneurons.rpc.convert import job_spec_message
from happyneurons.v1 import jobs_pb2, stage_service_pb2
from happyneurons.v1.stage_service_pb2 import DescribeRequest

T = TypeVar("T")

STATES = {
    jobs_pb2.JOB_STATE_WAITING: ProcessState.UNKNOWN,  # known to the store, but in no queue of the server
    jobs_pb2.JOB_STATE_QUEUED: ProcessState.QUEUED,
    jobs_pb2.JOB_STATE_RUNNING: ProcessState.RUNNING,
    jobs_pb2.JOB_STATE_SUCCEEDED: ProcessState.EXITED,
    jobs_pb2.JOB_STATE_FAILED: ProcessState.EXITED,
    jobs_pb2.JOB_STATE_CANCELLED: ProcessState.EXITED,
}
EXIT_CODES = {
    jobs_pb2.FAILURE_KIND_USER: EXIT_USAGE,
    jobs_pb2.FAILURE_KIND_INFRASTRUCTURE: EXIT_TRY_AGAIN,
}


class ServiceExecutor:
    """Jobs of one stage service. A server that is away is UNKNOWN, not a failure: heartbeats decide.

    At an address with many servers each job goes to the next one that has room; those that are away or
    refuse it are passed over.
    """

    kind = "service"
    image_digest = ""

    def __init__(self, address: str, resolver: Resolver = resolve, *, access: Access | None = None) -> None:
        """address: host:port, or dns:///NAME:PORT for every server that the name stands for. access: how to get into
        secured ones; by default what the environment says. Raises UserError."""
        self.address = address
        self._servers = Endpoints(address, resolver, access)
        self._description: stage_service_pb2.DescribeResponse | None = None

    def _describe(self) -> stage_service_pb2.DescribeResponse:
        """What a server says of itself: they are alike."""
        if self._description is None:
            self._description = self._any(lambda server: self._ask(server, "Describe", DescribeRequest()))
        return self._description

    def _ask(self, server: str, method: str, request: Any) -> Any:
        return self._servers.ask(server, method, request)

    def _any(self, action: Callable[[str], T]) -> T:
        """What the first server says that can say it. Raises UnavailableError if none can, OverloadedError if some
        would later."""
        errors: list[UnavailableError] = []
        for server in self._servers.all():
            try:
                return action(server)
            except UnavailableError as error:
                errors.append(error)
        busy = next((error for error in errors if isinstance(error, OverloadedError)), None)
        if len(errors) == 1:
            raise errors[0]
        if busy is not None:
            raise OverloadedError(f"none of the stage servers at {self.address} has room now", busy.retry_after_s)
        # One of the reasons, the same at each try: what a job waits for is written down when it changes.
        why = min(str(error) for error in errors)
        raise UnavailableError(f"none of {len(errors)} stage servers at {self.address} can take it: {why}")

    def refuse(self, stage: str, resources: Resources) -> str | None:
        try:
            server = self._describe()
        except HappyError:
            return None  # it may come back: nobody can say never
        if stage not in [s.name for s in server.stages]:
            return f"the stage server at {self.address} has no stage {stage!r}"
        if resources.cores > server.cores:
            return f"needs {resources.cores} cores; the stage server at {self.address} gives {server.cores}"
        if (resources.memory_gb or 0) > server.memory_gb:
            needs = f"needs {resources.memory_gb:g} GB of memory"
            return f"{needs}; the stage server at {self.address} gives {server.memory_gb:.3g} GB"
        if resources.gpus_per_rank:
            return f"needs GPUs; the stage server at {self.address} was given none"
        return None

    def resources(self, stage: str, asked: Resources) -> Resources:
        return asked

    def submit(self, submission: Submission) -> str:
        store, key = parse_job_uri(submission.job_uri)
        server = self._describe()
        if server.store_uri != store.uri:
            raise UserError(
                f"the stage server at {self.address} works on {server.store_uri}, this orchestrator on {store.uri}: "
                "both need the same store"
            )
        spec = load_spec(store, key)
        inputs = {name: [r.uri for r in refs] for name, refs in spec.inputs.items()}
        request = stage_service_pb2.SubmitJobRequest(
            spec=job_spec_message(spec.stage, inputs, spec.params, submission.resources, spec.allow_failed_tasks),
            retry_quarantined=submission.retry_quarantined,
        )

        def submit_to(server: str) -> str:
            job = self._ask(server, "SubmitJob", request).job
            if job.key != key:
                # While an upgrade goes on this is so for a time: the job waits for a server of its version.
                raise UnavailableError(
                    f"the stage server at {server} gives this job another key: its stage {spec.stage} or its image "
                    "is another version than the orchestrator's; both need the same"
                )
            return f"{key}@{server}" if self._servers.spread else key

        return self._any(submit_to)

    def _place(self, handle: str) -> tuple[str, str]:
        """Key and server of a job. Raises UnavailableError."""
        key, _, server = handle.partition("@")
        return key, server or self._servers.all()[0]

    def poll(self, handles: Iterable[str]) -> Mapping[str, ProcessReport]:
        reports = {}
        for handle in handles:
            try:
                key, server = self._place(handle)
                job = self._ask(server, "GetJob", stage_service_pb2.GetJobRequest(key=key)).job
            except (UnavailableError, StoreError, NotFoundError) as error:
                reports[handle] = ProcessReport(ProcessState.UNKNOWN, detail=str(error))
                continue
            reports[handle] = _report(job)
        return reports

    def cancel(self, handle: str) -> None:
        key, server = self._place(handle)
        request = stage_service_pb2.CancelJobRequest(key=key, reason="cancelled by the orchestrator")
        with contextlib.suppress(NotFoundError):  # nothing to cancel
            self._ask(server, "CancelJob", request)

    def explain(self, handle: str) -> str:
        report = self.poll([handle])[handle]
        return report.detail or f"the stage server at {self.address} says {report.state.value}"

    def capacity(self) -> Capacity:
        self._description = None
        cores, memory_gb, problem = 0, 0.0, ""
        try:
            for name in self._servers.all():
                try:
                    server = self._ask(name, "Describe", DescribeRequest())
                except HappyError as error:
                    problem = str(error)
                    continue
                self._description = server
                cores, memory_gb = cores + server.cores, memory_gb + server.memory_gb
        except HappyError as error:
            problem = str(error)
        return Capacity(cores, memory_gb) if cores else Capacity(problem=problem)

    def pool_status(self) -> None:
        return None

    def lead(self, leads: bool) -> None:
        return None

    def close(self) -> None:
        self._servers.close()


def _report(job: jobs_pb2.Job) -> ProcessReport:
    state = STATES.get(job.state, ProcessState.UNKNOWN)
    code = None
    if job.state == jobs_pb2.JOB_STATE_SUCCEEDED:
        code = EXIT_OK
    elif state is ProcessState.EXITED:
        code = EXIT_CODES.get(job.failure.kind, EXIT_FAILED)
    return ProcessReport(state, code, job.failure.message or job.waiting_for)
