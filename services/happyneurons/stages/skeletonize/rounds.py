"""The rounds of skeletonization; between them, those of happyneurons.jobs.objects: count first, tidy last.

trace  a block → pieces of skeletons, in `_work/{block}.npz|bin`
merge  some objects: their pieces joined, loops and short side branches removed, written
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.imaging.blocks import without
from happyneurons.jobs import objects
from happyneurons.jobs.objects import BlockRound, LayerRound, ObjectLayer, block_grid, input_volume, task_block
from happyneurons.jobs.stage import Context, Task, TaskResult
from happyneurons.store.fragments import FragmentIndex, write_fragments
from happyneurons.store.shards import write_shard
from happyneurons.store.skeletons import parse_precomputed

if TYPE_CHECKING:
    from happyneurons.stages.skeletonize.stage import SkeletonizeParams

SKELETONS = "skeletons"
LAYER = ObjectLayer(SKELETONS, pieces_round="trace", shard_encoding="gzip")
LENGTHS = "_lengths"
PIECES_BYTES = 128 << 20
INFO = {
    "@type": "neuroglancer_skeletons",
    "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
    "vertex_attributes": [{"id": "radius", "data_type": "float32", "num_components": 1}],
}


class Trace(BlockRound):
    """Task: one block."""

    name = LAYER.pieces_round

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.skeletonize.trace import OVERLAP_VX, block_skeletons

        params: SkeletonizeParams = context.params
        volume, grid, block = input_volume(context), block_grid(context), task_block(task)
        labels = volume.read(block.start_zyx, grid.beyond(block, OVERLAP_VX)).astype(np.uint64, copy=False)
        z, y, x = np.subtract(block.stop_zyx, block.start_zyx)
        # What lies in the overlap alone belongs to the next block; here it would be a flat scrap.
        foreign = np.setdiff1d(labels, labels[:z, :y, :x])
        dust = LAYER.dust(context, labels)
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
        vertices = {label: parse_precomputed(piece).vertices_nm for label, piece in pieces.items()}
        LAYER.write_spatial_index(context, block, vertices)
        written = LAYER.write_pieces(context, task, pieces)
        return TaskResult(data={"labels": len(pieces)}, voxels=block.voxels, bytes=written)


class Merge(LayerRound):
    """Task: a run of labels, or the labels of one shard."""

    name = objects.MERGE

    def prepare(self, context: Context[Any]) -> None:
        info = {**INFO, **LAYER.layer_entries(context)}
        if context.params.sharded:
            info["sharding"] = LAYER.sharding(context)
        context.output_store(SKELETONS).put_json("info", info)

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        if context.params.sharded:
            return LAYER.shard_tasks(context)
        return LAYER.group_tasks(context, PIECES_BYTES)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.skeletonize.trace import join, swc

        params: SkeletonizeParams = context.params
        store = context.output_store(SKELETONS)
        pieces = LAYER.read_pieces(context, LAYER.task_labels(context, task))
        lengths: dict[int, dict[str, int]] = {}
        encoded: dict[int, tuple[bytes, bytes]] = {}
        branches, written = 0, 0
        for label in sorted(pieces):
            skeleton = join(
                label, pieces.pop(label), min_length_nm=params.min_length_nm, tick_length_nm=params.tick_length_nm
            )
            if skeleton is None:
                continue
            data = bytes(skeleton.to_precomputed())
            if params.sharded:
                encoded[label] = data, b""
            else:
                store.put(str(label), data)
            if params.swc:
                store.put(f"swc/{label}.swc", swc(skeleton.vertices, skeleton.edges, skeleton.radius))
            lengths[label] = {"length_nm": round(float(skeleton.cable_length()))}
            branches += int((np.bincount(skeleton.edges.ravel()) > 2).sum())
            written += len(data)
        if encoded:
            write_shard(store, LAYER.sharding(context), encoded)
        write_fragments(store, LENGTHS, task.key, {}, lengths)
        path_um = sum(row["length_nm"] for row in lengths.values()) / 1000
        return TaskResult(
            data={"skeletons": len(lengths), "path_um": path_um, "branch_points": branches}, bytes=written
        )


class Tidy(objects.Tidy):
    """Lists the objects by the length of their skeletons."""

    def sizes(self, context: Context[Any]) -> tuple[np.ndarray, np.ndarray]:
        groups = (key for key, _ in context.results(Merge.name))
        index = FragmentIndex.load(context.output_store(SKELETONS), LENGTHS, groups, ["length_nm"])
        return index.totals("length_nm")

    def listed_property(self, sizes: np.ndarray) -> dict[str, Any]:
        return {
            "id": "path_um",
            "type": "number",
            "data_type": "float32",
            "description": "path in µm",
            "values": [round(float(v) / 1000, 3) for v in sizes],
        }
