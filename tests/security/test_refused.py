"""The negative table: every way in that must be closed, at a real server, with the code that says why."""

from __future__ import annotations

import base64
import json
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from happyneurons.errors import NotFoundError, PermissionDeniedError, UnauthenticatedError, UserError
from happyneurons.rpc.access import Access
from happyneurons.rpc.client import connect
from happyneurons.v1 import acquisition_pb2, acquisition_service_pb2_grpc, pipeline_service_pb2_grpc, pipelines_pb2
from happyneurons.v1 import acquisition_service_pb2 as acquisition
from happyneurons.v1 import pipeline_service_pb2 as pb

from .conftest import Lab
from .pki import Authority

Code = grpc.StatusCode
RUN = "name: one\njobs:\n  first: {stage: sandbox, params: {tasks: 1, control: 'CONTROL'}}\n"
OPEN = """
name: online
acquisition: {batch: 100, wait_s: 1000}
jobs:
  ingest: {each: batch, params: {source: "${batch}"}}
"""


def text(lab: Lab, yaml: str = RUN) -> str:
    return yaml.replace("CONTROL", str(lab.control))


def refusal(access: Access, address: str, method: str, request: Any, timeout: float = 20) -> grpc.RpcError:
    """The error that a call of PipelineService ends with, as any client sees it."""
    with connect(address, access) as channel:
        stub = pipeline_service_pb2_grpc.PipelineServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub, method)(request, timeout=timeout)
    return caught.value


def code(lab: Lab, access: Access, method: str = "ListRuns", request: Any = None) -> grpc.StatusCode:
    error: Any = refusal(access, lab.server.address, method, request or pb.ListRunsRequest())
    return error.code()


def fields(error: Any) -> dict[str, str]:
    status, bad = rpc_status.from_call(error), error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details), status
    return {v.field: v.description for v in bad.field_violations}


# --- who calls -----------------------------------------------------------------------------------


def test_those_who_may_come_in_do(lab: Lab) -> None:
    for token in ("vera", "oskar", lab.provider.token()):
        with lab.client(token) as client:
            list(client.runs())
    by_name = lab.ca.folder / "microscope.crt", lab.ca.folder / "microscope.key"
    for cert, key in (by_name, lab.ca.issue("stages", "stages", san="stages.lab.svc")):
        with lab.client(cert=str(cert), key=str(key)) as client:
            list(client.runs())


def test_without_a_certificate_there_is_no_connection(lab: Lab) -> None:
    assert code(lab, lab.access("oskar", cert="", key="")) is Code.UNAVAILABLE


def test_a_certificate_of_another_authority(lab: Lab, tmp_path: Path) -> None:
    cert, key = Authority(tmp_path, "lab CA").issue("laptop", "microscope-1")
    assert code(lab, lab.access("oskar", cert=str(cert), key=str(key))) is Code.UNAVAILABLE


def test_an_expired_certificate(lab: Lab) -> None:
    cert, key = lab.ca.issue("old", "microscope-1", days=-1)
    assert code(lab, lab.access(cert=str(cert), key=str(key))) is Code.UNAVAILABLE


def test_plain_text_to_a_server_with_tls(lab: Lab) -> None:
    assert code(lab, Access()) is Code.UNAVAILABLE


def test_a_server_that_is_not_ours_gets_no_token(lab: Lab, tmp_path: Path) -> None:
    other = Authority(tmp_path, "another CA")
    assert code(lab, lab.access("oskar", ca=str(other.ca))) is Code.UNAVAILABLE


def test_a_good_certificate_that_stands_for_nobody(lab: Lab) -> None:
    error: Any = refusal(lab.access(), lab.server.address, "ListRuns", pb.ListRunsRequest())
    assert error.code() is Code.UNAUTHENTICATED
    assert "laptop" in error.details()


def _unsigned(lab: Lab) -> str:
    """`alg: none` with the claims of a good token."""
    body = lab.provider.token().split(".")[1]
    head = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": "k1", "typ": "JWT"}).encode()).rstrip(b"=")
    return f"{head.decode()}.{body}."


def _signed_with_the_public_key(lab: Lab) -> str:
    """HMAC with what everybody knows: servers that let tokens choose the algorithm take it."""
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in (
            {"alg": "HS256", "kid": "k1", "typ": "JWT"},
            jwt.decode(lab.provider.token(), options={"verify_signature": False}),
        )
    )
    algorithm = jwt.get_algorithm_by_name("HS256")
    signature = algorithm.sign(f"{head}.{body}".encode(), lab.provider.jwks.read_bytes())
    return f"{head}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


FORGED: dict[str, Any] = {
    "nonsense": lambda lab: "letmein",
    "the hash instead of the token": lambda lab: (lab.folder / "tokens.yaml").read_text().split("sha256: ")[1][:64],
    "a token cut short": lambda lab: lab.tokens["ada"][:-1],
    "alg none": _unsigned,
    "signed with the public key": _signed_with_the_public_key,
    "another key": lambda lab: lab.provider.token(key=rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    "an unknown kid": lambda lab: lab.provider.token(kid="k2"),
    "expired": lambda lab: lab.provider.token(exp=int(time.time()) - 3600),
    "never expires": lambda lab: lab.provider.token(exp=None),
    "not yet": lambda lab: lab.provider.token(nbf=int(time.time()) + 3600),
    "another audience": lambda lab: lab.provider.token(aud="grafana"),
    "another issuer": lambda lab: lab.provider.token(iss="https://evil.example"),
    "no role": lambda lab: lab.provider.token(groups=["students"]),
    "a signature that does not count": lambda lab: lab.provider.token(alg="RS512"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_tokens_that_do_not_count(lab: Lab, kind: str) -> None:
    assert code(lab, lab.access(FORGED[kind](lab))) is Code.UNAUTHENTICATED


def test_a_bad_token_is_not_made_good_by_a_certificate(lab: Lab) -> None:
    cert, key = lab.ca.folder / "microscope.crt", lab.ca.folder / "microscope.key"
    assert code(lab, lab.access("letmein", cert=str(cert), key=str(key))) is Code.UNAUTHENTICATED


# --- what they may do ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["SubmitRun", "ValidatePipeline", "CancelRun", "RetryRun", "DecideGate"])
def test_a_viewer_changes_nothing(lab: Lab, method: str) -> None:
    request = getattr(pb, f"{method}Request")()
    assert code(lab, lab.access("vera"), method, request) is Code.PERMISSION_DENIED
    line = lab.audit[-1]
    assert (line["who"], line["role"], line["method"], line["code"]) == (
        "vera", "viewer", f"happyneurons.v1.PipelineService/{method}", "PERMISSION_DENIED",
    )  # fmt: skip


def test_another_projects_run_is_not_there(lab: Lab) -> None:
    with lab.client("oskar") as oskar, lab.client("olga") as olga, lab.client("ada") as ada:
        run = oskar.submit(text(lab)).wait()
        assert (run.proto.project, run.proto.submitted_by) == ("fly", "oskar")
        asked = [
            lambda: olga.run(run.id), lambda: list(olga.watch(run.id)), lambda: olga.cancel(run.id),
            lambda: olga.retry(run.id), lambda: olga.approve(run.id, "gate"), lambda: olga.explain(run.id, "first"),
            lambda: list(olga.logs(run.id, "first")), lambda: olga.end_acquisition(run.id),
        ]  # fmt: skip
        told = set()
        for call in asked:
            with pytest.raises(NotFoundError) as caught:
                call()
            told.add(str(caught.value))
        with pytest.raises(NotFoundError) as caught:
            olga.run("20260101-000000-abcdef")
        assert {t.replace(run.id, "ID") for t in told} == {str(caught.value).replace("20260101-000000-abcdef", "ID")}
        assert run.id in [r.id for r in oskar.runs()]
        assert run.id not in [r.id for r in olga.runs()]
        assert run.id in [r.id for r in ada.runs(project="fly")]
        assert list(ada.runs(project="mouse")) == []
        # Nor does the answer depend on a request id that the other project has used.
        wish = oskar.submit(text(lab), request_id="wish").wait()
        assert olga.submit(text(lab), request_id="wish").wait().id != wish.id


def test_submitting_into_another_project(lab: Lab) -> None:
    with lab.client("oskar") as oskar, pytest.raises(PermissionDeniedError, match="'mouse': oskar has fly"):
        oskar.submit(text(lab), project="mouse")
    with lab.client("both") as both:
        with pytest.raises(PermissionDeniedError, match="'default': both has fly, mouse; say which"):
            both.submit(text(lab))
        with pytest.raises(UserError) as caught:
            both.submit(text(lab), project="../fly")
        assert caught.value.violations[0][0] == "project"


def test_run_ids_are_no_paths(lab: Lab) -> None:
    with lab.client("ada") as ada:
        run = ada.submit(text(lab), project="fly").wait()
        for run_id in (f"x/../{run.id}", f"../runs/{run.id}", "", "."):
            with pytest.raises(NotFoundError):
                ada.run(run_id)


# --- what they may read ----------------------------------------------------------------------------


def _places(lab: Lab) -> dict[str, str]:
    """Ways out of the allowed folder, all to things that exist."""
    secret = lab.folder / "secret"
    secret.mkdir(exist_ok=True)
    (secret / "info").write_text("{}")
    link = lab.data / "link"
    if not link.exists():
        link.symlink_to(secret)
    return {
        "dots": f"{lab.data}/../secret",
        "dots in a URI": f"file://{lab.data}/../secret",
        "dots as %2e": f"file://{lab.data}/%2e%2e/secret",
        "a link": f"{lab.data}/link",
        "a link in a URI": f"file://{lab.data}/link",
        "elsewhere": str(secret),
        "home": "~/../../etc",
        "relative": "../../../../../../etc",
        "a folder whose name begins alike": f"{lab.data}-other",
        "h5": f"h5://{lab.data}/../secret/x.h5?data",
        "h5 with a tab": f"h5://{lab.data}/.\t./secret/x.h5?data",
        "ckpt": f"ckpt://{lab.data}/../secret/model",
        "swc": f"swc://{lab.data}/../secret",
        "precomputed": f"precomputed://file://{lab.data}/../secret",
        "another bucket": "s3://lab-raw-other/2026/x",
        "dots in a bucket": "s3://lab-raw/2026/../secret",
        "dots in a bucket as %2e": "s3://lab-raw/2026/%2e%2e/secret",
        "and as %252e": "s3://lab-raw/2026/%252e%252e/secret",
        "another store's manifest": f"file://{lab.data}/../secret/jobs/k/manifest.json#x",
        "behind a #": f"{lab.data}/a#/../../secret",
        "http": "http://169.254.169.254/latest/meta-data",
    }


WAYS = [
    "dots", "dots in a URI", "dots as %2e", "a link", "a link in a URI", "elsewhere", "home", "relative",
    "a folder whose name begins alike", "h5", "h5 with a tab", "ckpt", "swc", "precomputed", "another bucket",
    "dots in a bucket", "dots in a bucket as %2e", "and as %252e", "another store's manifest", "behind a #", "http",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_no_way_out_of_the_allowed_roots(lab: Lab, way: str) -> None:
    """In an input, in each parameter that is a path, in a value given with the run, and in a sweep."""
    uri = json.dumps(_places(lab)[way])
    pipelines = {
        "jobs.segment.inputs.image": f"jobs: {{segment: {{inputs: {{image: {uri}, model: {uri}}}}}}}",
        "jobs.ingest.params.source": f"jobs: {{ingest: {{params: {{source: {uri}}}}}}}",
        "jobs.evaluate.params.acquisition": f"jobs: {{evaluate: {{params: {{acquisition: {uri}}}}}}}",
        "jobs.first.params.control": f"jobs: {{first: {{stage: sandbox, params: {{tasks: 1, control: {uri}}}}}}}",
    }
    for field, yaml in pipelines.items():
        request = pb.SubmitRunRequest(project="fly", pipeline=pipelines_pb2.PipelineSpec(yaml=yaml))
        error: Any = refusal(lab.access("oskar"), lab.server.address, "SubmitRun", request)
        assert error.code() is Code.INVALID_ARGUMENT
        assert field in fields(error), fields(error)
    spec = pipelines_pb2.PipelineSpec(
        yaml='parameters: {p: null}\njobs: {ingest: {params: {source: "${p}"}}}', parameters={"p": uri}
    )
    error = refusal(lab.access("oskar"), lab.server.address, "SubmitRun", pb.SubmitRunRequest(pipeline=spec))
    assert "jobs.ingest.params.source" in fields(error)
    spec = pipelines_pb2.PipelineSpec(yaml=f"jobs: {{ingest: {{sweep: {{source: [{uri}]}}}}}}")
    error = refusal(lab.access("oskar"), lab.server.address, "SubmitRun", pb.SubmitRunRequest(pipeline=spec))
    assert "jobs.ingest.params.source" in fields(error)


@pytest.mark.parametrize("way", ["dots", "dots in a URI", "a link", "another bucket", "dots in a bucket as %2e"])
def test_nor_by_a_section_of_a_microscope(lab: Lab, way: str) -> None:
    with lab.client("oskar") as oskar:
        run = oskar.submit(OPEN)
        tile = {"row": 0, "width_px": 8, "height_px": 8}
        section = acquisition_pb2.Section(z=1, pixel_size_nm=4, thickness_nm=30, tiles=[
            acquisition_pb2.Tile(uri=f"{lab.data}/a.tif", column=0, **tile),
            acquisition_pb2.Tile(uri=_places(lab)[way], column=1, **tile),
        ])  # fmt: skip
        with pytest.raises(UserError) as caught:
            oskar.report_section(run.id, section)
        assert "section.tiles[1].uri" in dict(caught.value.violations)
        section.tiles[1].uri = f"file://{lab.data}/b.tif"
        assert oskar.report_section(run.id, section).version == 1
        run.cancel()


def test_a_base_folder_cannot_lead_out(lab: Lab) -> None:
    spec = pipelines_pb2.PipelineSpec(
        yaml='jobs: {ingest: {params: {source: "${here}/../secret"}}}', base_uri=str(lab.data)
    )
    error = refusal(lab.access("oskar"), lab.server.address, "SubmitRun", pb.SubmitRunRequest(pipeline=spec))
    assert "jobs.ingest.params.source" in fields(error)


@pytest.mark.parametrize("field", ["yaml", "parameters", "inputs"])
def test_secrets_in_uris_are_not_taken(lab: Lab, field: str) -> None:
    uri = "s3://AKIA123:hunter2@lab-raw/2026/x"
    yaml = f"jobs: {{ingest: {{params: {{source: '{uri}'}}}}}}"
    spec = pipelines_pb2.PipelineSpec(yaml=yaml)
    if field == "parameters":
        spec = pipelines_pb2.PipelineSpec(yaml="parameters: {p: 1}\njobs: {ingest: {}}", parameters={"p": uri})
    if field == "inputs":
        spec.yaml = f"jobs: {{segment: {{inputs: {{image: '{uri}', model: x}}}}}}"
    error: Any = refusal(lab.access("oskar"), lab.server.address, "SubmitRun", pb.SubmitRunRequest(pipeline=spec))
    assert error.code() is Code.INVALID_ARGUMENT
    assert "hunter2" not in error.details() + str(fields(error))


# --- commands and images ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "field"),
    [
        ("{stage: sandbox, command: 'rm -rf /'}", "jobs.a.command"),
        ("{stage: sandbox, image: 'evil/image:latest'}", "jobs.a.image"),
        ("{stage: sandbox, environment: {LD_PRELOAD: /tmp/x.so}}", "jobs.a.environment"),
        ("{stage: sandbox, env: {HPN_MPIEXEC: /tmp/x}}", "jobs.a.env"),
        ("{stage: sandbox, resources: {launcher: sh}}", "jobs.a.resources.launcher"),
        ("{stage: 'os:system'}", "jobs.a.stage"),
        ("{stage: '../../tmp/stage'}", "jobs.a.stage"),
        ("{stage: montage, params: {backend: '/tmp/fiji'}}", "jobs.a.params.backend"),
        ("{stage: sandbox, site: '$(reboot)'}", "jobs.a.site"),
        ("!!python/object/apply:os.system ['true']", "jobs.a"),
    ],
)
def test_pipelines_name_no_commands_and_no_images(lab: Lab, job: str, field: str) -> None:
    request = pb.SubmitRunRequest(pipeline=pipelines_pb2.PipelineSpec(yaml=f"jobs:\n  a: {job}\n"))
    error: Any = refusal(lab.access("oskar"), lab.server.address, "SubmitRun", request)
    assert error.code() is Code.INVALID_ARGUMENT
    assert field in fields(error), fields(error)


# --- how much --------------------------------------------------------------------------------------


def test_a_message_over_the_limit(lab: Lab) -> None:
    """A gigabyte is sent in integration_tests."""
    options = [("grpc.max_send_message_length", -1)]
    with lab.access("oskar").channel(lab.server.address, options) as channel:
        send = channel.unary_unary("/happyneurons.v1.PipelineService/SubmitRun")
        with pytest.raises(grpc.RpcError) as caught:
            send(bytes(3 << 20), timeout=60)
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
HEAVY = {
    "a long text": "# " + "x" * 60_000 + "\njobs: {a: {stage: sandbox}}",
    "aliases of aliases": BOMB + "jobs: {a: {stage: sandbox}}",
    "a value in itself": "jobs: &a {a: *a}",
    "nested deeply": "jobs: " + "[" * 20_000,
    "a sweep of millions": "jobs: {a: {stage: sandbox, sweep: {tasks: [%s], fail: [%s], seed: [%s]}}}"
    % ((", ".join(str(n) for n in range(200)),) * 3),
}


@pytest.mark.parametrize("kind", HEAVY)
def test_pipelines_of_any_weight_are_refused_before_they_weigh(lab: Lab, kind: str) -> None:
    request = pb.SubmitRunRequest(pipeline=pipelines_pb2.PipelineSpec(yaml=HEAVY[kind]))
    error: Any = refusal(lab.access("oskar"), lab.server.address, "SubmitRun", request)
    assert error.code() is Code.INVALID_ARGUMENT


def test_many_streams_do_not_starve_a_call(lab: Lab) -> None:
    """Twenty are served, the others refused. Ten thousand are opened in integration_tests."""
    open_streams(lab, 300)


def open_streams(lab: Lab, count: int) -> None:
    """One caller opens many watches; its own calls and another's are answered meanwhile."""
    with lab.client("oskar") as oskar, lab.client("both") as both:
        run = oskar.submit(OPEN)
        ended: list[tuple[grpc.StatusCode, bool]] = []
        lock, all_refused = threading.Lock(), threading.Event()

        def note(call: Any) -> None:
            status = rpc_status.from_call(call)
            retry = status is not None and any(d.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for d in status.details)
            with lock:
                ended.append((call.code(), retry))
                if len(ended) == count - 20:
                    all_refused.set()

        with connect(lab.server.address, lab.access("oskar")) as channel:
            stub = pipeline_service_pb2_grpc.PipelineServiceStub(channel)
            calls = []
            for number in range(count):
                call = stub.WatchRun(pb.WatchRunRequest(run_id=run.id))
                call.add_done_callback(lambda call=call: note(call))
                calls.append(call)
                if number % 1000 == 200:
                    assert both.run(run.id).id == run.id
            assert all_refused.wait(120)
            assert set(ended) == {(Code.RESOURCE_EXHAUSTED, True)}
            assert oskar.run(run.id).id == run.id, "the same caller's calls are not streams"
            for call in calls:
                call.cancel()
        run.cancel()


# --- health and reflection -------------------------------------------------------------------------


def test_health_is_for_everybody_whose_certificate_is_good(lab: Lab) -> None:
    with connect(lab.server.address, lab.access()) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_probes_without_tls_find_health_and_nothing_else(lab: Lab) -> None:
    """As Kubernetes' own probes ask."""
    with connect(lab.server.health_address, Access()) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            pipeline_service_pb2_grpc.PipelineServiceStub(channel).ListRuns(pb.ListRunsRequest(), timeout=10)
    assert caught.value.code() is Code.UNIMPLEMENTED


@pytest.mark.parametrize(("token", "expected"), [("", Code.UNAUTHENTICATED), ("vera", None)])
def test_reflection_is_for_viewers(lab: Lab, token: str, expected: grpc.StatusCode | None) -> None:
    with connect(lab.server.address, lab.access(token)) as channel:
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        answers = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10)
        if expected is None:
            names = [s.name for s in next(answers).list_services_response.service]
            assert "happyneurons.v1.PipelineService" in names
            return
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
    assert caught.value.code() is expected


def test_methods_that_are_not_there(lab: Lab) -> None:
    with connect(lab.server.address, lab.access("ada")) as channel:
        call = channel.unary_unary("/happyneurons.v1.PipelineService/Shutdown")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=10)
    assert caught.value.code() is Code.UNIMPLEMENTED


def test_a_call_that_sends_no_message_holds_nothing_for_ever(lab: Lab) -> None:
    with connect(lab.server.address, lab.access("oskar")) as channel:
        report = acquisition_service_pb2_grpc.AcquisitionServiceStub(channel).StreamSections
        with pytest.raises(grpc.RpcError) as caught:
            report(iter([acquisition.StreamSectionsRequest(run_id="none")]), timeout=10)
    assert caught.value.code() is Code.NOT_FOUND


def test_the_clients_error_says_what_it_is(lab: Lab) -> None:
    with lab.client("letmein") as client, pytest.raises(UnauthenticatedError, match="not one that this server knows"):
        list(client.runs())
    with lab.client("vera") as client, pytest.raises(PermissionDeniedError, match="a viewer: this needs an operator"):
        client.submit(text(lab))
