"""The rounds of meshing; between them, those of happyneurons.jobs.objects: count first, tidy last.

forge  a block of the volume → the pieces of surface in it, in `_work/{block}.npz|bin`
merge  some objects: their pieces joined, levels of detail made, encoded and written

A forging task holds one block, a merging task the pieces of its objects: at most
`objects_per_task`, and about PIECES_BYTES unless a single object is larger.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.imaging.blocks import without
from happyneurons.jobs import objects
from happyneurons.jobs.objects import BlockRound, LayerRound, ObjectLayer, block_grid, input_volume, task_block
from happyneurons.jobs.stage import Context, Task, TaskResult
from happyneurons.store.shards import write_shard

if TYPE_CHECKING:
    from happyneurons.stages.mesh.stage import MeshParams

MESH = "mesh"
LAYER = ObjectLayer(MESH, pieces_round="forge")
PIECES_BYTES = 256 << 20


class Forge(BlockRound):
    """Task: one block."""

    name = LAYER.pieces_round

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.mesh.surfaces import OVERLAP_VX, block_surfaces, closing_pad

        params: MeshParams = context.params
        volume, grid, block = input_volume(context), block_grid(context), task_block(task)
        labels = volume.read(block.start_zyx, grid.beyond(block, OVERLAP_VX)).astype(np.uint64, copy=False)
        dust = LAYER.dust(context, labels)
        if params.backend == "igneous":
            from happyneurons.stages.mesh.igneous_backend import igneous_surfaces

            found = igneous_surfaces(
                volume.uri, params.mip, block, [int(v) for v in dust], context.scratch,
                max_error_nm=params.max_error_nm, reduction=params.reduction,
            )  # fmt: skip
        else:
            found = block_surfaces(
                without(labels, dust), block.start_zyx, closing_pad(block, grid), volume.voxel_size_nm_xyz,
                max_error_nm=params.max_error_nm, reduction=params.reduction,
            )  # fmt: skip
        LAYER.write_spatial_index(context, block, {label: surface.vertices for label, surface in found.items()})
        pieces = {label: surface.to_bytes() for label, surface in found.items()}
        written = LAYER.write_pieces(context, task, pieces)
        return TaskResult(
            data={"labels": len(found), "triangles": sum(len(f.faces) for f in found.values())},
            voxels=block.voxels,
            bytes=written,
        )


def _objects(context: Context[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(labels, voxels, bytes of their pieces) of all objects that get a mesh, labels ascending."""
    counted, voxels = LAYER.counts(context)
    labels, size = LAYER.index(context).totals("length")
    voxels = voxels[np.searchsorted(counted, labels)]
    return labels, voxels, size


class Merge(LayerRound):
    """Task: a run of labels, or the labels of one shard."""

    name = objects.MERGE

    def prepare(self, context: Context[Any]) -> None:
        from happyneurons.stages.mesh.multires import layer_info

        params: MeshParams = context.params
        info = layer_info(params.vertex_bits, LAYER.sharding(context) if params.sharded else None)
        context.output_store(MESH).put_json("info", {**info, **LAYER.layer_entries(context)})

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        if context.params.sharded:
            return LAYER.shard_tasks(context)
        return LAYER.group_tasks(context, PIECES_BYTES)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.mesh.multires import encode
        from happyneurons.stages.mesh.surfaces import Surface, join

        params: MeshParams = context.params
        store = context.output_store(MESH)
        pieces = LAYER.read_pieces(context, LAYER.task_labels(context, task))
        encoded: dict[int, tuple[bytes, bytes]] = {}
        triangles = 0
        for label in sorted(pieces):
            surface = join([Surface.from_bytes(piece) for piece in pieces.pop(label)])
            triangles += len(surface.faces)
            result = encode(
                surface, levels=params.levels, chunk_nm=params.min_chunk_nm, vertex_bits=params.vertex_bits,
                detail_nm=max(params.max_error_nm, *input_volume(context).voxel_size_nm_xyz),
            )  # fmt: skip
            if result is not None:
                encoded[label] = result
        if params.sharded:
            size = write_shard(store, LAYER.sharding(context), encoded)
        else:
            size = 0
            for label, (manifest, data) in encoded.items():
                store.put(f"{label}", data)
                store.put(f"{label}.index", manifest)
                size += len(data) + len(manifest)
        return TaskResult(data={"meshes": len(encoded), "triangles": triangles, "bytes": size}, bytes=size)


class Tidy(objects.Tidy):
    """Lists the objects by voxels."""

    def sizes(self, context: Context[Any]) -> tuple[np.ndarray, np.ndarray]:
        return _objects(context)[:2]

    def listed_property(self, sizes: np.ndarray) -> dict[str, Any]:
        return {
            "id": "voxels",
            "type": "number",
            "data_type": "uint32",
            "description": "voxels of the meshed level",
            "values": [min(int(v), 2**32 - 1) for v in sizes],
        }
