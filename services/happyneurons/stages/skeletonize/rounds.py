"""The rounds of skeletonization; their shape is that of meshing.

count  voxels of each label in a block, in `_counts/{block}.npz`
trace  a block → pieces of skeletons, in `_work/{block}.npz|bin`
merge  some objects: their pieces joined, loops and short side branches removed, written
tidy   list of skeletons with their lengths; pieces deleted
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.imaging.blocks import Block, BlockGrid, count_voxels, without
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.store.fragments import FragmentIndex, label_groups, write_fragments
from happyneurons.store.volumes import Hdf5Volume, PrecomputedVolume, open_volume

if TYPE_CHECKING:
    from happyneurons.stages.skeletonize.stage import SkeletonizeParams

SKELETONS = "skeletons"
COUNTS, WORK, LENGTHS = "_counts", "_work", "_lengths"
PIECES_BYTES = 128 << 20
LISTED_SEGMENTS = 100_000  # in Neuroglancer's list of segments, the longest first
INFO = {
    "@type": "neuroglancer_skeletons",
    "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
    "vertex_attributes": [{"id": "radius", "data_type": "float32", "num_components": 1}],
    "segment_properties": "segment_properties",
}


def block_grid(context: Context[Any]) -> BlockGrid:
    volume = _volume(context)
    return BlockGrid.of(volume.start_zyx, volume.stop_zyx, context.params.block_size_xyz)


def voxel_size_nm_xyz(context: Context[Any]) -> tuple[float, float, float]:
    return _volume(context).voxel_size_nm_xyz


def _volume(context: Context[Any]) -> PrecomputedVolume | Hdf5Volume:
    volume: PrecomputedVolume | Hdf5Volume = context.once(
        "volume", lambda: open_volume(context.input("segmentation").data_uri, context.params.mip)
    )
    return volume


def _block_tasks(context: Context[Any]) -> Iterable[Task]:
    for block in block_grid(context):
        payload = {"start_zyx": list(block.start_zyx), "stop_zyx": list(block.stop_zyx)}
        yield Task(key=block.key, payload=payload, cost=block.voxels / 1e6)


def _block(task: Task) -> Block:
    return Block(tuple(task.payload["start_zyx"]), tuple(task.payload["stop_zyx"]))


class Count(Round):
    """Task: one block."""

    name = "count"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        return _block_tasks(context)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        block = _block(task)
        counts = count_voxels(_volume(context).read(block.start_zyx, block.stop_zyx))
        columns = {label: {"voxels": n} for label, n in counts.items()}
        write_fragments(context.output_store(SKELETONS), COUNTS, task.key, {}, columns)
        return TaskResult(data={"labels": len(counts)}, voxels=block.voxels)


class Trace(Round):
    """Task: one block."""

    name = "trace"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        return _block_tasks(context)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.skeletonize.trace import OVERLAP_VX, block_skeletons

        params: SkeletonizeParams = context.params
        volume, grid, block = _volume(context), block_grid(context), _block(task)
        labels = volume.read(block.start_zyx, grid.beyond(block, OVERLAP_VX)).astype(np.uint64, copy=False)
        counted, voxels = _counts(context)
        z, y, x = np.subtract(block.stop_zyx, block.start_zyx)
        # What lies in the overlap alone belongs to the next block; here it would be a flat scrap.
        foreign = np.setdiff1d(labels, labels[:z, :y, :x])
        dust = np.intersect1d(labels, counted[voxels < params.dust_threshold_voxels])
        teasar = {
            "scale": params.scale,
            "const": params.const_nm,
            "pdrf_scale": params.pdrf_scale,
            "pdrf_exponent": params.pdrf_exponent,
            "soma_detection_threshold": params.soma_detection_nm,
            "soma_acceptance_threshold": params.soma_acceptance_nm,
            "soma_invalidation_const": params.const_nm,
            "soma_invalidation_scale": 2.0,
        }
        kept = without(labels, np.union1d(foreign, dust))
        pieces = block_skeletons(kept, block.start_zyx, volume.voxel_size_nm_xyz, teasar)
        written = write_fragments(context.output_store(SKELETONS), WORK, task.key, pieces, {})
        return TaskResult(data={"labels": len(pieces)}, voxels=block.voxels, bytes=written)


def _counts(context: Context[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(labels ascending, their voxels in the whole volume)."""

    def load() -> tuple[np.ndarray, np.ndarray]:
        blocks = (key for key, _ in context.results(Count.name))
        return FragmentIndex.load(context.output_store(SKELETONS), COUNTS, blocks, ["voxels"]).totals("voxels")

    counts: tuple[np.ndarray, np.ndarray] = context.once("counts", load)
    return counts


def _index(context: Context[Any]) -> FragmentIndex:
    def load() -> FragmentIndex:
        blocks = (key for key, _ in context.results(Trace.name))
        return FragmentIndex.load(context.output_store(SKELETONS), WORK, blocks)

    index: FragmentIndex = context.once("index", load)
    return index


class Merge(Round):
    """Task: a run of labels."""

    name = "merge"

    def prepare(self, context: Context[Any]) -> None:
        context.output_store(SKELETONS).put_json("info", INFO)

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        labels, size = _index(context).totals("length")
        for first, last in label_groups(labels, size, context.params.objects_per_task, PIECES_BYTES):
            cost = float(size[(labels >= np.uint64(first)) & (labels <= np.uint64(last))].sum()) / 1e6
            yield Task(key=f"{first}-{last}", payload={"first": first, "last": last}, cost=cost)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.skeletonize.trace import join, swc

        params: SkeletonizeParams = context.params
        store, index = context.output_store(SKELETONS), _index(context)
        labels = index.totals("length")[0]
        chosen = labels[(labels >= np.uint64(task.payload["first"])) & (labels <= np.uint64(task.payload["last"]))]
        pieces = index.read(store, WORK, chosen)
        lengths: dict[int, dict[str, int]] = {}
        branches, written = 0, 0
        for label in sorted(pieces):
            skeleton = join(
                label, pieces.pop(label), min_length_nm=params.min_length_nm, tick_length_nm=params.tick_length_nm
            )
            if skeleton is None:
                continue
            data = bytes(skeleton.to_precomputed())
            store.put(str(label), data)
            if params.swc:
                store.put(f"swc/{label}.swc", swc(skeleton.vertices, skeleton.edges, skeleton.radius))
            lengths[label] = {"length_nm": round(float(skeleton.cable_length()))}
            branches += int((np.bincount(skeleton.edges.ravel()) > 2).sum())
            written += len(data)
        write_fragments(store, LENGTHS, task.key, {}, lengths)
        path_um = sum(row["length_nm"] for row in lengths.values()) / 1000
        return TaskResult(
            data={"skeletons": len(lengths), "path_um": path_um, "branch_points": branches}, bytes=written
        )


class Tidy(Round):
    """Task: the whole layer; small work."""

    name = "tidy"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        yield Task(key="layer")

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        store = context.output_store(SKELETONS)
        groups = [key for key, _ in context.results(Merge.name)]
        labels, lengths = FragmentIndex.load(store, LENGTHS, groups, ["length_nm"]).totals("length_nm")
        order = np.lexsort((labels, -lengths))[:LISTED_SEGMENTS]
        store.put_json("segment_properties/info", _segment_properties(labels[order], lengths[order]))
        # Only when nothing is left that a later attempt would need them for.
        if not context.quarantined(Merge.name):
            for block in _index(context).blocks:
                store.delete(f"{WORK}/{block}.bin")
        return TaskResult(data={"largest": [int(v) for v in labels[order][:50]]})


def _segment_properties(labels: np.ndarray, lengths_nm: np.ndarray) -> dict[str, Any]:
    """Neuroglancer's list of segments; google/neuroglancer, segment_properties.md."""
    values = [round(float(v) / 1000, 3) for v in lengths_nm]
    length = {"id": "path_um", "type": "number", "data_type": "float32", "description": "path in µm", "values": values}
    return {
        "@type": "neuroglancer_segment_properties",
        "inline": {"ids": [str(int(label)) for label in labels], "properties": [length]},
    }
