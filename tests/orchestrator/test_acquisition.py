"""Open runs: every section that was reported goes through its batch's jobs once, whatever happens in between."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from happyneurons.client import Client
from happyneurons.client.plain import short
from happyneurons.client.runs import Run
from happyneurons.errors import ConflictError, NotFoundError, PreconditionError, UserError
from happyneurons.orchestrator.graph import Acquisition
from happyneurons.orchestrator.intake import MOST_IN_WORK, Intake
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.reports import Reports
from happyneurons.orchestrator.runlog import Event, read_events
from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.orchestrator.state import AcquisitionStatus, RunStatus
from happyneurons.store.documents import Store
from happyneurons.v1 import acquisition_pb2
from happyneurons.v1 import acquisition_service_pb2 as pb
from happyneurons.v1.acquisition_service_pb2_grpc import AcquisitionServiceStub

from ..worker.waiting import wait_for
from .conftest import SITES

OPEN = """
name: open
acquisition: {batch: 2, wait_s: 3600}
jobs:
  first: {stage: gather, each: batch, params: {source: "${batch}", poison: "POISON"}}
  second: {stage: gather, each: batch, inputs: {tables: first.table}}
  all: {stage: gather, inputs: {tables: second.table}}
"""


@pytest.fixture
def poison(tmp_path: Path) -> Path:
    return tmp_path / "poison"


@pytest.fixture
def start(client: Client, poison: Path) -> Callable[..., Run]:
    def submit() -> Run:
        return client.submit(OPEN.replace("POISON", str(poison)))

    return submit


def section(z: int, day: int = 0, **changes: Any) -> acquisition_pb2.Section:
    """Section z as it was imaged on a day: two tiles."""
    tiles = [
        acquisition_pb2.Tile(
            uri=f"file:///scope/day{day}/{z}_{column}.tif", column=column, x_nm=800.0 * column,
            width_px=110, height_px=90,
        )
        for column in range(2)
    ]  # fmt: skip
    return acquisition_pb2.Section(**{"z": z, "pixel_size_nm": 8, "thickness_nm": 40, "tiles": tiles, **changes})


def rows(run: Run, job: str) -> list[list[int]]:
    """What a job found: [z, version] in its order."""
    found: list[list[int]] = run.open(f"{job}.table")["rows"]
    return found


def state(run: Run, job: str) -> str:
    jobs = run.refresh().jobs
    return short(jobs[job].job, "state") if job in jobs else ""


# --- a run from its first section to its end -----------------------------------------------------


def test_sections_go_through_in_batches_and_are_joined_at_the_end(start):
    run = start()
    wait_for(lambda: run.refresh().state == "waiting", "the run to want sections")
    assert run.message == "sections from the microscope"
    for z in (7, 3, 5):
        run.report_section(section(z))
    wait_for(lambda: state(run, "second[0001]") == "succeeded", "the first batch")
    assert rows(run, "second[0001]") == [[3, 1], [7, 1]]
    assert state(run, "first[0002]") == "", "section 5 waits for another one, or for the end"
    assert state(run, "all") == "waiting"
    assert run.jobs["all"].job.waiting_for == "second of all batches (the acquisition goes on)"
    run.end_acquisition()
    run.wait()
    assert rows(run, "all") == [[3, 1], [7, 1], [5, 1]], "batches in their order"
    types = [e.type for e in run.watch(progress=False) if e.type in ("batch_opened", "acquisition_ended", "run_ended")]
    assert types == ["batch_opened", "batch_opened", "acquisition_ended", "run_ended"]


def test_status_counts_sections_gaps_and_the_lag(start, client, server):
    run = start()
    for z in (10, 11, 14, 19, 20):
        client.report_section(run.id, section(z))
    wait_for(lambda: run.refresh().proto.acquisition.sections_done == 4, "two batches")
    found = run.proto.acquisition
    assert (found.sections_reported, found.sections_waiting, found.sections_in_work) == (5, 1, 0)
    assert [(g.first_z, g.last_z) for g in found.gaps] == [(12, 13), (15, 18)]
    assert (found.sections_in_gaps, found.batches, found.ended) == (6, 2, False)
    assert found.HasField("lag"), "section 20 waits"
    scraped = urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=30).read().decode()
    figures = dict(line.rsplit(" ", 1) for line in scraped.splitlines() if line.startswith("happyneurons_acquisition"))
    assert float(figures["happyneurons_acquisition_sections_reported_total"]) == 5
    assert float(figures["happyneurons_acquisition_sections_waiting"]) == 1
    assert float(figures["happyneurons_acquisition_section_seconds_count"]) == 4
    assert float(figures["happyneurons_acquisition_lag_seconds"]) > 0
    run.end_acquisition()
    run.wait()
    assert not run.proto.acquisition.HasField("lag"), "nothing is left in work"
    assert (run.proto.acquisition.sections_done, run.proto.acquisition.ended) == (5, True)


def test_a_section_imaged_again_goes_into_a_later_batch(start, client):
    run = start()
    for z in (0, 1):
        run.report_section(section(z))
    wait_for(lambda: state(run, "first[0001]"), "the first batch")
    assert run.report_section(section(0, day=1), imaged_again=True).version == 2
    run.report_section(section(2), last=True)
    run.wait()
    assert rows(run, "all") == [[0, 1], [1, 1], [0, 2], [2, 1]]
    assert client.explain(run.id, "first[0002]").reasons[0] == "it has batch 2: sections 2, 0 (version 2)"
    assert run.proto.acquisition.sections_imaged_again == 1
    assert run.proto.acquisition.sections_reported == 3


def test_a_section_imaged_again_before_its_batch_is_in_it_once(start):
    run = start()
    run.report_section(section(0))
    run.report_section(section(0, day=1), imaged_again=True)
    run.report_section(section(1), last=True)
    run.wait()
    assert rows(run, "all") == [[0, 2], [1, 1]]


def test_a_failed_batch_does_not_hold_up_the_others_and_can_be_retried(start, client, poison):
    run = start()
    poison.touch()
    for z in (0, 1):
        run.report_section(section(z))
    wait_for(lambda: state(run, "second[0001]") == "skipped", "the first batch to fail")
    assert run.proto.acquisition.sections_failed == 2
    assert run.state not in ("failed", "succeeded"), "more sections may come"
    poison.unlink()
    for z in (2, 3):
        run.report_section(section(z))
    wait_for(lambda: state(run, "second[0002]") == "succeeded", "the second batch")
    run.retry(retry_quarantined=True)
    run.end_acquisition()
    run.wait()
    assert rows(run, "all") == [[0, 1], [1, 1], [2, 1], [3, 1]]


def test_a_cancelled_run_ends_and_takes_nothing_more(start):
    run = start()
    run.report_section(section(0))
    run.cancel("enough")
    wait_for(lambda: run.refresh().state == "cancelled", "the end")
    run.report_section(section(0))
    with pytest.raises(PreconditionError, match="is cancelled"):
        run.report_section(section(1))
    with pytest.raises(PreconditionError):
        run.end_acquisition()


def test_the_same_batch_in_another_run_is_not_computed_again(start):
    for expected in (False, True):
        run = start()
        run.report_sections([section(0), section(1)], last=True)
        run.wait()
        assert run.jobs["first[0001]"].job.reused is expected


def test_a_job_for_each_batch_is_explained_by_its_name(start, client):
    run = start()
    with pytest.raises(NotFoundError, match="first is a job for each batch of sections: none yet"):
        client.explain(run.id, "first")
    with pytest.raises(NotFoundError, match="no job 'third'; there are first, second, all"):
        client.explain(run.id, "third")
    run.cancel()


# --- reports -------------------------------------------------------------------------------------


def test_an_equal_report_changes_nothing_and_other_tiles_are_refused(start):
    run = start()
    assert not run.report_section(section(0)).known
    again = run.report_section(section(0))
    assert (again.known, again.version, again.sections_reported) == (True, 1, 1)
    shuffled = section(0, tiles=list(reversed(section(0).tiles)))
    assert run.report_section(shuffled).known, "the order of tiles says nothing"
    with pytest.raises(ConflictError, match="section 0 was reported with other tiles"):
        run.report_section(section(0, day=1))
    assert run.report_section(section(0), imaged_again=True).known, "nothing in it is new"
    run.end_acquisition()
    run.end_acquisition()
    assert run.report_section(section(0), last=True).known
    with pytest.raises(PreconditionError, match="its acquisition has ended"):
        run.report_section(section(1))
    run.wait()


def test_what_was_imaged_again_into_the_same_files_is_told_by_its_time(start):
    run = start()
    first, second = section(0), section(0)
    first.acquire_time.FromSeconds(1000)
    second.acquire_time.FromSeconds(2000)
    run.report_section(first)
    assert run.report_section(second).known
    assert run.report_section(second, imaged_again=True).version == 2
    assert run.report_section(second, imaged_again=True).known
    run.cancel()


@pytest.mark.parametrize(
    ("changes", "tile", "field"),
    [
        ({"z": -1}, {}, "section.z"),
        ({"pixel_size_nm": 0}, {}, "section.pixel_size_nm"),
        ({"pixel_size_nm": math.nan}, {}, "section.pixel_size_nm"),
        ({"thickness_nm": -1}, {}, "section.thickness_nm"),
        ({"tiles": []}, {}, "section.tiles"),
        ({}, {"column": 0}, "section.tiles[1].row"),
        ({}, {"row": -1}, "section.tiles[1].row"),
        ({}, {"x_nm": math.inf}, "section.tiles[1].x_nm"),
        ({}, {"width_px": 0}, "section.tiles[1].width_px"),
        ({}, {"uri": "scope/tile.tif"}, "section.tiles[1].uri"),
        ({}, {"uri": "ftp://scope/tile.tif"}, "section.tiles[1].uri"),
        ({}, {"uri": ""}, "section.tiles[1].uri"),
        ({}, {"sha256": "abc"}, "section.tiles[1].sha256"),
    ],
)
def test_wrong_sections_are_refused_with_the_field(client, start, changes, tile, field):
    run, wrong = start(), section(**{"z": 0, **changes})
    if tile:
        wrong.tiles[1].MergeFrom(acquisition_pb2.Tile())
        for name, value in tile.items():
            setattr(wrong.tiles[1], name, value)
    with pytest.raises(UserError) as caught:
        run.report_section(wrong)
    assert [path for path, _ in caught.value.violations] == [field]
    assert run.refresh().proto.acquisition.sections_reported == 0
    run.cancel()


def test_sections_of_another_pixel_size_are_refused(start):
    run = start()
    run.report_section(section(0))
    with pytest.raises(UserError, match="pixel_size_nm is 4, expected 8"):
        run.report_section(section(1, pixel_size_nm=4))
    run.cancel()


def test_calls_that_name_no_open_run_are_refused(client, server, control):
    with pytest.raises(NotFoundError):
        client.end_acquisition("nothing")
    closed = client.submit("jobs:\n  a: {stage: sandbox, params: {tasks: 1}}\n").wait()
    with pytest.raises(PreconditionError, match="takes no sections: its pipeline has no `acquisition:`"):
        client.report_section(closed.id, section(0))
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        AcquisitionServiceStub(channel).ReportSection(pb.ReportSectionRequest(run_id=closed.id), timeout=30)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_stream_counts_what_was_new_and_keeps_what_came_before_a_mistake(client, start):
    run = start()
    run.report_section(section(0))
    with pytest.raises(UserError, match=r"section\.z"):
        client.report_sections(run.id, [section(0), section(1), section(-1), section(2)])
    answer = client.report_sections(run.id, [section(0), section(1), section(2)], last=True)
    assert (answer.accepted, answer.known, answer.sections_reported) == (1, 2, 3)
    run.wait()


def test_one_section_reported_by_many_at_once_is_one_version(start, client):
    run = start()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.report_section(run.id, section(4)), range(16)))
    assert {a.version for a in answers} == {1}
    assert sum(not a.known for a in answers) == 1
    run.cancel()


def test_reports_of_two_orchestrators_at_once_are_one_version(store):
    """They share nothing but the store."""
    document = {"z": 4, "pixel_size_nm": 8.0, "thickness_nm": 40.0, "tiles": [], "acquired": 0.0}
    both = [Reports(store, "run"), Reports(store, "run")]
    for reports in both:
        assert reports.count() == 0
    barrier = threading.Barrier(2)

    def report(reports: Reports) -> tuple[int, bool]:
        barrier.wait()
        return reports.report(document, imaged_again=False)

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(report, both))
    assert {version for version, _ in answers} == {1}
    assert len(list(store.list("runs/run/sections"))) == 1


def test_sections_that_another_orchestrator_takes_in_reach_the_one_that_leads(start, store):
    run = start()
    with OrchestratorServer(store, sites=SITES) as other, Client(other.address) as there:
        assert other.orchestrator.stands_by
        run.report_section(section(3))
        there.report_section(run.id, section(5))
        wait_for(lambda: state(run, "first[0001]"), "the batch of both")
    run.cancel()


# --- batches -------------------------------------------------------------------------------------


def test_a_batch_is_closed_when_full_or_when_its_first_section_waited_long_enough(store):
    intake, status = Intake(store, "run", Acquisition(batch=3, wait_s=10)), AcquisitionStatus()
    document = {"pixel_size_nm": 8.0, "thickness_nm": 40.0, "tiles": [], "acquired": 0.0}

    def due(after_s: float) -> list[list[list[int]]]:
        """Sections of the batches that are due some time after the first report."""
        found = []
        for _, data in intake.due(status, first + after_s):
            status.batched |= dict(data["sections"])
            found.append([list(s) for s in data["sections"]])
        return found

    for z in (5, 9):
        intake.reports.report({**document, "z": z}, imaged_again=False)
    first = intake.reports.waiting({})[0].reported
    assert due(9.9) == []
    assert due(10.1) == [[[5, 1], [9, 1]]]
    for z in (1, 8, 2, 3):
        intake.reports.report({**document, "z": z}, imaged_again=False)
    assert due(0) == [[[1, 1], [8, 1], [2, 1]]], "in the order of arrival; section 3 waits"
    assert not intake.over(status)
    intake.reports.end()
    assert list(intake.due(status, first, in_work=MOST_IN_WORK)) == [], "enough is in work"
    assert due(0) == [[[3, 1]]]
    assert intake.over(status)


def test_the_state_is_a_fold_over_the_log(start, server, store):
    run = start()
    run.report_sections([section(z) for z in (4, 2, 9)], last=True)
    run.wait()
    driver = server.orchestrator.driver(run.id)
    again = RunStatus.fresh(run.id, driver.status.written, driver.status.spec)
    for event in read_events(store, run.id):
        again.apply(event)
    assert again == driver.status


# --- restarts ------------------------------------------------------------------------------------

PREDECESSOR = """
import sys, time
from pathlib import Path
from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.orchestrator.sites import SiteConfig
from happyneurons.store.documents import Store
record = RunDriver.record
def die(self, type_, *args, **data):
    # Killed right before the event: what comes before it is in the store, and nothing else.
    if type_ == sys.argv[2]:
        time.sleep(600)
    record(self, type_, *args, **data)
RunDriver.record = die
server = OrchestratorServer(Store(sys.argv[1]), sites={"local": SiteConfig(executor="local", cores=4)})
server.start()
print(server.address, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("stops_at", ["batch_opened", "acquisition_ended"])
def test_a_killed_orchestrator_loses_nothing_and_does_nothing_twice(store, poison, stops_at):
    predecessor = subprocess.Popen(
        [sys.executable, "-c", PREDECESSOR, store.uri, stops_at], stdout=subprocess.PIPE, text=True
    )
    assert predecessor.stdout is not None
    with Client(predecessor.stdout.readline().strip()) as client:
        run_id = client.submit(OPEN.replace("POISON", str(poison))).id
        answer = client.report_sections(run_id, [section(z) for z in (3, 0, 2)], last=True)
        assert answer.accepted == 3
        wait_for(lambda: list(store.list("batches")), "a batch's document")
    os.kill(predecessor.pid, signal.SIGKILL)
    predecessor.wait()
    assert all(e.type != stops_at for e in read_events(store, run_id))
    with OrchestratorServer(store, sites=SITES) as server, Client(server.address) as client:
        run = client.run(run_id)
        assert run.report_section(section(3)).known
        run.wait()
        assert rows(run, "all") == [[0, 1], [3, 1], [2, 1]]
        assert run.proto.acquisition.sections_done == 3


def test_a_look_does_not_list_the_reports(store, poison, monkeypatch):
    """With thousands of sections, each look at a run costs what is new."""
    orchestrator = Orchestrator(store, {})
    spec = {"yaml": OPEN.replace("POISON", str(poison)), "parameters": {}, "source_name": "", "base_uri": ""}
    store.put_json("runs/20240101-000000-abcdef/spec.json", {**spec, "time": 1.0, "request_id": ""})
    store.put_json("runs/20240101-000000-abcdef/events/00000001.json", vars(Event(1, "run_submitted", time=1.0)))
    driver = orchestrator.driver("20240101-000000-abcdef")
    assert driver.intake is not None
    assert driver.intake.reports.count() == 0
    listed: list[str] = []
    monkeypatch.setattr(Store, "list", lambda self, prefix: listed.append(prefix) or iter(()))
    document = {"z": 0, "pixel_size_nm": 8.0, "thickness_nm": 40.0, "tiles": [], "acquired": 0.0}
    driver.intake.reports.report(document, imaged_again=False)
    for _ in range(3):
        driver.tick()
    assert listed == []
