"""Allocations by hand: nodes that a person asks for are used, seen, and given back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from integration_tests.hpc.rig import QUEUE, Rig
from tests.worker.waiting import wait_for

from happyneurons.errors import EXIT_OK, EXIT_TRY_AGAIN, PreconditionError, UserError
from happyneurons.executors.balsam.config import BalsamAccess, PoolLimits
from happyneurons.executors.balsam.executor import BalsamExecutor
from happyneurons.executors.balsam.nodes import Nodes
from happyneurons.executors.base import ProcessState, Submission
from happyneurons.hpc.folders import SiteFolder, load_site_folder
from happyneurons.jobs.spec import Resources, job_uri, make_spec, save_spec
from happyneurons.stages import load_stage

LIMIT_S = 180.0


@pytest.fixture
def access(rig: Rig) -> BalsamAccess:
    return BalsamAccess(api=rig.api, site=rig.site_name, token_file=rig.token_file, poll_s=0.5)


@pytest.fixture
def folder(rig: Rig) -> SiteFolder:
    return load_site_folder(str(rig.site_folder))


@pytest.fixture
def nodes(rig: Rig, access: BalsamAccess, folder: SiteFolder) -> Iterator[Nodes]:
    found = Nodes(rig.site_name, folder, access, PoolLimits())
    yield found
    found.close()


def test_nodes_are_asked_for_used_and_given_back(
    rig: Rig, nodes: Nodes, access: BalsamAccess, folder: SiteFolder, tmp_path: Path
) -> None:
    store = rig.new_store()
    spec = make_spec(
        load_stage("sandbox"), inputs={}, params={"tasks": 2, "control": str(tmp_path), "behaviour": {"1": "block"}}
    )
    save_spec(store, spec)
    executor = BalsamExecutor(rig.site_name, folder, access, PoolLimits(idle_s=0))
    handle = executor.submit(Submission(job_uri(store, spec.key), "sandbox", Resources()))
    wait_for(lambda: "`hpn site request`" in executor.explain(handle), "an explanation", LIMIT_S)
    assert nodes.waiting_jobs() == 1

    asked = nodes.request(2, walltime_min=15)
    assert (asked.nodes, asked.queue, asked.walltime_min) == (2, QUEUE, 15)
    running = nodes.wait(asked.id, LIMIT_S)
    assert 0 < (running.minutes_left or 0) <= 15
    wait_for(lambda: executor.poll([handle])[handle].state is ProcessState.RUNNING, "the job to run", LIMIT_S)
    assert executor.pool_status().nodes_running == 2
    busy = wait_for(lambda: next((b for b in nodes.list() if b.jobs), None), "it to be seen", LIMIT_S)
    assert (busy.id, len(busy.jobs)) == (asked.id, 1)
    with pytest.raises(PreconditionError, match="runs 1 jobs"):
        nodes.release(asked.id)

    (tmp_path / "release").touch()
    wait_for(lambda: executor.poll([handle])[handle].state is ProcessState.EXITED, "the end", LIMIT_S)
    assert executor.poll([handle])[handle].exit_code == EXIT_OK
    assert executor.pool_status().given_back == 0, "the pool never gives back what a person asked for"
    nodes.release(asked.id)
    wait_for(lambda: nodes.list() == [], "the nodes to be free", LIMIT_S)
    assert nodes.get(asked.id).state == "finished"
    executor.close()


def test_a_batch_job_is_ended_once_nothing_in_it_is_wanted(
    rig: Rig, nodes: Nodes, access: BalsamAccess, folder: SiteFolder, tmp_path: Path
) -> None:
    store = rig.new_store()
    executor = BalsamExecutor(rig.site_name, folder, access, PoolLimits())
    handles = []
    for tasks in (1, 2):
        params = {"tasks": tasks, "control": str(tmp_path), "behaviour": {"0": "block"}}
        spec = make_spec(load_stage("sandbox"), inputs={}, params=params)
        save_spec(store, spec)
        handles.append(executor.submit(Submission(job_uri(store, spec.key), "sandbox", Resources())))
    asked = nodes.request(1)
    running = {ProcessState.RUNNING}
    wait_for(lambda: {r.state for r in executor.poll(handles).values()} == running, "both to run", LIMIT_S)
    executor.cancel(handles[0])
    wait_for(lambda: "1 other jobs run in its batch job" in executor.explain(handles[0]), "an explanation", LIMIT_S)
    assert nodes.get(asked.id).state == "running", "the other one is wanted"
    executor.cancel(handles[1])
    wait_for(lambda: all(r.state is ProcessState.EXITED for r in executor.poll(handles).values()), "ends", LIMIT_S)
    assert {r.exit_code for r in executor.poll(handles).values()} <= {EXIT_TRY_AGAIN, 143, 15, 9, 137}
    executor.close()


def test_what_the_queue_forbids_is_not_asked_for(nodes: Nodes, rig: Rig) -> None:
    with pytest.raises(UserError, match=f"queue {QUEUE} gives 1 to {rig.nodes} nodes; asked for 99"):
        nodes.request(99)
    with pytest.raises(UserError, match="at most 120 min; asked for 999"):
        nodes.request(1, walltime_min=999)
    with pytest.raises(UserError, match=f"has no queue 'gold'; it has {QUEUE}"):
        nodes.request(1, queue="gold")
    with pytest.raises(UserError, match="has no batch job 99999"):
        nodes.release(99999)
