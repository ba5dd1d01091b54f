"""The Balsam application, `hpn-rank` and the site, as plain REST sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integration_tests.hpc.rig import Rig
from tests.worker.waiting import wait_for

from happyneurons.jobs.spec import job_uri, make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.store.documents import Store

# As in the other tests: the agent may still wait to ask again, after a test in which the server was away.
LIMIT_S = 240.0


@pytest.fixture
def store(rig: Rig) -> Store:
    return rig.new_store()


@pytest.fixture
def new_job(store: Store) -> Callable[..., str]:
    """Register a sandbox job; returns its key."""

    def make(**params: Any) -> str:
        spec = make_spec(load_stage("sandbox"), inputs={}, params=params)
        save_spec(store, spec)
        return spec.key

    return make


def test_two_ranks_and_a_coordinator_publish_their_result(rig: Rig, store: Store, new_job: Callable[..., str]) -> None:
    key = new_job(tasks=8)
    job = rig.submit(job_uri(store, key), ranks_per_node=3)
    rig.request_nodes()
    rig.wait_for_state(job, "JOB_FINISHED")
    manifest = store.get_json(f"jobs/{key}/manifest.json")
    assert manifest["metrics"]["sum"] == sum(i * i for i in range(8))
    assert manifest["provenance"]["workers"] == 2


def test_one_job_runs_on_two_nodes(rig: Rig, store: Store, new_job: Callable[..., str]) -> None:
    key = new_job(tasks=8)
    job = rig.submit(job_uri(store, key), num_nodes=2, ranks_per_node=2)
    rig.request_nodes(2)
    rig.wait_for_state(job, "JOB_FINISHED")
    assert store.get_json(f"jobs/{key}/manifest.json")["provenance"]["workers"] == 3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"stage": "sandbox; touch /tmp/x"}, "stage"),
        ({"job_uri": "file:///etc/jobs/0123"}, "none of this site's stores"),
        ({"threads": "2 --takeover"}, "threads"),
        ({"walltime_s": "$(id)"}, "walltime_s"),
        ({"mode": "everything"}, "mode"),
        ({"threads": 2}, "must be a string"),
        ({"more": "of it"}, "more"),
    ],
)
def test_wrong_parameters_fail_before_anything_runs(rig: Rig, store: Store, wrong: dict[str, Any], says: str) -> None:
    job = rig.submit(f"{store.uri}/jobs/0123", wrong)
    rig.wait_for_state(job, "FAILED")
    last = rig.events(job)[-1]
    assert last["from_state"] == "STAGED_IN"
    assert last["data"]["reason"] == "parameters"
    assert says in last["data"]["message"]


def test_a_failed_job_says_its_exit_code_and_its_last_words(rig: Rig, store: Store) -> None:
    job = rig.submit(f"{store.uri}/jobs/0123456789abcdef", ranks_per_node=2)
    rig.request_nodes()
    rig.wait_for_state(job, "FAILED")
    data = rig.events(job)[-1]["data"]
    assert (data["reason"], data["returncode"]) == ("error", 2)
    assert "0123456789abcdef" in data["error"]


def test_the_end_of_the_batch_job_fails_its_jobs_and_does_not_restart_them(
    rig: Rig, store: Store, new_job: Callable[..., str], tmp_path: Path
) -> None:
    key = new_job(tasks=2, control=str(tmp_path), behaviour={"0": "block"})
    job = rig.submit(job_uri(store, key), ranks_per_node=2)
    batch = rig.request_nodes()
    wait_for(lambda: list(tmp_path.glob("started-0-*")), "the blocked task", LIMIT_S)
    rig.wait_for_state(job, "RUNNING")
    rig.release_nodes(batch)
    rig.wait_for_state(job, "FAILED")
    states = [event["to_state"] for event in rig.events(job)]
    assert "RESTART_READY" not in states
    assert rig.events(job)[-1]["data"]["reason"] in ("timeout", "error")
    wait_for(lambda: not rig.ranks(key), "the ranks to end", LIMIT_S)
    wait_for(lambda: rig.batch_job(batch)["state"] == "finished", "the batch job's end to be known", LIMIT_S)
    assert rig.batch_job(batch)["start_time"] is not None


def test_a_killed_launcher_takes_its_ranks_and_its_batch_job_with_it(
    rig: Rig, store: Store, new_job: Callable[..., str], tmp_path: Path
) -> None:
    key = new_job(tasks=2, control=str(tmp_path), behaviour={"0": "block"})
    rig.submit(job_uri(store, key), ranks_per_node=2)
    batch = rig.request_nodes()
    wait_for(lambda: list(tmp_path.glob("started-0-*")), "the blocked task", LIMIT_S)
    assert rig.kill_launcher() > 0
    wait_for(lambda: not rig.ranks(key), "the ranks to end", LIMIT_S)
    wait_for(lambda: rig.batch_job(batch)["state"] == "finished", "the batch job's end", LIMIT_S, every_s=0.2)


def test_the_server_may_be_away_while_a_job_runs(
    rig: Rig, store: Store, new_job: Callable[..., str], tmp_path: Path
) -> None:
    key = new_job(tasks=2, control=str(tmp_path), behaviour={"1": "block"})
    job = rig.submit(job_uri(store, key))
    rig.request_nodes()
    wait_for(lambda: list(tmp_path.glob("started-1-*")), "the blocked task", LIMIT_S)
    rig.stop_server()
    (tmp_path / "release").touch()
    wait_for(lambda: store.exists(f"jobs/{key}/manifest.json"), "the result", LIMIT_S)
    rig.start_server()
    rig.wait_for_state(job, "JOB_FINISHED")


def test_ranks_drain_before_the_launcher_ends(
    rig: Rig, store: Store, new_job: Callable[..., str], tmp_path: Path
) -> None:
    key = new_job(tasks=3, control=str(tmp_path), behaviour={"2": "block"})
    job = rig.submit(job_uri(store, key), ranks_per_node=2)
    rig.request_nodes(walltime_min=3)  # its launcher ends after one minute
    rig.wait_for_state(job, "FAILED")
    end = store.get_json(f"jobs/{key}/attempts/0001/end.json")
    assert end["state"] == "drained"
    assert "walltime" in end["message"]
    assert rig.events(job)[-1]["data"]["reason"] in ("error", "timeout")
    assert "RESTART_READY" not in [event["to_state"] for event in rig.events(job)]
