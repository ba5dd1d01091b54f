"""The store on a real S3 server (SeaweedFS): the promises that everything else stands on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from integration_tests.conftest import S3Server, free_ports

from happyneurons.errors import EXIT_TRY_AGAIN, EXIT_USAGE, NotFoundError
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume, open_volume


def test_documents(s3_store: Store) -> None:
    s3_store.put("jobs/k/spec.json", b"{}")
    s3_store.put("jobs/k/spec.json", b'{"a":1}')
    s3_store.put("jobs/k/attempts/0001/begin.json", b"1")
    assert s3_store.get_json("jobs/k/spec.json") == {"a": 1}
    assert sorted(s3_store.list("jobs")) == ["jobs/k/attempts/0001/begin.json", "jobs/k/spec.json"]
    assert s3_store.folders("jobs/k") == ["attempts"]
    s3_store.delete("jobs/k/spec.json")
    s3_store.delete("jobs/k/spec.json")
    assert not s3_store.exists("jobs/k/spec.json")
    with pytest.raises(NotFoundError):
        s3_store.get("jobs/k/spec.json")


def test_files_travel_in_pieces(s3_store: Store, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes((20 << 20) + 7)  # several parts of an upload, several ranges
    (tmp_path / "tile.tif").write_bytes(data)
    s3_store.put_file("raw/tile.tif", tmp_path / "tile.tif")
    pieces = list(s3_store.pieces("raw/tile.tif"))
    assert len(pieces) > 1
    assert b"".join(pieces) == data
    (tmp_path / "tile.tif").write_bytes(b"")
    s3_store.put_file("raw/tile.tif", tmp_path / "tile.tif")
    assert b"".join(s3_store.pieces("raw/tile.tif")) == b""
    with pytest.raises(NotFoundError):
        list(s3_store.pieces("raw/other.tif"))


def test_listing_is_paged(s3_store: Store) -> None:
    """More documents than one answer of the S3 interface holds (1,000)."""
    names = [f"many/{n:05d}" for n in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: s3_store.put(name, b""), names))
    assert sorted(s3_store.list("many")) == names


def test_create_has_one_winner_among_threads(s3_store: Store) -> None:
    writers, races = 12, 4
    start = threading.Barrier(writers)

    def write(owner: int) -> list[bool]:
        won = []
        for race in range(races):
            start.wait()
            won.append(s3_store.create(f"race/{race}", f"owner {owner}".encode()))
        return won

    with ThreadPoolExecutor(writers) as pool:
        won = np.array(list(pool.map(write, range(writers))))
    assert won.sum(axis=0).tolist() == [1] * races
    for race in range(races):
        assert s3_store.get(f"race/{race}") == f"owner {int(won[:, race].argmax())}".encode()


def test_create_has_one_winner_among_processes(s3_store: Store) -> None:
    program = (
        "import os, sys; from happyneurons.store.documents import Store; store = Store(sys.argv[1])\n"
        "print(sum(store.create(f'race/{n}', sys.argv[2].encode()) for n in range(40)))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, s3_store.uri, f"owner {n}"], stdout=subprocess.PIPE)
        for n in range(3)
    ]
    won = [int(process.communicate()[0]) for process in processes]
    assert sum(won) == 40, won


@pytest.mark.parametrize(("dtype", "layer_type"), [("uint8", "image"), ("uint64", "segmentation")])
def test_volumes_on_the_same_root(s3_store: Store, dtype: str, layer_type: str) -> None:
    start, stop = (3, 5, 7), (35, 69, 71)
    data = np.random.default_rng(5).integers(0, 200, np.subtract(stop, start)).astype(dtype)
    volume = create_volume(
        s3_store.url("artifacts/k/image"), start_zyx=start, stop_zyx=stop, voxel_size_nm_xyz=(4, 4, 40),
        dtype=dtype, layer_type=layer_type, chunk_zyx=(32, 32, 32),
    )  # fmt: skip
    for y in (0, 32):
        volume.write((3, 5 + y, 7), data[:, y : y + 32])
    again = open_volume(s3_store.url("artifacts/k/image"))
    np.testing.assert_array_equal(again.read((5, 30, 20), (20, 60, 50)), data[2:17, 25:55, 13:43])
    assert s3_store.exists("artifacts/k/image/info"), "documents and volumes share one root"
    assert len(list(s3_store.list("artifacts/k/image"))) == 1 + 4
    artifact = load_artifact("precomputed://" + s3_store.url("artifacts/k/image"))
    assert artifact.bounds is not None
    assert artifact.bounds.shape_zyx == (32, 64, 64)
    with pytest.raises(NotFoundError, match="no precomputed volume there"):
        open_volume(s3_store.url("artifacts/k/nothing"))


def test_a_volume_made_here_is_read_by_another_process(s3_store: Store) -> None:
    create_volume(
        s3_store.url("v"), start_zyx=(0, 0, 0), stop_zyx=(8, 8, 8), voxel_size_nm_xyz=(1, 1, 1),
        dtype="uint8", layer_type="image", chunk_zyx=(8, 8, 8),
    ).write((0, 0, 0), np.full((8, 8, 8), 3, np.uint8))  # fmt: skip
    # igneous opens volumes by path alone, without our credentials in its hands.
    program = (
        "import sys; from happyneurons.store.volumes import cloudpath; from cloudvolume import CloudVolume\n"
        "print(int(CloudVolume(cloudpath(sys.argv[1]), progress=False)[:].sum()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, s3_store.url("v")], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(3 * 8**3), done.stderr


CALLS = {
    "document": "Store(uri).create('a', b'1')",
    "reading": "Store(uri).get('a')",
    "check": "Store(uri).check_writable()",
    "volume": "create_volume(uri, start_zyx=(0, 0, 0), stop_zyx=(8, 8, 8), voxel_size_nm_xyz=(1, 1, 1),"
    " dtype='uint8', layer_type='image')",
    "open": "open_volume(uri)",
}


def _try(call: str, uri: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = f"""
import sys
from happyneurons.errors import HappyError
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume, open_volume
uri = {uri!r}
try:
    {CALLS[call]}
except HappyError as error:
    print(type(error).__name__, error)
    sys.exit(error.exit_code)
"""
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_key_is_the_users_mistake(s3_store: Store, call: str) -> None:
    done = _try(call, s3_store.url("x"), AWS_SECRET_ACCESS_KEY="wrong")
    assert done.returncode == EXIT_USAGE, done.stdout + done.stderr
    assert done.stdout.startswith("StoreAccessError ")
    assert s3_store.uri in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert list(s3_store.list("")) == []


@pytest.mark.parametrize("call", ["document", "check", "volume"])
def test_a_missing_bucket_is_the_users_mistake(s3_server: S3Server, call: str) -> None:
    done = _try(call, "s3://no-such-bucket/x")
    assert done.returncode == EXIT_USAGE, done.stdout + done.stderr
    assert "no-such-bucket" in done.stdout
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("call", ["document", "volume"])
def test_a_server_that_is_away_is_tried_again_later(s3_server: S3Server, call: str) -> None:
    (port,) = free_ports(1)
    done = _try(call, "s3://neurons/x", AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
    assert done.returncode == EXIT_TRY_AGAIN, done.stdout + done.stderr
    assert done.stdout.startswith("StoreError ")
    assert len(done.stdout.splitlines()) == 1


def test_manifests_survive_json(s3_store: Store) -> None:
    document = {"metrics": {"residual_px": 0.125}, "name": "Ångström"}
    assert s3_store.create_json("jobs/k/manifest.json", document)
    assert json.loads(s3_store.get("jobs/k/manifest.json")) == document
