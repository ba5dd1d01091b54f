"""Publishing: only what is new, each file verified, and put right whatever happened at the place."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from happyneurons.errors import StoreError, UserError
from happyneurons.publish import Published, public_url, publish
from happyneurons.publish.places import browser_problem
from happyneurons.store.artifacts import Artifact, load_artifact
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume, open_volume
from happyneurons.viewer.published import published_layers
from happyneurons.viewer.sources import FolderSource
from happyneurons.viewer.volume_server import VolumeServer

SHAPE = (32, 64, 64)


def labels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 9, SHAPE).astype(np.uint64)


def volume(folder: Path, array: np.ndarray) -> Artifact:
    create_volume(
        folder.as_uri(), start_zyx=(0, 0, 0), stop_zyx=array.shape, voxel_size_nm_xyz=(8, 8, 16),
        dtype="uint64", layer_type="segmentation", chunk_zyx=(32, 32, 32),
    ).write((0, 0, 0), array)  # fmt: skip
    return load_artifact(folder.as_uri())


@pytest.fixture
def source(tmp_path: Path) -> Artifact:
    return volume(tmp_path / "labels", labels())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "place"


def read(place: Path) -> np.ndarray:
    _, layers = published_layers(place.as_uri())
    found: np.ndarray = open_volume(layers["seg"].data_uri).read((0, 0, 0), SHAPE)
    return found


def put(artifact: Artifact, place: Path, **options: Any) -> Published:
    return publish({"seg": artifact}, place.as_uri(), **options)


def chunks(place: Path) -> list[Path]:
    return sorted(p for p in (place / "data" / "seg").rglob("*-*_*-*_*-*"))


def test_what_is_there_is_not_copied_again(source: Artifact, place: Path) -> None:
    first = put(source, place)
    assert (first.counts.written, first.counts.unchanged) == (5, 0), "info and four chunks"
    assert first.link == ""
    np.testing.assert_array_equal(read(place), labels())
    assert len(chunks(place)) == 4
    assert not [p for p in chunks(place) if p.suffix == ".gz"], "a web server sends files as they are"
    times = {p: p.stat().st_mtime_ns for p in chunks(place)}
    again = put(source, place)
    assert (again.counts.written, again.counts.unchanged) == (0, 5)
    assert {p: p.stat().st_mtime_ns for p in chunks(place)} == times


def test_compressed_chunks_are_unpacked_for_folders(source: Artifact, place: Path) -> None:
    chunk = next(Path(source.data_uri.removeprefix("file://")).rglob("0-32_0-32_0-32"))
    chunk.with_name(f"{chunk.name}.gz").write_bytes(gzip.compress(chunk.read_bytes()))
    plain = chunk.read_bytes()
    chunk.unlink()
    put(source, place)
    assert [p.read_bytes() for p in chunks(place) if p.name.startswith("0-32_0-32_0-32")] == [plain]
    np.testing.assert_array_equal(read(place), labels())


def test_damage_at_the_place_is_put_right(source: Artifact, place: Path) -> None:
    put(source, place)
    wrong, gone, *_ = chunks(place)
    wrong.write_bytes(bytes(wrong.stat().st_size))
    gone.unlink()
    counts = put(source, place).counts
    assert (counts.written, counts.unchanged) == (2, 3)
    np.testing.assert_array_equal(read(place), labels())


def test_check_finds_what_no_listing_shows(source: Artifact, place: Path) -> None:
    import os

    put(source, place)
    rotten = chunks(place)[0]
    before = rotten.stat()
    with rotten.open("r+b") as file:  # the same inode, length and time
        file.write(b"\xff\xff\xff\xff")
    os.utime(rotten, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert put(source, place).counts.written == 0
    assert put(source, place, check=True).counts.written == 1
    np.testing.assert_array_equal(read(place), labels())


def test_a_killed_attempt_is_gone_on_with_and_shows_nothing(source: Artifact, place: Path) -> None:
    class Killed(BaseException):
        pass

    def die(done: int, total: int) -> None:
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        put(source, place, threads=1, on_file=die)
    with pytest.raises(UserError, match="nothing was published there"):
        published_layers(place.as_uri())
    # As kill -9 leaves it: files, and no record of them.
    for record in (place / "data" / "seg").glob("*.json"):
        record.unlink()
    counts = put(source, place).counts
    assert counts.adopted >= 3
    assert counts.files == 5
    np.testing.assert_array_equal(read(place), labels())


def test_another_result_leaves_the_old_one_until_it_is_pruned(tmp_path: Path, source: Artifact, place: Path) -> None:
    put(source, place)
    (place / "data" / "notes").mkdir()
    (place / "data" / "notes" / "mine.txt").write_text("not ours")
    other = volume(tmp_path / "other", labels(1))
    put(other, place)
    np.testing.assert_array_equal(read(place), labels(1))
    assert len(chunks(place)) == 8
    assert put(other, place, prune=True).counts.removed == 5
    assert len(chunks(place)) == 4
    assert (place / "data" / "notes" / "mine.txt").exists()
    np.testing.assert_array_equal(read(place), labels(1))


def test_a_volume_changed_in_place_is_followed(tmp_path: Path, source: Artifact, place: Path) -> None:
    put(source, place)
    open_volume(source.data_uri).write((0, 0, 0), labels()[:, :32, :32] * 0 + 5)
    counts = put(load_artifact(source.uri), place).counts
    assert (counts.written, counts.unchanged) == (1, 4)
    assert (read(place)[:, :32, :32] == 5).all()


def test_a_place_that_loses_bytes_is_not_believed(
    source: Artifact, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Store.put_web

    def lossy(self: Store, path: str, data: Any, **options: Any) -> str:
        return whole(self, path, data[:-1] if "-" in path.rpartition("/")[2] else data, **options)

    monkeypatch.setattr(Store, "put_web", lossy)
    with pytest.raises(StoreError, match="reads otherwise than it was written, 3 times"):
        put(source, place)
    assert not (place / "published.json").exists()


def test_what_browsers_cannot_read_is_refused_before_anything_is_copied(source: Artifact, tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["labels"] = labels().astype(np.uint32)
    hdf5 = load_artifact(f"h5://{tmp_path}/l.h5?labels")
    with pytest.raises(UserError, match="hpn convert"):
        publish({"seg": source, "other": hdf5}, (tmp_path / "place").as_uri())
    assert not list((tmp_path / "place").rglob("info"))
    with pytest.raises(UserError, match="there already"):
        publish({"seg": source}, tmp_path.as_uri())
    with pytest.raises(UserError, match="nothing to publish"):
        publish({}, (tmp_path / "place").as_uri())
    with pytest.raises(UserError, match="same name"):
        publish({"a b": source, "a_b": source}, (tmp_path / "place").as_uri())


@pytest.fixture
def web(place: Path) -> Iterator[str]:
    place.mkdir()
    with VolumeServer({"p": FolderSource(place)}) as server:
        yield server.data_url("p")


def test_the_link_leads_to_a_state_that_leads_to_the_data(source: Artifact, place: Path, web: str) -> None:
    import requests
    from cloudvolume import CloudVolume

    done = put(source, place, url=web, title="a run", viewer="https://viewer")
    assert done.link == f"https://viewer/#!{web}/state.json"
    state = requests.get(f"{web}/state.json", timeout=10).json()
    assert state["title"] == "a run"
    (address,) = state["layers"][0]["source"]
    seen = CloudVolume(address, progress=False, fill_missing=False)
    np.testing.assert_array_equal(np.asarray(seen[:])[..., 0].T, labels())
    title, layers = published_layers(web)
    assert (title, layers["seg"].data_uri) == ("a run", address.removeprefix("precomputed://"))
    assert browser_problem(f"{web}/published.json") is None


def test_a_place_that_browsers_cannot_read_is_told(web: str, tmp_path: Path) -> None:
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Plain(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Plain(*a, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        (tmp_path / "published.json").write_text(json.dumps({}))
        assert "other origins" in str(browser_problem(f"http://127.0.0.1:{server.server_port}/published.json"))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert "answers 404" in str(browser_problem(f"{web}/nothing"))


def test_addresses_of_object_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert public_url("s3://neurons/demo") == "https://neurons.s3.eu-central-1.amazonaws.com/demo"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.lab.org")
    assert public_url("s3://neurons/a b") == "https://s3.lab.org/neurons/a%20b"
    assert public_url("gs://neurons/x") == "https://storage.googleapis.com/neurons/x"
    assert public_url("file:///x") is None
