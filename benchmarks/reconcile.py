"""Reconcile 27 overlapping subvolumes whose right answer is known.

usage: PYTHONPATH=services python benchmarks/reconcile.py [--data ../shared/data] [--store FOLDER]
       … --subvolumes 512 4096 [--ranks 2] [--splits 0.1] [--mergers 0.01]: many small ones instead,
       see reconcile_many.py

Each case is a volume of labels cut into 3 x 3 x 3 overlapping boxes; every box gets ids of its own,
shuffled, one for each connected part, as a segmentation of the box alone would have them. The
right answer are the 26-connected parts of the labels. The third case adds errors of the kind that
flood-filling networks make: background between objects and at the boxes' faces, splits, a merger
in every box. Prints one line of JSON a case.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import reconcile_many

from happyneurons.imaging.subvolumes import SubvolumeGrid
from happyneurons.metrics.contingency import Contingency
from happyneurons.metrics.segmentation import connected_objects, coverage, scores, truth_table
from happyneurons.store.artifacts import Artifact, Bounds, Manifest, artifact_uri, manifest_path
from happyneurons.store.documents import Store
from happyneurons.store.volumes import open_volume
from happyneurons.worker.local import run_stage

Triple = tuple[int, int, int]


def cut(labels: np.ndarray, grid: SubvolumeGrid, data: Store, *, errors: bool, seed: int = 0) -> int:
    """Write the boxes; returns how many ids they have together."""
    rng = np.random.default_rng(seed)
    total = 0
    for box in grid:
        inside = tuple(slice(a, b) for a, b in zip(box.start_zyx, box.stop_zyx, strict=True))
        parts = connected_objects(labels[inside])
        if errors:
            spoil(parts, rng)
        names = np.concatenate([[0], rng.permutation(int(parts.max())) + 1]).astype(np.uint32)
        data.put_arrays(f"{box.name}.npz", segmentation=names[parts], start_zyx=np.asarray(box.start_zyx))
        total += len(np.unique(parts[parts > 0]))
    return total


def spoil(parts: np.ndarray, rng: np.random.Generator) -> None:
    """Errors as flood-filling networks make them, in place; objects that touch may merge."""
    edge = np.ones(parts.shape, bool)
    edge[4:-4, 4:-4, 4:-4] = False
    for axis in range(3):
        edge |= parts != np.roll(parts, 1, axis)
    before = parts.copy()
    parts[edge] = 0
    ids, sizes = np.unique(parts[parts > 0], return_counts=True)
    parts[np.isin(parts, ids[sizes < 200])] = 0
    large = ids[np.argsort(-sizes, kind="stable")][:20]
    for number, split in enumerate(rng.choice(large, 4, replace=False)):
        cut_z = rng.integers(parts.shape[0] // 4, 3 * parts.shape[0] // 4)
        upper = parts[cut_z:]
        upper[upper == split] = ids.max() + 1 + number
    touching = Contingency.of(before[:, :, :-1], before[:, :, 1:])
    candidates = np.flatnonzero(
        np.isin(touching.first, large) & np.isin(touching.second, large) & (touching.first < touching.second)
    )
    pair = rng.choice(candidates)
    parts[parts == touching.first[pair]] = touching.second[pair]


def run(name: str, labels: np.ndarray, size_xyz: Triple, overlap_xyz: Triple, root: str, *, errors: bool) -> None:
    store = Store(root)
    key = hashlib.sha256(name.encode()).hexdigest()
    z, y, x = labels.shape
    bounds = Bounds(minimum_xyz=(0, 0, 0), maximum_xyz=(x, y, z))
    data = Store(store.url(f"artifacts/{key}/subvolumes"))
    grid = SubvolumeGrid(bounds, size_xyz, overlap_xyz)
    before = cut(labels, grid, data, errors=errors)
    artifact = Artifact(
        kind="subvolumes", uri=artifact_uri(store, key, "subvolumes"), data_uri=data.uri, digest=key,
        voxel_size_nm_xyz=(10.0, 10.0, 10.0), bounds=bounds,
        properties={"size_xyz": list(size_xyz), "overlap_xyz": list(overlap_xyz)},
    )  # fmt: skip
    manifest = Manifest(
        job_key=key, stage="segment", stage_version="0", params={}, inputs={}, outputs={"subvolumes": artifact},
        provenance={},
    )  # fmt: skip
    store.create_json(manifest_path(key), manifest.model_dump())
    params = {"num_mips": 0} if errors else {"num_mips": 0, "min_overlap_voxels": 1}
    started, cpu = time.perf_counter(), time.process_time()
    result = run_stage(store, "reconcile", inputs={"subvolumes": artifact.uri}, params=params)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    volume = open_volume(result.outputs["segmentation"].data_uri)
    truth = connected_objects(labels)
    table = truth_table(volume.read(volume.start_zyx, volume.stop_zyx), truth)
    figures = scores(table)
    print(
        json.dumps(
            {
                "case": name,
                "subvolumes": len(grid),
                "ids_before": before,
                "ids_after": int(result.metrics["segments"]),
                "ids_truth": int(truth.max()),
                "voi_split": round(figures.voi_split, 4),
                "voi_merge": round(figures.voi_merge, 4),
                "adapted_rand_error": round(figures.adapted_rand_error, 4),
                "coverage": round(coverage(table), 4),
                "rejected_pairs": int(result.metrics["rejected_pairs"]),
                "wall_s": round(wall_s, 1),
                "cpu_s": round(cpu_s, 1),
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared/data")
    parser.add_argument("--store", help="folder to work in; default: a temporary one")
    parser.add_argument("--subvolumes", type=int, nargs="+", help="many small ones instead: 512, 4096, … (cubes)")
    parser.add_argument("--ranks", type=int, default=2, help="with --subvolumes: MPI ranks that work")
    parser.add_argument("--splits", type=float, default=0.1, help="with --subvolumes: share of segments cut in two")
    parser.add_argument("--mergers", type=float, default=0.01, help="with --subvolumes: share of boxes with a merger")
    args = parser.parse_args()
    if args.subvolumes:
        errors = {"splits": args.splits, "mergers": args.mergers}
        with tempfile.TemporaryDirectory() as folder:
            for number in args.subvolumes:
                reconcile_many.run(number, args.store or folder, ranks=args.ranks, **errors)
        return
    with h5py.File(args.data / "fib25/labels_z000-128.h5") as file:
        labels = np.asarray(file["labels"][:])
    published = np.load(args.data / "fib25/google_ffn_published_segmentation.npz")["segmentation"].astype(np.uint32)
    with tempfile.TemporaryDirectory() as folder:
        root = args.store or folder
        run("truth, 128x250x250", labels, (128, 128, 64), (64, 64, 32), root, errors=False)
        run("published FFN result, 250x250x250", published, (128, 128, 128), (64, 64, 64), root, errors=False)
        run("truth with errors, 128x250x250", labels, (128, 128, 64), (64, 64, 32), root, errors=True)


if __name__ == "__main__":
    main()
