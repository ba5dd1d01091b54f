"""Formats with real parts: volumes on an S3 server, and WEBKNOSSOS's own library, in an environment of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
from tests.formats.volumes import OPTIONS, info_of, opened, voxels, whole, write, write_levels
from tests.stages.attempts import files, run_and_die, run_with_ranks

from happyneurons.errors import UserError
from happyneurons.formats.registry import make_writer
from happyneurons.formats.tensor import kvstore
from happyneurons.jobs.spec import make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.store.artifacts import Manifest
from happyneurons.store.documents import Store
from happyneurons.worker.local import run_stage

FOREIGN = """
import json, sys
import numpy as np
from webknossos import BoundingBox, Dataset
if __name__ == "__main__":
    folder = sys.argv[1]
    for data_format in ("wkw", "zarr3"):
        for layer, expected in (("color", "uint8"), ("segmentation", "uint64")):
            dataset = Dataset.open(f"{folder}/ours_{data_format}_{expected}/volume")
            found = dataset.get_layer(layer)
            array = found.get_mag(1).read(absolute_bounding_box=found.bounding_box)[0].T
            assert array.dtype == expected, array.dtype
            assert np.array_equal(array, np.load(f"{folder}/{expected}.npy"))
            assert tuple(found.bounding_box.topleft) == (5, 7, 3)
            assert tuple(dataset.voxel_size) == (4.6, 4.6, 45.0)
        dataset = Dataset(f"{folder}/theirs_{data_format}", voxel_size=(4.6, 4.6, 45.0), name="theirs")
        for layer, dtype in (("color", "uint8"), ("segmentation", "uint64")):
            data = np.load(f"{folder}/{dtype}.npy").T
            extra = {"largest_segment_id": int(data.max())} if layer == "segmentation" else {}
            box = BoundingBox((5, 7, 3), data.shape)
            made = dataset.add_layer(layer, layer, dtype=dtype, bounding_box=box, data_format=data_format, **extra)
            mag = made.add_mag(1, compress=True, chunk_shape=(32,) * 3, shard_shape=(64,) * 3)
            mag.write(data, absolute_offset=(5, 7, 3))
"""


@pytest.mark.parametrize("name", ["precomputed", "ome-zarr", "webknossos-wkw", "webknossos-zarr3", "knossos", "tiff"])
def test_volumes_on_s3(name: str, s3_store: Store, tmp_path: Path) -> None:
    array = voxels("uint64")
    target = s3_store.url(f"volumes/{name}")
    writer = make_writer(target, name, [info_of(array)], OPTIONS)
    assert not writer.occupied()
    uri = write_levels(writer, array)
    assert writer.occupied()
    reader = opened(uri)
    np.testing.assert_array_equal(whole(reader), array)
    manifest = run_stage(
        s3_store, "convert", params={"source": uri, "format": "ome-zarr", "num_mips": 1, "chunk_px": 16}
    )
    np.testing.assert_array_equal(whole(opened(manifest.outputs["files"].properties["uri"])), array)
    with pytest.raises(UserError, match="not a volume in a known format|there is no"):
        opened(s3_store.url("nothing/here"))


def test_a_sharded_volume_on_s3_killed_and_started_again(s3_store: Store, tmp_path: Path) -> None:
    """What others read from there, level by level, and the bytes of an undisturbed run on a file system."""
    array = np.tile(voxels("uint64"), (2, 2, 2))  # 2.5 MB: some shards
    params = {
        "source": write(tmp_path, "tiff", array), "format": "precomputed", "sharded": True, "num_mips": 1,
        "chunk_px": 16, "task_mb": 1,
    }  # fmt: skip
    spec = make_spec(load_stage("convert"), inputs={}, params=params)
    save_spec(s3_store, spec)
    for round_name, after in (("blocks", 2), ("mip_1", 1)):
        assert run_and_die(s3_store, spec, round_name, after) == -signal.SIGKILL
    run_with_ranks(s3_store, spec, 2)
    here = Store((tmp_path / "here").as_uri())
    run_stage(here, "convert", params=params)
    found = files(s3_store, spec.key)
    assert found == files(here, spec.key)
    assert sum(path.endswith(".shard") for path in found) >= 3
    manifest = Manifest.model_validate(s3_store.get_json(f"jobs/{spec.key}/manifest.json"))
    uri = manifest.outputs["segmentation"].data_uri
    np.testing.assert_array_equal(whole(opened(uri)), array)
    for mip in range(2):
        wanted = whole(opened(uri, mip=mip))
        foreign = ts.open(
            {"driver": "neuroglancer_precomputed", "kvstore": kvstore(uri), "scale_index": mip}
        ).result()  # fmt: skip
        np.testing.assert_array_equal(foreign.read().result()[..., 0].T, wanted)


@pytest.fixture(scope="session")
def webknossos_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Python of an environment with webknossos (AGPL, other versions than ours); HPN_WEBKNOSSOS_PYTHON is one."""
    given = os.environ.get("HPN_WEBKNOSSOS_PYTHON")
    if given:
        return given
    folder = tmp_path_factory.mktemp("webknossos")
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("no uv beside this Python")
    venv.create(folder / "venv")
    python = str(folder / "venv" / "bin" / "python")
    command = [str(uv), "pip", "install", "-q", "--python", python, "webknossos>=4.3,<5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"webknossos cannot be installed here: {done.stderr[-300:]}")
    return python


def test_datasets_in_webknossos_s_own_library(webknossos_python: str, tmp_path: Path) -> None:
    for dtype in ("uint8", "uint64"):
        np.save(tmp_path / f"{dtype}.npy", voxels(dtype))
        for data_format in ("wkw", "zarr3"):
            folder = tmp_path / f"ours_{data_format}_{dtype}"
            folder.mkdir()
            write(folder, f"webknossos-{data_format}", voxels(dtype))
    script = tmp_path / "foreign.py"
    script.write_text(FOREIGN)
    done = subprocess.run([webknossos_python, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for data_format in ("wkw", "zarr3"):
        for layer, dtype in (("color", "uint8"), ("segmentation", "uint64")):
            np.testing.assert_array_equal(whole(opened(f"{tmp_path}/theirs_{data_format}?{layer}")), voxels(dtype))
