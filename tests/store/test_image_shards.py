"""Sharded precomputed volumes: any reader sees the voxels, a box is a file, bytes do not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
from pydantic import ValidationError
from tests.formats.volumes import SHAPE_ZYX, START_ZYX, opened, voxels, whole, write

from happyneurons.formats.base import WriteOptions
from happyneurons.stages.convert.params import ConvertParams
from happyneurons.store.documents import Store
from happyneurons.store.volumes import PrecomputedVolume, create_volume
from happyneurons.worker.local import run_stage


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64"])
@pytest.mark.parametrize("chunks", [1, 4, 1000])
def test_what_is_written_is_what_others_read(dtype: str, chunks: int, tmp_path: Path) -> None:
    array = voxels(dtype)
    options = WriteOptions(16, shard_bytes=chunks * 16**3 * array.itemsize)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        uri = write(tmp_path / name, "precomputed", array, options)
    np.testing.assert_array_equal(whole(opened(uri)), array)
    spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{tmp_path}/a/volume/"}}
    found = ts.open(spec).result()
    np.testing.assert_array_equal(found.read().result()[..., 0].T, array)
    files = {p.name: p.read_bytes() for p in (tmp_path / "a").rglob("*.shard")}
    total = int(np.prod([-(-n // 16) for n in SHAPE_ZYX]))
    assert len(files) >= -(-total // chunks)
    assert (len(files) == 1) == (chunks >= total)
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "b").rglob("*.shard")}


def test_boxes_that_cut_through_shards_are_refused(tmp_path: Path) -> None:
    volume = create_volume(
        tmp_path.as_uri(), start_zyx=START_ZYX, stop_zyx=np.add(START_ZYX, SHAPE_ZYX).tolist(),
        voxel_size_nm_xyz=(4, 4, 40), dtype="uint8", layer_type="image", chunk_zyx=(8, 8, 8), shard_bytes=8 * 8**3,
    )  # fmt: skip
    assert volume.shard_zyx == (16, 16, 16)
    with pytest.raises(ValueError, match="cuts through shards"):
        volume.write(START_ZYX, np.zeros((8, 8, 8), np.uint8))


@pytest.mark.parametrize("dtype", ["uint8", "uint64"])
def test_convert_with_levels_equals_the_unsharded(dtype: str, store: Store, tmp_path: Path) -> None:
    source = write(tmp_path, "hdf5", np.tile(voxels(dtype), (2, 2, 2)))
    found = []
    for sharded in (False, True):
        params = {"source": source, "chunk_px": 16, "task_mb": 1, "num_mips": 2, "sharded": sharded, "verify": sharded}
        manifest = run_stage(store, "convert", params=params)
        found.append(next(iter(manifest.outputs.values())).data_uri)
    for mip in range(3):
        plain, shards = (PrecomputedVolume(uri, mip) for uri in found)
        assert plain.shard_zyx is None
        assert shards.shard_zyx is not None
        np.testing.assert_array_equal(
            shards.read(shards.start_zyx, shards.stop_zyx), plain.read(plain.start_zyx, plain.stop_zyx)
        )


def test_only_precomputed_has_shards_of_this_kind() -> None:
    with pytest.raises(ValidationError, match="for the format precomputed only, not hdf5"):
        ConvertParams(source="/x", format="hdf5", sharded=True)
