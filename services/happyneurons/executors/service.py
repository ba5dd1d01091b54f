"""Executor `service`: another process's StageService (`hpn-stage serve`), over gRPC.

The server must reach the same store. Our handle is the job's key; the server's own attempts are
found in the store like everybody's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from happyneurons.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_TRY_AGAIN,
    EXIT_USAGE,
    HappyError,
    NotFoundError,
    StoreError,
    UnavailableError,
    UserError,
)
from happyneurons.executors.base import Capacity, ProcessReport, ProcessState, Submission
from happyneurons.jobs.spec import Resources, load_spec, parse_job_uri
from happyneurons.rpc.access import Access
from happyneurons.rpc.client import call, connect
from happyneurons.rpc.convert import job_spec_message
from happyneurons.v1 import jobs_pb2, stage_service_pb2, stage_service_pb2_grpc

TIMEOUT_S = 10.0

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
    """Jobs of one stage server. A server that is away is UNKNOWN, not a failure: heartbeats decide."""

    kind = "service"
    image_digest = ""

    def __init__(self, address: str, access: Access | None = None) -> None:
        """access: how to get into a secured server; by default what the environment says."""
        self.address = address
        self._channel = connect(address, access)
        self._stub = stage_service_pb2_grpc.StageServiceStub(self._channel)
        self._description: stage_service_pb2.DescribeResponse | None = None

    def _call(self, method: Any, request: Any) -> Any:
        return call(method, request, timeout_s=TIMEOUT_S, peer=f"the stage server at {self.address}")

    def _describe(self) -> stage_service_pb2.DescribeResponse:
        if self._description is None:
            self._description = self._call(self._stub.Describe, stage_service_pb2.DescribeRequest())
        return self._description

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
        job = self._call(self._stub.SubmitJob, request).job
        if job.key != key:
            raise UserError(
                f"the stage server at {self.address} gives this job another key: its stage {spec.stage} or its image "
                "is another version than the orchestrator's"
            )
        return key

    def poll(self, handles: Iterable[str]) -> Mapping[str, ProcessReport]:
        reports = {}
        for handle in handles:
            try:
                job = self._call(self._stub.GetJob, stage_service_pb2.GetJobRequest(key=handle)).job
            except (UnavailableError, StoreError, NotFoundError) as error:
                reports[handle] = ProcessReport(ProcessState.UNKNOWN, detail=str(error))
                continue
            reports[handle] = _report(job)
        return reports

    def cancel(self, handle: str) -> None:
        request = stage_service_pb2.CancelJobRequest(key=handle, reason="cancelled by the orchestrator")
        with contextlib.suppress(NotFoundError):  # nothing to cancel
            self._call(self._stub.CancelJob, request)

    def explain(self, handle: str) -> str:
        report = self.poll([handle])[handle]
        return report.detail or f"the stage server at {self.address} says {report.state.value}"

    def capacity(self) -> Capacity:
        self._description = None
        try:
            server = self._describe()
        except HappyError as error:
            return Capacity(problem=str(error))
        return Capacity(server.cores, server.memory_gb)

    def pool_status(self) -> None:
        return None

    def close(self) -> None:
        self._channel.close()


def _report(job: jobs_pb2.Job) -> ProcessReport:
    state = STATES.get(job.state, ProcessState.UNKNOWN)
    code = None
    if job.state == jobs_pb2.JOB_STATE_SUCCEEDED:
        code = EXIT_OK
    elif state is ProcessState.EXITED:
        code = EXIT_CODES.get(job.failure.kind, EXIT_FAILED)
    return ProcessReport(state, code, job.failure.message or job.waiting_for)
