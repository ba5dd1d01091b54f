"""Reading ahead and taking over files: the order, where errors come, what is copied and what is not."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from happyneurons.errors import JobFailedError, TaskError
from happyneurons.formats.ahead import read_ahead, two_memories
from happyneurons.formats.base import Memory
from happyneurons.store.documents import Store
from happyneurons.worker.local import run_stage
from tests.formats.volumes import OPTIONS, START_ZYX, info_of, opened, voxels, whole, write, write_n5


def test_the_next_box_is_read_while_one_is_in_use_and_none_further() -> None:
    begun = [threading.Event() for _ in range(4)]

    def read(memory: Memory, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        begun[start[0]].set()
        if start[0] == 3:
            raise TaskError("box 3 is broken")
        block = memory.array((1,), np.dtype(int))
        block[0] = start[0]
        return block

    blocks = read_ahead(read, [((i, 0, 0), (i + 1, 1, 1)) for i in range(4)], two_memories())
    for i in range(3):
        assert next(blocks)[0] == i
        assert begun[i + 1].wait(10)
        assert not any(event.is_set() for event in begun[i + 2 :])
    with pytest.raises(TaskError, match="box 3"):
        next(blocks)


@pytest.mark.parametrize("name", ["ome-zarr", "webknossos-zarr3", "n5"])
def test_blocks_are_read_into_memory_that_is_used_again(name: str, tmp_path: Path) -> None:
    """Smaller blocks and larger ones, any axis order, and what lies beyond the array: zeros, not the block before."""
    array = voxels("uint64")
    reader = opened(write_n5(tmp_path, array) if name == "n5" else write(tmp_path, name, array))
    memory = Memory()
    for low, high in (
        ((0, 0, 0), (9, 30, 40)),
        ((9, 3, 1), (21, 37, 50)),
        ((2, 3, 4), (3, 4, 5)),
        ((20, 30, 40), (70, 80, 90)),
    ):
        stop = np.add(START_ZYX, high).tolist()
        block = reader.read_to(memory, np.add(START_ZYX, low).tolist(), stop)
        expected = np.zeros(np.subtract(high, low), array.dtype)
        part = array[tuple(slice(*p) for p in zip(low, high, strict=True))]
        expected[tuple(slice(0, n) for n in part.shape)] = part
        np.testing.assert_array_equal(block, expected)
        assert block.flags.c_contiguous


@pytest.mark.parametrize(
    ("name", "dtype", "file"),
    [
        ("precomputed", "uint8", "4.6_4.6_45.0/5-21_7-23_3-19"),
        ("precomputed", "uint64", "4.6_4.6_45.0/5-21_7-23_3-19"),
        ("ome-zarr", "uint64", "0/c/0/0/0"),
    ],
)
def test_files_of_the_same_layout_are_taken_over(
    name: str, dtype: str, file: str, store: Store, tmp_path: Path
) -> None:
    """A mark that no reader sees shows that it is the source's file; damage is noticed as ever."""
    array = voxels(dtype)
    source = write(tmp_path, name, array)
    path = tmp_path / "volume" / file
    marked = path.read_bytes()
    if (name, dtype) == ("precomputed", "uint64"):  # after the end of compressed_segmentation's last block
        path.write_bytes(marked := marked + b"mark")

    def convert(target: str, **params: object) -> Path:
        small = {"chunk_px": 16, "shard_px": 32, "task_mb": 1}
        common = {"source": source, "target": str(tmp_path / target), "format": name}
        run_stage(store, "convert", params={**common, **small, **params})
        return tmp_path / target

    copy = convert("copy")
    assert (copy / file).read_bytes() == marked
    np.testing.assert_array_equal(whole(opened(str(copy))), array)
    # A part that cuts through files, other chunks, another place: none can be taken over.
    part = opened(str(convert("part", bounds_xyz=[[9, 7, 3], [60, 40, 20]])))
    np.testing.assert_array_equal(whole(part), array[:17, :33, 4:])
    np.testing.assert_array_equal(whole(opened(str(convert("finer", chunk_px=32)))), array)
    moved = opened(str(convert("moved", offset_xyz=[0, 0, 0])))
    np.testing.assert_array_equal(whole(moved), array)
    assert moved.start_zyx == (0, 0, 0)
    if (name, dtype) != ("precomputed", "uint64"):
        path.write_bytes(marked[: len(marked) * 2 // 3])
        for number, layout in enumerate(({}, {"shard_px": 64})):  # copied; encoded again
            with pytest.raises(JobFailedError):
                convert(f"broken_{number}", **layout)
            assert not (tmp_path / f"broken_{number}" / file).exists()


def test_files_that_cloudvolume_has_compressed_are_not(store: Store, tmp_path: Path) -> None:
    from cloudvolume import CloudVolume

    array = voxels("uint8")
    source = write(tmp_path, "precomputed", array)
    volume = CloudVolume(f"file://{tmp_path}/volume", progress=False, compress="gzip")
    volume[:] = np.asarray(volume[:])
    for chunk in (tmp_path / "volume" / "4.6_4.6_45.0").iterdir():
        if chunk.suffix != ".gz":
            chunk.unlink()
    target = str(tmp_path / "copy")
    run_stage(store, "convert", params={"source": source, "target": target, "chunk_px": OPTIONS.chunk_px})
    np.testing.assert_array_equal(whole(opened(target)), array)
    assert info_of(array).start_zyx == opened(target).start_zyx == START_ZYX
