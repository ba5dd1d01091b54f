"""volume: voxels equal the sections, gaps show their nearest good one, levels are means, any reader sees the same."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.jobs.spec import make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.store.artifacts import Artifact, Bounds, Manifest, artifact_uri, load_artifact, manifest_path
from happyneurons.store.documents import Store, local_path
from happyneurons.store.pyramid import add_levels, blocks, factors_xyz, write_level
from happyneurons.store.volumes import PrecomputedVolume, create_volume, open_volume
from happyneurons.worker.local import run_stage

from .attempts import files, run_and_die, run_with_ranks

START = (3, 7, 5)  # zyx: an offset that no level is aligned to
SHAPE = (21, 150, 203)
GAPS = {0: "missing", 5: "blank", 12: "failed", 13: "failed", 14: "missing"}


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    z, y, x = np.indices(SHAPE)
    image = 120 + 60 * np.sin(x / 9) * np.cos(y / 7) + 5 * (z % 7) + np.random.default_rng(1).normal(0, 9, SHAPE)
    image = np.clip(np.rint(image), 1, 255).astype(np.uint8)
    for z in GAPS:
        image[z] = 0
    return image


@pytest.fixture
def stack(store: Store, voxels: np.ndarray) -> str:
    """The voxels as a published section_stack with an offset."""
    key = "0" * 40
    data = Store(store.url(f"artifacts/{key}/stack"))
    stop = tuple(a + n for a, n in zip(START, SHAPE, strict=True))
    volume = create_volume(
        data.url("image"), start_zyx=START, stop_zyx=stop, voxel_size_nm_xyz=(8, 8, 20), dtype="uint8",
        layer_type="image", chunk_zyx=(1, 1024, 1024),
    )  # fmt: skip
    for i in range(SHAPE[0]):
        status = GAPS.get(i, "flagged" if i == 9 else "ok")
        data.put_json(f"sections/{START[0] + i:06d}.json", {"z": START[0] + i, "status": status})
        if i not in GAPS:
            volume.write((START[0] + i, *START[1:]), voxels[i : i + 1])
    artifact = Artifact(
        kind="section_stack", uri=artifact_uri(store, key, "stack"), data_uri=data.uri, digest="d",
        voxel_size_nm_xyz=(8, 8, 20), bounds=Bounds(minimum_xyz=START[::-1], maximum_xyz=stop[::-1]),
    )  # fmt: skip
    manifest = Manifest(
        job_key=key, stage="x", stage_version="1", params={}, inputs={}, outputs={"stack": artifact}, provenance={}
    )
    store.put_json(manifest_path(key), manifest.model_dump(mode="json"))
    return artifact.uri


def make_volume(store: Store, stack: str, **params: Any) -> tuple[Manifest, Artifact]:
    manifest = run_stage(store, "volume", inputs={"stack": stack}, params=params)
    return manifest, load_artifact(manifest.outputs["image"].uri)


def whole(artifact: Artifact, mip: int = 0) -> np.ndarray:
    volume = open_volume(artifact.data_uri, mip)
    return volume.read(volume.start_zyx, volume.stop_zyx)


def brute_force_mean(below: np.ndarray, start: tuple[int, ...], factors: tuple[int, ...]) -> np.ndarray:
    """Mean over the voxels that exist, rounded half up, in the volume's own coordinates."""
    stop = [a + n for a, n in zip(start, below.shape, strict=True)]
    low = [a // f for a, f in zip(start, factors, strict=True)]
    high = [-(-b // f) for b, f in zip(stop, factors, strict=True)]
    result = np.empty([b - a for a, b in zip(low, high, strict=True)], np.uint8)
    for index in np.ndindex(*result.shape):
        part = tuple(
            slice(max(0, (b + i) * f - a), (b + i + 1) * f - a)
            for i, b, f, a in zip(index, low, factors, start, strict=True)
        )
        result[index] = int(np.floor(below[part].mean() + 0.5))
    return result


def test_voxels_are_the_sections_whatever_the_chunks(store: Store, stack: str, voxels: np.ndarray) -> None:
    manifest, volume = make_volume(store, stack, fill_gaps=False, num_mips=0)
    assert volume.bounds == load_artifact(stack).bounds
    assert open_volume(volume.data_uri).voxel_size_nm_xyz == (8, 8, 20)
    np.testing.assert_array_equal(whole(volume), voxels)
    assert volume.properties["filled_sections"] == {}
    assert manifest.metrics["filled_sections"] == 0
    _, other = make_volume(store, stack, fill_gaps=False, chunk_xyz=(8, 16, 4), num_mips=0)
    np.testing.assert_array_equal(whole(other), voxels)


def test_gaps_show_the_nearest_good_section(store: Store, stack: str, voxels: np.ndarray) -> None:
    _, volume = make_volume(store, stack, max_gap_sections=2, num_mips=0)
    expected = {0: 1, 5: 4, 12: 11, 13: 11, 14: 15}
    z0 = START[0]
    assert volume.properties["filled_sections"] == {str(z + z0): s + z0 for z, s in expected.items()}
    found = whole(volume)
    for z in range(SHAPE[0]):
        np.testing.assert_array_equal(found[z], voxels[expected.get(z, z)], err_msg=str(z))
    # Nobody knows what lies far from all good sections.
    _, short = make_volume(store, stack, max_gap_sections=1, num_mips=0)
    assert not whole(short)[13].any()


def test_levels_are_means_at_any_offset(store: Store, stack: str) -> None:
    _, volume = make_volume(store, stack, chunk_xyz=(16, 16, 4), num_mips=2)
    assert open_volume(volume.data_uri).mips == 3  # type: ignore[union-attr]
    sizes = [open_volume(volume.data_uri, mip).voxel_size_nm_xyz for mip in range(3)]
    # z is more than twice as coarse as x and y at first, and no longer at the next level.
    assert sizes == [(8, 8, 20), (16, 16, 20), (32, 32, 40)]
    for mip, factors in ((1, (1, 2, 2)), (2, (2, 2, 2))):
        below = open_volume(volume.data_uri, mip - 1)
        expected = brute_force_mean(whole(volume, mip - 1), below.start_zyx, factors)
        np.testing.assert_array_equal(whole(volume, mip), expected)


def test_no_level_above_a_single_chunk(store: Store, stack: str) -> None:
    _, volume = make_volume(store, stack, num_mips=8)
    first = open_volume(volume.data_uri)
    assert first.mips == 3  # type: ignore[union-attr]
    assert max(open_volume(volume.data_uri, 2).shape_zyx) <= 64


def test_crop(store: Store, stack: str, voxels: np.ndarray) -> None:
    low, high = (20, 30, 8), (120, 101, 16)  # xyz; starts in the gap at section 8
    _, volume = make_volume(store, stack, bounds_xyz=(low, high), num_mips=1)
    assert volume.bounds == Bounds(minimum_xyz=low, maximum_xyz=high)
    box = tuple(slice(a - s, b - s) for a, b, s in zip(low[::-1], high[::-1], START, strict=True))
    found = whole(volume)
    np.testing.assert_array_equal(found[1:7], voxels[box][1:7])
    np.testing.assert_array_equal(found[0], voxels[(6, *box[1:])])
    with pytest.raises(UserError, match="bounds_xyz"):
        make_volume(store, stack, bounds_xyz=((0, 0, 0), (5, 10, 10)))


def test_tensorstore_reads_the_same_voxels(store: Store, stack: str) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    _, volume = make_volume(store, stack, num_mips=1)
    for mip in range(2):
        path = f"{local_path(volume.data_uri)}/"
        spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": path}, "scale_index": mip}
        opened = tensorstore.open(spec, open=True).result()
        expected = whole(volume, mip)
        assert expected.any()
        np.testing.assert_array_equal(np.asarray(opened.read().result())[..., 0].T, expected)


def test_most_frequent_labels(tmp_path: Path) -> None:
    labels = np.zeros((8, 130, 70), np.uint64)
    labels[:, 20:90, 11:60] = 2**40 + 1
    labels[4:, 50:, :] = 7
    uri = (tmp_path / "labels").as_uri()
    volume = create_volume(
        uri, start_zyx=(0, 0, 0), stop_zyx=labels.shape, voxel_size_nm_xyz=(8, 8, 8), dtype="uint64",
        layer_type="segmentation",
    )  # fmt: skip
    volume.write((0, 0, 0), labels)
    assert add_levels(uri, 1) == 1
    level = PrecomputedVolume(uri, 1)
    for box in blocks(level, (1, 1, 1)):
        write_level(uri, 1, box, "mode")
    found = level.read(level.start_zyx, level.stop_zyx)
    assert found.shape == (4, 65, 35)
    np.testing.assert_array_equal(found[:, :, 6:30], labels[::2, ::2, 12:60:2])
    assert set(np.unique(found)) == {0, 7, 2**40 + 1}


@pytest.mark.parametrize(
    ("size_xyz", "factors"), [((8, 8, 8), (2, 2, 2)), ((4, 4, 40), (2, 2, 1)), ((32, 32, 40), (2, 2, 2))]
)
def test_coarse_axes_wait(size_xyz: tuple[int, ...], factors: tuple[int, ...]) -> None:
    assert factors_xyz(size_xyz) == factors


def test_sharded_equals_unsharded_at_every_level(store: Store, stack: str) -> None:
    """Shards of eight chunks, so that there are some at every level."""
    _, plain = make_volume(store, stack, chunk_xyz=(32, 32, 8), num_mips=2)
    _, sharded = make_volume(store, stack, chunk_xyz=(32, 32, 8), num_mips=2, sharded=True, shard_mb=1)
    for mip in range(3):
        assert open_volume(sharded.data_uri, mip).shard_zyx is not None  # type: ignore[union-attr]
        np.testing.assert_array_equal(whole(sharded, mip), whole(plain, mip))


@pytest.mark.slow
def test_sharded_killed_and_started_again_gives_the_bytes_of_an_undisturbed_run(
    store: Store, stack: str, tmp_path: Path
) -> None:
    params = {"chunk_xyz": (32, 32, 8), "num_mips": 1, "sharded": True, "shard_mb": 1}
    spec = make_spec(load_stage("volume"), inputs={"stack": stack}, params=params)
    make_volume(store, stack, **params)
    undisturbed = files(store, spec.key)
    assert sum(path.endswith(".shard") for path in undisturbed) >= 2
    killed = Store(str(tmp_path / "killed"))
    save_spec(killed, spec)
    for round_name in ("blocks", "mip_1"):
        assert run_and_die(killed, spec, round_name, 1) == -signal.SIGKILL
    run_with_ranks(killed, spec, 2)
    assert files(killed, spec.key) == undisturbed
