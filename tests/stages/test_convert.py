"""convert: exact with ranks and after being killed, levels, parameters; the command resumes and cleans up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from happyneurons.cli.main import main
from happyneurons.errors import UserError
from happyneurons.jobs.spec import make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.store.artifacts import Manifest, load_artifact
from happyneurons.store.documents import Store
from happyneurons.store.volumes import open_volume
from happyneurons.worker.local import run_stage
from happyneurons.worker.run import RunOptions, run_job_here
from tests.formats.volumes import SIZE_NM_XYZ, START_ZYX, opened, voxels, whole, write
from tests.stages.attempts import files, run_and_die, run_with_ranks

SMALL = {"chunk_px": 16, "shard_px": 32, "task_mb": 1}


def convert(store: Store, source: str, **params: Any) -> Manifest:
    return run_stage(store, "convert", params={"source": source, **SMALL, **params})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ranks", "extra"),
    [
        ("hdf5", 2, {}),
        ("hdf5", 2, {"hdf5_compression": "gzip"}),
        ("ome-zarr", 1, {}),
        ("precomputed", 2, {"sharded": True, "num_mips": 1}),
    ],
)
def test_killed_and_started_again_gives_the_bytes_of_an_undisturbed_run(
    name: str, ranks: int, extra: dict[str, Any], store: Store, tmp_path: Path
) -> None:
    array = np.tile(voxels("uint64"), (2, 2, 2))  # 2.5 MB: some tasks
    source = write(tmp_path, "precomputed", array)
    params = {"source": source, "format": name, **SMALL, **extra}
    spec = make_spec(load_stage("convert"), inputs={}, params=params)
    save_spec(store, spec)
    assert run_and_die(store, spec, "blocks", 2) == -9
    if extra:  # and once more in the last round, whose task was done but not entered
        last = "mip_1" if "num_mips" in extra else "close"
        assert run_and_die(store, spec, last, 1) == -9
    run_with_ranks(store, spec, ranks)
    manifest = Manifest.model_validate(store.get_json(f"jobs/{spec.key}/manifest.json"))
    np.testing.assert_array_equal(whole(opened(relocated(manifest))), array)
    assert len(list(store.list(f"artifacts/{spec.key}"))) < 100  # chunks gathered beside the file are gone
    other = Store((tmp_path / "other").as_uri())
    save_spec(other, spec)
    assert run_job_here(other, spec.key, RunOptions()) == 0
    assert files(store, spec.key) == files(other, spec.key)


def relocated(manifest: Manifest) -> str:
    return str(next(iter(manifest.outputs.values())).properties["uri"])


def test_labels_become_a_segmentation_that_stages_read(store: Store, tmp_path: Path) -> None:
    source = write(tmp_path, "tiff", voxels("uint64"))
    manifest = convert(store, source, num_mips=1, verify=True)
    artifact = load_artifact(manifest.outputs["segmentation"].uri)
    assert artifact.kind == "segmentation"
    assert artifact.voxel_size_nm_xyz == SIZE_NM_XYZ
    assert artifact.bounds is not None
    assert artifact.bounds.minimum_xyz == START_ZYX[::-1]
    volume = open_volume(artifact.data_uri)
    np.testing.assert_array_equal(volume.read(volume.start_zyx, volume.stop_zyx), voxels("uint64"))
    assert manifest.metrics["largest_label"] == float(voxels("uint64").max())
    again = run_stage(store, "convert", inputs={"volume": artifact.uri}, params={"format": "knossos"})
    np.testing.assert_array_equal(whole(opened(relocated(again))), voxels("uint64"))


@pytest.mark.parametrize("name", ["ome-zarr", "webknossos-wkw", "webknossos-zarr3"])
@pytest.mark.parametrize("dtype", ["uint8", "uint64"])
def test_levels_are_those_of_the_store_s_pyramids(name: str, dtype: str, store: Store, tmp_path: Path) -> None:
    source = write(tmp_path, "hdf5", voxels(dtype))
    precomputed = convert(store, source, num_mips=2)
    expected = next(iter(precomputed.outputs.values())).data_uri
    other = relocated(convert(store, source, num_mips=2, format=name))
    for mip in range(3):
        wanted, got = opened(expected, mip=mip), opened(other, mip=mip)
        assert (got.start_zyx, got.stop_zyx) == (wanted.start_zyx, wanted.stop_zyx)
        assert got.voxel_size_nm_xyz == pytest.approx(wanted.voxel_size_nm_xyz)
        np.testing.assert_array_equal(whole(got), whole(wanted))
    with pytest.raises(UserError, match="there is no level 3; it has 3"):
        opened(other, mip=3)


def test_part_of_a_level_moved_renamed_and_retyped(store: Store, tmp_path: Path) -> None:
    source = write(tmp_path, "hdf5", voxels("uint8").astype(np.int64), labels=True)
    manifest = convert(
        store, source, bounds_xyz=[[0, 10, 4], [1000, 30, 20]], offset_xyz=[100, 200, 300], dtype="uint16",
        voxel_size_nm_xyz=[8, 8, 30], kind="image",
    )  # fmt: skip
    volume = opened(manifest.outputs["image"].data_uri)
    assert (volume.start_zyx, volume.stop_zyx) == ((301, 203, 100), (317, 223, 150))
    assert (volume.dtype, volume.voxel_size_nm_xyz) == (np.uint16, (8, 8, 30))
    np.testing.assert_array_equal(whole(volume), voxels("uint8")[1:17, 3:23])
    with pytest.raises(UserError, match=r"the value \d+ at x \d+, y \d+, z \d+ does not fit into int8"):
        convert(store, source, dtype="int8", kind="image")
    with pytest.raises(UserError, match="lies outside of the source"):
        convert(store, source, bounds_xyz=[[0, 0, 0], [5, 5, 3]])


def test_a_source_is_needed_and_one_only(store: Store) -> None:
    with pytest.raises(UserError, match=r"give either params.source or the input `volume`"):
        run_stage(store, "convert", params={})


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "tiff", voxels("uint8"))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["convert", "volume", "out.zarr", "--json", "--bounds", "0,0,0:50,50,9"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["target"].endswith("/out.zarr")
    np.testing.assert_array_equal(whole(opened("out.zarr")), voxels("uint8")[:6, :, :45])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.zarr", "volume"]  # no journal is left
    for arguments, text in (
        (["volume", "out"], "its name does not say a format; give one: --to precomputed"),
        (["volume", "out.n5"], "its name does not say a format"),
        (["volume", "x.h5", "--offset", "1,2"], "--offset 1,2: write three numbers, X,Y,Z"),
        (["nothing", "x.h5"], "there is nothing at"),
    ):
        result = CliRunner().invoke(main, ["convert", *arguments])
        assert result.exit_code == 2
        assert text in result.output


def test_what_is_there_is_not_overwritten(store: Store, tmp_path: Path) -> None:
    source = write(tmp_path, "tiff", voxels("uint8"))
    for name in ("precomputed", "ome-zarr", "webknossos-wkw", "knossos", "tiff", "hdf5"):
        target = str(tmp_path / (name + (".h5" if name == "hdf5" else "")))
        convert(store, source, target=target, format=name)
        with pytest.raises(UserError, match="there is something already"):
            convert(store, source, target=target, format=name, task_mb=2)
