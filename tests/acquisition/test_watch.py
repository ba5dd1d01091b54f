"""`hpn acquire watch`: what is finished is reported once, whatever happens in between."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from happyneurons.acquisition import watch, watch_layouts
from happyneurons.acquisition.metadata import SECTION_FILE, section_folder, tile_file
from happyneurons.acquisition.state import STATE_FOLDER, WatchState
from happyneurons.acquisition.transfer import Backoff, CopyToStore, InPlace, Mover
from happyneurons.acquisition.watch import Event, Options, Watcher
from happyneurons.acquisition.watch_layouts import Layout, OurLayout, PatternLayout
from happyneurons.acquisition.watch_report import Reporter
from happyneurons.cli.main import main
from happyneurons.errors import JobFailedError, PreconditionError, UnavailableError, UserError
from happyneurons.store.documents import Store, local_path
from tests.acquisition.microscope import HEIGHT, NM, WIDTH, begin, photograph, tile_bytes
from tests.acquisition.run_standin import RUN, RunStandIn, serving
from tests.worker.waiting import wait_for


@pytest.fixture
def run() -> Iterator[RunStandIn]:
    with serving(RunStandIn()) as standin:
        yield standin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return begin(tmp_path / "scope", (0, 4))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watch:
    """A watcher in this process, with everything that it has shown."""

    def __init__(
        self, folder: Path, run: RunStandIn, *, layout: Layout | None = None,
        mover: Callable[[Callable[[str], None]], Mover] | None = None, run_id: str = RUN,
        state: Path | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.events: list[Event] = []
        kept = WatchState.open(state or folder / STATE_FOLDER, run_id)

        def tell(text: str) -> None:
            self.events.append(Event("note", text))

        self.reporter = Reporter(run.address, run_id, kept, tell, Backoff(0.01))
        self.layout = layout or OurLayout(folder)
        moving = mover(tell) if mover else InPlace(folder)
        how = Options(**{"once": True, "poll_s": 0.01, **options})
        self.watcher = Watcher(self.layout, moving, self.reporter, kept, how, self.events.append)

    def __call__(self) -> Watch:
        try:
            self.watcher.run()
        finally:
            self.reporter.close()
        return self

    def texts(self, kind: str) -> list[str]:
        return [event.text for event in self.events if event.kind == kind]


def counts(run: RunStandIn) -> dict[int, int]:
    return {z: len(versions) for z, versions in sorted(run.versions.items())}


# --- what is reported -------------------------------------------------------------------------------


def test_a_section_is_reported_once_it_is_finished(folder: Path, run: RunStandIn) -> None:
    photograph(folder, 1)
    (photograph(folder, 2) / SECTION_FILE).unlink()  # its tiles are there; the microscope is not done with it
    shown = Watch(folder, run)()
    assert counts(run) == {1: 1}
    section = run.versions[1][0]
    assert (section.z, section.pixel_size_nm, section.thickness_nm) == (1, NM, 30.0)
    assert section.acquire_time.ToJsonString() == "2026-01-02T03:04:00Z"
    for col, tile in enumerate(section.tiles):
        path = section_folder(folder, 1) / tile_file(0, col)
        assert (tile.uri, tile.row, tile.column) == (path.as_uri(), 0, col)
        assert (tile.x_nm, tile.y_nm) == (1000.0 + col * 32 * NM, 500.0)
        assert (tile.width_px, tile.height_px) == (WIDTH, HEIGHT)
        assert tile.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "missing: 0" in shown.texts("status")[-1]
    photograph(folder, 2)
    Watch(folder, run)()
    assert counts(run) == {1: 1, 2: 1}
    assert run.requests == 2


def test_a_damaged_tile_is_told_and_holds_up_nobody(folder: Path, run: RunStandIn) -> None:
    for z in range(3):
        photograph(folder, z)
    bad = section_folder(folder, 1) / tile_file(0, 1)
    bad.write_bytes(bad.read_bytes()[:-100])
    shown = Watch(folder, run)
    with pytest.raises(JobFailedError, match=r"section 1 .*tile_r0_c1.tif is truncated"):
        shown()
    assert counts(run) == {0: 1, 2: 1}
    # As long as it does not change it is not read again, nor told again.
    shown.watcher.step()
    assert len(shown.texts("problem")) == 1
    bad.write_bytes(tile_bytes(1, 1))
    Watch(folder, run)()
    assert counts(run) == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize(
    ("text", "told"),
    [('{"z": 1}', "section.json: acquired_at: Field required"), ('{"z": 1,', "section.json: Invalid JSON")],
)
def test_metadata_that_cannot_be_used_are_told(folder: Path, run: RunStandIn, text: str, told: str) -> None:
    (photograph(folder, 1) / SECTION_FILE).write_text(text)
    shown = Watch(folder, run)
    with pytest.raises(JobFailedError):
        shown()
    assert told in shown.texts("problem")[0]


def test_a_microscope_that_has_not_begun_is_waited_for(tmp_path: Path, run: RunStandIn) -> None:
    shown = Watch(tmp_path, run, once=False)
    shown.watcher.step()
    shown.watcher.step()
    assert [text.count("acquisition.json (yet)") for text in shown.texts("note")] == [1]
    with pytest.raises(JobFailedError, match="acquisition.json"):
        Watch(tmp_path, run)()
    begin(tmp_path, (0, 1))
    photograph(tmp_path, 0)
    shown.watcher.step()
    assert counts(run) == {0: 1}


def test_a_tile_elsewhere_is_not_taken(folder: Path, run: RunStandIn) -> None:
    path = photograph(folder, 1) / SECTION_FILE
    path.write_text(path.read_text().replace("tile_r0_c0.tif", "../../acquisition.json"))
    with pytest.raises(JobFailedError, match="is not a file beside it"):
        Watch(folder, run)()


def test_a_section_photographed_again_replaces_the_first(folder: Path, run: RunStandIn) -> None:
    photograph(folder, 0)
    photograph(folder, 1)
    shown = Watch(folder, run)()
    photograph(folder, 1, attempt=1)
    shown = Watch(folder, run)()
    assert counts(run) == {0: 1, 1: 2}
    assert shown.events[0].data["imaged_again"] is True
    # The same pictures with another time are nothing new.
    os.utime(section_folder(folder, 1) / SECTION_FILE)
    before = run.requests
    Watch(folder, run)()
    assert run.requests == before


def test_a_section_photographed_while_it_is_read_is_read_again(
    folder: Path, run: RunStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph(folder, 1)
    verify, read = watch.verify_tile, []

    def interrupted(path: Path, *expected: Any) -> Any:
        found = verify(path, *expected)
        read.append(path)
        if len(read) == 1:
            photograph(folder, 1, attempt=1)  # after its first tile was read
        return found

    monkeypatch.setattr(watch, "verify_tile", interrupted)
    Watch(folder, run)()
    assert counts(run) == {1: 1}
    assert [t.sha256 for t in run.versions[1][0].tiles] == [
        hashlib.sha256(tile_bytes(1, col, 1)).hexdigest() for col in (0, 1)
    ]


def test_the_acquisition_ends_with_its_last_section(folder: Path, run: RunStandIn) -> None:
    for z in (3, 0, 2):
        photograph(folder, z)
    shown = Watch(folder, run, once=False, until_complete=True)
    thread = threading.Thread(target=shown)
    thread.start()
    wait_for(lambda: len(run.versions) == 3, "three sections")
    assert shown.watcher.missing() == [1]
    assert not run.ended
    photograph(folder, 1)  # late
    thread.join(60)
    assert run.ended
    assert counts(run) == dict.fromkeys(range(4), 1)
    # Started again it has nothing to do, and says so again.
    assert Watch(folder, run, once=False, until_complete=True)().texts("end")
    photograph(folder, 2, attempt=1)
    with pytest.raises(PreconditionError, match="takes no sections any more"):
        Watch(folder, run)()


# --- what goes wrong on the way ---------------------------------------------------------------------


def test_reports_wait_while_the_orchestrator_is_away(folder: Path) -> None:
    run = RunStandIn()
    with serving(run):
        photograph(folder, 0)
        Watch(folder, run)()
    photograph(folder, 1)
    photograph(folder, 2)
    shown = Watch(folder, run)
    thread = threading.Thread(target=shown)
    thread.start()
    wait_for(lambda: shown.texts("note"), "the watcher to say that nobody answers")
    with serving(run, run.address):
        thread.join(60)
    assert counts(run) == {0: 1, 1: 1, 2: 1}
    notes = shown.texts("note")
    assert len(notes) == 2
    assert "reports wait here" in notes[0]
    assert "answers again" in notes[1]


def test_a_section_that_changes_before_it_is_reported_is_read_again(folder: Path, run: RunStandIn) -> None:
    photograph(folder, 0)
    run.errors += [UnavailableError("not now")] * 5  # as often as gRPC itself tries
    shown = Watch(folder, run)
    shown.watcher.step()
    photograph(folder, 0, attempt=1)
    shown()
    assert "changed before it was reported" in shown.texts("refused")[0]
    (section,) = run.versions[0]
    assert section.tiles[0].sha256 == hashlib.sha256(tile_bytes(0, 0, 1)).hexdigest()


def test_a_folder_that_goes_away_and_comes_back_is_waited_for(folder: Path, run: RunStandIn, tmp_path: Path) -> None:
    shown = Watch(folder, run, once=False, state=tmp_path / "state")
    photograph(folder, 0)
    shown.watcher.step()
    by_names = Watch(folder, run, once=False, state=tmp_path / "other", layout=by_name(folder, Clock()))
    by_names.watcher.step()
    away = folder.rename(tmp_path / "away")
    shown.watcher.step()
    by_names.watcher.step()
    assert "No such file or directory" in by_names.texts("note")[0]
    photograph(away, 1)
    away.rename(folder)
    shown.watcher.step()
    assert counts(run) == {0: 1, 1: 1}


def test_a_refused_section_is_told_and_holds_up_nobody(folder: Path, run: RunStandIn) -> None:
    photograph(folder, 0)
    photograph(folder, 1)
    run.errors.append(UserError("section 0: bad", [("section.tiles[0].x_nm", "must be finite")]))
    shown = Watch(folder, run)
    with pytest.raises(JobFailedError, match="section 0"):
        shown()
    assert "must be finite" in shown.texts("refused")[0]
    assert counts(run) == {1: 1}
    assert counts(Watch(folder, run)() and run) == {0: 1, 1: 1}


def test_an_unknown_run_ends_the_watcher(folder: Path, run: RunStandIn) -> None:
    photograph(folder, 0)
    with pytest.raises(PreconditionError, match="has no run other"):
        Watch(folder, run, run_id="other")()


# --- starting again ---------------------------------------------------------------------------------


def test_a_restarted_watcher_reads_nothing_again(
    folder: Path, run: RunStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for z in range(4):
        photograph(folder, z)
    Watch(folder, run)()
    with (folder / STATE_FOLDER / f"{RUN}.jsonl").open("a") as file:
        file.write('{"z": 2, "signat')  # it died while it wrote

    def never(*_: Any) -> None:
        raise AssertionError("a reported tile was read again")

    monkeypatch.setattr(watch, "verify_tile", never)
    Watch(folder, run)()
    assert run.requests == 4
    monkeypatch.undo()
    photograph(folder, 2, attempt=1)
    Watch(folder, run)()
    Watch(folder, run)()
    assert run.requests == 5


def test_without_its_state_a_watcher_reports_again_what_changes_nothing(folder: Path, run: RunStandIn) -> None:
    for z in range(4):
        photograph(folder, z)
    Watch(folder, run)()
    (folder / STATE_FOLDER / f"{RUN}.jsonl").unlink()
    Watch(folder, run)()
    assert run.requests == 8
    assert counts(run) == dict.fromkeys(range(4), 1)


def test_other_tiles_than_the_run_knows_are_only_taken_when_asked_to(folder: Path, run: RunStandIn) -> None:
    photograph(folder, 0)
    Watch(folder, run)()
    (folder / STATE_FOLDER / f"{RUN}.jsonl").unlink()
    photograph(folder, 0, attempt=1)
    with pytest.raises(JobFailedError, match="--imaged-again"):
        Watch(folder, run)()
    assert counts(run) == {0: 1}
    Watch(folder, run, imaged_again=True)()
    assert counts(run) == {0: 2}


def test_compute_nodes_may_see_the_folder_elsewhere(folder: Path, run: RunStandIn) -> None:
    photograph(folder, 0)
    Watch(folder, run, mover=lambda tell: InPlace(folder, "/lustre/scope one/"))()
    assert run.versions[0][0].tiles[1].uri == "file:///lustre/scope%20one/sections/000000/tile_r0_c1.tif"


def test_two_watchers_of_one_folder_do_no_harm(folder: Path, run: RunStandIn) -> None:
    begin(folder, (0, 12))
    watches = [Watch(folder, run, once=False, until_complete=True) for _ in range(2)]
    threads = [threading.Thread(target=w) for w in watches]
    for thread in threads:
        thread.start()
    for z in range(12):
        photograph(folder, z)
    for thread in threads:
        thread.join(60)
    assert counts(run) == dict.fromkeys(range(12), 1)
    assert run.ended
    assert WatchState.open(folder / STATE_FOLDER, RUN).reported.keys() == set(range(12))


def test_finished_sections_are_looked_at_in_turn(
    folder: Path, run: RunStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(folder, (0, 30))
    for z in range(30):
        photograph(folder, z)
    Watch(folder, run)()
    monkeypatch.setattr(watch, "LOOK_AGAIN", 10)
    looked: list[Path] = []
    stamp = watch_layouts.file_stamp
    monkeypatch.setattr(watch_layouts, "file_stamp", lambda path: looked.append(path) or stamp(path))
    shown = Watch(folder, run, once=False)
    for step in range(3):
        looked.clear()
        assert not shown.watcher.step()
        assert len(looked) == 11  # acquisition.json, and ten sections
        assert {int(p.parent.name) for p in looked[1:]} == set(range(10 * step, 10 * step + 10))


# --- names instead of metadata ----------------------------------------------------------------------


def by_name(folder: Path, clock: Callable[[], float], **options: Any) -> PatternLayout:
    return PatternLayout(
        folder, "{z}_{row}_{col}.tif", tiles_per_section=2, pixel_size_nm=NM, thickness_nm=30.0, overlap=0.25,
        settle_s=5.0, clock=clock, **options,
    )  # fmt: skip


def test_tiles_by_name_must_be_all_there_and_settled(tmp_path: Path, run: RunStandIn) -> None:
    clock = Clock()
    shown = Watch(tmp_path, run, layout=by_name(tmp_path, clock, sections=(5, 8)), once=False)
    first, second = tmp_path / "5_1_1.tif", tmp_path / "5_1_2.tif"
    first.write_bytes(tile_bytes(5, 0))
    clock.now += 100
    assert not shown.watcher.step()  # one of two
    second.write_bytes(tile_bytes(5, 1)[:50])
    shown.watcher.step()
    clock.now += 4
    second.write_bytes(tile_bytes(5, 1))
    shown.watcher.step()
    clock.now += 4
    assert not shown.watcher.step()  # changed 4 s ago
    assert not shown.events
    clock.now += 1
    assert shown.watcher.step()
    tiles = run.versions[5][0].tiles
    # Counted from 1 in the names, from 0 in reports; positions follow from the overlap.
    assert [(t.row, t.column, t.x_nm, t.y_nm) for t in tiles] == [(0, 0, 0, 0), (0, 1, 0.75 * WIDTH * NM, 0)]
    second.write_bytes(tile_bytes(5, 1, 1))
    for _ in range(2):
        shown.watcher.step()
        clock.now += 5
    assert counts(run) == {5: 2}


def test_once_waits_for_what_is_settling(tmp_path: Path, run: RunStandIn) -> None:
    clock = Clock()
    for z in (5, 7):
        for col in range(2):
            path = tmp_path / f"{z}_0_{col}.tif"
            path.write_bytes(tile_bytes(z, col))

    def ticking() -> float:
        clock.now += 0.5
        return clock.now

    shown = Watch(tmp_path, run, layout=by_name(tmp_path, ticking))()
    assert counts(run) == {5: 1, 7: 1}
    assert "missing: 6" in shown.texts("status")[-1]


def test_a_folder_for_each_section_is_listed_in_turn_once_it_is_finished(tmp_path: Path, run: RunStandIn) -> None:
    clock = Clock()
    layout = PatternLayout(
        tmp_path, "s{z}/{col}.tif", tiles_per_section=2, pixel_size_nm=NM, thickness_nm=30.0, settle_s=0, clock=clock
    )
    for z in range(3):
        (tmp_path / f"s{z}").mkdir()
        for col in range(2):
            (tmp_path / f"s{z}" / f"{col}.tif").write_bytes(tile_bytes(z, col))
    shown = Watch(tmp_path, run, layout=layout, once=False)
    shown.watcher.step()
    assert counts(run) == {0: 1, 1: 1, 2: 1}
    (tmp_path / "s1" / "0.tif").write_bytes(tile_bytes(1, 0, 1))
    shown.watcher.step()
    shown.watcher.step()
    assert counts(run) == {0: 1, 1: 2, 2: 1}


def test_two_files_of_one_place_are_told(tmp_path: Path, run: RunStandIn) -> None:
    for name in ("5_0_0.tif", "05_0_0.tif", "5_0_1.tif"):
        (tmp_path / name).write_bytes(tile_bytes(5, 0))
    clock = Clock()
    shown = Watch(tmp_path, run, layout=by_name(tmp_path, clock), once=False)
    shown.watcher.step()
    clock.now += 5
    shown.watcher.step()
    assert "05_0_0.tif" in shown.texts("problem")[0]


# --- copies -----------------------------------------------------------------------------------------


def copying(store: Store) -> Callable[[Callable[[str], None]], Mover]:
    return lambda tell: CopyToStore(f"{store.uri}/raw", tell, Backoff(0.01))


def test_tiles_are_copied_and_compared(
    folder: Path, run: RunStandIn, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph(folder, 0)
    Watch(folder, run, mover=copying(store))()
    names = [store.relative(tile.uri) for tile in run.versions[0][0].tiles]
    assert [store.get(str(name)) for name in names] == [tile_bytes(0, 0), tile_bytes(0, 1)]
    # What is there already is not written again, even if nobody remembers it.
    (folder / STATE_FOLDER / f"{RUN}.jsonl").unlink()
    monkeypatch.setattr(Store, "put_file", lambda *_: pytest.fail("copied again"))
    Watch(folder, run, mover=copying(store))()
    assert counts(run) == {0: 1}
    monkeypatch.undo()
    # Photographed again it gets files of its own: the first report's files stay.
    photograph(folder, 0, attempt=1)
    Watch(folder, run, mover=copying(store))()
    assert [store.get(str(name)) for name in names] == [tile_bytes(0, 0), tile_bytes(0, 1)]
    again = [store.relative(tile.uri) for tile in run.versions[0][1].tiles]
    assert [store.get(str(name)) for name in again] == [tile_bytes(0, 0, 1), tile_bytes(0, 1, 1)]


def test_a_damaged_copy_is_made_again(
    folder: Path, run: RunStandIn, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph(folder, 0)
    put, written = Store.put_file, []

    def damaging(self: Store, path: str, file: Path) -> None:
        put(self, path, file)
        written.append(path)
        if len(written) == 1:
            self.put(path, self.get(path)[:-1] + b"?")

    monkeypatch.setattr(Store, "put_file", damaging)
    Watch(folder, run, mover=copying(store))()
    assert store.get(str(store.relative(run.versions[0][0].tiles[0].uri))) == tile_bytes(0, 0)
    assert len(written) == 3


def test_a_store_that_cannot_be_written_is_waited_for(folder: Path, run: RunStandIn, store: Store) -> None:
    photograph(folder, 0)
    shown = Watch(folder, run, mover=copying(store))
    blocked = local_path(f"{store.uri}/raw/000000")
    assert blocked is not None
    blocked.write_text("a file where a folder has to be")
    thread = threading.Thread(target=shown)
    thread.start()
    wait_for(lambda: shown.texts("note"), "the watcher to say what is wrong")
    blocked.unlink()
    thread.join(60)
    assert counts(run) == {0: 1}
    assert ["cannot be copied" in shown.texts("note")[0], shown.texts("note")[1]] == [True, "copying goes on"]


# --- the command ------------------------------------------------------------------------------------


def command(folder: Path, run: RunStandIn, *options: str) -> list[str]:
    return ["acquire", "watch", str(folder), "--run", RUN, "--orchestrator", run.address, "--json", *options]


def test_the_command_prints_a_line_for_each_section(folder: Path, run: RunStandIn) -> None:
    photograph(folder, 1)
    photograph(folder, 3)
    result = CliRunner().invoke(main, command(folder, run, "--once"))
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.output.splitlines()]
    assert [(line["event"], line.get("z")) for line in lines[:2]] == [("reported", 1), ("reported", 3)]
    assert lines[-1]["event"] == "status"
    assert lines[-1]["missing"] == [0, 2]


def test_a_killed_watcher_loses_nothing_and_a_stopped_one_ends_nothing(folder: Path, run: RunStandIn) -> None:
    begin(folder, (0, 8))
    arguments = [sys.executable, "-m", "happyneurons.cli.main", *command(folder, run, "--poll-s", "0.05")]
    for z in range(2):
        photograph(folder, z)
    killed = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    assert json.loads(killed.stdout.readline())["z"] == 0
    killed.kill()
    killed.communicate()
    for z in range(2, 6):
        photograph(folder, z)
    stopped = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: len(run.versions) == 6, "six sections")
    stopped.send_signal(signal.SIGTERM)
    output, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 0
    assert json.loads(output.splitlines()[-1])["event"] == "note"
    assert counts(run) == dict.fromkeys(range(6), 1)
    assert not run.ended


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--pattern", "{z}.tif"], "--pattern needs --tiles-per-section and --pixel-size-nm and --thickness-nm"),
        (["--tiles-per-section", "2"], "--tiles-per-section goes with --pattern"),
        (["--globus-source", "a:/b"], "moving by Globus needs --globus-target and --tiles-at, too"),
        (["--copy-to", "x", "--tiles-at", "y"], "--copy-to and --tiles-at: tiles are moved one way only"),
        (["--state", "/proc/none"], "name another folder with --state"),
    ],
)
def test_mistakes_are_told_in_one_line(folder: Path, run: RunStandIn, options: list[str], told: str) -> None:
    result = CliRunner().invoke(main, command(folder, run, *options))
    assert result.exit_code == 2
    assert told in result.output
    assert run.requests == 0
