"""Objects of a truth larger than memory: those of the whole, whatever the blocks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from happyneurons.imaging.blocks import BlockGrid
from happyneurons.metrics.contingency import Contingency
from happyneurons.metrics.segmentation import connected_objects
from happyneurons.stages.evaluate.parts import JoinedObjects, Joins, PartGrid, Parts, StreamedObjects
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume
from happyneurons.worker.local import run_stage

START = (3, -2, 5)


class ArrayVolume:
    """Labels in memory whose first voxel is START."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels, self.uri, self.dtype, self.voxel_size_nm_xyz = labels, "", labels.dtype, (1.0, 1.0, 1.0)
        self.start_zyx = START
        self.stop_zyx = tuple(np.add(START, labels.shape).tolist())

    def read(self, start_zyx: Any, stop_zyx: Any) -> np.ndarray:
        assert (np.subtract(start_zyx, self.start_zyx) >= 0).all()
        assert (np.subtract(self.stop_zyx, stop_zyx) >= 0).all()
        return self.labels[tuple(slice(a - o, b - o) for a, b, o in zip(start_zyx, stop_zyx, START, strict=True))]


def streamed(labels: np.ndarray, size_zyx: tuple[int, int, int]) -> tuple[StreamedObjects, PartGrid]:
    """The rounds, carried out in order."""
    volume, store = ArrayVolume(labels), Store("memory://")
    grid = PartGrid(volume, BlockGrid(volume.start_zyx, volume.stop_zyx, size_zyx))
    done: dict[str, list[tuple[str, Any]]] = {}
    context: Any = SimpleNamespace(output_store=lambda _: store, results=lambda name: sorted(done[name]))
    for round_ in (Parts(grid), Joins(grid), JoinedObjects(grid)):
        done[round_.name] = [(task.key, round_.run(task, context).data) for task in round_.plan(context)]
    return StreamedObjects(grid, store), grid


def check_same_objects(found: np.ndarray, expected: np.ndarray) -> None:
    pairs = Contingency.of(found, expected)
    assert len(np.unique(pairs.first)) == len(np.unique(pairs.second)) == len(pairs.first)
    assert ((found == 0) == (expected == 0)).all()


@settings(max_examples=30)
@given(
    arrays(np.uint32, st.tuples(*[st.integers(1, 6)] * 3), elements=st.sampled_from([0, 0, 0, 1, 1, 2])),
    st.tuples(*[st.integers(2, 4)] * 3),
    st.data(),
)
def test_blocks_give_the_objects_of_the_whole(labels: np.ndarray, size: tuple[int, int, int], data: Any) -> None:
    objects, grid = streamed(labels, size)
    expected = connected_objects(labels)
    found = objects.read(grid.blocks.low_zyx, grid.blocks.high_zyx)
    check_same_objects(found, expected)
    # Any box of it carries the same numbers.
    low = [data.draw(st.integers(0, n - 1)) for n in labels.shape]
    high = [data.draw(st.integers(a + 1, n)) for a, n in zip(low, labels.shape, strict=True)]
    box = objects.read(tuple(np.add(START, low).tolist()), tuple(np.add(START, high).tolist()))
    assert np.array_equal(box, found[tuple(slice(a, b) for a, b in zip(low, high, strict=True))])


def test_only_corners_touch() -> None:
    labels = np.zeros((4, 4, 4), np.uint32)
    # Each of these pairs lies across a corner of the blocks, along other diagonals.
    for a, b in (((1, 1, 1), (2, 2, 2)), ((1, 2, 1), (2, 1, 2)), ((1, 1, 2), (2, 2, 1)), ((1, 2, 2), (2, 1, 1))):
        labels[:] = 0
        labels[a] = labels[b] = 9
        objects, grid = streamed(labels, (2, 2, 2))
        found = objects.read(grid.blocks.low_zyx, grid.blocks.high_zyx)
        assert found[a] == found[b] > 0
        labels[b] = 8
        objects, grid = streamed(labels, (2, 2, 2))
        found = objects.read(grid.blocks.low_zyx, grid.blocks.high_zyx)
        assert found[a] != found[b]


def write(path: Path, labels: np.ndarray) -> str:
    made = create_volume(
        str(path), start_zyx=START, stop_zyx=np.add(START, labels.shape).tolist(), voxel_size_nm_xyz=(8.0, 8.0, 8.0),
        dtype="uint64", layer_type="segmentation",
    )  # fmt: skip
    made.write(START, labels.astype(np.uint64))
    return f"precomputed://{path}"


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Bodies that wind through the volume, and a segmentation with holes, splits and mergers."""
    folder, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(3)
    smooth = ndimage.gaussian_filter(rng.normal(size=(44, 50, 70)), 3)
    bodies = np.digitize(smooth, np.quantile(smooth, [0.25, 0.5, 0.75])).astype(np.uint64)
    wrong = bodies + 10 * np.digitize(ndimage.gaussian_filter(rng.normal(size=bodies.shape), 8), [0]).astype(np.uint64)
    wrong[ndimage.gaussian_filter(rng.normal(size=bodies.shape), 1) > 0.12] = 0
    return {"truth": write(folder / "truth", bodies), "segmentation": write(folder / "segmentation", wrong)}


def test_a_large_volume_is_scored_by_the_rules_of_a_small_one(store: Store, volumes: dict[str, str]) -> None:
    def figures(**params: Any) -> dict[str, float]:
        return run_stage(store, "evaluate", inputs=volumes, params=params).metrics

    whole = figures()
    assert figures(one_piece_max_voxels=0, block_voxels=32, fill_reach_voxels=16) == pytest.approx(whole, rel=1e-3)
    # Everything but which of equally near segments fills a hole is the same to the last bit.
    blocks = figures(one_piece_max_voxels=0, block_voxels=40, fill="none")
    assert {name: value for name, value in whole.items() if not name.startswith("fill_")} == blocks
    assert whole["truth_objects"] > 10
    assert whole["fill_coverage"] == 1
    short = figures(one_piece_max_voxels=0, block_voxels=64, fill_reach_voxels=1)
    assert short["coverage"] < short["fill_coverage"] < 1
    untouched = figures(relabel_truth=False)
    assert untouched["truth_objects"] == 3


def test_tables_of_all_objects_lie_beside_the_report(store: Store, volumes: dict[str, str]) -> None:
    import csv
    import io

    manifest = run_stage(
        store, "evaluate", inputs=volumes, params={"one_piece_max_voxels": 0, "block_voxels": 40, "worst": 5}
    )
    folder = Store(manifest.outputs["report"].data_uri)
    report = folder.get_json("report.json")["segmentation"]
    objects = list(csv.DictReader(io.StringIO(folder.get("objects.csv").decode())))
    segments = list(csv.DictReader(io.StringIO(folder.get("segments.csv").decode())))
    assert len(objects) == report["truth_objects"]
    assert sum(float(row["voi_split"]) for row in objects) == pytest.approx(report["raw"]["voi_split"], abs=1e-5)
    assert sum(float(row["voi_merge"]) for row in segments) == pytest.approx(report["raw"]["voi_merge"], abs=1e-5)
    assert sum(int(row["voxels"]) for row in objects) == report["truth_voxels"]
    assert {row["label"] for row in objects} == {"1", "2", "3"}
    costs = [row["voi_split"] for row in report["worst_splits"]]
    assert len(costs) == 5
    assert costs == sorted(costs, reverse=True)
    assert max(float(row["voi_split"]) for row in objects) == pytest.approx(costs[0], abs=1e-8)
    from happyneurons.store.volumes import open_volume

    truth, segmentation = (open_volume(volumes[name]) for name in ("truth", "segmentation"))

    def at(volume: Any, xyz: list[int]) -> int:
        low = xyz[::-1]
        return int(volume.read(low, [v + 1 for v in low])[0, 0, 0])

    for split in report["worst_splits"]:
        assert at(truth, split["position_xyz"]) == split["label"]
        for piece in split["pieces"]:
            assert at(segmentation, piece["position_xyz"]) == piece["segment"]
    for merger in report["worst_mergers"]:
        assert at(segmentation, merger["position_xyz"]) == merger["segment"]
        for piece in merger["pieces"]:
            assert at(truth, piece["position_xyz"]) == piece["label"]
    pairs = folder.get_arrays("pairs.npz")
    assert pairs["voxels"].sum() == report["truth_voxels"]
