"""Executor `kubernetes`, by the official client, against a stand-in of the API: see kubernetes_standin.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from happyneurons.errors import EXIT_OK, EXIT_TRY_AGAIN, UnavailableError, UserError
from happyneurons.executors.base import ProcessState, Submission
from happyneurons.executors.kubernetes import executor as executor_module
from happyneurons.executors.kubernetes.config import KubernetesAccess
from happyneurons.executors.kubernetes.executor import KubernetesExecutor
from happyneurons.executors.kubernetes.manifest import job_name, load_template
from happyneurons.jobs.attempts import attempt_folder, attempt_numbers
from happyneurons.jobs.spec import Resources, job_uri
from happyneurons.orchestrator.sites import SiteConfig, make_executor
from happyneurons.store.documents import Store
from tests.worker.waiting import wait_for

from .conformance import ExecutorConformance, Site
from .conftest import CORES, MEMORY_GB
from .kubernetes_standin import StandIn, standin

pytestmark = pytest.mark.slow  # processes of stages are started again and again

ALL = Resources(threads_per_rank=CORES)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "LOOK_S", 0.05)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[StandIn]:
    (tmp_path / "pods").mkdir()
    with standin(tmp_path / "pods") as server:
        yield server


def access(cluster: StandIn, folder: Path, **fields: object) -> KubernetesAccess:
    file = cluster.kubeconfig(folder / "kubeconfig")
    return KubernetesAccess.model_validate({"image": "lab/{stage}:1", "kubeconfig": file, **fields})


@pytest.fixture
def site(cluster: StandIn, store: Store, tmp_path: Path) -> Iterator[Site]:
    executor = KubernetesExecutor("k8s", access(cluster, tmp_path), CORES, MEMORY_GB)
    yield Site(executor, store, CORES, MEMORY_GB, knows_stages=False, drains=True)
    executor.close()


class TestKubernetes(ExecutorConformance):
    pass


def test_what_is_asked_for_is_in_the_job(cluster: StandIn, site: Site, new_job: Callable[..., str]) -> None:
    handle = site.submit(new_job(tasks=1), Resources(memory_gb=2, walltime_min=5))
    (job,) = cluster.jobs.values()
    assert job["metadata"]["name"] == handle
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "lab/sandbox:1"
    assert container["args"][0] == "run"
    assert container["args"][-2:] == ["--walltime-s", "300.0"]
    assert container["resources"] == {
        "requests": {"cpu": "1", "memory": "2000000000"},
        "limits": {"memory": "2000000000"},
    }
    assert job["spec"]["backoffLimit"] == 0, "the orchestrator decides about retrying"
    assert job["spec"]["activeDeadlineSeconds"] > 300
    assert site.ended(handle).exit_code == EXIT_OK


def test_an_answer_that_got_lost_makes_no_second_job(
    cluster: StandIn, site: Site, store: Store, new_job: Callable[..., str]
) -> None:
    key = new_job(tasks=1)
    cluster.lose_answers = True
    with pytest.raises(UnavailableError, match="does not answer"):
        site.submit(key, token="run/job/0")
    cluster.lose_answers = False
    handle = site.submit(key, token="run/job/0")
    assert list(cluster.jobs) == [handle]
    assert site.ended(handle).exit_code == EXIT_OK
    assert site.submit(key, token="run/job/0") == handle, "also after it has ended"
    submission = Submission(job_uri(store, key), "sandbox", Resources(), token="run/job/1")
    assert job_name(submission, "k8s") != handle


def test_a_restarted_orchestrator_finds_its_jobs_and_their_turns(
    cluster: StandIn, site: Site, store: Store, tmp_path: Path, control: Path, new_job: Callable[..., str]
) -> None:
    running = site.submit(new_job(tasks=1, behaviour={"0": "block"}), ALL)
    site.running(running)
    waiting = site.submit(new_job(tasks=2), ALL)
    successor = Site(KubernetesExecutor("k8s", access(cluster, tmp_path), CORES, MEMORY_GB), store, CORES, MEMORY_GB)
    assert successor.state(running) is ProcessState.RUNNING
    assert successor.state(waiting) is ProcessState.QUEUED
    site.executor.lead(False)
    (control / "release").touch()
    assert site.ended(running).exit_code == EXIT_OK
    assert site.state(waiting) is ProcessState.QUEUED, "it does not lead: it starts nothing"
    assert successor.ended(waiting).exit_code == EXIT_OK
    successor.executor.close()


def test_a_lost_pod_is_a_lost_attempt_and_nothing_else(
    cluster: StandIn, site: Site, store: Store, control: Path, new_job: Callable[..., str]
) -> None:
    key = new_job(tasks=3, behaviour={"1": "block"})
    handle = site.submit(key)
    wait_for(lambda: list(control.glob("started-1-*")), "task 1")
    cluster.kill_pod(handle)
    report = site.ended(handle)
    assert report.exit_code == EXIT_TRY_AGAIN
    assert "backoff limit" in report.detail
    (control / "release").touch()
    again = site.executor.submit(Submission(job_uri(store, key), "sandbox", Resources(), takeover=True))
    assert site.ended(again).exit_code == EXIT_OK
    assert attempt_numbers(store, key) == [1, 2]


def test_a_cancelled_job_keeps_its_cores_until_its_pod_has_ended(
    cluster: StandIn, site: Site, control: Path, new_job: Callable[..., str]
) -> None:
    """Its container goes on while it drains, though Kubernetes counts its pod as active no more."""
    running = site.submit(new_job(tasks=1, behaviour={"0": "block"}), ALL)
    wait_for(lambda: list(control.glob("started-0-*")), "task 0")
    waiting = site.submit(new_job(tasks=2), ALL)
    site.executor.cancel(running)
    wait_for(lambda: cluster.jobs[running]["status"].get("terminating"), "its pod to be told")
    assert cluster.jobs[running]["status"]["active"] == 0
    assert site.executor.capacity().problem == ""  # it has looked anew
    assert site.state(running) is ProcessState.RUNNING
    assert cluster.jobs[waiting]["spec"]["suspend"]
    (control / "release").touch()
    assert site.ended(running).exit_code == EXIT_TRY_AGAIN
    assert site.ended(waiting).exit_code == EXIT_OK


def test_what_a_crash_printed_is_kept_beside_the_attempt(site: Site, store: Store, new_job: Callable[..., str]) -> None:
    key = new_job(tasks=1, behaviour={"0": "user"})
    handle = site.submit(key)
    site.ended(handle)
    assert b"the input is wrong" in store.get(f"{attempt_folder(key, 1)}/output.txt")


def test_a_pod_that_finds_no_node_is_explained(cluster: StandIn, site: Site, new_job: Callable[..., str]) -> None:
    cluster.schedules = False
    handle = site.submit(new_job(tasks=1))
    site.explains(handle, "waits for a node: 0/1 nodes are available: 1 Insufficient cpu")
    assert site.state(handle) is ProcessState.QUEUED
    cluster.schedules = True
    site.ended(handle)
    site.explains(handle, "ended with exit code 0")


def test_an_api_that_is_away_changes_nothing(
    cluster: StandIn, site: Site, control: Path, new_job: Callable[..., str]
) -> None:
    key = new_job(tasks=1, behaviour={"0": "block"})
    handle = site.submit(key)
    site.running(handle)
    cluster.fault = lambda method, path: 503
    with pytest.raises(UnavailableError, match="as told"):
        site.submit(new_job(tasks=2))
    wait_for(lambda: site.executor.capacity().problem, "the problem to be seen")
    assert site.state(handle) is ProcessState.RUNNING, "the last that is known"
    cluster.fault = lambda method, path: None
    (control / "release").touch()
    assert site.ended(handle).exit_code == EXIT_OK


def test_missing_rights_are_said_and_fail_no_job(cluster: StandIn, site: Site, new_job: Callable[..., str]) -> None:
    cluster.fault = lambda method, path: 403 if method == "POST" else None
    with pytest.raises(UnavailableError, match="needs rights for jobs, pods and pods/log"):
        site.submit(new_job(tasks=1))
    cluster.fault = lambda method, path: None
    cluster.token = "another"
    assert "does not accept our token" in site.executor.capacity().problem


def test_cancelled_jobs_do_not_stay_for_ever(
    cluster: StandIn, site: Site, monkeypatch: pytest.MonkeyPatch, new_job: Callable[..., str]
) -> None:
    cluster.schedules = False
    handle = site.submit(new_job(tasks=1))
    site.executor.cancel(handle)
    assert site.ended(handle).exit_code == EXIT_TRY_AGAIN
    assert handle in cluster.jobs
    now = executor_module.time.time() + 3601
    monkeypatch.setattr(executor_module.time, "time", lambda: now)
    wait_for(lambda: site.executor.capacity() and not cluster.jobs, "it to be removed")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"cores": 4}, "needs `cores:`, `memory_gb:` and `kubernetes: {image:}`"),
        ({"cores": 4, "memory_gb": 8}, "needs `cores:`, `memory_gb:` and `kubernetes: {image:}`"),
        (
            {"cores": 4, "memory_gb": 8, "kubernetes": {"image": "x", "kubeconfig": "/no/such/file"}},
            "no access to Kubernetes",
        ),
        ({"cores": 4, "memory_gb": 8, "kubernetes": {"image": "x", "template": "/no/such/file"}}, "pod template"),
    ],
)
def test_a_site_that_lacks_something_is_refused(fields: dict[str, object], why: str) -> None:
    with pytest.raises(UserError, match=why):
        make_executor("k8s", SiteConfig.model_validate({"executor": "kubernetes", **fields}))


def test_templates_without_a_container_and_images_with_other_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("spec: {containers: []}")
    with pytest.raises(UserError, match="expected `spec:"):
        load_template(tmp_path / "t.yaml")
    with pytest.raises(ValueError, match="only {stage} can be replaced"):
        KubernetesAccess(image="lab/{name}:1")
