"""Reconcile thousands of small subvolumes whose right answer is known from coordinates alone.

usage: PYTHONPATH=services python benchmarks/reconcile.py --subvolumes 4096 [--ranks 2] [--splits 0.1] [--mergers 0.01]

The world. Neurites run along z as tubes of 5 x 5 voxels, 8 apart, that sway by 4 voxels; each two
neighbours in y are one neurite, joined by bridges 16 voxels long every 80. So a neurite is two
segments in most boxes, and only places far away tell that they are one. Which neurite a voxel
belongs to is computed from its coordinates; nothing holds the whole.

The boxes (40³ voxels, overlapping by 16) get what a flood-filling network would leave: ids of their
own, shuffled, one for each connected part; nothing within 3 voxels of a face inside the volume; a
share of the segments cut in two at a random plane; two neighbours merged in a share of the boxes;
one box in a hundred missing.
"""

from __future__ import annotations

import json
import resource
import subprocess
import time
from itertools import product

import numpy as np

from happyneurons.imaging.subvolumes import SubvolumeGrid
from happyneurons.jobs.attempts import settle
from happyneurons.jobs.journal import read_journal
from happyneurons.jobs.spec import Resources, job_uri, make_spec, save_spec
from happyneurons.metrics.contingency import Contingency
from happyneurons.metrics.segmentation import connected_objects
from happyneurons.stages import load_stage
from happyneurons.store.artifacts import Artifact, Bounds, Manifest, artifact_uri, manifest_path
from happyneurons.store.documents import Store
from happyneurons.store.volumes import open_volume
from happyneurons.worker.launch import Launch, stage_command, stage_environment

Triple = tuple[int, int, int]

BOX_PX, OVERLAP_PX, UNSEGMENTED_PX = 40, 16, 3
PITCH_PX, WALL_PX, SWAY_PX = 8, 1.5, 4
BRIDGE_PX, BRIDGE_EVERY = 16, 5
ROW = 100_000
MISSING_SHARE = 0.01
NOTICEABLE_VOXELS = 64
"""An object with fewer voxels in a segment is no part of it: where bodies end, boxes differ by a few."""


def truth(start_zyx: Triple, stop_zyx: Triple) -> np.ndarray:
    """(z, y, x) uint32 neurites of a box, 0 between them."""
    z, y, x = np.ogrid[tuple(slice(a, b) for a, b in zip(start_zyx, stop_zyx, strict=True))]
    u, v = y + SWAY_PX * np.sin(z / 29), x + SWAY_PX * np.sin(z / 23 + 1)
    i, j = (np.floor(w / PITCH_PX).astype(np.int64) for w in (u, v))
    in_u, in_v = u - i * PITCH_PX, v - j * PITCH_PX
    far = PITCH_PX - WALL_PX
    pair = i // 2
    bridge = (z // BRIDGE_PX + 3 * pair + 2 * j) % BRIDGE_EVERY == 0
    inner_wall = np.where(i % 2 == 0, in_u >= far, in_u < WALL_PX)
    tube = ((in_u >= WALL_PX) & (in_u < far)) | (inner_wall & bridge)
    tube = tube & (in_v >= WALL_PX) & (in_v < far)
    return np.where(tube, (pair + 1) * ROW + j + 2, 0).astype(np.uint32)


def is_whole(neurite: np.ndarray, edge_px: int) -> np.ndarray:
    """Which neurites never leave a volume with corners at 0 and edge_px: those cut by its faces fall apart."""
    pair, j = neurite.astype(np.int64) // ROW - 1, neurite.astype(np.int64) % ROW - 2
    low, high = SWAY_PX, edge_px - SWAY_PX
    return (
        (2 * pair * PITCH_PX >= low)
        & ((2 * pair + 2) * PITCH_PX <= high)
        & (j * PITCH_PX >= low)
        & ((j + 1) * PITCH_PX <= high)
    )


def segment_box(labels: np.ndarray, rng: np.random.Generator, splits: float, *, merge: bool) -> np.ndarray:
    """What a network would make of a box. labels: (z, y, x) truth, already without the box's faces."""
    parts = connected_objects(labels)
    count = int(parts.max(initial=0))
    if count > 1 and merge:
        at = np.argwhere(np.moveaxis(parts, 2, 0)[BOX_PX // 2] > 0)
        z, y = at[rng.integers(len(at))] if len(at) else (0, 0)
        near = np.unique(parts[z, max(0, y - PITCH_PX) : y + PITCH_PX])
        near = near[near > 0]
        if len(near) > 1:
            parts[parts == near[0]] = near[1]
    for segment in np.flatnonzero(rng.random(count + 1) < splits):
        upper = parts[rng.integers(8, BOX_PX - 8) :]
        if segment:
            upper[upper == segment] = count = count + 1
    names = np.concatenate([[0], rng.permutation(count) + 1]).astype(np.uint32)
    return names[parts]


def write_boxes(grid: SubvolumeGrid, data: Store, splits: float, mergers: float) -> dict[str, int]:
    """Write the boxes; returns how many are missing, and how many hold a merger."""
    counts = {"missing": 0, "boxes_with_a_merger": 0}
    low, high = grid.bounds.minimum_xyz[::-1], grid.bounds.maximum_xyz[::-1]
    for number, box in enumerate(grid):
        rng = np.random.default_rng(number)
        if rng.random() < MISSING_SHARE:
            counts["missing"] += 1
            continue
        labels = truth(box.start_zyx, box.stop_zyx)
        for axis in range(3):
            if box.start_zyx[axis] > low[axis]:
                np.moveaxis(labels, axis, 0)[:UNSEGMENTED_PX] = 0
            if box.stop_zyx[axis] < high[axis]:
                np.moveaxis(labels, axis, 0)[-UNSEGMENTED_PX:] = 0
        segmentation = segment_box(labels, rng, splits, merge=bool(rng.random() < mergers))
        both = Contingency.of(segmentation, labels)
        both = both.where((both.first > 0) & (both.counts >= NOTICEABLE_VOXELS))
        counts["boxes_with_a_merger"] += int((np.unique(both.first, return_counts=True)[1] > 1).any())
        data.put_arrays(f"{box.name}.npz", segmentation=segmentation, start_zyx=np.asarray(box.start_zyx))
    return counts


def judge(result: Manifest, edge_px: int) -> dict[str, int]:
    """Compare block by block with the truth: segments with several neurites, neurites in several segments."""
    volume = open_volume(result.outputs["segmentation"].data_uri)
    tables = []
    for start in product(range(0, edge_px, 128), repeat=3):
        stop = tuple(min(a + 128, edge_px) for a in start)
        tables.append(Contingency.of(volume.read(start, stop), truth(start, stop)))
    table = Contingency.sum(tables)
    table = table.where((table.first > 0) & (table.second > 0) & (table.counts >= NOTICEABLE_VOXELS))
    neurites = np.unique(table.first, return_counts=True)[1]
    whole = table.where(is_whole(table.second, edge_px))
    segments = np.unique(whole.second, return_counts=True)[1]
    return {
        "neurites": len(segments),
        "neurites_exactly_one_segment": int((segments == 1).sum()),
        "false_splits": int((segments - 1).sum()),
        "segments_with_a_merger": int((neurites > 1).sum()),
        "false_merges": int((neurites - 1).sum()),
        "most_neurites_in_a_segment": int(neurites.max(initial=0)),
    }


def run(subvolumes: int, root: str, *, ranks: int, splits: float, mergers: float) -> None:
    """Make, reconcile and judge one world; prints a line of JSON."""
    side = round(subvolumes ** (1 / 3))
    edge = side * (BOX_PX - OVERLAP_PX) + OVERLAP_PX
    store, key = Store(root), f"{side}-{splits}-{mergers}".encode().hex().ljust(40, "0")
    bounds = Bounds(minimum_xyz=(0, 0, 0), maximum_xyz=(edge, edge, edge))
    data = Store(store.url(f"artifacts/{key}/subvolumes"))
    grid = SubvolumeGrid(bounds, (BOX_PX,) * 3, (OVERLAP_PX,) * 3)
    given = write_boxes(grid, data, splits, mergers)
    artifact = Artifact(
        kind="subvolumes", uri=artifact_uri(store, key, "subvolumes"), data_uri=data.uri, digest=key,
        voxel_size_nm_xyz=(10.0, 10.0, 10.0), bounds=bounds,
        properties={"size_xyz": [BOX_PX] * 3, "overlap_xyz": [OVERLAP_PX] * 3},
    )  # fmt: skip
    manifest = Manifest(
        job_key=key, stage="segment", stage_version="0", params={}, inputs={}, outputs={"subvolumes": artifact},
        provenance={},
    )  # fmt: skip
    store.create_json(manifest_path(key), manifest.model_dump())
    spec = make_spec(load_stage("reconcile"), inputs={"subvolumes": artifact.uri}, params={"num_mips": 0})
    save_spec(store, spec)
    resources = Resources(ranks=ranks)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = stage_command(Launch(job_uri(store, spec.key), resources))
    subprocess.run(command, env=stage_environment(resources), check=True, capture_output=True)
    wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    result = settle(store, spec.key)
    assert result is not None
    journals = list(filter(None, (read_journal(store, spec.key, f"join_{level}") for level in range(9))))
    figures = {
        "subvolumes": len(grid),
        "ranks": ranks,
        "splits": splits,
        **given,
        "ids_before": int(result.metrics["subvolume_segments"]),
        "ids_after": int(result.metrics["segments"]),
        **judge(result, edge),
        "most_nodes_in_a_task": [max(entry.data["nodes"] for entry in journal.values()) for journal in journals],
        "wall_s": round(wall_s, 1),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "largest_process_so_far_mb": after.ru_maxrss // 1024,
    }
    print(json.dumps(figures), flush=True)
