"""What is written is what others read: cloud-volume, h5py, tifffile, tensorstore; and the other way round."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cramjam
import h5py
import numpy as np
import pytest
import tensorstore as ts
import tifffile

from happyneurons.errors import UserError
from tests.formats.volumes import SHAPE_ZYX, SIZE_NM_XYZ, START_ZYX, opened, voxels, whole, write

STOP_ZYX = tuple(a + n for a, n in zip(START_ZYX, SHAPE_ZYX, strict=True))


def tensor(driver: str, path: Path) -> ts.TensorStore:
    return ts.open({"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"}}).result()


@pytest.mark.parametrize("dtype", ["uint8", "uint64"])
def test_precomputed_in_tensorstore_and_cloudvolume(dtype: str, tmp_path: Path) -> None:
    from cloudvolume import CloudVolume

    write(tmp_path, "precomputed", voxels(dtype))
    array = tensor("neuroglancer_precomputed", tmp_path / "volume")
    np.testing.assert_array_equal(array.read().result()[..., 0].T, voxels(dtype))
    assert tuple(array.domain.origin[:3]) == START_ZYX[::-1]
    volume = CloudVolume(f"file://{tmp_path}/volume", progress=False)
    np.testing.assert_array_equal(np.asarray(volume[:])[..., 0].T, voxels(dtype))


def test_ome_zarr_in_tensorstore_is_sharded(tmp_path: Path) -> None:
    write(tmp_path, "ome-zarr", voxels("uint32"))
    array = tensor("zarr3", tmp_path / "volume" / "0")
    np.testing.assert_array_equal(array.read().result(), voxels("uint32"))
    assert array.chunk_layout.write_chunk.shape == (32, 32, 32)
    assert array.chunk_layout.read_chunk.shape == (16, 16, 16)
    ome = json.loads((tmp_path / "volume" / "zarr.json").read_text())["attributes"]["ome"]
    assert ome["version"] == "0.5"
    scale, translation = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == list(SIZE_NM_XYZ[::-1])
    assert translation["translation"] == pytest.approx(np.multiply(START_ZYX, SIZE_NM_XYZ[::-1]))


def test_ome_zarr_0_4_and_plain_zarr_of_others(tmp_path: Path) -> None:
    """Zarr 2 with a channel axis and micrometres, as most files of today."""
    array = voxels("uint8")
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{tmp_path}/v/0/"},
        "metadata": {"shape": [2, *array.shape], "chunks": [1, 16, 16, 16], "dtype": "|u1"},
    }
    ts.open(spec, create=True).result().write(np.stack([array, array[::-1]])).result()
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    scale = {"type": "scale", "scale": [1, 0.045, 0.0046, 0.0046]}
    document = {"multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}]}
    (tmp_path / "v" / ".zattrs").write_text(json.dumps(document))
    (tmp_path / "v" / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(UserError, match="2 channels; choose one"):
        opened(str(tmp_path / "v"))
    reader = opened(str(tmp_path / "v"), channel=1)
    np.testing.assert_array_equal(whole(reader), array[::-1])
    assert reader.voxel_size_nm_xyz == pytest.approx(SIZE_NM_XYZ)
    plain = opened(f"{tmp_path}/v/0", channel=0)
    np.testing.assert_array_equal(whole(plain), array)
    assert plain.voxel_size_nm_xyz == (1, 1, 1)


def test_hdf5_in_h5py(tmp_path: Path) -> None:
    write(tmp_path, "hdf5", voxels("uint64"))
    with h5py.File(tmp_path / "volume.h5", "r") as file:
        data = file["volume"]
        np.testing.assert_array_equal(data[()], voxels("uint64"))
        assert data.chunks == (16, 16, 16)
        np.testing.assert_allclose(data.attrs["resolution"], SIZE_NM_XYZ[::-1])
        np.testing.assert_allclose(data.attrs["offset"], np.multiply(START_ZYX, SIZE_NM_XYZ[::-1]))
        # Pages of their own: processes on different machines never touch the same one.
        assert {data.id.get_chunk_info(i).byte_offset % 4096 for i in range(data.id.get_num_chunks())} == {0}


def test_hdf5_of_others(tmp_path: Path) -> None:
    """CREMI's attributes, compressed and big-endian; booleans as masks; names below groups."""
    with h5py.File(tmp_path / "cremi.hdf", "w") as file:
        data = file.create_dataset("volumes/labels", data=voxels("uint64").astype(">u8"), compression="gzip")
        data.attrs["resolution"], data.attrs["offset"] = (45.0, 4.6, 4.6), np.multiply(START_ZYX, SIZE_NM_XYZ[::-1])
        file.create_dataset("mask", data=voxels("uint8") > 9)
    reader = opened(f"{tmp_path}/cremi.hdf?volumes/labels")
    np.testing.assert_array_equal(whole(reader), voxels("uint64"))
    assert (reader.start_zyx, reader.voxel_size_nm_xyz) == (START_ZYX, SIZE_NM_XYZ)
    assert whole(opened(f"{tmp_path}/cremi.hdf?mask")).sum() == (voxels("uint8") > 9).sum()
    with pytest.raises(UserError, match=r"2 three-dimensional datasets; name one: .*\(mask, volumes/labels\)"):
        opened(f"{tmp_path}/cremi.hdf")


def test_tiff_in_tifffile(tmp_path: Path) -> None:
    write(tmp_path, "tiff", voxels("uint32"))
    files = sorted((tmp_path / "volume").iterdir())
    assert [f.name for f in files] == [f"z{z:06d}.tif" for z in range(START_ZYX[0], STOP_ZYX[0])]
    np.testing.assert_array_equal(np.stack([tifffile.imread(f) for f in files]), voxels("uint32"))
    with tifffile.TiffFile(files[0]) as file:
        count, per = file.pages[0].tags["XResolution"].value
        assert 1e7 * per / count == pytest.approx(4.6)


@pytest.mark.parametrize("layout", ["strips", "tiles", "whole"])
def test_tiff_of_others(layout: str, tmp_path: Path) -> None:
    """ImageJ's hyperstack, OME's BigTIFF, tiles, compression: voxel sizes and any rectangle."""
    array = voxels("uint8")
    path = tmp_path / "stack.tif"
    if layout == "whole":
        tifffile.imwrite(
            path, array, imagej=True, resolution=(1 / 0.0046, 1 / 0.0046), metadata={"spacing": 0.045, "unit": "um"}
        )
    else:
        size = {f"PhysicalSize{a}": s for a, s in zip("XYZ", SIZE_NM_XYZ, strict=True)}
        units = {f"PhysicalSize{a}Unit": "nm" for a in "XYZ"}
        how = {"tile": (16, 16)} if layout == "tiles" else {"rowsperstrip": 5}
        tifffile.imwrite(
            path, array, ome=True, bigtiff=True, compression="zlib", metadata={"axes": "ZYX", **size, **units}, **how
        )
    reader = opened(str(path))
    assert reader.voxel_size_nm_xyz == pytest.approx(SIZE_NM_XYZ, rel=1e-4)
    np.testing.assert_array_equal(whole(reader), array)
    np.testing.assert_array_equal(reader.read((4, 3, 17), (9, 31, 43)), array[4:9, 3:31, 17:43])


def test_knossos_files_are_as_knossos_reads_them(tmp_path: Path) -> None:
    write(tmp_path, "knossos", voxels("uint8"))
    root = tmp_path / "volume"
    cube = np.fromfile(root / "mag1/x0000/y0000/z0000/volume_mag1_x0000_y0000_z0000.raw", np.uint8).reshape(
        128, 128, 128
    )
    inside = tuple(slice(a, b) for a, b in zip(START_ZYX, STOP_ZYX, strict=True))
    np.testing.assert_array_equal(cube[inside], voxels("uint8"))
    assert cube.sum(dtype=np.int64) == voxels("uint8").sum(dtype=np.int64)
    conf = (root / "mag1/knossos.conf").read_text().splitlines()
    assert 'experiment name "volume_mag1";' in conf
    assert {"boundary x 55;", "boundary y 44;", "boundary z 24;", "scale z 45.0;", "magnification 1;"} <= set(conf)
    labels = tmp_path / "labels"
    labels.mkdir()
    write(labels, "knossos", voxels("uint64"))
    path = labels / "volume/mag1/x0000/y0000/z0000/volume_mag1_x0000_y0000_z0000.seg.sz.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [path.name.removesuffix(".zip")]
        raw = bytes(cramjam.snappy.decompress_raw(archive.read(archive.namelist()[0])))
    np.testing.assert_array_equal(np.frombuffer(raw, np.uint64).reshape(128, 128, 128)[inside], voxels("uint64"))


def test_knossos_of_others_starts_at_the_origin(tmp_path: Path) -> None:
    write(tmp_path, "knossos", voxels("uint8"))
    (tmp_path / "volume" / "happyneurons.json").unlink()
    (tmp_path / "volume" / "knossos.conf").unlink()
    reader = opened(str(tmp_path / "volume"))
    assert (reader.start_zyx, reader.stop_zyx) == ((0, 0, 0), STOP_ZYX)
    np.testing.assert_array_equal(reader.read(START_ZYX, STOP_ZYX), voxels("uint8"))


def test_datasets_of_webknossos(shared_data: Path) -> None:
    """Its own test data: three channels, WKW with blocks of 8³, Zarr 3; the older form of the properties."""
    wkw, zarr = (str(shared_data / "webknossos" / f"simple_{name}_dataset") for name in ("wkw", "zarr3"))
    with pytest.raises(UserError, match="3 channels; choose one"):
        opened(wkw)
    assert whole(opened(wkw, channel=2)).shape == (24, 24, 24)
    path = Path(zarr) / "color" / "1"
    expected = tensor("zarr3", path).read().result()
    for channel in range(3):
        reader = opened(zarr, channel=channel)
        assert (reader.start_zyx, reader.stop_zyx, reader.labels) == ((0, 0, 0), (24, 24, 24), False)
        np.testing.assert_array_equal(whole(reader), expected[channel, :24, :24, :24].T)


def test_a_layer_joins_a_dataset(tmp_path: Path) -> None:
    for name, dtype in (("webknossos-wkw", "uint8"), ("webknossos-zarr3", "uint64")):
        write(tmp_path, name, voxels(dtype))
    properties = json.loads((tmp_path / "volume" / "datasource-properties.json").read_text())
    assert [(layer["name"], layer["category"]) for layer in properties["dataLayers"]] == [
        ("color", "color"), ("segmentation", "segmentation")
    ]  # fmt: skip
    assert properties["dataLayers"][1]["largestSegmentId"] == int(voxels("uint64").max())
    assert properties["scale"] == {"factor": list(SIZE_NM_XYZ), "unit": "nanometer"}
    with pytest.raises(UserError, match=r"2 layers; name one: \?NAME \(color, segmentation\)"):
        opened(str(tmp_path / "volume"))
    np.testing.assert_array_equal(whole(opened(f"{tmp_path}/volume?color")), voxels("uint8"))
    with pytest.raises(UserError, match="all layers of a dataset share one size"):
        write(tmp_path, "webknossos-wkw", voxels("uint8"), size=(8.0, 8.0, 8.0))
