"""The rounds of meshing.

count  voxels of each label in a block, in `_counts/{block}.npz`: what is dust is known only when
       the whole volume has been counted (an object's part in one block may be small)
forge  a block of the volume → the pieces of surface in it, in `_work/{block}.npz|bin`
merge  some objects: their pieces joined, levels of detail made, encoded and written
tidy   names and sizes of the objects for Neuroglancer's list; pieces deleted

A forging task holds one block, a merging task the pieces of its objects: at most
`objects_per_task`, and about PIECES_BYTES unless a single object is larger.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.imaging.blocks import Block, BlockGrid, count_voxels, without
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.stages.mesh.sharding import shard_numbers, sharding_of, write_shard
from happyneurons.store.fragments import FragmentIndex, label_groups, write_fragments
from happyneurons.store.volumes import Hdf5Volume, PrecomputedVolume, open_volume

if TYPE_CHECKING:
    from happyneurons.stages.mesh.stage import MeshParams

MESH = "mesh"
COUNTS, WORK = "_counts", "_work"
PIECES_BYTES = 256 << 20
LISTED_SEGMENTS = 100_000  # in Neuroglancer's list of segments, the largest first: it is read whole by the browser


def block_grid(context: Context[Any]) -> BlockGrid:
    volume = _volume(context)
    return BlockGrid.of(volume.start_zyx, volume.stop_zyx, context.params.block_size_xyz)


def voxel_size_nm_xyz(context: Context[Any]) -> tuple[float, float, float]:
    return _volume(context).voxel_size_nm_xyz


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
        write_fragments(context.output_store(MESH), COUNTS, task.key, {}, columns)
        return TaskResult(data={"labels": len(counts)}, voxels=block.voxels)


class Forge(Round):
    """Task: one block."""

    name = "forge"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        return _block_tasks(context)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.mesh.surfaces import OVERLAP_VX, block_surfaces, closing_pad

        params: MeshParams = context.params
        volume, grid, block = _volume(context), block_grid(context), _block(task)
        labels = volume.read(block.start_zyx, grid.beyond(block, OVERLAP_VX)).astype(np.uint64, copy=False)
        counted, voxels = _counts(context)
        dust = np.intersect1d(labels, counted[voxels < params.dust_threshold_voxels])
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
        pieces = {label: surface.to_bytes() for label, surface in found.items()}
        written = write_fragments(context.output_store(MESH), WORK, task.key, pieces, {})
        return TaskResult(
            data={"labels": len(found), "triangles": sum(len(f.faces) for f in found.values())},
            voxels=block.voxels,
            bytes=written,
        )


def _volume(context: Context[Any]) -> PrecomputedVolume | Hdf5Volume:
    volume: PrecomputedVolume | Hdf5Volume = context.once(
        "volume", lambda: open_volume(context.input("segmentation").data_uri, context.params.mip)
    )
    return volume


def _counts(context: Context[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(labels ascending, their voxels in the whole volume)."""

    def load() -> tuple[np.ndarray, np.ndarray]:
        blocks = (key for key, _ in context.results(Count.name))
        return FragmentIndex.load(context.output_store(MESH), COUNTS, blocks, ["voxels"]).totals("voxels")

    counts: tuple[np.ndarray, np.ndarray] = context.once("counts", load)
    return counts


def _index(context: Context[Any]) -> FragmentIndex:
    def load() -> FragmentIndex:
        return FragmentIndex.load(context.output_store(MESH), WORK, (key for key, _ in context.results(Forge.name)))

    index: FragmentIndex = context.once("index", load)
    return index


def _objects(context: Context[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(labels, voxels, bytes of their pieces) of all objects that get a mesh, labels ascending."""
    counted, voxels = _counts(context)
    labels, size = _index(context).totals("length")
    voxels = voxels[np.searchsorted(counted, labels)]
    return labels, voxels, size


def _sharding(context: Context[Any]) -> dict[str, Any]:
    return sharding_of(_objects(context)[0], context.params.objects_per_task)


class Merge(Round):
    """Task: a run of labels, or the labels of one shard."""

    name = "merge"

    def prepare(self, context: Context[Any]) -> None:
        from happyneurons.stages.mesh.multires import layer_info

        params: MeshParams = context.params
        info = layer_info(params.vertex_bits, _sharding(context) if params.sharded else None)
        context.output_store(MESH).put_json("info", {**info, "segment_properties": "segment_properties"})

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        params: MeshParams = context.params
        labels, _, sizes = _objects(context)
        if params.sharded:
            numbers, weights = shard_numbers(labels, _sharding(context)), np.maximum(sizes, 1)
            for number in np.unique(numbers):
                cost = float(weights[numbers == number].sum()) / 1e6
                yield Task(key=f"shard-{number}", payload={"shard": int(number)}, cost=cost)
            return
        for first, last in label_groups(labels, sizes, params.objects_per_task, PIECES_BYTES):
            cost = float(sizes[(labels >= np.uint64(first)) & (labels <= np.uint64(last))].sum()) / 1e6
            yield Task(key=f"{first}-{last}", payload={"first": first, "last": last}, cost=cost)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.mesh.multires import encode
        from happyneurons.stages.mesh.surfaces import Surface, join

        params: MeshParams = context.params
        store = context.output_store(MESH)
        labels = _objects(context)[0]
        if params.sharded:
            labels = labels[shard_numbers(labels, _sharding(context)) == task.payload["shard"]]
        else:
            first, last = np.uint64(task.payload["first"]), np.uint64(task.payload["last"])
            labels = labels[(labels >= first) & (labels <= last)]
        pieces = _index(context).read(store, WORK, labels)
        encoded: dict[int, tuple[bytes, bytes]] = {}
        triangles = 0
        for label in sorted(pieces):
            surface = join([Surface.from_bytes(piece) for piece in pieces.pop(label)])
            triangles += len(surface.faces)
            result = encode(
                surface, levels=params.levels, chunk_nm=params.min_chunk_nm,
                detail_nm=max(params.max_error_nm, *voxel_size_nm_xyz(context)), vertex_bits=params.vertex_bits,
            )  # fmt: skip
            if result is not None:
                encoded[label] = result
        if params.sharded:
            size = write_shard(store, _sharding(context), encoded)
        else:
            size = 0
            for label, (manifest, data) in encoded.items():
                store.put(f"{label}", data)
                store.put(f"{label}.index", manifest)
                size += len(data) + len(manifest)
        return TaskResult(data={"meshes": len(encoded), "triangles": triangles, "bytes": size}, bytes=size)


class Tidy(Round):
    """Task: the whole layer; small work."""

    name = "tidy"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        yield Task(key="layer")

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        store = context.output_store(MESH)
        labels, voxels, _ = _objects(context)
        order = np.lexsort((labels, -voxels))[:LISTED_SEGMENTS]
        store.put_json("segment_properties/info", segment_properties(labels[order], voxels[order]))
        # Only when nothing is left that a later attempt would need them for.
        if not context.quarantined(Merge.name):
            for block in _index(context).blocks:
                store.delete(f"{WORK}/{block}.bin")
        return TaskResult(data={"largest": [int(v) for v in labels[order][:50]]})


def segment_properties(labels: np.ndarray, voxels: np.ndarray) -> dict[str, Any]:
    """Neuroglancer's list of segments with their voxel counts; google/neuroglancer, segment_properties.md."""
    return {
        "@type": "neuroglancer_segment_properties",
        "inline": {
            "ids": [str(int(label)) for label in labels],
            "properties": [
                {
                    "id": "voxels",
                    "type": "number",
                    "data_type": "uint32",
                    "description": "voxels of the meshed level",
                    "values": [min(int(v), 2**32 - 1) for v in voxels],
                }
            ],
        },
    }
