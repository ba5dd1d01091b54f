"""gRPC plumbing, on a real server: what is raised there arrives here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from happyneurons import errors
from happyneurons.rpc.client import call, connect, resume, stream
from happyneurons.rpc.errors import RETRY_AFTER_S
from happyneurons.rpc.limits import MAX_MESSAGE_BYTES
from happyneurons.rpc.server import RpcServer, Service
from happyneurons.v1 import jobs_pb2, stage_service_pb2, stage_service_pb2_grpc

NAME = stage_service_pb2.DESCRIPTOR.services_by_name["StageService"].full_name
ERRORS: dict[str, Exception] = {
    "user": errors.UserError(
        "stage align: params.x: too large", [("params.x", "at most 5"), ("inputs.stack", "missing")]
    ),
    "conflict": errors.ConflictError("request r was used for another job"),
    "precondition": errors.PreconditionError("asks for 9 cores, there are 2"),
    "access": errors.StoreAccessError("s3://b/x: access denied"),
    "missing": errors.NotFoundError("job k: not found"),
    "store": errors.StoreError("s3://b/x: no answer"),
    "drained": errors.DrainedError("drained: got SIGTERM"),
    "superseded": errors.SupersededError("another attempt took over"),
    "failed": errors.JobFailedError("3 tasks failed"),
    "bug": ZeroDivisionError("secret detail"),
}
CODES = {
    "user": "INVALID_ARGUMENT",
    "conflict": "ALREADY_EXISTS",
    "precondition": "FAILED_PRECONDITION",
    "access": "FAILED_PRECONDITION",
    "missing": "NOT_FOUND",
    "store": "UNAVAILABLE",
    "drained": "UNAVAILABLE",
    "superseded": "ABORTED",
    "failed": "FAILED_PRECONDITION",
    "bug": "INTERNAL",
}


class Failing(stage_service_pb2_grpc.StageServiceServicer):
    """Raises what the key asks for; streams end after `broken_after` events with the server away."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.watching, self.left = threading.Event(), threading.Event()
        self.stopping = threading.Event()

    def GetJob(self, request: Any, context: grpc.ServicerContext) -> stage_service_pb2.GetJobResponse:
        count = self.calls[request.key] = self.calls.get(request.key, 0) + 1
        if request.key == "flaky" and count < 3:
            raise errors.StoreError("away for a moment")
        if request.key == "abort":
            context.abort(grpc.StatusCode.OUT_OF_RANGE, "by itself")
        if request.key in ERRORS:
            raise ERRORS[request.key]
        return stage_service_pb2.GetJobResponse(job=jobs_pb2.Job(key=request.key))

    def WatchJob(self, request: Any, context: grpc.ServicerContext) -> Iterator[stage_service_pb2.WatchJobResponse]:
        if request.key in ERRORS:
            raise ERRORS[request.key]
        for number in range(request.after_event + 1, 7):
            yield stage_service_pb2.WatchJobResponse(event=jobs_pb2.JobEvent(number=number))
            if request.key == "breaking" and number % 2 == 0:
                raise errors.UnavailableError("going down")
        if request.key == "endless":
            context.add_callback(self.left.set)
            self.watching.set()
            self.stopping.wait()


@pytest.fixture
def servicer() -> Failing:
    return Failing()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def server(servicer: Failing, registry: CollectorRegistry) -> Iterator[RpcServer]:
    service = Service(NAME, lambda s: stage_service_pb2_grpc.add_StageServiceServicer_to_server(servicer, s))
    server = RpcServer([service], "127.0.0.1:0", registry=registry, stopping=servicer.stopping)
    server.start()
    yield server
    server.stop(0)


@pytest.fixture
def channel(server: RpcServer) -> Iterator[grpc.Channel]:
    with connect(server.address) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    return stage_service_pb2_grpc.StageServiceStub(channel)


def _get(key: str) -> stage_service_pb2.GetJobRequest:
    return stage_service_pb2.GetJobRequest(key=key)


def _watch(key: str, after: int | None = None) -> stage_service_pb2.WatchJobRequest:
    return stage_service_pb2.WatchJobRequest(key=key, after_event=after or 0)


@pytest.mark.parametrize("kind", [k for k in ERRORS if k != "bug"])
@pytest.mark.parametrize("streaming", [False, True])
def test_errors_arrive_as_they_were_raised(stub: Any, kind: str, streaming: bool) -> None:
    with pytest.raises(errors.HappyError) as caught:
        if streaming:
            list(stream(stub.WatchJob, _watch(kind)))
        else:
            call(stub.GetJob, _get(kind))
    sent, got = ERRORS[kind], caught.value
    assert isinstance(sent, errors.HappyError)
    assert type(got) is type(sent)
    assert str(got) == str(sent)
    assert got.exit_code == sent.exit_code
    if isinstance(sent, errors.UserError):
        assert isinstance(got, errors.UserError)
        assert got.violations == sent.violations


@pytest.mark.parametrize("kind", ERRORS)
def test_codes_and_details_for_other_clients(stub: Any, kind: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetJob(_get(kind), timeout=10)
    assert caught.value.code().name == CODES[kind]
    status = rpc_status.from_call(caught.value)
    names = [d.type_url.rsplit(".", 1)[-1] for d in status.details]
    assert ("RetryInfo" in names) == (kind in ("store", "drained", "superseded"))
    assert ("BadRequest" in names) == (kind == "user")
    for detail in status.details:
        bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(bad):
            assert [(v.field, v.description) for v in bad.field_violations] == ERRORS["user"].violations  # type: ignore[attr-defined]
        if detail.Unpack(retry):
            assert retry.retry_delay.seconds == RETRY_AFTER_S


def test_bugs_do_not_leak(stub: Any) -> None:
    with pytest.raises(errors.HappyError, match="internal error; the server's log says more") as caught:
        call(stub.GetJob, _get("bug"))
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == errors.EXIT_FAILED


def test_a_method_may_abort_by_itself(stub: Any) -> None:
    with pytest.raises(errors.UserError, match="by itself"):
        call(stub.GetJob, _get("abort"))


def test_what_is_away_for_a_moment_is_called_again(stub: Any, servicer: Failing) -> None:
    assert call(stub.GetJob, _get("flaky")).job.key == "flaky"
    assert servicer.calls["flaky"] == 3


def test_streams_resume_where_they_broke(stub: Any) -> None:
    def begin(after: int | None) -> Iterator[Any]:
        return stream(stub.WatchJob, _watch("breaking", after))

    numbers = [answer.event.number for answer in resume(begin, lambda answer: answer.event.number)]
    assert numbers == [1, 2, 3, 4, 5, 6]


def test_a_reader_that_leaves_ends_the_stream(stub: Any, servicer: Failing) -> None:
    answers = stream(stub.WatchJob, _watch("endless"))
    assert [next(answers).event.number for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    assert servicer.watching.wait(10)
    answers.close()  # type: ignore[attr-defined]
    assert servicer.left.wait(10)


def test_a_call_past_its_deadline(stub: Any) -> None:
    with pytest.raises(errors.UnavailableError, match="did not answer in time"):
        list(stream(stub.WatchJob, _watch("endless"), timeout_s=0.5))


def test_messages_have_a_bound(stub: Any) -> None:
    with pytest.raises(errors.UserError, match="(?i)larger than max"):
        call(stub.GetJob, _get("x" * (MAX_MESSAGE_BYTES + 1)))


def test_calls_that_the_server_lacks(stub: Any) -> None:
    with pytest.raises(errors.UserError, match="does not know this call"):
        call(stub.ListJobs, stage_service_pb2.ListJobsRequest())


def test_nobody_there() -> None:
    with (
        connect("127.0.0.1:1") as channel,
        pytest.raises(errors.UnavailableError, match="127.0.0.1:1 does not answer .* is it running") as caught,
    ):
        call(stage_service_pb2_grpc.StageServiceStub(channel).GetJob, _get("k"), peer="127.0.0.1:1")
    assert caught.value.exit_code == errors.EXIT_TRY_AGAIN


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", "host:port"])
def test_addresses_without_a_port(address: str) -> None:
    with pytest.raises(errors.UserError, match="write host:port"):
        connect(address)


def test_a_port_that_is_taken(server: RpcServer) -> None:
    with pytest.raises(errors.UserError, match="cannot listen on"):
        RpcServer([], server.address)


def test_health(channel: grpc.Channel, server: RpcServer) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", NAME):
        assert (
            stub.Check(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING
        )
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=NAME))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    stopper = threading.Thread(target=server.stop, args=(10,))
    stopper.start()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    stopper.join(20)
    assert not stopper.is_alive()


def test_running_streams_end_when_the_server_stops(stub: Any, server: RpcServer, servicer: Failing) -> None:
    answers = stream(stub.WatchJob, _watch("endless"))
    assert next(answers).event.number == 1
    stopper = threading.Thread(target=server.stop, args=(60,))
    stopper.start()
    assert [answer.event.number for answer in answers] == [2, 3, 4, 5, 6], "what was under way is still delivered"
    stopper.join(20)
    assert not stopper.is_alive(), "nobody waits for the end of the grace"


def test_reflection_knows_the_service(channel: grpc.Channel) -> None:
    """A client that has no generated code: names, types and a call made from them."""
    database = ProtoReflectionDescriptorDatabase(channel)
    assert NAME in database.get_services()
    descriptor = DescriptorPool(database).FindServiceByName(NAME)
    assert {m.name for m in descriptor.methods} >= {"Describe", "SubmitJob", "WatchJob", "CancelJob", "TailLogs"}


def test_metrics(stub: Any, registry: CollectorRegistry) -> None:
    call(stub.GetJob, _get("fine"))
    call(stub.GetJob, _get("fine"))
    for kind in ("user", "bug"):
        with pytest.raises(errors.HappyError):
            call(stub.GetJob, _get(kind))
    list(stream(stub.WatchJob, _watch("short")))

    def calls(method: str, code: str) -> float | None:
        labels = {"service": NAME, "method": method, "code": code}
        return registry.get_sample_value("happyneurons_grpc_calls_total", labels)

    assert calls("GetJob", "OK") == 2
    assert calls("GetJob", "INVALID_ARGUMENT") == 1
    assert calls("GetJob", "INTERNAL") == 1
    assert calls("WatchJob", "OK") == 1
    labels = {"service": NAME, "method": "GetJob"}
    assert registry.get_sample_value("happyneurons_grpc_call_seconds_count", labels) == 4
    assert registry.get_sample_value("happyneurons_grpc_calls_in_flight", labels) == 0
