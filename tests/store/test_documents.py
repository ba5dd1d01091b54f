"""Documents: one winner of many writers, errors that say what to do."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from happyneurons.errors import EXIT_USAGE, NotFoundError, StoreAccessError, UserError
from happyneurons.store.documents import Store, canonical_json, local_path, normalize_uri


def test_create_has_one_winner_among_threads(store: Store) -> None:
    writers = 32
    start = threading.Barrier(writers)

    def write(owner: int) -> bool:
        start.wait()
        return store.create("jobs/k/attempts/0001/begin.json", f"owner {owner}".encode())

    with ThreadPoolExecutor(writers) as pool:
        won = list(pool.map(write, range(writers)))
    assert won.count(True) == 1
    assert store.get("jobs/k/attempts/0001/begin.json") == f"owner {won.index(True)}".encode()


def _write_many(uri: str, owner: int, start: threading.Barrier, results: multiprocessing.Queue[list[int]]) -> None:
    store = Store(uri)
    start.wait()
    results.put([n for n in range(50) if store.create(f"races/{n:03d}", f"owner {owner}".encode())])


def test_create_has_one_winner_among_processes(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    processes = 4
    start, results = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=_write_many, args=(store.uri, owner, start, results)) for owner in range(processes)
    ]
    for worker in workers:
        worker.start()
    won = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted(n for numbers in won for n in numbers) == list(range(50)), "each race has exactly one winner"


def test_create_again_with_the_same_bytes_counts_as_ours(store: Store) -> None:
    assert store.create("a", b"mine")
    assert store.create("a", b"mine"), "a retry after a lost answer finds its own bytes"
    assert not store.create("a", b"other")
    assert store.get("a") == b"mine"


def test_put_replaces_and_delete_is_idempotent(store: Store) -> None:
    store.put("folder/a", b"1")
    store.put("folder/a", b"22")
    assert store.get("folder/a") == b"22"
    assert store.exists("folder/a")
    store.delete("folder/a")
    store.delete("folder/a")
    assert not store.exists("folder/a")


def test_missing_document(store: Store) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere/x\.json: not found") as caught:
        store.get("nowhere/x.json")
    assert store.uri in str(caught.value)
    assert store.find_json("nowhere/x.json") is None


def test_readers_never_see_half_a_document(store: Store) -> None:
    """A reader that races with a writer gets the whole of one version."""
    versions = {bytes([n]) * 200_000 for n in range(8)}
    store.put("big", bytes([0]) * 200_000)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for version in versions:
                store.put("big", version)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {store.get("big") for _ in range(300)} <= versions
    finally:
        stop.set()
        writer.join()


def test_list_and_folders(store: Store) -> None:
    for path in ("jobs/a/spec.json", "jobs/a/attempts/0001/begin.json", "jobs/b/spec.json", "jobsx/c", "top"):
        store.put(path, b"{}")
    assert sorted(store.list("jobs")) == ["jobs/a/attempts/0001/begin.json", "jobs/a/spec.json", "jobs/b/spec.json"]
    assert store.folders("jobs") == ["a", "b"]
    assert store.folders("") == ["jobs", "jobsx"]
    assert store.folders("nowhere") == []
    assert list(store.list("nowhere")) == []


def test_names_with_blanks_and_percent_signs(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "my store (100%) ä"))
    store.put("a b/c%20d.json", b"x")
    assert list(store.list("")) == ["a b/c%20d.json"]
    assert Store(store.uri).get("a b/c%20d.json") == b"x"
    assert local_path(store.uri) == tmp_path / "my store (100%) ä"


def test_json_has_one_byte_representation(store: Store) -> None:
    store.put_json("a", {"b": [1, 2.5], "a": None})
    assert store.get("a") == b'{"a":null,"b":[1,2.5]}'
    assert store.get_json("a") == {"a": None, "b": [1, 2.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})


def test_arrays_round_trip_with_deterministic_bytes(store: Store) -> None:
    arrays = {"nodes": np.arange(24, dtype=np.float64).reshape(2, 3, 4), "name": np.array([1, 2], np.uint8)}
    first = store.put_arrays("a.npz", **arrays)
    assert store.put_arrays("b.npz", **arrays) == first
    loaded = store.get_arrays("a.npz")
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype


def test_a_store_travels_by_its_uri(store: Store) -> None:
    store.put("a", b"1")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"1"


def test_relative_paths_of_uris(store: Store) -> None:
    assert store.relative(store.url("jobs/k")) == "jobs/k"
    assert store.relative("file:///elsewhere/jobs/k") is None
    assert store.relative(store.uri + "2/jobs/k") is None


def test_normalize_uri(tmp_path: Path) -> None:
    assert normalize_uri(str(tmp_path / "x")) == (tmp_path / "x").as_uri()
    assert normalize_uri("s3://bucket/prefix/") == "s3://bucket/prefix"
    with pytest.raises(UserError, match="scheme must be one of file, s3"):
        normalize_uri("ftp://host/x")


def test_a_file_where_the_store_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreAccessError) as caught:
        Store(str(tmp_path / "file" / "store"))
    assert caught.value.exit_code == EXIT_USAGE
    assert str(tmp_path / "file") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_that_cannot_be_written() -> None:
    """Tried as an ordinary user, because root may write everywhere: a process gives up its rights."""
    program = """
import os, sys
import obstore.exceptions  # while we may read root's files
from happyneurons.errors import HappyError
from happyneurons.store.documents import Store
store = Store(sys.argv[1])
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    eval(sys.argv[2])
except HappyError as error:
    print(error)
    sys.exit(error.exit_code)
"""
    with tempfile.TemporaryDirectory() as name:  # pytest's own tmp_path is closed to other users
        folder = Path(name)
        folder.chmod(0o555)
        for call in ("store.check_writable()", "store.put('a', b'')", "store.create('jobs/k/begin.json', b'')"):
            command = [sys.executable, "-c", program, name, call]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == EXIT_USAGE, done.stdout + done.stderr
            assert folder.as_uri() in done.stdout
            assert len(done.stdout.splitlines()) == 1
        assert list(folder.iterdir()) == []
        folder.chmod(0o755)
