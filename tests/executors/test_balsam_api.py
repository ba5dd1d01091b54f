"""The client of Balsam's REST interface and the executor on it, while the server misbehaves."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from happyneurons.errors import EXIT_OK, EXIT_TRY_AGAIN, EXIT_USAGE, NotFoundError, UnavailableError, UserError
from happyneurons.executors.balsam.api import PAGE, BalsamApi
from happyneurons.executors.balsam.config import BalsamAccess, PoolLimits
from happyneurons.executors.balsam.executor import BalsamExecutor
from happyneurons.executors.base import ProcessState, Submission
from happyneurons.hpc.folders import SiteFolder, load_site_folder
from happyneurons.jobs.spec import Resources
from tests.worker.waiting import wait_for

from .balsam_standin import StandIn, standin

SUBMISSION = Submission("file:///store/jobs/k", "sandbox", Resources(), token="run/a/0")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.delenv("BALSAM_TOKEN", raising=False)
    with standin() as found:
        yield found


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("good\n")
    return path


@pytest.fixture
def access(server: StandIn, token_file: Path) -> BalsamAccess:
    return BalsamAccess(api=server.url, site="box", token_file=token_file, timeout_s=2, poll_s=0.05)


@pytest.fixture
def api(access: BalsamAccess) -> Iterator[BalsamApi]:
    found = BalsamApi(access)
    yield found
    found.close()


@pytest.fixture
def folder() -> SiteFolder:
    return load_site_folder("slurm")


@pytest.fixture
def new_executor(access: BalsamAccess, folder: SiteFolder) -> Iterator[Callable[..., BalsamExecutor]]:
    made: list[BalsamExecutor] = []

    def make(access: BalsamAccess = access, pool: PoolLimits | None = None) -> BalsamExecutor:
        made.append(BalsamExecutor("box", folder, access, pool or PoolLimits()))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


def jwt(expiry: float) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"sub": 1, "exp": expiry}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2ln"


def test_all_pages_are_read(server: StandIn, api: BalsamApi) -> None:
    for _ in range(PAGE + 5):
        server.add("jobs", tags={"hpn_pool": "box"}, state="READY")
    assert [job["id"] for job in api.jobs(state=["READY"])] == list(range(1, PAGE + 6))
    assert len(api.find_ids("/jobs/", "id", range(1, 500))) == 499
    assert api.find_ids("/jobs/", "id", []) == []


def test_errors_say_whose_they_are(server: StandIn, api: BalsamApi) -> None:
    server.fault = lambda method, path: 503
    with pytest.raises(UnavailableError, match="answers 503 to GET /jobs/: as told"):
        api.jobs()
    server.fault = lambda method, path: 429
    with pytest.raises(UnavailableError, match="answers 429"):
        api.jobs()
    server.fault = lambda method, path: 404
    with pytest.raises(NotFoundError):
        api.jobs()
    server.fault = lambda method, path: None
    with pytest.raises(UserError, match=r"refuses PATCH /sites/: body.num_nodes: field required"):
        api.call("PATCH", "/sites/", body=[])
    with pytest.raises(UserError, match=r"no site 'nowhere' \(it has: box\)"):
        api.site("nowhere")
    with pytest.raises(UserError, match=r"no app 'Other' \(it has: HappyStage\)"):
        api.app_id(api.site("box"), "Other")
    with pytest.raises(UserError, match="expected a URL"):
        BalsamApi(BalsamAccess(api="balsam.example.org", site="box"))


def test_a_refused_token_is_read_again(server: StandIn, api: BalsamApi, token_file: Path) -> None:
    assert api.site("box")
    server.token = "newer"
    with pytest.raises(UnavailableError, match=f"does not accept the token in {token_file}.*balsam login"):
        api.site("box")
    token_file.write_text("newer")
    assert api.site("box")


def test_the_token_comes_from_balsams_own_file_or_the_environment(
    server: StandIn, api: BalsamApi, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token_file.write_text("api_root: x\ntoken: good\ntoken_expiry: 2100-01-01 00:00:00\n")
    assert api.site("box")
    token_file.write_text("api_root: x\ntoken: good\ntoken_expiry: 2020-01-02 03:04:05\n")
    with pytest.raises(UnavailableError, match="expired at 2020-01-02 03:04 UTC: run `balsam login`"):
        api.site("box")
    token_file.write_text("api_root: x\ntoken: null\n")
    with pytest.raises(UnavailableError, match="holds no Balsam token; run `balsam login`"):
        api.site("box")
    token_file.unlink()
    with pytest.raises(UnavailableError, match="no Balsam token"):
        api.site("box")
    monkeypatch.setenv("BALSAM_TOKEN", "good")
    assert api.site("box")
    asked = len(server.requests)
    monkeypatch.setenv("BALSAM_TOKEN", jwt(1_500_000_000))
    with pytest.raises(UnavailableError, match=r"in \$BALSAM_TOKEN expired at 2017-07-14"):
        api.site("box")
    assert len(server.requests) == asked, "a token that says itself that it is over is not tried"


def test_nobody_there(token_file: Path) -> None:
    api = BalsamApi(BalsamAccess(api="http://127.0.0.1:9", site="box", token_file=token_file))
    with pytest.raises(UnavailableError, match=r"Balsam server http://127.0.0.1:9 does not answer: .*refused"):
        api.jobs()


def test_a_lost_answer_makes_no_second_job(
    server: StandIn, access: BalsamAccess, new_executor: Callable[..., BalsamExecutor]
) -> None:
    executor = new_executor(access.model_copy(update={"timeout_s": 0.3}))
    wait_for(lambda: server.requests and not executor.capacity().problem, "the first look")
    server.lose_answers_s = 1.0
    with pytest.raises(UnavailableError, match="does not answer within"):
        executor.submit(SUBMISSION)
    server.lose_answers_s = 0.0
    wait_for(lambda: not executor.capacity().problem, "the next look")
    handle = executor.submit(SUBMISSION)
    assert executor.submit(SUBMISSION) == handle
    assert new_executor().submit(SUBMISSION) == handle, "another process finds it too"
    assert len(server.jobs()) == 1
    assert server.jobs()[0]["tags"] == {"hpn": handle, "hpn_key": "k", "hpn_pool": "box", "hpn_hand": "yes"}


def test_a_job_that_got_there_twice_is_dropped_once(
    server: StandIn, new_executor: Callable[..., BalsamExecutor]
) -> None:
    executor = new_executor()
    handle = executor.submit(SUBMISSION)
    first = server.jobs()[0]
    twin = server.add("jobs", **{k: v for k, v in first.items() if k != "id"})
    wait_for(lambda: twin["state"] == "FAILED", "the twin to be dropped")
    assert first["state"] == "STAGED_IN"
    assert executor.poll([handle])[handle].state is ProcessState.QUEUED


def test_while_the_server_is_away_nothing_is_lost(server: StandIn, new_executor: Callable[..., BalsamExecutor]) -> None:
    executor = new_executor()
    handle = executor.submit(SUBMISSION)
    server.move(server.jobs()[0], "RUNNING")
    wait_for(lambda: executor.poll([handle])[handle].state is ProcessState.RUNNING, "it to run")
    server.fault = lambda method, path: 503
    wait_for(lambda: executor.capacity().problem, "the executor to notice")
    report = executor.poll([handle])[handle]
    assert report.state is ProcessState.RUNNING, "the last known state"
    assert "answers 503" in report.detail
    assert "since" in report.detail
    assert "last seen running" in executor.explain(handle)
    asked = len(server.requests)
    second = Submission("file:///store/jobs/l", "sandbox", Resources(), token="run/b/0")
    with pytest.raises(UnavailableError, match="answers 503"):
        executor.submit(second)
    assert ("POST", "/jobs/") not in server.requests[asked:], "it is not even tried"
    unheard = executor.poll(["abc"])["abc"]
    assert unheard.state is ProcessState.QUEUED, "nobody can say that it is not there"

    server.move(server.jobs()[0], "JOB_FINISHED")
    server.fault = lambda method, path: None
    wait_for(lambda: executor.poll([handle])[handle].state is ProcessState.EXITED, "its end")
    assert executor.poll([handle])[handle].exit_code == EXIT_OK
    wait_for(lambda: executor.poll(["abc"])["abc"].state is ProcessState.UNKNOWN, "an answer")
    executor.submit(second)
    assert len(server.jobs()) == 2


def test_an_expired_token_is_waited_for(
    server: StandIn, new_executor: Callable[..., BalsamExecutor], token_file: Path
) -> None:
    token_file.write_text(
        f"token: good\ntoken_expiry: {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(1_600_000_000))}"
    )
    executor = new_executor()
    problem = wait_for(lambda: executor.capacity().problem, "the executor to notice")
    assert "expired at 2020-09-13" in problem
    assert "balsam login" in problem
    with pytest.raises(UnavailableError, match="balsam login"):
        executor.submit(SUBMISSION)
    token_file.write_text("good")
    wait_for(lambda: not executor.capacity().problem, "the executor to go on")
    executor.submit(SUBMISSION)


def test_a_wrong_site_or_app_is_the_users_error(
    server: StandIn, access: BalsamAccess, new_executor: Callable[..., BalsamExecutor]
) -> None:
    wrong_app = new_executor(access.model_copy(update={"app": "Other"}))
    with pytest.raises(UserError, match="no app 'Other'"):
        wrong_app.submit(SUBMISSION)
    wrong_site = new_executor(access.model_copy(update={"site": "nowhere"}))
    assert "no site 'nowhere'" in wait_for(lambda: wrong_site.capacity().problem, "the executor to notice")
    with pytest.raises(UserError, match="no site 'nowhere'"):
        wrong_site.submit(SUBMISSION)


@pytest.mark.parametrize(
    ("steps", "code", "detail"),
    [
        ([("RUN_ERROR", {"returncode": 9, "error": "killed"}), ("FAILED", {"reason": "error"})], 9, "killed"),
        ([("FAILED", {"reason": "parameters", "message": "stage: no name"})], EXIT_USAGE, "stage: no name"),
        ([("RUN_TIMEOUT", {}), ("FAILED", {"reason": "timeout", "message": "ended"})], EXIT_TRY_AGAIN, "ended"),
        ([("RUN_DONE", {}), ("JOB_FINISHED", {})], EXIT_OK, ""),
    ],
)
def test_how_it_ended_is_told_by_its_events(
    server: StandIn, new_executor: Callable[..., BalsamExecutor], steps: list, code: int, detail: str
) -> None:
    executor = new_executor()
    handle = executor.submit(SUBMISSION)
    for state, data in steps:
        server.move(server.jobs()[0], state, **data)
    wait_for(lambda: executor.poll([handle])[handle].state is ProcessState.EXITED, "its end")
    report = executor.poll([handle])[handle]
    assert report.exit_code == code
    assert detail in report.detail
    assert detail in executor.explain(handle)


def test_a_look_costs_few_calls(server: StandIn, new_executor: Callable[..., BalsamExecutor]) -> None:
    executor = new_executor()
    handles = [
        executor.submit(Submission(f"file:///store/jobs/{n}", "sandbox", Resources(), token=f"run/{n}/0"))
        for n in range(300)
    ]
    wait_for(lambda: len(executor._watch.view.jobs) == 300, "a look at all of them")

    def calls_per_look() -> float:
        start = len(server.requests)
        wait_for(lambda: server.requests[start:].count(("GET", "/sites/")) >= 4, "four looks")
        return (len(server.requests) - start) / 4

    assert calls_per_look() < 8
    assert {r.state for r in executor.poll(handles).values()} == {ProcessState.QUEUED}


def running_batch_job(server: StandIn) -> dict[str, Any]:
    return server.add(
        "batch-jobs", site_id=1, state="running", num_nodes=1, wall_time_min=60, queue="batch", project="p",
        filter_tags={}, status_info={}, start_time=None, scheduler_id=7,
    )  # fmt: skip


def test_cancelled_before_it_ran(server: StandIn, new_executor: Callable[..., BalsamExecutor]) -> None:
    executor = new_executor()
    handle = executor.submit(SUBMISSION)
    executor.cancel(handle)
    wait_for(lambda: executor.poll([handle])[handle].state is ProcessState.EXITED, "its end")
    assert executor.poll([handle])[handle].exit_code not in (EXIT_OK, EXIT_USAGE)
    assert "cancelled" in executor.explain(handle)


def test_what_a_launcher_has_taken_is_not_over_before_its_batch_job(
    server: StandIn, new_executor: Callable[..., BalsamExecutor]
) -> None:
    """Its ranks may be at work already: the server hears of that a little later."""
    executor = new_executor()
    handle = executor.submit(SUBMISSION)
    batch = running_batch_job(server)
    job = server.jobs()[0]
    job.update(state="PREPROCESSED", batch_job_id=batch["id"], session_id=5)
    looks = server.requests.count(("GET", "/jobs/"))
    wait_for(lambda: server.requests.count(("GET", "/jobs/")) > looks + 1, "a look at it")
    executor.cancel(handle)
    wait_for(lambda: batch["state"] == "pending_deletion", "its batch job to be ended")
    assert job["state"] == "PREPROCESSED"
    assert executor.poll([handle])[handle].state is not ProcessState.EXITED
    server.move(job, "RUN_TIMEOUT")
    wait_for(lambda: executor.poll([handle])[handle].state is ProcessState.EXITED, "its end")
    assert executor.poll([handle])[handle].exit_code == EXIT_TRY_AGAIN


def test_what_a_launcher_took_at_that_moment_is_stopped_too(
    server: StandIn, new_executor: Callable[..., BalsamExecutor]
) -> None:
    executor = new_executor()
    handle = executor.submit(SUBMISSION)
    batch = running_batch_job(server)
    job = server.jobs()[0]
    executor.cancel(handle)
    wait_for(lambda: job["state"] == "FAILED", "it to be dropped")
    other = server.add("jobs", **({k: v for k, v in job.items() if k != "id"} | {"tags": {}, "state": "RUNNING"}))
    other["batch_job_id"] = job["batch_job_id"] = batch["id"]
    job["state"] = "RUNNING"
    wait_for(lambda: "1 other jobs run in its batch job" in executor._books.entry(handle).note, "it to be noticed")
    assert batch["state"] == "running", "others run in it"
    other["state"] = "JOB_FINISHED"
    wait_for(lambda: batch["state"] == "pending_deletion", "its batch job to be ended")


def test_a_batch_job_that_has_ended_is_not_asked_to_end_again(
    server: StandIn, new_executor: Callable[..., BalsamExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its launcher was killed before it could say so of its job: the job stays RUNNING at the server."""
    monkeypatch.setattr("happyneurons.executors.balsam.watch.BATCH_JOB_OVER_S", 0.2)
    executor = new_executor()
    handle = executor.submit(SUBMISSION)
    batch = running_batch_job(server)
    job = server.jobs()[0]
    job["batch_job_id"], job["state"] = batch["id"], "RUNNING"
    # Cancelled while a look still holds it for waiting, it would be dropped: another story, told above.
    wait_for(lambda: executor.poll([handle])[handle].state is ProcessState.RUNNING, "it to run")
    executor.cancel(handle)
    wait_for(lambda: batch["state"] == "pending_deletion", "its batch job to be ended")
    batch["state"] = "finished"
    wait_for(lambda: executor.poll([handle])[handle].state is ProcessState.EXITED, "its end")
    assert batch["state"] == "finished"
    executor.cancel(handle)
    looks = server.requests.count(("GET", "/sites/"))
    wait_for(lambda: server.requests.count(("GET", "/sites/")) > looks + 2, "two more looks")
    assert batch["state"] == "finished"


def test_a_killed_launcher_is_noticed_before_the_server_does(
    server: StandIn, new_executor: Callable[..., BalsamExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("happyneurons.executors.balsam.watch.BATCH_JOB_OVER_S", 0.2)
    executor = new_executor()
    handle = executor.submit(SUBMISSION)
    job = server.jobs()[0]
    job["state"], job["batch_job_id"] = "RUNNING", 99
    wait_for(lambda: executor.poll([handle])[handle].state is ProcessState.EXITED, "its end")
    report = executor.poll([handle])[handle]
    assert report.exit_code == EXIT_TRY_AGAIN
    assert "batch job 99 ended" in report.detail


def test_the_pool_backs_off_from_a_scheduler_that_refuses(
    server: StandIn, new_executor: Callable[..., BalsamExecutor]
) -> None:
    executor = new_executor(pool=PoolLimits(max_nodes=4, idle_s=0))
    handle = executor.submit(SUBMISSION)
    batch = wait_for(lambda: next(iter(server.records["batch-jobs"].values()), None), "a batch job")
    assert (batch["num_nodes"], batch["queue"], batch["project"]) == (1, "batch", "p")
    assert batch["filter_tags"] == {"hpn_pool": "box"}
    server.jobs()[0]["state"] = "PREPROCESSED"
    wait_for(lambda: "waits for batch job 1" in executor.explain(handle), "an explanation")
    batch["state"], batch["status_info"] = "submit_failed", {"error": "Invalid account"}
    wait_for(lambda: executor.pool_status().refused == 1, "the refusal")
    wait_for(lambda: "batch job 1 was refused: Invalid account" in executor.explain(handle), "an explanation")
    assert executor.pool_status().nodes_queued == 0
    looks = server.requests.count(("GET", "/sites/"))
    wait_for(lambda: server.requests.count(("GET", "/sites/")) > looks + 4, "more looks")
    assert len(server.records["batch-jobs"]) == 1, "it is not asked again at once"


def test_a_restarted_pool_adopts_its_batch_jobs_and_gives_them_back(
    server: StandIn, new_executor: Callable[..., BalsamExecutor]
) -> None:
    fields = {"site_id": 1, "num_nodes": 1, "wall_time_min": 60, "queue": "batch", "project": "p", "scheduler_id": 7}
    fields |= {"status_info": {}, "start_time": None, "state": "running"}
    own = server.add("batch-jobs", **fields, filter_tags={"hpn_pool": "box"})
    by_hand = server.add("batch-jobs", **fields, filter_tags={"hpn_pool": "box", "hpn_hand": "yes"})
    others = server.add("batch-jobs", **fields, filter_tags={"hpn_pool": "elsewhere"})
    executor = new_executor(pool=PoolLimits(max_nodes=4, idle_s=0.1))
    wait_for(lambda: own["state"] == "pending_deletion", "what idles to be given back")
    assert (by_hand["state"], others["state"]) == ("running", "running")
    status = wait_for(lambda: executor.pool_status() if executor.pool_status().given_back else None, "the count")
    assert (status.nodes_running, status.requested) == (2, 0)
