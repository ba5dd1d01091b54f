"""A secured server at work: what it keeps of who decided, what it never keeps, what changes while it runs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from click.testing import CliRunner

from happyneurons.cli.main import main
from happyneurons.client import Client
from happyneurons.errors import HappyError, OverloadedError, PermissionDeniedError, UnauthenticatedError, UserError
from happyneurons.executors.service import ServiceExecutor
from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.orchestrator.sites import load_sites
from happyneurons.rpc.access import PLAIN, Access
from happyneurons.rpc.auth.limits import Rate
from happyneurons.rpc.auth.server import Security
from happyneurons.rpc.auth.tokens import make_token
from happyneurons.rpc.client import call, connect
from happyneurons.rpc.server import RpcServer
from happyneurons.store.documents import Store
from happyneurons.v1 import pipeline_service_pb2 as pb
from happyneurons.v1 import pipeline_service_pb2_grpc, stage_service_pb2_grpc
from happyneurons.v1 import stage_service_pb2 as stage_pb
from happyneurons.worker.server import StageServer

from ..worker.waiting import wait_for
from .conftest import SITES, Lab
from .pki import Authority

GATED = """
jobs:
  first: {stage: sandbox, params: {tasks: 1, control: 'CONTROL'}}
  second: {stage: sandbox, params: {tasks: 2, control: 'CONTROL'}, needs: [look]}
gates:
  look: {after: [first], ask: 'Good?'}
"""
OPEN = "acquisition: {batch: 9, wait_s: 900}\njobs: {ingest: {each: batch, params: {source: '${batch}'}}}"
SECRET = "wJalrXUtnFEMI-known-secret"


def one(control: Path, tasks: int = 1) -> str:
    return f"jobs: {{a: {{stage: sandbox, params: {{tasks: {tasks}, control: '{control}'}}}}}}\n"


def test_the_log_of_a_run_and_the_audit_log_say_who_decided(lab: Lab) -> None:
    with lab.client("oskar") as oskar, lab.client(lab.provider.token()) as erin:
        run = oskar.submit(GATED.replace("CONTROL", str(lab.control)))
        wait_for(lambda: oskar.run(run.id).state == "waiting", "the gate")
        with connect(lab.server.address, lab.access(lab.provider.token())) as channel:
            decide = pipeline_service_pb2_grpc.PipelineServiceStub(channel).DecideGate
            claimed = {"decided_by": "somebody else", "comment": "looks good"}
            call(decide, pb.DecideGateRequest(run_id=run.id, gate="look", decision=pb.GATE_DECISION_REJECT, **claimed))
        wait_for(lambda: oskar.run(run.id).state == "failed", "the rejection to count")
        assert oskar.run(run.id).proto.gates[0].decided_by == "erin"
        oskar.retry(run.id)
        oskar.cancel(run.id, "enough")
        callers = {e.type: e.caller for e in erin.watch(run.id) if e.caller}
    assert callers == {"run_submitted": "oskar", "run_retried": "oskar", "run_cancel_requested": "oskar"}
    lines = [line for line in lab.audit if line.get("run_id") == run.id]
    assert [(x["who"], x["by"], x["method"].rpartition("/")[2], x["code"]) for x in lines] == [
        ("oskar", "token", "SubmitRun", "OK"), ("erin", "oidc", "DecideGate", "OK"),
        ("oskar", "token", "RetryRun", "OK"), ("oskar", "token", "CancelRun", "OK"),
    ]  # fmt: skip
    assert (lines[1]["gate"], lines[1]["decision"]) == ("look", "GATE_DECISION_REJECT")


def test_no_secret_is_kept(lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("AWS_SECRET_ACCESS_KEY", "HPN_TOKEN", "BALSAM_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    with lab.client("oskar") as oskar:
        run = oskar.submit(one(lab.control, tasks=2))
        assert run.wait().state == "succeeded"
        with pytest.raises(UserError, match="no user, password or signature"):
            oskar.submit(f"jobs: {{ingest: {{params: {{source: 's3://AKIA:{SECRET}@lab-raw/x'}}}}}}\n")
        logs = "".join(chunk.text for chunk in oskar.logs(run.id, "a"))
    kept = [path for path in (lab.folder / "store").rglob("*") if path.is_file()]
    assert len(kept) > 5
    texts = [*(p.read_bytes() for p in kept), (lab.folder / "audit.jsonl").read_bytes(), logs.encode()]
    texts.append(caplog.text.encode())
    for secret in (SECRET, *lab.tokens.values()):
        assert not any(secret.encode() in text for text in texts)


# --- what changes while a server runs ----------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[..., tuple[OrchestratorServer, Access]]]:
    """A server with TLS and one caller, `ada`; limits as given."""
    running: list[OrchestratorServer] = []

    def start(**limits: Any) -> tuple[OrchestratorServer, Access]:
        ca = Authority(tmp_path / "tls", "CA")
        ca.issue("server", "server")
        token, _ = make_token(tmp_path / "tokens.yaml", "ada", "admin", ["*"], None)
        document = {
            "tls": {"cert": "tls/server.crt", "key": "tls/server.key"}, "tokens": "tokens.yaml", "limits": limits,
            "audit": {"file": "audit.jsonl", "reads": True},
        }  # fmt: skip
        (tmp_path / "security.yaml").write_text(yaml.safe_dump(document))
        store = Store((tmp_path / "store").as_uri())
        server = OrchestratorServer(store, sites=SITES, security=Security.load(tmp_path / "security.yaml"))
        server.start()
        running.append(server)
        return server, Access(ca=str(ca.ca), token=token)

    yield start
    for server in running:
        server.close()


def _answers(address: str, access: Access) -> bool:
    try:
        with Client(address, access) as client:
            list(client.runs())
    except HappyError:
        return False
    return True


def test_certificates_and_tokens_are_renewed_while_it_runs(
    small: Callable[..., tuple[OrchestratorServer, Access]], tmp_path: Path
) -> None:
    server, before = small()
    assert _answers(server.address, before)
    new = Authority(tmp_path / "tls", "another CA")
    new.issue("server", "server")
    token, _ = make_token(tmp_path / "tokens.yaml", "bob", "viewer", ["fly"], None)
    after = Access(ca=str(new.ca), token=token)
    wait_for(lambda: _answers(server.address, after), "the new certificate and token")
    (tmp_path / "tokens.yaml").write_text("[]")
    wait_for(lambda: not _answers(server.address, after), "the token to be withdrawn")


def test_who_asks_too_often_is_told_when_to_come_again(
    small: Callable[..., tuple[OrchestratorServer, Access]],
) -> None:
    server, access = small(requests_per_s=2, burst=2)
    with connect(server.address, access) as channel:
        method = pipeline_service_pb2_grpc.PipelineServiceStub(channel).ListRuns
        codes = []
        for _ in range(3):
            try:
                method(pb.ListRunsRequest(), timeout=20)
            except grpc.RpcError as error:
                codes.append(error.code())
        # A machine so slow that three calls take longer than the bucket needs may refuse none.
        assert set(codes) <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
        for _ in range(3):
            call(method, pb.ListRunsRequest())  # waits as long as it was told


def test_the_bucket_itself() -> None:
    now = 0.0
    rate = Rate(per_s=2, burst=3, clock=lambda: now)
    for _ in range(3):
        rate.take("a")
    with pytest.raises(OverloadedError) as caught:
        rate.take("a")
    assert caught.value.retry_after_s == pytest.approx(0.5)
    rate.take("b")
    now = 0.5
    rate.take("a")
    with pytest.raises(OverloadedError):
        rate.take("a")


def test_a_watcher_outlives_its_connection(
    small: Callable[..., tuple[OrchestratorServer, Access]], tmp_path: Path
) -> None:
    server, access = small(connection_age_s=1, connection_grace_s=0)
    with Client(server.address, access) as client:
        run = client.submit(OPEN)
        events = client.watch(run.id)
        first = next(events)

        def cut() -> bool:
            lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
            return any(x["method"].endswith("/WatchRun") for x in lines)

        wait_for(cut, "the connection to reach its age")
        client.cancel(run.id)
        types = [first.type, *(event.type for event in events)]
    assert types[0] == "run_submitted"
    assert types[-1] == "run_ended"
    assert len(types) == len(set(types)), "nothing came twice"


# --- the other server, and other ways in -------------------------------------------------------------


def test_a_stage_server_behind_the_same_file(lab: Lab) -> None:
    security = Security.load(lab.folder / "security.yaml")
    with StageServer(lab.store, "127.0.0.1:0", cores=2, security=security) as server:
        assert ServiceExecutor(server.address, access=lab.access("ada")).capacity().cores == 2
        assert "token" in ServiceExecutor(server.address, access=lab.access("letmein")).capacity().problem
        sites = lab.folder / "sites.yaml"
        (lab.folder / "ada.token").write_text(lab.tokens["ada"])
        access = {
            "ca": str(lab.ca.ca), "cert": str(lab.client_cert[0]), "key": str(lab.client_cert[1]),
            "token_file": str(lab.folder / "ada.token"),
        }  # fmt: skip
        sites.write_text(yaml.safe_dump({"box": {"executor": "service", "address": server.address, "access": access}}))
        box = load_sites(sites)["box"]
        assert ServiceExecutor(server.address, access=box.access).capacity().cores == 2
        with connect(server.address, lab.access("oskar")) as channel:
            stub = stage_service_pb2_grpc.StageServiceStub(channel)
            assert call(stub.Describe, stage_pb.DescribeRequest()).cores == 2
            with pytest.raises(PermissionDeniedError, match="needs all"):
                call(stub.ListJobs, stage_pb.ListJobsRequest())
        with connect(server.address, lab.access("ada")) as channel:
            stub = stage_service_pb2_grpc.StageServiceStub(channel)
            request = stage_pb.SubmitJobRequest()
            request.spec.stage = "ingest"
            request.spec.params["source"] = f"{lab.data}/../secret"
            with pytest.raises(UserError) as caught:
                call(stub.SubmitJob, request)
            assert [f for f, _ in caught.value.violations] == ["spec.params.source"]


def test_the_command_line_gets_in_by_options(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HPN_TLS_CA", "HPN_TLS_CERT", "HPN_TLS_KEY", "HPN_TOKEN_FILE"):
        monkeypatch.setenv(name, "")  # to be put back after what the command sets
    (lab.folder / "vera.token").write_text(lab.tokens["vera"] + "\n")
    options = ["--tls-ca", str(lab.ca.ca), "--tls-cert", str(lab.client_cert[0]), "--tls-key", str(lab.client_cert[1])]
    command = ["status", "--json", "--orchestrator", lab.server.address]
    done = CliRunner().invoke(main, [*options, "--token-file", str(lab.folder / "vera.token"), *command])
    assert done.exit_code == 0, done.output
    assert {run.get("project") for run in json.loads(done.stdout)} <= {"fly"}
    assert os.environ["HPN_TOKEN_FILE"]
    monkeypatch.setenv("HPN_TOKEN_FILE", str(lab.folder / "none.token"))
    wrong = CliRunner().invoke(main, command)
    assert wrong.exit_code == 2
    assert "none.token: No such file" in wrong.stderr


def test_access_from_the_environment() -> None:
    assert not Access.from_environment({}).secured
    found = Access.from_environment({"HPN_TLS_CA": "system", "HPN_TOKEN": "abc"})
    assert found.secured
    assert "abc" not in repr(found)
    with pytest.raises(UserError, match="give both"):
        connect("localhost:1", Access(cert="x"))
    with pytest.raises(UserError, match="expected a token, one word"):
        connect("localhost:1", Access(token="two words"))


def test_without_security_an_open_address_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    RpcServer([], "127.0.0.1:0").stop(0)
    assert caplog.text == ""
    RpcServer([], "0.0.0.0:0").stop(0)
    assert "whoever reaches this address may do everything: give --security FILE" in caplog.text


def test_without_security_a_claim_is_all_there_is(store: Store, control: Path) -> None:
    with OrchestratorServer(store, sites=SITES) as server, Client(server.address, PLAIN) as client:
        run = client.submit(one(control))
        assert run.proto.project == "default"
        assert run.proto.submitted_by == ""
        run = client.submit(one(control), project="fly")
        assert [r.id for r in client.runs(project="fly")] == [run.id]
        run.wait()


def test_a_token_is_asked_for_in_words(lab: Lab) -> None:
    with lab.client() as client, pytest.raises(UnauthenticatedError, match="laptop"):
        list(client.runs())
