"""PipelineService over real gRPC: what each call promises in its comment."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from happyneurons.client import Client
from happyneurons.client.plain import plain, short
from happyneurons.errors import ConflictError, NotFoundError, PreconditionError, UserError
from happyneurons.executors.local import LocalExecutor
from happyneurons.jobs.spec import job_uri, make_spec, save_spec
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.stages import load_stage
from happyneurons.v1 import pipeline_service_pb2 as pb
from happyneurons.v1 import pipeline_service_pb2_grpc, pipelines_pb2
from happyneurons.worker.launch import Launch, start

from ..worker.waiting import wait_for
from .conftest import SITES

TWO = """
name: two
jobs:
  first: {stage: sandbox, params: {tasks: 3, control: "CONTROL"}}
  second: {stage: sandbox, params: {tasks: 4, control: "CONTROL"}, needs: [first]}
"""
GATED = TWO.replace("[first]", "[look]") + "gates:\n  look: {after: [first], ask: 'Good?'}\n"


@pytest.fixture
def text(control: Path) -> Any:
    def make(yaml: str, **replaced: str) -> str:
        for old, new in {"CONTROL": str(control), **replaced}.items():
            yaml = yaml.replace(old, new)
        return yaml

    return make


def blocked(yaml: str, task: int = 1) -> str:
    return yaml.replace("tasks: 3", f"tasks: 3, behaviour: {{'{task}': block}}")


def wait_for_state(client: Client, run_id: str, state: str) -> None:
    wait_for(lambda: client.run(run_id).state == state, f"run {run_id} to be {state}")


# --- submission ----------------------------------------------------------------------------------


def test_submit_and_watch_to_the_end(client, text):
    run = client.submit(text(TWO))
    events = list(run.watch(progress=False))
    assert [e.number for e in events] == list(range(1, len(events) + 1))
    assert [f"{e.type} {e.subject}".strip() for e in events] == [
        "run_submitted", "job_submitted first", "job_started first", "job_succeeded first",
        "job_submitted second", "job_started second", "job_succeeded second", "run_ended",
    ]  # fmt: skip
    assert short(events[2].job.job, "state") == "running", "each event carries its job as it was then"
    assert short(events[-1], "run_state") == "succeeded"
    job = run.refresh().jobs["second"].job
    assert job.metrics["sum"] == 14
    assert job.outputs["numbers"].kind == "table"
    assert job.attempt == 1
    assert run.open("second.numbers")["rows"] == [[14]]


def test_same_request_id_is_the_same_run(client, text):
    first = client.submit(text(TWO), request_id="wish-1")
    assert client.submit(text(TWO), request_id="wish-1").id == first.id
    with pytest.raises(ConflictError):
        client.submit(text(TWO).replace("tasks: 4", "tasks: 5"), request_id="wish-1")
    with pytest.raises(UserError, match="request_id"):
        client.submit(text(TWO), request_id="a wish")
    first.wait()


def test_mistakes_are_found_with_their_lines_and_start_nothing(client, store, text):
    wrong = text(TWO).replace("tasks: 3", "tsks: 3").replace("needs: [first]", "needs: [third]")
    found = {v.field: (v.line, v.description) for v in client.validate(wrong)}
    assert found["jobs.first.params.tsks"][0] == 4
    assert "sandbox has behaviour, control, tasks" in found["jobs.first.params.tsks"][1]
    assert found["jobs.second.needs"] == (5, "no job or gate 'third'")
    with pytest.raises(UserError) as caught:
        client.submit(wrong)
    assert caught.value.exit_code == 2
    assert {field for field, _ in caught.value.violations} == set(found)
    assert "line 4" in str(caught.value)
    assert store.folders("runs") == []


def test_cycle_and_bad_yaml_are_mistakes(client, text):
    cycle = text(TWO).replace("first: {stage: sandbox", "first: {needs: [second], stage: sandbox")
    (violation,) = client.validate(cycle)
    assert "needs itself: " in violation.description
    (violation,) = client.validate("jobs:\n  a: {b\n")
    assert (violation.line > 0, "not valid YAML" in violation.description) == (True, True)


def test_a_wrong_pipeline_is_invalid_argument_with_field_violations(server, text):
    """What a client in another language sees."""
    with grpc.insecure_channel(server.address) as channel:
        stub = pipeline_service_pb2_grpc.PipelineServiceStub(channel)
        request = pb.SubmitRunRequest(pipeline=pipelines_pb2.PipelineSpec(yaml="jobs: {a: {stage: nothing}}"))
        with pytest.raises(grpc.RpcError) as caught:
            stub.SubmitRun(request, timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(caught.value)
    bad_request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad_request) for detail in status.details)
    assert [v.field for v in bad_request.field_violations] == ["jobs.a.stage"]


def test_runs_are_listed_in_pages_latest_first(server, client, text):
    ids = [client.submit(text(TWO)).wait().id for _ in range(3)]
    listed = [run.id for run in client.runs()]
    assert sorted(listed) == sorted(ids)
    with grpc.insecure_channel(server.address) as channel:
        stub = pipeline_service_pb2_grpc.PipelineServiceStub(channel)
        paged, token = [], ""
        while True:
            page = stub.ListRuns(pb.ListRunsRequest(page_size=1, page_token=token), timeout=30)
            paged += [run.id for run in page.runs]
            token = page.next_page_token
            if not token:
                break
        assert paged == listed
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListRuns(pb.ListRunsRequest(page_token="x"), timeout=30)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert list(client.runs(states=["failed"])) == []
    assert len(list(client.runs(limit=2))) == 2


def test_unknown_run_is_not_found(client):
    with pytest.raises(NotFoundError, match="no run 'nothing'"):
        client.run("nothing")
    with pytest.raises(NotFoundError):
        next(iter(client.watch("nothing")))


# --- decisions -----------------------------------------------------------------------------------


def test_gate_waits_and_can_be_decided_once(client, text, control):
    run = client.submit(text(blocked(GATED)))
    with pytest.raises(PreconditionError, match="what it judges is not there yet"):
        run.approve("look")
    with pytest.raises(NotFoundError, match="no gate 'luck'"):
        run.approve("luck")
    (control / "release").touch()
    wait_for_state(client, run.id, "waiting")
    assert short(run.refresh().gates["look"], "state") == "waiting"
    assert run.gates["look"].question == "Good?"
    run.approve("look", "fine")
    run.approve("look", "fine again")
    with pytest.raises(PreconditionError, match="decided before"):
        run.reject("look")
    assert run.wait().gates["look"].comment == "fine"


def test_rejected_gate_fails_the_run(client, text):
    run = client.submit(text(GATED))
    wait_for_state(client, run.id, "waiting")
    run.reject("look")
    wait_for_state(client, run.id, "failed")
    assert short(run.refresh().jobs["second"].job, "state") == "skipped"


def test_cancel_then_retry(client, text, control):
    run = client.submit(text(blocked(TWO)))
    wait_for(lambda: list(control.glob("started-1-*")), "task 1")
    run.cancel("changed my mind")
    wait_for_state(client, run.id, "cancelled")
    assert run.refresh().message == "changed my mind"
    run.cancel("again")  # does nothing
    with pytest.raises(NotFoundError, match="no job 'third'"):
        run.retry("third")
    (control / "release").touch()
    run.retry()
    assert run.wait().state == "succeeded"
    with pytest.raises(PreconditionError, match="nothing to retry"):
        run.retry()


def test_failure_says_whose_and_how_to_reproduce(client, text):
    run = client.submit(text(TWO).replace("tasks: 3", "tasks: 3, behaviour: {'1': fail}"))
    wait_for_state(client, run.id, "failed")
    failure = run.refresh().jobs["first"].job.failure
    assert short(failure, "kind") == "task"
    assert list(failure.quarantined_tasks) == ["work/0001"]
    assert failure.reproduce_command == f"hpn-stage run {run.jobs['first'].job.uri} --task work/0001"


# --- streams -------------------------------------------------------------------------------------


def test_watch_resumes_after_an_event(client, text):
    run = client.submit(text(TWO))
    run.wait()
    everything = list(client.watch(run.id))
    assert list(client.watch(run.id, after_event=3)) == everything[3:]
    assert list(client.watch(run.id, after_event=everything[-1].number)) == []


def test_watch_goes_on_at_the_next_orchestrator(store, text, control):
    """The server stops under a watcher; its successor on the same port ends the run."""
    first = OrchestratorServer(store, sites=SITES)
    first.start()
    seen: list[pipelines_pb2.RunEvent] = []
    with Client(first.address) as client:
        run = client.submit(text(blocked(TWO)))
        watcher = threading.Thread(target=lambda: seen.extend(client.watch(run.id, progress=False)))
        watcher.start()
        wait_for(lambda: list(control.glob("started-1-*")), "task 1")
        first.close()
        with OrchestratorServer(store, first.address, sites=SITES):
            (control / "release").touch()
            watcher.join(60)
            assert not watcher.is_alive()
    assert [e.number for e in seen] == list(range(1, len(seen) + 1)), "nothing twice, nothing missing"
    assert short(seen[-1], "run_state") == "succeeded"
    assert len(list(control.glob("started-1-*"))) == 2, "one for each job: the attempt at work was adopted"


def test_progress_is_sent_without_numbers_of_its_own(client, text, control):
    run = client.submit(text(blocked(TWO)))
    found = []
    for event in run.watch():
        if event.type == "job_progress" and event.job.job.progress.tasks_total == 3:
            found.append(event)
            (control / "release").touch()
    assert found
    assert found[0].number == 3


def test_logs_go_on_from_a_token(server, client, text):
    run = client.submit(text(TWO)).wait()
    chunks = list(client.logs(run.id, "first"))
    assert "attempt 1" in chunks[0].text
    assert "published" in chunks[-1].text
    with grpc.insecure_channel(server.address) as channel:
        stub = pipeline_service_pb2_grpc.PipelineServiceStub(channel)
        request = pb.TailJobLogsRequest(run_id=run.id, job="first", resume_token=chunks[0].resume_token)
        rest = [answer.chunk for answer in stub.TailJobLogs(request, timeout=30)]
        assert rest == chunks[1:]
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.TailJobLogs(pb.TailJobLogsRequest(run_id=run.id, job="first", resume_token="x"), timeout=30))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(NotFoundError, match="no attempt 7"):
        list(client.logs(run.id, "first", attempt=7))


def test_followed_log_ends_with_the_attempt(client, text, control):
    run = client.submit(text(blocked(TWO)))
    with pytest.raises(NotFoundError, match="job second has no attempt yet"):
        list(client.logs(run.id, "second"))
    wait_for(lambda: list(control.glob("started-1-*")), "task 1")
    wait_for(lambda: short(run.refresh().jobs["first"].job, "state") == "running", "the job")
    found = ""
    for chunk in client.logs(run.id, "first", follow=True):
        found += chunk.text
        (control / "release").touch()
    assert "published" in found


# --- explanations ----------------------------------------------------------------------------------


def test_explain_says_why_computed_and_why_reused(client, text):
    client.submit(text(TWO)).wait()
    run = client.submit(text(TWO).replace("tasks: 4", "tasks: 7")).wait()
    reused = client.explain(run.id, "first")
    assert reused.reused
    assert reused.reasons[0].startswith("reused")
    computed = client.explain(run.id, "second")
    assert computed.reasons[0].startswith("computed")
    assert list(computed.differences) in (["params.tasks: 3 → 7"], ["params.tasks: 4 → 7"])
    assert computed.compared_with_key
    with pytest.raises(NotFoundError, match="no job 'third'"):
        client.explain(run.id, "third")


def test_explain_says_what_a_job_waits_for(client, text, control):
    run = client.submit(text(blocked(GATED)))
    wait_for(lambda: short(run.refresh().jobs["first"].job, "state") == "running", "the job")
    assert list(client.explain(run.id, "second").reasons) == ["waits for gate look"]
    assert "attempt 1 is at work" in client.explain(run.id, "first").reasons[0]
    (control / "release").touch()
    wait_for_state(client, run.id, "waiting")
    assert list(client.explain(run.id, "second").reasons) == ["waits for a decision at gate look"]
    run.approve("look").wait()


def test_explain_asks_the_site_about_a_queued_job(client, text, control):
    wide = blocked(TWO).replace("needs: [first]", "resources: {ranks: 4}")
    run = client.submit(text(wide))
    wait_for(lambda: short(run.refresh().jobs["second"].job, "state") == "queued", "the second job")
    wait_for(lambda: short(run.refresh().jobs["first"].job, "state") == "running", "the first job")
    assert client.explain(run.id, "second").site_explanation == "waits for 4 of 4 cores (3 free, 0 jobs ahead)"
    run.cancel()
    wait_for_state(client, run.id, "cancelled")


# --- what there is ---------------------------------------------------------------------------------


def test_stages_and_sites(client):
    names = [stage.name for stage in client.stages()]
    assert "sandbox" in names
    assert "ingest" in names
    schema = json.loads(client.describe_stage("sandbox").params_json_schema)
    assert schema["properties"]["tasks"]["default"] == 10
    with pytest.raises(NotFoundError, match="no stage named 'nothing'"):
        client.describe_stage("nothing")
    (site,) = client.sites()
    assert (site.name, site.executor, site.cores, site.available) == ("local", "local", 4, True)
    assert site.description == "the test's machine"


def test_metrics_tell_of_stages_and_sites_not_of_runs(server, client, text):
    run = client.submit(text(TWO)).wait()
    page = urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10).read().decode()
    assert 'happyneurons_tasks_total{outcome="done",stage="sandbox"} 9.0' in page  # 3 + 4 squares, 2 sums
    assert 'happyneurons_voxels_total{stage="sandbox"} 7.0' in page
    assert 'happyneurons_jobs_ended_total{outcome="succeeded",site="local",stage="sandbox"} 2.0' in page
    assert 'happyneurons_job_queue_seconds_count{site="local",stage="sandbox"} 2.0' in page
    assert 'happyneurons_grpc_calls_total{code="OK",method="SubmitRun"' in page
    assert "happyneurons_build_info{version=" in page
    assert run.id not in page
    client.submit(text(TWO)).wait()
    page = urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10).read().decode()
    assert 'happyneurons_tasks_total{outcome="done",stage="sandbox"} 9.0' in page, "reused jobs did no work"
    assert 'happyneurons_jobs_ended_total{outcome="reused",site="local",stage="sandbox"} 2.0' in page


def test_client_that_knows_only_reflection(server, text):
    """As grpcurl does: names and messages come from the server; no generated code is used."""
    from google.protobuf import json_format
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "happyneurons.v1.PipelineService" in database.get_services()
        service = DescriptorPool(database).FindServiceByName("happyneurons.v1.PipelineService")

        def call(name: str, **fields: Any) -> Any:
            method = service.methods_by_name[name]
            request = json_format.ParseDict(fields, GetMessageClass(method.input_type)())
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
            answer = make(
                f"/{service.full_name}/{name}",
                request_serializer=lambda m: m.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )(request, timeout=60)
            return [plain(m) for m in answer] if method.server_streaming else plain(answer)

        assert "sandbox" in [stage["name"] for stage in call("ListStages")["stages"]]
        assert call("DescribeStage", stage="sandbox")["stage"]["outputs"][0]["name"] == "numbers"
        run = call("SubmitRun", pipeline={"yaml": text(TWO)})["run"]
        events = call("WatchRun", runId=run["id"])
        assert events[-1]["event"]["run_state"] == "succeeded"
        assert call("GetRun", runId=run["id"])["run"]["jobs"][1]["job"]["metrics"] == {"sum": 14.0}


# --- processes -------------------------------------------------------------------------------------


def test_reader_shows_what_others_drive_and_decides_nothing(store, server, client, text, control):
    run = client.submit(text(blocked(TWO)))
    wait_for(lambda: list(control.glob("started-1-*")), "task 1")
    with OrchestratorServer(store, drive=False) as reader, Client(reader.address) as looking:
        assert looking.run(run.id).state == "running"
        with pytest.raises(PreconditionError, match="hpn serve orchestrator"):
            looking.cancel(run.id)
        with pytest.raises(PreconditionError):
            looking.submit(text(TWO))
        (control / "release").touch()
        assert [e.type for e in looking.watch(run.id)][-1] == "run_ended"


def test_open_attempt_of_a_vanished_driver_is_followed(store, client, text, control, tmp_path):
    """`hpn run` was killed, its job goes on: the next run with that job waits for it, and repeats nothing."""
    params = {"tasks": 3, "control": str(control), "behaviour": {"1": "block"}}
    spec = make_spec(load_stage("sandbox"), inputs={}, params=params)
    save_spec(store, spec)
    process = start(Launch(job_uri(store, spec.key)), tmp_path / "output.txt")
    wait_for(lambda: list(control.glob("started-1-*")), "task 1")
    run = client.submit(text(blocked(TWO)))
    wait_for(lambda: short(run.refresh().jobs["first"].job, "state") == "running", "the job")
    (control / "release").touch()
    events = [e for e in run.watch(progress=False) if e.subject == "first"]
    assert process.wait(60) == 0
    assert events[0].message == "attempt 1 was open already: followed"
    assert [e.type for e in events] == ["job_submitted", "job_started", "job_succeeded"]
    assert len(list(control.glob("started-0-*"))) == 2, "task 0 once for each of the two jobs"


def test_served_orchestrator_stops_on_sigterm_and_its_jobs_go_on(store, text, control, tmp_path):
    port_file = tmp_path / "port"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "happyneurons.cli.main", "serve", "orchestrator", "--store", store.uri,
            "--address", "127.0.0.1:0", "--port-file", str(port_file),
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    address = port_file.read_text().strip()
    assert line.strip() == f"orchestrator of {store.uri} at {address}"
    with Client(address) as client:
        run = client.submit(text(blocked(TWO)))
        wait_for(lambda: list(control.glob("started-1-*")), "task 1")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    (control / "release").touch()
    successor = Orchestrator(store, {"local": LocalExecutor()})
    successor.start()
    try:
        wait_for(lambda: successor.driver(run.id).status.phase.value == "succeeded", "the run")
    finally:
        successor.close()
    assert len(list(control.glob("started-1-*"))) == 2
