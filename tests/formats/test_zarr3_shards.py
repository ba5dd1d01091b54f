"""Shards that we encode: what tensorstore reads from them, whatever the chunks, and what is left out."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from happyneurons.errors import TaskError
from happyneurons.formats.base import WriteOptions
from happyneurons.formats.pieces import in_threads
from happyneurons.store.volumes import Triple
from tests.formats.volumes import voxels, write


def by_tensorstore(path: Path) -> np.ndarray:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
    return np.asarray(ts.open(spec).result().read().result())


@pytest.mark.parametrize(("chunk_px", "shard_px"), [(16, 32), (16, 512), (24, 64), (100, 256), (17, 34)])
@pytest.mark.parametrize("compress", [True, False])
def test_any_chunks(chunk_px: int, shard_px: int, compress: bool, tmp_path: Path) -> None:
    array = voxels("uint64")
    options = WriteOptions(chunk_px, shard_px, compress)
    write(tmp_path, "ome-zarr", array, options)
    np.testing.assert_array_equal(by_tensorstore(tmp_path / "volume" / "0"), array)


def test_zeros_are_left_out_and_other_values_that_equal_zero_are_not(tmp_path: Path) -> None:
    array = np.zeros((20, 40, 80), np.float32)
    array[:, :, 70] = -0.0
    array[3, 3, 40] = 1e-40
    write(tmp_path, "ome-zarr", array, labels=False)
    found = by_tensorstore(tmp_path / "volume" / "0")
    assert found.tobytes() == array.tobytes()
    files = sorted(p.relative_to(tmp_path / "volume" / "0" / "c").as_posix() for p in tmp_path.rglob("c/*/*/*"))
    assert files == ["0/0/1", "0/0/2", "0/1/2"]
    assert (tmp_path / "volume/0/c/0/0/1").stat().st_size < 300 < 16**3  # one chunk of four


def test_pieces_come_in_order_and_damage_ends_them() -> None:
    both = threading.Barrier(2)
    begun = []

    def work(start: Triple, stop: Triple) -> int:
        begun.append(start[0])
        if start[0] < 2:
            both.wait(10)  # neither would go on without a second thread
        if start[0] == 3:
            raise TaskError("piece 3 is broken")
        return start[0]

    found = in_threads(work, (((i, 0, 0), (i + 1, 1, 1)) for i in range(1000)), 2)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TaskError, match="piece 3"):
        next(found)
    assert max(begun) < 20
