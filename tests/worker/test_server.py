"""StageService, over gRPC, with real attempts behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from happyneurons.errors import ConflictError, HappyError, NotFoundError, PreconditionError, UserError
from happyneurons.jobs.attempts import EndState, attempt_end, attempt_numbers, request_cancel
from happyneurons.jobs.spec import Resources
from happyneurons.rpc.client import call, connect, stream
from happyneurons.rpc.convert import job_spec_message
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store
from happyneurons.v1 import jobs_pb2, stage_service_pb2_grpc
from happyneurons.v1 import stage_service_pb2 as pb
from happyneurons.worker.local import run_stage
from happyneurons.worker.server import SERVICE_NAME, StageServer

from .waiting import wait_for

CORES = 2
FINAL = (jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED)
ALL = Resources(threads_per_rank=CORES)


class Client:
    """The calls of StageService, with our errors."""

    def __init__(self, address: str) -> None:
        self.channel = connect(address)
        self._stub = stage_service_pb2_grpc.StageServiceStub(self.channel)

    def describe(self, stage: str = "") -> pb.DescribeResponse:
        return call(self._stub.Describe, pb.DescribeRequest(stage=stage))

    def submit(
        self, request_id: str = "", resources: Resources | None = None, stage: str = "sandbox",
        allow_failed_tasks: int = 0, retry_quarantined: bool = False, **params: Any,
    ) -> jobs_pb2.Job:  # fmt: skip
        spec = job_spec_message(stage, {}, params, resources or Resources(), allow_failed_tasks)
        request = pb.SubmitJobRequest(request_id=request_id, spec=spec, retry_quarantined=retry_quarantined)
        return call(self._stub.SubmitJob, request).job

    def get(self, key: str) -> jobs_pb2.Job:
        return call(self._stub.GetJob, pb.GetJobRequest(key=key)).job

    def list(self, **fields: Any) -> pb.ListJobsResponse:
        return call(self._stub.ListJobs, pb.ListJobsRequest(**fields))

    def watch(self, key: str, after_event: int = 0) -> Iterator[jobs_pb2.JobEvent]:
        for answer in stream(self._stub.WatchJob, pb.WatchJobRequest(key=key, after_event=after_event), timeout_s=60):
            yield answer.event

    def end(self, key: str) -> jobs_pb2.Job:
        """The job at its end."""
        return list(self.watch(key))[-1].job

    def cancel(self, key: str, reason: str = "") -> jobs_pb2.Job:
        return call(self._stub.CancelJob, pb.CancelJobRequest(key=key, reason=reason)).job

    def tail(self, key: str, **fields: Any) -> list[jobs_pb2.LogChunk]:
        return [a.chunk for a in stream(self._stub.TailLogs, pb.TailLogsRequest(key=key, **fields), timeout_s=60)]


@pytest.fixture
def serve(store: Store) -> Iterator[Callable[[], Client]]:
    """Start a server on the store, as often as wanted; the one before is stopped."""
    running: list[tuple[StageServer, Client]] = []

    def stop() -> None:
        while running:
            server, client = running.pop()
            client.channel.close()
            server.__exit__()

    def start() -> Client:
        stop()
        server = StageServer(store, "127.0.0.1:0", cores=CORES, memory_gb=4).__enter__()
        running.append((server, Client(server.address)))
        return running[0][1]

    yield start
    stop()


@pytest.fixture
def client(serve: Callable[[], Client]) -> Client:
    return serve()


def started(control: Path, task: int) -> int:
    return len(list(control.glob(f"started-{task}-*")))


def test_describe(client: Client, store: Store) -> None:
    answer = client.describe()
    assert {"sandbox", "montage", "align", "segment"} <= {s.name for s in answer.stages}
    assert (answer.store_uri, answer.cores, answer.memory_gb) == (store.uri, CORES, 4)
    (stage,) = client.describe("sandbox").stages
    schema = json.loads(stage.params_json_schema)
    assert schema["properties"]["tasks"]["minimum"] == 0
    assert [(o.name, o.kind) for o in stage.outputs] == [("numbers", "table")]
    with pytest.raises(NotFoundError, match="no stage named 'nosuch'"):
        client.describe("nosuch")


def test_a_job_from_its_submission_to_its_result(client: Client, serve: Callable[[], Client], control: Path) -> None:
    job = client.submit(tasks=4, control=str(control), behaviour={"2": "block"}, resources=Resources(memory_gb=1))
    assert job.state in (jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING)
    assert client.submit(tasks=4, control=str(control), behaviour={"2": "block"}).key == job.key
    events = []
    for event in client.watch(job.key):
        events.append(event)
        if event.job.state == jobs_pb2.JOB_STATE_RUNNING and event.job.progress.tasks_done == 2:
            (control / "release").touch()
    numbers = [e.number for e in events]
    assert numbers == sorted(set(numbers))
    states = list(dict.fromkeys(e.job.state for e in events))
    assert states[-2:] == [jobs_pb2.JOB_STATE_RUNNING, jobs_pb2.JOB_STATE_SUCCEEDED]
    done = events[-1].job
    assert done.metrics == {"sum": 14}
    assert done.attempt == 1
    assert done.spec.resources.memory_gb == 1
    assert done.submit_time.ToMicroseconds() <= done.start_time.ToMicroseconds() <= done.end_time.ToMicroseconds()
    assert load_artifact(done.outputs["numbers"].uri).store().get_json("table.json")["rows"] == [[14]]
    assert client.get(job.key) == done
    assert not done.reused

    again = serve()  # after a restart everything is as it was
    assert again.get(job.key) == done
    assert [e.number for e in again.watch(job.key)] == numbers[-1:]
    assert list(again.watch(job.key, numbers[-1])) == []
    assert again.submit(tasks=4, control=str(control), behaviour={"2": "block"}).reused
    assert attempt_numbers(Store(again.describe().store_uri), job.key) == [1]


def test_wrong_requests_start_nothing(client: Client, store: Store) -> None:
    with pytest.raises(UserError) as caught:
        client.submit(tasks=-1, colour="red")
    assert [path for path, _ in caught.value.violations] == ["spec.params.tasks", "spec.params.colour"]
    with pytest.raises(UserError, match="spec.resources.ranks"):
        client.submit(resources=Resources.model_construct(ranks=-1, threads_per_rank=1, gpus_per_rank=0.0,
                                                          memory_gb=None, walltime_min=None))  # fmt: skip
    with pytest.raises(NotFoundError, match="no stage named"):
        client.submit(stage="nosuch")
    with pytest.raises(PreconditionError, match="needs 3 cores .*; this machine gives 2"):
        client.submit(resources=Resources(ranks=3))
    with pytest.raises(UserError, match="request_id"):
        client.submit(request_id="not/allowed")
    assert list(store.list("jobs")) == []


@pytest.mark.parametrize("key", ["f" * 40, "", "../jobs", "."])
def test_jobs_that_are_not_there(client: Client, key: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: client.get(key), lambda: list(client.watch(key)), lambda: client.cancel(key), lambda: client.tail(key),
    ]  # fmt: skip
    for attempt in calls:
        with pytest.raises(NotFoundError, match="no such job"):
            attempt()


def test_the_same_request_is_answered_not_repeated(client: Client, serve: Callable[[], Client], store: Store) -> None:
    wish = {"tasks": 1, "behaviour": {"0": "user"}}
    key = client.submit("r1", **wish).key
    failed = client.end(key)
    assert failed.state == jobs_pb2.JOB_STATE_FAILED
    assert failed.failure.kind == jobs_pb2.FAILURE_KIND_USER
    assert failed.failure.message == "the input is wrong"
    assert client.submit("r1", **wish) == failed
    with pytest.raises(ConflictError, match="request id 'r1' was used for another job"):
        client.submit("r1", tasks=7)
    again = serve()
    assert again.submit("r1", **wish) == failed, "also after a restart"
    assert attempt_numbers(store, key) == [1]
    assert again.submit("r2", **wish).state == jobs_pb2.JOB_STATE_QUEUED, "another wish is another attempt"
    assert again.end(key).attempt == 2


def test_a_request_whose_server_died_before_it_began_is_carried_out(
    client: Client, serve: Callable[[], Client], control: Path
) -> None:
    blocking = client.submit(tasks=1, control=str(control), behaviour={"0": "block"}, resources=ALL)
    lost = client.submit("r", tasks=2)
    wait_for(lambda: started(control, 0), "the first job")
    assert "waits for 1 of 2 cores" in client.get(lost.key).waiting_for
    again = serve()
    forgotten = again.get(lost.key)
    assert forgotten.state == jobs_pb2.JOB_STATE_WAITING
    assert "submit it again" in forgotten.waiting_for
    assert again.get(blocking.key).state == jobs_pb2.JOB_STATE_RUNNING, "what is at work goes on"
    assert again.submit("r", tasks=2).state == jobs_pb2.JOB_STATE_QUEUED
    assert again.end(lost.key).state == jobs_pb2.JOB_STATE_SUCCEEDED
    (control / "release").touch()
    assert again.end(blocking.key).state == jobs_pb2.JOB_STATE_SUCCEEDED


def test_poison_tasks_are_named_and_can_be_tried_again(client: Client, control: Path) -> None:
    wish = {"tasks": 3, "control": str(control), "behaviour": {"1": "nospace"}, "allow_failed_tasks": 0}
    poison = {"tasks": 2, "behaviour": {"1": "fail"}}
    full, failing = client.submit(**wish), client.submit(**poison)
    failure = client.end(failing.key).failure
    assert failure.kind == jobs_pb2.FAILURE_KIND_TASK
    assert list(failure.quarantined_tasks) == ["work/0001"]
    assert failure.reproduce_command.endswith("--task work/0001")
    ended = client.end(full.key)
    assert ended.failure.kind == jobs_pb2.FAILURE_KIND_INFRASTRUCTURE
    assert "no space left" in ended.failure.message
    (control / "space").touch()
    assert client.submit(retry_quarantined=True, **wish).state == jobs_pb2.JOB_STATE_QUEUED
    assert client.end(full.key).state == jobs_pb2.JOB_STATE_SUCCEEDED


def test_killed_processes_fail_the_attempt_and_the_next_one_goes_on(
    client: Client, store: Store, control: Path
) -> None:
    wish = {"tasks": 6, "control": str(control), "behaviour": {"3": "die-once"}}
    key = client.submit(**wish).key
    first = list(client.watch(key))
    assert first[-1].job.state == jobs_pb2.JOB_STATE_FAILED
    assert first[-1].job.failure.kind == jobs_pb2.FAILURE_KIND_INFRASTRUCTURE
    end = wait_for(lambda: attempt_end(store, key, 1), "the attempt's end to be written down")
    assert end["state"] == EndState.SUPERSEDED
    assert "its processes died (exit code -9)" in end["message"]
    assert client.submit(**wish).state == jobs_pb2.JOB_STATE_QUEUED, "not the old attempt's FAILED"
    second = list(client.watch(key))
    assert [e.job.state for e in second][-1] == jobs_pb2.JOB_STATE_SUCCEEDED
    numbers = [e.number for e in first + second]
    assert numbers == sorted(set(numbers)), "numbers grow over attempts"
    assert started(control, 0) == 2, "the task before was not journaled yet: it may run again"


def test_processes_that_cannot_be_started(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPN_MPIEXEC", "/no/such/mpiexec")
    ended = client.end(client.submit(tasks=2, resources=Resources(ranks=2)).key)
    assert ended.failure.kind == jobs_pb2.FAILURE_KIND_INFRASTRUCTURE
    assert "could not be started: [Errno 2] No such file or directory: '/no/such/mpiexec'" in ended.failure.message
    assert client.end(client.submit(tasks=3).key).state == jobs_pb2.JOB_STATE_SUCCEEDED, "others are not held up"


def test_cancel_in_every_state(client: Client, store: Store, control: Path) -> None:
    running = client.submit(tasks=2, control=str(control), behaviour={"1": "block"}, resources=ALL).key
    waiting = client.submit(tasks=3).key
    cancelled = client.cancel(waiting, "not needed")
    assert cancelled.state == jobs_pb2.JOB_STATE_CANCELLED
    assert attempt_numbers(store, waiting) == []
    # Its processes have just been started: the wish reaches the attempt once it has begun.
    assert client.cancel(running).state in (jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING)
    assert client.end(running).state == jobs_pb2.JOB_STATE_CANCELLED
    assert client.cancel(running) == client.get(running), "once more does nothing"
    assert attempt_numbers(store, running) == [1]

    (control / "release").touch()
    assert client.submit(tasks=2, control=str(control), behaviour={"1": "block"}).state == jobs_pb2.JOB_STATE_QUEUED
    done = client.end(running)
    assert done.state == jobs_pb2.JOB_STATE_SUCCEEDED
    assert client.cancel(running) == done
    assert client.submit(tasks=3).state == jobs_pb2.JOB_STATE_QUEUED
    assert client.end(waiting).state == jobs_pb2.JOB_STATE_SUCCEEDED


def test_an_attempt_of_somebody_else_is_followed(
    client: Client, store: Store, control: Path, new_job: Any, start_attempt: Any
) -> None:
    key = new_job(tasks=3, control=str(control), behaviour={"1": "block"})
    assert client.get(key).state == jobs_pb2.JOB_STATE_WAITING
    process = start_attempt(key)
    wait_for(lambda: started(control, 1), "task 1")
    assert client.submit(tasks=3, control=str(control), behaviour={"1": "block"}).state == jobs_pb2.JOB_STATE_RUNNING
    process.kill()
    process.wait()
    dead = client.end(key)
    assert dead.failure.message == "its processes are gone"
    (control / "release").touch()
    client.submit(tasks=3, control=str(control), behaviour={"1": "block"})
    assert client.end(key).attempt == 2
    assert attempt_numbers(store, key) == [1, 2]


def test_list(client: Client, store: Store) -> None:
    keys = sorted(run_stage(store, "sandbox", params={"tasks": n}).job_key for n in range(5))
    pages, token = [], ""
    while not pages or token:
        page = client.list(page_size=2, page_token=token)
        pages.append([job.key for job in page.jobs])
        token = page.next_page_token
    assert pages == [keys[:2], keys[2:4], keys[4:]]
    assert [job.key for job in client.list().jobs] == keys
    assert len(client.list(states=[jobs_pb2.JOB_STATE_SUCCEEDED], stage="sandbox").jobs) == 5
    assert not client.list(states=[jobs_pb2.JOB_STATE_FAILED]).jobs
    assert not client.list(stage="montage").jobs
    for wrong in ({"page_token": "x"}, {"page_size": 501}, {"page_size": -1}):
        with pytest.raises(UserError, match="page_"):
            client.list(**wrong)


def test_logs_are_followed_to_the_end(client: Client, control: Path) -> None:
    key = client.submit(tasks=2, control=str(control), behaviour={"1": "block"}).key
    wait_for(lambda: started(control, 1), "task 1")
    first = wait_for(lambda: client.tail(key), "the first lines")
    (control / "release").touch()
    rest = client.tail(key, follow=True, resume_token=first[-1].resume_token)
    text = "".join(chunk.text for chunk in first + rest)
    assert text.count("attempt 1, 1 ranks") == 1
    assert text.rstrip().endswith(f"job {key} published")
    with pytest.raises(NotFoundError, match="has no attempt 7"):
        client.tail(key, attempt=7)
    with pytest.raises(UserError, match="resume_token"):
        client.tail(key, resume_token="x")


def test_watchers_are_told_when_the_server_stops(store: Store, control: Path) -> None:
    with StageServer(store, "127.0.0.1:0", cores=CORES) as server:
        client = Client(server.address)
        key = client.submit(tasks=1, control=str(control), behaviour={"0": "block"}).key
        events = client.watch(key)
        assert next(events).job.key == key
        wait_for(lambda: started(control, 0), "the task")
    with pytest.raises(HappyError, match="stopping; watch again"):
        list(events)
    request_cancel(store, key, 1, "the test is over")
    client.channel.close()


def test_a_client_that_knows_nothing_but_reflection(client: Client) -> None:
    """No generated code: services, messages and calls are made from what the server says of itself."""
    database = ProtoReflectionDescriptorDatabase(client.channel)
    assert SERVICE_NAME in database.get_services()
    pool = DescriptorPool(database)
    service = pool.FindServiceByName(SERVICE_NAME)

    def invoke(method: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        descriptor = service.methods_by_name[method]
        sends = message_factory.GetMessageClass(descriptor.input_type)
        gets = message_factory.GetMessageClass(descriptor.output_type)
        path = f"/{SERVICE_NAME}/{method}"
        make = client.channel.unary_stream if descriptor.server_streaming else client.channel.unary_unary
        call_: Any = make(path, request_serializer=sends.SerializeToString, response_deserializer=gets.FromString)
        answer = call_(json_format.ParseDict(request, sends(), descriptor_pool=pool), timeout=60)
        for message in answer if descriptor.server_streaming else [answer]:
            yield json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=pool)

    (described,) = invoke("Describe", {"stage": "sandbox"})
    schema = json.loads(described["stages"][0]["params_json_schema"])
    assert "tasks" in schema["properties"]
    (submitted,) = invoke("SubmitJob", {"spec": {"stage": "sandbox", "params": {"tasks": 3}}})
    key = submitted["job"]["key"]
    events = list(invoke("WatchJob", {"key": key}))
    last = events[-1]["event"]["job"]
    assert last["state"] == "JOB_STATE_SUCCEEDED"
    assert last["metrics"] == {"sum": 5.0}
    with pytest.raises(grpc.RpcError) as caught:
        list(invoke("SubmitJob", {"spec": {"stage": "sandbox", "params": {"tasks": "many"}}}))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
