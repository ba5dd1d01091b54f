"""StageService: the stages of an image over gRPC (`hpn-stage serve`).

Attempts run in processes of their own and outlive the server; their state is in the store. Errors
become statuses in happyneurons.rpc.server.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from pydantic import ValidationError

from happyneurons._version import __version__
from happyneurons.errors import ConflictError, NotFoundError, PermissionDeniedError, UnavailableError, UserError
from happyneurons.jobs.attempts import owner_id
from happyneurons.jobs.locations import misplaced
from happyneurons.jobs.spec import JobSpec, Resources, make_spec
from happyneurons.jobs.stage import Stage
from happyneurons.rpc.auth.server import Security
from happyneurons.rpc.convert import from_struct, resources_from_message, stage_message
from happyneurons.rpc.logs import tail_log
from happyneurons.rpc.metrics_server import MetricsServer, new_registry
from happyneurons.rpc.server import RpcServer, Service, write_port_file
from happyneurons.rpc.stop_signal import StopSignal
from happyneurons.stages import load_stage, loadable_stages
from happyneurons.store.documents import Store
from happyneurons.store.roots import VARIABLE, Roots, as_variable
from happyneurons.v1 import jobs_pb2, stage_service_pb2_grpc
from happyneurons.v1 import stage_service_pb2 as pb
from happyneurons.worker.job_view import JobView, find_spec
from happyneurons.worker.stage_jobs import CANCELLED, StageJobs
from happyneurons.worker.stage_metrics import StageServerCollector

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["StageService"].full_name
REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}\Z")
PAGE_SIZE, LARGEST_PAGE = 100, 500
PAGE_TOKEN = re.compile(r"after:([0-9a-f]+)\Z")
WATCH_S = 0.5


class StageServicer(stage_service_pb2_grpc.StageServiceServicer):
    """`stopping` ends the streams."""

    def __init__(self, jobs: StageJobs, stopping: threading.Event, security: Security | None = None) -> None:
        self._jobs, self._store, self._stopping = jobs, jobs.store, stopping
        self._roots = None if security is None else security.roots(jobs.store)
        self._stages = () if security is None else security.config.stages

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeResponse:
        response = pb.DescribeResponse(
            package_version=__version__,
            image_digest=os.environ.get("HPN_IMAGE_DIGEST", ""),
            store_uri=self._store.uri,
            cores=self._jobs.pool.cores,
            memory_gb=self._jobs.pool.memory_gb,
        )
        if request.stage:
            response.stages.append(stage_message(_stage(request.stage)))
            return response
        response.stages.extend(stage_message(stage) for stage in loadable_stages())
        return response

    def SubmitJob(self, request: pb.SubmitJobRequest, context: grpc.ServicerContext) -> pb.SubmitJobResponse:
        if request.request_id and not REQUEST_ID.match(request.request_id):
            raise _wrong("request_id", "up to 128 characters of A-Z a-z 0-9 _ . : -")
        if self._stages and request.spec.stage not in self._stages:
            raise PermissionDeniedError(
                f"stage {request.spec.stage!r}: this server runs {', '.join(self._stages)} only"
            )
        spec = _job_spec(request.spec, self._roots)
        resources = _resources(request.spec.resources)
        if request.request_id and not self._first(request.request_id, spec.key):
            view = self._known(spec.key)
            if view is not None:
                return pb.SubmitJobResponse(job=view.job)
        return pb.SubmitJobResponse(job=self._jobs.submit(spec, resources, request.retry_quarantined).job)

    def GetJob(self, request: pb.GetJobRequest, context: grpc.ServicerContext) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=self._jobs.view(request.key).job)

    def ListJobs(self, request: pb.ListJobsRequest, context: grpc.ServicerContext) -> pb.ListJobsResponse:
        after = ""
        if request.page_token:
            match = PAGE_TOKEN.match(request.page_token)
            if match is None:
                raise _wrong("page_token", "next_page_token of the page before, or none")
            after = match[1]
        if not 0 <= request.page_size <= LARGEST_PAGE:
            raise _wrong("page_size", f"0 to {LARGEST_PAGE}")
        size = request.page_size or PAGE_SIZE
        keys = [key for key in self._store.folders("jobs") if key > after]
        response = pb.ListJobsResponse()
        # A page ends when it is full, or when it took as much reading as the largest one does.
        for i, key in enumerate(keys):
            if len(response.jobs) == size or i == LARGEST_PAGE:
                response.next_page_token = f"after:{keys[i - 1]}"
                break
            job = self._wanted(key, request)
            if job is not None:
                response.jobs.append(job)
        return response

    def WatchJob(self, request: pb.WatchJobRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchJobResponse]:
        last = request.after_event
        while context.is_active():
            view = self._jobs.view(request.key)
            if view.event_number > last:
                last = view.event_number
                yield pb.WatchJobResponse(event=view.event())
            if view.final:
                return
            if self._stopping.wait(WATCH_S):
                raise UnavailableError("the stage server is stopping; watch again after the last event seen")

    def CancelJob(self, request: pb.CancelJobRequest, context: grpc.ServicerContext) -> pb.CancelJobResponse:
        return pb.CancelJobResponse(job=self._jobs.cancel(request.key, request.reason or CANCELLED).job)

    def TailLogs(self, request: pb.TailLogsRequest, context: grpc.ServicerContext) -> Iterator[pb.TailLogsResponse]:
        find_spec(self._store, request.key)
        for chunk in tail_log(
            self._store, request.key, request.attempt, request.follow, request.resume_token,
            alive=lambda: context.is_active() and not self._stopping.is_set(),
        ):  # fmt: skip
            yield pb.TailLogsResponse(chunk=chunk)
        if request.follow and self._stopping.is_set():
            raise UnavailableError("the stage server is stopping; go on from the last resume_token")

    # --- parts -----------------------------------------------------------------------------------

    def _first(self, request_id: str, key: str) -> bool:
        """Take the request id for this job; False if it has it already. Raises ConflictError."""
        path = f"requests/jobs/{hashlib.sha256(request_id.encode()).hexdigest()}.json"
        if self._store.create_json(path, {"key": key, "by": owner_id()}):
            return True
        if self._store.get_json(path)["key"] != key:
            raise ConflictError(f"request id {request_id!r} was used for another job")
        return False

    def _known(self, key: str) -> JobView | None:
        """The job as its first request left it, or None if that was lost before it was queued."""
        try:
            view = self._jobs.view(key)
        except NotFoundError:
            return None
        return None if view.job.state == jobs_pb2.JOB_STATE_WAITING else view

    def _wanted(self, key: str, request: pb.ListJobsRequest) -> jobs_pb2.Job | None:
        try:
            if request.stage and find_spec(self._store, key).stage != request.stage:
                return None
            job = self._jobs.view(key).job
        except NotFoundError:
            return None  # a folder without a spec: somebody is about to write it
        return job if not request.states or job.state in request.states else None


def _wrong(field: str, expected: str) -> UserError:
    return UserError(f"{field}: expected {expected}", [(field, expected)])


def _stage(name: str) -> type[Stage[Any]]:
    try:
        return load_stage(name)
    except UserError as error:
        raise NotFoundError(str(error)) from error


def _job_spec(message: jobs_pb2.JobSpec, roots: Roots | None = None) -> JobSpec:
    """The spec of a request, with its key. Raises UserError with paths from the request's root.

    roots: where it may read; None: anywhere.
    """
    if message.allow_failed_tasks < 0:
        raise _wrong("spec.allow_failed_tasks", "0 or more")
    stage = _stage(message.stage)
    inputs, params = {name: list(uris.uris) for name, uris in message.inputs.items()}, from_struct(message.params)
    try:
        if found := misplaced(stage, inputs, params, roots):
            text = "; ".join(f"{path}: {expected}" for path, expected in found)
            raise UserError(f"stage {stage.name}: {text}", found)
        return make_spec(
            stage,
            inputs=inputs,
            params=params,
            allow_failed_tasks=message.allow_failed_tasks,
        )
    except UserError as error:
        error.violations = [(f"spec.{path}", expected) for path, expected in error.violations]
        raise


def _resources(message: jobs_pb2.Resources) -> Resources:
    try:
        return resources_from_message(message)
    except ValidationError as error:
        found = [(f"spec.resources.{'.'.join(str(p) for p in e['loc'])}", e["msg"]) for e in error.errors()]
        raise UserError("; ".join(f"{path}: {text}" for path, text in found), found) from None


class StageServer:
    """The service on one address, with the thread that sees to its jobs. A context manager."""

    def __init__(
        self,
        store: Store,
        address: str,
        *,
        cores: int | None = None,
        memory_gb: float | None = None,
        max_queued: int | None = None,
        drain_s: float | None = None,
        metrics_address: str | None = None,
        security: Security | None = None,
    ) -> None:
        """cores, memory_gb: what jobs may use together (default: all). Raises UserError.

        max_queued: jobs that may wait for them (default: no limit). drain_s: at the end attempts are asked to stop
        and waited for so long; by default they go on by themselves. metrics_address: host:port, for Prometheus.
        security: who may do what; None: everybody.
        """
        store.check_writable()
        stopping = threading.Event()
        self._drain_s = drain_s
        self._jobs = StageJobs(store, cores, memory_gb, max_queued=max_queued)
        servicer = StageServicer(self._jobs, stopping, security)
        service = Service(
            SERVICE_NAME, lambda server: stage_service_pb2_grpc.add_StageServiceServicer_to_server(servicer, server)
        )
        registry = new_registry()
        registry.register(StageServerCollector(self._jobs))
        self._rpc = RpcServer([service], address, registry=registry, stopping=stopping, security=security)
        tls = None if security is None else security.metrics_tls
        self._metrics = None if metrics_address is None else MetricsServer(metrics_address, registry, tls)

    @property
    def metrics_address(self) -> str | None:
        return None if self._metrics is None else self._metrics.address

    @property
    def address(self) -> str:
        """`host:port` that clients connect to."""
        return self._rpc.address

    def __enter__(self) -> StageServer:
        self._jobs.__enter__()
        self._rpc.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._drain_s is not None:
            self._jobs.drain(self._drain_s)  # it goes on answering, and takes nothing new
        self._rpc.stop()
        if self._metrics is not None:
            self._metrics.close()
        self._jobs.__exit__()


def serve_stage(
    store_uri: str,
    address: str,
    *,
    cores: int | None,
    memory_gb: float | None,
    max_queued: int | None = None,
    drain_s: float | None = None,
    metrics_address: str | None = None,
    port_file: Path | None = None,
    security_file: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or SIGINT; attempts at work go on, or with `drain_s` are stopped.

    address, metrics_address: host:port (port 0: any). max_queued, drain_s: see StageServer. port_file: gets the
    bound address once it serves, in one step. security_file: docs/security.md.
    """
    stop = StopSignal()
    store = Store(store_uri)
    security = None if security_file is None else Security.load(security_file)
    if security is not None:
        os.environ[VARIABLE] = as_variable(security.roots(store))  # for the ranks that are started from here
    with StageServer(
        store, address, cores=cores, memory_gb=memory_gb, max_queued=max_queued, drain_s=drain_s,
        metrics_address=metrics_address, security=security,
    ) as server:  # fmt: skip
        if port_file is not None:
            write_port_file(port_file, server.address)
        metrics = f", metrics at http://{server.metrics_address}/metrics" if server.metrics_address else ""
        say(f"stages of this image at {server.address}, store {store.uri}{metrics}")
        stop.wait()
        say("stopping; attempts at work " + ("go on" if drain_s is None else f"get {drain_s:g} s to stop"))
