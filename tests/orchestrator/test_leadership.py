"""Several orchestrators on one store: one leads, all answer, and a client notices nothing when one dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from happyneurons.client import Client
from happyneurons.orchestrator import leadership as leadership_module
from happyneurons.orchestrator.leadership import Leadership
from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.store.documents import Store
from tests.worker.waiting import wait_for

from .conftest import SITES

GATED = """
jobs:
  first: {stage: sandbox, params: {tasks: 2, control: CONTROL, behaviour: {'1': block}}}
  second: {stage: sandbox, params: {tasks: 1, control: CONTROL}, needs: [good]}
gates:
  good: {after: [first], ask: is it good}
"""


# --- terms -----------------------------------------------------------------------------------------


def test_of_many_that_begin_a_term_one_leads(store: Store) -> None:
    many = [Leadership(store, f"o{n}") for n in range(16)]
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda one: one.look(), many)) == 1
    (leader,) = [one for one in many if one.leads]
    assert leader.term == 1
    leader.resign()
    assert not leader.leads
    successor = next(one for one in many if one is not leader)
    wait_for(successor.look, "the next term")
    assert successor.term == 2, "without waiting for a lease"


def test_a_silent_leader_loses_the_lead_and_knows_it_when_it_wakes(store: Store, monkeypatch: Any) -> None:
    monkeypatch.setattr(leadership_module, "LEASE_S", 0.5)
    monkeypatch.setattr(leadership_module, "LISTEN_S", 0.02)
    monkeypatch.setattr(leadership_module, "BEAT_S", 0.02)
    paused, other = Leadership(store, "paused"), Leadership(store, "other")
    assert paused.look()
    beats = wait_for(lambda: paused.look() and store.find_json("leader/00000001/beat.json"), "a heartbeat")
    assert beats["owner"] == "paused"
    assert not other.look()
    assert other.leader["owner"] == "paused"
    # From here on `paused` says nothing.
    wait_for(other.look, "the takeover")
    assert other.term == 2
    assert store.get_json("leader/00000001/end.json")["why"].startswith("no heartbeat")
    wait_for(lambda: not paused.look(), "it to see that its term is over")
    assert paused.term == 0


def test_a_leader_that_cannot_confirm_its_heartbeat_stops_before_others_begin(store: Store, monkeypatch: Any) -> None:
    assert leadership_module.HOLD_S + leadership_module.BEAT_S < leadership_module.LEASE_S
    now = [1000.0]
    monkeypatch.setattr(leadership_module.time, "monotonic", lambda: now[0])
    leader = Leadership(store, "a")
    assert leader.look()
    now[0] += leadership_module.HOLD_S + 0.1
    assert not leader.leads
    assert leader.look(), "the term is still its own: one heartbeat, and it goes on"


# --- two servers -----------------------------------------------------------------------------------


@pytest.fixture
def pair(store: Store) -> Iterator[tuple[OrchestratorServer, OrchestratorServer]]:
    with OrchestratorServer(store, sites=SITES) as leader, OrchestratorServer(store, sites=SITES) as other:
        assert leader.orchestrator.leads
        assert other.orchestrator.stands_by
        yield leader, other


def test_what_is_asked_of_the_one_that_stands_by_is_done_by_the_leader(
    pair: tuple[OrchestratorServer, OrchestratorServer], control: Path
) -> None:
    leader, other = pair
    with Client(other.address) as client, Client(leader.address) as at_leader:
        run = client.submit(GATED.replace("CONTROL", str(control)), request_id="r")
        assert at_leader.submit(GATED.replace("CONTROL", str(control)), request_id="r").id == run.id
        wait_for(lambda: list(control.glob("started-1-*")), "task 1")
        assert run.id in {driver.status.run_id for driver in leader.orchestrator.drivers()}
        (control / "release").touch()
        wait_for(lambda: client.run(run.id).state == "waiting", "the gate")
        run.reject("good", "no")
        events = list(client.watch(run.id, progress=False))
        assert events[-1].type == "run_ended"
        assert at_leader.run(run.id).state == "failed"
        assert [e.number for e in events] == list(range(1, len(events) + 1))
        # The run is over for the leader: a decision at the other one brings it back.
        client.retry(run.id)
        wait_for(lambda: at_leader.run(run.id).state == "waiting", "the gate again")
        client.approve(run.id, "good")
        assert client.run(run.id).wait().state == "succeeded"
    assert len(list(control.glob("started-0-*"))) == 2, "each job once"


def test_a_leader_that_stops_hands_over_at_once_and_the_next_goes_on(
    pair: tuple[OrchestratorServer, OrchestratorServer], control: Path
) -> None:
    leader, other = pair
    with Client(f"ipv4:{leader.address},{other.address}") as client:  # as behind a Service
        run = client.submit(GATED.replace("CONTROL", str(control)))
        wait_for(lambda: list(control.glob("started-1-*")), "task 1")
        leader.close()
        wait_for(lambda: other.orchestrator.leads, "the other one to lead")
        (control / "release").touch()
        wait_for(lambda: client.run(run.id).state == "waiting", "the gate")
        client.approve(run.id, "good")
        assert client.run(run.id).wait().state == "succeeded"
    assert len(list(control.glob("started-1-*"))) == 1


def test_a_retried_run_is_not_forgotten_by_the_next_leader(store: Store, control: Path) -> None:
    """Its summary said that it was over when it was retried."""
    with OrchestratorServer(store, sites=SITES) as first, Client(first.address) as client:
        run = client.submit(GATED.replace("CONTROL", str(control)))
        wait_for(lambda: list(control.glob("started-1-*")), "task 1")
        run.cancel("again, please")
        wait_for(lambda: client.run(run.id).state == "cancelled", "its end")
        client.retry(run.id)
        wait_for(lambda: len(list(control.glob("started-1-*"))) == 2, "task 1 again")
    with OrchestratorServer(store, sites=SITES) as second:
        assert run.id in {driver.status.run_id for driver in second.orchestrator.drivers()}
        (control / "release").touch()
        wait_for(lambda: second.orchestrator.driver(run.id).status.jobs["first"].phase == "succeeded", "the job")


# --- processes -------------------------------------------------------------------------------------


def serve(store: Store, port_file: Path) -> tuple[subprocess.Popen[bytes], str]:
    command = [sys.executable, "-m", "happyneurons.cli.main", "serve", "orchestrator", "--store", store.uri]
    command += ["--address", "127.0.0.1:0", "--port-file", str(port_file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(lambda: port_file.exists() or process.poll() is not None, "the server")
    assert process.poll() is None
    return process, port_file.read_text().strip()


def test_a_client_sees_no_failure_when_the_leader_is_killed(store: Store, control: Path, tmp_path: Path) -> None:
    first, address = serve(store, tmp_path / "a")
    second, other = serve(store, tmp_path / "b")
    try:
        assert store.get_json("leader/00000001/begin.json")["pid"] == first.pid
        seen: list[Any] = []
        with Client(f"ipv4:{address},{other}") as client:
            run = client.submit(GATED.replace("CONTROL", str(control)))
            watcher = threading.Thread(target=lambda: seen.extend(client.watch(run.id, progress=False)))
            watcher.start()
            wait_for(lambda: list(control.glob("started-1-*")), "task 1")
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
            (control / "release").touch()
            wait_for(lambda: client.run(run.id).state == "waiting", "the gate")
            client.approve(run.id, "good")
            watcher.join(60)
            assert not watcher.is_alive()
        assert [e.number for e in seen] == list(range(1, len(seen) + 1)), "nothing twice, nothing missing"
        assert seen[-1].type == "run_ended"
        assert len(list(control.glob("started-1-*"))) == 1, "the running attempt was adopted, not repeated"
        assert store.get_json("leader/00000002/begin.json")["pid"] == second.pid
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
