"""Tiles move by the real globus_sdk, against a stand-in for Globus' service (see globus_standin)."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from happyneurons.acquisition.globus import GlobusMover, Place, Route
from happyneurons.acquisition.globus_login import CLIENT_ID, CLIENT_SECRET, transfer_client
from happyneurons.acquisition.state import STATE_FOLDER, WatchState
from happyneurons.acquisition.transfer import Backoff
from happyneurons.acquisition.watch import Event, Options, Watcher
from happyneurons.acquisition.watch_layouts import OurLayout
from happyneurons.acquisition.watch_report import Reporter
from happyneurons.cli.main import main
from happyneurons.errors import JobFailedError, UserError
from happyneurons.store.documents import local_path
from tests.acquisition import globus_standin, run_standin
from tests.acquisition.globus_standin import Failure, GlobusStandIn
from tests.acquisition.microscope import begin, photograph, tile_bytes
from tests.acquisition.run_standin import RUN, RunStandIn
from tests.worker.waiting import wait_for

SCOPE, EAGLE = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"


@pytest.fixture
def run() -> Iterator[RunStandIn]:
    with run_standin.serving(RunStandIn()) as standin:
        yield standin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return begin(tmp_path / "lab" / "scope", (0, 4))


@pytest.fixture
def globus(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GlobusStandIn]:
    eagle = tmp_path / "eagle"
    eagle.mkdir()
    with globus_standin.serving(GlobusStandIn({SCOPE: folder.parent, EAGLE: eagle})) as standin:
        monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_TRANSFER", standin.url)
        monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_AUTH", standin.url)
        monkeypatch.setenv(CLIENT_ID, "33333333-3333-3333-3333-333333333333")
        monkeypatch.setenv(CLIENT_SECRET, "secret-1")
        yield standin


class Watch:
    """A watcher in this process that moves tiles by Globus."""

    def __init__(
        self, folder: Path, run: RunStandIn, globus: GlobusStandIn, *, token: Path | None = None, **options: Any
    ) -> None:
        self.events: list[Event] = []
        state = WatchState.open(folder / STATE_FOLDER, RUN)
        route = Route(
            folder, Place(SCOPE, "/scope"), Place(EAGLE, "/raw"), (globus.collections[EAGLE] / "raw").as_uri()
        )

        def tell(text: str) -> None:
            self.events.append(Event("note", text))

        self.mover = GlobusMover(
            lambda: transfer_client(token), route, state, tell, task_poll_s=0, backoff_s=0.01, **options
        )
        self.reporter = Reporter(run.address, RUN, state, tell, Backoff(0.01))
        self.watcher = Watcher(
            OurLayout(folder), self.mover, self.reporter, state, Options(once=True, poll_s=0.01), self.events.append
        )

    def __call__(self) -> Watch:
        try:
            self.watcher.run()
        finally:
            self.reporter.close()
        return self

    def notes(self) -> list[str]:
        return [event.text for event in self.events if event.kind == "note"]


def tiles_of(run: RunStandIn, z: int) -> list[bytes]:
    paths = [local_path(tile.uri) for tile in run.versions[z][-1].tiles]
    return [path.read_bytes() for path in paths if path is not None]


def submitted(globus: GlobusStandIn) -> int:
    return len([1 for task in globus.submissions.values() if task])


def test_sections_are_moved_in_batches_and_reported_where_they_went(
    folder: Path, run: RunStandIn, globus: GlobusStandIn
) -> None:
    for z in range(4):
        photograph(folder, z)
    shown = Watch(folder, run, globus)
    globus.held = True
    shown.watcher.step()
    globus.held = False
    shown()
    assert sorted(run.versions) == [0, 1, 2, 3]
    for z in range(4):
        assert tiles_of(run, z) == [tile_bytes(z, 0), tile_bytes(z, 1)]
        assert all("/eagle/raw/" in tile.uri for tile in run.versions[z][0].tiles)
    # Two transfers at a time; what gathered meanwhile went together.
    assert sorted(len(task["data"]["DATA"]) for task in globus.tasks.values()) == [2, 2, 4]
    data = [task["data"] for task in globus.tasks.values()]
    assert all(d["verify_checksum"] and d["sync_level"] == 3 for d in data)
    assert not shown.notes()
    # All is done: a successor asks Globus for nothing.
    asked = len([a for a in globus.asked if "oauth2" not in a])
    Watch(folder, run, globus)()
    assert len([a for a in globus.asked if "oauth2" not in a]) == asked


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (Failure("/submission_id", 503), "is not available (503: try again later)"),
        (Failure("/transfer", 502), "is not available (502"),
        (
            Failure("/task/", 429, "RateLimit", "too many requests", {"Retry-After": "0"}),
            "asks for fewer requests (429",
        ),
    ],
)
def test_a_service_that_is_away_or_busy_is_asked_again(
    folder: Path, run: RunStandIn, globus: GlobusStandIn, failure: Failure, told: str
) -> None:
    photograph(folder, 0)
    globus.failures += [failure] * 3  # the SDK itself asks twice
    shown = Watch(folder, run, globus)()
    assert tiles_of(run, 0) == [tile_bytes(0, 0), tile_bytes(0, 1)]
    assert told in shown.notes()[0]
    assert shown.notes()[1] == "Globus answers again"
    assert submitted(globus) == 1


def test_a_lost_answer_makes_no_second_transfer(folder: Path, run: RunStandIn, globus: GlobusStandIn) -> None:
    photograph(folder, 0)
    globus.failures += [Failure("/transfer", 504, after=True)] * 2
    Watch(folder, run, globus)()
    assert globus.asked.count("POST /v0.10/transfer") == 3
    assert len(globus.tasks) == 1


def test_a_token_that_expired_is_renewed_unnoticed(folder: Path, run: RunStandIn, globus: GlobusStandIn) -> None:
    photograph(folder, 0)
    shown = Watch(folder, run, globus)
    globus.tokens.clear()
    shown()
    assert sorted(run.versions) == [0]
    assert not shown.notes()


def test_an_expired_login_is_explained_and_a_new_one_taken_up(
    folder: Path, run: RunStandIn, globus: GlobusStandIn, tmp_path: Path
) -> None:
    photograph(folder, 0)
    token = tmp_path / "token.json"

    def log_in(refresh_token: str) -> None:
        token.write_text(
            json.dumps({"client_id": "44444444-4444-4444-4444-444444444444", "refresh_token": refresh_token})
        )
        token.chmod(0o600)

    log_in("refresh-1")
    shown = Watch(folder, run, globus, token=token)
    globus.tokens.clear()
    globus.secrets.clear()
    thread = threading.Thread(target=shown)
    thread.start()
    wait_for(shown.notes, "the watcher to say that the login expired")
    assert "renew the refresh token" in shown.notes()[0]
    globus.secrets.add("refresh-2")
    log_in("refresh-2")
    thread.join(60)
    assert sorted(run.versions) == [0]
    # At the start it is the user's mistake.
    globus.secrets.clear()
    with pytest.raises(UserError, match="does not take the login"):
        Watch(folder, run, globus, token=token)
    token.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        Watch(folder, run, globus, token=token)


def test_a_failed_transfer_names_the_file_and_holds_up_no_other_section(
    folder: Path, run: RunStandIn, globus: GlobusStandIn
) -> None:
    for z in range(3):
        photograph(folder, z)
    globus.unreadable.add("/scope/sections/000001/tile_r0_c1.tif")
    shown = Watch(folder, run, globus)
    with pytest.raises(JobFailedError, match="section 1"):
        shown()
    assert sorted(run.versions) == [0, 2]
    problem = next(e.text for e in shown.events if e.kind == "problem")
    assert "No such file or directory; file not found (/scope/sections/000001/tile_r0_c1.tif)" in problem
    globus.unreadable.clear()
    Watch(folder, run, globus)()
    assert sorted(run.versions) == [0, 1, 2]


def test_faults_of_a_running_transfer_are_told_once(folder: Path, run: RunStandIn, globus: GlobusStandIn) -> None:
    photograph(folder, 0)
    globus.held, globus.faults = True, 2
    shown = Watch(folder, run, globus)
    thread = threading.Thread(target=shown)
    thread.start()
    wait_for(lambda: globus.asked.count(f"GET /v0.10/task/{next(iter(globus.tasks), '')}") > 3, "some polls")
    globus.held = False
    thread.join(60)
    assert len(shown.notes()) == 1
    assert "goes on trying: permission denied" in shown.notes()[0]
    assert sorted(run.versions) == [0]


def test_a_wrong_collection_is_explained(folder: Path, run: RunStandIn, globus: GlobusStandIn) -> None:
    photograph(folder, 0)
    eagle = globus.collections.pop(EAGLE)
    globus.collections["other"] = eagle
    clock = [0.0]
    state = WatchState.open(folder / STATE_FOLDER, RUN)
    notes: list[str] = []
    route = Route(folder, Place(SCOPE, "/scope"), Place(EAGLE, "/raw"), eagle.as_uri())
    mover = GlobusMover(lambda: transfer_client(None), route, state, notes.append, clock=lambda: clock[0])
    reporter = Reporter(run.address, RUN, state, notes.append)
    watcher = Watcher(OurLayout(folder), mover, reporter, state, Options(), lambda event: None)
    watcher.step()
    watcher.step()
    assert len(notes) == 1
    assert f"No such endpoint '{EAGLE}'" in notes[0]
    assert "check --globus-source and --globus-target" in notes[0]
    assert mover.sections() == {0}
    globus.collections[EAGLE] = eagle
    for _ in range(4):
        clock[0] += 61
        watcher.step()
    reporter.close()
    assert sorted(run.versions) == [0]


def test_a_section_that_changes_while_it_is_moved_is_moved_again(
    folder: Path, run: RunStandIn, globus: GlobusStandIn
) -> None:
    photograph(folder, 0)
    globus.held = True
    shown = Watch(folder, run, globus)
    thread = threading.Thread(target=shown)
    thread.start()
    wait_for(lambda: globus.tasks, "a transfer")
    photograph(folder, 0, attempt=1)
    globus.held = False
    thread.join(60)
    assert [len(v) for v in run.versions.values()] == [1]
    assert tiles_of(run, 0) == [tile_bytes(0, 0, 1), tile_bytes(0, 1, 1)]


# --- killed watchers --------------------------------------------------------------------------------


def command(folder: Path, run: RunStandIn, globus: GlobusStandIn) -> list[str]:
    at = (globus.collections[EAGLE] / "raw").as_uri()
    return [
        "acquire", "watch", str(folder), "--run", RUN, "--orchestrator", run.address, "--poll-s", "0.05",
        "--globus-source", f"{SCOPE}:/scope", "--globus-target", f"{EAGLE}:/raw", "--tiles-at", at,
    ]  # fmt: skip


def kill_when(arguments: list[str], condition: Callable[[], Any]) -> None:
    process = subprocess.Popen([sys.executable, "-m", "happyneurons.cli.main", *arguments], stdout=subprocess.DEVNULL)
    try:
        wait_for(condition, "the moment to kill the watcher")
    finally:
        process.kill()
        process.wait()


def test_a_watcher_killed_while_globus_moves_leaves_the_transfer_to_its_successor(
    folder: Path, run: RunStandIn, globus: GlobusStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph(folder, 0)
    photograph(folder, 1)
    globus.held = True
    kill_when(command(folder, run, globus), lambda: len({a for a in globus.asked if "GET /v0.10/task/" in a}) == 2)
    before = set(globus.tasks)
    globus.held = False

    # Its tiles are not even read again.
    def never(*_: Any) -> None:
        raise AssertionError("read again")

    shown = Watch(folder, run, globus)
    assert shown.mover.sections() == {0, 1}
    with monkeypatch.context() as patch:
        patch.setattr("happyneurons.acquisition.watch.verify_tile", never)
        shown()
    assert sorted(run.versions) == [0, 1]
    assert globus.tasks.keys() == before
    assert all(globus.tasks[task]["status"] == "SUCCEEDED" for task in before)
    # Nothing was moved twice.
    assert len(globus.copies) == len(set(globus.copies)) == 4


def test_a_watcher_killed_before_it_heard_of_its_transfer_asks_for_the_same_one(
    folder: Path, run: RunStandIn, globus: GlobusStandIn
) -> None:
    photograph(folder, 0)
    globus.failures += [Failure("/transfer", 504, after=True)] * 1000  # accepted, but nobody hears of it
    kill_when(command(folder, run, globus), lambda: globus.tasks)
    globus.failures.clear()
    Watch(folder, run, globus)()
    assert sorted(run.versions) == [0]
    assert len(globus.tasks) == 1


def test_a_watcher_killed_between_transfer_and_report_only_reports(
    folder: Path, run: RunStandIn, globus: GlobusStandIn
) -> None:
    photograph(folder, 0)
    address, run.address = run.address, "127.0.0.1:1"  # nobody to report to
    state = folder / STATE_FOLDER / f"{RUN}.jsonl"
    kill_when(command(folder, run, globus), lambda: state.exists() and '"arrived":true' in state.read_text())
    run.address = address
    asked = len(globus.asked)
    Watch(folder, run, globus)()
    assert sorted(run.versions) == [0]
    assert not [a for a in globus.asked[asked:] if "oauth2" not in a]


def test_mistakes_are_told_in_one_line(
    folder: Path, run: RunStandIn, globus: GlobusStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = command(folder, run, globus)
    arguments[arguments.index(f"{EAGLE}:/raw")] = EAGLE
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, "write ENDPOINT:/PATH" in result.output) == (2, True)
    monkeypatch.delenv(CLIENT_SECRET)
    result = CliRunner().invoke(main, command(folder, run, globus))
    assert (result.exit_code, f"set {CLIENT_ID}" in result.output) == (2, True)
