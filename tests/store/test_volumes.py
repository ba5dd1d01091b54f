"""Volumes: what is written is what is read, in (z, y, x), at any offset."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from happyneurons.errors import NotFoundError, UserError
from happyneurons.store.documents import Store
from happyneurons.store.volumes import Hdf5Volume, create_volume, open_volume

START, STOP = (5, 10, 20), (38, 75, 101)  # zyx; neither shape nor offset fits the chunks
CHUNK = (16, 32, 32)
VOXEL_NM = (4.6, 4.6, 45.0)


def _blocks(start: tuple[int, ...], stop: tuple[int, ...], chunk: tuple[int, ...]) -> list[tuple[int, int, int]]:
    return [
        (z, y, x)
        for z in range(start[0], stop[0], chunk[0])
        for y in range(start[1], stop[1], chunk[1])
        for x in range(start[2], stop[2], chunk[2])
    ]


@pytest.mark.parametrize(
    ("dtype", "layer_type"), [("uint8", "image"), ("uint64", "segmentation"), ("uint32", "segmentation")]
)
def test_round_trip_chunk_by_chunk(store: Store, dtype: str, layer_type: str) -> None:
    shape = tuple(b - a for a, b in zip(START, STOP, strict=True))
    data = np.random.default_rng(3).integers(0, 200, shape).astype(dtype)
    if dtype == "uint64":
        data[data > 150] += np.uint64(2**40)
    volume = create_volume(
        store.url("v"), start_zyx=START, stop_zyx=STOP, voxel_size_nm_xyz=VOXEL_NM,
        dtype=dtype, layer_type=layer_type, chunk_zyx=CHUNK,
    )  # fmt: skip
    for block in _blocks(START, STOP, CHUNK):
        low = np.subtract(block, START)
        high = np.minimum(low + CHUNK, shape)
        volume.write(block, data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))])

    again = open_volume("precomputed://" + store.url("v"))
    assert (again.start_zyx, again.stop_zyx, again.chunk_zyx, again.mips) == (START, STOP, CHUNK, 1)
    assert again.dtype == np.dtype(dtype)
    assert again.voxel_size_nm_xyz == VOXEL_NM
    np.testing.assert_array_equal(again.read(START, STOP), data)
    box = again.read((7, 30, 60), (20, 41, 90))
    assert box.flags.c_contiguous
    np.testing.assert_array_equal(box, data[2:15, 20:31, 40:70])


def test_what_was_not_written_is_zero(store: Store) -> None:
    volume = create_volume(
        store.url("v"), start_zyx=(0, 0, 0), stop_zyx=(64, 64, 64), voxel_size_nm_xyz=(1, 1, 1),
        dtype="uint8", layer_type="image", chunk_zyx=(32, 32, 32),
    )  # fmt: skip
    volume.write((32, 0, 0), np.full((32, 32, 32), 7, np.uint8))
    assert volume.read((31, 0, 0), (33, 1, 1)).ravel().tolist() == [0, 7]
    assert volume.read((0, 0, 0), (64, 64, 64)).sum() == 7 * 32**3


def test_creating_twice_keeps_the_voxels(store: Store) -> None:
    def create() -> None:
        create_volume(
            store.url("v"), start_zyx=(0, 0, 0), stop_zyx=(8, 8, 8), voxel_size_nm_xyz=(1, 1, 1),
            dtype="uint8", layer_type="image", chunk_zyx=(8, 8, 8),
        )  # fmt: skip

    create()
    open_volume(store.url("v")).write((0, 0, 0), np.ones((8, 8, 8), np.uint8))  # type: ignore[union-attr]
    create()
    assert open_volume(store.url("v")).read((0, 0, 0), (8, 8, 8)).sum() == 512


def test_reading_outside_is_an_error(store: Store) -> None:
    volume = create_volume(
        store.url("v"), start_zyx=(0, 0, 0), stop_zyx=(8, 8, 8), voxel_size_nm_xyz=(1, 1, 1),
        dtype="uint8", layer_type="image", chunk_zyx=(8, 8, 8),
    )  # fmt: skip
    with pytest.raises(Exception, match=r"(?i)bounds|outside"):
        volume.read((0, 0, 0), (8, 8, 9))


def test_tensorstore_reads_the_same_voxels(store: Store) -> None:
    """Another implementation of the format, which takes compressed raw chunks for zeros, silently."""
    import tensorstore

    data = np.random.default_rng(1).integers(1, 255, (16, 16, 16)).astype(np.uint8)
    create_volume(
        store.url("v"), start_zyx=(0, 0, 0), stop_zyx=(16, 16, 16), voxel_size_nm_xyz=(1, 1, 1),
        dtype="uint8", layer_type="image", chunk_zyx=(16, 16, 16),
    ).write((0, 0, 0), data)  # fmt: skip
    path = store.uri.removeprefix("file://") + "/v"
    other = tensorstore.open(
        {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": path}}
    ).result()
    np.testing.assert_array_equal(other[..., 0].read().result().T, data)


def test_errors_of_volumes(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no precomputed volume there \(no info file\)"):
        open_volume(store.url("nothing"))
    create_volume(
        store.url("v"), start_zyx=(0, 0, 0), stop_zyx=(8, 8, 8), voxel_size_nm_xyz=(1, 1, 1),
        dtype="uint8", layer_type="image",
    )  # fmt: skip
    with pytest.raises(UserError, match="has no mip level 3"):
        open_volume(store.url("v"), mip=3)
    with pytest.raises(UserError, match="empty box"):
        create_volume(
            store.url("w"), start_zyx=(0, 0, 8), stop_zyx=(8, 8, 8), voxel_size_nm_xyz=(1, 1, 1),
            dtype="uint8", layer_type="image",
        )  # fmt: skip
    assert not (tmp_path / "store" / "w").exists()


def test_hdf5_is_read_in_place(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 255, (6, 7, 8)).astype(np.uint8)
    with h5py.File(tmp_path / "em.h5", "w") as file:
        file["volumes/raw"] = data
        file["volumes/raw"].attrs["voxel_size_nm_xyz"] = (4.0, 5.0, 6.0)
        file["flat"] = data[0]
    uri = f"h5://{tmp_path}/em.h5?volumes/raw"
    volume = open_volume(uri)
    assert isinstance(volume, Hdf5Volume)
    assert volume.shape_zyx == (6, 7, 8)
    assert volume.voxel_size_nm_xyz == (4.0, 5.0, 6.0)
    np.testing.assert_array_equal(volume.read((1, 2, 3), (5, 6, 7)), data[1:5, 2:6, 3:7])

    for wrong, message in [
        (f"h5://{tmp_path}/em.h5?nothing", "has no dataset 'nothing'; there are flat, volumes"),
        (f"h5://{tmp_path}/em.h5?flat", r"expected a \(z, y, x\) dataset, found shape \(7, 8\)"),
        (f"h5://{tmp_path}/em.h5", r"write HDF5 volumes as h5://FILE\?DATASET"),
        (f"h5://{tmp_path}/nowhere.h5?x", "there is no file"),
    ]:
        with pytest.raises(UserError, match=message):
            open_volume(wrong)
    with pytest.raises(UserError, match="one level only"):
        open_volume(uri, mip=1)
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(UserError, match="not a readable HDF5 file"):
        open_volume(f"h5://{tmp_path}/text.h5?x")
