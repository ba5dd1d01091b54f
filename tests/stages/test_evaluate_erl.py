"""Expected run length of a segmentation along true skeletons, looked up block by block."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.store.artifacts import Manifest
from happyneurons.store.documents import Store
from happyneurons.store.skeletons import parse_precomputed, parse_swc
from happyneurons.store.volumes import create_volume
from happyneurons.worker.local import run_stage

VOXEL_NM = (8.0, 8.0, 40.0)
START = (2, 4, 10)
SHAPE = (6, 40, 100)


def write_volume(path: Path, labels: np.ndarray, voxel_nm: tuple[float, float, float] = VOXEL_NM) -> str:
    made = create_volume(
        str(path), start_zyx=START, stop_zyx=np.add(START, labels.shape).tolist(), voxel_size_nm_xyz=voxel_nm,
        dtype="uint64", layer_type="segmentation",
    )  # fmt: skip
    made.write(START, labels.astype(np.uint64))
    return f"precomputed://{path}"


def precomputed(vertices_nm: np.ndarray, edges: np.ndarray) -> bytes:
    header = np.array([len(vertices_nm), len(edges)], "<u4").tobytes()
    return header + vertices_nm.astype("<f4").tobytes() + edges.astype("<u4").tobytes()


def write_layer(folder: Path, skeletons: dict[int, tuple[np.ndarray, np.ndarray]]) -> str:
    """Skeletons of voxels (x, y, z), at the middles of which their nodes lie."""
    folder.mkdir()
    (folder / "info").write_text(json.dumps({"@type": "neuroglancer_skeletons"}))
    for name, (voxels_xyz, edges) in skeletons.items():
        (folder / str(name)).write_bytes(precomputed((voxels_xyz + 0.5) * VOXEL_NM, edges))
    return f"precomputed://{folder}"


def along_x(y: int, z: int, x0: int = START[2], x1: int = START[2] + SHAPE[2]) -> tuple[np.ndarray, np.ndarray]:
    voxels = np.array([[x, y, z] for x in range(x0, x1)], float)
    nodes = np.arange(len(voxels))
    return voxels, np.stack([nodes[:-1], nodes[1:]], axis=1)


@pytest.fixture
def skeletons(tmp_path: Path) -> str:
    return write_layer(tmp_path / "skeletons", {7: along_x(10, 4), 12: along_x(30, 4), 40: along_x(20, 99)})


@pytest.fixture
def segmentation(tmp_path: Path) -> str:
    """7: split at half its length, 12: a hole of 10 voxels after 20 (40 lies outside)."""
    labels = np.zeros(SHAPE, np.uint64)
    labels[:, :20, :50], labels[:, :20, 50:] = 1, 2
    labels[:, 20:] = 3
    labels[:, 20:, 20:30] = 0
    return write_volume(tmp_path / "segmentation", labels)


def evaluate(store: Store, *, params: dict[str, Any] | None = None, **inputs: str) -> tuple[dict[str, float], Any]:
    manifest: Manifest = run_stage(store, "evaluate", inputs=inputs, params=params or {})
    return manifest.metrics, Store(manifest.outputs["report"].data_uri).get_json("report.json")["skeletons"]


def expected_nm() -> float:
    runs = 8.0 * np.array([49, 49, 19, 69])
    return float((runs**2).sum() / (8.0 * 2 * 99))


@pytest.mark.parametrize("blocks", [{}, {"one_piece_max_voxels": 0, "block_voxels": 32, "skeletons_per_task": 1}])
def test_runs_end_at_splits_and_holes(store: Store, skeletons: str, segmentation: str, blocks: dict[str, int]) -> None:
    metrics, report = evaluate(store, params=blocks, segmentation=segmentation, skeletons=skeletons)
    assert metrics["erl_nm"] == pytest.approx(expected_nm(), rel=1e-5)
    assert metrics["erl_voxels"] == pytest.approx(expected_nm() / 8, rel=1e-5)
    assert metrics["erl_max_nm"] == pytest.approx(99 * 8, rel=1e-5)
    assert metrics["skeleton_path_nm"] == pytest.approx(2 * 99 * 8, rel=1e-5)
    assert metrics["path_split_fraction"] == pytest.approx(1 / 198, rel=1e-5)
    assert metrics["path_omitted_fraction"] == pytest.approx(11 / 198, rel=1e-5)
    assert (metrics["skeletons"], metrics["skeleton_mergers"], report["raw"]["runs"]) == (2, 0, 4)
    # The hole belongs to the segment around it when it is filled: one run of 99 edges.
    assert metrics["fill_erl_nm"] == pytest.approx(8 * (2 * 49**2 + 99**2) / 198, rel=1e-5)
    assert "voi" not in metrics


def test_a_merger_counts_nothing_from_some_nodes_on(store: Store, tmp_path: Path, skeletons: str) -> None:
    merged = write_volume(tmp_path / "merged", np.ones(SHAPE))
    metrics, report = evaluate(store, segmentation=merged, skeletons=skeletons)
    assert (metrics["erl_nm"], metrics["path_merged_fraction"], report["raw"]["mergers"]) == (0, 1, [1])
    many, _ = evaluate(store, segmentation=merged, skeletons=skeletons, params={"merger_nodes": 101})
    assert many["erl_nm"] == many["erl_max_nm"]


def test_the_part_of_a_skeleton_outside_is_not_scored(store: Store, skeletons: str, segmentation: str) -> None:
    bounds = [[START[2] + 50, 0, 0], [START[2] + 100, 20, 100]]
    metrics, _ = evaluate(store, segmentation=segmentation, skeletons=skeletons, params={"bounds_xyz": bounds})
    assert metrics["erl_nm"] == metrics["skeleton_path_nm"] == pytest.approx(49 * 8, rel=1e-5)
    with pytest.raises(UserError, match="no skeleton lies in the scored part"):
        evaluate(store, segmentation=segmentation, skeletons=skeletons, params={"bounds_xyz": [[0, 0, 0], [99, 99, 3]]})


def test_parts_that_meet_outside_are_skeletons_of_their_own(store: Store, tmp_path: Path) -> None:
    """As the truth's 26-connected parts are objects of their own; else the segment would be a merger, or none."""
    (near, edges), (far, _) = along_x(10, 4), along_x(30, 4)
    # Both are joined to node 200, which lies outside.
    body = np.concatenate([near, far, [[500.0, 20, 4]]]), np.concatenate([edges, edges + 100, [[199, 200], [99, 200]]])
    layer = write_layer(tmp_path / "body", {5: body})
    segmentation = write_volume(tmp_path / "one", np.ones(SHAPE))
    parts, _ = evaluate(store, segmentation=segmentation, skeletons=layer)
    whole, _ = evaluate(store, segmentation=segmentation, skeletons=layer, params={"relabel_truth": False})
    assert (parts["skeletons"], parts["skeleton_mergers"], parts["erl_nm"]) == (2, 1, 0)
    assert (whole["skeletons"], whole["skeleton_mergers"]) == (1, 0)
    assert whole["erl_nm"] == pytest.approx(99 * 8, rel=1e-5)


def test_swc_says_the_same(store: Store, tmp_path: Path, segmentation: str) -> None:
    folder = tmp_path / "swc"
    folder.mkdir()
    for name, y in (("left", 10), ("right", 30)):
        voxels, _ = along_x(y, 4)
        rows = [
            f"{i + 1} 0 {x} {y} {z} 0.1 {i or -1}"
            for i, (x, y, z) in enumerate(((voxels + 0.5) * VOXEL_NM / 1000).tolist())
        ]
        (folder / f"{name}.swc").write_text("# µm\n" + "\n".join(rows) + "\n")
    metrics, _ = evaluate(store, segmentation=segmentation, skeletons=f"swc://{folder}")
    assert metrics["erl_nm"] == pytest.approx(expected_nm(), rel=1e-5)
    with pytest.raises(UserError, match="no SWC files"):
        evaluate(store, segmentation=segmentation, skeletons=f"swc://{tmp_path}")


def test_damaged_skeletons_are_refused(tmp_path: Path) -> None:
    good = precomputed(np.zeros((3, 3)), np.array([[0, 1], [1, 2]]))
    assert len(parse_precomputed(good).edges) == 2
    for bad in (good[:-1], good[:5], b"", precomputed(np.zeros((2, 3)), np.array([[0, 2]]))):
        with pytest.raises(UserError, match="not a precomputed skeleton"):
            parse_precomputed(bad)
    with pytest.raises(UserError, match="line 1 is not"):
        parse_swc(b"1 0 1.0 2.0\n", 1000)
    with pytest.raises(UserError, match="no node 9"):
        parse_swc(b"1 0 1 1 1 1 9\n", 1000)


def test_a_layer_of_our_own_is_taken(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("kimimaro")
    labels = np.zeros(SHAPE, np.uint64)
    labels[:, 5:15], labels[:, 25:35] = 1, 2
    truth = write_volume(tmp_path / "truth", labels)
    layer = run_stage(
        store, "skeletonize", inputs={"segmentation": truth}, params={"const_nm": 100.0, "tick_length_nm": 100.0}
    )
    halves = labels.copy()
    halves[:, :, 50:] *= 10
    metrics, _ = evaluate(
        store, segmentation=write_volume(tmp_path / "halves", halves), truth=truth,
        skeletons=layer.outputs["skeletons"].uri,
    )  # fmt: skip
    assert metrics["skeletons"] == 2
    assert metrics["erl_nm"] == pytest.approx(metrics["erl_max_nm"] / 2, rel=0.1)
    assert metrics["voi_split"] == pytest.approx(1)


def score_module(shared_data: Path) -> ModuleType:
    path = shared_data.parent / "bench/ffn/score.py"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    spec = importlib.util.spec_from_file_location("ffn_score", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_fib25_scores_as_the_benchmark_scores_it(store: Store, tmp_path: Path, shared_data: Path) -> None:
    """The same skeletons (scikit-image's thinning) give the same figures as a program that holds it all."""
    import h5py
    from scipy import ndimage
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import minimum_spanning_tree
    from skimage.morphology import skeletonize

    from happyneurons.metrics.segmentation import connected_objects

    found = np.load(shared_data / "fib25/google_ffn_crop_0-128.npz")["segmentation"]
    with h5py.File(shared_data / "fib25/labels_z000-128.h5") as file:
        truth = connected_objects(file["labels"][:128, :128, :128])
    expected = score_module(shared_data).erl(truth.astype(np.int64), found.astype(np.int64))
    layer: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for label, box in enumerate(ndimage.find_objects(truth), start=1):
        mask = truth[box] == label
        if mask.sum() < 1000:
            continue
        nodes = np.argwhere(skeletonize(np.pad(mask, 1))[1:-1, 1:-1, 1:-1])
        step = nodes[:, None] - nodes[None]
        a, b = np.nonzero(np.triu(np.abs(step).max(axis=-1) == 1))
        length = np.linalg.norm(nodes[a] - nodes[b], axis=1)
        tree = minimum_spanning_tree(coo_matrix((length, (a, b)), shape=(len(nodes),) * 2)).tocoo()
        xyz = (nodes + [s.start for s in box])[:, ::-1].astype(float)
        layer[label] = (xyz + START[::-1], np.stack([tree.row, tree.col], axis=1))
    volume = write_volume(tmp_path / "found", found)
    metrics, report = evaluate(
        store, segmentation=volume, skeletons=write_layer(tmp_path / "layer", layer),
        params={"fill": "none", "relabel_truth": False, "one_piece_max_voxels": 0, "block_voxels": 64},
    )  # fmt: skip
    assert report["raw"]["path_voxels"] == pytest.approx(expected["path"], rel=0.01)
    assert metrics["erl_by_segment_voxels"] == pytest.approx(expected["erl"], rel=0.02)
    assert metrics["erl_max_voxels"] == pytest.approx(expected["erl_max"], rel=0.02)
    assert metrics["skeleton_mergers"] == expected["mergers"]
    assert metrics["path_merged_fraction"] == pytest.approx(expected["frac_merged"], abs=0.01)
    lost = metrics["path_split_fraction"] + metrics["path_omitted_fraction"]
    assert lost == pytest.approx(expected["frac_split_or_bg"], abs=0.01)
    assert metrics["erl_voxels"] <= metrics["erl_by_segment_voxels"]
    print({k: metrics[k] for k in sorted(metrics)}, expected)
