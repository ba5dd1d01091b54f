"""Publishing to a Globus collection, by the real SDK against a stand-in for Globus' service (see globus_standin)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.acquisition import globus_standin
from tests.acquisition.globus_standin import Failure, GlobusStandIn
from tests.worker.waiting import wait_for

from happyneurons.acquisition.globus_login import CLIENT_ID, CLIENT_SECRET
from happyneurons.cli.main import main
from happyneurons.store.volumes import create_volume, open_volume
from happyneurons.viewer.published import published_layers
from happyneurons.viewer.sources import FolderSource
from happyneurons.viewer.volume_server import VolumeServer

LAB, EAGLE = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
LABELS = np.random.default_rng(0).integers(0, 9, (32, 64, 64)).astype(np.uint64)


@pytest.fixture
def globus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GlobusStandIn]:
    folders = {LAB: tmp_path / "lab", EAGLE: tmp_path / "eagle"}
    for folder in folders.values():
        folder.mkdir()
    # The collection's HTTPS server sends what lies in its folder, to pages of all origins.
    with (
        VolumeServer({"c": FolderSource(folders[EAGLE])}) as web,
        globus_standin.serving(GlobusStandIn(folders, https={EAGLE: web.data_url("c")})) as standin,
    ):
        monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_TRANSFER", standin.url)
        monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_AUTH", standin.url)
        monkeypatch.setenv(CLIENT_ID, "33333333-3333-3333-3333-333333333333")
        monkeypatch.setenv(CLIENT_SECRET, "secret-1")
        yield standin


@pytest.fixture
def source(tmp_path: Path) -> str:
    uri = (tmp_path / "labels").as_uri()
    create_volume(
        uri, start_zyx=(0, 0, 0), stop_zyx=LABELS.shape, voxel_size_nm_xyz=(8, 8, 16), dtype="uint64",
        layer_type="segmentation", chunk_zyx=(32, 32, 32),
    ).write((0, 0, 0), LABELS)  # fmt: skip
    return uri


def arguments(globus: GlobusStandIn, source: str, *more: str) -> list[str]:
    return [
        "publish", source, "--to", f"globus://{EAGLE}/public/demo", "--staging", str(globus.collections[LAB] / "out"),
        "--globus-source", f"{LAB}:/out", *more,
    ]  # fmt: skip


def put(globus: GlobusStandIn, source: str, *more: str) -> Result:
    return CliRunner().invoke(main, arguments(globus, source, *more))


def read(globus: GlobusStandIn) -> np.ndarray:
    _, layers = published_layers(f"{globus.https[EAGLE]}/public/demo")
    (artifact,) = layers.values()
    at = globus.collections[EAGLE] / "public" / "demo" / artifact.data_uri.split("/public/demo/", 1)[1]
    found: np.ndarray = open_volume(at.as_uri()).read((0, 0, 0), LABELS.shape)
    return found


def sizes(globus: GlobusStandIn) -> list[int]:
    return [len(task["data"]["DATA"]) for task in globus.tasks.values()]


def test_only_what_is_new_is_sent_and_the_index_last(globus: GlobusStandIn, source: str) -> None:
    done = put(globus, source, "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["link"].endswith(f"#!{globus.https[EAGLE]}/public/demo/state.json")
    assert (answer["browser_problem"], answer["sent"]) == (None, 8), "info, four chunks, their record, state and index"
    np.testing.assert_array_equal(read(globus), LABELS)
    assert sizes(globus) == [6, 2]
    assert sorted(path.rpartition("/")[2] for path in globus.copies[-2:]) == ["published.json", "state.json"]
    assert not list(globus.collections[EAGLE].rglob(".globus*"))
    assert all(t["data"]["verify_checksum"] and t["data"]["sync_level"] == 3 for t in globus.tasks.values())

    assert put(globus, source).exit_code == 0
    assert [c for c in globus.copies[8:] if not c.endswith(("published.json", "state.json"))] == []

    before = len(globus.copies)
    open_volume(source).write((0, 0, 0), LABELS[:, :32, :32] * 0 + 5)
    assert put(globus, source).exit_code == 0
    assert (read(globus)[:, :32, :32] == 5).all()
    sent = globus.copies[before:]
    assert sum("-" in path.rpartition("/")[2] for path in sent) == 1, "one chunk is new"
    assert sent[-1].endswith(("published.json", "state.json"))


def test_a_killed_sender_goes_on_with_the_transfer_that_it_began(globus: GlobusStandIn, source: str) -> None:
    globus.held = True
    _kill_when_asked(globus, source, "GET /v0.10/task/")
    (begun,) = globus.tasks
    globus.held = False
    done = put(globus, source)
    assert done.exit_code == 0, done.output
    assert sizes(globus) == [6, 2]
    assert next(iter(globus.tasks)) == begun
    np.testing.assert_array_equal(read(globus), LABELS)


def test_a_sender_killed_before_it_heard_of_its_transfer_asks_for_the_same_one(
    globus: GlobusStandIn, source: str
) -> None:
    globus.failures += [Failure("/transfer", 504, after=True)] * 1000  # accepted, but nobody hears of it
    _kill_when_asked(globus, source, "POST /v0.10/transfer")
    globus.failures.clear()
    assert put(globus, source).exit_code == 0
    assert sizes(globus) == [6, 2]
    np.testing.assert_array_equal(read(globus), LABELS)


def _kill_when_asked(globus: GlobusStandIn, source: str, request: str) -> None:
    before = len(globus.asked)
    process = subprocess.Popen([sys.executable, "-m", "happyneurons.cli.main", *arguments(globus, source)])
    try:
        wait_for(lambda: any(a.startswith(request) for a in globus.asked[before:]), "the moment to kill the sender")
    finally:
        process.kill()
        process.wait()


def test_a_failed_transfer_names_the_file_and_shows_nothing(globus: GlobusStandIn, source: str) -> None:
    chunk = "0-32_0-32_0-32"
    first = put(globus, source, "--staging", str(globus.collections[LAB] / "elsewhere"))
    assert first.exit_code != 0, "Globus does not see that folder as the source"
    assert "No such file or directory" in first.output
    assert not list(globus.collections[EAGLE].rglob("published.json"))
    staged = globus.collections[LAB] / "out"
    globus.held = True
    _kill_when_asked(globus, source, "GET /v0.10/task/")
    path = next(staged.rglob(chunk)).relative_to(globus.collections[LAB])
    globus.unreadable.add(f"/{path}")
    globus.held = False
    failed = put(globus, source)
    assert failed.exit_code != 0
    assert "an earlier transfer; its files are sent again" in failed.output
    assert f"file not found (/{path}); publish again to go on" in failed.output
    assert not list(globus.collections[EAGLE].rglob("published.json"))
    globus.unreadable.clear()
    assert put(globus, source).exit_code == 0
    np.testing.assert_array_equal(read(globus), LABELS)


def test_a_transfer_that_globus_forgot_is_begun_anew(globus: GlobusStandIn, source: str) -> None:
    globus.held = True
    _kill_when_asked(globus, source, "GET /v0.10/task/")
    globus.tasks.clear()
    globus.held = False
    done = put(globus, source)
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(read(globus), LABELS)


def test_mistakes_are_told_before_anything_is_copied(globus: GlobusStandIn, source: str) -> None:
    out = globus.collections[LAB] / "out"
    address = globus.https.pop(EAGLE)
    assert "has no HTTPS server: browsers cannot read it" in put(globus, source).output
    globus.https[EAGLE] = address
    assert "--prune does not reach into" in put(globus, source, "--prune").output
    assert "write globus://COLLECTION/PATH" in put(globus, source, "--to", f"globus://{EAGLE}").output
    assert "write ENDPOINT:/PATH" in put(globus, source, "--globus-source", LAB).output
    assert "No such endpoint 'other'" in put(globus, source, "--to", "globus://other/demo").output
    assert not list(out.rglob("info"))
    assert put(globus, source).exit_code == 0
    assert "take another folder for another place" in put(globus, source, "--to", f"globus://{EAGLE}/else").output
