"""Bad input: a clear error each, that says where and what to do."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile

from happyneurons.errors import StoreError, TaskError, UserError
from happyneurons.formats.base import WriteOptions
from happyneurons.formats.damage import writing
from happyneurons.formats.registry import make_writer
from happyneurons.formats.wkw import Header
from tests.formats.volumes import OPTIONS, info_of, opened, voxels, whole, write


def test_a_path_that_leads_out_of_the_dataset(tmp_path: Path) -> None:
    write(tmp_path, "webknossos-wkw", voxels("uint8"))
    path = tmp_path / "volume" / "datasource-properties.json"
    properties = json.loads(path.read_text())
    for outside in ("../../etc", "/etc", "s3://elsewhere/color/1"):
        properties["dataLayers"][0]["mags"][0]["path"] = outside
        path.write_text(json.dumps(properties))
        with pytest.raises(UserError, match=f"{outside}.*leads out of the folder"):
            opened(str(tmp_path / "volume"))
    with pytest.raises(UserError, match="leads out of the folder"):
        opened(f"{tmp_path}/volume?../other")


@pytest.mark.parametrize(
    ("name", "dtype", "file"),
    [
        ("webknossos-wkw", "uint64", "segmentation/1/z0/y0/x0.wkw"),
        ("webknossos-zarr3", "uint64", "segmentation/1/c/0/0/0/0"),
        ("ome-zarr", "uint64", "0/c/0/0/0"),
        ("precomputed", "uint8", "4.6_4.6_45.0/5-21_7-23_3-19"),
        ("knossos", "uint64", "mag1/x0000/y0000/z0000/volume_mag1_x0000_y0000_z0000.seg.sz.zip"),
        ("knossos", "uint8", "mag1/x0000/y0000/z0000/volume_mag1_x0000_y0000_z0000.raw"),
        ("tiff", "uint8", "z000004.tif"),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_a_broken_chunk_is_named(name: str, dtype: str, file: str, damage: str, tmp_path: Path) -> None:
    uri = write(tmp_path, name, voxels(dtype))
    path = tmp_path / "volume" / file
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) * 2 // 3])
    else:
        # In the middle of the data, where a header or an index does not notice.
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes(255 - b for b in data[middle : middle + 40]) + data[middle + 40 :])
    noticed = damage == "cut" or name in ("webknossos-zarr3", "ome-zarr")
    where = re.escape(str(tmp_path)) + ".*broken data in the box x"
    with pytest.raises(TaskError, match=where) if noticed else contextlib.suppress(TaskError):
        # Formats without checksums cannot notice every change, and must not fail in another way.
        assert whole(opened(uri)).shape == voxels(dtype).shape


def test_a_wkw_file_with_another_block_length(tmp_path: Path) -> None:
    uri = write(tmp_path, "webknossos-wkw", voxels("uint8"))
    path = tmp_path / "volume/color/1/z0/y0/x0.wkw"
    header = Header(16, 2, 2, np.dtype("uint8"), data_offset=16 + 8 * 8)
    path.write_bytes(header.pack() + path.read_bytes()[16:])
    with pytest.raises(TaskError, match=r"blocks of 16³ voxels.*disagrees with the layer's header.wkw .blocks of 32³"):
        whole(opened(uri))
    path.with_name("x0.wkw").write_bytes(b"RIFF" + bytes(100))
    with pytest.raises(UserError, match="not a WKW header"):
        whole(opened(uri))


def test_an_odd_page(tmp_path: Path) -> None:
    uri = write(tmp_path, "tiff", voxels("uint8"))
    tifffile.imwrite(tmp_path / "volume" / "z000009.tif", np.zeros((37, 49), np.uint8))
    reader = opened(uri)
    with pytest.raises(UserError, match=r"section 9 \(z000009.tif\) is 49×37 px uint8, the first one 50×37 px uint8"):
        reader.check()
    with pytest.raises(TaskError, match="section 9"):
        whole(reader)
    stack = tmp_path / "pages.tif"
    with tifffile.TiffWriter(stack) as file:
        for width in (50, 50, 49):
            file.write(np.zeros((37, width), np.uint8), contiguous=False)
    with pytest.raises(UserError, match="section 2"):
        opened(str(stack)).check()


def test_names_of_sections(tmp_path: Path) -> None:
    uri = write(tmp_path, "tiff", voxels("uint8"))
    folder = tmp_path / "volume"
    (folder / "z000007.tif").unlink()
    with pytest.raises(UserError, match=r"1 of 21 sections are missing: 7; .* fill_gaps=true"):
        opened(uri)
    filled = whole(opened(uri, fill_gaps=True))
    assert not filled[4].any()
    np.testing.assert_array_equal(filled[5], voxels("uint8")[5])
    (folder / "z000008.tif").rename(folder / "z0009.tif")
    with pytest.raises(UserError, match=r"z000009.tif and z0009.tif both are section 9"):
        opened(uri)
    (folder / "overview.tif").write_bytes(b"")
    with pytest.raises(UserError, match=r"overview.tif has no number in its name|both are section 9"):
        opened(uri)


@pytest.mark.parametrize(
    ("name", "dtype", "labels", "text"),
    [
        ("knossos", "uint32", True, "KNOSSOS cannot hold labels of uint32, only uint64"),
        ("knossos", "float32", False, "KNOSSOS cannot hold images of float32, only uint8"),
        ("precomputed", "float64", False, "precomputed cannot hold images of float64"),
        ("precomputed", "int64", True, "precomputed cannot hold labels of int64.*dtype=uint64"),
        ("webknossos-wkw", "int32", True, "cannot hold labels of int32"),
    ],
)
def test_a_type_that_the_target_cannot_hold(name: str, dtype: str, labels: bool, text: str, tmp_path: Path) -> None:
    info = info_of(np.zeros((4, 4, 4), dtype), labels)
    with pytest.raises(UserError, match=text):
        make_writer(str(tmp_path / "v"), name, [info], OPTIONS)
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("name", ["webknossos-wkw", "webknossos-zarr3", "knossos", "tiff"])
def test_coordinates_below_zero(name: str, tmp_path: Path) -> None:
    info = info_of(np.zeros((4, 4, 4), np.uint8), start_zyx=(-3, 0, 0))
    with pytest.raises(UserError, match="below 0.*offset_xyz"):
        make_writer(str(tmp_path / "v"), name, [info], OPTIONS)


def test_targets_that_do_not_fit(tmp_path: Path) -> None:
    info = info_of(np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(UserError, match="N5 is only read here"):
        make_writer(str(tmp_path / "v"), "n5", [info], OPTIONS)
    with pytest.raises(UserError, match="HDF5 can be written to a file system only"):
        make_writer("s3://bucket/v.h5", "hdf5", [info], OPTIONS)
    with pytest.raises(UserError, match="one level only"):
        make_writer(str(tmp_path / "v"), "tiff", [info, info], OPTIONS)
    with pytest.raises(UserError, match="a layer's name"):
        make_writer(f"{tmp_path}/v?a b", "webknossos-wkw", [info], OPTIONS)
    with pytest.raises(UserError, match="power of two"):
        make_writer(str(tmp_path / "v"), "webknossos-wkw", [info], WriteOptions(shard_px=100))


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is nothing at"):
        opened(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a volume in a known format"):
        opened(str(tmp_path / "empty"))
    (tmp_path / "no.h5").write_text("no")
    with pytest.raises(UserError, match="not a readable HDF5 file"):
        opened(str(tmp_path / "no.h5"))
    (tmp_path / "no.tif").write_text("no")
    with pytest.raises(UserError, match="not a readable TIFF file"):
        opened(str(tmp_path / "no.tif"))
    uri = write(tmp_path, "ome-zarr", voxels("uint8"))
    with pytest.raises(UserError, match="there is no level 3; it has 1"):
        opened(uri, mip=3)


def test_no_space_is_the_store_s_affair() -> None:
    """A full device, as far as it can be had anywhere: /dev/full takes no byte."""
    with (
        pytest.raises(StoreError, match="no space left"),
        writing("target"),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"voxels")
