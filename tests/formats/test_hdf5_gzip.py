"""Compressed HDF5: what plain h5py reads; the same bytes in any order; deaths and a full disk at the end."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
from pydantic import ValidationError

from happyneurons.errors import StoreError
from happyneurons.formats.base import Writer
from happyneurons.formats.blocks import boxes
from happyneurons.formats.registry import make_writer
from happyneurons.stages.convert.params import ConvertParams
from happyneurons.store.documents import Store
from happyneurons.store.triples import triple
from happyneurons.worker.local import run_stage
from tests.formats.volumes import OPTIONS, START_ZYX, info_of, opened, voxels, whole, write

GZIP = dataclasses.replace(OPTIONS, gzip=True)


def written(folder: Path, array: np.ndarray, backwards: bool = False) -> Writer:
    """All blocks, as tasks of two chunks write them, and the file not yet put together."""
    folder.mkdir()
    writer = make_writer(str(folder / "volume.h5"), "hdf5", [info_of(array)], GZIP)
    assert not writer.occupied()
    writer.prepare()
    info, unit = writer.levels[0], triple(np.multiply(writer.unit_zyx(0), (1, 1, 2)))
    for start, stop in sorted(boxes(info.start_zyx, info.stop_zyx, info.start_zyx, unit), reverse=backwards):
        block = array[tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, START_ZYX, strict=True))]
        writer.write(0, start, block)
        np.testing.assert_array_equal(writer.read(0, start, stop), block)
    assert writer.occupied()
    return writer


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64"])
def test_what_h5py_reads(dtype: str, tmp_path: Path) -> None:
    array = voxels(dtype)
    array[:, :16] = 0
    uri = write(tmp_path, "hdf5", array, GZIP)
    with h5py.File(tmp_path / "volume.h5") as file:
        data = file["volume"]
        assert (data.compression, data.shuffle, data.chunks) == ("gzip", data.dtype.itemsize > 1, (16, 16, 16))
        np.testing.assert_array_equal(data[()], array)
        places = np.prod([-(-n // 16) for n in array.shape])
        assert data.id.get_num_chunks() == places * 2 // 3  # those of zeros are not stored
    np.testing.assert_array_equal(whole(opened(uri)), array)
    assert [p.name for p in tmp_path.iterdir()] == ["volume.h5"]


def test_the_same_bytes_in_any_order_and_after_a_death_while_it_is_put_together(tmp_path: Path) -> None:
    array = voxels("uint64")
    for name in ("forwards", "backwards"):
        writer = written(tmp_path / name, array, backwards=name == "backwards")
        folder = tmp_path / name / "volume.h5.chunks"
        if name == "backwards":
            (folder / "0123.new").write_bytes(b"the beginning of a file")
            (folder / f"{next(folder.glob('*.block')).name}#1").write_bytes(b"of a block")
        writer.close(0)
        writer.close(0)
        assert [p.name for p in folder.parent.iterdir()] == ["volume.h5"]
    forwards, backwards = (tmp_path / name / "volume.h5" for name in ("forwards", "backwards"))
    assert forwards.read_bytes() == backwards.read_bytes()


def test_no_room_for_the_file(tmp_path: Path) -> None:
    """A limit of the size of files ends writing as a full disk does. With room again, it goes on."""
    array = np.random.default_rng(1).integers(0, 2**63, (48, 48, 48), np.uint64)
    writer = written(tmp_path / "full", array)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limit[1]))
    try:
        with pytest.raises(StoreError, match=r"volume\.h5: File too large$"):
            writer.close(0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not (tmp_path / "full" / "volume.h5").exists()
    writer.close(0)
    np.testing.assert_array_equal(whole(opened(writer.uri())), array)


def test_a_block_that_the_disk_lost_is_named(tmp_path: Path) -> None:
    writer = written(tmp_path / "cut", voxels("uint64"))
    block = min((tmp_path / "cut" / "volume.h5.chunks").glob("*.block"))
    block.write_bytes(block.read_bytes()[:-1])
    with pytest.raises(StoreError, match=rf"{block.name}: it is cut off.*remove .*volume\.h5\.chunks"):
        writer.close(0)
    assert not (tmp_path / "cut" / "volume.h5").exists()


@pytest.mark.parametrize("source", ["tiff", "ome-zarr"])
def test_convert_and_verify(source: str, store: Store, tmp_path: Path) -> None:
    """From whole sections, and by pieces."""
    array = voxels("uint64")
    params = {
        "source": write(tmp_path, source, array), "target": str(tmp_path / "a" / "labels.h5?volumes/labels"),
        "format": "hdf5", "hdf5_compression": "gzip", "chunk_px": 16, "task_mb": 1, "verify": True,
    }  # fmt: skip
    run_stage(store, "convert", params=params)
    np.testing.assert_array_equal(whole(opened(str(params["target"]))), array)


def test_only_hdf5_has_it() -> None:
    with pytest.raises(ValidationError, match="for the format hdf5 only, not tiff; see compress"):
        ConvertParams(source="/x", format="tiff", hdf5_compression="gzip")
