"""Chunks read from file systems are what CloudVolume reads, and what is not plain is left to it."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from cloudvolume import CloudVolume

from happyneurons.errors import TaskError
from happyneurons.store import volumes
from happyneurons.store.volumes import create_volume, open_volume

START, STOP = (-7, 3, 10), (60, 90, 75)
BOXES = [(START, STOP), ((-7, 3, 10), (-5, 4, 12)), ((0, 40, 11), (59, 68, 75)), ((25, 35, 42), (26, 70, 43))]


def written(folder: Path, dtype: str, kind: str, channels: int = 1) -> np.ndarray:
    volume = create_volume(
        folder.as_uri(), start_zyx=START, stop_zyx=STOP, voxel_size_nm_xyz=(8, 8, 30), dtype=dtype,
        layer_type=kind, chunk_zyx=(32, 32, 32), channels=channels,  # type: ignore[arg-type]
    )  # fmt: skip
    shape = (channels, *np.subtract(STOP, START).tolist())
    block = np.random.default_rng(1).integers(0, 60, shape).astype(dtype)
    volume.write_channels(START, block)
    return block


@pytest.mark.parametrize(
    ("dtype", "kind", "channels"),
    [("uint8", "image", 1), ("float32", "image", 3), ("uint64", "segmentation", 1), ("uint32", "segmentation", 1),
     ("uint16", "segmentation", 1)],
)  # fmt: skip
def test_the_same_as_cloudvolume(tmp_path: Path, dtype: str, kind: str, channels: int) -> None:
    block = written(tmp_path / "v", dtype, kind, channels)
    theirs = CloudVolume((tmp_path / "v").as_uri(), progress=False)
    for start, stop in BOXES:
        (z0, y0, x0), (z1, y1, x1) = start, stop
        found = open_volume((tmp_path / "v").as_uri()).read_channels(start, stop)
        np.testing.assert_array_equal(found, np.asarray(theirs[x0:x1, y0:y1, z0:z1]).T)
        inside = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, START, strict=True))
        np.testing.assert_array_equal(found, block[(slice(None), *inside)])


def test_gzipped_ones_and_ones_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = written(tmp_path / "v", "uint64", "segmentation")[0]
    asked = property(lambda self: pytest.fail("CloudVolume was asked"))
    monkeypatch.setattr(volumes.PrecomputedVolume, "_cv", asked)
    files = sorted(path for path in (tmp_path / "v").rglob("*_*_*") if path.is_file())
    assert len(files) > 20
    for path in files[::2]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    gone = tmp_path / "v" / "8.0_8.0_30.0" / "10-42_3-35_-7-25"
    for path in (gone, gone.with_name(f"{gone.name}.gz")):
        path.unlink(missing_ok=True)
    block[:32, :32, :32] = 0
    np.testing.assert_array_equal(open_volume((tmp_path / "v").as_uri()).read(START, STOP), block)


def test_other_compressions_are_cloudvolumes(tmp_path: Path) -> None:
    block = written(tmp_path / "v", "uint8", "image")[0]
    again = CloudVolume((tmp_path / "v").as_uri(), progress=False, compress="br", non_aligned_writes=True)
    for path in (tmp_path / "v").rglob("*_*_*"):
        if path.is_file():
            path.unlink()
    (z0, y0, x0), (z1, y1, x1) = START, STOP
    again[x0:x1, y0:y1, z0:z1] = np.asfortranarray(block.T[..., np.newaxis])
    assert list((tmp_path / "v").rglob("*.br"))
    np.testing.assert_array_equal(open_volume((tmp_path / "v").as_uri()).read(START, STOP), block)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_chunk_of_the_wrong_size_is_told(tmp_path: Path, ending: str) -> None:
    written(tmp_path / "v", "uint8", "image")
    path = tmp_path / "v" / "8.0_8.0_30.0" / "10-42_3-35_-7-25"
    data = path.read_bytes()[:-5]
    path.unlink()
    path.with_name(path.name + ending).write_bytes(gzip.compress(data)[:-9] if ending else data)
    volume = open_volume((tmp_path / "v").as_uri())
    with pytest.raises(TaskError, match=r"broken data in the box x 10–20, y 3–9, z -7–0: 10-42_3-35_-7-25"):
        volume.read(START, (0, 9, 20))
    assert volume.read((30, 40, 50), (31, 41, 51)).shape == (1, 1, 1)
